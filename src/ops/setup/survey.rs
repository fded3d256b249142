//! What is there, and which steps lead from it to a shared config dir. A setup that was killed leaves what this finds: the steps
//! that are left follow from it, and no record of them is needed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::unistd::{AccessFlags, access};

use super::step::Step;
use crate::sys::mount::{self, Mount};

/// Where everything is, or is to be.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) shared: PathBuf,
    /// In the shared dir.
    pub(super) config_dir: PathBuf,
    /// `~/.claude`
    pub(super) link: PathBuf,
    /// `~/.claude.json`
    settings: PathBuf,
    /// Beside `~/.claude`: what is to be exchanged with it, and has been.
    aside: PathBuf,
    /// The same, once it is of no use any more.
    done: PathBuf,
    /// Beside the config dir: a copy that is not yet whole.
    copy: PathBuf,
}

/// What is at a path.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Nothing,
    Empty,
    Full,
    Link(PathBuf),
    Other,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct SetupPlan {
    pub(super) steps: Vec<Step>,
    /// What somebody has in `~/.claude` is moved.
    pub(super) moves_content: bool,
    /// Why nothing is done.
    pub(super) refusals: Vec<String>,
    /// What is left to somebody else, when all steps are taken.
    pub(super) troubles: Vec<String>,
}

impl Places {
    pub(super) fn new(home: &Path, shared: &Path) -> Result<Self> {
        let absolute = |path: &Path| std::path::absolute(path).with_context(|| format!("{}", path.display()));
        let (home, shared) = (absolute(home)?, absolute(shared)?);
        let config_dir = shared.join("config");
        Ok(Self {
            copy: shared.join("config.claude-run-copy"),
            config_dir,
            shared,
            link: home.join(".claude"),
            settings: home.join(".claude.json"),
            aside: home.join(".claude.claude-run-aside"),
            done: home.join(".claude.claude-run-done"),
        })
    }
}

impl Kind {
    fn of(path: &Path) -> Self {
        match fs::symlink_metadata(path) {
            Err(_) => Self::Nothing,
            Ok(found) if found.is_symlink() => fs::read_link(path).map_or(Self::Other, Self::Link),
            Ok(found) if found.is_dir() => match fs::read_dir(path) {
                Ok(mut entries) => {
                    if entries.next().is_none() {
                        Self::Empty
                    } else {
                        Self::Full
                    }
                }
                Err(_) => Self::Full,
            },
            Ok(_) => Self::Other,
        }
    }

    fn is_dir(&self) -> bool {
        matches!(self, Self::Empty | Self::Full)
    }
}

impl SetupPlan {
    pub(super) fn of(places: &Places) -> Self {
        let mut survey = Self::default();
        survey.directory(places);
        if survey.refusals.is_empty() {
            survey.settings(places);
        }
        if survey.refusals.is_empty() && !survey.steps.is_empty() {
            survey.permissions(places);
        }
        survey
    }

    fn refuse(&mut self, why: String) {
        self.refusals.push(format!("{why}; nothing was changed"));
    }

    fn directory(&mut self, places: &Places) {
        let Places { shared, config_dir, link, aside, done, copy, .. } = places;
        let (there, target) = (Kind::of(link), Kind::of(config_dir));
        let leads = |from: &Path, to: &Path| match Kind::of(from) {
            Kind::Link(target) => target == *to || is_same_dir(from, to),
            _ => false,
        };
        if link.starts_with(shared) || config_dir.starts_with(link) {
            return self.refuse(format!("{} and {} lie within each other", link.display(), config_dir.display()));
        }
        if Kind::of(done).is_dir() {
            self.steps.push(Step::RemoveTree(done.clone()));
        }
        let aside_kind = Kind::of(aside);
        let is_ours_aside = leads(aside, config_dir) || aside_kind == Kind::Nothing || is_loop(aside);
        if leads(link, config_dir) {
            match (&target, &aside_kind) {
                // The content is aside, and the config dir leads there: one exchange is left.
                (Kind::Link(to), kind) if to == aside && kind.is_dir() => self.steps.extend([
                    Step::Exchange(aside.clone(), config_dir.clone()),
                    Step::RemoveLink(aside.clone()),
                    Step::MakePrivate(config_dir.clone()),
                ]),
                (Kind::Nothing, Kind::Nothing) => self.steps.push(Step::MakeDir(config_dir.clone())),
                (Kind::Empty | Kind::Full, Kind::Nothing) => {}
                (Kind::Empty | Kind::Full, Kind::Link(_)) => self.steps.push(Step::RemoveLink(aside.clone())),
                (Kind::Empty | Kind::Full, Kind::Empty) => self.steps.push(Step::RemoveDir(aside.clone())),
                // It was copied, and what it was copied from is left.
                (Kind::Empty | Kind::Full, Kind::Full) => self.steps.extend(put_away(places)),
                _ => self.refuse(format!("{} is no directory", config_dir.display())),
            }
            let is_open = fs::metadata(config_dir).is_ok_and(|found| found.permissions().mode() & 0o077 != 0);
            if is_open && target.is_dir() {
                self.steps.push(Step::MakePrivate(config_dir.clone()));
            }
            return;
        }
        if !is_ours_aside {
            return self.refuse(format!("{} is in the way", aside.display()));
        }
        match (&there, &target) {
            (Kind::Link(to), _) => {
                self.refuse(format!("{} is a link to {}, not to {}", link.display(), to.display(), config_dir.display()))
            }
            (Kind::Other, _) => self.refuse(format!("{} is no directory", link.display())),
            (_, Kind::Other) => self.refuse(format!("{} is no directory", config_dir.display())),
            (_, Kind::Link(to)) if to != aside => {
                self.refuse(format!("{} is a link to {}", config_dir.display(), to.display()))
            }
            (Kind::Nothing, _) => {
                self.make_target(places, &target);
                self.steps.push(Step::Link { at: link.clone(), to: config_dir.clone() });
            }
            (Kind::Empty | Kind::Full, _) if mount::is_mount_point(&real(link)) => {
                self.refuse(format!("{} is a mount point, and cannot be moved away", link.display()))
            }
            (Kind::Empty, _) => {
                self.make_target(places, &target);
                self.link_aside(places);
                self.steps.extend([Step::Exchange(link.clone(), aside.clone()), Step::RemoveDir(aside.clone())]);
            }
            (Kind::Full, Kind::Full) => {
                // Killed between the copy's coming into its place and the exchange? Then they are the same.
                let is_copy = leads(aside, config_dir) && matches!(super::tree::difference(link, config_dir), Ok(None));
                if !is_copy {
                    return self.refuse(format!("{} and {} both have content", link.display(), config_dir.display()));
                }
                self.moves_content = true;
                self.steps.push(Step::Exchange(link.clone(), aside.clone()));
                self.steps.extend(put_away(places));
            }
            (Kind::Full, _) => {
                self.moves_content = true;
                if is_one_mount(link, shared) {
                    self.move_over(places, &target);
                } else {
                    self.copy_over(places, &target, copy);
                }
            }
        }
    }

    fn make_target(&mut self, places: &Places, target: &Kind) {
        let config_dir = &places.config_dir;
        if let Kind::Link(_) = target {
            self.steps.push(Step::RemoveLink(config_dir.clone()));
        }
        if !target.is_dir() {
            self.steps.push(Step::MakeDir(config_dir.clone()));
        }
    }

    fn link_aside(&mut self, places: &Places) {
        match Kind::of(&places.aside) {
            Kind::Link(to) if to == places.config_dir => return,
            Kind::Link(_) => self.steps.push(Step::RemoveLink(places.aside.clone())),
            _ => {}
        }
        self.steps.push(Step::Link { at: places.aside.clone(), to: places.config_dir.clone() });
    }

    /// On one file system nothing is copied. `~/.claude` becomes a link that leads, over the config dir, to where the content is
    /// aside; then that and the config dir change places.
    fn move_over(&mut self, places: &Places, target: &Kind) {
        let Places { shared, config_dir, link, aside, .. } = places;
        if Kind::of(shared) == Kind::Nothing {
            self.steps.push(Step::MakeDir(shared.clone()));
        }
        if *target == Kind::Empty {
            self.steps.push(Step::RemoveDir(config_dir.clone()));
        }
        if !matches!(target, Kind::Link(_)) {
            self.steps.push(Step::Link { at: config_dir.clone(), to: aside.clone() });
        }
        self.link_aside(places);
        self.steps.extend([
            Step::Exchange(link.clone(), aside.clone()),
            Step::Exchange(aside.clone(), config_dir.clone()),
            Step::RemoveLink(aside.clone()),
            Step::MakePrivate(config_dir.clone()),
        ]);
    }

    /// Between file systems it is copied aside, compared, and only then put in place.
    fn copy_over(&mut self, places: &Places, target: &Kind, copy: &Path) {
        let Places { shared, config_dir, link, aside, .. } = places;
        if Kind::of(shared) == Kind::Nothing {
            self.steps.push(Step::MakeDir(shared.clone()));
        }
        if let Kind::Link(_) = target {
            self.steps.push(Step::RemoveLink(config_dir.clone()));
        }
        if Kind::of(copy) != Kind::Nothing {
            self.steps.push(Step::RemoveTree(copy.to_owned()));
        }
        self.steps.push(Step::Copy { from: link.clone(), to: copy.to_owned() });
        self.link_aside(places);
        self.steps.extend([
            Step::Rename { from: copy.to_owned(), to: config_dir.clone() },
            Step::Exchange(link.clone(), aside.clone()),
        ]);
        self.steps.extend(put_away(places));
        self.steps.push(Step::MakePrivate(config_dir.clone()));
    }

    /// What could not be done is found out before anything is.
    fn permissions(&mut self, places: &Places) {
        let shared = places.config_dir.ancestors().skip(1).find(|path| path.exists());
        for dir in [places.link.parent(), shared].into_iter().flatten() {
            if access(dir, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
                self.refuse(format!("{} is not writable by us", dir.display()));
            }
        }
    }

    /// `~/.claude.json`: claude looks for it in the config dir once `CLAUDE_CONFIG_DIR` is set.
    fn settings(&mut self, places: &Places) {
        let Places { config_dir, link, settings, .. } = places;
        let new = config_dir.join(".claude.json");
        // Where it is now, if what is in ~/.claude is yet to be moved.
        let now = if self.moves_content { link.join(".claude.json") } else { new.clone() };
        let by = settings.with_file_name(".claude.json.claude-run-link");
        let copy = config_dir.join(".claude.json.claude-run-copy");
        let replace = Step::ReplaceByLink { at: settings.clone(), to: new.clone(), by: by.clone() };
        match (Kind::of(settings), Kind::of(&now)) {
            (Kind::Nothing, _) => {}
            // What was there before may be left, from a setup that was killed.
            (Kind::Link(to), _) if to == new && Kind::of(&by) == Kind::Other => {
                if fs::read(&by).ok() == fs::read(&new).ok() {
                    self.steps.push(Step::RemoveLink(by));
                } else {
                    self.troubles.push(format!(
                        "{} is what {} was before; remove it by hand",
                        by.display(),
                        settings.display()
                    ));
                }
            }
            (Kind::Link(to), _) if to == new => {}
            (Kind::Other, Kind::Nothing) => {
                if Kind::of(&copy) != Kind::Nothing {
                    self.steps.push(Step::RemoveLink(copy.clone()));
                }
                self.steps.extend([
                    Step::Copy { from: settings.clone(), to: copy.clone() },
                    Step::Rename { from: copy, to: new },
                    replace,
                ]);
            }
            (Kind::Other, Kind::Other) if fs::read(settings).ok() == fs::read(&now).ok() => self.steps.push(replace),
            (_, kind) => {
                let (old, new) = (settings.display(), new.display());
                let why = if kind == Kind::Nothing { "is no plain file" } else { "is there, too" };
                self.troubles.push(format!(
                    "{old} stays as it is, and {new} {why}: with CLAUDE_CONFIG_DIR set, claude reads the latter"
                ));
            }
        }
    }
}

/// What was copied is compared once more, now that nobody can change it, and then removed.
fn put_away(places: &Places) -> [Step; 3] {
    let Places { aside, config_dir, done, .. } = places;
    [
        Step::Compare { old: aside.clone(), new: config_dir.clone() },
        Step::Rename { from: aside.clone(), to: done.clone() },
        Step::RemoveTree(done.clone()),
    ]
}

/// What is left of a link after the last exchange: it leads to itself.
fn is_loop(link: &Path) -> bool {
    fs::read_link(link).is_ok_and(|to| to == link)
}

fn is_same_dir(one: &Path, other: &Path) -> bool {
    fs::canonicalize(one).is_ok_and(|one| fs::canonicalize(other).is_ok_and(|other| one == other))
}

fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Whether a rename can go from one to the other. The second need not be there yet.
fn is_one_mount(link: &Path, shared: &Path) -> bool {
    let there = shared.ancestors().find(|path| path.exists()).unwrap_or(shared);
    let home = link.parent().unwrap_or(link);
    Mount::of(&real(home)).is_some_and(|mount| Mount::of(&real(there)).as_ref() == Some(&mount))
}
