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

use super::options::{OPTIONS, OptionSpec, VERBOSITY};
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
            let (line, context) = (line_of(text, at), || format!("{}: {key}", place(at)));
            match option_of(key).with_context(|| place(at))? {
                None => drop(lists.insert(key.to_owned(), (list_of(key, item).with_context(context)?, line))),
                Some(option) => {
                    let value = text_of(option, item, text).with_context(context)?;
                    entries.insert(key.to_owned(), (value.into(), line));
                }
            }
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
        ensure!(is_plain(item), "{}:{line}: {key} has more than one value; remove it first", path.display());
    }
    Ok(document.into_mut())
}

/// True if `item` is one value.
fn is_plain(item: &Item) -> bool {
    item.as_value().is_some_and(|value| !value.is_array() && !value.is_inline_table())
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

/// The option that `key` stands for; `None` for a list.
fn option_of(key: &str) -> Result<Option<&'static OptionSpec>> {
    let shared = || OPTIONS.iter().map(|option| option.name).filter(|name| !NOT_SHARED.contains(name)).chain(LISTS);
    match OPTIONS.iter().find(|option| option.name == key) {
        Some(option) if NOT_SHARED.contains(&key) => {
            bail!("{key} is not for a whole factory; use --{key} or {}", option.variable)
        }
        None if LISTS.contains(&key) => Ok(None),
        None if key == VERBOSITY.name => bail!("{key} is not for a whole factory; use -v, -q or {}", VERBOSITY.variable),
        Some(option) => Ok(Some(option)),
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

/// A value of `option` in `text` as it would be typed behind the flag.
fn text_of(option: &OptionSpec, item: &Item, text: &str) -> Result<String> {
    let written = item.span().and_then(|span| text.get(span)).unwrap_or_default();
    let (takes_number, is_switch) = (option.takes_number(), option.is_switch());
    match item.as_value() {
        Some(Value::String(word)) => Ok(word.value().clone()),
        Some(Value::Integer(number)) if takes_number => Ok(number.value().to_string()),
        // As it is written: 1e-400 is not "off", and 4.0 no number of slots.
        Some(Value::Float(_)) if takes_number => Ok(written.replace('_', "")),
        Some(Value::Boolean(switch)) if is_switch => Ok(if *switch.value() { "on" } else { "off" }.to_owned()),
        _ => {
            let words = option.words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(", ");
            let wanted = match () {
                () if is_switch => "true or false",
                () if takes_number => "a number, or text in quotes,",
                () if words.is_empty() => "text in quotes",
                () => &format!("one of {words}"),
            };
            bail!("{wanted} is wanted, not {}", if is_plain(item) { written } else { item.type_name() })
        }
    }
}

/// What is wrong with a `text` that is no TOML, in one line. Not its line itself: a link to credentials may be in the file's place.
fn syntax_error(path: &Path, text: &str, error: &TomlError) -> Error {
    let number = line_of(text, error.span().map_or(0, |span| span.start));
    let line = text.lines().nth(number - 1).unwrap_or_default();
    let (name, value) = line.split_once('=').map_or((line, ""), |(name, value)| (name.trim(), value.trim_start()));
    let key = OPTIONS.iter().map(|option| option.name).chain(LISTS).find(|key| *key == name);
    // The parser takes the `n` of `none` for that of `nan`.
    let word = value.split_whitespace().next().unwrap_or_default();
    let is_bare = word.starts_with(|first: char| !"\"'[{#".contains(first)) && word.parse::<Value>().is_err();
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
mod tests;
