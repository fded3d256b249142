//! Claude's JSON, as JavaScript reads it: numbers of any size, any depth, halves of surrogate pairs, bytes that are no UTF-8. serde_json
//! refuses these where it makes a value, but not where it only finds the value's end. Files with tokens are read so too, but in place: see
//! `credentials`.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, IgnoredAny, Visitor};
use serde_json::value::RawValue;

/// The members of an object, each read when it is asked for.
#[derive(Debug, Default)]
pub(super) struct Object(HashMap<String, Box<RawValue>>);

impl Object {
    /// Reads a text, which may begin with a byte order mark. Another value than an object has no members.
    pub(super) fn parse(text: &[u8]) -> serde_json::Result<Self> {
        let text = String::from_utf8_lossy(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text));
        match serde_json::from_str::<HashMap<Text, Box<RawValue>>>(&text) {
            Ok(members) => Ok(Self(members.into_iter().map(|(Text(name), value)| (name, value)).collect())),
            Err(error) if error.is_data() => serde_json::from_str::<IgnoredAny>(&text).map(|_| Self::default()),
            Err(error) => Err(error),
        }
    }

    /// The member `name` as it is written.
    pub(super) fn raw(&self, name: &str) -> Option<&str> {
        Some(self.0.get(name)?.get())
    }

    /// The member `name`, if it is of this type.
    pub(super) fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.raw(name)?).ok()
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(|Text(text)| text)
    }

    pub(super) fn object(&self, name: &str) -> Option<Self> {
        let raw = self.raw(name).filter(|raw| raw.starts_with('{'))?;
        Self::parse(raw.as_bytes()).ok()
    }
}

/// A string, with U+FFFD in the place of what is no character.
#[derive(PartialEq, Eq, Hash)]
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(TextVisitor)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text, E> {
        Ok(Text(String::from_utf8_lossy(bytes).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_is_read_as_javascript_reads_it() -> serde_json::Result<()> {
        let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
        for other in [&b"\"\\ud800\""[..], b"\"\xff\"", b"1e999", deep.as_bytes()] {
            for start in [&b"\xef\xbb\xbf"[..], b" \n"] {
                let text = [start, br#"{"x":"#, other, br#","\udc00":1,"o":{"x":"#, other, br#","a":"b\n"},"n":7}"#].concat();
                let object = Object::parse(&text)?;
                assert_eq!(object.object("o").and_then(|o| o.text("a")).as_deref(), Some("b\n"));
                assert_eq!((object.get("n"), object.get::<i32>("x"), object.text("n")), (Some(7), None, None));
            }
        }
        assert_eq!(Object::parse(br#"{"a":1,"a":"x\ud800y"}"#)?.text("a"), Some("x\u{fffd}\u{fffd}\u{fffd}y".to_owned()));
        assert!(Object::parse(b"[1]")?.0.is_empty() && Object::parse(b"{} {}").is_err() && Object::parse(b"").is_err());
        Ok(())
    }
}
