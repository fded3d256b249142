//! The wait for the reader of the output, when the child has ended.

use std::io;
use std::time::{Duration, Instant};

use tracing::warn;

use super::relay::Relay;
use crate::config::duration::after;
use crate::events::{Event, EventQueue};
use crate::outcome::Outcome;
use crate::sys::signal::{self, Signal};

/// How long a reader may take for the rest of the output after a termination request, and how long it may take nothing after the hard
/// limit has ended the child.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// How long it may take nothing beyond the hard limit, where the child has ended by itself. A pipe tells of whole pages alone.
const STALL: Duration = Duration::from_secs(10);

/// What bounds the wait for our reader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DrainLimit {
    /// How the child has ended.
    pub(crate) ended: Outcome,
    /// A termination request from before the wait.
    pub(crate) request: Option<Signal>,
    pub(crate) hard_limit: Option<Duration>,
    /// Start of the child.
    pub(crate) started: Instant,
}

impl DrainLimit {
    fn outcome(self) -> Outcome {
        match self.request {
            Some(signal) => Outcome::EndedDraining(signal.number()),
            None if self.ended.exit_code() == 0 => Outcome::OutputLost,
            None => self.ended,
        }
    }

    /// End of a wait that `began`, for a reader that was seen to take something at `progress`.
    fn deadline(self, began: Instant, progress: Instant) -> Option<Instant> {
        match self.request {
            Some(_) => Some(began + DRAIN_GRACE),
            None => {
                let stall = if self.ended == Outcome::HardLimit { DRAIN_GRACE } else { STALL };
                after(self.started, self.hard_limit).map(|at| at.max(began.max(progress) + stall))
            }
        }
    }
}

/// Waits, after the child's end, until our reader has taken all output. A termination request ends the wait, as it would end a child
/// that waits for its reader. Returns the outcome of a wait that was ended.
pub(crate) fn drain(limit: DrainLimit, relay: &Relay, events: &mut EventQueue) -> io::Result<Option<Outcome>> {
    let began = Instant::now();
    let deadline = || limit.deadline(began, relay.last_delivery());
    let ended_by = |outcome: Outcome| {
        let cause = outcome.signal().map_or_else(|| "the hard limit".to_owned(), signal::name);
        warn!("{cause} ended the wait for the reader of the child's output; some of it is lost");
        Ok(Some(outcome))
    };
    loop {
        let (ignored, events) = (events.inherited.ignored, events.wait(deadline())?);
        if events.contains(&Event::OutputDone) {
            return Ok(None);
        }
        if deadline().is_some_and(|at| Instant::now() >= at) {
            return ended_by(limit.outcome());
        }
        for event in events {
            match event {
                Event::Signal(signal, _) if ignored.contains(signal) => {}
                Event::Signal(signal, _) if signal::requests_end(signal) => {
                    return ended_by(Outcome::EndedDraining(signal.number()));
                }
                Event::Signal(Signal::SIGTSTP, source) => signal::stop_for_job_control(source),
                Event::Signal(Signal::SIGUSR1, _) => {
                    warn!(name: "run.state", "the child has ended; its output waits for our reader")
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadline_follows_the_reader_beyond_the_hard_limit() {
        let (started, second) = (Instant::now(), Duration::from_secs(1));
        let (began, exited) = (100, Outcome::Exited(0));
        for (ended, request, hard_limit, progress, expected) in [
            (exited, None, None, 130, None),
            (exited, None, Some(1000), 130, Some(1000)),
            (exited, None, Some(60), 50, Some(110)),
            (exited, None, Some(60), 130, Some(140)),
            (Outcome::HardLimit, None, Some(100), 50, Some(101)),
            (Outcome::HardLimit, None, Some(100), 130, Some(131)),
            (exited, Some(Signal::SIGTERM), None, 130, Some(101)),
            (exited, Some(Signal::SIGTERM), Some(1000), 130, Some(101)),
        ] {
            let hard_limit = hard_limit.map(|seconds| second * seconds);
            let limit = DrainLimit { ended, request, hard_limit, started };
            let deadline = limit.deadline(started + second * began, started + second * progress);
            assert_eq!(deadline, expected.map(|seconds| started + second * seconds), "{limit:?} {progress}");
        }
    }

    #[test]
    fn outcome_of_a_cut_wait_names_its_cause() {
        let term = Some(Signal::SIGTERM);
        for (ended, request, expected) in [
            (Outcome::Exited(0), None, Outcome::OutputLost),
            (Outcome::Exited(3), None, Outcome::Exited(3)),
            (Outcome::HardLimit, None, Outcome::HardLimit),
            (Outcome::Exited(0), term, Outcome::EndedDraining(15)),
            (Outcome::Exited(3), term, Outcome::EndedDraining(15)),
        ] {
            let limit = DrainLimit { ended, request, hard_limit: None, started: Instant::now() };
            assert_eq!(limit.outcome(), expected, "{limit:?}");
        }
    }
}
