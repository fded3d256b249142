//! A factory's machine: `scripts/agent-sdk.sh` sourced in one bash, with the system's tools or with busybox's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::env::{Ended, Env, Running, binary, fake_claude, needs};

pub(crate) const SDK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/agent-sdk.sh");

/// A machine of a factory: one bash, one set of tools, the binary, the fake claude.
pub(crate) struct Machine {
    pub(crate) env: Env,
    shell: String,
    path: String,
}

impl Machine {
    pub(crate) fn new(shell: &str, has_busybox: bool) -> Self {
        let env = Env::new();
        let bin = env.path("bin");
        fs::create_dir_all(env.path("tools")).expect("a directory");
        fs::create_dir(&bin).expect("a directory");
        for (name, program) in [("claude", fake_claude()), ("claude-run", binary())] {
            symlink(program, bin.join(name)).expect("a link");
        }
        let tools = if has_busybox {
            // What a factory's own scripts call, and busybox has not, or has less of.
            for name in ["flock", "jq", "patch"] {
                symlink(Path::new("/usr/bin").join(name), bin.join(name)).expect("a link");
            }
            let mut install = env.command("busybox");
            assert!(install.args(["--install", "-s"]).arg(env.path("tools")).status().expect("busybox").success());
            env.path("tools").display().to_string()
        } else {
            "/usr/bin:/bin".to_owned()
        };
        Self { path: format!("{}:{tools}", bin.display()), env, shell: which(shell).expect("a shell") }
    }

    /// `script` as it stands, with claude and claude-run on PATH.
    pub(crate) fn shell(&self, script: &str) -> Command {
        let mut bash = self.env.command(&self.shell);
        bash.args(["-c", script]).env("PATH", &self.path);
        bash
    }

    /// `script` under `set -euo pipefail`, with a LOGFILE and the function sourced.
    pub(crate) fn sourced(script: &str) -> String {
        format!("set -euo pipefail\n. '{SDK}'\nLOGFILE=$PWD/log\n{script}")
    }

    pub(crate) fn start(&self, script: &str) -> Running {
        Running::start(self.shell(&Self::sourced(script)))
    }

    pub(crate) fn run(&self, script: &str) -> Ended {
        self.start(script).end()
    }

    /// What `claude_run_with_watchdog claude -p STEPS` of a call site gives.
    pub(crate) fn call(&self, steps: &str) -> Ended {
        self.run(&call(steps))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.env.path("log")).unwrap_or_default()
    }

    pub(crate) fn settings(&self, text: &str) {
        fs::create_dir_all(self.env.home().join(".claude")).expect("a config dir");
        fs::write(self.env.home().join(".claude/claude-run.toml"), text).expect("a file");
    }
}

pub(crate) fn which(program: &str) -> Option<String> {
    let output = Command::new("sh").args(["-c", "command -v \"$0\"", program]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Every kind of machine: bash 4.4 as well, where one is on PATH under that name.
pub(crate) fn machines() -> Vec<Machine> {
    if !["busybox", "jq", "patch"].into_iter().all(needs) {
        return Vec::new();
    }
    let old = which("bash-4.4").map(|_| Machine::new("bash-4.4", true));
    if old.is_none() {
        eprintln!("no bash-4.4 on PATH: bash {} alone", which("bash").unwrap_or_default());
    }
    [Machine::new("bash", false), Machine::new("bash", true)].into_iter().chain(old).collect()
}

/// A call site as the factory's look.
pub(crate) fn call(steps: &str) -> String {
    let site = r#"run_dir=$PWD; output=$(cd "$run_dir" && claude_run_with_watchdog claude "${args[@]}" 2>>"$LOGFILE") && rc=0 || rc=$?; echo "rc $rc"; echo "$output""#;
    format!("args=(-p \"{steps}\" --output-format stream-json); {site}")
}

/// Whether a process has `mark` in its command line.
pub(crate) fn is_there(mark: &str) -> bool {
    fs::read_dir("/proc").expect("/proc").flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).any(|word| word == mark.as_bytes())
    })
}
