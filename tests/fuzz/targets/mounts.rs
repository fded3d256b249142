//! Any line as one of /proc/self/mounts: never a panic; a mount's kind is one word, and its place is no longer than it was
//! written.
#![no_main]

use claude_run::sys::mount::Mount;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    if let Some(mount) = Mount::parse(line) {
        assert!(!mount.kind.contains(' ') && mount.point.as_os_str().len() <= line.len());
    }
});
