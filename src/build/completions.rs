//! Additions to clap_complete's scripts: where COMMAND begins, the `=` that readline makes a word of its own, and values in fish.

use std::io;

use clap::{Arg, Command};

/// `script` for bash, which then knows where COMMAND begins: from there on it completes files.
pub(super) fn for_bash(script: &str, command: &Command) -> io::Result<String> {
    let takes_value = |arg: &&Arg| arg.get_action().takes_values() && !arg.is_require_equals_set() && !arg.is_positional();
    let long = command.get_arguments().filter(takes_value).filter_map(|arg| Some(format!("--{}", arg.get_long()?)));
    let short = command.get_arguments().filter(takes_value).filter_map(|arg| Some(format!("-{}", arg.get_short()?)));
    let with_value = long.chain(short).collect::<Vec<_>>().join(" | ");
    let operations = command.get_subcommands().map(Command::get_name).collect::<Vec<_>>().join(" ");
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
    let mut script = patched(script, " 2>/dev/null\n    or return\n", " 2>/dev/null\n    or return 0\n")?;
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
    let operations = command.get_subcommands().map(Command::get_name).collect::<Vec<_>>().join(" ");
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
