//! claude-run: Claude Code under one session lock and a watchdog that leaves nothing behind.
//!
//! This is the map. What users are promised stands in the README; here is how it is kept, and where.
//!
//! # The flow
//!
//! It goes one way. [`run()`] is the whole story in a page:
//!
//! ```text
//! words, environment, claude-run.toml
//!   |
//!   |  cli: what was typed; settings: what it means
//!   v
//! Plan            the settings, in the light of config dir, terminal and PATH
//!   |
//!   |  lock::take: one flock(2), waited for asleep; in `refresh` mode only if a refresh is due; then, if asked for, a lock helper
//!   v
//! Holding
//!   |
//!   |  run::supervise: spawn, then one event after the other until the tree is dead; then, or after the refresh, the lock is free
//!   v
//! Outcome         THE exit-code table
//! ```
//!
//! While a child runs, everything that happens arrives on one channel, and one pure function of state, event and time says what
//! to do. Nothing polls, nothing sleeps in a handler, and no thread but the relay's touches what claude prints:
//!
//! ```text
//! signals -------.                                              .--> signals to the child and its tree
//! child ends ----+    +---------+    +-----------------------+  +--> the lock let go
//! frames --------+--> | Channel |--> | Policy::on            |--+--> a message, a record
//! credentials ---+    +---------+    | (happening, now)      |  +--> the next deadline
//! deadlines -----'                   | -> actions            |  '--> the outcome
//!                                    +-----------------------+
//! ```
//!
//! # The rooms
//!
//! In the order of the flow; a module imports only from those above it and from the leaves (`outcome`, `diag`, `procfs`,
//! `run_id`, `identity`, `object`, `files`, `changes`, `mounts`, `children`):
//!
//! | room | what is in it, and nowhere else |
//! |---|---|
//! | [`cli`] | what was typed: the table of options, which also makes the help, and with the build script man page and completions |
//! | [`settings`] | what it means: flag, environment, file, default |
//! | [`claude`] | all that is known about Claude Code: config dir, program, frames, auth, credentials, refresh locks, telemetry |
//! | [`event`] | the one channel on which everything arrives |
//! | [`signals`] | our dispositions, and the child's |
//! | `exec` | clone(2) and execve(2), with all made before |
//! | [`records`] | what is kept of runs: a record of each live one, a history of the others |
//! | [`lock`] | the session lock: when it is taken, who holds it, whether that is somebody above us; the lock helper and its keeper |
//! | [`mod@run`] | one supervised run, sole owner of the child: policy (pure), spawn, tree, refresh, output, supervise |
//! | [`ops`] | what operators ask for: status, mode, settings, report, doctor, setup, events |
//! | [`plan`] | the settings, seen in the light of config dir, terminal and PATH |
//! | [`outcome`] | how it ended, and THE exit-code table |
//! | [`diag`] | the only writer to stderr and to the log |
//!
//! `src/build.rs` is the build script. `tests/it` proves the promises on the binary, `tests/model` explores the policy and the lock
//! in every order of events, `tests/faults` breaks what can be broken at random, `tests/fuzz` feeds what reads others' bytes.

mod changes;
mod children;
pub mod claude;
pub mod cli;
pub mod diag;
pub mod event;
mod exec;
mod files;
pub mod identity;
pub mod lock;
pub mod mounts;
mod object;
pub mod ops;
pub mod outcome;
pub mod plan;
mod procfs;
pub mod records;
pub mod run;
pub mod run_id;
pub mod settings;
pub mod signals;

use std::env;
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::mem;
use std::panic;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use claude::config_dir::ConfigDir;
use claude::program::{self, Unstartable};
use cli::{Cli, Request};
use lock::{Claim, Lock, Taken};
use outcome::Outcome;
use plan::Plan;
use records::Journal;
use run::output::Watch;
use run::policy::{Group, Rules};
use run::spawn::{Launch, fill_standard_descriptors};
use run_id::RunId;
use settings::Settings;
use settings::file::{self, SettingsFile};
use signals::{FORWARDED, Handlers, Inherited};

/// The program: runs what the process was called with, reports what went wrong, gives the exit code.
pub fn main() -> i32 {
    // A panic has printed itself; its guards have ended the tree and freed the lock.
    let result = panic::catch_unwind(|| run(env::args_os().collect())).unwrap_or(Ok(Outcome::Failed));
    let outcome = result.unwrap_or_else(|error| {
        diag::report(&error);
        outcome_of(&error)
    });
    i32::from(outcome.exit_code())
}

fn outcome_of(error: &anyhow::Error) -> Outcome {
    match error.downcast_ref() {
        Some(Unstartable::NotFound(_)) => Outcome::NotFound,
        Some(Unstartable::CannotRun(_)) => Outcome::CannotRun,
        None => Outcome::Failed,
    }
}

/// The whole story. `words` are those of the command line, the name we were called by first. It becomes the process'
/// one supervisor: signal handlers, the subreaper attribute and every child's remains belong to it while it runs.
///
/// # Errors
/// Whatever keeps it from running the child; `Unstartable` when that is the child's program.
pub fn run(words: Vec<OsString>) -> Result<Outcome> {
    fill_standard_descriptors().context("cannot open /dev/null")?;
    let inherited = Inherited::take().context("cannot set signal dispositions")?;
    let (cli, operation) = match understand(words) {
        Request::Run(cli) => (cli, None),
        Request::Operate(cli, operation) => (cli, Some(operation)),
        Request::Show(text) => {
            return match anstream::stdout().write_all(text.as_bytes()) {
                // Whoever reads has seen enough.
                Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
                _ => Ok(Outcome::Shown),
            };
        }
        Request::Refuse(text) => {
            diag::usage(&text);
            return Ok(Outcome::Failed);
        }
    };
    let environment = |name: &str| env::var_os(name);
    let config_dir = ConfigDir::resolve(cli.value(&cli::CONFIG_DIR).map(Path::new), &environment);
    // Without a config dir there is no file in it; whether one is needed is settled later.
    let file = config_dir.as_ref().ok().map(|config_dir| SettingsFile::read(&config_dir.path.join(file::NAME)));
    let file = file.transpose().map(Option::flatten);
    if let Some(operation) = operation {
        let (file, file_error) = match file {
            Err(error) if operation.bears_a_wrong_file() => (None, Some(format!("{error:#}"))),
            file => (file?, None),
        };
        let context = ops::Context { cli, environment: &environment, file, file_error, config_dir };
        return ops::run(&operation, context, &mut anstream::stdout());
    }
    let file = file?;
    let settings = Settings::resolve(cli, &environment, file.as_ref())?;
    let run = RunId::take();
    let log = diag::init(settings.verbosity, settings.log_format, settings.log.as_deref(), run);
    let mut plan = Plan::new(settings, config_dir, &environment, &inherited, run, log)?;
    let variables = mem::take(&mut plan.environment);
    let launch = Launch { program: &plan.program, environment: variables, stdin: plan.stdin, signals: &inherited };
    let Some(rules) = plan.watchdog else { return Err(launch.exec()) };
    let outcome = supervised(launch, plan.lock.as_ref(), rules, &plan.watch, &mut plan.journal);
    plan.journal.close(outcome.as_ref().map_or_else(outcome_of, |&outcome| outcome));
    outcome
}

/// Takes `lock`, and stays until all that `launch` starts has ended.
fn supervised(mut launch: Launch, lock: Option<&Lock>, rules: Rules, watch: &Watch, journal: &mut Journal) -> Result<Outcome> {
    let mut channel = event::Channel::open().context("cannot make a pipe")?;
    // In the terminal's own group, the key that stops stops us as it stops the child: by default.
    let stop = (rules.group == Group::Own).then_some(Signal::SIGTSTP);
    let handled = FORWARDED.into_iter().chain([Signal::SIGUSR1, Signal::SIGCHLD]).chain(stop);
    let _handlers = Handlers::install(handled, &channel.bell()).context("cannot install signal handlers")?;

    let mut holding = None;
    if let Some(lock) = lock {
        let taken = lock::take(lock, journal, &mut channel)?;
        let identity = match taken {
            Taken::Held(lock) => holding.insert(lock).claimed(),
            Taken::ByCaller(identity) => Some(identity),
            Taken::AboveUs(_) | Taken::Unneeded => None,
            Taken::Busy => return Ok(Outcome::LockBusy { code: lock.conflict_exit_code }),
            Taken::EndedBy(signal) => return Ok(Outcome::EndedWaiting(signal)),
        };
        match holding.as_ref().map(lock::Holding::key) {
            Some(Some(key)) => launch.set(lock::KEY_VARIABLE, &key),
            Some(None) => launch.unset(lock::KEY_VARIABLE), // that of a run above is on another lock
            None => {}
        }
        if let Some(identity) = identity {
            // Other claims on this file are stale now, unless others hold it for us; those on other files are as true as they were.
            let is_others = holding.as_ref().is_some_and(|holding| holding.descriptor().is_none());
            let others = lock.above.claims.iter().filter(|claim| claim.identity != identity || is_others).copied();
            let claims = others.chain([Claim { identity, run: journal.run() }]).map(|claim| claim.to_string());
            launch.set(Claim::VARIABLE, &claims.collect::<Vec<_>>().join(","));
        }
    }
    launch.set(RunId::VARIABLE, &journal.run().to_string());
    run::supervise(&launch, rules, watch, holding, journal, &mut channel)
}

fn understand(words: Vec<OsString>) -> Request {
    match words.split_first() {
        Some((called_as, arguments)) if program::is_shim(called_as) => {
            let command = std::iter::once(OsString::from(program::NAME)).chain(arguments.iter().cloned()).collect();
            Request::Run(Cli::without_options(command))
        }
        _ => Cli::parse(words),
    }
}
