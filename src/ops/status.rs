//! `claude-run status`: holder of the session lock, waiters, other runs, refresh locks, login and last runs. It only looks, and
//! works in a config dir that is empty or read-only.

use std::collections::HashMap;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::iter;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde_json::{Value, json};

use super::{Context, Factory, answer, text, write_own};
use crate::claude::auth::Auth;
use crate::claude::credentials::Login;
use crate::claude::refresh_locks::{CutRefresh, RefreshLock, Standing};
use crate::config::duration::show_seconds;
use crate::lock::{Holder, Queue, describe_refresh_lock};
use crate::logging::{escaped, escaped_lines};
use crate::outcome::Outcome;
use crate::records::{Census, FinishedRun, Hold, RunRecord, State, time};
use crate::sys::file_id::FileId;
use crate::sys::proc::{self, Stat};

pub(super) struct Status<'a> {
    factory: &'a Factory,
    /// With it, no run starts, and the lock mode is not known.
    file_error: Option<&'a str>,
    /// More than one only if the lock file was replaced under the first.
    pub(super) holders: Vec<Holder>,
    /// In the order of the queue; in it, a process without a record has its pid alone.
    waiting: Vec<Result<RunRecord, i32>>,
    running: Vec<RunRecord>,
    pub(super) orphaned: Vec<RunRecord>,
    /// Reason why records of runs cannot be read.
    unseen: Option<String>,
    /// Runs of other hosts, whose locks cannot be seen here.
    elsewhere: Vec<RunRecord>,
    refresh_locks: [RefreshLock; 2],
    login: Login,
    auth: Auth,
    /// The latest first.
    last: Vec<FinishedRun>,
}

pub(super) fn show(context: &Context, json: bool, watch: bool, out: &mut impl Write) -> Result<Outcome> {
    let factory = Factory::of(context)?;
    let in_place = watch && !json && io::stdout().is_terminal();
    loop {
        let status = Status::look_settled(&factory, context)?;
        if in_place {
            // Overwrites the screen: clears the rest of each line, and all below.
            let text = escaped_lines(&status.to_text()).replace('\n', "\x1b[K\n");
            write_own(out, &format!("\x1b[H{text}\x1b[J"))?;
        } else {
            let outcome = answer(out, json, status.trouble().is_empty(), &status.to_text(), &status.to_json())?;
            if !watch {
                return Ok(outcome);
            }
        }
        // Ages change with the clock: there is no event to wait for.
        thread::sleep(Duration::from_secs(1));
    }
}

impl<'a> Status<'a> {
    /// Leaves out a claude-run that is just starting, whose record comes a moment after its flock. One that stays without a record
    /// cannot keep any.
    pub(super) fn look_settled(factory: &'a Factory, context: &'a Context) -> Result<Self> {
        let mut status = Self::look(factory, context)?;
        let mut strangers = status.strangers();
        for _ in 0..10 {
            if strangers.is_empty() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
            status = Self::look(factory, context)?;
            let now = status.strangers();
            strangers.retain(|pid| now.contains(pid));
        }
        let is_starting = |pid: i32| !strangers.contains(&pid) && is_claude_run(pid);
        status.holders.retain(|holder| !matches!(holder, Holder::Process { pid, .. } if is_starting(*pid)));
        status.waiting.retain(|waiter| !matches!(waiter, Err(pid) if is_starting(*pid)));
        Ok(status)
    }

    /// Processes of claude-run that hold the lock, or wait for it, and have no record.
    fn strangers(&self) -> Vec<i32> {
        let holders = self.holders.iter().filter_map(|holder| match holder {
            Holder::Run(_) => None,
            Holder::Process { pid, .. } => Some(*pid),
        });
        let waiting = self.waiting.iter().filter_map(|waiter| waiter.as_ref().err().copied());
        holders.chain(waiting).filter(|&pid| is_claude_run(pid)).collect()
    }

    fn look(factory: &'a Factory, context: &'a Context) -> Result<Self> {
        let login = Login::read_whole(&factory.storage.credentials());
        let lock = FileId::at(&factory.lock_file);
        // The kernel takes some 10 ms for its answer: time to read the records.
        let (queue, census) = thread::scope(|scope| {
            let queue = lock.map(|lock| scope.spawn(move || Queue::look(lock)));
            let census = factory.visible_census();
            (queue.and_then(|queue| queue.join().ok()), census)
        });
        let (Census { live, mut orphaned, elsewhere, .. }, unseen) = census?;
        let places = queue.as_ref().map_or(Vec::new(), |queue| queue.waiters(&live));
        let places: Vec<_> = places.into_iter().map(|place| place.map(str::to_owned)).collect();
        let holds = |record: &RunRecord| lock.is_some_and(|lock| record.holds(lock));
        orphaned.retain(holds); // not those of another lock file
        let (holding, mut others): (Vec<_>, Vec<_>) = live.into_iter().partition(holds);
        let mut holders: Vec<_> = holding.into_iter().map(|record| Holder::Run(Box::new(record))).collect();
        if let (true, Some(queue)) = (holders.is_empty() && orphaned.is_empty(), &queue) {
            holders.extend(Holder::find_without_record(queue, Some(&factory.records)));
        }
        if let [Holder::Run(holder)] = holders.as_slice() {
            others.retain(|record| record.run != holder.run);
        }
        let (waiting, running): (Vec<_>, Vec<_>) = others.into_iter().partition(|record| record.state == State::Waiting);
        let waiting = in_order(waiting, places);
        Ok(Self {
            factory,
            file_error: context.file_error.as_deref(),
            holders,
            waiting,
            running,
            orphaned,
            unseen,
            elsewhere,
            refresh_locks: RefreshLock::of(&factory.storage),
            auth: context.auth(&factory.config_dir, &login),
            login,
            last: factory.records.last_finished(5).into_iter().rev().collect(),
        })
    }

    fn trouble(&self) -> Vec<String> {
        let orphaned = self.orphaned.iter().map(|run| format!("claude-run gone, claude still running: {}", text::orphan(run)));
        let refresh_locks = self.refresh_locks.iter().filter_map(|lock| match lock.standing(SystemTime::now()) {
            Standing::Free | Standing::Live => None,
            Standing::Stale(_) | Standing::Stuck(_) => Some(format!("the refresh lock {}", describe_refresh_lock(lock))),
            Standing::OwnerDead(left) => {
                let (path, left) = (lock.path.display(), show_seconds(left));
                Some(format!(
                    "the owner of the refresh lock {path} is dead: a claude that has to refresh fails for another {left}"
                ))
            }
        });
        let (state, _, why) = self.token();
        let file = self.factory.storage.credentials();
        let login = (state == "unclear").then(|| format!("{} {why}", file.display()));
        let holders = (self.holders.len() > 1).then(|| "several runs hold the session lock".to_owned());
        let stopped = self.holders.iter().filter_map(|holder| {
            let pid = stopped_process(holder)?;
            Some(format!("the session lock is held by a stopped process; kill -CONT {pid} lets it go on"))
        });
        let cut = CutRefresh::last(&self.factory.storage).map(|cut| {
            format!("claude (pid {}) has ended in the midst of a refresh: the login is probably lost; log in again if the next run fails", cut.pid)
        });
        let lock = FileId::at(&self.factory.lock_file);
        // By its name, the file that they hold is another one's by now, or nobody's.
        let replaced = self.running.iter().filter(|run| {
            let has_our_path = run.lock.as_ref().is_some_and(|seen| Path::new(&seen.path) == self.factory.lock_file);
            run.hold == Some(Hold::Own) && has_our_path && !lock.is_some_and(|lock| run.is_about(lock))
        });
        let replaced = replaced.map(|run| {
            format!(
                "the session lock was removed or replaced under {}: it keeps apart from nobody who came later; let it end",
                run.who()
            )
        });
        let settings = self.file_error.map(|error| format!("no run starts: {error}"));
        orphaned
            .chain(refresh_locks)
            .chain(login)
            .chain(cut)
            .chain(replaced)
            .chain(self.unseen.clone())
            .chain(holders)
            .chain(stopped)
            .chain(settings)
            .collect()
    }

    fn to_text(&self) -> String {
        let mut rows = vec![
            ("config dir", self.factory.config_dir.display().to_string()),
            ("lock mode", self.file_error.map_or_else(|| text::setting(&self.factory.mode), |_| "not known".to_owned())),
            ("lock file", self.factory.lock_file.display().to_string()),
        ];
        let storage = &self.factory.storage;
        rows.extend(storage.moved_by.map(|variable| ("login in", format!("{} ({variable})", storage.dir.display()))));
        self.add_runs(&mut rows);
        let held = self.refresh_locks.iter().filter(|lock| lock.touched.is_some()).map(describe_refresh_lock);
        let free = self.refresh_locks.iter().all(|lock| lock.touched.is_none()).then(|| "free".to_owned());
        add_list(&mut rows, "refresh locks", held.chain(free));
        rows.push(("auth", self.auth.description.clone()));
        rows.push(("token", self.token().2));
        add_list(&mut rows, "last runs", self.last.iter().map(finished));
        rows.extend(self.trouble().into_iter().map(|trouble| ("trouble", trouble)));
        rows.iter().map(|(name, value)| format!("{name:<15}{value}\n")).collect()
    }

    fn add_runs(&self, rows: &mut Vec<(&'static str, String)>) {
        if self.holders.is_empty() {
            let nobody = self.orphaned.is_empty().then(|| "nobody".to_owned());
            rows.extend(nobody.into_iter().chain(self.orphaned.iter().map(text::orphan)).map(|holder| ("held by", holder)));
        }
        for holder in &self.holders {
            let key = if let Holder::Run(record) = holder { helper_key(record) } else { String::new() };
            rows.push(("held by", format!("{holder}{key}")));
        }
        let waiting = match self.waiting.len() {
            0 => "nobody".to_owned(),
            count => count.to_string(),
        };
        let places = self.waiting.iter().zip(1..).map(|(waiter, place)| match waiter {
            Ok(run) => format!("{place}. {}", text::run(run)),
            Err(pid) => format!("{place}. pid {pid}, without a run record"),
        });
        add_list(rows, "waiting", iter::once(waiting).chain(places));
        let running: Vec<_> = self.running.iter().map(text::run).collect();
        let elsewhere: Vec<_> = self.elsewhere.iter().map(elsewhere).collect();
        let note = ", on hosts whose locks cannot be seen from here, by their records";
        for (name, runs, note) in [("not holding", running, ""), ("elsewhere", elsewhere, note)] {
            let count = (!runs.is_empty()).then(|| text::count(runs.len(), "run") + note);
            add_list(rows, name, count.into_iter().chain(runs));
        }
    }

    /// State of the token of the login, its expiry, and both for people.
    fn token(&self) -> (&'static str, Option<SystemTime>, String) {
        match &self.login {
            Login::None => ("none", None, "no OAuth login here".to_owned()),
            Login::Unclear(why) => ("unclear", None, why.clone()),
            Login::Expires(at) => {
                let left = at.duration_since(SystemTime::now());
                let margin = self.factory.settings.refresh_margin.as_span();
                let is_due = left.as_ref().is_ok_and(|left| margin.is_none_or(|margin| *left <= margin));
                let due = if is_due { ": a refresh is due" } else { "" };
                (if left.is_ok() { "valid" } else { "expired" }, Some(*at), text::expiry(*at) + due)
            }
        }
    }

    fn to_json(&self) -> Value {
        let runs = |records: &[RunRecord]| records.iter().map(text::run_json).collect::<Value>();
        let (state, expires, _) = self.token();
        json!({
            "config_dir": self.factory.config_dir.to_string_lossy(),
            "storage": self.factory.storage.dir.to_string_lossy(),
            "lock_file": self.factory.lock_file.to_string_lossy(),
            "mode": self.file_error.map_or_else(|| text::setting_json(&self.factory.mode), |_| Value::Null),
            "holders": self.holders.iter().map(holder_json).collect::<Value>(),
            "waiting": self.waiting.iter().flatten().map(text::run_json).collect::<Value>(),
            "waiting_without_record": self.waiting.iter().filter_map(|waiter| waiter.as_ref().err()).collect::<Vec<_>>(),
            "running": runs(&self.running),
            "orphaned": runs(&self.orphaned),
            "elsewhere": runs(&self.elsewhere),
            "refresh_locks": self.refresh_locks.each_ref().map(refresh_lock_json),
            "auth": self.auth.name,
            "token": {"state": state, "expires": expires.map(time)},
            "last": self.last.iter().map(last_run_json).collect::<Value>(),
            "trouble": self.trouble(),
        })
    }
}

fn holder_json(holder: &Holder) -> Value {
    match holder {
        Holder::Run(run) => {
            let name = run.label.as_ref().unwrap_or(&run.program);
            json!({"pid": run.pid, "name": name, "record": text::run_json(run)})
        }
        Holder::Process { pid, name } => json!({"pid": pid, "name": name, "record": null}),
    }
}

fn refresh_lock_json(lock: &RefreshLock) -> Value {
    let state = match lock.standing(SystemTime::now()) {
        Standing::Free => "free",
        Standing::Live | Standing::OwnerDead(_) => "live",
        Standing::Stale(_) => "stale",
        Standing::Stuck(_) => "stuck",
    };
    let owner = lock.owner.as_ref().map(|owner| json!({"pid": owner.pid, "alive": owner.lives}));
    json!({"path": lock.path.to_string_lossy(), "state": state, "age_ms": lock.touched.map(text::age_json), "owner": owner})
}

fn last_run_json(run: &FinishedRun) -> Value {
    let FinishedRun { run: id, label, outcome, exit_code, .. } = run;
    json!({"run": id, "label": label, "outcome": outcome, "exit_code": exit_code, "ended": time(run.ended())})
}

/// Merges the runs that wait into the `places` of the queue: run ids and pids. Those that wait for something else come last.
fn in_order(mut waiting: Vec<RunRecord>, places: Vec<Result<String, i32>>) -> Vec<Result<RunRecord, i32>> {
    waiting.sort_by_key(|record| record.since);
    let mut queue = Vec::new();
    let mut runs: HashMap<_, _> = waiting.iter().map(|record| (record.run.clone(), record.clone())).collect();
    for place in places {
        match place {
            Ok(run) => queue.extend(runs.remove(&run).map(Ok)),
            Err(pid) => queue.push(Err(pid)),
        }
    }
    queue.extend(waiting.into_iter().filter(|record| runs.contains_key(&record.run)).map(Ok));
    queue
}

/// Pid of the holder's process that is stopped, if one is, as far as that can be seen here.
pub(super) fn stopped_process(holder: &Holder) -> Option<i32> {
    let pids = match holder {
        Holder::Process { pid, .. } => [Some(*pid), None],
        Holder::Run(run) if run.boot == proc::boot_id() && run.pid_namespace == proc::pid_namespace() => {
            [Some(run.pid), run.child]
        }
        Holder::Run(_) => return None,
    };
    pids.into_iter().flatten().find(|&pid| Stat::read(pid).is_some_and(|stat| stat.state == b'T'))
}

/// True for a process of claude-run, under whatever name, and for one that has ended by now.
fn is_claude_run(pid: i32) -> bool {
    match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(program) => program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("claude-run")),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Adds a row for each of `values`, the first with the name.
fn add_list(rows: &mut Vec<(&'static str, String)>, name: &'static str, values: impl IntoIterator<Item = String>) {
    rows.extend(iter::once(name).chain(iter::repeat("")).zip(values));
}

fn elsewhere(record: &RunRecord) -> String {
    let waits = if record.state == State::Waiting && record.key.is_none() { ", waiting" } else { "" };
    format!("{}{waits}{}", text::run(record), helper_key(record))
}

/// Key of the lock that its lock helper holds.
fn helper_key(record: &RunRecord) -> String {
    record.key.as_ref().map_or_else(String::new, |key| format!(", with the lock helper's lock {}", escaped(key)))
}

fn finished(run: &FinishedRun) -> String {
    let name = run.label.as_deref().unwrap_or(&run.run);
    let waited = run.wait_ms.map(Duration::from_millis).filter(|waited| waited.as_secs() > 0);
    let waited = waited.map_or_else(String::new, |waited| format!(", {} of it waiting", show_seconds(waited)));
    let (outcome, code) = (&run.outcome, run.exit_code);
    let (ended, total) = (show_seconds(text::age(run.ended())), show_seconds(Duration::from_millis(run.total_ms)));
    format!("{ended} ago: {} {outcome} with {code} after {total}{waited}", name.escape_debug())
}
