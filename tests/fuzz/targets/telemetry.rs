//! Any line as one of claude's telemetry, of our history and of a run record: never a panic, and of what is read nothing is
//! beyond what the rest of the program can show.
#![no_main]

use claude_run::claude::telemetry::RefreshEvent;
use claude_run::records::{FinishedRun, RunRecord};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    if let Some(Ok(event)) = RefreshEvent::parse(line) {
        let _ = event.meaning();
    }
    let _ = FinishedRun::from_json(line);
    let _ = RunRecord::from_json(line);
});
