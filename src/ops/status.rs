//! `claude-run status`: holder of the session lock, waiters, other runs, refresh locks, login and last runs. It only looks, and
//! works in a config dir that is empty or read-only.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::text::{self, RecordJson, SettingJson};
use super::{Context, Factory, cannot_read, write, write_json};
use crate::claude::auth::Auth;
use crate::claude::credentials::Login;
use crate::claude::refresh_locks::{Owner, RefreshLock, Standing};
use crate::config::duration::show_seconds;
use crate::config::settings::Environment;
use crate::lock::{Holder, Queue};
use crate::outcome::Outcome;
use crate::records::{Census, FinishedRun, RunRecord, State, sanitize, time};
use crate::sys::file_id::FileId;

/// Number of finished runs that are shown.
const LAST: usize = 5;

struct Status<'a> {
    factory: &'a Factory,
    now: SystemTime,
    /// More than one only if the lock file was replaced under the first.
    holders: Vec<Holder>,
    waiting: Vec<RunRecord>,
    waiting_without_record: Vec<i32>,
    running: Vec<RunRecord>,
    orphaned: Vec<RunRecord>,
    /// Runs of other hosts, whose locks cannot be seen here.
    elsewhere: Vec<RunRecord>,
    refresh_locks: [RefreshLock; 2],
    login: Login,
    /// Authentication of a claude that is started here.
    auth: Auth,
    last: Vec<FinishedRun>,
}

/// JSON form of the status.
#[derive(Serialize)]
struct StatusJson<'a> {
    config_dir: Cow<'a, str>,
    lock_file: Cow<'a, str>,
    mode: SettingJson<'a>,
    holders: Vec<HolderJson<'a>>,
    /// In the order of the queue.
    waiting: Vec<RecordJson<'a>>,
    /// Pids.
    waiting_without_record: &'a [i32],
    running: Vec<RecordJson<'a>>,
    orphaned: Vec<RecordJson<'a>>,
    elsewhere: Vec<RecordJson<'a>>,
    refresh_locks: Vec<RefreshLockJson<'a>>,
    auth: &'static str,
    token: TokenJson,
    last: Vec<LastRunJson<'a>>,
    trouble: Vec<String>,
}

#[derive(Serialize)]
struct HolderJson<'a> {
    pid: i32,
    /// Label or program of a run, or what the kernel calls the process.
    name: &'a str,
    /// Null for a process without one.
    record: Option<RecordJson<'a>>,
}

#[derive(Serialize)]
struct RefreshLockJson<'a> {
    path: Cow<'a, str>,
    /// `free`, `live` or `stale`
    state: &'static str,
    age_ms: Option<u64>,
    owner: Option<OwnerJson>,
}

#[derive(Serialize)]
struct OwnerJson {
    pid: i32,
    /// Null for a process of another PID namespace.
    alive: Option<bool>,
}

/// The token of the login.
#[derive(Serialize)]
struct TokenJson {
    /// `valid`, `expired`, `none` or `unclear`
    state: &'static str,
    expires: Option<String>,
}

#[derive(Serialize)]
struct LastRunJson<'a> {
    run: &'a str,
    label: Option<&'a str>,
    outcome: &'a str,
    exit_code: u8,
    ended: String,
}

/// Shows the status; with `watch`, again each second.
pub(super) fn show(context: &Context, json: bool, watch: bool, out: &mut impl Write) -> Result<Outcome> {
    let factory = Factory::of(context)?;
    let in_place = watch && !json && io::stdout().is_terminal();
    loop {
        let status = Status::look(&factory, context.environment)?;
        match (json, in_place) {
            (true, _) => write_json(out, &status.to_json())?,
            (false, false) => write(out, &status.to_text())?,
            // Overwrites the screen: clears the rest of each line, and all below.
            (false, true) => write(out, &format!("\x1b[H{}\x1b[J", status.to_text().replace('\n', "\x1b[K\n")))?,
        }
        if !watch {
            return Ok(if status.trouble().is_empty() { Outcome::Shown } else { Outcome::Trouble });
        }
        // Ages change with the clock: there is no event to wait for.
        thread::sleep(Duration::from_secs(1));
    }
}

impl<'a> Status<'a> {
    fn look(factory: &'a Factory, environment: Environment) -> Result<Self> {
        let login = Login::read_whole(&factory.config_dir);
        let records = &factory.records;
        let lock = FileId::at(&factory.lock_file);
        // The kernel takes some 10 ms for its answer: time to read the records.
        let (queue, census) = thread::scope(|scope| {
            let queue = lock.map(|lock| scope.spawn(move || Queue::look(lock)));
            let census = records.census();
            (queue.and_then(|queue| queue.join().ok()), census)
        });
        let Census { live, orphaned, elsewhere, .. } = census.with_context(|| cannot_read(&records.runs()))?;
        let waiting_without_record = queue.as_ref().map_or(Vec::new(), |queue| queue.waiting_without_record(&live));
        let holds = |record: &RunRecord| lock.is_some_and(|lock| record.holds(lock));
        let (holding, others): (Vec<_>, Vec<_>) = live.into_iter().partition(holds);
        let mut holders: Vec<_> = holding.into_iter().map(|record| Holder::Run(Box::new(record))).collect();
        if let (true, Some(queue)) = (holders.is_empty() && orphaned.is_empty(), &queue) {
            holders.extend(Holder::find_without_record(queue, Some(records)));
        }
        let is_holder = |record: &RunRecord| {
            holders.iter().any(|holder| matches!(holder, Holder::Run(holding) if holding.run == record.run))
        };
        let others = others.into_iter().filter(|record| !is_holder(record));
        let (mut waiting, running): (Vec<_>, Vec<_>) = others.partition(|record| record.state == State::Waiting);
        waiting.sort_by_key(|record| record.since);
        Ok(Self {
            factory,
            now: SystemTime::now(),
            holders,
            waiting,
            waiting_without_record,
            running,
            orphaned,
            elsewhere,
            refresh_locks: RefreshLock::of(&factory.config_dir),
            auth: Auth::of(environment, &factory.config_dir, &[], &login),
            login,
            last: records.last_finished(LAST),
        })
    }

    /// Problems that an operator has to solve.
    fn trouble(&self) -> Vec<String> {
        let orphaned = self.orphaned.iter().map(|run| {
            let child = run.child.map_or_else(String::new, |pid| format!(" (pid {pid})"));
            format!(
                "claude-run gone, claude still running: {} was killed, and what it started{child} holds the lock",
                run.who()
            )
        });
        let stale = self.refresh_locks.iter().filter_map(|lock| match lock.standing(self.now) {
            Standing::Stale(age) => {
                Some(format!("the refresh lock {} is stale: not touched for {}", lock.path.display(), show_seconds(age)))
            }
            Standing::OwnerDead(left) => Some(format!(
                "the owner of the refresh lock {} is dead: a claude that has to refresh fails for another {}",
                lock.path.display(),
                show_seconds(left)
            )),
            Standing::Free | Standing::Live => None,
        });
        let login = match &self.login {
            Login::Unclear(why) => {
                Some(format!("{} cannot be understood: {why}", Login::path(&self.factory.config_dir).display()))
            }
            Login::Expires(_) | Login::None => None,
        };
        let holders = (self.holders.len() > 1).then(|| "several runs hold the session lock".to_owned());
        orphaned.chain(stale).chain(login).chain(holders).collect()
    }

    fn to_text(&self) -> String {
        let (mode, origin) = &self.factory.mode;
        let mut lines = vec![
            row("config dir", &self.factory.config_dir.display().to_string()),
            row("lock mode", &format!("{mode} ({})", text::origin(origin))),
            row("lock file", &self.factory.lock_file.display().to_string()),
        ];
        self.add_runs(&mut lines);
        let locks: Vec<_> = self.refresh_locks.iter().filter_map(|lock| refresh_lock(lock, self.now)).collect();
        lines.push(row("refresh locks", locks.first().map_or("free", String::as_str)));
        lines.extend(locks.iter().skip(1).map(|lock| row("", lock)));
        lines.push(row("auth", &self.auth.description));
        lines.push(row("token", &self.token()));
        for (at, run) in self.last.iter().rev().enumerate() {
            lines.push(row(if at == 0 { "last runs" } else { "" }, &finished(run, self.now)));
        }
        lines.extend(self.trouble().iter().map(|trouble| row("trouble", trouble)));
        lines.concat()
    }

    fn add_runs(&self, lines: &mut Vec<String>) {
        if self.holders.is_empty() {
            lines.push(row("held by", if self.orphaned.is_empty() { "nobody" } else { "see below" }));
        }
        for holder in &self.holders {
            let key = if let Holder::Run(record) = holder { helper_key(record) } else { String::new() };
            lines.push(row("held by", &format!("{holder}{key}")));
        }
        let waiting = self.waiting.len() + self.waiting_without_record.len();
        lines.push(row("waiting", &if waiting == 0 { "nobody".to_owned() } else { waiting.to_string() }));
        let places = self.waiting.iter().enumerate();
        lines.extend(places.map(|(place, record)| row("", &format!("{}. {}", place + 1, text::run(record, self.now)))));
        lines.extend(self.waiting_without_record.iter().map(|pid| row("", &format!("pid {pid}, without a run record"))));
        if !self.running.is_empty() {
            lines.push(row("not holding", &text::count(self.running.len(), "run")));
            lines.extend(self.running.iter().map(|record| row("", &text::run(record, self.now))));
        }
        if !self.elsewhere.is_empty() {
            let count = text::count(self.elsewhere.len(), "run");
            lines.push(row("elsewhere", &format!("{count}, on hosts whose locks cannot be seen from here, by their records")));
            lines.extend(self.elsewhere.iter().map(|record| row("", &elsewhere(record, self.now))));
        }
    }

    fn token(&self) -> String {
        match &self.login {
            Login::Expires(at) => match at.duration_since(self.now) {
                Ok(left) if self.factory.settings.refresh_margin.as_span().is_some_and(|margin| left > margin) => {
                    format!("expires in {}", show_seconds(left))
                }
                Ok(left) => format!("expires in {}: a refresh is due", show_seconds(left)),
                Err(_) => format!("expired {} ago; the next claude refreshes it", text::ago(*at, self.now)),
            },
            Login::None => "no OAuth login here".to_owned(),
            Login::Unclear(why) => why.clone(),
        }
    }

    fn to_json(&self) -> StatusJson<'_> {
        let (mode, origin) = &self.factory.mode;
        let records = |records| text::records(records, self.now);
        StatusJson {
            config_dir: self.factory.config_dir.to_string_lossy(),
            lock_file: self.factory.lock_file.to_string_lossy(),
            mode: text::setting(mode, origin),
            holders: self.holders.iter().map(|holder| holder_json(holder, self.now)).collect(),
            waiting: records(&self.waiting),
            waiting_without_record: &self.waiting_without_record,
            running: records(&self.running),
            orphaned: records(&self.orphaned),
            elsewhere: records(&self.elsewhere),
            refresh_locks: self.refresh_locks.iter().map(|lock| refresh_lock_json(lock, self.now)).collect(),
            auth: self.auth.name,
            token: token_json(&self.login, self.now),
            last: self.last.iter().rev().map(last_run_json).collect(),
            trouble: self.trouble(),
        }
    }
}

fn holder_json(holder: &Holder, now: SystemTime) -> HolderJson<'_> {
    match holder {
        Holder::Run(run) => {
            let name = run.label.as_ref().unwrap_or(&run.program);
            HolderJson { pid: run.pid, name, record: Some(RecordJson::of(run, now)) }
        }
        Holder::Process { pid, name } => HolderJson { pid: *pid, name, record: None },
    }
}

fn refresh_lock_json(lock: &RefreshLock, now: SystemTime) -> RefreshLockJson<'_> {
    let state = match lock.standing(now) {
        Standing::Free => "free",
        Standing::Live | Standing::OwnerDead(_) => "live",
        Standing::Stale(_) => "stale",
    };
    let age_ms = lock.touched.map(|touched| text::milliseconds(text::since(touched, now)));
    let owner = lock.owner.as_ref().map(|owner| OwnerJson { pid: owner.pid, alive: owner.lives });
    RefreshLockJson { path: lock.path.to_string_lossy(), state, age_ms, owner }
}

fn token_json(login: &Login, now: SystemTime) -> TokenJson {
    let (state, expires) = match login {
        Login::Expires(at) => (if *at > now { "valid" } else { "expired" }, Some(time(*at))),
        Login::None => ("none", None),
        Login::Unclear(_) => ("unclear", None),
    };
    TokenJson { state, expires }
}

fn last_run_json(run: &FinishedRun) -> LastRunJson<'_> {
    let FinishedRun { run: id, label, outcome, exit_code, .. } = run;
    LastRunJson { run: id, label: label.as_deref(), outcome, exit_code: *exit_code, ended: time(run.ended()) }
}

fn row(name: &str, value: &str) -> String {
    format!("{name:<15}{value}\n")
}

fn elsewhere(record: &RunRecord, now: SystemTime) -> String {
    let waits = if record.state == State::Waiting && record.key.is_none() { ", waiting" } else { "" };
    format!("{}{waits}{}", text::run(record, now), helper_key(record))
}

/// Key of the lock that its lock helper holds.
fn helper_key(record: &RunRecord) -> String {
    record.key.as_ref().map_or_else(String::new, |key| format!(", with the lock helper's lock {}", sanitize(key)))
}

/// Describes a refresh lock. None for one that is free.
fn refresh_lock(lock: &RefreshLock, now: SystemTime) -> Option<String> {
    let standing = match lock.standing(now) {
        Standing::Free => return None,
        Standing::Live => "live: a refresh is under way".to_owned(),
        Standing::OwnerDead(left) => format!("live for another {}", show_seconds(left)),
        Standing::Stale(age) => format!("stale: not touched for {}", show_seconds(age)),
    };
    let owner = match &lock.owner {
        None => String::new(),
        Some(Owner { pid, lives: Some(false), .. }) => format!(", of pid {pid}, which is dead"),
        Some(Owner { pid, .. }) => format!(", of pid {pid}"),
    };
    Some(format!("{}: {standing}{owner}", lock.path.display()))
}

fn finished(run: &FinishedRun, now: SystemTime) -> String {
    let name = run.label.as_deref().unwrap_or(&run.run);
    let waited = run.wait_ms.map(Duration::from_millis).filter(|waited| waited.as_secs() > 0);
    let waited = waited.map_or_else(String::new, |waited| format!(", {} of it waiting", show_seconds(waited)));
    let (outcome, code) = (&run.outcome, run.exit_code);
    let (ended, total) = (text::ago(run.ended(), now), show_seconds(Duration::from_millis(run.total_ms)));
    format!("{ended} ago: {} {outcome} with {code} after {total}{waited}", name.escape_debug())
}
