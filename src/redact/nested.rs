//! Values below a secret name, in an object or a list of JSON.

use std::ops::Range;

use super::names;
use super::ordinary::{Shape, is_ordinary, is_random, is_wordy};
use super::span::Open;

/// Deepest nesting below a name.
const DEEPEST: usize = 16;

/// Names below a secret name that say no more of their value.
const PLAIN: [&str; 13] = [
    "value",
    "val",
    "data",
    "raw",
    "plain",
    "plaintext",
    "current",
    "previous",
    "new",
    "old",
    "s",
    "stringvalue",
    "secretstring",
];

/// What ids in Claude's API begin with: of messages, tools' calls and requests.
const IDS: [&str; 4] = ["msg_", "toolu_", "srvtoolu_", "req_"];

/// An object or a list that is not closed.
struct Level {
    is_list: bool,
    /// Number of secrets found before it.
    first: usize,
    /// True for a list in which a string does not look like a secret.
    is_prose: bool,
    /// Name before it.
    key: Range<usize>,
}

/// The secret strings in the object or list of JSON at `start`, whose name stands in `quote`. Tokens of a language are listed more often
/// than those of a login, so strings of a list have to look like the latter, all of them.
pub(super) fn in_json(text: &[u8], name: &[u8], quote: u8, start: usize) -> Vec<(Range<usize>, Open)> {
    let (mut found, mut levels, mut key, mut at) = (Vec::<(Range<usize>, usize)>::new(), Vec::<Level>::new(), 0..0, start);
    while let Some(&byte) = text.get(at) {
        match byte {
            b'{' | b'[' if levels.len() < DEEPEST => {
                levels.push(Level { is_list: byte == b'[', first: found.len(), is_prose: false, key: key.clone() });
            }
            b'{' | b'[' => break,
            b'}' | b']' => {
                let Some(level) = levels.pop() else { break };
                let depth = levels.len();
                if level.is_prose {
                    let mut index = 0;
                    found.retain(|(_, of)| (index < level.first || *of != depth, index += 1).0);
                }
                key = level.key;
                if levels.is_empty() {
                    break;
                }
            }
            _ if byte == quote => {
                let end = end_of_string(text, at + 1, quote);
                let string = at + 1..end.unwrap_or(text.len());
                let next = string.end + 1 + text.get(string.end + 1..).map_or(0, spaces);
                let Some(level) = levels.last_mut() else { break };
                if text.get(next) == Some(&b':') {
                    key = string.clone();
                } else {
                    let value = &text[string.start..string.end.min(string.start + 512)];
                    level.is_prose |= level.is_list && !is_random(value);
                    if is_secret(name, &text[key.clone()], value) {
                        found.push((string.clone(), levels.len() - 1));
                    }
                }
                at = string.end;
            }
            _ => {}
        }
        at += 1;
    }
    found.into_iter().map(|(range, _)| (range, Open::Quoted(quote, 0))).collect()
}

/// True if `value`, of `key` below the secret `name`, is secret itself.
fn is_secret(name: &[u8], key: &[u8], value: &[u8]) -> bool {
    let shape = Shape { name, is_quoted: true, is_literal: false, is_assigned: false, is_text: true, goes_on: false };
    let plain = names::normalized(key);
    let is_known = names::is_note(key) || plain.ends_with(b"id") && is_id(value);
    !is_ordinary(value, shape)
        && (PLAIN.iter().any(|key| key.as_bytes() == plain) || is_random(value) && !is_known && !is_wordy(value))
}

/// True for an id in Claude's API.
fn is_id(value: &[u8]) -> bool {
    let rest = IDS.iter().find_map(|id| value.strip_prefix(id.as_bytes())?.strip_prefix(b"01"));
    rest.is_some_and(|rest| rest.iter().all(u8::is_ascii_alphanumeric))
}

fn spaces(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// Place of the `quote` that ends the string which begins at `start`.
fn end_of_string(text: &[u8], start: usize, quote: u8) -> Option<usize> {
    let mut at = start;
    loop {
        at += memchr::memchr2(quote, b'\\', text.get(at..)?)?;
        if text[at] == quote {
            return Some(at);
        }
        at += 2;
    }
}

/// True if an object or a list follows a name at whose end `rest` begins, perhaps in a string of JSON.
pub(super) fn may_open(rest: &[u8]) -> bool {
    let mut signs = signs(rest);
    signs.next() == Some(b':') && signs.next().is_some_and(|byte| b"{[".contains(&byte))
}

/// True if a number, or no value at all, stands behind a name, as behind `input_tokens`.
pub(super) fn is_count(rest: &[u8]) -> bool {
    let mut signs = signs(rest);
    !signs.next().is_some_and(|byte| b":=".contains(&byte))
        || signs.find(|byte| !byte.is_ascii_digit()).is_none_or(|byte| b",}]\r\n".contains(&byte))
}

/// What stands behind a name, without blanks and quotes.
fn signs(rest: &[u8]) -> impl Iterator<Item = u8> {
    rest.iter().take(24).copied().filter(|byte| !b"\\\"' \t".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::super::{Masker, Secrets};
    use super::DEEPEST;
    use std::sync::Arc;

    /// `text`, masked whole and byte by byte.
    fn masked(text: &str) -> String {
        let secrets = Arc::new(Secrets::new(Vec::new(), &["phrase".to_owned()], &[]).expect("no patterns"));
        let (mut whole, mut bytes) = (Vec::new(), Vec::new());
        let (mut masker, mut slow) = (Masker::new(Arc::clone(&secrets)), Masker::new(secrets));
        masker.feed(text.as_bytes(), &mut whole);
        masker.end(&mut whole);
        text.as_bytes().iter().for_each(|byte| slow.feed(&[*byte], &mut bytes));
        slow.end(&mut bytes);
        assert_eq!(whole, bytes, "{text}");
        String::from_utf8(whole).expect("text")
    }

    fn assert_masked(examples: &[&str]) {
        for example in examples {
            let (mut text, mut expected) = (String::new(), String::new());
            for (index, part) in example.split(['«', '»']).enumerate() {
                text += part;
                expected += if index % 2 == 0 { part } else { "***" };
            }
            assert_eq!(masked(&text), expected, "{text}");
        }
    }

    #[test]
    fn strings_below_a_secret_name_are_masked() {
        assert_masked(&[
            r#"{"password":{"value":"«swordfish»"}}"#,
            r#"{"password": {"value": "«123456»", "type": "string"}}"#,
            r#"{"credentials":{"aws":{"key":"«wJalrXUtnFEMIK7MDENG»","id":"«a1b2c3d4»"},"region":"us-east-1"}}"#,
            r#"{"tokens":["«a1b2c3d4»","«b2c3d4e5»"],"n":1}"#,
            r#"{"refresh_tokens": {"bob": "«a1b2c3d4e5»", "at": "2026-11-23T09:07:35Z"}}"#,
            r#"{"secrets":[{"name":"db-1","value":"«swordfish»"},{"name":"x","value":"«a\"b»"}]}"#,
            r#"{"passwords":{"admin":"«hunter2»","root":"«toor-toor-123456»"}}"#,
            r#"{"t":"{\"credentials\":{\"x\":[\"«a1b2c3d4»\"]}}"}"#,
            r#"{"t":"{\"t\":\"{\\\"tokens\\\":[\\\"«a1b2c3d4»\\\"]}\"}"}"#,
            r#"{"phrase":{"value":"«open»"}}"#,
            r#"{"secret":{"value":"«req_01abc12345»","id":"«msg_a1b2c3»","key":"«toolu_01a2b3»"}}"#,
            r#"{'password': {'value': '«a1b2 c3»', 'b': True}}"#,
            r#"{"secret":{"value":"«unfinished"#,
            r#"{"api_keys":[["«a1b2c3d4»"],["read","max:255"]],"password":"«x»"}"#,
            r#"{"password" : {"value" : "«swordfish»" , "x" : 1}}"#,
            r#"{"passwords":{"value":[{"name":"x"},"«swordfish1»"]}}"#,
            r#"{"secret":{"id":"«msg_01a2b3-c4»"}}"#,
            r#"{"tokens":["the",{"value":"«swordfish1»"}]}"#,
        ]);
        for depth in [DEEPEST, DEEPEST + 1] {
            let text = format!(r#"{{"secret":{}"a1b2c3d4"{}}}"#, "[".repeat(depth), "]".repeat(depth));
            assert_eq!(masked(&text) != text, depth == DEEPEST, "{text}");
        }
        let long = format!(r#"{{"pad":"{}","credentials":{{"note":"{}","x":"#, "a b ".repeat(17_000), "c d ".repeat(900));
        for pad in 0..9 {
            let text = format!(r#"{}{}"a1b2c3d4"}},"z":"{}"}}"#, long, " ".repeat(pad * 400), "e f ".repeat(9_000));
            assert_eq!(masked(&text), text.replace("a1b2c3d4", "***"));
        }
    }

    #[test]
    fn words_below_a_secret_name_are_shown() {
        assert_masked(&[
            r#"{"token":{"type":"string","description":"At least 8 characters, as a1b2c3","pattern":"^[a-z0-9]{8,}$"}}"#,
            r#"{"password":{"label":"Password","placeholder":"Enter your password","hint":"8 to 64 characters"}}"#,
            r#"{"password":["required","max:255"],"tokens":["the","Ġcat","a1b2c3"],"secrets":[]}"#,
            r#"{"usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":"12"}}}"#,
            r#"{"credentials":{"provider":"aws","region":"eu-west-1","file":"/etc/aws1/credentials","token":"${TOKEN}"}}"#,
            r##"{"designToken":{"color":"#ff00aa","font":"Inter 12px bold","size":"12px","alg":"sha256"}}"##,
            r#"{"secret":{"created":"2026-11-23T09:07:35.848Z","version":"v1.2.3-rc1","hash":"sha256","kind":"aes-256-gcm"}}"#,
            r#"{"tokens":{"id":"msg_01AbCdEf234567","input":3},"secret":{"tool_use_id":"toolu_01A2b3C4"}}"#,
            r#"{"apiKeys":{"type":"array","items":{"type":"string"}},"id":"a1b2c3d4e5"}"#,
            r#""secret":{"a":1}[{"key":"a1b2c3d4"}]"#,
            r#"{"secret":{"type":"a1b2c3d4","value":"f(x1)"},"password":{"value":"${PW}","raw":"your-key-1"}}"#,
            r#"{"type":"result","result":"db:\n  password: >\n    swordfish","session_id":"5e2b","total_cost_usd":0.1}"#,
        ]);
    }
}
