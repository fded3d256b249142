//! Refreshes of claude's token: is one due, by the credentials file, and which of claude's refresh locks is in its way?

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::claude::credentials::Login;
use crate::claude::refresh_locks::RefreshLock;
use crate::config::duration::show_seconds;
use crate::sys::mount::may_lock_per_host;

/// How claude's token is refreshed in this run.
#[derive(Debug)]
pub struct Refreshes {
    pub(crate) config_dir: PathBuf,
    /// Time before the token's expiry from which on a refresh is due; without one, it always is.
    pub(crate) margin: Option<Duration>,
    /// The variable that rules refreshes out.
    pub(crate) ruled_out_by: Option<&'static str>,
    /// True if claude needs no login in the credentials file.
    pub(crate) can_do_without: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RefreshState {
    /// No refresh is due; the reason.
    NotDue(String),
    /// A refresh is due; the time at which the token expires.
    Due(SystemTime),
    /// The reason.
    Unclear(String),
}

impl Refreshes {
    /// State by the credentials file as it is at this moment.
    pub(super) fn state(&self) -> RefreshState {
        match self.ruled_out_by {
            Some(variable) => RefreshState::NotDue(format!("{variable} is set, and that token is never refreshed")),
            None => self.state_of(Login::read(&self.config_dir), SystemTime::now()),
        }
    }

    /// State by a whole credentials file: one that is being rewritten is read again.
    pub(super) fn settled_state(&self) -> RefreshState {
        match self.state() {
            RefreshState::Unclear(_) => self.state_of(Login::read_whole(&self.config_dir), SystemTime::now()),
            state => state,
        }
    }

    /// True if claude may refresh the token when it starts, but may not see yet what another host has written: such file systems
    /// cache attributes for a second by default.
    pub(super) fn may_be_out_of_date(&self) -> bool {
        may_lock_per_host(&self.config_dir) && !matches!(self.settled_state(), RefreshState::NotDue(_))
    }

    fn state_of(&self, login: Login, now: SystemTime) -> RefreshState {
        let file = Login::path(&self.config_dir);
        let file = file.display();
        match login {
            Login::Expires(at) => match (at.duration_since(now), self.margin) {
                (Ok(left), Some(margin)) if left > margin => {
                    RefreshState::NotDue(format!("the token expires in {}", show_seconds(left)))
                }
                _ => RefreshState::Due(at),
            },
            Login::None if self.can_do_without => {
                RefreshState::NotDue(format!("there is no login in {file}, and none is needed"))
            }
            Login::None => RefreshState::Unclear(format!("there is no login in {file}")),
            Login::Unclear(why) => RefreshState::Unclear(format!("{file} {why}")),
        }
    }

    /// The refresh lock that is in the way for longest, and for how long at most if nobody touches it.
    pub(super) fn obstacle(&self) -> Option<(RefreshLock, Duration)> {
        let now = SystemTime::now();
        let locks = RefreshLock::of(&self.config_dir);
        let blocking = locks.into_iter().filter_map(|lock| lock.blocks_for(now).map(|left| (lock, left)));
        blocking.max_by_key(|&(_, left)| left)
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
    fn refresh_is_due_within_the_margin() {
        let now = SystemTime::now();
        let in_a_minute = now + Duration::from_secs(60);
        let state = |margin, at| refreshes(margin).state_of(Login::Expires(at), now);
        for (margin, is_due) in [(Some(30), false), (Some(50), false), (Some(60), true), (Some(600), true), (None, true)] {
            assert_eq!(state(margin, in_a_minute) == RefreshState::Due(in_a_minute), is_due, "{margin:?}");
        }
        let past = now - Duration::from_secs(1);
        assert_eq!(state(Some(0), past), RefreshState::Due(past));
        assert_eq!(state(Some(0), SystemTime::UNIX_EPOCH), RefreshState::Due(SystemTime::UNIX_EPOCH));
        assert!(matches!(state(Some(u64::MAX), in_a_minute), RefreshState::Due(_)), "a margin that no clock can hold");
        // A clock that is moved moves what is due with it, as it does for claude.
        let at = |now| refreshes(Some(360)).state_of(Login::Expires(in_a_minute), now);
        assert!(matches!(at(now - Duration::from_secs(86_400)), RefreshState::NotDue(_)));
        assert!(matches!(at(SystemTime::UNIX_EPOCH), RefreshState::NotDue(_)));
        assert!(matches!(at(now + Duration::from_secs(86_400)), RefreshState::Due(_)));
    }

    #[test]
    fn state_without_a_login_is_unclear_unless_optional() {
        let now = SystemTime::now();
        let cases = [Login::None, Login::Unclear("cut".into())];
        assert!(cases.into_iter().all(|login| matches!(refreshes(None).state_of(login, now), RefreshState::Unclear(_))));
        let without = Refreshes { can_do_without: true, ..refreshes(None) };
        assert!(matches!(without.state_of(Login::None, now), RefreshState::NotDue(_)));
        assert!(matches!(without.state_of(Login::Unclear("cut".into()), now), RefreshState::Unclear(_)));
        let due = Login::Expires(SystemTime::UNIX_EPOCH);
        assert!(matches!(without.state_of(due, now), RefreshState::Due(_)), "claude refreshes a login that it does not need");
        let ruled_out = Refreshes { ruled_out_by: Some("X"), ..refreshes(None) };
        assert!(matches!(ruled_out.state(), RefreshState::NotDue(_)));
    }
}
