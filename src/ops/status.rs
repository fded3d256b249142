//! `claude-run status`: holder of the session lock, waiters, other runs, refresh locks, login and last runs. It only looks, and
//! works in a config dir that is empty or read-only, with a settings file that is broken, and without records.

mod json;
mod rows;
mod watch;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::checks::{self, Check};
use super::slots::SlotsInUse;
use super::{Context, Factory, answer, layout, text};
use crate::claude::auth::Auth;
use crate::claude::config_dir::obstacle;
use crate::claude::credentials::Login;
use crate::claude::refresh_locks::{CutRefresh, RefreshLock, Standing};
use crate::config::duration::show_seconds;
use crate::lock::{Holder, NAMED, Queue, describe_refresh_lock};
use crate::outcome::Outcome;
use crate::records::{Census, FinishedRun, Hold, RunRecord};
use crate::sys::file_id::FileId;
use crate::sys::proc::{self, Stat};
use crate::sys::terminal;

pub(super) struct Status<'a> {
    factory: &'a Factory,
    /// More than one only if the lock file was replaced under the first.
    pub(super) holders: Vec<Holder>,
    /// In the order of the queue; in it, a process without a record has its pid alone.
    pub(super) waiting: Vec<Result<RunRecord, i32>>,
    /// Runs that want this lock not, or no more, those of another lock file included.
    pub(super) running: Vec<RunRecord>,
    slots: SlotsInUse,
    pub(super) orphaned: Vec<RunRecord>,
    /// Runs of other hosts, whose locks cannot be seen here.
    pub(super) elsewhere: Vec<RunRecord>,
    /// Reason why there are no records.
    pub(super) unreadable: Option<String>,
    refresh_locks: [RefreshLock; 2],
    login: Login,
    auth: Auth,
    /// What doctor finds as well: of the room and of refusals, which is trouble, and of the login, as this shell sees it.
    found: Vec<String>,
    pub(super) login_objections: Vec<String>,
    /// Why the config dir cannot be.
    obstacle: Option<String>,
    /// The latest first.
    last: Vec<FinishedRun>,
}

pub(super) fn show(context: &Context, json: bool, watch: bool, out: &mut impl Write) -> Result<Outcome> {
    let factory = Factory::of(context)?;
    let is_dumb = || (context.environment)("TERM").is_some_and(|kind| kind == "dumb");
    // A job in the background may write to its terminal, but not take it.
    if watch && !json && io::stdout().is_terminal() && !is_dumb() && !terminal::is_in_background(io::stdout()) {
        return watch::on_terminal(&factory, context);
    }
    loop {
        let status = Status::look(&factory, context)?;
        // With a prompt below.
        let height = terminal::size_of(io::stdout()).map_or(usize::MAX, |size| usize::from(size.ws_row) - 1);
        let mut text = status.to_text(layout::width(), height);
        if watch {
            text = format!("{}\n{text}\n", watch::head());
        }
        let outcome = answer(out, json, status.trouble().is_empty(), &text, status.to_json())?;
        if !watch {
            return Ok(outcome);
        }
        // Ages change with the clock: there is no event to wait for.
        thread::sleep(Duration::from_secs(1));
    }
}

impl<'a> Status<'a> {
    /// Leaves out a claude-run that is just starting, whose record comes a moment after its flock. One that stays without a record
    /// cannot keep any.
    pub(super) fn look(factory: &'a Factory, context: &'a Context) -> Result<Self> {
        let lock = FileId::at(&factory.lock_file);
        // The kernel takes some 10 ms for its answer: time to read the records. It is asked only once, since it halts all locking.
        let (queue, (mut census, unreadable)) = thread::scope(|scope| {
            let queue = lock.map(|lock| scope.spawn(move || Queue::look(lock)));
            let census = factory.census_if_readable();
            (queue.and_then(|queue| queue.join().ok()), census)
        });
        let strangers = |census: &Census| -> Vec<i32> {
            let found = queue.iter().flat_map(|queue| queue.without_record(&census.live));
            found.filter(|&pid| is_claude_run(pid)).collect()
        };
        let mut without_record = strangers(&census);
        for _ in 0..10 {
            if without_record.is_empty() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
            census = factory.census_if_readable().0;
            without_record = strangers(&census);
        }
        // One that has ended by now, or has begun since.
        let is_no_stranger = |pid: i32| !without_record.contains(&pid) && (is_claude_run(pid) || is_gone(pid));
        let Census { live, mut orphaned, elsewhere, .. } = census;
        let slots = SlotsInUse::look(&factory.records, &live);
        let waits = |record: &RunRecord| record.waits() && lock.is_some_and(|lock| record.is_about(lock));
        let waiting = live.iter().filter(|record| waits(record)).cloned().collect();
        let mut waiting = queue.as_ref().map_or(Vec::new(), |queue| queue.in_order(&live, waiting, is_no_stranger));
        let holds = |record: &RunRecord| lock.is_some_and(|lock| record.holds(lock));
        orphaned.retain(holds); // not those of another lock file
        let (holding, mut running): (Vec<_>, Vec<_>) = live.into_iter().filter(|record| !waits(record)).partition(holds);
        let mut holders: Vec<_> = holding.into_iter().map(|record| Holder::Run(Box::new(record))).collect();
        if let (true, Some(lock), Some(queue)) = (holders.is_empty(), lock, &queue) {
            let found = Holder::find_without_record(queue, Some(&factory.records));
            let found = Holder::or_orphan(found, lock, || orphaned.clone());
            match &found {
                Some(Holder::Orphan(left, _)) => orphaned = vec![(**left).clone()],
                Some(Holder::Processes(_)) => orphaned.clear(), // they are none of theirs
                Some(Holder::Run(_)) | None => {}
            }
            holders.extend(found.filter(|holder| match holder {
                Holder::Processes(processes) => !processes.first().is_some_and(|process| is_no_stranger(process.pid)),
                Holder::Run(_) | Holder::Orphan(..) => true,
            }));
        }
        if let [Holder::Run(holder)] = holders.as_slice() {
            running.retain(|record| record.run != holder.run);
            waiting.retain(|waiter| waiter.as_ref().map_or(true, |record| record.run != holder.run));
        }
        let login = Login::read_whole(&factory.storage.credentials());
        let auth = context.auth(&factory.config_dir, &login);
        let obstacle = obstacle(&factory.config_dir);
        let (mut found, mut of_login) = (Check::default(), Check::default());
        checks::check_room(&factory.config_dir, &mut found);
        let last = checks::check_last_runs(&factory.records, &factory.storage.credentials(), &mut found);
        if !matches!(login, Login::Unclear(_)) && obstacle.is_none() {
            checks::check_login(&factory.storage.credentials(), &login, &auth, &mut of_login);
        }
        Ok(Self {
            factory,
            holders,
            waiting,
            running,
            slots,
            orphaned,
            elsewhere,
            unreadable,
            refresh_locks: RefreshLock::of(&factory.storage),
            auth,
            found: found.objections().collect(),
            login_objections: of_login.objections().collect(),
            login,
            last: last.into_iter().rev().take(5).collect(),
            obstacle,
        })
    }

    fn trouble(&self) -> Vec<String> {
        // All else would only follow from it.
        if let Some(obstacle) = &self.obstacle {
            return vec![format!("no run starts: the config dir {} {obstacle}", self.factory.config_dir.display())];
        }
        let orphaned = self.holders.iter().filter(|holder| matches!(holder, Holder::Orphan(..)));
        let orphaned = orphaned.map(|holder| {
            format!(
                "claude-run gone, claude still running: the session lock is held by {holder}; {}",
                text::end_leftovers(holder)
            )
        });
        let refresh_locks = self.refresh_locks.iter().filter_map(|lock| match lock.standing(SystemTime::now()) {
            Standing::Free | Standing::Live => None,
            Standing::Stale(_) | Standing::Stuck(_) => Some(format!("the refresh lock {}", describe_refresh_lock(lock))),
            Standing::OwnerDead(left) => {
                let (path, left) = (lock.path.display(), show_seconds(left));
                Some(format!(
                    "the owner of the refresh lock {path} is dead: a claude that has to refresh fails for another {left}"
                ))
            }
        });
        let (state, _, why) = self.token();
        let file = self.factory.storage.credentials();
        let login = (state == "unclear").then(|| format!("{} {why}", file.display()));
        let holders = (self.holders.len() > 1).then(|| "several runs hold the session lock".to_owned());
        let stopped = self.holders.iter().filter_map(|holder| {
            let pids = stopped_processes(holder)?;
            Some(format!("the session lock is held by a stopped process; kill -CONT {pids} lets it go on"))
        });
        let cut = CutRefresh::last(&self.factory.storage).map(|cut| {
            let pid = cut.pid;
            format!("claude (pid {pid}) has ended in the midst of a refresh: the login is probably lost; log in again if the next run fails")
        });
        let settings = self.factory.mistake.as_ref().map(|error| format!("no run starts: {error}"));
        let records = self.unreadable.as_ref().map(|why| format!("{why}; of the runs, only what the kernel shows is listed"));
        let all = orphaned.chain(refresh_locks).chain(login).chain(cut).chain(self.replaced()).chain(holders).chain(stopped);
        all.chain(settings).chain(records).chain(self.found.iter().cloned()).collect()
    }

    /// Runs under which the lock file was removed or replaced.
    fn replaced(&self) -> impl Iterator<Item = String> {
        let lock = FileId::at(&self.factory.lock_file);
        let replaced = self.running.iter().filter(move |run| {
            let has_our_path = run.lock.as_ref().is_some_and(|seen| Path::new(&seen.path) == self.factory.lock_file);
            run.hold == Some(Hold::Own) && has_our_path && !lock.is_some_and(|lock| run.is_about(lock))
        });
        replaced.map(|run| {
            let who = run.who();
            format!(
                "the session lock was removed or replaced under {who}: it keeps apart from nobody who came later; let it end"
            )
        })
    }

    /// State of the token of the login, its expiry, and both for people.
    fn token(&self) -> (&'static str, Option<SystemTime>, String) {
        match &self.login {
            Login::None => ("none", None, "no OAuth login here".to_owned()),
            Login::Unclear(why) => ("unclear", None, why.clone()),
            Login::Expires(at) => {
                let left = at.duration_since(SystemTime::now());
                let margin = self.factory.settings.refresh_margin.as_span();
                let is_due = left.as_ref().is_ok_and(|left| margin.is_none_or(|margin| *left <= margin));
                let due = if is_due { ": a refresh is due" } else { "" };
                (if left.is_ok() { "valid" } else { "expired" }, Some(*at), text::expiry(*at) + due)
            }
        }
    }
}

/// True if the pids of `run` are the same here.
fn is_of_our_namespace(run: &RunRecord) -> bool {
    run.boot == proc::boot_id() && run.pid_namespace == proc::pid_namespace()
}

/// Pids of the holder's processes that are stopped, if any is, as far as that can be seen here: for a command line.
pub(super) fn stopped_processes(holder: &Holder) -> Option<String> {
    let pids: Vec<_> = match holder {
        Holder::Run(run) if is_of_our_namespace(run) => [Some(run.pid), run.child].into_iter().flatten().collect(),
        Holder::Run(_) => Vec::new(),
        Holder::Orphan(_, processes) | Holder::Processes(processes) => processes.iter().map(|process| process.pid).collect(),
    };
    let is_stopped = |pid: &i32| Stat::read(*pid).is_some_and(|stat| stat.state == b'T');
    let stopped: Vec<_> = pids.into_iter().filter(is_stopped).take(NAMED).map(|pid| pid.to_string()).collect();
    (!stopped.is_empty()).then(|| stopped.join(" "))
}

/// True for a process of claude-run, under whatever name; where an emulator is the program, by the name of the process. Any script
/// may have such a name.
pub(super) fn is_claude_run(pid: i32) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_ours = |name: &str| name.starts_with("claude-run");
    is_ours(&program) || program.starts_with("qemu-") && Stat::read(pid).is_some_and(|stat| is_ours(&stat.name()))
}

/// True for the only operation that takes the session lock.
fn is_setup(pid: i32) -> bool {
    is_claude_run(pid) && proc::command_line(pid).is_some_and(|words| words.get(1).is_some_and(|word| word == "setup"))
}

/// True also for a process on its way out, which has no program any more.
fn is_gone(pid: i32) -> bool {
    let has_no_program =
        || fs::read_link(format!("/proc/{pid}/exe")).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    Stat::read(pid).is_none_or(|stat| stat.is_dead()) || has_no_program()
}
