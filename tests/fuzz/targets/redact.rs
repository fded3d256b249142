//! Any bytes, cut anywhere: the masker never panics, masks the same wherever they are cut, never shows a value that it was told of,
//! keeps JSON, and conserves every byte that it does not mask.
#![no_main]

use std::sync::{Arc, LazyLock};

use claude_run::redact::{Masker, Secrets};
use libfuzzer_sys::fuzz_target;

const VALUE: &str = "hunter2\"\\/x";

static SECRETS: LazyLock<Arc<Secrets>> = LazyLock::new(|| {
    let environment = [("GITHUB_TOKEN", VALUE), ("VAULT_PASS", "hunter2-again")];
    let environment = environment.map(|(name, value)| (name.into(), value.into()));
    Arc::new(Secrets::new(environment, &["phrase".to_owned()], &["zz+top".to_owned()]).expect("a good pattern"))
});

fn masked(bytes: &[u8], step: usize) -> Vec<u8> {
    let (mut masker, mut out) = (Masker::new(Arc::clone(&SECRETS)), Vec::new());
    for piece in bytes.chunks(step.max(1)) {
        masker.feed(piece, &mut out);
    }
    masker.end(&mut out);
    out
}

/// True if `out` is `bytes`, with some parts replaced by a mask.
fn conserves(bytes: &[u8], out: &[u8]) -> bool {
    let mut rest = bytes;
    for part in out.split_inclusive(|&byte| byte == b'*') {
        let text = part.strip_suffix(b"*").unwrap_or(part);
        let Some(at) = rest.windows(text.len().max(1)).position(|window| text.is_empty() || window == text) else {
            return text.is_empty();
        };
        rest = &rest[at + text.len()..];
    }
    true
}

fn is_json(line: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(line).is_ok_and(|value| value.is_object() || value.is_array())
}

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let whole = masked(bytes, bytes.len());
    assert_eq!(masked(bytes, step.into()), whole);
    assert!(!whole.windows(VALUE.len()).any(|part| part == VALUE.as_bytes()));
    assert!(conserves(bytes, &whole), "{:?}", String::from_utf8_lossy(&whole));
    let (before, after) = (bytes.split(|&byte| byte == b'\n'), whole.split(|&byte| byte == b'\n'));
    for (line, out) in before.zip(after) {
        assert!(!is_json(line) || is_json(out), "{:?}", String::from_utf8_lossy(out));
    }
});
