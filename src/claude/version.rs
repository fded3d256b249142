//! Versions of Claude Code, and what they changed.

use std::fmt;
use std::fs;
use std::path::Path;

use super::json::Object;
use crate::sys::fs::read_bounded;

/// A version, as in `2.1.128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version([u32; 3]);

impl Version {
    /// First of which a command is known that waits for its refresh: see [`Program::refresher`](super::program::Program::refresher).
    pub(crate) const WAITS_FOR_REFRESH: Self = Self([2, 1, 126]);
    /// First with a refresh lock inside the config dir.
    pub(crate) const INNER_LOCK: Self = Self([2, 1, 128]);
    /// First that knows the variable which moves the login: 2.1.177 follows it, 2.1.126 does not, and the program has its name from here on.
    pub(crate) const MOVED_STORAGE: Self = Self([2, 1, 144]);
    /// First that is known to refresh no login beside another provider; 2.1.177 does.
    pub(crate) const NO_IDLE_REFRESH: Self = Self([2, 1, 330]);

    /// Reads the answer to `--version`, or any text that begins with a version.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let numbers = text.split_whitespace().next()?.split('.').take(3).map(|number| number.parse().ok());
        Some(Self(numbers.collect::<Option<Vec<_>>>()?.try_into().ok()?))
    }

    /// Version of the claude at `path`, without running it: by its own installer, the file's name is the version; by npm's, the package
    /// around it says it.
    pub(crate) fn of_program(path: &Path) -> Option<Self> {
        let real = fs::canonicalize(path).ok()?;
        let by_package = || real.ancestors().skip(1).take(3).find_map(Self::of_package);
        Self::parse(real.file_name()?.to_str()?).or_else(by_package)
    }

    fn of_package(dir: &Path) -> Option<Self> {
        let package = Object::parse(&read_bounded(&dir.join("package.json"), 1 << 20).ok()?).ok()?;
        package.text("name").filter(|name| name.starts_with("@anthropic-ai/claude-code"))?;
        Self::parse(&package.text("version")?)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([major, minor, patch]) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_an_answer_a_name_or_a_package() -> std::io::Result<()> {
        assert_eq!(Version::parse("2.1.84 (Claude Code)"), Some(Version([2, 1, 84])));
        assert_eq!(["2.1", "new", "", "2.1.x"].map(Version::parse), [None; 4]);
        assert!(Version::parse("2.1.127") < Some(Version::INNER_LOCK) && Version::parse("10.0.0") > Some(Version::INNER_LOCK));
        let dir = tempfile::tempdir()?;
        let file = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap_or(dir.path()))?;
            fs::write(&path, text).map(|()| path)
        };
        let native = file("versions/2.1.330", "")?;
        std::os::unix::fs::symlink(&native, dir.path().join("claude"))?;
        assert_eq!(Version::of_program(&dir.path().join("claude")), Some(Version([2, 1, 330])));
        let npm = file("npm/bin/claude", "")?;
        assert_eq!(Version::of_program(&npm), None);
        file("npm/package.json", r#"{"name":"other","version":"1.0.0"}"#)?;
        assert_eq!(Version::of_program(&npm), None);
        file("npm/package.json", r#"{"name":"@anthropic-ai/claude-code-linux-x64","version":"2.1.126"}"#)?;
        assert_eq!(Version::of_program(&npm), Some(Version([2, 1, 126])));
        Ok(())
    }
}
