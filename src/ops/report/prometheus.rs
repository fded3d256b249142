//! A report for node_exporter's textfile collector. All are gauges: the history is rotated, so that nothing counts for ever.

use std::fmt::Write;

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
        text.add("waited_seconds", "Time spent waiting for the lock.", by_label(|totals| totals.waited_ms as f64 / 1000.0));
        text.add("total_seconds", "Time from begin to end of the runs.", by_label(|totals| totals.total_ms as f64 / 1000.0));
        text.add("turns", "Turns of claude.", by_label(|totals| totals.turns as f64));
        text.add("cost_usd", "Cost by claude's own account.", by_label(|totals| totals.cost_usd));
        for (name, help, spans) in [
            ("wait_seconds", "Time from the first try to the lock.", &self.waits),
            ("hold_seconds", "Time for which a run held the lock.", &self.holds),
            ("refresh_wait_seconds", "Time spent waiting for claude's own refresh locks.", &self.refresh_waits),
        ] {
            let points = PERCENTS.into_iter().filter_map(|percent| {
                let value = percentile(spans, percent)? as f64 / 1000.0;
                Some((labels(&[("quantile", &(percent as f64 / 100.0).to_string())]), value))
            });
            text.add(name, help, points);
        }
        text.add(
            "skipped_lines",
            "Lines of the history that cannot be read.",
            [(String::new(), self.skipped as f64)].into_iter(),
        );
        text.0
    }
}

struct Metrics(String);

impl Metrics {
    /// Adds a metric, with its values and their labels.
    fn add(&mut self, name: &str, help: &str, values: impl Iterator<Item = (String, f64)>) {
        let _ = write!(self.0, "# HELP claude_run_{name} {help}\n# TYPE claude_run_{name} gauge\n"); // into memory
        for (labels, value) in values {
            let _ = writeln!(self.0, "claude_run_{name}{labels} {value}");
        }
    }
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
        let text = report(&[(Some("a \"b\"\n\\"), 4, 1), (None, 6, 75)]).to_prometheus();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            assert!(name.starts_with("claude_run_") && value.parse::<f64>().is_ok(), "{line}");
        }
        assert!(text.contains(r#"claude_run_label_runs{label="a \"b\"\\n\\"} 1"#), "{text}");
        assert!(text.contains("claude_run_runs{outcome=\"exited\",exit_code=\"75\"} 1\n"), "{text}");
        assert!(text.contains("claude_run_wait_seconds{quantile=\"0.99\"} 6\n"), "{text}");
    }
}
