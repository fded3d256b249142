//! The child's output. Streams that nothing reads are inherited from us. Others get a pipe, or a pseudo-terminal where ours is a
//! terminal or `--pty` asks for one (`capture`); `relay` copies them to a `sink`, which keeps in a `spool` what our reader has not
//! taken yet, sends frames to the event queue, and lines to the log (`line_logger`), with secrets masked.

mod capture;
mod drain;
mod line_logger;
mod relay;
mod shared;
mod sink;
mod spool;

pub use capture::OutputConfig;
pub(crate) use drain::{DrainLimit, drain};
pub(crate) use relay::Relay;
