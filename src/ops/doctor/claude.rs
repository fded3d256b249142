//! The claude that would be started, and what its version needs.

use std::fmt;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use wait_timeout::ChildExt;

use super::Finding;
use crate::claude::program::{NAME, Program};
use crate::config::settings::{Origin, explain};
use crate::ops::Context;

const CHECK: &str = "claude";

/// Claude Code's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u32, u32, u32);

/// The first that has a refresh lock inside the config dir.
pub(super) const SAFE_VERSION: Version = Version(2, 1, 128);

/// A claude that was found.
#[derive(Debug)]
pub(super) struct Found {
    path: PathBuf,
    /// What it said of itself.
    said: String,
    pub(super) version: Option<Version>,
}

/// The slowest that was measured took 0.6 s on an idle machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks it.
pub(super) fn version(context: &Context) -> Result<Found> {
    let settings = explain(&context.cli, context.environment, context.file.as_ref());
    let named = settings.into_iter().find(|setting| setting.name == "claude" && setting.origin != Origin::Default);
    let named = named.map(|setting| PathBuf::from(setting.value));
    let program = Program::find(&[NAME.into()], named.as_deref()).map_err(|error| anyhow!("{error}"))?;
    let path = program.path;
    // A file, not a pipe: whoever it leaves behind cannot keep us waiting.
    let mut answer = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut child = Command::new(&path)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(answer.try_clone().context("cannot share a temporary file")?)
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("{} cannot be started", path.display()))?;
    let ended = child.wait_timeout(PATIENCE).context("cannot wait for claude")?;
    let Some(status) = ended else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(anyhow!("{} --version gave no answer within {} s", path.display(), PATIENCE.as_secs()));
    };
    if !status.success() {
        return Err(anyhow!("{} --version: {status}", path.display()));
    }
    let mut said = Vec::new();
    answer.rewind().and_then(|()| answer.take(256).read_to_end(&mut said)).context("cannot read a temporary file")?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let said = said.lines().next().unwrap_or_default().trim().to_owned();
    Ok(Found { path, version: Version::parse(&said), said })
}

/// Check 8.
pub(super) fn check(found: Result<Found>) -> Vec<Finding> {
    vec![match found {
        Err(error) => {
            let todo = "install Claude Code, or name it with --claude or CLAUDE_RUN_CLAUDE; a claude that is a script around claude-run \
                        calls itself for ever";
            Finding::failure(CHECK, format!("{error:#}"), "no run of claude can start", todo)
        }
        Ok(Found { path, said, version: None }) => {
            let what = format!("{}: {said:?} is no version", path.display());
            let todo = "see what `claude --version` prints, and whether that is Claude Code";
            Finding::warning(CHECK, what, "what it needs cannot be told", todo)
        }
        Ok(Found { path, version: Some(version), .. }) if version < SAFE_VERSION => {
            let what = format!("{}: {version}, before {SAFE_VERSION}", path.display());
            let means = "its only refresh lock is beside the config dir, and any signal in mid-refresh loses the login";
            let todo = "share the directory above the config dir, or use --lock refresh or exclusive; better, update it";
            Finding::warning(CHECK, what, means, todo)
        }
        Ok(Found { path, version: Some(version), .. }) => Finding::pass(CHECK, format!("{}: {version}", path.display())),
    }]
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
