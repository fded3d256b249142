//! `claude-run doctor`: checks of a shared config dir, each with what a finding means for the factory and what to do. Changes
//! nothing except with `--fix`; its probes leave nothing behind.

mod claude;
mod config_dir;
mod filesystem;
mod fleet;
mod hosts;
mod locks;
mod settings;

use std::io::Write;

use anyhow::Result;
use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;

use super::{Context, text, write, write_json};
use crate::outcome::Outcome;

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Warning,
    Failure,
}

/// One finding of a check, in the form that JSON has it.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    what: String,
    /// Consequence for the factory; null for a pass.
    means: Option<&'static str>,
    #[serde(rename = "do")]
    todo: Option<&'static str>,
}

/// JSON form of all findings.
#[derive(Serialize)]
struct ReportJson {
    /// The worst of all.
    verdict: Verdict,
    failures: usize,
    warnings: usize,
    checks: Vec<Finding>,
}

/// A check in progress.
struct Check {
    name: &'static str,
    findings: Vec<Finding>,
}

impl Check {
    /// Runs one check.
    fn run(name: &'static str, work: impl FnOnce(&mut Self)) -> Vec<Finding> {
        let mut check = Self { name, findings: Vec::new() };
        work(&mut check);
        check.findings
    }

    fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    fn pass(&mut self, what: impl Into<String>) {
        let (check, verdict) = (self.name, Verdict::Pass);
        self.findings.push(Finding { check, verdict, what: what.into(), means: None, todo: None });
    }

    fn warn(&mut self, what: impl Into<String>, means: &'static str, todo: &'static str) {
        self.add(Verdict::Warning, what, means, todo);
    }

    fn fail(&mut self, what: impl Into<String>, means: &'static str, todo: &'static str) {
        self.add(Verdict::Failure, what, means, todo);
    }

    fn add(&mut self, verdict: Verdict, what: impl Into<String>, means: &'static str, todo: &'static str) {
        let check = self.name;
        self.findings.push(Finding { check, verdict, what: what.into(), means: Some(means), todo: Some(todo) });
    }
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }

    /// Colour on a terminal.
    fn style(self) -> Style {
        match self {
            Self::Pass => AnsiColor::Green,
            Self::Warning => AnsiColor::Yellow,
            Self::Failure => AnsiColor::Red,
        }
        .on_default()
    }
}

impl Finding {
    fn to_text(&self) -> String {
        let Self { check, verdict, what, means, todo } = self;
        let style = verdict.style();
        let mut text = format!("{style}{:<9}{style:#}{check:<16}{what}\n", verdict.name());
        for (name, line) in [("means", means), ("do", todo)] {
            text.extend(line.map(|line| format!("{:<25}{name}: {line}\n", "")));
        }
        text
    }
}

/// Runs all checks. With `fix`, refresh locks without a live holder are removed.
pub(super) fn examine(context: &Context, fix: bool, json: bool, out: &mut impl Write) -> Result<Outcome> {
    let mut findings = Check::run("config dir", |check| config_dir::check(context, check));
    if let Ok(dir) = &context.config_dir() {
        let claude = claude::InstalledClaude::find(context);
        let version = claude.as_ref().ok().and_then(|claude| claude.version);
        findings.extend(Check::run("sibling lock", |check| config_dir::check_sibling(dir, version, check)));
        findings.extend(Check::run("file system", |check| filesystem::check(dir, check)));
        findings.extend(Check::run("several hosts", |check| hosts::check(context, check)));
        findings.extend(Check::run("fleet", |check| fleet::check_views(dir, check)));
        findings.extend(Check::run("session lock", |check| locks::check_session_lock(context, dir, check)));
        findings.extend(Check::run("refresh locks", |check| locks::check_refresh_locks(dir, fix, check)));
        findings.extend(Check::run("login", |check| settings::check_login(context, dir, check)));
        findings.extend(Check::run("claude", |check| claude::check(claude, check)));
        findings.extend(Check::run("settings", |check| settings::check(context, check)));
        findings.extend(Check::run("claude-run", |check| fleet::check_versions(dir, check)));
    }
    let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Pass);
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (failures, warnings) = (count(Verdict::Failure), count(Verdict::Warning));
    if json {
        write_json(out, &ReportJson { verdict: worst, failures, warnings, checks: findings })?;
    } else {
        let lines: String = findings.iter().map(Finding::to_text).collect();
        let (failures, warnings) = (text::count(failures, "failure"), text::count(warnings, "warning"));
        write(out, &format!("{lines}\n{failures}, {warnings} in {}\n", text::count(findings.len(), "check")))?;
    }
    Ok(if worst == Verdict::Failure { Outcome::Trouble } else { Outcome::Shown })
}
