//! Masks secrets in text, line by line. `rules` is the table of their forms, `environment` finds those that our own environment
//! has, `known` the forms of such a one; `finder`, with `pairs`, finds the words that each form has in it, so that a line without them costs
//! one pass.
//! `names` and `values` know assignments, `ordinary` and `code` what is no secret behind a name, `nested` what stands below one, `headers`
//! where their values end, `decode` looks below JSON, percent-encoding and HTML, `pem` and `wrapped` across lines; `masker` is the stream;
//! `plain` sees, by `words`, that a short text needs none of this; `ours` is what this process masks.
//!
//! A line that is JSON stays JSON, memory is bounded, and the output does not depend on where reads split.

mod code;
mod decode;
mod environment;
mod finder;
mod headers;
mod json;
mod known;
mod masker;
mod names;
mod nested;
mod ordinary;
mod ours;
mod pairs;
mod pem;
mod plain;
mod rules;
mod secrets;
mod span;
mod values;
mod words;
mod wrapped;

pub use masker::Masker;
pub use ours::{configure, kept, masked, secrets};
pub use secrets::{Secrets, compile};

#[cfg(test)]
mod tests;
