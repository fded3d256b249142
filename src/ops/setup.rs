//! `claude-run setup`: makes a shared config dir, or moves that of this home there, and leaves a link behind. A move is one rename, so
//! there is a whole `~/.claude` at every moment; nothing is copied, and what cannot be renamed is refused. Killed anywhere, the next
//! call goes on. It asks before it moves anything, and refuses while a run is live there.

mod environment;
mod plan;

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};
use serde::Serialize;
use serde_json::json;

use self::plan::{SHARED_DIR, SetupPaths, SetupPlan};
use super::{Context, answer, layout, text, time_left, wait_until_none};
use crate::claude::config_dir;
use crate::claude::refresh_locks::{RefreshLock, Standing};
use crate::claude::storage::ClaudeStorage;
use crate::config::duration::after;
use crate::config::operations::SetupOptions;
use crate::lock::{self, FlockGuard, LockAttempt, LockFile};
use crate::logging;
use crate::outcome::Outcome;
use crate::records::{RecordStore, RunRecord};
use crate::sys::file_id::FileId;
use crate::sys::fs::{if_there, parent_of, try_flock};
use crate::sys::replace::remove_leftovers;
use crate::sys::signal;
use crate::sys::stdio::StandardInput;

const DEFAULT_SHARED_DIR: &str = "/var/lib/disinto/claude-shared";

/// Steps that were taken, or would be, and remarks, in the form that JSON has them.
#[derive(Serialize)]
struct SetupReport {
    config_dir: String,
    /// True if nothing is left to do.
    done: bool,
    steps: Vec<String>,
    notes: Vec<String>,
}

/// Sets up the shared config dir, or says how.
pub(super) fn run(context: &Context, options: &SetupOptions, out: &mut impl Write) -> Result<Outcome> {
    let variable = |name: &str| (context.environment)(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    ensure!(
        context.cli.value("config-dir").is_none(),
        "--config-dir is not for setup, which makes ~/.claude a link to `config` in the shared dir; use --home or --shared-dir"
    );
    let home = options.home.clone().or_else(|| variable("HOME")).context("HOME is not set; name it with --home")?;
    let shared = options.shared_dir.clone().or_else(|| variable(SHARED_DIR)).unwrap_or(DEFAULT_SHARED_DIR.into());
    let paths = SetupPaths::new(&home, &shared)?;
    become_owner(&home)?;
    signal::end_as_by_default().context("cannot set signal dispositions")?;
    let own = variable(config_dir::VARIABLE).filter(|own| !paths.are_at(own));
    if let Some(own) = own {
        let link = paths.link.display();
        logging::tell(&format!("{} is {}: setup leaves that alone, and is about {link}", config_dir::VARIABLE, own.display()));
    }
    let config_dir = paths.config_dir.to_string_lossy().into_owned();
    let mut report = SetupReport { config_dir, done: false, steps: Vec::new(), notes: Vec::new() };
    let outcome = carry_out(context, options, &paths, &mut report)?;
    let is_possible = report.notes.is_empty();
    report.done = is_possible && (!options.dry_run || report.steps.is_empty());
    answer(out, options.json, outcome == Outcome::Shown, || report.to_text(&paths, is_possible), || json!(report))
}

/// Gives up root in the home of somebody else: what is made there is to be the owner's, and what the owner may not do is refused.
fn become_owner(home: &Path) -> Result<()> {
    let found = fs::metadata(home).with_context(|| format!("there is no home {}; name it with --home", home.display()))?;
    let (user, group) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
    if geteuid().is_root() && !user.is_root() {
        let became = setgroups(&[group]).and_then(|()| setgid(group)).and_then(|()| setuid(user));
        became.with_context(|| format!("cannot become the owner of {}, uid {user}", home.display()))?;
    }
    Ok(())
}

fn carry_out(context: &Context, options: &SetupOptions, paths: &SetupPaths, report: &mut SetupReport) -> Result<Outcome> {
    let env_file = options.env_file.as_deref();
    let mut plan = SetupPlan::of(paths, env_file);
    if !plan.refusals.is_empty() {
        return Ok(report.note(plan.refusals));
    }
    if options.dry_run {
        report.steps.extend(plan.steps.iter().map(|(text, _)| format!("would {text}")));
        return Ok(Outcome::Shown);
    }
    if plan.moves_content && !options.yes && !ask_consent(paths, options.json)? {
        let (from, to) = (paths.link.display(), paths.config_dir.display());
        let how = "nothing was changed; --yes does it, --dry-run shows how";
        report.notes.push(format!("{from} has content, and would be moved to {to}; {how}"));
        return Ok(Outcome::Shown);
    }
    let (mut session_locks, mut shared_locks) = (Vec::new(), Vec::new());
    if plan.moves_content
        && let Some(why) = keep_others_out(context, paths, &mut session_locks)?
    {
        return Ok(report.note(vec![format!("{why}; nothing was changed")]));
    }
    if !plan.steps.is_empty() {
        // Whatever the umask: a place that others can write is refused.
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&paths.shared);
        made.with_context(|| format!("cannot make {}", paths.shared.display()))?;
        let shared = File::open(&paths.shared).with_context(|| format!("cannot read {}", paths.shared.display()))?;
        if !try_flock(&shared) {
            return Ok(report.note(vec![format!("another setup is at work in {}; call again", paths.shared.display())]));
        }
        shared_locks.push(shared);
        plan = SetupPlan::of(paths, env_file); // now that nobody changes it any more
    }
    if let Some(file) = env_file.filter(|_| plan.refusals.is_empty()) {
        let _ = remove_leftovers(file); // what cannot be removed stays
    }
    Ok(report.take_steps(plan))
}

/// Asks for consent on a terminal. Elsewhere nobody can give it.
fn ask_consent(paths: &SetupPaths, json: bool) -> Result<bool> {
    if json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(false);
    }
    logging::ask(&format!("move {} to {}, and leave a link? [Y/n] ", paths.link.display(), paths.config_dir.display()));
    let mut answer = String::new();
    BufReader::new(StandardInput).read_line(&mut answer).context("cannot read the answer")?;
    Ok(!answer.is_empty() && matches!(answer.trim().to_ascii_lowercase().as_str(), "" | "y" | "yes"))
}

/// Acquires the session lock of the dir that is to be moved, and that of another lock file which is set, then waits until no run is live
/// there. Returns what is in the way at last. Signals end us as they do by default.
fn keep_others_out(context: &Context, paths: &SetupPaths, session_locks: &mut Vec<FlockGuard>) -> Result<Option<String>> {
    let deadline = after(Instant::now(), context.settings()?.wait.limit(Duration::ZERO));
    let of_dir = paths.link.join(lock::FILE_NAME);
    for file in [of_dir].into_iter().chain(context.given("lock-file")) {
        let is_ours = |own: &FlockGuard| FileId::at(&file) == Some(own.file_id()); // under another name
        let has_no_place = if_there(fs::metadata(parent_of(&file))).is_ok_and(|dir| dir.is_none());
        if session_locks.iter().any(is_ours) || has_no_place {
            continue;
        }
        let Some(lock) = lock_within(&file, deadline)? else {
            return Ok(Some(format!("{} is in use; end what has it, or raise --wait", file.display())));
        };
        session_locks.push(lock);
    }
    let records = RecordStore::of(&paths.link);
    let live = wait_until_none(&records, deadline, || {
        let census = records.census().with_context(|| format!("cannot read {}", records.runs().display()))?;
        // Who waits for this lock waits for us, and starts where the file is by then.
        let is_awaited = |lock: &FlockGuard, run: &RunRecord| run.is_about(lock.file_id());
        let is_at_work = |run: &RunRecord| !(run.waits() && session_locks.iter().any(|lock| is_awaited(lock, run)));
        Ok(census.live.into_iter().chain(census.elsewhere).filter(is_at_work).collect())
    })?;
    if !live.is_empty() {
        let names: Vec<_> = live.iter().map(text::run).collect();
        let verb = if live.len() == 1 { "is" } else { "are" };
        return Ok(Some(format!("{} {verb} live there: {}", text::count(live.len(), "run"), names.join("; "))));
    }
    let refreshes = [&paths.link, &paths.config_dir].into_iter().flat_map(|dir| RefreshLock::of(&ClaudeStorage::at(dir)));
    let live = refreshes.into_iter().find(|lock| lock.standing(SystemTime::now()) == Standing::Live);
    Ok(live.map(|lock| format!("{} is held: a refresh is under way", lock.path.display())))
}

fn lock_within(path: &Path, deadline: Option<Instant>) -> Result<Option<FlockGuard>> {
    let file = match LockFile::open(path)?.try_lock()? {
        LockAttempt::Acquired(lock) => return Ok(Some(lock)),
        LockAttempt::Busy(file) => file,
    };
    logging::tell(&format!("waiting for {}, which is in use", path.display()));
    let (sender, locked) = mpsc::sync_channel(1);
    // At a timeout the thread is left behind, and ends with the process.
    thread::spawn(move || sender.send(file.lock_blocking()));
    Ok(match locked.recv_timeout(time_left(deadline)).ok().transpose()? {
        Some(LockAttempt::Acquired(lock)) => Some(lock),
        Some(LockAttempt::Busy(_)) | None => None,
    })
}

impl SetupReport {
    /// Adds what somebody has to look at.
    fn note(&mut self, notes: Vec<String>) -> Outcome {
        self.notes.extend(notes);
        Outcome::Trouble
    }

    fn take_steps(&mut self, plan: SetupPlan) -> Outcome {
        if !plan.refusals.is_empty() {
            return self.note(plan.refusals);
        }
        for (text, action) in plan.steps {
            if let Err(error) = action() {
                let rest = match self.steps.is_empty() {
                    true => "nothing was changed",
                    false => "what was done so far stands, and setup goes on when called again",
                };
                return self.note(vec![format!("cannot {text}: {error}; {rest}")]);
            }
            self.steps.push(text);
        }
        Outcome::Shown
    }

    /// For people; with what agents need of the shared dir, if it is one or can be made one.
    fn to_text(&self, paths: &SetupPaths, is_possible: bool) -> String {
        // A command to type stays one line, which can be copied.
        let wrapped =
            |line: &String| if line.contains(" && ") { line.clone() } else { layout::hanging(line, 2, layout::width()) };
        let mut lines: Vec<String> = self.steps.iter().chain(&self.notes).map(wrapped).collect();
        if lines.is_empty() {
            lines.push(format!("nothing to do: {} is {} already", paths.link.display(), self.config_dir));
        }
        if is_possible {
            let shared = paths.shared.display();
            lines.push(format!("\nfor the shell:   export CLAUDE_CONFIG_DIR={}", shell_words::quote(&self.config_dir)));
            lines.push(format!("for compose:     volumes: [\"{shared}:{shared}\"]"));
            lines.push(format!("for Nomad:       volumes = [\"{shared}:{shared}\"]"));
        }
        lines.join("\n") + "\n"
    }
}
