//! Text from elsewhere on its way to a terminal, a log or a program: no character of it acts on the reader, none of it is a secret
//! in clear, and it has an end.

use std::borrow::Cow;
use std::env;
use std::sync::OnceLock;

/// Longest text of one message or field; behind it comes a mark.
const LONGEST: usize = 4096; // bytes

/// Longest line of an operation for people, and longest text in its JSON: room for some paths, and for no text that hides the rest.
const LONGEST_SHOWN: usize = 16 << 10; // bytes

static MASK: OnceLock<fn(&str) -> String> = OnceLock::new();

/// Has `mask` take the secrets out of all messages of this process. The first call counts.
pub(crate) fn mask_with(mask: fn(&str) -> String) {
    let _ = MASK.set(mask);
}

/// Takes the secrets out of `text`.
pub(super) fn masked(text: &str) -> String {
    MASK.get().map_or_else(|| text.to_owned(), |mask| mask(text))
}

/// Takes the secrets out of `text`, and then its end, if it is too long for a message.
pub(super) fn clamped(text: &str) -> String {
    clamped_to(text, LONGEST)
}

/// Masked first: a secret at the cut would not be known by its beginning.
fn clamped_to(text: &str, longest: usize) -> String {
    let masked = masked(text);
    if masked.len() <= longest {
        return masked;
    }
    let end = (0..=longest).rfind(|&at| masked.is_char_boundary(at)).unwrap_or_default();
    format!("{}… ({} bytes)", &masked[..end], text.len())
}

/// `text` as one line, without a character that acts on a terminal.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return text.into();
    }
    let escape = |c: char| if acts(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect::<String>().into()
}

/// Lines of ours for a terminal, in which nothing acts but their ends and their colours; none has a secret in clear, and each has an end.
pub(crate) fn escaped_lines(text: &str) -> String {
    let mut safe = String::new();
    for part in text.split_inclusive('\n') {
        let (line, end) = part.strip_suffix('\n').map_or((part, ""), |line| (line, "\n"));
        let line = clamped_to(line, LONGEST_SHOWN);
        let mut pieces = line.split("\x1b[");
        safe += &escaped(pieces.next().unwrap_or_default());
        for piece in pieces {
            match piece.split_once('m') {
                Some((colour, rest)) if colour.bytes().all(|byte| byte.is_ascii_digit() || byte == b';') => {
                    safe.extend(["\x1b[", colour, "m", &escaped(rest)]);
                }
                _ => safe.extend(["\\u{1b}[", &escaped(piece)]),
            }
        }
        if line.len() > LONGEST_SHOWN {
            safe += "\x1b[0m"; // the end of its colour may be lost
        }
        safe += end;
    }
    safe
}

/// `text` with our own marks in ASCII, if the locale has no others.
pub(crate) fn in_locale(text: &str) -> Cow<'_, str> {
    let variables = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(env::var_os);
    let locale = variables.into_iter().find(|value| !value.is_empty()).unwrap_or_default();
    let locale = locale.to_string_lossy().to_ascii_lowercase();
    if text.is_ascii() || locale.contains("utf-8") || locale.contains("utf8") {
        return text.into();
    }
    // A level of a bar has one column, as the end of a text that is cut.
    let mark = |c| match c {
        '\u{2581}'..='\u{2588}' => b".:-=+*#@"[c as usize - 0x2581].into(),
        '…' => '~',
        '·' | '–' => '-',
        c => c,
    };
    text.replace("… ", "... ").chars().map(mark).collect::<String>().into()
}

/// `text` as an operation may show it, without a secret in clear, and with an end.
pub(crate) fn shown(text: &str) -> String {
    clamped_to(text, LONGEST_SHOWN)
}

/// True for controls, and for characters that change the order or the look of others, or that nobody sees.
pub(super) fn acts(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control(); // soon, of nearly all
    }
    let is_format = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}');
    c.is_control() || is_format
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_but_our_own_colours() {
        let text = "\x1b[1mbold\x1b[0m \x1b]52;c;x\x07 \u{9b}31m \u{202e}txt\nnext\x1b[2J\r";
        let safe = escaped_lines(text);
        assert_eq!(safe, "\x1b[1mbold\x1b[0m \\u{1b}]52;c;x\\u{7} \\u{9b}31m \\u{202e}txt\nnext\\u{1b}[2J\\r");
        assert_eq!(escaped("a\nb\u{85}"), "a\\nb\\u{85}");
    }

    #[test]
    fn long_text_ends() {
        let text = "é".repeat(LONGEST);
        assert!(clamped(&text).len() < LONGEST + 30 && clamped(&text).ends_with("… (8192 bytes)"));
        assert_eq!(clamped("short"), "short");
    }
}
