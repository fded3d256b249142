//! `claude-run events`: the events of token refreshes in Claude Code's own telemetry files, and a verdict: do its refresh locks
//! work? Telemetry that was delivered leaves no file, so that an empty directory proves nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::layout::{self, Look, hanging};
use super::{Context, answer, present, text};
use crate::claude::telemetry::{Meaning, RefreshEvent, Telemetry};
use crate::config::duration;
use crate::events::EventQueue;
use crate::logging::{self, escaped};
use crate::outcome::Outcome;
use crate::records::{time, timestamp};

/// Longest time between two events of one contention.
const SAME_WINDOW: Duration = Duration::from_secs(60);

pub(super) fn show(
    context: &Context,
    since: Option<SystemTime>,
    follow: bool,
    json: bool,
    out: &mut impl Write,
) -> Result<Outcome> {
    let mut telemetry = Telemetry::of(&context.config_dir()?);
    let mut events = EventQueue::open().context("cannot make a pipe")?;
    if follow {
        events.watch_directory(&telemetry.dir);
    }
    let mut told = None;
    loop {
        let mut recent = telemetry.read().with_context(|| format!("cannot read {}", telemetry.dir.display()))?;
        recent.retain(|event| since.is_none_or(|since| event.at >= since));
        if !follow {
            let summary = Summary::of(&recent, &telemetry, since);
            return answer(out, json, summary.is_healthy(), || summary.to_text(), || summary.to_json());
        }
        for event in &recent {
            let RefreshEvent { at, name, version, session } = event;
            let line = format!("{}  {version:<9}  {session}  {name}", time(*at));
            if !present(out, json, || format!("{}\n", escaped(&line)), || event_json(event))? {
                return Ok(Outcome::Shown);
            }
        }
        if told != telemetry.unreadable {
            told = telemetry.unreadable.clone();
            told.iter().for_each(|unreadable| logging::tell(&format!("a file cannot be read: {unreadable}")));
        }
        events.wait(None).context("cannot wait for events")?;
    }
}

#[derive(Default)]
struct Summary {
    since: Option<SystemTime>,
    files: usize,
    skipped: usize,
    /// File that cannot be read, if one is there, and why.
    unreadable: Option<String>,
    /// Number of lines about a refresh that cannot be understood, without those that are being written.
    malformed: usize,
    /// Number of events and their sessions, by name and version.
    counts: BTreeMap<(String, String), (usize, BTreeSet<String>)>,
    windows: Vec<Window>,
    /// Events that the locks should have prevented.
    broken: Vec<RefreshEvent>,
    /// Number of refreshes that failed without contention.
    other_failures: usize,
}

/// One contention: a time in which several sessions wanted to refresh.
#[derive(Serialize)]
struct Window {
    #[serde(with = "timestamp")]
    from: SystemTime,
    #[serde(with = "timestamp")]
    to: SystemTime,
    sessions: BTreeSet<String>,
    retries: usize,
    resolved: usize,
    broken: usize,
}

impl Summary {
    fn of(events: &[RefreshEvent], telemetry: &Telemetry, since: Option<SystemTime>) -> Self {
        let (files, skipped) = (telemetry.offsets.len(), telemetry.malformed + telemetry.cut);
        let (unclear, at) = telemetry.unclear;
        let malformed = if since.is_none_or(|since| Some(since) <= at) { unclear } else { 0 };
        let unreadable = telemetry.unreadable.clone();
        let mut summary = Self { since, files, skipped, unreadable, malformed, ..Self::default() };
        let (mut refreshing, mut starts) = (BTreeMap::<&str, SystemTime>::new(), VecDeque::new());
        for event in events {
            let (count, sessions) = summary.counts.entry((event.name.clone(), event.version.clone())).or_default();
            *count += 1;
            sessions.insert(event.session.clone());
            // A refresh without an end event was killed; it is over after a while.
            while let Some(&(session, began)) = starts.front()
                && !is_near(began, event.at)
            {
                starts.pop_front();
                if refreshing.get(session) == Some(&began) {
                    refreshing.remove(session);
                }
            }
            let mut meaning = event.meaning();
            match meaning {
                Meaning::Starts => {
                    refreshing.insert(&event.session, event.at);
                    starts.push_back((event.session.as_str(), event.at));
                    // The locks exist to prevent that.
                    meaning = if refreshing.len() > 1 { Meaning::Broken } else { Meaning::Routine };
                }
                Meaning::Ends | Meaning::Failed => drop(refreshing.remove(event.session.as_str())),
                _ => {}
            }
            summary.add(event, meaning);
        }
        // A session that failed, and then used the token that another had got, has lost nothing.
        let mut recoveries = BTreeMap::<&str, Vec<SystemTime>>::new();
        for event in events.iter().filter(|event| event.name == "race_recovered") {
            recoveries.entry(&event.session).or_default().push(event.at);
        }
        let has_recovered = |failed: &RefreshEvent| {
            let recoveries = recoveries.get(failed.session.as_str()).map_or(&[][..], Vec::as_slice);
            let next = recoveries.get(recoveries.partition_point(|at| *at < failed.at));
            failed.meaning() == Meaning::Failed && next.is_some_and(|at| is_near(failed.at, *at))
        };
        // After a new login, refreshes succeed again.
        let last_end = events.iter().rfind(|event| event.meaning() == Meaning::Ends).map(|event| event.at);
        let is_over = |lost: &RefreshEvent| lost.meaning() == Meaning::Lost && last_end.is_some_and(|end| end > lost.at);
        summary.broken.retain(|event| !has_recovered(event) && !is_over(event));
        summary
    }

    fn add(&mut self, event: &RefreshEvent, meaning: Meaning) {
        let is_contended = self.windows.last().is_some_and(|window| is_near(window.to, event.at));
        match meaning {
            Meaning::Routine | Meaning::Starts | Meaning::Ends => return,
            Meaning::Failed if !is_contended => return self.other_failures += 1,
            Meaning::Lost => return self.broken.push(event.clone()),
            Meaning::Broken | Meaning::Failed => self.broken.push(event.clone()),
            Meaning::Contention | Meaning::Resolved => {}
        }
        if !is_contended {
            let (from, sessions) = (event.at, BTreeSet::new());
            self.windows.push(Window { from, to: from, sessions, retries: 0, resolved: 0, broken: 0 });
        }
        let Some(window) = self.windows.last_mut() else { return };
        window.to = event.at;
        window.sessions.insert(event.session.clone());
        match meaning {
            Meaning::Contention => window.retries += 1,
            Meaning::Resolved => window.resolved += 1,
            _ => window.broken += 1,
        }
    }

    /// The verdict in a word.
    fn health(&self) -> &'static str {
        match (self.broken.is_empty(), self.unreadable.is_none() && self.malformed == 0) {
            (false, _) => "bad",
            (true, false) => "not known",
            (true, true) => "healthy",
        }
    }

    fn is_healthy(&self) -> bool {
        self.health() == "healthy"
    }

    fn verdict(&self) -> String {
        if !self.broken.is_empty() {
            let sessions: BTreeSet<_> = self.broken.iter().map(|event| event.session.as_str()).collect();
            let names: BTreeSet<_> = self.broken.iter().map(|event| event.name.as_str()).collect();
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            if self.broken.iter().all(|event| event.meaning() == Meaning::Lost) {
                return format!("bad: the login was lost ({names})");
            }
            return format!("bad: the refresh locks did not hold for {} ({names})", text::count(sessions.len(), "session"));
        }
        if let Some(unreadable) = &self.unreadable {
            return format!(
                "not known: a file cannot be read, {unreadable}; look at it, or call this as the user who runs the agents"
            );
        }
        if self.malformed > 0 {
            let lines = text::count(self.malformed, "line");
            return format!(
                "not known: {lines} about a refresh cannot be understood: cut, or of another shape; remove its file once it is looked at"
            );
        }
        if self.windows.iter().any(|window| window.resolved > 0) {
            let windows = text::count(self.windows.len(), "time");
            return format!("healthy: {windows}, several wanted to refresh at once, and the others took over what one had got");
        }
        let healthy = match (self.counts.is_empty(), self.windows.is_empty()) {
            (true, _) => ", as far as can be seen: no event of a refresh is here; telemetry that was delivered leaves none",
            (_, true) => ": refreshes, and no two at once",
            _ => ": several wanted to refresh at once, and none failed over it",
        };
        format!("healthy{healthy}")
    }

    fn advice(&self) -> BTreeSet<&'static str> {
        if self.is_healthy() && self.other_failures > 0 {
            return ["refreshes failed though nobody else was at it: the network, or a login that is no longer good"].into();
        }
        self.broken.iter().map(advice_on).collect()
    }

    fn to_text(&self) -> String {
        let total = text::count(self.counts.values().map(|(count, _)| count).sum(), "event");
        let (files, since) = (text::count(self.files, "telemetry file"), text::since(self.since));
        let mut text = format!("{total} of refreshes in {files}{since}\n");
        if self.skipped > 0 {
            text += &format!("{} skipped: cut, or of another shape\n", text::count(self.skipped, "line"));
        }
        if !self.counts.is_empty() {
            text += &format!("\n{:<34}{:<12}{:>7}{:>10}\n", "event", "version", "count", "sessions");
        }
        for ((name, version), (count, sessions)) in &self.counts {
            let row = format!("{name:<34}{version:<12}{count:>7}{:>10}", sessions.len());
            text.extend([&*escaped(&row), "\n"]);
        }
        if !self.windows.is_empty() {
            text += &format!(
                "\n{:<27}{:>12}{:>10}{:>9}{:>10}{:>8}\n",
                "contention", "for", "sessions", "retries", "resolved", "broken"
            );
        }
        for Window { from, to, sessions, retries, resolved, broken } in &self.windows {
            let (length, from) = (duration::show(to.duration_since(*from).unwrap_or_default()), time(*from));
            text += &format!("{from:<27}{length:>12}{:>10}{retries:>9}{resolved:>10}{broken:>8}\n", sessions.len());
        }
        let look = if self.is_healthy() { Look::Good } else { Look::Bad }.style();
        let verdict = hanging(&self.verdict(), 2, layout::width());
        text += &format!("\n{look}{verdict}{look:#}\n");
        text.extend(self.advice().into_iter().map(|advice| format!("- {}\n", hanging(advice, 2, layout::width()))));
        text
    }

    fn to_json(&self) -> Value {
        let counts = self.counts.iter().map(|((name, version), (count, sessions))| {
            json!({"name": name, "version": version, "count": count, "sessions": sessions})
        });
        json!({
            "verdict": self.health(),
            "why": self.verdict(),
            "advice": self.advice(),
            "since": self.since.map(time),
            "files": self.files,
            "skipped": self.skipped,
            "unreadable": self.unreadable,
            "counts": counts.collect::<Value>(),
            "windows": self.windows,
            "other_failures": self.other_failures,
            "broken": self.broken.iter().map(event_json).collect::<Value>(),
        })
    }
}

/// Advice on an event that the locks should have prevented.
fn advice_on(event: &RefreshEvent) -> &'static str {
    match event.name.as_str() {
        "lock_retry_limit_reached" => {
            "lock_retry_limit_reached: a lock was not free for all of its retries: was its holder killed? see `claude-run status`"
        }
        "lock_error" => "lock_error: a lock could not be made: may these agents write the directory above the config dir?",
        "starting" | "failure" => {
            "starting, failure: several refreshed at once, and one may have used up what another had: do all agents see the same \
             directory above the config dir? Before 2.1.128, a config dir that is bind-mounted by itself has no lock in common; `--lock \
             exclusive` keeps them apart"
        }
        "save_failed" => {
            "save_failed: a new token could not be written, and is lost: a full disk, or a login that is mounted by itself? log in again"
        }
        _ if event.meaning() == Meaning::Lost => {
            "invalid_grant: the endpoint has refused the refresh token: log in again, and see who refreshes outside of the lock, or was \
             killed in mid-refresh"
        }
        _ => "compromised: a lock was taken from its holder: a clock that jumps, a stopped process, a slow file system",
    }
}

fn event_json(RefreshEvent { at, name, version, session }: &RefreshEvent) -> Value {
    json!({"at": time(*at), "name": name, "version": version, "session": session})
}

fn is_near(earlier: SystemTime, later: SystemTime) -> bool {
    later.duration_since(earlier).unwrap_or_default() <= SAME_WINDOW
}
