//! Patterns of the settings file: each line is matched by itself, whatever else is read with it.

use super::*;

fn with_patterns(patterns: &[&str]) -> Arc<Secrets> {
    let patterns: Vec<_> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    Arc::new(Secrets::new(Vec::new(), &[], &patterns).expect("good patterns"))
}

#[test]
fn patterns_match_line_by_line() {
    let secrets = with_patterns(&[
        r"ID-([0-9]{4})",
        r"zz+top",
        r"nr:([a-z]*)",
        r"^zeb (\d{6})",
        r"yak (\d{6})$",
        r"\Agnu (\d{6})\z",
        r"cat([^x]+)x",
        r"dog\s+fish",
        r#"she said "(\w+)""#,
    ]);
    for (text, expected) in [
        "nr: x nr:«ab»",
        "see ID-«1234»",
        "a «zzzztop» b",
        r#"{"a":"see ID-«1234»","b":["zzt",1]}"#,
        "ID-«1234» GH_TOKEN=«abc»",
        "one\nzeb «123456»\na zeb 123456\n\nzeb «123456»",
        "yak «123456»\nyak 123456 x\nyak «123456»\r\nyak «123456»\rx",
        "gnu «123456»\ngnu «123456»\na gnu 123456",
        "cat\n1x\ncat«12»x cat\n",
        "dog\nfish\n«dog fish»\ndog\r\nfish",
        r#"{"t":"one\nzeb «123456»\nyak «123456»\nyak 123456"}"#,
        r#"{"t":"she said \"«hello»\""}"#,
    ]
    .map(expand)
    {
        for ending in ["", "\n"] {
            let (text, expected) = (format!("{text}{ending}"), format!("{expected}{ending}"));
            for cut in 0..=text.len() {
                let pieces = text.as_bytes().split_at(cut);
                assert_eq!(masked_with(&secrets, &[pieces.0, pieces.1]), expected, "{text} {cut}");
            }
            assert_eq!(masked_with(&secrets, &text.as_bytes().chunks(1).collect::<Vec<_>>()), expected, "{text}");
        }
    }
}

#[test]
fn pattern_may_have_letters_of_any_language() {
    let secrets = with_patterns(&["id-[äöü]+"]);
    assert_eq!(masked_with(&secrets, &["x id-äüö y".as_bytes()]), "x *** y");
}
