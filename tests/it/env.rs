//! One test environment: a temporary HOME, a cleared environment, the built binary, the fake claude, and processes that
//! end with the test. Everything waits for something to be seen, with a ceiling, and fails with what was seen instead.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Once, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{SigHandler, Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use wait_timeout::ChildExt;

use crate::lines::Lines;

/// Longer than anything takes on a busy machine.
pub(crate) const CEILING: Duration = Duration::from_secs(60);

/// The surroundings of one test.
pub(crate) struct Env {
    dir: TempDir,
}

impl Env {
    pub(crate) fn new() -> Self {
        static SIGNALS: Once = Once::new();
        SIGNALS.call_once(|| {
            // Whoever runs the tests under nohup or in the background of a script has some ignored, and so would all children.
            for ignored in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
                // SAFETY: SIG_DFL runs no code.
                unsafe { nix::sys::signal::signal(ignored, SigHandler::SigDfl) }.expect("a disposition");
            }
        });
        let dir = TempDir::new().expect("a temporary directory");
        fs::create_dir(dir.path().join("home")).expect("a home");
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// The session lock that claude-run takes here, unless an option says otherwise.
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.home().join(".claude/session.lock")
    }

    /// Makes the config dir and the lock file, as an old caller would have.
    pub(crate) fn make_lock_file(&self) -> PathBuf {
        let path = self.lock_file();
        fs::create_dir_all(path.parent().expect("a parent")).expect("a config dir");
        fs::File::options().create(true).append(true).open(&path).expect("a lock file");
        path
    }

    /// Writes an executable script. Another process does it: a descriptor of ours, open for writing, could be inherited by
    /// a child that another test starts at that moment, and then the script is "text file busy".
    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        let mut shell = assert_cmd::Command::new("sh");
        shell.args(["-c", r#"cat >"$0" && chmod 755 "$0""#]).arg(&path).write_stdin(text).assert().success();
        path
    }

    /// Copies the program `from`; by another process, likewise.
    pub(crate) fn copy_of(&self, from: impl AsRef<Path>, name: &str) -> PathBuf {
        let path = self.path(name);
        assert_cmd::Command::new("cp").arg(from.as_ref()).arg(&path).assert().success();
        path
    }

    /// `program` with nothing in its environment but PATH and HOME. A claude of this machine is out of its reach.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/no_claude:/usr/bin:/bin:/usr/sbin:/sbin");
        command.env_clear().env("PATH", path).env("HOME", self.home()).current_dir(self.dir.path());
        command.stdin(Stdio::null());
        // Where scripts/coverage.sh collects what was reached.
        command.envs(std::env::var_os("LLVM_PROFILE_FILE").map(|file| ("LLVM_PROFILE_FILE", file)));
        command
    }

    /// claude-run, for assert_cmd: runs to its end and shows all of it if an assertion fails.
    pub(crate) fn claude_run(&self) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::from_std(self.command(binary()));
        command.timeout(CEILING);
        command
    }

    /// claude-run, as a process to be watched.
    pub(crate) fn start<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Running {
        let mut command = self.command(binary());
        command.args(arguments);
        Running::start(command)
    }

    /// claude-run with the fake claude going through `steps`.
    pub(crate) fn start_fake(&self, options: &[&str], steps: &str) -> Running {
        let mut command = self.command(binary());
        command.arg("--claude").arg(fake_claude()).args(options).args(["--", "-p", steps]);
        Running::start(command)
    }

    /// flock(1) that holds the session lock until its stdin is closed. Returns once the lock is held.
    pub(crate) fn hold_lock(&self) -> Running {
        let mut command = self.command("flock");
        command.arg(self.make_lock_file()).args(["sh", "-c", "echo held; exec cat"]).stdin(Stdio::piped());
        let holder = Running::start(command);
        holder.expect_line("held");
        holder
    }

    /// True if flock(1) finds the session lock held.
    pub(crate) fn is_locked(&self) -> bool {
        let mut flock = self.command("flock");
        flock.args(["-n", "-E", "77"]).arg(self.lock_file()).arg("true").stderr(Stdio::null());
        flock.status().expect("flock").code() == Some(77)
    }

    /// Number of waiters in the kernel's queue for the session lock.
    pub(crate) fn waiters(&self) -> usize {
        let inode = format!(":{} ", fs::metadata(self.lock_file()).map_or(0, |found| found.ino()));
        let locks = fs::read_to_string("/proc/locks").expect("/proc/locks");
        locks.lines().filter(|line| line.contains("->") && line.contains(&inode)).count()
    }

    /// Processes that have their working directory in here, zombies left out.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let all = fs::read_dir("/proc").expect("/proc").flatten();
        let here =
            all.filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(self.dir.path())));
        here.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }
}

/// The claude-run under test: cargo's, or that of another target, which `CLAUDE_RUN_BINARY` names.
pub(crate) fn binary() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| std::env::var_os("CLAUDE_RUN_BINARY").map_or_else(|| built().into(), PathBuf::from))
}

fn built() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_claude-run"))
}

/// The fake claude.
pub(crate) fn fake_claude() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| example("fake_claude", &["fake_claude/main.rs", "fake_claude/refresh.rs"]))
}

/// The stand-in for its token endpoint and API.
pub(crate) fn oauth_stand_in() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| example("oauth_stand_in", &["oauth/main.rs"]))
}

/// The program that injects faults.
pub(crate) fn faults() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let sources =
        ["main", "agent", "board", "cases", "fleet", "inject", "slots", "watch"].map(|name| format!("faults/{name}.rs"));
    PATH.get_or_init(|| example("faults", &sources))
}

/// Path of an example target. A plain `cargo test` has built it; a narrower call builds it here.
fn example(name: &str, sources: &[impl AsRef<Path>]) -> PathBuf {
    let path = built().with_file_name("examples").join(name);
    let modified = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    if sources.iter().any(|source| modified(&path) < modified(&tests.join(source))) {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--example", name]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if built().parent().is_some_and(|dir| dir.ends_with("release")) {
            cargo.arg("--release");
        }
        assert!(cargo.status().expect("cargo").success(), "{cargo:?}");
    }
    path
}

/// Process under test: its lines as they come, and its end. Ended when the test is over, however that came.
pub(crate) struct Running {
    child: Child,
    stdout: Lines,
    stderr: Lines,
    about: String,
}

/// End of a process, and the lines that no test has read.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<String>,
    pub(crate) stderr: Vec<String>,
}

/// The exit code, as a shell would show it.
pub(crate) fn shell_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().expect("ended"))
}

impl Ended {
    pub(crate) fn code(&self) -> i32 {
        shell_code(self.status)
    }

    pub(crate) fn stderr_text(&self) -> String {
        self.stderr.join("\n")
    }
}

impl Running {
    pub(crate) fn start(command: Command) -> Self {
        let stderr = Lines::new();
        Self::start_with(command, stderr.stdio(), stderr)
    }

    /// Starts `command` with its messages going elsewhere.
    pub(crate) fn start_with_stderr(command: Command, stderr: Stdio) -> Self {
        Self::start_with(command, stderr, Lines::new())
    }

    fn start_with(mut command: Command, to: Stdio, stderr: Lines) -> Self {
        let about = format!("{command:?}");
        let stdout = Lines::new();
        let child = command.stdout(stdout.stdio()).stderr(to).spawn().unwrap_or_else(|error| panic!("{about}: {error}"));
        Self { child, stdout, stderr, about }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.about));
    }

    /// Sends another TERM, outside the window in which two are one request.
    pub(crate) fn term_again(&self) {
        thread::sleep(Duration::from_millis(150));
        self.signal(Signal::SIGTERM);
    }

    /// The next line on stdout.
    pub(crate) fn line(&self) -> String {
        self.next_of(&self.stdout, "stdout")
    }

    /// The next line on stderr.
    pub(crate) fn message(&self) -> String {
        self.next_of(&self.stderr, "stderr")
    }

    pub(crate) fn expect_line(&self, expected: &str) {
        assert_eq!(self.line(), expected, "{}", self.about);
    }

    /// `ready PID PPID PGID SID` of the fake claude.
    pub(crate) fn ready(&self) -> [i32; 4] {
        let line = self.line();
        let numbers: Vec<_> = line
            .strip_prefix("ready ")
            .unwrap_or_else(|| panic!("{line}"))
            .split(' ')
            .map(|word| word.parse().expect("a number"))
            .collect();
        numbers.try_into().expect("four numbers")
    }

    /// Closes the stdin of a process that waits for its end.
    pub(crate) fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    pub(crate) fn end(mut self) -> Ended {
        let status =
            self.child.wait_timeout(CEILING).expect("a child").unwrap_or_else(|| panic!("still running: {}", self.about));
        Ended { status, stdout: self.stdout.rest(), stderr: self.stderr.rest() }
    }

    fn next_of(&self, lines: &Lines, name: &str) -> String {
        lines.next().unwrap_or_else(|error| {
            let others = (self.stdout.so_far(), self.stderr.so_far());
            panic!("no line on {name} ({error}) of {}; else there was {others:?}", self.about)
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A supervisor that is asked to end twice leaves nothing behind, and needs no grace.
        if !self.is_running() {
            return;
        }
        self.signal(Signal::SIGCONT);
        self.signal(Signal::SIGTERM);
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(20));
            if !self.is_running() {
                return;
            }
            self.term_again();
        }
        let _ = self.child.wait_timeout(Duration::from_secs(10));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `is_so`, and fails with `what` at the ceiling.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < CEILING, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The records of the runs in `config_dir`; a temporary file beside them is about to be one, and may be empty.
pub(crate) fn records(config_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(config_dir.join("claude-run/runs")).into_iter().flatten();
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
}

/// Waits until so many runs have published their records in `config_dir`: the first of a run may come behind its child.
pub(crate) fn wait_for_records(config_dir: &Path, count: usize) {
    wait_until(&format!("there are records: {count}"), || records(config_dir).len() == count);
}

/// True if the process exists and is no zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// State letter in /proc/PID/stat.
pub(crate) fn state(pid: i32) -> Option<char> {
    stat(pid)?[0].chars().next()
}

/// Fields of /proc/PID/stat after the name: state letter, parent, process group, session …
pub(crate) fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// Waits until `pid` has become `program`, by the first word of its command line.
pub(crate) fn wait_until_exec(pid: i32, program: &str) {
    wait_until(&format!("{pid} is {program}"), || {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).next().is_some_and(|word| word == program.as_bytes())
    });
}

/// True for root. Where every test has to run, one that `why` only root can do may not be skipped.
pub(crate) fn needs_root(why: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        assert!(std::env::var_os("CI").is_none(), "every test has to run here, as root: {why}");
        eprintln!("SKIPPED: {why}");
    }
    is_root
}

/// True if `program` is installed. scripts/test.sh installs it, so in CI it has to be.
pub(crate) fn needs(program: &str) -> bool {
    let is_there =
        Command::new("sh").args(["-c", "command -v \"$0\" >/dev/null", program]).status().is_ok_and(|status| status.success());
    if !is_there {
        assert!(std::env::var_os("CI").is_none(), "{program} is missing here, where every test has to run");
        eprintln!("SKIPPED: there is no {program}; scripts/test.sh installs it");
    }
    is_there
}

/// True if this machine lets us make these namespaces. In CI a test may not be skipped for that.
pub(crate) fn can_unshare(flags: &str) -> bool {
    let can = Command::new("unshare").args([flags, "true"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !can {
        assert!(std::env::var_os("CI").is_none(), "unshare {flags} is refused here, where every test has to run");
        eprintln!("SKIPPED: unshare {flags} is refused on this machine");
    }
    can
}
