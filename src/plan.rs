//! Decides what an invocation does: the settings, seen in the light of config dir, terminal and PATH.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal, stdin};
use std::sync::Arc;

use anyhow::{Result, bail};
use nix::sys::signal::SigSet;
use nix::unistd::{getpgrp, tcgetpgrp};
use tracing::warn;

use crate::claude::auth::{self, Auth};
use crate::claude::config_dir::{self, ConfigDir, ForChild};
use crate::claude::credentials::Login;
use crate::claude::frames;
use crate::claude::program::{Program, ProgramError};
use crate::config::cli::similar_operation;
use crate::config::duration::DurationSetting;
use crate::config::settings::{Environment, HARD_LIMIT, Leftovers, LockMode, RequireResult, Settings, Stdin};
use crate::lock::{self, AncestorRuns, HelperCommand, LockRequest, Refreshes};
use crate::logging::LogFile;
use crate::records::{RecordStore, RunInfo, RunRecorder};
use crate::run_id::RunId;
use crate::supervisor::output::OutputConfig;
use crate::supervisor::policy::{Group, PolicyConfig};
use crate::sys::signal::InheritedDispositions;

/// An invocation that runs a program.
pub struct Invocation<'a> {
    /// Resolved settings.
    pub settings: Settings,
    /// Our environment.
    pub environment: Environment<'a>,
    /// Signal dispositions at our start.
    pub signals: &'a InheritedDispositions,
    /// Id of the run.
    pub run: RunId,
}

/// Decisions about an invocation.
#[derive(Debug)]
pub struct Plan {
    /// Program and arguments.
    pub program: Program,
    /// The child's environment, without what is known only when the lock is held.
    pub environment: Vec<(OsString, OsString)>,
    /// Source of the child's stdin.
    pub stdin: Stdin,
    /// The session lock, if the run needs it.
    pub lock: Option<LockRequest>,
    /// Purposes for which the child's output is captured.
    pub output: OutputConfig,
    /// Recorder of the run.
    pub recorder: RunRecorder,
    /// Limits of the run; without them, claude-run executes the program in its own place.
    pub policy: Option<PolicyConfig>,
}

/// Deepest nesting of claude-run in claude-run. Agents that call agents need a few levels; a `claude` on PATH that is a script around
/// claude-run would nest for ever.
const MAX_NESTING: usize = 32;

impl Plan {
    /// Decides, and checks all that can be known before anything is started.
    ///
    /// # Errors
    /// The program cannot be started (`ProgramError`), or the config dir cannot be used where the mode needs it.
    pub fn new(invocation: Invocation, config_dir: Result<ConfigDir>, log: Option<Arc<LogFile>>) -> Result<Self> {
        let settings = &invocation.settings;
        let ancestors = AncestorRuns::of(invocation.environment);
        if ancestors.runs.len() >= MAX_NESTING {
            bail!(
                "claude-run runs below itself {MAX_NESTING} times: is the claude on PATH a script that calls it? name the real one with CLAUDE_RUN_CLAUDE"
            );
        }
        let program = Program::find(&settings.command, settings.claude.as_deref())
            .map_err(|error| with_similar_operation(error, &settings.command))?;
        let mut environment = child_environment(&ancestors, invocation.run, config_dir.as_ref().ok());
        let is_bare = program.needs_no_lock();
        let wants_lock = !is_bare && settings.lock_mode != LockMode::PassThrough;
        let config_dir = if is_bare { None } else { usable(config_dir, wants_lock && settings.lock_file.is_none())? };
        let records = config_dir.as_ref().map(|config_dir| RecordStore::of(&config_dir.path));
        if ancestors.has_stale_key(records.as_ref()) {
            environment.retain(|(name, _)| name != lock::KEY_VARIABLE);
        }
        let lock = if wants_lock { lock_request(&invocation, config_dir.as_ref(), &program, ancestors) } else { None };
        let terminal = Terminal::of(settings.stdin);
        let policy = policy_config(settings, terminal, invocation.signals.ignored);
        let output = if is_bare { OutputConfig::default() } else { output_config(settings, &program, &policy, log)? };
        let record_file = settings.record.clone().filter(|_| !is_bare);
        let supervises = policy.hard_limit.is_some() || policy.leftovers == Leftovers::Kill;
        let is_needed = lock.is_some() || supervises || output.captures() || record_file.is_some();
        let recorder = RunRecorder::open(RunInfo {
            run: invocation.run,
            label: settings.label.clone(),
            program: program.path.clone(),
            lock_mode: settings.lock_mode,
            config_dir: config_dir.map(|config_dir| config_dir.path),
            lock_file: lock.as_ref().map(|lock| lock.path.clone()),
            record_file,
        });
        let policy = (!is_bare && is_needed).then_some(policy);
        Ok(Self { program, environment, stdin: settings.stdin, lock, output, recorder, policy })
    }
}

/// Our environment, with the lineage of the run, and the config dir as the child has to see it.
fn child_environment(ancestors: &AncestorRuns, run: RunId, config_dir: Option<&ConfigDir>) -> Vec<(OsString, OsString)> {
    let mut environment: Vec<_> = env::vars_os().filter(|(name, _)| name != RunId::LINEAGE).collect();
    let lineage = [ancestors.runs.as_slice(), &[run.to_string()]].concat().join(",");
    environment.push((RunId::LINEAGE.into(), lineage.into()));
    let for_child = config_dir.map_or(&ForChild::AsItIs, |config_dir| &config_dir.for_child);
    if *for_child != ForChild::AsItIs {
        environment.retain(|(name, _)| name != config_dir::VARIABLE);
    }
    if let ForChild::Set(path) = for_child {
        environment.push((config_dir::VARIABLE.into(), path.clone()));
    }
    environment
}

/// The config dir, if it can be used. If it is not required, an error is only logged: it is claude's affair.
fn usable(config_dir: Result<ConfigDir>, is_required: bool) -> Result<Option<ConfigDir>> {
    match config_dir.and_then(ConfigDir::usable) {
        Err(error) if !is_required => {
            warn!("{error:#}");
            Ok(None)
        }
        config_dir => config_dir.map(Some),
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

fn lock_request(
    invocation: &Invocation,
    config_dir: Option<&ConfigDir>,
    program: &Program,
    ancestors: AncestorRuns,
) -> Option<LockRequest> {
    let Invocation { settings, environment, signals, .. } = invocation;
    Some(LockRequest {
        path: settings.lock_file.clone().or_else(|| Some(config_dir?.path.join(lock::FILE_NAME)))?,
        refresh_only: settings.lock_mode == LockMode::Refresh,
        refreshes: config_dir.map(|config_dir| refreshes(settings, config_dir, environment, program)),
        helper: settings.lock_helper.clone().map(|words| HelperCommand {
            words,
            kill_grace: settings.kill_grace.as_limit(),
            signals: (*signals).clone(),
        }),
        wait: settings.wait,
        conflict_exit_code: settings.conflict_exit_code,
        above: ancestors,
        ignored: signals.ignored,
    })
}

fn policy_config(settings: &Settings, terminal: Terminal, ignored: SigSet) -> PolicyConfig {
    let (hard_limit, leftovers) = match terminal {
        Terminal::Foreground => (DurationSetting::Endless, Leftovers::Keep),
        Terminal::None | Terminal::Background => (HARD_LIMIT, Leftovers::Kill),
    };
    PolicyConfig {
        hard_limit: settings.hard_limit.unwrap_or(hard_limit).as_limit(),
        idle_limit: settings.idle_limit.as_limit(),
        result_grace: settings.result_grace.as_limit(),
        task_grace: settings.task_grace.as_limit(),
        kill_grace: settings.kill_grace.as_limit(),
        leftovers: settings.leftovers.unwrap_or(leftovers),
        group: if terminal == Terminal::None { Group::Own } else { Group::Shared },
        ignored,
    }
}

fn output_config(
    settings: &Settings,
    program: &Program,
    policy: &PolicyConfig,
    log: Option<Arc<LogFile>>,
) -> Result<OutputConfig> {
    let on_terminal = io::stdout().is_terminal();
    let expects_frames = frames::are_expected(&program.argv);
    let requires_result = match settings.require_result {
        RequireResult::Off => false,
        RequireResult::OfClaude => program.is_claude || expects_frames,
        RequireResult::OfCommand => true,
    };
    if requires_result && on_terminal && !settings.pty {
        bail!("--require-result has to read what COMMAND prints, and that goes to a terminal; redirect stdout, or add --pty");
    }
    let uses_frames = policy.result_grace.is_some() || settings.record.is_some();
    OutputConfig::new(settings, requires_result, uses_frames && expects_frames && !on_terminal, log)
}

fn refreshes(settings: &Settings, config_dir: &ConfigDir, environment: Environment, program: &Program) -> Refreshes {
    let config_dir = &config_dir.path;
    // Only `refresh` mode needs it.
    let auth = || Auth::of(environment, config_dir, &program.argv, &Login::None);
    Refreshes {
        config_dir: config_dir.clone(),
        margin: settings.refresh_margin.as_span(),
        ruled_out_by: auth::rules_out_refreshes(environment),
        can_do_without: settings.lock_mode == LockMode::Refresh && auth().is_no_login(),
    }
}

/// Our place at the terminal, by stdin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Terminal {
    None,
    /// Our controlling terminal, with another foreground group. `fg` must later reach the child as well.
    Background,
    /// Our controlling terminal, at which a person sits.
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
}
