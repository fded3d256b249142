//! Checks 7 and 9: the login, and the settings that a run would have here.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use nix::unistd::{AccessFlags, access};

use super::Finding;
use crate::claude::auth::Auth;
use crate::claude::credentials::Login;
use crate::config::settings::{EXTERNAL_LOCK, Settings, show_seconds};
use crate::ops::{Context, Place, text};

const LOGIN: &str = "login";
const SETTINGS: &str = "settings";

pub(super) fn login(context: &Context, config_dir: &Path) -> Vec<Finding> {
    let login = Login::read_whole(config_dir);
    let auth = Auth::of(context.environment, config_dir, &[], &login);
    let file = Login::path(config_dir);
    let shown = file.display();
    let by = format!("claude goes by: {}", auth.describe());
    let expires = match &login {
        Login::None if auth.is_no_login() => return vec![Finding::pass(LOGIN, format!("{by}; there is no login in {shown}"))],
        Login::None => {
            let what = format!("there is no login in {shown}, and no key or token in the environment");
            let todo = "log in once with this config dir (claude, then /login), or give the agents an API key";
            return vec![Finding::failure(LOGIN, what, "no agent can work", todo)];
        }
        Login::Unclear(why) => {
            let means = "claude is not logged in, and in refresh mode every run holds the lock for as long as it lasts";
            return vec![Finding::failure(LOGIN, format!("{shown}: {why}"), means, "log in again")];
        }
        Login::Expires(at) => *at,
    };
    let mut findings = Vec::new();
    let mut warn = |what: String, means, todo| findings.push(Finding::warning(LOGIN, what, means, todo));
    if file.is_symlink() {
        let means = "newer versions replace it by a plain file at the next refresh: what it leads to is then out of date";
        warn(format!("{shown} is a symlink"), means, "share the directory, not the file");
    }
    if let Ok(found) = fs::metadata(&file) {
        let mode = found.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            warn(format!("{shown} has mode {mode:04o}"), "others may read the tokens in it", "chmod 600 it");
        }
        // root may write what nobody may.
        if access(&file, AccessFlags::W_OK).is_err() || mode & 0o200 == 0 {
            let what = format!("{shown} is not writable (user {}, mode {mode:04o})", found.uid());
            let means = "2.1.84 refreshes the token and cannot save it: the login is lost";
            findings.push(Finding::failure(LOGIN, what, means, "make it writable for its owner, who runs the agents"));
        }
    }
    if !Login::has_refresh_token(config_dir) {
        let means = "when the token expires, nobody can refresh it";
        findings.push(Finding::warning(LOGIN, format!("there is no refresh token in {shown}"), means, "log in again"));
    }
    let left = match expires.duration_since(SystemTime::now()) {
        Ok(left) => format!("the token expires in {}", show_seconds(left)),
        Err(error) => format!("the token expired {} ago; the next claude refreshes it", show_seconds(error.duration())),
    };
    if findings.is_empty() {
        findings.push(Finding::pass(LOGIN, format!("{by}; {left}")));
    }
    findings
}

pub(super) fn check(context: &Context) -> Vec<Finding> {
    let means = "no run starts: each ends with 125 and this message";
    if let Some(error) = &context.file_error {
        return vec![Finding::failure(SETTINGS, error.clone(), means, "mend that line, or move the file away")];
    }
    let resolved = Settings::resolve(context.cli.clone(), context.environment, context.file.as_ref());
    if let Err(error) = resolved {
        return vec![Finding::failure(SETTINGS, format!("{error:#}"), means, "mend that value where it is said")];
    }
    let Ok(place) = Place::of(context) else { return Vec::new() };
    let (mode, origin) = &place.mode;
    let mut findings = vec![Finding::pass(SETTINGS, format!("the lock mode is {mode} ({})", text::origin(origin)))];
    if (context.environment)(EXTERNAL_LOCK).is_some_and(|value| !value.is_empty()) {
        let means = "it means exclusive here, whatever the settings file says; CLAUDE_RUN_LOCK goes before it";
        let todo = "take it out of the environment once no old script needs it";
        findings.push(Finding::warning(SETTINGS, format!("{EXTERNAL_LOCK} is set"), means, todo));
    }
    findings
}
