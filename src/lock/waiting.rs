//! The wait for a busy lock: the kernel's own queue, so that it is fair and costs nothing, bounded by `--wait` and by
//! signals. A helper thread sleeps in flock(2); we sleep on the event channel. Given up, the thread is left behind: what
//! it may get later, it lets go of at once.

use std::io;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tracing::warn;

use super::mode::Lock;
use super::session::{Candidate, Confirmed, Held, refused};
use crate::diag::LiveLine;
use crate::event::{Channel, Event, Mouth};
use crate::settings::{Wait, after, show};
use crate::signals;

/// How a wait ended.
#[derive(Debug)]
pub(super) enum Waited {
    Got(Held),
    TooLong,
    EndedBy(i32),
}

/// Waits for `candidate`.
pub(super) fn wait(mut candidate: Candidate, lock: &Lock, channel: &mut Channel) -> Result<Waited> {
    let bound = match lock.wait {
        Wait::No => return Ok(Waited::TooLong),
        Wait::AtMost(bound) => Some(bound),
        Wait::Forever => None,
    };
    let started = Instant::now();
    let deadline = after(started, bound);
    let display = Display::start(lock, bound, started);
    loop {
        let answer = lock_in_thread(candidate, channel.mouth())?;
        if let Some(ending) = until_answered(channel, lock, deadline, &display)? {
            display.end(&ending);
            return Ok(ending);
        }
        let (locked, result) = answer.recv().context("the thread that waits for the lock is gone")?;
        result.map_err(|error| refused(&lock.path, error))?;
        candidate = match locked.confirm() {
            Confirmed::Held(held) => {
                let got = Waited::Got(held);
                display.end(&got);
                return Ok(got);
            }
            Confirmed::Replaced(path) => match Candidate::open(&path)?.try_lock()? {
                Ok(held) => {
                    let got = Waited::Got(held);
                    display.end(&got);
                    return Ok(got);
                }
                Err(busy) => busy,
            },
        };
    }
}

/// Sleeps until the thread has an answer (`None`), or the wait is over without one.
fn until_answered(channel: &mut Channel, lock: &Lock, deadline: Option<Instant>, display: &Display) -> Result<Option<Waited>> {
    loop {
        let wake_at = [deadline, display.next_refresh()].into_iter().flatten().min();
        let events = channel.wait(wake_at).context("cannot wait for events")?;
        // Signals first: a TERM that came with the lock still means that nothing is to be started.
        for event in &events {
            let Event::Signal(signal, sender) = *event else { continue };
            match signal {
                _ if lock.ignored.contains(signal) => {}
                Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM | Signal::SIGUSR2 => {
                    return Ok(Some(Waited::EndedBy(signal as i32)));
                }
                Signal::SIGTSTP => signals::stop_if_asked(sender),
                Signal::SIGUSR1 => display.say(),
                _ => {}
            }
        }
        if events.contains(&Event::LockAnswered) {
            return Ok(None);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(Some(Waited::TooLong));
        }
        display.refresh();
    }
}

/// Starts the thread that sleeps in flock(2). When nobody wants its answer any more, the answer and its lock are dropped.
fn lock_in_thread(candidate: Candidate, mouth: Mouth) -> Result<mpsc::Receiver<(Candidate, io::Result<()>)>> {
    let (sender, answer) = mpsc::sync_channel(1);
    let work = move || {
        let result = candidate.lock_blocking();
        // The receiver is gone when the wait was given up: then this drops the candidate, and with it the lock.
        let _ = sender.send((candidate, result));
        mouth.put(Event::LockAnswered);
    };
    signals::spawn_deaf("flock", 64 * 1024, work).context("cannot start the thread that waits for the lock")?;
    Ok(answer)
}

/// What a waiter shows: one live line on a terminal, else one message at the start and one at the end.
struct Display {
    path: String,
    bound: Option<Duration>,
    started: Instant,
    line: Option<LiveLine>,
}

impl Display {
    fn start(lock: &Lock, bound: Option<Duration>, started: Instant) -> Self {
        let display = Self { path: lock.path.display().to_string(), bound, started, line: LiveLine::on_terminal() };
        match &display.line {
            Some(_) => display.refresh(),
            None => display.say(),
        }
        display
    }

    fn text(&self) -> String {
        let bound = self.bound.map_or_else(|| "no limit".to_owned(), |bound| format!("at most {}", show(bound)));
        let waited = Duration::from_secs(self.started.elapsed().as_secs());
        if waited.is_zero() {
            return format!("waiting for the session lock {} ({bound})", self.path);
        }
        format!("waiting for the session lock {}: {} ({bound})", self.path, show(waited))
    }

    fn say(&self) {
        let text = self.text();
        warn!("{text}");
    }

    fn refresh(&self) {
        if let Some(line) = &self.line {
            line.show(&format!("{}, Ctrl-C ends it", self.text()));
        }
    }

    /// The next full second of the wait, on a terminal. Elsewhere nothing needs to be woken.
    fn next_refresh(&self) -> Option<Instant> {
        let next = Duration::from_secs(self.started.elapsed().as_secs() + 1);
        self.line.as_ref().and_then(|_| after(self.started, Some(next)))
    }

    fn end(mut self, ending: &Waited) {
        self.line = None; // wiped before anything else is written
        let waited = show(self.started.elapsed());
        match ending {
            Waited::Got(_) => warn!("got the session lock after {waited}"),
            Waited::EndedBy(signal) => {
                warn!("{} ended the wait for the session lock after {waited}; nothing was started", signals::name(*signal))
            }
            Waited::TooLong => {} // reported by the caller, which also knows of waits that never began
        }
    }
}
