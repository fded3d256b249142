use super::*;

const PLAIN: Shape =
    Shape { name: b"token", is_quoted: false, is_literal: false, is_assigned: false, is_text: false, goes_on: false };
const QUOTED: Shape = Shape { is_quoted: true, ..PLAIN };
const LITERAL: Shape = Shape { is_literal: true, ..PLAIN };
const PASSWORD: Shape = Shape { name: b"password", ..PLAIN };

#[test]
fn placeholders_stand_for_a_value() {
    let placeholders = [
        "$TOKEN",
        "$ABC",
        "$a_token.b",
        "${X}",
        "$(cat x)",
        "$env:TOKEN",
        "$",
        "$1",
        "<token>",
        "{{x",
        "{x}",
        "{",
        "#{x}",
        "%s",
        "%(abc",
        "%TOKEN%",
        ":token",
        "@",
        "&x",
        "**x1",
        "!ref",
        "[token]",
        "|",
        ">",
        "-",
        "...",
        "…abc",
        "abc***",
        "abc...",
        "<2",
        "<toke0n>",
        "%ab",
        "+",
        "&a_b",
    ];
    for value in placeholders {
        assert!(is_placeholder(value.as_bytes()), "{value}");
    }
    for value in ["$word", "$9_TOKEN", "{abc", "#abc", "%abc", "%41b", ":a1", "[abc", "|a1", ".abc", "abc", "<t<o1ken2"] {
        assert!(!is_placeholder(value.as_bytes()), "{value}");
    }
}

#[test]
fn paths_have_short_segments() {
    let [short, long] = [31, 32].map(|length| format!("/{}", "a".repeat(length)));
    for value in [
        "https://a/b=c",
        "/srv/one/two/three/four/five/six/seven",
        r"C:\one\two\three\four\five\six\seven",
        "~/x",
        &short,
        "C:/",
        r"C:\x\y|z",
        "/^[a-z]$/",
    ] {
        assert!(is_path(value.as_bytes()), "{value}");
    }
    for value in ["srv/x", "C-/x", "1:/x", "C:", "C:x/y", "/a+b/c", "/a/b=", &long] {
        assert!(!is_path(value.as_bytes()), "{value}");
    }
}

#[test]
fn shape_decides_what_is_ordinary() {
    let assigned = Shape { is_assigned: true, ..QUOTED };
    let quoted_password = Shape { is_quoted: true, ..PASSWORD };
    let long = "a".repeat(64);
    let ordinary = [
        ("aaa", PLAIN),
        (&long[1..], PLAIN),
        ("=+=+", PLAIN),
        ("#ff00aa", PLAIN),
        ("5.5k", PLAIN),
        ("write", LITERAL),
        ("!?!?", PLAIN),
        ("123456", PASSWORD),
        ("123456", QUOTED),
        ("is to be", QUOTED),
        ("your token", assigned),
        ("bearer", PLAIN),
        ("none", LITERAL),
        ("API_KEY", LITERAL),
        ("your-key-1", PLAIN),
    ];
    for (value, shape) in ordinary {
        assert!(is_ordinary(value.as_bytes(), shape), "{value} {shape:?}");
    }
    let secret = [
        ("aa", PLAIN),
        (&long, PLAIN),
        ("aaaaab", PLAIN),
        ("#ff00aa", PASSWORD),
        ("str", LITERAL),
        ("omit", PLAIN),
        ("!?!?!", PLAIN),
        ("123456", quoted_password),
        ("is to be", assigned),
        ("bearer", LITERAL),
        ("my_api_key", LITERAL),
        ("API_KEY_2", LITERAL),
        ("MYSECRET", LITERAL),
        ("your-key-1", LITERAL),
    ];
    for (value, shape) in secret {
        assert!(!is_ordinary(value.as_bytes(), shape), "{value} {shape:?}");
    }
}

#[test]
fn code_and_sentences_are_no_secrets() {
    let long = format!("{}.abc", "d".repeat(24));
    let (named, in_list) = (Shape { name: b"my_pin", ..QUOTED }, Shape { goes_on: true, ..PLAIN });
    let code = [
        ("process.env.A1B2", QUOTED),
        ("my_secret", QUOTED),
        ("My_Pin", named),
        ("a.b", QUOTED),
        ("a::b", QUOTED),
        ("a->b", QUOTED),
        (&long[1..], PLAIN),
        ("a.B", PLAIN),
        ("f(x1)", QUOTED),
        (")x1; c", QUOTED),
        (")|z", QUOTED),
        ("a${b1}c", QUOTED),
        ("a${b1}c", PLAIN),
        ("a{{b1}}c", QUOTED),
        ("1(?=x1)y2", QUOTED),
        ("a[^b1]c2", QUOTED),
        ("String?", PLAIN),
        ("String", in_list),
    ];
    for (value, shape) in code {
        assert!(is_code(value.as_bytes(), shape), "{value} {shape:?}");
    }
    let other = [
        ("abc1(d2", QUOTED),
        ("a1.b2", PLAIN),
        (&*long, PLAIN),
        ("ab1<x", QUOTED),
        ("a.B", QUOTED),
        ("String", PLAIN),
        ("&x=1", QUOTED),
        ("a${b1", QUOTED),
        ("a1}b", QUOTED),
        ("a{{b1", QUOTED),
        ("a1}}b2", QUOTED),
        ("a[^b1", QUOTED),
        ("a1]b2", QUOTED),
        ("ab1)", QUOTED),
        ("f(x1)", Shape { is_assigned: true, ..QUOTED }),
        ("Ab1", in_list),
        ("STRING", in_list),
    ];
    for (value, shape) in other {
        assert!(!is_code(value.as_bytes(), shape), "{value} {shape:?}");
    }
    for (value, expected) in [("your key", true), ("key ", false), ("my-key", false), ("abc def", false)] {
        assert_eq!(is_sentence(value.as_bytes(), PROSE.len()), expected, "{value}");
    }
}

#[test]
fn words_and_dates_are_not_random() {
    for value in ["2026-11-23", "2026/11/23T1", "us-east-1", "a1-b234", "SHA256", "#ff00aa77", "a b1"] {
        assert!(is_wordy(value.as_bytes()), "{value}");
    }
    for value in ["20261-1123", "2026-11123", "-a1", "a1-b2345", "a1b-c2d", "#ff00aa77b", "#ffg", "#gff1", "sha255"] {
        assert!(!is_wordy(value.as_bytes()), "{value}");
    }
    for (value, expected) in [
        ("abcdefghijklmnopqrstuvw", false),
        ("Abcdefghijklmnopqrstuvw", false),
        ("abcdefghijklmnopqrsT", true),
        ("abcdefghijklmnopqrT", false),
        ("aBc", false),
        ("ABCDEFGHIJKLMNOPQRST", false),
        ("aBcdefghijklmnopqrst", true),
        ("abc1d", false),
        ("a1", false),
        ("abcde1", true),
        ("123456", false),
    ] {
        assert_eq!(is_random(value.as_bytes()), expected, "{value}");
    }
}

#[test]
fn logins_are_random_or_base64_with_a_colon() {
    for value in ["dXNlcjpwYXNz", "YTpiYw", "YTpiYw==", "YWI6Yw", "a1B2c3d4e5", "kX9(mQ2vL7"] {
        assert!(is_login(value.as_bytes()), "{value}");
    }
    for value in ["YTpi", "YTpiY", "aGVsbGFh", "dTpraWIB", "us-east-1", "/srv/a1b2c3", "f(x1234)"] {
        assert!(!is_login(value.as_bytes()), "{value}");
    }
}
