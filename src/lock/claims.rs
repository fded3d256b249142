//! The lock is held by an ancestor, or through a descriptor inherited from our caller; waiting would deadlock.

use std::ffi::OsStr;
use std::fmt;
use std::fs;

use super::ancestors::{ancestors, has_exclusive_flock, holds_for_all_below};
use crate::config::settings::Environment;
use crate::records::{Hold, RecordStore, RunRecord};
use crate::run_id::RunId;
use crate::sys::file_id::FileId;
use crate::sys::proc;

/// Deepest nesting of claude-run in claude-run. Agents that call agents need a few levels; a `claude` on PATH that is a script around
/// claude-run would nest for ever.
pub const MAX_NESTING: usize = 32;

/// The variable that gives the child its lock helper's key.
pub const KEY_VARIABLE: &str = "CLAUDE_RUN_LOCK_KEY";

/// Claim of a run on the lock that it holds, for its descendants: `CLAUDE_RUN_HELD=<device>:<inode>:<run id>`. A descendant that
/// holds another lock appends its own claim after a comma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub(super) lock: FileId,
    pub(super) run: RunId,
}

/// The runs above us, by our environment.
#[derive(Clone, Debug, Default)]
pub struct AncestorRuns {
    /// Locks that they hold, or held.
    claims: Vec<Claim>,
    /// Slots likewise.
    slots: Vec<Claim>,
    /// Their ids, the outermost first.
    pub(crate) runs: Vec<String>,
    /// True if one has, or had, the lock of a lock helper.
    has_key: bool,
}

impl AncestorRuns {
    /// Reads the environment.
    pub fn of(environment: Environment) -> Self {
        let lineage = environment(RunId::LINEAGE).and_then(|lineage| lineage.into_string().ok()).unwrap_or_default();
        let claims = |variable| environment(variable).map(|list| Claim::parse_list(&list)).unwrap_or_default();
        Self {
            claims: claims(Claim::VARIABLE),
            slots: claims(Claim::SLOTS_VARIABLE),
            runs: lineage.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect(),
            has_key: environment(KEY_VARIABLE).is_some(),
        }
    }

    /// True if so many of them live that it is a loop.
    pub(crate) fn are_too_many(&self) -> bool {
        self.runs.len() >= MAX_NESTING && self.runs.iter().filter(|run| lives(run)).count() >= MAX_NESTING
    }

    /// Value of [`RunId::LINEAGE`] for the child of `run`: all who live, and as many of the last that have ended as could still have left
    /// something: a run can start another when it ends, and so on.
    pub(crate) fn lineage_with(&self, run: RunId) -> String {
        let older = self.runs.len().saturating_sub(MAX_NESTING);
        let (older, last) = self.runs.split_at(older);
        let kept = older.iter().filter(|run| lives(run)).chain(last).cloned();
        kept.chain([run.to_string()]).collect::<Vec<_>>().join(",")
    }

    /// True if one of them has claimed the lock `lock`.
    pub(super) fn may_hold(&self, lock: FileId) -> bool {
        self.claims.iter().any(|claim| claim.lock == lock)
    }

    /// Way in which the lock `lock` is held for us, if it is: to wait for it would be a deadlock. While a thread of ours waits for the lock,
    /// our own descriptors tell nothing: what it has just acquired looks like one that we have inherited.
    pub(super) fn hold_for_us(&self, lock: FileId, records: Option<&RecordStore>, we_wait: bool) -> Option<Hold> {
        if self.claims.iter().any(|claim| claim.holds_above_us(lock, records)) {
            return Some(Hold::RunAbove);
        }
        if !we_wait && has_exclusive_flock("self", &[lock]) {
            return Some(Hold::Caller);
        }
        let mut holders = ancestors().filter(|&pid| has_exclusive_flock(pid, &[lock]));
        let nearest = holders.next()?;
        // An ancestor may hold it for somebody else. It was passed down to us if a process between its holder and us has it as well, as
        // the claude in an old shell block has; if a run whose claim we have has started the holder: a claude whose claude-run was killed;
        // or if the holder has it for whatever it starts. None of them need pass it to its tools.
        let has_started_it =
            |claim: &Claim| claim.lock == lock && !claim.run.is_alive() && is_below(nearest, claim.run) == Some(true);
        let is_passed_down = self.claims.iter().any(has_started_it) || holders.next().is_some() || holds_for_all_below(nearest);
        is_passed_down.then_some(Hold::RunAbove)
    }

    /// True if one of them has, or had, a slot.
    pub(super) fn claim_slots(&self) -> bool {
        !self.slots.is_empty()
    }

    /// True if one of them has one of the `slots`, for us as well. The tree tells, whatever our environment has lost: what a run holds is
    /// for all below it. Where it cannot be seen, in another PID namespace, a claim and the run's record do. While threads of ours wait
    /// for the slots, our own descriptors tell nothing.
    pub(super) fn have_slot(&self, slots: &[FileId], records: Option<&RecordStore>, we_wait: bool) -> bool {
        let is_elsewhere = |claim: &Claim| {
            slots.contains(&claim.lock) && claim.run_elsewhere(records).is_some_and(|record| record.has_slot(claim.lock))
        };
        (!we_wait && has_exclusive_flock("self", slots))
            || ancestors().any(|pid| has_exclusive_flock(pid, slots))
            || self.slots.iter().any(is_elsewhere)
    }

    /// Value of [`Claim::SLOTS_VARIABLE`] for a child: `own`, and the claims from above.
    pub(super) fn slots_with(&self, own: Claim) -> String {
        Claim::list(self.slots.iter().chain([&own]))
    }

    /// True if an ancestor, or whichever run holds the session lock `lock`, has the lock of a lock helper as well.
    pub(super) fn is_helped(&self, lock: FileId, records: Option<&RecordStore>) -> bool {
        let above = self.runs.iter().filter_map(|run| records?.live(run));
        let holder = records.and_then(|records| records.holder(lock, usize::MAX));
        // A run that relies on an ancestor says nothing of that one's lock helper.
        let is_first_hand = |record: &RunRecord| record.key.is_some() || record.hold != Some(Hold::RunAbove);
        let mut known = above.chain(holder).filter(|record| record.is_about(lock) && is_first_hand(record)).peekable();
        if known.peek().is_some() {
            return known.any(|record| record.key.is_some());
        }
        // Without records, the claim of a run that lives has to do.
        self.has_key && self.claims.iter().any(|claim| claim.lock == lock && claim.run.is_above_us())
    }

    /// Value of [`Claim::VARIABLE`] for a child: `own`, and the claims from above, less those on the same file if they are `outdated`.
    pub(super) fn claims_with(&self, own: Claim, outdated: bool) -> String {
        let others = self.claims.iter().filter(|claim| claim.lock != own.lock || !outdated);
        Claim::list(others.chain([&own]))
    }

    /// True if the key in our environment is out of date: none of them has a lock helper, as far as can be found out.
    pub fn has_stale_key(&self, records: Option<&RecordStore>) -> bool {
        let may_be_helped = |run: &String| match records.and_then(|records| records.live(run)) {
            Some(record) => record.key.is_some(),
            None => RunId::parse(run).is_some_and(RunId::is_above_us),
        };
        self.has_key && !self.runs.iter().any(may_be_helped)
    }
}

impl Claim {
    /// The variable that carries claims.
    pub const VARIABLE: &'static str = "CLAUDE_RUN_HELD";

    /// The variable that carries claims on slots.
    pub const SLOTS_VARIABLE: &'static str = "CLAUDE_RUN_SLOT";

    fn list<'a>(claims: impl Iterator<Item = &'a Self>) -> String {
        claims.map(Self::to_string).collect::<Vec<_>>().join(",")
    }

    /// Reads a list of claims, and skips what is none.
    fn parse_list(value: &OsStr) -> Vec<Self> {
        value.to_str().unwrap_or_default().split(',').filter_map(Self::parse).collect()
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let (device, inode, run) = (parts.next()?, parts.next()?, parts.next()?);
        let lock = FileId { device: device.parse().ok()?, inode: inode.parse().ok()? };
        Some(Self { lock, run: RunId::parse(run)? })
    }

    /// True if this claim is on the file `lock`, and a run above us made it, lives, and holds the lock still. The variable alone
    /// proves nothing, since the lock may have been released: a descriptor of that run has to hold it. In another PID namespace
    /// that cannot be seen; there the run's record counts.
    fn holds_above_us(&self, lock: FileId, records: Option<&RecordStore>) -> bool {
        let is_visible = || self.run.is_above_us() && has_exclusive_flock(self.run.pid, &[lock]);
        let record = || self.run_elsewhere(records).filter(|record| record.holds(lock));
        self.lock == lock && (is_visible() || record().is_some())
    }

    /// Record of the run that made this claim, if that lives in another PID namespace, or its descriptors are hidden from us, as to who is
    /// in a user namespace of its own.
    fn run_elsewhere(&self, records: Option<&RecordStore>) -> Option<RunRecord> {
        let record = records?.live(&self.run.to_string())?;
        let is_elsewhere = record.pid_namespace.is_some() && record.pid_namespace != proc::pid_namespace();
        let is_hidden = || self.run.is_above_us() && proc::is_hidden(self.run.pid);
        (is_elsewhere || is_hidden()).then_some(record)
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lock: FileId { device, inode }, run } = self;
        write!(f, "{device}:{inode}:{run}")
    }
}

/// True if the run with this id is seen to live.
fn lives(run: &str) -> bool {
    RunId::parse(run).and_then(RunId::lives) == Some(true)
}

/// True if the process `pid` was started below `run`, by its environment; `None` if we may not read that.
pub(super) fn is_below(pid: i32, run: RunId) -> Option<bool> {
    fs::read(format!("/proc/{pid}/environ")).ok().map(|environment| run.is_above(&environment))
}

#[cfg(test)]
mod tests;
