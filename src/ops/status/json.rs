//! A status for programs.

use std::borrow::Cow;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};

use super::super::checks::stopped_processes;
use super::super::text::{self, RunView};
use super::Status;
use crate::claude::refresh_locks::{RefreshLock, Standing};
use crate::lock::{Holder, Process};
use crate::records::{FinishedRun, RunRecord, time};

/// A status for programs: `schema/status.json` describes its fields.
#[derive(Serialize)]
pub(super) struct StatusJson<'a> {
    config_dir: Cow<'a, str>,
    storage: Cow<'a, str>,
    lock_file: Cow<'a, str>,
    mode: Option<Value>,
    not_known: Vec<&'static str>,
    holders: Vec<Value>,
    waiting: Vec<RunView<'a>>,
    waiting_without_record: Vec<i32>,
    queue: Vec<Place<'a>>,
    running: Vec<RunView<'a>>,
    slots: Value,
    orphaned: Vec<RunView<'a>>,
    elsewhere: Vec<RunView<'a>>,
    refresh_locks: Vec<Value>,
    auth: &'a str,
    token: Value,
    last: Vec<Value>,
    trouble: &'a [String],
}

/// A place in the queue.
#[derive(Serialize)]
struct Place<'a> {
    pid: i32,
    run: Option<&'a str>,
}

impl<'a> StatusJson<'a> {
    pub(super) fn of(status: &'a Status) -> Self {
        let Status { factory, fleet, .. } = status;
        let (state, expires, _) = status.token();
        let mut slots = fleet.slots.to_json();
        slots["bound"] = factory.setting_json(&factory.slots);
        let place = |waiter: &'a Result<RunRecord, i32>| match waiter {
            Ok(run) => Place { pid: run.pid, run: Some(&run.run) },
            Err(pid) => Place { pid: *pid, run: None },
        };
        Self {
            config_dir: factory.config_dir.to_string_lossy(),
            storage: factory.storage.dir.to_string_lossy(),
            lock_file: factory.lock_file.to_string_lossy(),
            mode: factory.mistake.is_none().then(|| text::setting_json(&factory.mode)),
            not_known: fleet.not_known(),
            holders: fleet.holders.iter().map(holder_json).collect(),
            waiting: RunView::of_each(fleet.waiting.iter().flatten()),
            waiting_without_record: fleet.waiting.iter().filter_map(|waiter| waiter.as_ref().err().copied()).collect(),
            queue: fleet.waiting.iter().map(place).collect(),
            running: RunView::of_each(&fleet.running),
            slots,
            orphaned: RunView::of_each(&fleet.orphaned),
            elsewhere: RunView::of_each(&fleet.elsewhere),
            refresh_locks: status.refresh_locks.iter().map(refresh_lock_json).collect(),
            auth: status.auth.name,
            token: json!({"state": state, "expires": expires.map(time)}),
            last: status.last.iter().map(last_run_json).collect(),
            trouble: status.trouble(),
        }
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
        "record": run.map(RunView::of),
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
    json!({"path": lock.path.to_string_lossy(), "state": state, "age_ms": lock.touched.map(text::age_ms), "owner": owner})
}

fn last_run_json(run: &FinishedRun) -> Value {
    let FinishedRun { run: id, label, outcome, exit_code, .. } = run;
    json!({"run": id, "label": label, "outcome": outcome, "exit_code": exit_code, "ended": time(run.ended())})
}
