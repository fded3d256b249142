//! `claude-run report`: outcomes, waits and holds of the finished runs, the time they lost to the lock, and their cost.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

use super::{Context, cannot_read, since_time, text, write, write_json};
use crate::config::duration::{self, DurationSetting};
use crate::outcome::Outcome;
use crate::records::{FinishedRun, History, RecordStore, time};

/// Sums up the runs that began `since` at most ago.
pub(super) fn show(context: &Context, since: Option<DurationSetting>, json: bool, out: &mut impl Write) -> Result<Outcome> {
    let since = since_time(since);
    let records = RecordStore::of(&context.config_dir()?);
    let history = records.read_history().with_context(|| cannot_read(records.path()))?;
    let report = Report::of(&history, since);
    if json {
        write_json(out, &report.to_json()?)?
    } else {
        write(out, &report.to_text())?
    }
    Ok(Outcome::Shown)
}

#[derive(Debug, Default)]
struct Report {
    since: Option<SystemTime>,
    skipped: usize,
    total: Totals,
    outcomes: BTreeMap<String, usize>,
    labels: BTreeMap<String, Totals>,
    /// Sorted; of the runs that wanted the lock.
    waits: Vec<Duration>,
    /// Sorted; of the runs that acquired it.
    holds: Vec<Duration>,
}

/// Totals over runs, in the form that JSON has them.
#[derive(Debug, Default, Serialize)]
struct Totals {
    runs: usize,
    /// Runs with another exit code than 0.
    failed: usize,
    waited_ms: u64,
    total_ms: u64,
    turns: u64,
    cost_usd: f64,
}

/// JSON form of the report.
#[derive(Serialize)]
struct ReportJson<'a> {
    #[serde(flatten)]
    total: &'a Totals,
    since: Option<String>,
    skipped_lines: usize,
    /// Number of runs of each outcome.
    outcomes: &'a BTreeMap<String, usize>,
    labels: Vec<LabelJson<'a>>,
    wait_ms: PercentilesJson,
    hold_ms: PercentilesJson,
}

#[derive(Serialize)]
struct LabelJson<'a> {
    label: Option<&'a str>,
    #[serde(flatten)]
    totals: &'a Totals,
}

/// Percentiles in milliseconds; null where there are no runs.
#[derive(Serialize)]
struct PercentilesJson {
    count: usize,
    p50: Option<u64>,
    p90: Option<u64>,
    p99: Option<u64>,
    max: Option<u64>,
}

/// Label of runs without one.
const NO_LABEL: &str = "(no label)";

/// Width of the longest bar.
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
        self.total_ms = self.total_ms.saturating_add(run.total_ms);
        self.turns = self.turns.saturating_add(run.turns.unwrap_or_default());
        self.cost_usd += run.cost_usd.unwrap_or_default();
    }
}

impl Report {
    fn of(history: &History, since: Option<SystemTime>) -> Self {
        let mut report = Self { skipped: history.skipped, since, ..Self::default() };
        for run in history.finished.iter().filter(|run| since.is_none_or(|since| run.began >= since)) {
            report.add(run);
        }
        report.waits.sort_unstable();
        report.holds.sort_unstable();
        report
    }

    fn add(&mut self, run: &FinishedRun) {
        self.total.add(run);
        *self.outcomes.entry(run.outcome.clone()).or_default() += 1;
        self.labels.entry(run.label.clone().unwrap_or_else(|| NO_LABEL.to_owned())).or_default().add(run);
        self.waits.extend(run.wait_ms.map(Duration::from_millis));
        self.holds.extend(run.hold_ms.map(Duration::from_millis));
    }

    fn to_text(&self) -> String {
        let mut lines = Vec::new();
        let since = self.since.map_or_else(String::new, |since| format!(" since {}", time(since)));
        lines.push(format!("{}{since}", text::count(self.total.runs, "finished run")));
        if self.skipped > 0 {
            lines.push(format!("{} of the history skipped: cut, or not ours", text::count(self.skipped, "line")));
        }
        if self.total.runs == 0 {
            return lines.join("\n") + "\n";
        }
        lines.push(String::new());
        lines.extend(self.outcomes.iter().map(|(outcome, count)| format!("{outcome:<20}{count:>7}")));
        lines.push(String::new());
        lines.push(format!("{:<20}{:>7}{:>8}{:>12}{:>9}{:>12}", "label", "runs", "failed", "waited", "turns", "cost"));
        for (label, totals) in self.labels.iter().chain([(&"all".to_owned(), &self.total)]) {
            let Totals { runs, failed, waited_ms, turns, cost_usd, .. } = totals;
            let (label, waited) = (label.escape_debug().to_string(), short(Duration::from_millis(*waited_ms)));
            lines.push(format!("{label:<20}{runs:>7}{failed:>8}{waited:>12}{turns:>9}{:>12}", format!("{cost_usd:.2} USD")));
        }
        lines.push(String::new());
        lines.push(format!("{:<20}{:>11}{:>11}{:>11}{:>11}", "session lock", "p50", "p90", "p99", "max"));
        for (name, spans) in [("wait", &self.waits), ("hold", &self.holds)] {
            let points = PERCENTS.map(|percent| percentile(spans, percent).map_or_else(|| "-".into(), short));
            lines.push(format!("{name:<20}{:>11}{:>11}{:>11}{:>11}", points[0], points[1], points[2], points[3]));
        }
        for (name, spans) in [("wait", &self.waits), ("hold", &self.holds)] {
            lines.push(String::new());
            lines.push(format!("{name}, {}", text::count(spans.len(), "run")));
            lines.extend(bars(spans));
        }
        let (waited, total) = (Duration::from_millis(self.total.waited_ms), Duration::from_millis(self.total.total_ms));
        let share = 100.0 * waited.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        let (waited, total) = (short(waited), short(total));
        lines.push(String::new());
        lines.push(format!("lost to the lock: {waited} of {total}, {share:.0} %"));
        lines.join("\n") + "\n"
    }

    /// As a value, whose keys are in alphabetical order.
    fn to_json(&self) -> serde_json::Result<Value> {
        let labels = self.labels.iter().map(|(label, totals)| {
            let label = Some(label.as_str()).filter(|label| *label != NO_LABEL);
            LabelJson { label, totals }
        });
        serde_json::to_value(ReportJson {
            total: &self.total,
            since: self.since.map(time),
            skipped_lines: self.skipped,
            outcomes: &self.outcomes,
            labels: labels.collect(),
            wait_ms: PercentilesJson::of(&self.waits),
            hold_ms: PercentilesJson::of(&self.holds),
        })
    }
}

impl PercentilesJson {
    fn of(sorted: &[Duration]) -> Self {
        let [p50, p90, p99, max] = PERCENTS.map(|percent| percentile(sorted, percent).map(text::milliseconds));
        Self { count: sorted.len(), p50, p90, p99, max }
    }
}

/// Percentile by the nearest rank: the smallest of `sorted` that at least `percent` of them do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// A line for each step, as long as its share.
fn bars(spans: &[Duration]) -> impl Iterator<Item = String> {
    let below = |end: u64| spans.iter().filter(|span| span.as_secs() < end || end == u64::MAX).count();
    let starts = [0].into_iter().chain(STEPS.map(|(_, end)| below(end)));
    let counts: Vec<_> = starts.zip(STEPS).map(|(before, (name, end))| (name, below(end) - before)).collect();
    let most = counts.iter().map(|&(_, count)| count).max().unwrap_or_default().max(1);
    counts.into_iter().map(move |(name, count)| {
        let bar = "#".repeat((count * BAR_WIDTH).div_ceil(most));
        format!("  {name:<7}{count:>7}  {bar}").trim_end().to_owned()
    })
}

/// A duration in at most two units: nobody reads the seconds of a day.
fn short(span: Duration) -> String {
    duration::show(span).split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(label: Option<&str>, waited: u64, code: u8) -> Option<FinishedRun> {
        let line = json!({
            "run": "1-2", "label": label, "began": "1970-01-01T00:00:01.000Z", "total_ms": waited * 1000 + 2000,
            "wait_ms": waited * 1000, "hold_ms": 1000, "outcome": "exited", "exit_code": code, "turns": 3, "cost_usd": 0.25
        });
        FinishedRun::from_json(line.to_string().as_bytes())
    }

    #[test]
    fn percentiles_have_the_nearest_rank() {
        let spans: Vec<_> = (1..=100).map(Duration::from_secs).collect();
        for (percent, seconds) in [(50, 50), (90, 90), (99, 99), (100, 100)] {
            assert_eq!(percentile(&spans, percent), Some(Duration::from_secs(seconds)));
        }
        assert_eq!(percentile(&spans[..1], 50), Some(Duration::from_secs(1)));
        assert_eq!(percentile(&spans[..2], 50), Some(Duration::from_secs(1)));
        assert_eq!(percentile(&spans[..2], 90), Some(Duration::from_secs(2)));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn each_span_counts_in_one_bar() {
        let spans: Vec<_> = [0, 0, 0, 1, 9, 10, 3599, 3600, 99_999].map(Duration::from_secs).to_vec();
        let bars: Vec<_> = bars(&spans).collect();
        let counts: Vec<_> = bars.iter().map(|bar| bar[9..16].trim().to_owned()).collect();
        assert_eq!(counts, ["3", "2", "1", "0", "0", "1", "2"]);
        assert_eq!(bars[0].matches('#').count(), BAR_WIDTH);
        assert!(bars[3].ends_with('0'));
    }

    #[test]
    fn runs_are_summed_up_by_label() -> serde_json::Result<()> {
        let finished = [run(Some("a"), 0, 0), run(Some("a"), 4, 1), run(None, 6, 75)];
        let history = History { finished: finished.into_iter().flatten().collect(), skipped: 2 };
        let report = Report::of(&history, None).to_json()?;
        assert_eq!((&report["runs"], &report["failed"], &report["waited_ms"]), (&json!(3), &json!(2), &json!(10_000)));
        assert_eq!(
            report["labels"][1],
            json!({"label": "a", "runs": 2, "failed": 1, "waited_ms": 4000, "total_ms": 8000, "turns": 6, "cost_usd": 0.5})
        );
        assert_eq!(report["labels"][0]["label"], Value::Null);
        assert_eq!(report["wait_ms"], json!({"count": 3, "p50": 4000, "p90": 6000, "p99": 6000, "max": 6000}));
        assert_eq!((&report["skipped_lines"], &report["outcomes"]["exited"]), (&json!(2), &json!(3)));
        let text = Report::of(&history, None).to_text();
        assert!(
            text.contains("lost to the lock: 10s of 16s, 62 %") && text.contains("2 lines of the history skipped"),
            "{text}"
        );
        let late = SystemTime::UNIX_EPOCH + Duration::from_secs(2);
        assert_eq!(Report::of(&history, Some(late)).to_json()?["runs"], json!(0));
        Ok(())
    }
}
