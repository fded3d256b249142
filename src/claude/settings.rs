//! Settings files of claude: the administrator's, those of the command line, of the project and of the user. Each can set variables,
//! which go before those of the environment.

use std::cell::OnceCell;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::arguments::value_of;
use super::json::Object;
use crate::config::settings::Environment;
use crate::sys::fs::{read_bounded, settled};

/// The settings, by their files.
#[derive(Debug)]
pub(crate) struct ClaudeSettings {
    /// Those of the administrator and of the command line, which go before the project's.
    first: Vec<Layer>,
    sources: Sources,
    /// Those of the project, once they are asked for: from 2.1.330 on they come too late for the storage and for the first refresh.
    project: OnceCell<Vec<Layer>>,
    user: Option<Layer>,
}

/// What `--setting-sources` leaves of the user's and the project's settings: all of them, if it is not typed.
#[derive(Debug)]
struct Sources(Option<OsString>);

#[derive(Debug)]
struct Layer {
    path: PathBuf,
    settings: Object,
    /// The variables that they set.
    env: Object,
    /// Reason why the file cannot be read, if it cannot.
    flaw: Option<String>,
}

/// Directory of the settings that an administrator makes for all users of a machine.
const MANAGED: &str = "/etc/claude-code";
/// The project's settings, each with its source; relative to the directory in which claude is started.
const PROJECT: [(&str, &str); 2] = [("local", ".claude/settings.local.json"), ("project", ".claude/settings.json")];
const MAX_SETTINGS: u64 = 64 << 20;

impl ClaudeSettings {
    /// Reads those of a claude that is started in this directory with `arguments`.
    pub(crate) fn read(config_dir: &Path, arguments: &[OsString]) -> Self {
        let typed = value_of(arguments, "--settings");
        let is_inline = |word: &&OsStr| word.as_bytes().trim_ascii_start().starts_with(b"{");
        let typed = match typed.filter(is_inline) {
            Some(word) => Some(Layer::of("--settings".into(), Ok(parse(word.as_bytes())))),
            None => typed.map(PathBuf::from).and_then(Layer::read),
        };
        let first = managed(Path::new(MANAGED)).into_iter().chain(typed).collect();
        let sources = Sources(value_of(arguments, "--setting-sources").map(OsStr::to_owned));
        let user = if sources.have("user") { Layer::read(config_dir.join("settings.json")) } else { None };
        Self { first, sources, project: OnceCell::new(), user }
    }

    /// All of them, by precedence.
    fn layers(&self) -> impl Iterator<Item = &Layer> {
        let used = || PROJECT.into_iter().filter(|(source, _)| self.sources.have(source));
        let read = || used().filter_map(|(_, path)| Layer::found(path.into(), look(Path::new(path)))).collect();
        self.first.iter().chain(self.project.get_or_init(read)).chain(&self.user)
    }

    /// A file that cannot be read, and why. What is in it is not known: the project's have no say about where the login is.
    pub(crate) fn unreadable(&self) -> Option<String> {
        self.early_layers().find_map(|Layer { path, flaw, .. }| Some(format!("{} {}", path.display(), flaw.as_ref()?)))
    }

    fn early_layers(&self) -> impl Iterator<Item = &Layer> {
        self.first.iter().chain(&self.user)
    }

    /// A text, and the file that has it.
    pub(crate) fn text(&self, key: &str) -> Option<(&Path, String)> {
        self.layers().find_map(|layer| Some((layer.path.as_path(), layer.settings.text(key)?)))
    }

    /// A variable as claude sees it in the end.
    pub(crate) fn variable(&self, environment: Environment, name: &str) -> Option<OsString> {
        self.layers().find_map(|layer| layer.variable(name)).or_else(|| environment(name))
    }

    /// A variable as claude sees it when it looks for its login.
    pub(crate) fn early_variable(&self, environment: Environment, name: &str) -> Option<OsString> {
        self.own_early_variable(name).map(|(_, value)| value).or_else(|| environment(name))
    }

    /// A variable that settings set before claude looks for its login, and the file that has it.
    pub(crate) fn own_early_variable(&self, name: &str) -> Option<(&Path, OsString)> {
        self.early_layers().find_map(|layer| Some((layer.path.as_path(), layer.variable(name)?)))
    }
}

impl Sources {
    fn have(&self, source: &str) -> bool {
        let Some(typed) = &self.0 else { return true };
        typed.as_bytes().split(|byte| *byte == b',').any(|word| word.trim_ascii() == source.as_bytes())
    }
}

impl Layer {
    /// Reads a file, if there is one; again, while it looks half-written.
    fn read(path: PathBuf) -> Option<Self> {
        let read = settled(|| look(&path), |read| matches!(read, Ok(Err(_))));
        Self::found(path, read)
    }

    fn found(path: PathBuf, read: io::Result<serde_json::Result<Object>>) -> Option<Self> {
        match read {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            read => Some(Self::of(path, read)),
        }
    }

    fn of(path: PathBuf, read: io::Result<serde_json::Result<Object>>) -> Self {
        let (settings, flaw) = match read {
            Ok(Ok(settings)) => (settings, None),
            Ok(Err(error)) => (Object::default(), Some(format!("is no JSON: {error}"))),
            Err(error) => (Object::default(), Some(format!("cannot be read: {error}"))),
        };
        let env = settings.object("env").unwrap_or_default();
        Self { path, settings, env, flaw }
    }

    /// A variable that it sets. Numbers and booleans count as their text.
    fn variable(&self, name: &str) -> Option<OsString> {
        let is_scalar = |value: &&str| !value.starts_with(['"', '[', '{', 'n']);
        self.env.text(name).or_else(|| self.env.raw(name).filter(is_scalar).map(str::to_owned)).map(OsString::from)
    }
}

/// The administrator's settings in `dir`: the file, and those of `managed-settings.d`, of which a later name goes before an earlier one.
fn managed(dir: &Path) -> Vec<Layer> {
    let names = std::fs::read_dir(dir.join("managed-settings.d")).into_iter().flatten().flatten();
    let mut files: Vec<_> =
        names.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    files.sort_by(|one, other| other.cmp(one));
    files.push(dir.join("managed-settings.json"));
    files.into_iter().filter_map(Layer::read).collect()
}

fn look(path: &Path) -> io::Result<serde_json::Result<Object>> {
    read_bounded(path, MAX_SETTINGS).map(|text| parse(&text))
}

fn parse(text: &[u8]) -> serde_json::Result<Object> {
    // Of an empty file, as of /dev/null, claude says nothing.
    if text.trim_ascii().is_empty() { Ok(Object::default()) } else { Object::parse(text) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(config_dir: &Path, words: &[&str]) -> ClaudeSettings {
        ClaudeSettings::read(config_dir, &words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn variables_are_text_whatever_their_type() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("settings.json"), "\u{feff}{\"env\":{\"A\":1,\"B\":true,\"C\":\"\",\"D\":null,\"E\":[]}}")?;
        let settings = read(dir.path(), &[]);
        let environment = |_: &str| Some(OsString::from("outside"));
        for (name, value) in [("A", "1"), ("B", "true"), ("C", ""), ("D", "outside"), ("E", "outside"), ("F", "outside")] {
            assert_eq!(settings.variable(&environment, name), Some(value.into()), "{name}");
        }
        Ok(())
    }

    #[test]
    fn settings_of_the_command_line_precede_the_users() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("settings.json"), r#"{"k":"user"}"#)?;
        let file = dir.path().join("typed.json");
        fs::write(&file, r#"{"k":"file"}"#)?;
        let file = file.to_str().unwrap_or_default();
        let value = |words: &[&str]| read(dir.path(), words).text("k").map(|(_, text)| text);
        for (words, expected) in [
            (vec!["-p", "x"], "user"),
            (vec!["--settings", r#"{"k":"typed"}"#], "typed"),
            (vec![r#"--settings={"k":"typed"}"#], "typed"),
            (vec!["--settings", file], "file"),
            (vec![&format!("--settings={file}")], "file"),
            (vec!["--settings"], "user"),
            (vec!["--settings-x", r#"{"k":"typed"}"#], "user"),
            (vec!["--", "--settings", r#"{"k":"typed"}"#], "user"),
        ] {
            assert_eq!(value(&words), Some(expected.into()), "{words:?}");
        }
        Ok(())
    }

    #[test]
    fn setting_sources_choose_among_the_files() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("settings.json"), r#"{"k":"user"}"#)?;
        for (words, used) in [
            (vec![], "local project user"),
            (vec!["--setting-sources", "user,project"], "project user"),
            (vec!["--setting-sources=local, user"], "local user"),
            (vec!["--setting-sources=users"], ""),
            (vec!["--setting-sources", ""], ""),
        ] {
            let settings = read(dir.path(), &words);
            let of_project = PROJECT.map(|(source, _)| source);
            let found = of_project.into_iter().chain(["user"]).filter(|source| settings.sources.have(source));
            assert_eq!(found.collect::<Vec<_>>().join(" "), used, "{words:?}");
            assert_eq!(settings.text("k").is_some(), used.contains("user"), "{words:?}");
        }
        Ok(())
    }

    #[test]
    fn managed_settings_are_read_last_name_first() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let drop_ins = dir.path().join("managed-settings.d");
        fs::create_dir(&drop_ins)?;
        for (path, text) in [
            (dir.path().join("managed-settings.json"), "{\"k\":1}"),
            (drop_ins.join("10.json"), "{\"k\":2}"),
            (drop_ins.join("20.json"), "{\"k\":3}"),
            (drop_ins.join("30.txt"), "4"),
            (drop_ins.join("40.json"), "{"),
        ] {
            fs::write(path, text)?;
        }
        let found: Vec<_> = managed(dir.path()).into_iter().map(|layer| layer.settings.get("k")).collect();
        assert_eq!(found, [None, Some(3), Some(2), Some(1)]);
        Ok(())
    }

    #[test]
    fn settings_that_only_javascript_reads_count() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("settings.json");
        let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        let long = format!("\"{}\"", "x".repeat(9 << 20));
        for other in [&b"\"\\ud800\""[..], b"\"\xff\"", b"1e999", deep.as_bytes(), long.as_bytes()] {
            fs::write(&file, [br#"{"x":"#, other, br#","env":{"A":"","y":"#, other, b"}}"].concat())?;
            let settings = read(dir.path(), &[]);
            assert_eq!(
                (settings.own_early_variable("A").map(|(_, value)| value), settings.unreadable()),
                (Some(OsString::new()), None)
            );
        }
        Ok(())
    }

    #[test]
    fn settings_that_cannot_be_read_are_told() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("settings.json");
        assert_eq!(read(dir.path(), &[]).unreadable(), None, "no file");
        for (text, is_told) in [("{\"env\":", true), ("no JSON", true), ("{}", false), ("[]", false), ("", false)] {
            fs::write(&file, text)?;
            let told = read(dir.path(), &[]).unreadable();
            assert_eq!(told.is_some_and(|told| told.starts_with(&*file.to_string_lossy())), is_told, "{text}");
        }
        assert!(read(dir.path(), &["--settings", "{"]).unreadable().is_some_and(|told| told.starts_with("--settings ")));
        fs::remove_file(&file)?;
        fs::create_dir(&file)?;
        assert!(read(dir.path(), &[]).unreadable().is_some(), "a directory");
        Ok(())
    }
}
