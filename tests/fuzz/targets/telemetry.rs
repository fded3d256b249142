//! Any line as one of claude's telemetry, of our history and of a run record: never a panic, and nothing is read that the rest
//! of the program cannot show.
#![no_main]

use claude_run::claude::telemetry::RefreshEvent;
use claude_run::records::{FinishedRun, RunRecord};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    if let Ok(Some(event)) = RefreshEvent::parse(line) {
        let _ = event.meaning();
    }
    let _ = FinishedRun::from_json(line);
    let _ = RunRecord::from_json(line);
});
