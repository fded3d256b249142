//! What is shown of a line that waits for its end.

use super::*;

#[test]
fn prompts_are_shown_at_a_pause() {
    for (prompt, shown) in [
        ("Password: ", "Password: "),
        ("claude> ", "claude> "),
        ("\x1b[2J\x1b[10;5Ha", "\x1b[2J\x1b[10;5Ha"),
        ("key ghp_ab", "key "),
        ("key ghp", "key "),
        ("key gh", "key gh"),
        ("x\tghp_ab", "x\t"),
        ("x \"ghp_ab", "x \""),
        ("x 'ghp_ab", "x '"),
        ("x=ghp_ab", "x="),
        ("x:ghp_ab", "x:"),
        ("x>ghp_ab", "x>"),
        ("$ curl", "$ curl"),
        ("x hunter2-hu", "x "),
        ("x q1", "x q1"),
        ("x q1w", "x "),
        ("x q1w2e3", "x ***"),
        ("GH_TOKEN=abc", "GH_TOKEN=***"),
        (r#"x say \"hi\"#, "x "),
        ("x hunter2\x1b[", "x "),
        ("x hunter2%2dhu", "x "),
        ("https://bob:kX9mQ2vL7p", "https://bob:"),
        ("at https://0123456789abcdef0123", "at https://"),
        ("docker login -p kX9mQ2vL7", "docker login -p "),
        ("<a><password>swordfish", "<a><password>"),
        (
            r#"{"s":"q1","t":[true,null,1e5,-1E5,false],"u":"q1w2e3 y"#,
            r#"{"s":"***","***":[true,null,1e5,-1E5,false],"u":"*** y"#,
        ),
        ("x q1w2e3 y", "x *** y"),
        ("x q1w2e3 docker login -u x -p kX9mQ2vL7", "x *** docker login -u x -p "),
        (r#"x q1","t":[true,null,1e5,-1E5,false] y"#, "x *** y"),
        ("x hunter2-hunter2", "x "),
    ] {
        let (mut masker, mut out) = (Masker::new(secrets()), Vec::new());
        masker.feed(prompt.as_bytes(), &mut out);
        masker.pause(&mut out);
        assert_eq!(String::from_utf8_lossy(&out), shown);
        masker.feed(b"cdefg hunter2-hunter2\n", &mut out);
        let (out, whole) = (String::from_utf8_lossy(&out).into_owned(), masked(&format!("{prompt}cdefg hunter2-hunter2\n")));
        assert_eq!(out, whole, "{prompt}");
    }
}

#[test]
fn rest_is_shown_at_the_next_pause() {
    for (first, second, shown) in [
        ("at ", "https://bob:kX9mQ2vL7p", "at https://bob:"),
        ("at ", "https://0123456789abcdef0123", "at https://"),
        ("docker ", "login -p kX9mQ2vL7", "docker login -p "),
        ("key ", "ghp_ab", "key "),
        ("ghp_ab ", "cd", "ghp_*** cd"),
        ("x ", "hunter2-hu", "x "),
        ("x=a", "bcd y", "x=abcd y"),
    ] {
        let (mut masker, mut out) = (Masker::new(secrets()), Vec::new());
        for text in [first, second] {
            masker.feed(text.as_bytes(), &mut out);
            masker.pause(&mut out);
        }
        assert_eq!(String::from_utf8_lossy(&out), shown);
    }
}

#[test]
fn list_is_one_before_its_end() {
    let (mut masker, mut out) = (Masker::new(secrets()), Vec::new());
    masker.feed(br#"[{"s":"q1","t":[true,null,1e5,-1E5,false],"u":"v "#, &mut out);
    masker.pause(&mut out);
    masker.feed(b"w\"}]\n", &mut out);
    assert_eq!(String::from_utf8_lossy(&out), r#"[{"s":"***","***":[true,null,1e5,-1E5,false],"u":"v w"}]"#.to_owned() + "\n");
}

#[test]
fn nothing_of_a_key_or_a_long_secret_is_shown_at_a_pause() {
    let begin = "-----BEGIN PRIVATE KEY-----";
    let long = format!("GH_TOKEN={}", "b".repeat(80_000));
    for (text, shown) in [
        (format!("{begin}\nMIIEpAIBAAKCAQEA0123"), format!("{begin}\n")),
        (format!("{begin}\\nMIIEpAIBAAKCAQEA0123"), String::new()),
        (long, "GH_TOKEN=***".to_owned()),
        (
            "eyJjbGF1ZGVBaU9hdXRoAbCdEfGhIjAbCdEfGhIjAbCdEfGhIjAbCdEfGhIj\nAbCd".to_owned(),
            "eyJjbGF1ZGVBaU9hdXRo***\n".to_owned(),
        ),
    ] {
        let (mut masker, mut out) = (Masker::new(secrets()), Vec::new());
        masker.feed(text.as_bytes(), &mut out);
        masker.pause(&mut out);
        assert_eq!(String::from_utf8_lossy(&out), shown);
    }
}

#[test]
fn pause_is_worth_it_once_for_what_has_come() {
    let (mut masker, mut out) = (Masker::new(secrets()), Vec::new());
    for (text, is_waiting) in [("", false), ("P", true), ("assword: ", true), ("\n", false), ("k", true), ("ey ghp_ab", true)] {
        masker.feed(text.as_bytes(), &mut out);
        assert_eq!(masker.is_waiting(), is_waiting, "{text:?}");
        masker.pause(&mut out);
        assert!(!masker.is_waiting(), "{text:?}");
    }
}

#[test]
fn what_was_shown_at_a_pause_still_tells_a_secret() {
    for pieces in [
        ["at https://", "bob:kX9mQ2vL7p", "@h/ x\n"],
        ["at https:", "//bob:kX9mQ2vL7p", "@h/ x\n"],
        ["docker login -p ", "kX9mQ2vL7p", " y\n"],
        ["Cloning https://", "0123456789abcdef0123", "@h/ x\n"],
        ["https://bob:", "kX9mQ2", "vL7p@h/\n"],
        ["<password>", "kX9mQ2", "vL7p</password>\n"],
    ] {
        let (mut masker, mut out) = (Masker::new(secrets()), Vec::new());
        for text in pieces {
            masker.feed(text.as_bytes(), &mut out);
            masker.pause(&mut out);
        }
        assert_eq!(String::from_utf8_lossy(&out), masked(&pieces.concat()), "{pieces:?}");
    }
}
