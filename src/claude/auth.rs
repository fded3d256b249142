//! Authentication of claude: the login in its credentials file, or something else that the environment or its settings name.
//! claude refreshes the token of a login at its start even where another method takes precedence and the token is of no use
//! (measured with 2.1.84 and 2.1.330). So another method does not mean that nothing rotates, with one exception:
//! `rules_out_refreshes`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::credentials::Login;
use crate::config::settings::Environment;
use crate::sys::fs::read_bounded;

/// A method of authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Auth {
    /// Name for programs.
    pub(crate) name: &'static str,
    /// Name for people, with the variable or file that decides.
    pub(crate) description: String,
}

const LOGIN: &str = "login";
const NONE: &str = "none";
const CLOUDS: [(&str, &str); 3] =
    [("CLAUDE_CODE_USE_BEDROCK", "bedrock"), ("CLAUDE_CODE_USE_VERTEX", "vertex"), ("CLAUDE_CODE_USE_FOUNDRY", "foundry")];
const AUTH_TOKEN: &str = "ANTHROPIC_AUTH_TOKEN";
const API_KEY: &str = "ANTHROPIC_API_KEY";
const OAUTH_TOKEN: &str = "CLAUDE_CODE_OAUTH_TOKEN";
const HELPER: &str = "apiKeyHelper";

/// Settings that an administrator makes for all users of a machine.
const MANAGED: &str = "/etc/claude-code/managed-settings.json";
const MAX_SETTINGS: u64 = 8 << 20;

impl Auth {
    /// The method that claude uses when it is started in this directory with `arguments`; `login` is read by the caller.
    pub(crate) fn of(environment: Environment, config_dir: &Path, arguments: &[OsString], login: &Login) -> Self {
        let settings = read_settings(config_dir, arguments);
        // Settings can add variables to the environment.
        let variable = |name: &str| {
            let added = settings.iter().find_map(|(_, settings)| settings["env"][name].as_str());
            added.map(OsString::from).or_else(|| environment(name))
        };
        let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
        let is_on = |name: &str| variable(name).is_some_and(|value| is_true(&value));
        let helper = settings.iter().find(|(_, settings)| settings[HELPER].is_string()).map(|(path, _)| path.display());
        let cloud = CLOUDS.into_iter().find(|(variable, _)| is_on(variable));
        // In claude's own order of precedence.
        let (name, description) = match (cloud, helper) {
            (Some((variable, name)), _) => (name, format!("{name} ({variable})")),
            _ if is_set(AUTH_TOKEN) => ("auth-token", format!("a token ({AUTH_TOKEN})")),
            (_, Some(file)) => ("api-key-helper", format!("an API key by a helper ({HELPER} in {file})")),
            _ if is_set(API_KEY) => ("api-key", format!("an API key ({API_KEY})")),
            _ if is_set(OAUTH_TOKEN) => ("oauth-token", format!("an OAuth token that is not refreshed ({OAUTH_TOKEN})")),
            _ if *login == Login::None => (NONE, NONE.to_owned()),
            _ => (LOGIN, "OAuth login".to_owned()),
        };
        Self { name, description }
    }

    /// True for every method but the login in the credentials file.
    pub(crate) fn is_no_login(&self) -> bool {
        ![LOGIN, NONE].contains(&self.name)
    }
}

/// The variable, if it is set, because of which claude never refreshes the token of its login.
pub(crate) fn rules_out_refreshes(environment: Environment) -> Option<&'static str> {
    environment(OAUTH_TOKEN).filter(|token| !token.is_empty()).map(|_| OAUTH_TOKEN)
}

/// Reads those settings of claude that can be read, by precedence, each with its path.
fn read_settings(config_dir: &Path, arguments: &[OsString]) -> Vec<(PathBuf, Value)> {
    let typed = arguments.iter().position(|word| word == "--settings").and_then(|at| arguments.get(at + 1));
    let inline = typed.and_then(|word| serde_json::from_slice(word.as_encoded_bytes()).ok()).filter(Value::is_object);
    let files = [
        typed.filter(|_| inline.is_none()).map(PathBuf::from),
        Some(MANAGED.into()),
        Some(".claude/settings.local.json".into()),
        Some(".claude/settings.json".into()),
        Some(config_dir.join("settings.json")),
    ];
    let read = |path: PathBuf| {
        let settings = serde_json::from_slice(&read_bounded(&path, MAX_SETTINGS).ok()?).ok()?;
        Some((path, settings))
    };
    let inline = inline.map(|settings| ("--settings".into(), settings));
    inline.into_iter().chain(files.into_iter().flatten().filter_map(read)).collect()
}

/// True for the values that claude takes for "yes".
fn is_true(value: &OsStr) -> bool {
    value.to_str().is_some_and(|value| matches!(value.to_ascii_lowercase().trim(), "1" | "true" | "yes" | "on"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use super::*;

    fn auth(variables: &[(&str, &str)], settings: &str, words: &[&str], login: &Login) -> std::io::Result<&'static str> {
        let config_dir = tempfile::tempdir()?;
        fs::write(config_dir.path().join("settings.json"), settings)?;
        let environment = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        let words: Vec<_> = words.iter().map(OsString::from).collect();
        let auth = Auth::of(&environment, config_dir.path(), &words, login);
        // The description names the variable or key that decides.
        let names = [OAUTH_TOKEN, AUTH_TOKEN, API_KEY, HELPER].into_iter().chain(CLOUDS.map(|(variable, _)| variable));
        let is_named = names.into_iter().any(|name| auth.description.contains(name));
        assert_eq!(is_named, auth.is_no_login(), "{}", auth.description);
        Ok(auth.name)
    }

    #[test]
    fn each_method_is_found_and_login_comes_last() -> std::io::Result<()> {
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
