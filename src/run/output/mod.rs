//! The child's stdout on its way to our caller. Where nothing has to read it, it goes straight there; else `relay` copies
//! it, `spool` keeps what our reader has not taken yet, and the frames in it are told to the event channel.

mod relay;
mod spool;

pub(crate) use relay::Relay;

use std::io;
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, fcntl};

/// Claude Code drops at its exit what its stdout does not take at once, and still exits 0: 2.1.84 all beyond the pipe's
/// buffer, 2.1.330 after two seconds. This is as large as an unprivileged process may make a pipe.
const PIPE_SIZE: i32 = 1 << 20;

/// Makes `stdout` hold more, if it is a pipe.
pub(crate) fn enlarge(stdout: impl AsFd) {
    // What is no pipe needs no room, and a pipe that may not grow (user limits) works as it is.
    let _ = fcntl(stdout, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
}

/// Makes our own stdout hold more, for a child that writes to it directly.
pub(crate) fn enlarge_ours() {
    enlarge(io::stdout());
}
