//! Long lines, which are masked by pieces.

use super::*;

#[test]
fn line_behind_a_long_one_is_masked_as_others_are() {
    let long = "x".repeat(80_000);
    for (line, expected) in [(r#"{"t":"GH_TOKEN=a1b2 c"}"#, r#"{"t":"GH_TOKEN=*** c"}"#), ("GH_TOKEN=a1b2 c", "GH_TOKEN=*** c")]
    {
        for cut in 0..line.len() {
            let out = masked_in(&[long.as_bytes(), format!("\n{}", &line[..cut]).as_bytes(), &line.as_bytes()[cut..]]);
            assert_eq!(out[80_001..], *expected);
        }
    }
}

#[test]
fn list_stays_one_by_pieces() {
    let text = format!(r#"[{{"s":"q1","t":[true,null,1e5,-1E5,false],"u":"{}"}}]"#, "v w ".repeat(40_000));
    let expected = text.replace("q1", "***").replace(r#""t""#, r#""***""#);
    assert!(masked(&text) == expected, "{}", &masked(&text)[..80]);
}

#[test]
fn secret_in_a_long_one_does_not_end_it() {
    // The inner one goes on to the end of its word, and of the piece; the outer one to its quote.
    let inner = format!("{} GH_TOKEN={} ddd ddd", "b".repeat(73_000), "c".repeat(80_000));
    assert_eq!(masked(&format!("--password '{inner}' x")), "--password '***' x");
}

#[test]
fn long_secret_that_touches_another_goes_on_as_itself() {
    let none = Vec::<(OsString, OsString)>::new();
    let secrets = Arc::new(Secrets::new(none, &[], &["nr [0-9] password='".to_owned()]).expect("a good pattern"));
    let text = format!("nr 1 password='{}' x", "b b ".repeat(40_000));
    assert_eq!(masked_with(&secrets, &[text.as_bytes()]), "***' x");
}
