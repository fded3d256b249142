//! Forms that several operations share: in text for people, in JSON for programs.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::{Value, json};

use crate::claude::program::NAME;
use crate::config::duration::show_seconds;
use crate::config::settings::{Origin, Written};
use crate::lock::{Holder, NAMED};
use crate::logging::{escaped, escaped_lines};
use crate::records::{RunRecord, time};
use crate::sys::proc::{self, Stat};

pub(super) fn setting(Written { value, origin, .. }: &Written) -> String {
    format!("{} ({})", shown(value), self::origin(origin))
}

pub(super) fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Flag => "flag".into(),
        Origin::Variable(name) => name.to_string(),
        Origin::File(file, line) => format!("{}:{line}", shown(file)),
        Origin::Default => "default".into(),
    }
}

/// A path or a value, whose bytes are not ours.
pub(super) fn shown(text: impl AsRef<OsStr>) -> String {
    escaped(&text.as_ref().to_string_lossy()).into_owned()
}

/// Objection to `set`, a value that was written into the settings file just now: it was said here, and may be said elsewhere, too.
pub(super) fn overruled(set: &str, Written { value: here, origin: place, .. }: &Written) -> Option<String> {
    let goes_before = here != set && matches!(place, Origin::Flag | Origin::Variable(_));
    goes_before.then(|| format!("but here {} says {}, and goes before the file", origin(place), shown(here)))
}

pub(super) fn setting_json(Written { name, value, origin }: &Written) -> Value {
    let (kind, variable, place) = match origin {
        Origin::Flag => ("flag", None, None),
        Origin::Variable(name) => ("environment", Some(name), None),
        Origin::File(path, line) => ("file", None, Some((path.to_string_lossy(), line))),
        Origin::Default => ("default", None, None),
    };
    let (value, (file, line)) = (value.to_string_lossy(), place.unzip());
    json!({"name": name, "value": value, "origin": kind, "variable": variable, "file": file, "line": line})
}

pub(super) fn run(record: &RunRecord) -> String {
    format!("{}, {}, {}", record.who(), escaped(&record.mode), show_seconds(record.age()))
}

/// A process that is no run.
pub(super) fn process(pid: i32) -> String {
    let name = Stat::read(pid).map_or_else(|| "a process".to_owned(), |stat| escaped(&stat.name()).into_owned());
    format!("{name} (pid {pid})")
}

/// Longest command line that is shown.
const LONGEST_COMMAND: usize = 200; // characters

/// Command line of a process, masked before anybody cuts or wraps it. A prompt is never shown: one may stand behind `-p` and behind the name
/// of claude, of its script, or of claude-run; and a word with other signs than those of a path may be one anywhere. A mark stands for the
/// rest.
pub(super) fn command_line(pid: i32) -> Option<String> {
    let words = proc::command_line(pid)?;
    let is_plain = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._+,:@%=-".contains(&byte));
    let is_before_prompt = |word: &String| {
        let name = Path::new(word).file_name().unwrap_or_default().to_string_lossy();
        name.contains(NAME) || ["cli.js", "-p", "--print"].contains(&&*name)
    };
    let end = words.iter().position(|word| !is_plain(word)).unwrap_or(words.len());
    let end = words[..end].iter().position(is_before_prompt).map_or(end, |before| before + 1);
    let line = escaped_lines(&words[..end].join(" "));
    let shown: String = line.chars().take(LONGEST_COMMAND).collect();
    let is_whole = end == words.len() && shown.len() == line.len();
    (!line.is_empty()).then_some(if is_whole { shown } else { shown + " …" })
}

/// A run, for programs: the fields of its record, and how long it has been in its state.
#[derive(Serialize)]
pub(super) struct RunView<'a> {
    #[serde(flatten)]
    record: &'a RunRecord,
    age_ms: u64,
}

impl<'a> RunView<'a> {
    pub(super) fn of(record: &'a RunRecord) -> Self {
        Self { record, age_ms: age_ms(record.since) }
    }

    pub(super) fn of_each(records: impl IntoIterator<Item = &'a RunRecord>) -> Vec<Self> {
        records.into_iter().map(Self::of).collect()
    }
}

/// The way out of a lock that the leftovers of `holder` have: who ignores TERM has to be killed, and what it has started may have the
/// lock as well.
pub(super) fn end_leftovers(holder: &Holder) -> String {
    let pids: Vec<_> = holder.processes().iter().take(NAMED).map(|process| process.pid.to_string()).collect();
    let (whom, pids) = match pids.as_slice() {
        [] => ("it", "and its pid".to_owned()),
        [pid] => ("it", pid.clone()),
        pids => ("them", pids.join(" ")),
    };
    format!("end {whom}: kill {pids}, or kill -KILL where that is ignored; the lock is free with the last process that has it")
}

/// The way out of a lock or slot that somebody has whose claude-run was killed.
pub(super) fn end_orphan(holder: &Holder) -> String {
    format!("give it a minute, since it may be refreshing the token; then {}", end_leftovers(holder))
}

/// How a run ended: `lock busy (75)`.
pub(super) fn ending(outcome: &str, exit_code: Option<u8>) -> String {
    let code = exit_code.map_or_else(String::new, |code| format!(" ({code})"));
    format!("{}{code}", outcome.replace('-', " "))
}

pub(super) fn expiry(expiry: SystemTime) -> String {
    match expiry.duration_since(SystemTime::now()) {
        Ok(left) => format!("expires in {}", show_seconds(left)),
        Err(error) => format!("expired {} ago; the next claude refreshes it", show_seconds(error.duration())),
    }
}

/// Says that the login of the last `runs` in a row was refused. One alone may have met a token that another was just refreshing.
pub(super) fn refusals(runs: usize) -> Option<String> {
    (runs > 1).then(|| format!("the last {runs} runs in a row ended with \"authentication refused (401)\""))
}

/// Time since `at`; zero if that is yet to come.
pub(super) fn age(at: SystemTime) -> Duration {
    SystemTime::now().duration_since(at).unwrap_or_default()
}

pub(super) fn age_ms(at: SystemTime) -> u64 {
    age(at).as_millis() as u64
}

pub(super) fn since(since: Option<SystemTime>) -> String {
    since.map_or_else(String::new, |since| format!(" since {}", minute(since)))
}

/// `2026-11-26 10:28 UTC`
fn minute(at: SystemTime) -> String {
    format!("{} UTC", time(at)[..16].replace('T', " "))
}

/// `1 run`, `2 runs`
pub(super) fn count(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
