//! `claude-run report`: what the history says: how runs ended, how long they waited for the lock and held it, what that took
//! from the agents, and what it cost.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Context, cannot_read, text, write};
use crate::config::settings::{self, DurationSetting};
use crate::outcome::Outcome;
use crate::records::{Finished, History, RecordStore, time};

/// Sums up the runs of a history.
fn sum_up(history: History, since: Option<SystemTime>) -> Report {
    let mut report = Report { skipped: history.skipped, since, ..Report::default() };
    for run in history.finished.iter().filter(|run| since.is_none_or(|since| run.began >= since)) {
        report.add(run);
    }
    report.waits.sort_unstable();
    report.holds.sort_unstable();
    report
}

/// Sums up the runs that began `since` at most ago.
pub(super) fn show(context: &Context, since: Option<DurationSetting>, json: bool, out: &mut impl Write) -> Result<Outcome> {
    let since = since.and_then(DurationSetting::as_limit);
    let since = since.and_then(|since| SystemTime::now().checked_sub(since));
    let records = RecordStore::of(&context.config_dir()?);
    let history = records.read_history().with_context(|| cannot_read(records.path()))?;
    let report = sum_up(history, since);
    write(out, &if json { format!("{}\n", report.to_json()) } else { report.to_text() })?;
    Ok(Outcome::Shown)
}

/// Finished runs, summed up.
#[derive(Debug, Default)]
struct Report {
    since: Option<SystemTime>,
    skipped: usize,
    total: Sums,
    outcomes: BTreeMap<String, usize>,
    labels: BTreeMap<String, Sums>,
    /// Of the runs that wanted the lock, sorted.
    waits: Vec<Duration>,
    /// Of those that got it, sorted.
    holds: Vec<Duration>,
}

/// What is added up.
#[derive(Debug, Default)]
struct Sums {
    runs: usize,
    /// Those that ended with another exit code than 0.
    failed: usize,
    waited: Duration,
    total: Duration,
    turns: u64,
    cost_usd: f64,
}

/// What runs without a label are listed as.
const NO_LABEL: &str = "(no label)";

/// The widest bar.
const BAR: usize = 40;

/// The upper ends of the bars, in seconds; the last has none.
const STEPS: [(&str, u64); 7] =
    [("< 1s", 1), ("< 10s", 10), ("< 1m", 60), ("< 5m", 300), ("< 10m", 600), ("< 1h", 3600), (">= 1h", u64::MAX)];

impl Sums {
    fn add(&mut self, run: &Finished) {
        self.runs += 1;
        self.failed += usize::from(run.exit_code != 0);
        self.waited += run.waited.unwrap_or_default();
        self.total += run.total;
        self.turns += run.turns.unwrap_or_default();
        self.cost_usd += run.cost_usd.unwrap_or_default();
    }

    fn to_json(&self) -> Value {
        json!({
            "runs": self.runs,
            "failed": self.failed,
            "waited_ms": text::milliseconds(self.waited),
            "total_ms": text::milliseconds(self.total),
            "turns": self.turns,
            "cost_usd": self.cost_usd,
        })
    }
}

impl Report {
    fn add(&mut self, run: &Finished) {
        self.total.add(run);
        *self.outcomes.entry(run.outcome.clone()).or_default() += 1;
        self.labels.entry(run.label.clone().unwrap_or_else(|| NO_LABEL.to_owned())).or_default().add(run);
        self.waits.extend(run.waited);
        self.holds.extend(run.held);
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
        for (label, sums) in self.labels.iter().chain([(&"all".to_owned(), &self.total)]) {
            let Sums { runs, failed, waited, turns, cost_usd, .. } = sums;
            let (label, waited) = (label.escape_debug().to_string(), short(*waited));
            lines.push(format!("{label:<20}{runs:>7}{failed:>8}{waited:>12}{turns:>9}{:>12}", format!("{cost_usd:.2} USD")));
        }
        lines.push(String::new());
        lines.push(format!("{:<20}{:>11}{:>11}{:>11}{:>11}", "session lock", "p50", "p90", "p99", "max"));
        for (name, spans) in [("wait", &self.waits), ("hold", &self.holds)] {
            let points = [50, 90, 99, 100].map(|percent| percentile(spans, percent).map_or_else(|| "-".into(), short));
            lines.push(format!("{name:<20}{:>11}{:>11}{:>11}{:>11}", points[0], points[1], points[2], points[3]));
        }
        for (name, spans) in [("wait", &self.waits), ("hold", &self.holds)] {
            lines.push(String::new());
            lines.push(format!("{name}, {}", text::count(spans.len(), "run")));
            lines.extend(bars(spans));
        }
        let share = 100.0 * self.total.waited.as_secs_f64() / self.total.total.as_secs_f64().max(f64::MIN_POSITIVE);
        let (waited, total) = (short(self.total.waited), short(self.total.total));
        lines.push(String::new());
        lines.push(format!("lost to the lock: {waited} of {total}, {share:.0} %"));
        lines.join("\n") + "\n"
    }

    fn to_json(&self) -> Value {
        let spans = |spans: &[Duration]| {
            let point = |percent| percentile(spans, percent).map(text::milliseconds);
            let (p50, p90, p99, max) = (point(50), point(90), point(99), point(100));
            json!({ "count": spans.len(), "p50": p50, "p90": p90, "p99": p99, "max": max })
        };
        let labels = self.labels.iter().map(|(label, sums)| {
            let mut object = sums.to_json();
            object["label"] = if label == NO_LABEL { Value::Null } else { label.as_str().into() };
            object
        });
        let mut report = self.total.to_json();
        report["since"] = self.since.map(time).into();
        report["skipped_lines"] = self.skipped.into();
        report["outcomes"] = json!(self.outcomes);
        report["labels"] = labels.collect();
        report["wait_ms"] = spans(&self.waits);
        report["hold_ms"] = spans(&self.holds);
        report
    }
}

/// The smallest of `sorted` that at least `percent` of them do not exceed: the nearest rank.
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
        let bar = "#".repeat((count * BAR).div_ceil(most));
        format!("  {name:<7}{count:>7}  {bar}").trim_end().to_owned()
    })
}

/// At most two units of it: nobody reads the seconds of a day.
fn short(span: Duration) -> String {
    settings::show(span).split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(label: Option<&str>, waited: u64, code: u8) -> Finished {
        let second = Duration::from_secs(1);
        Finished {
            run: "1-2".into(),
            label: label.map(str::to_owned),
            began: SystemTime::UNIX_EPOCH + second,
            total: second * (waited as u32 + 2),
            waited: Some(second * waited as u32),
            held: Some(second),
            outcome: "exited".into(),
            exit_code: code,
            turns: Some(3),
            cost_usd: Some(0.25),
        }
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
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
    fn every_span_is_in_one_bar_and_the_longest_bar_has_the_most() {
        let spans: Vec<_> = [0, 0, 0, 1, 9, 10, 3599, 3600, 99_999].map(Duration::from_secs).to_vec();
        let bars: Vec<_> = bars(&spans).collect();
        let counts: Vec<_> = bars.iter().map(|bar| bar[9..16].trim().to_owned()).collect();
        assert_eq!(counts, ["3", "2", "1", "0", "0", "1", "2"]);
        assert_eq!(bars[0].matches('#').count(), BAR);
        assert!(bars[3].ends_with('0'));
    }

    #[test]
    fn runs_are_summed_up_by_label_and_old_ones_left_out() {
        let finished = vec![run(Some("a"), 0, 0), run(Some("a"), 4, 1), run(None, 6, 75)];
        let history = || History { finished: finished.clone(), skipped: 2 };
        let report = sum_up(history(), None).to_json();
        assert_eq!((&report["runs"], &report["failed"], &report["waited_ms"]), (&json!(3), &json!(2), &json!(10_000)));
        assert_eq!(
            report["labels"][1],
            json!({"label": "a", "runs": 2, "failed": 1, "waited_ms": 4000, "total_ms": 8000, "turns": 6, "cost_usd": 0.5})
        );
        assert_eq!(report["labels"][0]["label"], Value::Null);
        assert_eq!(report["wait_ms"], json!({"count": 3, "p50": 4000, "p90": 6000, "p99": 6000, "max": 6000}));
        assert_eq!((&report["skipped_lines"], &report["outcomes"]["exited"]), (&json!(2), &json!(3)));
        let text = sum_up(history(), None).to_text();
        assert!(
            text.contains("lost to the lock: 10s of 16s, 62 %") && text.contains("2 lines of the history skipped"),
            "{text}"
        );
        let late = SystemTime::UNIX_EPOCH + Duration::from_secs(2);
        assert_eq!(sum_up(history(), Some(late)).to_json()["runs"], json!(0));
    }
}
