//! When to take the session lock.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use nix::sys::signal::SigSet;
use tracing::{error, info, warn};

use super::asking;
use super::helper::HelperCommand;
use super::holding::Holding;
use super::ours::{self, Above};
use super::refresh::{Need, Refreshes, Settled};
use super::session::Candidate;
use super::waiting::{self, Waited};
use crate::claude::credentials::Login;
use crate::event::Channel;
use crate::identity::Identity;
use crate::records::{Hold, Journal};
use crate::settings::{Wait, show};

/// The session lock of a run that needs it.
#[derive(Debug)]
pub struct Lock {
    /// The lock file.
    pub path: PathBuf,
    /// Whether it is only for a refresh that is due.
    pub only_while_due: bool,
    /// Claude's token; none, without a config dir that can be used.
    pub refreshes: Option<Refreshes>,
    /// What holds a lock of another engine as well.
    pub helper: Option<HelperCommand>,
    /// How long to wait for it.
    pub wait: Wait,
    /// The exit code when it is not free in time.
    pub conflict_exit_code: u8,
    /// What our environment says of the runs above us.
    pub above: Above,
    /// Signals that ask nothing of us while we wait.
    pub ignored: SigSet,
}

impl Lock {
    /// Why the lock need not be taken, as things are.
    pub(super) fn is_unneeded(&self) -> Option<String> {
        match self.refreshes.as_ref().filter(|_| self.only_while_due)?.need() {
            Need::None(why) => Some(why),
            Need::Due(_) | Need::Unclear(_) => None,
        }
    }

    /// Why the run was refused when the lock was not free in time.
    fn refusal(&self) -> String {
        let path = self.path.display();
        match self.wait {
            Wait::AtMost(bound) => format!("the session lock {path} was not free within {}; --wait waits longer", show(bound)),
            // The latter is never refused.
            Wait::No | Wait::Forever => format!("the session lock {path} is held by another process, and --wait is 0"),
        }
    }
}

/// What came of taking it.
#[derive(Debug)]
pub enum Taken {
    /// We hold it.
    Held(Holding),
    /// No refresh is due, so nothing is held.
    Unneeded,
    /// A run above us holds it for us, and lives.
    AboveUs(Identity),
    /// A descriptor that our caller gave us holds it, as in `( flock 9; claude-run … ) 9>session.lock`.
    ByCaller(Identity),
    /// It was not free in time.
    Busy,
    /// This signal ended the wait.
    EndedBy(i32),
}

/// Takes the lock: at once, or after a wait. Then nothing is in the way of a refresh, as far as that can be waited for.
///
/// # Errors
/// The lock file can be neither made nor opened, is no regular file, or its file system has no flock(2).
pub fn take(lock: &Lock, journal: &mut Journal, channel: &mut Channel) -> Result<Taken> {
    if let Some(reason) = lock.is_unneeded() {
        info!(name: "lock.unneeded", "starting without the session lock: {reason}");
        return Ok(Taken::Unneeded);
    }
    let started = Instant::now();
    let taken = match (take_session_lock(lock, journal, channel)?, &lock.helper) {
        (Taken::Held(holding), Some(helper)) => asking::ask(helper, holding, started, lock, journal, channel)?,
        // Theirs is the lock of this host. That of the other engine they may have as well, or not.
        (Taken::AboveUs(on), Some(helper)) if !lock.above.is_helped(on, journal.directory()) => {
            asking::ask(helper, Holding::of_others(Hold::RunAbove, on), started, lock, journal, channel)?
        }
        (Taken::ByCaller(on), Some(helper)) if !lock.above.is_helped(on, journal.directory()) => {
            asking::ask(helper, Holding::of_others(Hold::Caller, on), started, lock, journal, channel)?
        }
        (taken, _) => taken,
    };
    match &taken {
        Taken::Held(holding) => journal.has_lock(holding.hold(), Some(holding.identity()), holding.key()),
        Taken::AboveUs(_) => journal.has_lock(Hold::RunAbove, None, None),
        Taken::ByCaller(on) => journal.has_lock(Hold::Caller, Some(*on), None),
        Taken::Unneeded | Taken::Busy | Taken::EndedBy(_) => {
            journal.has_waited();
            return Ok(taken);
        }
    }
    let Some(refreshes) = &lock.refreshes else { return Ok(taken) };
    let is_lost = || matches!(&taken, Taken::Held(holding) if holding.loss().is_some());
    let settled = refreshes.settle(lock, channel, || journal.waits(), is_lost)?;
    Ok(match (settled, taken) {
        (Settled::EndedBy(signal), mut taken) => {
            if let Taken::Held(holding) = &mut taken {
                holding.part(channel, lock.ignored, Some(Instant::now()));
            }
            journal.has_let_go();
            Taken::EndedBy(signal)
        }
        (_, Taken::Held(mut holding)) => match holding.loss() {
            Some(loss) => {
                error!(name: "lock.lost", "{loss}: the lock is lost; nothing was started");
                holding.part(channel, lock.ignored, None);
                journal.has_let_go();
                Taken::Busy
            }
            None if lock.only_while_due => while_due(refreshes, holding, lock, journal, channel),
            None => Taken::Held(holding),
        },
        (_, taken) => taken,
    })
}

/// What becomes of the lock in `refresh` mode, now that it is had: the one before us may have refreshed the token.
fn while_due(refreshes: &Refreshes, mut holding: Holding, lock: &Lock, journal: &mut Journal, channel: &mut Channel) -> Taken {
    match refreshes.need_for_certain() {
        Need::Due(expiry) => Taken::Held(holding.for_a_refresh(refreshes.config_dir.clone(), expiry)),
        Need::Unclear(why) => {
            warn!(name: "refresh.unclear", "{why}; holding the session lock for the whole run, as in exclusive mode");
            Taken::Held(holding)
        }
        Need::None(why) => {
            let began = Instant::now();
            let request = holding.part(channel, lock.ignored, None);
            journal.has_let_go();
            drop(holding);
            info!(name: "lock.released", "released the session lock again: {why}");
            match request {
                // It comes before anything is started.
                Some(signal) => {
                    let signal = signal as i32;
                    waiting::tell_given_up(signal, "the lock helper", &show(began.elapsed()));
                    Taken::EndedBy(signal)
                }
                None => Taken::Unneeded,
            }
        }
    }
}

fn take_session_lock(lock: &Lock, journal: &mut Journal, channel: &mut Channel) -> Result<Taken> {
    let path = lock.path.display();
    info!(name: "lock.acquiring", lock = %path, "taking the session lock");
    let taken = match Candidate::open(&lock.path)?.try_lock()? {
        Ok(held) => {
            info!(name: "lock.acquired", lock = %path, "holding the session lock");
            Taken::Held(Holding::of(held))
        }
        Err(busy) => when_busy(busy, lock, journal, channel)?,
    };
    match &taken {
        Taken::AboveUs(_) => {
            info!(name: "lock.acquired", lock = %path, "a process above this one holds the session lock for it")
        }
        Taken::ByCaller(_) => {
            info!(name: "lock.acquired", lock = %path, "the caller's own descriptor holds the session lock for this run");
        }
        Taken::Busy => error!(name: "lock.timeout", "{}", lock.refusal()),
        Taken::Held(..) | Taken::Unneeded | Taken::EndedBy(_) => {}
    }
    Ok(taken)
}

fn when_busy(candidate: Candidate, lock: &Lock, journal: &mut Journal, channel: &mut Channel) -> Result<Taken> {
    let identity = candidate.identity();
    if lock.above.holds(identity, journal.directory()) {
        return Ok(Taken::AboveUs(identity));
    }
    if ours::is_held_by_a_descriptor_of("self", identity) {
        return Ok(Taken::ByCaller(identity));
    }
    if ours::is_held_by_an_ancestor(identity) {
        return Ok(Taken::AboveUs(identity));
    }
    if let Some(refreshes) = lock.refreshes.as_ref().filter(|_| lock.only_while_due) {
        channel.follow(&[Login::path(&refreshes.config_dir)]);
        // It may have changed before it was followed.
        if let Some(reason) = lock.is_unneeded() {
            channel.follow(&[]);
            info!(name: "lock.unneeded", "starting without the session lock: {reason}");
            return Ok(Taken::Unneeded);
        }
    }
    let waited = waiting::wait(candidate, lock, journal, channel)?;
    channel.follow(&[]);
    Ok(match waited {
        Waited::Got(held) => Taken::Held(Holding::of(held)),
        Waited::AboveUs(on) => Taken::AboveUs(on),
        Waited::Unneeded(_) => Taken::Unneeded,
        Waited::TooLong => Taken::Busy,
        Waited::EndedBy(signal) => Taken::EndedBy(signal),
    })
}
