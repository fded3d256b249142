//! `claude-run.toml` in the config dir: settings that a whole factory shares. An unknown key, a value that means nothing and a
//! broken file are errors that name file, line and key; never a silent default.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use toml_edit::{Document, DocumentMut, Item, TomlError, Value};

use super::options::OPTIONS;
use super::trust::{POWERFUL, ensure_only_ours};
use super::values::nearest;
use crate::redact;
use crate::sys::file_id::FileId;
use crate::sys::fs::{apart, read_bounded_text, settled, try_flock};
use crate::sys::proc::flocks;
use crate::sys::replace::{directory_of, replace};

/// Name of the file.
pub const NAME: &str = "claude-run.toml";

/// For another that changes the file: it takes milliseconds.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Larger than any such file.
const LARGEST: u64 = 8 << 20;

/// Keys that are no options: lists of text.
pub(super) const LISTS: [&str; 2] = ["redact-names", "redact-patterns"];

/// Options that are no keys of the file.
const NOT_SHARED: [&str; 3] = ["config-dir", "lock-file", "log-format"];

/// A settings file, read but not yet understood.
#[derive(Debug)]
pub struct SettingsFile {
    /// Path of the file.
    pub path: PathBuf,
    /// By key: the value, and its line.
    entries: BTreeMap<String, (OsString, usize)>,
    /// By key of [`LISTS`].
    lists: BTreeMap<String, (Vec<String>, usize)>,
    /// True if nothing is in it, not even a comment.
    is_empty: bool,
}

/// Time from a change of the file within which it may be half-written.
const FRESH: Duration = Duration::from_secs(1);

/// True if the file `path`, as it was read `now`, is empty or broken, and has just been changed: editors and `cp` empty it first.
fn is_half_written(path: &Path, file: &Result<Option<SettingsFile>>, now: SystemTime) -> bool {
    let changed = || fs::metadata(path).and_then(|found| found.modified());
    let looks_so = file.as_ref().map_or(true, |file| file.as_ref().is_some_and(|file| file.is_empty));
    looks_so && changed().is_ok_and(|at| apart(now, at) < FRESH)
}

impl SettingsFile {
    /// Reads the file `path`; `None` if there is no such file.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, or has a key or a kind of value that does not belong there.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        settled(|| Self::read_once(path), |file| is_half_written(path, file, SystemTime::now()))
    }

    /// The same, of a file that was there before: one that is missing may be on its way back.
    pub(super) fn read_again(path: &Path) -> Result<Option<Self>> {
        settled(|| Self::read(path), |file| matches!(file, Ok(None)))
    }

    fn read_once(path: &Path) -> Result<Option<Self>> {
        match read_bounded_text(path, LARGEST) {
            Ok(text) => {
                let file = Self::parse(path, &text)?;
                if let Some((key, line)) = POWERFUL.into_iter().find_map(|key| Some((key, file.line(key)?))) {
                    ensure_only_ours(path, key).with_context(|| format!("{}:{line}", path.display()))?;
                }
                Ok(Some(file))
            }
            Err(error) if error.kind() == ErrorKind::NotFound && path.is_symlink() => {
                bail!("the settings file {} is a link that leads nowhere", path.display())
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read the settings file {}", path.display())),
        }
    }

    /// Writes `value` for `key` into the file `path`, and leaves all else in it as it is, comments too. Readers see the old file
    /// or the new one.
    ///
    /// # Errors
    /// The file is broken, or cannot be read or written.
    pub fn set(path: &Path, key: &str, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        let change = || -> Result<()> {
            let directory = directory_of(path)?;
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
            // Of two writers at once, the second changes what the first has written.
            let _guard = lock_directory(&directory)?;
            Ok(replace(path, |text| {
                let mut document = read_to_set(path, text, key).map_err(io::Error::other)?;
                let mut value = value.clone();
                if let Some(old) = document.get(key).and_then(Item::as_value) {
                    *value.decor_mut() = old.decor().clone();
                }
                document[key] = Item::Value(value);
                Ok(in_the_form_of(text, document.to_string()))
            })?)
        };
        change().with_context(|| format!("cannot change the settings file {}", path.display()))
    }

    /// Reads `text` as the contents of the file `path`.
    ///
    /// # Errors
    /// The text is no TOML, or has a key or a kind of value that does not belong there.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let place = |at: usize| format!("{}:{}", path.display(), line_of(text, at));
        let document = Document::parse(text).map_err(|error| syntax_error(path, text, &error))?;
        let (mut entries, mut lists) = (BTreeMap::new(), BTreeMap::new());
        for (key, item) in document.iter() {
            let at = document.key(key).and_then(|key| key.span()).map_or(0, |span| span.start);
            ensure_known(key).with_context(|| place(at))?;
            if LISTS.contains(&key) {
                let list = list_of(key, item).with_context(|| format!("{}: {key}", place(at)))?;
                lists.insert(key.to_owned(), (list, line_of(text, at)));
                continue;
            }
            let value = text_of(item, text).with_context(|| format!("{}: {key}", place(at)))?;
            entries.insert(key.to_owned(), (value.into(), line_of(text, at)));
        }
        Ok(Self { path: path.to_owned(), entries, lists, is_empty: text.is_empty() })
    }

    /// Value of `key`, and its line.
    pub fn value(&self, key: &str) -> Option<(&OsString, usize)> {
        self.entries.get(key).map(|(value, line)| (value, *line))
    }

    /// Texts of the list `key`.
    pub fn list(&self, key: &str) -> Vec<String> {
        self.lists.get(key).map(|(list, _)| list.clone()).unwrap_or_default()
    }

    pub(super) fn line(&self, key: &str) -> Option<usize> {
        self.value(key).map(|(_, line)| line).or_else(|| Some(self.lists.get(key)?.1))
    }
}

/// Reads `text` of the file `path` for a change of `key`, which loses no more than one value.
fn read_to_set(path: &Path, text: &str, key: &str) -> Result<DocumentMut> {
    let document = Document::parse(text).map_err(|error| syntax_error(path, text, &error))?;
    if let Some((name, item)) = document.get_key_value(key) {
        let line = line_of(text, name.span().map_or(0, |span| span.start));
        let is_plain = item.as_value().is_some_and(|value| !value.is_array() && !value.is_inline_table());
        ensure!(is_plain, "{}:{line}: {key} has more than one value; remove it first", path.display());
    }
    Ok(document.into_mut())
}

/// The `new` text with the byte order mark and the ends of lines of the `old`.
fn in_the_form_of(old: &str, new: String) -> String {
    let is_crlf = old.contains("\r\n") && !old.replace("\r\n", "").contains('\n');
    let new = if is_crlf { new.replace("\r\n", "\n").replace('\n', "\r\n") } else { new };
    if old.starts_with('\u{feff}') { format!("\u{feff}{new}") } else { new }
}

/// Takes an flock on `directory`, which anybody can hold, and for ever.
fn lock_directory(directory: &Path) -> Result<File> {
    let guard = File::open(directory)?;
    let deadline = Instant::now() + LONGEST_WAIT;
    while !try_flock(&guard) {
        if Instant::now() >= deadline {
            let holders = flocks(FileId::of(&guard.metadata()?));
            let pids: Vec<_> = holders.iter().map(|flock| format!("pid {}", flock.pid)).collect();
            bail!("{} is locked by another process ({})", directory.display(), pids.join(", "));
        }
        thread::sleep(LONGEST_WAIT / 100);
    }
    Ok(guard)
}

fn ensure_known(key: &str) -> Result<()> {
    let shared = || OPTIONS.iter().map(|option| option.name).filter(|name| !NOT_SHARED.contains(name)).chain(LISTS);
    match OPTIONS.iter().find(|option| option.name == key) {
        Some(option) if NOT_SHARED.contains(&key) => {
            bail!("{key} is not for a whole factory; use --{key} or {}", option.variable)
        }
        None if LISTS.contains(&key) => Ok(()),
        Some(_) => Ok(()),
        None => match nearest(key, shared(), 0.7) {
            Some(similar) => bail!("unknown key {key:?}; did you mean {similar:?}?"),
            None => bail!("unknown key {key:?}; known are {}", shared().collect::<Vec<_>>().join(", ")),
        },
    }
}

/// The texts of the list `key`.
fn list_of(key: &str, item: &Item) -> Result<Vec<String>> {
    let list = item.as_array().with_context(|| format!("a list of strings is wanted, not {}", item.type_name()))?;
    let text = |value: &Value| value.as_str().map(str::to_owned).filter(|text| !text.is_empty());
    let texts = list.iter().map(|value| text(value).context("a list of strings is wanted, none of them empty"));
    let texts = texts.collect::<Result<Vec<_>>>()?;
    let compile =
        |(number, pattern): (usize, &String)| redact::compile(pattern).map(drop).with_context(|| format!("number {number}"));
    if key == "redact-patterns" {
        (1..).zip(&texts).try_for_each(compile)?;
    } else if let Some(name) = texts.iter().find(|name| !name.chars().all(|c| c.is_alphanumeric() || "_-. ".contains(c))) {
        bail!("{name:?} is no name, and stands for nothing but itself; redact-patterns takes regular expressions");
    }
    Ok(texts)
}

/// A value in `text` as it would be typed behind a flag.
fn text_of(item: &Item, text: &str) -> Result<String> {
    match item.as_value() {
        Some(Value::String(word)) => Ok(word.value().clone()),
        Some(Value::Integer(number)) => Ok(number.value().to_string()),
        // As it is written: 1e-400 is not "off".
        Some(Value::Float(number)) if *number.value() == 0.0 => {
            Ok(number.span().and_then(|span| text.get(span)).unwrap_or_default().replace('_', ""))
        }
        Some(Value::Float(number)) => Ok(number.value().to_string()),
        Some(Value::Boolean(switch)) => Ok(if *switch.value() { "on" } else { "off" }.to_owned()),
        _ => bail!("a string, a number, true or false is wanted, not {}", item.type_name()),
    }
}

/// What is wrong with a `text` that is no TOML, in one line. Not its line itself: a link to credentials may be in the file's place.
fn syntax_error(path: &Path, text: &str, error: &TomlError) -> Error {
    let number = line_of(text, error.span().map_or(0, |span| span.start));
    let line = text.lines().nth(number - 1).unwrap_or_default();
    let (name, value) = line.split_once('=').map_or((line, ""), |(name, value)| (name.trim(), value.trim_start()));
    let key = OPTIONS.iter().map(|option| option.name).chain(LISTS).find(|key| *key == name);
    // The parser takes the `n` of `none` for that of `nan`.
    let is_bare = value.starts_with(|first: char| !"\"'[{#".contains(first));
    let way_out = key.filter(|_| is_bare).map(|key| format!("; text stands in quotes: {key} = \"…\"")).unwrap_or_default();
    let key = key.map(|key| format!("{key}: ")).unwrap_or_default();
    anyhow!("{}:{number}: {key}{}{way_out}", path.display(), one_line(error.message()))
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count() + 1
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn parse(text: &str) -> Result<SettingsFile> {
        SettingsFile::parse(Path::new("/c/claude-run.toml"), text)
    }

    #[test]
    fn values_are_read_with_their_lines() -> Result<()> {
        let file = parse("# shared\nwait = \"20m\"\n\ntimeout = 1.5 # s\nconflict-exit-code = 9\npty = true\n")?;
        for (key, value, line) in [("wait", "20m", 2), ("timeout", "1.5", 4), ("conflict-exit-code", "9", 5), ("pty", "on", 6)]
        {
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
            ("wait = 5\nwait = 6", [":2", "duplicate", "wait"]),
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
        }
    }
}
