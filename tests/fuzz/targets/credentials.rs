//! Any bytes as credentials file and as owner file of a refresh lock: never a panic; half a file has no expiry; and the message
//! about an unclear file quotes none of it.
#![no_main]

use claude_run::claude::credentials::Login;
use claude_run::claude::refresh_locks::Owner;
use libfuzzer_sys::fuzz_target;

/// Length of a quote that would give a token away.
const QUOTE: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    let _ = Owner::parse(bytes);
    match Login::parse(bytes) {
        Login::Expires(_) => {
            let file = bytes.trim_ascii_end();
            for end in 0..file.len() {
                assert!(matches!(Login::parse(&file[..end]), Login::Unclear(_)), "cut at {end}");
            }
        }
        Login::Unclear(why) => {
            let quoted = |part: &[u8]| why.as_bytes().windows(QUOTE).any(|shown| shown == part);
            assert!(!bytes.windows(QUOTE).any(quoted), "{why}");
        }
        Login::None => {}
    }
});
