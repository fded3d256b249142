//! Claude Code's own locks around a token refresh: directories, kept fresh by their mtime. Up to 2.1.126 it is
//! `<real config dir>.lock` alone, by the protocol of npm's proper-lockfile; from 2.1.128 `.oauth_refresh.lock` in the config
//! dir comes first, with a file beside it that says whose it is. They are looked at here, and never touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::sys::fs::read_bounded;
use crate::sys::proc::{Stat, boot_id, host, pid_namespace};

/// One lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshLock {
    /// The directory that is the lock.
    pub path: PathBuf,
    /// When its holder has last shown itself; none, if nobody holds it.
    pub touched: Option<SystemTime>,
    /// Whose it is, where that is told.
    pub owner: Option<Owner>,
    /// When it is taken from a holder who no longer shows himself.
    stale_after: Duration,
}

/// Whose a lock is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its pid, in its own PID namespace.
    pub pid: i32,
    /// Whether that process lives; unknown where it is of another namespace.
    pub lives: Option<bool>,
    /// Its PID namespace, where that is told.
    namespace: Option<String>,
}

/// What a lock is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody holds it.
    Free,
    /// A refresh is under way.
    Live,
    /// Its owner is dead, but whoever comes now still respects it, for so long.
    OwnerDead(Duration),
    /// Its holder was killed or is stuck: nobody has touched it for so long, and whoever comes now takes it.
    Stale(Duration),
}

/// A holder touches its lock every 4 s or so. After this time it is taken from it by proper-lockfile, and by Claude Code up to
/// 2.1.126 with it.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// The same for Claude Code from 2.1.128 on (measured: 60.2 to 61.4 s after the last touch, the next one refreshes). Until then
/// every new one fails, after 8 s.
const NEWER_STALE_AFTER: Duration = Duration::from_secs(60);

/// More than any file that tells whose a lock is.
const LARGEST_OWNER: u64 = 64 << 10;

impl RefreshLock {
    /// Both locks of `config_dir`: that of all versions, and that of the newer ones.
    pub fn of(config_dir: &Path) -> [Self; 2] {
        let real = fs::canonicalize(config_dir).unwrap_or_else(|_| config_dir.to_owned());
        let mut sibling = real.into_os_string();
        sibling.push(".lock");
        let owner = read_bounded(&Self::owner_file(config_dir), LARGEST_OWNER).ok().and_then(|text| Owner::parse(&text));
        let newer = Self::at(config_dir.join(".oauth_refresh.lock"), owner.clone(), NEWER_STALE_AFTER);
        let older = Self::at(sibling.into(), None, STALE_AFTER);
        // The newer versions take the older lock as well, and touch both.
        let is_of_the_same = older.touched.zip(newer.touched).is_some_and(|(older, newer)| {
            let apart = older.duration_since(newer).unwrap_or_else(|error| error.duration());
            apart < STALE_AFTER
        });
        if is_of_the_same { [Self { owner, stale_after: NEWER_STALE_AFTER, ..older }, newer] } else { [older, newer] }
    }

    /// The file that tells whose the newer one is.
    pub fn owner_file(config_dir: &Path) -> PathBuf {
        config_dir.join(".oauth_refresh.lock.owner")
    }

    fn at(path: PathBuf, owner: Option<Owner>, stale_after: Duration) -> Self {
        let touched = fs::metadata(&path).and_then(|found| found.modified()).ok();
        // The file is of the lock that is there, or left over from one that is not.
        Self { path, touched, owner: owner.filter(|_| touched.is_some()), stale_after }
    }

    /// What it is worth at the time `now`.
    pub fn standing(&self, now: SystemTime) -> Standing {
        let Some(touched) = self.touched else { return Standing::Free };
        // A clock that was set back makes it younger, not free.
        let age = now.duration_since(touched).unwrap_or_default();
        match self.owner {
            _ if age >= self.stale_after => Standing::Stale(age),
            Some(Owner { lives: Some(false), .. }) => Standing::OwnerDead(self.stale_after - age),
            _ => Standing::Live,
        }
    }

    /// For how long it still keeps a claude from refreshing, at most, if nobody touches it.
    pub fn blocks_for(&self, now: SystemTime) -> Option<Duration> {
        match self.standing(now) {
            Standing::Free | Standing::Stale(_) => None,
            Standing::Live | Standing::OwnerDead(_) => {
                let age = now.duration_since(self.touched?).unwrap_or_default();
                Some(self.stale_after - age)
            }
        }
    }
}

impl Owner {
    /// Reads an owner's file.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let file: Value = serde_json::from_slice(text).ok()?;
        let pid = i32::try_from(file["pid"].as_i64()?).ok()?;
        let member = |name: &str| file[name].as_str();
        let (machine, namespace) = member("pidDomain").and_then(split_domain).unzip();
        let ours = pid_namespace();
        let is_here = namespace == ours.as_deref()
            && machine.is_some_and(is_this_machine)
            && member("pidSpace")
                .is_none_or(|space| Some(space) == ours.as_ref().map(|ours| format!("{}#{ours}", host())).as_deref());
        let start = member("procStart").and_then(|start| start.parse::<u64>().ok());
        let lives = || Stat::read(pid).is_some_and(|stat| !stat.is_dead() && start.is_none_or(|start| start == stat.start));
        Some(Self { pid, lives: is_here.then(lives), namespace: namespace.map(str::to_owned) })
    }

    /// Whether it may be one of `processes`, given by their pid in their own PID namespace, and that. On another host, a process
    /// can go by the same two names; it may be one then.
    pub fn may_be_among(&self, processes: &[(i32, String)]) -> bool {
        let namespace = self.namespace.as_ref();
        namespace.is_none_or(|namespace| processes.iter().any(|(pid, of)| *pid == self.pid && of == namespace))
    }
}

/// Machine and PID namespace, of the form `linux:3d1219…:pid:[4026531836]`. Only within one of these is a pid worth anything.
fn split_domain(domain: &str) -> Option<(&str, &str)> {
    let (machine, _) = domain.strip_prefix("linux:")?.split_once(":pid:[")?;
    Some((machine, &domain["linux:".len() + machine.len() + 1..]))
}

/// 2.1.330 writes what is in /etc/machine-id, or nothing; others were seen to write the boot id.
fn is_this_machine(machine: &str) -> bool {
    let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    machine == id.trim() || boot_id().is_some_and(|boot| machine == boot.replace('-', ""))
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    fn lock(touched: Option<SystemTime>, lives: Option<Option<bool>>) -> RefreshLock {
        let owner = lives.map(|lives| Owner { pid: 1, lives, namespace: None });
        RefreshLock { path: PathBuf::new(), touched, owner, stale_after: STALE_AFTER }
    }

    #[test]
    fn a_lock_is_free_live_abandoned_or_stale_by_its_age_and_owner() {
        let now = SystemTime::now();
        let millisecond = Duration::from_millis(1);
        for lives in [None, Some(None), Some(Some(true)), Some(Some(false))] {
            let is_dead = lives == Some(Some(false));
            let standing = |touched| lock(touched, lives).standing(now);
            let live = |left| if is_dead { Standing::OwnerDead(left) } else { Standing::Live };
            assert_eq!(standing(None), Standing::Free);
            assert_eq!(standing(Some(now)), live(STALE_AFTER));
            assert_eq!(standing(Some(now + Duration::from_secs(99))), live(STALE_AFTER), "a clock that was set back");
            assert_eq!(standing(Some(now - STALE_AFTER + millisecond)), live(millisecond));
            assert_eq!(standing(Some(now - STALE_AFTER)), Standing::Stale(STALE_AFTER));
            let blocks = |touched| lock(touched, lives).blocks_for(now);
            assert_eq!((blocks(None), blocks(Some(now - STALE_AFTER))), (None, None));
            assert_eq!(blocks(Some(now - STALE_AFTER + millisecond)), Some(millisecond));
        }
    }

    #[test]
    fn the_older_lock_beside_the_newer_is_of_the_same_owner_and_as_durable() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let config_dir = dir.path().join("config");
        fs::create_dir(&config_dir)?;
        fs::create_dir(dir.path().join("config.lock"))?;
        let now = SystemTime::now();
        let aged = now + Duration::from_secs(30);
        let standings = || RefreshLock::of(&config_dir).map(|lock| lock.standing(aged));
        assert!(matches!(standings(), [Standing::Stale(_), Standing::Free]));
        fs::create_dir(config_dir.join(".oauth_refresh.lock"))?;
        assert_eq!(standings(), [Standing::Live, Standing::Live]);
        let owner = format!(r#"{{"pid":4194304,"procStart":"1","pidDomain":"{}"}}"#, domain());
        fs::write(config_dir.join(".oauth_refresh.lock.owner"), owner)?;
        assert!(matches!(standings(), [Standing::OwnerDead(_), Standing::OwnerDead(_)]));
        fs::remove_dir(config_dir.join(".oauth_refresh.lock"))?;
        assert!(matches!(standings(), [Standing::Stale(_), Standing::Free]), "an owner's file that was left over");
        Ok(())
    }

    /// As 2.1.330 writes it.
    fn domain() -> String {
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        format!("linux:{}:{}", machine.trim(), pid_namespace().unwrap_or_default())
    }

    fn owner(pid: i32, start: u64, domain: &str) -> Option<Owner> {
        let text = format!(r#"{{"pid":{pid},"procStart":"{start}","pidDomain":"{domain}"}}"#);
        Owner::parse(text.as_bytes())
    }

    #[test]
    fn an_owner_lives_if_it_is_that_very_process_of_pid_namespace() {
        let us = process::id() as i32;
        let start = Stat::read(us).map(|stat| stat.start).unwrap_or_default();
        let boot = boot_id().unwrap_or_default().replace('-', "");
        let by_boot = format!("linux:{boot}:{}", pid_namespace().unwrap_or_default());
        let lives = |pid, start, domain: &str| owner(pid, start, domain).and_then(|owner| owner.lives);
        for domain in [domain(), by_boot] {
            assert_eq!(lives(us, start, &domain), Some(true));
            assert_eq!(lives(us, start + 1, &domain), Some(false), "another process with that pid");
            assert_eq!(lives(4_194_304, start, &domain), Some(false));
        }
        assert_eq!(lives(us, start, &format!("linux:elsewhere:{}", pid_namespace().unwrap_or_default())), None);
        assert_eq!(lives(us, start, "linux:other:pid:[1]"), None);
        let space = |space: &str| {
            let text = format!(r#"{{"pid":{us},"procStart":"{start}","pidDomain":"{}","pidSpace":"{space}"}}"#, domain());
            Owner::parse(text.as_bytes()).and_then(|owner| owner.lives)
        };
        assert_eq!(space(&format!("{}#{}", host(), pid_namespace().unwrap_or_default())), Some(true));
        assert_eq!(space("another host#pid:[4026531836]"), None, "of a copy of this machine");
        assert_eq!(Owner::parse(b"{"), None);
    }

    #[test]
    fn an_owner_is_looked_for_by_pid_and_namespace_and_none_is_ruled_out_that_tells_nothing() {
        let processes = [(7, "pid:[1]".to_owned()), (8, "pid:[2]".to_owned())];
        let may_be = |pid, domain: &str| owner(pid, 1, domain).is_some_and(|owner| owner.may_be_among(&processes));
        assert!(may_be(7, "linux:m:pid:[1]") && may_be(8, "linux::pid:[2]"));
        assert!(!may_be(7, "linux:m:pid:[2]") && !may_be(9, "linux:m:pid:[1]"));
        assert!(may_be(9, "") && may_be(9, "linux"));
    }
}
