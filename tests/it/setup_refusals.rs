//! What setup refuses, before it changes anything.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::env::{Running, binary};
use crate::setup::Place;

#[test]
fn conflict_changes_nothing_and_says_why() {
    type Make = fn(&Place);
    let cases: [(Make, &str); 8] = [
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
        (|place| fs::write(&place.shared, "x").expect("a file"), "/shared is no directory"),
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
    place.refuses(&["--shared-dir", &long], "/config cannot be looked at: File name too long");
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
fn mount_point_on_the_way_is_refused_by_name() {
    let place = Place::on_one_file_system();
    place.fill();
    fs::create_dir_all(place.config_dir()).expect("a directory");
    for point in [place.link().join("projects"), place.link(), place.config_dir()] {
        let mount = format!("mount -t tmpfs tmpfs '{0}'; : >'{0}/precious'", point.display());
        let mount = if point == place.config_dir() { mount.replace("; :", "; test -e '") + "' || true" } else { mount };
        let Some((code, text)) = place.setup_with_mounts(&mount, &["--yes"]) else { return };
        assert!(code == 1 && text.contains(&format!("{} is a mount point", point.display())), "{code} {text}");
        assert!(point == place.config_dir() || !text.contains("mv -T"), "a mount point cannot be renamed: {text}");
    }
    let Some((code, text)) = place.setup_with_mounts("mount -t tmpfs tmpfs /proc", &["--yes"]) else { return };
    assert!(code == 1 && text.contains("cannot be told") && !text.contains("are on two"), "{code} {text}");
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
    assert!(code == 1 && text.contains("cp -aT ") && text.contains("; nothing was changed"), "{code} {text}");
    assert!(!upper.join("shared/config").is_symlink() && place.link().join("twin").exists());
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
fn env_file_is_none_of_claudes_files() {
    for is_set_up in [false, true] {
        let place = Place::on_one_file_system();
        place.fill();
        if is_set_up {
            place.setup(&["--yes"], 0);
        }
        let before = place.content();
        let in_link = place.link().join("agents.env");
        for file in [place.json(), in_link, place.config_dir().join(".claude.json"), place.config_dir().join("settings.json")] {
            for more in ["--yes", "--dry-run"] {
                let text = place.setup(&["--env-file", &file.to_string_lossy(), more], 1);
                assert!(text.contains("name another env file") && text.contains("nothing was changed"), "{text}");
            }
            assert_eq!(place.content(), before, "{}", file.display());
        }
    }
}

#[test]
fn env_file_is_looked_at_before_any_change() {
    let mut place = Place::on_one_file_system();
    place.fill();
    let file = place.env.path("agents.env");
    let name = file.to_string_lossy().into_owned();
    place.refuses(&["--env-file", &format!("{name}/none/x")], "/none is no directory; make it first");
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
    for file in [&file, &place.json()] {
        if let Some(_fixed) = Immutable::make(file) {
            place.refuses(&["--env-file", &name], "is immutable, or append-only");
        }
    }
    assert!(!place.link().is_symlink() && !place.shared.exists());
    // A file system without room for a directory.
    let dir = place.env.path("full");
    fs::create_dir(&dir).and_then(|()| fs::remove_dir_all(place.link())).expect("directories");
    fs::remove_file(place.json()).expect("a file");
    place.shared = dir.join("shared");
    let mount = format!("mount -t tmpfs -o nr_inodes=1 tmpfs '{}'", dir.display());
    if let Some((code, text)) = place.setup_with_mounts(&mount, &["--yes"]) {
        assert!(code == 125 && text.contains(&format!("cannot make {}", place.shared.display())), "{code} {text}");
    }
    fs::create_dir(place.link()).expect("a directory");
    // A settings file that leads to a device is not replaced, either.
    nix::unistd::mkfifo(&place.env.path("device"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    symlink(place.env.path("device"), place.link().join("claude-run.toml")).expect("a link");
    place.env.claude_run().args(["mode", "refresh"]).assert().code(125);
    assert!(!fs::metadata(place.env.path("device")).expect("it is there").is_file());
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
        for mode in [0o777, 0o757] {
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
    // The mode does not show a user in the ACL: u::rwx, u:65534:rwx, g::r-x, m::rwx, o::r-x
    let mut acl = vec![2, 0, 0, 0];
    for (tag, bits, id) in [(1, 7, u32::MAX), (2, 7, 65534), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)] {
        acl.extend([u16::to_le_bytes(tag), u16::to_le_bytes(bits)].concat());
        acl.extend(u32::to_le_bytes(id));
    }
    let name = "system.posix_acl_access";
    if rustix::fs::setxattr(&place.shared, name, &acl, rustix::fs::XattrFlags::empty()).is_ok() {
        place.refuses(&[], "has an ACL by which uid 65534 can write it: others could take the login away");
        rustix::fs::removexattr(&place.shared, name).expect("an ACL");
    }
    assert_eq!(place.content(), before);
    place.setup(&["--yes"], 0);
    // What setup makes itself is nobody else's, whatever the umask.
    let place = Place::on_one_file_system();
    let shared = place.shared.join("a/b").to_string_lossy().into_owned();
    let mut command = place.env.command("sh");
    command.args(["-c", "umask 0; exec \"$0\" setup --yes --shared-dir \"$1\""]).arg(binary()).arg(&shared);
    let ended = Running::start(command).end();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert_eq!(fs::metadata(&place.shared).expect("a directory").permissions().mode() & 0o7777, 0o755);
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

/// A file that nobody can change or remove, whatever becomes of the test, as long as this lives.
struct Immutable<'a>(&'a Path);

impl<'a> Immutable<'a> {
    fn make(file: &'a Path) -> Option<Self> {
        chattr("+i", file).then_some(Self(file))
    }
}

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        assert!(chattr("-i", self.0));
    }
}

fn chattr(how: &str, path: &Path) -> bool {
    Command::new("chattr").arg(how).arg(path).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
