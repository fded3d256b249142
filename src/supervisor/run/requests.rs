//! Termination requests to a run, and what they mean once the child has ended.

use std::time::Instant;

use crate::outcome::Outcome;
use crate::sys::signal::Signal;

#[derive(Debug, Default)]
pub(super) struct Requests {
    last: Option<(Signal, Instant)>,
    /// The last one that the policy has acted on.
    heeded: Option<Signal>,
}

impl Requests {
    pub(super) fn note(&mut self, signal: Signal, is_heeded: bool) {
        self.last = Some((signal, Instant::now()));
        self.heeded = Some(signal).filter(|_| is_heeded).or(self.heeded);
    }

    pub(super) fn last(&self) -> Option<Signal> {
        self.last.map(|(signal, _)| signal)
    }

    pub(super) fn last_at(&self) -> Option<Instant> {
        self.last.map(|(_, at)| at)
    }

    /// The request that bounds the wait for our reader after a child that ended by `outcome`: it has ended the child, or would have. One
    /// that was for the child alone, and that it has survived, is over.
    pub(super) fn drain_bound(&self, outcome: Outcome) -> Option<Signal> {
        let is_its_end = |signal: &Signal| i32::from(outcome.exit_code()) == 128 + signal.number();
        self.heeded.or(self.last().filter(is_its_end))
    }
}
