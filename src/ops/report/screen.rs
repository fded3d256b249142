//! A report for people: outcomes, labels, the lock, and the last day, in as many columns as there are.

use std::io::stdout;
use std::time::Duration;

use super::super::layout::{self, Look, Row, columns, fitted};
use super::super::text;
use super::{Hour, PERCENTS, Report, Totals, percentile};
use crate::config::duration;
use crate::logging::escaped;
use crate::sys::terminal;

/// Upper ends of the bars, in seconds; the last has none.
const STEPS: [(&str, u64); 7] =
    [("< 1s", 1), ("< 10s", 10), ("< 1m", 60), ("< 5m", 300), ("< 10m", 600), ("< 1h", 3600), (">= 1h", u64::MAX)];

/// Levels of a timeline, from nothing to the most.
const LEVELS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

/// Columns of all that stands behind a name or label.
const NUMBERS: usize = 48;

/// How much is shown.
#[derive(Clone, Copy)]
struct Extent {
    /// Number of labels; the others are summed up in a line.
    labels: usize,
    has_bars: bool,
    /// True if each outcome has a line of its own.
    is_table: bool,
}

/// From all to the least.
const EXTENTS: [Extent; 6] = [
    Extent { labels: usize::MAX, has_bars: true, is_table: true },
    Extent { labels: 12, has_bars: true, is_table: true },
    Extent { labels: 12, has_bars: false, is_table: true },
    Extent { labels: 6, has_bars: false, is_table: false },
    Extent { labels: 4, has_bars: false, is_table: false },
    Extent { labels: 2, has_bars: false, is_table: false },
];

impl Report {
    /// All there is; on a terminal, as much as its height has room for.
    pub(super) fn to_text(&self) -> String {
        let [all, .., least] = EXTENTS;
        let Some(size) = terminal::size_of(stdout()) else { return self.text_of(all, layout::width()) };
        let texts = EXTENTS.into_iter().map(|extent| self.text_of(extent, layout::width()));
        let fits = |text: &String| text.lines().count() < usize::from(size.ws_row);
        texts.into_iter().find(fits).unwrap_or_else(|| self.text_of(least, layout::width()))
    }

    fn text_of(&self, extent: Extent, width: usize) -> String {
        let mut text = format!("{}{}\n", text::count(self.total.runs, "finished run"), text::since(self.since));
        if let Some(why) = &self.unreadable {
            let style = Look::Bad.style();
            text += &format!("{style}{why}{style:#}\n");
        }
        if self.skipped > 0 {
            text += &format!("{} of the history skipped: cut, or not ours\n", text::count(self.skipped, "line"));
        }
        if let Some(refusals) = text::refusals(self.refused_in_a_row) {
            let style = Look::Bad.style();
            text += &format!("{style}{refusals}: log in again{style:#}\n");
        }
        if self.total.runs == 0 {
            return text;
        }
        // A name is cut where the terminal has no room, and never where it has.
        let longest = self.labels.keys().flatten().map(|label| columns(&escaped(label))).max().unwrap_or_default();
        let names = longest.clamp(19, 40).min(width.saturating_sub(NUMBERS + 1).max(12)) + 1;
        if extent.is_table {
            self.add_endings(&mut text, names);
        } else {
            let endings = self.endings.iter();
            let endings = endings.map(|((outcome, code), count)| format!("{count} {}", text::ending(outcome, *code)));
            text += &Row::new("outcomes", endings.collect::<Vec<_>>().join(", ")).to_text(width);
        }
        self.add_labels(&mut text, names, extent.labels);
        self.add_lock(&mut text, names);
        if extent.has_bars {
            self.add_bars(&mut text, names);
        }
        text += &last_day(&self.hours, names, width);
        let Totals { waited_ms, slot_waited_ms, refresh_waited_ms, total_ms, .. } = self.total;
        let lost = |to: &str, lost: u64| {
            let share = 100.0 * lost as f64 / total_ms.max(1) as f64;
            format!("lost to {to}: {} of {}, {share:.0} %\n", short(lost), short(total_ms))
        };
        text += &format!("\n{}", lost("the lock", waited_ms));
        for (to, spans, waited_ms) in
            [("slots", &self.slot_waits, slot_waited_ms), ("claude's refresh lock", &self.refresh_waits, refresh_waited_ms)]
        {
            text += &if spans.is_empty() { String::new() } else { lost(to, waited_ms) };
        }
        text
    }

    fn add_endings(&self, text: &mut String, names: usize) {
        text.push('\n');
        for ((outcome, code), count) in &self.endings {
            let look = if *code == Some(0) { Look::Good } else { Look::Odd }.style();
            let ending = fitted(&escaped(&text::ending(outcome, *code)), names);
            *text += &format!("{look}{ending}{look:#}{count:>7}\n");
        }
    }

    fn add_labels(&self, text: &mut String, names: usize, most: usize) {
        *text +=
            &heading("label", names, &format!("{:>7} {:>7} {:>11} {:>8} {:>11}", "runs", "failed", "waited", "turns", "cost"));
        let mut labels: Vec<_> = self.labels.iter().collect();
        let hidden = labels.len().saturating_sub(most);
        if hidden > 0 {
            labels.sort_by_key(|(_, totals)| std::cmp::Reverse(totals.runs));
            labels.truncate(most);
        }
        let row = |name: &str, totals: &Totals| {
            let Totals { runs, failed, waited_ms, turns, cost_usd, .. } = totals;
            let (name, waited) = (fitted(&escaped(name), names), short(*waited_ms));
            let look = if *failed > 0 { Look::Odd } else { Look::Plain }.style();
            format!("{name}{runs:>7}{look}{failed:>8}{look:#} {waited:>11} {turns:>8} {cost_usd:>7.2} USD\n")
        };
        text.extend(labels.iter().map(|(label, totals)| row(label.as_deref().unwrap_or("(no label)"), totals)));
        if hidden > 0 {
            let look = Look::Faint.style();
            *text +=
                &format!("{look}… and {hidden} more with no more runs each; `claude-run report | less` shows all{look:#}\n");
        }
        *text += &row("all", &self.total);
    }

    fn add_lock(&self, text: &mut String, names: usize) {
        let head = ["p50", "p90", "p99", "max"].map(|name| format!("{name:>12}")).concat();
        *text += &heading("session lock", names, &head);
        let others = [("wait for slot", &self.slot_waits), ("wait for refresh", &self.refresh_waits)];
        let others = others.into_iter().filter(|(_, spans)| !spans.is_empty());
        for (name, spans) in [("wait", &self.waits), ("hold", &self.holds)].into_iter().chain(others) {
            let points = PERCENTS.map(|percent| percentile(spans, percent).map_or_else(|| "-".into(), short));
            *text += &format!("{}{}\n", fitted(name, names), points.map(|point| format!(" {point:>11}")).concat());
        }
    }

    fn add_bars(&self, text: &mut String, names: usize) {
        let head =
            format!("{:<24}{:<24}", format!("    wait ({})", self.waits.len()), format!("    hold ({})", self.holds.len()));
        *text += &heading("how long", names, head.trim_end());
        let (waits, holds) = (bars(&self.waits), bars(&self.holds));
        for ((name, _), (wait, hold)) in STEPS.iter().zip(waits.iter().zip(&holds)) {
            *text += &format!("{}\n", format!("{name:<names$}{wait:<24}{hold}").trim_end());
        }
    }
}

fn heading(name: &str, names: usize, rest: &str) -> String {
    let bold = clap::builder::styling::Style::new().bold();
    format!("\n{bold}{name:<names$}{rest}{bold:#}\n")
}

/// Number and bar of each step, in 24 columns.
fn bars(spans: &[u64]) -> [String; STEPS.len()] {
    const ROOM: usize = 14;
    let mut counts = STEPS.map(|_| 0_usize);
    let steps = spans.iter().filter_map(|span| STEPS.iter().position(|(_, end)| span / 1000 < *end));
    steps.for_each(|step| counts[step] += 1);
    let most = counts.into_iter().max().unwrap_or_default().max(1);
    counts.map(|count| format!("{count:>7}  {}", "#".repeat((count * ROOM).div_ceil(most))))
}

/// The last day, a column or two for each hour.
fn last_day(hours: &[Hour], names: usize, width: usize) -> String {
    type Count = fn(&Hour) -> u64;
    let rows: [(&str, Count); 4] = [
        ("runs", |hour| hour.runs),
        ("failed", |hour| hour.failed),
        ("waited", |hour| hour.waited_ms),
        ("refreshes", |hour| hour.refreshes),
    ];
    if hours.iter().all(|hour| hour.runs == 0) {
        return String::new();
    }
    let of_each = if names + 48 + 14 <= width { 2 } else { 1 };
    let axis = ["-24h", "-18h", "-12h", "-6h"].map(|name| fitted(name, 6 * of_each)).concat();
    let mut text = heading("last day", names, &format!("{axis}now"));
    for (name, count) in rows {
        let most = hours.iter().map(count).max().unwrap_or_default();
        let level = |hour| count(hour).saturating_mul(8).div_ceil(most.max(1)) as usize;
        let line: String = hours.iter().map(|hour| LEVELS[level(hour).min(8)].repeat(of_each)).collect();
        let look = if name == "failed" { Look::Odd } else { Look::Plain }.style();
        let most = if name == "waited" { short(most) } else { most.to_string() };
        text += &format!("{name:<names$}{look}{line}{look:#}  most {most}\n");
    }
    text
}

/// A duration in at most two units: nobody reads the seconds of a day.
fn short(milliseconds: u64) -> String {
    duration::show(Duration::from_millis(milliseconds)).split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn each_span_counts_in_one_bar() {
        let spans: Vec<_> = [0, 0, 0, 1, 9, 10, 3599, 3600, 99_999].map(|seconds| seconds * 1000).to_vec();
        let counts = bars(&spans).map(|bar| bar[..7].trim().to_owned());
        assert_eq!(counts, ["3", "2", "1", "0", "0", "1", "2"]);
        assert_eq!(bars(&spans)[0].matches('#').count(), 14);
    }

    #[test]
    fn cells_stay_apart() {
        let text = report(&[(None, 999_999_999, 4), (None, 999_999_999, 4)]).to_text();
        assert!(text.contains(" 31years 8months 31years 8months") && text.contains("2\u{1b}[0m 63years 4months "), "{text}");
    }

    #[test]
    fn report_fits_its_terminal() {
        let mut report = report(&[(Some(&"long".repeat(20)), 0, 0), (Some("a"), 4, 1), (None, 6, 75)]);
        report.skipped = 2;
        let text = report.to_text();
        assert!(
            text.contains("lost to the lock: 10s of 16s, 62 %\nlost to slots: 5s of 16s, 31 %\n")
                && text.contains("2 lines of the history skipped"),
            "{text}"
        );
        for width in [61, 79, 199] {
            let text = anstream::adapter::strip_str(&last_day(&report.hours, 12, width)).to_string();
            assert!(text.lines().all(|line| columns(line) <= width) && text.contains("most 3"), "{width}: {text}");
        }
    }
}
