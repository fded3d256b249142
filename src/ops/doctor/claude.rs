//! The installed claude, and what its version needs.

use std::fmt;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use wait_timeout::ChildExt;

use super::Check;
use crate::claude::program::{NAME, Program};
use crate::config::settings::{Origin, explain};
use crate::ops::Context;

/// Version of Claude Code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u32, u32, u32);

/// First version with a refresh lock inside the config dir.
pub(super) const SAFE_VERSION: Version = Version(2, 1, 128);

/// The claude that a run would start.
#[derive(Debug)]
pub(super) struct InstalledClaude {
    path: PathBuf,
    /// First line of `claude --version`.
    answer: String,
    pub(super) version: Option<Version>,
}

/// Timeout for `claude --version`. The slowest that was measured took 0.6 s on an idle machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

impl InstalledClaude {
    /// Finds claude as a run would, and asks for its version.
    pub(super) fn find(context: &Context) -> Result<Self> {
        let settings = explain(&context.cli, context.environment, context.file.as_ref());
        let named = settings.into_iter().find(|setting| setting.name == "claude" && setting.origin != Origin::Default);
        let named = named.map(|setting| PathBuf::from(setting.value));
        let program = Program::find(&[NAME.into()], named.as_deref()).map_err(|error| anyhow!("{error}"))?;
        Self::ask(program.path)
    }

    fn ask(path: PathBuf) -> Result<Self> {
        // A file, not a pipe: a process that it leaves behind cannot keep us waiting.
        let mut file = tempfile::tempfile().context("cannot make a temporary file")?;
        let mut child = Command::new(&path)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("cannot share a temporary file")?)
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{} cannot be started", path.display()))?;
        let ended = child.wait_timeout(ANSWER_TIMEOUT).context("cannot wait for claude")?;
        let Some(status) = ended else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(anyhow!("{} --version gave no answer within {} s", path.display(), ANSWER_TIMEOUT.as_secs()));
        };
        if !status.success() {
            return Err(anyhow!("{} --version: {status}", path.display()));
        }
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.take(256).read_to_end(&mut bytes)).context("cannot read a temporary file")?;
        let answer = String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().trim().to_owned();
        Ok(Self { path, version: Version::parse(&answer), answer })
    }
}

pub(super) fn check(claude: Result<InstalledClaude>, check: &mut Check) {
    match claude {
        Err(error) => {
            let todo = "install Claude Code, or name it with --claude or CLAUDE_RUN_CLAUDE; a claude that is a script around claude-run \
                        calls itself for ever";
            check.fail(format!("{error:#}"), "no run of claude can start", todo);
        }
        Ok(InstalledClaude { path, answer, version: None }) => {
            let what = format!("{}: {answer:?} is no version", path.display());
            let todo = "see what `claude --version` prints, and whether that is Claude Code";
            check.warn(what, "what it needs cannot be told", todo);
        }
        Ok(InstalledClaude { path, version: Some(version), .. }) if version < SAFE_VERSION => {
            let what = format!("{}: {version}, before {SAFE_VERSION}", path.display());
            let means = "its only refresh lock is beside the config dir, and any signal in mid-refresh loses the login";
            let todo = "share the directory above the config dir, or use --lock refresh or exclusive; better, update it";
            check.warn(what, means, todo);
        }
        Ok(InstalledClaude { path, version: Some(version), .. }) => check.pass(format!("{}: {version}", path.display())),
    }
}

impl Version {
    /// Reads `2.1.330 (Claude Code)`.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().next()?.split('.').map(|number| number.parse().ok());
        Some(Self(numbers.next()??, numbers.next()??, numbers.next()??))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}
