//! `claude-run setup`: a shared config dir, made or moved to; nothing is lost, whenever it is killed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tempfile::TempDir;

use crate::env::{Env, Running, binary, can_unshare};
use crate::oauth::mount_namespace;
use crate::terminal::OnTerminal;

/// Home and shared dir, on one file system or on two.
pub(crate) struct Place {
    pub(crate) env: Env,
    pub(crate) shared: PathBuf,
    _elsewhere: Option<TempDir>,
}

impl Place {
    pub(crate) fn on_one_file_system() -> Self {
        let env = Env::new();
        Self { shared: env.path("shared"), env, _elsewhere: None }
    }

    /// Places home and shared dir on two file systems, if there are two.
    pub(crate) fn on_two() -> Option<Self> {
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

    pub(crate) fn both() -> impl Iterator<Item = Self> {
        [Some(Self::on_one_file_system()), Self::on_two()].into_iter().flatten()
    }

    pub(crate) fn json(&self) -> PathBuf {
        self.env.home().join(".claude.json")
    }

    /// setup in a mount namespace of its own, in which `mounts` were made first, by a shell. Returns its exit code and all it says.
    pub(crate) fn setup_with_mounts(&self, mounts: &str, words: &[&str]) -> Option<(i32, String)> {
        let mut unshare = self.env.command("unshare");
        unshare.arg(mount_namespace()?).args(["sh", "-ec", &format!("{mounts}; exec \"$@\""), "sh"]).arg(binary());
        unshare.args(["setup", "--shared-dir"]).arg(&self.shared).args(words);
        let ended = Running::start(unshare).end();
        Some((ended.code(), format!("{}\n{}", ended.stdout.join("\n"), ended.stderr_text())))
    }

    /// Both setup and its dry run refuse, for the reason `why`, and nothing is changed.
    #[track_caller]
    pub(crate) fn refuses(&self, words: &[&str], why: &str) {
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
    pub(crate) fn of_another_user() -> Option<Self> {
        let place = crate::env::needs_root("the home is another user's").then(Self::on_one_file_system)?;
        place.fill();
        fs::set_permissions(place.env.path(""), Permissions::from_mode(0o755)).expect("a mode");
        place.hand_over();
        Some(place)
    }

    pub(crate) fn hand_over(&self) {
        let status = self.env.command("chown").args(["-hR", "65534:65534"]).arg(self.env.home()).status().expect("chown");
        assert!(status.success());
    }

    pub(crate) fn link(&self) -> PathBuf {
        self.env.home().join(".claude")
    }

    pub(crate) fn config_dir(&self) -> PathBuf {
        self.shared.join("config")
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.env.command(binary());
        command.env("CLAUDE_SHARED_DIR", &self.shared).arg("setup").args(words);
        command
    }

    #[track_caller]
    pub(crate) fn setup(&self, words: &[&str], code: i32) -> String {
        let output = self.command(words).output().expect("claude-run");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        text
    }

    /// Content of every kind.
    pub(crate) fn fill(&self) {
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
    pub(crate) fn content(&self) -> BTreeMap<PathBuf, String> {
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
pub(crate) fn expect_tidy(place: &Place) {
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
        assert!(place.setup(&["--dry-run", "--json"], 0).contains(r#""done":true"#), "nothing is left");
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
    // What a killed one has left, with all that is in the file, goes though there is nothing to write.
    let copy = place.env.path(".agents.env.abc123.claude-run-copy");
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    File::create(&copy).and_then(|copy| copy.set_modified(hour_ago)).expect("a copy");
    place.setup(&[words[0], words[1], "--dry-run"], 0);
    assert!(copy.exists(), "a dry run changes nothing");
    assert!(place.setup(&words, 0).contains("nothing to do"));
    assert!(!copy.exists());
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
    // In a container, the shared dir may have another path.
    fs::create_dir(place.env.path("alias")).expect("a directory");
    fs::remove_file(place.link()).and_then(|()| symlink("../alias/config", place.link())).expect("a link");
    let mount = format!("mount --bind '{}' '{}'", place.shared.display(), place.env.path("alias").display());
    let text = place.setup_with_mounts(&mount, &["--yes"]);
    assert!(text.is_none_or(|(code, text)| code == 0 && text.contains("nothing to do")));
    // A ~/.claude.json that leads there is right before ~/.claude does.
    fs::remove_file(place.link()).expect("a link");
    place.setup(&["--yes"], 0);
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
    // Nobody else becomes the owner.
    let mut other = place.env.command("setpriv");
    other
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups"])
        .arg(binary())
        .args(["setup", "--dry-run", "--shared-dir"])
        .arg(place.env.path("sticky/shared"));
    let ended = Running::start(other).end();
    assert!(ended.code() == 1 && ended.stdout.join("").contains("is not writable by us (uid 1000)"), "{ended:?}");
    place.setup(&["--yes", "--shared-dir", &place.env.path("sticky/shared").to_string_lossy()], 0);
    // Root of a user namespace cannot become somebody who is not in it.
    let Some(place) = Place::of_another_user().filter(|_| can_unshare("-r")) else { return };
    let mut unshare = place.env.command("unshare");
    unshare.arg("-r").arg(binary()).args(["setup", "--yes", "--shared-dir"]).arg(&place.shared);
    let ended = Running::start(unshare).end();
    assert!(ended.code() == 125 && ended.stderr_text().contains("cannot become the owner of "), "{ended:?}");
}
