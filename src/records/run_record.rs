//! Run record: who runs what, since when, and what that process sees as the lock. Never a prompt, never a token: of the
//! command line it has the program alone.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::fields::{lenient, timestamp};
use crate::logging::escaped;
use crate::sys::file_id::FileId;
use crate::sys::proc::{boot_id, host, pid_namespace};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Waiting,
    /// Runs its child, or is about to.
    Running,
}

/// Awaited by a run that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WaitsFor {
    Slot,
    /// The session lock, its lock helper, or claude's own refresh locks.
    Lock,
}

/// Way in which a run holds the session lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Hold {
    Own,
    /// Held by a run above it.
    RunAbove,
    /// Held by a descriptor inherited from its caller.
    Caller,
}

/// A file as one process sees it, to be compared with what others see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PathView {
    pub(crate) path: String,
    /// Path without symbolic links, if it could be resolved.
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) real_path: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    device: Option<u64>,
    #[serde(default, deserialize_with = "lenient")]
    inode: Option<u64>,
}

/// Run record. The guide, operations.md, describes its fields to other programs. Fields that some version may lack are read
/// tolerantly; without one of the others, a record cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    pub(crate) run: String,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) label: Option<String>,
    pub(crate) state: State,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) waits_for: Option<WaitsFor>,
    /// Number in the queue for a slot.
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) ticket: Option<u64>,
    #[serde(with = "timestamp")]
    pub(crate) since: SystemTime,
    #[serde(with = "timestamp")]
    pub(crate) began: SystemTime,
    pub(crate) mode: String,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) hold: Option<Hold>,
    /// The lock helper's key for its lock, while the helper holds that.
    #[serde(rename = "lock_key", default, deserialize_with = "lenient")]
    pub(crate) key: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) host: String,
    /// Pid of claude-run, in its PID namespace.
    pub(crate) pid: i32,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) child: Option<i32>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) pid_namespace: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) boot: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) version: String,
    pub(crate) program: String,
    /// Version of claude, as its installation says it.
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) claude_version: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) cwd: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) lock: Option<PathView>,
    /// Its slot, from the moment it has one.
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) slot: Option<PathView>,
    pub(crate) config_dir: PathView,
    /// Directory above the config dir, in which Claude Code's own lock lies as well.
    pub(crate) parent: PathView,
}

impl PathView {
    /// View of a path that leads to `file`; to whatever is there now, if that is `None`.
    pub(super) fn of(path: &Path, file: Option<FileId>) -> Self {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let real_path = fs::canonicalize(path).ok().map(|path| path.to_string_lossy().into_owned());
        let (device, inode) = file.or_else(|| FileId::at(path)).map(|file| (file.device, file.inode)).unzip();
        Self { path: absolute.to_string_lossy().into_owned(), real_path, device, inode }
    }

    /// View of a path of ours, whose links nobody asks for.
    pub(super) fn plain(path: &Path, file: FileId) -> Self {
        let path = path.to_string_lossy().into_owned();
        Self { path, real_path: None, device: Some(file.device), inode: Some(file.inode) }
    }

    pub(crate) fn file_id(&self) -> Option<FileId> {
        Some(FileId { device: self.device?, inode: self.inode? })
    }
}

impl RunRecord {
    /// True if this run itself has acquired the session lock `lock`.
    pub(crate) fn holds(&self, lock: FileId) -> bool {
        self.hold == Some(Hold::Own) && self.is_about(lock)
    }

    /// True if this run waits for its session lock: not for a slot, which comes first.
    pub(crate) fn waits(&self) -> bool {
        self.state == State::Waiting && self.hold.is_none() && self.waits_for != Some(WaitsFor::Slot)
    }

    /// True if this run itself has acquired the slot `slot`.
    pub(crate) fn has_slot(&self, slot: FileId) -> bool {
        self.is_same(self.slot.as_ref(), slot)
    }

    /// True if `lock` is the session lock of this run. Device numbers are not comparable between hosts.
    pub(crate) fn is_about(&self, lock: FileId) -> bool {
        self.is_same(self.lock.as_ref(), lock)
    }

    fn is_same(&self, view: Option<&PathView>, file: FileId) -> bool {
        let seen = view.and_then(PathView::file_id);
        seen.is_some_and(|seen| seen.inode == file.inode && (seen.device == file.device || self.boot != boot_id()))
    }

    /// Time that it has been in its state; zero if that is yet to come.
    pub(crate) fn age(&self) -> Duration {
        SystemTime::now().duration_since(self.since).unwrap_or_default()
    }

    /// Name for people: the label, or the program, with pid and host.
    pub(crate) fn who(&self) -> String {
        let program = || Path::new(&self.program).file_name().map(|name| name.to_string_lossy().into_owned());
        let name = self.label.clone().or_else(program).unwrap_or_default();
        let elsewhere = match () {
            () if self.host != host() => format!(" on {}", self.host),
            () if self.is_of_this_boot() && !self.is_of_our_pid_namespace() => " in another PID namespace".to_owned(),
            () => String::new(),
        };
        escaped(&format!("{name} (pid {}{elsewhere})", self.pid)).into_owned()
    }

    /// True if its pids are the same here.
    pub(crate) fn is_of_our_pid_namespace(&self) -> bool {
        self.is_of_this_boot() && self.pid_namespace == pid_namespace()
    }

    /// True if it is on this machine, in whatever container.
    pub(crate) fn is_of_this_boot(&self) -> bool {
        self.boot == boot_id()
    }

    /// Reads a record. None if it cannot be understood.
    pub fn from_json(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::proc::pid_namespace;

    fn example() -> RunRecord {
        let began = SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
        let seen =
            |path: &str| PathView { path: path.into(), real_path: Some(path.into()), device: Some(2049), inode: Some(77) };
        RunRecord {
            run: "7-11".into(),
            state: State::Running,
            waits_for: None,
            ticket: None,
            slot: Some(seen("/c/claude-run/slots/1")),
            hold: Some(Hold::Own),
            key: Some("factory/694d".into()),
            mode: "exclusive".into(),
            label: Some("re\"view\n".into()),
            host: "a1b2".into(),
            boot: boot_id(),
            pid: 7,
            pid_namespace: pid_namespace(),
            child: Some(8),
            version: "0.1.0".into(),
            program: "/usr/bin/claude".into(),
            claude_version: Some("2.1.330".into()),
            cwd: None,
            began,
            since: began,
            lock: Some(seen("/c/session.lock")),
            config_dir: seen("/c"),
            parent: PathView { path: "/".into(), real_path: None, device: None, inode: None },
        }
    }

    fn json(record: &RunRecord) -> String {
        serde_json::to_string(record).unwrap_or_default()
    }

    #[test]
    fn record_reads_back_and_a_cut_one_is_none() {
        let waiting = RunRecord { state: State::Waiting, hold: None, lock: None, ..example() };
        for record in [example(), waiting] {
            assert_eq!(RunRecord::from_json(json(&record).as_bytes()), Some(record));
        }
        let text = json(&example());
        for key in ["run", "state", "mode", "pid", "program", "began", "since", "config_dir", "parent"] {
            let lacking = text.replace(&format!("\"{key}\":"), &format!("\"no-{key}\":"));
            assert_eq!(RunRecord::from_json(lacking.as_bytes()), None, "{key}");
        }
        for length in 0..text.len() {
            assert_eq!(RunRecord::from_json(&text.as_bytes()[..length]), None, "{length}");
        }
    }

    #[test]
    fn wrong_type_costs_its_own_field_alone() {
        let without_hold = RunRecord { hold: None, ..example() };
        for hold in ["7", "null", "[]", "\"other\""] {
            let text = json(&example()).replace("\"hold\":\"own\"", &format!("\"hold\":{hold}"));
            assert_eq!(RunRecord::from_json(text.as_bytes()), Some(without_hold.clone()), "{hold}");
        }
        let text = json(&example()).replace("\"child\":8", "\"child\":99999999999999999999");
        assert_eq!(RunRecord::from_json(text.as_bytes()), Some(RunRecord { child: None, ..example() }));
        let text = json(&example()).replace("\"inode\":77", "\"inode\":-1");
        let record = RunRecord::from_json(text.as_bytes());
        assert_eq!(record.map(|record| record.config_dir.file_id()), Some(None));
    }

    #[test]
    fn lock_on_another_host_is_known_by_inode() {
        let lock = FileId { device: 2049, inode: 77 };
        let elsewhere = FileId { device: 9, ..lock };
        assert!(example().holds(lock) && !example().holds(elsewhere) && !example().holds(FileId { inode: 78, ..lock }));
        assert!(RunRecord { boot: Some("other".into()), ..example() }.holds(elsewhere));
        assert!(!RunRecord { hold: Some(Hold::RunAbove), ..example() }.holds(lock));
    }
}
