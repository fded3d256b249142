//! The child's output on its way to our caller. Where nothing has to read it, it goes straight there. Else the child gets a
//! pipe (or, where our own is a terminal or `--pty` asks for it, a pseudo-terminal), and `relay` copies what comes to a
//! `sink`, which keeps in a `spool` what our reader has not taken yet. On the side, frames are told to the event events, and
//! `lines` go to the log, where `redact` has masked secrets.

mod capture;
mod line_logger;
pub mod redact;
mod relay;
mod sink;
mod spool;

pub(crate) use capture::Capture;
pub use capture::Watch;
pub(crate) use relay::Finished;

/// More than claude says in any run. Beyond it, throughput counts: a reader that is only somewhat slower than the child may
/// slow it down.
const BULK: usize = 64 << 20;
