//! The config dir as Claude Code resolves it: `CLAUDE_CONFIG_DIR` if set and not empty, else `$HOME/.claude`. It is checked
//! before anything else, since claude itself fails over it in silence. Its contents are neither read nor changed here.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::{AccessFlags, access};
use tracing::warn;
use unicode_normalization::is_nfc;

use crate::config::settings::Environment;

pub(crate) const VARIABLE: &str = "CLAUDE_CONFIG_DIR";

/// A resolved config dir.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigDir {
    pub(crate) path: PathBuf,
    pub(crate) for_child: ForChild,
}

/// Change to `CLAUDE_CONFIG_DIR` in the child's environment, so that claude resolves the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForChild {
    Unchanged,
    /// The variable is empty, and claude would scatter files over the working directory.
    Unset,
    /// `--config-dir` was given.
    Set,
}

impl ConfigDir {
    /// Resolves the config dir from `flag` (`--config-dir`) and the environment.
    pub(crate) fn resolve(flag: Option<&Path>, environment: Environment) -> Result<Self> {
        if let Some(path) = flag {
            // Absolute, so that it means the same to a tool of claude that has changed its directory.
            let path = std::path::absolute(path).with_context(|| format!("--config-dir {}", path.display()))?;
            return Ok(Self { path, for_child: ForChild::Set });
        }
        let for_child = match environment(VARIABLE) {
            Some(path) if !path.is_empty() => return Ok(Self { path: path.into(), for_child: ForChild::Unchanged }),
            Some(_) => ForChild::Unset,
            None => ForChild::Unchanged,
        };
        match environment("HOME").filter(|home| !home.is_empty()) {
            Some(home) => Ok(Self { path: PathBuf::from(home).join(".claude"), for_child }),
            None => bail!("no config dir: neither {VARIABLE} nor HOME is set; set one of them, or use --config-dir"),
        }
    }

    /// Value of [`VARIABLE`] for the child, if it has one.
    pub(crate) fn variable(&self, environment: Environment) -> Option<OsString> {
        match self.for_child {
            ForChild::Set => Some(self.path.clone().into()),
            ForChild::Unchanged => environment(VARIABLE),
            ForChild::Unset => None,
        }
    }

    /// What has named it: the flag, or a variable.
    pub(crate) fn origin(&self, environment: Environment) -> &'static str {
        match self.for_child {
            ForChild::Set => "--config-dir",
            ForChild::Unchanged if environment(VARIABLE).is_some() => VARIABLE,
            ForChild::Unchanged | ForChild::Unset => "HOME",
        }
    }

    /// A word on a config dir that somebody has named and that is not there: its name may be mistyped, or lead into a volume that is not
    /// mounted. The default one is made by whoever comes first.
    pub(crate) fn missing(&self, environment: Environment) -> Option<String> {
        let (path, origin) = (self.path.display(), self.origin(environment));
        let found = fs::metadata(&self.path);
        (found.is_err() && obstacle_in(&self.path, &found).is_none() && origin != "HOME").then(|| {
            format!("the config dir {path} ({origin}) is not there: no other run shares its lock, nobody is logged in there")
        })
    }

    /// Creates the config dir if it is missing, and warns of faults that claude itself is silent about.
    pub(crate) fn usable(self, environment: Environment) -> Result<Self> {
        let path = self.path.display();
        if self.for_child == ForChild::Unset {
            warn!(
                "{VARIABLE} is set but empty; taken as unset, here and for the child: claude would write its files into the working directory"
            );
        }
        if self.path.is_relative() {
            warn!(
                "the config dir {path} is relative: every working directory has one, and a session lock, of its own; make {VARIABLE}, or HOME, absolute"
            );
        }
        if self.path.to_str().is_some_and(|text| !is_nfc(text)) {
            warn!(
                "the config dir {path} is not in Unicode NFC: claude looks for its credentials at the NFC form and is not logged in; rename it"
            );
        }
        let found = fs::metadata(&self.path);
        if let Some(obstacle) = obstacle_in(&self.path, &found) {
            bail!("the config dir {path} {obstacle}; point {VARIABLE} at a directory that can be used");
        }
        match found {
            Ok(_) if access(&self.path, AccessFlags::W_OK | AccessFlags::X_OK).is_err() => warn!(
                "the config dir {path} is not writable: claude cannot refresh its login there, and older versions print nothing and exit 0"
            ),
            Ok(_) => {}
            Err(_) => {
                let missing = self.missing(environment);
                let message = format!("cannot make the config dir {path}; make it, or point {VARIABLE} at another");
                DirBuilder::new().recursive(true).mode(0o700).create(&self.path).context(message)?;
                missing.iter().for_each(|missing| warn!("{missing}; it is made now"));
            }
        }
        Ok(self)
    }
}

impl From<&Path> for ConfigDir {
    /// The one that claude finds by itself.
    fn from(path: &Path) -> Self {
        Self { path: path.to_owned(), for_child: ForChild::Unchanged }
    }
}

/// Reason why the config dir `path` is not there and cannot be made, as a sentence about it.
pub(crate) fn obstacle(path: &Path) -> Option<String> {
    obstacle_in(path, &fs::metadata(path))
}

fn obstacle_in(path: &Path, found: &io::Result<Metadata>) -> Option<String> {
    match found {
        Ok(found) => (!found.is_dir()).then(|| "is not a directory".to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // By components, since a slash at the end would follow the link.
            let link = path.components().as_path().ancestors().find(|dir| dir.is_symlink() && !dir.exists())?;
            let place = if link.components().eq(path.components()) {
                String::new()
            } else {
                format!("is below {}, which ", link.display())
            };
            let target = fs::read_link(link).unwrap_or_default();
            Some(format!("{place}is a link to {}, which is not there (is it not mounted?)", target.display()))
        }
        Err(error) => Some(format!("cannot be reached: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flag: Option<&str>, variables: &[(&str, &str)]) -> Result<ConfigDir> {
        let environment = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        ConfigDir::resolve(flag.map(Path::new), &environment)
    }

    #[test]
    fn resolves_as_claude_does() -> Result<()> {
        let home = ("HOME", "/home/a");
        let of = |path: &str, for_child| ConfigDir { path: path.into(), for_child };
        assert_eq!(resolve(None, &[home])?, of("/home/a/.claude", ForChild::Unchanged));
        assert_eq!(resolve(None, &[home, (VARIABLE, "/c")])?, of("/c", ForChild::Unchanged));
        assert_eq!(resolve(None, &[home, (VARIABLE, "")])?, of("/home/a/.claude", ForChild::Unset));
        assert_eq!(resolve(Some("/f"), &[home, (VARIABLE, "/c")])?, of("/f", ForChild::Set));
        Ok(())
    }

    #[test]
    fn without_home_the_error_says_what_to_set() {
        for variables in [&[][..], &[("HOME", "")], &[("HOME", ""), (VARIABLE, "")]] {
            let message = format!("{:#}", resolve(None, variables).expect_err("resolved"));
            assert!(message.contains("HOME") && message.contains(VARIABLE), "{message}");
        }
    }
}
