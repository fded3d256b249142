//! Decides what an invocation does: the settings, seen in the light of config dir, terminal and PATH.

use std::env;
use std::io::{self, IsTerminal, stdin};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use nix::unistd::{getpgrp, tcgetpgrp};
use tracing::warn;

use crate::claude::auth::Invocation;
use crate::claude::config_dir::{self, ConfigDir};
use crate::claude::frames;
use crate::claude::program::{self, Program, ProgramError};
use crate::config::cli::similar_operation;
use crate::config::duration::DurationSetting;
use crate::config::settings::{
    Environment, HARD_LIMIT, Leftovers, LockMode, RequireResult, Settings, Slots, Stdin, unknown_variables,
};
use crate::lock::{self, AncestorRuns, HelperCommand, LockRequest, Refreshes, SlotRequest};
use crate::logging::LogFile;
use crate::records::{RecordStore, RunInfo, RunRecorder};
use crate::run_id::RunId;
use crate::supervisor::output::OutputConfig;
use crate::supervisor::policy::{Group, PolicyConfig};
use crate::supervisor::{Launch, Role, Supervision};
use crate::sys::signal::SigSet;

/// Decisions about an invocation that runs a program.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) run: Supervision,
    /// A slot, if the run needs one.
    pub(crate) slot: Option<SlotRequest>,
    /// The session lock, if the run needs it.
    pub(crate) lock: Option<LockRequest>,
    pub(crate) recorder: RunRecorder,
    /// False if nothing has to be watched: claude-run executes the program in its own place.
    pub(crate) supervises: bool,
}

/// Our environment.
pub(crate) const ENVIRONMENT: Environment = &|name| env::var_os(name);

impl Plan {
    /// Decides, and checks all that can be known before anything is started. An error is a `ProgramError` if the program cannot be.
    pub(crate) fn new(
        settings: Settings,
        run: RunId,
        config_dir: Result<ConfigDir>,
        log: Option<Arc<LogFile>>,
    ) -> Result<Self> {
        let ancestors = AncestorRuns::of(ENVIRONMENT);
        ensure!(
            !ancestors.are_too_many(),
            "claude-run runs below itself {MAX_NESTING} times: is the claude on PATH a script that calls it, or another claude-run? name the real one with CLAUDE_RUN_CLAUDE",
            MAX_NESTING = lock::MAX_NESTING
        );
        let mut launch = launch(&settings, ancestors.lineage_with(run), config_dir.as_ref().ok())?;
        let is_bare = launch.program.needs_no_lock();
        let wants_lock = !is_bare && settings.lock_mode != LockMode::PassThrough;
        if let Some(path) = settings.lock_file.as_ref().filter(|path| wants_lock && path.is_relative()) {
            let path = path.display();
            warn!("--lock-file={path} is relative: every working directory has a session lock of its own; make it absolute");
        }
        let wants_slot = !is_bare && settings.slots != Slots::Unlimited;
        let is_required = wants_slot || (wants_lock && settings.lock_file.is_none());
        let config_dir = if is_bare { None } else { usable(config_dir, is_required)? };
        let claude = config_dir.clone().map(|config_dir| Invocation::of(&launch.program, ENVIRONMENT, config_dir));
        let config_dir = config_dir.map(|config_dir| config_dir.path);
        let records = config_dir.as_deref().map(RecordStore::of);
        if ancestors.has_stale_key(records.as_ref()) {
            launch.set(lock::KEY_VARIABLE, None);
        }
        let slot = config_dir.as_deref().and_then(|config_dir| slot_request(&settings, config_dir, &ancestors));
        let storage = claude.as_ref().map(Invocation::storage);
        let margin = settings.refresh_margin.as_span();
        let refreshes = claude.zip(storage.clone()).map(|(claude, storage)| Refreshes { claude, storage, margin });
        let lock_file = settings.lock_file.clone().or_else(|| Some(config_dir.as_deref()?.join(lock::FILE_NAME)));
        let lock = lock_file.filter(|_| wants_lock).map(|path| lock_request(&settings, path, refreshes, ancestors));
        let policy = policy_config(&settings, &launch);
        let output = if is_bare { OutputConfig::default() } else { output_config(&settings, &launch.program, log)? };
        let record_file = settings.record.filter(|_| !is_bare);
        let has_limits = policy.hard_limit.is_some() || policy.leftovers == Leftovers::Kill;
        let supervises =
            !is_bare && (slot.is_some() || lock.is_some() || has_limits || output.captures() || record_file.is_some());
        let recorder = RunRecorder::open(RunInfo {
            run,
            label: settings.label.filter(|label| !label.is_empty()), // as of a script whose variable is empty
            program: launch.program.path.clone(),
            lock_mode: settings.lock_mode,
            records,
            lock_file: lock.as_ref().map(|lock| lock.path.clone()),
            record_file,
        });
        Ok(Self {
            run: Supervision { launch, policy, output, slot: None, lock: None, storage },
            slot,
            lock,
            recorder,
            supervises,
        })
    }
}

/// COMMAND, to be started in our environment, with its `lineage` and the config dir in it.
fn launch(settings: &Settings, lineage: String, config_dir: Option<&ConfigDir>) -> Result<Launch> {
    let environment: Vec<_> = env::vars_os().collect();
    unknown_variables(&environment).for_each(|warning| warn!("{warning}"));
    let program = find_program(settings)?;
    let mut launch = Launch { program, environment, stdin: settings.stdin, role: Role::Command };
    launch.set(RunId::LINEAGE, Some(lineage.into()));
    let variable = config_dir.map(|config_dir| config_dir.variable(ENVIRONMENT));
    if let Some(value) = variable.filter(|value| *value != ENVIRONMENT(config_dir::VARIABLE)) {
        launch.set(config_dir::VARIABLE, value);
    }
    Ok(launch)
}

/// Finds COMMAND. If it looks like an operation, the error says so.
fn find_program(settings: &Settings) -> Result<Program, ProgramError> {
    let found = Program::find(&settings.command, settings.claude.as_deref());
    let Err(ProgramError::NotFound(mut message)) = found else { return found };
    let name = settings.command.first().and_then(|name| name.to_str()).filter(|name| !name.contains('/'));
    if let Some(operation) = name.and_then(similar_operation) {
        message.push_str(&format!("; did you mean `claude-run {operation}`?"));
    }
    if let Some(name) = name.filter(|name| program::is_command_of_claude(name)) {
        message.push_str(&format!("; claude's own command is `claude-run claude {name} …`"));
    }
    Err(ProgramError::NotFound(message))
}

/// The config dir, if it can be used. If it is not required, an error is only logged: it is claude's affair.
fn usable(config_dir: Result<ConfigDir>, is_required: bool) -> Result<Option<ConfigDir>> {
    match config_dir.and_then(|config_dir| config_dir.usable(ENVIRONMENT)) {
        Err(error) if !is_required => {
            warn!("{error:#}");
            Ok(None)
        }
        config_dir => Ok(Some(config_dir?)),
    }
}

fn slot_request(settings: &Settings, config_dir: &Path, above: &AncestorRuns) -> Option<SlotRequest> {
    let Slots::AtMost(of) = settings.slots else { return None };
    Some(SlotRequest {
        store: RecordStore::of(config_dir),
        of,
        file: settings.slots_file.clone(),
        session_lock: settings.lock_file.clone().unwrap_or_else(|| config_dir.join(lock::FILE_NAME)),
        wait: settings.wait,
        conflict_exit_code: settings.conflict_exit_code,
        above: above.clone(),
    })
}

fn lock_request(settings: &Settings, path: PathBuf, refreshes: Option<Refreshes>, above: AncestorRuns) -> LockRequest {
    LockRequest {
        path,
        refresh_only: settings.lock_mode == LockMode::Refresh,
        refreshes,
        helper: settings.lock_helper.clone().map(|words| HelperCommand { words, kill_grace: settings.kill_grace.as_limit() }),
        wait: settings.wait,
        conflict_exit_code: settings.conflict_exit_code,
        above,
    }
}

fn policy_config(settings: &Settings, launch: &Launch) -> PolicyConfig {
    // Only of our controlling terminal.
    let foreground = tcgetpgrp(stdin()).ok().filter(|_| settings.stdin == Stdin::Inherit);
    let (hard_limit, leftovers) = match foreground {
        // Attended: a person sits there, and talks to it.
        Some(group) if group == getpgrp() && !launch.program.is_headless() => (DurationSetting::Endless, Leftovers::Keep),
        _ => (HARD_LIMIT, Leftovers::Kill),
    };
    PolicyConfig {
        hard_limit: settings.hard_limit.unwrap_or(hard_limit).as_limit(),
        idle_limit: settings.idle_limit.as_limit(),
        result_grace: settings.result_grace.as_limit(),
        task_grace: settings.task_grace.as_limit(),
        kill_grace: settings.kill_grace.as_limit(),
        leftovers: settings.leftovers.unwrap_or(leftovers),
        // Also in the background: `fg` must later reach the child as well.
        group: if foreground.is_some() { Group::Shared } else { Group::Own },
        streams_input: settings.stdin == Stdin::Inherit && frames::input_is_streamed(&launch.program.argv),
        ignored: SigSet::empty(), // known when the handlers are there
    }
}

fn output_config(settings: &Settings, program: &Program, log: Option<Arc<LogFile>>) -> Result<OutputConfig> {
    let on_terminal = io::stdout().is_terminal();
    let expects_frames = frames::are_expected(&program.argv);
    let requires_result = match settings.require_result {
        RequireResult::Off => false,
        RequireResult::OfClaude => expects_frames && (settings.pty || !on_terminal),
        RequireResult::OfCommand => true,
    };
    if requires_result && on_terminal && !settings.pty {
        bail!("--require-result has to read what COMMAND prints, and that goes to a terminal; redirect stdout, or add --pty");
    }
    if settings.idle_limit.as_limit().is_some() && program.is_claude && frames::come_all_at_once(&program.argv) {
        warn!(
            "claude prints nothing before its end in this output format, so --idle-timeout limits the whole run; --output-format stream-json prints as it works"
        );
    }
    let uses_frames = settings.result_grace.as_limit().is_some() || settings.record.is_some();
    OutputConfig::new(settings, requires_result, uses_frames && expects_frames && !on_terminal, log)
}
