//! A status for people: trouble first, then who holds the lock and who waits, then the rest.

use std::iter;
use std::time::{Duration, SystemTime};

use super::super::checks::stopped_processes;
use super::super::fleet::is_claude_run;
use super::super::layout::{Look, Row};
use super::super::{NOT_KNOWN, text};
use super::{Status, is_setup};
use crate::claude::credentials::Login;
use crate::claude::refresh_locks::{RefreshLock, Standing};
use crate::config::duration::show_seconds;
use crate::lock::{Holder, NAMED, describe_refresh_lock};
use crate::records::{FinishedRun, RunRecord, State};
use crate::sys::proc;

impl Status<'_> {
    /// Lines of `width` columns. If there are more than `height`, long lists are shortened.
    pub(super) fn to_text(&self, width: usize, height: usize) -> String {
        let text = |most| self.rows(most).iter().map(|row| row.to_text(width)).collect::<String>();
        let (all, fits) = (text(usize::MAX), |text: &String| text.lines().count() <= height);
        if fits(&all) { all } else { (1..height).rev().map(text).find(fits).unwrap_or_else(|| text(1)) }
    }

    /// Rows with `most` so many of each list.
    fn rows(&self, most: usize) -> Vec<Row> {
        let mut rows: Vec<_> =
            self.trouble().iter().map(|trouble| Row::new("trouble", trouble.as_str()).looks(Look::Bad)).collect();
        rows.push(Row::new("config dir", self.factory.config_dir.display().to_string()));
        rows.push(Row::new("lock mode", self.factory.mode_text()));
        rows.push(Row::new("lock file", self.factory.lock_file.display().to_string()));
        let storage = &self.factory.storage;
        rows.extend(storage.moved_by.map(|variable| Row::new("login in", format!("{} ({variable})", storage.dir.display()))));
        rows.extend(self.holder_rows());
        self.add_runs(&mut rows, most);
        let (bound, in_use) = (&self.factory.slots, self.fleet.slots.summary());
        if bound.value != "none" || !self.fleet.slots.held.is_empty() {
            let places = self
                .fleet
                .slots
                .waiting
                .iter()
                .zip(1..)
                .map(|(run, place)| Row::new("", format!("{place}. {}", text::run(run))));
            let head = Row::new("", format!("{}, {in_use}", self.factory.setting_text(bound)));
            let waiting = shortened(places, self.fleet.slots.waiting.len(), most);
            add_list(&mut rows, "slots", iter::once(head).chain(waiting));
        }
        let now = SystemTime::now();
        let look = |lock: &RefreshLock| match lock.standing(now) {
            Standing::Free | Standing::Live | Standing::NotKnown => Look::Plain,
            Standing::OwnerDead(_) | Standing::Stale(_) | Standing::Stuck(_) => Look::Odd,
        };
        let held = self.refresh_locks.iter().filter(|lock| lock.standing(now) != Standing::Free);
        let held = held.map(|lock| Row::new("", describe_refresh_lock(lock)).looks(look(lock)));
        let free = (held.clone().count() == 0).then(|| Row::new("", "free"));
        add_list(&mut rows, "refresh locks", held.chain(free));
        rows.push(Row::new("auth", self.auth.description.clone()));
        let look = if matches!(self.login, Login::Unclear(_)) { Look::Odd } else { Look::Plain };
        // The reason is among the trouble.
        let token = if look == Look::Odd { "none that can be used".to_owned() } else { self.token().2 };
        rows.push(Row::new("token", token).looks(look));
        // No trouble for sure: the agents may have a key that this shell has not.
        let objections = self.login_objections.iter().map(|objection| Row::new("", objection.clone()).looks(Look::Odd));
        add_list(&mut rows, "doctor finds", objections);
        // They give way first.
        let last = if most == usize::MAX { most } else { most / 6 + 1 };
        add_list(&mut rows, "last runs", self.last.iter().take(last).map(finished));
        rows
    }

    fn holder_rows(&self) -> Vec<Row> {
        if self.fleet.holders.is_empty() {
            // The reason is among the trouble.
            let nobody = self.fleet.nobody("holders");
            let look = if nobody == NOT_KNOWN { Look::Plain } else { Look::Good };
            return vec![Row::new("held by", nobody).looks(look)];
        }
        self.fleet.holders.iter().flat_map(|holder| holder_rows(holder, !self.fleet.waiting.is_empty())).collect()
    }

    fn add_runs(&self, rows: &mut Vec<Row>, most: usize) {
        let waiting = match self.fleet.waiting.len() {
            0 => self.fleet.nobody("waiting").to_owned(),
            count => count.to_string(),
        };
        let for_slots = self.fleet.slots.awaited(self.factory.settings.slots);
        let waiting = waiting + &for_slots.map_or_else(String::new, |awaited| format!("; {awaited}"));
        let digits = self.fleet.waiting.len().to_string().len();
        let places = self.fleet.waiting.iter().zip(1..).map(|(waiter, place)| {
            let who = match waiter {
                Ok(run) => text::run(run),
                Err(pid) => text::process(*pid) + ", without a run record",
            };
            Row { hang: digits + 2, ..Row::new("", format!("{place:>digits$}. {who}")) }
        });
        let waiting = Row::new("", waiting);
        add_list(rows, "waiting", iter::once(waiting).chain(shortened(places, self.fleet.waiting.len(), most)));
        let note = ", on hosts whose locks cannot be seen from here, by their records";
        let wants_slot = |run: &RunRecord| self.fleet.slots.waiting.iter().any(|other| other.run == run.run);
        let running: Vec<_> = self.fleet.running.iter().filter(|run| !wants_slot(run)).map(|run| self.other_run(run)).collect();
        let count = running.len();
        add_counted(rows, "not holding", shortened(running.into_iter(), count, most), count, "");
        let elsewhere = self.fleet.elsewhere.iter().map(|run| Row::new("", elsewhere(run)));
        add_counted(
            rows,
            "elsewhere",
            shortened(elsewhere, self.fleet.elsewhere.len(), most),
            self.fleet.elsewhere.len(),
            note,
        );
    }

    /// A run that does not want the lock of this status.
    fn other_run(&self, run: &RunRecord) -> Row {
        let waits = if run.state == State::Waiting { "waiting for" } else { "with" };
        let other = match run.lock.as_ref().map(|lock| &*lock.path) {
            Some(path) if self.factory.lock_file.to_str() != Some(path) => format!(", {waits} the lock file {path}"),
            // Who waits for the one that is there is in the queue.
            Some(_) if run.waits() && !self.fleet.is_lock_hidden => {
                ", waiting for a lock file that was removed or replaced".to_owned()
            }
            _ => String::new(),
        };
        Row::new("", text::run(run) + &other)
    }
}

/// A holder, for which somebody waits or not, and the command lines of its processes.
fn holder_rows(holder: &Holder, is_awaited: bool) -> Vec<Row> {
    let is_stopped = stopped_processes(holder).is_some();
    // The way to let it go on is among the trouble.
    let rest = match holder {
        _ if is_stopped => ", stopped".to_owned(),
        Holder::Run(record) if is_awaited && record.is_of_our_pid_namespace() => {
            format!("{}; if it hangs, kill {} (not -KILL) ends it with all that it has started", helper_key(record), record.pid)
        }
        Holder::Run(record) => helper_key(record),
        Holder::Orphan(..) => String::new(),
        Holder::Processes(processes) => {
            let first = processes.first().map(|process| process.pid);
            let age = first.and_then(proc::age).map_or_else(String::new, |age| format!(", started {} ago", show_seconds(age)));
            age + &match processes.as_slice() {
                // Its child has the lock with it.
                _ if processes.iter().any(|process| is_setup(process.pid)) => {
                    "; claude-run setup, which moves this config dir".to_owned()
                }
                _ if processes.iter().any(|process| is_claude_run(process.pid)) => {
                    "; a run whose record cannot be kept: is the disk full, or read-only?".to_owned()
                }
                [_] => format!("; if it is a leftover, {}", text::end_leftovers(holder)),
                _ => format!("; if they are leftovers, {}", text::end_leftovers(holder)),
            }
        }
    };
    let look = if is_stopped || matches!(holder, Holder::Orphan(..)) { Look::Bad } else { Look::Plain };
    let commands = holder.processes().iter().take(NAMED).filter_map(|process| {
        let command = text::command_line(process.pid).filter(|command| *command != process.name)?;
        Some(Row { hang: 2, ..Row::new("", format!("pid {}: {command}", process.pid)).looks(Look::Faint) })
    });
    iter::once(Row::new("held by", format!("{holder}{rest}")).looks(look)).chain(commands).collect()
}

/// The first `most` of `count` rows, and the number of the others.
fn shortened(rows: impl Iterator<Item = Row>, count: usize, most: usize) -> Vec<Row> {
    // A line that says that one is missing has the room for that one.
    let shown = if count <= most { count } else { most.saturating_sub(1) };
    let rest = (shown < count).then(|| Row::new("", format!("… and {} more", count - shown)).looks(Look::Faint));
    rows.take(shown).chain(rest).collect()
}

/// Adds a row for each of `list`, the first with the name.
fn add_list(rows: &mut Vec<Row>, name: &'static str, list: impl IntoIterator<Item = Row>) {
    let names = iter::once(name).chain(iter::repeat(""));
    rows.extend(names.zip(list).map(|(name, row)| Row { name, ..row }));
}

fn add_counted(rows: &mut Vec<Row>, name: &'static str, list: Vec<Row>, count: usize, note: &str) {
    if count > 0 {
        add_list(rows, name, iter::once(Row::new("", text::count(count, "run") + note)).chain(list));
    }
}

fn elsewhere(record: &RunRecord) -> String {
    let waits = if record.state == State::Waiting && record.key.is_none() { ", waiting" } else { "" };
    format!("{}{waits}{}", text::run(record), helper_key(record))
}

/// Key of the lock that its lock helper holds.
fn helper_key(record: &RunRecord) -> String {
    record.key.as_ref().map_or_else(String::new, |key| format!(", with the lock helper's lock {key}"))
}

fn finished(run: &FinishedRun) -> Row {
    let program = run.program.as_deref().and_then(|program| program.rsplit('/').next());
    let name = run.label.as_deref().or(program).unwrap_or(&run.run);
    let (ended, total) = (show_seconds(text::age(run.ended())), show_seconds(Duration::from_millis(run.total_ms)));
    let waited = run.wait_ms.map(Duration::from_millis).filter(|waited| waited.as_secs() > 0);
    let took =
        waited.map_or_else(|| format!("took {total}"), |waited| format!("took {total} ({} waiting)", show_seconds(waited)));
    let ending = text::ending(&run.outcome, run.exit_code);
    let look = if run.exit_code == Some(0) { Look::Plain } else { Look::Odd };
    Row { hang: 2, ..Row::new("", format!("{name}: {ending} {ended} ago, {took}")).looks(look) }
}
