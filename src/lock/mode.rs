//! When to take the session lock.

use std::path::PathBuf;

use anyhow::Result;
use nix::sys::signal::SigSet;
use tracing::{error, info};

use super::ours::{self, Claim};
use super::session::{Candidate, Held};
use super::waiting::{self, Waited};
use crate::event::Channel;
use crate::identity::Identity;
use crate::records::{Directory, Hold, Journal};
use crate::settings::{Wait, show};

/// The session lock of a run that needs it.
#[derive(Debug)]
pub struct Lock {
    /// The lock file.
    pub path: PathBuf,
    /// How long to wait for it.
    pub wait: Wait,
    /// The exit code when it is not free in time.
    pub conflict_exit_code: u8,
    /// What our environment says of runs above us that hold this lock or another.
    pub claims_above: Vec<Claim>,
    /// Signals that ask nothing of us while we wait.
    pub ignored: SigSet,
}

impl Lock {
    /// Whether our environment says that a run above us holds the lock `identity`.
    pub(super) fn may_be_held_above_us(&self, identity: Identity) -> bool {
        self.claims_above.iter().any(|claim| claim.identity == identity)
    }

    /// Whether a run above us does hold the lock `identity`, for us.
    pub(super) fn is_held_above_us(&self, identity: Identity, records: Option<&Directory>) -> bool {
        self.claims_above.iter().any(|claim| claim.holds_above_us(identity, records))
    }

    /// Why the run was refused when the lock was not free in time.
    fn refusal(&self) -> String {
        let path = self.path.display();
        match self.wait {
            Wait::No => format!("the session lock {path} is held by another process, and --wait is 0"),
            Wait::AtMost(bound) => format!("the session lock {path} was not free within {}; --wait waits longer", show(bound)),
            Wait::Forever => format!("the session lock {path} is held by another process"),
        }
    }
}

/// What came of taking it.
#[derive(Debug)]
pub enum Taken {
    /// We hold it.
    Held(Held),
    /// A run above us holds it for us, and lives.
    AboveUs,
    /// A descriptor that our caller gave us holds it, as in `( flock 9; claude-run … ) 9>session.lock`.
    ByCaller(Identity),
    /// It was not free in time.
    Busy,
    /// This signal ended the wait.
    EndedBy(i32),
}

/// Takes the lock: at once, or after a wait.
///
/// # Errors
/// The lock file can be neither made nor opened, is no regular file, or its file system has no flock(2).
pub fn take(lock: &Lock, journal: &mut Journal, channel: &mut Channel) -> Result<Taken> {
    let path = lock.path.display();
    info!(name: "lock.acquiring", lock = %path, "taking the session lock");
    let taken = match Candidate::open(&lock.path)?.try_lock()? {
        Ok(held) => {
            info!(name: "lock.acquired", lock = %path, "holding the session lock");
            Taken::Held(held)
        }
        Err(busy) => when_busy(busy, lock, journal, channel)?,
    };
    match &taken {
        Taken::Held(held) => journal.has_lock(Hold::Own, Some(held.identity())),
        Taken::AboveUs => {
            journal.has_lock(Hold::RunAbove, None);
            info!(name: "lock.acquired", lock = %path, "a run above this one holds the session lock for it");
        }
        Taken::ByCaller(on) => {
            journal.has_lock(Hold::Caller, Some(*on));
            info!(name: "lock.acquired", lock = %path, "the caller's own descriptor holds the session lock for this run");
        }
        Taken::Busy => {
            journal.has_waited();
            error!(name: "lock.timeout", "{}", lock.refusal());
        }
        Taken::EndedBy(_) => journal.has_waited(),
    }
    Ok(taken)
}

fn when_busy(candidate: Candidate, lock: &Lock, journal: &mut Journal, channel: &mut Channel) -> Result<Taken> {
    let identity = candidate.identity();
    if lock.is_held_above_us(identity, journal.directory()) {
        return Ok(Taken::AboveUs);
    }
    if ours::is_held_by_a_descriptor_of("self", identity) {
        return Ok(Taken::ByCaller(identity));
    }
    Ok(match waiting::wait(candidate, lock, journal, channel)? {
        Waited::Got(held) => Taken::Held(held),
        Waited::AboveUs => Taken::AboveUs,
        Waited::TooLong => Taken::Busy,
        Waited::EndedBy(signal) => Taken::EndedBy(signal),
    })
}
