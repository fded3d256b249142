//! Findings, and the checks that cost so little that `status` makes them as well as `doctor`: they take no lock and write nothing.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fs;
use std::io;
use std::iter;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access};
use serde::Serialize;

use super::text;
use crate::claude::auth::{Auth, Invocation};
use crate::claude::credentials::Login;
use crate::lock::{Holder, NAMED, queue_holder, slot_obstacles};
use crate::records::{FinishedRun, RecordStore, RunRecord};
use crate::sys::fs::{lacks_room, parent_of};
use crate::sys::mount::Mount;
use crate::sys::proc::{self, Stat};
use crate::sys::steps::MAX_LINKS;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Pass,
    Warning,
    Failure,
}

/// One finding of a check, in the form that JSON has it.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    pub(super) what: String,
    /// Consequence; null for a pass.
    pub(super) means: Option<&'static str>,
    #[serde(rename = "do")]
    pub(super) todo: Option<Cow<'static, str>>,
}

#[derive(Default)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) findings: Vec<Finding>,
}

impl Check {
    pub(super) fn pass(&mut self, what: impl Into<String>) {
        self.add(Verdict::Pass, what, None, None);
    }

    pub(super) fn pass_if_clean(&mut self, what: impl Into<String>) {
        if self.findings.iter().all(|finding| finding.check != self.name) {
            self.pass(what);
        }
    }

    pub(super) fn warn(&mut self, what: impl Into<String>, means: &'static str, todo: impl Into<Cow<'static, str>>) {
        self.add(Verdict::Warning, what, Some(means), Some(todo.into()));
    }

    pub(super) fn fail(&mut self, what: impl Into<String>, means: &'static str, todo: impl Into<Cow<'static, str>>) {
        self.add(Verdict::Failure, what, Some(means), Some(todo.into()));
    }

    fn add(&mut self, verdict: Verdict, what: impl Into<String>, means: Option<&'static str>, todo: Option<Cow<'static, str>>) {
        self.findings.push(Finding { check: self.name, verdict, what: what.into(), means, todo });
    }

    /// All but the passes, a sentence each: what was found, what it means, and what to do.
    pub(super) fn objections(self) -> impl Iterator<Item = String> {
        let found = self.findings.into_iter().filter(|finding| finding.verdict != Verdict::Pass);
        found.map(|Finding { what, means, todo, .. }| {
            format!("{what}: {}; {}", means.unwrap_or_default(), todo.unwrap_or_default())
        })
    }
}

/// Bytes that a config dir should at least have room for: a login, some lines of history, what claude keeps of a session.
pub(super) const ROOM: usize = 1 << 20;

/// Checks that the file system of `dir` can be written and has room.
pub(super) fn check_room(dir: &Path, check: &mut Check) {
    let (Ok(dir), Ok(found)) = (fs::canonicalize(dir), statvfs(dir)) else { return };
    if found.flags().contains(FsFlags::ST_RDONLY) {
        let means = "a refreshed token cannot be saved: the login is lost; no run is recorded, and without a lock file there no run that needs it starts";
        check.fail(format!("{} is mounted read-only", dir.display()), means, "remount it writable");
    } else if lacks_room(&dir, ROOM) {
        fail_for_room(&dir, &io::Error::from(Errno::ENOSPC), check);
    }
}

/// Says that `dir` has no room, by the `error` of who wanted to write there.
pub(super) fn fail_for_room(dir: &Path, error: &io::Error, check: &mut Check) {
    let mount = Mount::of(dir).map_or_else(String::new, |mount| format!(", on {} at {},", mount.kind, mount.point.display()));
    let free = statvfs(dir).map_or_else(
        |_| "an unknown number of bytes".to_owned(),
        |free| {
            let bytes = free.blocks_available().saturating_mul(free.fragment_size());
            // Some file systems have no fixed number of inodes, and say 0 of 0.
            let files = if free.files() > 0 { free.files_available().to_string() + " inodes and " } else { String::new() };
            format!("{files}{bytes} bytes")
        },
    );
    check.fail(
        format!("{}{mount} has no room for a MiB: {error}; {free} are free", dir.display()),
        "a refreshed token cannot be saved: the login is lost; records, history and logs are lost, and no lock file can be made (125)",
        "make room there, or raise the quota, before the token expires",
    );
}

/// Checks that the lock file `path` can be opened, or made if it is missing. True if nothing is wrong.
pub(super) fn check_lock_file(path: &Path, config_dir: &Path, check: &mut Check) -> bool {
    let (shown, means) = (path.display(), "no run that needs the lock can start");
    let behind_link = |path: &PathBuf| Some(path.with_file_name(fs::read_link(path).ok()?));
    let place = iter::successors(Some(path.to_owned()), behind_link).take(MAX_LINKS).last().unwrap_or_default();
    let dir = parent_of(&place);
    let (what, todo) = match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            let todo = if dir == config_dir { "move it away" } else { "name another file" };
            ("is no regular file".to_owned(), todo)
        }
        Ok(_) if is_denied(path, AccessFlags::R_OK) => {
            ("cannot be read by us".to_owned(), "let the owner of the config dir own it, readable for all agents")
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::metadata(dir) {
            Ok(_) if !is_denied(dir, AccessFlags::W_OK | AccessFlags::X_OK) => return true,
            // It is made by the first run, and what is wrong with its place, a check of its own tells.
            Err(_) if dir == config_dir => return true,
            Ok(_) => {
                (format!("cannot be made: {} is not writable by us", dir.display()), "make it writable, or name another file")
            }
            Err(error) => (format!("cannot be made: {}: {error}", dir.display()), "make that directory, or name another file"),
        },
        Err(error) => (format!("cannot be looked at: {error}"), "name another, or mend its path"),
        Ok(_) => return true,
    };
    check.fail(format!("{shown} {what}"), means, todo);
    false
}

/// True if we have no `right` to `path`. A file system that is read-only is told by a check of its own.
fn is_denied(path: &Path, right: AccessFlags) -> bool {
    access(path, right).is_err_and(|errno| errno == Errno::EACCES)
}

/// Checks that runs can be recorded, or that their records can be read alone. True if nothing is wrong.
pub(super) fn check_records(records: &RecordStore, writes: bool, check: &mut Check) -> bool {
    let obstacles = records.obstacles(writes);
    for error in &obstacles {
        let means = "runs are not recorded, or not how they ended; those that live are not all known";
        check.fail(format!("{error:#}"), means, way_out(error));
    }
    obstacles.is_empty()
}

/// Checks that runs can have a slot, or that the slots can be looked at alone. True if nothing is wrong.
pub(super) fn check_slots(records: &RecordStore, writes: bool, check: &mut Check) -> bool {
    let obstacles = slot_obstacles(records, writes);
    for error in &obstacles {
        let todo = format!("{}, or set no bound (claude-run slots none)", way_out(error));
        check.fail(format!("{error:#}"), "a run with a bound ends with 125", todo);
    }
    let holder = if obstacles.is_empty() { queue_holder(records) } else { None };
    if let Some(holder) = &holder {
        let todo = stopped_processes(holder).map_or_else(|| "end it, if nobody needs it".to_owned(), |pids| let_go_on(&pids));
        check.fail(format!("the queue for the slots is held by {holder}"), "no run with a bound starts", todo);
    }
    obstacles.is_empty() && holder.is_none()
}

/// Advice on a file or directory of ours that cannot be used.
fn way_out(error: &anyhow::Error) -> &'static str {
    match error.downcast_ref().map(|error: &io::Error| (error.kind(), error.raw_os_error())) {
        Some((io::ErrorKind::PermissionDenied, _)) => "chown -R it to the user who runs the agents",
        Some((io::ErrorKind::NotADirectory | io::ErrorKind::Other, _) | (_, Some(libc::ELOOP))) => "move it away",
        _ => "see what is wrong there",
    }
}

/// Pids here of the holder's processes that are stopped, if any is, as far as that can be seen: for a command line.
pub(super) fn stopped_processes(holder: &Holder) -> Option<String> {
    all_stopped([holder]).next().flatten()
}

/// The same of each of the `holders`. Those in other PID namespaces are looked for once.
pub(super) fn all_stopped<'a>(holders: impl IntoIterator<Item = &'a Holder>) -> impl Iterator<Item = Option<String>> {
    let stopped_elsewhere = OnceCell::new();
    let is_stopped = |stat: &Stat| stat.state == b'T';
    let pids_of = move |run: &RunRecord| -> Vec<i32> {
        let pids = [Some(run.pid), run.child].into_iter().flatten();
        if run.is_of_our_pid_namespace() {
            return pids.collect();
        }
        if !run.is_of_this_boot() {
            return Vec::new(); // the initial PID namespace has one name on every machine
        }
        // Of a container below ours, all processes are seen here, with pids of ours.
        let theirs: Vec<_> = pids.filter_map(|pid| Some((pid, run.pid_namespace.clone()?))).collect();
        let look = || {
            let stopped = Stat::all().into_iter().filter(is_stopped).map(|stat| stat.pid);
            stopped.filter_map(|pid| Some((pid, proc::innermost_pid(pid)?))).collect::<Vec<_>>()
        };
        let stopped = stopped_elsewhere.get_or_init(look);
        stopped.iter().filter(|(_, inner)| theirs.contains(inner)).map(|(pid, _)| *pid).collect()
    };
    holders.into_iter().map(move |holder| {
        let pids: Vec<_> = match holder {
            Holder::Run(run) => pids_of(run),
            Holder::Orphan(_, processes) | Holder::Processes(processes) => {
                processes.iter().map(|process| process.pid).collect()
            }
        };
        let stopped = pids.into_iter().filter(|pid| Stat::read(*pid).as_ref().is_some_and(is_stopped));
        let stopped: Vec<_> = stopped.take(NAMED).map(|pid| pid.to_string()).collect();
        (!stopped.is_empty()).then(|| stopped.join(" "))
    })
}

/// Trouble with those who hold a lock or a slot, each with what that is: a claude-run that was killed, a process that is stopped.
pub(super) fn trouble_with_holders<'a>(held: impl Iterator<Item = (String, &'a Holder)> + Clone) -> Vec<String> {
    let stopped = all_stopped(held.clone().map(|(_, holder)| holder));
    let texts = held.zip(stopped).filter_map(|((what, holder), stopped)| {
        let left = matches!(holder, Holder::Orphan(..)).then(|| {
            let todo = stopped.as_deref().map_or_else(|| text::end_orphan(holder), let_go_on);
            format!("claude-run gone, claude still running: {what} is held by {holder}; {todo}")
        });
        left.or_else(|| Some(format!("{what} is held by a stopped process; kill -CONT {} lets it go on", stopped?)))
    });
    texts.collect()
}

/// Advice on stopped processes.
pub(super) fn let_go_on(pids: &str) -> String {
    format!(
        "let it go on: kill -CONT {pids}; if it is to end, give it a minute then, since it may be refreshing the token, and kill {pids}"
    )
}

/// Checks whether the API has refused the login of the last `runs`, and nobody has written the credentials `file` since.
pub(super) fn check_last_runs(runs: &[FinishedRun], file: &Path, check: &mut Check) {
    let refused = runs.iter().fold(0, |count, run| run.count_refusals(count));
    let refused_at = runs.iter().rfind(|run| run.auth_refused.is_some()).map(FinishedRun::ended);
    let written = fs::metadata(file).and_then(|found| found.modified()).ok();
    if let Some(what) = text::refusals(refused).filter(|_| written < refused_at) {
        check.fail(what, "no agent can work", "log in again");
    }
}

/// Checks whether all settings of claude can be read, by which it may have its login elsewhere, or another.
pub(super) fn check_claude_settings(claude: &Invocation, check: &mut Check) {
    if let Some(why) = claude.unreadable_settings() {
        let means = "nothing in it counts here, and in refresh mode every run holds the lock for as long as it lasts";
        check.fail(format!("claude's settings: {why}"), means, "correct the file, or move it away");
    }
}

/// Checks the credentials `file`, in which `login` was found, where claude authenticates by `auth`.
pub(super) fn check_login(file: &Path, login: &Login, auth: &Auth, check: &mut Check) {
    let shown = file.display();
    let by = format!("claude uses: {}", auth.description);
    let expires = match login {
        Login::None if auth.is_no_login() => return check.pass(format!("{by}; there is no login in {shown}")),
        Login::None => {
            let what = format!("there is no login in {shown}, and no key or token in the environment");
            let todo = "log in once with this config dir (claude, then /login), or give the agents an API key";
            return check.fail(what, "no agent can work", todo);
        }
        Login::Unclear(why) => {
            let means = "agents may fail, and in refresh mode every run holds the lock for as long as it lasts";
            let todo =
                if is_denied(file, AccessFlags::R_OK) { "let the user who runs the agents own it" } else { "log in again" };
            return check.fail(format!("{shown} {why}"), means, todo);
        }
        Login::Expires(at) => *at,
    };
    if let Ok(found) = fs::metadata(file) {
        let mode = found.mode() & 0o7777;
        if mode & 0o077 != 0 {
            check.warn(format!("{shown} has mode {mode:04o}"), "others may read the tokens in it", "chmod 600 it");
        }
        // access(2) lets root write everything.
        let error = access(file, AccessFlags::W_OK).err();
        if error.is_some() || mode & 0o200 == 0 {
            let what = format!("{shown} is not writable (user {}, mode {mode:04o})", found.uid());
            let means = "2.1.84 refreshes the token and cannot save it: the login is lost";
            let todo = match error {
                Some(Errno::EROFS) => "it is mounted read-only: remount it writable",
                _ => "make it writable for its owner, who runs the agents",
            };
            check.fail(what, means, todo);
        }
    }
    if !Login::has_refresh_token(file) {
        let means = "when the token expires, nobody can refresh it";
        check.warn(format!("there is no refresh token in {shown}"), means, "log in again");
    }
    check.pass_if_clean(format!("{by}; the token {}", text::expiry(expires)));
}
