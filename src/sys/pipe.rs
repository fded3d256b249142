//! Room in pipes.

use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, fcntl};

/// Claude Code drops at its exit what its stdout does not take at once, and still exits 0: 2.1.84 all beyond the pipe's
/// buffer, 2.1.330 after two seconds. This is as large as an unprivileged process may make a pipe.
pub(crate) const PIPE_SIZE: i32 = 1 << 20;

/// Makes `stdout` hold more, if it is a pipe that holds less.
pub(crate) fn enlarge(stdout: impl AsFd) {
    if fcntl(&stdout, FcntlArg::F_GETPIPE_SZ).is_ok_and(|size| size < PIPE_SIZE) {
        // A pipe that may not grow (the user's limits) works as it is.
        let _ = fcntl(stdout, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    }
}
