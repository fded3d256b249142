//! Messages about the run.

use std::time::Instant;

use tracing::{info, warn};

use super::super::policy::{Limit, Notice};
use super::super::refresh_guard::MAX_DEFERRAL;
use super::Supervisor;
use crate::config::duration::show;
use crate::lock::LockGuard;

impl Supervisor {
    pub(super) fn report(&self) -> String {
        let ran = show(self.started.elapsed());
        let deadline = self.policy.next_deadline().map(|at| show(at.saturating_duration_since(Instant::now())));
        let state = if self.child_ended { "has ended, others it started have not" } else { "is running" };
        let next = deadline.map_or_else(|| "no limit".to_owned(), |left| format!("next limit in {left}"));
        format!("run {}: pid {} {state}, {ran} since its start, {next}", self.id, self.child)
    }

    pub(super) fn log(&self, notice: Notice) {
        let pid = self.child.as_raw();
        let ran = show(self.started.elapsed());
        let deferral = show(MAX_DEFERRAL);
        match notice {
            Notice::LimitExpired(limit @ (Limit::Hard | Limit::Idle)) => {
                let limit = if limit == Limit::Hard { "hard" } else { "idle" };
                warn!(name: "run.limit", pid, "the {limit} limit ran out after {ran}: sending TERM");
            }
            Notice::LimitExpired(Limit::Lock) => {
                let reason = self.lock.as_ref().and_then(LockGuard::lost_reason).unwrap_or_default();
                warn!(name: "lock.lost", pid, "{reason}: the lock is lost, sending TERM");
            }
            Notice::LimitExpired(Limit::Result { is_error }) => {
                let grace = if self.policy.policy().has_open_tasks() { "task grace" } else { "result grace" };
                warn!(name: "run.limit", pid, is_error, "the child has printed its result and stays: the {grace} ran out, sending TERM");
            }
            Notice::KillGraceExpired => {
                warn!(name: "run.stopping", pid, "the kill grace ran out: sending KILL to the whole tree");
            }
            Notice::SecondTerm => warn!(name: "run.stopping", pid, "a second TERM: sending KILL to the whole tree"),
            Notice::Leftovers => {
                info!(name: "run.stopping", pid, "the child has ended and left processes behind: sending them TERM");
            }
            Notice::Unreachable => {
                warn!(pid, "a process that the child left behind can be neither seen nor signalled; it stays");
            }
            Notice::SignalDeferred => {
                warn!(name: "refresh.spared", pid, "claude may be refreshing its token: holding signals back, at most {deferral}");
            }
            Notice::RefreshTooLong => {
                warn!(name: "refresh.spared", pid, "claude's refresh lock is still held after {deferral}: going on");
            }
        }
    }
}
