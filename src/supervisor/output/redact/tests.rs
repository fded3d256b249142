//! Tests of what is masked, and that it does not depend on where reads split.

use std::sync::OnceLock;

use super::*;

fn secrets() -> Arc<Secrets> {
    static SECRETS: OnceLock<Arc<Secrets>> = OnceLock::new();
    let environment = [
        ("GITHUB_TOKEN", "hunter2-hunter2"),
        ("CLAUDE_CODE_PASSWORD", "say \"hi\"\\ to\nall"),
        ("VAULT_SECRET", "hunter2-hunter2-longer"),
        ("CLAUDE_CODE_MAX_OUTPUT_TOKENS", "64000000"),
        ("VAULT_PASS", "x-CLAUDE_-yz"),
        ("FORGE_KEY", "short"),
        ("HOME", "/home/somebody"),
        ("VAULT_KEY", "/usr/bin"),
        ("claude_tokens_left", "many-and-more"),
        ("gh_api_key", "/nonesuch-but-secret"),
    ];
    let environment = environment.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Arc::clone(SECRETS.get_or_init(|| Arc::new(Secrets::new(environment).expect("few values"))))
}

fn masked_in(pieces: &[&[u8]]) -> String {
    let mut masker = Masker::new(secrets());
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

const MASKED: [(&str, &str); 36] = [
    ("GH_TOKEN=antrbc d", "GH_TOKEN=*** d"),
    ("forge_token=abc d", "forge_token=*** d"),
    ("GH_api_key=abc", "GH_api_key=***"),
    ("Claude_Code_Secret='a b' c", "Claude_Code_Secret='***' c"),
    ("my-github_pass=abc", "my-github_pass=***"),
    ("myGithubToken=abc", "myGithubToken=***"),
    ("MYGH_TOKEN=abc", "MYGH_TOKEN=***"),
    (r#"{"github_token":"abc","x":1}"#, r#"{"github_token":"***","x":1}"#),
    (r#"{"t":"anthropic_api_key=abc\nnext"}"#, r#"{"t":"anthropic_api_key=***\nnext"}"#),
    (r#"{"t":"GH_TOKEN=\"a\\"}"#, r#"{"t":"GH_TOKEN=\"***\\"}"#),
    (r#"{"t":"GH_TOKEN='abc"}"#, r#"{"t":"GH_TOKEN='***"}"#),
    ("text\n{\"t\":\"GH_TOKEN='a b\"}", "text\n{\"t\":\"GH_TOKEN='***\"}"),
    ("GH_TOKEN='a\"b' c", "GH_TOKEN='***' c"),
    ("GH_TOKEN=\"a\\\"b\\\\\" c", "GH_TOKEN=\"***\\\\\" c"),
    ("GH_TOKEN=abc", "GH_TOKEN=***"),
    ("export ANTHROPIC_API_KEY=abc def", "export ANTHROPIC_API_KEY=*** def"),
    ("MY_VAULT_PASSWORD_2=a/b+c==\nnext", "MY_VAULT_PASSWORD_2=***\nnext"),
    ("CLAUDE_CODE_OAUTH_TOKEN=\"a b\" c", "CLAUDE_CODE_OAUTH_TOKEN=\"***\" c"),
    ("FORGE_SECRET='a \"b\" c' d", "FORGE_SECRET='***' d"),
    ("CLAW_KEY = \"abc\"", "CLAW_KEY = \"***\""),
    ("{\"GITHUB_TOKEN\":\"abc\",\"x\":1}", "{\"GITHUB_TOKEN\":\"***\",\"x\":1}"),
    ("{\"GITHUB_TOKEN\": \"a\\\"b\"}", "{\"GITHUB_TOKEN\": \"***\"}"),
    (r#"{"text":"GH_TOKEN=abc\nnext GH_TOKEN=def"}"#, r#"{"text":"GH_TOKEN=***\nnext GH_TOKEN=***"}"#),
    (r#"{"text":"GH_TOKEN=\"a b\" c"}"#, r#"{"text":"GH_TOKEN=\"***\" c"}"#),
    (r#"{"text":"{\"GH_TOKEN\":\"a\\\"b\"}"}"#, r#"{"text":"{\"GH_TOKEN\":\"***\"}"}"#),
    (r#""{\"t\":\"GH_TOKEN=\\\"a b\\\" c\"}""#, r#""{\"t\":\"GH_TOKEN=\\\"***\\\" c\"}""#),
    ("key sk-ant-api03-AbC_d-9, ok", "key sk-ant-***, ok"),
    ("https://ghp_AbC123@github.com", "https://ghp_***@github.com"),
    ("\"github_pat_11AB_cd\"", "\"github_pat_***\""),
    ("x hunter2-hunter2 y", "x *** y"),
    ("x hunter2-hunter2-longer y", "x *** y"),
    ("x hunter2-hunter2-long y", "x ***-long y"),
    ("hunter2-hunter2hunter2-hunter2", "******"),
    ("say \"hi\"\\ to\nall.", "***."),
    (r#"{"t":"say \"hi\"\\ to\nall."}"#, r#"{"t":"***."}"#),
    (r#""{\"t\":\"say \\\"hi\\\"\\\\ to\\nall.\"}""#, r#""{\"t\":\"***.\"}""#),
];

const SHOWN: [&str; 19] = [
    "",
    "GH",
    "sk-ant-",
    "ghp_ ",
    "GH_TOKEN",
    "GH_TOKEN=",
    "GH_TOKEN= ",
    "GH_TOKEN=\"\"",
    "GH_TOKEN: abc",
    "GITHUB_REPOSITORY=abc",
    "TOKEN=abc GH=abc",
    "64000000 short /home/somebody",
    "highlight_keys=abc, right_pass=abc",
    "max_tokens=4096 monkey=banana",
    r#"{"github_token":null,"apiKeySource":"ANTHROPIC_API_KEY","SK-ANT-":1}"#,
    "hunter2-hunter",
    "{\"GITHUB_TOKEN\":null}",
    "the KEY of CLAUDE = x",
    "GH_TOKEN=\\n",
];

#[test]
fn secrets_are_masked_and_nothing_else_is() {
    for (text, expected) in MASKED {
        assert_eq!(masked(text), expected);
    }
    for text in SHOWN {
        assert_eq!(masked(text), text);
    }
}

#[test]
fn names_in_lower_case_end_with_their_kind() {
    let secret = [
        "claude_api_key",
        "gh_token2",
        "ghApiKey",
        "my_vault_password_2",
        "claude_apikey",
        "github_authtoken",
        "ghkey",
        "gh_mypass",
    ];
    for name in secret {
        assert_eq!(masked(&format!("{name}=abc")), format!("{name}=***"));
    }
    let shown = ["claude_tokens_left", "gh_keys_url", "gh_token_count", "Claude_Key_Id"];
    for name in shown {
        assert_eq!(masked(&format!("{name}=abc \"{name}\": \"abc\"")), format!("{name}=abc \"{name}\": \"abc\""));
    }
    assert_eq!(masked("CLAUDE_TOKENS_LEFT=abc"), "CLAUDE_TOKENS_LEFT=***");
}

#[test]
fn ordinary_values_are_shown() {
    let text = "/usr/bin is there, many-and-more";
    assert_eq!(masked(text), text);
    assert_eq!(masked("x /nonesuch-but-secret"), "x ***");
}

#[test]
fn prompts_are_not_held() {
    for prompt in ["Password: ", "Claude: ", "claude> ", "Go on? [y/N] ", "thorough work", "GITHUB_REPOSITORY = ", "the end"] {
        let (mut masker, mut out) = (Masker::new(secrets()), Vec::new());
        masker.feed(prompt.as_bytes(), &mut out);
        assert_eq!(String::from_utf8_lossy(&out), prompt);
    }
}

#[test]
fn long_values_are_masked_to_their_end() {
    let value = "b".repeat(3 * PIECE);
    for (head, tail) in [("GH_TOKEN=", " x"), ("{\"t\":\"GH_TOKEN=\\\"", "\\\" x\"}"), ("ghp_", ", x")] {
        for before in [0, 1, PIECE - 5, PIECE - 1] {
            let padding = " ".repeat(before);
            let text = format!("{head}{value}{tail}\n{padding}{head}{value}{tail}");
            assert_eq!(masked(&text), format!("{head}***{tail}\n{padding}{head}***{tail}"));
        }
    }
}

#[test]
fn backslashes_are_held_in_bounded_memory() {
    for count in [63, 64, 65, 100, 1_000] {
        let text = format!("{{\"t\":\"GH_TOKEN=\\\"{}\" x\"}}", "\\".repeat(count));
        let whole = masked(&text);
        assert_eq!(masked_in(&text.as_bytes().chunks(7).collect::<Vec<_>>()), whole, "{count}");
        assert_eq!(masked_in(&text.as_bytes().chunks(1).collect::<Vec<_>>()), whole, "{count}");
    }
    let (mut masker, mut out) = (Masker::new(secrets()), Vec::new());
    masker.feed(b"GH_TOKEN=\"", &mut out);
    for _ in 0..100 {
        masker.feed(&[b'\\'; 10_000], &mut out);
        assert!(held(&masker).len() <= MOST_BACKSLASHES);
    }
    assert_eq!(out, b"GH_TOKEN=\"***");
}

#[test]
fn names_that_are_too_long_hide_no_secret() {
    for between in [1, 60, 128, 300] {
        let filler = "GH".repeat(between);
        let text = format!("GH{filler}hunter2-hunter2_{filler}ghp_abc {filler}_KEY=abc {filler}_gh_key=abc");
        let whole = masked(&text);
        assert!(!whole.contains("hunter2") && whole.matches("***").count() == 4, "{whole}");
        for size in [1, 7, 100] {
            assert_eq!(masked_in(&text.as_bytes().chunks(size).collect::<Vec<_>>()), whole);
        }
    }
}

#[test]
fn split_reads_mask_alike() {
    for text in MASKED.map(|(text, _)| text).into_iter().chain(SHOWN) {
        let bytes = text.as_bytes();
        let whole = masked(text);
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                assert_eq!(
                    masked_in(&[&bytes[..first], &bytes[first..second], &bytes[second..]]),
                    whole,
                    "{text} {first} {second}"
                );
            }
        }
        assert_eq!(masked_in(&bytes.chunks(1).collect::<Vec<_>>()), whole, "byte by byte: {text}");
    }
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

/// Streams made of the parts that matter, in any order, cut anywhere.
#[test]
fn split_reads_mask_alike_in_mixtures() {
    let parts = [
        "GH",
        "GITHUB_",
        "gh",
        "CLAUDE",
        "_TOKEN",
        "_key",
        "KEY",
        "=",
        ":",
        " ",
        "\"",
        "'",
        "\\",
        "\\\\",
        "\n",
        "n",
        "abc",
        "sk-ant-",
        "ghp_",
        "hunter2-",
        "hunter2-hunter2",
        "-longer",
        "say \"hi\"",
        "\\ to\nall",
        "github_pat_",
        "é",
        "_",
        "my_gh",
        "\\\"",
        "\\\\\\\"",
        "{",
    ];
    let mut random = random(1);
    for _ in 0..20_000 {
        let text = mixture(&parts, &mut random);
        let mut pieces = Vec::new();
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(1 + random(rest.len()));
            pieces.push(piece);
            rest = others;
        }
        assert_eq!(masked_in(&pieces), masked(&text), "{text:?} in {pieces:?}");
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
    ];
    let mut random = random(7);
    for _ in 0..15_000 {
        let text = mixture(&parts, &mut random);
        let once = serde_json::json!({ "GITHUB_TOKEN": &text, "a": [1, &text], "z": null }).to_string();
        let twice = serde_json::json!([{ "t": &once }]).to_string();
        for line in [once, twice] {
            let masked = masked(&line);
            assert!(serde_json::from_str::<serde_json::Value>(&masked).is_ok(), "{line}\n{masked}");
        }
    }
}

fn held(masker: &Masker) -> &[u8] {
    &masker.buffer[masker.drained..]
}

#[test]
fn held_bytes_are_few_and_none_at_line_end() {
    let mut masker = Masker::new(secrets());
    let mut out = Vec::new();
    for _ in 0..1_000 {
        masker.feed(&[b'A'; 10_000], &mut out);
        masker.feed(b"GH_TOKEN_", &mut out);
        assert!(held(&masker).len() <= LONGEST_NAME + 32);
    }
    for line in ["text\n", "GH_TOKEN=abc\n", "ghp_abc\n", "\"GH_TOKEN\"\n"] {
        masker.feed(line.as_bytes(), &mut out);
        assert_eq!(held(&masker), b"", "{line}");
    }
}

#[test]
fn values_that_contain_an_owner_are_masked() {
    let text = b"a x-CLAUDE_-yz b";
    for cut in 0..text.len() {
        assert_eq!(masked_in(&[&text[..cut], &text[cut..]]), "a *** b", "{cut}");
    }
}

#[test]
fn complete_values_are_not_held() {
    let mut masker = Masker::new(secrets());
    let mut out = Vec::new();
    masker.feed(b"x hunter2-hunter2-longer", &mut out);
    assert_eq!(out, b"x ***");
}

#[test]
fn names_are_bounded_in_length() {
    let name = |length| format!("GH_TOKEN{}", "_".repeat(length - 8));
    assert_eq!(masked(&format!("{}=abc", name(LONGEST_NAME))), format!("{}=***", name(LONGEST_NAME)));
    assert_eq!(masked(&format!("{}=abc", name(LONGEST_NAME + 1))), format!("{}=abc", name(LONGEST_NAME + 1)));
}

#[test]
fn line_kind_is_that_of_its_first_byte() {
    assert_eq!(Line::Empty.after(b"x").after(b"{"), Line::Text);
    assert_eq!(Line::Empty.after(b"{").after(b"x"), Line::Json);
    assert_eq!(Line::Text.after(b"x\n").after(b"["), Line::Json);
}

#[test]
fn colon_needs_a_quoted_name() {
    // Behind a bare name it ends a sentence, or is YAML, whose values have no end that could be told.
    assert_eq!(masked("GH_TOKEN: \"abc\""), "GH_TOKEN: \"abc\"");
}

#[test]
fn token_behind_an_underscore_is_a_token() {
    assert_eq!(masked("_ghp_abc_key="), "_ghp_***=");
    assert_eq!(masked("_ghp_abc_key=x"), "_ghp_***=x");
}
