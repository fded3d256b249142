//! The wait for the reader of the output, when the child has ended.

use std::io;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::events::{Event, EventQueue};
use crate::sys::signal::{self, SigSet, Signal};

/// How long a reader may take for the rest of the output after a termination request.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// Waits, after the child's end, until our reader has taken all output. A termination request ends the wait, as it would end a child
/// that waits for its reader; an earlier one, `request`, ends it after [`DRAIN_GRACE`]. Returns the signal that ended it.
pub(crate) fn drain(request: Option<Signal>, events: &mut EventQueue, ignored: SigSet) -> io::Result<Option<Signal>> {
    let deadline = request.map(|_| Instant::now() + DRAIN_GRACE);
    let interrupted_by = |signal| {
        warn!("{signal} ended the wait for the reader of the child's output; some of it is lost");
        Ok(Some(signal))
    };
    loop {
        let events = events.wait(deadline)?;
        if events.contains(&Event::OutputDone) {
            return Ok(None);
        }
        if let (Some(signal), Some(at)) = (request, deadline)
            && Instant::now() >= at
        {
            return interrupted_by(signal);
        }
        for event in events {
            match event {
                Event::Signal(signal, _) if ignored.contains(signal) => {}
                Event::Signal(signal, _) if signal::requests_end(signal) => return interrupted_by(signal),
                Event::Signal(Signal::SIGTSTP, source) => signal::stop_for_job_control(source),
                Event::Signal(Signal::SIGUSR1, _) => {
                    warn!(name: "run.state", "the child has ended; its output waits for our reader")
                }
                _ => {}
            }
        }
    }
}
