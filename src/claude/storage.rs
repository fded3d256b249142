//! Where claude keeps its login and its refresh locks: in its config dir, unless a variable moves them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::config_dir;
use super::settings::ClaudeSettings;
use super::version::Version;
use crate::config::settings::Environment;
use crate::sys::fs::{lacks_room, real};

/// Variable that moves the login and its locks, from [`Version::MOVED_STORAGE`] on. Empty, it stands for `~/.claude`.
pub(crate) const VARIABLE: &str = "CLAUDE_SECURESTORAGE_CONFIG_DIR";

/// Bytes for what claude writes to save a token.
const ROOM: usize = 64 << 10;

/// Directories with logins of claude and the locks around their refreshes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaudeStorage {
    /// Directory of `.credentials.json` and its locks.
    pub(crate) dir: PathBuf,
    /// The variable because of which that is not the config dir.
    pub(crate) moved_by: Option<&'static str>,
    /// The settings file that sets this variable, if one does.
    pub(crate) named_in: Option<PathBuf>,
    /// Directory of a claude that does not know the variable, if this one's version is not known: it may be that.
    unmoved: Option<PathBuf>,
    /// Directory of the profiles, which are logins, too.
    profiles: Option<PathBuf>,
}

impl ClaudeStorage {
    /// Storage of a claude that has this `config_dir` and these settings; its version counts if it is known, and is asked for only where
    /// the variable is set.
    pub(super) fn of(
        environment: Environment,
        settings: &ClaudeSettings,
        version: impl Fn() -> Option<Version>,
        config_dir: &Path,
    ) -> Self {
        let is_path = |path: &OsString| !path.is_empty();
        let home = environment("HOME").filter(is_path).map(PathBuf::from);
        let variable = settings.early_variable(environment, VARIABLE);
        let version = variable.is_some().then(version).flatten();
        let variable = variable.filter(|_| version.is_none_or(|version| version >= Version::MOVED_STORAGE));
        let by_settings = || settings.own_early_variable(config_dir::VARIABLE).map(|(_, path)| path).filter(is_path);
        let (dir, moved_by) = match (variable, &home) {
            (Some(path), _) if is_path(&path) => (path.into(), Some(VARIABLE)),
            (Some(_), Some(home)) => (home.join(".claude"), Some(VARIABLE)),
            _ => by_settings().map_or((config_dir.into(), None), |path| (path.into(), Some(config_dir::VARIABLE))),
        };
        let may_be_older = moved_by == Some(VARIABLE) && version.is_none();
        let unmoved = may_be_older.then(|| by_settings().map_or_else(|| config_dir.into(), PathBuf::from));
        let unmoved = unmoved.filter(|other| real(other) != real(&dir));
        let moved_by = moved_by.filter(|_| real(&dir) != real(config_dir));
        let named_in = moved_by.and_then(|variable| Some(settings.own_early_variable(variable)?.0.to_owned()));
        let dir = if moved_by.is_some() { dir } else { config_dir.into() };
        let configs = environment("XDG_CONFIG_HOME").filter(is_path).map(PathBuf::from);
        let profiles = configs.or_else(|| Some(home?.join(".config"))).map(|configs| configs.join("anthropic"));
        Self { dir, moved_by, named_in, unmoved, profiles }
    }

    /// Storage that is `dir`, whatever environment and settings say.
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), moved_by: None, named_in: None, unmoved: None, profiles: None }
    }

    /// The file with the login.
    pub(crate) fn credentials(&self) -> PathBuf {
        self.dir.join(".credentials.json")
    }

    /// This storage, and the one that claude may have in its place.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = Self> {
        [self.clone()].into_iter().chain(self.unmoved.as_deref().map(Self::at))
    }

    /// The file with the login of each, in the same order.
    pub(crate) fn logins(&self) -> impl Iterator<Item = PathBuf> {
        self.candidates().map(|storage| storage.credentials())
    }

    /// True if a token that is refreshed now could not be saved, and the login would be lost with it.
    pub(crate) fn lacks_room(&self) -> bool {
        self.candidates().any(|storage| lacks_room(&storage.dir, ROOM))
    }

    /// The lock around the refresh of a profile.
    pub(crate) fn profile_lock(&self) -> Option<PathBuf> {
        Some(self.profiles.as_ref()?.join("credentials.lock"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_moves_the_login_of_versions_that_know_it() {
        let (config_dir, elsewhere) = (Path::new("/nonesuch/config"), "/nonesuch/elsewhere");
        let settings = ClaudeSettings::read(config_dir, &[]);
        let environment = |name: &str| (name == VARIABLE).then(|| elsewhere.into());
        let of = |version: &str| ClaudeStorage::of(&environment, &settings, || Version::parse(version), config_dir);
        for (version, is_moved) in
            [("2.1.84", false), ("2.1.126", false), ("2.1.143", false), ("2.1.144", true), ("2.1.177", true), ("unknown", true)]
        {
            let storage = of(version);
            assert_eq!(storage.dir == Path::new(elsewhere), is_moved, "{version}");
            assert_eq!(storage.moved_by, is_moved.then_some(VARIABLE), "{version}");
            let others: Vec<_> = storage.candidates().skip(1).map(|other| other.dir).collect();
            assert_eq!(others.iter().any(|other| other == config_dir), version == "unknown", "{version}: {others:?}");
        }
    }

    #[test]
    fn candidates_are_two_places() {
        let config_dir = Path::new("/nonesuch/config");
        for (variable, in_settings, expected) in [
            ("/nonesuch/a", "/nonesuch/a", &["/nonesuch/a"][..]),
            ("/nonesuch/a", "/nonesuch/b", &["/nonesuch/a", "/nonesuch/b"]),
            ("/nonesuch/config", "/nonesuch/b", &["/nonesuch/config", "/nonesuch/b"]),
            ("/nonesuch/config", "/nonesuch/config", &["/nonesuch/config"]),
        ] {
            let typed = format!(r#"{{"env":{{"CLAUDE_CONFIG_DIR":"{in_settings}"}}}}"#);
            let settings = ClaudeSettings::read(config_dir, &["--settings".into(), typed.into()]);
            let environment = |name: &str| (name == VARIABLE).then(|| variable.into());
            let storage = ClaudeStorage::of(&environment, &settings, || None, config_dir);
            let dirs: Vec<_> = storage.candidates().map(|storage| storage.dir).collect();
            assert_eq!(dirs, expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{variable}, {in_settings}");
        }
    }
}
