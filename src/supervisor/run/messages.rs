//! What the supervisor says of a run: one line on its state, and a message for each decision of the policy.

use std::time::Instant;

use tracing::{info, warn};

use super::super::policy::{MAX_DEFERRAL, Notice, PolicyConfig};
use super::Supervisor;
use crate::config::duration::show;
use crate::lock::LockGuard;
use crate::outcome::Outcome;
use crate::sys::proc::Stat;

impl Supervisor<'_> {
    pub(super) fn report(&self) -> String {
        let ran = show(self.started.elapsed());
        let deadline = self.policy.next_deadline().map(|at| show(at.saturating_duration_since(Instant::now())));
        let state = if self.policy.has_child() { "is running" } else { "has ended, others it started have not" };
        let next = deadline.map_or_else(|| "no limit".to_owned(), |left| format!("next limit in {left}"));
        format!("run {}: pid {} {state}, {ran} since its start, {next}", self.recorder.run(), self.child)
    }

    pub(super) fn log(&self, notice: Notice) {
        let pid = self.child.as_raw();
        let after_ms = self.started.elapsed().as_millis() as u64;
        let deferral = show(MAX_DEFERRAL);
        match notice {
            Notice::LimitExpired(Outcome::LockLost) => {
                let reason = self.lock.as_ref().and_then(LockGuard::lost_reason).unwrap_or_default();
                warn!(name: "lock.lost", pid, "{reason}: the lock is lost, sending TERM");
            }
            Notice::LimitExpired(limit @ Outcome::HungAfterResult { is_error }) => {
                let grace = if self.policy.has_open_tasks() { "task grace" } else { "result grace" };
                let limit = limit.name();
                warn!(name: "run.limit", limit, after_ms, pid, is_error, "the child has printed its result and stays: the {grace} ran out, sending TERM");
            }
            Notice::LimitExpired(limit) => {
                let PolicyConfig { hard_limit, idle_limit, .. } = &self.policy.config;
                let is_idle = limit == Outcome::IdleLimit;
                let (option, span) = if is_idle { ("--idle-timeout", idle_limit) } else { ("--timeout", hard_limit) };
                let (limit, span) = (limit.name(), show(span.unwrap_or_default()));
                warn!(name: "run.limit", limit, after_ms, pid, "{option} {span} reached: sending TERM to pid {pid}");
            }
            Notice::KillGraceExpired => {
                warn!(name: "run.stopping", pid, "the kill grace ran out: sending KILL to the whole tree");
            }
            Notice::SecondTerm => warn!(name: "run.stopping", pid, "a second TERM: ending the whole tree"),
            Notice::ChildStays => {
                info!(name: "run.stopping", pid, "half of the kill grace is over: sending TERM to the rest of the tree");
            }
            Notice::Leftovers => {
                info!(name: "run.stopping", pid, "the child has ended and left processes behind: sending them TERM");
            }
            Notice::GivenUp => {
                let show = |stat: &Stat| format!("{} (state {})", stat.pid, char::from(stat.state));
                let members: Vec<_> = self.tree.members().iter().map(show).collect();
                let who = if members.is_empty() { "a process that cannot be seen".to_owned() } else { members.join(", ") };
                warn!(pid, "KILL does not end what the child left behind: {who}; it stays, and the lock is released");
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
