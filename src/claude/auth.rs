//! How claude proves who it is: the login in its credentials file, or something else that stands in the environment or in its
//! settings. The token of a login is refreshed at a start even where another way goes before it and the token is of no use
//! (measured with 2.1.84 and 2.1.330), so what goes before it does not mean that nothing rotates; but for one.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::credentials::Login;
use crate::config::settings::Environment;
use crate::sys::fs::read_bounded;

/// A way to prove it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// By way of a cloud, which knows other credentials: this variable says so.
    Cloud(&'static str),
    /// A token in `ANTHROPIC_AUTH_TOKEN`.
    AuthToken,
    /// A key that the `apiKeyHelper` of this settings file prints.
    ApiKeyHelper(PathBuf),
    /// A key in `ANTHROPIC_API_KEY`.
    ApiKey,
    /// A token in `CLAUDE_CODE_OAUTH_TOKEN`, which lives long and is never refreshed.
    OAuthToken,
    /// The login in the credentials file.
    Login,
    /// None that can be seen.
    None,
}

const CLOUDS: [&str; 3] = ["CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY"];
const AUTH_TOKEN: &str = "ANTHROPIC_AUTH_TOKEN";
const API_KEY: &str = "ANTHROPIC_API_KEY";
const OAUTH_TOKEN: &str = "CLAUDE_CODE_OAUTH_TOKEN";
const HELPER: &str = "apiKeyHelper";

/// What an administrator sets for all users of a machine.
const MANAGED: &str = "/etc/claude-code/managed-settings.json";

impl Auth {
    /// The way that claude takes, started in this directory with `arguments`, if `login` is what its credentials file says.
    pub fn of(environment: Environment, config_dir: &Path, arguments: &[OsString], login: &Login) -> Self {
        let settings = Settings::read(config_dir, arguments);
        let is_set = |name: &str| settings.variable(environment, name).is_some_and(|value| !value.is_empty());
        let is_on = |name: &str| settings.variable(environment, name).is_some_and(|value| is_true(&value));
        // In the order in which claude asks for them.
        match (CLOUDS.into_iter().find(|cloud| is_on(cloud)), settings.helper()) {
            (Some(cloud), _) => Self::Cloud(cloud),
            _ if is_set(AUTH_TOKEN) => Self::AuthToken,
            (_, Some(file)) => Self::ApiKeyHelper(file),
            _ if is_set(API_KEY) => Self::ApiKey,
            _ if is_set(OAUTH_TOKEN) => Self::OAuthToken,
            _ if *login == Login::None => Self::None,
            _ => Self::Login,
        }
    }

    /// Whether it is another way than the login in the credentials file.
    pub fn is_no_login(&self) -> bool {
        !matches!(self, Self::Login | Self::None)
    }

    /// Its name for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cloud("CLAUDE_CODE_USE_BEDROCK") => "bedrock",
            Self::Cloud("CLAUDE_CODE_USE_VERTEX") => "vertex",
            Self::Cloud(_) => "foundry",
            Self::AuthToken => "auth-token",
            Self::ApiKey => "api-key",
            Self::ApiKeyHelper(_) => "api-key-helper",
            Self::OAuthToken => "oauth-token",
            Self::Login => "login",
            Self::None => "none",
        }
    }

    /// Its name for people, and where it is said.
    pub fn describe(&self) -> String {
        match self {
            Self::Cloud(variable) => format!("{} ({variable})", self.name()),
            Self::AuthToken => format!("a token ({AUTH_TOKEN})"),
            Self::ApiKey => format!("an API key ({API_KEY})"),
            Self::ApiKeyHelper(file) => format!("an API key by a helper ({HELPER} in {})", file.display()),
            Self::OAuthToken => format!("an OAuth token that is not refreshed ({OAUTH_TOKEN})"),
            Self::Login => "OAuth login".to_owned(),
            Self::None => "none".to_owned(),
        }
    }
}

/// Whether the environment holds a token because of which claude never refreshes that of its login.
pub fn rules_out_refreshes(environment: Environment) -> Option<&'static str> {
    environment(OAUTH_TOKEN).filter(|token| !token.is_empty()).map(|_| OAUTH_TOKEN)
}

/// More than any settings.
const LARGEST_SETTINGS: u64 = 8 << 20;

/// Claude's own settings, as far as they are about this. What cannot be read says nothing.
struct Settings(Vec<(PathBuf, Value)>);

impl Settings {
    fn read(config_dir: &Path, arguments: &[OsString]) -> Self {
        let at =
            |path: &Path| Some((path.to_owned(), serde_json::from_slice(&read_bounded(path, LARGEST_SETTINGS).ok()?).ok()?));
        let files = [
            MANAGED.into(),
            ".claude/settings.local.json".into(),
            ".claude/settings.json".into(),
            config_dir.join("settings.json"),
        ];
        let typed = arguments.iter().position(|word| word == "--settings").and_then(|at| arguments.get(at + 1));
        let typed = typed.and_then(|word| {
            let inline = serde_json::from_str(word.to_str()?).ok().filter(Value::is_object);
            inline.map(|value| ("--settings".into(), value)).or_else(|| at(Path::new(word)))
        });
        Self(typed.into_iter().chain(files.iter().filter_map(|path: &PathBuf| at(path))).collect())
    }

    /// A variable as claude sees it: its settings may add some.
    fn variable(&self, environment: Environment, name: &str) -> Option<OsString> {
        let added = self.0.iter().find_map(|(_, settings)| settings["env"][name].as_str());
        added.map(OsString::from).or_else(|| environment(name))
    }

    fn helper(&self) -> Option<PathBuf> {
        self.0.iter().find(|(_, settings)| settings[HELPER].is_string()).map(|(path, _)| path.clone())
    }
}

/// What claude takes for a yes in a variable.
fn is_true(value: &OsStr) -> bool {
    value.to_str().is_some_and(|value| matches!(value.to_ascii_lowercase().trim(), "1" | "true" | "yes" | "on"))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use std::fs;

    use super::*;

    fn auth(variables: &[(&str, &str)], settings: &str, words: &[&str], login: &Login) -> std::io::Result<&'static str> {
        let config_dir = tempfile::tempdir()?;
        fs::write(config_dir.path().join("settings.json"), settings)?;
        let environment = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        let words: Vec<_> = words.iter().map(OsString::from).collect();
        let auth = Auth::of(&environment, config_dir.path(), &words, login);
        // A person is told by what it is so.
        let names = [OAUTH_TOKEN, AUTH_TOKEN, API_KEY, HELPER].into_iter().chain(CLOUDS);
        let is_named = names.into_iter().any(|name| auth.describe().contains(name));
        assert_eq!(is_named, !matches!(auth, Auth::Login | Auth::None), "{}", auth.describe());
        Ok(auth.name())
    }

    #[test]
    fn each_way_is_known_and_the_login_is_the_last() -> std::io::Result<()> {
        let login = Login::Expires(SystemTime::UNIX_EPOCH);
        for (variable, value, name) in [
            ("ANTHROPIC_API_KEY", "k", "api-key"),
            ("ANTHROPIC_AUTH_TOKEN", "t", "auth-token"),
            ("CLAUDE_CODE_OAUTH_TOKEN", "t", "oauth-token"),
            ("CLAUDE_CODE_USE_BEDROCK", "1", "bedrock"),
            ("CLAUDE_CODE_USE_VERTEX", "true", "vertex"),
            ("CLAUDE_CODE_USE_FOUNDRY", "1", "foundry"),
            ("CLAUDE_CODE_USE_BEDROCK", "0", "login"),
            ("ANTHROPIC_API_KEY", "", "login"),
        ] {
            assert_eq!(auth(&[(variable, value)], "{}", &[], &login)?, name, "{variable}={value}");
            let settings = format!(r#"{{"env":{{"{variable}":"{value}"}}}}"#);
            assert_eq!(auth(&[], &settings, &[], &login)?, name, "{settings}");
            assert_eq!(auth(&[], "no JSON", &["--settings", &settings], &login)?, name, "--settings {settings}");
        }
        assert_eq!(auth(&[], r#"{"apiKeyHelper":"/bin/key"}"#, &[], &login)?, "api-key-helper");
        assert_eq!(auth(&[], "{}", &[], &login)?, "login");
        assert_eq!(auth(&[], "[]", &[], &Login::None)?, "none");
        Ok(())
    }
}
