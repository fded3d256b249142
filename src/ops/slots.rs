//! `claude-run slots`: the bound on the runs at once, the slots in use, who waits for one, and how to change the bound.

use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::broken::Held;
use super::checks::{Check, check_slots, trouble_with_holders};
use super::text::RunView;
use super::{Context, Factory, NOT_KNOWN, answer, text};
use crate::config::options::SLOTS;
use crate::config::settings::Slots;
use crate::lock::{Holder, Queue, SlotFile, slot_files, slot_obstacles};
use crate::logging::escaped;
use crate::outcome::Outcome;
use crate::records::{Census, RecordStore, RunRecord, WaitsFor};
use crate::sys::file_id::FileId;

/// Slots of a config dir.
pub(super) struct SlotsInUse {
    /// Those that are held, and by whom, where that can be told.
    pub(super) held: Vec<(SlotFile, Option<Holder>)>,
    /// In the order of the queue.
    pub(super) waiting: Vec<RunRecord>,
    /// What has become of slots that bound nobody any more.
    pub(super) broken: Vec<String>,
    /// False if the files or the records could not be read.
    pub(super) is_known: bool,
}

impl SlotsInUse {
    /// Looks a few times for a run that is just starting: its record comes a moment after its slot.
    pub(super) fn look(records: &RecordStore, census: &Census, is_readable: bool) -> Self {
        let is_known = is_readable && slot_obstacles(records, false).is_empty();
        Self { is_known, ..Self::look_at_files(records, census) }
    }

    fn look_at_files(records: &RecordStore, census: &Census) -> Self {
        let mut seen = Self::of(records, &census.live);
        let mut orphaned = census.orphaned.clone();
        for _ in 0..10 {
            if seen.held.iter().all(|(_, holder)| holder.is_some()) {
                return seen;
            }
            thread::sleep(Duration::from_millis(20));
            let Ok(census) = records.census() else { break };
            (seen, orphaned) = (Self::of(records, &census.live), census.orphaned);
        }
        for (slot, holder) in seen.held.iter_mut().filter(|(_, holder)| holder.is_none()) {
            let found = Holder::find_without_record(&Queue::look(slot.file_id), Some(records));
            *holder = Holder::or_orphan(found, slot.file_id, || orphaned.clone());
        }
        seen
    }

    fn of(records: &RecordStore, live: &[RunRecord]) -> Self {
        let files = slot_files(records);
        // Of several, the last has it: it was released or removed under the others.
        let owner = |slot: FileId| live.iter().rfind(|run| run.has_slot(slot));
        let held = files.iter().filter(|slot| slot.is_held);
        let holder = |slot: &SlotFile| owner(slot.file_id).map(|run| Holder::Run(Box::new(run.clone())));
        let is_free = |run: &RunRecord, slot| {
            owner(slot).is_some_and(|last| last.run != run.run)
                || files.iter().any(|file| file.file_id == slot && !file.is_held)
        };
        // Where another mount has the config dir, its files have other names.
        let is_of_this_dir =
            |run: &RunRecord| run.is_of_this_boot() && run.config_dir.file_id() == FileId::at(records.config_dir());
        let broken = live.iter().filter(|run| is_of_this_dir(run)).filter_map(|run| {
            let number = Path::new(&run.slot.as_ref()?.path).file_name()?;
            let name = format!("slot {}", escaped(&number.to_string_lossy()));
            let slot = Held { name: &name, path: &records.slots().join(number), has: RunRecord::has_slot };
            slot.broken(records, run, |file| is_free(run, file))
        });
        let mut waiting: Vec<_> = live.iter().filter(|run| run.waits_for == Some(WaitsFor::Slot)).cloned().collect();
        waiting.sort_by_key(|run| run.ticket);
        Self { held: held.map(|slot| (*slot, holder(slot))).collect(), waiting, broken: broken.collect(), is_known: true }
    }

    /// Who holds them, each with which, where that can be told.
    pub(super) fn holders(&self) -> impl Iterator<Item = (String, &Holder)> + Clone {
        self.held.iter().filter_map(|(slot, holder)| Some((format!("slot {}", slot.number), holder.as_ref()?)))
    }

    /// Slots that bound nobody any more, and what to do.
    pub(super) fn trouble(&self) -> impl Iterator<Item = String> {
        self.broken
            .iter()
            .map(|what| format!("{what}: it counts for nobody who came later, and one run more may start; let it end"))
    }

    /// In one line, as `2 in use, 3 waiting`.
    pub(super) fn summary(&self) -> String {
        if !self.is_known && self.held.is_empty() {
            return format!("who has a slot is {NOT_KNOWN}");
        }
        let waiting = self.waiting.len();
        format!("{} in use{}", self.held.len(), if waiting == 0 { String::new() } else { format!(", {waiting} waiting") })
    }

    /// Awaited by those who wait, as `3 for a slot: 2 of 2 taken`, if anybody does.
    pub(super) fn awaited(&self, bound: Slots) -> Option<String> {
        let of = match bound {
            Slots::AtMost(number) => format!(" of {number}"),
            Slots::Unlimited => String::new(), // these runs were told a bound of their own
        };
        let waiting = self.waiting.len();
        (waiting > 0).then(|| format!("{waiting} for a slot: {}{of} taken", self.held.len()))
    }

    pub(super) fn to_json(&self) -> Value {
        let held = |(slot, holder): &(SlotFile, Option<Holder>)| {
            let run = holder.as_ref().and_then(Holder::run).map(RunView::of);
            json!({"slot": slot.number, "run": run, "orphaned": matches!(holder, Some(Holder::Orphan(..)))})
        };
        json!({
            "in_use": self.held.iter().map(held).collect::<Value>(),
            "waiting": RunView::of_each(&self.waiting),
        })
    }
}

/// Sets the bound, and says it.
fn set_bound(context: &mut Context, slots: Slots) -> Result<String> {
    Ok(match slots {
        Slots::Unlimited => context.set(SLOTS, "none").map(|()| "none".to_owned())?,
        Slots::AtMost(number) => context.set(SLOTS, i64::from(number)).map(|()| number.to_string())?,
    })
}

/// Shows the bound and who has a slot, or sets the bound.
pub(super) fn slots(mut context: Context, set: Option<Slots>, json: bool, out: &mut impl Write) -> Result<Outcome> {
    let name = set.map(|slots| set_bound(&mut context, slots)).transpose()?;
    let factory = Factory::of(&context)?;
    let (census, unreadable) = factory.census_if_readable();
    let in_use = SlotsInUse::look(&factory.records, &census, unreadable.is_none());
    let live = census.live;
    let mut found = Check::default();
    if factory.settings.slots != Slots::Unlimited {
        check_slots(&factory.records, false, &mut found);
    }
    let mut trouble: Vec<_> = found.objections().collect();
    trouble.extend(trouble_with_holders(in_use.holders()).into_iter().chain(in_use.trouble()));
    let mut lines = match &name {
        Some(name) => format!("the bound is {name} now, set in {}\n", text::shown(factory.settings_file())),
        None => format!("the bound is {}\n", factory.setting_text(&factory.slots)),
    };
    let overruled = name.as_ref().and_then(|name| text::overruled(name, &factory.slots));
    lines.extend(overruled.map(|text| text + "\n"));
    lines.extend(factory.mistake.iter().map(|mistake| format!("no run starts: {}\n", escaped(mistake))));
    lines.extend(unreadable.iter().map(|why| escaped(why).into_owned() + "\n"));
    lines.extend(trouble.iter().map(|trouble| escaped(trouble).into_owned() + "\n"));
    lines += &format!("{}\n", in_use.summary());
    for (slot, holder) in &in_use.held {
        let who = match holder {
            Some(Holder::Run(run)) => text::run(run),
            Some(left) => format!("held by {left}"),
            None => "without a run record".to_owned(),
        };
        lines += &format!("  slot {}: {who}\n", slot.number);
    }
    lines.extend(in_use.waiting.iter().zip(1..).map(|(run, place)| format!("  {place}. {}\n", text::run(run))));
    let uncounted = live.iter().filter(|run| run.slot.is_none() && run.waits_for != Some(WaitsFor::Slot)).count();
    if uncounted > 0 && factory.slots.value != "none" {
        let runs = text::count(uncounted, "live run");
        lines += &format!("not counted: {runs} without a slot, which began without a bound, or below another run\n");
    }
    let to_json = || {
        let mut value = factory.setting_json(&factory.slots);
        value["error"] = json!(factory.mistake);
        value["unreadable"] = json!(unreadable);
        value["trouble"] = json!(trouble);
        value["not_counted"] = json!(uncounted);
        value["set"] = json!(name);
        for (key, part) in in_use.to_json().as_object_mut().into_iter().flatten() {
            value[key] = part.take();
        }
        value
    };
    // Who has set it did not ask for the rest.
    let is_well = factory.mistake.is_none() && unreadable.is_none() && (trouble.is_empty() || set.is_some());
    answer(out, json, is_well, || lines, to_json)
}
