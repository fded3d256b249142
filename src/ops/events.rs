//! `claude-run events`: the events of token refreshes in Claude Code's own telemetry files, and a verdict: do its refresh locks
//! work? Telemetry that was delivered leaves no file, so that an empty directory proves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{Context, cannot_read, since_time, text, write, write_json};
use crate::claude::telemetry::{Meaning, RefreshEvent, Telemetry};
use crate::config::duration::{self, DurationSetting};
use crate::events::EventQueue;
use crate::outcome::Outcome;
use crate::records::{sanitize, time, timestamp};

/// Longest time between two events of one contention.
const SAME_WINDOW: Duration = Duration::from_secs(60);

/// Advice on broken locks, by the beginnings of the names of their events.
const ADVICE: [(&[&str], &str); 4] = [
    (
        &["lock_retry_limit_reached"],
        "lock_retry_limit_reached: a lock was not free for all of its retries: was its holder killed? see `claude-run status`",
    ),
    (&["lock_error"], "lock_error: a lock could not be made: may these agents write the directory above the config dir?"),
    (
        &["lock_compromised_", "compromised_"],
        "compromised: a lock was taken from its holder: a clock that jumps, a stopped process, a slow file system",
    ),
    (
        &["starting", "failure"],
        "starting, failure: several refreshed at once, and one may have used up what another had: do all agents see the same \
         directory above the config dir? Before 2.1.128, a config dir that is bind-mounted by itself has no lock in common; `--lock \
         refresh` keeps them apart",
    ),
];

const ADVICE_ON_OTHER_FAILURES: &str =
    "refreshes failed though nobody else was at it: the network, or a login that is no longer good";

/// Options of `events`.
pub(super) struct EventsOptions {
    pub(super) since: Option<DurationSetting>,
    pub(super) follow: bool,
    pub(super) json: bool,
}

/// Shows a summary; with `follow`, each event as it comes.
pub(super) fn show(context: &Context, options: EventsOptions, out: &mut impl Write) -> Result<Outcome> {
    let EventsOptions { since, follow, json } = options;
    let since = since_time(since);
    let mut telemetry = Telemetry::of(&context.config_dir()?);
    let mut events = EventQueue::open().context("cannot make a pipe")?;
    if follow {
        events.watch_directory(&telemetry.dir);
    }
    let mut read = || {
        let events = telemetry.read().with_context(|| cannot_read(&telemetry.dir))?;
        let recent = events.into_iter().filter(|event| since.is_none_or(|since| event.at >= since));
        Ok::<Vec<_>, anyhow::Error>(recent.collect())
    };
    if follow {
        loop {
            for event in read()? {
                if json { write_json(out, &EventJson::of(&event))? } else { write(out, &line(&event))? }
            }
            events.wait(None).context("cannot wait for events")?;
        }
    }
    let events = read()?;
    let summary = Summary::of(&events, &telemetry, since);
    if json {
        write_json(out, &summary.to_json())?
    } else {
        write(out, &summary.to_text())?
    }
    Ok(if summary.is_healthy() { Outcome::Shown } else { Outcome::Trouble })
}

/// Summary of the events that were read.
struct Summary {
    since: Option<SystemTime>,
    files: usize,
    skipped: usize,
    /// By name and version: number of events, and their sessions.
    counts: BTreeMap<(String, String), (usize, BTreeSet<String>)>,
    windows: Vec<Window>,
    /// Events that the locks should have prevented.
    broken: Vec<RefreshEvent>,
    /// Number of refreshes that failed without contention.
    other_failures: usize,
}

/// JSON form of the summary.
#[derive(Serialize)]
struct SummaryJson<'a> {
    /// `healthy` or `bad`
    verdict: &'static str,
    why: String,
    advice: Vec<&'static str>,
    since: Option<String>,
    files: usize,
    skipped: usize,
    counts: Vec<CountJson<'a>>,
    windows: &'a [Window],
    other_failures: usize,
    broken: Vec<EventJson<'a>>,
}

/// Number of events of one name and version, and their sessions.
#[derive(Serialize)]
struct CountJson<'a> {
    name: &'a str,
    version: &'a str,
    count: usize,
    sessions: &'a BTreeSet<String>,
}

/// One event; with `--follow`, each is a line.
#[derive(Serialize)]
struct EventJson<'a> {
    at: String,
    name: &'a str,
    version: &'a str,
    session: &'a str,
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
        let mut counts = BTreeMap::<_, (usize, BTreeSet<String>)>::new();
        for event in events {
            let (count, sessions) = counts.entry((event.name.clone(), event.version.clone())).or_default();
            *count += 1;
            sessions.insert(event.session.clone());
        }
        let mut windows: Vec<Window> = Vec::new();
        let (mut broken, mut other_failures) = (Vec::new(), 0);
        let mut refreshing = BTreeMap::<&str, SystemTime>::new();
        for event in events {
            // A refresh without an end event was killed; it is over after a while.
            refreshing.retain(|_, began| is_near(*began, event.at));
            let mut meaning = event.meaning();
            match meaning {
                Meaning::Starts => {
                    refreshing.insert(&event.session, event.at);
                    // The locks exist to prevent that.
                    meaning = if refreshing.len() > 1 { Meaning::Broken } else { Meaning::Routine };
                }
                Meaning::Ends | Meaning::Failed => drop(refreshing.remove(event.session.as_str())),
                _ => {}
            }
            let open = windows.last_mut().filter(|window| is_near(window.to, event.at));
            match (meaning, open) {
                (Meaning::Routine | Meaning::Starts | Meaning::Ends, _) => continue,
                (Meaning::Failed, None) => {
                    other_failures += 1;
                    continue;
                }
                (_, Some(window)) => window.add(event, meaning),
                (_, None) => {
                    let mut window = Window::at(event.at);
                    window.add(event, meaning);
                    windows.push(window);
                }
            }
            if matches!(meaning, Meaning::Broken | Meaning::Failed) {
                broken.push(event.clone());
            }
        }
        // A session that failed, and then used the token that another had got, has lost nothing.
        let has_recovered = |failed: &RefreshEvent| {
            let recovered = events.iter().filter(|event| event.name == "race_recovered" && event.session == failed.session);
            failed.meaning() == Meaning::Failed
                && recovered.into_iter().any(|event| event.at >= failed.at && is_near(failed.at, event.at))
        };
        broken.retain(|event| !has_recovered(event));
        Self {
            since,
            files: telemetry.offsets.len(),
            skipped: telemetry.malformed + telemetry.cut,
            counts,
            windows,
            broken,
            other_failures,
        }
    }

    fn is_healthy(&self) -> bool {
        self.broken.is_empty()
    }

    fn verdict(&self) -> String {
        let sessions: BTreeSet<_> = self.broken.iter().map(|event| event.session.as_str()).collect();
        let resolved: usize = self.windows.iter().map(|window| window.resolved).sum();
        match () {
            () if !self.is_healthy() => {
                let names: BTreeSet<_> = self.broken.iter().map(|event| event.name.as_str()).collect();
                let names = names.into_iter().collect::<Vec<_>>().join(", ");
                format!("bad: the refresh locks did not hold for {} ({names})", text::count(sessions.len(), "session"))
            }
            () if self.counts.is_empty() => {
                "healthy, as far as can be seen: no event of a refresh is here; telemetry that was \
                                             delivered leaves none"
                    .to_owned()
            }
            () if self.windows.is_empty() => "healthy: refreshes, and no two at once".to_owned(),
            () if resolved > 0 => {
                let windows = text::count(self.windows.len(), "time");
                format!("healthy: {windows}, several wanted to refresh at once, and the others took over what one had got")
            }
            () => "healthy: several wanted to refresh at once, and none failed over it".to_owned(),
        }
    }

    /// Advice on what to look at next.
    fn advice(&self) -> Vec<&'static str> {
        let is_broken = |begin: &&str| self.broken.iter().any(|event| event.name.starts_with(begin));
        let advice = ADVICE.iter().filter(|(begins, _)| begins.iter().any(is_broken)).map(|(_, advice)| *advice);
        let failed = self.is_healthy() && self.other_failures > 0;
        advice.chain(failed.then_some(ADVICE_ON_OTHER_FAILURES)).collect()
    }

    fn to_text(&self) -> String {
        let since = self.since.map_or_else(String::new, |since| format!(" since {}", time(since)));
        let total: usize = self.counts.values().map(|(count, _)| count).sum();
        let mut lines = vec![format!(
            "{} of refreshes in {}{since}",
            text::count(total, "event"),
            text::count(self.files, "telemetry file")
        )];
        if self.skipped > 0 {
            lines.push(format!("{} skipped: cut, or of another shape", text::count(self.skipped, "line")));
        }
        if !self.counts.is_empty() {
            lines.push(format!("\n{:<34}{:<12}{:>7}{:>10}", "event", "version", "count", "sessions"));
            lines.extend(self.counts.iter().map(|((name, version), (count, sessions))| {
                format!("{name:<34}{version:<12}{count:>7}{:>10}", sessions.len())
            }));
        }
        if !self.windows.is_empty() {
            lines.push(format!(
                "\n{:<27}{:>12}{:>10}{:>9}{:>10}{:>8}",
                "contention", "for", "sessions", "retries", "resolved", "broken"
            ));
            lines.extend(self.windows.iter().map(|window| {
                let Window { from, sessions, retries, resolved, broken, .. } = window;
                let (from, sessions) = (time(*from), sessions.len());
                format!("{from:<27}{:>12}{sessions:>10}{retries:>9}{resolved:>10}{broken:>8}", duration::show(window.length()))
            }));
        }
        lines.push(format!("\n{}", self.verdict()));
        lines.extend(self.advice().into_iter().map(str::to_owned));
        lines.join("\n") + "\n"
    }

    fn to_json(&self) -> SummaryJson<'_> {
        let counts = self.counts.iter();
        SummaryJson {
            verdict: if self.is_healthy() { "healthy" } else { "bad" },
            why: self.verdict(),
            advice: self.advice(),
            since: self.since.map(time),
            files: self.files,
            skipped: self.skipped,
            counts: counts
                .map(|((name, version), (count, sessions))| CountJson { name, version, count: *count, sessions })
                .collect(),
            windows: &self.windows,
            other_failures: self.other_failures,
            broken: self.broken.iter().map(EventJson::of).collect(),
        }
    }
}

impl<'a> EventJson<'a> {
    fn of(event: &'a RefreshEvent) -> Self {
        let RefreshEvent { at, name, version, session } = event;
        Self { at: time(*at), name, version, session }
    }
}

impl Window {
    fn at(from: SystemTime) -> Self {
        Self { from, to: from, sessions: BTreeSet::new(), retries: 0, resolved: 0, broken: 0 }
    }

    fn add(&mut self, event: &RefreshEvent, meaning: Meaning) {
        self.to = event.at;
        self.sessions.insert(event.session.clone());
        match meaning {
            Meaning::Routine | Meaning::Starts | Meaning::Ends => {}
            Meaning::Contention => self.retries += 1,
            Meaning::Resolved => self.resolved += 1,
            Meaning::Broken | Meaning::Failed => self.broken += 1,
        }
    }

    fn length(&self) -> Duration {
        self.to.duration_since(self.from).unwrap_or_default()
    }
}

fn is_near(earlier: SystemTime, later: SystemTime) -> bool {
    later.duration_since(earlier).unwrap_or_default() <= SAME_WINDOW
}

fn line(event: &RefreshEvent) -> String {
    let RefreshEvent { name, version, session, .. } = event;
    format!("{}  {version:<9}  {}  {name}\n", time(event.at), sanitize(session))
}
