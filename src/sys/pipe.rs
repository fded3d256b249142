//! Capacity of pipes.

use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, fcntl};

/// Largest pipe that an unprivileged process may make. Claude Code drops at its exit what its stdout does not take at once, and
/// still exits 0: 2.1.84 all beyond the pipe's buffer, 2.1.330 after two seconds.
pub(crate) const PIPE_SIZE: i32 = 1 << 20;

/// Enlarges `pipe`, if it is a pipe and smaller.
pub(crate) fn enlarge(pipe: impl AsFd) {
    if fcntl(&pipe, FcntlArg::F_GETPIPE_SZ).is_ok_and(|size| size < PIPE_SIZE) {
        // At the user's limit (pipe-user-pages-soft) it stays as it is.
        let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    }
}
