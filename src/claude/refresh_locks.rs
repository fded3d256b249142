//! Claude Code's own locks around a token refresh: directories whose mtime their holder keeps fresh. For the login, there is
//! `<real storage>.lock` alone up to 2.1.126, by the protocol of npm's proper-lockfile; from 2.1.128 `.oauth_refresh.lock` in the
//! storage comes first, with a file beside it that names its owner. MCP servers, profiles and other products of the same login have locks
//! of their own. They are read here, never changed.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::credentials::{CLAUDES_MARK, Login};
use super::json::Object;
use super::storage::ClaudeStorage;
use crate::sys::fs::{birth, if_there, read_bounded, real};
use crate::sys::proc::{boot_id, host, is_invisible, lives, pid_namespace};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RefreshLock {
    /// The directory that is the lock.
    pub(crate) path: PathBuf,
    /// Last sign of life of its holder; `None` while nobody holds it, or if it is hidden.
    pub(crate) touched: Option<SystemTime>,
    /// Time at which its holder took it, where the file system keeps that.
    pub(crate) made: Option<SystemTime>,
    pub(crate) owner: Option<Owner>,
    /// It may be there, but cannot be looked at.
    is_hidden: bool,
    /// Inode of the directory.
    inode: u64,
    /// Age at which others take the lock over.
    stale_after: Duration,
    /// Obstacle that keeps everybody from taking it over, ever.
    flaw: Option<&'static str>,
}

/// Owner of a refresh lock.
#[derive(Clone, Debug, PartialEq)]
pub struct Owner {
    /// Pid in the owner's own PID namespace.
    pub(crate) pid: i32,
    /// Liveness of that process; `None` if it is of another namespace, or hidden from us.
    pub(crate) lives: Option<bool>,
    namespace: Option<String>,
    /// The older versions' lock that it holds as well.
    older: OlderLock,
}

/// The older versions' lock, as an owner of the newer one says which is its own.
#[derive(Clone, Copy, Debug, PartialEq)]
enum OlderLock {
    /// It has none.
    None,
    /// Its birth, in milliseconds since the epoch.
    Born(f64),
    /// Nothing is said of births: it was made before this time, at which the owner's file was written.
    MadeBefore(SystemTime),
}

/// A refresh of the login in whose midst its claude has ended: what the endpoint has sent is lost, and the token that it was sent is
/// used up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CutRefresh {
    /// Pid of that claude, in its own PID namespace.
    pub(crate) pid: i32,
    /// Time at which the refresh began.
    at: SystemTime,
}

/// Tells refreshes that are cut short from now on.
#[derive(Clone, Debug)]
pub(crate) struct CutWatch {
    /// Time at which the last refresh until now began, if its owner file is there.
    left: Option<SystemTime>,
    /// Expiry of the login until now.
    expiry: Option<SystemTime>,
}

/// State of a refresh lock at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It cannot be looked at.
    NotKnown,
    Free,
    /// A refresh is under way.
    Live,
    /// The owner is dead, but every new claude respects the lock for this long.
    OwnerDead(Duration),
    /// Nobody takes it over, and so no claude can refresh; the reason.
    Stuck(&'static str),
    /// The holder was killed or is stuck: it is silent for this long, and the next claude takes the lock over.
    Stale(Duration),
}

/// Name of the lock of the newer versions.
const NEWER: &str = ".oauth_refresh.lock";

/// Age at which proper-lockfile, and Claude Code up to 2.1.126 with it, takes a lock over. A holder touches its lock every 4 s.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// Age at which Claude Code from 2.1.128 on takes a lock over (measured: the next refresh is 60.2 to 61.4 s after the last
/// touch). Until then every new claude fails, after 8 s.
const NEWER_STALE_AFTER: Duration = Duration::from_secs(60);

/// A lock that is so far ahead of our clock is no work of a holder whose clock differs a bit.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(120);

const MAX_OWNER_FILE: u64 = 64 << 10;

const NO_DIRECTORY: &str = "is no directory";

const OUT_OF_REACH: &str = "is on a file system that does not answer";

/// A file system's times may be rounded down to so much.
const TIME_GRAIN: Duration = Duration::from_secs(2);

/// Difference, in milliseconds, up to which two birth times are one, rounded differently.
const SAME_BIRTH: f64 = 10.0;

impl RefreshLock {
    /// Number of locks around one login.
    pub(crate) const PER_LOGIN: usize = 2;

    /// Both locks of the login: that of all versions, and that of the newer ones.
    pub(crate) fn of(storage: &ClaudeStorage) -> [Self; Self::PER_LOGIN] {
        let newer = Self::at(storage.dir.join(NEWER), NEWER_STALE_AFTER);
        let older = Self::at(with_suffix(&real(&storage.dir), ".lock"), STALE_AFTER);
        // The newer versions take the older lock as well. An older version's lock is not theirs, however near the two are in time.
        match newer.owner.clone().filter(|owner| older.made.is_some_and(|made| owner.older.is_made_at(made))) {
            Some(owner) => [Self { owner: Some(owner), stale_after: NEWER_STALE_AFTER, ..older }, newer],
            None => [older, newer],
        }
    }

    /// Those of every login that claude may have there.
    pub(crate) fn of_candidates(storage: &ClaudeStorage) -> Vec<Self> {
        storage.candidates().flat_map(|storage| Self::of(&storage)).collect()
    }

    /// Every lock around a refresh of any token: those of the login, of MCP servers, of the profiles and of other products.
    pub(crate) fn all(storage: &ClaudeStorage) -> Vec<Self> {
        let login = Self::of_candidates(storage);
        let is_lock = |name: &str| name.ends_with(".lock") && name.contains("refresh");
        let entries = storage.candidates().filter_map(|storage| fs::read_dir(storage.dir).ok()).flatten().flatten();
        let names = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_lock));
        let locks = names.map(|entry| entry.path()).filter(|path| login.iter().all(|lock| lock.path != *path));
        let others: Vec<_> = locks.chain(storage.profile_lock()).map(|path| Self::at(path, STALE_AFTER)).collect();
        login.into_iter().chain(others.into_iter().filter(|lock| lock.touched.is_some() && !lock.is_plain_file())).collect()
    }

    /// What there may be in `storage`, where its file system does not answer.
    pub(crate) fn out_of_reach(storage: &ClaudeStorage) -> Self {
        let (path, flaw) = (storage.dir.clone(), Some(OUT_OF_REACH));
        Self { path, touched: None, made: None, owner: None, is_hidden: true, inode: 0, stale_after: STALE_AFTER, flaw }
    }

    pub(crate) fn is_out_of_reach(&self) -> bool {
        self.flaw == Some(OUT_OF_REACH)
    }

    /// Those of the login, and all others that keep claude from a refresh for ever.
    pub(crate) fn of_concern(storage: &ClaudeStorage) -> Vec<Self> {
        let (now, mut locks) = (SystemTime::now(), Self::all(storage));
        let others = locks.split_off(Self::PER_LOGIN * storage.candidates().count());
        locks.extend(others.into_iter().filter(|lock| matches!(lock.standing(now), Standing::Stuck(_))));
        locks
    }

    /// True for a file that is in no lock's place, as `mcp-refresh-KEY.lock`, which `mcp-refresh-KEY.lock.lock` is the lock of.
    fn is_plain_file(&self) -> bool {
        let path = self.path.to_string_lossy();
        self.path.is_file() && ![".lock.lock", "_refresh.lock", "/credentials.lock"].iter().any(|end| path.ends_with(end))
    }

    /// The lock as claude from 2.1.128 on sees it, which takes none over earlier.
    pub(crate) fn for_newer(self) -> Self {
        Self { stale_after: NEWER_STALE_AFTER, ..self }
    }

    fn at(path: PathBuf, stale_after: Duration) -> Self {
        let found = if_there(fs::symlink_metadata(&path));
        let is_hidden = found.is_err();
        let found = found.ok().flatten();
        let touched = found.as_ref().and_then(|found| found.modified().ok());
        // It is taken over by rmdir(2).
        let flaw = match &found {
            Some(found) if !found.is_dir() => Some(NO_DIRECTORY),
            Some(_) if fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some()) => Some("has something in it"),
            _ => None,
        };
        let (made, inode) = (found.as_ref().and_then(|_| birth(&path)), found.as_ref().map_or(0, MetadataExt::ino));
        let owner = found.and_then(|_| OwnerFile::read(&owner_file(&path))?.owner_of(made));
        Self { path, touched, made, owner, is_hidden, inode, stale_after, flaw }
    }

    /// True if a process that was started at `start` may hold the lock. One that was stopped or frozen has not touched it meanwhile, so
    /// that any age may be that of a lock which it took; and it does not know of a clock that was set.
    pub(crate) fn may_be_held_by_one_of(&self, start: SystemTime) -> bool {
        let is_of_its_time = self.touched.is_some_and(|touched| touched >= start - TIME_GRAIN)
            && self.made.is_none_or(|made| made >= start - MAX_CLOCK_SKEW);
        let is_directory = self.flaw != Some(NO_DIRECTORY);
        is_directory
            && self.owner_lives() != Some(false)
            && (is_of_its_time || self.standing(SystemTime::now()) == Standing::Live)
    }

    /// True if both are one lock in one holder's hand: whoever takes a lock makes a new directory.
    pub(crate) fn is_same_hold(&self, other: &Self) -> bool {
        (&self.path, self.made, self.inode) == (&other.path, other.made, other.inode)
    }

    pub(crate) fn standing(&self, now: SystemTime) -> Standing {
        let Some(touched) = self.touched else {
            return if self.is_hidden { Standing::NotKnown } else { Standing::Free };
        };
        let lives = self.owner_lives();
        // Somebody who lives touches it again, by a clock that was set back.
        let is_ahead = lives != Some(true) && touched.duration_since(now).is_ok_and(|ahead| ahead > MAX_CLOCK_SKEW);
        if let Some(flaw) = self.flaw.or(is_ahead.then_some("has a time that is yet to come")) {
            return Standing::Stuck(flaw);
        }
        match (age(touched, now), lives) {
            (age, _) if age >= self.stale_after => Standing::Stale(age),
            (age, Some(false)) => Standing::OwnerDead(self.stale_after - age),
            _ => Standing::Live,
        }
    }

    fn owner_lives(&self) -> Option<bool> {
        self.owner.as_ref()?.lives
    }

    /// Longest time for which the lock keeps claude from a refresh if nobody touches it; `None` if it does not.
    pub(crate) fn blocks_for(&self, now: SystemTime) -> Option<Duration> {
        let left = self.stale_after.saturating_sub(age(self.touched?, now));
        // There is no end of a stuck one to wait for.
        (!left.is_zero() && !matches!(self.standing(now), Standing::Stuck(_))).then_some(left)
    }
}

/// The file that names the owner of the lock at `path`.
pub(crate) fn owner_file(path: &Path) -> PathBuf {
    with_suffix(path, ".owner")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.to_owned().into_os_string();
    path.push(suffix);
    path.into()
}

/// Time since `touched`. A clock that was set back makes a lock younger, not free.
fn age(touched: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(touched).unwrap_or_default()
}

impl CutRefresh {
    /// The last refresh, if it was cut short: its owner has left its file behind, and the login is not a refreshed one.
    pub(crate) fn last(storage: &ClaudeStorage) -> Option<Self> {
        Self::since(storage, None)
    }

    /// The last refresh, if it was cut short, where the login had the expiry `before` it.
    fn since(storage: &ClaudeStorage, before: Option<SystemTime>) -> Option<Self> {
        let OwnerFile { owner, written, .. } = OwnerFile::of_login(storage)?;
        let may_be_under_way = owner.lives.unwrap_or(fs::symlink_metadata(storage.dir.join(NEWER)).is_ok());
        let saved = fs::metadata(storage.credentials()).and_then(|found| found.modified()).ok()?;
        // The file has more than the login in it, and may be written for that. A token that was due when the refresh began is still the old one.
        let is_after = |expiry: SystemTime| expiry.duration_since(written).is_ok_and(|life| life > CLAUDES_MARK);
        let is_old = |expiry| !is_after(expiry) || before.is_some_and(|before| expiry <= before);
        let is_unsaved = || matches!(Login::read_whole(&storage.credentials()), Login::Expires(expiry) if is_old(expiry));
        (!may_be_under_way && (saved < written || is_unsaved())).then_some(Self { pid: owner.pid, at: written })
    }
}

impl fmt::Display for CutRefresh {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "claude (pid {}) has ended in the midst of a refresh", self.pid)
    }
}

impl CutWatch {
    pub(crate) fn begin(storage: &ClaudeStorage) -> Self {
        let expiry = match Login::read(&storage.credentials()) {
            Login::Expires(expiry) => Some(expiry),
            Login::None | Login::Unclear(_) => None,
        };
        Self { left: OwnerFile::of_login(storage).map(|file| file.written), expiry }
    }

    /// The last refresh, if it was cut short since.
    pub(crate) fn end(&self, storage: &ClaudeStorage) -> Option<CutRefresh> {
        CutRefresh::since(storage, self.expiry).filter(|cut| self.left != Some(cut.at))
    }
}

/// An owner file, as it lies beside a lock.
struct OwnerFile {
    owner: Owner,
    /// Birth of the lock that it is about, in milliseconds since the epoch.
    birth: Option<f64>,
    written: SystemTime,
}

impl OwnerFile {
    fn of_login(storage: &ClaudeStorage) -> Option<Self> {
        Self::read(&owner_file(&storage.dir.join(NEWER)))
    }

    fn read(path: &Path) -> Option<Self> {
        let text = read_bounded(path, MAX_OWNER_FILE).ok()?;
        let file = Object::parse(&text).ok()?;
        let [birth, older] =
            ["lockBirthtimeMs", "legacyLockBirthtimeMs"].map(|key| file.get::<f64>(key).filter(|birth| *birth > 0.0));
        let written = fs::metadata(path).and_then(|found| found.modified()).ok()?;
        let older = match (birth, older) {
            (_, Some(birth)) => OlderLock::Born(birth),
            (Some(_), None) => OlderLock::None,
            (None, None) => OlderLock::MadeBefore(written),
        };
        Some(Self { owner: Owner { older, ..Owner::of(&file)? }, birth, written })
    }

    /// The owner of the lock that was `made` then, unless the file is left over from an earlier one: the directory is made first, and the
    /// file behind it.
    fn owner_of(self, made: Option<SystemTime>) -> Option<Owner> {
        let Some(made) = made else { return Some(self.owner) };
        let is_of_it = match self.birth {
            Some(birth) => is_birth(birth, made),
            None => self.written >= made,
        };
        is_of_it.then_some(self.owner)
    }
}

impl OlderLock {
    fn is_made_at(self, made: SystemTime) -> bool {
        match self {
            Self::None => false,
            Self::Born(birth) => is_birth(birth, made),
            Self::MadeBefore(written) => made <= written,
        }
    }
}

/// True if `birth`, in milliseconds since the epoch, is that of what was `made` then.
fn is_birth(birth: f64, made: SystemTime) -> bool {
    let since = made.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1000.0;
    (birth - since).abs() < SAME_BIRTH
}

impl Owner {
    /// Reads the text of an owner file.
    pub fn parse(text: &[u8]) -> Option<Self> {
        Self::of(&Object::parse(text).ok()?)
    }

    fn of(file: &Object) -> Option<Self> {
        let (pid, domain) = (file.get("pid")?, file.text("pidDomain"));
        let (machine, namespace) = domain.as_deref().and_then(split_domain).unzip();
        let ours = pid_namespace().unwrap_or_default();
        let is_here = namespace == Some(&ours)
            && machine.is_some_and(is_this_machine)
            && file.text("pidSpace").is_none_or(|space| space == format!("{}#{ours}", host()));
        let start = file.text("procStart").and_then(|start| start.parse::<u64>().ok());
        let lives = is_here.then(|| lives(pid, |stat| start.is_none_or(|start| start == stat.start))).flatten();
        Some(Self { pid, lives, namespace: namespace.map(str::to_owned), older: OlderLock::None })
    }

    /// True if the owner can be one of `processes`, each given by its pid in its own PID namespace and that namespace. Hosts
    /// can share these two names, so the answer may be true for a process of another host. One that is hidden from us may be any.
    pub(crate) fn may_be_among(&self, processes: &[(i32, String)]) -> bool {
        let Some(namespace) = &self.namespace else { return true };
        processes.iter().any(|(pid, of)| *pid == self.pid && of == namespace)
            || (pid_namespace().as_ref() == Some(namespace) && is_invisible(self.pid))
    }
}

/// Machine and PID namespace of a `pidDomain`, as in `linux:3d1219…:pid:[4026531836]`. A pid means something only within them.
fn split_domain(domain: &str) -> Option<(&str, &str)> {
    let domain = domain.strip_prefix("linux:")?;
    let at = domain.find(":pid:[")?;
    Some((&domain[..at], &domain[at + 1..]))
}

/// True for the id of this machine: 2.1.330 writes /etc/machine-id, or nothing; other versions were seen to write the boot id.
fn is_this_machine(machine: &str) -> bool {
    let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    machine == id.trim() || boot_id().is_some_and(|boot| machine == boot.replace('-', ""))
}

#[cfg(test)]
mod tests;
