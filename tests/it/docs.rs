//! The documents say what the code does: every option, variable and exit code stands in the guide, and every command in README
//! and guide runs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use claude_run::config::options::{OPTIONS, OptionSpec, VERBOSITY};
use claude_run::guide::TOPICS;

use crate::env::{Env, binary};

const README: &str = include_str!("../../README.md");
const PROMISES: &str = include_str!("../README.md");
const SCRIPTS: &str = include_str!("../../scripts/README.md");

/// The chapter of the guide on `topic`.
fn chapter(topic: &str) -> &'static str {
    TOPICS.iter().find(|(name, _)| *name == topic).expect("a chapter").1
}

/// The whole guide.
fn guide() -> String {
    TOPICS.iter().map(|(_, text)| *text).collect()
}

#[test]
fn readme_is_short_and_links_files_that_exist() {
    assert!(README.lines().count() <= 200 && README.len() <= 16 << 10, "{} lines", README.lines().count());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = [("", README), ("tests/", PROMISES), ("scripts/", SCRIPTS)];
    for (dir, text) in pages.into_iter().chain(TOPICS.iter().map(|(_, text)| ("src/guide/", *text))) {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            assert!(link.starts_with("https://") || root.join(dir).join(path).exists(), "{dir}: {link}");
        }
    }
    let files = fs::read_dir(root.join("src/guide")).expect("the guide").flatten();
    let chapters = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "md")).count();
    assert_eq!(chapters, TOPICS.len(), "each chapter has a topic");
}

#[test]
fn guide_has_every_option_and_variable() {
    let options_chapter = chapter("options");
    for OptionSpec { name: flag, variable, .. } in OPTIONS {
        assert!(options_chapter.contains(&format!("`--{flag}")), "--{flag}");
        assert!(options_chapter.contains(&format!("`{variable}`")), "{variable}");
    }
    assert!(options_chapter.contains(VERBOSITY.variable));
}

#[test]
fn readme_and_guide_have_every_exit_code() {
    for code in ["65", "69", "74", "75", "124", "125", "126", "127", "128+N"] {
        assert!(chapter("options").contains(&format!("| {code} |")), "{code}");
        assert!(README.contains(&format!("| {code} |")), "{code}");
    }
}

#[test]
fn guide_has_every_operation_event_and_field() {
    let guide = guide();
    let operations =
        ["status", "mode", "slots", "settings", "report", "doctor", "setup", "events", "redact", "completions", "man-page"];
    let events = "lock.acquiring lock.waiting lock.acquired lock.timeout lock.interrupted lock.unneeded lock.released lock.helper lock.lost refresh.unclear refresh.waiting refresh.waited refresh.stuck \
                  refresh.spared refresh.cut refresh.first slot.waiting slot.acquired slot.released slot.timeout slot.unneeded run.started run.state run.result run.limit run.stopping run.ended";
    let fields = "run label version state waits_for slot since began mode hold host boot pid_namespace pid child program cwd lock config_dir parent \
                  lock_key holders stopped processes command queue waiting waiting_without_record running orphaned slots refresh_locks auth token last trouble age_ms";
    for operation in operations {
        assert!(guide.contains(&format!("claude-run {operation}")), "{operation}");
    }
    for name in events.split(' ').chain(fields.split_whitespace()) {
        assert!(guide.contains(&format!("`{name}`")), "{name}");
    }
}

/// The names of all tests, as `file::name` or `path::of::module`.
fn tests(dir: &Path, names: &mut Vec<String>) {
    for entry in fs::read_dir(dir).expect("sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            tests(&path, names);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        let file = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let lines: Vec<_> = text.lines().collect();
        for pair in lines.windows(2).filter(|pair| pair[0].trim() == "#[test]") {
            let name = pair[1].trim().trim_start_matches("fn ").split('(').next().unwrap_or_default();
            names.push(format!("{file}::{name}"));
        }
    }
}

#[test]
fn promises_name_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = Vec::new();
    tests(&root.join("tests/it"), &mut known);
    let table = PROMISES.split("\n## ").next().expect("the table");
    let named: Vec<_> = table.split('`').skip(1).step_by(2).collect();
    let mut count = 0;
    for name in named.into_iter().filter(|name| name.contains("::") && !name.starts_with("lib ")) {
        assert!(known.iter().any(|test| test == name), "{name}");
        count += 1;
    }
    assert!(count > 50, "{count}");
    // Of the unit tests, a module or a name.
    let mut units = Vec::new();
    tests(&root.join("src"), &mut units);
    let marked = table.replace("lib `", "`lib ");
    for name in marked.split("`lib ").skip(1).filter_map(|rest| rest.split('`').next()) {
        let module = root.join("src").join(name.replace("::", "/"));
        let is_there = module.is_dir() || module.with_extension("rs").is_file();
        assert!(is_there || units.iter().any(|test| test.ends_with(&format!("::{name}"))), "{name}");
    }
    for path in ["tests/library", "tests/model"] {
        assert!(table.contains(path) && root.join(path).is_dir(), "{path}");
    }
}

#[test]
fn page_of_scripts_has_every_script() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    for entry in fs::read_dir(scripts).expect("scripts").flatten() {
        let name = entry.file_name().into_string().expect("a name");
        assert!(!name.ends_with(".sh") || name == "lib.sh" || SCRIPTS.contains(&format!("scripts/{name}")), "{name}");
    }
}

/// The fenced blocks of README and guide that are marked as `kind`.
pub(crate) fn blocks(kind: &str) -> Vec<&'static str> {
    let fence = format!("\n```{kind}\n");
    let pages = [README].into_iter().chain(TOPICS.iter().map(|(_, text)| *text));
    let blocks = pages.flat_map(|text| text.split(fence.as_str()).skip(1).filter_map(|rest| rest.split("\n```").next()));
    blocks.collect()
}

/// Machine that they assume: claude-run and a claude on PATH, a login.
pub(crate) fn machine() -> Env {
    let env = Env::new();
    let claude = r#"#!/bin/sh
case $* in
  --version) echo "2.1.330 (Claude Code)" ;;
  *json*) echo '{"type":"result","subtype":"success","is_error":false,"result":"hi"}' ;;
  *) echo hi ;;
esac
"#;
    env.script("bin/claude", claude);
    env.script("bin/etcdctl", "#!/bin/sh\necho key\nexec sleep 600\n");
    env.script("bin/dsh", "#!/bin/sh\necho hi\n");
    env.script("nightly.sh", "#!/bin/sh\n");
    symlink(binary(), env.path("bin/claude-run")).expect("a link");
    symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts"), env.path("scripts")).expect("a link");
    let login = r#"{"claudeAiOauth":{"accessToken":"a","refreshToken":"r","expiresAt":4102444800000,"scopes":[]}}"#;
    for config_dir in ["home/.claude", "srv/claude/config"] {
        let file = env.path(config_dir).join(".credentials.json");
        fs::create_dir_all(env.path(config_dir)).expect("a directory");
        fs::write(&file, login).expect("a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a mode");
        fs::set_permissions(env.path(config_dir), fs::Permissions::from_mode(0o700)).expect("a mode");
    }
    env
}

/// Runs `script` there, where /srv and /usr/local are the test's own.
pub(crate) fn runs(env: &Env, script: &str) {
    let here = |path: &str| env.path(path).display().to_string();
    let script =
        script.replace("/srv/claude", &here("srv/claude")).replace("/usr/local/bin/claude-run", &here("bin/claude-run"));
    let mut bash = env.command("timeout");
    bash.env("PATH", format!("{}:/usr/bin:/bin", here("bin"))).args(["60", "bash", "-euo", "pipefail", "-c", &script]);
    let output = bash.output().expect("started");
    assert!(output.status.success(), "{script}\n{output:?}");
}

#[test]
fn commands_in_readme_and_guide_run() {
    let mut count = 0;
    for block in blocks("sh") {
        let mut script = String::new();
        for line in block.lines() {
            // What makes the binary and the packages is run by scripts/test.sh, which these tests are a part of; the rest of
            // them by `install`.
            if ["quickstart", "test", "package", "install"].iter().any(|name| line.starts_with(&format!("scripts/{name}.sh"))) {
                continue;
            }
            count += 1;
            let has_no_end = line.contains("--watch") || line.contains("--follow");
            let command = line.split("  #").next().unwrap_or_default();
            script += &if has_no_end { format!("timeout 1 {command} || [ $? = 124 ]\n") } else { format!("{line}\n") };
        }
        runs(&machine(), &script);
    }
    assert!(count > 30, "{count}");
}

#[test]
fn settings_file_of_the_guide_is_read() {
    let env = machine();
    let [settings] = blocks("toml")[..] else { panic!("one block of settings") };
    fs::write(env.home().join(".claude/claude-run.toml"), settings).expect("a file");
    runs(&env, "claude-run settings");
}
