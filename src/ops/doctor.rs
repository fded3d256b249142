//! `claude-run doctor`: checks of a shared config dir, each with what a finding means for the factory and what to do. Changes
//! nothing except with `--fix`; its probes leave nothing behind.

mod claude;
mod config_dir;
mod filesystem;
mod locks;
mod slots;
mod storage;

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::checks::{Check, Finding, Verdict};
use super::layout::{self, Look, hanging};
use super::{Context, Factory, answer, text};
use crate::claude::config_dir::obstacle;
use crate::claude::refresh_locks::CutRefresh;
use crate::claude::storage::ClaudeStorage;
use crate::claude::version::Version;
use crate::config::settings::{EXTERNAL_LOCK, LockMode, unknown_variables};
use crate::logging::escaped;
use crate::outcome::Outcome;
use crate::records::{Census, RecordStore};

struct Subject<'a> {
    context: &'a Context<'a>,
    config_dir: PathBuf,
    storage: ClaudeStorage,
    /// As it is before its traces are removed.
    cut_refresh: Option<CutRefresh>,
    /// Path, and answer to `--version`.
    claude: Result<(PathBuf, String)>,
    factory: Result<Factory>,
    records: RecordStore,
    census: io::Result<Census>,
    fix: bool,
}

type Work = fn(&Subject, &mut Check);
/// Checks of a config dir that can be resolved.
const CHECKS: [(&str, Work); 13] = [
    ("sibling lock", config_dir::check_sibling),
    ("file system", filesystem::check),
    ("several hosts", filesystem::check_hosts),
    ("records", locks::check_records),
    ("fleet", locks::check_views),
    ("session lock", locks::check_session_lock),
    ("slots", slots::check),
    ("refresh locks", locks::check_refresh_locks),
    ("storage", storage::check),
    ("login", claude::check_login),
    ("claude", claude::check),
    ("settings", check_settings),
    ("claude-run", locks::check_versions),
];

impl<'a> Subject<'a> {
    fn of(context: &'a Context<'a>, config_dir: PathBuf, fix: bool) -> Self {
        let (claude, storage) = (claude::find(context), context.invocation(&config_dir).storage());
        let records = RecordStore::of(&config_dir);
        let (census, cut_refresh) = (records.census(), CutRefresh::last(&storage));
        Self { context, config_dir, storage, cut_refresh, claude, factory: Factory::of(context), records, census, fix }
    }

    /// True if the claude here has a refresh lock inside its storage; `None` if its version is not known.
    fn has_inner_lock(&self) -> Option<bool> {
        let (path, answer) = self.claude.as_ref().ok()?;
        Version::of_program(path).or_else(|| Version::parse(answer)).map(|version| version >= Version::INNER_LOCK)
    }
}

impl Finding {
    fn to_text(&self, width: usize) -> String {
        let Self { check, verdict, what, means, todo } = self;
        let (verdict, look) = match verdict {
            Verdict::Pass => ("pass", Look::Good),
            Verdict::Warning => ("warning", Look::Odd),
            Verdict::Failure => ("failure", Look::Bad),
        };
        // On a narrow terminal, the name of the check has a line of its own.
        let (indent, end) = if width < 60 { (2, "\n  ") } else { (25, "") };
        let style = look.style();
        let head = format!("{style}{verdict:<9}{style:#}{check:<16}{end}");
        let rest = [("means", *means), ("do", todo.as_deref())]
            .into_iter()
            .filter_map(|(name, line)| Some(format!("{name}: {}", line?)));
        let rest: String = rest.map(|line| format!("{:indent$}{}\n", "", hanging(&line, indent, width))).collect();
        format!("{head}{}\n{rest}", hanging(what, indent, width))
    }
}

/// Runs all checks. With `fix`, refresh locks without a live holder are removed.
pub(super) fn examine(context: &Context, fix: bool, json: bool, out: &mut impl Write) -> Result<Outcome> {
    let mut check = Check { name: "config dir", ..Check::default() };
    config_dir::check(context, &mut check);
    // Of what has no place, there is nothing more to say.
    if let Some(config_dir) = context.config_dir().ok().filter(|dir| obstacle(dir).is_none()) {
        let subject = Subject::of(context, config_dir, fix);
        for (name, work) in CHECKS {
            check.name = name;
            work(&subject, &mut check);
        }
    }
    let mut findings = check.findings;
    let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Pass);
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (failures, warnings) = (count(Verdict::Failure), count(Verdict::Warning));
    let json_form = json!({"verdict": worst, "failures": failures, "warnings": warnings, "checks": findings});
    findings.sort_by_key(|finding| finding.verdict); // failures last, where a terminal shows them
    let lines: String = findings.iter().map(|finding| finding.to_text(layout::width())).collect();
    let (failures, warnings) = (text::count(failures, "failure"), text::count(warnings, "warning"));
    let text = format!("{lines}\n{failures}, {warnings} in {}\n", text::count(findings.len(), "check"));
    answer(out, json, worst != Verdict::Failure, || text, || json_form)
}

/// Objections to a mode without the session lock, or with less of it: trouble with claude's own lock.
pub(super) fn objections(context: &Context, mode: LockMode) -> Vec<String> {
    let Ok(config_dir) = context.config_dir() else { return Vec::new() };
    let subject = Subject::of(context, config_dir, false);
    let older = match subject.has_inner_lock() {
        Some(true) => return Vec::new(),
        Some(false) if mode == LockMode::PassThrough => Some(
            "but the claude here is older than 2.1.128: without the session lock, two refreshes can lose the login; see `claude-run doctor`"
                .to_owned(),
        ),
        _ => None,
    };
    let mut check = Check { name: "sibling lock", ..Check::default() };
    config_dir::check_sibling(&subject, &mut check);
    check.objections().map(|text| format!("but {text}")).chain(older).collect()
}

/// A run keeps the mode that it began with.
fn check_modes(subject: &Subject, factory: &Factory, check: &mut Check) {
    let mode = factory.settings.lock_mode.name();
    let live = subject.census.iter().flat_map(|census| census.live.iter().chain(&census.elsewhere));
    let mut others: Vec<_> = live.filter(|run| run.mode != mode).collect();
    others.sort_by_key(|run| run.began);
    if others.is_empty() {
        return;
    }
    let names: Vec<_> = others.iter().map(|run| format!("{} follows {}", run.who(), escaped(&run.mode))).collect();
    let what = format!("{} of another mode than {mode}: {}", text::count(names.len(), "live run"), names.join(", "));
    let means = "they began before it was set, or were told another: those without the lock run beside its holder, those with it keep others waiting";
    let todo =
        "`claude-run mode --drain` waits for their end; if they come again, take --lock and CLAUDE_RUN_LOCK out of their calls";
    check.warn(what, means, todo);
}

fn check_settings(subject: &Subject, check: &mut Check) {
    let means = "no run starts: each ends with 125 and this message";
    let mistake = subject.factory.as_ref().map_or(&subject.context.file_error, |factory| &factory.mistake);
    if let Some(error) = mistake {
        return check.fail(error, means, "fix that value where it is set, or move the file away");
    }
    for what in unknown_variables(&env::vars_os().collect::<Vec<_>>()) {
        check.warn(what, "it has no effect", "correct its name, or unset it");
    }
    match &subject.factory {
        Ok(factory) => {
            check.pass(format!("the lock mode is {}", factory.mode_text()));
            check_modes(subject, factory, check);
        }
        Err(error) => return check.fail(format!("{error:#}"), means, "fix that value where it is set"),
    }
    if (subject.context.environment)(EXTERNAL_LOCK).is_some_and(|value| !value.is_empty()) {
        let means = "it means exclusive here, whatever the settings file says; CLAUDE_RUN_LOCK goes before it";
        check.warn(format!("{EXTERNAL_LOCK} is set"), means, "take it out of the environment once no old script needs it");
    }
}
