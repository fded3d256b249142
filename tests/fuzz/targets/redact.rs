//! Any bytes, cut anywhere: the masker never panics, masks the same wherever they are cut, never shows a value that it was
//! told of, and conserves every byte that it does not mask.
#![no_main]

use std::sync::{Arc, LazyLock};

use claude_run::redact::{Masker, Secrets};
use libfuzzer_sys::fuzz_target;

const VALUE: &str = "hunter2\"\\\nx";

static SECRETS: LazyLock<Arc<Secrets>> = LazyLock::new(|| {
    let environment = [("GITHUB_TOKEN", VALUE), ("VAULT_PASS", "hunter2-again")];
    Arc::new(Secrets::new(environment.map(|(name, value)| (name.into(), value.into()))).expect("two values"))
});

fn masked(bytes: &[u8], step: usize) -> Vec<u8> {
    let (mut masker, mut out) = (Masker::new(Arc::clone(&SECRETS)), Vec::new());
    for piece in bytes.chunks(step.max(1)) {
        masker.feed(piece, &mut out);
    }
    masker.end(&mut out);
    out
}

/// Whether `out` is `bytes`, with some parts replaced by a mask.
fn conserves(bytes: &[u8], out: &[u8]) -> bool {
    let mut rest = bytes;
    let parts = out.split_inclusive(|&byte| byte == b'*');
    for part in parts {
        let text = part.strip_suffix(b"*").unwrap_or(part);
        let Some(at) = rest.windows(text.len().max(1)).position(|window| text.is_empty() || window == text) else {
            return text.is_empty();
        };
        rest = &rest[at + text.len()..];
    }
    true
}

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let whole = masked(bytes, bytes.len());
    assert_eq!(masked(bytes, step.into()), whole);
    assert!(!whole.windows(VALUE.len()).any(|part| part == VALUE.as_bytes()));
    assert!(conserves(bytes, &whole), "{:?}", String::from_utf8_lossy(&whole));
});
