//! JSON in which no text has a secret in clear, each has an end, and no character acts on a terminal.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter};

use super::words::{acts, shown};

/// A line of JSON, as an operation may show it.
pub(crate) fn json_line(value: &impl Serialize) -> String {
    json_of(value, shown, &[]).unwrap_or_default() + "\n" // it fails for nothing that an operation shows
}

/// `value` as JSON, in which each text is what `change` makes of it: but not the keys, which are ours, and not what is in the members
/// `exact` of the outermost object.
pub(crate) fn json_of(value: &impl Serialize, change: impl Fn(&str) -> String, exact: &[&str]) -> serde_json::Result<String> {
    let mut json = Vec::with_capacity(1024);
    let changing = Changing { change, exact, depth: 0, is_key: false, is_exact: false, text: String::new() };
    value.serialize(&mut Serializer::with_formatter(&mut json, changing))?;
    Ok(escaped_json(String::from_utf8(json).unwrap_or_default())) // it is
}

/// Formatter that holds a text that it changes back until it is whole.
struct Changing<'a, C> {
    change: C,
    exact: &'a [&'a str],
    depth: usize,
    is_key: bool,
    is_exact: bool,
    text: String,
}

impl<C> Changing<'_, C> {
    /// True if a text stays as it is.
    fn passes(&self) -> bool {
        self.is_key || self.is_exact
    }
}

impl<C: Fn(&str) -> String> Formatter for Changing<'_, C> {
    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth += 1;
        out.write_all(b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth -= 1;
        out.write_all(b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.is_key = true;
        if first { Ok(()) } else { out.write_all(b",") }
    }

    fn end_object_key<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_key = false;
        if self.depth == 1 {
            self.is_exact = self.exact.contains(&self.text.as_str());
        }
        Ok(())
    }

    fn begin_string<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.text.clear();
        if self.passes() { out.write_all(b"\"") } else { Ok(()) }
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        self.text.push_str(fragment);
        if self.passes() { out.write_all(fragment.as_bytes()) } else { Ok(()) }
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, out: &mut W, escape: CharEscape) -> io::Result<()> {
        if self.passes() {
            return CompactFormatter.write_char_escape(out, escape);
        }
        self.text.push(match escape {
            CharEscape::Quote => '"',
            CharEscape::ReverseSolidus => '\\',
            CharEscape::Solidus => '/',
            CharEscape::Backspace => '\u{8}',
            CharEscape::FormFeed => '\u{c}',
            CharEscape::LineFeed => '\n',
            CharEscape::CarriageReturn => '\r',
            CharEscape::Tab => '\t',
            CharEscape::AsciiControl(byte) => byte.into(),
        });
        Ok(())
    }

    fn end_string<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        if self.passes() {
            return out.write_all(b"\"");
        }
        Ok(serde_json::to_writer(out, &(self.change)(&self.text))?)
    }

    /// JSON of others' is parsed before it is shown.
    fn write_raw_fragment<W: ?Sized + Write>(&mut self, _: &mut W, _: &str) -> io::Result<()> {
        Err(io::Error::other("JSON that nobody has looked into"))
    }
}

/// Finished JSON, in which serde_json has left the characters beyond ASCII as they are.
pub(crate) fn escaped_json(json: String) -> String {
    if json.bytes().all(|byte| byte < 0x7f) {
        return json;
    }
    json.chars().fold(String::with_capacity(json.len()), |mut safe, c| {
        if acts(c) && c != '\n' {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                let _ = write!(safe, "\\u{unit:04x}"); // into memory
            });
        } else {
            safe.push(c);
        }
        safe
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn no_character_acts() {
        assert_eq!(
            escaped_json("{\"a\":\"\u{9b}é\u{2066}\u{e0041}\"}\n".to_owned()),
            "{\"a\":\"\\u009bé\\u2066\\udb40\\udc41\"}\n"
        );
    }

    #[test]
    fn each_text_is_changed_whole_but_keys_and_what_is_exact() {
        let all: String = (0..=0x7f_u8).map(char::from).chain("é€😀".chars()).collect();
        let value = json!({
            "a": &all, "": ["x", 1, null, {"exact": "x", "k": [[]]}, {}], "exact": {"a": "x", "b": ["\"\n", {"c": "x"}]}, "z": "x", "exact ": "",
        });
        let json = json_of(&value, |text| format!("<{text}>"), &["exact"]).expect("JSON");
        let seen: Value = serde_json::from_str(&json).expect("JSON");
        let expected = json!({
            "a": format!("<{all}>"), "": ["<x>", 1, null, {"exact": "<x>", "k": [[]]}, {}],
            "exact": {"a": "x", "b": ["\"\n", {"c": "x"}]}, "z": "<x>", "exact ": "<>",
        });
        assert_eq!(seen, expected);
        let plain = |value: &Value| json_of(value, str::to_owned, &[]).expect("JSON");
        assert_eq!(plain(&value), escaped_json(value.to_string()));
        let keys = std::collections::BTreeMap::from([(5, "x")]);
        assert_eq!(json_of(&keys, str::to_uppercase, &[]).expect("JSON"), r#"{"5":"X"}"#);
        let numbers = json!([true, -1, 0.5, u64::MAX]);
        assert_eq!(plain(&numbers), numbers.to_string());
        assert!(json_of(&serde_json::value::to_raw_value("x").expect("JSON"), str::to_owned, &[]).is_err());
    }
}
