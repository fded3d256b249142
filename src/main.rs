//! The entry point. C's `main`, not std's: std would set SIGPIPE to ignored and open closed descriptors before we can
//! see what claude is to inherit.
#![no_main]

use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;

#[unsafe(no_mangle)]
extern "C" fn main(argc: i32, argv: *const *const c_char) -> i32 {
    // One heap for all threads. A second one, for the thread that waits for the lock, costs system calls and memory.
    #[cfg(target_env = "gnu")]
    // SAFETY: there is one thread, and nothing is allocated yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
    // SAFETY: `argv` holds `argc` strings that end with a zero byte, and lives as long as the process.
    let word = |at| unsafe { CStr::from_ptr(*argv.add(at)) };
    let words = (0..usize::try_from(argc).unwrap_or_default()).map(|at| OsStr::from_bytes(word(at).to_bytes()).to_owned());
    claude_run::main(words.collect())
}
