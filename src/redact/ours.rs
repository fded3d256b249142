//! What this process masks, in the output of claude and in text of its own: the secrets of its environment, and what the settings file
//! adds.

use std::sync::{Arc, OnceLock};

use anyhow::Result;

use super::masker::Masker;
use super::plain::is_plain;
use super::secrets::Secrets;

static OURS: OnceLock<Arc<Secrets>> = OnceLock::new();

/// Names and patterns of the settings file.
static ADDED: OnceLock<(Vec<String>, Vec<String>)> = OnceLock::new();

/// Adds names and patterns to what this process masks. Call before anything is masked.
pub fn configure(names: Vec<String>, patterns: Vec<String>) {
    let _ = ADDED.set((names, patterns));
}

/// The secrets of this process, collected once.
///
/// # Errors
/// As [`Secrets::new`].
pub fn secrets() -> Result<Arc<Secrets>> {
    if let Some(secrets) = OURS.get() {
        return Ok(Arc::clone(secrets));
    }
    let (names, patterns) = ADDED.get().cloned().unwrap_or_default();
    let secrets = Arc::new(Secrets::new(std::env::vars_os(), &names, &patterns)?);
    Ok(Arc::clone(OURS.get_or_init(|| secrets)))
}

/// As much of `text` as is kept of what others can write at any length, masked: a secret at the cut would not be known by its beginning.
pub fn kept(text: &str) -> String {
    let mut masked = masked(text);
    if let Some((end, _)) = masked.char_indices().nth(1024) {
        masked.truncate(end);
    }
    masked
}

/// `text` of ours, masked. Most of it has no secret, which is seen without collecting those of this process.
pub fn masked(text: &str) -> String {
    let is_added = || ADDED.get().is_some_and(|(names, patterns)| !names.is_empty() || !patterns.is_empty());
    if OURS.get().is_none() && !is_added() && is_plain(text) {
        return text.to_owned();
    }
    let Ok(secrets) = secrets() else { return "(not shown: its secrets cannot be masked)".to_owned() };
    let mut out = Vec::with_capacity(text.len());
    let mut masker = Masker::new(secrets);
    masker.feed(text.as_bytes(), &mut out);
    masker.end(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}
