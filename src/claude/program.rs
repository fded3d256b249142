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

use crate::sys::file_id::FileId;

/// Claude Code's name on PATH, the default COMMAND and the name of the shim.
pub(crate) const NAME: &str = "claude";

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
            Some(path) if is_claude => executable(path)?,
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
        Ok(_) if !is_executable(path) => Err(cannot_run(path, "is not executable; chmod +x, or name another program")),
        Ok(_) => Ok(path.to_owned()),
    }
}

/// Finds the first executable `name` on PATH. For claude, skips this very program under claude's name.
fn on_path(name: &OsStr, is_claude: bool) -> Result<PathBuf, ProgramError> {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/bin:/usr/bin".into());
    let dirs = env::split_paths(&path).map(|dir| if dir.as_os_str().is_empty() { ".".into() } else { dir });
    let is_file = |path: &PathBuf| fs::metadata(path).is_ok_and(|found| !found.is_dir());
    let is_other = |path: &PathBuf| !(is_claude && is_ourselves(path));
    let candidates: Vec<_> = dirs.map(|dir| dir.join(name)).filter(is_file).filter(is_other).collect();
    if let Some(path) = candidates.iter().find(|path| is_executable(path)) {
        return Ok(path.clone());
    }
    let shown = name.display();
    Err(match candidates.first() {
        Some(path) => cannot_run(path, &format!("is not executable, and there is no other {shown} on PATH")),
        None if is_claude => ProgramError::NotFound(
            "claude: not found on PATH; install Claude Code, or name it with --claude or CLAUDE_RUN_CLAUDE".into(),
        ),
        None => ProgramError::NotFound(format!("{shown}: not found on PATH")),
    })
}

fn is_executable(path: &Path) -> bool {
    access(path, AccessFlags::X_OK).is_ok()
}

fn is_ourselves(path: &Path) -> bool {
    // The link in /proc names our file even when PATH led here through symlinks. Without /proc nothing is skipped.
    FileId::at(Path::new("/proc/self/exe")).is_some_and(|us| FileId::at(path) == Some(us))
}
