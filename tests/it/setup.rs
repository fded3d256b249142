//! `claude-run setup`: a shared config dir, made or moved to; nothing is lost, whenever it is killed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tempfile::TempDir;

use crate::env::{Env, Running, binary};

/// Home and shared dir, on one file system or on two.
struct Place {
    env: Env,
    shared: PathBuf,
    _elsewhere: Option<TempDir>,
}

impl Place {
    fn on_one_file_system() -> Self {
        let env = Env::new();
        Self { shared: env.path("shared"), env, _elsewhere: None }
    }

    /// Places home and shared dir on two file systems, if there are two.
    fn on_two() -> Option<Self> {
        let env = Env::new();
        let elsewhere = TempDir::new_in("/dev/shm").ok();
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
        let elsewhere = elsewhere.filter(|elsewhere| device(elsewhere.path()) != device(&env.home()));
        let Some(elsewhere) = elsewhere else {
            assert!(std::env::var_os("CI").is_none(), "/dev/shm is no file system of its own, and every test has to run here");
            eprintln!("SKIPPED: /dev/shm is no file system of its own");
            return None;
        };
        Some(Self { shared: elsewhere.path().join("shared"), env, _elsewhere: Some(elsewhere) })
    }

    fn both() -> impl Iterator<Item = Self> {
        [Some(Self::on_one_file_system()), Self::on_two()].into_iter().flatten()
    }

    fn link(&self) -> PathBuf {
        self.env.home().join(".claude")
    }

    fn config_dir(&self) -> PathBuf {
        self.shared.join("config")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.env.command(binary());
        command.env("CLAUDE_SHARED_DIR", &self.shared).arg("setup").args(words);
        command
    }

    #[track_caller]
    fn setup(&self, words: &[&str], code: i32) -> String {
        let output = self.command(words).output().expect("claude-run");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        text
    }

    /// Content of every kind.
    fn fill(&self) {
        let dir = self.link();
        fs::create_dir_all(dir.join("projects/a")).expect("a directory");
        fs::write(dir.join("projects/a/session.jsonl"), "{}\n".repeat(1000)).expect("a file");
        fs::hard_link(dir.join("projects/a/session.jsonl"), dir.join("twin")).expect("a link");
        symlink("projects/a", dir.join("link")).expect("a link");
        symlink("/nonesuch", dir.join("dangling")).expect("a link");
        fs::write(dir.join(OsStr::from_bytes(b"new\nline \xff")), "special").expect("a file");
        nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
        let sparse = File::create(dir.join("sparse")).expect("a file");
        sparse.set_len(10 << 20).expect("a hole");
        fs::write(dir.join(".credentials.json"), "secret").expect("a file");
        fs::set_permissions(dir.join(".credentials.json"), Permissions::from_mode(0o600)).expect("a mode");
        let old = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500_000_000_123);
        File::open(dir.join("twin")).and_then(|file| file.set_modified(old)).expect("a time");
        File::open(dir.join("projects")).and_then(|dir| dir.set_modified(old)).expect("a time");
        fs::write(self.env.home().join(".claude.json"), r#"{"mcpServers":{}}"#).expect("a file");
    }

    /// Content of ~/.claude, without the files that setup itself makes there.
    fn content(&self) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        look(&self.link(), Path::new(""), &mut all);
        all.retain(|path, _| {
            !["", "session.lock", ".claude.json", ".claude.json.claude-run-copy", "claude-run"]
                .iter()
                .any(|name| path == Path::new(name))
        });
        all
    }
}

fn look(dir: &Path, below: &Path, all: &mut BTreeMap<PathBuf, String>) {
    let path = dir.join(below);
    let found = if below == Path::new("") { fs::metadata(&path) } else { fs::symlink_metadata(&path) }.expect("it is there");
    let kind = found.file_type();
    let detail = match () {
        () if kind.is_symlink() => format!("-> {:?}", fs::read_link(&path).expect("a link")),
        () if kind.is_file() => {
            let bytes = fs::read(&path).expect("a file");
            let is_hole = bytes == vec![0; bytes.len()];
            let text = if is_hole { format!("{} zeros", bytes.len()) } else { String::from_utf8_lossy(&bytes).into_owned() };
            format!("{} {} {text}", found.nlink(), found.mtime_nsec())
        }
        () if kind.is_dir() && below != Path::new("") => format!("{}.{}", found.mtime(), found.mtime_nsec()),
        () => String::new(),
    };
    all.insert(below.to_owned(), format!("{:o} {}:{} {detail}", found.mode(), found.uid(), found.gid()));
    if kind.is_dir() {
        for entry in fs::read_dir(&path).expect("a directory").flatten() {
            look(dir, &below.join(entry.file_name()), all);
        }
    }
}

/// Nothing of setup's own is left beside what it made.
#[track_caller]
fn expect_tidy(place: &Place) {
    for dir in [place.env.home(), place.shared.clone(), place.config_dir()] {
        for entry in fs::read_dir(dir).expect("a directory").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            assert!(!name.contains("claude-run-"), "{name} is left");
        }
    }
}

#[test]
fn missing_dirs_are_created_once() {
    for place in Place::both() {
        let dry = place.setup(&["--dry-run"], 0);
        assert!(dry.contains("would make") && !place.shared.exists() && !place.link().exists(), "{dry}");
        let text = place.setup(&[], 0);
        assert!(text.contains(&format!("export CLAUDE_CONFIG_DIR={}", place.config_dir().display())), "{text}");
        let shared = place.shared.display();
        assert!(text.contains(&format!("{shared}:{shared}")) && text.contains("compose") && text.contains("Nomad"), "{text}");
        assert_eq!(fs::read_link(place.link()).expect("a link"), place.config_dir());
        assert_eq!(fs::metadata(place.config_dir()).expect("a directory").permissions().mode() & 0o777, 0o700);
        for _ in 0..2 {
            assert!(place.setup(&[], 0).contains("nothing to do"));
        }
        expect_tidy(&place);
    }
}

#[test]
fn dir_is_moved_whole_and_readable_throughout() {
    for place in Place::both() {
        place.fill();
        let before = place.content();
        let text = place.setup(&[], 0);
        assert!(text.contains("--yes does it") && !place.shared.exists(), "nobody was asked: {text}");
        place.setup(&["--dry-run"], 0);
        assert!(place.link().is_dir() && !place.link().is_symlink() && !place.shared.exists());
        let over = Arc::new(AtomicBool::new(false));
        let (file, is_over) = (place.link().join(".credentials.json"), Arc::clone(&over));
        let reader = thread::spawn(move || {
            let mut reads = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(fs::read_to_string(&file).expect("it is there at every moment"), "secret");
                reads += 1;
            }
            reads
        });
        place.setup(&["--yes"], 0);
        over.store(true, Ordering::Relaxed);
        assert!(reader.join().expect("a reader") > 0);
        assert_eq!(place.content(), before);
        let sparse = fs::metadata(place.config_dir().join("sparse")).expect("a file");
        assert!(sparse.blocks() * 512 < sparse.len(), "its hole is one");
        assert_eq!(fs::read_link(place.link()).expect("a link"), place.config_dir());
        let json = place.env.home().join(".claude.json");
        assert_eq!(fs::read_link(&json).expect("a link"), place.config_dir().join(".claude.json"));
        assert_eq!(fs::read_to_string(json).expect("a file"), r#"{"mcpServers":{}}"#);
        expect_tidy(&place);
        assert!(place.setup(&["--yes"], 0).contains("nothing to do"));
    }
}

#[test]
fn conflict_changes_nothing_and_says_why() {
    type Make = fn(&Place);
    let cases: [(Make, &str); 5] = [
        (
            |place| {
                fs::create_dir_all(place.config_dir()).expect("a directory");
                fs::write(place.config_dir().join("theirs"), "x").expect("a file");
                fs::create_dir_all(place.link()).expect("a directory");
                fs::write(place.link().join("ours"), "x").expect("a file");
            },
            "both have content",
        ),
        (|place| symlink("/nonesuch", place.link()).expect("a link"), "is a link to /nonesuch"),
        (|place| symlink("/tmp", place.link()).expect("a link"), "is a link to /tmp"),
        (|place| fs::write(place.link(), "x").expect("a file"), "is no directory"),
        (
            |place| {
                fs::create_dir_all(&place.shared).expect("a directory");
                fs::write(place.config_dir(), "x").expect("a file");
            },
            "is no directory",
        ),
    ];
    for (make, why) in cases {
        let place = Place::on_one_file_system();
        make(&place);
        let before = fs::read_dir(place.env.home()).expect("a home").count();
        let text = place.setup(&["--yes"], 1);
        assert!(text.contains(why) && text.contains("nothing was changed"), "{why}: {text}");
        assert_eq!(fs::read_dir(place.env.home()).expect("a home").count(), before);
    }
}

#[test]
fn missing_permission_is_found_before_any_change() {
    let place = Place::on_one_file_system();
    place.fill();
    let mut command = place.command(&["--yes"]);
    if nix::unistd::geteuid().is_root() {
        // Root may write everywhere: somebody else, who may look.
        let mut other = place.env.command("setpriv");
        other.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(binary()).args(["setup", "--yes"]);
        other.env("CLAUDE_SHARED_DIR", &place.shared);
        command = other;
        for dir in [place.env.path(""), place.env.home(), place.link()] {
            fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("a mode");
        }
    } else {
        fs::set_permissions(place.env.home(), Permissions::from_mode(0o555)).expect("a mode");
    }
    let ended = Running::start(command).end();
    fs::set_permissions(place.env.home(), Permissions::from_mode(0o755)).expect("a mode");
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.stdout.join("").contains("is not writable by us; nothing was changed"), "{ended:?}");
    assert!(!place.link().is_symlink() && !place.shared.exists());
}

#[test]
fn empty_dir_gives_way_to_the_shared_one() {
    for place in Place::both() {
        fs::create_dir_all(place.config_dir()).expect("a directory");
        fs::write(place.config_dir().join("theirs"), "x").expect("a file");
        fs::create_dir(place.link()).expect("a directory");
        place.setup(&[], 0);
        assert_eq!(fs::read_to_string(place.link().join("theirs")).expect("a file"), "x");
        expect_tidy(&place);
    }
}

#[test]
fn live_run_or_refresh_blocks_the_move() {
    let place = Place::on_one_file_system();
    place.fill();
    let run = place.env.start_fake(&["--lock", "pass-through", "--label", "busy"], "ready; hang");
    run.ready();
    let records = place.link().join("claude-run/runs");
    crate::env::wait_until("its record is there", || fs::read_dir(&records).is_ok_and(|all| all.count() == 1));
    let text = place.setup(&["--yes", "--wait", "0"], 1);
    assert!(text.contains("1 run is live there") && text.contains("busy (pid "), "{text}");
    assert!(!place.link().is_symlink());
    // It waits as long as it may, and then goes on.
    let waiting = Running::start(place.command(&["--yes", "--wait", "1h"]));
    drop(run);
    let ended = waiting.end();
    assert_eq!(ended.code(), 0, "{ended:?}");
    let place = Place::on_one_file_system();
    place.fill();
    let holder = place.env.hold_lock();
    assert!(place.setup(&["--yes", "--wait", "0"], 1).contains("is in use"));
    drop(holder);
    fs::create_dir(place.link().join(".oauth_refresh.lock")).expect("a lock");
    assert!(place.setup(&["--yes"], 1).contains("a refresh is under way"));
    assert!(!place.link().is_symlink() && !place.shared.join("config").exists());
}

#[test]
fn two_settings_files_are_kept_and_reported() {
    let place = Place::on_one_file_system();
    place.fill();
    fs::write(place.link().join(".claude.json"), "other").expect("a file");
    let text = place.setup(&["--yes"], 1);
    let json = place.env.home().join(".claude.json");
    assert!(text.contains(&format!("{} stays as it is", json.display())), "{text}");
    assert_eq!(fs::read_to_string(&json).expect("a file"), r#"{"mcpServers":{}}"#);
    assert_eq!(fs::read_to_string(place.config_dir().join(".claude.json")).expect("a file"), "other");
    fs::write(place.config_dir().join(".claude.json"), r#"{"mcpServers":{}}"#).expect("a file");
    place.setup(&[], 0);
    assert!(json.is_symlink(), "they are the same now");
}

#[test]
fn env_file_is_updated_once_and_keeps_other_lines() {
    let env = Env::new();
    let place = Place { shared: env.path("with space"), env, _elsewhere: None };
    let file = place.env.path("agents.env");
    fs::write(&file, "A=1\nexport CLAUDE_CONFIG_DIR=/old\n# the end").expect("a file");
    fs::set_permissions(&file, Permissions::from_mode(0o640)).expect("a mode");
    let words = ["--env-file", &file.to_string_lossy()];
    place.setup(&[words[0], words[1], "--dry-run"], 0);
    assert!(fs::read_to_string(&file).expect("a file").contains("/old"));
    for _ in 0..2 {
        place.setup(&words, 0);
        let shared = place.shared.display();
        let expected = format!("A=1\nexport CLAUDE_CONFIG_DIR='{shared}/config'\n# the end\nCLAUDE_SHARED_DIR='{shared}'\n");
        assert_eq!(fs::read_to_string(&file).expect("a file"), expected);
    }
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o640);
    let mut shell = place.env.command("sh");
    let output = shell.args(["-c", r#"set -a; . "$0"; cd "$CLAUDE_CONFIG_DIR" && pwd"#]).arg(&file).output().expect("sh");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), place.config_dir().to_string_lossy());
}

#[test]
fn json_says_the_same() {
    let place = Place::on_one_file_system();
    let seen: Value = serde_json::from_str(&place.setup(&["--json"], 0)).expect("JSON");
    assert_eq!((&seen["done"], &seen["config_dir"]), (&true.into(), &place.config_dir().to_string_lossy().as_ref().into()));
    let place = Place::on_one_file_system();
    place.fill();
    let seen: Value = serde_json::from_str(&place.setup(&["--json"], 0)).expect("JSON");
    assert_eq!(seen["done"], false);
}

/// Every system call that can change something, or that what follows rests on.
const CHANGES: [&str; 18] = [
    "openat",
    "write",
    "rename",
    "renameat2",
    "symlink",
    "mkdir",
    "rmdir",
    "unlink",
    "unlinkat",
    "chmod",
    "fchmod",
    "fchmodat",
    "fchown",
    "utimensat",
    "flock",
    "fsync",
    "syncfs",
    "execve",
];

/// KILL at the first such call, at the second, … until it ends by itself: each time the old state stands or the new one, and the
/// next setup gets there.
fn kill_everywhere(make: impl Fn() -> Option<Place>) {
    let Some(place) = make() else { return };
    let strace = place.env.command("strace").arg("true").stderr(Stdio::null()).status();
    if !strace.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "strace does not work here, where every test has to run");
        eprintln!("SKIPPED: strace does not work on this machine");
        return;
    }
    let mut kills = 0;
    for call in CHANGES {
        for number in 1.. {
            assert!(number < 1_000, "{call} never ends");
            let place = make().expect("as before");
            place.fill();
            let before = place.content();
            let mut strace = place.env.command("strace");
            strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={call}:signal=KILL:when={number}"), "-e"]);
            strace.arg(format!("trace={call}")).arg(binary()).args(["setup", "--yes", "--shared-dir"]).arg(&place.shared);
            let output = strace.output().expect("strace");
            let about = || format!("{call} {number}: {output:?}");
            assert_eq!(place.content(), before, "after {}", about());
            let json = fs::read_to_string(place.env.home().join(".claude.json"));
            assert_eq!(json.ok().as_deref(), Some(r#"{"mcpServers":{}}"#), "after {}", about());
            let was_whole = output.status.success();
            kills += u32::from(!was_whole);
            place.setup(&["--yes"], 0);
            assert_eq!(place.content(), before, "in the end, {}", about());
            assert_eq!(fs::read_link(place.link()).expect("a link"), place.config_dir(), "{}", about());
            assert!(fs::symlink_metadata(place.config_dir()).is_ok_and(|found| found.is_dir()), "{}", about());
            assert!(place.env.home().join(".claude.json").is_symlink(), "{}", about());
            expect_tidy(&place);
            if was_whole {
                break;
            }
        }
    }
    assert!(kills > 40, "{kills} kills");
}

#[test]
fn kill_at_any_system_call_loses_nothing() {
    kill_everywhere(|| Some(Place::on_one_file_system()));
}

#[test]
fn kill_between_two_file_systems_loses_nothing() {
    kill_everywhere(Place::on_two);
}
