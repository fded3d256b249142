//! Which program runs: the real claude behind a shim of the same name, or any other COMMAND by the rules of execvp(3),
//! less its last resort: a file without a `#!` line is never handed to a shell.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

/// Claude Code's name on PATH, the default COMMAND and the name of the shim.
pub const NAME: &str = "claude";

/// Why a COMMAND cannot be started; callers tell the two apart by exit code.
#[derive(Debug)]
pub enum ProgramError {
    /// There is no such program.
    NotFound(String),
    /// There is one, but it cannot be run.
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

/// COMMAND and its arguments, ready to be started.
#[derive(Debug)]
pub struct Program {
    /// The file to execute.
    pub path: PathBuf,
    /// Its arguments, the name it was called by first.
    pub argv: Vec<OsString>,
    /// COMMAND is claude, by its name.
    pub is_claude: bool,
}

impl Program {
    /// Finds the program for `command`: empty, or starting with `-`: claude with these arguments.
    ///
    /// # Errors
    /// [`ProgramError`], naming the program and where it was looked for.
    pub fn find(command: &[OsString], claude: Option<&Path>) -> Result<Self, ProgramError> {
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
            Some(path) if is_claude => the_real(path)?,
            _ if name.as_bytes().contains(&b'/') => at(Path::new(name))?,
            _ => on_path(name, is_claude)?,
        };
        Ok(Self { path, argv: command, is_claude })
    }

    /// What the `errno` of its execve(2) means.
    pub fn unstartable(&self, errno: Errno) -> ProgramError {
        let path = self.path.display();
        match errno {
            Errno::ENOENT if self.path.exists() => {
                ProgramError::CannotRun(format!("{path}: its interpreter or loader is not there; look at its first line"))
            }
            Errno::ENOENT => ProgramError::NotFound(format!("{path}: not found")),
            Errno::ENOEXEC => {
                ProgramError::CannotRun(format!("{path}: neither a binary for this machine nor a script with a #! line"))
            }
            Errno::E2BIG => ProgramError::CannotRun(format!(
                "{path}: arguments and environment are larger than the kernel takes; pass them by a file or stdin"
            )),
            _ => ProgramError::CannotRun(format!("{path}: cannot be run: {}", io::Error::from(errno))),
        }
    }

    /// Whether this only prints claude's version or help, which touches no login and must not wait.
    pub fn needs_no_lock(&self) -> bool {
        let first = self.argv.get(1).map(|word| word.as_bytes());
        self.is_claude && matches!(first, Some(b"--version" | b"-v" | b"--help" | b"-h"))
    }
}

/// Whether we were called under claude's own name.
pub fn is_shim(called_as: &OsStr) -> bool {
    Path::new(called_as).file_name() == Some(OsStr::new(NAME))
}

fn at(path: &Path) -> Result<PathBuf, ProgramError> {
    let shown = path.display();
    let found = fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            ProgramError::NotFound(format!("{shown}: not found"))
        }
        _ => ProgramError::CannotRun(format!("{shown}: cannot be run: {error}")),
    })?;
    if found.is_dir() {
        return Err(ProgramError::CannotRun(format!("{shown}: is a directory, not a program")));
    }
    if access(path, AccessFlags::X_OK).is_err() {
        return Err(ProgramError::CannotRun(format!("{shown}: is not executable; chmod +x, or name another program")));
    }
    Ok(path.to_owned())
}

/// What --claude names, unless that is the shim.
fn the_real(path: &Path) -> Result<PathBuf, ProgramError> {
    if fs::metadata(path).is_ok_and(|found| is_ourselves(&found)) {
        let message =
            format!("{}: is claude-run itself; name the real claude with --claude or CLAUDE_RUN_CLAUDE", path.display());
        return Err(ProgramError::CannotRun(message));
    }
    at(path)
}

/// The first executable `name` on PATH; as claude, the first that is not this program under claude's name.
fn on_path(name: &OsStr, is_claude: bool) -> Result<PathBuf, ProgramError> {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/bin:/usr/bin".into());
    let mut denied = None;
    for dir in env::split_paths(&path) {
        let candidate = if dir.as_os_str().is_empty() { Path::new(".").join(name) } else { dir.join(name) };
        let Ok(found) = fs::metadata(&candidate) else { continue };
        if found.is_dir() || (is_claude && is_ourselves(&found)) {
            continue;
        }
        match access(&candidate, AccessFlags::X_OK) {
            Ok(()) => return Ok(candidate),
            Err(_) => denied = denied.or(Some(candidate)),
        }
    }
    let shown = name.display();
    Err(match denied {
        Some(path) => {
            ProgramError::CannotRun(format!("{}: is not executable, and there is no other {shown} on PATH", path.display()))
        }
        None if is_claude => ProgramError::NotFound(
            "claude: not found on PATH; install Claude Code, or name it with --claude or CLAUDE_RUN_CLAUDE".into(),
        ),
        None => ProgramError::NotFound(format!("{shown}: not found on PATH")),
    })
}

fn is_ourselves(found: &fs::Metadata) -> bool {
    // The link in /proc names our own file even when PATH led here through symlinks; without /proc nothing is skipped.
    fs::metadata("/proc/self/exe").is_ok_and(|us| (us.dev(), us.ino()) == (found.dev(), found.ino()))
}
