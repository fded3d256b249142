//! The wait for the reader of the output, when the child has ended.

use std::io;
use std::time::{Duration, Instant};

use tracing::warn;

use super::relay::Relay;
use crate::events::{Event, EventQueue};
use crate::outcome::Outcome;
use crate::sys::signal::{self, SigSet, Signal};

/// How long a reader may take for the rest of the output after a termination request, or the hard limit.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// Waits, after the child's end, until our reader has taken all output. A termination request ends the wait, as it would end a child
/// that waits for its reader; one of before, `bound`, ends it after [`DRAIN_GRACE`], and the hard limit once a reader has taken nothing for
/// so long. Returns the outcome of a wait that was ended.
pub(crate) fn drain(
    bound: Option<Outcome>,
    relay: &Relay,
    events: &mut EventQueue,
    ignored: SigSet,
) -> io::Result<Option<Outcome>> {
    let began = Instant::now();
    let began_or = |progress: Instant| if bound == Some(Outcome::HardLimit) { began.max(progress) } else { began };
    let deadline = || bound.map(|_| began_or(relay.last_delivery()) + DRAIN_GRACE);
    let ended_by = |outcome: Outcome| {
        let cause = outcome.signal().map_or_else(|| "the hard limit".to_owned(), signal::name);
        warn!("{cause} ended the wait for the reader of the child's output; some of it is lost");
        Ok(Some(outcome))
    };
    loop {
        let events = events.wait(deadline())?;
        if events.contains(&Event::OutputDone) {
            return Ok(None);
        }
        if let (Some(outcome), Some(at)) = (bound, deadline())
            && Instant::now() >= at
        {
            return ended_by(outcome);
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
