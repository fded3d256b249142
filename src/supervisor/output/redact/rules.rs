//! Table of the rules by which [`super`] masks variables and tokens. A pattern matches the head of a secret, which is shown;
//! another one the value behind it, which is masked.

use anyhow::Result;
use regex::bytes::{Regex, RegexBuilder};

/// First words of the names of secret variables. In lower case, one needs a word boundary or `_` before it.
pub(super) const OWNERS: [&str; 7] = ["FORGE", "VAULT", "GH", "GITHUB", "CLAW", "CLAUDE", "ANTHROPIC"];

/// Rest of a name in upper case.
const UPPER_KIND: &str = "[A-Z0-9_]*(?:TOKEN|PASS|KEY|SECRET)[A-Z0-9_]*";

/// Rest of a name in lower or mixed case. It ends with the kind.
const MIXED_KIND: &str = r"\w*(?i:TOKEN|SECRET|PASSWORD|PASSWD|PASS|KEY)_?[0-9]*";

/// Length of the longest name of a variable.
pub(super) const LONGEST_NAME: usize = 128;

/// Length of the longest head: `_`, a name, a closing quote, `=`, an opening quote, spaces.
pub(super) const LONGEST_HEAD: usize = 1 + LONGEST_NAME + 9 + 2 + 1 + 2 + 9;

/// Prefixes of tokens.
pub(super) const TOKENS: [&str; 7] = ["sk-ant-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"];

/// Form of an assignment. Its head, up to the value, is shown; the value is masked.
pub(super) struct Rule {
    /// Parts of the pattern behind a name.
    head: &'static [&'static str],
    pub(super) value: Value,
    /// Form of the value in a line of JSON. `None`: the quote ends a string there, so that no value follows.
    pub(super) in_json: Option<Value>,
}

const EQUALS: &str = r#"(?:\\{0,8}["'])? {0,2}= {0,2}"#;
const COLON: &str = " {0,2}: {0,2}";

/// Quotes, plain, and escaped as in a JSON string, in one in one, and so on.
const QUOTES: [&str; 4] = ["\"", r#"\\""#, r#"\\{3}""#, r#"\\{7}""#];

/// Sign between a name and its value, as far as it can be at the end of a piece.
const UNFINISHED_SIGN: &str = r#"(?:\\{0,8}| {0,2}(?:= {0,2}\\{0,8})?|\\{0,8}["'] {0,2}(?:[=:] {0,2}\\{0,8})?)"#;

/// Assignments of secret variables. Where several match at one position, the first counts.
#[rustfmt::skip]
pub(super) const RULES: [Rule; 13] = [
    // NAME="value", NAME='value', NAME=value
    Rule { head: &[EQUALS, r"(?:\\{2}){0,4}", QUOTES[0]], value: Value::Quoted, in_json: None },
    Rule { head: &[EQUALS, QUOTES[1]], value: Value::QuotedOnce, in_json: Some(Value::QuotedOnce) },
    Rule { head: &[EQUALS, QUOTES[2]], value: Value::QuotedTwice, in_json: Some(Value::QuotedTwice) },
    Rule { head: &[EQUALS, QUOTES[3]], value: Value::Quoted3Times, in_json: Some(Value::Quoted3Times) },
    Rule { head: &[EQUALS, r"\\{0,8}'"], value: Value::Single, in_json: Some(Value::SingleInJson) },
    Rule { head: &[EQUALS], value: Value::Bare, in_json: Some(Value::Bare) },
    // "NAME": "value", 'NAME': 'value'
    Rule { head: &[QUOTES[0], COLON, QUOTES[0]], value: Value::Quoted, in_json: Some(Value::Quoted) },
    Rule { head: &[QUOTES[1], COLON, QUOTES[1]], value: Value::QuotedOnce, in_json: Some(Value::QuotedOnce) },
    Rule { head: &[QUOTES[2], COLON, QUOTES[2]], value: Value::QuotedTwice, in_json: Some(Value::QuotedTwice) },
    Rule { head: &[QUOTES[3], COLON, QUOTES[3]], value: Value::Quoted3Times, in_json: Some(Value::Quoted3Times) },
    Rule { head: &["'", COLON, "'"], value: Value::Single, in_json: Some(Value::SingleInJson) },
    Rule { head: &["'", COLON, QUOTES[0]], value: Value::Quoted, in_json: None },
    Rule { head: &[QUOTES[0], COLON, "'"], value: Value::Single, in_json: None },
];

/// Form of a value, an index into `VALUES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Word,
    Bare,
    Single,
    SingleInJson,
    Quoted,
    QuotedOnce,
    QuotedTwice,
    Quoted3Times,
}

/// Patterns of values, without the backslashes before what ends one. A quoted value ends at its own quote and at a quote of
/// a JSON string around it: each level of strings doubles the backslashes before a quote that belongs to the value.
const VALUES: [&str; 8] = [
    "[A-Za-z0-9_-]*",
    r#"(?:[^ \t\n\x0c\r"'`\\]|\\+[^ \t\n\x0c\r"'`\\nrt])*"#,
    r"(?:[^'\\\n]|\\+[^'\\\n])*",
    r#"(?:[^"'\\\n]|\\+[^"'\\\n]|(?:\\{2})*\\")*"#,
    r#"(?:[^"\\\n]|\\+[^"\\\n]|(?:\\{2})*\\")*"#,
    r#"(?:[^"\\\n]|\\+[^"\\\n]|(?:\\{4})*\\{3}")*"#,
    r#"(?:[^"\\\n]|\\+[^"\\\n]|(?:\\{8})*\\{7}")*"#,
    r#"(?:[^"\\\n]|\\+[^"\\\n]|(?:\\{16})*\\{15}")*"#,
];

/// Period of the meaning of backslashes in `VALUES`, and the most of them that are shown behind a value.
pub(super) const BACKSLASHES: usize = 16;
pub(super) const MOST_BACKSLASHES: usize = 4 * BACKSLASHES;

/// Compiles the heads of all variables; its groups are those of `RULES`.
pub(super) fn heads() -> Result<Regex> {
    compile(&format!("{}(?:({}))", name(), RULES.map(|rule| rule.head.concat()).join(")|(")))
}

/// Compiles what may be part of a head at the end of a piece.
pub(super) fn unfinished_head() -> Result<Regex> {
    compile(&format!(r"(?:{}\w*|{}{UNFINISHED_SIGN})\z", owner(), name()))
}

/// Compiles `VALUES`.
pub(super) fn values() -> Result<Vec<Regex>> {
    VALUES.iter().map(|value| compile(&format!(r"\A{value}"))).collect()
}

/// Length of the name at the start of `text`.
pub(super) fn name_length(text: &[u8]) -> usize {
    text.iter().take_while(|&&byte| byte.is_ascii_alphanumeric() || byte == b'_').count()
}

fn owner() -> String {
    let capital = OWNERS.map(|owner| format!("{}(?i:{})", &owner[..1], &owner[1..])).join("|");
    format!(r"(?:(?:\b|_)(?i:{})|{capital})", OWNERS.join("|"))
}

fn name() -> String {
    format!("(?:(?:{}){UPPER_KIND}|{}{MIXED_KIND})", OWNERS.join("|"), owner())
}

fn compile(pattern: &str) -> Result<Regex> {
    Ok(RegexBuilder::new(pattern).unicode(false).build()?)
}
