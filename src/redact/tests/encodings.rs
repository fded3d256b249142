//! A line is masked alike in every encoding, however it is read: whole lines are looked through for what may be a secret first.

use std::sync::Arc;

use super::super::*;
use super::{EXAMPLES, MASKED, expand, masked_with, random, secrets};

type Encoding = (&'static str, fn(&str) -> String);

fn each(text: &str, encoded: impl Fn(char) -> String, is_it: impl Fn(char) -> bool) -> String {
    text.chars().map(|c| if is_it(c) { encoded(c) } else { c.to_string() }).collect()
}

fn is_sign(c: char) -> bool {
    c.is_ascii() && !c.is_ascii_alphanumeric()
}

fn json(text: &str) -> String {
    serde_json::json!({ "c": text }).to_string()
}

fn percent(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn shell(text: &str) -> String {
    each(text, |c| format!("\\{c}"), |c| is_sign(c) && !"_-./:=+@%\n".contains(c))
}

/// Words between colours, as those of grep.
fn coloured(text: &str) -> String {
    each(text, |c| format!("\x1b[m\x1b[K{c}\x1b[01;31m\x1b[K"), is_sign)
}

fn repr(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'").replace('\n', r"\n"))
}

const ENCODINGS: [Encoding; 19] = [
    ("json", json),
    ("json in json", |text| json(&json(text))),
    ("shell", shell),
    ("shell in json", |text| json(&shell(text))),
    ("set -x in json", |text| json(&format!("'{}'", text.replace('\'', r"'\''")))),
    ("regex", |text| each(text, |c| format!("\\{c}"), |c| "()[]{}?*+-|^$\\.&~# \n".contains(c))),
    ("repr", repr),
    ("repr in json", |text| json(&repr(text))),
    ("percent", percent),
    ("form", |text| percent(text).replace("%20", "+")),
    ("percent, all", |text| text.bytes().map(|byte| format!("%{byte:02x}")).collect()),
    ("percent in json", |text| json(&percent(text))),
    ("json in percent", |text| percent(&json(text))),
    (r"\u, all", |text| each(text, |c| format!("\\u{:04x}", u32::from(c)), |c| u32::from(c) < 0x1000)),
    (r"\u, signs", |text| each(text, |c| format!("\\u{:04X}", u32::from(c)), is_sign)),
    (r"\x, signs", |text| each(text, |c| format!("\\x{:02x}", u32::from(c)), is_sign)),
    ("html, all", |text| each(text, |c| format!("&#{};", u32::from(c)), |_| true)),
    ("colours", coloured),
    ("colours in json", |text| json(&coloured(text))),
];

#[test]
fn rules_mask_alike_however_a_line_is_read() {
    let none = Arc::new(Secrets::new(Vec::new(), &[], &[]).expect("no patterns"));
    let of_rules = EXAMPLES.iter().flat_map(|(_, masked, _)| *masked).map(|example| (expand(example).0, &none));
    let ours = secrets();
    let mut wrong = Vec::new();
    // What the settings file adds is looked for as it stands.
    let of_all = of_rules.chain(MASKED.map(|example| (expand(example).0, &ours)));
    for (text, secrets) in of_all.filter(|(text, _)| !text.contains("ID-")) {
        for (name, encoding) in ENCODINGS {
            for line in encoding(&text).lines().map(|line| format!("{line}\n")) {
                let whole = masked_with(secrets, &[line.as_bytes()]);
                let bytes = masked_with(secrets, &line.as_bytes().chunks(1).collect::<Vec<_>>());
                if whole != bytes {
                    wrong.push(format!("{name}: {text}\n  {whole}  {bytes}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn key_between_colours_and_name_in_deep_json_are_masked() {
    let none = Arc::new(Secrets::new(Vec::new(), &[], &[]).expect("no patterns"));
    let body = "MIIEpAIBAAKCAQEA0123+/abcdefghijklmnMIIEpAIBAAKCAQEA0123+/abcdef";
    for (on, off) in [("\x1b[32m+\x1b[m\x1b[32m", "\x1b[m"), ("\x1b[1;31m", "\x1b[0m"), ("\x1b(B", "\x1b(B\x1b[m")] {
        let lines = ["-----BEGIN PRIVATE KEY-----", body, body, "ab12=", "-----END PRIVATE KEY-----"];
        let text: String = lines.map(|line| format!("{on}{line}{off}\n")).concat();
        let (whole, bytes) =
            (masked_with(&none, &[text.as_bytes()]), masked_with(&none, &text.as_bytes().chunks(1).collect::<Vec<_>>()));
        assert_eq!(whole, text.replace(body, "***").replace("ab12=", "***"));
        assert_eq!(bytes, whole);
    }
    let line = format!("LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCk{}", "ab1X".repeat(9));
    for prefix in ["", "    12→", "web-1  | ", "> "] {
        let lines = [&line, &"Zx9k".repeat(19)[..line.len()], "cD12==", "text"];
        let text: String = lines.map(|line| format!("{prefix}{line}\n")).concat();
        let masked = masked_with(&none, &[text.as_bytes()]);
        assert!(!["ab1X", "Zx9k", "cD12"].iter().any(|part| masked.contains(part)) && masked.ends_with("text\n"), "{masked}");
    }
    for (before, after) in
        [("data: ", "Error: failed"), ("  tls.key: ", "kind: Secret"), ("é: ", "é"), ("web-1 | ", "web-1 |    «Zx9kQw7Tz==»")]
    {
        let (after, masked) = (after.replace(['«', '»'], ""), after.split('«').next().map(|before| before.to_owned() + "***"));
        let text = masked_with(&none, &[format!("{before}{line}\n{after}\n").as_bytes()]);
        let expected = if after.contains("==") { masked.unwrap_or_default() } else { after };
        assert!(text.ends_with(&format!("\n{expected}\n")), "{text}");
    }
    let mut text = r#"{"password":"kX9mQ2vL7pR4"}"#.to_owned();
    for depth in 0..10 {
        assert!(!masked_with(&none, &[text.as_bytes()]).contains("kX9mQ2vL7pR4"), "{depth}");
        text = serde_json::json!({ "t": text }).to_string();
    }
}

#[test]
fn known_value_is_masked_in_every_encoding() {
    let mut random = random(11);
    let mut wrong = Vec::new();
    let ascii: Vec<_> = ('!'..='~').collect();
    let letters: Vec<_> = "мойсекретÄöüß密码😀a1-'".chars().collect();
    for round in 0..150 {
        let letters = if round < 100 { &ascii } else { &letters };
        let value: String = (0..16).map(|_| letters[random(letters.len())]).collect();
        let secrets = Arc::new(Secrets::new([("MY_SECRET".into(), value.clone().into())], &[], &[]).expect("no patterns"));
        for (name, encoding) in ENCODINGS {
            let text = encoding(&format!("see {value} there"));
            let out = masked_with(&secrets, &[format!("{text}\n").as_bytes()]);
            let expected = encoding("see *** there");
            let letters = |text: &str| text.len() - text.matches("***").count() * 3;
            if !out.contains("***") || letters(&out) > letters(&expected) + 16 {
                wrong.push(format!("{name}: {value}\n  {text}\n  {out}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn known_value_of_any_shape_is_masked_at_the_end_of_a_text() {
    for shape in 1..1 << 7 {
        let value: String =
            ('a'..='g').enumerate().map(|(at, letter)| if shape >> at & 1 == 1 { letter } else { '!' }).collect();
        let secrets = Arc::new(Secrets::new([("MY_SECRET".into(), value.clone().into())], &[], &[]).expect("no patterns"));
        for (text, expected) in [(value.clone(), "***"), (format!("{value}\n"), "***\n"), (format!("is {value}"), "is ***")] {
            assert_eq!(masked_with(&secrets, &[text.as_bytes()]), expected, "{value}");
        }
    }
}

#[test]
fn wrapped_base64_is_masked_in_every_line() {
    let key =
        format!("-----BEGIN RSA PRIVATE KEY-----\n{}-----END RSA PRIVATE KEY-----\n", "MIIEpAIBAAKCAQEA0123/+\n".repeat(20));
    let login = r#"{"claudeAiOauth":{"accessToken":"sk-ant-oat01-abcdefghijklmnopqrstuvwxyz0123456789","refreshToken":"sk-ant-ort01-x"}}"#;
    let token = "forge".chars().cycle().zip('!'..='~').map(|(one, other)| format!("{one}{other}")).collect::<String>();
    let secrets = Arc::new(Secrets::new([("MY_TOKEN".into(), token.clone().into())], &[], &[]).expect("no patterns"));
    for (text, width) in [(key.as_str(), 64), (&key, 76), (login, 60), (login, 76), (&token, 60), (&token, 76)] {
        let encoded = base64(text.as_bytes());
        let lines: Vec<_> = encoded.as_bytes().chunks(width).map(|line| std::str::from_utf8(line).expect("base64")).collect();
        for (before, between, after) in
            [("", "\n", "\nnext line\nnext"), ("", "\r\n", "\r\n"), ("{\"c\":\"", "\\n", "\\nnext line\"}\n")]
        {
            let input = format!("{before}{}{after}", lines.join(between));
            let whole = masked_with(&secrets, &[input.as_bytes()]);
            assert_eq!(whole, masked_with(&secrets, &input.as_bytes().chunks(1).collect::<Vec<_>>()));
            assert!(lines[1..].iter().all(|line| line.len() < 16 || !whole.contains(&line[..16])), "{whole}");
            assert!(whole.ends_with(after), "{whole}");
        }
    }
}

fn base64(text: &[u8]) -> String {
    let digits: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    let group = |three: &[u8]| {
        let bits = three.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - three.len()));
        (0..4).map(|at| if at > three.len() { '=' } else { digits[bits >> (18 - 6 * at) & 63] }).collect::<String>()
    };
    text.chunks(3).map(group).collect()
}
