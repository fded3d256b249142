//! Secrets in our environment: the values of secret variables, what is secret in such a value, and what the rules find in others.
//!
//! Each run looks for them, and nothing here is long: memchr's searches first ask the processor what it can, which takes longer.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::decode::{Decoded, Syntax};
use super::known::Known;
use super::ordinary::{is_number, is_random, is_wordy};
use super::{names, nested, words};

/// Shortest value that is masked wherever it stands.
const SHORTEST: usize = 6;

/// Fewest characters of such a value: two of Chinese have six bytes.
const FEWEST: usize = 4;

/// Longest text that is looked for as a whole.
const LONGEST: usize = 1024;

/// Words before a token in the value of a header.
const SCHEMES: [&str; 4] = ["bearer", "basic", "token", "apikey"];

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

/// Texts to mask: values of `environment` whose names are secret or among `names`, and what the rules find in others.
pub(super) fn known(environment: impl IntoIterator<Item = (OsString, OsString)>, names: &[Vec<u8>]) -> Vec<Known> {
    let mut forms = Vec::new();
    for (name, value) in environment {
        let value = value.as_bytes().trim_ascii();
        let name = name.as_bytes();
        let mut secrets = url_secrets(value);
        let has_login = !secrets.is_empty();
        secrets.extend(words::secrets_in(value).into_iter().map(|range| &value[range]));
        if names::is_secret(name) || (!names.is_empty() && names.contains(&names::normalized(name))) {
            secrets.extend((!has_login).then_some(value));
            secrets.extend(parts(name, value));
        }
        for secret in secrets {
            add(secret, &mut forms);
            if let Some(decoded) = Decoded::new(secret, Syntax::Percent) {
                add(&decoded.text, &mut forms);
            }
        }
    }
    forms.sort();
    forms.dedup();
    forms
}

/// What is secret by itself in the `value` of a secret name: `user:PASSWORD`, `Bearer TOKEN`, strings of JSON, the end of a URL, and such
/// ones in a list.
fn parts<'a>(name: &[u8], value: &'a [u8]) -> Vec<&'a [u8]> {
    if value.starts_with(b"{") || value.starts_with(b"[") {
        return nested::in_json(value, name, b'"', 0).into_iter().map(|(range, _)| &value[range]).collect();
    }
    if is_url(value) {
        let is_secret = |segment: &[u8]| is_random(segment) && !is_wordy(segment);
        let slashes = (0..value.len()).filter(|&at| value[at] == b'/');
        let mut ends = slashes.skip(2).map(|slash| &value[slash + 1..]);
        return ends.find(|end| is_secret(end.split(|&byte| byte == b'/').next().unwrap_or_default())).into_iter().collect();
    }
    let has_blank = value.iter().any(u8::is_ascii_whitespace);
    let is_of_passwords = name.split_last().is_some_and(|(_, name)| names::is_password(name));
    let is_of_several = names::is_plural(name) && !has_blank;
    let is_secret = |item: &&[u8], is_login: bool| {
        // A word alone may be the name of a secret.
        let is_word = !is_login && !is_of_passwords && !item.iter().any(u8::is_ascii_digit);
        item.len() < value.len() && (is_of_several && !is_word || is_random(item) && !is_wordy(item))
    };
    let items = value.split(|&byte| b",;".contains(&byte) || byte.is_ascii_whitespace());
    let of_items = items.flat_map(|item| {
        let item =
            behind(item, b'=').filter(|(_, rest)| !rest.is_empty() && !rest.starts_with(b"=")).map_or(item, |(_, rest)| rest);
        let logins = login(item).into_iter().filter(|item| is_secret(item, true));
        logins.chain(Some(item).filter(|item| is_secret(item, false)))
    });
    login(value).into_iter().chain(of_items).collect()
}

/// The secret behind a scheme or a user.
fn login(value: &[u8]) -> Option<&[u8]> {
    let is_scheme = |word: &[u8]| SCHEMES.iter().any(|scheme| scheme.as_bytes().eq_ignore_ascii_case(word));
    let is_user = |word: &[u8]| word.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._@-".contains(byte));
    let token = behind(value, b' ').filter(|(word, _)| is_scheme(word));
    let password = || behind(value, b':').filter(|(word, rest)| is_user(word) && !rest.starts_with(b"//"));
    token.or_else(password).map(|(_, rest)| rest.trim_ascii())
}

/// What stands before the first `sign` of `value`, and behind it.
fn behind(value: &[u8], sign: u8) -> Option<(&[u8], &[u8])> {
    let at = value.iter().position(|&byte| byte == sign)?;
    Some((&value[..at], &value[at + 1..]))
}

/// Adds the forms of `value`, if it is not too ordinary to be masked everywhere.
fn add(value: &[u8], forms: &mut Vec<Known>) {
    if !is_distinctive(value) {
        return;
    }
    let lines = value.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let lines = lines.filter(|line| !is_rule(line) && !line.starts_with(b"-----"));
    for line in lines.flat_map(|line| line.chunks(LONGEST)).filter(|line| line.len() >= SHORTEST) {
        forms.extend(Known::forms(line));
    }
    if value.contains(&b'\n') && value.len() <= LONGEST {
        forms.extend(Known::forms(value));
    }
}

/// False if a value is too ordinary to be masked everywhere: short, a number, a reference, an existing path.
fn is_distinctive(value: &[u8]) -> bool {
    let is_path = || value.starts_with(b"/") && Path::new(OsStr::from_bytes(value)).exists();
    let is_common = COMMON.iter().any(|word| word.as_bytes().eq_ignore_ascii_case(value));
    let characters = value.iter().filter(|&&byte| byte & 0xc0 != 0x80).take(FEWEST).count();
    value.len() >= SHORTEST
        && characters == FEWEST
        && !is_number(value)
        && !is_reference(value)
        && !is_common
        && !is_url(value)
        && !is_path()
}

/// True for what parts or underlines other text, as `======`: a few signs, again and again.
fn is_rule(line: &[u8]) -> bool {
    let is_sign = |byte: &u8| byte.is_ascii() && !byte.is_ascii_alphanumeric();
    line.iter().all(is_sign) && line.iter().collect::<HashSet<_>>().len() < 4
}

fn is_url(value: &[u8]) -> bool {
    value.starts_with(b"http://") || value.starts_with(b"https://")
}

/// True if all of `value` stands for another: `***`, `$NAME`, `${NAME}`, `<word>`, `{{…}}`.
fn is_reference(value: &[u8]) -> bool {
    let within = |start: &str, end: &str| value.strip_prefix(start.as_bytes())?.strip_suffix(end.as_bytes());
    let is_name = |name: &[u8]| name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(byte));
    let is_word = |word: &[u8]| word.iter().all(|byte| byte.is_ascii_alphabetic() || b"_- ".contains(byte));
    value.iter().all(|&byte| byte == b'*')
        || within("${", "}").is_some_and(is_name)
        || within("$", "").is_some_and(|name| is_name(name) && names::is_loud(name))
        || within("<", ">").is_some_and(is_word)
        || within("{{", "}}").is_some()
}

/// False for what may be the name of a user.
fn is_no_user(login: &[u8]) -> bool {
    login.len() >= 20 || (login.iter().any(u8::is_ascii_uppercase) && login.iter().any(u8::is_ascii_lowercase))
}

/// The passwords in URLs of `value`, and tokens in a user's place.
fn url_secrets(value: &[u8]) -> Vec<&[u8]> {
    let secret = |start: usize| {
        let rest = &value[start..];
        let host = rest.iter().position(|byte| b"/?# \n\"'".contains(byte)).unwrap_or(rest.len());
        let login = &rest[..rest[..host].iter().rposition(|&byte| byte == b'@')?];
        match behind(login, b':') {
            Some((user, password)) => Some(password).filter(|password| *password != user),
            None => Some(login).filter(|login| is_random(login) && !is_wordy(login) && is_no_user(login)),
        }
    };
    let is_colon = |(at, byte): (usize, &u8)| (*byte == b':').then_some(at);
    let colons = value.iter().enumerate().filter_map(is_colon);
    colons.filter(|&at| value[at + 1..].starts_with(b"//")).filter_map(|at| secret(at + 3)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(name: &str, value: &str) -> Vec<String> {
        let text = |known: Known| String::from_utf8(known.text).expect("text");
        known([(name.into(), value.into())], &[]).into_iter().map(text).collect()
    }

    #[test]
    fn ordinary_values_are_masked_nowhere() {
        for value in [
            "abc12",
            "ab\nc",
            "密码",
            "мой",
            "20260101",
            "${OTHER_KEY}",
            "$OTHER_KEY",
            "<your-key>",
            "{{ secrets.key }}",
            "********",
            "ChangeMe",
            "https://host/some/path",
            "https://git@host/oauth2",
            "/usr/bin",
            "======",
        ] {
            assert_eq!(texts("API_KEY", value), [""; 0], "{value}");
        }
        for (name, value) in [
            ("PATH", "/a/key:/b/pass"),
            ("X", "token of mine"),
            ("PROXY", "http://proxy:3128"),
            ("URL", "x://dockers:dockers@db"),
            ("DOCKER_HOST", "ssh://ubuntu22@10.0.0.5"),
        ] {
            assert_eq!(texts(name, value), [""; 0], "{value}");
        }
        let lines = texts("API_KEY", "abc123\n======\n-----END x-----\nto");
        assert!(lines.iter().any(|line| line == "abc123"));
        assert!(!lines.iter().any(|line| ["======", "-----END x-----", "to"].contains(&&line[..])));
        assert_ne!(texts("API_KEY", "Cargo.toml"), [""; 0], "only a whole path is one");
        let forms =
            |value: &str| texts("MY_SECRET", value).into_iter().any(|text| ["battery", "mackerel"].contains(&&text[..]));
        assert!(!["horse battery", "horse,mackerel"].iter().any(|value| forms(value)), "a word of a phrase is none");
    }

    #[test]
    fn only_what_is_secret_is_known_and_once() {
        let (town, odd) = (("HOME_TOWN".into(), "far-away-1".into()), ("ODD".into(), "odd-value-1".into()));
        assert_eq!(known([town, odd], &[b"odd".to_vec()]), known([("API_KEY".into(), "odd-value-1".into())], &[]));
        let url = "postgres://me:pa55%2Fword@db/x";
        let forms = texts("API_KEY", url);
        assert!(["pa55%2Fword", "pa55/word"].iter().all(|form| forms.iter().any(|text| text == form)));
        assert!(!forms.iter().any(|text| text == url));
        assert!(forms.is_sorted_by(|one, next| one < next), "none is looked for twice");
    }

    #[test]
    fn secrets_within_a_value_are_known() {
        for (name, value, secret) in [
            ("MY_SECRET", "<zt`eqdY_W}r", "<zt`eqdY_W}r"),
            ("MY_SECRET", "мойсекрет", "мойсекрет"),
            ("MY_SECRET", "密码密码密码", "密码密码密码"),
            ("MY_SECRET", "!@#$%^&*()", "!@#$%^&*()"),
            ("MY_SECRET", "$(Summer)rain!", "$(Summer)rain!"),
            ("MY_SECRET", "@Summerrain", "@Summerrain"),
            ("MY_SECRET", "{Summerrain}", "{Summerrain}"),
            ("MY_SECRET", "%Summerrain%", "%Summerrain%"),
            ("MY_SECRET", "$PASS!word99xx", "$PASS!word99xx"),
            ("MY_CREDENTIALS", r#"{"user":"b","password":"swordfish"}"#, "swordfish"),
            ("MY_CREDENTIALS", r#"{"bob":"kX9mQ2vL7"}"#, "kX9mQ2vL7"),
            ("MY_SECRET", "bob:swordfish", "swordfish"),
            ("GH_TOKENS", "quux1234zz,abcd5678yy", "abcd5678yy"),
            ("API_TOKENS", "quux1234zz abcd5678yy", "quux1234zz"),
            ("DB_PASSWORDS", "swordfish;kX9mQ2vL7", "swordfish"),
            ("API_KEYS", "k1=quux1234zz,k2=abcd5678yy==", "abcd5678yy=="),
            ("MY_SECRETS", "bob:swordfish,eve:mackerel", "swordfish"),
            ("X_TOKEN", "Bearer swordfish", "swordfish"),
            ("URLS", "http://a:swordfish@b,http://c:kX9mQ2vL7@d", "swordfish"),
            ("URLS", "http://a:swordfish@b,http://c:kX9mQ2vL7@d", "kX9mQ2vL7"),
            ("REMOTE", "https://kX9mQ2vL7pR@host/x", "kX9mQ2vL7pR"),
            ("URL", "postgres://u:p@ss-word@db:5432/x", "p@ss-word"),
            ("DSN", "Server=x;Password=swordfish;Database=y", "swordfish"),
            ("ANTHROPIC_CUSTOM_HEADERS", "X-Api-Key: swordfish", "swordfish"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer swordfish", "swordfish"),
            ("SLACK_WEBHOOK_SECRET", "https://hooks.x/services/T00/B00/kX9mQ2vL7", "kX9mQ2vL7"),
        ] {
            assert!(texts(name, value).iter().any(|text| text == secret), "{name}={value}: {:?}", texts(name, value));
        }
        // Words of a list, which may be the names of secrets.
        for (name, value, word) in
            [("MY_SECRETS", "production,staging-eu", "production"), ("VAULT_KEYS", "success,result", "success")]
        {
            assert!(!texts(name, value).iter().any(|text| text == word), "{name}={value}: {:?}", texts(name, value));
        }
    }
}
