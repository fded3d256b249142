//! Shared by the tests about refreshes: a login, the stand-in for the token endpoint, and agents that refresh.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::env::{Env, Running, binary, fake_claude, oauth_stand_in};

/// Lifetime, in seconds, of an expired token.
pub(crate) const EXPIRED: i64 = -100;
/// Lifetime, in seconds, of a fresh token.
pub(crate) const FRESH: i64 = 8 * 3600;

impl Env {
    pub(crate) fn config_dir(&self) -> PathBuf {
        self.home().join(".claude")
    }

    pub(crate) fn credentials(&self) -> PathBuf {
        self.config_dir().join(".credentials.json")
    }

    /// Writes a login whose token expires in so many seconds, as claude replaces it: by a rename.
    pub(crate) fn log_in(&self, expires_in: i64) {
        fs::create_dir_all(self.config_dir()).expect("a config dir");
        let temporary = self.config_dir().join("temporary");
        fs::write(&temporary, credentials(expires_in)).expect("credentials");
        fs::rename(temporary, self.credentials()).expect("credentials");
    }

    /// claude-run in `mode`, with a fake claude that finds `stand_in`.
    pub(crate) fn agent(&self, stand_in: &StandIn, mode: &str, options: &[&str], steps: &str) -> Running {
        let mut command = self.command(binary());
        command.env("FAKE_API", &stand_in.address).args(["--lock", mode, "--claude"]).arg(fake_claude());
        command.args(options).args(["--", "-p", steps]);
        Running::start(command)
    }

    /// An agent in a "container": its config dir is bind-mounted at a path of its own, whose sibling is not shared.
    pub(crate) fn agent_in_container(&self, stand_in: &StandIn, mode: &str, steps: &str, number: usize) -> Option<Running> {
        let config_dir = self.path(&format!("container-{number}/config"));
        fs::create_dir_all(&config_dir).expect("a directory");
        let mut command = self.command("unshare");
        command.arg(mount_namespace()?).args([
            "sh",
            "-c",
            r#"mount --bind "$0" "$1" && CLAUDE_CONFIG_DIR=$1 && export CLAUDE_CONFIG_DIR && shift && exec "$@""#,
        ]);
        command.args([self.config_dir(), config_dir]).arg(binary()).args(["--lock", mode, "--claude"]).arg(fake_claude());
        command.env("FAKE_API", &stand_in.address).args(["--", "-p", steps]);
        Some(Running::start(command))
    }
}

/// The text of a credentials file.
pub(crate) fn credentials(expires_in: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_millis() as i64;
    let at = now + expires_in * 1000;
    format!(
        r#"{{"claudeAiOauth":{{"accessToken":"at-0","refreshToken":"rt-0","expiresAt":{at},"scopes":["user:inference"]}}}}"#
    )
}

/// Flags with which unshare(1) can make a mount namespace here.
pub(crate) fn mount_namespace() -> Option<&'static str> {
    let can = |flags: &&str| {
        let mut unshare = Command::new("unshare");
        unshare.args([flags, "mount", "--bind", "/usr", "/usr"]).stderr(Stdio::null());
        unshare.status().is_ok_and(|status| status.success())
    };
    let flags = ["-m", "-rm"].into_iter().find(can);
    if flags.is_none() {
        assert!(std::env::var_os("CI").is_none(), "mount namespaces are refused here, where every test has to run");
        eprintln!("SKIPPED: mount namespaces are refused on this machine");
    }
    flags
}

/// Sets the time at which `dir` was last touched to so many seconds ago.
pub(crate) fn age(dir: &Path, seconds: u64) {
    let at = SystemTime::now() - Duration::from_secs(seconds);
    fs::File::open(dir).and_then(|dir| dir.set_modified(at)).expect("a time");
}

/// Running stand-in for the token endpoint.
pub(crate) struct StandIn {
    running: Running,
    pub(crate) address: String,
}

impl StandIn {
    pub(crate) fn start(env: &Env, options: &[&str]) -> Self {
        let mut command = env.command(oauth_stand_in());
        command.args(options).stdin(Stdio::piped());
        let running = Running::start(command);
        let line = running.line();
        let port = line.strip_prefix("listening ").unwrap_or_else(|| panic!("{line}"));
        Self { address: format!("http://127.0.0.1:{port}"), running }
    }

    /// Ends it: what it has counted.
    pub(crate) fn counts(mut self) -> Value {
        self.running.close_stdin();
        let counts = self.running.line();
        serde_json::from_str(&counts).unwrap_or_else(|error| panic!("{error}: {counts}"))
    }
}
