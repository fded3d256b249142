//! The installed claude, what its version needs, and its login.

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use wait_timeout::ChildExt;

use super::{Check, Subject};
use crate::claude::credentials::Login;
use crate::claude::daemon::Daemon;
use crate::ops::{Context, checks};

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
    let file = subject.storage.credentials();
    let login = Login::read_whole(&file);
    let claude = subject.context.invocation(&subject.config_dir);
    checks::check_claude_settings(&claude, check);
    if let Some(cut) = &subject.cut_refresh {
        check.warn(cut.to_string(), "the login is probably lost", "log in again if the next run fails");
    }
    // A history that cannot be read is told by the check of the records.
    checks::check_last_runs(&subject.records.last_finished().unwrap_or_default(), &file, check);
    checks::check_login(&file, &login, &claude.auth(&login), check);
}
