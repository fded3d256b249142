//! A JSON object in the order of its making, straight into its text: every run writes two, and a map of values would cost more
//! than the rest of its books.

use std::fmt;

use serde::Serialize;

/// The members of an object, as text.
#[derive(Debug, Default)]
pub(super) struct Object(Vec<u8>);

impl Object {
    /// Adds a member. What JSON has no form for becomes `null`: a number that is none.
    pub(super) fn add(&mut self, name: &str, value: impl Serialize) -> &mut Self {
        self.name(name);
        let length = self.0.len();
        if serde_json::to_writer(&mut self.0, &value).is_err() {
            self.0.truncate(length);
            self.0.extend_from_slice(b"null");
        }
        self
    }

    /// Adds a member that is an object, or `null`.
    pub(super) fn add_object(&mut self, name: &str, object: Option<Self>) -> &mut Self {
        self.name(name);
        self.0.extend_from_slice(object.map_or_else(|| "null".to_owned(), |object| object.to_string()).as_bytes());
        self
    }

    fn name(&mut self, name: &str) {
        if !self.0.is_empty() {
            self.0.push(b',');
        }
        self.0.extend_from_slice(format!("\"{name}\":").as_bytes());
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // serde_json writes UTF-8, and so do we.
        write!(f, "{{{}}}", String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(
            object.to_string(),
            r#"{"z":"\"\né","a":1.5,"none":null,"in":{"b":null},"out":null}"#.replace("\\u00e9", "\u{e9}")
        );
        assert_eq!(Object::default().to_string(), "{}");
    }
}
