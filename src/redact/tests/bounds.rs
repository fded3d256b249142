//! How far a value is looked for, and how much of it tells.

use super::*;

#[test]
fn value_is_looked_for_so_far_behind_its_name() {
    for (before, filler, behind, most) in [
        ("GH_TOKEN", " ", "=«v1»", 64),
        ("GH_TOKEN=", " ", "«v1»", 16),
        ("<", "a", ":password b=\"c\">«v1»<br/>", 32),
        ("let token: &str", " ", "= \"«v1»\"", 57),
        ("let token:", " ", "&str = \"«v1»\"", 16),
        ("<password a=\"", "b", "\">«v1»<br/>", 251),
        ("{\"t\":\"f('API_KEY',", "\\n", "'«v1»')\"}", 16),
        ("[\"curl.", "a", "\", \"-u\", \"u:«v1»\"]", 15),
        ("[\"", "a", "/curl\", \"-u\", \"u:«v1»\"]", 63),
        ("[\"curl\",", " ", "\"-u\", \"u:«v1»\"]", 16),
        ("{\"name\":\"API_KEY\"", ",\"a\":1", ",\"value\":\"«v1»\"}", 7),
        ("{\"value\":\"«v1»\"", ",\"a\":1", ",\"name\":\"API_KEY\"}", 7),
        ("[\"curl\", \"", "a", "\", \"-u\", \"u:«v1»\"]", 4087),
    ] {
        // A line that is read whole is looked through for what may begin a secret first.
        for ending in ["", "\n"] {
            let (text, expected) = expand(&format!("{before}{}{behind}{ending}", filler.repeat(most)));
            assert_eq!(masked(&text), expected);
            let (text, _) = expand(&format!("{before}{}{behind}{ending}", filler.repeat(most + 1)));
            assert_eq!(masked(&text), text);
        }
    }
}

#[test]
fn value_is_judged_by_so_much_of_its_line() {
    let list = |value: &str| masked(&format!("x-api-key: [{value}]"));
    assert_eq!((&*list(&"a1".repeat(2047)), &*list(&"a1b".repeat(1365))), ("x-api-key: [***]", "x-api-key: ***"));
    for (length, is_masked) in [(511, true), (512, false)] {
        let path = "/abc".repeat(128);
        let text = format!("token={}+", &path[..length]);
        assert_eq!(masked(&text), if is_masked { "token=***".to_owned() } else { text });
        let text = format!("x{}password = swordfish", " ".repeat(1023 - length));
        assert_eq!(masked(&text), if is_masked { text.replace("swordfish", "***") } else { text });
    }
}
