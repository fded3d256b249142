//! What is kept of finished runs: one JSON line each, of when, how long and how it ended. Never a prompt, never a token, and
//! never a reason for a run to fail.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::gethostname;
use serde_json::{Map, Value};
use tracing::warn;

use crate::claude::frames::LastResult;
use crate::diag::open_to_append;
use crate::outcome::Outcome;
use crate::run_id::RunId;
use crate::settings::LockMode;

/// One run, as far as it has come.
#[derive(Debug)]
pub struct Record {
    /// Its name.
    pub run: RunId,
    /// What its caller calls it.
    pub label: Option<String>,
    /// What it runs.
    pub program: PathBuf,
    /// When the session lock is held.
    pub lock_mode: LockMode,
    began_at: SystemTime,
    began: Instant,
    /// How long it has waited for the lock: until it was had, or until it was given up.
    pub waited: Option<Duration>,
    /// From the start of the child to the end of its tree.
    pub ran: Option<Duration>,
    /// From having the lock to letting it go.
    pub held: Option<Duration>,
    /// What claude's last result frame says.
    pub last_result: Option<LastResult>,
}

impl Record {
    /// A run that begins now.
    pub fn begin(run: RunId, label: Option<String>, program: &Path, lock_mode: LockMode) -> Self {
        let (began_at, began) = (SystemTime::now(), Instant::now());
        let program = program.to_owned();
        Self { run, label, program, lock_mode, began_at, began, waited: None, ran: None, held: None, last_result: None }
    }

    /// The wait for the lock is over.
    pub fn has_waited(&mut self) {
        self.waited = Some(self.began.elapsed());
    }

    /// Appends the line of a run that ended with `outcome` to the file `path`, in one write(2); a new file is for its owner
    /// alone. A failure is warned of.
    pub fn append(&self, path: &Path, outcome: Outcome) {
        if let Err(error) =
            open_to_append(path).and_then(|mut file| file.write_all(format!("{}\n", self.to_json(outcome)).as_bytes()))
        {
            warn!("cannot write the record {}: {error}", path.display());
        }
    }

    fn to_json(&self, outcome: Outcome) -> Value {
        let milliseconds = |span: Option<Duration>| span.map(|span| span.as_millis() as u64);
        let result = self.last_result.as_ref();
        let fields: [(&str, Value); 20] = [
            ("run", self.run.to_string().into()),
            ("label", self.label.clone().into()),
            ("host", gethostname().ok().map(|host| host.to_string_lossy().into_owned()).into()),
            ("pid", self.run.pid.into()),
            ("version", env!("CARGO_PKG_VERSION").into()),
            ("program", self.program.to_string_lossy().into()),
            ("lock", self.lock_mode.name().into()),
            ("began", humantime::format_rfc3339_millis(self.began_at).to_string().into()),
            ("total_ms", milliseconds(Some(self.began.elapsed())).into()),
            ("wait_ms", milliseconds(self.waited).into()),
            ("hold_ms", milliseconds(self.held).into()),
            ("run_ms", milliseconds(self.ran).into()),
            ("outcome", outcome.name().into()),
            ("exit_code", outcome.exit_code().into()),
            ("session_id", result.and_then(|result| result.session_id.clone()).into()),
            ("subtype", result.and_then(|result| result.subtype.clone()).into()),
            ("is_error", result.map(|result| result.is_error).into()),
            ("turns", result.and_then(|result| result.turns).into()),
            ("claude_ms", result.and_then(|result| result.duration_ms).into()),
            ("cost_usd", result.and_then(|result| result.cost_usd).into()),
        ];
        Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
    }
}
