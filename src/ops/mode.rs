//! `claude-run mode`: the lock mode of the whole factory, who still follows another, and how to change it.

use std::collections::BTreeMap;
use std::io::Write;
use std::mem;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use super::fleet::Fleet;
use super::layout::{self, Look, Row};
use super::text::RunView;
use super::{Context, Factory, answer, doctor, text, time_left, write};
use crate::config::duration::{DurationSetting, after, show, show_seconds};
use crate::config::operations::Drain;
use crate::config::settings::LockMode;
use crate::lock::Holder;
use crate::logging::{self, LiveLine};
use crate::outcome::Outcome;
use crate::records::{RecordStore, RunRecord};

/// Shows the mode, or sets it; with `drain`, waits then until no live run follows another.
pub(super) fn run(
    mut context: Context,
    set: Option<LockMode>,
    drain: Option<Drain>,
    json: bool,
    out: &mut impl Write,
) -> Result<Outcome> {
    let (set, bound) = modes_and_bound(set, drain)?;
    if let Some(mode) = set {
        context.set("lock", mode.name())?;
    }
    let factory = Factory::of(&context)?;
    let head = head(&factory, &context, set);
    // It is set by now, however long the rest takes.
    if !json {
        write(out, &lines(head.iter()))?;
    }
    let mode = set.or_else(|| factory.mistake.is_none().then_some(factory.settings.lock_mode));
    let others = match bound {
        Some(bound) => drain_others(&factory, mode, bound),
        None => Others::find(&factory, mode),
    };
    let to_json = || {
        let mut value = factory.setting_json(&factory.mode);
        value["error"] = json!(factory.mistake);
        value["set"] = json!(set.map(LockMode::name));
        value["slots"] = factory.setting_json(&factory.slots);
        value["others"] = json!(RunView::of_each(&others.runs));
        value["unreadable"] = json!(others.unreadable);
        value["without_record"] = others.without_record.iter().map(|(pid, _)| *pid).collect();
        value
    };
    let is_well = factory.mistake.is_none() && others.unreadable.is_none() && (bound.is_none() || others.is_empty());
    answer(out, json, is_well, || lines(others.rows(mode, bound).iter()), to_json)
}

/// The mode to set and the bound of `--drain`, behind which a MODE may stand.
fn modes_and_bound(set: Option<LockMode>, drain: Option<Drain>) -> Result<(Option<LockMode>, Option<DurationSetting>)> {
    Ok(match (set, drain) {
        (Some(_), Some(Drain::ByDefault(Some(_)))) => bail!("two modes; name one (see `claude-run mode --help`)"),
        (set, Some(Drain::ByDefault(mode))) => (mode.or(set), Some(Drain::DEFAULT)),
        (set, Some(Drain::AtMost(bound))) => (set, Some(bound)),
        (set, None) => (set, None),
    })
}

fn lines<'a>(rows: impl Iterator<Item = &'a Row>) -> String {
    let line = |row: &Row| {
        let style = row.look.style();
        let wrapped = layout::wrapped(&logging::escaped(&row.value), layout::width(), row.hang);
        wrapped.iter().map(|line| format!("{style}{line}{style:#}\n")).collect::<String>()
    };
    rows.map(line).collect()
}

fn line(value: impl Into<String>, look: Look) -> Row {
    Row { hang: 2, ..Row::new("", value).looks(look) }
}

/// The mode that is set, and objections to it.
fn head(factory: &Factory, context: &Context, set: Option<LockMode>) -> Vec<Row> {
    let path = factory.settings_file();
    let mut rows = vec![match set {
        Some(mode) => line(format!("the lock mode is {} now, set in {}", mode.name(), path.display()), Look::Plain),
        None => line(factory.mode_text(), Look::Plain),
    }];
    rows.extend(factory.mistake.iter().map(|error| line(format!("no run starts: {error}"), Look::Bad)));
    if factory.slots.value != "none" {
        rows.push(line(format!("slots: {}", factory.setting_text(&factory.slots)), Look::Plain));
    }
    let overruled = set.and_then(|set| text::overruled(set.name(), &factory.mode));
    rows.extend(overruled.map(|text| line(text, Look::Odd)));
    if let Some(mode) = set.filter(|mode| *mode != LockMode::Exclusive) {
        rows.extend(doctor::objections(context, mode).into_iter().map(|objection| line(objection, Look::Odd)));
    }
    rows
}

/// Those who follow another mode.
#[derive(Default)]
struct Others {
    /// Orphaned ones and those of other hosts included.
    runs: Vec<RunRecord>,
    /// What the orphaned one has left.
    left: Option<Holder>,
    /// Processes that hold the session lock or wait for it, as in `exclusive` mode.
    without_record: Vec<(i32, &'static str)>,
    unreadable: Option<String>,
}

impl Others {
    /// Finds those who do not follow `mode`; all, if that is not known.
    fn find(factory: &Factory, mode: Option<LockMode>) -> Self {
        let Fleet { holders, waiting, running, orphaned, elsewhere, unreadable, .. } = Fleet::look(factory);
        let mut others = Self { unreadable, ..Self::default() };
        for holder in holders {
            match holder {
                Holder::Run(run) => others.runs.push(*run),
                Holder::Orphan(..) => others.left = Some(holder), // it is among the orphaned
                Holder::Processes(processes) => {
                    let pid = processes.first().map(|process| process.pid);
                    others.without_record.extend(pid.map(|pid| (pid, "holds the session lock")));
                }
            }
        }
        for waiter in waiting {
            match waiter {
                Ok(run) => others.runs.push(run),
                Err(pid) => others.without_record.push((pid, "waits for the session lock")),
            }
        }
        others.runs.extend(running.into_iter().chain(orphaned).chain(elsewhere));
        others.runs.retain(|run| mode.is_none_or(|mode| run.mode != mode.name()));
        others.runs.sort_by_key(|run| run.began);
        if mode == Some(LockMode::Exclusive) {
            others.without_record.clear();
        }
        others
    }

    fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.without_record.is_empty()
    }

    fn count(&self) -> usize {
        self.runs.len() + self.without_record.len()
    }

    /// Those that are left at `bound`, if there was one.
    fn rows(&self, mode: Option<LockMode>, bound: Option<DurationSetting>) -> Vec<Row> {
        let mut by_mode = BTreeMap::<_, usize>::new();
        self.runs.iter().for_each(|record| *by_mode.entry(&*record.mode).or_default() += 1);
        by_mode.extend((!self.without_record.is_empty()).then_some(("without a run record", self.without_record.len())));
        let is_one = by_mode.len() == 1 && self.without_record.is_empty();
        let modes: Vec<_> =
            by_mode.iter().map(|(mode, count)| if is_one { (*mode).to_owned() } else { format!("{count} {mode}") }).collect();
        let bound = bound.and_then(DurationSetting::as_limit).filter(|_| !self.is_empty());
        let gave_up = bound.map_or_else(String::new, |bound| format!("gave up after {}: ", show(bound)));
        let head = match (self.count(), mode) {
            (0, Some(_)) => "no live run follows another mode".to_owned(),
            (0, None) => "no run is live".to_owned(),
            (1, Some(_)) => format!("1 live run still follows another mode: {}", modes.join(", ")),
            (count, Some(_)) => format!("{count} live runs still follow another mode: {}", modes.join(", ")),
            (count, None) => format!("{count} live: {}", modes.join(", ")),
        };
        let unreadable = self.unreadable.iter().map(|why| line(format!("{why}: who runs is not known"), Look::Odd));
        let runs = self.runs.iter().map(|record| line(format!("  {}", self.name(record, text::run)), Look::Plain));
        let others =
            self.without_record.iter().map(|(pid, what)| line(format!("  {}, {what}", text::process(*pid)), Look::Plain));
        // Nobody who is known is not nobody.
        let is_known = self.unreadable.is_none() || !self.is_empty();
        unreadable.chain(is_known.then(|| line(gave_up + &head, Look::Plain))).chain(runs).chain(others).collect()
    }

    /// Name of a run; where it was killed, of what it has left.
    fn name(&self, record: &RunRecord, of_live: fn(&RunRecord) -> String) -> String {
        let left = self.left.as_ref().filter(|holder| holder.run() == Some(record));
        left.map_or_else(|| of_live(record), Holder::to_string)
    }

    fn names(&self) -> Vec<String> {
        let runs = self.runs.iter().map(|record| self.name(record, RunRecord::who));
        runs.chain(self.without_record.iter().map(|(pid, _)| text::process(*pid))).collect()
    }
}

/// Waits until nobody follows another mode than `mode`, and gives those that are left at the bound. Meanwhile it shows who they are.
fn drain_others(factory: &Factory, mode: Option<LockMode>, bound: DurationSetting) -> Others {
    let (started, limit) = (Instant::now(), bound.as_limit());
    let deadline = after(started, limit);
    let mut live_line = None;
    let mut awaited: Option<AwaitedRun> = None;
    let mut is_told = false;
    loop {
        let (others, left) = (Others::find(factory, mode), time_left(deadline));
        if others.is_empty() || (left.is_zero() && is_told) {
            return others;
        }
        let names = others.names();
        if !mem::replace(&mut is_told, true) {
            live_line = LiveLine::on_terminal();
            let who = format!("waiting for {} of another mode", text::count(names.len(), "live run"));
            let at_most = limit.map_or_else(String::new, |limit| format!(", at most {}", show(limit)));
            logging::tell(&match &live_line {
                Some(_) => format!("{who}; Ctrl-C stops only the wait"),
                None => format!("{who}{at_most}: {}", names.join(", ")),
            });
        }
        if let Some(line) = &live_line {
            let of = limit.map_or_else(String::new, |limit| format!(" of {}", show_seconds(limit)));
            line.show_list(&format!("waited {}{of} for ", show_seconds(started.elapsed())), &names);
        }
        // Only of those with a record the kernel can tell the end.
        let needs_looks = live_line.is_some() || others.runs.is_empty();
        let bound = if needs_looks { left.min(Duration::from_secs(1)) } else { left };
        awaited = others.runs.first().map(|run| AwaitedRun::of(run, &factory.records, awaited));
        match &awaited {
            Some(awaited) => drop(awaited.ended.recv_timeout(bound)),
            None => thread::sleep(bound),
        }
    }
}

/// A run whose end a thread waits for.
struct AwaitedRun {
    run: String,
    ended: Receiver<()>,
}

impl AwaitedRun {
    /// Waits for `run`, unless `before` does so already.
    fn of(run: &RunRecord, records: &RecordStore, before: Option<Self>) -> Self {
        if let Some(before) = before.filter(|before| before.run == run.run && before.is_waiting()) {
            return before;
        }
        let (sender, ended) = channel();
        let (id, records) = (run.run.clone(), records.clone());
        let work = move || {
            records.wait_for_end(&id, Duration::MAX);
            let _ = sender.send(()); // nobody may wait any more
        };
        // Without the thread, the receiver gives up at once; then the next look is soon.
        if thread::Builder::new().stack_size(64 * 1024).spawn(work).is_err() {
            thread::sleep(Duration::from_secs(1));
        }
        Self { run: run.run.clone(), ended }
    }

    fn is_waiting(&self) -> bool {
        self.ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty)
    }
}
