//! The bounded wait for the answer of a lock helper, once the session lock is had: for what is left of `--wait`, and for as long as
//! no signal ends it and, in `refresh` mode, a refresh is due.

use std::borrow::Cow;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tracing::{error, info, warn};

use super::acquire::{Acquisition, LockRequest};
use super::guard::LockGuard;
use super::helper::{self, Helper, HelperCommand};
use super::queue;
use super::refresh_due::Refreshes;
use crate::claude::credentials::Login;
use crate::config::settings::{Wait, after, show, show_seconds};
use crate::events::{Event, EventQueue};
use crate::logging::LiveLine;
use crate::records::{RecordStore, RunRecorder};

/// What a lock helper said, or what made its answer superfluous.
enum Answer {
    /// It has the lock.
    Yes,
    /// It has not; and why.
    No(String),
    /// No refresh is due any more; and why.
    Unneeded(String),
    /// This signal ended the wait.
    EndedBy(Signal),
}

/// Has `command` take its lock, in addition to what is in `holding`, within what is left of the wait that began at `started`. If it
/// does not, the session lock is free again.
pub(super) fn ask(
    command: &HelperCommand,
    holding: LockGuard,
    started: Instant,
    lock: &LockRequest,
    journal: &mut RunRecorder,
    events: &mut EventQueue,
) -> Result<Acquisition> {
    if let Some(refreshes) = lock.refreshes.as_ref().filter(|_| lock.refresh_only) {
        events.watch_files(&[Login::path(&refreshes.config_dir)]);
    }
    let answer = match lock.reason_not_needed() {
        // Who had the session lock before us has refreshed the token.
        Some(reason) => Answer::Unneeded(reason),
        None => {
            journal.on_session_lock(holding.hold(), holding.identity());
            let helper = Helper::start(command, events.sender())?;
            let answer = Asking::of(&helper, lock, started, journal).until_answered(events)?;
            match answer {
                Answer::Yes => {
                    events.watch_files(&[]);
                    info!(name: "lock.acquired", key = helper.key(), "the lock helper {} has the lock", helper.name());
                    return Ok(Acquisition::Held(holding.and(helper)));
                }
                Answer::No(ref why) => {
                    error!(name: "lock.timeout", "the lock helper {} {why}; nothing was started", helper.name());
                }
                Answer::Unneeded(_) | Answer::EndedBy(_) => {}
            }
            let asked = matches!(answer, Answer::EndedBy(_)).then(Instant::now);
            let request = helper.part(events, lock.ignored, asked);
            match (answer, request) {
                // It comes before anything is started.
                (Answer::Unneeded(_), Some(signal)) => {
                    queue::log_interrupted(signal, "the lock helper", &show(started.elapsed()));
                    Answer::EndedBy(signal)
                }
                (answer, _) => answer,
            }
        }
    };
    events.watch_files(&[]);
    journal.on_released();
    Ok(match answer {
        Answer::Unneeded(reason) => {
            info!(name: "lock.unneeded", "starting without the lock helper: {reason}");
            Acquisition::NotNeeded
        }
        Answer::EndedBy(signal) => Acquisition::Interrupted(signal),
        Answer::Yes | Answer::No(_) => Acquisition::TimedOut,
    })
}

/// How long a helper has to answer where nobody wants to wait: a question to another machine takes its time.
const AN_ANSWER: Duration = Duration::from_secs(2);

/// How long it may take before that is worth a word.
const ANNOUNCE_AFTER: Duration = Duration::from_secs(1);

/// How long file systems whose locks end at this host go by what they know of a name, if not told otherwise: FUSE, virtiofs.
const ATTR_CACHE_TTL: Duration = Duration::from_millis(1_100);

/// A wait that goes on, and what is shown of it: one live line on a terminal, else one message when it takes a moment, and one at
/// its end.
struct Asking<'a> {
    helper: &'a Helper,
    lock: &'a LockRequest,
    journal: &'a mut RunRecorder,
    started: Instant,
    bound: Option<Duration>,
    deadline: Option<Instant>,
    line: Option<LiveLine>,
    /// When there is something to show.
    word: Option<Instant>,
    /// When what the host before us has written can be seen here; none, as long as it is not our turn.
    visible_at: Option<Instant>,
}

impl<'a> Asking<'a> {
    fn of(helper: &'a Helper, lock: &'a LockRequest, started: Instant, journal: &'a mut RunRecorder) -> Self {
        let now = Instant::now();
        let (bound, deadline) = match lock.wait {
            Wait::Forever => (None, None),
            Wait::AtMost(bound) => (Some(bound), after(started, Some(bound))),
            Wait::No => (Some(AN_ANSWER), after(now, Some(AN_ANSWER))),
        };
        Self { helper, lock, journal, started, bound, deadline, line: None, word: Some(now + ANNOUNCE_AFTER), visible_at: None }
    }

    fn until_answered(mut self, events: &mut EventQueue) -> Result<Answer> {
        loop {
            let events = self.wait(events)?;
            self.journal.run_due();
            if let Some(signal) = queue::first_termination_signal(&events, self.lock.ignored, || self.say()) {
                self.line = None; // wiped before anything else is written
                queue::log_interrupted(signal, "the lock helper", &show(self.started.elapsed()));
                return Ok(Answer::EndedBy(signal));
            }
            if let Some(failure) = self.helper.failure() {
                return Err(failure).context(helper::FAILED);
            }
            if let Some(how) = self.helper.ending() {
                return Ok(Answer::No(match self.helper.key() {
                    Some(_) => format!("has ended after its first line ({how}), but has to stay while the lock is held"),
                    None => format!("has ended without a lock ({how})"),
                }));
            }
            if self.is_had() {
                if self.line.take().is_some() || self.word.is_none() {
                    warn!(name: "lock.acquired", "the lock helper {} has its lock after {}", self.name(), show(self.started.elapsed()));
                }
                return Ok(Answer::Yes);
            }
            if events.contains(&Event::FilesChanged)
                && let Some(reason) = self.lock.reason_not_needed()
            {
                return Ok(Answer::Unneeded(reason));
            }
            if self.visible_at.is_some() {
                continue;
            }
            let now = Instant::now();
            if self.deadline.is_some_and(|deadline| now >= deadline) {
                let bound = show(self.bound.unwrap_or_default());
                let hint = self.helper.silence().unwrap_or("--wait waits longer");
                return Ok(Answer::No(format!("did not get its lock within {bound}; {hint}")));
            }
            if self.word.is_some_and(|at| now >= at) {
                self.line = self.line.take().or_else(LiveLine::on_terminal);
                self.show();
                self.word = self.line.as_ref().map(|_| now + Duration::from_secs(1));
            }
        }
    }

    fn wait(&self, events: &mut EventQueue) -> Result<Vec<Event>> {
        let deadlines = [self.deadline, self.word, self.journal.next_deadline()];
        let wake_at = if self.visible_at.is_some() { self.visible_at } else { deadlines.into_iter().flatten().min() };
        events.wait(wake_at).context("cannot wait for events")
    }

    /// Whether the helper has its lock, and what the host before us has written is in sight.
    fn is_had(&mut self) -> bool {
        if self.helper.key().is_none() {
            return false;
        }
        let now = Instant::now();
        let is_late = || self.lock.refreshes.as_ref().is_some_and(Refreshes::may_be_out_of_date);
        let visible_at = *self.visible_at.get_or_insert_with(|| if is_late() { now + ATTR_CACHE_TTL } else { now });
        now >= visible_at
    }

    fn show(&self) {
        let Some(line) = &self.line else { return self.say() };
        let waited = self.waited();
        let left =
            self.bound.map_or_else(String::new, |bound| format!(", {} left", show_seconds(bound.saturating_sub(waited))));
        let (name, holder) = (self.name(), self.holder());
        line.show(&format!("waited {}{left} for the lock helper {name}{holder}; Ctrl-C ends it", show(waited)));
    }

    fn say(&self) {
        let bound = self.bound.map_or_else(|| "no limit".to_owned(), |bound| format!("at most {}", show(bound)));
        warn!(name: "lock.waiting", "waiting for the lock helper {} ({} of {bound}){}", self.name(), show(self.waited()), self.holder());
    }

    /// Who has the lock, where hosts share their records; where they do not share their locks, it may be gone by now.
    fn holder(&self) -> String {
        let holder = self.journal.directory().and_then(RecordStore::helped);
        holder.map_or_else(String::new, |record| {
            let since = SystemTime::now().duration_since(record.since).unwrap_or_default();
            format!(", held by {} for {}, by its record", record.who(), show_seconds(since))
        })
    }

    /// In full seconds.
    fn waited(&self) -> Duration {
        Duration::from_secs(self.started.elapsed().as_secs())
    }

    fn name(&self) -> Cow<'_, str> {
        self.helper.name()
    }
}
