//! `.credentials.json`: when the access token expires. The tokens themselves are never kept, never shown, never written.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::sys::fs::read_bounded;

/// What the credentials file says of the OAuth login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// There is one, whose access token expires then.
    Expires(SystemTime),
    /// There is no file, or no OAuth login in it.
    None,
    /// The file cannot be read or understood; why.
    Unclear(String),
}

/// Longer than it takes to rewrite a small file.
const REWRITING: Duration = Duration::from_millis(200);

const READ_AGAIN: Duration = Duration::from_millis(10);

/// More than any credentials.
const LARGEST: u64 = 1 << 20;

impl Login {
    /// Where the file is.
    pub fn path(config_dir: &Path) -> PathBuf {
        config_dir.join(".credentials.json")
    }

    /// Reads the file. One that is just being rewritten in place, as older versions do, is read again.
    pub fn read_whole(config_dir: &Path) -> Self {
        for _ in 0..REWRITING.as_millis() / READ_AGAIN.as_millis() {
            match read_bounded(&Self::path(config_dir), LARGEST).map(|bytes| Self::parse(&bytes)) {
                Ok(Self::Unclear(_)) => thread::sleep(READ_AGAIN),
                _ => break,
            }
        }
        Self::read(config_dir)
    }

    /// Reads the file, as it is at this moment.
    pub fn read(config_dir: &Path) -> Self {
        match read_bounded(&Self::path(config_dir), LARGEST) {
            Ok(bytes) => Self::parse(&bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => Self::None,
            Err(error) => Self::Unclear(error.to_string()),
        }
    }

    /// Whether there is a token that it can be refreshed with.
    pub fn has_refresh_token(config_dir: &Path) -> bool {
        let file =
            read_bounded(&Self::path(config_dir), LARGEST).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        file.is_some_and(|file| file["claudeAiOauth"]["refreshToken"].as_str().is_some_and(|token| !token.is_empty()))
    }

    /// What a file of these bytes says.
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
    fn a_file_that_is_being_rewritten_is_read_again_and_nothing_hangs() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = Login::path(dir.path());
        let text = r#"{"claudeAiOauth":{"expiresAt":1000}}"#;
        std::fs::write(&file, &text[..9])?;
        let rewriting = thread::spawn(move || {
            thread::sleep(READ_AGAIN * 3);
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
    fn the_expiry_is_read_and_a_file_cut_anywhere_is_unclear() {
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
    }
}
