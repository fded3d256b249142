//! `claude-run report`: outcomes, waits and holds of the finished runs, the time they lost to the lock, and their cost.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Context, answer, text};
use crate::config::duration;
use crate::logging::escaped;
use crate::outcome::Outcome;
use crate::records::{FinishedRun, History, RecordStore, time};

pub(super) fn show(context: &Context, since: Option<SystemTime>, json: bool, out: &mut impl Write) -> Result<Outcome> {
    let records = RecordStore::of(&context.config_dir()?);
    let history = records.read_history().with_context(|| format!("cannot read {}", records.path().display()))?;
    let report = Report::of(&history, since);
    answer(out, json, true, &report.to_text(), &report.to_json())
}

#[derive(Debug, Default)]
struct Report {
    since: Option<SystemTime>,
    skipped: usize,
    total: Totals,
    outcomes: BTreeMap<String, usize>,
    labels: BTreeMap<Option<String>, Totals>,
    /// Milliseconds, sorted, as are the others.
    waits: Vec<u64>,
    slot_waits: Vec<u64>,
    holds: Vec<u64>,
}

/// Totals over runs, in the form that JSON has them.
#[derive(Debug, Default, Serialize)]
struct Totals {
    runs: usize,
    /// Runs with another exit code than 0.
    failed: usize,
    waited_ms: u64,
    slot_waited_ms: u64,
    total_ms: u64,
    turns: u64,
    cost_usd: f64,
}

const BAR_WIDTH: usize = 40;
/// Percentiles that are shown; the last is the maximum.
const PERCENTS: [usize; 4] = [50, 90, 99, 100];
/// Upper ends of the bars, in seconds; the last has none.
const STEPS: [(&str, u64); 7] =
    [("< 1s", 1), ("< 10s", 10), ("< 1m", 60), ("< 5m", 300), ("< 10m", 600), ("< 1h", 3600), (">= 1h", u64::MAX)];

impl Totals {
    fn add(&mut self, run: &FinishedRun) {
        self.runs += 1;
        self.failed += usize::from(run.exit_code != 0);
        self.waited_ms = self.waited_ms.saturating_add(run.wait_ms.unwrap_or_default());
        self.slot_waited_ms = self.slot_waited_ms.saturating_add(run.slot_wait_ms.unwrap_or_default());
        self.total_ms = self.total_ms.saturating_add(run.total_ms);
        self.turns = self.turns.saturating_add(run.turns.unwrap_or_default());
        self.cost_usd += run.cost_usd.unwrap_or_default();
    }
}

impl Report {
    fn of(history: &History, since: Option<SystemTime>) -> Self {
        let mut report = Self { skipped: history.skipped, since, ..Self::default() };
        for run in history.finished.iter().filter(|run| since.is_none_or(|since| run.began >= since)) {
            report.total.add(run);
            *report.outcomes.entry(run.outcome.clone()).or_default() += 1;
            report.labels.entry(run.label.clone()).or_default().add(run);
            report.waits.extend(run.wait_ms);
            report.slot_waits.extend(run.slot_wait_ms);
            report.holds.extend(run.hold_ms);
        }
        report.waits.sort_unstable();
        report.slot_waits.sort_unstable();
        report.holds.sort_unstable();
        report
    }

    fn to_text(&self) -> String {
        let mut text = format!("{}{}\n", text::count(self.total.runs, "finished run"), text::since(self.since));
        if self.skipped > 0 {
            text += &format!("{} of the history skipped: cut, or not ours\n", text::count(self.skipped, "line"));
        }
        if self.total.runs == 0 {
            return text;
        }
        text += "\n";
        text.extend(self.outcomes.iter().map(|(outcome, count)| format!("{:<20}{count:>7}\n", escaped(outcome))));
        text += &format!("\n{:<20}{:>7}{:>8}{:>12}{:>9}{:>12}\n", "label", "runs", "failed", "waited", "turns", "cost");
        for (label, totals) in self.labels.iter().chain([(&Some("all".to_owned()), &self.total)]) {
            let Totals { runs, failed, waited_ms, turns, cost_usd, .. } = totals;
            let label = escaped(label.as_deref().unwrap_or("(no label)"));
            let waited = short(*waited_ms);
            text += &format!("{label:<20}{runs:>7}{failed:>8}{waited:>12}{turns:>9}{cost_usd:>8.2} USD\n");
        }
        text += &format!("\n{:<20}{:>11}{:>11}{:>11}{:>11}\n", "session lock", "p50", "p90", "p99", "max");
        let slots = (!self.slot_waits.is_empty()).then_some(("wait for slot", &self.slot_waits));
        let kinds = || [("wait", &self.waits), ("hold", &self.holds)].into_iter().chain(slots);
        for (name, spans) in kinds() {
            let points = PERCENTS.map(|percent| percentile(spans, percent).map_or_else(|| "-".into(), short));
            text += &format!("{name:<20}{:>11}{:>11}{:>11}{:>11}\n", points[0], points[1], points[2], points[3]);
        }
        for (name, spans) in kinds() {
            text += &format!("\n{name}, {}\n", text::count(spans.len(), "run"));
            text.extend(bars(spans));
        }
        let Totals { waited_ms, slot_waited_ms, total_ms, .. } = self.total;
        let lost = |to: &str, lost: u64| {
            let share = 100.0 * lost as f64 / total_ms.max(1) as f64;
            format!("lost to {to}: {} of {}, {share:.0} %\n", short(lost), short(total_ms))
        };
        text += &format!("\n{}", lost("the lock", waited_ms));
        text + &slots.map_or_else(String::new, |_| lost("slots", slot_waited_ms))
    }

    fn to_json(&self) -> Value {
        let labels = self.labels.iter().map(|(label, totals)| {
            let mut value = json!(totals);
            value["label"] = json!(label);
            value
        });
        let mut value = json!(self.total);
        value["since"] = json!(self.since.map(time));
        value["skipped_lines"] = json!(self.skipped);
        value["outcomes"] = json!(self.outcomes);
        value["labels"] = labels.collect();
        value["wait_ms"] = percentiles_json(&self.waits);
        value["slot_wait_ms"] = percentiles_json(&self.slot_waits);
        value["hold_ms"] = percentiles_json(&self.holds);
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

/// A line for each step, as long as its share.
fn bars(spans: &[u64]) -> impl Iterator<Item = String> {
    let mut counts = STEPS.map(|_| 0_usize);
    let steps = spans.iter().filter_map(|span| STEPS.iter().position(|(_, end)| span / 1000 < *end));
    steps.for_each(|step| counts[step] += 1);
    let most = counts.into_iter().max().unwrap_or_default().max(1);
    STEPS.into_iter().zip(counts).map(move |((name, _), count)| {
        let bar = "#".repeat((count * BAR_WIDTH).div_ceil(most));
        format!("{}\n", format!("  {name:<7}{count:>7}  {bar}").trim_end())
    })
}

/// A duration in at most two units: nobody reads the seconds of a day.
fn short(milliseconds: u64) -> String {
    duration::show(Duration::from_millis(milliseconds)).split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(label: Option<&str>, waited: u64, code: u8) -> Option<FinishedRun> {
        let line = json!({
            "run": "1-2", "label": label, "began": "1970-01-01T00:00:01.000Z", "total_ms": waited * 1000 + 2000,
            "wait_ms": waited * 1000, "slot_wait_ms": waited * 500, "hold_ms": 1000, "outcome": "exited", "exit_code": code, "turns": 3, "cost_usd": 0.25
        });
        FinishedRun::from_json(line.to_string().as_bytes())
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
    fn each_span_counts_in_one_bar() {
        let spans: Vec<_> = [0, 0, 0, 1, 9, 10, 3599, 3600, 99_999].map(|seconds| seconds * 1000).to_vec();
        let bars: Vec<_> = bars(&spans).collect();
        let counts: Vec<_> = bars.iter().map(|bar| bar[9..16].trim().to_owned()).collect();
        assert_eq!(counts, ["3", "2", "1", "0", "0", "1", "2"]);
        assert_eq!(bars[0].matches('#').count(), BAR_WIDTH);
        assert!(bars[3].ends_with("0\n"));
    }

    #[test]
    fn runs_are_summed_up_by_label() {
        let finished = [run(Some("a"), 0, 0), run(Some("a"), 4, 1), run(None, 6, 75)];
        let history = History { finished: finished.into_iter().flatten().collect(), skipped: 2 };
        let report = Report::of(&history, None).to_json();
        assert_eq!((&report["runs"], &report["failed"], &report["waited_ms"]), (&json!(3), &json!(2), &json!(10_000)));
        assert_eq!(
            report["labels"][1],
            json!({"label": "a", "runs": 2, "failed": 1, "waited_ms": 4000, "slot_waited_ms": 2000, "total_ms": 8000, "turns": 6, "cost_usd": 0.5})
        );
        assert_eq!(report["labels"][0]["label"], Value::Null);
        assert_eq!(report["wait_ms"], json!({"count": 3, "p50": 4000, "p90": 6000, "p99": 6000, "max": 6000}));
        assert_eq!((&report["skipped_lines"], &report["outcomes"]["exited"]), (&json!(2), &json!(3)));
        let text = Report::of(&history, None).to_text();
        assert!(
            text.contains("lost to the lock: 10s of 16s, 62 %\nlost to slots: 5s of 16s, 31 %\n")
                && text.contains("2 lines of the history skipped"),
            "{text}"
        );
        let late = SystemTime::UNIX_EPOCH + Duration::from_secs(2);
        assert_eq!(Report::of(&history, Some(late)).to_json()["runs"], json!(0));
    }
}
