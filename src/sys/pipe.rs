//! Capacity of pipes.

use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, fcntl};

/// Sizes of pipes: what a privileged process may have, and any. Claude Code drops at its exit what its stdout has not taken in time.
const SIZES: [i32; 2] = [8 << 20, 1 << 20];

/// Most bytes that a pipe of ours holds.
pub(crate) const LARGEST: usize = SIZES[0] as usize;

/// Enlarges `pipe`, if it is a pipe and smaller.
pub(crate) fn enlarge(pipe: impl AsFd) {
    let Ok(size) = fcntl(&pipe, FcntlArg::F_GETPIPE_SZ) else { return };
    // At the user's limit (pipe-user-pages-soft) it stays as it is.
    SIZES.into_iter().take_while(|&larger| larger > size).any(|larger| fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(larger)).is_ok());
}
