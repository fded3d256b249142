//! The program to run: the real claude behind a shim of the same name, or any other COMMAND by the rules of execvp(3), but for
//! its last resort: a file without a `#!` line is never passed to a shell.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::arguments::{is_headless, value_of};
use super::version::Version;
use crate::sys::file_id::FileId;

/// Claude Code's name on PATH, the default COMMAND and the name of the shim.
pub(crate) const NAME: &str = "claude";

/// Name of no MCP server.
const NO_SERVER: &str = "claude-run-refreshes-the-token";

/// Reason why COMMAND cannot be started. Each has an exit code of its own.
#[derive(Debug)]
pub(crate) enum ProgramError {
    NotFound(String),
    CannotRun(String),
}

impl std::fmt::Display for ProgramError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound(message) | Self::CannotRun(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for ProgramError {}

/// COMMAND with its arguments, found and executable.
#[derive(Debug)]
pub struct Program {
    pub(crate) path: PathBuf,
    /// Arguments, with the name as argument 0.
    pub(crate) argv: Vec<OsString>,
    /// True if COMMAND is claude, by its name.
    pub(crate) is_claude: bool,
}

impl Program {
    /// Finds the program for `command`. If that is empty or starts with `-`, the program is claude with these arguments.
    pub(crate) fn find(command: &[OsString], claude: Option<&Path>) -> Result<Self, ProgramError> {
        let mut command = command.to_vec();
        if command.first().is_none_or(|word| word.as_bytes().starts_with(b"-")) {
            command.insert(0, NAME.into());
        }
        let name = &command[0];
        if name.is_empty() {
            return Err(ProgramError::NotFound("COMMAND is an empty word; name a program, or leave it out for claude".into()));
        }
        let is_claude = name == NAME;
        let path = match claude {
            Some(path) if is_claude && is_ourselves(path) => {
                let why = "is claude-run itself; name the real claude with --claude or CLAUDE_RUN_CLAUDE";
                return Err(cannot_run(path, why));
            }
            Some(path) if is_claude => executable(path).map_err(|error| match error {
                ProgramError::NotFound(message) if path.parent() == Some(Path::new("")) => ProgramError::NotFound(format!(
                    "{message} in the working directory; --claude is a path, PATH is not searched for it"
                )),
                error => error,
            })?,
            _ if name.as_bytes().contains(&b'/') => executable(Path::new(name))?,
            _ => on_path(name, is_claude)?,
        };
        Ok(Self { path, argv: command, is_claude })
    }

    /// Error for the `errno` of its execve(2).
    pub(crate) fn unstartable(&self, errno: Errno) -> ProgramError {
        match errno {
            Errno::ENOENT if !self.path.exists() => not_found(&self.path),
            Errno::ENOENT => cannot_run(&self.path, "its interpreter or loader is not there; look at its first line"),
            Errno::ENOEXEC => cannot_run(&self.path, "neither a binary for this machine nor a script with a #! line"),
            Errno::E2BIG => cannot_run(&self.path, "arguments and environment are too large; pass them by a file or stdin"),
            _ => cannot_run(&self.path, &format!("cannot be run: {}", io::Error::from(errno))),
        }
    }

    /// True if it is claude without a person who talks to it.
    pub(crate) fn is_headless(&self) -> bool {
        is_headless(self.arguments_for_claude())
    }

    /// Arguments, if COMMAND is claude by its name or path.
    pub(crate) fn arguments_for_claude(&self) -> &[OsString] {
        if self.is_named_claude() { &self.argv[1..] } else { &[] }
    }

    fn is_named_claude(&self) -> bool {
        self.is_claude || Path::new(&self.argv[0]).file_name() == Some(OsStr::new(NAME))
    }

    /// Command of this claude, of that `version`, that refreshes a token that is due, waits for it however long the endpoint takes, and has
    /// nothing else to do: it looks for an MCP server of a name that nobody uses. Measured from 2.1.126 to 2.1.332; `auth status` ends
    /// in mid-refresh up to 2.1.177, and after 8 s later.
    pub(crate) fn refresher(&self, version: Version) -> Option<Self> {
        // Settings that are typed may name another login than the command would refresh.
        let is_typed =
            ["--settings", "--setting-sources"].iter().any(|name| value_of(self.arguments_for_claude(), name).is_some());
        let is_known = self.is_named_claude() && version >= Version::WAITS_FOR_REFRESH && !is_typed;
        let argv = || [&self.argv[0], OsStr::new("mcp"), OsStr::new("get"), OsStr::new(NO_SERVER)].map(OsStr::to_owned).into();
        is_known.then(|| Self { path: self.path.clone(), argv: argv(), is_claude: self.is_claude })
    }

    /// True if this only prints claude's version or help, which needs no login and must not wait.
    pub(crate) fn needs_no_lock(&self) -> bool {
        let first = self.argv.get(1).map(|word| word.as_bytes());
        self.is_claude && matches!(first, Some(b"--version" | b"-v" | b"--help" | b"-h"))
    }
}

/// True if we were called under claude's own name.
pub(crate) fn is_shim(called_as: &OsStr) -> bool {
    Path::new(called_as).file_name() == Some(OsStr::new(NAME))
}

fn not_found(path: &Path) -> ProgramError {
    ProgramError::NotFound(format!("{}: not found", path.display()))
}

fn cannot_run(path: &Path, why: &str) -> ProgramError {
    ProgramError::CannotRun(format!("{}: {why}", path.display()))
}

fn executable(path: &Path) -> Result<PathBuf, ProgramError> {
    match fs::metadata(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err(not_found(path)),
        Err(error) => Err(cannot_run(path, &format!("cannot be run: {error}"))),
        Ok(found) if found.is_dir() => Err(cannot_run(path, "is a directory, not a program")),
        Ok(_) if !is_executable(path) => Err(cannot_run(
            path,
            "is not executable, or on a file system that is mounted noexec; chmod +x, or name another program",
        )),
        Ok(_) => Ok(path.to_owned()),
    }
}

/// Finds the first program `name` on PATH; if there is none, the first that cannot be run. For claude, skips this very program
/// under claude's name.
fn on_path(name: &OsStr, is_claude: bool) -> Result<PathBuf, ProgramError> {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/bin:/usr/bin".into());
    let mut refusal = ProgramError::NotFound(if is_claude {
        "claude: not found on PATH; install Claude Code, or name it with --claude or CLAUDE_RUN_CLAUDE".into()
    } else {
        format!("{}: not found on PATH", name.display())
    });
    for dir in env::split_paths(&path) {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { &dir };
        match executable(&dir.join(name)) {
            Ok(path) if is_claude && is_ourselves(&path) => {}
            Ok(path) => return Ok(path),
            Err(error @ ProgramError::CannotRun(_)) if matches!(refusal, ProgramError::NotFound(_)) => refusal = error,
            Err(_) => {}
        }
    }
    Err(refusal)
}

fn is_executable(path: &Path) -> bool {
    access(path, AccessFlags::X_OK).is_ok()
}

fn is_ourselves(path: &Path) -> bool {
    // The link in /proc leads to our file even when PATH led here through symlinks. Where an emulator runs us, as in a container for
    // another processor, it leads to the emulator, and only what is read from it to us. Without /proc nothing is skipped.
    let link = Path::new("/proc/self/exe");
    let Some(found) = FileId::at(path) else { return false };
    FileId::at(link) == Some(found) || fs::read_link(link).is_ok_and(|us| FileId::at(&us) == Some(found)) || is_copy(path, link)
}

/// True for two files of the same bytes: each host, and each image, may have a shim of its own.
fn is_copy(one: &Path, other: &Path) -> bool {
    let length = |path: &Path| fs::metadata(path).ok().map(|found| found.len());
    length(one).is_some_and(|found| length(other) == Some(found)) && fs::read(one).ok() == fs::read(other).ok()
}

/// True if `name` is a command of claude's own, of which a newcomer may think that it is one here.
pub(crate) fn is_command_of_claude(name: &str) -> bool {
    ["agents", "auth", "config", "install", "mcp", "plugin", "setup-token", "update"].contains(&name)
}
