//! When to take the session lock.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::SigSet;
use tracing::{error, info, warn};

use super::helper::{self, Helper, HelperCommand};
use super::holding::Holding;
use super::ours::{self, Claim};
use super::refresh::{Need, Refreshes, Settled};
use super::session::Candidate;
use super::waiting::{self, Waited};
use crate::claude::credentials::Login;
use crate::event::{Channel, Event};
use crate::identity::Identity;
use crate::records::{Directory, Hold, Journal};
use crate::settings::{Wait, after, show};

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
    AboveUs,
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
        (Taken::Held(holding), Some(helper)) => take_with_helper(holding, helper, started, lock, journal, channel)?,
        (Taken::ByCaller(on), Some(helper)) => {
            take_with_helper(Holding::of_the_caller(on), helper, started, lock, journal, channel)?
        }
        (taken, _) => taken,
    };
    match &taken {
        Taken::Held(holding) => journal.has_lock(holding.hold(), Some(holding.identity()), holding.key()),
        Taken::AboveUs => journal.has_lock(Hold::RunAbove, None, None),
        Taken::ByCaller(on) => journal.has_lock(Hold::Caller, Some(*on), None),
        Taken::Unneeded | Taken::Busy | Taken::EndedBy(_) => {
            journal.has_waited();
            return Ok(taken);
        }
    }
    let Some(refreshes) = &lock.refreshes else { return Ok(taken) };
    let settled = refreshes.settle(lock, channel, || journal.waits())?;
    Ok(match (settled, taken) {
        (Settled::EndedBy(signal), _) => {
            journal.has_let_go();
            Taken::EndedBy(signal)
        }
        (_, Taken::Held(holding)) => match holding.loss() {
            Some(loss) => {
                error!(name: "lock.lost", "{loss}: the lock is lost; nothing was started");
                journal.has_let_go();
                Taken::Busy
            }
            None if lock.only_while_due => while_due(refreshes, holding, journal),
            None => Taken::Held(holding),
        },
        (_, taken) => taken,
    })
}

/// What becomes of the lock in `refresh` mode, now that it is had: the one before us may have refreshed the token.
fn while_due(refreshes: &Refreshes, holding: Holding, journal: &mut Journal) -> Taken {
    match refreshes.need_for_certain() {
        Need::Due(expiry) => Taken::Held(holding.for_a_refresh(refreshes.config_dir.clone(), expiry)),
        Need::Unclear(why) => {
            warn!(name: "refresh.unclear", "{why}; holding the session lock for the whole run, as in exclusive mode");
            Taken::Held(holding)
        }
        Need::None(why) => {
            journal.has_let_go();
            drop(holding);
            info!(name: "lock.released", "released the session lock again: {why}");
            Taken::Unneeded
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
        Taken::AboveUs => info!(name: "lock.acquired", lock = %path, "a process above this one holds the session lock for it"),
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
    if lock.is_held_above_us(identity, journal.directory()) {
        return Ok(Taken::AboveUs);
    }
    if ours::is_held_by_a_descriptor_of("self", identity) {
        return Ok(Taken::ByCaller(identity));
    }
    if ours::is_held_by_an_ancestor(identity) {
        return Ok(Taken::AboveUs);
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
        Waited::AboveUs => Taken::AboveUs,
        Waited::Unneeded(_) => Taken::Unneeded,
        Waited::TooLong => Taken::Busy,
        Waited::EndedBy(signal) => Taken::EndedBy(signal),
    })
}

/// How long a helper has to answer where nobody wants to wait: a question to another machine takes its time.
const AN_ANSWER: Duration = Duration::from_secs(2);

/// How long it may take before that is worth a word.
const A_MOMENT: Duration = Duration::from_secs(1);

/// Has `command` take its lock, too, within what is left of the wait that began at `started`. The session lock is freed if it
/// does not.
fn take_with_helper(
    holding: Holding,
    command: &HelperCommand,
    started: Instant,
    lock: &Lock,
    journal: &mut Journal,
    channel: &mut Channel,
) -> Result<Taken> {
    let (bound, deadline) = match lock.wait {
        Wait::Forever => (None, None),
        Wait::AtMost(bound) => (Some(bound), after(started, Some(bound))),
        Wait::No => (Some(AN_ANSWER), after(Instant::now(), Some(AN_ANSWER))),
    };
    if let Some(refreshes) = lock.refreshes.as_ref().filter(|_| lock.only_while_due) {
        channel.follow(&[Login::path(&refreshes.config_dir)]);
    }
    let answer = match lock.is_unneeded() {
        // Who had the session lock before us has refreshed the token.
        Some(reason) => Answer::Unneeded(reason),
        None => {
            journal.has_session_lock(holding.hold(), holding.identity());
            let helper = Helper::start(command, channel.mouth())?;
            match ask(&helper, started, deadline, lock, channel)? {
                Answer::Yes => {
                    info!(name: "lock.acquired", key = helper.key(), "the lock helper {} has the lock", helper.name());
                    channel.follow(&[]);
                    return Ok(Taken::Held(holding.and(helper)));
                }
                Answer::Ended(how) => {
                    let name = helper.name();
                    error!(name: "lock.timeout", "the lock helper {name} has ended without a lock ({how}); nothing was started");
                    Answer::No
                }
                Answer::No => {
                    let (name, bound) = (helper.name(), show(bound.unwrap_or_default()));
                    error!(name: "lock.timeout", "the lock helper {name} did not get its lock within {bound}; nothing was started; --wait waits longer");
                    Answer::No
                }
                answer => answer,
            }
        }
    };
    channel.follow(&[]);
    journal.has_let_go();
    Ok(match answer {
        Answer::Unneeded(reason) => {
            info!(name: "lock.unneeded", "starting without the lock helper: {reason}");
            Taken::Unneeded
        }
        Answer::EndedBy(signal) => Taken::EndedBy(signal),
        Answer::Yes | Answer::No | Answer::Ended(_) => Taken::Busy,
    })
}

/// What a lock helper said, or what made its answer superfluous.
enum Answer {
    /// It has the lock.
    Yes,
    /// Nothing, in time.
    No,
    /// It has ended, and how.
    Ended(String),
    Unneeded(String),
    EndedBy(i32),
}

fn ask(helper: &Helper, started: Instant, deadline: Option<Instant>, lock: &Lock, channel: &mut Channel) -> Result<Answer> {
    let name = helper.name();
    let so_far = || warn!(name: "lock.waiting", "waiting for the lock helper {name}, {} so far", show(started.elapsed()));
    let mut word = Some(Instant::now() + A_MOMENT);
    loop {
        let events = channel.wait([deadline, word].into_iter().flatten().min()).context("cannot wait for events")?;
        if let Some(signal) = waiting::request_to_give_up(&events, lock.ignored, so_far) {
            waiting::tell_given_up(signal, "the lock helper", &show(started.elapsed()));
            return Ok(Answer::EndedBy(signal));
        }
        if let Some(failure) = helper.failure() {
            return Err(failure).context(helper::FAILED);
        }
        if let Some(how) = helper.ending() {
            return Ok(Answer::Ended(how));
        }
        if helper.key().is_some() {
            if word.is_none() {
                warn!(name: "lock.acquired", "the lock helper {name} has its lock after {}", show(started.elapsed()));
            }
            return Ok(Answer::Yes);
        }
        if let Some(reason) = lock.is_unneeded().filter(|_| events.contains(&Event::FilesChanged)) {
            return Ok(Answer::Unneeded(reason));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(Answer::No);
        }
        if word.is_some_and(|at| Instant::now() >= at) {
            word = None;
            so_far();
        }
    }
}
