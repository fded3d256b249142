//! Values below a secret name: in an object or a list of JSON, and in an indented block, as YAML and pretty JSON have them.

use std::ops::Range;

use super::names;
use super::ordinary::{Shape, is_ordinary, is_random, is_wordy};
use super::secrets::Open;

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

/// A block of lines below a name, which ends at a line that is indented no deeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Column of the name.
    column: usize,
    /// Column of the name of a text in it, `name: |`, of which all lines are secret.
    text: Option<usize>,
    /// True for the block of a password.
    is_password: bool,
}

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

/// What opens behind the sign of a secret name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    Nested,
    Text,
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
                if !level.is_list && text.get(next) == Some(&b':') {
                    key = string.clone();
                } else {
                    let value = &text[string.start..string.end.min(string.start + 512)];
                    level.is_prose |= level.is_list && !is_random(value);
                    if is_secret(name, &text[key.clone()], value, true) {
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
fn is_secret(name: &[u8], key: &[u8], value: &[u8], is_quoted: bool) -> bool {
    let shape = Shape { name, is_quoted, is_literal: false, is_assigned: false, goes_on: false };
    let plain = names::normalized(key);
    !is_ordinary(value, shape)
        && (PLAIN.iter().any(|key| key.as_bytes() == plain) || is_random(value) && !names::is_note(key) && !is_wordy(value))
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
    let mut signs = rest.iter().take(24).filter(|byte| !b"\\\"' \t".contains(byte));
    signs.next() == Some(&b':') && signs.next().is_none_or(|byte| b"{[\r\n".contains(byte)) || rest.starts_with(b":\\n")
}

/// The block that the secret name at `name` opens, the first of its line and the last but for a sign.
pub(super) fn opened(text: &[u8], name: &Range<usize>) -> Option<(usize, Block)> {
    let start = memchr::memrchr(b'\n', &text[..name.start]).map_or(0, |end| end + 1);
    let line = &text[start..];
    let line = &line[..memchr::memchr(b'\n', line).unwrap_or(line.len())];
    let (at, end) = (name.start - start, name.end - start);
    let body = body(line);
    let before = line.get(body..at)?;
    let is_first = before.iter().all(|byte| b" -\"'".contains(byte));
    let quotes = before.last().is_some_and(|byte| b"\"'".contains(byte));
    let rest = line.get(end + usize::from(quotes)..)?.strip_prefix(b":")?.trim_ascii();
    let opening = match rest {
        b"" | b"{" | b"[" => Opening::Nested,
        [b'|' | b'>', sign @ ..] if sign.len() < 3 && sign.iter().all(|byte| b"+-123456789".contains(byte)) => Opening::Text,
        _ => return None,
    };
    let column = at - usize::from(quotes) - body;
    let block = Block {
        column,
        text: (opening == Opening::Text).then_some(column),
        is_password: names::is_password(&text[name.clone()]),
    };
    is_first.then_some((start, block))
}

/// Calls `found` for what is secret in the lines of `text` that stand in `block`, or in one of those that are `opened` there.
pub(super) fn in_lines(text: &[u8], opened: &[(usize, Block)], block: &mut Option<Block>, mut found: impl FnMut(Range<usize>)) {
    let mut start = 0;
    for line in text.split(|&byte| byte == b'\n') {
        if let Some(range) = block.as_mut().and_then(|block| block.secret(line)) {
            found(start + range.start..start + range.end);
        }
        if block.is_some_and(|block| block.is_left_by(line)) {
            *block = None;
        }
        match (opened.iter().find(|(at, _)| *at == start), block.as_mut()) {
            (Some((_, new)), Some(block)) => block.text = new.text.or(block.text),
            (Some((_, new)), None) => *block = Some(*new),
            _ => {}
        }
        start += line.len() + 1;
    }
}

impl Block {
    fn is_left_by(self, line: &[u8]) -> bool {
        let content = &line[body(line)..];
        let column = indent(content);
        let is_item = column == self.column && content[column..].starts_with(b"- ") && self.text != Some(self.column);
        column <= self.column && !is_item && !content.trim_ascii().is_empty()
    }

    /// Place of the secret in `line`.
    fn secret(&mut self, line: &[u8]) -> Option<Range<usize>> {
        let start = body(line);
        let start = start + indent(&line[start..]);
        let content = line[start..].trim_ascii_end();
        if content.is_empty() || self.is_left_by(line) {
            return None;
        }
        let name: &[u8] = if self.is_password { b"password" } else { b"secret" };
        self.text = self.text.filter(|&column| start - body(line) > column);
        if self.text.is_some() {
            let is_marker = content.starts_with(b"-----");
            return (!is_marker && is_secret(name, b"value", content, true)).then_some(start..start + content.len());
        }
        let dashes = content.iter().take_while(|byte| b"- ".contains(byte)).count();
        let item = &content[dashes..];
        let quote = |text: &[u8]| text.first().copied().filter(|byte| b"\"'".contains(byte));
        let open = usize::from(quote(item).is_some());
        let key = item[open..].iter().take_while(|&&byte| names::is_part(byte)).count();
        let behind = &item[open + key..];
        let behind = behind.get(usize::from(quote(behind).is_some())..).unwrap_or_default();
        let is_pair = key > 0 && (behind == b":" || behind.starts_with(b": "));
        let (key, value) = if is_pair { (&item[open..open + key], behind[1..].trim_ascii_start()) } else { (&b""[..], item) };
        if !is_pair && dashes == 0 && open == 0 {
            return None;
        }
        let from = start + content.len() - value.len();
        let (from, length) = match quote(value) {
            Some(quote) => (from + 1, end_of_string(value, 1, quote).unwrap_or(value.len()) - 1),
            None => (from, value.iter().position(|byte| b" ,".contains(byte)).unwrap_or(value.len())),
        };
        let value = &line[from..from + length];
        is_secret(name, key, value, line[..from].ends_with(b"\"")).then_some(from..from + length)
    }
}

fn indent(line: &[u8]) -> usize {
    line.iter().take_while(|&&byte| byte == b' ').count()
}

/// Length of what a tool puts before a line: its number and a tab, or the `+` of a diff.
fn body(line: &[u8]) -> usize {
    let first = indent(line);
    let digits = line[first..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = &line[first + digits..];
    match rest {
        [b'\t', ..] if digits > 0 => first + digits + 1,
        _ if digits > 0 && rest.starts_with("→".as_bytes()) => first + digits + "→".len(),
        [b'+', ..] if first + digits == 0 => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Masker, Secrets};
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
            r#"{'password': {'value': '«a1b2 c3»', 'b': True}}"#,
            r#"{"secret":{"value":"«unfinished"#,
            r#"{"api_keys":[["«a1b2c3d4»"],["read","max:255"]],"password":"«x»"}"#,
        ]);
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
            r#"{"apiKeys":{"type":"array","items":{"type":"string"}},"id":"a1b2c3d4e5"}"#,
        ]);
    }

    #[test]
    fn blocks_below_a_secret_name_are_masked() {
        assert_masked(&[
            "password: |\n  «swordfish»\n\n  «second line»\nnext: swordfish\n",
            "a:\n  token: >-\n    «a b»\n  next: line\n",
            "secret:\n  value: «swordfish» # of mine\n  name: db-1\nvalue: swordfish\n",
            "secrets:\n- «a1b2c3d4»\n- db\n- x: «b2c3d4e5»\nnext:\n- a1b2c3d4\n",
            "- credentials:\n    aws:\n      id: '«a1b2c3d4»'\n      region: eu-west-1\n  other: a1b2c3d4\n",
            "credentials:\n  some-name: |\n    plain words\n  password: |\n    «plain words»\n  other: words\n",
            "  \"password\": {\n    \"value\": \"«swordfish»\",\n    \"type\": \"string\"\n  },\n  \"value\": \"swordfish\"\n",
            "  \"tokens\": [\n    \"«a1b2c3d4»\",\n    \"max:255\"\n  ],\n  \"x\": \"a1b2c3d4\"\n",
            "     1\tsecret:\n     2\t  value: «swordfish»\n     3\tnext: x\n     4\t  value: swordfish\n",
            "+secret:\n+  value: «swordfish»\n next: x\n",
            r#"{"t":"a:\n  password: |\n    «swordfish»\n  next: swordfish\n"}"#,
            "private_key: |\n  -----BEGIN RSA PRIVATE KEY-----\n  «MIIEpAIBAAKCAQEA0123»\n  -----END RSA PRIVATE KEY-----\nnext: a\n",
        ]);
    }

    #[test]
    fn lines_below_a_word_are_shown() {
        assert_masked(&[
            "Password:\n  Must have 8 chars, such as a1b2c3d4\n",
            "secrets:\n  token:\n    required: true\n    description: 'as a1b2c3d4'\n",
            "secrets:\n  - source: db\n    file: ./x1/y2.txt\n",
            "password:\n  type: string\n  example: a1b2c3d4\n",
            "token: |\n  ${{ secrets.TOKEN }}\n  /run/secrets/x\n",
            "max_tokens:\n  default: 4096\n",
            "if token:\n    value = a1b2c3d4\n",
            "the secret:\n  value: a1b2c3d4\n",
            "  token: {\n    type: String,\n    default: 'a1b2c3d4',\n  },\n",
        ]);
    }
}
