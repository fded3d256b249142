//! `claude-run events`: what Claude Code's own telemetry files say of its token refreshes, and the verdict on that: do its
//! refresh locks do what they are for? Telemetry that was delivered leaves no file, so nothing to see is no proof.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

use super::{Context, cannot_read, text, write};
use crate::claude::telemetry::{Meaning, RefreshEvent, Telemetry};
use crate::config::settings::{DurationSetting, show};
use crate::events::EventQueue;
use crate::object::Object;
use crate::outcome::Outcome;
use crate::records::time;

/// Events of a contention that are no further apart belong to one.
const SAME_WINDOW: Duration = Duration::from_secs(60);

/// Shows what there is; with `follow`, then each event as it comes.
pub(super) fn show_all(
    context: &Context,
    since: Option<DurationSetting>,
    follow: bool,
    json: bool,
    out: &mut impl Write,
) -> Result<Outcome> {
    let since = since.and_then(DurationSetting::as_limit);
    let since = since.and_then(|since| SystemTime::now().checked_sub(since));
    let mut telemetry = Telemetry::of(&context.config_dir()?);
    let mut events = EventQueue::open().context("cannot make a pipe")?;
    if follow {
        events.watch_directory(telemetry.dir());
    }
    let mut read = || {
        let events = telemetry.read().with_context(|| cannot_read(telemetry.dir()))?;
        Ok::<_, anyhow::Error>(
            events.into_iter().filter(|event| since.is_none_or(|since| event.at >= since)).collect::<Vec<_>>(),
        )
    };
    if follow {
        loop {
            for event in read()? {
                write(out, &if json { format!("{}\n", to_json(&event).into_text()) } else { line(&event) })?;
            }
            events.wait(None).context("cannot wait for events")?;
        }
    }
    let events = read()?;
    telemetry.count_cut();
    let summary = Summary::of(&events, &telemetry, since);
    write(out, &if json { format!("{}\n", summary.to_json().into_text()) } else { summary.to_text() })?;
    Ok(if summary.is_healthy() { Outcome::Shown } else { Outcome::Trouble })
}

/// What there was, counted.
struct Summary {
    since: Option<SystemTime>,
    files: usize,
    skipped: usize,
    /// By name and version: how many events, of which sessions.
    counts: BTreeMap<(String, String), (usize, BTreeSet<String>)>,
    windows: Vec<Window>,
    /// What the locks did not prevent.
    broken: Vec<RefreshEvent>,
    /// Refreshes that failed, though nobody else was at it.
    other_failures: usize,
}

/// A time in which several wanted to refresh.
struct Window {
    from: SystemTime,
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
            // A refresh that tells of no end was killed; it is over after a while.
            refreshing.retain(|_, began| is_near(*began, event.at));
            let mut meaning = event.meaning();
            match meaning {
                Meaning::Starts => {
                    refreshing.insert(&event.session, event.at);
                    // The locks are there to keep that from happening.
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
        // Who has failed and then found what another had got is none the worse.
        let has_recovered = |failed: &RefreshEvent| {
            let recovered = events.iter().filter(|event| event.name == "race_recovered" && event.session == failed.session);
            failed.meaning() == Meaning::Failed
                && recovered.into_iter().any(|event| event.at >= failed.at && is_near(failed.at, event.at))
        };
        broken.retain(|event| !has_recovered(event));
        Self { since, files: telemetry.files(), skipped: telemetry.skipped, counts, windows, broken, other_failures }
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

    /// What to look at next.
    fn advice(&self) -> Vec<String> {
        let has = |begin: &str| self.broken.iter().any(|event| event.name.starts_with(begin));
        let mut advice = Vec::new();
        if has("lock_retry_limit_reached") {
            advice.push(
                "lock_retry_limit_reached: a lock was not free for all of its retries: was its holder killed? see `claude-run \
                 status`",
            );
        }
        if has("lock_error") {
            advice.push("lock_error: a lock could not be made: may these agents write the directory above the config dir?");
        }
        if has("lock_compromised_") || has("compromised_") {
            advice.push(
                "compromised: a lock was taken from its holder: a clock that jumps, a stopped process, a slow file system",
            );
        }
        if has("starting") || has("failure") {
            advice.push(
                "starting, failure: several refreshed at once, and one may have used up what another had: do all agents see the \
                 same directory above the config dir? Before 2.1.128, a config dir that is bind-mounted by itself has no lock in \
                 common; `--lock refresh` keeps them apart",
            );
        }
        if self.is_healthy() && self.other_failures > 0 {
            advice.push("refreshes failed though nobody else was at it: the network, or a login that is no longer good");
        }
        advice.into_iter().map(str::to_owned).collect()
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
                format!("{from:<27}{:>12}{sessions:>10}{retries:>9}{resolved:>10}{broken:>8}", show(window.length()))
            }));
        }
        lines.push(format!("\n{}", self.verdict()));
        lines.extend(self.advice());
        lines.join("\n") + "\n"
    }

    fn to_json(&self) -> Object {
        let counts = self.counts.iter().map(|((name, version), (count, sessions))| {
            let mut object = Object::default();
            object.add("name", name).add("version", version).add("count", count).add("sessions", sessions);
            object
        });
        let windows = self.windows.iter().map(|window| {
            let mut object = Object::default();
            object
                .add("from", time(window.from))
                .add("to", time(window.to))
                .add("sessions", &window.sessions)
                .add("retries", window.retries)
                .add("resolved", window.resolved)
                .add("broken", window.broken);
            object
        });
        let mut object = Object::default();
        object
            .add("verdict", if self.is_healthy() { "healthy" } else { "bad" })
            .add("why", self.verdict())
            .add("advice", self.advice())
            .add("since", self.since.map(time))
            .add("files", self.files)
            .add("skipped", self.skipped)
            .add_list("counts", counts)
            .add_list("windows", windows)
            .add("other_failures", self.other_failures)
            .add_list("broken", self.broken.iter().map(to_json));
        object
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
    format!("{}  {version:<9}  {}  {name}\n", time(event.at), text::plain(session))
}

fn to_json(event: &RefreshEvent) -> Object {
    let mut object = Object::default();
    object.add("at", time(event.at)).add("name", &event.name).add("version", &event.version).add("session", &event.session);
    object
}
