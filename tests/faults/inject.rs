//! The faults: what is done to whom, at random, and what is repaired again.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wait_timeout::ChildExt;

use crate::board::{Board, credentials, now_ms};
use crate::fleet::{DEADLY, Fleet};

/// Does them.
pub(crate) struct Injector {
    claude_run: PathBuf,
    config_dir: PathBuf,
    board: Board,
    counts: BTreeMap<&'static str, u32>,
    /// What has to be undone, and when.
    pending: Vec<(Instant, Undo)>,
    next_signal: Instant,
    next_file_fault: Instant,
    next_lock_fault: Instant,
    next_login_fault: Instant,
    next_setting: Instant,
    next_dead_refresher: Instant,
}

#[derive(Clone, Debug)]
enum Undo {
    Continue { pid: i32, agent: i32 },
    Room,
    Permissions,
    Credentials,
    RefreshLock,
}

/// Claude Code's own lock around a refresh, who has it, and the age at which others take it over.
const REFRESH_LOCK: &str = ".oauth_refresh.lock";
const REFRESH_OWNER: &str = ".oauth_refresh.lock.owner";
const STALE_AFTER: Duration = Duration::from_secs(60);

const DIRECTORIES: [&str; 3] = ["", "claude-run", "claude-run/runs"];

impl Injector {
    pub(crate) fn new(claude_run: &Path, config_dir: &Path, board: &Board) -> Self {
        let now = Instant::now();
        board.note_mode("exclusive");
        Self {
            claude_run: claude_run.to_owned(),
            config_dir: config_dir.to_owned(),
            board: board.clone(),
            counts: BTreeMap::new(),
            pending: Vec::new(),
            next_signal: now,
            next_file_fault: now + Duration::from_secs(2),
            next_lock_fault: now + Duration::from_secs(1),
            next_login_fault: now + Duration::from_secs(1),
            next_setting: now + Duration::from_secs(1),
            next_dead_refresher: now + Duration::from_secs(3),
        }
    }

    /// Whatever is due.
    pub(crate) fn act(&mut self, fleet: &mut Fleet) -> Result<()> {
        let now = Instant::now();
        self.undo(fleet, |at| at <= now)?;
        while self.next_signal <= now {
            self.next_signal += Duration::from_millis(fastrand::u64(1..25));
            self.signal_somebody(fleet);
        }
        if self.next_lock_fault <= now {
            self.next_lock_fault = now + Duration::from_millis(fastrand::u64(100..6000));
            self.fault_of_the_lock_file()?;
        }
        if self.next_login_fault <= now {
            self.next_login_fault = now + Duration::from_millis(fastrand::u64(200..3000));
            self.fault_of_the_login();
        }
        if self.next_file_fault <= now {
            self.next_file_fault = now + Duration::from_millis(fastrand::u64(500..3000));
            self.fault_of_the_file_system(fleet)?;
        }
        if self.next_setting <= now {
            self.next_setting = now + Duration::from_millis(fastrand::u64(500..6000));
            self.change_of_the_settings()?;
        }
        if self.next_dead_refresher <= now {
            self.next_dead_refresher = now + Duration::from_secs(fastrand::u64(6..30));
            self.dead_refresher()?;
        }
        Ok(())
    }

    /// Ends all faults that are still there.
    pub(crate) fn repair(&mut self, fleet: &mut Fleet) -> Result<()> {
        self.undo(fleet, |_| true)?;
        // Last, and not optional: a login that was cut while the disk was full could not be restored before there was room.
        self.board.note_time("login");
        self.board.save_credentials(&self.config_dir, now_ms() + 400_000)?;
        self.board.note_time("login");
        Ok(())
    }

    pub(crate) fn told(&self) -> String {
        let counts: Vec<_> = self.counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        format!("{} ({})", self.counts.values().sum::<u32>(), counts.join(", "))
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn signal_somebody(&mut self, fleet: &mut Fleet) {
        let pids = fleet.pids();
        let Some(&agent) = pids.get(fastrand::usize(..pids.len().max(1))) else { return };
        // The agent's claude-run itself, or somebody below it.
        let below = descendants(agent);
        let target = if below.is_empty() || fastrand::bool() { agent } else { below[fastrand::usize(..below.len())] };
        let signal = if fastrand::u32(..4) == 0 { libc::SIGSTOP } else { DEADLY[fastrand::usize(..DEADLY.len())] };
        let is_claude_run =
            fs::read_link(format!("/proc/{target}/exe")).is_ok_and(|exe| exe.to_string_lossy().contains("claude-run"));
        let Some(told) = fleet.get_mut(agent) else { return };
        if is_claude_run && signal == libc::SIGKILL {
            self.board.note(&format!("killed-{target}"), ""); // before: whoever finds its tools alive is to know
        }
        if target == agent {
            told.wrapper_signalled.push(signal)
        } else {
            told.signalled.push(signal)
        }
        if signal == libc::SIGSTOP {
            told.stopped += 1;
            let at = Instant::now() + Duration::from_millis(fastrand::u64(1..800));
            self.pending.push((at, Undo::Continue { pid: target, agent }));
        }
        // Below us, pids are not used again so soon; it may have ended.
        // SAFETY: kill(2) touches no memory.
        unsafe { libc::kill(target, signal) };
        self.count(match (signal, is_claude_run) {
            (libc::SIGKILL, true) => "KILL to claude-run",
            (libc::SIGKILL, false) => "KILL to others",
            (libc::SIGSTOP, true) => "STOP and CONT to claude-run",
            (libc::SIGSTOP, false) => "STOP and CONT to others",
            (libc::SIGTERM, true) => "TERM to claude-run",
            (libc::SIGTERM, false) => "TERM to others",
            (_, true) => "ALRM, PWR or a real-time signal to claude-run",
            (_, false) => "ALRM, PWR or a real-time signal to others",
        });
    }

    fn fault_of_the_lock_file(&mut self) -> Result<()> {
        self.board.note_time("lock-file");
        let lock = self.config_dir.join("session.lock");
        if fastrand::bool() {
            self.count("lock file removed");
            let _ = fs::remove_file(&lock); // it may be removed already
        } else {
            let new = self.config_dir.join("session.lock.new");
            if File::create(&new).is_ok() {
                self.count("lock file replaced");
                fs::rename(&new, &lock)?;
            }
        }
        Ok(())
    }

    fn fault_of_the_login(&mut self) {
        self.board.note_time("login");
        let file = self.config_dir.join(".credentials.json");
        if fastrand::u32(..3) == 0 {
            self.count("credentials cut");
            let half = credentials(now_ms());
            let _ = fs::write(&file, &half[..fastrand::usize(..half.len())]); // a full disk cuts it, too
            let at = Instant::now() + Duration::from_millis(fastrand::u64(5..300));
            self.pending.push((at, Undo::Credentials));
        } else {
            self.count("clock stepped");
            // By hours; or so that the token is about to expire.
            let by_ms = if fastrand::bool() { fastrand::i64(-30..6) * 3_600_000 } else { fastrand::i64(-60_000..400_000) };
            let _ = self.board.save_credentials(&self.config_dir, now_ms().saturating_add_signed(by_ms)); // the next does it
        }
        self.board.note_time("login");
    }

    /// The mode or the bound of slots is set for all. The file has the new value or the old one, as the exit code says.
    fn change_of_the_settings(&mut self) -> Result<()> {
        let modes = ["exclusive", "exclusive", "refresh", "pass-through"];
        let (operation, key, value) = match (fastrand::bool(), fastrand::bool()) {
            (true, _) => ("mode", "lock", modes[fastrand::usize(..modes.len())].to_owned()),
            (false, true) => ("slots", "slots", "none".to_owned()),
            (false, false) => ("slots", "slots", fastrand::u32(1..100).to_string()),
        };
        self.count(if operation == "mode" { "mode set" } else { "slots set" });
        let old = self.setting(key);
        if operation == "mode" {
            self.board.note_mode("?");
        }
        let mut command = Command::new(&self.claude_run);
        command.env_clear().env("HOME", "/nonesuch").env("CLAUDE_CONFIG_DIR", &self.config_dir).args([operation, &value]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let ended = child.wait_timeout(Duration::from_secs(60))?;
        if ended.is_none() {
            self.board.violation(&format!("claude-run {operation} {value} hangs"));
            child.kill()?;
            child.wait()?;
        }
        let found = self.setting(key);
        if let Some(status) = ended
            && found.as_ref() != if status.success() { Some(&value) } else { old.as_ref() }
        {
            self.board.violation(&format!("{operation} {value} ended with {status}: {key} was {old:?} and is {found:?}"));
        }
        if operation == "mode" {
            self.board.note_mode(found.as_deref().unwrap_or("exclusive"));
        }
        Ok(())
    }

    fn setting(&self, key: &str) -> Option<String> {
        let text = fs::read_to_string(self.config_dir.join("claude-run.toml")).unwrap_or_default();
        let value = text.lines().find_map(|line| Some(line.strip_prefix(key)?.trim_start().strip_prefix('=')?.to_owned()))?;
        Some(value.trim_matches([' ', '"']).to_owned())
    }

    /// A claude was killed in mid-refresh; whoever wants to refresh waits until its lock is stale.
    fn dead_refresher(&mut self) -> Result<()> {
        let lock = self.config_dir.join(REFRESH_LOCK);
        if fs::create_dir(&lock).is_ok() {
            self.count("dead refresher");
            let touched = SystemTime::now() - STALE_AFTER + Duration::from_millis(fastrand::u64(500..3000));
            File::open(&lock)?.set_modified(touched)?;
            let _ = fs::write(self.config_dir.join(REFRESH_OWNER), r#"{"pid":4194303}"#); // the disk may be full
            self.pending.push((Instant::now() + Duration::from_secs(5), Undo::RefreshLock));
        }
        Ok(())
    }

    fn fault_of_the_file_system(&mut self, fleet: &mut Fleet) -> Result<()> {
        let at = Instant::now() + Duration::from_millis(fastrand::u64(20..400));
        if fastrand::bool() {
            self.count("disk full");
            self.pending.push((at, Undo::Room));
            let mut ballast = File::create(self.config_dir.join("ballast"))?;
            while ballast.write_all(&[0; 65536]).is_ok() {}
            // The last bytes too, and the last inodes.
            while ballast.write_all(&[0; 512]).is_ok() {}
            let _ =
                (0..8192).try_for_each(|number| File::create(self.config_dir.join(format!("ballast-{number}"))).map(|_| ()));
        } else {
            self.count("config dir read-only");
            self.pending.push((at, Undo::Permissions));
            for name in DIRECTORIES {
                let _ = fs::set_permissions(self.config_dir.join(name), Permissions::from_mode(0o500)); // it may not be there
            }
        }
        fleet.file_fault = Some(at.max(Instant::now()));
        Ok(())
    }

    fn undo(&mut self, fleet: &mut Fleet, is_due: impl Fn(Instant) -> bool) -> Result<()> {
        let (due, pending): (Vec<_>, Vec<_>) = self.pending.drain(..).partition(|(at, _)| is_due(*at));
        self.pending = pending;
        for (_, undo) in due {
            match undo {
                Undo::Continue { pid, agent } => {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGCONT); // it may have been killed
                    if let Some(told) = fleet.get_mut(agent) {
                        told.stopped -= 1;
                    }
                }
                Undo::Room => {
                    for entry in fs::read_dir(&self.config_dir)?.flatten() {
                        if entry.file_name().to_string_lossy().starts_with("ballast") {
                            fs::remove_file(entry.path())?;
                        }
                    }
                    fleet.file_fault = Some(Instant::now());
                }
                Undo::Permissions => {
                    for name in DIRECTORIES {
                        let _ = fs::set_permissions(self.config_dir.join(name), Permissions::from_mode(0o700)); // see above
                    }
                    fleet.file_fault = Some(Instant::now());
                }
                Undo::RefreshLock => {
                    let _ = fs::remove_file(self.config_dir.join(REFRESH_OWNER)); // there was no room for it
                    let _ = fs::remove_dir(self.config_dir.join(REFRESH_LOCK)); // nobody else removes it
                }
                Undo::Credentials => {
                    self.board.note_time("login");
                    let _ = self.board.save_credentials(&self.config_dir, now_ms() + 400_000); // the next does it
                    self.board.note_time("login");
                }
            }
        }
        Ok(())
    }
}

fn descendants(pid: i32) -> Vec<i32> {
    let mut all = children(pid);
    let mut at = 0;
    while let Some(&next) = all.get(at) {
        all.extend(children(next));
        at += 1;
    }
    all
}

fn children(pid: i32) -> Vec<i32> {
    // Of every thread: claude-run's relay does not start any, but that is not for us to know.
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<_>>()).collect()
}
