//! Looks for an ancestor that holds what is waited for, again and again: one in another PID namespace may be about to write the record that
//! proves it.

use std::time::{Duration, Instant};

use crate::config::duration::after;

/// They are 10 ms, 20 ms, 40 ms … after the start, up to a minute and a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AncestorChecks {
    since: Instant,
    made: u32,
}

const MOST: u32 = 14;

/// Time for such a record to appear where nobody wants to wait.
pub(super) const RECORD_GRACE: Duration = Duration::from_secs(1);

impl AncestorChecks {
    pub(super) fn since(since: Instant) -> Self {
        Self { since, made: 0 }
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        let is_due_after = (self.made < MOST).then(|| Duration::from_millis(10 << self.made));
        after(self.since, is_due_after)
    }

    /// True if a look is due, which counts as made then.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.next_at().is_some_and(|at| Instant::now() >= at);
        self.made += u32::from(is_due);
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_made_at_doubling_distances_for_a_minute_and_a_half() {
        let Some(long_ago) = Instant::now().checked_sub(Duration::from_secs(3600)) else { return };
        let mut checks = AncestorChecks::since(long_ago);
        let times: Vec<_> = std::iter::from_fn(|| checks.next_at().filter(|_| checks.is_due())).collect();
        let distances: Vec<_> = times.into_iter().map(|at| (at - long_ago).as_millis()).collect();
        assert_eq!((distances.len(), distances[0], distances[1], distances[13]), (14, 10, 20, 81_920));
        let mut checks = AncestorChecks::since(Instant::now() + Duration::from_secs(3600));
        assert!(!checks.is_due() && checks.next_at().is_some());
    }
}
