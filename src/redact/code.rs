//! Tells an expression in code from a password that has the same signs.

/// Ends of a number in code.
const SUFFIXES: [&str; 20] =
    ["", "u", "l", "f", "n", "x", "st", "nd", "rd", "th", "u8", "u16", "u32", "u64", "i32", "i64", "usize", "f32", "f64", "px"];

/// Signs of a password that code has only before a name.
const FOREIGN: &[u8] = b"#$@^~;%";

/// True if all words in `value` look like names that somebody gave, and its signs like those between them.
pub(super) fn is_expression(value: &[u8]) -> bool {
    let words = || value.split(|&byte| !is_part(byte));
    let is_told = words().any(has_word) || value.len() <= 8;
    is_told && words().all(is_name) && !has_foreign(value) && !closes_early(value)
}

fn is_part(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

/// True for a word of three letters or more.
fn has_word(name: &[u8]) -> bool {
    name.split(|byte| !byte.is_ascii_alphabetic()).any(|letters| letters.len() > 2)
}

/// True for a number or a name.
fn is_name(word: &[u8]) -> bool {
    let digits = word.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let is_hex =
        || word.strip_prefix(b"0x").is_some_and(|rest| rest.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'_'));
    let is_number = || {
        SUFFIXES.iter().any(|suffix| word[digits..].eq_ignore_ascii_case(suffix.as_bytes()) || word[digits..].starts_with(b"_"))
    };
    if digits > 0 { is_number() || is_hex() } else { word.split(|&byte| byte == b'_').all(is_given) }
}

/// True for words of more than two letters each, as in `utf8String`, and a single one, as in `x25519`.
fn is_given(part: &[u8]) -> bool {
    let letters = part.iter().filter(|byte| !byte.is_ascii_digit()).count();
    let numbers =
        (0..part.len()).filter(|&at| part[at].is_ascii_digit() && (at == 0 || !part[at - 1].is_ascii_digit())).count();
    let begins_word = |at: usize| {
        let is_upper = |at: usize| part.get(at).is_some_and(u8::is_ascii_uppercase);
        let is_lower = |at: usize| part.get(at).is_some_and(u8::is_ascii_lowercase);
        is_upper(at) && (is_lower(at - 1) || is_upper(at - 1) && is_lower(at + 1))
    };
    let words = 1 + (1..part.len()).filter(|&at| begins_word(at)).count();
    numbers < 2 && (words == 1 || letters > 2 * words)
}

/// True if a sign that stands before names alone stands before none.
fn has_foreign(value: &[u8]) -> bool {
    let is_prefix = |at: usize| {
        (at == 0 || b"([<>,&*!|{ ".contains(&value[at - 1]))
            && value.get(at + 1).is_none_or(|&next| is_part(next) && !next.is_ascii_digit() || b"{([]".contains(&next))
    };
    let is_last = |at: usize| b";#".contains(&value[at]) && at + 1 == value.len();
    let is_spaced = |at: usize| value.get(at + 1) == Some(&b' ') || at > 0 && value[at - 1] == b' ';
    (0..value.len()).any(|at| FOREIGN.contains(&value[at]) && !is_prefix(at) && !is_last(at) && !is_spaced(at))
}

/// True if a bracket closes that none has opened, and a name goes on behind it.
fn closes_early(value: &[u8]) -> bool {
    let mut open = Vec::new();
    let mut is_wrong = false;
    for (at, byte) in value.iter().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => open.push(*byte),
            b')' | b']' | b'}' => {
                let fits =
                    open.pop().is_none_or(|opening| matches!((opening, byte), (b'(', b')') | (b'[', b']') | (b'{', b'}')));
                let is_cast = open.is_empty() && value[0] == b'(';
                let goes_on = !is_cast && value.get(at + 1).is_some_and(|&next| is_part(next));
                is_wrong |= !fits || goes_on;
            }
            _ => {}
        }
    }
    is_wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_have_names_that_somebody_gave() {
        for code in [
            "get_pw(1)",
            "Vec<u8>",
            "a[0]",
            "hmac.new(key1,",
            "base64::encode(b64)",
            "&self.keys[i]",
            "Option<Base64>",
            "str|None",
            "f($x)",
            "a1[b2+c]",
            "abc(0xff_0)",
            "abc(1_000u32)",
            "abc(k12)",
            "abc(x1Bc)",
            "abc(abCde)",
            "abc(x);",
            "abc(x) %1",
            "abc(x)% y",
        ] {
            assert!(is_expression(code.as_bytes()), "{code}");
        }
        for password in [
            "kX9(mQ)2vL7pR",
            "kX9[mQ2vL7pR",
            "kX9|mQ2v",
            "swordfish)x(",
            "abc#(def)",
            "aB<cD>eF(gH)",
            "kd(9w;Lz)[ie",
            "a1[b2+c3]",
            "ab[c1+d2]",
            "abc(x)_",
            "abc(x_1a2)",
            "abc(k1m2)",
            "abc(ABCd)",
            "abc(abCd)",
            "abc(xaBCd)",
            "abc(#)",
            "abc($1)",
            "abc(x)$",
            "~1abc(x)",
            "(a[0]bc)",
            "abc(x]",
        ] {
            assert!(!is_expression(password.as_bytes()), "{password}");
        }
    }
}
