//! Values behind a secret name that are no secrets: numbers, paths, variables, types, code and words.

use super::code::is_expression;
use super::names;

/// Words that stand where a value would.
const WORDS: [&str; 84] = [
    "none",
    "null",
    "nil",
    "undefined",
    "true",
    "false",
    "yes",
    "no",
    "on",
    "off",
    "read",
    "write",
    "str",
    "string",
    "bytes",
    "int",
    "integer",
    "number",
    "bool",
    "boolean",
    "any",
    "unknown",
    "object",
    "float",
    "char",
    "void",
    "never",
    "uuid",
    "text",
    "password",
    "secret",
    "token",
    "optional",
    "required",
    "default",
    "empty",
    "unset",
    "missing",
    "invalid",
    "valid",
    "expired",
    "present",
    "absent",
    "redacted",
    "masked",
    "hidden",
    "omitted",
    "removed",
    "changed",
    "updated",
    "n/a",
    "tbd",
    "todo",
    "auto",
    "inherit",
    "input",
    "output",
    "bearer",
    "basic",
    "self",
    "this",
    "async",
    "await",
    "nonexistent",
    "keyword",
    "comment",
    "identifier",
    "u8",
    "u16",
    "u32",
    "u64",
    "u128",
    "usize",
    "i8",
    "i16",
    "i32",
    "i64",
    "i128",
    "isize",
    "f32",
    "f64",
    "int32",
    "int64",
    "byte",
];

/// Values of `credentials` in requests of a browser.
const MODES: [&str; 3] = ["same-origin", "include", "omit"];

/// Beginnings of what HTML encodes.
const ENTITIES: [&str; 4] = ["&lt;", "&quot;", "&apos;", "&#"];

/// Words of a sentence about secrets.
const PROSE: [&str; 29] = [
    "password", "token", "secret", "key", "your", "not", "invalid", "required", "must", "enter", "please", "missing",
    "expired", "cannot", "the", "is", "to", "for", "of", "in", "with", "be", "from", "and", "or", "was", "has", "no", "this",
];

/// Number of those that no passphrase is likely to have.
const TELLING: usize = 14;

/// References to the environment or another variable.
const LOOKUPS: [&str; 9] =
    ["process.env", "os.environ", "os.getenv", "std::env", "getenv(", "env(", "env.", "secrets.", "import.meta"];

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape<'a> {
    pub(super) name: &'a [u8],
    pub(super) is_quoted: bool,
    /// No language has an expression there: `NAME=value` of a shell, `X-Name: value` of a header.
    pub(super) is_literal: bool,
    /// `NAME='some words'` of a shell.
    pub(super) is_assigned: bool,
    /// A word there is no variable.
    pub(super) is_text: bool,
    /// A list or a block goes on behind it: `name: Type,`.
    pub(super) goes_on: bool,
}

/// True if `value` is no secret.
pub(super) fn is_ordinary(value: &[u8], shape: Shape) -> bool {
    let Some(&first) = value.first() else { return true };
    let is_filler = value.iter().all(|&byte| byte == first) && (3..64).contains(&value.len());
    is_filler
        || value.len() < 5 && !value.iter().any(u8::is_ascii_alphanumeric)
        || is_number(value) && !(shape.is_quoted && names::is_password(shape.name))
        || is_path(value)
        || is_placeholder(value) && !is_marked_word(value, shape)
        || is_word(value, shape)
        || is_colour(value) && !names::is_password(shape.name)
        || !shape.is_literal && is_code(value, shape)
        || shape.is_quoted && is_sentence(value, if shape.is_assigned { TELLING } else { PROSE.len() })
}

/// True for a number, also with a unit.
pub(super) fn is_number(value: &[u8]) -> bool {
    let value = value.strip_prefix(b"-").unwrap_or(value);
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit() || b".,_:".contains(byte)).count();
    let units: [&[u8]; 18] =
        [b"", b"%", b"k", b"K", b"m", b"M", b"g", b"G", b"b", b"B", b"s", b"ms", b"h", b"d", b"kb", b"KB", b"MB", b"px"];
    value.first().is_some_and(u8::is_ascii_digit) && units.contains(&&value[digits..])
}

/// True for a path, a URL or the name of something elsewhere.
pub(super) fn is_path(value: &[u8]) -> bool {
    let starts = |starts: &[&[u8]]| starts.iter().any(|start| value.starts_with(start));
    let is_plain = |byte: &u8| !b"+=".contains(byte);
    let segments = || value.split(|&byte| byte == b'/' || byte == b'\\');
    let is_drive = value.len() > 2 && value[0].is_ascii_alphabetic() && value[1] == b':' && b"\\/".contains(&value[2]);
    starts(&[b"http://", b"https://", b"file://", b"op://", b"arn:"])
        || (starts(&[b"/", b"./", b"../", b"~/"]) || is_drive)
            && segments().all(|segment| segment.len() < 32 && segment.iter().all(is_plain) && !is_base64_piece(segment))
            && (is_expression(value) || starts(&[b"/^", b"/["]) || !value.iter().any(|byte| b"!$^&*(){}[]|;<>?".contains(byte)))
}

/// True for letters of both cases and digits, and nothing else, as between two `/` of base64.
fn is_base64_piece(segment: &[u8]) -> bool {
    let has = |is: fn(&u8) -> bool| segment.iter().any(is);
    let is_mixed = has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit);
    segment.len() >= 16 && is_mixed && segment.iter().all(u8::is_ascii_alphanumeric)
}

/// True for `$TOKEN`, `<token>`, `{token}`, `%s`, `***` and their like.
pub(super) fn is_placeholder(value: &[u8]) -> bool {
    let rest = &value[1..];
    match value[0] {
        b'$' => {
            let name_end = rest.iter().take_while(|&&byte| byte.is_ascii_alphanumeric() || byte == b'_').count();
            let name = &rest[..name_end];
            let is_name =
                name.first().is_some_and(|first| !first.is_ascii_digit()) && (names::is_loud(name) || names::is_secret(name));
            let is_special = |at: &u8| b"@*#?!".contains(at) && !rest.iter().any(u8::is_ascii_alphanumeric);
            rest.first().is_none_or(|first| b"{(".contains(first) || is_special(first))
                || rest.starts_with(b"env:")
                || is_name
                || rest.len() == 1
        }
        b'<' => rest.contains(&b'>') || !is_random(value),
        b'{' | b'#' if rest.starts_with(b"{") || value.ends_with(b"}") || value == b"{" => true,
        b'%' => rest.len() < 3 || rest[0] == b'(' || rest.ends_with(b"%"),
        b':' | b'@' | b'&' | b'*' | b'!' => {
            rest.iter().all(|byte| byte.is_ascii_alphabetic() || b"_:".contains(byte)) || rest.starts_with(b"*")
        }
        b'[' => value.ends_with(b"]"),
        b'|' | b'>' | b'-' | b'+' | b'?' | b'=' => rest.len() < 2,
        b'.' => value.starts_with(b"..."),
        _ => value.starts_with("…".as_bytes()) || value.ends_with(b"***") || value.ends_with(b"..."),
    }
}

/// True for `@swordfish`, where no language has a reference, a tag or an alias.
fn is_marked_word(value: &[u8], shape: Shape) -> bool {
    let (sign, word) = (value[0], &value[1..]);
    (shape.is_literal || shape.is_quoted)
        && names::is_password(shape.name)
        && b"@&*!".contains(&sign)
        && word.len() > 3
        && word.iter().all(u8::is_ascii_alphabetic)
        && !names::is_secret(word)
}

/// True for a word that no secret is, and that stands where one would.
pub(super) fn is_keyword(value: &[u8]) -> bool {
    WORDS.iter().any(|word| word.as_bytes().eq_ignore_ascii_case(value))
}

fn is_word(value: &[u8], shape: Shape) -> bool {
    let lower = value.to_ascii_lowercase();
    let words: &[&str] = if shape.is_literal { &WORDS[..12] } else { &WORDS };
    let is_variable =
        names::is_loud(value) && value.contains(&b'_') && names::is_secret(value) && !value.iter().any(u8::is_ascii_digit);
    let is_mode = MODES.iter().any(|mode| mode.as_bytes() == lower) && shape.name.eq_ignore_ascii_case(b"credentials");
    words.iter().any(|word| word.as_bytes() == lower) || is_mode || is_yours(&lower) && !shape.is_literal || is_variable
}

/// True for `your_token`, `yourpassword`, `your-key-1`.
fn is_yours(lower: &[u8]) -> bool {
    let is_separator = |byte: &u8| b"-_ .".contains(byte);
    lower.strip_prefix(b"your").is_some_and(|rest| {
        rest.iter().all(|byte| byte.is_ascii_alphanumeric() || is_separator(byte))
            && (rest.iter().any(is_separator) || !rest.iter().any(u8::is_ascii_digit))
    })
}

/// True for an expression: a call, a member, a type, a variable with a name like that of a secret.
fn is_code(value: &[u8], shape: Shape) -> bool {
    let has = |word: &str| value.windows(word.len()).any(|window| window == word.as_bytes());
    if LOOKUPS.iter().any(|lookup| has(lookup)) {
        return true;
    }
    let is_expression = is_expression(value);
    if b" \t)],;+}".contains(&value[0]) || b"&?".contains(&value[0]) && !shape.is_quoted {
        return is_expression
            || value.iter().any(u8::is_ascii_whitespace)
            || ENTITIES.iter().any(|tag| value.starts_with(tag.as_bytes()));
    }
    let is_template = has("${") && has("}") || has("{{") && has("}}");
    let is_pattern = ["(?:", "(?P<", "(?=", "(?!"].iter().any(|group| has(group)) || has("[^") && has("]");
    let is_call = is_expression && has("(") && has(")");
    let is_wordy = |part: &[u8]| part.iter().all(|byte| byte.is_ascii_alphabetic() || b"_?!".contains(byte));
    // "mysecretpassword" is a password more often than a name.
    let is_phrase = names::is_password(shape.name) && shape.is_text && value.iter().all(u8::is_ascii_lowercase);
    let is_similar = is_wordy(value) && (names::is_secret(value) && !is_phrase || value.eq_ignore_ascii_case(shape.name));
    let is_path_of_names = (has(".") || has("::") || has("->"))
        && value.split(|byte| b".:->".contains(byte)).all(|part| is_wordy(part) && part.len() < 24);
    if shape.is_quoted {
        let is_path = is_path_of_names && !value.iter().any(u8::is_ascii_uppercase);
        return is_template || is_pattern || is_call && !shape.is_assigned || is_similar || is_path;
    }
    let is_type = is_expression && (value.iter().any(|byte| b"<[(|`".contains(byte)) || value.ends_with(b"?"));
    let is_type_name = value[0].is_ascii_uppercase()
        && value.iter().all(u8::is_ascii_alphabetic)
        && (value.len() == 1 || shape.goes_on && value.iter().any(u8::is_ascii_lowercase));
    is_template || is_similar || is_path_of_names || is_type || is_type_name
}

/// True for a login behind a name that does not say that there is one: base64 of `user:password`, or what mixes letters and digits.
pub(super) fn is_login(value: &[u8]) -> bool {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/-_=".contains(byte);
    let is_encoded = value.len() > 5 && value.iter().all(is_base64) && has_colon(value);
    let is_code = || value.iter().any(|byte| b"(<[.|".contains(byte)) && is_expression(value);
    is_encoded || is_random(value) && !is_wordy(value) && !is_path(value) && !is_code()
}

/// True if `value` is base64 of text with a colon in it.
fn has_colon(value: &[u8]) -> bool {
    let digit = |byte: &u8| match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'a'..=b'z' => u32::from(byte - b'a') + 26,
        b'0'..=b'9' => u32::from(byte - b'0') + 52,
        b'+' | b'-' => 62,
        _ => 63,
    };
    let digits: Vec<u32> = value.iter().filter(|&&byte| byte != b'=').map(digit).collect();
    let group = |four: &[u32]| {
        let bits = four.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - four.len()));
        bits.to_be_bytes().into_iter().skip(1).take(four.len() * 6 / 8).collect::<Vec<u8>>()
    };
    let text: Vec<u8> = digits.chunks(4).flat_map(group).collect();
    text.contains(&b':') && std::str::from_utf8(&text).is_ok_and(|text| !text.contains(char::is_control))
}

/// True for words about secrets, such as a label or an error.
fn is_sentence(value: &[u8], telling: usize) -> bool {
    let words = || value.split(|byte| !byte.is_ascii_alphabetic()).filter(|word| !word.is_empty());
    let is_prose = |word: &[u8]| PROSE[..telling].iter().any(|other| other.as_bytes().eq_ignore_ascii_case(word));
    value.contains(&b' ') && words().count() > 1 && words().any(is_prose)
}

/// Names with digits in them.
const ALGORITHMS: [&str; 12] = [
    "sha256",
    "sha384",
    "sha512",
    "base64",
    "base64url",
    "oauth2",
    "argon2",
    "argon2id",
    "ed25519",
    "x25519",
    "secp256k1",
    "aes256",
];

/// True for words, a date or a colour, though digits are in it: `us-east-1`, `v1.2.3`, `at least 8 characters`.
pub(super) fn is_wordy(value: &[u8]) -> bool {
    let is_date = value.len() >= 10
        && value[..10].iter().enumerate().all(
            |(at, byte)| {
                if at == 4 || at == 7 { b"-/".contains(byte) } else { byte.is_ascii_digit() }
            },
        );
    let segments = || value.split(|byte| !byte.is_ascii_alphanumeric()).filter(|segment| !segment.is_empty());
    let is_segment = |segment: &[u8]| segment.iter().skip_while(|byte| byte.is_ascii_alphabetic()).all(u8::is_ascii_digit);
    let is_compound =
        segments().count() > 1 && segments().all(is_segment) && value.iter().filter(|byte| byte.is_ascii_digit()).count() < 5;
    let is_algorithm = ALGORITHMS.iter().any(|name| name.as_bytes().eq_ignore_ascii_case(value));
    is_date || is_compound || is_algorithm || is_colour(value) || value.contains(&b' ')
}

/// True for `#ff00aa`.
fn is_colour(value: &[u8]) -> bool {
    let value = value.strip_suffix(b";").unwrap_or(value);
    value.len() < 10 && value.starts_with(b"#") && value[1..].iter().all(u8::is_ascii_hexdigit)
}

/// True if `value` mixes letters and digits as words of a sentence do not.
pub(super) fn is_random(value: &[u8]) -> bool {
    let (digits, letters) = (value.iter().any(u8::is_ascii_digit), value.iter().any(u8::is_ascii_alphabetic));
    let is_mixed = value.iter().skip(1).any(u8::is_ascii_uppercase) && value.iter().any(u8::is_ascii_lowercase);
    value.len() >= 6 && letters && digits || value.len() >= 20 && is_mixed
}

#[cfg(test)]
mod tests;
