//! claude's daemon, to which `claude --bg` leaves its sessions. They run outside of whoever started them, and of every lock here.

use std::path::Path;

use serde::Deserialize;

use crate::sys::fs::read_bounded;
use crate::sys::proc::Stat;

/// Its lock file in the config dir, as 2.1.332 writes it. The daemon removes it when it ends, unless it is killed.
const FILE: &str = "daemon.lock";

const MAX_FILE: u64 = 64 << 10;

/// A daemon that lives in our PID namespace.
#[derive(Debug, Deserialize)]
pub(crate) struct Daemon {
    pub(crate) pid: i32,
    /// Start time, in clock ticks since boot, as /proc has it.
    #[serde(rename = "procStart")]
    start: String,
}

impl Daemon {
    /// The daemon of `config_dir`, if it is seen to live.
    pub(crate) fn of(config_dir: &Path) -> Option<Self> {
        let file: Self = serde_json::from_slice(&read_bounded(&config_dir.join(FILE), MAX_FILE).ok()?).ok()?;
        let lives = Stat::read(file.pid).is_some_and(|stat| !stat.is_dead() && file.start == stat.start.to_string());
        lives.then_some(file)
    }
}
