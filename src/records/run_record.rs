//! What a run record says: who runs what, since when, and what that process sees as the lock. Never a prompt, never a token:
//! of the command line it has the program alone.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use nix::unistd::gethostname;
use serde_json::Value;

use super::object::Object;
use crate::identity::Identity;

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
pub struct Sight {
    /// Its path as it is used.
    pub path: String,
    /// Without symbolic links, if it could be found out.
    pub real_path: Option<String>,
    /// Which file that is, if it is there.
    pub identity: Option<Identity>,
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
    pub lock: Option<Sight>,
    /// The config dir.
    pub config_dir: Sight,
    /// The directory that this lies in, where Claude Code's own lock does as well.
    pub parent: Sight,
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

impl Sight {
    /// What this process sees at `path`.
    pub fn of(path: &Path) -> Self {
        let path = &std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let real_path = fs::canonicalize(path).ok().map(|path| path.to_string_lossy().into_owned());
        Self { path: path.to_string_lossy().into_owned(), real_path, identity: Identity::at(path) }
    }

    fn to_json(&self) -> Object {
        let mut object = Object::default();
        object.add("path", &self.path).add("real_path", &self.real_path);
        object.add("device", self.identity.map(|found| found.device)).add("inode", self.identity.map(|found| found.inode));
        object
    }

    fn from_json(value: &Value) -> Option<Self> {
        let identity = |device: &Value, inode: &Value| Some(Identity { device: device.as_u64()?, inode: inode.as_u64()? });
        Some(Self {
            path: text(&value["path"])?,
            real_path: text(&value["real_path"]),
            identity: identity(&value["device"], &value["inode"]),
        })
    }
}

impl RunRecord {
    /// Whether this run has taken the session lock `lock`. Between two hosts, device numbers tell nothing.
    pub fn holds(&self, lock: Identity) -> bool {
        self.hold == Some(Hold::Own) && self.is_about(lock)
    }

    /// Whether this run has to do with the session lock `lock`.
    pub fn is_about(&self, lock: Identity) -> bool {
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
    pub fn to_json(&self) -> String {
        let mut object = Object::default();
        object
            .add("run", &self.run)
            .add("label", &self.label)
            .add("state", self.state.name())
            .add("since", time(self.since))
            .add("began", time(self.began))
            .add("mode", &self.mode)
            .add("hold", self.hold.map(Hold::name))
            .add("host", &self.host)
            .add("pid", self.pid)
            .add("child", self.child)
            .add("pid_namespace", &self.pid_namespace)
            .add("boot", &self.boot)
            .add("version", &self.version)
            .add("program", &self.program)
            .add("cwd", &self.cwd)
            .add_object("lock", self.lock.as_ref().map(Sight::to_json))
            .add_object("config_dir", Some(self.config_dir.to_json()))
            .add_object("parent", Some(self.parent.to_json()));
        object.to_string()
    }

    /// Reads its JSON object; what lacks a part that every version has written is none.
    pub fn from_json(value: &Value) -> Option<Self> {
        let pid = |value: &Value| i32::try_from(value.as_i64()?).ok();
        Some(Self {
            run: text(&value["run"])?,
            state: [State::Waiting, State::Running].into_iter().find(|state| value["state"] == state.name())?,
            hold: [Hold::Own, Hold::RunAbove, Hold::Caller].into_iter().find(|hold| value["hold"] == hold.name()),
            mode: text(&value["mode"])?,
            label: text(&value["label"]),
            host: text(&value["host"]).unwrap_or_default(),
            boot: text(&value["boot"]),
            pid: pid(&value["pid"])?,
            pid_namespace: text(&value["pid_namespace"]),
            child: pid(&value["child"]),
            version: text(&value["version"]).unwrap_or_default(),
            program: text(&value["program"])?,
            cwd: text(&value["cwd"]),
            began: read_time(&value["began"])?,
            since: read_time(&value["since"])?,
            lock: Sight::from_json(&value["lock"]),
            config_dir: Sight::from_json(&value["config_dir"])?,
            parent: Sight::from_json(&value["parent"])?,
        })
    }
}

/// The name of this host, or container.
pub(crate) fn host() -> String {
    gethostname().map(|host| host.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Which start of the kernel this is.
pub(super) fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// Our PID namespace, by the name that /proc has for it.
pub fn pid_namespace() -> Option<String> {
    fs::read_link("/proc/self/ns/pid").ok().map(|name| name.to_string_lossy().into_owned())
}

/// A time, as all records have it: RFC 3339, UTC, milliseconds.
pub(crate) fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

pub(super) fn read_time(value: &Value) -> Option<SystemTime> {
    humantime::parse_rfc3339(value.as_str()?).ok()
}

pub(super) fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    pub(crate) fn example() -> RunRecord {
        let began = SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
        let identity = Some(Identity { device: 2049, inode: 77 });
        let seen = |path: &str| Sight { path: path.into(), real_path: Some(path.into()), identity };
        RunRecord {
            run: "7-11".into(),
            state: State::Running,
            hold: Some(Hold::Own),
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
            parent: Sight { path: "/".into(), real_path: None, identity: None },
        }
    }

    #[test]
    fn a_record_reads_as_it_was_written_and_a_cut_one_is_none() {
        let waiting = RunRecord { state: State::Waiting, hold: None, lock: None, ..example() };
        for record in [example(), waiting] {
            let value = serde_json::from_str(&record.to_json()).unwrap_or_default();
            assert_eq!(RunRecord::from_json(&value), Some(record));
        }
        for key in ["run", "state", "mode", "pid", "program", "began", "since", "config_dir", "parent"] {
            let mut value: Value = serde_json::from_str(&example().to_json()).unwrap_or_default();
            value[key] = Value::Null;
            assert_eq!(RunRecord::from_json(&value), None, "{key}");
        }
        assert_eq!(RunRecord::from_json(&Value::from("x")), None);
    }

    #[test]
    fn a_lock_is_known_by_device_and_inode_and_on_another_host_by_inode() {
        let lock = Identity { device: 2049, inode: 77 };
        let elsewhere = Identity { device: 9, ..lock };
        assert!(example().holds(lock) && !example().holds(elsewhere) && !example().holds(Identity { inode: 78, ..lock }));
        assert!(RunRecord { boot: Some("other".into()), ..example() }.holds(elsewhere));
        assert!(!RunRecord { hold: Some(Hold::RunAbove), ..example() }.holds(lock));
    }
}
