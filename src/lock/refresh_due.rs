//! What `refresh` mode asks: is a refresh of claude's token due? And what no mode that takes the lock starts claude into:
//! claude's own refresh locks, while somebody else, or nobody alive, holds them.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tracing::{info, warn};

use super::acquire::LockRequest;
use super::queue;
use crate::claude::credentials::Login;
use crate::claude::refresh_locks::{RefreshLock, Standing};
use crate::config::settings::{show, show_seconds};
use crate::events::EventQueue;
use crate::sys::mount::LockScope;

/// What is known of the token's refreshes before anything is read.
#[derive(Debug)]
pub struct Refreshes {
    /// Where the credentials are.
    pub config_dir: PathBuf,
    /// How long before the token expires a refresh is due; none: always.
    pub margin: Option<Duration>,
    /// The variable because of which there is never one.
    pub ruled_out_by: Option<&'static str>,
    /// Whether claude can do without a login in the credentials file.
    pub can_do_without: bool,
}

/// Whether a refresh is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RefreshState {
    /// No; and why.
    None(String),
    /// Yes: this is when the token expires.
    Due(SystemTime),
    /// It cannot be told; and why.
    Unclear(String),
}

/// How the wait for claude's refresh locks ended.
#[derive(Debug)]
pub(super) enum Settled {
    /// None is in the way, or none that will be gone soon.
    Clear,
    /// The token was refreshed by somebody else.
    Refreshed,
    /// Meanwhile the lock was lost.
    LockLost,
    /// This signal ended the wait.
    EndedBy(Signal),
}

/// How long claude's refresh locks are waited for: longer than any of them outlives its owner.
const PATIENCE: Duration = Duration::from_secs(70);

impl Refreshes {
    /// Whether one is due, as the credentials file is at this moment.
    pub(super) fn need(&self) -> RefreshState {
        match self.ruled_out_by {
            Some(variable) => RefreshState::None(format!("{variable} is set, and that token is never refreshed")),
            None => self.need_of(Login::read(&self.config_dir), SystemTime::now()),
        }
    }

    /// The same, but a file that is just being rewritten is read again.
    pub(super) fn need_for_certain(&self) -> RefreshState {
        match self.need() {
            RefreshState::Unclear(_) => self.need_of(Login::read_whole(&self.config_dir), SystemTime::now()),
            need => need,
        }
    }

    /// Whether claude may refresh the token when it starts, but may see less than another host has written: such file systems keep
    /// for a second, if not told otherwise, what they know of a name.
    pub(super) fn may_be_out_of_date(&self) -> bool {
        LockScope::at(&self.config_dir).is_some_and(LockScope::may_be_per_host)
            && !matches!(self.need_for_certain(), RefreshState::None(_))
    }

    fn need_of(&self, login: Login, now: SystemTime) -> RefreshState {
        let file = Login::path(&self.config_dir);
        let file = file.display();
        match login {
            Login::Expires(at) => match (at.duration_since(now), self.margin) {
                (Ok(left), Some(margin)) if left > margin => {
                    RefreshState::None(format!("the token expires in {}", show_seconds(left)))
                }
                _ => RefreshState::Due(at),
            },
            Login::None if self.can_do_without => {
                RefreshState::None(format!("there is no login in {file}, and none is needed"))
            }
            Login::None => RefreshState::Unclear(format!("there is no login in {file}")),
            Login::Unclear(why) => RefreshState::Unclear(format!("{file} cannot be understood: {why}")),
        }
    }

    /// The refresh lock that is in the way for longest, and how long at most if nobody touches it.
    fn obstacle(&self) -> Option<(RefreshLock, Duration)> {
        let now = SystemTime::now();
        let locks = RefreshLock::of(&self.config_dir);
        let blocking = locks.into_iter().filter_map(|lock| lock.blocks_for(now).map(|left| (lock, left)));
        blocking.max_by_key(|&(_, left)| left)
    }

    /// Waits until no refresh lock is in the way, if claude would have to do with them. `about_to_wait` is called before, and
    /// `is_lost` asks whether the lock that is held meanwhile is.
    pub(super) fn wait_for_refresh_locks(
        &self,
        lock: &LockRequest,
        events: &mut EventQueue,
        about_to_wait: impl FnOnce(),
        is_lost: impl Fn() -> bool,
    ) -> Result<Settled> {
        let Some((first, _)) = self.obstacle() else { return Ok(Settled::Clear) };
        if !matches!(self.need_for_certain(), RefreshState::Due(_)) {
            return Ok(Settled::Clear);
        }
        about_to_wait();
        let started = Instant::now();
        let mut files: Vec<_> = RefreshLock::of(&self.config_dir).into_iter().map(|lock| lock.path).collect();
        files.push(Login::path(&self.config_dir));
        events.watch_files(&files);
        warn!(name: "refresh.waiting", "{}; waiting for it, at most {}", in_the_way(&first), show(PATIENCE));
        let settled = self.until_settled(lock, events, started, is_lost);
        events.watch_files(&[]);
        let waited = show(started.elapsed());
        match &settled {
            Ok(Settled::EndedBy(signal)) => queue::log_interrupted(*signal, "claude's refresh lock", &waited),
            Ok(_) => info!(name: "refresh.waited", "waited {waited} for claude's refresh lock"),
            Err(_) => {}
        }
        settled
    }

    fn until_settled(
        &self,
        lock: &LockRequest,
        events: &mut EventQueue,
        started: Instant,
        is_lost: impl Fn() -> bool,
    ) -> Result<Settled> {
        loop {
            if is_lost() {
                return Ok(Settled::LockLost);
            }
            if let RefreshState::None(_) = self.need() {
                return Ok(Settled::Refreshed);
            }
            let Some((obstacle, left)) = self.obstacle() else { return Ok(Settled::Clear) };
            let now = Instant::now();
            if now >= started + PATIENCE {
                warn!(name: "refresh.waited", "{}; going on after {}", in_the_way(&obstacle), show(PATIENCE));
                return Ok(Settled::Clear);
            }
            let events = events.wait(Some((now + left).min(started + PATIENCE))).context("cannot wait for events")?;
            if let Some(signal) = queue::first_termination_signal(&events, lock.ignored, || {
                warn!("waiting for claude's refresh lock, {} so far", show(started.elapsed()));
            }) {
                return Ok(Settled::EndedBy(signal));
            }
        }
    }
}

fn in_the_way(lock: &RefreshLock) -> String {
    let owner = lock.owner.as_ref().map_or_else(String::new, |owner| format!(" of pid {}", owner.pid));
    let path = lock.path.display();
    match lock.standing(SystemTime::now()) {
        Standing::OwnerDead(left) => {
            format!("claude's refresh lock {path}{owner}, which is dead, is not stale for another {}", show_seconds(left))
        }
        _ => format!("claude's refresh lock {path}{owner} is held: a refresh is under way"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refreshes(margin: Option<u64>) -> Refreshes {
        let margin = margin.map(Duration::from_secs);
        Refreshes { config_dir: "/nonesuch".into(), margin, ruled_out_by: None, can_do_without: false }
    }

    #[test]
    fn a_refresh_is_due_from_the_margin_before_the_expiry_on() {
        let now = SystemTime::now();
        let in_a_minute = now + Duration::from_secs(60);
        let need = |margin, at| refreshes(margin).need_of(Login::Expires(at), now);
        for (margin, is_due) in [(Some(30), false), (Some(50), false), (Some(60), true), (Some(600), true), (None, true)] {
            assert_eq!(need(margin, in_a_minute) == RefreshState::Due(in_a_minute), is_due, "{margin:?}");
        }
        let past = now - Duration::from_secs(1);
        assert_eq!(need(Some(0), past), RefreshState::Due(past));
        assert_eq!(need(Some(0), SystemTime::UNIX_EPOCH), RefreshState::Due(SystemTime::UNIX_EPOCH));
        assert!(matches!(need(Some(u64::MAX), in_a_minute), RefreshState::Due(_)), "a margin that no clock can hold");
        // A clock that is moved moves what is due with it, as it does for claude.
        let at = |now| refreshes(Some(360)).need_of(Login::Expires(in_a_minute), now);
        assert!(matches!(at(now - Duration::from_secs(86_400)), RefreshState::None(_)));
        assert!(matches!(at(SystemTime::UNIX_EPOCH), RefreshState::None(_)));
        assert!(matches!(at(now + Duration::from_secs(86_400)), RefreshState::Due(_)));
    }

    #[test]
    fn without_a_login_it_is_unclear_unless_none_is_needed() {
        let now = SystemTime::now();
        let cases = [Login::None, Login::Unclear("cut".into())];
        assert!(cases.into_iter().all(|login| matches!(refreshes(None).need_of(login, now), RefreshState::Unclear(_))));
        let without = Refreshes { can_do_without: true, ..refreshes(None) };
        assert!(matches!(without.need_of(Login::None, now), RefreshState::None(_)));
        assert!(matches!(without.need_of(Login::Unclear("cut".into()), now), RefreshState::Unclear(_)));
        let due = Login::Expires(SystemTime::UNIX_EPOCH);
        assert!(matches!(without.need_of(due, now), RefreshState::Due(_)), "claude refreshes a login that it does not need");
        let ruled_out = Refreshes { ruled_out_by: Some("X"), ..refreshes(None) };
        assert!(matches!(ruled_out.need(), RefreshState::None(_)));
    }
}
