//! Documents that other programs read: bash, fish and zsh complete by our scripts, and man shows
//! its page.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use claude_run::config::options::{OPTIONS, OptionSpec, VERBOSITY};

use crate::env::{Env, needs, wait_until};
use crate::terminal::OnTerminal;

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
const COMPLETIONS: [(&str, &[&str]); 21] = [
    ("claude-run st", &["status"]),
    ("claude-run --lo", &["--lock", "--lock-file", "--lock-helper", "--log", "--log-format"]),
    ("claude-run --lock ", MODES),
    ("claude-run --lock=", MODES),
    ("claude-run --lock=re", &["refresh"]),
    ("claude-run --wait=5m --leftovers k", &["keep", "kill"]),
    ("claude-run --label status st", &["status"]),
    ("claude-run status --j", &["--json"]),
    ("claude-run mode --dr", &["--drain"]),
    ("claude-run mode ", MODES),
    ("claude-run mode re", &["refresh"]),
    ("claude-run slots ", &[]),
    ("claude-run setup --wait ", &[]),
    ("claude-run help slo", &["slots"]),
    ("claude-run completions z", &["zsh"]),
    ("claude-run claude st", &["stray"]),
    ("claude-run -w 5 -- claude st", &["stray"]),
    ("claude-run -- mkfif", &["mkfifo"]),
    ("claude-run --label x -- slot", &[]),
    ("claude-run --wait=5 -- mode st", &["stray"]),
    ("claude-run -- claude --resume st", &["stray"]),
];
const MODES: &[&str] = &["exclusive", "refresh", "pass-through"];

/// A directory with a script, and with a file for those who complete files.
fn with_script(shell: &str) -> Env {
    let env = Env::new();
    fs::write(env.path("script"), printed(&env, &["completions", shell])).expect("a file");
    fs::write(env.path("stray"), "").expect("a file");
    env
}

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
    let env = with_script("bash");
    for (line, expected) in COMPLETIONS {
        let mut bash = env.command("bash");
        // As readline does: words end at COMP_WORDBREAKS as well, and a `=` is one; the function behind the name gets them.
        bash.args([
            "-c",
            r#"set -eu; . ./script; set +eu
            read -ra COMP_WORDS <<<"${1//=/ = }"; [[ $1 != *\  ]] || COMP_WORDS+=('')
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$1 COMP_POINT=${#1}
            completer=$(complete -p claude-run); completer=${completer#*-F }; completer=${completer%% *}
            "$completer" claude-run "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>/dev/null
            printf '%s\n' "${COMPREPLY[@]}""#,
            "bash",
            line,
        ]);
        let text = output(bash);
        // Where no dash is typed, bash shows the options of an operation as well.
        let completed: BTreeSet<_> = text
            .lines()
            .filter(|word| !word.is_empty())
            .filter(|word| !word.starts_with('-') || expected.iter().any(|word| word.starts_with('-')))
            .collect();
        assert_eq!(completed, expected.iter().copied().collect(), "{line:?}");
    }
}

#[test]
fn fish_completes_options_values_and_operations() {
    if !needs("fish") {
        return;
    }
    let env = with_script("fish");
    for (line, expected) in COMPLETIONS {
        let mut fish = env.command("fish");
        fish.args(["--no-config", "-c", "source ./script; complete -C $argv[1]", line]);
        let text = output(fish);
        // Behind a `=`, the whole word.
        let completed = text.lines().filter_map(|line| line.split('\t').next()?.rsplit('=').next());
        // Without files where none is wanted. Where COMMAND may stand, there may be some.
        let completed: BTreeSet<_> = completed.collect();
        let has_all = expected.iter().all(|word| completed.contains(word));
        // Behind `--`, whatever program is somehow like the word, but no operation.
        let is_exact = completed.len() == expected.len() || line.ends_with("st");
        assert!(has_all && (is_exact || line.contains(" -- ")), "{line:?}: {completed:?}");
        assert!(!line.contains(" -- ") || !completed.contains("slots"), "{line:?}: {completed:?}");
    }
}

/// Asks zsh's line editor, on a terminal.
#[test]
fn zsh_completes_options_values_and_operations() {
    if !needs("zsh") {
        return;
    }
    let env = with_script("zsh");
    fs::rename(env.path("script"), env.path("_claude-run")).expect("renamed");
    for (line, expected) in COMPLETIONS {
        let mut zsh = env.command("zsh");
        zsh.env("TERM", "dumb").args(["-f", "-i"]);
        let mut terminal = OnTerminal::sized(zsh, 200, 50);
        // All that is offered goes to a file, and nothing is inserted.
        terminal.types(concat!(
            r#"fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; PS1= ; "#,
            r#"compadd() { local a; local -a found; builtin compadd -O found "$@"; print -rl -- $found >>offered; "#,
            r#"builtin compadd "$@" }; show() { _main_complete; compstate[insert]=; compstate[list]=; print end >>offered }; "#,
            r#"zle -C show complete-word show; bindkey '^I' show; echo rea''dy"#,
            "\n"
        ));
        terminal.shows("ready");
        terminal.types(&format!("{line}\t"));
        let offered = || fs::read_to_string(env.path("offered")).unwrap_or_default();
        wait_until("zsh has completed", || offered().ends_with("end\n"));
        let text = offered();
        let completed: BTreeSet<_> = text.lines().filter(|word| *word != "end" && !word.is_empty()).collect();
        assert!(expected.iter().all(|word| completed.contains(word)), "{line:?}: {completed:?}");
        let known = ["status", "report", "slots", "stray"].iter().chain(MODES).collect::<Vec<_>>();
        let is_wrong = |word: &&&str| known.contains(word) && !expected.contains(*word);
        assert_eq!(completed.iter().find(is_wrong), None, "{line:?}: {completed:?}");
        fs::remove_file(env.path("offered")).expect("removed");
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
    for section in [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "OPERATIONS",
        "EXIT STATUS",
        "ENVIRONMENT",
        "FILES",
        "EXAMPLES",
        "SEE ALSO",
    ] {
        assert!(page.lines().any(|line| line == section), "{section}: {page}");
    }
    let environment =
        page.split("\nENVIRONMENT\n").nth(1).and_then(|rest| rest.split("\nCOMMAND LINE\n").next()).expect("a section");
    for variable in
        OPTIONS.iter().map(|option| option.variable).chain([VERBOSITY.variable, "CLAUDE_EXTERNAL_LOCK", "LOG_AGENT"])
    {
        assert!(environment.contains(variable), "{variable}: {environment}");
    }
    assert!(!page.contains("claude(1)"), "there is no such page");
    let synopsis =
        "SYNOPSIS\n       claude-run [OPTIONS] [--] [COMMAND] [ARGS]...\n       claude-run [OPTIONS] OPERATION [ARGS]...\n\n";
    assert!(page.contains(synopsis), "{page}");
    // What whatis(1) would index.
    let mut lexgrog = env.command("lexgrog");
    lexgrog.arg(env.path("claude-run.1"));
    assert!(output(lexgrog).contains("\"claude-run - run claude under"));
}
