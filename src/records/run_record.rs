//! What a run record says: who runs what, since when, and what that process sees as the lock. Never a prompt, never a token:
//! of the command line it has the program alone.

use std::borrow::Cow;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use crate::object::{Members, Object};
use crate::sys::file_id::FileId;
use crate::sys::proc::{boot_id, host};

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits for the session lock.
    Waiting,
    /// Its child runs, or is about to.
    Running,
}

/// In what way a run has the session lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It has taken it.
    Own,
    /// A run above it holds it.
    RunAbove,
    /// A descriptor that its caller left open to it does.
    Caller,
}

/// A file as one process sees it, to be compared with what others see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathView {
    /// Its path as it is used.
    pub path: String,
    /// Without symbolic links, if it could be found out.
    pub real_path: Option<String>,
    /// Which file that is, if it is there.
    pub identity: Option<FileId>,
}

/// One run record. README, "Run records", tells its fields to other programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// The run's name.
    pub run: String,
    /// How far it has come.
    pub state: State,
    /// Whether it has the session lock.
    pub hold: Option<Hold>,
    /// What its lock helper calls the lock of another engine, while it has that.
    pub key: Option<String>,
    /// Its lock mode, by name.
    pub mode: String,
    /// What its caller calls it.
    pub label: Option<String>,
    /// The host, or the container.
    pub host: String,
    /// Which start of the kernel it belongs to.
    pub boot: Option<String>,
    /// claude-run's own pid, in its PID namespace.
    pub pid: i32,
    /// Which namespace that is, as /proc/self/ns/pid has it.
    pub pid_namespace: Option<String>,
    /// The pid of the child, once it is started.
    pub child: Option<i32>,
    /// claude-run's version.
    pub version: String,
    /// What runs.
    pub program: String,
    /// Where.
    pub cwd: Option<String>,
    /// When the run began.
    pub began: SystemTime,
    /// When its state did.
    pub since: SystemTime,
    /// The session lock, if it has to do with it.
    pub lock: Option<PathView>,
    /// The config dir.
    pub config_dir: PathView,
    /// The directory that this lies in, where Claude Code's own lock does as well.
    pub parent: PathView,
}

impl State {
    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
        }
    }
}

impl Hold {
    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::RunAbove => "run-above",
            Self::Caller => "caller",
        }
    }
}

impl PathView {
    /// What this process sees at `path`.
    pub fn of(path: &Path) -> Self {
        let path = &std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let real_path = fs::canonicalize(path).ok().map(|path| path.to_string_lossy().into_owned());
        Self { path: path.to_string_lossy().into_owned(), real_path, identity: FileId::at(path) }
    }

    fn to_json(&self) -> Object {
        let mut object = Object::default();
        object.add("path", &self.path).add("real_path", &self.real_path);
        object.add("device", self.identity.map(|found| found.device)).add("inode", self.identity.map(|found| found.inode));
        object
    }

    fn from_json(members: &Members) -> Option<Self> {
        let identity = || Some(FileId { device: members.get("device")?, inode: members.get("inode")? });
        Some(Self { path: members.get("path")?, real_path: members.get("real_path"), identity: identity() })
    }
}

impl RunRecord {
    /// Whether this run has taken the session lock `lock`. Between two hosts, device numbers tell nothing.
    pub fn holds(&self, lock: FileId) -> bool {
        self.hold == Some(Hold::Own) && self.is_about(lock)
    }

    /// Whether this run has to do with the session lock `lock`.
    pub fn is_about(&self, lock: FileId) -> bool {
        let seen = self.lock.as_ref().and_then(|seen| seen.identity);
        seen.is_some_and(|seen| seen.inode == lock.inode && (seen.device == lock.device || self.boot != boot_id()))
    }

    /// Whom to ask: the label, or the program, with pid and host.
    pub fn who(&self) -> String {
        let program = || Path::new(&self.program).file_name().map(|name| name.to_string_lossy().into_owned());
        let name = self.label.clone().or_else(program).unwrap_or_default();
        let elsewhere = if self.host == host() { String::new() } else { format!(" on {}", self.host) };
        // It goes to terminals: what could steer one is shown, not obeyed.
        format!("{name} (pid {}{elsewhere})", self.pid).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    }

    /// Its JSON object.
    pub(crate) fn to_json(&self) -> Object {
        let mut object = Object::default();
        object
            .add("run", &self.run)
            .add("label", &self.label)
            .add("state", self.state.name())
            .add("since", time(self.since))
            .add("began", time(self.began))
            .add("mode", &self.mode)
            .add("hold", self.hold.map(Hold::name))
            .add("lock_key", &self.key)
            .add("host", &self.host)
            .add("pid", self.pid)
            .add("child", self.child)
            .add("pid_namespace", &self.pid_namespace)
            .add("boot", &self.boot)
            .add("version", &self.version)
            .add("program", &self.program)
            .add("cwd", &self.cwd)
            .add_object("lock", self.lock.as_ref().map(PathView::to_json))
            .add_object("config_dir", Some(self.config_dir.to_json()))
            .add_object("parent", Some(self.parent.to_json()));
        object
    }

    /// Reads its JSON object; what lacks a part that every version has written is none.
    pub fn from_json(text: &[u8]) -> Option<Self> {
        let members = &Members::read(text)?;
        let text = |name| members.get::<String>(name);
        let (state, hold) = (members.get::<Cow<str>>("state")?, members.get::<Cow<str>>("hold"));
        let seen = |name| PathView::from_json(&members.members(name)?);
        Some(Self {
            run: text("run")?,
            state: [State::Waiting, State::Running].into_iter().find(|known| state == known.name())?,
            hold: [Hold::Own, Hold::RunAbove, Hold::Caller].into_iter().find(|known| hold.as_deref() == Some(known.name())),
            key: text("lock_key"),
            mode: text("mode")?,
            label: text("label"),
            host: text("host").unwrap_or_default(),
            boot: text("boot"),
            pid: members.get("pid")?,
            pid_namespace: text("pid_namespace"),
            child: members.get("child"),
            version: text("version").unwrap_or_default(),
            program: text("program")?,
            cwd: text("cwd"),
            began: read_time(members, "began")?,
            since: read_time(members, "since")?,
            lock: seen("lock"),
            config_dir: seen("config_dir")?,
            parent: seen("parent")?,
        })
    }
}

/// A time, as all records have it: RFC 3339, UTC, milliseconds.
pub(crate) fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

pub(super) fn read_time(members: &Members, name: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(members.get::<Cow<str>>(name)?.as_ref()).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::proc::pid_namespace;

    pub(crate) fn example() -> RunRecord {
        let began = SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
        let identity = Some(FileId { device: 2049, inode: 77 });
        let seen = |path: &str| PathView { path: path.into(), real_path: Some(path.into()), identity };
        RunRecord {
            run: "7-11".into(),
            state: State::Running,
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
            cwd: None,
            began,
            since: began,
            lock: Some(seen("/c/session.lock")),
            config_dir: seen("/c"),
            parent: PathView { path: "/".into(), real_path: None, identity: None },
        }
    }

    #[test]
    fn a_record_reads_as_it_was_written_and_a_cut_one_is_none() {
        let waiting = RunRecord { state: State::Waiting, hold: None, lock: None, ..example() };
        for record in [example(), waiting] {
            assert_eq!(RunRecord::from_json(record.to_json().into_text().as_bytes()), Some(record));
        }
        let text = example().to_json().into_text();
        for key in ["run", "state", "mode", "pid", "program", "began", "since", "config_dir", "parent"] {
            let lacking = text.replace(&format!("\"{key}\":"), &format!("\"no-{key}\":"));
            assert_eq!(RunRecord::from_json(lacking.as_bytes()), None, "{key}");
        }
        for length in 0..text.len() {
            assert_eq!(RunRecord::from_json(&text.as_bytes()[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_lock_is_known_by_device_and_inode_and_on_another_host_by_inode() {
        let lock = FileId { device: 2049, inode: 77 };
        let elsewhere = FileId { device: 9, ..lock };
        assert!(example().holds(lock) && !example().holds(elsewhere) && !example().holds(FileId { inode: 78, ..lock }));
        assert!(RunRecord { boot: Some("other".into()), ..example() }.holds(elsewhere));
        assert!(!RunRecord { hold: Some(Hold::RunAbove), ..example() }.holds(lock));
    }
}
