//! A refresh before the start. claude that ends by itself in mid-refresh, over a mistake in its arguments for one, loses its login. So where
//! the session lock is held for a refresh that is due, a command of the same claude makes it first, one that is known to wait for it; the
//! run then begins on a fresh token. Whatever comes of that, the run is started as it would have been without.

use std::time::{Duration, Instant};

use anyhow::Result;
use tracing::{info, warn};

use super::super::output::OutputConfig;
use super::super::policy::PolicyConfig;
use super::{Supervision, Supervisor};
use crate::claude::credentials::Login;
use crate::claude::storage::ClaudeStorage;
use crate::config::duration::show;
use crate::events::EventQueue;
use crate::lock::{self, Acquisition, AwaitedRefresh, LockRequest};
use crate::outcome::Outcome;
use crate::records::RunRecorder;

/// Longest time for it, and 15 s more while it holds a refresh lock: endpoints take a second, and 20 s are waited for by claude.
const LIMIT: Duration = Duration::from_secs(30);

/// Time from its TERM to its KILL.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// Refreshes the token before `run`, if the lock is held for that and this claude is known to have a command for it. Gives the outcome if
/// the run is not to be started any more: a signal has come, or the lock is lost. `request` is that of the lock.
pub(crate) fn refresh_first(
    run: &mut Supervision,
    request: Option<&LockRequest>,
    recorder: &mut RunRecorder,
    events: &mut EventQueue,
) -> Result<Option<Outcome>> {
    let refresh = run.lock.as_ref().and_then(|lock| lock.refresh.as_ref());
    let version = refresh.and_then(AwaitedRefresh::refreshing_version);
    let Some(launch) = version.and_then(|version| run.launch.refresher(version)) else { return Ok(None) };
    if run.storage.as_ref().is_some_and(ClaudeStorage::lacks_room) {
        warn!(name: "refresh.first", "not refreshing the token before the start: it could not be saved");
        return Ok(None);
    }
    info!(name: "refresh.first", "claude's token is due: refreshing it before the start");
    let policy = PolicyConfig { hard_limit: Some(LIMIT), kill_grace: Some(KILL_GRACE), ..PolicyConfig::default() };
    let (slot, lock, storage) = (run.slot.take(), run.lock.take(), run.storage.clone());
    let refresher = Supervision { launch, policy, output: OutputConfig::default(), slot, lock, storage };
    let began = Instant::now();
    let mut supervisor = Supervisor::start(refresher, recorder, events)?;
    let outcome = supervisor.run()?;
    supervisor.check_awaited_refresh();
    supervisor.recorder.on_refreshed();
    let not_started = match (supervisor.requests.last(), outcome) {
        (Some(signal), _) => {
            warn!(name: "lock.interrupted", "{signal} came while claude refreshed its token; nothing was started");
            Some(Outcome::EndedWaiting(signal.number()))
        }
        (None, Outcome::LockLost) => Some(outcome),
        (None, _) => None,
    };
    if not_started.is_none() {
        supervisor.report_first_refresh(outcome, &show(began.elapsed()));
    }
    let not_started = match (not_started, request, &supervisor.lock) {
        (None, Some(request), Some(guard)) => match lock::wait_again(request, guard, supervisor.recorder, supervisor.events)? {
            Some(Acquisition::Interrupted(signal)) => Some(Outcome::EndedWaiting(signal.number())),
            Some(_) => Some(Outcome::LockLost),
            None => None,
        },
        (not_started, ..) => not_started,
    };
    if not_started.is_some() {
        supervisor.release_lock();
    }
    (run.slot, run.lock) = (supervisor.slot.take(), supervisor.lock.take());
    Ok(not_started)
}

impl Supervisor<'_> {
    /// Says what came of the refresh, `after` how long.
    fn report_first_refresh(&self, outcome: Outcome, after: &str) {
        if self.awaited_refresh().and_then(AwaitedRefresh::refreshing_version).is_none() {
            return info!(name: "refresh.first", "claude has refreshed its token in {after}");
        }
        let how = match self.storage.as_ref().map(|storage| Login::read(&storage.credentials())) {
            Some(Login::Unclear(why)) => format!(".credentials.json {why}"),
            _ => format!("{} {}", outcome.name(), outcome.exit_code()),
        };
        warn!(name: "refresh.first", "claude has not refreshed its token within {after} ({how}); starting all the same");
    }
}
