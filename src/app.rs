//! One invocation from its words to its exit code: what was asked for, then an operation, or one supervised run.

use std::ffi::OsString;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::claude::config_dir::ConfigDir;
use crate::claude::program::{self, ProgramError};
use crate::config::cli::{Cli, Operation, Request};
use crate::config::file::{self, SettingsFile};
use crate::config::settings::{Redact, Settings};
use crate::events::EventQueue;
use crate::lock::{self, Acquisition, Claim, LockRequest, SlotRequest};
use crate::logging;
use crate::ops;
use crate::outcome::Outcome;
use crate::plan::{ENVIRONMENT, Plan};
use crate::records::RunRecorder;
use crate::redact;
use crate::run_id::RunId;
use crate::supervisor::policy::Group;
use crate::supervisor::{self, Supervision};
use crate::sys::exec::{fill_standard_descriptors, has_foreign_privileges};
use crate::sys::signal::{self, FORWARDED, HarmlessBlocked, InheritedDispositions, Signal};
use crate::sys::signal_pipe::SignalHandlers;

/// The program: runs `words`, reports a failure, returns the exit code, or ends by the signal that ended the run.
pub fn main(words: Vec<OsString>) -> i32 {
    if words.first().is_some_and(|name| name == lock::MONITOR) {
        return i32::from(lock::run_monitor(&words).is_err());
    }
    // A panic has printed itself; its guards have ended the tree and freed the lock.
    let mut blocked = ManuallyDrop::new(None); // to our end
    let run = AssertUnwindSafe(|| run_with(words, &mut blocked));
    let result = panic::catch_unwind(run).unwrap_or(Ok(Outcome::Failed));
    let outcome = result.unwrap_or_else(|error| {
        logging::mask_with(redact::masked);
        logging::report(&error);
        outcome_of(&error)
    });
    if let Some(signal) = outcome.signal() {
        signal::end_by(signal.into());
    }
    i32::from(outcome.exit_code())
}

fn outcome_of(error: &anyhow::Error) -> Outcome {
    match error.downcast_ref() {
        Some(ProgramError::NotFound(_)) => Outcome::NotFound,
        Some(ProgramError::CannotRun(_)) => Outcome::CannotRun,
        None => Outcome::Failed,
    }
}

/// Runs what `words` ask for: those of the command line, the name we were called by first. While it runs, the process' signal
/// handlers, its subreaper attribute and all its zombie children belong to it. A lock helper needs a program whose entry is [`main`].
///
/// # Errors
/// Anything that keeps it from running the child; `ProgramError` if that is the child's program.
pub fn run(words: Vec<OsString>) -> Result<Outcome> {
    run_with(words, &mut None)
}

/// The same. Signals that are not to end us are `blocked` while they have no handlers.
fn run_with(words: Vec<OsString>, blocked: &mut Option<HarmlessBlocked>) -> Result<Outcome> {
    *blocked = Some(HarmlessBlocked::new().context("cannot set the signal mask")?);
    ensure!(
        !has_foreign_privileges(),
        "installed setuid, setgid or with capabilities, it would lend them to whatever claude starts; take them off the file"
    );
    fill_standard_descriptors().context("cannot open /dev/null")?;
    let mut inherited = InheritedDispositions::take().context("cannot set signal dispositions")?;
    let (cli, operation) = match parse(words)? {
        Request::Run(cli) => (cli, None),
        Request::Operate(cli, operation) => (cli, Some(operation)),
        Request::Show(text) => {
            *blocked = None;
            return ops::show(&text);
        }
    };
    if let Some(operation) = operation {
        *blocked = None;
        logging::mask_with(redact::masked);
        return operate(cli, &operation, &mut ops::output());
    }
    let (config_dir, file) = config_of(&cli);
    inherited.ignore_terminal_stops().context("cannot set signal dispositions")?;
    let settings = Settings::resolve(cli, ENVIRONMENT, file?.as_ref())?;
    if settings.redact != Redact::Off {
        logging::mask_with(redact::masked);
    }
    let id = RunId::take();
    let log = logging::init(settings.verbosity, settings.log_format, settings.log.as_deref(), id);
    let Plan { run, slot, lock, mut recorder, supervises } = Plan::new(settings, id, config_dir, log)?;
    if !supervises {
        return Err(run.launch.exec(&inherited));
    }
    let outcome = listen(&run, inherited).and_then(|(mut events, _handlers)| {
        drop(blocked.take());
        let outcome = acquire_and_supervise(run, slot.as_ref(), lock.as_ref(), &mut recorder, &mut events);
        *blocked = HarmlessBlocked::new().ok(); // there is something to write yet
        outcome
    });
    recorder.close(outcome.as_ref().map_or_else(outcome_of, |&outcome| outcome));
    outcome
}

/// Does what an operator asks for; its output goes to `out`.
///
/// # Errors
/// The operation itself has failed.
pub fn operate(cli: Cli, operation: &Operation, out: &mut impl Write) -> Result<Outcome> {
    let (config_dir, file) = config_of(&cli);
    // No operation refuses a broken settings file: they are needed most when there is one.
    let (file, file_error) = match file {
        Ok(file) => (file, None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    ops::run(operation, ops::Context { cli, environment: ENVIRONMENT, file, file_error, config_dir }, out)
}

/// The config dir, and the settings file in it, what that adds to the secrets being masked from now on.
fn config_of(cli: &Cli) -> (Result<ConfigDir>, Result<Option<SettingsFile>>) {
    let config_dir = ConfigDir::resolve(cli.value("config-dir").map(Path::new), ENVIRONMENT);
    // Without a config dir there is no file in it; whether one is needed is settled later.
    let file = config_dir.as_ref().ok().map(|config_dir| SettingsFile::read(&config_dir.path.join(file::NAME)));
    let file = file.transpose().map(Option::flatten);
    if let Ok(Some(file)) = &file {
        redact::configure(file.list("redact-names"), file.list("redact-patterns"));
    }
    (config_dir, file)
}

/// Handles the signals for `run`, until the handlers are dropped.
fn listen(run: &Supervision, inherited: InheritedDispositions) -> Result<(EventQueue, SignalHandlers)> {
    let mut events = EventQueue::open().context("cannot make a pipe")?;
    events.inherited = inherited;
    // In the terminal's group, its stop key stops us as it stops the child: by the default disposition.
    let stop = (run.policy.group == Group::Own).then_some(Signal::SIGTSTP);
    let mut handled = FORWARDED;
    [Signal::SIGUSR1, Signal::SIGCHLD].into_iter().chain(stop).for_each(|signal| handled.add(signal));
    let handlers = SignalHandlers::install(handled, events.signal_pipe(), &mut events.inherited);
    Ok((events, handlers.context("cannot install signal handlers")?))
}

/// Acquires the slot and the lock that are requested, then supervises `run` until all that it starts has ended.
fn acquire_and_supervise(
    mut run: Supervision,
    slot: Option<&SlotRequest>,
    lock: Option<&LockRequest>,
    recorder: &mut RunRecorder,
    events: &mut EventQueue,
) -> Result<Outcome> {
    let started = Instant::now();
    if let Some(request) = slot {
        match lock::acquire_slot(request, started, recorder, events)? {
            Acquisition::Held(guard) => {
                let claims = guard.claims(&request.above, recorder.run());
                run.launch.set(Claim::SLOTS_VARIABLE, Some(claims.into()));
                run.slot = Some(guard);
            }
            Acquisition::NotNeeded(_) => {}
            Acquisition::NotAcquired => return Ok(Outcome::SlotBusy { code: request.conflict_exit_code }),
            Acquisition::Interrupted(signal) => return Ok(Outcome::EndedWaiting(signal.number())),
        }
    }
    if let Some(request) = lock {
        match lock::acquire(request, started, recorder, events).inspect_err(|_| recorder.retire())? {
            Acquisition::Held(guard) => {
                match guard.key() {
                    Some(key) => run.launch.set(lock::KEY_VARIABLE, Some(key.into())),
                    None if guard.is_held() => run.launch.set(lock::KEY_VARIABLE, None), // that of a run above is on another lock
                    None => {}
                }
                if let Some(claims) = guard.claims(&request.above, recorder.run()) {
                    run.launch.set(Claim::VARIABLE, Some(claims.into()));
                }
                run.lock = Some(guard);
            }
            Acquisition::NotNeeded(_) => {}
            refused => {
                recorder.retire(); // before another run can have the slot
                return Ok(match refused {
                    Acquisition::Interrupted(signal) => Outcome::EndedWaiting(signal.number()),
                    _ => Outcome::LockBusy { code: request.conflict_exit_code },
                });
            }
        }
    }
    run.launch.set(RunId::VARIABLE, Some(recorder.run().to_string().into()));
    match supervisor::refresh_first(&mut run, lock, recorder, events)? {
        Some(not_started) => Ok(not_started),
        None => supervisor::supervise(run, recorder, events),
    }
}

/// Takes `words` apart. Under the name `claude`, all of them are claude's.
fn parse(mut words: Vec<OsString>) -> Result<Request> {
    if !words.first().is_some_and(|name| program::is_shim(name)) {
        return Cli::parse(&words);
    }
    words[0] = program::NAME.into();
    Ok(Request::Run(Cli::without_options(words)))
}
