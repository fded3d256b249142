//! Refreshes of claude's token: is one due, by the credentials file, and which of claude's refresh locks is in its way?

use std::mem;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::claude::auth::Invocation;
use crate::claude::credentials::{CLAUDES_MARK, Login};
use crate::claude::refresh_locks::RefreshLock;
use crate::claude::storage::ClaudeStorage;
use crate::claude::version::Version;
use crate::config::duration::{after, show_seconds, was_frozen};
use crate::sys::mount::{is_mount_point, may_lock_per_host};

/// How claude's token is refreshed in this run.
#[derive(Debug)]
pub struct Refreshes {
    pub(crate) claude: Invocation<'static>,
    pub(crate) storage: ClaudeStorage,
    /// Time before the token's expiry from which on a refresh is due; without one, it always is.
    pub(crate) margin: Option<Duration>,
}

/// A refresh that the session lock is held for.
#[derive(Clone, Debug)]
pub(crate) struct AwaitedRefresh {
    storage: ClaudeStorage,
    /// Expiry of the token in the credentials file, until that is later.
    expiry: SystemTime,
    /// Start of the child.
    started: SystemTime,
    /// Time at which a claude that has not begun to refresh has no refresh to make.
    give_up_at: Option<Instant>,
    /// The end has come, but somebody relies on the lock.
    was_needed_longer: bool,
    /// Version of the claude that makes it, if it is known.
    version: Option<Version>,
    /// True if a refresh may begin at any time: the margin was raised on purpose, to cover refreshes in mid-run, or the child is not known
    /// to be claude, as a script that comes to its claude later.
    never_gives_up: bool,
    /// Paths of the locks around it.
    locks: [PathBuf; RefreshLock::PER_LOGIN],
}

/// Largest margin for refreshes at the start alone, and the default.
const AT_START: Duration = Duration::from_secs(5 * 60 + 10);

/// Time within which a claude that has a refresh to make begins with it.
const MAX_DELAY: Duration = Duration::from_secs(60);

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
        self.state_by(Login::read)
    }

    /// State by a whole credentials file: one that is being rewritten is read again.
    pub(super) fn settled_state(&self) -> RefreshState {
        self.state_by(Login::read_whole)
    }

    fn state_by(&self, read: impl Fn(&Path) -> Login) -> RefreshState {
        match (self.claude.unreadable_settings(), self.claude.rules_out_refreshes()) {
            // It may have a login elsewhere, or a token that counts for nothing.
            (Some(why), _) => RefreshState::Unclear(format!("claude's settings: {why}")),
            (None, Some(reason)) => RefreshState::NotDue(reason),
            (None, None) => self.state_of_candidates(read, SystemTime::now()),
        }
    }

    /// A login that another claude has counts as well, where it is not known which one this is.
    fn state_of_candidates(&self, read: impl Fn(&Path) -> Login, now: SystemTime) -> RefreshState {
        let is_concerned = |login| login != Login::None && !matches!(self.state_of(login, now), RefreshState::NotDue(_));
        match self.storage.logins().skip(1).find(|file| is_concerned(read(file))) {
            Some(file) => {
                let file = file.display();
                RefreshState::Unclear(format!(
                    "claude's version is not known, and one before 2.1.144 has its login in {file} (of no use? remove it)"
                ))
            }
            None => self.state_of(read(&self.storage.credentials()), now),
        }
    }

    /// True if a refresh is due by the login, and nothing that can be read rules it out.
    pub(super) fn may_be_due(&self) -> bool {
        let is_ruled_out = self.claude.unreadable_settings().is_none() && self.claude.rules_out_refreshes().is_some();
        let is_due = |login| matches!(self.state_of(login, SystemTime::now()), RefreshState::Due(_));
        !is_ruled_out && self.storage.logins().any(|file| is_due(Login::read_whole(&file)))
    }

    /// True if claude may refresh the token when it starts, but may not see yet what another host has written: such file systems
    /// cache attributes for a second by default.
    pub(super) fn may_be_out_of_date(&self) -> bool {
        may_lock_per_host(&self.storage.dir) && !matches!(self.settled_state(), RefreshState::NotDue(_))
    }

    fn state_of(&self, login: Login, now: SystemTime) -> RefreshState {
        let file = self.storage.credentials();
        let file = file.display();
        match login {
            Login::Expires(_) if self.lacks_common_lock() => RefreshState::Unclear(format!(
                "{} is a mount point, and claude before 2.1.128 has no lock inside it around a refresh in mid-run",
                self.storage.dir.display()
            )),
            Login::Expires(at) => match (at.duration_since(now), self.margin) {
                (Ok(left), Some(margin)) if left > margin => {
                    RefreshState::NotDue(format!("the token expires in {}", show_seconds(left)))
                }
                _ => RefreshState::Due(at),
            },
            Login::None if self.claude.auth(&Login::None).is_no_login() => {
                RefreshState::NotDue(format!("there is no login in {file}, and none is needed"))
            }
            Login::None => RefreshState::Unclear(format!("there is no login in {file}")),
            Login::Unclear(why) => RefreshState::Unclear(format!("{file} {why}")),
        }
    }

    /// True if claude's only lock lies beside the storage, and other agents have theirs elsewhere.
    fn lacks_common_lock(&self) -> bool {
        self.is_older() == Some(true) && is_mount_point(&self.storage.dir)
    }

    fn is_older(&self) -> Option<bool> {
        Some(self.claude.version()? < Version::INNER_LOCK)
    }

    /// Refresh locks of the login that are not free.
    pub(super) fn held_locks(&self) -> Vec<RefreshLock> {
        RefreshLock::of_candidates(&self.storage).into_iter().filter(|lock| lock.touched.is_some()).collect()
    }

    /// Of the `held` refresh locks, the one that is in the way for longest, and for how long at most if nobody touches it.
    pub(super) fn obstacle(&self, held: Vec<RefreshLock>) -> Option<(RefreshLock, Duration)> {
        let now = SystemTime::now();
        let locks = held.into_iter().map(|lock| if self.is_older() == Some(true) { lock } else { lock.for_newer() });
        let blocking = locks.filter_map(|lock| lock.blocks_for(now).map(|left| (lock, left)));
        blocking.max_by_key(|&(_, left)| left)
    }
}

impl AwaitedRefresh {
    pub(super) fn new(refreshes: &Refreshes, expiry: SystemTime) -> Self {
        let covers_mid_run = refreshes.margin.is_none_or(|margin| margin > AT_START);
        let version = refreshes.claude.version();
        let never_gives_up = covers_mid_run || version.is_none();
        let (storage, started) = (refreshes.storage.clone(), SystemTime::now());
        let locks = RefreshLock::of(&storage).map(|lock| lock.path);
        Self { storage, expiry, started, give_up_at: None, was_needed_longer: false, version, never_gives_up, locks }
    }

    /// Version of claude, if it is known, and if that claude refreshes the token now, by its own mark.
    pub(crate) fn refreshing_version(&self) -> Option<Version> {
        self.version.filter(|_| self.expiry <= SystemTime::now() + CLAUDES_MARK)
    }

    /// Starts the time within which claude begins with it.
    pub(crate) fn on_child_started(&mut self, now: Instant) {
        self.started = SystemTime::now();
        self.give_up_at = after(now, Some(MAX_DELAY).filter(|_| !self.never_gives_up));
    }

    /// Looks again in a second, since the lock is needed until then at least. True for the first time.
    pub(crate) fn is_needed_longer(&mut self) -> bool {
        self.give_up_at = Some(Instant::now() + Duration::from_secs(1));
        !mem::replace(&mut self.was_needed_longer, true)
    }

    /// Files whose change may mean that it begins, or its [`end`](Self::end).
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let locks = self.locks.iter().filter(|_| self.give_up_at.is_some()).cloned();
        locks.chain([self.storage.credentials()]).collect()
    }

    /// Time at which it may [`end`](Self::end) without a change of a file.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.give_up_at
    }

    /// Notes that no look was possible until `now`.
    pub(crate) fn postpone(&mut self, now: Instant) {
        self.give_up_at = self.give_up_at.map(|at| at.max(now + Duration::from_secs(1)));
    }

    /// Reason to release the lock, if the refresh is done or does not come. A file that is missing or half-written is no end.
    pub(crate) fn end(&mut self, now: Instant) -> Option<&'static str> {
        if matches!(Login::read(&self.storage.credentials()), Login::Expires(at) if at > self.expiry) {
            return Some("the token is refreshed");
        }
        let is_held = |lock: &RefreshLock| lock.may_be_held_by_one_of(self.started);
        if self.give_up_at.is_some() && RefreshLock::of(&self.storage).iter().any(is_held) {
            self.give_up_at = None;
        }
        let at = self.give_up_at.filter(|at| now >= *at)?;
        if was_frozen(at, now) {
            self.give_up_at = after(now, Some(MAX_DELAY)); // and so was claude
            return None;
        }
        if self.never_gives_up {
            self.give_up_at = None; // the end has come before, and the file will change again
            return None;
        }
        Some("claude has not begun to refresh its token, and has no need to")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::claude::program::Program;
    use crate::config::cli::Cli;
    use crate::config::settings::{Environment, Settings};

    fn refreshes(margin: Option<u64>) -> Refreshes {
        let margin = margin.map(Duration::from_secs);
        with_variables(margin, &|_| None)
    }

    fn with_variables(margin: Option<Duration>, environment: Environment<'static>) -> Refreshes {
        let dir = Path::new("/nonesuch");
        Refreshes { claude: Invocation::new(environment, dir), storage: ClaudeStorage::at(dir), margin }
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
    fn default_margin_is_that_of_the_start() -> anyhow::Result<()> {
        let settings = Settings::resolve(Cli::default(), &|_| None, None)?;
        assert_eq!(settings.refresh_margin.as_span(), Some(AT_START));
        Ok(())
    }

    #[test]
    fn login_is_unclear_unless_it_is_optional() {
        let now = SystemTime::now();
        let cases = [Login::None, Login::Unclear("cut".into())];
        assert!(cases.into_iter().all(|login| matches!(refreshes(None).state_of(login, now), RefreshState::Unclear(_))));
        let without = with_variables(None, &|name| (name == "ANTHROPIC_API_KEY").then(|| "key".into()));
        assert!(matches!(without.state_of(Login::None, now), RefreshState::NotDue(_)));
        assert!(matches!(without.state_of(Login::Unclear("cut".into()), now), RefreshState::Unclear(_)));
        let due = Login::Expires(SystemTime::UNIX_EPOCH);
        assert!(matches!(without.state_of(due, now), RefreshState::Due(_)), "claude refreshes a login that it does not need");
        let ruled_out = with_variables(None, &|name| (name == "CLAUDE_CODE_OAUTH_TOKEN").then(|| "token".into()));
        assert!(matches!(ruled_out.state(), RefreshState::NotDue(_)));
    }

    #[test]
    fn unreadable_settings_rule_out_no_refresh() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let fresh = login(SystemTime::now() + Duration::from_secs(86_400))?;
        fs::write(dir.path().join(".credentials.json"), fresh)?;
        let variable: Environment<'static> = &|name| (name == "CLAUDE_CODE_OAUTH_TOKEN").then(|| "token".into());
        for (settings, is_clear) in [("{}", true), ("{\"env\":", false)] {
            fs::write(dir.path().join("settings.json"), settings)?;
            for environment in [variable, &|_| None] {
                let claude = Invocation::new(environment, dir.path());
                let refreshes = Refreshes { claude, storage: ClaudeStorage::at(dir.path()), margin: Some(AT_START) };
                let states = [refreshes.state(), refreshes.settled_state()];
                assert!(states.iter().all(|state| matches!(state, RefreshState::NotDue(_)) == is_clear), "{states:?}");
                let refreshes = Refreshes { margin: None, ..refreshes };
                let is_ruled_out = is_clear && environment("CLAUDE_CODE_OAUTH_TOKEN").is_some();
                assert_eq!(refreshes.may_be_due(), !is_ruled_out, "claude's refresh locks are waited for");
            }
        }
        Ok(())
    }

    /// A login that expires at `at`.
    fn login(at: SystemTime) -> anyhow::Result<String> {
        let at = at.duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
        Ok(format!(r#"{{"claudeAiOauth":{{"accessToken":"a","refreshToken":"r","expiresAt":{at}}}}}"#))
    }

    #[test]
    fn refresh_ends_with_a_later_expiry_or_does_not_come() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (storage, started) = (ClaudeStorage::at(dir.path()), Instant::now());
        let (expiry, file) = (SystemTime::now() + Duration::from_secs(60), storage.credentials());
        let awaited = |never_gives_up, file: &str| {
            let (storage, version) = (storage.clone(), None);
            let mut refresh = AwaitedRefresh {
                storage,
                expiry,
                started: SystemTime::now(),
                give_up_at: None,
                was_needed_longer: false,
                version,
                never_gives_up,
                locks: Default::default(),
            };
            fs::write(refresh.storage.credentials(), file).map(|()| {
                refresh.on_child_started(started);
                refresh
            })
        };
        let (before, same) = (login(expiry - Duration::from_secs(1))?, login(expiry)?);
        for text in [&before, &same, "", "{", &same[..same.len() - 9]] {
            let mut refresh = awaited(false, text)?;
            assert_eq!(refresh.end(started), None, "{text}");
            assert_eq!(refresh.next_deadline(), Some(started + MAX_DELAY), "{text}");
            assert_eq!(refresh.end(started + MAX_DELAY - Duration::from_millis(1)), None, "{text}");
            assert!(refresh.end(started + MAX_DELAY).is_some(), "{text}");
        }
        let mut patient = awaited(true, &same)?;
        assert_eq!((patient.next_deadline(), patient.end(started + 9 * MAX_DELAY)), (None, None));
        fs::remove_file(&file)?;
        assert_eq!(patient.end(started), None, "missing");
        let mut refresh = awaited(false, &same)?;
        assert_eq!(refresh.files().len(), RefreshLock::of(&storage).len() + 1);
        fs::create_dir(&RefreshLock::of(&storage)[0].path)?;
        assert_eq!((refresh.end(started + MAX_DELAY), refresh.next_deadline()), (None, None), "it has begun");
        assert_eq!(refresh.files(), [file], "nothing else matters now");
        fs::remove_dir(&RefreshLock::of(&storage)[0].path)?;
        assert_eq!(refresh.end(started + 9 * MAX_DELAY), None, "and may take its time");
        let later = login(expiry + Duration::from_millis(1))?;
        assert_eq!(awaited(false, &later)?.end(started), Some("the token is refreshed"));
        assert_eq!(awaited(true, &later)?.end(started), Some("the token is refreshed"));
        Ok(())
    }

    #[test]
    fn only_a_margin_raised_on_purpose_waits_for_ever() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let claude = dir.path().join("2.1.330"); // its own installer's name for it
        fs::write(&claude, "")?;
        fs::set_permissions(&claude, fs::Permissions::from_mode(0o755))?;
        let program = Program::find(&[claude.into()], None)?;
        let gives_up = |margin, claude| {
            let refreshes = Refreshes { claude, ..refreshes(margin) };
            !AwaitedRefresh::new(&refreshes, SystemTime::UNIX_EPOCH).never_gives_up
        };
        for (margin, expected) in [(Some(0), true), (Some(310), true), (Some(311), false), (None, false)] {
            assert_eq!(gives_up(margin, Invocation::of(&program, &|_| None, dir.path())), expected, "{margin:?}");
        }
        assert!(
            !gives_up(Some(310), Invocation::new(&|_| None, dir.path())),
            "perhaps a script that comes to its claude later"
        );
        Ok(())
    }

    #[test]
    fn claude_refreshes_by_its_own_mark() {
        let known = Version::parse("2.1.330");
        let at = |left: i64| {
            let now = SystemTime::now();
            let distance = Duration::from_secs(left.unsigned_abs());
            let expiry = if left < 0 { now - distance } else { now + distance };
            let storage = ClaudeStorage::at(Path::new("/nonesuch"));
            let started = SystemTime::now();
            AwaitedRefresh {
                storage,
                expiry,
                started,
                give_up_at: None,
                was_needed_longer: false,
                version: known,
                never_gives_up: false,
                locks: Default::default(),
            }
            .refreshing_version()
        };
        assert_eq!([-60, 200, 290, 360].map(|left| at(left).is_some()), [true, true, true, false]);
    }
}
