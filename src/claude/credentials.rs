//! `.credentials.json`: the expiry of the access token. The tokens themselves are never kept, never shown, never written.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::sys::fs::{read_secret, settled};

/// State of the OAuth login in the credentials file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// Logged in, with an access token that expires at this time.
    Expires(SystemTime),
    /// No file, or no OAuth login in it.
    None,
    /// The file cannot be read or understood, or what is in it serves no agent; as a sentence about the file.
    Unclear(String),
}

/// Time before the expiry from which on claude itself refreshes its token.
pub(crate) const CLAUDES_MARK: Duration = Duration::from_secs(5 * 60);

const MAX_SIZE: u64 = 8 << 20;

impl Login {
    /// Reads `file`; again, while it looks half-written: older versions rewrite it in place.
    pub(crate) fn read_whole(file: &Path) -> Self {
        settled(|| Self::read(file), |login| matches!(login, Self::Unclear(_)))
    }

    pub(crate) fn read(file: &Path) -> Self {
        match read_secret(file, MAX_SIZE) {
            Ok(bytes) => Self::parse(&bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => Self::None,
            Err(error) => Self::Unclear(format!("cannot be read: {error}")),
        }
    }

    /// True if `file` has a token to refresh the login with.
    pub(crate) fn has_refresh_token(file: &Path) -> bool {
        let Ok(bytes) = read_secret(file, MAX_SIZE) else { return false };
        let file: Option<CredentialsFile> = serde_json::from_slice(&bytes).ok();
        file.and_then(|file| file.login()).is_some_and(|oauth| is_token(oauth.refresh_token))
    }

    /// Reads the text of a credentials file.
    pub fn parse(bytes: &[u8]) -> Self {
        if bytes.trim_ascii().is_empty() {
            return Self::Unclear("is empty".to_owned());
        }
        let file = match serde_json::from_slice::<CredentialsFile>(bytes) {
            Ok(file) => file,
            // The place alone: serde_json's message may quote a string, which may be a token.
            Err(error) => {
                let (line, column) = (error.line(), error.column());
                return Self::Unclear(format!("cannot be understood: no JSON of claude's, at line {line}, column {column}"));
            }
        };
        let Some(oauth) = file.login() else { return Self::None };
        // A number of JavaScript's: it may have a fraction.
        let milliseconds = oauth.expires_at.and_then(|at| serde_json::from_str::<f64>(at.get()).ok()).map(|at| at as u64);
        let expiry = milliseconds.and_then(|at| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at)));
        let scopes = oauth.scopes.and_then(|scopes| serde_json::from_str::<Vec<&RawValue>>(scopes.get()).ok());
        let lacks_inference =
            |scopes: Vec<&RawValue>| !scopes.is_empty() && !scopes.iter().any(|scope| scope.get() == r#""user:inference""#);
        match expiry {
            None => Self::Unclear("cannot be understood: no expiresAt".to_owned()),
            // From 2.1.128 on, claude empties both tokens when the refresh token is refused.
            _ if !is_token(oauth.access_token) => {
                Self::Unclear("has a dead login, without an access token: log in again".to_owned())
            }
            Some(at) if at <= SystemTime::now() && !is_token(oauth.refresh_token) => {
                Self::Unclear("has a dead login, expired and with no refresh token: log in again".to_owned())
            }
            _ if scopes.is_some_and(lacks_inference) => {
                Self::Unclear("has a login without the scope user:inference: log in again".to_owned())
            }
            Some(at) => Self::Expires(at),
        }
    }
}

/// True for text that is not blank.
pub(super) fn is_token(value: Option<&RawValue>) -> bool {
    let is_blank = |value: &RawValue| serde_json::from_str(value.get()).is_ok_and(|text: &str| text.trim().is_empty());
    value.is_some_and(|value| value.get().starts_with('"') && !is_blank(value))
}

/// The login alone: all else in the file may be of any shape.
#[derive(Deserialize)]
struct CredentialsFile<'a> {
    #[serde(borrow, rename = "claudeAiOauth")]
    oauth: Option<&'a RawValue>,
}

impl<'a> CredentialsFile<'a> {
    fn login(&self) -> Option<Oauth<'a>> {
        self.oauth.map(|oauth| serde_json::from_str(oauth.get()).unwrap_or_default())
    }
}

/// The fields of the login, of any type, where they stand in the file: a token is not copied.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Oauth<'a> {
    #[serde(borrow)]
    access_token: Option<&'a RawValue>,
    #[serde(borrow)]
    refresh_token: Option<&'a RawValue>,
    #[serde(borrow)]
    expires_at: Option<&'a RawValue>,
    #[serde(borrow)]
    scopes: Option<&'a RawValue>,
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn message_on_a_broken_file_quotes_nothing() {
        for text in [r#""sk-ant-secret""#, r#"{"claudeAiOauth":"sk-ant-secret"}"#, r#"["sk-ant-secret"]"#, "sk-ant-secret"] {
            if let Login::Unclear(why) = Login::parse(text.as_bytes()) {
                assert!(!why.contains("secret"), "{text}: {why}");
            }
        }
    }

    #[test]
    fn half_written_file_is_read_again() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("credentials");
        let text = r#"{"claudeAiOauth":{"accessToken":"x","expiresAt":1000,"refreshToken":"y"}}"#;
        std::fs::write(&file, &text[..9])?;
        let rewritten = file.clone();
        let rewriting = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            std::fs::write(rewritten, text)
        });
        assert_eq!(Login::read_whole(&file), Login::Expires(SystemTime::UNIX_EPOCH + Duration::from_secs(1)));
        assert!(rewriting.join().is_ok());
        std::fs::remove_file(&file)?;
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRUSR)?;
        assert!(matches!(Login::read_whole(&file), Login::Unclear(_)), "a FIFO");
        Ok(())
    }

    #[test]
    fn expiry_is_read_and_a_cut_file_is_unclear() {
        let file =
            br#"{"claudeAiOauth":{"accessToken":"sk-ant-oat01-x","refreshToken":"y","expiresAt":1790000000123,"scopes":[]}}"#;
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
        assert_eq!(Login::parse(file), Login::Expires(at));
        for (number, milliseconds) in [("1.5", 1), ("1e3", 1000), ("0", 0), ("-5", 0), ("1e30", u64::MAX)] {
            let file = format!(r#"{{"claudeAiOauth":{{"accessToken":"x","expiresAt":{number},"refreshToken":"y"}}}}"#);
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds);
            assert_eq!(Login::parse(file.as_bytes()), Login::Expires(at), "{number}");
        }
        for length in 0..file.len() {
            let Login::Unclear(why) = Login::parse(&file[..length]) else { panic!("{length}") };
            assert!(!why.contains("sk-ant"), "{why}");
        }
        assert_eq!(Login::parse(b"{}"), Login::None);
        assert_eq!(Login::parse(br#"{"claudeAiOauth":null}"#), Login::None);
        for other in
            ["[1790000000123]", "\"x\"", "{}", r#"{"expiresAt":"soon"}"#, r#"{"expiresAt":null}"#, r#"{"expiresAt":true}"#]
        {
            let file = format!(r#"{{"claudeAiOauth":{other}}}"#);
            assert_eq!(
                Login::parse(file.as_bytes()),
                Login::Unclear("cannot be understood: no expiresAt".to_owned()),
                "{other}"
            );
        }
    }

    #[test]
    fn rest_of_the_file_may_be_of_any_shape() {
        let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
        let login = r#""claudeAiOauth":{"accessToken":"x","refreshToken":"y","expiresAt":1000}"#;
        for other in [&b"\xff"[..], br"\ud800"] {
            let file = [b"{\"mcpOAuth\":{\"x\":\"", other, b"\"},", login.as_bytes(), b"}"].concat();
            assert!(matches!(Login::parse(&file), Login::Expires(_)), "{other:?}");
        }
        assert!(matches!(Login::parse(format!(r#"{{"mcpOAuth":{deep},{login}}}"#).as_bytes()), Login::Expires(_)));
        assert!(matches!(Login::parse(format!(r#"{{"claudeAiOauth":{deep}}}"#).as_bytes()), Login::Unclear(_)));
    }

    #[test]
    fn dead_login_is_no_login() {
        let dead = |oauth: &str| match Login::parse(format!(r#"{{"claudeAiOauth":{{{oauth}}}}}"#).as_bytes()) {
            Login::Unclear(why) => why.ends_with(": log in again"),
            _ => false,
        };
        assert!(dead(r#""accessToken":"","refreshToken":"","expiresAt":0"#));
        for access in ["", r#""accessToken":" ","#, r#""accessToken":null,"#, r#""accessToken":7,"#] {
            assert!(dead(&format!(r#"{access}"refreshToken":"y","expiresAt":4102444800000"#)), "{access}");
        }
        assert!(
            dead(r#""accessToken":"x","expiresAt":1000"#) && dead(r#""accessToken":"x","refreshToken":null,"expiresAt":0"#)
        );
        assert!(dead(r#""accessToken":"x","refreshToken":"y","expiresAt":4102444800000,"scopes":["user:profile"]"#));
        assert!(!dead(r#""accessToken":"x","expiresAt":4102444800000,"scopes":["user:inference"]"#));
        assert!(!dead(r#""accessToken":"x","refreshToken":"y","expiresAt":0,"scopes":[]"#));
    }
}
