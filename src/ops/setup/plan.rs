//! The plan of setup: the steps that lead from what is there to a shared config dir. A setup that was killed leaves a state that
//! this recognises, so the remaining steps follow from it, and no record of them is needed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::unistd::{AccessFlags, access};

use super::step::Step;
use super::tree;
use crate::sys::mount::{self, Mount};

/// Paths that setup deals with.
#[derive(Debug)]
pub(super) struct SetupPaths {
    pub(super) shared: PathBuf,
    /// In the shared dir.
    pub(super) config_dir: PathBuf,
    /// `~/.claude`
    pub(super) link: PathBuf,
    /// `~/.claude.json`
    settings: PathBuf,
    /// Beside `~/.claude`: its counterpart in an exchange.
    aside: PathBuf,
    /// Beside `~/.claude`: an original that is to be removed.
    done: PathBuf,
    /// Beside the config dir: a copy that is not yet complete.
    copy: PathBuf,
}

/// Kind of the file at a path.
#[derive(Debug, PartialEq, Eq)]
enum PathKind {
    Missing,
    EmptyDir,
    FullDir,
    Link(PathBuf),
    Other,
}

#[derive(Debug)]
pub(super) struct SetupPlan<'a> {
    paths: &'a SetupPaths,
    pub(super) steps: Vec<Step>,
    /// True if content of `~/.claude` is moved.
    pub(super) moves_content: bool,
    /// Reasons not to begin.
    pub(super) refusals: Vec<String>,
    /// Problems that the steps leave to somebody else.
    pub(super) troubles: Vec<String>,
}

impl SetupPaths {
    pub(super) fn new(home: &Path, shared: &Path) -> Result<Self> {
        let absolute = |path: &Path| std::path::absolute(path).with_context(|| format!("{}", path.display()));
        let (home, shared) = (absolute(home)?, absolute(shared)?);
        Ok(Self {
            copy: shared.join("config.claude-run-copy"),
            config_dir: shared.join("config"),
            shared,
            link: home.join(".claude"),
            settings: home.join(".claude.json"),
            aside: home.join(".claude.claude-run-aside"),
            done: home.join(".claude.claude-run-done"),
        })
    }
}

impl PathKind {
    fn of(path: &Path) -> Self {
        match fs::symlink_metadata(path) {
            Err(_) => Self::Missing,
            Ok(found) if found.is_symlink() => fs::read_link(path).map_or(Self::Other, Self::Link),
            Ok(found) if found.is_dir() => {
                let is_empty = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
                if is_empty { Self::EmptyDir } else { Self::FullDir }
            }
            Ok(_) => Self::Other,
        }
    }

    fn is_dir(&self) -> bool {
        matches!(self, Self::EmptyDir | Self::FullDir)
    }
}

impl<'a> SetupPlan<'a> {
    pub(super) fn of(paths: &'a SetupPaths) -> Self {
        let (steps, refusals, troubles) = (Vec::new(), Vec::new(), Vec::new());
        let mut plan = Self { paths, steps, moves_content: false, refusals, troubles };
        plan.plan_directory();
        if plan.refusals.is_empty() {
            plan.plan_settings();
        }
        if plan.refusals.is_empty() && !plan.steps.is_empty() {
            plan.check_permissions();
        }
        plan
    }

    fn refuse(&mut self, why: String) {
        self.refusals.push(format!("{why}; nothing was changed"));
    }

    fn plan_directory(&mut self) {
        let SetupPaths { shared, config_dir, link, aside, done, .. } = self.paths;
        if link.starts_with(shared) || config_dir.starts_with(link) {
            return self.refuse(format!("{} and {} lie within each other", link.display(), config_dir.display()));
        }
        if PathKind::of(done).is_dir() {
            self.steps.push(Step::RemoveTree(done.clone()));
        }
        if leads(link, config_dir) {
            self.complete_link();
        } else if leads(aside, config_dir) || PathKind::of(aside) == PathKind::Missing || is_loop(aside) {
            self.plan_link();
        } else {
            self.refuse(format!("{} is in the way", aside.display()));
        }
    }

    /// `~/.claude` is the link already: adds what an earlier setup has not come to.
    fn complete_link(&mut self) {
        let SetupPaths { config_dir, aside, .. } = self.paths;
        let target = PathKind::of(config_dir);
        match (&target, PathKind::of(aside)) {
            // The content is aside, and the config dir leads there: one exchange is missing.
            (PathKind::Link(to), kind) if to == aside && kind.is_dir() => self.steps.extend([
                Step::Exchange(aside.clone(), config_dir.clone()),
                Step::RemoveLink(aside.clone()),
                Step::MakePrivate(config_dir.clone()),
            ]),
            (PathKind::Missing, PathKind::Missing) => self.steps.push(Step::MakeDir(config_dir.clone())),
            (_, PathKind::Missing) if target.is_dir() => {}
            (_, PathKind::Link(_)) if target.is_dir() => self.steps.push(Step::RemoveLink(aside.clone())),
            (_, PathKind::EmptyDir) if target.is_dir() => self.steps.push(Step::RemoveDir(aside.clone())),
            // The original of a copy.
            (_, PathKind::FullDir) if target.is_dir() => self.remove_original(),
            _ => self.refuse(format!("{} is no directory", config_dir.display())),
        }
        let is_open = fs::metadata(config_dir).is_ok_and(|found| found.permissions().mode() & 0o077 != 0);
        if is_open && target.is_dir() {
            self.steps.push(Step::MakePrivate(config_dir.clone()));
        }
    }

    /// Plans how `~/.claude` becomes the link.
    fn plan_link(&mut self) {
        let SetupPaths { shared, config_dir, link, aside, .. } = self.paths;
        let target = PathKind::of(config_dir);
        match (PathKind::of(link), &target) {
            (PathKind::Link(to), _) => {
                self.refuse(format!("{} is a link to {}, not to {}", link.display(), to.display(), config_dir.display()))
            }
            (PathKind::Other, _) => self.refuse(format!("{} is no directory", link.display())),
            (_, PathKind::Other) => self.refuse(format!("{} is no directory", config_dir.display())),
            (_, PathKind::Link(to)) if to != aside => {
                self.refuse(format!("{} is a link to {}", config_dir.display(), to.display()))
            }
            (PathKind::Missing, _) => {
                self.make_target(&target);
                self.steps.push(Step::Link { at: link.clone(), to: config_dir.clone() });
            }
            _ if mount::is_mount_point(&real(link)) => {
                self.refuse(format!("{} is a mount point, and cannot be moved away", link.display()))
            }
            (PathKind::EmptyDir, _) => {
                self.make_target(&target);
                self.link_aside();
                self.steps.extend([Step::Exchange(link.clone(), aside.clone()), Step::RemoveDir(aside.clone())]);
            }
            (PathKind::FullDir, PathKind::FullDir) => {
                // A setup that was killed between the copy's rename and the exchange leaves two equal ones.
                let is_copy = leads(aside, config_dir) && matches!(tree::difference(link, config_dir), Ok(None));
                if !is_copy {
                    return self.refuse(format!("{} and {} both have content", link.display(), config_dir.display()));
                }
                self.moves_content = true;
                self.steps.push(Step::Exchange(link.clone(), aside.clone()));
                self.remove_original();
            }
            (PathKind::FullDir, _) => {
                self.moves_content = true;
                if PathKind::of(shared) == PathKind::Missing {
                    self.steps.push(Step::MakeDir(shared.clone()));
                }
                if is_one_mount(link, shared) {
                    self.move_content(&target)
                } else {
                    self.copy_content(&target)
                }
                self.steps.push(Step::MakePrivate(config_dir.clone()));
            }
        }
    }

    fn make_target(&mut self, target: &PathKind) {
        let config_dir = &self.paths.config_dir;
        if let PathKind::Link(_) = target {
            self.steps.push(Step::RemoveLink(config_dir.clone()));
        }
        if !target.is_dir() {
            self.steps.push(Step::MakeDir(config_dir.clone()));
        }
    }

    fn link_aside(&mut self) {
        let SetupPaths { aside, config_dir, .. } = self.paths;
        match PathKind::of(aside) {
            PathKind::Link(to) if to == *config_dir => return,
            PathKind::Link(_) => self.steps.push(Step::RemoveLink(aside.clone())),
            _ => {}
        }
        self.steps.push(Step::Link { at: aside.clone(), to: config_dir.clone() });
    }

    /// Within one file system nothing is copied. `~/.claude` becomes a link that leads, over the config dir, to where the content
    /// is aside; then that and the config dir are exchanged.
    fn move_content(&mut self, target: &PathKind) {
        let SetupPaths { config_dir, link, aside, .. } = self.paths;
        if *target == PathKind::EmptyDir {
            self.steps.push(Step::RemoveDir(config_dir.clone()));
        }
        if !matches!(target, PathKind::Link(_)) {
            self.steps.push(Step::Link { at: config_dir.clone(), to: aside.clone() });
        }
        self.link_aside();
        self.steps.extend([
            Step::Exchange(link.clone(), aside.clone()),
            Step::Exchange(aside.clone(), config_dir.clone()),
            Step::RemoveLink(aside.clone()),
        ]);
    }

    /// To another file system the content is copied aside, compared, and only then renamed into place.
    fn copy_content(&mut self, target: &PathKind) {
        let SetupPaths { config_dir, link, aside, copy, .. } = self.paths;
        if let PathKind::Link(_) = target {
            self.steps.push(Step::RemoveLink(config_dir.clone()));
        }
        if PathKind::of(copy) != PathKind::Missing {
            self.steps.push(Step::RemoveTree(copy.clone()));
        }
        self.steps.push(Step::Copy { from: link.clone(), to: copy.clone() });
        self.link_aside();
        self.steps
            .extend([Step::Rename { from: copy.clone(), to: config_dir.clone() }, Step::Exchange(link.clone(), aside.clone())]);
        self.remove_original();
    }

    /// Compares the original with its copy once more, now that nobody can change it, and removes it.
    fn remove_original(&mut self) {
        let SetupPaths { aside, config_dir, done, .. } = self.paths;
        self.steps.extend([
            Step::Compare { old: aside.clone(), new: config_dir.clone() },
            Step::Rename { from: aside.clone(), to: done.clone() },
            Step::RemoveTree(done.clone()),
        ]);
    }

    /// Refuses what would fail for lack of permission.
    fn check_permissions(&mut self) {
        let paths = self.paths;
        let shared = paths.config_dir.ancestors().skip(1).find(|path| path.exists());
        for dir in [paths.link.parent(), shared].into_iter().flatten() {
            if access(dir, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
                self.refuse(format!("{} is not writable by us", dir.display()));
            }
        }
    }

    /// `~/.claude.json`: claude looks for it in the config dir once `CLAUDE_CONFIG_DIR` is set.
    fn plan_settings(&mut self) {
        let SetupPaths { config_dir, link, settings, .. } = self.paths;
        let new = config_dir.join(".claude.json");
        // Its present path: the content of ~/.claude may be yet to be moved.
        let now = if self.moves_content { link.join(".claude.json") } else { new.clone() };
        let by = settings.with_file_name(".claude.json.claude-run-link");
        let copy = config_dir.join(".claude.json.claude-run-copy");
        let replace = Step::ReplaceByLink { at: settings.clone(), to: new.clone(), by: by.clone() };
        match (PathKind::of(settings), PathKind::of(&now)) {
            (PathKind::Missing, _) => {}
            // A setup that was killed may leave the original.
            (PathKind::Link(to), _) if to == new && PathKind::of(&by) == PathKind::Other => {
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
            (PathKind::Link(to), _) if to == new => {}
            (PathKind::Other, PathKind::Missing) => {
                if PathKind::of(&copy) != PathKind::Missing {
                    self.steps.push(Step::RemoveLink(copy.clone()));
                }
                self.steps.extend([
                    Step::Copy { from: settings.clone(), to: copy.clone() },
                    Step::Rename { from: copy, to: new },
                    replace,
                ]);
            }
            (PathKind::Other, PathKind::Other) if fs::read(settings).ok() == fs::read(&now).ok() => self.steps.push(replace),
            (_, kind) => {
                let (old, new) = (settings.display(), new.display());
                let why = if kind == PathKind::Missing { "is no plain file" } else { "is there, too" };
                self.troubles.push(format!(
                    "{old} stays as it is, and {new} {why}: with CLAUDE_CONFIG_DIR set, claude reads the latter"
                ));
            }
        }
    }
}

fn leads(from: &Path, to: &Path) -> bool {
    matches!(PathKind::of(from), PathKind::Link(target) if target == to || is_same_dir(from, to))
}

/// True for a link that leads to itself: the last exchange leaves one.
fn is_loop(link: &Path) -> bool {
    fs::read_link(link).is_ok_and(|to| to == link)
}

fn is_same_dir(one: &Path, other: &Path) -> bool {
    fs::canonicalize(one).is_ok_and(|one| fs::canonicalize(other).is_ok_and(|other| one == other))
}

fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// True if a rename can go from one to the other. The second need not be there yet.
fn is_one_mount(link: &Path, shared: &Path) -> bool {
    let there = shared.ancestors().find(|path| path.exists()).unwrap_or(shared);
    let home = link.parent().unwrap_or(link);
    Mount::of(&real(home)).is_some_and(|mount| Mount::of(&real(there)).as_ref() == Some(&mount))
}
