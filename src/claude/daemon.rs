//! claude's daemon, to which `claude --bg` leaves its sessions. They run outside of whoever started them, and of every lock here.

use std::path::Path;

use super::json::Object;
use crate::sys::fs::read_bounded;
use crate::sys::proc::lives;

/// Its lock file in the config dir, as 2.1.332 writes it. The daemon removes it when it ends, unless it is killed.
const FILE: &str = "daemon.lock";

const MAX_FILE: u64 = 64 << 10;

/// A daemon that lives in our PID namespace.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) pid: i32,
}

impl Daemon {
    /// The daemon of `config_dir`, if it is seen to live.
    pub(crate) fn of(config_dir: &Path) -> Option<Self> {
        let file = Object::parse(&read_bounded(&config_dir.join(FILE), MAX_FILE).ok()?).ok()?;
        // The start time is in clock ticks since boot, as /proc has it.
        let (pid, start) = (file.get("pid")?, file.text("procStart")?);
        (lives(pid, |stat| start == stat.start.to_string()) == Some(true)).then_some(Self { pid })
    }
}
