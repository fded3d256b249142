//! `scripts/install.sh`: what it puts where, that it can be called again, and that it takes everything away.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::env::{Env, binary, needs_root};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/install.sh");

/// Calls the script with our binary and a prefix of the test's own.
fn install(env: &Env, words: &[&str]) -> Output {
    let mut script = env.command(SCRIPT);
    script.arg("--prefix").arg(env.path("prefix")).arg("--binary").arg(binary()).args(words);
    script.env("PATH", format!("{}:/usr/bin:/bin", env.path("prefix/bin").display()));
    script.output().expect("started")
}

fn succeeds(env: &Env, words: &[&str]) -> String {
    let output = install(env, words);
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success() && stderr.is_empty(), "{words:?}: {}: {stdout}{stderr}", output.status);
    stdout
}

fn refuses(env: &Env, words: &[&str]) -> String {
    let output = install(env, words);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every file and link below the prefix.
fn installed(env: &Env) -> Vec<String> {
    let mut find = env.command("find");
    let output = find.arg(env.path("prefix")).args(["-not", "-type", "d", "-printf", "%P %m\n"]).output().expect("find");
    let mut lines: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

const FILES: [&str; 6] = [
    "bin/claude-run 755",
    "share/bash-completion/completions/claude-run 644",
    "share/claude-run/agent-sdk.sh 644",
    "share/fish/vendor_completions.d/claude-run.fish 644",
    "share/man/man1/claude-run.1 644",
    "share/zsh/site-functions/_claude-run 644",
];

/// A real claude at `path`.
fn put_claude(env: &Env, path: &str) {
    env.script(path, "#!/bin/sh\necho the real one: \"$@\"\n");
}

#[test]
fn install_is_repeatable_and_uninstall_complete() {
    let env = Env::new();
    for _ in 0..2 {
        succeeds(&env, &[]);
        assert_eq!(installed(&env), FILES);
    }
    let version = env.command(env.path("prefix/bin/claude-run")).arg("--version").output().expect("started");
    assert!(version.stdout.starts_with(b"claude-run "));
    assert!(succeeds(&env, &["--uninstall"]).contains("removed"));
    assert_eq!(fs::read_dir(env.path("prefix")).expect("a directory").count(), 0);
    // An empty directory that is left may be somebody else's.
    fs::create_dir(env.path("prefix/bin")).expect("a directory");
    assert!(succeeds(&env, &["--uninstall"]).contains("there is nothing of"));
    assert!(env.path("prefix/bin").exists());
}

#[test]
fn shim_runs_the_real_claude_and_never_replaces_it() {
    let env = Env::new();
    put_claude(&env, "real/claude");
    let shim = env.path("shim");
    let shim = shim.to_str().expect("text");
    let text = succeeds(&env, &[&format!("--shim={shim}")]);
    assert!(text.contains(&format!("{shim} is not on PATH")) && text.contains("no other claude is on PATH"), "{text}");
    assert!(succeeds(&env, &["--shim"]).contains("prefix/bin/claude -> "));

    for path in [env.path("shim"), env.path("prefix/bin")] {
        let mut claude = env.command("claude");
        claude.env("PATH", format!("{}:{}:/usr/bin:/bin", path.display(), env.path("real").display()));
        let output = claude.args(["-p", "hi"]).output().expect("started");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "the real one: -p hi\n");
    }
    assert!(env.home().join(".claude/session.lock").exists());

    // So does the list of an editor that leaves the last line without an end.
    let list = env.path("prefix/share/claude-run/shims");
    let cut = || fs::read_to_string(&list).and_then(|text| fs::write(&list, text.trim_end())).expect("a list");
    cut();
    succeeds(&env, &[&format!("--shim={}", env.path("third").display())]);
    cut();
    succeeds(&env, &["--uninstall"]);
    for shim in ["shim/claude", "third/claude", "prefix/bin"] {
        assert!(!env.path(shim).is_symlink() && !env.path(shim).exists(), "{shim}");
    }
    // And one whose binary is gone, of a prefix with two names.
    std::os::unix::fs::symlink("prefix", env.path("alias")).expect("a link");
    succeeds(&env, &[&format!("--shim={shim}")]);
    fs::remove_dir_all(env.path("prefix/bin")).expect("removed");
    succeeds(&env, &["--uninstall", "--prefix", env.path("alias").to_str().expect("text")]);
    assert!(!env.path("shim/claude").is_symlink());
    succeeds(&env, &[&format!("--shim={shim}")]);

    // Somebody has put another there since: it is not ours to remove.
    fs::remove_file(env.path("shim/claude")).expect("removed");
    put_claude(&env, "shim/claude");
    let refused = refuses(&env, &[&format!("--shim={shim}")]);
    assert!(refused.contains("shim/claude is not a link of claude-run's, and is left alone"), "{refused}");
    succeeds(&env, &["--uninstall"]);
    assert!(env.path("shim/claude").exists() && !env.path("prefix/bin").exists());
}

#[test]
fn problems_with_path_are_reported() {
    let env = Env::new();
    put_claude(&env, "prefix/bin/claude-run");
    let elsewhere = env.path("elsewhere");
    let text = succeeds(&env, &["--prefix", elsewhere.to_str().expect("text")]);
    assert!(text.contains("elsewhere/bin is not on PATH; add it: export PATH="), "{text}");
    let mut script = env.command(SCRIPT);
    script.env("PATH", format!("{}:{}:/usr/bin:/bin", env.path("prefix/bin").display(), env.path("elsewhere/bin").display()));
    let output = script.arg("--prefix").arg(&elsewhere).arg("--binary").arg(binary()).output().expect("started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("another claude-run comes before it on PATH"), "{text}");
    // By another name it is on PATH, too. A bare name is a file here, and a CDPATH leads nowhere else.
    let mut script = env.command("scripts/install.sh");
    script.current_dir(env!("CARGO_MANIFEST_DIR")).env("CDPATH", env!("CARGO_MANIFEST_DIR"));
    script.env("PATH", format!("{}//:/usr/bin:/bin:", elsewhere.join("bin").display()));
    let output = script.arg("--binary").arg(binary()).arg("--prefix").arg(&elsewhere).output().expect("started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !text.contains("PATH"), "{output:?}");
    env.script("claude-run", "#!/bin/sh\nexit 1\n");
    let mut script = env.command(SCRIPT);
    script.current_dir(env.path("")).args(["--binary", "claude-run", "--prefix"]).arg(&elsewhere);
    let output = script.env("PATH", format!("{}:/usr/bin:/bin", elsewhere.join("bin").display())).output().expect("started");
    assert!(String::from_utf8_lossy(&output.stderr).contains("claude-run does not run here"), "{output:?}");
}

/// A relative CARGO_TARGET_DIR is in the caller's directory, as cargo has it.
#[test]
fn build_goes_where_the_caller_says() {
    let env = Env::new();
    let build = format!(
        "mkdir -p \"$CARGO_TARGET_DIR/host/release\" && cp '{}' \"$CARGO_TARGET_DIR/host/release\"",
        binary().display()
    );
    for (name, text) in [("cargo", build.as_str()), ("rustc", "echo host: host"), ("cc", "")] {
        env.script(&format!("tools/{name}"), &format!("#!/bin/sh\n{text}\n"));
    }
    let mut script = env.command(SCRIPT);
    script.current_dir(env.path("")).args(["--prefix", "prefix"]).env("CARGO_TARGET_DIR", "out");
    let path = format!("{}:/usr/bin:/bin", env.path("tools").display());
    let output = script.env("PATH", path).output().expect("started");
    assert!(output.status.success() && env.path("out/host/release/claude-run").exists(), "{output:?}");
}

/// Ended anywhere, it leaves nothing that `--uninstall` does not find.
#[test]
fn killed_install_is_uninstalled_whole() {
    for (signal, is_left) in [("TERM", false), ("KILL", true)] {
        let env = Env::new();
        let own = |command: &str| format!("#!/bin/sh\n{command}\nkill -{signal} $PPID\n");
        let program = env.script("program", &own("[ \"$1\" != --version ] || exit 0"));
        let ends = |words: &[&str]| assert!(!install(&env, words).status.success(), "{words:?}");
        ends(&["--binary", program.to_str().expect("text")]);
        let left = installed(&env).iter().filter(|line| line.contains(".claude-run-new.")).count();
        assert_eq!(left, usize::from(is_left), "{signal}: {:?}", installed(&env));
        env.script("prefix/bin/ln", &own("/bin/ln \"$@\""));
        ends(&["--shim"]);
        fs::remove_file(env.path("prefix/bin/ln")).expect("removed");
        fs::create_dir_all(env.path("prefix/bin")).expect("a directory");
        let kept = env.script("prefix/bin/claude-run.new.backup", "");
        succeeds(&env, &["--uninstall"]);
        assert!(kept.exists(), "its name is nobody's but its owner's");
        fs::remove_file(kept).and_then(|()| fs::remove_dir(env.path("prefix/bin"))).expect("nothing else in it");
        assert_eq!(fs::read_dir(env.path("prefix")).expect("a directory").count(), 0);
    }
}

#[test]
fn uninstall_removes_what_it_can_and_says_what_is_left() {
    if !needs_root("a directory of another user") {
        return;
    }
    let env = Env::new();
    let shims = env.path("shims");
    fs::create_dir(&shims).expect("a directory");
    succeeds(&env, &[&format!("--shim={}", shims.display())]);
    env.command("chown").args(["-R", "65534", "."]).status().expect("chown");
    std::os::unix::fs::chown(&shims, Some(0), Some(0)).expect("an owner");
    let mut uninstall = env.command("setpriv");
    uninstall.args(["--reuid", "65534", "--clear-groups", "sh", "-s", "--", "--uninstall", "--prefix"]).arg(env.path("prefix"));
    uninstall.stdin(fs::File::open(SCRIPT).expect("the script"));
    let output = uninstall.output().expect("started");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && stderr.contains("shims/claude") && stderr.contains("call this again"),
        "{stderr}"
    );
    assert_eq!(installed(&env).len(), 1, "the list of shims: {:?}", installed(&env));
    succeeds(&env, &["--uninstall"]);
    assert!(!shims.join("claude").exists() && installed(&env).is_empty());
    assert!(succeeds(&env, &["--uninstall"]).contains("there is nothing of claude-run's"));
}

#[test]
fn bad_prefix_or_binary_changes_nothing() {
    let env = Env::new();
    fs::write(env.path("prefix"), "a file").expect("a file");
    assert!(refuses(&env, &[]).contains("cannot write"));
    fs::remove_file(env.path("prefix")).expect("removed");
    assert!(refuses(&env, &["--binary", "/nonesuch"]).contains("/nonesuch is no program"));
    assert!(refuses(&env, &["--prefox"]).contains("unknown argument --prefox"));
    assert!(!env.path("prefix").exists());
}

#[test]
fn exit_code_tells_whether_anything_was_changed() {
    let env = Env::new();
    let tools = env.path("tools");
    for code in [1, 2, 77, 101] {
        for (name, text) in [("cargo", format!("exit {code}")), ("cc", String::new())] {
            env.script(&format!("tools/{name}"), &format!("#!/bin/sh\n{text}\n"));
        }
        let mut script = env.command(SCRIPT);
        script.arg("--prefix").arg(env.path("prefix")).env("PATH", format!("{}:/usr/bin:/bin", tools.display()));
        let output = script.output().expect("started");
        assert_eq!((output.status.code(), env.path("prefix").exists()), (Some(2), false), "{code}: {output:?}");
    }
    for code in [1, 2, 77, 101] {
        let program = env.script("b", &format!("#!/bin/sh\n[ \"$1\" = --version ] || exit {code}\n"));
        let output = install(&env, &["--binary", &program.to_string_lossy()]);
        assert_eq!((output.status.code(), installed(&env)), (Some(1), vec![FILES[0].to_owned()]), "{code}: {output:?}");
    }
}

/// mv(1) would put the file into it.
#[test]
fn directory_in_the_place_of_a_file_changes_nothing() {
    let files = FILES.iter().filter_map(|line| line.split(' ').next());
    for name in files.chain(["bin/claude", "share/claude-run/shims"]) {
        let env = Env::new();
        let directory = env.path("prefix").join(name);
        fs::create_dir_all(&directory).expect("a directory");
        let refused = refuses(&env, &["--shim"]);
        assert!(refused.contains(&format!("{name} is ")), "{name}: {refused}");
        // Nothing else, neither file nor directory.
        let find = env.command("find").args(["prefix", "-depth"]).output().expect("find");
        let found = String::from_utf8_lossy(&find.stdout).into_owned();
        let expected: Vec<_> = Path::new("prefix").join(name).ancestors().map(|path| path.display().to_string()).collect();
        assert_eq!(found.lines().collect::<Vec<_>>(), expected[..expected.len() - 1]);
        assert!(succeeds(&env, &["--uninstall"]).contains("there is nothing of"));
        assert!(directory.exists(), "it is not ours to remove");
    }
}

/// The list of shims has one a line, and what it does not name stays behind.
#[test]
fn newline_in_a_directory_is_refused() {
    let env = Env::new();
    for words in [["--prefix=new\nline", "--shim"], ["--prefix=line\n", "--shim"], ["--shim=new\nline", "--shim=new\nline"]] {
        assert!(refuses(&env, &words).contains("there is a newline in "), "{words:?}");
    }
    assert_eq!(fs::read_dir(env.path("")).expect("a directory").count(), 1, "home alone");
}

#[test]
fn every_script_says_what_it_does_and_does_nothing() {
    let scripts = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let env = Env::new();
    // Without tools it could do nothing but say so.
    let tools = env.path("tools");
    std::fs::create_dir(&tools).expect("a directory");
    for tool in ["bash", "sed", "dirname", "env", "id", "realpath"] {
        let path =
            [format!("/usr/bin/{tool}"), format!("/bin/{tool}")].into_iter().find(|path| std::path::Path::new(path).exists());
        std::os::unix::fs::symlink(path.expect("a tool"), tools.join(tool)).expect("a link");
    }
    for entry in std::fs::read_dir(scripts).expect("scripts").flatten() {
        let path = entry.path();
        let name = entry.file_name().into_string().expect("a name");
        if !name.ends_with(".sh") || name == "lib.sh" {
            continue;
        }
        for word in ["--help", "-h"] {
            let mut script = env.command("bash");
            let output = script.env("PATH", &tools).arg(&path).arg(word).output().expect("started");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && output.stderr.is_empty(), "{name} {word}: {output:?}");
            assert!(text.lines().count() > 2 && text.contains(&name) && !text.contains("set -e"), "{name} {word}: {text}");
        }
    }
}

#[test]
fn missing_tools_are_listed_before_any_is_installed() {
    let env = Env::new();
    // Nothing is there but what the script itself needs, and an installer that would leave a trace.
    for (name, text) in [("cargo", "exit 0"), ("apt-get", "touch installed"), ("sudo", "touch installed")] {
        env.script(&format!("tools/{name}"), &format!("#!/bin/bash\n{text}\n"));
    }
    for tool in ["bash", "dirname", "env", "sed", "touch", "realpath"] {
        std::os::unix::fs::symlink(format!("/usr/bin/{tool}"), env.path("tools").join(tool)).expect("a link");
    }
    let mut script = env.command("/bin/bash");
    script.env("PATH", env.path("tools")).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/test.sh")).arg("--check-tools");
    let output = script.output().expect("started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text.contains("shellcheck (for shellcheck)\n") && text.contains("less (for less)\n"), "{output:?}");
    assert!(!env.path("installed").exists());
}

/// Those that build say what is missing, rather than nothing.
#[test]
fn scripts_without_a_toolchain_say_so() {
    let env = Env::new();
    for tool in ["bash", "dirname", "env", "sed"] {
        fs::create_dir_all(env.path("tools")).expect("a directory");
        std::os::unix::fs::symlink(format!("/usr/bin/{tool}"), env.path("tools").join(tool)).expect("a link");
    }
    for name in ["quickstart", "test", "package"] {
        let mut script = env.command("/bin/bash");
        script.env("PATH", env.path("tools")).arg(format!("{}/scripts/{name}.sh", env!("CARGO_MANIFEST_DIR")));
        let output = script.output().expect("started");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("there is no cargo; install a Rust toolchain"), "{output:?}");
    }
}

#[test]
fn tag_is_put_only_where_packages_were_made() {
    let env = Env::new();
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::create_dir_all(env.path("scripts")).expect("a directory");
    fs::create_dir_all(env.path("target/package")).expect("a directory");
    for script in ["package.sh", "lib.sh"] {
        env.copy_of(top.join("scripts").join(script), &format!("scripts/{script}"));
    }
    let write = |name: &str, text: &str| fs::write(env.path(name), text).expect("a file");
    write(".gitignore", "/target\n/home\n/tools\n");
    write("Cargo.toml", "[package]\nname = \"x\"\nversion = \"1.2.3\"\n\n[dependencies]\nversion = \"9\"\n");
    write("CHANGELOG.md", "# Changelog\n\n## [1.2.3] - unreleased\n\n- new\n\n## [1.2.2] - 2026-01-01\n\n- old\n");
    env.script("tools/cargo", "#!/bin/sh\n");
    let run = |program: &str, words: &[&str]| {
        let mut command = env.command(program);
        command.env("PATH", format!("{}:/usr/bin:/bin", env.path("tools").display())).args(words);
        command.env("CDPATH", env.path("")); // which leads the scripts nowhere else
        let output = command.output().expect("started");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code() == Some(0), text.trim_end().to_owned())
    };
    let git = |words: &[&str]| {
        let (is_well, text) = run("git", &[&["-c", "init.defaultBranch=main"], words].concat());
        assert!(is_well, "{words:?}: {text}");
        text
    };
    let commit = || git(&["add", "-A"]) + &git(&["commit", "-qm", "x"]) + &git(&["rev-parse", "HEAD"]);
    let refused = |why: &str| {
        let (is_well, text) = run("scripts/package.sh", &["--tag"]);
        assert!(!is_well && text.contains(why), "{why}: {text}");
    };
    git(&["init", "-q"]);
    git(&["config", "user.name", "x"]);
    git(&["config", "user.email", "x@example.invalid"]);
    refused("changes that are not committed");
    commit();
    refused("no dated section of 1.2.3");
    write("CHANGELOG.md", "# Changelog\n\n## [1.2.3] - 2026-11-26\n\n### Added\n\n- new\n\n## [1.2.2] - 2026-01-01\n\n- old\n");
    let head = commit();
    refused("no packages of this commit");
    write("target/package/COMMIT", &format!("{head}\n"));
    write("target/package/claude-run-1", "content\n");
    let (_, sums) = run("sh", &["-c", "cd ./target/package && sha256sum claude-run-1 | tee SHA256SUMS"]);
    write("target/package/claude-run-1", "other content\n");
    refused("no packages of this commit");
    write("target/package/claude-run-1", "content\n");
    assert_eq!(git(&["tag"]), "");
    for said in ["git push origin v1.2.3", "is there already"] {
        let (is_well, text) = run("scripts/package.sh", &["--tag"]);
        assert!(is_well && text.contains(said), "{said}: {text}");
        let message = git(&["for-each-ref", "--format=%(objecttype) %(contents)", "refs/tags/v1.2.3"]);
        assert_eq!(message, format!("tag claude-run 1.2.3\n\n### Added\n\n- new\n\n{sums}"));
    }
    write("more", "");
    write("target/package/COMMIT", &format!("{}\n", commit()));
    refused("v1.2.3 is at another commit");
}
