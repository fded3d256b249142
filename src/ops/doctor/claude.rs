//! The installed claude, what its version needs, and its login.

use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::unistd::{AccessFlags, access};
use wait_timeout::ChildExt;

use super::{Check, Subject};
use crate::claude::credentials::Login;
use crate::claude::daemon::Daemon;
use crate::ops::{Context, text};

/// Timeout for `claude --version`. The slowest that was measured took 0.6 s on an idle machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Finds claude as a run would, and asks for its version: its path, and the first line of its answer.
pub(super) fn find(context: &Context) -> Result<(PathBuf, String)> {
    let path = context.claude()?.path;
    let answer = ask_version(&path).with_context(|| format!("{} --version", path.display()))?;
    Ok((path, answer))
}

fn ask_version(claude: &Path) -> Result<String> {
    // A file, not a pipe: a process that it leaves behind cannot keep us waiting.
    let mut file = tempfile::tempfile()?;
    let mut command = Command::new(claude);
    command.arg("--version").stdin(Stdio::null()).stdout(file.try_clone()?).stderr(Stdio::null());
    let mut child = command.spawn().context("cannot be started")?;
    match child.wait_timeout(ANSWER_TIMEOUT)? {
        Some(status) if status.success() => {}
        Some(status) => bail!(status),
        None => {
            let _ = child.kill();
            let _ = child.wait();
            bail!("no answer within {} s", ANSWER_TIMEOUT.as_secs());
        }
    }
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(256).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().trim().to_owned())
}

pub(super) fn check(subject: &Subject, check: &mut Check) {
    if let Some(Daemon { pid, .. }) = Daemon::of(&subject.config_dir) {
        let means = "its sessions (claude --bg) refresh the token without the session lock, and no limit ends them";
        check.warn(
            format!("claude's daemon runs, pid {pid}"),
            means,
            "let them end, or stop them (claude agents, claude stop)",
        );
    }
    let (path, answer) = match &subject.claude {
        Ok(claude) => claude,
        Err(error) => {
            let todo = "install Claude Code, or name it with --claude or CLAUDE_RUN_CLAUDE; a claude that is a script around claude-run \
                        calls itself for ever";
            return check.fail(format!("{error:#}"), "no run of claude can start", todo);
        }
    };
    let (path, version) = (path.display(), answer.split_whitespace().next().unwrap_or_default());
    match subject.has_inner_lock() {
        Some(true) => check.pass(format!("{path}: {version}")),
        Some(false) => {
            let means = "its only refresh lock is beside the config dir, and any signal in mid-refresh loses the login";
            let todo = "share the directory above the config dir, or use --lock exclusive; better, update it";
            check.warn(format!("{path}: {version}, before 2.1.128"), means, todo);
        }
        None => {
            let todo = "see what `claude --version` prints, and whether that is Claude Code";
            check.warn(format!("{path}: {answer:?} is no version"), "what it needs cannot be told", todo);
        }
    }
}

pub(super) fn check_login(subject: &Subject, check: &mut Check) {
    let config_dir = &subject.config_dir;
    let file = subject.storage.credentials();
    let login = Login::read_whole(&file);
    let auth = subject.context.auth(config_dir, &login);
    let shown = file.display();
    let by = format!("claude uses: {}", auth.description);
    let expires = match &login {
        Login::None if auth.is_no_login() => return check.pass(format!("{by}; there is no login in {shown}")),
        Login::None => {
            let what = format!("there is no login in {shown}, and no key or token in the environment");
            let todo = "log in once with this config dir (claude, then /login), or give the agents an API key";
            return check.fail(what, "no agent can work", todo);
        }
        Login::Unclear(why) => {
            let means = "agents may fail, and in refresh mode every run holds the lock for as long as it lasts";
            return check.fail(format!("{shown} {why}"), means, "log in again");
        }
        Login::Expires(at) => *at,
    };
    if let Ok(found) = fs::metadata(&file) {
        let mode = found.mode() & 0o7777;
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
    if !Login::has_refresh_token(&file) {
        let means = "when the token expires, nobody can refresh it";
        check.warn(format!("there is no refresh token in {shown}"), means, "log in again");
    }
    check.pass_if_clean(format!("{by}; the token {}", text::expiry(expires)));
}
