//! Names of variables, keys and headers: which of them say that a secret follows.

use std::ops::Range;

use self::tables::{ABOUT, BEARERS, BEFORE_PASS, KEYS, KINDS, NOTES, OWNERS, SERVICES, TITLES};

mod tables;

/// Longest name that is looked at.
pub(super) const LONGEST: usize = 128;

/// Bytes of a name.
pub(super) fn is_part(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// The name in `text` around `word`, without the dashes of a flag.
pub(super) fn around(text: &[u8], word: &Range<usize>) -> Range<usize> {
    let before = text[..word.start].iter().rev().take(LONGEST).take_while(|&&byte| is_part(byte)).count();
    let after = text[word.end..].iter().take(LONGEST).take_while(|&&byte| is_part(byte)).count();
    let (start, end) = (word.start - before, word.end + after);
    let dashes = text[start..end].iter().take_while(|&&byte| byte == b'-').count();
    let name = start + dashes..end;
    if !is_key(&text[name.clone()].to_ascii_lowercase()) {
        return name;
    }
    let rest = &text[end..];
    let (closing, sign) = rest.split_at(rest.iter().take(24).take_while(|byte| b"\\\"' *".contains(byte)).count());
    // `stripe.api.key=` and `"stripe.api.key":`, but not code, nor a file: `private.key: not found`.
    let is_dotted = || match sign.first() {
        Some(b'=') => closing.is_empty(),
        Some(b':') => closing.iter().any(|byte| b"\"'".contains(byte)),
        _ => false,
    };
    // `API Key: …`, also where a shell escapes the blank.
    let is_titled = |before: &&[u8]| {
        let owner = last(before);
        let start = before.len() - owner.len();
        let is_one = |word: &&str| owner.eq_ignore_ascii_case(word.as_bytes());
        // An escape ends in front of it: `\nAPI Key`, `%0AAPI Key`.
        let ends_so = |word: &&str| owner.to_ascii_lowercase().ends_with(word.as_bytes());
        let is_owner = TITLES.iter().any(is_one) || is_behind_code(before, &(start..start)) && TITLES.iter().any(ends_so);
        sign.first().is_some_and(|sign| b":=".contains(sign)) && is_owner
    };
    let before = &text[..name.start];
    let titled = || {
        let escapes = before.strip_suffix(b" ")?.iter().rev().take_while(|&&byte| byte == b'\\').count();
        Some(&before[..before.len() - 1 - escapes]).filter(is_titled)
    };
    let owner = before.strip_suffix(b".").filter(|_| is_dotted()).or_else(titled);
    owner.map_or(name, |before| before.len() - last(before).len()..end)
}

/// The name, or the part of one, at the end of `text`.
fn last(text: &[u8]) -> &[u8] {
    let part = text.iter().rev().take(LONGEST).take_while(|&&byte| is_part(byte)).count();
    &text[text.len() - part..]
}

/// True if `name` may begin with the end of an encoded sign: `\nNAME`, `%0ANAME`, `ESC [ 1 m NAME`, `ESC ( B NAME`.
pub(super) fn is_behind_code(text: &[u8], name: &Range<usize>) -> bool {
    let before = &text[..name.start];
    before.last().is_some_and(|byte| b"\\%;[\x1b".contains(byte)) || before.ends_with(b"\x1b(")
}

/// True if no letter of `name` is small.
pub(super) fn is_loud(name: &[u8]) -> bool {
    name.iter().any(u8::is_ascii_uppercase) && !name.iter().any(u8::is_ascii_lowercase)
}

/// `name` without case, `-` and `_`.
pub(super) fn normalized(name: &[u8]) -> Vec<u8> {
    name.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase).collect()
}

/// True if a value of this name is secret.
pub(super) fn is_secret(name: &[u8]) -> bool {
    // What every word for a secret begins with: most names have none of it.
    let begins = |three: &[u8; 3]| {
        let three = three.map(|byte| byte.to_ascii_lowercase());
        matches!(&three, b"tok" | b"sec" | b"pas" | b"cre" | b"key" | b"jwt" | b"pwd" | b"pat")
    };
    if name.len() > 2 * LONGEST || !name.windows(3).filter_map(<[u8]>::first_chunk).any(begins) {
        return false;
    }
    let lower = name.to_ascii_lowercase();
    // A capital may begin a part, or may not: `dbToken`, `dB_ToKEN`.
    let is_loud = is_loud(name);
    is_secret_of(parts(name), &lower, is_loud) || !is_loud && is_secret_of(parts(&lower), &lower, false)
}

/// The same for the `lower` name of these parts. `is_loud`: no letter of it was small.
fn is_secret_of(parts: impl Iterator<Item = Range<usize>>, lower: &[u8], is_loud: bool) -> bool {
    let parts: Vec<&[u8]> = parts.map(|part| without_digits(&lower[part])).filter(|part| !part.is_empty()).collect();
    let kind = parts.iter().rposition(|part| is_kind(part)).into_iter();
    let key = (0..parts.len()).rev().find(|&at| is_key_of(&parts[..at], parts[at]));
    let owned = (0..parts.len()).rev().find(|&at| is_owned(parts[at]) || is_of_owner(&parts[..at], parts[at]));
    let access_token = is_loud.then(|| parts.iter().rposition(|part| *part == b"pat")).flatten().filter(|_| parts.len() > 1);
    let is_directory = |at: usize| parts[at] == b"pwd" && is_loud && parts.len() == 1;
    kind.chain(key).chain(owned).chain(access_token).any(|at| {
        let about = parts[at + 1..].iter().any(|part| ABOUT.iter().any(|word| word.as_bytes() == *part));
        let is_secret_id = parts[at] == b"secret" && parts.get(at + 1..) == Some(&[&b"id"[..]][..]);
        !is_directory(at) && (!about || is_secret_id)
    })
}

/// True if `name` says that its value is a password.
pub(super) fn is_password(name: &[u8]) -> bool {
    let name = normalized(name);
    let name = without_digits(&name);
    ["password", "passwd", "passphrase"].iter().any(|kind| name.ends_with(kind.as_bytes()))
        || [&b"pass"[..], b"pwd"].contains(&name)
}

/// True if `name`, below a secret name, says that its value is none.
pub(super) fn is_note(name: &[u8]) -> bool {
    let last = parts(name).last().map_or(Vec::new(), |part| name[part].to_ascii_lowercase());
    let is_id = [&b"id"[..], b"ids"].contains(&&last[..]);
    !is_id && ABOUT.iter().chain(&NOTES).any(|word| word.as_bytes() == last)
}

fn is_kind(part: &[u8]) -> bool {
    let before_pass = |owner: &str| part.strip_suffix(b"pass") == Some(owner.as_bytes());
    KINDS.iter().any(|kind| part.ends_with(kind.as_bytes()))
        || [&b"pass"[..], b"pwd", b"creds"].contains(&part)
        || BEFORE_PASS.iter().any(|owner| before_pass(owner))
}

fn is_key(part: &[u8]) -> bool {
    [&b"key"[..], b"keys"].contains(&part)
}

/// True for `api_key` and `refresh_tokens`, the latter also in one word.
fn is_key_of(before: &[&[u8]], part: &[u8]) -> bool {
    let last = || before.last().copied().unwrap_or_default();
    let of = |part: &[u8], words: &[&str]| words.iter().any(|word| part.ends_with(word.as_bytes()));
    // "robot" is no bot.
    let is_bearer = |part: &[u8], word: &&str| part == word.as_bytes() || (word.len() > 3 && part.ends_with(word.as_bytes()));
    let is_of_tokens = |part: &[u8]| KEYS.iter().chain(&BEARERS).any(|word| is_bearer(part, word));
    is_key(part) && of(last(), &KEYS)
        || part.strip_suffix(b"tokens").is_some_and(|word| is_of_tokens(if word.is_empty() { last() } else { word }))
}

/// True for a name of several secrets: `API_TOKENS`.
pub(super) fn is_plural(name: &[u8]) -> bool {
    let name = normalized(name);
    ["tokens", "secrets", "passwords", "keys"].iter().any(|kind| without_digits(&name).ends_with(kind.as_bytes()))
}

/// True for an owner and a kind in one word: `ghkey`.
fn is_owned(part: &[u8]) -> bool {
    let ends = |kind: &str| part.ends_with(kind.as_bytes());
    OWNERS.iter().any(|owner| part.starts_with(owner.as_bytes())) && (ends("key") || ends("pass"))
}

fn is_of_owner(before: &[&[u8]], part: &[u8]) -> bool {
    let is_kind = ["key", "keys", "pass", "tokens"].iter().any(|kind| part.ends_with(kind.as_bytes()));
    let is_service = || before.last().is_some_and(|last| SERVICES.iter().any(|service| service.as_bytes() == *last));
    is_kind && (before.iter().any(|part| OWNERS.iter().any(|owner| names_owner(part, owner.as_bytes()))) || is_service())
}

/// True if `part` is this owner: `vault`, `myvault`; two letters at the end of a part are no owner: `high`.
fn names_owner(part: &[u8], owner: &[u8]) -> bool {
    part == owner || (owner.len() > 2 && part.ends_with(owner))
}

fn without_digits(part: &[u8]) -> &[u8] {
    let digits = part.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    &part[..part.len() - digits]
}

/// Parts of a name: `my_ApiKey-2` has four.
fn parts(name: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let begins = |at: usize| {
        let (previous, this) = (name[at - 1], name[at]);
        let ends_acronym = name.get(at + 1).is_some_and(u8::is_ascii_lowercase);
        this.is_ascii_uppercase() && (!previous.is_ascii_uppercase() || ends_acronym)
    };
    let is_sign = |byte: u8| b"_-. \\".contains(&byte);
    let mut at = 0;
    std::iter::from_fn(move || {
        at += name.get(at..)?.iter().take_while(|&&byte| is_sign(byte)).count();
        let start = at;
        at = (start + 1..name.len()).find(|&next| is_sign(name[next]) || begins(next)).unwrap_or(name.len());
        (start < name.len()).then_some(start..at)
    })
}

#[cfg(test)]
mod tests;
