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
        self.heeded.or(self.last().filter(is_its_end)).filter(|_| outcome != Outcome::HardLimit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_for_the_reader_is_bounded_by_what_has_ended_the_child() {
        let (term, hup) = ((Signal::SIGTERM, true), (Signal::SIGHUP, false));
        let killed = |signal: Signal| Outcome::Killed(signal.number());
        for (noted, outcome, expected) in [
            (&[][..], Outcome::Exited(0), None),
            (&[term], Outcome::HardLimit, None),
            (&[term], Outcome::Exited(0), Some(Signal::SIGTERM)),
            (&[term, hup], Outcome::Exited(0), Some(Signal::SIGTERM)),
            (&[hup], Outcome::Exited(0), None),
            (&[hup], killed(Signal::SIGINT), None),
            (&[hup], killed(Signal::SIGHUP), Some(Signal::SIGHUP)),
        ] {
            let mut requests = Requests::default();
            noted.iter().for_each(|&(signal, is_heeded)| requests.note(signal, is_heeded));
            assert_eq!(requests.drain_bound(outcome), expected, "{noted:?} {outcome:?}");
            assert_eq!(requests.last(), noted.last().map(|(signal, _)| *signal));
            assert_eq!(requests.last_at().is_some(), !noted.is_empty());
        }
    }
}
