//! Additions to clap_complete's scripts: where COMMAND begins, the `=` that readline makes a word of its own, and values in fish.

use std::io;

use clap::{Arg, Command};

/// Options whose value is a word of its own, as a pattern.
fn with_value(command: &Command) -> String {
    let takes_value = |arg: &&Arg| arg.get_action().takes_values() && !arg.is_require_equals_set() && !arg.is_positional();
    let long = command.get_arguments().filter(takes_value).filter_map(|arg| Some(format!("--{}", arg.get_long()?)));
    let short = command.get_arguments().filter(takes_value).filter_map(|arg| Some(format!("-{}", arg.get_short()?)));
    long.chain(short).collect::<Vec<_>>().join(" | ")
}

fn operations(command: &Command) -> String {
    command.get_subcommands().map(Command::get_name).collect::<Vec<_>>().join(" ")
}

/// `script` for bash, which then knows where COMMAND begins: from there on it completes files.
pub(super) fn for_bash(script: &str, command: &Command) -> io::Result<String> {
    let (with_value, operations) = (with_value(command), operations(command));
    let begin = format!(
        r#"    prev="$3"
    # readline makes a word of the `=` in --option=value.
    if [[ $cur == = ]]; then
        cur=""
    elif [[ $prev == = ]]; then
        prev=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    # The place of the first word that is no option, nor the value of one: an operation, or COMMAND.
    local at=1
    while ((at < COMP_CWORD)); do
        case ${{COMP_WORDS[at]}} in
            --) ((++at)); break ;;
            {with_value}) [[ ${{COMP_WORDS[at + 1]}} != = ]] || ((++at)); ((at += 2)) ;;
            -*) [[ ${{COMP_WORDS[at + 1]}} != = ]] || ((at += 2)); ((++at)) ;;
            *) break ;;
        esac
    done
    if ((at == COMP_CWORD)) && [[ ${{COMP_WORDS[at - 1]}} == -- ]]; then
        mapfile -t COMPREPLY < <(compgen -c -- "$cur")
        return 0
    fi
    if ((at < COMP_CWORD)) && [[ ${{COMP_WORDS[at - 1]}} == -- || " {operations} " != *" ${{COMP_WORDS[at]}} "* ]]; then
        if [[ ${{COMP_WORDS[at]}} != -* ]] && declare -F _command_offset >/dev/null; then
            _command_offset "$at"
        else
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
            compopt -o filenames 2>/dev/null
        fi
        return 0
    fi
"#
    );
    let script = patched(script, "    prev=\"$3\"\n", &begin)?;
    // Not the values of the options before it, which may have the name of one.
    let all = "    for i in \"${COMP_WORDS[@]:0:COMP_CWORD}\"\n";
    let some = "    local behind=()\n    ((at >= COMP_CWORD)) || behind=(\"${COMP_WORDS[@]:at:COMP_CWORD - at}\")\n    \
                for i in \"$1\" \"${behind[@]}\"\n";
    patched(&script, all, some)
}

/// `script` for fish, which then knows the values of an option that still lacks its own, and those of operations.
pub(super) fn for_fish(script: &str, command: &Command) -> io::Result<String> {
    // argparse fails over an option without its value, which is what is being typed.
    let behind = r#" 2>/dev/null
    or return 0
    # Behind `--` begins COMMAND, whatever its name.
    __fish_claude_run_is_behind_dashes (count $argv) $cmd
    and return 1
"#;
    let script = patched(script, " 2>/dev/null\n    or return\n", behind)?;
    let operations = operations(command);
    let mut script = format!(
        r#"# Whether `--` is in front of the last words, so many of them.
function __fish_claude_run_is_behind_dashes
    set -l at (math (count $argv) - $argv[1])
    test $at -gt 1
    and test "$argv[$at]" = --
end

# Completes the command line of COMMAND.
function __fish_claude_run_complete_command
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_claude_run_global_optspecs) -- $cmd 2>/dev/null
    or return
    if not __fish_claude_run_is_behind_dashes (count $argv) $cmd
        set -q argv[1]
        and not contains -- $argv[1] {operations}
        or return
    end
    complete -C (string join " " -- (string escape -- $argv) (commandline -ct))
end

{script}complete -c claude-run -a "(__fish_claude_run_complete_command)"
"#
    );
    for operation in command.get_subcommands() {
        let name = operation.get_name();
        script += &format!("complete -c claude-run -n \"__fish_claude_run_using_subcommand {name}\" -f");
        let positional = operation.get_positionals().flat_map(Arg::get_possible_values);
        let values: Vec<_> = positional.map(|value| value.get_name().to_owned()).collect();
        if !values.is_empty() {
            script += &format!(" -a \"{}\"", values.join(" "));
        }
        script.push('\n');
    }
    Ok(script)
}

/// `script` for zsh, which then completes the words behind COMMAND as without claude-run.
pub(super) fn for_zsh(script: &str, command: &Command) -> io::Result<String> {
    let (with_value, operations) = (with_value(command), operations(command));
    let dashes = format!(
        r#"    # Behind `--` begins COMMAND, whatever its name.
    local -i at=2
    while (( at < CURRENT )); do
        case $words[at] in
            (--)
                words=("${{(@)words[at + 1, -1]}}")
                (( CURRENT -= at ))
                _normal
                return ;;
            ({with_value}) (( at += 2 )) ;;
            (-*) (( at += 1 )) ;;
            (*) break ;;
        esac
    done

"#
    );
    let start = "    typeset -A opt_args\n    typeset -a _arguments_options\n    local ret=1\n\n    if is-at-least 5.2; then\n";
    let script = &patched(script, start, &format!("{dashes}{start}"))?;
    let case = "        case $line[1] in\n            (status)\n";
    let begin = format!(
        "        if [[ -n $line[1] && \" {operations} \" != *\" $line[1] \"* ]]; then\n            _normal\n            return\n        fi\n{case}"
    );
    patched(script, case, &begin)
}

/// `text` with `to` in place of `from`, which a later clap_complete may have otherwise.
fn patched(text: &str, from: &str, to: &str) -> io::Result<String> {
    if text.matches(from).count() != 1 {
        return Err(io::Error::other(format!("clap_complete's script has changed: {from:?}")));
    }
    Ok(text.replace(from, to))
}
