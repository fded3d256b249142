//! `claude-run setup`: a shared config dir, made or moved to; nothing is lost, whenever it is killed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::env::{Env, Running, binary, can_unshare};
use crate::oauth::mount_namespace;
use crate::terminal::OnTerminal;

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

    fn json(&self) -> PathBuf {
        self.env.home().join(".claude.json")
    }

    /// setup in a mount namespace of its own, in which `mounts` were made first, by a shell. Returns its exit code and all it says.
    fn setup_with_mounts(&self, mounts: &str, words: &[&str]) -> Option<(i32, String)> {
        let mut unshare = self.env.command("unshare");
        unshare.arg(mount_namespace()?).args(["sh", "-ec", &format!("{mounts}; exec \"$@\""), "sh"]).arg(binary());
        unshare.args(["setup", "--shared-dir"]).arg(&self.shared).args(words);
        let ended = Running::start(unshare).end();
        Some((ended.code(), format!("{}\n{}", ended.stdout.join("\n"), ended.stderr_text())))
    }

    /// Both setup and its dry run refuse, for the reason `why`, and nothing is changed.
    #[track_caller]
    fn refuses(&self, words: &[&str], why: &str) {
        let look = || fs::read_dir(self.env.path("")).and_then(|_| fs::read_dir(self.env.home())).map(Iterator::count).ok();
        let before = look();
        for more in [&["--dry-run"][..], &["--yes"]] {
            let text = self.setup(&[words, more].concat(), 1);
            assert!(text.contains(why) && text.contains("nothing was changed"), "{why}: {text}");
            assert!(!text.contains("export CLAUDE_CONFIG_DIR"), "{text}");
            assert_eq!(look(), before, "{text}");
        }
    }

    /// Home of another user, with content, if we are root.
    fn of_another_user() -> Option<Self> {
        let place = crate::env::needs_root("the home is another user's").then(Self::on_one_file_system)?;
        place.fill();
        fs::set_permissions(place.env.path(""), Permissions::from_mode(0o755)).expect("a mode");
        place.hand_over();
        Some(place)
    }

    fn hand_over(&self) {
        let status = self.env.command("chown").args(["-hR", "65534:65534"]).arg(self.env.home()).status().expect("chown");
        assert!(status.success());
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
        all.retain(|path, _| !["", "session.lock", ".claude.json", "claude-run"].iter().any(|name| path == Path::new(name)));
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
        assert!(place.setup(&["--dry-run", "--json"], 0).contains(r#""done":false"#), "nothing was done");
        let text = place.setup(&[], 0);
        let shared = place.shared.display();
        for text in [dry, text] {
            assert!(text.contains(&format!("export CLAUDE_CONFIG_DIR={}", place.config_dir().display())), "{text}");
            assert!(
                text.contains(&format!("{shared}:{shared}")) && text.contains("compose") && text.contains("Nomad"),
                "{text}"
            );
        }
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
    let place = Place::on_one_file_system();
    place.fill();
    let before = place.content();
    let text = place.setup(&[], 0);
    assert!(text.contains("--yes does it") && !place.shared.exists(), "nobody was asked: {text}");
    place.setup(&["--dry-run"], 0);
    assert!(place.link().is_dir() && !place.link().is_symlink() && !place.shared.exists());
    let over = Arc::new(AtomicBool::new(false));
    let (file, is_over) = (place.link().join(".credentials.json"), Arc::clone(&over));
    let (reads, begun) = mpsc::channel();
    let reader = thread::spawn(move || {
        while !is_over.load(Ordering::Relaxed) {
            assert_eq!(fs::read_to_string(&file).expect("it is there at every moment"), "secret");
            let _ = reads.send(()); // only the first is waited for
        }
    });
    begun.recv().expect("a first read");
    fs::set_permissions(place.link(), Permissions::from_mode(0o755)).expect("a mode");
    let text = place.setup(&["--yes"], 0);
    assert!(text.contains("and leave a link, in one step\nset ") && text.contains("/config to mode 0700\n"), "{text}");
    assert_eq!(fs::metadata(place.config_dir()).expect("a directory").mode() & 0o777, 0o700);
    over.store(true, Ordering::Relaxed);
    reader.join().expect("a reader");
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

#[test]
fn conflict_changes_nothing_and_says_why() {
    type Make = fn(&Place);
    let cases: [(Make, &str); 7] = [
        (
            |place| {
                let other = place.env.home().join("other");
                symlink(&other, place.link()).and_then(|()| symlink(place.link(), other)).expect("two links that lead nowhere");
            },
            "is a link to ",
        ),
        (
            |place| {
                fs::create_dir_all(place.config_dir()).expect("a directory");
                fs::write(place.config_dir().join("theirs"), "x").expect("a file");
                fs::create_dir_all(place.link()).expect("a directory");
                fs::write(place.link().join("ours"), "x").expect("a file");
            },
            "both have content; to share ",
        ),
        (|place| symlink("/nonesuch", place.link()).expect("a link"), "is a link to /nonesuch"),
        (|place| symlink("/tmp", place.link()).expect("a link"), "is a link to /tmp"),
        (|place| fs::write(place.link(), "x").expect("a file"), "is no directory"),
        (|place| symlink("/nonesuch", place.env.home().join(".claude.json")).expect("a link"), "is no plain file"),
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
fn what_cannot_be_looked_at_is_not_taken_for_missing() {
    let place = Place::on_one_file_system();
    let long = place.env.path(&"a".repeat(300)).to_string_lossy().into_owned();
    place.refuses(&["--shared-dir", &long], "/config is no directory");
    assert!(place.setup(&["--dry-run", "--config-dir", "/x"], 125).contains("use --home or --shared-dir"));
    let try_with = |variable: &str, value: &OsStr, code: i32| {
        let mut command = place.command(&["--dry-run"]);
        command.env(variable, value);
        let ended = Running::start(command).end();
        assert_eq!(ended.code(), code, "{ended:?}");
        ended.stderr_text()
    };
    for (dir, said) in [(place.env.path("x"), 1), (place.link(), 0), (place.config_dir(), 0)] {
        let text = try_with("CLAUDE_CONFIG_DIR", dir.as_os_str(), 0);
        assert_eq!(text.matches("setup leaves that alone").count(), said, "{text}");
    }
    let with = |variable: &str, value: &OsStr| try_with(variable, value, 125);
    assert!(with("HOME", OsStr::new("")).contains("HOME is not set; name it with --home"));
    // What it prints of such a path would be another one, to the shell or to Compose.
    for path in [&b"/home/a\xff"[..], b"/home/a\nb"] {
        assert!(with("HOME", OsStr::from_bytes(path)).contains("name a plain path"), "{path:?}");
    }
    for path in [&b"/a\xff"[..], b"/a\nb", b"/a:b", b"/a\"b", b"/a$b", b"/a\\b", b"/a%{b"] {
        assert!(with("CLAUDE_SHARED_DIR", OsStr::from_bytes(path)).contains("name a plain path"), "{path:?}");
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
    let dir = if nix::unistd::geteuid().is_root() { place.shared.parent().expect("a parent") } else { &place.env.home() };
    let why = format!("{} is not writable by us (uid ", dir.display());
    assert_eq!(ended.stdout.join("").matches(&why).count(), 1, "{ended:?}");
    assert!(!place.link().is_symlink() && !place.shared.exists());
}

#[test]
fn empty_dir_gives_way_to_the_shared_one() {
    for place in Place::both() {
        fs::create_dir_all(place.config_dir()).expect("a directory");
        fs::write(place.config_dir().join("theirs"), "x").expect("a file");
        fs::set_permissions(place.config_dir(), Permissions::from_mode(0o755)).expect("a mode");
        fs::create_dir(place.link()).expect("a directory");
        place.setup(&[], 0);
        assert_eq!(fs::read_to_string(place.link().join("theirs")).expect("a file"), "x");
        assert_eq!(fs::metadata(place.config_dir()).expect("a directory").mode() & 0o777, 0o700);
        expect_tidy(&place);
    }
}

#[test]
fn live_run_or_refresh_blocks_the_move() {
    let place = Place::on_one_file_system();
    place.fill();
    let run = place.env.start_fake(&["--lock", "pass-through", "--label", "busy"], "ready; hang");
    run.ready();
    crate::env::wait_for_records(&place.link(), 1);
    let text = place.setup(&["--yes", "--wait", "0"], 1);
    assert!(text.contains("1 run is live there") && text.contains("busy (pid "), "{text}");
    assert!(!place.link().is_symlink());
    let other = place.env.start_fake(&["--lock", "pass-through"], "ready; hang");
    other.ready();
    crate::env::wait_for_records(&place.link(), 2);
    assert!(place.setup(&["--yes", "--wait", "0"], 1).contains("2 runs are live there"));
    drop(other);
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
    place.refuses(&[], "are both there");
    assert_eq!(fs::read_to_string(place.json()).expect("a file"), r#"{"mcpServers":{}}"#);
    fs::remove_file(place.link().join(".claude.json")).expect("one that nobody wants");
    place.setup(&["--yes"], 0);
    fs::remove_file(place.json()).expect("a link");
    fs::write(place.json(), "").expect("a file that claude has made since");
    place.refuses(&[], "are both there");
    assert_eq!(fs::read_to_string(place.config_dir().join(".claude.json")).expect("a file"), r#"{"mcpServers":{}}"#);
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
const CHANGES: [&str; 14] = [
    "?open", // by musl
    "openat",
    "write",
    "rename",
    "renameat2",
    "symlink",
    "mkdir",
    "rmdir",
    "unlink",
    "chmod",
    "fchmodat",
    "flock",
    "getdents64",
    "faccessat2",
];

/// True if strace works on this machine. In CI a test may not be skipped for that.
fn can_trace(env: &Env) -> bool {
    let can = env.command("strace").arg("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !can {
        assert!(std::env::var_os("CI").is_none(), "strace does not work here, where every test has to run");
        eprintln!("SKIPPED: strace does not work on this machine");
    }
    can
}

/// KILL at the first such call, at the second, … until it ends by itself: each time the old state stands or the new one, and the
/// next setup gets there, though an agent has been at work since.
#[test]
fn kill_at_any_system_call_loses_nothing() {
    let place = Place::on_one_file_system();
    if !can_trace(&place.env) {
        return;
    }
    let mut kills = 0;
    for call in CHANGES {
        for number in 1.. {
            assert!(number < 1_000, "{call} never ends");
            let place = Place::on_one_file_system();
            place.fill();
            let mut before = place.content();
            let mut strace = place.env.command("strace");
            strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={call}:signal=KILL:when={number}"), "-e"]);
            strace.arg(format!("trace={call}")).arg(binary()).args(["setup", "--yes", "--shared-dir"]).arg(&place.shared);
            let output = strace.output().expect("strace");
            let about = || format!("{call} {number}: {output:?}");
            assert_eq!(place.content(), before, "after {}", about());
            let json = fs::read_to_string(place.env.home().join(".claude.json"));
            assert_eq!(json.ok().as_deref(), Some(r#"{"mcpServers":{}}"#), "after {}", about());
            let was_whole = output.status.success();
            fs::write(place.link().join(".credentials.json"), format!("{call} {number}")).expect("a refreshed token");
            before = place.content();
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
fn other_file_system_needs_a_person() {
    let Some(place) = Place::on_two() else { return };
    place.fill();
    let before = place.content();
    let [old, older] = [".claude.json.old", ".claude.json.old2"].map(|name| place.env.home().join(name));
    fs::write(&old, "a backup").and_then(|()| symlink("nonesuch", older)).expect("files");
    place.refuses(&[], "are on two file systems; while no claude runs: mkdir -p ");
    let mut terminal = OnTerminal::sized(place.command(&["--dry-run"]), 80, 24);
    let line = terminal.shows("runs: mkdir -p ");
    assert!(line.contains(", and call setup again"), "a command stays one line: {line}");
    terminal.ends();
    let text = place.setup(&["--yes"], 1);
    // What it says is enough.
    let commands: Vec<_> = text.lines().filter_map(|line| line.split_once("runs: ")?.1.split_once(", and call")).collect();
    assert_eq!(commands.len(), 2, "{text}");
    for (command, _) in commands {
        let status = place.env.command("sh").args(["-ec", command]).status().expect("sh");
        assert!(status.success(), "{command}");
    }
    place.setup(&[], 0);
    assert_eq!(place.content(), before);
    assert_eq!(fs::read_to_string(place.config_dir().join(".claude.json")).expect("a file"), r#"{"mcpServers":{}}"#);
    assert_eq!(fs::read_link(place.json()).expect("a link"), place.config_dir().join(".claude.json"));
    assert!(place.link().with_file_name(".claude.old").is_dir() && place.json().with_file_name(".claude.json.old3").is_file());
    assert_eq!(fs::read_to_string(old).expect("a file"), "a backup");
}

#[test]
fn mount_point_on_the_way_is_refused_by_name() {
    let place = Place::on_one_file_system();
    place.fill();
    fs::create_dir_all(place.config_dir()).expect("a directory");
    for point in [place.link().join("projects"), place.link(), place.config_dir()] {
        let mount = format!("mount -t tmpfs tmpfs '{0}'; : >'{0}/precious'", point.display());
        let mount = if point == place.config_dir() { mount.replace("; :", "; test -e '") + "' || true" } else { mount };
        let Some((code, text)) = place.setup_with_mounts(&mount, &["--yes"]) else { return };
        assert!(code == 1 && text.contains(&format!("{} is a mount point", point.display())), "{code} {text}");
    }
    let mount = format!("mount --bind '{0}' '{0}'", place.json().display());
    let Some((code, text)) = place.setup_with_mounts(&mount, &["--dry-run"]) else { return };
    assert!(code == 1 && text.contains(".claude.json is a mount point"), "{code} {text}");
    assert!(!place.link().is_symlink() && place.link().join("twin").exists());
}

#[test]
fn unreadable_settings_files_are_not_equal() {
    let Some(place) = Place::of_another_user() else { return };
    fs::write(place.link().join(".claude.json"), "other").expect("a file");
    place.hand_over();
    for file in [place.json(), place.link().join(".claude.json")] {
        fs::set_permissions(file, Permissions::from_mode(0o000)).expect("a mode");
    }
    place.refuses(&[], "are both there");
    assert_eq!(fs::read_to_string(place.link().join(".claude.json")).expect("a file"), "other");
}

#[test]
fn link_that_would_dangle_is_refused_by_name() {
    let place = Place::on_one_file_system();
    place.fill();
    let link = place.link().join("projects/a/settings.json");
    for target in ["../../../dotfiles/x", "../../../.claude/twin", "../../link/../x", "/etc/../etc/passwd", "../.."] {
        let _ = fs::remove_file(&link);
        symlink(target, &link).expect("a link");
        if target == "../.." {
            place.setup(&["--dry-run"], 0);
        } else {
            place.refuses(&[], &format!("the link {} leads out of it, to {target}", link.display()));
        }
    }
    symlink("../secrets/login", place.link().join(".credentials.json.new")).expect("a link");
    place.refuses(&[], "../secrets/login");
}

#[test]
fn link_by_another_name_is_left_as_it_is() {
    let place = Place::on_one_file_system();
    place.fill();
    place.setup(&["--yes"], 0);
    fs::remove_file(place.link()).expect("a link");
    symlink("../shared/config", place.link()).expect("a link");
    assert!(place.setup(&["--yes"], 0).contains("nothing to do"));
    assert_eq!(fs::read_link(place.link()).expect("a link"), Path::new("../shared/config"));
    fs::remove_file(place.json()).expect("a link");
    symlink("../shared/config/.claude.json", place.json()).expect("a link");
    assert!(place.setup(&["--yes"], 0).contains("nothing to do"));
    // So is one that leads nowhere as yet, and a ~/.claude.json that is a link into the dir that is moved.
    for (content, target) in
        [(None, None), (None, Some(".claude")), (Some("{}"), Some(".claude")), (Some("{}"), Some("../alias"))]
    {
        let place = Place::on_one_file_system();
        symlink("home/.claude", place.env.path("alias")).expect("a link");
        match content {
            None => symlink("../shared/config", place.link()).expect("a link"),
            Some(text) => {
                fs::create_dir(place.link()).and_then(|()| fs::write(place.link().join(".claude.json"), text)).expect("a file")
            }
        }
        for base in [Path::new(""), &place.env.home()] {
            let Some(target) = target else { break };
            let _ = fs::remove_file(place.json()); // the one before
            symlink(base.join(target).join(".claude.json"), place.json()).expect("a link");
            place.setup(&["--yes"], 0);
            assert_eq!(fs::read_to_string(place.json()).ok().as_deref(), content);
        }
        place.setup(&["--yes"], 0);
        assert_eq!(fs::canonicalize(place.link()).expect("a link"), place.config_dir());
        assert!(place.setup(&["--yes"], 0).contains("nothing to do"));
    }
}

#[test]
fn shared_dir_inside_the_config_dir_is_refused() {
    let place = Place::on_one_file_system();
    place.fill();
    symlink(place.env.home(), place.env.path("alias")).expect("a link");
    symlink(place.link(), place.env.path("inside")).expect("a link");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    for shared in [text(&place.link()), text(&place.env.path("alias/.claude/x")), text(&place.env.path("inside/x/y"))] {
        place.refuses(&["--shared-dir", &shared], "lie within each other");
    }
    place.refuses(&["--home", &text(&place.env.path("alias")), "--shared-dir", &text(&place.env.home())], "lie within");
    let up = text(&place.env.path("home/../home/.claude/x"));
    place.refuses(&["--shared-dir", &up], "lie within each other");
    let up = text(&place.env.path("none/../home/.claude/x"));
    assert!(place.setup(&["--yes", "--shared-dir", &up], 125).contains("has `..` behind what is missing"));
    symlink(place.env.path("nonesuch"), place.env.path("dangling")).expect("a link");
    place.refuses(&["--shared-dir", &text(&place.env.path("dangling/x"))], "lies behind a link that leads nowhere");
    assert!(!place.link().is_symlink() && place.link().join("twin").exists());
    // One that is reached through ~/.claude, but lies elsewhere.
    fs::create_dir(&place.shared).expect("a directory");
    symlink(&place.shared, place.link().join("through")).expect("a link");
    symlink(place.link().join("through"), place.env.path("x")).expect("a link");
    place.setup(&["--yes", "--shared-dir", &text(&place.env.path("x"))], 0);
    assert_eq!(fs::canonicalize(place.link()).expect("no endless link"), place.config_dir());
}

#[test]
fn move_that_the_kernel_refuses_leaves_nothing() {
    let place = Place::on_one_file_system();
    place.fill();
    for dir in ["upper", "work", "merged"] {
        fs::create_dir(place.env.path(dir)).expect("a directory");
    }
    let [lower, upper, work, merged] = ["home", "upper", "work", "merged"].map(|name| place.env.path(name));
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let mount = format!("mount -t overlay overlay -o {options} '{0}' || exit 99; export HOME='{0}'", merged.display());
    let shared = merged.join("shared").to_string_lossy().into_owned();
    let Some((code, text)) = place.setup_with_mounts(&mount, &["--yes", "--shared-dir", &shared]) else { return };
    // To the root of a user namespace, / belongs to nobody.
    if code == 99 || text.contains("/ has owner 65534 ") {
        eprintln!("SKIPPED: no overlayfs that is ours on this machine: {text}");
        return;
    }
    assert!(code == 1 && text.contains("cp -aT ") && text.contains("goes on when called again"), "{code} {text}");
    assert!(!upper.join("shared/config").is_symlink() && place.link().join("twin").exists());
}

#[test]
fn second_setup_on_a_shared_dir_ends_at_once() {
    let place = Place::on_one_file_system();
    place.fill();
    fs::create_dir(&place.shared).expect("a directory");
    let mut first = place.env.command("flock");
    first.arg(&place.shared).args(["sh", "-c", "echo held; exec cat"]).stdin(Stdio::piped());
    let first = Running::start(first);
    first.expect_line("held");
    assert!(place.setup(&["--yes", "--wait", "none"], 1).contains("another setup is at work in "));
    drop(first);
    // Of many at once, one moves its content there, and all others keep theirs.
    let homes: Vec<_> = (0..8).map(|number| place.env.path(&format!("home{number}"))).collect();
    let start = |home: &PathBuf| {
        fs::create_dir_all(home.join(".claude")).expect("a home");
        fs::write(home.join(".claude/own"), home.to_string_lossy().as_ref()).expect("a file");
        let mut command = place.command(&["--yes"]);
        command.env("HOME", home);
        Running::start(command)
    };
    let setups: Vec<_> = homes.iter().map(start).collect();
    let codes: Vec<_> = setups.into_iter().map(|setup| setup.end().code()).collect();
    assert!(codes.iter().filter(|code| **code == 0).count() == 1, "{codes:?}");
    for home in homes {
        let own = fs::read_to_string(home.join(".claude/own")).expect("its own file");
        assert_eq!(own, home.to_string_lossy());
    }
}

#[test]
fn plan_is_made_again_once_nobody_else_is_at_work() {
    let place = Place::on_one_file_system();
    place.fill();
    let holder = place.env.hold_lock();
    let waiting = Running::start(place.command(&["--yes", "--wait", "1h"]));
    assert!(waiting.message().contains("waiting for "));
    let other = place.env.path("other");
    fs::create_dir_all(other.join(".claude/own")).expect("a home");
    place.setup(&["--yes", "--home", &other.to_string_lossy()], 0);
    drop(holder);
    let ended = waiting.end();
    assert!(ended.code() == 1 && ended.stdout.join("").contains("both have content"), "{ended:?}");
    assert!(place.link().join("twin").exists() && place.config_dir().join("own").is_dir());
    // What is done needs nothing that another setup has.
    let mut first = place.env.command("flock");
    first.arg(&place.shared).args(["sh", "-c", "echo held; exec cat"]).stdin(Stdio::piped());
    let first = Running::start(first);
    first.expect_line("held");
    assert!(place.setup(&["--home", &other.to_string_lossy()], 0).contains("nothing to do"));
}

#[test]
fn root_leaves_the_home_to_its_owner() {
    let Some(place) = Place::of_another_user() else { return };
    fs::create_dir(&place.shared).expect("a directory");
    place.refuses(&[], "is not writable by us (uid 65534)");
    fs::remove_dir(&place.shared).expect("a directory");
    let owned = place.env.path("");
    std::os::unix::fs::chown(owned, Some(65534), Some(65534)).expect("an owner");
    place.setup(&["--yes"], 0);
    for path in [place.link(), place.json(), place.shared.clone(), place.config_dir(), place.config_dir().join("session.lock")]
    {
        let found = fs::symlink_metadata(&path).expect("it is there");
        assert_eq!((found.uid(), found.gid()), (65534, 65534), "{}", path.display());
    }
    // What is done already is not refused.
    for mode in [0o555, 0o777] {
        fs::set_permissions(&place.shared, Permissions::from_mode(mode)).expect("a mode");
        assert!(place.setup(&["--yes"], 0).contains("nothing to do"));
    }
    // A directory of root with the sticky bit is as good as /tmp.
    let Some(place) = Place::of_another_user() else { return };
    fs::create_dir(place.env.path("sticky")).expect("a directory");
    fs::set_permissions(place.env.path("sticky"), Permissions::from_mode(0o1777)).expect("a mode");
    std::os::unix::fs::chown(place.env.path("home"), Some(65534), Some(65534)).expect("an owner");
    place.setup(&["--yes", "--shared-dir", &place.env.path("sticky/shared").to_string_lossy()], 0);
    // Root of a user namespace cannot become somebody who is not in it.
    let Some(place) = Place::of_another_user().filter(|_| can_unshare("-r")) else { return };
    let mut unshare = place.env.command("unshare");
    unshare.arg("-r").arg(binary()).args(["setup", "--yes", "--shared-dir"]).arg(&place.shared);
    let ended = Running::start(unshare).end();
    assert!(ended.code() == 125 && ended.stderr_text().contains("cannot become the owner of "), "{ended:?}");
}

#[test]
fn file_of_another_owner_is_refused() {
    let Some(place) = Place::of_another_user() else { return };
    std::os::unix::fs::chown(place.env.path(""), Some(65534), Some(65534)).expect("an owner");
    for file in [place.json(), place.link()] {
        std::os::unix::fs::chown(&file, Some(0), Some(0)).expect("an owner");
        place.refuses(&[], &format!("{} belongs to uid 0, and not to uid 65534", file.display()));
        std::os::unix::fs::chown(&file, Some(65534), Some(65534)).expect("an owner");
    }
}

#[test]
fn fifo_as_settings_file_is_not_opened() {
    let place = Place::on_one_file_system();
    place.fill();
    let mode = nix::sys::stat::Mode::S_IRWXU;
    nix::unistd::mkfifo(&place.link().join(".claude.json"), mode).expect("a FIFO");
    place.refuses(&[], "are both there");
    fs::remove_file(place.link().join(".claude.json")).expect("a FIFO");
    fs::remove_file(place.json()).expect("a file");
    nix::unistd::mkfifo(&place.json(), mode).expect("a FIFO");
    place.refuses(&[], ".claude.json is no plain file");
}

#[test]
fn env_file_is_looked_at_before_any_change() {
    let place = Place::on_one_file_system();
    place.fill();
    let file = place.env.path("agents.env");
    let name = file.to_string_lossy().into_owned();
    place.refuses(&["--env-file", &format!("{name}/none/x")], "No such file");
    symlink(place.env.path("nonesuch"), &file).expect("a link");
    place.refuses(&["--env-file", &name], "is a link");
    fs::remove_file(&file).expect("a link");
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    place.refuses(&["--env-file", &name], "it is no regular file");
    fs::remove_file(&file).expect("a FIFO");
    if nix::unistd::geteuid().is_root() {
        symlink(place.env.path("plain"), &file).expect("a link");
        fs::write(place.env.path("plain"), "").expect("a file");
        std::os::unix::fs::lchown(&file, Some(65534), None).expect("an owner");
        place.refuses(&["--env-file", &name], "is a link");
    }
    // Nor is anything done that would end at a file which cannot be replaced.
    let dir = place.env.path("dir");
    fs::create_dir(&dir).expect("a directory");
    let file = dir.join("agents.env");
    fs::write(&file, "A=1\n").expect("a file");
    let name = file.to_string_lossy().into_owned();
    let full = format!("mount -t tmpfs -o size=4k tmpfs '{0}'; echo >'{0}/full'", dir.display());
    for (mount, why) in [(format!("mount --bind '{name}' '{name}'"), "is a mount point"), (full, "cannot write ")] {
        for more in ["--yes", "--dry-run"] {
            let Some((code, text)) = place.setup_with_mounts(&mount, &["--env-file", &name, more]) else { break };
            assert!(code == 1 && text.contains(why) && text.contains("nothing was changed"), "{code} {text}");
        }
    }
    let chattr = |how: &str, path: &Path| {
        let mut chattr = place.env.command("chattr");
        chattr.arg(how).arg(path).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    for file in [&file, &place.json()] {
        if chattr("+i", file) {
            place.refuses(&["--env-file", &name], "is immutable, or append-only");
            assert!(chattr("-i", file));
        }
    }
    assert!(!place.link().is_symlink() && !place.shared.exists());
    // A settings file that leads to a device is not replaced, either.
    nix::unistd::mkfifo(&place.env.path("device"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    symlink(place.env.path("device"), place.link().join("claude-run.toml")).expect("a link");
    place.env.claude_run().args(["mode", "refresh"]).assert().code(125);
    assert!(!fs::metadata(place.env.path("device")).expect("it is there").is_file());
}

#[test]
fn killed_setup_goes_on_after_an_agent() {
    let place = Place::on_one_file_system();
    place.fill();
    fs::create_dir(&place.shared).expect("a directory");
    symlink(place.config_dir(), place.config_dir()).expect("what a move leaves that is killed before its rename");
    fs::write(place.link().join(".credentials.json"), "newer").expect("a refreshed token");
    let mut command = place.command(&["--yes"]);
    command.env("CLAUDE_CONFIG_DIR", place.config_dir()); // as in the containers that follow
    assert_eq!(Running::start(command).end().code(), 0);
    assert_eq!(fs::read_to_string(place.config_dir().join(".credentials.json")).expect("a file"), "newer");
    // The same for ~/.claude.json, which is moved last.
    let json = place.config_dir().join(".claude.json");
    fs::remove_file(place.json()).and_then(|()| fs::remove_file(&json)).expect("files");
    fs::write(place.json(), "newer").and_then(|()| symlink(&json, &json)).expect("files");
    place.setup(&[], 0);
    assert!(place.json().is_symlink());
    assert_eq!(fs::read_to_string(json).expect("a file"), "newer");
    // And where nothing is left to move.
    let place = Place::on_one_file_system();
    fs::create_dir(&place.shared).expect("a directory");
    symlink(place.config_dir(), place.config_dir()).expect("a link");
    place.setup(&[], 0);
    assert!(place.config_dir().is_dir() && place.link().join(".").is_dir());
}

#[test]
fn setup_keeps_its_lock_to_the_end() {
    let place = Place::on_one_file_system();
    if !can_trace(&place.env) {
        return;
    }
    place.fill();
    let mut strace = place.env.command("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=renameat2:delay_enter=3000000:when=1", "-e", "trace=renameat2"]);
    strace.arg(binary()).args(["setup", "--yes", "--shared-dir"]).arg(&place.shared);
    let first = Running::start(strace);
    crate::env::wait_until("it is at its move", || place.config_dir().is_symlink());
    let other = place.env.path("other").to_string_lossy().into_owned();
    fs::create_dir(&other).expect("a home");
    assert!(place.setup(&["--yes", "--home", &other], 1).contains("another setup is at work in "));
    assert_eq!(first.end().code(), 0);
}

#[test]
fn term_ends_the_wait_and_nothing_is_moved() {
    let place = Place::on_one_file_system();
    place.fill();
    let holder = place.env.hold_lock();
    let waiting = Running::start(place.command(&["--yes", "--wait", "none"]));
    assert!(waiting.message().contains("waiting for "));
    waiting.signal(Signal::SIGTERM);
    assert_eq!(waiting.end().code(), 143);
    drop(holder);
    let run = place.env.start_fake(&["--lock", "pass-through"], "ready; hang");
    run.ready();
    crate::env::wait_for_records(&place.link(), 1);
    let waiting = Running::start(place.command(&["--yes", "--wait", "none"]));
    crate::env::wait_until("it has the lock", || place.env.is_locked());
    waiting.signal(Signal::SIGTERM);
    assert_eq!(waiting.end().code(), 143);
    assert!(!place.link().is_symlink() && !place.shared.exists());
    drop(run);
    // So does it as PID 1 of a container, which has no default action.
    if !can_unshare("-rpf") {
        return;
    }
    let _holder = place.env.hold_lock();
    let mut unshare = place.env.command("unshare");
    unshare.args(["-rpf"]).arg(binary()).args(["setup", "--yes", "--wait", "none", "--shared-dir"]).arg(&place.shared);
    let waiting = Running::start(unshare);
    assert!(waiting.message().contains("waiting for "));
    let parent = waiting.pid();
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).expect("a process");
    kill(children.trim().parse().map(Pid::from_raw).expect("a child"), Signal::SIGTERM).expect("a signal");
    assert_eq!(waiting.end().code(), 143);
}

#[test]
fn shared_dir_of_others_is_refused() {
    let place = Place::on_one_file_system();
    place.fill();
    let before = place.content();
    fs::create_dir(&place.shared).expect("a directory");
    // One in which somebody else can replace it is as bad.
    for shared in [place.shared.clone(), place.shared.join("ours")] {
        fs::create_dir_all(&shared).expect("a directory");
        let words = ["--shared-dir", &shared.to_string_lossy()];
        for mode in [0o777, 0o775] {
            fs::set_permissions(&place.shared, Permissions::from_mode(mode)).expect("a mode");
            place.refuses(&words, &format!("and mode {mode:04o}: others could take the login away"));
        }
        fs::set_permissions(&place.shared, Permissions::from_mode(0o755)).expect("a mode");
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&place.shared, Some(1000), None).expect("an owner");
            place.refuses(&words, "has owner 1000 and ");
            std::os::unix::fs::chown(&place.shared, Some(0), None).expect("an owner");
        }
    }
    assert_eq!(place.content(), before);
    place.setup(&["--yes"], 0);
}

#[test]
fn env_file_that_is_a_link_or_of_others_is_refused() {
    let place = Place::on_one_file_system();
    let target = place.env.path("target");
    fs::write(&target, "A=1\n").expect("a file");
    let link = place.env.path("link");
    symlink(&target, &link).expect("a link");
    place.refuses(&["--env-file", &link.to_string_lossy()], "is a link");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&target, Some(1000), None).expect("an owner");
        place.refuses(&["--env-file", &target.to_string_lossy()], "belongs to uid 1000");
    }
    assert_eq!(fs::read_to_string(&target).expect("a file"), "A=1\n");
}
