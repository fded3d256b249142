//! What is looked at from outside: does anybody wait for a lock that is free, and is anything left when all is over.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use nix::sys::stat::{major, minor};

use crate::board::Board;
use crate::fleet::{Fleet, processes};

/// Looks.
pub(crate) struct Watch {
    board: Board,
    next: Instant,
    /// Who waits for a lock that nobody holds, and since when.
    forlorn: HashMap<i32, Instant>,
}

/// So long nobody waits for a free lock, however busy the machine is.
const LOST: Duration = Duration::from_secs(5);

impl Watch {
    pub(crate) fn new(board: &Board) -> Self {
        Self { board: board.clone(), next: Instant::now(), forlorn: HashMap::new() }
    }

    /// Whoever sleeps in flock(2) has somebody to wait for.
    pub(crate) fn look(&mut self, fleet: &Fleet) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + Duration::from_millis(250);
        let waiting: Vec<_> = fleet
            .pids()
            .into_iter()
            .filter(|&pid| fleet.get(pid).is_some_and(|agent| agent.stopped == 0 && agent.mode != "block"))
            .filter_map(|pid| waits_for(pid).map(|file| (pid, file)))
            .collect();
        let held = held(); // after the question who waits: a lock that was free before was not free then
        let mut forlorn = HashMap::new();
        for (pid, file) in waiting {
            // /proc/locks of a PID namespace hides a lock whose taker is gone, such as the old block's flock(1).
            if held.contains(&file) || !holders(&file).is_empty() {
                continue;
            }
            let since = *self.forlorn.get(&pid).unwrap_or(&now);
            if now - since > LOST {
                self.board.violation(&format!("{pid} waits for {file}, which is free: {:?}", fleet.get(pid)));
            }
            forlorn.insert(pid, since);
        }
        self.forlorn = forlorn;
    }

    /// When all is over.
    pub(crate) fn after_all(&self, fleet: &Fleet, claude_run: &Path, config_dir: &Path) -> Result<()> {
        if fleet.len() > 0 {
            let files: BTreeSet<_> = fleet.pids().into_iter().filter_map(waits_for).collect();
            for file in files {
                self.board.violation(&format!("{} agents have not ended; {file} is held by {:?}", fleet.len(), holders(&file)));
            }
        }
        for pid in fleet.pids() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let status: Vec<_> = status.lines().take(4).collect();
            self.board.violation(&format!("{pid} has not ended, {status:?}: {:?}", fleet.get(pid)));
        }
        for pid in processes() {
            if fleet.get(pid).is_none() {
                let about = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                self.board.violation(&format!("pid {pid} is left: {about}"));
            }
        }
        let records = config_dir.join("claude-run/runs");
        // On a slow machine, nobody may have had one.
        let left: Vec<_> = fs::read_dir(&records).into_iter().flatten().flatten().collect();
        for entry in &left {
            // Who was killed while it wrote its record has left half of one: it counts as such after a minute.
            File::options().write(true).open(entry.path())?.set_modified(SystemTime::now() - Duration::from_secs(120))?;
        }
        // Whoever comes next sweeps the records of the dead, and of the halves a few, and has the lock at once.
        for _ in left.chunks(16) {
            Command::new(claude_run).args(["--config-dir"]).arg(config_dir).arg("status").output()?;
        }
        let mut next = Command::new(claude_run);
        next.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonesuch").env("CLAUDE_CONFIG_DIR", config_dir);
        let next = next.args(["--wait", "1", "true"]).output()?;
        if next.status.code() != Some(0) {
            self.board.violation(&format!("the lock is not free at the end: {next:?}"));
        }
        let mut status = Command::new(claude_run);
        status.env_clear().env("HOME", "/nonesuch").env("CLAUDE_CONFIG_DIR", config_dir);
        let status = status.args(["status", "--json"]).output()?;
        if !status.status.success() {
            self.board.violation(&format!("status finds trouble at the end: {status:?}"));
        }
        for entry in fs::read_dir(&records)?.flatten() {
            self.board.violation(&format!("a record is left: {}", entry.file_name().display()));
        }
        Ok(())
    }
}

/// The file, as /proc/locks names it, that a thread of `pid` waits for in flock(2).
fn waits_for(pid: i32) -> Option<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    tasks.flatten().find_map(|task| {
        let call = fs::read_to_string(task.path().join("syscall")).ok()?;
        let mut words = call.split(' ');
        if words.next()?.parse() != Ok(libc::SYS_flock) {
            return None;
        }
        let descriptor = i32::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()?;
        let found = fs::metadata(format!("/proc/{pid}/fd/{descriptor}")).ok()?;
        Some(format!("{:02x}:{:02x}:{}", major(found.dev()), minor(found.dev()), found.ino()))
    })
}

/// The files that somebody holds a flock on.
fn held() -> Vec<String> {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let fields = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let holders = fields.filter(|fields| fields.get(1) == Some(&"FLOCK"));
    holders.filter_map(|fields| fields.get(5).map(|&file| file.to_owned())).collect()
}

/// The processes with a descriptor that holds a flock on that file.
fn holders(file: &str) -> Vec<String> {
    let holds = |pid: &i32| {
        let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
        let mut infos = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
        infos.any(|info| info.lines().any(|line| line.starts_with("lock:") && line.contains("FLOCK") && line.contains(file)))
    };
    let about = |pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let stat: Vec<_> = stat.split(' ').skip(1).take(3).collect();
        format!("{pid} {stat:?} {}", String::from_utf8_lossy(&words).replace('\0', " "))
    };
    processes().into_iter().filter(holds).map(about).collect()
}
