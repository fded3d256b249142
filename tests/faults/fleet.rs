//! The agents: which there are, what was done to each, and whether each ended as it may.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::agent::{MARGIN_MS, pid_of};
use crate::board::{Board, now_ms};
use crate::cases::Cases;

/// A wait that is long, a wait that is none, and one in between.
const WAITS: [(&str, Duration); 3] =
    [("0", Duration::ZERO), ("0.3", Duration::from_millis(300)), ("10m", Duration::from_secs(600))];

/// Modes of the agents; "block" is the old shell block, and "settings" what the settings file says.
const MODES: [&str; 9] =
    ["exclusive", "exclusive", "exclusive", "refresh", "refresh", "pass-through", "block", "settings", "settings"];

/// One agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) mode: &'static str,
    began: Instant,
    wait: Duration,
    exit: i32,
    /// A hard limit that it is to meet, or a grace after its result.
    ends_by: Option<i32>,
    ignores_term: bool,
    has_others: bool,
    /// The signals that it or somebody below it was sent.
    pub(crate) signalled: Vec<i32>,
    /// Signals to the agent's claude-run itself.
    pub(crate) wrapper_signalled: Vec<i32>,
    pub(crate) stopped: u32,
    number: usize,
}

/// Signals that end a process, which are sent at random; the last is a real-time one.
pub(crate) const DEADLY: [i32; 6] = [libc::SIGKILL, libc::SIGTERM, libc::SIGTERM, libc::SIGALRM, libc::SIGPWR, 40];

/// All of them.
pub(crate) struct Fleet {
    claude_run: PathBuf,
    config_dir: PathBuf,
    board: Board,
    agents: HashMap<i32, Agent>,
    started: usize,
    modes: BTreeMap<&'static str, u32>,
    ends: BTreeMap<String, u32>,
    /// When the file system was last at fault.
    pub(crate) file_fault: Option<Instant>,
}

impl Fleet {
    pub(crate) fn new(claude_run: &Path, config_dir: &Path, board: &Board) -> Self {
        Self {
            claude_run: claude_run.to_owned(),
            config_dir: config_dir.to_owned(),
            board: board.clone(),
            agents: HashMap::new(),
            started: 0,
            modes: BTreeMap::new(),
            ends: BTreeMap::new(),
            file_fault: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.agents.len()
    }

    pub(crate) fn pids(&self) -> Vec<i32> {
        self.agents.keys().copied().collect()
    }

    pub(crate) fn get(&self, pid: i32) -> Option<&Agent> {
        self.agents.get(&pid)
    }

    pub(crate) fn get_mut(&mut self, pid: i32) -> Option<&mut Agent> {
        self.agents.get_mut(&pid)
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        let mode = MODES[fastrand::usize(..MODES.len())];
        let (wait, bound) = WAITS[[2, 2, 2, 2, 2, 1, 0][fastrand::usize(..7)]];
        let mut flags = String::new();
        let mut ends_by = None;
        let mut options = vec!["--wait", wait, "--kill-after", "0.2"];
        if mode != "settings" {
            options.extend(["--lock", mode]);
        }
        let exit = [0, 0, 3, 7][fastrand::usize(..4)];
        if mode != "block" {
            for (flag, one_in) in [('t', 6), ('d', 12), ('w', 5), ('T', 8), ('n', 10)] {
                if fastrand::u32(..one_in) == 0 {
                    flags.push(flag);
                }
            }
            match fastrand::u32(..20) {
                0 => {
                    flags.push('h');
                    options.extend(["--timeout", "0.2"]);
                    ends_by = Some(124);
                }
                1 => {
                    flags.push('r');
                    options.extend(["--result-grace", "0.1"]);
                    ends_by = Some(0);
                }
                _ => {}
            }
        }
        let margin = format!("{}", MARGIN_MS / 1000);
        let work = fastrand::u32(1..12).to_string();
        let itself = env::current_exe()?;
        let mut command = if mode == "block" {
            let mut bash = Command::new("bash");
            bash.arg("-c").arg(r#"( flock -w 600 9 || exit 75; exec "$0" "$@" ) 9>"$CLAUDE_CONFIG_DIR/session.lock""#);
            bash.arg(&itself);
            bash
        } else {
            let mut command = Command::new(&self.claude_run);
            command.args(&options).args(["--refresh-margin", &margin]).arg(&itself);
            command
        };
        command.args(["agent", &work, &exit.to_string(), &format!("-{flags}")]);
        if flags.contains('r') {
            command.args(["--output-format", "stream-json"]);
        }
        let number = self.started;
        self.started += 1;
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonesuch").env("CLAUDE_CONFIG_DIR", &self.config_dir);
        command
            .env(Board::VARIABLE, self.board.path(""))
            .env("FAULTS_MODE", mode)
            .env("FAULTS_LOCK", mode)
            .env("FAULTS_CLAUDE_RUN", &self.claude_run);
        command.env("FAULTS_BEGAN", now_ms().to_string());
        let errors = fs::File::create(self.board.path(&format!("stderr-{number}")))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        // Root may write where nobody may; an agent is to meet a read-only directory as anybody does.
        // SAFETY: prctl(2) is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                for capability in [1, 2] {
                    libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0); // CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
                }
                Ok(())
            });
        }
        let began = Instant::now();
        let child = command.spawn()?;
        *self.modes.entry(mode).or_default() += 1;
        let agent = Agent {
            mode,
            began,
            wait: bound,
            exit,
            ends_by,
            ignores_term: flags.contains('T'),
            has_others: flags.contains(['t', 'd', 'n']),
            signalled: Vec::new(),
            wrapper_signalled: Vec::new(),
            stopped: 0,
            number,
        };
        self.agents.insert(child.id() as i32, agent); // reaped below, with the orphans that come to us
        Ok(())
    }

    /// Takes in whoever has ended, orphans among them.
    pub(crate) fn reap(&mut self, cases: &mut Cases) {
        let mut status = 0;
        loop {
            // SAFETY: the pointer is to a valid integer. nix does not know the real-time signals that a case may die of.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 1000 + libc::WTERMSIG(status) };
            match self.agents.remove(&pid) {
                Some(agent) => self.has_ended(pid, &agent, code),
                None => cases.has_ended(pid, code),
            }
        }
    }

    fn has_ended(&mut self, pid: i32, agent: &Agent, code: i32) {
        let shown = if code >= 1000 { format!("signal {}", code - 1000) } else { code.to_string() };
        *self.ends.entry(shown.clone()).or_default() += 1;
        let errors_file = self.board.path(&format!("stderr-{}", agent.number));
        let errors = String::from_utf8_lossy(&fs::read(&errors_file).unwrap_or_default()).into_owned();
        let _ = fs::remove_file(errors_file); // it was ours; if it is gone, the better
        if !self.may_end_so(agent, code) || errors.contains("panicked") {
            self.board.violation(&format!("exit code {shown} of {pid}, {agent:?}: {}", errors.trim().replace('\n', " | ")));
        }
        let was_killed = agent.wrapper_signalled.contains(&libc::SIGKILL);
        if agent.mode != "block" && !was_killed && (agent.has_others || fastrand::u32(..8) == 0) {
            for left in below(pid) {
                let about = fs::read_to_string(format!("/proc/{left}/stat")).unwrap_or_default();
                self.board.violation(&format!("pid {left} is left of {pid}, {agent:?}: {about}"));
            }
        }
    }

    /// Every exit code has a reason, and every reason was given.
    fn may_end_so(&self, agent: &Agent, code: i32) -> bool {
        let was_sent = |signal: i32| agent.signalled.contains(&signal) || agent.wrapper_signalled.contains(&signal);
        let met_file_fault = self.file_fault.is_some_and(|at| at >= agent.began);
        // Its child was killed, or was told to end and ignored it.
        let by_kill = was_sent(libc::SIGKILL) || (DEADLY.into_iter().any(was_sent) && agent.ignores_term);
        match code {
            // It was killed itself, or ends by the signal that has ended its child or its wait.
            1009 => by_kill,
            // A child that has not followed another request in time, as one that was stopped meanwhile, gets TERM.
            1015 => DEADLY.into_iter().any(was_sent),
            1000.. => was_sent(code - 1000),
            75 if agent.mode == "block" => DEADLY.into_iter().any(was_sent), // to its flock
            75 => agent.began.elapsed() >= agent.wait && agent.wait < Duration::from_secs(600),
            124 => agent.ends_by == Some(124),
            125 => met_file_fault && agent.mode != "block",
            129.. if agent.mode == "block" => was_sent(code - 128),
            1 => agent.mode == "block" && met_file_fault,
            _ if code == agent.exit => agent.ends_by.is_none_or(|code| code == agent.exit),
            _ => agent.ends_by == Some(code),
        }
    }

    pub(crate) fn told(&self) -> String {
        let modes: Vec<_> = self.modes.iter().map(|(mode, count)| format!("{count} {mode}")).collect();
        format!("{} ({})", self.started, modes.join(", "))
    }

    pub(crate) fn ends(&self) -> String {
        let ends: Vec<_> = self.ends.iter().map(|(end, count)| format!("{count} with {end}")).collect();
        ends.join(", ")
    }
}

/// Who lives and says that it is below the run of the claude-run `pid`.
pub(crate) fn below(pid: i32) -> Vec<i32> {
    let is_below = |process: &i32| {
        let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let mut variables = environment.split(|&byte| byte == 0).map(String::from_utf8_lossy);
        let lineage = variables.find_map(|variable| variable.strip_prefix("CLAUDE_RUN_LINEAGE=").map(str::to_owned));
        lineage.is_some_and(|lineage| lineage.split(',').any(|run| pid_of(run) == pid.to_string()))
    };
    processes().into_iter().filter(is_below).collect()
}

/// Every process of this namespace but us.
pub(crate) fn processes() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| pid != 1).collect()
}
