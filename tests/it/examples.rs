//! The files of scripts/examples: other programs' own parsers read them, what they start runs, and the guide shows them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, str};

use serde_json::Value;

use crate::docs::{blocks, machine, runs};
use crate::env::{Env, binary, needs};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/examples")
}

fn example(name: &str) -> String {
    fs::read_to_string(examples().join(name)).expect("an example")
}

/// What `module` of npm, called as `call`, makes of an example; none if scripts/test.sh has not installed it.
fn parsed(module: &str, call: &str, name: &str) -> Option<Value> {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/npm/node_modules");
    if !modules.join(module).exists() {
        assert!(std::env::var_os("CI").is_none(), "{module} is not installed here, where every test has to run");
        eprintln!("SKIPPED: {module} is not installed; scripts/test.sh does that");
        return None;
    }
    let program = format!(
        "const text = require('fs').readFileSync(process.argv[1], 'utf8'); \
         process.stdout.write(JSON.stringify(require('{module}').{call}(text)))"
    );
    let mut node = Command::new("node");
    let output = node.env("NODE_PATH", modules).args(["-e", &program]).arg(examples().join(name)).output().expect("node");
    assert!(output.status.success(), "{name}: {output:?}");
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// Runs a container's command with its environment; the login is on the parent of the config dir, at one path everywhere.
fn runs_in_container(words: &[&str], environment: &Value, volumes: &Value) {
    assert!(volumes.as_array().expect("volumes").iter().any(|volume| volume == "/srv/claude:/srv/claude"), "{volumes}");
    let variables = environment.as_object().expect("variables");
    assert_eq!(variables["CLAUDE_CONFIG_DIR"], "/srv/claude/config");
    let export = |(name, value): (&String, &Value)| format!("export {name}='{}'\n", value.as_str().expect("text"));
    let exports: String = variables.iter().map(export).collect();
    // The token is fresh: to have the helper started, the session lock is taken in the other mode.
    let mode = if variables.contains_key("CLAUDE_RUN_LOCK_HELPER") { "exclusive" } else { "refresh" };
    let words: Vec<&str> = words.iter().map(|word| if *word == "refresh" { mode } else { word }).collect();
    runs(&machine(), &format!("{exports}{}", shell_words::join(words)));
}

fn texts(array: &Value) -> Vec<&str> {
    array.as_array().expect("an array").iter().map(|word| word.as_str().expect("text")).collect()
}

#[test]
fn compose_files_are_yaml_that_runs() {
    for name in ["compose.yaml", "compose-hosts.yaml"] {
        let Some(file) = parsed("yaml", "parse", name) else { return };
        let agent = &file["services"]["agent"];
        assert_eq!((&agent["image"], &agent["stop_grace_period"]), (&"agent".into(), &"30s".into()), "{name}");
        runs_in_container(&texts(&agent["command"]), &agent["environment"], &agent["volumes"]);
    }
}

#[test]
fn nomad_jobs_are_hcl_that_runs() {
    for name in ["agent.nomad.hcl", "agent-hosts.nomad.hcl"] {
        let Some(file) = parsed("hcl2-parser", "parseToObject", name) else { return };
        let task = &file[0]["job"]["claude"][0]["group"]["agents"][0]["task"]["agent"][0];
        assert_eq!((&task["driver"], &task["kill_timeout"]), (&"docker".into(), &"30s".into()), "{name}: {file}");
        let config = &task["config"][0];
        let words = [vec![config["command"].as_str().expect("a command")], texts(&config["args"])].concat();
        runs_in_container(&words, &task["env"][0], &config["volumes"]);
    }
}

#[test]
fn systemd_units_verify_and_run() {
    if !needs("systemd-analyze") {
        return;
    }
    // The program has to be there: that under test stands in for the installed one.
    let env = Env::new();
    let service = example("claude-nightly.service");
    let unit = env.path("claude-nightly.service");
    fs::write(&unit, service.replace("/usr/local/bin/claude-run", &binary().display().to_string())).expect("a unit");
    fs::write(env.path("claude-nightly.timer"), example("claude-nightly.timer")).expect("a timer");
    let mut analyze = Command::new("systemd-analyze");
    let output =
        analyze.args(["verify", "--man=no"]).arg(&unit).arg(env.path("claude-nightly.timer")).output().expect("output");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", str::from_utf8(&output.stderr).expect("text"));
    let value = |key: &str| service.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
    runs(&machine(), &format!("export {}\n{}", value("Environment="), value("ExecStart=")));
}

#[test]
fn crontab_runs() {
    let crontab = example("crontab");
    let environment = crontab.lines().find(|line| line.starts_with("CLAUDE_CONFIG_DIR=")).expect("a variable");
    let job = crontab.lines().last().and_then(|line| line.strip_prefix("*/30 * * * * ")).expect("a job");
    runs(&machine(), &format!("export {environment}\n{job}"));
}

#[test]
fn guide_shows_the_examples() {
    let files: Vec<String> =
        fs::read_dir(examples()).expect("examples").flatten().map(|entry| plain(&example(&name_of(&entry)))).collect();
    for kind in ["crontab", "ini", "yaml", "hcl"] {
        let shown = blocks(kind);
        assert!(!shown.is_empty(), "{kind}");
        for block in shown {
            assert!(files.iter().any(|file| file.contains(&plain(block))), "in no example:\n{block}");
        }
    }
}

fn name_of(entry: &fs::DirEntry) -> String {
    entry.file_name().into_string().expect("a name")
}

/// A text without the indentation of its lines.
fn plain(text: &str) -> String {
    text.lines().map(|line| line.trim_start().to_owned() + "\n").collect()
}
