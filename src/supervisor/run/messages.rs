//! Messages of the supervisor about a run: one line on its state, and a message for each decision of the policy.

use std::collections::BTreeMap;
use std::mem;
use std::time::Instant;

use tracing::{debug, error, info, warn};

use super::super::policy::{Input, MAX_DEFERRAL, Notice, PolicyConfig};
use super::super::spawn::Role;
use super::Supervisor;
use crate::claude::frames::LastResult;
use crate::claude::program;
use crate::config::duration::show;
use crate::config::settings::Leftovers;
use crate::lock::{LockGuard, SlotGuard};
use crate::outcome::Outcome;
use crate::sys::proc::Stat;
use crate::sys::signal::{Signal, SignalSource};

pub(super) fn log_signal(signal: Signal, source: SignalSource) {
    let sender = if let SignalSource::Process(pid) = source { Some(pid) } else { None };
    debug!(%signal, sender, "got a signal");
}

pub(super) fn log_change(change: &Input) {
    let (ending, stopped_by) = match change {
        Input::Ended(ending, _) => (Some(ending.name()), None),
        Input::Stopped(signal) => (None, Some(signal.to_string())),
        _ => (None, None),
    };
    debug!(ending, stopped_by, "the child's state has changed");
}

impl Supervisor<'_> {
    pub(super) fn report(&self) -> String {
        let ran = show(self.started.elapsed());
        let deadline = self.policy.next_deadline().map(|at| show(at.saturating_duration_since(Instant::now())));
        let state = if self.policy.has_child() { "is running" } else { "has ended, others it started have not" };
        let next = deadline.map_or_else(|| "no limit".to_owned(), |left| format!("next limit in {left}"));
        format!("run {}: pid {} {state}, {ran} since its start, {next}", self.recorder.run(), self.child)
    }

    /// Warns, once, if what this run believes to hold keeps nobody out: there is no event for that.
    pub(super) fn warn_of_lost_locks(&mut self) {
        let lock = self.lock.as_ref().and_then(|lock| lock.fault(self.recorder.store())).map(|fault| ("session lock", fault));
        let slot = self.slot.as_ref().and_then(SlotGuard::fault).map(|fault| ("slot", fault));
        if let Some((what, fault)) = lock.or(slot)
            && !mem::replace(&mut self.has_warned_of_locks, true)
        {
            warn!(name: "lock.broken", "the {what} of this run was not kept: {fault}; another run may have begun beside it");
        }
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
            Notice::LimitExpired(_) if self.role == Role::Refresher => {
                let span = show(self.policy.config.hard_limit.unwrap_or_default());
                warn!(name: "refresh.first", pid, "claude takes longer than {span} to refresh its token before the start: sending TERM");
            }
            Notice::LimitExpired(limit) => {
                let PolicyConfig { hard_limit, idle_limit, .. } = &self.policy.config;
                let is_idle = limit == Outcome::IdleLimit;
                let (option, span) = if is_idle { ("--idle-timeout", idle_limit) } else { ("--timeout", hard_limit) };
                let (limit, span) = (limit.name(), show(span.unwrap_or_default()));
                warn!(name: "run.limit", limit, after_ms, pid, "{option} {span} reached: sending TERM to pid {pid}");
            }
            Notice::KillGraceExpired => {
                warn!(name: "run.stopping", pid, "the kill grace ran out: sending KILL to {}", self.addressees());
            }
            Notice::SecondTerm => warn!(name: "run.stopping", pid, "a second TERM: ending {}", self.addressees()),
            Notice::ChildStays => {
                info!(name: "run.stopping", pid, "the child has not ended: sending TERM to the rest of its tree");
            }
            Notice::Leftovers(leftovers) => self.log_leftovers(leftovers),
            Notice::GivenUp => {
                let show = |stat: &Stat| format!("{} {} (state {})", stat.name(), stat.pid, char::from(stat.state));
                let who = some_of(self.tree.members().iter().map(show).collect());
                warn!(pid, "KILL does not end what is left of the run: {who}; it stays, and claude-run goes on without it");
            }
            Notice::SignalDeferred => {
                warn!(name: "refresh.spared", pid, "claude may be refreshing its token: deferring signals, at most {deferral}");
            }
        }
    }

    /// Those who get TERM and KILL.
    fn addressees(&self) -> &'static str {
        match self.policy.config.leftovers {
            Leftovers::Kill => "the whole tree",
            Leftovers::Keep => "the child alone, as what it has started is kept",
        }
    }

    /// Says how many leftovers there are, and of which programs: claude's session in the background may be one.
    fn log_leftovers(&self, leftovers: Leftovers) {
        let mut programs = BTreeMap::new();
        for member in self.tree.leftovers() {
            *programs.entry(member.name()).or_insert(0) += 1;
        }
        let pid = self.child.as_raw();
        let has_claude = programs.contains_key(program::NAME);
        let show = |(name, count)| if count == 1 { name } else { format!("{count} {name}") };
        let who = some_of(programs.into_iter().map(show).collect());
        let hint =
            if has_claude { "; --leftovers keep lets claude's session in the background live, without this lock" } else { "" };
        match leftovers {
            Leftovers::Kill => {
                warn!(name: "run.leftovers", pid, "the child has ended and left processes behind: {who}; sending them TERM{hint}");
            }
            Leftovers::Keep if has_claude && self.lock.as_ref().is_some_and(LockGuard::is_held) => {
                warn!(name: "run.leftovers", pid, "a claude in the background lives on, without the session lock");
            }
            Leftovers::Keep => info!(name: "run.leftovers", pid, "the child has ended, and what it has left lives on: {who}"),
        }
    }
}

/// The first of `names`, or words for none.
fn some_of(mut names: Vec<String>) -> String {
    const MOST: usize = 10;
    let more = names.len().saturating_sub(MOST);
    names.truncate(MOST);
    match more {
        0 if names.is_empty() => "processes that cannot be seen".to_owned(),
        0 => names.join(", "),
        _ => format!("{} and {more} more", names.join(", ")),
    }
}

/// True if claude's last result frame tells of success; else logs why not.
pub(super) fn check_success(last_result: Option<&LastResult>) -> bool {
    match last_result {
        Some(result) if result.is_success() => return true,
        None => error!("the exit code would be 0, but the child printed no result frame"),
        Some(result) if result.is_outdated => {
            error!("the exit code would be 0, but the result frame of its last turn is missing, or cut off");
        }
        Some(LastResult { subtype, is_error, .. }) => {
            error!(subtype, is_error, "the exit code would be 0, but its last result frame is no success");
        }
    }
    false
}
