//! A status for programs. `schema/status.json` describes it.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::super::checks::stopped_processes;
use super::super::text;
use super::Status;
use crate::claude::refresh_locks::{RefreshLock, Standing};
use crate::lock::{Holder, Process};
use crate::records::{FinishedRun, RunRecord, time};

impl Status<'_> {
    pub(super) fn to_json(&self) -> Value {
        let runs = |records: &[RunRecord]| records.iter().map(text::run_json).collect::<Value>();
        let (state, expires, _) = self.token();
        let mut slots = self.fleet.slots.to_json();
        slots["bound"] = self.factory.setting_json(&self.factory.slots);
        let pid = |waiter: &Result<RunRecord, i32>| match waiter {
            Ok(run) => json!({"pid": run.pid, "run": run.run}),
            Err(pid) => json!({"pid": pid, "run": null}),
        };
        // Moved and not copied, as json! would: there may be a thousand runs.
        Value::from_iter([
            ("config_dir", self.factory.config_dir.to_string_lossy().into()),
            ("storage", self.factory.storage.dir.to_string_lossy().into()),
            ("lock_file", self.factory.lock_file.to_string_lossy().into()),
            ("mode", self.factory.mistake.is_none().then(|| text::setting_json(&self.factory.mode)).into()),
            ("not_known", self.fleet.not_known().into()),
            ("holders", self.fleet.holders.iter().map(holder_json).collect()),
            ("waiting", self.fleet.waiting.iter().flatten().map(text::run_json).collect()),
            ("waiting_without_record", self.fleet.waiting.iter().filter_map(|waiter| waiter.as_ref().err().copied()).collect()),
            ("queue", self.fleet.waiting.iter().map(pid).collect()),
            ("running", runs(&self.fleet.running)),
            ("slots", slots),
            ("orphaned", runs(&self.fleet.orphaned)),
            ("elsewhere", runs(&self.fleet.elsewhere)),
            ("refresh_locks", self.refresh_locks.iter().map(refresh_lock_json).collect()),
            ("auth", self.auth.name.into()),
            ("token", json!({"state": state, "expires": expires.map(time)})),
            ("last", self.last.iter().map(last_run_json).collect()),
            ("trouble", self.trouble().into()),
        ])
    }
}

fn holder_json(holder: &Holder) -> Value {
    let process = |process: &Process| {
        let command = text::command_line(process.pid);
        json!({"pid": process.pid, "name": process.name, "command": command})
    };
    let first = holder.processes().first();
    let run = holder.run();
    let pid = if let Holder::Run(run) = holder { Some(run.pid) } else { first.map(|process| process.pid) };
    let name = run.map(|run| run.label.as_ref().unwrap_or(&run.program)).or(first.map(|process| &process.name));
    json!({
        "pid": pid,
        "name": name,
        "stopped": stopped_processes(holder).is_some(),
        "orphaned": matches!(holder, Holder::Orphan(..)),
        "record": run.map(text::run_json),
        "processes": holder.processes().iter().map(process).collect::<Value>(),
    })
}

fn refresh_lock_json(lock: &RefreshLock) -> Value {
    let state = match lock.standing(SystemTime::now()) {
        Standing::NotKnown => "unknown",
        Standing::Free => "free",
        Standing::Live | Standing::OwnerDead(_) => "live",
        Standing::Stale(_) => "stale",
        Standing::Stuck(_) => "stuck",
    };
    let owner = lock.owner.as_ref().map(|owner| json!({"pid": owner.pid, "alive": owner.lives}));
    json!({"path": lock.path.to_string_lossy(), "state": state, "age_ms": lock.touched.map(text::age_json), "owner": owner})
}

fn last_run_json(run: &FinishedRun) -> Value {
    let FinishedRun { run: id, label, outcome, exit_code, .. } = run;
    json!({"run": id, "label": label, "outcome": outcome, "exit_code": exit_code, "ended": time(run.ended())})
}
