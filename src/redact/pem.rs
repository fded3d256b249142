//! Private keys in PEM, whose lines are secret from BEGIN to END.

use std::ops::Range;

use memchr::memmem;

/// Words of which the first line has one.
pub(super) const WORDS: [&str; 2] = ["private key", "private-lines:"];

/// Least length of a line of base64 with something beside it.
const LEAST: usize = 16;

/// Marks what of `text` is secret. `is_inside`: a key has begun before it; afterwards, that it goes on behind it.
pub(super) fn find(text: &[u8], is_inside: &mut bool, mut found: impl FnMut(Range<usize>)) {
    let mut start = 0;
    for line in text.split(|&byte| byte == b'\n') {
        let mut from = 0;
        // A line of JSON may have several keys.
        loop {
            if !*is_inside {
                let Some(begin) = marker(&line[from..], b"BEGIN") else { break };
                (*is_inside, from) = (true, from + begin.end);
            }
            let rest = &line[from..];
            let end = marker(rest, b"END");
            let body = &rest[..end.as_ref().map_or(rest.len(), |end| end.start)];
            match base64_in(body) {
                Some(range) if from == 0 && end.is_none() || range.len() >= LEAST => {
                    found(start + from + range.start..start + from + range.end)
                }
                None if from == 0 && end.is_none() && !is_header(body) => *is_inside = false,
                _ => {}
            }
            let Some(end) = end else { break };
            (*is_inside, from) = (false, from + end.end);
        }
        start += line.len() + 1;
    }
}

/// Place of a marker as `-----BEGIN RSA PRIVATE KEY-----`, from `word` on, which is BEGIN or END.
fn marker(line: &[u8], word: &[u8]) -> Option<Range<usize>> {
    if word == b"BEGIN" && line.starts_with(b"Private-Lines:") {
        return Some(0..line.len());
    }
    let start = memmem::find(line, word)?;
    let key = start + memmem::find(&line[start..], b"PRIVATE KEY").filter(|&at| at < 40)? + b"PRIVATE KEY".len();
    let rest = &line[key..];
    let rest = rest.strip_prefix(b" BLOCK").unwrap_or(rest);
    let dashes = rest.iter().skip_while(|&&byte| byte == b' ').take_while(|&&byte| byte == b'-').count();
    (dashes >= 4 && line[..start].ends_with(b"-") || line[..start].ends_with(b"- ")).then_some(start..key)
}

/// Place of the base64 in a line of a key, which may be quoted, numbered or indented.
fn base64_in(body: &[u8]) -> Option<Range<usize>> {
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    let first = usize::from(body.starts_with(b"+")); // of a diff
    let mut at = first;
    let (mut best, mut last) = (at..at, at);
    while at < body.len() {
        at += usize::from(matches!(body[at], b'n' | b'r') && at > 0 && body[at - 1] == b'\\'); // of `\n`
        let length = body[at..].iter().take_while(|&&byte| is_base64(byte)).count();
        if length > best.len() {
            best = at..at + length;
        }
        if length >= 4 {
            last = at + length;
        }
        at += length.max(1);
    }
    let is_sign = |byte: &u8| {
        !is_base64(*byte) && !b":".contains(byte) || byte.is_ascii_digit() && body[first..best.start].contains(byte)
    };
    let is_alone = body[first..best.start].iter().all(is_sign)
        && body[best.end..].iter().all(|byte| is_sign(byte) || b"n+".contains(byte));
    // Several runs on one line are words, unless one is long.
    match best.len() {
        0 => None,
        LEAST.. => Some(best.start..if best.len() > 2 * LEAST { last.max(best.end) } else { best.end }),
        _ => is_alone.then_some(best),
    }
}

fn is_header(body: &[u8]) -> bool {
    let signs = body.iter().take_while(|byte| !byte.is_ascii_alphabetic()).count();
    let text = &body[signs..];
    let name = text.iter().take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'-').count();
    !text.iter().any(u8::is_ascii_alphanumeric) || name > 3 && text[name..].starts_with(b": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> (String, bool) {
        let (mut out, mut at, mut is_inside) = (String::new(), 0, false);
        find(text.as_bytes(), &mut is_inside, |range| {
            out += &text[at..range.start];
            out += "***";
            at = range.end;
        });
        (out + &text[at..], is_inside)
    }

    #[test]
    fn keys_are_masked_from_begin_to_end() {
        let body = "MIIEpAIBAAKCAQEA0123+/abcdefghijklmn";
        for (before, after) in [("", ""), ("  ", ""), ("+", ""), ("    12→", ""), ("\"", "\\n\" +"), ("> ", "\r")] {
            let line = |text: &str| format!("{before}{text}{after}\n");
            for kind in ["RSA PRIVATE KEY", "PRIVATE KEY", "PGP PRIVATE KEY BLOCK"] {
                let begin = line(&format!("-----BEGIN {kind}-----"));
                let end = line(&format!("-----END {kind}-----"));
                let text =
                    format!("x\n{begin}{}{}{}{end}y {body}\n", line("Proc-Type: 4,ENCRYPTED"), line(body), line("ab12="));
                let expected = text.replacen(&line(body), &line("***"), 1).replace("ab12=", "***");
                assert_eq!(masked(&text), (expected, false), "{text}");
            }
        }
    }

    #[test]
    fn other_lines_end_a_key_without_its_end() {
        let text = "starts with \"-----BEGIN PRIVATE KEY-----\" and\nthen some words follow\nMIIEpAIBAAKCAQEA0123\n";
        assert_eq!(masked(text), (text.to_owned(), false));
        assert_eq!(
            masked("-----BEGIN CERTIFICATE-----\nMIIEpAIBAAKCAQEA0123\n").0,
            "-----BEGIN CERTIFICATE-----\nMIIEpAIBAAKCAQEA0123\n"
        );
        assert_eq!(
            masked("-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA0123"),
            ("-----BEGIN PRIVATE KEY-----\n***".to_owned(), true)
        );
        let line = "-----BEGIN PRIVATE KEY----- MIIEpAIBAAKCAQEA0123 abc= -----END PRIVATE KEY----- x";
        assert!(!masked(line).0.contains("MIIE") && masked(line).0.ends_with("END PRIVATE KEY----- x"));
        let twice = format!("{line} {line}\n{line}");
        assert!(!masked(&twice).0.contains("MIIE") && masked(&twice).0.matches("***").count() == 3, "{twice}");
        let begun = "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA0123\n-----END PRIVATE KEY-----\",\"";
        assert_eq!(masked(&begun.repeat(2)), (begun.repeat(2).replace("MIIEpAIBAAKCAQEA0123", "***"), false));
    }

    #[test]
    fn marker_has_dashes_and_a_key_near_its_word() {
        let body = "MIIEpAIBAAKCAQEA";
        let far = |letters: usize| format!("-----BEGIN {}PRIVATE KEY-----", "A".repeat(letters));
        for (begin, is_key) in [
            ("----BEGIN PRIVATE KEY----", true),
            ("-----BEGIN PRIVATE KEY -----", true),
            ("- BEGIN PRIVATE KEY ----", true),
            ("Private-Lines: 1", true),
            ("-----BEGIN PRIVATE KEY abcd", false),
            ("-----BEGIN PRIVATE KEY---", false),
            ("BEGIN PRIVATE KEY-----", false),
            (&far(33), true),
            (&far(34), false),
        ] {
            let text = format!("{begin}\n{body}\n");
            let expected = if is_key { text.replace(body, "***") } else { text.clone() };
            assert_eq!(masked(&text), (expected, is_key));
        }
        let line = format!("-----BEGIN PRIVATE KEY-----{body}");
        assert_eq!(masked(&line).0, "-----BEGIN PRIVATE KEY-----***");
    }

    #[test]
    fn line_of_a_key_is_masked_to_its_last_run() {
        let [short, long] = [32, 33].map(|length| "a".repeat(length));
        for (line, expected) in [
            (format!("{long} {long}"), "***"),
            (format!("{long} abcd"), "***"),
            (format!("{long} abc"), "*** abc"),
            (format!("{short} abcd"), "*** abcd"),
            (String::new(), ""),
        ] {
            let begin = "-----BEGIN PRIVATE KEY-----";
            assert_eq!(masked(&format!("{begin}\n{line}\nab12=")), (format!("{begin}\n{expected}\n***"), true));
        }
        for line in ["ab12cd34= word", "abc: def"] {
            let text = format!("-----BEGIN PRIVATE KEY-----\n{line}\nab12=");
            assert_eq!(masked(&text), (text.clone(), false));
        }
    }
}
