//! JSON objects without a tree of values in between: made in the order of their members, straight into their text, and read
//! member by member. Every run writes two, and `status` may read and write thousands.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The members of an object, as text.
#[derive(Debug, Default)]
pub(crate) struct Object(String);

impl Object {
    /// Adds a member. What JSON has no form for becomes `null`: a number that is none.
    pub(crate) fn add(&mut self, name: &str, value: impl Serialize) -> &mut Self {
        self.member(name, &serde_json::to_string(&value).unwrap_or_else(|_| NULL.to_owned()))
    }

    /// Adds a member that is an object, or `null`.
    pub(crate) fn add_object(&mut self, name: &str, object: Option<Self>) -> &mut Self {
        self.member(name, &object.map_or_else(|| NULL.to_owned(), Self::into_text))
    }

    /// Adds a member that is an array of objects.
    pub(crate) fn add_list(&mut self, name: &str, objects: impl IntoIterator<Item = Self>) -> &mut Self {
        self.member(name, &array(objects))
    }

    /// The object's text, in one line.
    pub(crate) fn into_text(self) -> String {
        ["{", &self.0, "}"].concat()
    }

    fn member(&mut self, name: &str, value: &str) -> &mut Self {
        let comma = if self.0.is_empty() { "" } else { "," };
        self.0.extend([comma, "\"", name, "\":", value]);
        self
    }
}

/// An array of objects, as text.
pub(crate) fn array(objects: impl IntoIterator<Item = Object>) -> String {
    let objects: Vec<_> = objects.into_iter().map(Object::into_text).collect();
    ["[", &objects.join(","), "]"].concat()
}

const NULL: &str = "null";

/// The members of an object that was read.
pub(crate) struct Members<'a>(BTreeMap<Cow<'a, str>, &'a RawValue>);

impl<'a> Members<'a> {
    /// Takes an object apart; anything else has no members that could be asked for.
    pub(crate) fn read(text: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(text).ok().map(Self)
    }

    /// The member `name`, if it is there and such a value.
    pub(crate) fn get<T: Deserialize<'a>>(&self, name: &str) -> Option<T> {
        let value = self.0.get(name)?.get();
        // As a bad value it would be found out only after an error had been made of it.
        if value == NULL { None } else { serde_json::from_str(value).ok() }
    }

    /// The member `name`, if it is an object.
    pub(crate) fn members(&self, name: &str) -> Option<Self> {
        Self::read(self.0.get(name)?.get().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_written_and_no_other_kind_of_value() {
        let members = Members::read(br#"{"a":"x\ny","n":7,"in":{"b":true},"a\u0062":null}"#);
        let members = members.unwrap_or_else(|| Members(BTreeMap::new()));
        assert_eq!((members.get("a"), members.get("n")), (Some("x\ny".to_owned()), Some(7_u64)));
        assert_eq!((members.get::<u8>("a"), members.get::<String>("n"), members.get::<u8>("ab")), (None, None, None));
        assert_eq!(members.members("in").and_then(|inner| inner.get("b")), Some(true));
        assert!(members.members("a").is_none() && Members::read(b"[]").is_none() && Members::read(b"{").is_none());
    }

    #[test]
    fn members_stand_as_they_were_added_and_escaped() {
        let mut inner = Object::default();
        inner.add("b", f64::NAN);
        let mut object = Object::default();
        object
            .add("z", "\"\n\u{e9}")
            .add("a", Some(1.5))
            .add("none", None::<u8>)
            .add_object("in", Some(inner))
            .add_object("out", None);
        object.add_list("list", [Object::default(), Object::default()]);
        assert_eq!(
            object.into_text(),
            r#"{"z":"\"\né","a":1.5,"none":null,"in":{"b":null},"out":null,"list":[{},{}]}"#.replace("\\u00e9", "\u{e9}")
        );
        assert_eq!(Object::default().into_text(), "{}");
    }
}
