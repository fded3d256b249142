//! `claude-run slots`: the bound on the runs at once, the slots in use, who waits for one, and how to change the bound.

use std::io::Write;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Context, Factory, answer, text};
use crate::config::options::SLOTS;
use crate::config::settings::Slots;
use crate::lock::{SlotFile, slot_files};
use crate::logging::escaped;
use crate::outcome::Outcome;
use crate::records::{RecordStore, RunRecord, WaitsFor};

/// Slots of a config dir.
pub(super) struct SlotsInUse {
    /// Those that are held, and the live run that each belongs to.
    pub(super) held: Vec<(SlotFile, Option<RunRecord>)>,
    /// In the order of the queue.
    pub(super) waiting: Vec<RunRecord>,
}

impl SlotsInUse {
    /// Looks a few times for a run that is just starting: its record comes a moment after its slot.
    pub(super) fn look(records: &RecordStore, live: &[RunRecord]) -> Self {
        let mut seen = Self::of(records, live);
        for _ in 0..10 {
            if seen.held.iter().all(|(_, run)| run.is_some()) {
                break;
            }
            thread::sleep(Duration::from_millis(20));
            let Ok(census) = records.census() else { break };
            seen = Self::of(records, &census.live);
        }
        seen
    }

    fn of(records: &RecordStore, live: &[RunRecord]) -> Self {
        let owner = |slot: &SlotFile| live.iter().find(|run| run.has_slot(slot.file_id)).cloned();
        let held = slot_files(records).into_iter().filter(|slot| slot.is_held);
        let mut waiting: Vec<_> = live.iter().filter(|run| run.waits_for == Some(WaitsFor::Slot)).cloned().collect();
        waiting.sort_by_key(|run| run.ticket);
        Self { held: held.map(|slot| (slot, owner(&slot))).collect(), waiting }
    }

    /// In one line, as `2 in use, 3 waiting`.
    pub(super) fn summary(&self) -> String {
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
        let held =
            |(slot, run): &(SlotFile, Option<RunRecord>)| json!({"slot": slot.number, "run": run.as_ref().map(text::run_json)});
        json!({
            "in_use": self.held.iter().map(held).collect::<Value>(),
            "waiting": self.waiting.iter().map(text::run_json).collect::<Value>(),
        })
    }
}

/// Shows the bound and who has a slot, or sets the bound.
pub(super) fn slots(mut context: Context, set: Option<Slots>, json: bool, out: &mut impl Write) -> Result<Outcome> {
    let name = set.map(|slots| match slots {
        Slots::Unlimited => "none".to_owned(),
        Slots::AtMost(number) => number.to_string(),
    });
    match set {
        Some(Slots::Unlimited) => context.set(SLOTS, "none")?,
        Some(Slots::AtMost(number)) => context.set(SLOTS, i64::from(number))?,
        None => {}
    }
    let factory = Factory::of(&context)?;
    let (census, unreadable) = factory.census_if_readable();
    let live = census.live;
    let in_use = SlotsInUse::look(&factory.records, &live);
    let mut lines = match &name {
        Some(name) => format!("the bound is {name} now, set in {}\n", text::shown(factory.settings_file())),
        None => format!("the bound is {}\n", text::setting(&factory.slots)),
    };
    let overruled = name.as_ref().and_then(|name| text::overruled(name, &factory.slots));
    lines.extend(overruled.map(|text| text + "\n"));
    lines.extend(factory.mistake.iter().map(|mistake| format!("no run starts: {}\n", escaped(mistake))));
    lines.extend(unreadable.iter().map(|why| format!("{}: who has a slot is not known\n", escaped(why))));
    lines += &format!("{}\n", in_use.summary());
    for (slot, run) in &in_use.held {
        let who = run.as_ref().map_or_else(|| "without a run record".to_owned(), text::run);
        lines += &format!("  slot {}: {who}\n", slot.number);
    }
    lines.extend(in_use.waiting.iter().zip(1..).map(|(run, place)| format!("  {place}. {}\n", text::run(run))));
    let uncounted = live.iter().filter(|run| run.slot.is_none() && run.waits_for != Some(WaitsFor::Slot)).count();
    if uncounted > 0 && factory.slots.value != "none" {
        let runs = text::count(uncounted, "live run");
        lines += &format!("not counted: {runs} without a slot, which began without a bound, or below another run\n");
    }
    let to_json = || {
        let mut value = text::setting_json(&factory.slots);
        value["error"] = json!(factory.mistake);
        value["unreadable"] = json!(unreadable);
        value["not_counted"] = json!(uncounted);
        value["set"] = json!(name);
        for (key, part) in in_use.to_json().as_object_mut().into_iter().flatten() {
            value[key] = part.take();
        }
        value
    };
    answer(out, json, factory.mistake.is_none() && unreadable.is_none(), || lines, to_json)
}
