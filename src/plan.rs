//! What will be done: the settings, seen in the light of the config dir, the terminal and the programs on PATH.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal, stdin};
use std::sync::Arc;

use anyhow::{Result, bail};
use nix::unistd::{getpgrp, tcgetpgrp};
use tracing::warn;

use crate::claude::auth::{self, Auth};
use crate::claude::config_dir::{self, ConfigDir, ForChild};
use crate::claude::credentials::Login;
use crate::claude::frames;
use crate::claude::program::{Program, ProgramError};
use crate::config::cli::similar_operation;
use crate::config::settings::{DurationSetting, Environment, HARD_LIMIT, Leftovers, LockMode, RequireResult, Settings};
use crate::lock::{self, AncestorRuns, HelperCommand, LockRequest, Refreshes};
use crate::logging::LogFile;
use crate::records::{RecordStore, RunInfo, RunRecorder};
use crate::run_id::RunId;
use crate::supervisor::output::Watch;
use crate::supervisor::policy::{Group, PolicyConfig};
use crate::sys::exec::Stdin;
use crate::sys::signal::InheritedDispositions;

/// One invocation, decided.
#[derive(Debug)]
pub struct Plan {
    /// What runs.
    pub program: Program,
    /// The child's environment, but for what is known only once the lock is held.
    pub environment: Vec<(OsString, OsString)>,
    /// What it reads from.
    pub stdin: Stdin,
    /// The session lock, if this run needs it.
    pub lock: Option<LockRequest>,
    /// What the child's output is read for.
    pub watch: Watch,
    /// Its books.
    pub journal: RunRecorder,
    /// What the watchdog keeps to; without one, claude-run becomes the program and is gone.
    pub watchdog: Option<PolicyConfig>,
}

/// How often claude-run may run below itself. Agents that call agents need a few; a `claude` on PATH that is a script
/// around claude-run needs endlessly many.
const MOST_NESTED: usize = 32;

impl Plan {
    /// Decides, and checks on the way what can be known before anything is started.
    ///
    /// # Errors
    /// The program cannot be started (`ProgramError`), or the config dir cannot be used where the mode needs it.
    pub fn new(
        settings: Settings,
        config_dir: Result<ConfigDir>,
        environment: Environment,
        signals: &InheritedDispositions,
        run: RunId,
        log: Option<Arc<LogFile>>,
    ) -> Result<Self> {
        let above = AncestorRuns::of(environment);
        if above.runs.len() >= MOST_NESTED {
            bail!(
                "claude-run runs below itself {MOST_NESTED} times: is the claude on PATH a script that calls it? name the real one with CLAUDE_RUN_CLAUDE"
            );
        }
        let program = Program::find(&settings.command, settings.claude.as_deref())
            .map_err(|error| with_similar_operation(error, &settings.command))?;
        let mut child_environment: Vec<_> = env::vars_os().filter(|(name, _)| name != RunId::LINEAGE).collect();
        let lineage = [above.runs.as_slice(), &[run.to_string()]].concat().join(",");
        child_environment.push((RunId::LINEAGE.into(), lineage.into()));
        if let Ok(config_dir) = &config_dir {
            tell_child(&mut child_environment, &config_dir.for_child);
        }
        let bare = program.needs_no_lock();
        let wants_lock = !bare && settings.lock_mode != LockMode::PassThrough;
        let config_dir = match config_dir.and_then(|config_dir| if bare { Ok(None) } else { config_dir.usable().map(Some) }) {
            Err(error) if wants_lock && settings.lock_file.is_none() => return Err(error),
            // Without the lock, a config dir that does not work is claude's affair: it is said, and the run goes on.
            Err(error) if !bare => {
                warn!("{error:#}");
                None
            }
            config_dir => config_dir.unwrap_or_default(),
        };
        let records = config_dir.as_ref().map(|config_dir| RecordStore::of(&config_dir.path));
        if above.has_stale_key(records.as_ref()) {
            child_environment.retain(|(name, _)| name != lock::KEY_VARIABLE);
        }
        let lock_file = || settings.lock_file.clone().or_else(|| Some(config_dir.as_ref()?.path.join(lock::FILE_NAME)));
        let lock = wants_lock.then(lock_file).flatten().map(|path| LockRequest {
            path,
            refresh_only: settings.lock_mode == LockMode::Refresh,
            refreshes: config_dir.as_ref().map(|config_dir| refreshes(&settings, config_dir, environment, &program)),
            helper: settings.lock_helper.clone().map(|words| HelperCommand {
                words,
                kill_grace: settings.kill_grace.as_limit(),
                signals: signals.clone(),
            }),
            wait: settings.wait,
            conflict_exit_code: settings.conflict_exit_code,
            above,
            ignored: signals.ignored,
        });
        let stdin = Stdin::from(settings.stdin);
        let terminal = Terminal::of(stdin);
        let rules = PolicyConfig {
            hard_limit: settings.hard_limit.unwrap_or(terminal.hard_limit()).as_limit(),
            idle_limit: settings.idle_limit.as_limit(),
            result_grace: settings.result_grace.as_limit(),
            task_grace: settings.task_grace.as_limit(),
            kill_grace: settings.kill_grace.as_limit(),
            leftovers: settings.leftovers.unwrap_or(terminal.leftovers()),
            group: terminal.group(),
            ignored: signals.ignored,
        };
        let watch = if bare { Watch::default() } else { watch(&settings, &program, &rules, log)? };
        let record_file = settings.record.filter(|_| !bare);
        let keeps_nothing = rules.hard_limit.is_none() && rules.leftovers == Leftovers::Keep;
        let idle = lock.is_none() && keeps_nothing && !watch.reads() && record_file.is_none();
        let journal = RunRecorder::open(RunInfo {
            run,
            label: settings.label,
            program: program.path.clone(),
            lock_mode: settings.lock_mode,
            config_dir: config_dir.map(|config_dir| config_dir.path),
            lock_file: lock.as_ref().map(|lock| lock.path.clone()),
            record_file,
        });
        Ok(Self {
            program,
            environment: child_environment,
            stdin,
            lock,
            watch,
            journal,
            watchdog: (!bare && !idle).then_some(rules),
        })
    }
}

/// Adds the operation that was meant, if COMMAND looks like one.
fn with_similar_operation(error: ProgramError, command: &[OsString]) -> ProgramError {
    let name = command.first().and_then(|name| name.to_str()).filter(|name| !name.contains('/'));
    match (error, name.and_then(similar_operation)) {
        (ProgramError::NotFound(message), Some(name)) => {
            ProgramError::NotFound(format!("{message}; did you mean `claude-run {name}`?"))
        }
        (error, _) => error,
    }
}

/// What the output is to be read for.
fn watch(settings: &Settings, program: &Program, rules: &PolicyConfig, log: Option<Arc<LogFile>>) -> Result<Watch> {
    let on_terminal = io::stdout().is_terminal();
    let frames_are_asked_for = frames::are_expected(&program.argv);
    let required = match settings.require_result {
        RequireResult::Off => false,
        RequireResult::OfClaude => program.is_claude || frames_are_asked_for,
        RequireResult::OfCommand => true,
    };
    if required && on_terminal && !settings.pty {
        bail!("--require-result has to read what COMMAND prints, and that goes to a terminal; redirect stdout, or add --pty");
    }
    let are_wanted = rules.result_grace.is_some() || settings.record.is_some();
    let are_there = frames_are_asked_for && !on_terminal;
    Watch::new(settings, required, are_wanted && are_there, log)
}

/// What is known of the token's refreshes.
fn refreshes(settings: &Settings, config_dir: &ConfigDir, environment: Environment, program: &Program) -> Refreshes {
    let config_dir = &config_dir.path;
    // Only `refresh` mode asks, and only where there is no login.
    let auth = || Auth::of(environment, config_dir, &program.argv, &Login::None);
    Refreshes {
        config_dir: config_dir.clone(),
        margin: settings.refresh_margin.as_span(),
        ruled_out_by: auth::rules_out_refreshes(environment),
        can_do_without: settings.lock_mode == LockMode::Refresh && auth().is_no_login(),
    }
}

fn tell_child(environment: &mut Vec<(OsString, OsString)>, config_dir: &ForChild) {
    if *config_dir == ForChild::AsItIs {
        return;
    }
    environment.retain(|(name, _)| name != config_dir::VARIABLE);
    if let ForChild::Set(path) = config_dir {
        environment.push((config_dir::VARIABLE.into(), path.clone()));
    }
}

/// How stdin ties this run to a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Terminal {
    /// Not at all.
    None,
    /// It is our terminal, but other processes have it: a background job. `fg` must later give it to the child as well.
    Background,
    /// It is ours now: a person sits there.
    Foreground,
}

impl Terminal {
    fn of(child_stdin: Stdin) -> Self {
        match child_stdin {
            Stdin::Null => Self::None,
            Stdin::Inherit => match tcgetpgrp(stdin()) {
                Ok(group) if group == getpgrp() => Self::Foreground,
                Ok(_) => Self::Background,
                Err(_) => Self::None,
            },
        }
    }

    fn hard_limit(self) -> DurationSetting {
        if self == Self::Foreground { DurationSetting::Endless } else { HARD_LIMIT }
    }

    fn leftovers(self) -> Leftovers {
        if self == Self::Foreground { Leftovers::Keep } else { Leftovers::Kill }
    }

    fn group(self) -> Group {
        if self == Self::None { Group::Own } else { Group::Shared }
    }
}
