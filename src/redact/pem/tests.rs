//! Lines of keys, as they stand in files, logs and sources.

use super::*;

fn masked(text: &str) -> (String, bool) {
    let (mut out, mut at, mut key) = (String::new(), 0, Key::Outside);
    find(text.as_bytes(), &mut key, |range| {
        out += &text[at..range.start];
        out += "***";
        at = range.end;
    });
    (out + &text[at..], key.is_open())
}

#[test]
fn keys_are_masked_from_begin_to_end() {
    let body = "MIIEpAIBAAKCAQEA0123+/abcdefghijklmn";
    for (before, after) in [
        ("", ""),
        ("  ", ""),
        ("+", ""),
        ("    12→", ""),
        ("\"", "\\n\" +"),
        ("> ", "\r"),
        ("dir/k.asc:", ""),
        ("web-1  | ", ""),
    ] {
        let line = |text: &str| format!("{before}{text}{after}\n");
        for kind in ["RSA PRIVATE KEY", "PRIVATE KEY", "PGP PRIVATE KEY BLOCK"] {
            let begin = line(&format!("-----BEGIN {kind}-----"));
            let end = line(&format!("-----END {kind}-----"));
            let text = format!(
                "x\n{begin}{}{}{}{end}y {body}\n",
                line("Proc-Type: 4,ENCRYPTED") + &line(""),
                line(body),
                line("ab12=")
            );
            let expected = text.replacen(&line(body), &line("***"), 1).replace("ab12=", "***");
            assert_eq!(masked(&text), (expected, false), "{text}");
        }
    }
}

#[test]
fn what_comes_behind_a_key_without_its_end_is_shown() {
    let key = "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA0123+/abcdefghijklmn\n";
    for after in ["Output:\nhello\nworld\n", "def f():\n    pass\nelse:\n    return\n", "tls:\n  enabled\nfoo:\n  bar\n"] {
        assert!(masked(&format!("{key}{after}")).0.ends_with(after), "{after}");
    }
}

#[test]
fn other_lines_end_a_key_without_its_end() {
    let text = "starts with \"-----BEGIN PRIVATE KEY-----\" and\nthen some words follow\nMIIEpAIBAAKCAQEA0123\n";
    assert_eq!(masked(text), (text.to_owned(), false));
    let constant = "_PEM = \"-----BEGIN PRIVATE KEY-----\"\ndef load(path):\n    raise UnsupportedKeyException\n";
    assert_eq!(masked(constant).0, constant);
    assert_eq!(
        masked("-----BEGIN CERTIFICATE-----\nMIIEpAIBAAKCAQEA0123\n").0,
        "-----BEGIN CERTIFICATE-----\nMIIEpAIBAAKCAQEA0123\n"
    );
    assert_eq!(
        masked("-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA0123"),
        ("-----BEGIN PRIVATE KEY-----\n***".to_owned(), true)
    );
    let line = "-----BEGIN PRIVATE KEY----- MIIEpAIBAAKCAQEA0123 abc= -----END PRIVATE KEY----- x";
    assert!(!masked(line).0.contains("MIIE") && masked(line).0.ends_with("END PRIVATE KEY----- x"));
    let twice = format!("{line} {line}\n{line}");
    assert!(!masked(&twice).0.contains("MIIE") && masked(&twice).0.matches("***").count() == 3, "{twice}");
    let begun = "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA0123\n-----END PRIVATE KEY-----\",\"";
    assert_eq!(masked(&begun.repeat(2)), (begun.repeat(2).replace("MIIEpAIBAAKCAQEA0123", "***"), false));
}

#[test]
fn marker_has_dashes_and_a_key_near_its_word() {
    let body = "MIIEpAIBAAKCAQEA";
    let far = |letters: usize| format!("-----BEGIN {}PRIVATE KEY-----", "A".repeat(letters));
    for (begin, is_key) in [
        ("----BEGIN PRIVATE KEY----", true),
        ("-----BEGIN PRIVATE KEY -----", true),
        ("- BEGIN PRIVATE KEY ----", true),
        ("Private-Lines: 1", true),
        ("-----BEGIN PRIVATE KEY abcd", false),
        ("-----BEGIN PRIVATE KEY---", false),
        ("BEGIN PRIVATE KEY-----", false),
        (&far(33), true),
        (&far(34), false),
    ] {
        let text = format!("{begin}\n{body}\n");
        let expected = if is_key { text.replace(body, "***") } else { text.clone() };
        assert_eq!(masked(&text), (expected, is_key));
    }
    let line = format!("-----BEGIN PRIVATE KEY-----{body}");
    assert_eq!(masked(&line).0, "-----BEGIN PRIVATE KEY-----***");
}

#[test]
fn line_of_a_key_is_masked_to_its_last_run() {
    let (begin, long) = ("-----BEGIN PRIVATE KEY-----", "aB".repeat(17));
    for (line, expected) in [
        (format!("{long} {long}"), "***"),
        (format!("{long} abcd"), "***"),
        (format!("{long} words of a sentence"), "*** words of a sentence"),
        (format!("web-1  | {long}"), "web-1  | ***"),
        (format!("id_rsa-2-{long}"), "id_rsa-2-***"),
        (format!("^1a2b3c4 (Bob 2026-01-01 2) {long}"), "^1a2b3c4 (Bob 2026-01-01 2) ***"),
        (format!("| {long} |"), "| *** |"),
        (format!("\"{long}\\n\" +"), "\"***\\n\" +"),
    ] {
        assert_eq!(masked(&format!("{begin}\n{line}\nab12=")), (format!("{begin}\n{expected}\n***"), true));
    }
    let last = format!("{begin}\n[x] {long}\n[x] ab=\n[y]  done");
    assert_eq!(masked(&last).0, format!("{begin}\n[x] ***\n[x] ***\n[y]  done"));
    assert_eq!(masked(&format!("{begin}\n\"{long}\"\n\"Name: \"")).0, format!("{begin}\n\"***\"\n\"Name: \""));
    for line in ["\"Name: \"", "ab12cd34= word", "abc: def", "done", r#"{"a":"b","uuid":"aBcdefghijklmnopqr"}"#] {
        let text = format!("{begin}\n{line}\nab12=");
        assert_eq!(masked(&text), (text.clone(), false));
    }
}

#[test]
fn key_goes_on_behind_lines_of_others() {
    let line = "MIIEpAIBAAKCAQEA0123+/abcdefghijklmnopqrstuv";
    for (others, is_masked) in [(1, true), (60, true), (66, false)] {
        let text = format!("-----BEGIN PRIVATE KEY-----\n{line}\n{}{line}\n", "[INFO] heartbeat\n".repeat(others));
        assert_eq!(masked(&text).0.matches("***").count(), 1 + usize::from(is_masked), "{others}");
    }
    let logged = format!("{{\"log\":\"-----BEGIN PRIVATE KEY-----\\n\",\"n\":1}}\n{{\"log\":\"{line}\\n\",\"n\":1}}\n");
    assert_eq!(masked(&logged).0, logged.replace(line, "***"));
    for (before, after) in [("-----END CERTIFICATE-----\n", ""), ("", " is a word"), ("[x] ", ""), ("x=", "")] {
        let text = format!("-----BEGIN PRIVATE KEY----- is a mark\n{before}{line}{after}\n");
        assert_eq!(masked(&text), (text.clone(), false));
    }
}

#[test]
fn key_in_one_line_ends_with_its_string() {
    let (begin, end, body) = ("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "MIIEpAIBAAKCAQEA0123");
    for (line, expected) in [
        (format!(r#"["{begin}","{body}","ab12=","{end}"]"#), format!(r#"["{begin}","***","{end}"]"#)),
        (
            format!(r#""-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n{begin}\n{body}\n{end}\n","a":"b""#),
            format!(r#""-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n{begin}\n***\n{end}\n","a":"b""#),
        ),
        (format!(r#"["{begin}","{body}"],"a":"b""#), format!(r#"["{begin}","***"],"a":"b""#)),
        (
            format!(r#"{{"k":"{begin}\n{body}\n","cwd":"/home/user"}}"#),
            format!(r#"{{"k":"{begin}\n***\n","cwd":"/home/user"}}"#),
        ),
        (format!(r#"["{begin}","internationalization"]"#), String::new()),
        (format!(r#""{begin}","/home/user/Projects/a""#), String::new()),
    ] {
        let expected = if expected.is_empty() { &line } else { &expected };
        assert_eq!(masked(&line), (expected.clone(), false));
    }
}

/// A full line of a key.
const FULL_LINE: &str = "MIIEpAIBAAKCAQEA0123+/abcdefghijklmnopqrstuv";

/// Masks examples: « » stand around what is secret, `{B}`, `{E}`, `{F}` and `{S}` for BEGIN, END, a full line and one of 16 bytes.
fn check(examples: impl IntoIterator<Item = String>) {
    let mut wrong = Vec::new();
    for example in examples {
        let text = example.replace("{B}", "-----BEGIN PRIVATE KEY-----").replace("{E}", "-----END PRIVATE KEY-----");
        let text = text.replace("{F}", FULL_LINE).replace("{S}", "MIIEpAIBAAKCAQ01");
        let parts = text.split(['«', '»']).enumerate();
        let expected: String = parts.map(|(at, part)| if at % 2 == 0 { part } else { "***" }).collect();
        let out = masked(&text.replace(['«', '»'], "")).0;
        if out != expected {
            wrong.push(format!("{example}\n    {out}\n    {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn key_of_several_lines_is_masked_so_far() {
    check(
        [
            // Its end, in the line of the last run, and behind it.
            "{B}\n«{F}»\n«ab12=»{E}\n{F}",
            "{B}«{F}»{E}\n{F}",
            "{B} «{F} y» {E}\n{F}",
            "{B}«{F}»\n«1234»\n«A»",
            "{B}\n«{F}»\nPrivate-Lines: 1\n«{S}»",
            // A line of others, first and later.
            "{B}\nwords of others\n{S}",
            "{B}\n{\"a\":\"{S}\",\"n\":1}",
            "{B}\n«{F}»\n{\"a\":\"«{S}»\",\"n\":1}\n«{S}»\nsome others\n{S}",
            "{B}\n«{F}»\n{\"a\":\"MIIEpAIBAAKCA01\",\"n\":1}",
            "{B}\n«{F}»\nsome others\n«{F}»\n«{S}»\nmore others\n{S}",
            "{B} is a mark\n-----BEGIN CERTIFICATE-----\n{F}",
            "{B} is a mark\n-----END CERTIFICATE-----\n{F}",
            "{B}\nABCD: x\n«{S}»",
            "{B}\nABC: x\n{S}",
            "{B}\nword\n{S}",
            // What is behind BEGIN has to be signs.
            "\"{B}\\n\" +\n«{S}»",
            "\"{B}\\r\\n\" +\n«{S}»",
            "\"{B}\\t\" +\n«{S}»",
            "\"{B}\\x\" +\n{S}",
            "[\"{B}\"]\n{S}",
            "{B} n\n{S}",
            "-----BEGIN PRIVATE KEY abcd\n{F}",
            "{\"{B}\"}\n{S}",
            // What is before a run, and behind it.
            "{B}\n[x] «{S}»",
            "{B}\n[x] MIIEpAIBAAKCAQ0",
            "{B}\n[x] \\n«{F}»",
            "{B}\n[x] {F}\\q",
            "{B}\n+ 12 «{F}»",
            "{B}\n«{F}»\n 12 «ab12=»",
            "{B}\n«{F}»\n12: ab12=",
            "{B}\n\" «{S}»",
            "{B}\nx \"«{S}»\"",
            "{B}\n\"a\" {S}",
            "{B}\n[\"a\" \"x {S}",
            "{B}\n«abcdefghijklmnop»",
            "{B}\nabcdefghijklmno",
            "{B}\n[x] «{F} {F}»",
            "{B}\n[x] «MIIEpAIBAAKCAQEA0123/abcdefghijkl {S}»",
            "{B}\n[x] MIIEpAIBAAKCAQEA0123/abcdefghijk «{S}»",
            "{B}\n[x] «MIIEpAIB/AKCAQEA»",
            "{B}\n[x] MIIEpAIB/AKCAQEA/aaaaaaaaaaaaaa",
            "{B}\n[x] aBcdefghijklmnopqr=a",
            "{B}\n[x] «aBcdefghijklmnopqr==»",
            "{B}\n[x] /aBcdefghijklmnopqr",
        ]
        .map(str::to_owned),
    );
    let letters = "ab12".repeat(20);
    check(["[x] ·", "[x] «·a»"].map(|line| format!("{{B}}\n{}", line.replace('·', &letters))));
    check([format!("{{B}}\n[x] {}", FULL_LINE.to_uppercase())]);
}

#[test]
fn key_is_looked_for_in_so_many_lines() {
    for (before, most, line) in [("{B} is a mark\n", 63, "{F}"), ("{B}\n", 63, "{F}"), ("{B}\n«{F}»\n", 64, "{F}")] {
        let others = "some words\n".repeat(most);
        check([format!("{before}{others}«{line}»"), format!("{before}{others}some words\n{line}")]);
    }
}

#[test]
fn full_line_of_a_key_stands_alone() {
    let run = |length: usize| "aB1c".repeat(21)[..length].to_owned();
    let slashes = |length: usize| run(length).replacen("aB1c", "/B1c", 5).replacen("/B1c", "aB1c", 1);
    for (example, of) in [
        ("«·»", run(40)),
        ("·", run(39)),
        ("«·»", run(80)),
        ("·", run(81)),
        ("+«·»", run(44)),
        ("+\t«·»", run(44)),
        ("'«·»'", run(44)),
        ("\"«·»\\n", run(44)),
        ("  «·»\r", run(44)),
        ("x «·»", run(60)),
        ("x ·", run(59)),
        ("x:·", run(60)),
        ("·,", run(44)),
        ("«/·»", run(44)),
        ("«·»", slashes(48)),
        ("·", slashes(47)),
        ("·", run(44).replace('1', "x")),
        ("·", run(44).to_uppercase()),
    ] {
        check([format!("{{B}} is a mark\n{}", example.replace('·', &of))]);
    }
}

#[test]
fn key_in_one_line_is_masked_so_far() {
    check(
        [
            "{B} «{S}»",
            "{B} «MIIEpAIB/AKCAQEA»",
            "----BEGIN PGP PRIVATE KEY BLOCK---- «{F}»",
            "{B} MIIEpAIBAAKCAQ0",
            "{B} MIIEpAIB/AKCAQEA/aaaaaaaaaaaaaa",
            "-----BEGIN PRIVATE KEY ----- «{F}»",
            "-----BEGIN PGP PRIVATE KEY BLOCK----- «{F}»",
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\\n\" +\n«{S}»",
            "{B} «{F} abc=» {E} x",
            "{B} «{F} abc=»\\n",
            "{B} «{F} abc=»\r",
            "{B} «{F} abc=»'",
            "{B} «{F} abc=» \"",
            "{B} «{F}» abc= x",
            "\"{B}\\n«{F}\\n{F}\\n{F}»\\n{E}\"",
            "\"{B}\\r\\n«{F}\\r\\nabc=»\\r\\n{E}\"",
            "\"{B}\\t«{F}\\tabc=»\\t{E}\"",
            "[\"{B}\\n«{F}\\nab12=»\\n\",\"word\"]",
            "{\"k\":\"{B}\\n«{F}»\\n\",\"cwd\":1}",
            "{\"k\":\"{B}\\n«{F}»\\n\",\"cwd\" : 1}",
            "{'k':'{B}\\n«{F}»\\n','cwd': 1}",
            "\"{B}\" + \"«{F}\" + \"abc=»\"",
            "'{B}', '«{F}', 'abc=»'",
            "{B} «{F}»--abcd\"",
            "{B}\\«{F}»",
            "{B}<br>«{F}<br />{F}</span1>{F}»<br>{E}",
            "{B}<br>«{F}»</span12>{F}<br>{E}",
            "{B}>{F}",
            "{B}x>{F}",
        ]
        .map(str::to_owned),
    );
}
