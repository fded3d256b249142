//! Capacity of pipes.

use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, fcntl};

/// Largest pipe that an unprivileged process may make. Claude Code drops at its exit what its stdout has not taken in time.
pub(crate) const PIPE_SIZE: i32 = 1 << 20;

/// Enlarges `pipe`, if it is a pipe and smaller.
pub(crate) fn enlarge(pipe: impl AsFd) {
    if fcntl(&pipe, FcntlArg::F_GETPIPE_SZ).is_ok_and(|size| size < PIPE_SIZE) {
        // At the user's limit (pipe-user-pages-soft) it stays as it is.
        let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    }
}
