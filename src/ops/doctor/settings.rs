//! The login, and the settings of a run that is started here.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use nix::unistd::{AccessFlags, access};

use super::Check;
use crate::claude::auth::Auth;
use crate::claude::credentials::Login;
use crate::config::duration::show_seconds;
use crate::config::settings::EXTERNAL_LOCK;
use crate::ops::{Context, Factory, text};

pub(super) fn check_login(context: &Context, config_dir: &Path, check: &mut Check) {
    let login = Login::read_whole(config_dir);
    let auth = Auth::of(context.environment, config_dir, &[], &login);
    let file = Login::path(config_dir);
    let shown = file.display();
    let by = format!("claude goes by: {}", auth.description);
    let expires = match &login {
        Login::None if auth.is_no_login() => return check.pass(format!("{by}; there is no login in {shown}")),
        Login::None => {
            let what = format!("there is no login in {shown}, and no key or token in the environment");
            let todo = "log in once with this config dir (claude, then /login), or give the agents an API key";
            return check.fail(what, "no agent can work", todo);
        }
        Login::Unclear(why) => {
            let means = "claude is not logged in, and in refresh mode every run holds the lock for as long as it lasts";
            return check.fail(format!("{shown}: {why}"), means, "log in again");
        }
        Login::Expires(at) => *at,
    };
    if file.is_symlink() {
        let means = "newer versions replace it by a plain file at the next refresh: what it leads to is then out of date";
        check.warn(format!("{shown} is a symlink"), means, "share the directory, not the file");
    }
    if let Ok(found) = fs::metadata(&file) {
        let mode = found.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            check.warn(format!("{shown} has mode {mode:04o}"), "others may read the tokens in it", "chmod 600 it");
        }
        // access(2) lets root write everything.
        if access(&file, AccessFlags::W_OK).is_err() || mode & 0o200 == 0 {
            let what = format!("{shown} is not writable (user {}, mode {mode:04o})", found.uid());
            let means = "2.1.84 refreshes the token and cannot save it: the login is lost";
            check.fail(what, means, "make it writable for its owner, who runs the agents");
        }
    }
    if !Login::has_refresh_token(config_dir) {
        let means = "when the token expires, nobody can refresh it";
        check.warn(format!("there is no refresh token in {shown}"), means, "log in again");
    }
    if check.is_clean() {
        let left = match expires.duration_since(SystemTime::now()) {
            Ok(left) => format!("the token expires in {}", show_seconds(left)),
            Err(error) => format!("the token expired {} ago; the next claude refreshes it", show_seconds(error.duration())),
        };
        check.pass(format!("{by}; {left}"));
    }
}

pub(super) fn check(context: &Context, check: &mut Check) {
    let means = "no run starts: each ends with 125 and this message";
    if let Some(error) = &context.file_error {
        return check.fail(error.clone(), means, "mend that line, or move the file away");
    }
    let (mode, origin) = match Factory::of(context) {
        Ok(factory) => factory.mode,
        Err(error) => return check.fail(format!("{error:#}"), means, "mend that value where it is said"),
    };
    check.pass(format!("the lock mode is {mode} ({})", text::origin(&origin)));
    if (context.environment)(EXTERNAL_LOCK).is_some_and(|value| !value.is_empty()) {
        let means = "it means exclusive here, whatever the settings file says; CLAUDE_RUN_LOCK goes before it";
        check.warn(format!("{EXTERNAL_LOCK} is set"), means, "take it out of the environment once no old script needs it");
    }
}
