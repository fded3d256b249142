//! When to take the session lock.

use std::path::PathBuf;

use anyhow::Result;
use nix::sys::signal::SigSet;
use tracing::info;

use super::ours::{self, Claim};
use super::session::{Candidate, Held};
use super::waiting::{self, Waited};
use crate::event::Channel;
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
    /// Why the run was refused when the lock was not free in time.
    pub fn refusal(&self) -> String {
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
    ByCaller(super::Identity),
    /// It was not free in time.
    Busy,
    /// This signal ended the wait.
    EndedBy(i32),
}

/// Takes the lock: at once, or after a wait.
///
/// # Errors
/// The lock file can be neither made nor opened, is no regular file, or its file system has no flock(2).
pub fn take(lock: &Lock, channel: &mut Channel) -> Result<Taken> {
    let candidate = match Candidate::open(&lock.path)?.try_lock()? {
        Ok(held) => return Ok(Taken::Held(held)),
        Err(busy) => busy,
    };
    let identity = candidate.identity();
    if lock.claims_above.iter().any(|claim| claim.holds_above_us(identity)) {
        info!(lock = %lock.path.display(), "a run above this one holds the session lock for it");
        return Ok(Taken::AboveUs);
    }
    if ours::is_held_by_a_descriptor_of("self", identity) {
        info!(lock = %lock.path.display(), "the caller's own descriptor holds the session lock for this run");
        return Ok(Taken::ByCaller(identity));
    }
    Ok(match waiting::wait(candidate, lock, channel)? {
        Waited::Got(held) => Taken::Held(held),
        Waited::TooLong => Taken::Busy,
        Waited::EndedBy(signal) => Taken::EndedBy(signal),
    })
}
