//! The plan of setup: the steps that lead from what is there to a shared config dir, or all reasons not to begin. A setup that was
//! killed leaves a state that this recognises, so the remaining steps follow from it, and no record of them is needed.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::iter;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::geteuid;
use rustix::fs::{Access, AtFlags, CWD, RenameFlags, accessat, renameat_with};

use super::environment;
use crate::claude::config_dir;
use crate::config::trust::open_to_others;
use crate::sys::file_id::FileId;
use crate::sys::mount::{self, Mount};
use crate::sys::replace::is_unchangeable;

pub(super) const SHARED_DIR: &str = "CLAUDE_SHARED_DIR";

/// Paths that setup deals with.
pub(super) struct SetupPaths {
    pub(super) home: PathBuf,
    pub(super) shared: PathBuf,
    /// In the shared dir.
    pub(super) config_dir: PathBuf,
    /// `~/.claude`
    pub(super) link: PathBuf,
}

enum PathKind {
    /// Nothing, or a link that leads to itself, as a move that was killed leaves one.
    Missing,
    EmptyDir,
    FullDir,
    Link(PathBuf),
    Other,
    /// What it is cannot be seen.
    Hidden(io::Error),
}

/// A single atomic change, or one that makes what nobody uses yet; and what it does, in words.
pub(super) type Step = (String, Box<dyn FnOnce() -> io::Result<()>>);

#[derive(Default)]
pub(super) struct SetupPlan {
    pub(super) steps: Vec<Step>,
    /// True if content of `~/.claude` is moved.
    pub(super) moves_content: bool,
    /// Reasons not to begin.
    pub(super) refusals: Vec<String>,
}

impl SetupPaths {
    pub(super) fn new(home: &Path, shared: &Path) -> Result<Self> {
        let absolute = |path: &Path| std::path::absolute(path).with_context(|| format!("{path:?}"));
        // By another name of it, a link could lead through itself.
        let (home, shared) = (absolute(home)?, real(&absolute(shared)?));
        let has_up = shared.components().any(|part| part == Component::ParentDir);
        ensure!(!has_up, "{} has `..` behind what is missing; name it without", shared.display());
        // Both are printed, in commands to type and in lines for the shell, Compose and Nomad.
        for (path, special) in [(&home, ""), (&shared, r#":"\$%"#)] {
            let is_plain = |text: &str| !text.contains(|c: char| c.is_control() || special.contains(c));
            ensure!(
                path.to_str().is_some_and(is_plain),
                "{path:?} has a character with a meaning of its own; name a plain path"
            );
        }
        Ok(Self { config_dir: shared.join("config"), link: home.join(".claude"), shared, home })
    }

    /// True if `file` is one that setup moves, or would be.
    fn include(&self, file: &Path) -> bool {
        let file = std::path::absolute(file).map_or_else(|_| file.to_owned(), |file| real(&file));
        [&self.link, &self.config_dir, &self.home.join(".claude.json")].into_iter().any(|place| file.starts_with(real(place)))
    }

    /// True if `path` leads to `~/.claude`, or to what that is to become.
    pub(super) fn are_at(&self, path: &Path) -> bool {
        [&self.link, &self.config_dir].into_iter().any(|place| real(place) == real(path))
    }
}

impl PathKind {
    fn of(path: &Path) -> Self {
        match fs::symlink_metadata(path) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Self::Missing,
            Err(error) => Self::Hidden(error),
            Ok(found) if found.is_symlink() => match fs::read_link(path) {
                Ok(to) if to == path => Self::Missing,
                to => to.map_or(Self::Other, Self::Link),
            },
            Ok(found) if found.is_dir() => {
                let is_empty = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
                if is_empty { Self::EmptyDir } else { Self::FullDir }
            }
            _ => Self::Other,
        }
    }
}

impl SetupPlan {
    pub(super) fn of(paths: &SetupPaths, env_file: Option<&Path>) -> Self {
        let mut plan = Self::default();
        plan.plan_config_dir(paths);
        plan.plan_settings(paths);
        let has_steps = !plan.steps.is_empty();
        let mut dirs = vec![&*paths.home, nearest(&paths.shared), nearest(&paths.config_dir)];
        dirs.dedup();
        for dir in dirs.into_iter().filter(|_| has_steps) {
            if !dir.is_dir() {
                plan.refuse(format!("{} is no directory", dir.display()));
            } else if accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_err() {
                plan.refuse(format!("{} is not writable by us (uid {})", dir.display(), geteuid()));
            }
        }
        if has_steps {
            plan.check_private(nearest(&paths.config_dir));
        }
        if let Some(file) = env_file.filter(|file| paths.include(file)) {
            plan.refuse(format!("{} is claude's own, or moved with it; name another env file", file.display()));
        } else if let Some(file) = env_file {
            let variables = [(SHARED_DIR, &*paths.shared), (config_dir::VARIABLE, &*paths.config_dir)];
            match environment::change(file, variables) {
                Ok(Some(change)) => {
                    plan.check_movable(file);
                    plan.push(format!("write {SHARED_DIR} and CLAUDE_CONFIG_DIR into {}", file.display()), change)
                }
                Ok(None) => {}
                Err(error) => plan.refuse(format!("{error:#}")),
            }
        }
        plan
    }

    fn refuse(&mut self, why: String) {
        self.refusals.push(format!("{why}; nothing was changed"));
    }

    fn push(&mut self, text: String, action: impl FnOnce() -> io::Result<()> + 'static) {
        self.steps.push((text, Box::new(action)));
    }

    fn plan_config_dir(&mut self, paths: &SetupPaths) {
        let SetupPaths { home, shared, config_dir, link } = paths;
        let real_link = real(home).join(".claude");
        let (from, to) = (link.display(), config_dir.display());
        match (PathKind::of(link), PathKind::of(config_dir)) {
            _ if real_link.starts_with(shared) || shared.starts_with(&real_link) => {
                self.refuse(format!("{from} and {to} lie within each other"));
            }
            _ if shared.ancestors().any(Path::is_symlink) => {
                self.refuse(format!("{} lies behind a link that leads nowhere", shared.display()));
            }
            (PathKind::Link(other), _) if !leads_to(link, &other, config_dir) => {
                let other = other.display();
                self.refuse(format!(
                    "{from} is a link to {other}, not to {to}; name what is shared with --shared-dir, or remove the link"
                ));
            }
            (PathKind::Hidden(error), _) => self.refuse(format!("{from} cannot be looked at: {error}")),
            (_, PathKind::Hidden(error)) => self.refuse(format!("{to} cannot be looked at: {error}")),
            (PathKind::Other, _) => self.refuse(format!("{from} is no directory")),
            (_, PathKind::Link(_) | PathKind::Other) => self.refuse(format!("{to} is no directory")),
            (PathKind::FullDir, PathKind::FullDir) => {
                let aside = aside(link);
                let choice =
                    format!("to share {to}: {aside}, and call setup again; to share {from}, name another --shared-dir");
                self.refuse(format!("{from} and {to} both have content; {choice}"));
            }
            (PathKind::FullDir, _) => {
                self.moves_content = true;
                if let Err(error) = ensure_links_hold(&real_link, 0) {
                    self.refuse(format!("{from} cannot be moved: {error}"));
                }
                self.plan_move(link, config_dir);
                self.make_private(link, config_dir);
            }
            (now, target) => {
                if let PathKind::Missing = target {
                    self.clear(config_dir);
                    let dir = config_dir.clone();
                    self.push(format!("make {to}, with mode 0700"), || DirBuilder::new().mode(0o700).create(dir));
                }
                self.make_private(config_dir, config_dir);
                if !matches!(now, PathKind::Link(_)) {
                    self.clear(link);
                    let (at, dir) = (link.clone(), config_dir.clone());
                    self.push(format!("link {from} to {to}"), || symlink(dir, at));
                }
            }
        }
    }

    /// Plans the removal of an empty directory, or of a link that leads to itself, if there is one.
    fn clear(&mut self, path: &Path) {
        let (is_link, gone) = (path.is_symlink(), path.to_owned());
        if is_link || path.is_dir() {
            self.check_movable(path);
            self.push(format!("remove {}, in which nothing is", path.display()), move || {
                if is_link { fs::remove_file(gone) } else { fs::remove_dir(gone) }
            });
        }
    }

    /// Makes `dir` private, which is at `now` as yet.
    fn make_private(&mut self, now: &Path, dir: &Path) {
        if fs::metadata(now).is_ok_and(|found| found.mode() & 0o077 != 0) {
            let (text, dir) = (format!("set {} to mode 0700", dir.display()), dir.to_owned());
            self.push(text, || fs::set_permissions(dir, Permissions::from_mode(0o700)));
        }
    }

    /// Plans the move of a file or directory within one file system. To another it would have to be copied, and something might be
    /// lost: that is left to a person.
    fn plan_move(&mut self, from: &Path, to: &Path) {
        let (refused, pair) = (self.refusals.len(), format!("{} and {}", from.display(), to.display()));
        self.check_movable(from);
        match is_one_file_system(from, to) {
            Some(true) => {}
            Some(false) if self.refusals.len() > refused => {} // nor can it be renamed by hand
            Some(false) => self.refuse(format!("{pair} are on two file systems; {}", by_hand(from, to))),
            None => self.refuse(format!("whether {pair} are on one file system cannot be told without /proc; mount it")),
        }
        self.clear(to);
        let text = format!("move {} to {}, and leave a link, in one step", from.display(), to.display());
        let (from, to) = (from.to_owned(), to.to_owned());
        self.push(text, move || {
            // Killed behind this, it leaves a link that leads to itself, and `from` as it was.
            symlink(&to, &to)?;
            renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE).or_else(|errno| {
                fs::remove_file(&to)?;
                // As on overlayfs, where what is in a lower layer cannot be renamed.
                Err(io::Error::other(format!("{errno}; {}", by_hand(&from, &to))))
            })
        });
    }

    fn check_movable(&mut self, path: &Path) {
        for mount in mount::points_below(&real(path)) {
            self.refuse(format!("{} is a mount point, and cannot be moved or replaced", mount.display()));
        }
        if let Ok(found) = fs::symlink_metadata(path)
            && found.uid() != geteuid().as_raw()
        {
            self.refuse(format!("{} belongs to uid {}, and not to uid {}", path.display(), found.uid(), geteuid()));
        }
        if is_unchangeable(path) {
            self.refuse(format!("{} is immutable, or append-only; call chattr -ia on it", path.display()));
        }
    }

    /// Refuses a place for the login where another user could read it, or put something else in its place.
    fn check_private(&mut self, dir: &Path) {
        // A volume is often its group's, which is that of the agents.
        match open_to_others(dir, 0o002, geteuid()) {
            Ok(None) => {}
            Ok(Some((_, open))) => {
                self.refuse(format!("{open}: others could take the login away; change that, or name another --shared-dir"));
            }
            Err(error) => self.refuse(format!("cannot look at {}: {error}", dir.display())),
        }
    }

    /// `~/.claude.json`: claude looks for it in the config dir once `CLAUDE_CONFIG_DIR` is set.
    fn plan_settings(&mut self, paths: &SetupPaths) {
        let SetupPaths { home, config_dir, link, .. } = paths;
        let (old, new) = (home.join(".claude.json"), config_dir.join(".claude.json"));
        // Its other path, and the only one while the content of ~/.claude is yet to be moved.
        let by_link = link.join(".claude.json");
        let now = if self.moves_content { &by_link } else { &new };
        match (PathKind::of(&old), PathKind::of(now)) {
            (PathKind::Missing, _) => {}
            (PathKind::Hidden(error), _) => self.refuse(format!("{} cannot be looked at: {error}", old.display())),
            (PathKind::Link(to), _) if leads_to(&old, &to, &new) || leads_to(&old, &to, &by_link) => {}
            (PathKind::Other, PathKind::Missing) if old.is_file() => self.plan_move(&old, &new),
            (_, PathKind::Missing) => self.refuse(format!("{} is no plain file", old.display())),
            _ => self.refuse(format!(
                "{} and {} are both there; with CLAUDE_CONFIG_DIR set, claude reads the latter; remove one of them",
                old.display(),
                now.display()
            )),
        }
    }
}

/// True if `link`, a link to `target`, leads to `place`, or will once that is there.
fn leads_to(link: &Path, target: &Path, place: &Path) -> bool {
    let is_same = FileId::at(link).is_some_and(|file| FileId::at(place) == Some(file));
    is_same || real(&link.with_file_name(target)) == real(place)
}

/// Real path of `path`, whose last parts may be missing.
fn real(path: &Path) -> PathBuf {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Err(_), Some(parent), Some(name)) => real(parent).join(name),
        (result, ..) => result.unwrap_or_else(|_| path.to_owned()),
    }
}

/// The path itself, or the nearest one above it that is there.
fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(path)
}

/// `None` if that cannot be told.
fn is_one_file_system(from: &Path, to: &Path) -> Option<bool> {
    // Subvolumes of btrfs are on one mount, and yet nothing can be renamed from one to another.
    let place = |path: &Path| Some((Mount::of(path)?, FileId::at(path)?.device));
    Some(place(from)? == place(nearest(to))?)
}

/// Fails for a link below `dir` that would lead elsewhere if what is `depth` levels above `dir` were moved. `..` is sure to stay inside
/// only at the start of a relative target: behind another name it may follow a link.
fn ensure_links_hold(dir: &Path, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let (kind, path) = entry.and_then(|entry| Ok((entry.file_type()?, entry.path())))?;
        if kind.is_dir() {
            ensure_links_hold(&path, depth + 1)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path)?;
            let is_up = |part: &Component| *part == Component::ParentDir;
            let leading = target.components().take_while(is_up).count();
            if leading > depth || target.components().skip(leading).any(|part| is_up(&part)) {
                let (path, target) = (path.display(), target.display());
                return Err(io::Error::other(format!("the link {path} leads out of it, to {target}; make that absolute")));
            }
        }
    }
    Ok(())
}

/// Commands that a person may type instead of a move. Nothing is removed by it.
fn by_hand(from: &Path, to: &Path) -> String {
    let [above, source, target] = [to.parent().unwrap_or(to), from, to].map(quoted);
    let aside = aside(from);
    format!(
        "while no claude runs: mkdir -p {above} && cp -aT {source} {target} && {aside} && ln -s {target} {source}, and call setup again"
    )
}

/// Command that gives `path` a name beside it which nothing has yet.
fn aside(path: &Path) -> String {
    let numbered = (2..).map(|number| format!("{}.old{number}", path.display()));
    let mut names = iter::once(format!("{}.old", path.display())).chain(numbered);
    let free = names.find(|name| fs::symlink_metadata(name).is_err()).unwrap_or_default();
    format!("mv -T {} {}", quoted(path), quoted(Path::new(&free)))
}

/// `path`, which is plain text, as a word for the shell.
fn quoted(path: &Path) -> String {
    shell_words::quote(&path.to_string_lossy()).into_owned()
}
