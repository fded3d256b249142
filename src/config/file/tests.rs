//! Settings files that are read and changed.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn parse(text: &str) -> Result<SettingsFile> {
    SettingsFile::parse(Path::new("/c/claude-run.toml"), text)
}

#[test]
fn values_are_read_with_their_lines() -> Result<()> {
    let file = parse("# shared\nwait = \"20m\"\n\ntimeout = 1.5 # s\nconflict-exit-code = 9\npty = true\n")?;
    for (key, value, line) in [("wait", "20m", 2), ("timeout", "1.5", 4), ("conflict-exit-code", "9", 5), ("pty", "on", 6)] {
        assert_eq!(file.value(key), Some((&OsString::from(value), line)));
    }
    assert_eq!(parse("")?.value("wait"), None);
    Ok(())
}

#[test]
fn set_keeps_other_text_and_the_mode() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("new/claude-run.toml");
    SettingsFile::set(&path, "lock", "pass-through")?;
    assert_eq!(fs::read_to_string(&path)?, "lock = \"pass-through\"\n");
    assert_eq!(fs::metadata(dir.path().join("new"))?.permissions().mode() & 0o777, 0o700);
    let before = "# factory\nwait = 5 # s\n\nlock  =  \"exclusive\"  # for now\n# end\n";
    fs::write(&path, before)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
    SettingsFile::set(&path, "lock", "pass-through")?;
    assert_eq!(fs::read_to_string(&path)?, before.replace("exclusive", "pass-through"));
    assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o640);
    SettingsFile::set(&path, "timeout", "1h")?;
    let with_timeout =
        format!("{}timeout = \"1h\"\n# end\n", before.replace("exclusive", "pass-through").replace("# end\n", ""));
    let text = fs::read_to_string(&path)?;
    assert!(text.contains("# end") && text.contains("timeout = \"1h\"") && text.len() == with_timeout.len(), "{text}");
    let link = dir.path().join("link");
    symlink(&path, &link)?;
    SettingsFile::set(&link, "lock", "exclusive")?;
    assert!(fs::symlink_metadata(&link)?.is_symlink() && fs::read_to_string(&path)?.contains("\"exclusive\""));
    assert_eq!(fs::read_dir(dir.path().join("new"))?.count(), 1, "nothing is left behind");
    Ok(())
}

#[test]
fn set_keeps_line_ends_and_byte_order_mark() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join(NAME);
    let (dos, mixed) = ("\u{feff}# factory\r\nlock = \"refresh\"\r\n", "# factory\r\nlock = \"refresh\"\n");
    for text in [dos, mixed, "\u{feff}lock = \"refresh\""] {
        fs::write(&path, text)?;
        SettingsFile::set(&path, "lock", "exclusive")?;
        let new = fs::read_to_string(&path)?;
        assert_eq!(new.starts_with('\u{feff}'), text.starts_with('\u{feff}'), "{new:?}");
        assert!(text != dos || new == text.replace("refresh", "exclusive"), "{new:?}");
        assert!(text != mixed || new.ends_with("\"exclusive\"\n"), "{new:?}");
    }
    Ok(())
}

#[test]
fn file_that_is_being_saved_is_not_believed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join(NAME);
    for (text, expected) in [("", true), ("slots = \"4", true), ("slots = 4\n", false), ("# none\n", false)] {
        fs::write(&path, text)?;
        let (file, at) = (SettingsFile::read_once(&path), fs::metadata(&path)?.modified()?);
        assert_eq!(is_half_written(&path, &file, at), expected, "{text:?}");
        // The clock of a file server may be ahead.
        assert_eq!(is_half_written(&path, &file, at - FRESH / 2), expected, "{text:?}");
        assert!(![at + FRESH, at - FRESH].into_iter().any(|now| is_half_written(&path, &file, now)), "{text:?}");
    }
    assert!(SettingsFile::read(&path.join(NAME))?.is_none(), "a file in place of the directory");
    fs::remove_file(&path)?;
    assert!(SettingsFile::read(&path)?.is_none() && SettingsFile::read_again(&path)?.is_none());
    thread::scope(|scope| {
        let read = scope.spawn(|| SettingsFile::read_again(&path));
        thread::sleep(Duration::from_millis(20));
        fs::write(&path, "slots = 4\n")?;
        assert!(read.join().expect("it does not panic")?.is_some(), "it is back");
        anyhow::Ok(())
    })?;
    for (target, expected) in [("nowhere", "leads nowhere"), (".", "cannot read the settings file")] {
        fs::remove_file(&path)?;
        symlink(target, &path)?;
        assert!(SettingsFile::read(&path).is_err_and(|error| error.to_string().contains(expected)), "{target}");
    }
    Ok(())
}

#[test]
fn writers_at_once_keep_what_the_others_set() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join(NAME);
    let keys = ["lock", "timeout", "wait"];
    let set = |key: &str| SettingsFile::set(&path, key, if key == "lock" { "refresh" } else { "1m" });
    thread::scope(|scope| keys.map(|key| scope.spawn(move || set(key))).map(|writer| writer.join().expect("no panic")))
        .into_iter()
        .collect::<Result<()>>()?;
    let file = SettingsFile::read(&path)?.expect("it is there");
    assert!(keys.iter().all(|key| file.entries.contains_key(*key)), "{file:?}");
    let _holder = lock_directory(dir.path())?;
    let error = format!("{:#}", SettingsFile::set(&path, "lock", "exclusive").expect_err("the directory is locked"));
    assert!(error.ends_with(&format!("is locked by another process (pid {})", std::process::id())), "{error}");
    Ok(())
}

#[test]
fn broken_file_is_not_changed_and_not_shown() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (path, text) = (dir.path().join(NAME), "lock = sk-secret\n");
    fs::write(&path, text)?;
    let message = format!("{:#}", SettingsFile::set(&path, "lock", "exclusive").expect_err("changed"));
    assert!(message.contains("claude-run.toml:1: lock: ") && !message.contains('\n'), "{message}");
    assert!(!message.contains("sk-secret") && fs::read_to_string(&path)? == text, "{message}");
    Ok(())
}

#[test]
fn refusal_names_file_line_key_and_way_out() {
    for (text, parts) in [
        ("\ntiemout = 5\n", ["/c/claude-run.toml:2", "\"tiemout\"", "did you mean \"timeout\""]),
        ("xyz = 5", ["/c/claude-run.toml:1", "\"xyz\"", "known are lock, wait"]),
        ("lock-file = \"x\"", [":1", "lock-file", "CLAUDE_RUN_LOCK_FILE"]),
        ("wait = [5]", [":1", "wait", "not array"]),
        ("[wait]\nx = 5", [":1", "wait", "not table"]),
        ("lock = 5", [":1", "lock: ", "one of \"exclusive\", \"refresh\", \"pass-through\" is wanted, not 5"]),
        ("redact = false", [":1", "redact: ", "one of \"log\", \"all\", \"off\" is wanted, not false"]),
        ("label = true", [":1", "label: ", "text in quotes is wanted, not true"]),
        ("claude = true", [":1", "claude: ", "text in quotes is wanted, not true"]),
        ("log = 0x1_0", [":1", "log: ", "text in quotes is wanted, not 0x1_0"]),
        ("wait = true", [":1", "wait: ", "a number, or text in quotes, is wanted, not true"]),
        ("slots = false", [":1", "slots: ", "a number, or text in quotes, is wanted, not false"]),
        ("pty = 1.50", [":1", "pty: ", "true or false is wanted, not 1.50"]),
        ("wait = 5\nwait = 6", [":2", "duplicate", "wait"]),
        ("pty = true\npty = false", [":2", "duplicate", "pty"]),
        ("wait = \"5", [":1", "string", ""]),
        ("slots = none", [":1", "slots: ", "; text stands in quotes: slots = \"…\""]),
        ("lock = refresh", [":1", "lock: ", "; text stands in quotes: lock = \"…\""]),
        ("timeout = 5m # five", [":1", "timeout: ", "; text stands in quotes: timeout = \"…\""]),
        ("\nclaude = /usr/bin/claude", [":2", "claude: ", "; text stands in quotes: claude = \"…\""]),
        ("redact = false1", [":1", "redact: ", "; text stands in quotes: redact = \"…\""]),
        ("wait", [":1", "", ""]),
    ] {
        let message = format!("{:#}", parse(text).expect_err("accepted"));
        assert!(parts.into_iter().all(|part| message.contains(part)) && !message.contains('\n'), "{text:?}: {message}");
        assert_eq!(message.contains("stands in quotes"), parts[2].contains("stands in quotes"), "{text:?}: {message}");
    }
}
