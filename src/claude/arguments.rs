//! Claude's command line, as claude reads it.

use std::ffi::{OsStr, OsString};
use std::iter;
use std::os::unix::ffi::OsStrExt;

/// Options whose next word is their value, also if it looks like an option; of 2.1.84 and 2.1.332, those that `--help` hides as well.
const WITH_VALUE: &str = "\
    --add-dir --advisor --agent --agent-color --agent-id --agent-name --agent-type --agents --allowed-tools \
    --allowedTools --append-subagent-system-prompt --append-subagent-system-prompt-file --append-system-prompt \
    --append-system-prompt-file --autocompact --betas --channels --debug-file --disallowed-tools --disallowedTools \
    --effort --environment --fallback-model --file --input-format --json-schema --managed-settings --max-budget-usd \
    --max-thinking-tokens --max-turns --mcp-config --model --name --output-format --parent-session-id --permission-mode \
    --permission-prompt-tool --permission-prompts --plan-mode-instructions --plugin-dir --plugin-url --prefill \
    --remote-control-session-name-prefix --resume-session-at --rewind-files --sdk-url --session-id --setting-sources \
    --settings --system-prompt --system-prompt-file --system-prompt-snapshot --task-budget --team-name --teammate-mode \
    --thinking --thinking-display --tools --workload -n";

/// True if claude runs without a person who talks to it: with `-p`, also among other letters, or `--print`.
pub(super) fn is_headless(arguments: &[OsString]) -> bool {
    let is_print = |word: &[u8]| {
        let letters = word.strip_prefix(b"-").and_then(|letters| letters.split(|&letter| letter == b'p').next());
        // Letters of other options may take the rest of the word as their value.
        word == b"--print"
            || letters.is_some_and(|letters| 1 + letters.len() < word.len() && letters.iter().all(|l| b"chv".contains(l)))
    };
    words(arguments).any(|(word, _)| is_print(word))
}

/// The value of `option`, as `--option value` or `--option=value`: of several the last, and none behind a bare `--`.
pub(super) fn value_of<'a>(arguments: &'a [OsString], option: &str) -> Option<&'a OsStr> {
    let value = |(word, next): (&'a [u8], Option<&'a [u8]>)| match word.strip_prefix(option.as_bytes())? {
        [] => next,
        [b'=', value @ ..] => Some(value),
        _ => None,
    };
    debug_assert!(has_value(option.as_bytes()), "{option}");
    words(arguments).filter_map(value).last().map(OsStr::from_bytes)
}

/// True if `option`, which has no value, is there.
pub(super) fn has(arguments: &[OsString], option: &str) -> bool {
    words(arguments).any(|(word, _)| word == option.as_bytes())
}

fn has_value(word: &[u8]) -> bool {
    word.starts_with(b"-") && WITH_VALUE.split(' ').any(|option| option.as_bytes() == word)
}

/// The words up to a bare `--`, behind which there are no options; what is the value of the option before it, comes with that.
fn words(arguments: &[OsString]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    let mut words = arguments.iter().map(|word| word.as_bytes());
    iter::from_fn(move || {
        let word = words.next()?;
        Some((word, has_value(word).then(|| words.next()).flatten()))
    })
    .take_while(|(word, _)| *word != b"--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_value_before_a_bare_dash_counts() {
        let cases = [
            ("--model a", Some("a")),
            ("--model=a --model b", Some("b")),
            ("--model a --model=b -p", Some("b")),
            ("--model=a --models b --mod c", Some("a")),
            ("--model=a=b", Some("a=b")),
            ("--model=", Some("")),
            ("--model", None),
            ("-p -- --model=a", None),
            ("--model a -- --model b", Some("a")),
            ("-p", None),
            // Of an option that takes it as its value.
            ("--system-prompt --model -p", None),
            ("--tools --model=a --model b", Some("b")),
            ("--name -- --model a", Some("a")),
            ("-p --verbose --model a", Some("a")),
        ];
        for (line, value) in cases {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(value_of(&words, "--model"), value.map(OsStr::new), "{line}");
        }
    }

    #[test]
    fn person_is_there_without_print() {
        let is_headless = |line: &str| is_headless(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(["-p hi", "hi --print", "-cp", "--verbose -p", "--model x -p"].into_iter().all(is_headless));
        assert!(!["hi", "-c hi", "--system-prompt -p", "--name -private", "-- -p", "-dp"].into_iter().any(is_headless));
    }
}
