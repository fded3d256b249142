//! Authentication of claude: the login in its credentials file, or something else that its settings or the environment name.
//! claude refreshes the token of a login at its start even where a key takes precedence and the token is of no use (measured from
//! 2.1.84 to 2.1.332). So another method does not mean that nothing rotates; what does is in `rules_out_refreshes`.

use std::cell::OnceCell;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::arguments::has;
use super::config_dir::ConfigDir;
use super::credentials::{Login, is_token};
use super::program::Program;
use super::settings::ClaudeSettings;
use super::storage::ClaudeStorage;
use super::version::Version;
use crate::config::settings::Environment;
use crate::sys::fs::read_secret;

/// A claude that is started: what decides where it keeps its login and how it authenticates, its settings first, the environment second.
/// Each part is read when it is first asked for, as most runs ask for few.
pub(crate) struct Invocation<'a> {
    environment: Environment<'a>,
    config_dir: ConfigDir,
    /// Words for claude behind its name.
    arguments: Vec<OsString>,
    /// Its program, where that decides.
    program: Option<PathBuf>,
    settings: OnceCell<ClaudeSettings>,
    version: OnceCell<Option<Version>>,
}

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
/// Other providers: variable and name.
const PROVIDERS: [(&str, &str); 7] = [
    ("CLAUDE_CODE_USE_BEDROCK", "bedrock"),
    ("CLAUDE_CODE_USE_VERTEX", "vertex"),
    ("CLAUDE_CODE_USE_FOUNDRY", "foundry"),
    ("CLAUDE_CODE_USE_MANTLE", "mantle"),
    ("CLAUDE_CODE_USE_ANTHROPIC_AWS", "anthropic-aws"),
    ("CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD", "anthropic-google-cloud"),
    ("CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST", "host"),
];
/// Variable with a token that claude uses as it is, and never refreshes. One that names a descriptor does not count: claude up to 2.1.177
/// passes it on to its tools without the descriptor, and a claude that cannot read that uses its login, and refreshes it.
const OAUTH_TOKEN: &str = "CLAUDE_CODE_OAUTH_TOKEN";
/// Variable that names such a descriptor. Where there is no login, nothing is refreshed.
const TOKEN_DESCRIPTOR: &str = "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR";
const AUTH_TOKEN: &str = "ANTHROPIC_AUTH_TOKEN";
const API_KEY: &str = "ANTHROPIC_API_KEY";
const HEADERS: &str = "ANTHROPIC_CUSTOM_HEADERS";
const HELPER: &str = "apiKeyHelper";
/// Key of `.claude.json`.
const PRIMARY_KEY: &str = "primaryApiKey";
/// Variable that stands for `--bare`.
const SIMPLE: &str = "CLAUDE_CODE_SIMPLE";

const MAX_STATE_FILE: u64 = 64 << 20;

impl<'a> Invocation<'a> {
    /// Any claude in `config_dir`, of whatever version.
    pub(crate) fn new(environment: Environment<'a>, config_dir: impl Into<ConfigDir>) -> Self {
        Self {
            environment,
            config_dir: config_dir.into(),
            arguments: Vec::new(),
            program: None,
            settings: OnceCell::new(),
            version: OnceCell::new(),
        }
    }

    /// The claude that `program` is, or may come to.
    pub(crate) fn of(program: &Program, environment: Environment<'a>, config_dir: impl Into<ConfigDir>) -> Self {
        let arguments = program.arguments_for_claude().to_vec();
        Self { arguments, program: Some(program.path.clone()), ..Self::new(environment, config_dir) }
    }

    fn settings(&self) -> &ClaudeSettings {
        self.settings.get_or_init(|| ClaudeSettings::read(&self.config_dir.path, &self.arguments))
    }

    /// Version of claude, if it is known.
    pub(crate) fn version(&self) -> Option<Version> {
        *self.version.get_or_init(|| Version::of_program(self.program.as_deref()?))
    }

    /// Where it keeps its login.
    pub(crate) fn storage(&self) -> ClaudeStorage {
        ClaudeStorage::of(self.environment, self.settings(), || self.version(), &self.config_dir.path)
    }

    /// The method that claude uses; `login` is read by the caller.
    pub(crate) fn auth(&self, login: &Login) -> Auth {
        let helper = self.settings().text(HELPER).map(|(path, _)| path.display());
        let descriptor = Some(TOKEN_DESCRIPTOR).filter(|name| *login == Login::None && self.has(name));
        let oauth_token = Some(OAUTH_TOKEN).filter(|name| self.has(name)).or(descriptor);
        // In claude's own order of precedence.
        let (name, description) = match (self.provider(), helper, oauth_token) {
            (Some((variable, name)), ..) => (name, format!("{name} ({variable})")),
            _ if self.has(AUTH_TOKEN) => ("auth-token", format!("a token ({AUTH_TOKEN})")),
            (_, Some(file), _) => ("api-key-helper", format!("an API key by a helper ({HELPER} in {file})")),
            _ if self.has(API_KEY) => ("api-key", format!("an API key ({API_KEY})")),
            (.., Some(variable)) => ("oauth-token", format!("an OAuth token that is not refreshed ({variable})")),
            _ if *login != Login::None && !self.is_bare() => (LOGIN, "OAuth login".to_owned()),
            _ if self.has_headers() => ("headers", format!("headers of its own ({HEADERS})")),
            _ if has_primary_key(self.environment, &self.config_dir) => {
                ("api-key", format!("an API key ({PRIMARY_KEY} in .claude.json)"))
            }
            _ => (NONE, NONE.to_owned()),
        };
        Auth { name, description }
    }

    /// A settings file that cannot be read, and why: nothing is ruled out then.
    pub(crate) fn unreadable_settings(&self) -> Option<String> {
        self.settings().unreadable()
    }

    /// Reason why claude never refreshes its login, if it does not. A variable that is blank counts as empty, as it does from 2.1.330
    /// on: 2.1.126 takes it for a token.
    pub(crate) fn rules_out_refreshes(&self) -> Option<String> {
        if self.is_bare() {
            return Some("a bare claude never refreshes its login".to_owned());
        }
        if self.is_settled(OAUTH_TOKEN, |token| !token.to_string_lossy().trim().is_empty()) {
            return Some(format!("{OAUTH_TOKEN} is set, and that token is never refreshed"));
        }
        let (name, _) = PROVIDERS.into_iter().find(|(variable, _)| self.is_settled(variable, is_true))?;
        self.version().filter(|version| *version >= Version::NO_IDLE_REFRESH)?;
        Some(format!("{name} is set, and this version of claude then never refreshes its login"))
    }

    /// The provider other than Anthropic's own API, with its variable.
    fn provider(&self) -> Option<(&'static str, &'static str)> {
        PROVIDERS.into_iter().find(|(variable, _)| self.variable(variable).is_some_and(|value| is_true(&value)))
    }

    fn is_bare(&self) -> bool {
        let is_typed = has(&self.arguments, "--bare");
        is_typed || self.is_settled(SIMPLE, is_true)
    }

    fn has_headers(&self) -> bool {
        let headers = self.variable(HEADERS).unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        headers.lines().any(|line| ["x-api-key:", "authorization:"].iter().any(|name| line.trim_start().starts_with(name)))
    }

    /// True if `is_so` of a variable from the start on, whatever settings of the project make of it.
    fn is_settled(&self, name: &str, is_so: impl Fn(&OsStr) -> bool) -> bool {
        let early = self.settings().early_variable(self.environment, name);
        [early, self.variable(name)].into_iter().all(|value| value.is_some_and(|value| is_so(&value)))
    }

    fn has(&self, name: &str) -> bool {
        self.variable(name).is_some_and(|value| !value.is_empty())
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        self.settings().variable(self.environment, name)
    }
}

impl fmt::Debug for Invocation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invocation")
            .field("config_dir", &self.config_dir)
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

impl Auth {
    /// True for every method but the login in the credentials file.
    pub(crate) fn is_no_login(&self) -> bool {
        ![LOGIN, NONE].contains(&self.name)
    }
}

/// True if claude's own state has the API key of a login to the Console.
fn has_primary_key(environment: Environment, config_dir: &ConfigDir) -> bool {
    let is_set = config_dir.variable(environment).is_some_and(|path| !path.is_empty());
    let home = environment("HOME").filter(|_| !is_set);
    let file = home.as_ref().map_or(&*config_dir.path, Path::new).join(".claude.json");
    has_key(&read_secret(&file, MAX_STATE_FILE).unwrap_or_default())
}

fn has_key(state: &[u8]) -> bool {
    serde_json::from_slice(state).is_ok_and(|StateFile { key }| is_token(key))
}

/// The key alone, where it stands in the file.
#[derive(Deserialize)]
struct StateFile<'a> {
    #[serde(borrow, rename = "primaryApiKey")]
    key: Option<&'a RawValue>,
}

/// True for the values that claude takes for "yes".
fn is_true(value: &OsStr) -> bool {
    value.to_str().is_some_and(|value| matches!(value.to_ascii_lowercase().trim(), "1" | "true" | "yes" | "on"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::time::SystemTime;

    use super::super::config_dir::ForChild;
    use super::*;

    /// Calls `look` with the sources that these make.
    fn with<T>(
        variables: &[(&str, &str)],
        settings: &str,
        words: &[&str],
        look: impl Fn(Invocation, &Path) -> T,
    ) -> io::Result<T> {
        let config_dir = tempfile::tempdir()?;
        fs::write(config_dir.path().join("settings.json"), settings)?;
        let environment = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        let arguments = words.iter().map(OsString::from).collect();
        let version = OnceCell::from(Version::parse("2.1.330"));
        Ok(look(Invocation { arguments, version, ..Invocation::new(&environment, config_dir.path()) }, config_dir.path()))
    }

    fn auth(variables: &[(&str, &str)], settings: &str, words: &[&str], login: &Login) -> io::Result<&'static str> {
        let auth = with(variables, settings, words, |claude, _| claude.auth(login))?;
        // The description names the variable or key that decides.
        let names = [AUTH_TOKEN, API_KEY, HELPER, HEADERS, OAUTH_TOKEN].into_iter().chain(PROVIDERS.map(|(name, _)| name));
        let is_named = names.into_iter().any(|name| auth.description.contains(name));
        assert_eq!(is_named, auth.is_no_login(), "{}", auth.description);
        Ok(auth.name)
    }

    #[test]
    fn each_method_is_found_and_login_comes_last() -> io::Result<()> {
        let login = Login::Expires(SystemTime::UNIX_EPOCH);
        for (variable, value, name) in [
            ("ANTHROPIC_API_KEY", "k", "api-key"),
            ("ANTHROPIC_AUTH_TOKEN", "t", "auth-token"),
            ("CLAUDE_CODE_OAUTH_TOKEN", "t", "oauth-token"),
            ("CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR", "3", "login"),
            ("CLAUDE_CODE_USE_BEDROCK", "1", "bedrock"),
            ("CLAUDE_CODE_USE_VERTEX", "true", "vertex"),
            ("CLAUDE_CODE_USE_FOUNDRY", "1", "foundry"),
            ("CLAUDE_CODE_USE_ANTHROPIC_AWS", "1", "anthropic-aws"),
            ("CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD", "1", "anthropic-google-cloud"),
            ("CLAUDE_CODE_USE_MANTLE", "yes", "mantle"),
            ("CLAUDE_CODE_USE_BEDROCK", "0", "login"),
            ("ANTHROPIC_API_KEY", "", "login"),
        ] {
            assert_eq!(auth(&[(variable, value)], "{}", &[], &login)?, name, "{variable}={value}");
            let settings = format!(r#"{{"env":{{"{variable}":"{value}"}}}}"#);
            assert_eq!(auth(&[], &settings, &[], &login)?, name, "{settings}");
            assert_eq!(auth(&[], "no JSON", &["--settings", &settings], &login)?, name, "--settings {settings}");
            assert_eq!(auth(&[], "{}", &[&format!("--settings={settings}")], &login)?, name, "--settings={settings}");
        }
        let helper = r#"{"apiKeyHelper":"/bin/key"}"#;
        assert_eq!(auth(&[], helper, &[], &login)?, "api-key-helper");
        assert_eq!(auth(&[], "{}", &["--settings", helper], &login)?, "api-key-helper");
        assert_eq!(auth(&[], "{}", &[&format!("--settings={helper}")], &login)?, "api-key-helper");
        assert_eq!(auth(&[], "{}", &[], &login)?, "login");
        assert_eq!(auth(&[], "[]", &[], &Login::None)?, "none");
        assert_eq!(auth(&[(TOKEN_DESCRIPTOR, "3")], "{}", &[], &Login::None)?, "oauth-token");
        assert_eq!(auth(&[(HEADERS, "X-Api-Key: k")], "{}", &[], &Login::None)?, "headers");
        assert_eq!(auth(&[(HEADERS, "X-Team: k")], "{}", &[], &Login::None)?, "none");
        Ok(())
    }

    #[test]
    fn primary_key_of_claudes_state_is_an_api_key() -> io::Result<()> {
        let name = |state: &str| {
            with(&[], "{}", &[], |claude, config_dir| {
                fs::write(config_dir.join(".claude.json"), state)?;
                Ok::<_, io::Error>(claude.auth(&Login::None).name)
            })?
        };
        assert_eq!((name(r#"{"primaryApiKey":"k"}"#)?, name(r#"{"primaryApiKey":""}"#)?), ("api-key", "none"));
        Ok(())
    }

    #[test]
    fn state_is_where_the_child_is_told() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let [home, config_dir] = ["home", "config"].map(|name| dir.path().join(name));
        [&home, &config_dir].into_iter().try_for_each(fs::create_dir)?;
        fs::write(config_dir.join(".claude.json"), r#"{"primaryApiKey":"k"}"#)?;
        let environment = |name: &str| (name == "HOME").then(|| home.clone().into());
        for (for_child, name) in [(ForChild::Set, "api-key"), (ForChild::Unchanged, "none"), (ForChild::Unset, "none")] {
            let claude = Invocation::new(&environment, ConfigDir { path: config_dir.clone(), for_child });
            assert_eq!(claude.auth(&Login::None).name, name, "{for_child:?}");
        }
        Ok(())
    }

    #[test]
    fn refreshes_are_ruled_out_by_settings_first_and_by_version() -> io::Result<()> {
        let ruled_out = |variables: &[(&str, &str)], settings: &str, words: &[&str]| {
            with(variables, settings, words, |claude, _| claude.rules_out_refreshes().is_some())
        };
        let token = ("CLAUDE_CODE_OAUTH_TOKEN", "t");
        assert!(ruled_out(&[token], "{}", &[])? && ruled_out(&[], r#"{"env":{"CLAUDE_CODE_OAUTH_TOKEN":"t"}}"#, &[])?);
        assert!(!ruled_out(&[token], r#"{"env":{"CLAUDE_CODE_OAUTH_TOKEN":""}}"#, &[])?, "emptied by the settings");
        assert!(!ruled_out(&[(token.0, " ")], "{}", &[])?, "2.1.330 trims it");
        assert!(ruled_out(&[], "{}", &["-p", "x", "--bare"])? && ruled_out(&[(SIMPLE, "1")], "{}", &[])?);
        assert!(!ruled_out(&[], "{}", &["-p", "--", "--bare"])?);
        assert!(!ruled_out(&[(API_KEY, "k"), (AUTH_TOKEN, "t")], "{}", &[])?, "claude refreshes a login that it does not use");
        let bedrock = [("CLAUDE_CODE_USE_BEDROCK", "1")];
        let by_version = |version| {
            with(&bedrock, "{}", &[], |claude, _| {
                Invocation { version: OnceCell::from(version), ..claude }.rules_out_refreshes().is_some()
            })
        };
        assert!(by_version(Version::parse("2.1.330"))? && !by_version(Version::parse("2.1.177"))? && !by_version(None)?);
        Ok(())
    }
}
