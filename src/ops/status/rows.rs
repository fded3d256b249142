//! A status for people: trouble first, then who holds the lock and who waits, then the rest.

use std::iter;
use std::time::{Duration, SystemTime};

use super::super::layout::{Look, Row};
use super::super::text;
use super::{Status, is_claude_run, stopped_process};
use crate::claude::credentials::Login;
use crate::claude::refresh_locks::{RefreshLock, Standing};
use crate::config::duration::show_seconds;
use crate::lock::{Holder, describe_refresh_lock};
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
            self.trouble().into_iter().map(|trouble| Row::new("trouble", trouble).looks(Look::Bad)).collect();
        rows.push(Row::new("config dir", self.factory.config_dir.display().to_string()));
        rows.push(Row::new("lock mode", self.factory.mode_text()));
        rows.push(Row::new("lock file", self.factory.lock_file.display().to_string()));
        let storage = &self.factory.storage;
        rows.extend(storage.moved_by.map(|variable| Row::new("login in", format!("{} ({variable})", storage.dir.display()))));
        rows.extend(self.holder_rows());
        self.add_runs(&mut rows, most);
        let (bound, in_use) = (&self.factory.slots, self.slots.summary());
        if bound.value != "none" || !self.slots.held.is_empty() {
            let places =
                self.slots.waiting.iter().zip(1..).map(|(run, place)| Row::new("", format!("{place}. {}", text::run(run))));
            let head = Row::new("", format!("{}, {in_use}", text::setting(bound)));
            let waiting = shortened(places, self.slots.waiting.len(), most);
            add_list(&mut rows, "slots", iter::once(head).chain(waiting));
        }
        let look = |lock: &RefreshLock| match lock.standing(SystemTime::now()) {
            Standing::Free | Standing::Live => Look::Plain,
            Standing::OwnerDead(_) | Standing::Stale(_) | Standing::Stuck(_) => Look::Odd,
        };
        let held = self.refresh_locks.iter().filter(|lock| lock.touched.is_some());
        let held = held.map(|lock| Row::new("", describe_refresh_lock(lock)).looks(look(lock)));
        let free = self.refresh_locks.iter().all(|lock| lock.touched.is_none()).then(|| Row::new("", "free"));
        add_list(&mut rows, "refresh locks", held.chain(free));
        rows.push(Row::new("auth", self.auth.description.clone()));
        let look = if matches!(self.login, Login::Unclear(_)) { Look::Odd } else { Look::Plain };
        rows.push(Row::new("token", self.token().2).looks(look));
        // They give way first.
        let last = if most == usize::MAX { most } else { most / 6 + 1 };
        add_list(&mut rows, "last runs", self.last.iter().take(last).map(finished));
        rows
    }

    fn holder_rows(&self) -> Vec<Row> {
        let held_by = |holder: String, look| Row::new("held by", holder).looks(look);
        if self.holders.is_empty() && self.orphaned.is_empty() {
            return vec![held_by("nobody".to_owned(), Look::Good)];
        }
        let orphaned = self.orphaned.iter().map(|run| held_by(text::orphan(run), Look::Bad));
        let holders = self.holders.iter().map(|holder| {
            let look = if stopped_process(holder).is_some() { Look::Bad } else { Look::Plain };
            let stopped = if look == Look::Bad { ", stopped" } else { "" };
            match holder {
                Holder::Run(record) => held_by(format!("{holder}{}{stopped}", helper_key(record)), look),
                Holder::Process { pid, .. } => {
                    let age = proc::age(*pid).map_or_else(String::new, |age| format!(", started {} ago", show_seconds(age)));
                    let hint = if is_claude_run(*pid) {
                        "; a run whose record cannot be kept: is the disk full?".to_owned()
                    } else {
                        format!("; if it is a leftover, `kill {pid}` ends it")
                    };
                    held_by(format!("{holder}{age}{stopped}{hint}"), look)
                }
            }
        });
        orphaned.chain(holders).collect()
    }

    fn add_runs(&self, rows: &mut Vec<Row>, most: usize) {
        let waiting = match self.waiting.len() {
            0 => "nobody".to_owned(),
            count => count.to_string(),
        };
        let digits = self.waiting.len().to_string().len();
        let places = self.waiting.iter().zip(1..).map(|(waiter, place)| {
            let who = match waiter {
                Ok(run) => text::run(run),
                Err(pid) => text::process(*pid) + ", without a run record",
            };
            Row { hang: digits + 2, ..Row::new("", format!("{place:>digits$}. {who}")) }
        });
        let waiting = Row::new("", waiting);
        add_list(rows, "waiting", iter::once(waiting).chain(shortened(places, self.waiting.len(), most)));
        let note = ", on hosts whose locks cannot be seen from here, by their records";
        let wants_slot = |run: &RunRecord| self.slots.waiting.iter().any(|other| other.run == run.run);
        let running: Vec<_> = self.running.iter().filter(|run| !wants_slot(run)).map(|run| self.other_run(run)).collect();
        let count = running.len();
        add_counted(rows, "not holding", shortened(running.into_iter(), count, most), count, "");
        let elsewhere = self.elsewhere.iter().map(|run| Row::new("", elsewhere(run)));
        add_counted(rows, "elsewhere", shortened(elsewhere, self.elsewhere.len(), most), self.elsewhere.len(), note);
    }

    /// A run that does not want the lock of this status.
    fn other_run(&self, run: &RunRecord) -> Row {
        let lock = run.lock.as_ref().map(|lock| &*lock.path);
        let other = lock.filter(|path| self.factory.lock_file.to_str() != Some(path));
        let waits = if run.state == State::Waiting { "waiting for" } else { "with" };
        let other = other.map_or_else(String::new, |path| format!(", {waits} the lock file {path}"));
        Row::new("", text::run(run) + &other)
    }
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
