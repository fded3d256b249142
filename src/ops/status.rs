//! `claude-run status`: who holds the session lock, who waits for it, what runs without it, and how things stand. It only
//! looks, and works in a config dir that is empty, or that it may only read.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

use super::{Context, Place, cannot_read, text, write};
use crate::claude::auth::Auth;
use crate::claude::credentials::Login;
use crate::claude::refresh_locks::{Owner, RefreshLock, Standing};
use crate::config::settings::{Environment, show_seconds};
use crate::lock::{Holder, Queue};
use crate::object::Object;
use crate::outcome::Outcome;
use crate::records::{Census, Finished, RunRecord, State, time};
use crate::sys::file_id::FileId;

/// How many of the runs that ended last are shown.
const LAST: usize = 5;

/// How things stand.
struct Status<'a> {
    place: &'a Place,
    now: SystemTime,
    /// Whoever has taken the lock: more than one only if the lock file was replaced under the first.
    holders: Vec<Holder>,
    waiting: Vec<RunRecord>,
    /// Pids of those that wait without a record.
    waiting_otherwise: Vec<i32>,
    running: Vec<RunRecord>,
    orphaned: Vec<RunRecord>,
    /// On other hosts, whose locks cannot be seen here.
    elsewhere: Vec<RunRecord>,
    refresh_locks: [RefreshLock; 2],
    login: Login,
    /// How a claude that is started here proves who it is.
    auth: Auth,
    last: Vec<Finished>,
}

/// Shows it; with `watch`, again each second.
pub(super) fn show(context: &Context, json: bool, watch: bool, out: &mut impl Write) -> Result<Outcome> {
    let place = Place::of(context)?;
    let in_place = watch && !json && io::stdout().is_terminal();
    loop {
        let status = Status::look(&place, context.environment)?;
        let shown = match (json, in_place) {
            (true, _) => format!("{}\n", status.to_json().into_text()),
            (false, false) => status.to_text(),
            // Over what was there: each line wiped behind its new text, and all below.
            (false, true) => format!("\x1b[H{}\x1b[J", status.to_text().replace('\n', "\x1b[K\n")),
        };
        write(out, &shown)?;
        if !watch {
            return Ok(if status.trouble().is_empty() { Outcome::Shown } else { Outcome::Trouble });
        }
        // What is watched are ages, and somebody's eyes: nothing that the kernel could wake for.
        thread::sleep(Duration::from_secs(1));
    }
}

impl<'a> Status<'a> {
    fn look(place: &'a Place, environment: Environment) -> Result<Self> {
        let login = Login::read_whole(&place.config_dir);
        let records = &place.records;
        let lock = FileId::at(&place.lock_file);
        // The kernel sleeps over its answer: time to read the records in.
        let (queue, census) = thread::scope(|scope| {
            let queue = lock.map(|lock| scope.spawn(move || Queue::look(lock)));
            let census = records.census();
            (queue.and_then(|queue| queue.join().ok()), census)
        });
        let Census { live, orphaned, elsewhere } = census.with_context(|| cannot_read(&records.runs()))?;
        let waiting_otherwise = queue.as_ref().map_or(Vec::new(), |queue| queue.waiting_without_record(&live));
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
            place,
            now: SystemTime::now(),
            holders,
            waiting,
            waiting_otherwise,
            running,
            orphaned,
            elsewhere,
            refresh_locks: RefreshLock::of(&place.config_dir),
            auth: Auth::of(environment, &place.config_dir, &[], &login),
            login,
            last: records.last_finished(LAST),
        })
    }

    /// What an operator should do something about.
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
                Some(format!("{} cannot be understood: {why}", Login::path(&self.place.config_dir).display()))
            }
            Login::Expires(_) | Login::None => None,
        };
        let holders = (self.holders.len() > 1).then(|| "several runs hold the session lock".to_owned());
        orphaned.chain(stale).chain(login).chain(holders).collect()
    }

    fn to_text(&self) -> String {
        let (mode, origin) = &self.place.mode;
        let mut lines = vec![
            row("config dir", &self.place.config_dir.display().to_string()),
            row("lock mode", &format!("{mode} ({})", text::origin(origin))),
            row("lock file", &self.place.lock_file.display().to_string()),
        ];
        if self.holders.is_empty() {
            lines.push(row("held by", if self.orphaned.is_empty() { "nobody" } else { "see below" }));
        }
        lines.extend(self.holders.iter().map(|holder| row("held by", &format!("{holder}{}", helped(holder)))));
        let waiting = self.waiting.len() + self.waiting_otherwise.len();
        lines.push(row("waiting", &if waiting == 0 { "nobody".to_owned() } else { waiting.to_string() }));
        let places = self.waiting.iter().enumerate();
        lines.extend(places.map(|(place, record)| row("", &format!("{}. {}", place + 1, text::run(record, self.now)))));
        lines.extend(self.waiting_otherwise.iter().map(|pid| row("", &format!("pid {pid}, without a run record"))));
        if !self.running.is_empty() {
            lines.push(row("not holding", &text::count(self.running.len(), "run")));
            lines.extend(self.running.iter().map(|record| row("", &text::run(record, self.now))));
        }
        if !self.elsewhere.is_empty() {
            let count = text::count(self.elsewhere.len(), "run");
            lines.push(row("elsewhere", &format!("{count}, on hosts whose locks cannot be seen from here, by their records")));
            lines.extend(self.elsewhere.iter().map(|record| row("", &elsewhere(record, self.now))));
        }
        let locks: Vec<_> = self.refresh_locks.iter().filter_map(|lock| refresh_lock(lock, self.now)).collect();
        lines.push(row("refresh locks", if locks.is_empty() { "free" } else { &locks[0] }));
        lines.extend(locks.iter().skip(1).map(|lock| row("", lock)));
        lines.push(row("auth", &self.auth.describe()));
        lines.push(row("token", &self.token()));
        for (at, run) in self.last.iter().rev().enumerate() {
            lines.push(row(if at == 0 { "last runs" } else { "" }, &finished(run, self.now)));
        }
        lines.extend(self.trouble().iter().map(|trouble| row("trouble", trouble)));
        lines.concat()
    }

    fn token(&self) -> String {
        match &self.login {
            Login::Expires(at) => match at.duration_since(self.now) {
                Ok(left) if self.place.settings.refresh_margin.as_span().is_some_and(|margin| left > margin) => {
                    format!("expires in {}", show_seconds(left))
                }
                Ok(left) => format!("expires in {}: a refresh is due", show_seconds(left)),
                Err(_) => format!("expired {} ago; the next claude refreshes it", text::ago(*at, self.now)),
            },
            Login::None => "no OAuth login here".to_owned(),
            Login::Unclear(why) => why.clone(),
        }
    }

    fn to_json(&self) -> Object {
        let (mode, origin) = &self.place.mode;
        let record = |record: &RunRecord| text::record(record, self.now);
        let holder = |holder: &Holder| {
            let mut object = Object::default();
            match holder {
                Holder::Run(run) => {
                    object.add("pid", run.pid).add("name", run.label.as_ref().unwrap_or(&run.program));
                    object.add_object("record", Some(record(run)));
                }
                Holder::Process { pid, name } => {
                    object.add("pid", pid).add("name", name).add_object("record", None);
                }
            }
            object
        };
        let (state, expires) = match &self.login {
            Login::Expires(at) if *at > self.now => ("valid", Some(*at)),
            Login::Expires(at) => ("expired", Some(*at)),
            Login::None => ("none", None),
            Login::Unclear(_) => ("unclear", None),
        };
        let mut token = Object::default();
        token.add("state", state).add("expires", expires.map(time));
        let last = self.last.iter().rev().map(|run| {
            let mut object = Object::default();
            object.add("run", &run.run).add("label", &run.label).add("outcome", &run.outcome);
            object.add("exit_code", run.exit_code).add("ended", time(run.began + run.total));
            object
        });
        let mut object = Object::default();
        object
            .add("config_dir", self.place.config_dir.to_string_lossy())
            .add("lock_file", self.place.lock_file.to_string_lossy())
            .add_object("mode", Some(text::setting(mode, origin)))
            .add_list("holders", self.holders.iter().map(holder))
            .add_list("waiting", self.waiting.iter().map(record))
            .add("waiting_without_record", &self.waiting_otherwise)
            .add_list("running", self.running.iter().map(record))
            .add_list("orphaned", self.orphaned.iter().map(record))
            .add_list("elsewhere", self.elsewhere.iter().map(record))
            .add_list("refresh_locks", self.refresh_locks.iter().map(|lock| refresh_lock_json(lock, self.now)))
            .add("auth", self.auth.name())
            .add_object("token", Some(token))
            .add_list("last", last)
            .add("trouble", self.trouble());
        object
    }
}

fn row(name: &str, value: &str) -> String {
    format!("{name:<15}{value}\n")
}

fn elsewhere(record: &RunRecord, now: SystemTime) -> String {
    let waits = if record.state == State::Waiting && record.key.is_none() { ", waiting" } else { "" };
    format!("{}{waits}{}", text::run(record, now), key(record))
}

fn helped(holder: &Holder) -> String {
    match holder {
        Holder::Run(record) => key(record),
        Holder::Process { .. } => String::new(),
    }
}

/// What its lock helper calls the lock that it has.
fn key(record: &RunRecord) -> String {
    record.key.as_ref().map_or_else(String::new, |key| format!(", with the lock helper's lock {}", text::plain(key)))
}

/// Nothing, for a lock that is free.
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

fn refresh_lock_json(lock: &RefreshLock, now: SystemTime) -> Object {
    let standing = match lock.standing(now) {
        Standing::Free => "free",
        Standing::Live | Standing::OwnerDead(_) => "live",
        Standing::Stale(_) => "stale",
    };
    let age = lock.touched.map(|touched| text::milliseconds(text::since(touched, now)));
    let owner = lock.owner.as_ref().map(|owner| {
        let mut object = Object::default();
        object.add("pid", owner.pid).add("alive", owner.lives);
        object
    });
    let mut object = Object::default();
    object.add("path", lock.path.to_string_lossy()).add("state", standing).add("age_ms", age).add_object("owner", owner);
    object
}

fn finished(run: &Finished, now: SystemTime) -> String {
    let name = run.label.as_deref().unwrap_or(&run.run);
    let waited = run.waited.filter(|waited| waited.as_secs() > 0);
    let waited = waited.map_or_else(String::new, |waited| format!(", {} of it waiting", show_seconds(waited)));
    let (outcome, code) = (&run.outcome, run.exit_code);
    let ended = text::ago(run.began + run.total, now);
    format!("{ended} ago: {} {outcome} with {code} after {}{waited}", name.escape_debug(), show_seconds(run.total))
}
