//! A report for node_exporter's textfile collector. All are gauges: the history is rotated, so that nothing counts for ever.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::iter;

use super::{PERCENTS, Report, percentile};
use crate::logging::escaped;

impl Report {
    pub(super) fn to_prometheus(&self) -> String {
        let mut text = Metrics(String::new());
        let endings = self.endings.iter().map(|((outcome, code), runs)| {
            let code = code.map_or_else(String::new, |code| code.to_string());
            (labels(&[("outcome", outcome), ("exit_code", &code)]), *runs as f64)
        });
        text.add("runs", "Finished runs in the history, by outcome and exit code.", endings);
        let by_label = |value: fn(&super::Totals) -> f64| {
            self.labels
                .iter()
                .map(move |(label, totals)| (labels(&[("label", label.as_deref().unwrap_or_default())]), value(totals)))
        };
        text.add("label_runs", "Finished runs, by label.", by_label(|totals| totals.runs as f64));
        text.add("failed_runs", "Finished runs with another exit code than 0.", by_label(|totals| totals.failed as f64));
        text.add("waited_seconds", "Time spent waiting for the lock.", by_label(|totals| seconds(totals.waited_ms)));
        let slot_waited = by_label(|totals| seconds(totals.slot_waited_ms));
        text.add("slot_waited_seconds", "Time spent waiting for a slot.", slot_waited);
        let refresh_waited = by_label(|totals| seconds(totals.refresh_waited_ms));
        text.add("refresh_waited_seconds", "Time spent waiting for claude's own refresh locks.", refresh_waited);
        text.add("total_seconds", "Time from begin to end of the runs.", by_label(|totals| seconds(totals.total_ms)));
        text.add("turns", "Turns of claude.", by_label(|totals| totals.turns as f64));
        text.add("cost_usd", "Cost by claude's own account.", by_label(|totals| totals.cost_usd));
        for (name, help, spans) in [
            ("wait_seconds", "Time from the first try to the lock.", &self.waits),
            ("slot_wait_seconds", "Time from the first try to the slot.", &self.slot_waits),
            ("hold_seconds", "Time for which a run held the lock.", &self.holds),
            ("refresh_wait_seconds", "Time from the first look to the end of claude's own refresh locks.", &self.refresh_waits),
        ] {
            let points = PERCENTS.into_iter().filter_map(|percent| {
                let value = seconds(percentile(spans, percent)?);
                Some((labels(&[("quantile", &(percent as f64 / 100.0).to_string())]), value))
            });
            text.add(name, help, points);
        }
        for (name, help, value) in [
            ("refused_in_a_row", "Last runs in a row whose login was refused.", self.refused_in_a_row),
            ("skipped_lines", "Lines of the history that cannot be read.", self.skipped),
            ("unreadable", "1 if the history cannot be read.", usize::from(self.unreadable.is_some())),
        ] {
            text.add(name, help, iter::once((String::new(), value as f64)));
        }
        text.0
    }
}

struct Metrics(String);

impl Metrics {
    /// Adds a metric, with its values and their labels. Those whose labels are written alike are one.
    fn add(&mut self, name: &str, help: &str, values: impl Iterator<Item = (String, f64)>) {
        let mut sums = BTreeMap::<_, f64>::new();
        values.for_each(|(labels, value)| *sums.entry(labels).or_default() += value);
        let _ = write!(self.0, "# HELP claude_run_{name} {help}\n# TYPE claude_run_{name} gauge\n"); // into memory
        for (labels, value) in sums {
            let _ = writeln!(self.0, "claude_run_{name}{labels} {value}");
        }
    }
}

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// Labels of a value, with their texts escaped.
fn labels(pairs: &[(&str, &str)]) -> String {
    let pair = |(name, text): &(&str, &str)| {
        let text = escaped(text).replace('\\', "\\\\").replace('"', "\\\"");
        format!("{name}=\"{text}\"")
    };
    format!("{{{}}}", pairs.iter().map(pair).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;

    #[test]
    fn every_line_has_the_form_of_the_collector() {
        let text = report(&[(Some("a \"b\"\n\\"), 4, 1), (None, 6, 75), (Some(""), 6, 0), (Some("a \"b\"\\n\\"), 1, 1)])
            .to_prometheus();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            assert!(name.starts_with("claude_run_") && value.parse::<f64>().is_ok(), "{line}");
            assert_eq!(text.matches(&format!("\n{name} ")).count(), 1, "{line}");
        }
        assert!(text.contains(r#"claude_run_label_runs{label="a \"b\"\\n\\"} 2"#), "{text}");
        assert!(text.contains("claude_run_runs{outcome=\"exited\",exit_code=\"75\"} 1\n"), "{text}");
        assert!(text.contains("claude_run_wait_seconds{quantile=\"0.99\"} 6\n"), "{text}");
        assert!(text.contains("claude_run_slot_wait_seconds{quantile=\"0.99\"} 3\n"), "{text}");
        assert!(text.contains("claude_run_slot_waited_seconds{label=\"\"} 6\n"), "{text}");
        for gauge in ["refused_in_a_row 0", "unreadable 0", "skipped_lines 0", "refresh_waited_seconds{label=\"\"} 0"] {
            assert!(text.contains(&format!("claude_run_{gauge}\n")), "{text}");
        }
    }
}
