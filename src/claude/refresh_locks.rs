//! Claude Code's own locks around a token refresh: directories, kept fresh by their mtime. Up to 2.1.126 it is
//! `<real config dir>.lock` alone, by the protocol of npm's proper-lockfile; from 2.1.128 `.oauth_refresh.lock` in the config
//! dir comes first, with a file beside it that says whose it is. They are looked at here, and never touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::procfs::Stat;

/// One lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshLock {
    /// The directory that is the lock.
    pub path: PathBuf,
    /// When its holder has last shown itself; none, if nobody holds it.
    pub touched: Option<SystemTime>,
    /// Whose it is, where that is told.
    pub owner: Option<Owner>,
}

/// Whose a lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its pid, in its own PID namespace.
    pub pid: i32,
    /// Whether that process lives; unknown where it is of another namespace.
    pub lives: Option<bool>,
}

/// What a lock is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody holds it.
    Free,
    /// A refresh is under way.
    Live,
    /// Its holder was killed or is stuck: nobody has touched it for so long.
    Stale(Duration),
}

/// A holder touches its lock every 4 s or so; after this it is taken from it (proper-lockfile, and Claude Code with it).
const STALE_AFTER: Duration = Duration::from_secs(10);

impl RefreshLock {
    /// Both locks of `config_dir`: that of all versions, and that of the newer ones.
    pub fn of(config_dir: &Path) -> [Self; 2] {
        let real = fs::canonicalize(config_dir).unwrap_or_else(|_| config_dir.to_owned());
        let mut sibling = real.into_os_string();
        sibling.push(".lock");
        let newer = config_dir.join(".oauth_refresh.lock");
        let owner = fs::read(config_dir.join(".oauth_refresh.lock.owner")).ok().and_then(|text| Owner::parse(&text));
        [Self::at(sibling.into(), None), Self::at(newer, owner)]
    }

    fn at(path: PathBuf, owner: Option<Owner>) -> Self {
        let touched = fs::metadata(&path).and_then(|found| found.modified()).ok();
        // The file is of the lock that is there, or left over from one that is not.
        Self { path, touched, owner: owner.filter(|_| touched.is_some()) }
    }

    /// What it is worth at the time `now`.
    pub fn standing(&self, now: SystemTime) -> Standing {
        let Some(touched) = self.touched else { return Standing::Free };
        match now.duration_since(touched) {
            Ok(age) if age >= STALE_AFTER => Standing::Stale(age),
            _ => Standing::Live, // a clock that was set back makes it younger, not free
        }
    }
}

impl Owner {
    fn parse(text: &[u8]) -> Option<Self> {
        let file: Value = serde_json::from_slice(text).ok()?;
        let pid = i32::try_from(file["pid"].as_i64()?).ok()?;
        let is_here = our_domain().is_some_and(|domain| file["pidDomain"] == domain);
        let start = file["procStart"].as_str().and_then(|start| start.parse::<u64>().ok());
        let lives = || Stat::read(pid).is_some_and(|stat| !stat.is_dead() && start.is_none_or(|start| start == stat.start));
        Some(Self { pid, lives: is_here.then(lives) })
    }
}

/// Boot and PID namespace, in Claude Code's own spelling: only within one of these is a pid worth anything.
fn our_domain() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("linux:{}:{}", boot.trim().replace('-', ""), namespace.display()))
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    #[test]
    fn a_lock_is_free_live_or_stale_by_its_age() {
        let now = SystemTime::now();
        let lock = |touched| RefreshLock { path: PathBuf::new(), touched, owner: None }.standing(now);
        assert_eq!(lock(None), Standing::Free);
        assert_eq!(lock(Some(now)), Standing::Live);
        assert_eq!(lock(Some(now + Duration::from_secs(99))), Standing::Live);
        assert_eq!(lock(Some(now - Duration::from_millis(9_999))), Standing::Live);
        assert_eq!(lock(Some(now - STALE_AFTER)), Standing::Stale(STALE_AFTER));
    }

    #[test]
    fn an_owner_lives_if_it_is_that_very_process_of_our_namespace() {
        let us = process::id() as i32;
        let start = Stat::read(us).map(|stat| stat.start).unwrap_or_default();
        let domain = our_domain().unwrap_or_default();
        let owner = |pid: i32, start: u64, domain: &str| {
            let text = format!(r#"{{"pid":{pid},"procStart":"{start}","pidDomain":"{domain}"}}"#);
            Owner::parse(text.as_bytes()).and_then(|owner| owner.lives)
        };
        assert_eq!(owner(us, start, &domain), Some(true));
        assert_eq!(owner(us, start + 1, &domain), Some(false), "another process with that pid");
        assert_eq!(owner(4_194_304, start, &domain), Some(false));
        assert_eq!(owner(us, start, "linux:other:pid:[1]"), None);
        assert_eq!(Owner::parse(b"{"), None);
    }
}
