//! Values of secret variables in our environment, in every form in which a tool may print them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::decode::{Decoded, Syntax};
use super::names;
use super::ordinary::{is_number, is_placeholder};

/// Shortest value that is masked wherever it stands.
const SHORTEST: usize = 6;

/// Longest text that is looked for as a whole.
const LONGEST: usize = 1024;

/// Words that are passwords in examples, and words elsewhere.
const COMMON: [&str; 14] = [
    "password",
    "postgres",
    "secret",
    "changeme",
    "default",
    "disabled",
    "enabled",
    "example",
    "localhost",
    "admin1",
    "undefined",
    "username",
    "anonymous",
    "docker",
];

/// Texts to mask, those of `environment` whose names are secret or among `names`.
pub(super) fn known(environment: impl IntoIterator<Item = (OsString, OsString)>, names: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for (name, value) in environment {
        let value = value.as_bytes().trim_ascii();
        let name = name.as_bytes();
        let is_secret = names::is_secret(name) || names.contains(&names::normalized(name));
        let password = url_password(value);
        for secret in password.into_iter().chain(connection_password(value)) {
            add(secret, &mut forms);
            add(&percent_decoded(secret), &mut forms);
        }
        if is_secret && password.is_none() {
            add(value, &mut forms);
        }
    }
    forms.sort();
    forms.dedup();
    forms
}

/// Adds the forms of `value`, if it is not too ordinary to be masked everywhere.
fn add(value: &[u8], forms: &mut Vec<Vec<u8>>) {
    if !is_distinctive(value) {
        return;
    }
    let lines = value.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let lines = lines.filter(|line| line.iter().any(u8::is_ascii_alphanumeric) && !line.starts_with(b"-----"));
    for line in lines.flat_map(|line| line.chunks(LONGEST)).filter(|line| line.len() >= SHORTEST) {
        forms.extend(encoded(line));
        forms.push(line.to_vec());
    }
    if value.contains(&b'\n') && value.len() <= LONGEST {
        forms.extend(encoded(value));
    }
}

/// False if a value is too ordinary to be masked everywhere: short, a number, an existing path.
fn is_distinctive(value: &[u8]) -> bool {
    let is_path = || value.starts_with(b"/") && Path::new(OsStr::from_bytes(value)).exists();
    let is_common = COMMON.iter().any(|word| word.as_bytes().eq_ignore_ascii_case(value));
    let is_url = value.starts_with(b"http://") || value.starts_with(b"https://");
    value.len() >= SHORTEST && !is_number(value) && !is_placeholder(value) && !is_common && !is_url && !is_path()
}

/// The password in a URL.
fn url_password(value: &[u8]) -> Option<&[u8]> {
    let start = memchr::memmem::find(value, b"://")? + 3;
    let rest = &value[start..];
    let host = rest.iter().position(|byte| b"/?# \n\"'".contains(byte)).unwrap_or(rest.len());
    let end = rest[..host].iter().rposition(|&byte| byte == b'@')?;
    let colon = rest[..end].iter().position(|&byte| byte == b':')?;
    Some(&rest[colon + 1..end]).filter(|password| **password != rest[..colon])
}

/// The password in a connection string: `…;Password=…;…`.
fn connection_password(value: &[u8]) -> Option<&[u8]> {
    memchr::memchr(b'=', value)?;
    let lower = value.to_ascii_lowercase();
    let find = |word: &str| memchr::memmem::find(&lower, word.as_bytes()).map(|at| at + word.len());
    let start = ["password=", "pwd=", "accountkey=", "sharedaccesskey="].into_iter().find_map(find)?;
    let rest = &value[start..];
    Some(&rest[..rest.iter().position(|byte| b"; \n&".contains(byte)).unwrap_or(rest.len())])
}

fn percent_decoded(value: &[u8]) -> Vec<u8> {
    Decoded::new(value, Syntax::Percent).map_or_else(|| value.to_vec(), |decoded| decoded.text)
}

/// Encodings of `value` that [`super::decode`] does not undo, and those in which nothing but the value says that there is one.
fn encoded(value: &[u8]) -> Vec<Vec<u8>> {
    let json = |text: &[u8]| {
        let json = serde_json::Value::from(String::from_utf8_lossy(text)).to_string();
        json.as_bytes()[1..json.len() - 1].to_vec()
    };
    let once = json(value);
    let twice = json(&once);
    let mut forms = vec![json(&twice), twice, once];
    let percent = |safe: &[u8], space: &str| {
        let byte = |&byte: &u8| match byte {
            b' ' => space.to_owned(),
            _ if byte.is_ascii_alphanumeric() || safe.contains(&byte) => char::from(byte).to_string(),
            _ => format!("%{byte:02x}"),
        };
        value.iter().map(byte).collect::<String>().into_bytes()
    };
    forms.extend([percent(b"-_.~", "%20"), percent(b"-_.~/", "%20"), percent(b"-_.*", "+"), percent(b"-_.!~*'()", "%20")]);
    let with_quotes = |quote: &str| value.split(|&byte| byte == b'\'').collect::<Vec<_>>().join(quote.as_bytes());
    forms.extend([with_quotes(r"'\''"), with_quotes(r#"'"'"'"#)]);
    let escaped = |special: &[u8]| {
        value.iter().flat_map(|&byte| if special.contains(&byte) { vec![b'\\', byte] } else { vec![byte] }).collect()
    };
    let escaped: [Vec<u8>; 2] = [escaped(b"\"$`\\"), escaped(b" \t!\"#$&'()*,;<>?[\\]^`{|}~")];
    forms.extend(escaped);
    forms.push(value.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect());
    forms.extend((0..3).flat_map(|shift| {
        let plain = base64(value, shift);
        let url = plain.iter().map(|&byte| match byte {
            b'+' => b'-',
            b'/' => b'_',
            other => other,
        });
        [url.collect(), plain]
    }));
    forms
}

/// Part of the base64 of `value` that is the same whatever stands around it; `shift` of its bytes are in a group before it.
fn base64(value: &[u8], shift: usize) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = |at: usize| {
        (0..6).fold(0, |digit, bit| {
            let place = at * 6 + bit;
            let byte = value[place / 8 - shift];
            digit << 1 | usize::from(byte >> (7 - place % 8) & 1)
        })
    };
    let first = (shift * 8).div_ceil(6);
    (first..(shift + value.len()) * 8 / 6).map(|at| DIGITS[bits(at)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_part_that_never_changes() {
        assert_eq!(base64(b"hunter2", 0), b"aHVudGVyM");
        for shift in 0..3 {
            assert!(base64(b"hunter2", shift).len() >= 7);
        }
    }

    #[test]
    fn ordinary_values_are_masked_nowhere() {
        let known = |value: &str| known([("API_KEY".into(), value.into())], &[]);
        for value in [
            "abc12",
            "ab\nc",
            "20260101",
            "${OTHER_KEY}",
            "ChangeMe",
            "https://host/a1b2c3",
            "http://host/a1",
            "/usr/bin",
            "======",
        ] {
            assert_eq!(known(value), Vec::<Vec<u8>>::new(), "{value}");
        }
        assert_ne!(known("Cargo.toml"), Vec::<Vec<u8>>::new(), "only a whole path is one");
        let lines = known("abc123\n======\n-----END x-----\nto");
        assert!(lines.contains(&b"abc123".to_vec()));
        assert!(!lines.iter().any(|line| [&b"======"[..], b"-----END x-----", b"to"].contains(&line.as_slice())));
    }

    #[test]
    fn values_are_known_in_every_encoding() {
        let forms = known([("API_KEY".into(), "a'b/c d+1".into()), ("MY_TOKEN".into(), "a'b\"c d1".into())], &[]);
        for form in [
            "a'b/c d+1",
            "a'b\"c d1",
            "a%27b%2fc%20d%2b1",
            "a%27b/c%20d%2b1",
            "a%27b%2fc+d%2b1",
            "a'b%2fc%20d%2b1",
            r"a'\''b/c d+1",
            r#"a'"'"'b/c d+1"#,
            r"a\'b/c\ d+1",
            "6127622f6320642b31",
            "YSdiL2MgZCsx",
            "EnYi9jIGQrM",
            "hJ2IvYyBkKz",
        ] {
            assert!(forms.contains(&form.as_bytes().to_vec()), "{form}");
        }
    }

    #[test]
    fn only_what_is_secret_is_known_and_once() {
        let (town, odd) = (("HOME_TOWN".into(), "far-away-1".into()), ("ODD".into(), "odd-value-1".into()));
        assert_eq!(known([town, odd], &[b"odd".to_vec()]), known([("API_KEY".into(), "odd-value-1".into())], &[]));
        let url = "postgres://me:pa55%2Fword@db/x";
        let forms = known([("API_KEY".into(), url.into())], &[]);
        assert!([&b"pa55%2Fword"[..], b"pa55/word"].iter().all(|form| forms.contains(&form.to_vec())));
        assert!(!forms.contains(&url.as_bytes().to_vec()));
        assert!(forms.is_sorted_by(|one, next| one < next), "none is looked for twice");
    }

    #[test]
    fn passwords_are_found_in_urls_and_connection_strings() {
        assert_eq!(url_password(b"postgres://u:p@ss@db:5432/x"), Some(&b"p@ss"[..]));
        assert_eq!(url_password(b"postgres://u:u@db"), None);
        assert_eq!(url_password(b"https://host:80/x@y"), None);
        assert_eq!(connection_password(b"Server=x;Password=abc;Database=y"), Some(&b"abc"[..]));
    }
}
