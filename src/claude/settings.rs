//! Settings files of claude: the administrator's, those of the command line, of the project and of the user. Each can set variables,
//! which go before those of the environment.

use std::cell::OnceCell;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::arguments::value_of;
use crate::config::settings::Environment;
use crate::sys::fs::read_bounded;

/// The settings that can be read.
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
    settings: Value,
}

/// Directory of the settings that an administrator makes for all users of a machine.
const MANAGED: &str = "/etc/claude-code";
/// The project's settings, each with its source; relative to the directory in which claude is started.
const PROJECT: [(&str, &str); 2] = [("local", ".claude/settings.local.json"), ("project", ".claude/settings.json")];
const MAX_SETTINGS: u64 = 8 << 20;

impl ClaudeSettings {
    /// Reads those of a claude that is started in this directory with `arguments`.
    pub(crate) fn read(config_dir: &Path, arguments: &[OsString]) -> Self {
        let typed = value_of(arguments, "--settings");
        let inline = typed.and_then(|word| parse(word.as_bytes())).filter(Value::is_object);
        let typed = match inline {
            Some(settings) => Some(Layer { path: "--settings".into(), settings }),
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
        let read = || used().filter_map(|(_, path)| Layer::read(path.into())).collect();
        self.first.iter().chain(self.project.get_or_init(read)).chain(&self.user)
    }

    /// A value that is no null, and the file that has it.
    pub(crate) fn value(&self, key: &str) -> Option<(&Path, &Value)> {
        self.layers().map(|layer| (layer.path.as_path(), &layer.settings[key])).find(|(_, value)| !value.is_null())
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
        self.first.iter().chain(&self.user).find_map(|layer| Some((layer.path.as_path(), layer.variable(name)?)))
    }
}

impl Sources {
    fn have(&self, source: &str) -> bool {
        let Some(typed) = &self.0 else { return true };
        typed.as_bytes().split(|byte| *byte == b',').any(|word| word.trim_ascii() == source.as_bytes())
    }
}

impl Layer {
    fn read(path: PathBuf) -> Option<Self> {
        let settings = parse(&read_bounded(&path, MAX_SETTINGS).ok()?)?;
        Some(Self { path, settings })
    }

    /// A variable that it sets. Numbers and booleans count as their text.
    fn variable(&self, name: &str) -> Option<OsString> {
        match &self.settings["env"][name] {
            Value::String(text) => Some(text.into()),
            value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string().into()),
            _ => None,
        }
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

/// Parses a settings file, which may begin with a byte order mark.
fn parse(text: &[u8]) -> Option<Value> {
    serde_json::from_slice(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;

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
        let value = |words: &[&str]| read(dir.path(), words).value("k").map(|(_, value)| value.clone());
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
            assert_eq!(settings.value("k").is_some(), used.contains("user"), "{words:?}");
        }
        Ok(())
    }

    #[test]
    fn managed_settings_are_read_last_name_first() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let drop_ins = dir.path().join("managed-settings.d");
        fs::create_dir(&drop_ins)?;
        for (path, text) in [
            (dir.path().join("managed-settings.json"), "1"),
            (drop_ins.join("10.json"), "2"),
            (drop_ins.join("20.json"), "3"),
            (drop_ins.join("30.txt"), "4"),
            (drop_ins.join("40.json"), "{"),
        ] {
            fs::write(path, text)?;
        }
        let found: Vec<_> = managed(dir.path()).into_iter().map(|layer| layer.settings).collect();
        assert_eq!(found, [3, 2, 1]);
        Ok(())
    }
}
