//! What stands between a secret name and its value.

use std::ops::Range;

use memchr::memmem;

use super::super::decode::ENCODED;
use super::super::names;
use super::super::ordinary::is_random;
use super::super::span::NEAR;
use super::Scan;
use super::pair::names_next;

/// Sign between a name and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    Equals,
    Compares,
    Colon,
    Arrow,
    Tag,
    Space,
    /// `"name": "NAME", "value": "…"`.
    Pair,
    /// `("name", "…")`, `["--name", "…"]`.
    Comma,
}

/// Words behind which a name, a space and a value stand.
const SETTERS: [&[u8]; 8] = [b"setenv", b"setx", b"ENV", b"define", b"_set_header", b"add_header", b"var", b"const"];

/// What may stand around a value in quotes.
const OPENERS: [&[u8]; 12] = [
    b"Some(",
    b"SecretStr(",
    b"SecretString::from(",
    b"SecretString::new(",
    b"Secret::new(",
    b"String::from(",
    b"Optional.of(",
    b"[]string{",
    b"[]byte(",
    b"new String(",
    b"Ok(",
    b"Just ",
];

/// Elements whose attribute is the name of their text.
const ELEMENTS: [&[u8]; 9] = [b"property", b"entry", b"prop", b"param", b"string", b"setting", b"variable", b"env", b"header"];

/// Ends of elements that hold a name, and beginnings of those that hold its value.
const PAIRS_OF_ELEMENTS: [(&[u8], &[u8]); 2] = [(b"</key>", b"<string>"), (b"</name>", b"<value>")];

/// False if a value of `name` cannot stand behind it in `text`, also in an encoding.
pub(in super::super) fn may_follow(text: &[u8], name: &Range<usize>) -> bool {
    let rest = &text[name.end..];
    let spaces = rest.iter().take(64).take_while(|byte| b" \t".contains(byte)).count();
    let Some(&next) = rest.get(spaces) else { return false };
    let is_command = || {
        let before = &text[..name.start];
        let last = || before.trim_ascii_end().rsplit(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default();
        before.ends_with(b"-")
            || names::is_behind_code(text, name)
            || last().ends_with(b"set")
            || SETTERS.iter().any(|word| last().ends_with(word))
            || last().starts_with(b"-")
            || last().starts_with(b"//")
            || opens_tag(before)
    };
    b"=:+?>".contains(&next)
        || rest[spaces..].starts_with(b"||")
        || rest.starts_with(b"] =>")
        || rest.starts_with(b"(")
        || ENCODED.contains(&next) && !rest[spaces..].starts_with(b"\\n")
        || spaces == 0 && b"\"'`*".contains(&next)
        || spaces > 0 && is_command()
        || rest.starts_with(b"</")
        || next == b',' && names_next(text, name)
}

/// True if `before` ends with `<` or `<ns:`.
fn opens_tag(before: &[u8]) -> bool {
    let space = |before: &[u8]| before.iter().rev().take(32).take_while(|byte| byte.is_ascii_alphanumeric()).count();
    before.ends_with(b"<")
        || before.strip_suffix(b":").is_some_and(|before| before[..before.len() - space(before)].ends_with(b"<"))
}

/// Length of a type and a `=` before a quote: `&str = "…"`.
fn typed(rest: &[u8]) -> Option<usize> {
    let near = &rest[..rest.len().min(64)];
    let end = near.iter().position(|&byte| byte == b'=')?;
    let kind = near[..end].trim_ascii_end();
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"_<>[] .&'|?*:".contains(byte);
    let word = kind.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
    let is_type = kind.first().is_some_and(|first| first.is_ascii_uppercase() || b"&*".contains(first))
        || ["str", "string", "bytes", "any", "object", "char"]
            .iter()
            .any(|word_of_type| word_of_type.as_bytes() == &kind[..word]);
    let spaces = near[end + 1..].iter().take_while(|&&byte| byte == b' ').count();
    let is_quoted = near.get(end + 1 + spaces).is_some_and(|byte| b"\"'".contains(byte));
    (is_type && kind.iter().all(is_part) && is_quoted).then_some(end + 1)
}

/// Length of a type and a `(` before a quoted secret: `SecretString("…")`.
fn wrapper(rest: &[u8]) -> Option<usize> {
    let length = rest.iter().take(64).take_while(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(byte)).count();
    let string = rest[length..].strip_prefix(b"(")?;
    (rest[0].is_ascii_uppercase() && is_random_string(string)).then_some(length + 1)
}

/// True if `rest` begins with a string that looks like a secret.
fn is_random_string(rest: &[u8]) -> bool {
    let string = rest.strip_prefix(b"\"").or_else(|| rest.strip_prefix(b"'")).unwrap_or_default();
    let end = string.iter().take(NEAR).position(|byte| b"\"'\n".contains(byte));
    end.is_some_and(|end| is_random(&string[..end]))
}

impl Scan<'_> {
    /// The sign behind `spaces`, and the place behind it.
    pub(super) fn sign(&self, spaces: usize) -> Option<(Sign, usize)> {
        let rest = &self.text[self.at..];
        let table: [(&[u8], Sign); 14] = [
            (b"=>", Sign::Arrow),
            (b"===", Sign::Compares),
            (b"==", Sign::Compares),
            (b"=~", Sign::Compares),
            (b"=", Sign::Equals),
            (b"+=", Sign::Equals),
            (b":=", Sign::Equals),
            (b"?=", Sign::Equals),
            (b"??=", Sign::Equals),
            (b"||=", Sign::Equals),
            (b"?:", Sign::Colon),
            (b"::", Sign::Compares),
            (b":", Sign::Colon),
            (b">", Sign::Tag),
        ];
        if let Some((text, sign)) = table.into_iter().find(|(text, _)| rest.starts_with(text)) {
            let opens = || if self.quote.is_some() { self.names_element() } else { opens_tag(self.before()) };
            let is_tag = sign != Sign::Tag || opens();
            let behind = self.at + text.len();
            if sign == Sign::Colon {
                let skipped = self.text[behind..].iter().take(16).take_while(|&&byte| byte == b' ').count();
                if let Some(length) = typed(&self.text[behind + skipped..]) {
                    return Some((Sign::Equals, behind + skipped + length));
                }
            }
            return is_tag.then_some((sign, behind));
        }
        if rest.starts_with(b",") {
            return self.comma();
        }
        // `API_KEY || "default"`, `setPassword("…")`.
        let is_default = [&b"|| "[..], b"?? "].iter().any(|sign| rest.starts_with(sign)) && names::is_loud(self.name());
        if is_default && is_random_string(&rest[3..]) {
            return Some((Sign::Equals, self.at + 3));
        }
        let is_setter = self.name().strip_prefix(b"set").is_some_and(|rest| !rest.first().is_some_and(u8::is_ascii_lowercase));
        if rest.starts_with(b"(") && is_random_string(&rest[1..]) && is_setter {
            return Some((Sign::Equals, self.at + 1));
        }
        // `<key>password</key><string>…`, `<password kind="x">…`.
        for (end, start) in PAIRS_OF_ELEMENTS {
            if let Some(next) = rest.strip_prefix(end) {
                let blanks = next.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
                return next[blanks..].starts_with(start).then_some((Sign::Tag, self.at + end.len() + blanks + start.len()));
            }
        }
        if spaces > 0 && opens_tag(self.before()) {
            let near = &rest[..rest.len().min(256)];
            let end = near
                .iter()
                .position(|byte| b"<>\n".contains(byte))
                .filter(|&end| near[end] == b'>' && near[..end].contains(&b'='));
            return end.filter(|&end| near[end - 1] != b'/').map(|end| (Sign::Tag, self.at + end + 1));
        }
        if spaces == 0 || self.quote.is_some() || !self.is_command() {
            return None;
        }
        let words = || self.before().trim_ascii_end();
        let is_declared = [&b"var"[..], b"const"].iter().any(|word| words().ends_with(word));
        match typed(rest) {
            Some(length) => Some((Sign::Equals, self.at + length)),
            None => (!is_declared).then_some((Sign::Space, self.at)),
        }
    }

    /// A string behind the name, in a list or a call.
    fn comma(&self) -> Option<(Sign, usize)> {
        self.quote.filter(|_| !self.text[self.name.end..self.at].contains(&b']'))?;
        let rest = &self.text[self.at + 1..];
        let skipped = rest.iter().take(16).take_while(|byte| byte.is_ascii_whitespace()).count();
        Some((Sign::Comma, self.at + 1 + skipped))
    }

    /// True if the quoted `value`, which ends at `end`, is one of the name before it: that is a flag, or both are a pair, or the name is
    /// one of a variable or a header, and the value no other name.
    pub(super) fn fits_list(&self, value: &[u8], end: usize) -> bool {
        let before = self.before();
        let dashes = before.iter().rev().take_while(|&&byte| byte == b'-').count();
        let before = &before[..before.len() - dashes];
        let opening = before.strip_suffix(b"\"").or_else(|| before.strip_suffix(b"'")).unwrap_or(before);
        let opening = opening.strip_suffix(b"b").unwrap_or(opening);
        let is_flag = dashes > 0 && opening.len() < before.len();
        let is_call = opening.ends_with(b"(");
        let is_closed = self.text[end..].get(1) == Some(&b')');
        let is_name = names::is_loud(self.name()) || self.name().contains(&b'-');
        let is_words = |sign: u8| value.contains(&sign) && value.iter().all(|byte| byte.is_ascii_alphabetic() || *byte == sign);
        let is_other = value.iter().all(u8::is_ascii_uppercase) || is_words(b'-') || is_words(b'_');
        // The next key of an object.
        let is_key = self.text[end..].get(1..).unwrap_or_default().trim_ascii_start().starts_with(b":");
        let is_word = value.iter().all(u8::is_ascii_lowercase);
        let is_value = !is_other && !is_key && !value.starts_with(b"-") && !value.iter().any(u8::is_ascii_whitespace);
        is_value
            && (is_flag && self.fits_word(value)
                || is_call && (is_name || is_closed && !is_word)
                || is_name && is_random(value))
    }

    /// Skips what may stand before a value: `Some(`, `[` of a header, a type or an anchor of YAML.
    pub(super) fn skip_opener(&mut self) {
        let rest = &self.text[self.at..];
        let is_quote = |at: usize| rest.get(at).is_some_and(|byte| b"\"'".contains(byte));
        if let Some(opener) = OPENERS.iter().find(|opener| rest.starts_with(opener) && is_quote(opener.len())) {
            self.at += opener.len();
        } else if let Some(length) = wrapper(rest) {
            self.at += length;
        } else if rest.starts_with(b"<![CDATA[") {
            self.at += 9;
        } else if self.sign == Sign::Colon && self.starts() && (rest.starts_with(b"!!") || rest.starts_with(b"&")) {
            let line = rest.split(|&byte| byte == b'\n').next().unwrap_or_default();
            let word = line.iter().take_while(|&&byte| !byte.is_ascii_whitespace()).count();
            let is_yaml = line[word..].split(|&byte| byte == b' ').filter(|word| !word.is_empty()).count() == 1
                && line[1..word].iter().all(|byte| byte.is_ascii_alphanumeric() || b"!_-".contains(byte));
            self.at += if is_yaml { word + 1 } else { 0 };
        } else if self.name().contains(&b'-') && rest.starts_with(b"[") {
            let blanks = rest[1..].iter().take_while(|&&byte| byte == b' ').count();
            let end = rest.iter().take(NEAR).position(|&byte| byte == b']').unwrap_or(0);
            let is_one = !rest[..end].contains(&b',') && (is_quote(1 + blanks) || is_random(&rest[1..end.max(1)]));
            self.at += if is_one { 1 + blanks } else { 0 };
        }
    }

    /// True for `<property name="NAME">` and its like.
    fn names_element(&self) -> bool {
        let before = self.before();
        let is_owner = |byte: &&u8| before.ends_with(b".") && (names::is_part(**byte) || **byte == b'.');
        let owner = before.iter().rev().take_while(is_owner).count();
        let before = &before[..before.len().saturating_sub(owner + 1)];
        let Some(tag) = before.strip_suffix(b"name=").or_else(|| before.strip_suffix(b"key=")) else { return false };
        let word = memmem::rfind(tag, b"<").map(|start| tag[start + 1..].trim_ascii_end());
        word.is_some_and(|word| ELEMENTS.contains(&word))
    }

    /// True if a name and a space are followed by its value: a flag, `ENV NAME value`, `setenv NAME value`, `set -x NAME value`.
    fn is_command(&self) -> bool {
        let before = self.before();
        let dashes = before.iter().rev().take_while(|&&byte| byte == b'-').count();
        let is_config = |words: &[&[u8]]| {
            let words = words.split_last().filter(|(last, _)| last.starts_with(b"//")).map_or(words, |(_, words)| words);
            matches!(words, [.., config, set] if [&b"configure"[..], b"config"].contains(config) && *set == b"set")
        };
        let is_flag = dashes > 0 && before[..before.len() - dashes].last().is_none_or(|byte| b" \t\"'`([=".contains(byte));
        let words: Vec<&[u8]> = before.split(|&byte| byte == b' ').filter(|word| !word.is_empty()).collect();
        let is_setter = match words.as_slice() {
            [.., last] if SETTERS.iter().any(|setter| last.ends_with(setter)) => true,
            [.., set, option] => *set == b"set" && option.starts_with(b"-"),
            _ => false,
        };
        let is_name = names::is_loud(self.name())
            || self.name().contains(&b'-')
            || before.ends_with(b"var ")
            || before.ends_with(b"const ");
        is_flag || is_setter && is_name || is_config(&words)
    }
}
