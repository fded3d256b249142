//! The child's stdout on its way to our caller. Where nothing has to read it, it goes straight there; else `relay` copies
//! it, `spool` keeps what our reader has not taken yet, and the frames in it are told to the event channel.

mod pipe;
mod relay;
mod spool;

pub(crate) use pipe::enlarge_ours;
pub(crate) use relay::Relay;
