//! `.credentials.json`: the expiry of the access token. The tokens themselves are never kept, never shown, never written.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::sys::fs::read_bounded;

/// State of the OAuth login in the credentials file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// Logged in, with an access token that expires at this time.
    Expires(SystemTime),
    /// No file, or no OAuth login in it.
    None,
    /// The file cannot be read or understood, for this reason.
    Unclear(String),
}

/// Number and interval of retries, which outlast the rewriting of a small file.
const RETRIES: u32 = 20;
const RETRY_EVERY: Duration = Duration::from_millis(10);
const MAX_SIZE: u64 = 1 << 20;

impl Login {
    pub(crate) fn path(config_dir: &Path) -> PathBuf {
        config_dir.join(".credentials.json")
    }

    /// Reads the file; again, while it looks half-written: older versions rewrite it in place.
    pub(crate) fn read_whole(config_dir: &Path) -> Self {
        for _ in 0..RETRIES {
            match Self::read(config_dir) {
                Self::Unclear(_) => thread::sleep(RETRY_EVERY),
                login => return login,
            }
        }
        Self::read(config_dir)
    }

    pub(crate) fn read(config_dir: &Path) -> Self {
        match read_bounded(&Self::path(config_dir), MAX_SIZE) {
            Ok(bytes) => Self::parse(&bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => Self::None,
            Err(error) => Self::Unclear(error.to_string()),
        }
    }

    /// True if the file has a token to refresh the login with.
    pub(crate) fn has_refresh_token(config_dir: &Path) -> bool {
        let bytes = read_bounded(&Self::path(config_dir), MAX_SIZE).unwrap_or_default();
        let file: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        file["claudeAiOauth"]["refreshToken"].as_str().is_some_and(|token| !token.is_empty())
    }

    /// Reads the text of a credentials file.
    pub fn parse(bytes: &[u8]) -> Self {
        let file: Value = match serde_json::from_slice(bytes) {
            Ok(file) => file,
            // serde_json's message names a place, and quotes nothing of a string.
            Err(error) => return Self::Unclear(format!("no JSON: {error}")),
        };
        let Some(oauth) = file.get("claudeAiOauth") else { return Self::None };
        // A number of JavaScript's: it may have a fraction.
        let milliseconds = oauth["expiresAt"].as_f64().filter(|at| *at >= 0.0).map(|at| at as u64);
        match milliseconds.and_then(|at| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at))) {
            Some(at) => Self::Expires(at),
            None => Self::Unclear("no expiresAt".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_half_written_file_is_read_again() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = Login::path(dir.path());
        let text = r#"{"claudeAiOauth":{"expiresAt":1000}}"#;
        std::fs::write(&file, &text[..9])?;
        let rewriting = thread::spawn(move || {
            thread::sleep(RETRY_EVERY * 3);
            std::fs::write(file, text)
        });
        assert_eq!(Login::read_whole(dir.path()), Login::Expires(SystemTime::UNIX_EPOCH + Duration::from_secs(1)));
        assert!(rewriting.join().is_ok());
        std::fs::remove_file(Login::path(dir.path()))?;
        nix::unistd::mkfifo(&Login::path(dir.path()), nix::sys::stat::Mode::S_IRUSR)?;
        assert!(matches!(Login::read_whole(dir.path()), Login::Unclear(_)), "a FIFO");
        Ok(())
    }

    #[test]
    fn expiry_is_read_and_a_cut_file_is_unclear() {
        let file =
            br#"{"claudeAiOauth":{"accessToken":"sk-ant-oat01-x","refreshToken":"y","expiresAt":1790000000123,"scopes":[]}}"#;
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
        assert_eq!(Login::parse(file), Login::Expires(at));
        for (number, milliseconds) in [("1.5", 1), ("1e3", 1000), ("0", 0), ("1e30", u64::MAX)] {
            let file = format!(r#"{{"claudeAiOauth":{{"expiresAt":{number}}}}}"#);
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds);
            assert_eq!(Login::parse(file.as_bytes()), Login::Expires(at), "{number}");
        }
        for length in 0..file.len() {
            let Login::Unclear(why) = Login::parse(&file[..length]) else { panic!("{length}") };
            assert!(!why.contains("sk-ant"), "{why}");
        }
        assert_eq!(Login::parse(b"{}"), Login::None);
        assert!(matches!(Login::parse(br#"{"claudeAiOauth":{"expiresAt":"soon"}}"#), Login::Unclear(_)));
        for other in ["null", "[1790000000123]", "\"x\""] {
            let file = format!(r#"{{"claudeAiOauth":{other}}}"#);
            assert_eq!(Login::parse(file.as_bytes()), Login::Unclear("no expiresAt".to_owned()), "{other}");
        }
    }
}
