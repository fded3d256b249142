//! Documents that other programs read: bash, fish and zsh complete by our scripts, and man shows
//! its page.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use claude_run::config::options::{OPTIONS, OptionSpec, VERBOSITY};

use crate::env::{Env, needs};

fn printed(env: &Env, words: &[&str]) -> String {
    let assert = env.claude_run().args(words).assert().code(0).stderr("");
    String::from_utf8(assert.get_output().stdout.clone()).expect("text")
}

/// Output of `program`, which succeeds and prints no error.
fn output(mut program: Command) -> String {
    let output = program.output().expect("started");
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success() && stderr.is_empty(), "{program:?}: {}: {stdout}{stderr}", output.status);
    stdout
}

/// Typed words, and the completions offered for the last one.
const COMPLETIONS: [(&str, &[&str]); 8] = [
    ("claude-run st", &["status"]),
    ("claude-run --lo", &["--lock", "--lock-file", "--lock-helper", "--log", "--log-format"]),
    ("claude-run --lock ", &["exclusive", "refresh", "pass-through"]),
    ("claude-run --leftovers k", &["keep", "kill"]),
    ("claude-run status --j", &["--json"]),
    ("claude-run mode --dr", &["--drain"]),
    ("claude-run mode re", &["refresh"]),
    ("claude-run completions z", &["zsh"]),
];

#[test]
fn documents_need_no_valid_settings_file() {
    let env = Env::new();
    fs::create_dir(env.path("config")).expect("a directory");
    fs::write(env.path("config/claude-run.toml"), "wiat = 1").expect("a file");
    for words in [&["completions", "bash"][..], &["completions", "fish"], &["completions", "zsh"], &["man-page"]] {
        env.claude_run().env("CLAUDE_CONFIG_DIR", env.path("config")).args(words).assert().code(0).stderr("");
    }
}

#[test]
fn bash_completes_options_values_and_operations() {
    let env = Env::new();
    fs::write(env.path("script"), printed(&env, &["completions", "bash"])).expect("a file");
    for (line, expected) in COMPLETIONS {
        let mut bash = env.command("bash");
        // As readline does: the function that stands behind the name, with the words so far.
        bash.args([
            "-c",
            r#"set -eu; . ./script; set +eu
            read -ra COMP_WORDS <<<"$1"; [[ $1 != *\  ]] || COMP_WORDS+=('')
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            completer=$(complete -p claude-run); completer=${completer#*-F }; completer=${completer%% *}
            "$completer" claude-run "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf '%s\n' "${COMPREPLY[@]}""#,
            "bash",
            line,
        ]);
        let text = output(bash);
        let completed: BTreeSet<_> = text.lines().collect();
        assert_eq!(completed, expected.iter().copied().collect(), "{line:?}");
    }
}

#[test]
fn fish_completes_options_values_and_operations() {
    let env = Env::new();
    if !needs("fish") {
        return;
    }
    fs::write(env.path("script"), printed(&env, &["completions", "fish"])).expect("a file");
    // Values it tells behind a `=`, and only those of options.
    let values: (&str, &[&str]) = ("claude-run --lock=", &["--lock=exclusive", "--lock=refresh", "--lock=pass-through"]);
    for (line, expected) in [COMPLETIONS[0], COMPLETIONS[1], values, COMPLETIONS[4], COMPLETIONS[5]] {
        let mut fish = env.command("fish");
        fish.args(["--no-config", "-c", "source ./script; complete -C $argv[1]", line]);
        let text = output(fish);
        let completed: Vec<_> = text.lines().filter_map(|line| line.split('\t').next()).collect();
        assert!(expected.iter().all(|word| completed.contains(word)), "{line:?}: {completed:?}");
    }
}

#[test]
fn zsh_takes_its_script() {
    let env = Env::new();
    if !needs("zsh") {
        return;
    }
    fs::write(env.path("_claude-run"), printed(&env, &["completions", "zsh"])).expect("a file");
    let mut zsh = env.command("zsh");
    // As in a directory of fpath; what it would complete, only its line editor can ask.
    zsh.args([
        "-f",
        "-c",
        "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; autoload +X _claude-run; print $_comps[claude-run]",
    ]);
    assert_eq!(output(zsh), "_claude-run\n");
}

#[test]
fn man_page_is_complete_and_valid() {
    let env = Env::new();
    if !needs("man") {
        return;
    }
    fs::write(env.path("claude-run.1"), printed(&env, &["man-page"])).expect("a file");
    let mut man = env.command("man");
    man.env("MANWIDTH", "100").env("LC_ALL", "C.UTF-8").args([
        "--warnings=all",
        "--no-hyphenation",
        "--no-justification",
        "-l",
    ]);
    man.arg(env.path("claude-run.1"));
    let page = output(man);
    for OptionSpec { name: flag, variable, .. } in OPTIONS {
        assert!(page.contains(&format!("--{flag}")) && page.contains(*variable), "{flag}");
    }
    for word in
        ["status", "mode", "slots", "settings", "report", "doctor", "setup", "events", "completions", VERBOSITY.variable]
    {
        assert!(page.contains(word), "{word}");
    }
    for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "OPERATIONS", "EXIT STATUS", "FILES", "EXAMPLES", "SEE ALSO"]
    {
        assert!(page.lines().any(|line| line == section), "{section}: {page}");
    }
    // What whatis(1) would index.
    let mut lexgrog = env.command("lexgrog");
    lexgrog.arg(env.path("claude-run.1"));
    assert!(output(lexgrog).contains("\"claude-run - run claude under"));
}
