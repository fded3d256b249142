//! `faults slots`: many runs on a few slots, some of them killed at random, as are those that wait. Never more run at once than there are
//! slots, who comes first is served first, and no slot stays free while somebody waits. It needs no namespace of its own: it signals
//! nobody but those whom it has started.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::board::{Board, Kind};

/// So long no slot stays free for which somebody waits, however busy the machine is.
const LOST: Duration = Duration::from_secs(5);

/// Longer than everything takes.
const PATIENCE: Duration = Duration::from_secs(300);

struct Fleet {
    config_dir: PathBuf,
    claude_run: PathBuf,
    board: Board,
    slots: usize,
    runs: BTreeMap<usize, Child>,
}

/// `slots [--runs N] [--slots N] [--seed N] --claude-run PATH`
pub(crate) fn run(words: &[String]) -> Result<ExitCode> {
    let (mut runs, mut slots, mut seed, mut claude_run) = (200, 4, fastrand::u64(..), PathBuf::new());
    for pair in words.chunks(2) {
        let [option, value] = pair else { bail!("{} needs a value", pair[0]) };
        match option.as_str() {
            "--runs" => runs = value.parse()?,
            "--slots" => slots = value.parse()?,
            "--seed" => seed = value.parse()?,
            "--claude-run" => claude_run = Path::new(value).canonicalize().with_context(|| value.clone())?,
            _ => bail!("{option} is none of --runs, --slots, --seed and --claude-run"),
        }
    }
    ensure!(claude_run.is_file(), "--claude-run PATH is wanted");
    fastrand::seed(seed);
    println!("{runs} runs on {slots} slots, seed {seed}");
    let dir = tempfile::tempdir()?;
    let board = Board::new(dir.path());
    let mut fleet = Fleet { config_dir: dir.path().join("config"), claude_run, board, slots, runs: BTreeMap::new() };
    fs::create_dir(&fleet.config_dir)?;
    let outcome = fleet.go(runs);
    for child in fleet.runs.values_mut() {
        let _ = child.kill(); // after an error; else there is none left
        let _ = child.wait();
    }
    let (killed, longest) = outcome?;
    let violations = fleet.board.violations();
    violations.iter().take(50).for_each(|violation| println!("VIOLATION: {violation}"));
    println!("killed: {killed}; longest time that a slot was free while somebody waited: {longest:?}");
    println!("violations: {}", violations.len());
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `slot-agent NUMBER`: has one of the places, of which there are as many as slots, and works for a moment.
pub(crate) fn agent(words: &[String]) -> Result<ExitCode> {
    let board = Board::new(&PathBuf::from(env::var_os(Board::VARIABLE).context("no board")?));
    let number = words.first().context("NUMBER")?;
    let slots: usize = env::var("FAULTS_SLOTS")?.parse()?;
    let mut place = None;
    for name in 0..slots {
        place = board.mark(&format!("place-{name}"), Kind::Exclusive)?.ok();
        if place.is_some() {
            break;
        }
    }
    if let Some(place) = &place {
        place.end_first(); // before the slot is free
    } else {
        board.violation(&format!("run {number} is one more than there are slots"));
    }
    let mut started = File::options().append(true).create(true).open(board.path("started"))?;
    started.write_all(format!("{number}\n").as_bytes())?; // at once: others append as well
    while number.parse::<usize>()? < slots && !board.is_noted("go") {
        sleep(Duration::from_millis(2)); // those that come first wait until all are in the queue
    }
    sleep(Duration::from_millis(fastrand::u64(1..40)));
    Ok(ExitCode::SUCCESS)
}

impl Fleet {
    /// The number of those killed, and the longest time for which a slot was free while somebody waited.
    fn go(&mut self, runs: usize) -> Result<(usize, Duration)> {
        let give_up = Instant::now() + PATIENCE;
        for number in 0..runs {
            self.start(number)?;
            // In the order of their numbers: the next comes when this one has its slot, or its place in the queue.
            while self.started().len() + self.waiting().len() <= number {
                ensure!(Instant::now() < give_up, "run {number} neither runs nor waits");
                sleep(Duration::from_millis(1));
            }
        }
        self.board.note("go", "");
        let (mut killed, mut longest, mut free_since) = (BTreeSet::new(), Duration::ZERO, None);
        let mut next_kill = Instant::now();
        while !self.runs.is_empty() {
            ensure!(Instant::now() < give_up, "these do not end: {:?}", self.runs.keys());
            self.runs.retain(|_, child| !matches!(child.try_wait(), Ok(Some(_))));
            if Instant::now() >= next_kill {
                next_kill = Instant::now() + Duration::from_millis(fastrand::u64(1..20));
                killed.extend(self.kill_one());
            }
            let is_idle = self.held() < self.slots && !self.waiting().is_empty();
            let since = *free_since.get_or_insert_with(Instant::now);
            longest = longest.max(if is_idle { since.elapsed() } else { Duration::ZERO });
            free_since = free_since.filter(|_| is_idle);
            sleep(Duration::from_millis(2));
        }
        let started = self.started();
        // Those that got their slots one after the other start side by side.
        let is_early =
            |(at, number): (usize, &usize)| started[at..].iter().filter(|later| *later < number).count() >= self.slots;
        if started.iter().enumerate().any(is_early) {
            self.board.violation(&format!("not in the order of their arrival: {started:?}"));
        }
        if let Some(never) = (0..runs).find(|number| !started.contains(number) && !killed.contains(number)) {
            self.board.violation(&format!("run {never} was never started, nor killed"));
        }
        if longest > LOST {
            self.board.violation(&format!("a slot was free for {longest:?} while somebody waited"));
        }
        Ok((killed.len(), longest))
    }

    fn start(&mut self, number: usize) -> Result<()> {
        let mut command = Command::new(&self.claude_run);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonesuch").env("CLAUDE_CONFIG_DIR", &self.config_dir);
        command.env(Board::VARIABLE, self.board.path("")).env("FAULTS_SLOTS", self.slots.to_string());
        command.args(["-q", "--lock", "pass-through", "--slots", &self.slots.to_string(), "--"]);
        command.arg(env::current_exe()?).args(["slot-agent", &number.to_string()]).stdin(Stdio::null());
        self.runs.insert(number, command.spawn()?);
        Ok(())
    }

    /// Kills a run, or what it runs.
    fn kill_one(&self) -> Option<usize> {
        let all: Vec<_> = self.runs.iter().collect();
        let (number, child) = all.get(fastrand::usize(..all.len().max(1)))?;
        let pid = child.id();
        let below = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let child = below.split_whitespace().next().and_then(|pid| pid.parse().ok()).filter(|_| fastrand::bool());
        // SAFETY: kill(2) touches no memory; the run is not reaped yet, and its child hardly so, for it is the one who does that.
        unsafe { libc::kill(child.unwrap_or(pid as i32), libc::SIGKILL) };
        Some(**number)
    }

    /// Those that were started, in order.
    fn started(&self) -> Vec<usize> {
        let text = fs::read_to_string(self.board.path("started")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Pids of those in the kernel's queues.
    fn waiting(&self) -> BTreeSet<String> {
        self.flocks().into_iter().filter(|(_, _, waits)| *waits).map(|(_, pid, _)| pid).collect()
    }

    fn held(&self) -> usize {
        let held = self.flocks().into_iter().filter(|(name, _, waits)| !waits && name.parse::<u16>().is_ok());
        held.map(|(name, ..)| name).collect::<BTreeSet<_>>().len()
    }

    /// Flocks on the slots' files: name, pid, and whether it waits.
    fn flocks(&self) -> Vec<(String, String, bool)> {
        let files = fs::read_dir(self.config_dir.join("claude-run/slots")).into_iter().flatten().flatten();
        let names: BTreeMap<_, _> = files
            .filter_map(|file| Some((file.metadata().ok()?.ino().to_string(), file.file_name().to_string_lossy().into_owned())))
            .collect();
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let flock = |line: &str| {
            let waits = line.contains("->");
            let words: Vec<_> = line.split_whitespace().filter(|word| *word != "->").collect();
            let [_, "FLOCK", _, _, pid, file, ..] = words[..] else { return None };
            Some((names.get(file.rsplit(':').next()?)?.clone(), pid.to_owned(), waits))
        };
        locks.lines().filter_map(flock).collect()
    }
}
