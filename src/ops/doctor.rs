//! `claude-run doctor`: every check of the rollout of a shared config dir, each with what it means for the factory and what to do.
//! It changes nothing, but for what `--fix` asks for, and for its probes, which leave nothing behind.

mod claude;
mod filesystem;
mod fleet;
mod hosts;
mod locks;
mod place;
mod settings;

use std::io::Write;

use anyhow::Result;
use clap::builder::styling::{AnsiColor, Style};

use super::{Context, write};
use crate::object::Object;
use crate::outcome::Outcome;

/// How a check turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Pass,
    Warning,
    Failure,
}

/// What a check found.
#[derive(Debug)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    what: String,
    /// For this factory.
    means: String,
    todo: String,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }

    /// On a terminal.
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
    fn pass(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Pass, what: what.into(), means: String::new(), todo: String::new() }
    }

    fn warning(check: &'static str, what: impl Into<String>, means: &str, todo: &str) -> Self {
        Self { check, verdict: Verdict::Warning, what: what.into(), means: means.to_owned(), todo: todo.to_owned() }
    }

    fn failure(check: &'static str, what: impl Into<String>, means: &str, todo: &str) -> Self {
        Self { verdict: Verdict::Failure, ..Self::warning(check, what, means, todo) }
    }

    fn to_text(&self) -> String {
        let Self { check, verdict, what, means, todo } = self;
        let style = verdict.style();
        let mut text = format!("{style}{:<9}{style:#}{check:<16}{what}\n", verdict.name());
        for (name, line) in [("means", means), ("do", todo)] {
            if !line.is_empty() {
                text.push_str(&format!("{:<25}{name}: {line}\n", ""));
            }
        }
        text
    }

    fn to_json(&self) -> Object {
        let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let mut object = Object::default();
        object
            .add("check", self.check)
            .add("verdict", self.verdict.name())
            .add("what", &self.what)
            .add("means", given(&self.means))
            .add("do", given(&self.todo));
        object
    }
}

/// Goes through all checks. With `fix`, refresh locks that nobody can hold any more are removed.
pub(super) fn examine(context: &Context, fix: bool, json: bool, out: &mut impl Write) -> Result<Outcome> {
    let config_dir = context.config_dir();
    let mut findings = place::config_dir(context);
    if let Ok(config_dir) = &config_dir {
        let version = claude::version(context);
        findings.extend(place::sibling(config_dir, version.as_ref().ok().and_then(|found| found.version)));
        findings.extend(filesystem::check(config_dir));
        findings.extend(hosts::check(context));
        findings.extend(fleet::views(config_dir));
        findings.extend(locks::session(context, config_dir));
        findings.extend(locks::refresh(config_dir, fix));
        findings.extend(settings::login(context, config_dir));
        findings.extend(claude::check(version));
        findings.extend(settings::check(context));
        findings.extend(fleet::versions(config_dir));
    }
    let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Pass);
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let text = if json {
        let mut object = Object::default();
        object
            .add("verdict", worst.name())
            .add("failures", count(Verdict::Failure))
            .add("warnings", count(Verdict::Warning))
            .add_list("checks", findings.iter().map(Finding::to_json));
        format!("{}\n", object.into_text())
    } else {
        let (failures, warnings) = (count(Verdict::Failure), count(Verdict::Warning));
        let lines: String = findings.iter().map(Finding::to_text).collect();
        let (failures, warnings) = (super::text::count(failures, "failure"), super::text::count(warnings, "warning"));
        format!("{lines}\n{failures}, {warnings} in {}\n", super::text::count(findings.len(), "check"))
    };
    write(out, &text)?;
    Ok(if worst == Verdict::Failure { Outcome::Trouble } else { Outcome::Shown })
}
