//! Tests of what is masked, and that it does not depend on where reads split.

use std::ffi::OsString;
use std::sync::{Arc, OnceLock};

use self::examples::EXAMPLES;
use super::*;

mod bounds;
mod encodings;
mod examples;
mod frames;
mod long;
mod patterns;
mod pauses;

fn secrets() -> Arc<Secrets> {
    static SECRETS: OnceLock<Arc<Secrets>> = OnceLock::new();
    let environment = [
        ("GITHUB_TOKEN", "hunter2-hunter2"),
        ("CLAUDE_CODE_PASSWORD", "say \"hi\"\\ to\nall"),
        ("VAULT_SECRET", "hunter2-hunter2-longer"),
        ("CLAUDE_CODE_MAX_OUTPUT_TOKENS", "64000000"),
        ("FORGE_KEY", "short"),
        ("HOME", "/home/somebody"),
        ("VAULT_KEY", "/usr/bin"),
        ("claude_tokens_left", "many-and-more"),
        ("gh_api_key", "/nonesuch-but-secret"),
        ("DATABASE_URL", "postgres://me:db-pa55%2Fword@db:5432/x"),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
        ("ODD", "odd-value-of-mine"),
        ("VAULT_PASS", "co$t of living;x"),
        ("CLAUDE_PASS", "q1w2e3"),
        ("FORGE_PASS", r#"q1","t":[true,null,1e5,-1E5,false]"#),
        ("FORGE_SECRET", r#"w1"} x7"#),
        ("FORGE_TOKEN", "c0ffee1"),
        ("FORGE_PASSWORD", "it's of me"),
    ];
    let environment = environment.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let names = ["odd".to_owned(), "factory_phrase".to_owned()];
    Arc::clone(SECRETS.get_or_init(|| Arc::new(Secrets::new(environment, &names, &[]).expect("no patterns"))))
}

fn masked_in(pieces: &[&[u8]]) -> String {
    masked_with(&secrets(), pieces)
}

fn masked_with(secrets: &Arc<Secrets>, pieces: &[&[u8]]) -> String {
    let mut masker = Masker::new(Arc::clone(secrets));
    let mut out = Vec::new();
    for piece in pieces {
        masker.feed(piece, &mut out);
    }
    masker.end(&mut out);
    String::from_utf8(out).expect("text")
}

fn masked(text: &str) -> String {
    masked_in(&[text.as_bytes()])
}

/// Text and masked text of an example.
fn expand(example: &str) -> (String, String) {
    let mut parts = example.split(['«', '»']);
    let (mut text, mut expected) = (parts.next().unwrap_or_default().to_owned(), String::new());
    expected += &text;
    while let (Some(secret), Some(rest)) = (parts.next(), parts.next()) {
        text.extend([secret, rest]);
        expected.extend(["***", rest]);
    }
    (text, expected)
}

#[test]
fn every_rule_keeps_its_own_examples() {
    let mut wrong = Vec::new();
    let none = Vec::<(OsString, OsString)>::new();
    let secrets = Arc::new(Secrets::new(none, &[], &[]).expect("no patterns"));
    for (rule, (name, masked, shown)) in rules::ALL.iter().zip(EXAMPLES) {
        assert_eq!(rule.name, name, "the examples of each rule");
        assert!(!masked.is_empty(), "{name} has no example");
        let mut check = |text: &str, expected: &str| {
            for ending in ["", "\n"] {
                let (mut masker, mut out) = (Masker::new(Arc::clone(&secrets)), Vec::new());
                masker.feed(format!("{text}{ending}").as_bytes(), &mut out);
                masker.end(&mut out);
                let out = String::from_utf8_lossy(&out);
                if out != format!("{expected}{ending}") {
                    wrong.push(format!("{name}: {text:?} -> {out:?}, not {expected:?}"));
                }
            }
        };
        masked.iter().map(|example| expand(example)).for_each(|(text, expected)| check(&text, &expected));
        shown.iter().for_each(|text| check(text, text));
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn text_with_a_secret_is_never_left_out() {
    for (name, masked, _) in EXAMPLES {
        for text in masked.iter().map(|example| expand(example).0) {
            assert!(!plain::is_plain(&text), "{name}: {text}");
        }
    }
    for (text, _) in MASKED.map(expand).iter().filter(|(text, _)| text.contains("PRIVATE KEY") || text.contains("GH_TOKEN")) {
        assert!(!plain::is_plain(text), "{text}");
    }
    assert!(!plain::is_plain("a%41b"), "it may hide anything");
    let ours =
        "waiting for the session lock /srv/session.lock (at most 10m), held by run 47-11 on host a for 3s, --lock pass-through";
    for text in [ours, "pass|", "-PASS, --token, x", "a token T", "apiKey 'a1b2c3'", "ghp_ x", "curl x"] {
        assert!(plain::is_plain(text), "{text}");
    }
}

const MASKED: [&str; 56] = [
    "FACTORY=x1 PHRASE=x2",
    "eyJjbGF1ZGVBaU9hdXRo«AbCdEfGhIjAbCdEfGhIjAbCdEfGhIjAbCdEfGhIj»\n«A+b»\nnext1",
    "eyJjbGF1ZGVBaU9hdXRo«AbCdEfGhIjAbCdEfGhIjAbCdEfGhIjAbCdEfGhIj»\nwordwordwordwordwordwordwordwordwordwordwordwordwordwordwordword\nnext1",
    "eyJjbGF1ZGVBaU9hdXRo«AbCdEfGhIjAbCdEfGhIjAbCdEfGhIjAbCdEfGhIj»\nsome word some word some word some word some word some words\nnext1",
    "eyJjbGF1ZGVBaU9hdXRo«AbCdEfGhIj»\nnext1",
    "eyJjbGF1ZGVBaU9hdXRo«AbCdEfGhIjAbCdEfGhIjAbCdEfGhIjAbCdEfGhIj»\n\n«A+b»\nnext1",
    "eyJjbGF1ZGVBaU9hdXRo«AbCdEfGhIjAbCdEfGhIjAbCdEfGhIjAbCdEfGhIj»\n  \nnext1",
    "eyJjbGF1ZGVBaU9hdXRo«AbCdEfGhIjAbCdEfGhIjAbCdEfGhIjAbCdEfGhIj» x\nnext1",
    "eyJjbGF1ZGVBaU9hdXRo«AbCdEfGhIjAbCdEfGhIjAbCdEfGhIjAbCdEfGhIj»\nnext line",
    "eyJjbGF1ZGVBaU9hdXRo«AbCdEfGhIjAbCdEfGhIjAbCdEfGhIjAbCdEfGhIj»\n  «A»\nnext1",
    r#"x='«it'"'"'s of me»'"#,
    "q=«it's+of+me»",
    "«cTF3MmUz» «713177326533»",
    "GH_TOKEN=«AbCdEfGhIjKlMnOpQrStUvWxYz0123456789AbCdEfGhIjKlMnOpQr»\nnextline",
    r#"{"a":"«\u00c0ffee1»"}"#,
    r#"{"a":"«\ud83d\udc0ffee1»"}"#,
    r#"{"a":"\\u00«c0ffee1»"}"#,
    r#" [{"s":"«q1»","«t»":[true,null,1e5,-1E5,false]}]"#,
    r#"{"s":"«w1"} x7»"#,
    "x «q1w2e3»",
    r#"echo "«co\$t of living;x»""#,
    r"echo «co\$t\ of\ living\;x» y",
    "x «hunter2-hunter2» y",
    "x «hunter2-hunter2-longer» y",
    "x «hunter2-hunter2»-long y",
    "«hunter2-hunter2hunter2-hunter2»",
    "«say \"hi\"\\ to»\nall.",
    r#"{"t":"«say \"hi\"\\ to\nall»."}"#,
    r#""{\"t\":\"«say \\\"hi\\\"\\\\ to\\nall»."}""#,
    r#"{"t":"«say \u0022hi\u0022\u005c to»"}"#,
    "«/nonesuch-but-secret»",
    r#"{"t":"a «\/nonesuch-but-secret» b"}"#,
    "«db-pa55/word» «db-pa55%2Fword» «db-pa55%2fword»",
    "«%2Fnonesuch-but-secret»%21",
    "«wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY»",
    "u=«wJalrXUtnFEMI%2FK7MDENG%2BbPxRfiCYEXAMPLEKEY»",
    r#"{"k":"«wJalrXUtnFEMI\/K7MDENG\u002bbPxRfiCYEXAMPLEKEY»"}"#,
    r#"{"k":"{\"l\":\"«wJalrXUtnFEMI\\\/K7MDENG\\u002BbPxRfiCYEXAMPLEKEY»\"}"}"#,
    "<a title=\"«wJalrXUtnFEMI&#47;K7MDENG&#x2b;bPxRfiCYEXAMPLEKEY»\">",
    "odd=«value1», «odd-value-of-mine»",
    "FACTORY_PHRASE=«x1» factory-phrase: «y22abc»",
    "GH_TOKEN=\"«a b»\"",
    "{\"GH_TOKEN\": \"«a\\\"b»\"}",
    "text\n{\"t\":\"GH_TOKEN='«a b»\"}",
    "text\n«hunter2-hunter2» x",
    "text\n[{\"s\":\"«q1»\",\"«t»\":[true,null,1e5,-1E5,false]}]",
    "-----BEGIN PRIVATE KEY----- is its first line\nsome words that have nothing of a key in them\n«MIIEpAIBAAKCAQEA0123+/abcdefghijklmnopqrstuv»",
    "[INFO] GH_TOKEN=«abc»",
    r#"data: {"t":"GH_TOKEN=«abc»"}"#,
    "-----BEGIN PRIVATE KEY-----\n«MIIEpAIBAAKCAQEA0123»\n«ab12»\n-----END PRIVATE KEY-----\nafter1234567890123456789",
    r#"{"f":"-----BEGIN PRIVATE KEY-----\n«MIIEpAIBAAKCAQEA0123»\n-----END PRIVATE KEY-----\n"}"#,
    "GH_TOKEN=«abc;echo» GH_TOKEN=«abc»; echo",
    r#"{"t":"a\nodd=«value1»"}"#,
    "\x1b[1modd=«value1»",
    r#"«say%20"hi"\ to»"#,
    "«wJalrXUtnFEMI%252FK7MDENG%252BbPxRfiCYEXAMPLEKEY»",
];

#[test]
fn secrets_of_environment_and_settings_are_masked() {
    let mut wrong = Vec::new();
    for (text, expected) in MASKED.map(expand) {
        // A line that is read whole is looked through for what may begin a secret first.
        for ending in ["", "\n"] {
            let out = masked(&format!("{text}{ending}"));
            if out != format!("{expected}{ending}") {
                wrong.push(format!("{text}\n    {out}\n    {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

/// Numbers below what is asked for, the same for the same `seed`.
fn random(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    }
}

/// Up to 13 of `parts`, in any order.
fn mixture(parts: &[&str], random: &mut impl FnMut(usize) -> usize) -> String {
    (0..random(14)).map(|_| parts[random(parts.len())]).collect()
}

#[test]
fn split_reads_mask_alike() {
    let of_rules = EXAMPLES.iter().flat_map(|(_, masked, _)| *masked).copied();
    for text in MASKED.into_iter().chain(of_rules).map(|example| expand(example).0) {
        let (bytes, whole) = (text.as_bytes(), masked(&text));
        for cut in 0..=bytes.len() {
            assert_eq!(masked_in(&[&bytes[..cut], &bytes[cut..]]), whole, "{text} {cut}");
        }
        assert_eq!(masked_in(&bytes.chunks(1).collect::<Vec<_>>()), whole, "byte by byte: {text}");
    }
}

#[test]
fn split_reads_mask_alike_in_long_lines() {
    let mut random = random(3);
    let secrets = ["GH_TOKEN=abc ", "hunter2-hunter2", "\"password\":\"x\\\"y\" ", " ghp_abcdef ", "\\\\\\\"", "\\n", "'"];
    for opening in ["", "{\"t\":\"", "[{\"t\":\""] {
        let mut line = opening.to_owned();
        while line.len() < 300_000 {
            line += &"abc def ".repeat(random(3_000));
            line += &(0..5).map(|_| secrets[random(secrets.len())]).collect::<String>();
        }
        line += "\n";
        let whole = masked(&line);
        assert!(!whole.contains("hunter2-hunter2") && !whole.contains("abcdef"));
        for size in [999, 65_536, 70_001] {
            assert!(masked_in(&line.as_bytes().chunks(size).collect::<Vec<_>>()) == whole, "{opening} {size}");
        }
    }
}

#[test]
fn json_stays_json() {
    let parts = [
        "GH_TOKEN",
        "VAULT_KEY",
        "claude_pass",
        "=",
        ":",
        " ",
        "\"",
        "'",
        "\\",
        "\\\"",
        "\n",
        "n",
        "abc",
        "sk-ant-",
        "hunter2-hunter2",
        "say \"hi\"\\ to\nall",
        "{",
        "}",
        ",",
        "-----BEGIN PRIVATE KEY-----",
        "MIIEpAIBAAKCAQEA0123",
        "😀",
        "é",
        "Authorization: ",
        "Cookie: a=b",
        "\"name\":\"Cookie\"",
        "\"value\":\"a=b",
        "<",
        "https://u:p@h",
        "%22",
        "&quot;",
    ];
    let mut random = random(7);
    for _ in 0..300 {
        let text = mixture(&parts, &mut random);
        let once = serde_json::json!({ "GITHUB_TOKEN": &text, "a": [1, &text], "z": null }).to_string();
        let twice = serde_json::json!([{ "t": &once }]).to_string();
        let listed = serde_json::json!([1, { "password": &text, "x": [&text] }]).to_string();
        let ascii: String = once
            .chars()
            .map(|c| if c.is_ascii() { c.to_string() } else { format!("\\u{:04x}", u32::from(c) & 0xffff) })
            .collect();
        for line in [once, twice, listed, ascii] {
            let masked = masked(&line);
            assert!(serde_json::from_str::<serde_json::Value>(&masked).is_ok(), "{line}\n{masked}");
        }
    }
}

#[test]
fn long_json_stays_json() {
    let mut random = random(9);
    let parts =
        ["GH_TOKEN='a b", "\\", "\"", "hunter2-hunter2", "abc ", "\n", "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA0123\n"];
    for _ in 0..2 {
        let mut text = String::new();
        while text.len() < 150_000 {
            text += &parts[random(parts.len())].repeat(1 + random(9_000));
        }
        let line = serde_json::json!({ "a": &text, "u": [&text, 1] }).to_string();
        let line = line.replace("]}", r#"],"s":"q1","t":[true,null,1e5,-1E5,false]}"#);
        let masked = masked(&line);
        assert!(serde_json::from_str::<serde_json::Value>(&masked).is_ok());
        assert!(!masked.contains("hunter2-hunter2"));
    }
}

#[test]
fn long_values_are_masked_to_their_end() {
    // In base64, line ends are part of it.
    let key = "b".repeat(200_000) + "\\n";
    let quotes = format!("{}{}", "b".repeat(80_000), r#"bbbb\\\""#.repeat(15_000));
    let (escapes, escaped) = (r#"bbbb\\\""#.repeat(25_000), r"bbbb\\'".repeat(25_000));
    let (plain, secrets) = ("b".repeat(200_000), format!("{}hunter2-hunter2", "b".repeat(9_985)).repeat(20));
    for (head, value, tail) in [
        ("GH_TOKEN=", &plain, " x"),
        ("{\"t\":\"GH_TOKEN=\\\"", &plain, "\\\" x\"}"),
        ("{\"t\":\"GH_TOKEN=\\\"", &quotes, "\\\" x\"}"),
        ("{\"t\":\"GH_TOKEN=\\\"", &escapes, "\\\" x\"}"),
        ("{\"t\":\"GH_TOKEN='", &escaped, "' x\"}"),
        ("ghp_", &plain, " x"),
        ("GH_TOKEN=", &plain, "' x"),
        ("--password '", &plain, "' x"),
        ("--password '", &secrets, "' x"),
        ("Authorization: Bearer ", &plain, " x"),
        ("{\"t\":\"GH_TOKEN='", &plain, "\",\"u\":\"v\"}"),
        ("{\"k\":\"-----BEGIN PRIVATE KEY-----\\n", &key, "-----END PRIVATE KEY-----\\n\"}"),
    ] {
        for before in [0, 1, 65_531, 65_535, 73_000] {
            let text = format!("{}{head}{value}{tail}\nnext", " ".repeat(before));
            assert!(
                masked(&text) == format!("{}{head}***{tail}\nnext", " ".repeat(before)),
                "{head} {before}: {}",
                &masked(&text)[before..]
            );
        }
    }
}

#[test]
fn memory_is_bounded_by_a_piece() {
    for part in ["\\", "GH_TOKEN=", "\"", "a", "\\u0041", "%41", "key=\""] {
        let (mut masker, mut out) = (Masker::new(secrets()), Vec::new());
        masker.feed(b"GH_TOKEN=\"", &mut out);
        let bytes = part.repeat(200_000 / part.len());
        for _ in 0..3 {
            masker.feed(bytes.as_bytes(), &mut out);
            assert!(masker.line_length() <= 300 << 10, "{part} {}", masker.line_length());
            out.clear();
        }
    }
}

#[test]
fn token_begins_behind_an_encoded_character() {
    for before in ["%3D", r"\u003d", r"\x3d", "\x1b[31m", "\x1b[1;31m", r"\n", r"\r", r"\t", "=", "("] {
        for behind in ["", "\n", " y\n", r"\n", r"\u0022", "%22", "&quot;", "\x1b[0m"] {
            let text = |token: &str| format!("x{before}{token}{behind}");
            assert_eq!(masked(&text("ghp_abcdef1234")), text("ghp_***"));
        }
    }
    for before in ["", "3D", "u003d", "x3d", "%3", r"\q"] {
        let text = format!("x{before}ghp_abcdef1234\n");
        assert_eq!(masked(&text), text);
    }
    for first in [r"\u0061", "%61", r"\x61", "&#97;", "\x1b[1ma"] {
        let text = format!("x ghp_{first}bcdef1234 y\n");
        assert!(masked(&text).ends_with("*** y\n"), "{text}");
        let text = format!("x sk-proj_{first}bcdefghijklmnopqrs1234 y\n");
        assert_eq!(masked(&text), "x sk-*** y\n");
    }
    for sign in ["%3D", r"\u003d", r"\x3d", "&#61;", "\x1b[0m="] {
        let text = format!("x GH_TOKEN{sign}abc123 y\n");
        assert_eq!(masked(&text), text.replace("abc123", "***"));
    }
}
