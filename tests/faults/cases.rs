//! Runs that nobody else meddles with: each has one fault of its own, amid all the others, and one way in which it has to end. A check
//! is a function here that returns a `Case`, and a line in `CASES`.
//!
//! None of them depends on how fast the machine is: where a child could be too slow, it says so itself (`late`).

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fs4::FileExt;
use nix::unistd::{ForkResult, fork};

use crate::board::Board;
use crate::fleet::{below, processes};

/// True if the end is as it has to be: the exit code (1000 more for a signal), and what the directory of the run has.
type IsKept = dyn Fn(i32, &Path) -> bool;

/// A run, and what has to come of it.
struct Case {
    name: &'static str,
    options: Vec<String>,
    /// For bash; `$D` is the directory of the run.
    script: String,
    /// Signals to claude-run, each so long after the one before; the first after the run is ready.
    signals: Vec<(Duration, i32)>,
    /// What stderr says, or else the file of that name that the child has made, once the run is ready.
    ready: &'static str,
    stdout: Option<PathBuf>,
    /// True if a limit allows no file to grow (`ulimit -f 0`).
    no_file_grows: bool,
    /// True if the config dir is its own directory: for refresh locks, which concern all who share one.
    has_config_dir: bool,
    is_kept: Box<IsKept>,
}

/// A case under way.
struct Running {
    case: Case,
    dir: PathBuf,
    /// Holds the lock that it waits for.
    holder: Option<Child>,
    next_signal: usize,
    /// Since it is ready, or since the last signal.
    since: Option<Instant>,
}

pub(crate) struct Cases {
    claude_run: PathBuf,
    config_dir: PathBuf,
    board: Board,
    running: HashMap<i32, Running>,
    started: usize,
    counts: BTreeMap<&'static str, u32>,
    next: Instant,
}

const CASES: [fn() -> Case; 12] = [
    second_turn,
    stopped_while_idle,
    full_disk,
    uncommon_signal,
    file_size_limit,
    ignored_request,
    fork_chain,
    hung_file_system,
    cleanup_before_kill,
    signal_ends_the_wait,
    child_dies_of_a_signal,
    stopped_in_mid_refresh,
];

/// A tmpfs that has no room.
pub(crate) const FULL: &str = "/mnt/full";
const RESULT: &str = r#"{"type":"result","subtype":"success","is_error":false}"#;

impl Case {
    fn new(name: &'static str, options: &[&str], script: &str, is_kept: impl Fn(i32, &Path) -> bool + 'static) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let (script, is_kept) = (script.to_owned(), Box::new(is_kept));
        let (signals, ready, stdout, no_file_grows, has_config_dir) = (Vec::new(), "ready", None, false, false);
        Self { name, options, script, signals, ready, stdout, no_file_grows, has_config_dir, is_kept }
    }
}

/// A turn that works, quietly and for longer than the grace, is no claude that hangs after its result.
fn second_turn() -> Case {
    let turn = [
        r#"{"type":"system","subtype":"init"}"#,
        r#"{"type":"assistant","message":{}}"#,
        r#"{"type":"user","message":{}}"#,
        r#"{"type":"stream_event","event":{}}"#,
    ][fastrand::usize(..4)];
    let script = format!("printf '%s\\n' '{RESULT}' '{turn}'; sleep 4; exec printf '%s\\n' '{RESULT}'");
    let has_both = |code, dir: &Path| {
        code == 0 && fs::read_to_string(dir.join("stdout")).is_ok_and(|text| text.matches(RESULT).count() == 2)
    };
    Case::new("second turn", &["--result-grace", "2"], &script, has_both)
}

/// The idle limit counts no time in which claude-run, or both, were stopped.
fn stopped_while_idle() -> Case {
    let (stop, slow) = [(libc::SIGSTOP, 2_500_000), (libc::SIGTSTP, 7_000_000)][fastrand::usize(..2)];
    let script = format!(
        ": >$D/ready; last=${{EPOCHREALTIME/./}}
         for i in {{1..80}}; do
           echo .; sleep 0.1; now=${{EPOCHREALTIME/./}}; ((now - last < {slow})) || : >$D/late; last=$now
         done; exit 5"
    );
    let signals = vec![(Duration::from_millis(500), stop), (Duration::from_millis(4500), libc::SIGCONT)];
    let is_kept = |code, dir: &Path| code == 5 || dir.join("late").exists();
    Case { signals, ..Case::new("stopped while idle", &["--idle-timeout", "3"], &script, is_kept) }
}

/// Output that cannot be written is said by the exit code, unless the child's says more, and is no fault of the child's.
fn full_disk() -> Case {
    let exit = [0, 3][fastrand::usize(..2)];
    let script = format!("head -c 300000 /dev/zero | tr '\\0' x; [ \"${{PIPESTATUS[*]}}\" = '0 0' ] || exit 9; exit {exit}");
    let is_kept = move |code, _: &Path| code == if exit == 0 { 74 } else { exit };
    let stdout = Some(Path::new(FULL).join(format!("stdout-{}", fastrand::u64(..))));
    Case { stdout, ..Case::new("full disk", &["--idle-timeout", "60"], &script, is_kept) }
}

/// Every signal that ends a process by default is forwarded, and nothing stays behind.
fn uncommon_signal() -> Case {
    let common = [
        libc::SIGALRM,
        libc::SIGPWR,
        libc::SIGXCPU,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGSTKFLT,
        libc::SIGRTMIN(),
        libc::SIGRTMIN() + 7,
        libc::SIGRTMAX(),
    ];
    let signal = common[fastrand::usize(..common.len())];
    // Made by one that has no handlers: a bash that gets the signal in mid-exec loses it.
    let script = "setsid sleep 60 & exec flock --no-fork $D/ready sleep 60";
    let is_kept = move |code, _: &Path| code == 128 + signal || code == 1000 + signal;
    Case { signals: vec![(Duration::ZERO, signal)], ..Case::new("uncommon signal", &[], script, is_kept) }
}

/// A limit on the size of files ends neither claude-run nor what it runs.
fn file_size_limit() -> Case {
    let signals = vec![(Duration::ZERO, libc::SIGXFSZ)];
    let case = Case::new("file size limit", &[], ": >$D/ready; sleep 0.3; exit 3", |code, _| code == 3);
    Case { signals, no_file_grows: true, ..case }
}

/// A request to end that the child ignores takes no limit away.
fn ignored_request() -> Case {
    let (signal, grace) = ([libc::SIGHUP, libc::SIGQUIT][fastrand::usize(..2)], ["0", "60"][fastrand::usize(..2)]);
    let script = "trap '' HUP QUIT; : >$D/ready; exec sleep 30";
    let case = Case::new("ignored request", &["--timeout", "2", "--kill-after", grace], script, |code, _| code == 124);
    Case { signals: vec![(Duration::ZERO, signal)], ..case }
}

/// Who forks and exits for ever does not outrun the end of its run.
fn fork_chain() -> Case {
    let is_kept = |code, dir: &Path| code == 0 && !dir.join("outlived").exists();
    Case::new("fork chain", &["--kill-after", "0.2"], r#"exec "$FAULTS" chain "$D""#, is_kept)
}

/// A leftover that KILL does not end, since its file system hangs, is named and given up.
fn hung_file_system() -> Case {
    let Ok((dir, servers)) = hang() else { return fork_chain() }; // FUSE is not for everybody
    // It hangs for good once its server is asked, and asks in its turn: until then a signal still ends it. By the numbers of openat and
    // read, on x86_64 and aarch64.
    let script = format!(
        "cat {}/above/file & until grep -qE '^(257|56) ' /proc/$!/syscall && ! grep -qE '^(0|63|running)( |$)' /proc/{}/syscall
        do sleep 0.01; done; exit 4",
        dir.display(),
        servers[1]
    );
    let is_kept = move |code, run: &Path| {
        let errors = fs::read_to_string(run.join("stderr")).unwrap_or_default();
        for server in &servers {
            // SAFETY: kill(2); whoever waits for them is free then.
            unsafe { libc::kill(*server, libc::SIGKILL) };
        }
        let end = Instant::now() + Duration::from_secs(20);
        let reader = format!("cat\0{}/above/file\0", dir.display());
        let is_reader = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words == reader.as_bytes());
        while processes().iter().any(is_reader) && Instant::now() < end {
            sleep(Duration::from_millis(5));
        }
        code == 4 && errors.contains("KILL does not end")
    };
    Case::new("hung file system", &["--kill-after", "0.1"], &script, is_kept)
}

/// Mounts a file system on another, whose server is stopped: who waits for the first cannot be killed. Gives both servers.
fn hang() -> Result<(PathBuf, [i32; 2])> {
    let dir = PathBuf::from(format!("/mnt/hung-{}", fastrand::u64(..)));
    for name in ["base", "below", "above"] {
        fs::create_dir_all(dir.join(name))?;
    }
    fs::write(dir.join("base/file"), "text")?;
    let serve = |from: &str, to: &str| -> Result<i32> {
        let mut server =
            Command::new("bindfs").arg("-f").arg(dir.join(from)).arg(dir.join(to)).stderr(Stdio::null()).spawn()?;
        while !dir.join(to).join("file").exists() {
            ensure!(server.try_wait()?.is_none(), "no FUSE here");
            sleep(Duration::from_millis(5));
        }
        Ok(server.id() as i32)
    };
    let servers = [serve("base", "below")?, serve("below", "above")?];
    // SAFETY: kill(2) of a child of ours.
    unsafe { libc::kill(servers[0], libc::SIGSTOP) };
    Ok((dir, servers))
}

/// Nobody is killed who has not had a TERM, though the child waits for it and passes none on.
fn cleanup_before_kill() -> Case {
    let script = r#"trap ': >$D/cleanup; exit 3' TERM
        bash -c 'trap ": >$D/term; exit" TERM; : >$D/ready; while :; do sleep 0.1; done'; true"#;
    let has_both = |code, dir: &Path| code == 3 && dir.join("term").exists() && dir.join("cleanup").exists();
    let signals = vec![(Duration::ZERO, libc::SIGTERM)];
    Case { signals, ..Case::new("cleanup before KILL", &["--kill-after", "10"], script, has_both) }
}

/// Whose wait a signal ends dies of it, so that a shell's loop around it ends as well.
fn signal_ends_the_wait() -> Case {
    let signal = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP][fastrand::usize(..3)];
    let options = ["--lock", "exclusive", "--wait", "10m"];
    let case = Case::new("signal ends the wait", &options, "exit 9", move |code, _| code == 1000 + signal);
    Case { signals: vec![(Duration::ZERO, signal)], ready: "waiting for", ..case }
}

fn child_dies_of_a_signal() -> Case {
    let signal = [libc::SIGTERM, libc::SIGKILL, libc::SIGSEGV, libc::SIGUSR1, libc::SIGPIPE][fastrand::usize(..5)];
    let script = format!("kill -{signal} $$");
    Case::new("child dies of a signal", &[], &script, move |code, _| code == 1000 + signal)
}

/// A refresh whose claude was stopped for so long that its lock is stale, alone or with claude-run, is spared all the same.
fn stopped_in_mid_refresh() -> Case {
    let script = r#"trap '[ -e $D/saved ] || : >$D/cut; exit 3' TERM
        mkdir $D.lock; : >$D/ready; [ -z "$1" ] || kill -STOP $$
        for i in {1..10}; do sleep 0.1; done
        : >$D/saved; rmdir $D.lock; exec sleep 60"#;
    let long = Duration::from_secs(12);
    let (itself, options, signals) = match fastrand::u32(..3) {
        0 => ("1", &[][..], vec![(long, libc::SIGTERM)]),
        1 => ("", &[][..], vec![(Duration::ZERO, libc::SIGTSTP), (long, libc::SIGTERM), (Duration::ZERO, libc::SIGCONT)]),
        _ => ("1", &["--timeout", "5"][..], vec![(Duration::ZERO, libc::SIGSTOP), (long, libc::SIGCONT)]),
    };
    let script = script.replace("$1", itself);
    let is_kept = |_, dir: &Path| dir.join("saved").exists() && !dir.join("cut").exists();
    Case { signals, has_config_dir: true, ..Case::new("stopped in mid-refresh", options, &script, is_kept) }
}

impl Cases {
    pub(crate) fn new(claude_run: &Path, config_dir: &Path, board: &Board) -> Self {
        let (claude_run, config_dir, board) = (claude_run.to_owned(), config_dir.to_owned(), board.clone());
        let (running, counts, next) = (HashMap::new(), BTreeMap::new(), Instant::now());
        Self { claude_run, config_dir, board, running, started: 0, counts, next }
    }

    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }

    /// Starts the next one, now and then.
    pub(crate) fn start(&mut self) -> Result<()> {
        if Instant::now() < self.next || self.running.len() >= CASES.len() {
            return Ok(());
        }
        self.next = Instant::now() + Duration::from_millis(400);
        let case = CASES[self.started % CASES.len()]();
        let dir = self.board.path(&format!("case-{}", self.started));
        fs::create_dir(&dir)?;
        let lock = dir.join("lock");
        let waits = case.ready == "waiting for";
        let holder = if waits { Some(hold(&lock)?) } else { None };
        let mut command = Command::new(&self.claude_run);
        if !waits {
            command.args(["--lock", "pass-through"]);
        }
        command.args(&case.options).arg("--lock-file").arg(&lock).args(["bash", "-c", &case.script, "agent"]);
        command.args(["-p", "--output-format", "stream-json"]);
        let config_dir = if case.has_config_dir { &dir } else { &self.config_dir };
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonesuch").env("CLAUDE_CONFIG_DIR", config_dir);
        command.env("D", &dir).env("FAULTS", env::current_exe()?);
        let stdout = File::create(case.stdout.clone().unwrap_or_else(|| dir.join("stdout")))?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(File::create(dir.join("stderr"))?);
        let no_file_grows = case.no_file_grows;
        // SAFETY: setrlimit(2) is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                if no_file_grows {
                    libc::setrlimit(libc::RLIMIT_FSIZE, &none);
                }
                libc::setrlimit(libc::RLIMIT_CORE, &none);
                Ok(())
            });
        }
        let child = command.spawn()?;
        self.started += 1;
        *self.counts.entry(case.name).or_default() += 1;
        self.running.insert(child.id() as i32, Running { case, dir, holder, next_signal: 0, since: None });
        Ok(())
    }

    /// Sends the signals that are due.
    pub(crate) fn act(&mut self) {
        for (&pid, running) in &mut self.running {
            let Running { case, dir, next_signal, since, .. } = running;
            let Some(&(delay, signal)) = case.signals.get(*next_signal) else { continue };
            let is_ready = || {
                let errors = fs::read_to_string(dir.join("stderr")).unwrap_or_default();
                dir.join(case.ready).exists() || errors.contains(case.ready)
            };
            if since.is_none() && is_ready() {
                *since = Some(Instant::now());
            }
            if since.is_some_and(|since| since.elapsed() >= delay) {
                // SAFETY: kill(2) of a child that is not reaped yet; real-time signals have no name in nix.
                unsafe { libc::kill(pid, signal) };
                (*next_signal, *since) = (*next_signal + 1, Some(Instant::now()));
            }
        }
    }

    /// Judges the end of `pid`, if it is one of these.
    pub(crate) fn has_ended(&mut self, pid: i32, code: i32) {
        let Some(Running { case, dir, holder, .. }) = self.running.remove(&pid) else { return };
        if let Some(mut holder) = holder {
            let _ = holder.kill(); // it may be gone
        }
        let errors = fs::read_to_string(dir.join("stderr")).unwrap_or_default();
        let about = format!("{} ({}): {}", case.name, case.script.replace('\n', " "), errors.trim());
        if !(case.is_kept)(code, &dir) || errors.contains("panicked") {
            self.board.violation(&format!("case ended with {code}, signals {:?}: {about}", case.signals));
        }
        for left in below(pid) {
            self.board.violation(&format!("pid {left} is left of the case {about}"));
        }
        if let Some(stdout) = case.stdout {
            let _ = fs::remove_file(stdout); // it may be gone with its file system
        }
    }

    pub(crate) fn told(&self) -> String {
        let counts: Vec<_> = self.counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
        format!("{} ({})", self.started, counts.join(", "))
    }
}

/// Somebody who is none of ours, and holds the lock from now on.
fn hold(lock: &Path) -> Result<Child> {
    let file = File::create(lock)?;
    let holder = Command::new("flock").arg("--no-fork").arg(lock).args(["sleep", "600"]).spawn()?;
    while FileExt::try_lock(&file).is_ok() {
        FileExt::unlock(&file)?;
        sleep(Duration::from_millis(5));
    }
    Ok(holder)
}

/// `chain DIR`: leaves behind a process that forks and exits, again and again, for ten seconds at most.
pub(crate) fn chain(words: &[String]) -> Result<ExitCode> {
    let dir = Path::new(words.first().context("chain DIR")?);
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Parent { .. } => return Ok(ExitCode::SUCCESS),
            ForkResult::Child if Instant::now() < end => {}
            ForkResult::Child => {
                fs::write(dir.join("outlived"), "")?;
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}
