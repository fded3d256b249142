//! `claude-run report`: outcomes, waits and holds of the finished runs, the last day hour by hour, the time lost to the lock, and the
//! cost.

mod prometheus;
mod screen;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Context, answer, write_own};
use crate::logging::shown;
use crate::outcome::Outcome;
use crate::records::{FinishedRun, RecordStore, time, timestamp};

/// Form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Json,
    Prometheus,
}

pub(super) fn show(context: &Context, since: Option<SystemTime>, form: Form, out: &mut impl Write) -> Result<Outcome> {
    let records = RecordStore::of(&context.config_dir()?);
    let _ = records.census(); // it writes the lines of runs that were killed; without it, theirs are missing
    let mut report = Report::new(since, SystemTime::now());
    let read = records.read_history(|run| report.add(run));
    match read {
        Ok(skipped) => report.skipped = skipped,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            report.unreadable = Some(format!("the history in {} cannot be read: {error}", records.path().display()));
        }
        Err(error) => anyhow::bail!("cannot read {}: {error}", records.path().display()),
    }
    report.finish();
    let is_well = report.unreadable.is_none();
    match form {
        Form::Prometheus => {
            write_own(out, &report.to_prometheus())?;
            Ok(if is_well { Outcome::Shown } else { Outcome::Trouble })
        }
        form => answer(out, form == Form::Json, is_well, || report.to_text(), || report.to_json()),
    }
}

#[derive(Debug)]
struct Report {
    since: Option<SystemTime>,
    skipped: usize,
    unreadable: Option<String>,
    /// Number of the last runs in a row whose login was refused, not counting those that printed no result.
    refused_in_a_row: usize,
    total: Totals,
    /// Number of runs by outcome and exit code.
    endings: BTreeMap<(String, Option<u8>), usize>,
    labels: BTreeMap<Option<String>, Totals>,
    /// Milliseconds, sorted in the end, as are the `holds`.
    waits: Vec<u64>,
    slot_waits: Vec<u64>,
    /// For claude's own refresh locks, of the runs that had one in their way.
    refresh_waits: Vec<u64>,
    holds: Vec<u64>,
    /// The last day, the latest hour last.
    hours: Vec<Hour>,
}

/// Totals over runs, in the form that JSON has them.
#[derive(Debug, Default, Serialize)]
struct Totals {
    runs: usize,
    /// Runs with another exit code than 0, or with none.
    failed: usize,
    waited_ms: u64,
    slot_waited_ms: u64,
    refresh_waited_ms: u64,
    total_ms: u64,
    turns: u64,
    cost_usd: f64,
}

/// An hour, by the runs that began in it.
#[derive(Debug, Serialize)]
struct Hour {
    #[serde(with = "timestamp")]
    from: SystemTime,
    runs: u64,
    failed: u64,
    waited_ms: u64,
    /// Runs that held the lock for a refresh, in mode `refresh`.
    refreshes: u64,
}

/// Percentiles that are shown; the last is the maximum.
const PERCENTS: [usize; 4] = [50, 90, 99, 100];
const HOURS: u32 = 24;
const HOUR: Duration = Duration::from_secs(3600);

impl Totals {
    fn add(&mut self, run: &FinishedRun) {
        self.runs += 1;
        self.failed += usize::from(run.exit_code != Some(0));
        self.waited_ms = self.waited_ms.saturating_add(run.wait_ms.unwrap_or_default());
        self.slot_waited_ms = self.slot_waited_ms.saturating_add(run.slot_wait_ms.unwrap_or_default());
        self.refresh_waited_ms = self.refresh_waited_ms.saturating_add(run.refresh_wait_ms.unwrap_or_default());
        self.total_ms = self.total_ms.saturating_add(run.total_ms);
        self.turns = self.turns.saturating_add(run.turns.unwrap_or_default());
        self.cost_usd += run.cost_usd.unwrap_or_default();
    }
}

impl Report {
    fn new(since: Option<SystemTime>, now: SystemTime) -> Self {
        let from = |back: u32| now.checked_sub(HOUR * back).unwrap_or(SystemTime::UNIX_EPOCH);
        let hour = |back| Hour { from: from(back), runs: 0, failed: 0, waited_ms: 0, refreshes: 0 };
        Self {
            since,
            skipped: 0,
            unreadable: None,
            refused_in_a_row: 0,
            total: Totals::default(),
            endings: BTreeMap::new(),
            labels: BTreeMap::new(),
            waits: Vec::new(),
            slot_waits: Vec::new(),
            refresh_waits: Vec::new(),
            holds: Vec::new(),
            hours: (1..=HOURS).rev().map(hour).collect(),
        }
    }

    fn add(&mut self, run: FinishedRun) {
        if self.since.is_some_and(|since| run.began < since) {
            return;
        }
        self.total.add(&run);
        self.refused_in_a_row = run.count_refusals(self.refused_in_a_row);
        if let Some(hour) = self.hours.iter_mut().rfind(|hour| hour.from <= run.began) {
            hour.runs += 1;
            hour.failed += u64::from(run.exit_code != Some(0));
            hour.waited_ms = hour.waited_ms.saturating_add(run.wait_ms.unwrap_or_default());
            hour.refreshes += u64::from(run.lock.as_deref() == Some("refresh") && run.hold_ms.is_some());
        }
        self.waits.extend(run.wait_ms);
        self.slot_waits.extend(run.slot_wait_ms);
        self.refresh_waits.extend(run.refresh_wait_ms);
        self.holds.extend(run.hold_ms);
        // Names of sums in each form of the report: what is alike without its secrets, is one.
        self.labels.entry(run.label.as_deref().filter(|label| !label.is_empty()).map(shown)).or_default().add(&run);
        *self.endings.entry((shown(&run.outcome), run.exit_code)).or_default() += 1;
    }

    fn finish(&mut self) {
        for spans in [&mut self.waits, &mut self.slot_waits, &mut self.refresh_waits, &mut self.holds] {
            spans.sort_unstable();
        }
    }

    /// The form that `schema/report.json` describes.
    fn to_json(&self) -> Value {
        let labels = self.labels.iter().map(|(label, totals)| {
            let mut value = json!(totals);
            value["label"] = json!(label);
            value
        });
        let mut outcomes = BTreeMap::<_, usize>::new();
        self.endings.iter().for_each(|((outcome, _), runs)| *outcomes.entry(outcome).or_default() += runs);
        let endings = self.endings.iter();
        let endings = endings.map(|((outcome, code), runs)| json!({"outcome": outcome, "exit_code": code, "runs": runs}));
        let mut value = json!(self.total);
        value["since"] = json!(self.since.map(time));
        value["skipped_lines"] = json!(self.skipped);
        value["refused_in_a_row"] = json!(self.refused_in_a_row);
        value["unreadable"] = json!(self.unreadable);
        value["outcomes"] = json!(outcomes);
        value["endings"] = endings.collect();
        value["labels"] = labels.collect();
        value["wait_ms"] = percentiles_json(&self.waits);
        value["slot_wait_ms"] = percentiles_json(&self.slot_waits);
        value["refresh_wait_ms"] = percentiles_json(&self.refresh_waits);
        value["hold_ms"] = percentiles_json(&self.holds);
        value["last_day"] = json!(self.hours);
        value
    }
}

/// Percentiles in milliseconds; null where there are no runs.
fn percentiles_json(sorted: &[u64]) -> Value {
    let [p50, p90, p99, max] = PERCENTS.map(|percent| percentile(sorted, percent));
    json!({"count": sorted.len(), "p50": p50, "p90": p90, "p99": p99, "max": max})
}

/// Percentile by the nearest rank: the smallest of `sorted` that at least `percent` of them do not exceed.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn report(runs: &[(Option<&str>, u64, u8)]) -> Report {
        let now = SystemTime::UNIX_EPOCH + HOUR * 48;
        let mut report = Report::new(None, now);
        for (label, waited, code) in runs {
            let line = json!({
                "run": "1-2", "label": label, "began": "1970-01-02T23:30:00.000Z", "total_ms": waited * 1000 + 2000, "lock": "refresh",
                "wait_ms": waited * 1000, "slot_wait_ms": waited * 500, "hold_ms": 1000, "outcome": "exited", "exit_code": code, "turns": 3, "cost_usd": 0.25
            });
            report.add(FinishedRun::from_json(line.to_string().as_bytes()).expect("a run"));
        }
        report.finish();
        report
    }

    #[test]
    fn percentiles_have_the_nearest_rank() {
        let spans: Vec<_> = (1..=100).collect();
        for (percent, rank) in [(50, 50), (90, 90), (99, 99), (100, 100)] {
            assert_eq!(percentile(&spans, percent), Some(rank));
        }
        assert_eq!(percentile(&spans[..1], 50), Some(1));
        assert_eq!(percentile(&spans[..2], 50), Some(1));
        assert_eq!(percentile(&spans[..2], 90), Some(2));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn runs_are_summed_up_by_label_and_hour() {
        let report = report(&[(Some("a"), 0, 0), (Some("a"), 4, 1), (None, 6, 75)]).to_json();
        assert_eq!((&report["runs"], &report["failed"], &report["waited_ms"]), (&json!(3), &json!(2), &json!(10_000)));
        assert_eq!(
            report["labels"][1],
            json!({"runs": 2, "failed": 1, "waited_ms": 4000, "slot_waited_ms": 2000, "refresh_waited_ms": 0, "total_ms": 8000, "turns": 6, "cost_usd": 0.5, "label": "a"})
        );
        assert_eq!(report["labels"][0]["label"], Value::Null);
        assert_eq!(report["wait_ms"], json!({"count": 3, "p50": 4000, "p90": 6000, "p99": 6000, "max": 6000}));
        assert_eq!((&report["outcomes"]["exited"], report["endings"].as_array().map(Vec::len)), (&json!(3), Some(3)));
        let hour = &report["last_day"][23];
        assert_eq!((&hour["runs"], &hour["failed"], &hour["refreshes"]), (&json!(3), &json!(2), &json!(3)));
    }
}
