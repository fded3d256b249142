//! `scripts/agent-sdk.sh`, as a factory sources it: in every bash that is here, with the system's tools and with busybox's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::env::{Ended, Env, Running, binary, fake_claude, needs, wait_until};

pub(crate) const SDK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/agent-sdk.sh");

/// A machine of a factory: one bash, one set of tools, the binary, the fake claude.
struct Machine {
    env: Env,
    shell: String,
    path: String,
}

impl Machine {
    fn new(shell: &str, has_busybox: bool) -> Self {
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
    fn shell(&self, script: &str) -> Command {
        let mut bash = self.env.command(&self.shell);
        bash.args(["-c", script]).env("PATH", &self.path);
        bash
    }

    /// `script` under `set -euo pipefail`, with a LOGFILE and the function sourced.
    fn sourced(script: &str) -> String {
        format!("set -euo pipefail\n. '{SDK}'\nLOGFILE=$PWD/log\n{script}")
    }

    fn start(&self, script: &str) -> Running {
        Running::start(self.shell(&Self::sourced(script)))
    }

    fn run(&self, script: &str) -> Ended {
        self.start(script).end()
    }

    /// What `claude_run_with_watchdog claude -p STEPS` of a call site gives.
    fn call(&self, steps: &str) -> Ended {
        self.run(&call(steps))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.env.path("log")).unwrap_or_default()
    }

    fn settings(&self, text: &str) {
        fs::create_dir_all(self.env.home().join(".claude")).expect("a config dir");
        fs::write(self.env.home().join(".claude/claude-run.toml"), text).expect("a file");
    }
}

fn which(program: &str) -> Option<String> {
    let output = Command::new("sh").args(["-c", "command -v \"$0\"", program]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Every kind of machine: bash 4.4 as well, where one is on PATH under that name.
fn machines() -> Vec<Machine> {
    if !["busybox", "jq", "patch"].into_iter().all(needs) {
        return Vec::new();
    }
    let old = which("bash-4.4").map(|_| Machine::new("bash-4.4", true));
    [Machine::new("bash", false), Machine::new("bash", true)].into_iter().chain(old).collect()
}

/// A call site as the factory's look.
fn call(steps: &str) -> String {
    let site = r#"run_dir=$PWD; output=$(cd "$run_dir" && claude_run_with_watchdog claude "${args[@]}" 2>>"$LOGFILE") && rc=0 || rc=$?; echo "rc $rc"; echo "$output""#;
    format!("args=(-p \"{steps}\" --output-format stream-json); {site}")
}

/// Waits for the process group that the file in CLAUDE_PGID_FILE names.
fn group(machine: &Machine) -> Pid {
    let read = || fs::read_to_string(machine.env.path("pgid")).ok()?.trim().parse::<i32>().ok();
    wait_until("there is a process group", || read().is_some());
    Pid::from_raw(-read().expect("a group"))
}

fn is_gone(group: Pid) -> bool {
    kill(group, None).is_err()
}

#[test]
fn output_and_exit_code_are_those_of_claude() {
    for machine in machines() {
        for code in [0, 1, 3, 124] {
            let ended = machine.call(&format!("init; result new ok; exit {code}"));
            assert_eq!(ended.stdout[0], format!("rc {code}"));
            assert!(ended.stdout[1].contains("init") && ended.stdout[2].contains("result"), "{ended:?}");
            assert_eq!((ended.stdout.len(), ended.code()), (3, 0), "{ended:?}");
        }
    }
}

#[test]
fn session_id_is_read_by_jq_from_the_captured_output() {
    for machine in machines() {
        let site = call("init; say {}; result old ok; result new ok");
        let ended = machine.run(&format!("{site} | tail -n 0; printf '%s' \"$output\" | jq -rs 'last.session_id // empty'"));
        assert_eq!(ended.stdout, ["rc 0", "fake"], "{ended:?}");
    }
}

#[test]
fn stdin_of_a_callers_loop_is_left_alone() {
    for machine in machines() {
        // Once inside of a command substitution, once without, and with a process group file.
        for site in [
            r#"echo "$(claude_run_with_watchdog claude -p 'read')""#,
            "claude_run_with_watchdog claude -p read",
            "CLAUDE_PGID_FILE=$PWD/pgid; claude_run_with_watchdog claude -p read",
        ] {
            let script = format!("while read -r line; do {site}; echo \"$line\"; done <<<$'one\\ntwo\\nthree'");
            let ended = machine.run(&script);
            assert_eq!(ended.stdout, ["read 0", "one", "read 0", "two", "read 0", "three"], "{script}: {ended:?}");
        }
    }
}

#[test]
fn captured_output_and_log_are_masked_in_any_case_of_names() {
    for machine in machines() {
        let steps = "say FORGE_TOKEN=abc; say forge_token=abc; say GH_api_key=abc; tool printenv Vault_Pass >&2";
        let ended = machine.run(&format!("export Vault_Pass=hunter2-hunter2; {}", call(steps)));
        assert_eq!(ended.stdout[1..], ["FORGE_TOKEN=***", "forge_token=***", "GH_api_key=***"], "{ended:?}");
        let log = machine.log();
        assert!(log.contains("stdout: GH_api_key=***\n") && log.contains("***\n"), "{log}");
        assert!(!log.contains("abc") && !log.contains("hunter2"), "{log}");
        let ended = machine.run(&format!("export CLAUDE_RUN_REDACT=log; {}", call("say GH_TOKEN=abc")));
        assert_eq!(ended.stdout[1], "GH_TOKEN=abc", "{ended:?}");
    }
}

#[test]
fn messages_and_stderr_of_claude_go_to_the_logfile_once() {
    for machine in machines() {
        let ended = machine.run(&format!("CLAUDE_TIMEOUT=0.2; {}; echo here >&2", call("tool echo from claude >&2; hang")));
        assert_eq!((&*ended.stdout[0], &ended.stderr[..]), ("rc 124", &["here".to_owned()][..]), "{ended:?}");
        let log = machine.log();
        for once in ["stderr: from claude\n", "the hard limit ran out"] {
            assert_eq!(log.matches(once).count(), 1, "{log}");
        }
    }
}

#[test]
fn logfile_fills_as_claude_runs_and_a_record_is_kept() {
    for machine in machines() {
        // claude itself looks at the log, so nothing has to be awaited.
        let look = "say one; tool grep -q 'stdout: one' < <(tail -n +1 -F log 2>/dev/null); result old ok; exit 0";
        let ended = machine.call(look);
        assert_eq!((&*ended.stdout[0], &*ended.stdout[1]), ("rc 0", "one"), "{ended:?}");
        let record = fs::read_to_string(machine.env.path("log.runs.jsonl")).expect("a record");
        assert!(record.contains(r#""outcome":"exited""#) && record.contains(r#""turns":1"#), "{record}");
        machine.run(&format!("export CLAUDE_RUN_RECORD=; {}", call("exit 0")));
        assert_eq!(fs::read_to_string(machine.env.path("log.runs.jsonl")).expect("a record"), record);
    }
}

/// The line that operators read first: one a run, however it ended.
#[test]
fn one_line_a_run_says_how_it_ended() {
    for machine in machines() {
        let _holder = machine.env.hold_lock();
        let cases = [
            ("", "exit 0", "timeout_exit=0 elapsed_wall=0s limit=2h exit=0"),
            ("CLAUDE_TIMEOUT=90", "exit 3", "timeout_exit=0 elapsed_wall=0s limit=90s exit=3"),
            ("CLAUDE_TIMEOUT=1", "hang", "timeout_exit=124 elapsed_wall=1s limit=1s exit=124"),
            ("CLAUDE_IDLE_GRACE=0.2", "result new error; hang", "timeout_exit=0 elapsed_wall=0s limit=2h exit=1"),
            ("CLAUDE_EXTERNAL_LOCK=1 CLAUDE_RUN_WAIT=0", "hang", "timeout_exit=0 elapsed_wall=0s limit=2h exit=75"),
            ("CLAUDE_RUN_CLAUDE=/nonesuch", "hang", "timeout_exit=0 elapsed_wall=0s limit=2h exit=127"),
        ];
        for log in ["", r#"log() { printf '[#7] %s\n' "$*" >>"$LOGFILE"; }"#] {
            for (variables, steps, expected) in cases {
                let _ = fs::remove_file(machine.env.path("log"));
                machine.run(&format!("{log}\nexport A=1 {variables}; {}", call(steps)));
                let text = machine.log();
                let lines: Vec<_> = text.lines().filter(|line| line.contains("watchdog: ")).collect();
                let prefix = if log.is_empty() { "" } else { "[#7] " };
                // A busy machine may need another second.
                let seconds = |line: &str| line.replace("elapsed_wall=1s", "elapsed_wall=0s");
                let expected = seconds(&format!("{prefix}watchdog: {expected}"));
                assert_eq!(lines.iter().map(|line| seconds(line)).collect::<Vec<_>>(), [expected], "{text}");
            }
        }
    }
}

#[test]
fn run_that_hangs_after_its_result_ends_by_the_grace() {
    for machine in machines() {
        let ended = machine.run(&format!("CLAUDE_IDLE_GRACE=0.2; {}", call("result new ok; hang")));
        assert!(ended.stdout[0] == "rc 0" && ended.stdout[1].contains("result"), "{ended:?}");
        assert!(machine.log().contains("result grace"));
    }
}

#[test]
fn unwritable_logfile_costs_the_log_alone() {
    for machine in machines() {
        let script = |logfile: &str| {
            format!(
                "{logfile}; output=$(claude_run_with_watchdog claude -p 'say hi; exit 4') && rc=0 || rc=$?; echo $rc $output"
            )
        };
        let ended = machine.run(&script("LOGFILE=/nonesuch/log"));
        assert_eq!(ended.stdout, ["4 hi"], "{ended:?}");
        assert!(ended.stderr_text().contains("/nonesuch/log"), "{ended:?}");
        let ended = machine.run(&script("unset LOGFILE"));
        assert_eq!((&ended.stdout[..], &ended.stderr[..]), (&["4 hi".to_owned()][..], &[][..]), "{ended:?}");
    }
}

/// Whether a call takes the session lock, by who says what: the switch, the variable, the file, nobody.
#[test]
fn lock_is_taken_where_somebody_says_so() {
    for machine in machines() {
        let _holder = machine.env.hold_lock();
        for (variables, file, is_locked) in [
            ("", "", false),
            ("CLAUDE_EXTERNAL_LOCK=", "", false),
            ("CLAUDE_EXTERNAL_LOCK=1", "", true),
            ("CLAUDE_EXTERNAL_LOCK=1", "lock = 'pass-through'\n", true),
            ("CLAUDE_EXTERNAL_LOCK=1 CLAUDE_RUN_LOCK=pass-through", "", true),
            ("CLAUDE_RUN_LOCK=exclusive", "", true),
            ("CLAUDE_RUN_LOCK=pass-through", "lock = 'exclusive'\n", false),
            ("", "lock = 'exclusive'\n", true),
            ("", "lock = 'pass-through'\n", false),
            ("", "wait = 1\n", false),
            ("CLAUDE_RUN_LOCK_FILE=$HOME/.claude/session.lock", "", true),
        ] {
            machine.settings(file);
            let ended = machine.run(&format!("export A=1 {variables} CLAUDE_RUN_WAIT=0; {}", call("exit 4")));
            assert_eq!(ended.stdout[0], if is_locked { "rc 75" } else { "rc 4" }, "{variables:?} {file:?}: {ended:?}");
        }
        machine.settings("lock = 'sometimes'\n");
        assert_eq!(machine.call("exit 4").stdout[0], "rc 125");
        assert!(machine.log().contains("claude-run.toml:1: "), "{}", machine.log());
    }
}

/// The call sites before they are changed: of a factory that locks every call, and of one with a switch, on and off.
#[test]
fn call_sites_that_still_have_their_flock_work() {
    for machine in machines() {
        let lock_file = machine.env.make_lock_file();
        let seed = r#"output=$(cd "$PWD" && ( flock -w 600 9 || exit 1;
            claude_run_with_watchdog claude "${args[@]}" ) 9>"$HOME/.claude/session.lock" 2>>"$LOGFILE") && rc=0 || rc=$?"#;
        let gated = r#"lock_file=$HOME/.claude/session.lock
            if [ -n "${CLAUDE_EXTERNAL_LOCK:-}" ]; then
              mkdir -p "$(dirname "$lock_file")"
              output=$(cd "$PWD" && ( flock -w 600 9 || exit 1; claude_run_with_watchdog claude "${args[@]}" ) 9>"$lock_file" 2>>"$LOGFILE") && rc=0 || rc=$?
            else
              output=$(cd "$PWD" && claude_run_with_watchdog claude "${args[@]}" 2>>"$LOGFILE") && rc=0 || rc=$?
            fi"#;
        for (site, switch, is_locked) in [(seed, "", true), (seed, "1", true), (gated, "1", true), (gated, "", false)] {
            let look = format!("tool flock -n '{}' true && echo free || echo held; exit 4", lock_file.display());
            let script = format!(
                "export CLAUDE_RUN_WAIT=5; CLAUDE_EXTERNAL_LOCK={switch}; args=(-p \"{look}\"); {site}; echo \"$rc $output\""
            );
            let ended = machine.run(&script);
            assert_eq!(ended.stdout, [if is_locked { "4 held" } else { "4 free" }], "{site}: {ended:?}");
        }
    }
}

/// What the new sites say is what happens: the switch in the line, or nothing.
#[test]
fn call_sites_without_flock_exclude_the_old_ones() {
    for machine in machines() {
        let mut holder = machine.env.hold_lock();
        let site = r#"output=$(cd "$PWD" && CLAUDE_EXTERNAL_LOCK=1 claude_run_with_watchdog claude -p 'exit 4' 2>>"$LOGFILE") && rc=0 || rc=$?; echo "rc $rc""#;
        let run = machine.start(site);
        wait_until("it waits", || machine.log().contains("event=lock.waiting"));
        holder.close_stdin();
        run.expect_line("rc 4");
    }
}

#[test]
fn group_file_stands_while_claude_runs() {
    for machine in machines() {
        // claude itself reads it, and shows that TERM and KILL have somebody to reach.
        let steps = "tool kill -0 -- -$(cat pgid) && echo alive; exit 4";
        let ended = machine.run(&format!("CLAUDE_PGID_FILE=$PWD/pgid; {}", call(&steps.replace('$', "\\$"))));
        assert_eq!(ended.stdout, ["rc 4", "alive"], "{ended:?}\n{}", machine.log());
        assert!(!machine.env.path("pgid").exists());
        let ended = machine.run(&format!("CLAUDE_PGID_FILE=/nonesuch/pgid; {}", call("exit 4")));
        assert_eq!(ended.stdout[0], "rc 4", "{ended:?}");
    }
}

/// TERM, KILL, or one after the other, to the group alone: claude and its tools end, and claude-run was asked to end them.
#[test]
fn signals_to_the_group_end_claude_and_all_its_tools() {
    for machine in machines() {
        for (signals, code) in
            [(&[Signal::SIGTERM][..], 143), (&[Signal::SIGKILL], 143), (&[Signal::SIGTERM, Signal::SIGKILL], 143)]
        {
            let mark = format!("{}.{code}", 7000 + signals.len() * 100 + usize::from(signals[0] == Signal::SIGKILL));
            let steps = format!("tool& sleep {mark}; tool& trap '' TERM && echo deaf && sleep {mark}; hang");
            let script = format!("CLAUDE_PGID_FILE=$PWD/pgid; export CLAUDE_RUN_KILL_AFTER=1; {}", call(&steps));
            let run = machine.start(&script);
            let group = group(&machine);
            wait_until("the tools run", || machine.log().contains("stdout: deaf"));
            for &signal in signals {
                assert!(kill(group, signal).is_ok() || signal == Signal::SIGKILL);
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
            assert_eq!(run.line(), format!("rc {code}"));
            run.end();
            assert!(is_gone(group) && !machine.env.path("pgid").exists());
            assert!(!is_there(&mark), "{signals:?}: {}", machine.log());
            assert!(machine.log().contains("signalling the child signal=SIGTERM"), "{}", machine.log());
            fs::remove_file(machine.env.path("log")).expect("a log");
        }
    }
}

/// Whether a process has `mark` in its command line.
fn is_there(mark: &str) -> bool {
    fs::read_dir("/proc").expect("/proc").flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).any(|word| word == mark.as_bytes())
    })
}

/// As the factory's clean-up does it: TERM, a second, KILL. A refresh that is under way takes longer.
#[test]
fn signals_to_the_group_spare_a_refresh() {
    for machine in machines() {
        let lock = machine.env.home().join(".claude.lock");
        let claude = machine.env.script(
            "bin/refreshing",
            &format!("#!/bin/bash\nmkdir '{0}'\necho begun\nsleep 2\necho saved\nrmdir '{0}'\nsleep 77\n", lock.display()),
        );
        fs::create_dir_all(machine.env.home().join(".claude")).expect("a config dir");
        let call = r#"output=$(claude_run_with_watchdog claude -p x) && rc=0 || rc=$?; echo "$rc $output""#;
        let run =
            machine.start(&format!("export CLAUDE_RUN_CLAUDE='{}'; CLAUDE_PGID_FILE=$PWD/pgid; {call}", claude.display()));
        let group = group(&machine);
        wait_until("the refresh has begun", || machine.log().contains("stdout: begun"));
        kill(group, Signal::SIGTERM).expect("a group");
        std::thread::sleep(std::time::Duration::from_secs(1));
        kill(group, Signal::SIGKILL).expect("a group");
        let lines = run.end().stdout;
        assert!(lines.last().is_some_and(|line| line == "saved"), "{lines:?}\n{}", machine.log());
    }
}

/// The shell that runs the function is killed: what it has started is ended.
#[test]
fn nothing_outlives_a_killed_shell_that_has_a_group_file() {
    for machine in machines() {
        let script = "CLAUDE_PGID_FILE=$PWD/pgid; claude_run_with_watchdog claude -p 'ready; hang'";
        let run = machine.start(script);
        let [claude, claude_run, ..] = run.ready();
        let shell = crate::env::stat(claude_run).expect("it lives")[1].parse().expect("a pid");
        kill(Pid::from_raw(shell), Signal::SIGKILL).expect("it lives");
        wait_until("claude has ended", || !crate::env::is_alive(claude) && !crate::env::is_alive(claude_run));
    }
}

#[test]
fn other_harness_is_left_to_its_own_frames() {
    for machine in machines() {
        // It prints results of its own, and stays a moment after them.
        let frame = r#"{"type":"result","status":"success","output":"done"}"#;
        machine.env.script("bin/dsh", &format!("#!/bin/sh\necho '{frame}'\nsleep 1\necho \"$*\"\n"));
        let ended = machine.run(
            "export CLAUDE_RUN_REQUIRE_RESULT=on CLAUDE_IDLE_GRACE=0.1\n\
             output=$(claude_run_with_watchdog dsh --profile headless 'do it' 2>>\"$LOGFILE\") && rc=0 || rc=$?; echo \"$rc\"; echo \"$output\"",
        );
        assert_eq!(ended.stdout, ["0", frame, "--profile headless do it"], "{}", machine.log());
        // claude itself is held to it.
        let ended = machine.run(&format!("export CLAUDE_RUN_REQUIRE_RESULT=on; {}", call("exit 0")));
        assert_eq!(ended.stdout[0], "rc 65", "{ended:?}");
    }
}

#[test]
fn backends_have_a_lock_each() {
    for machine in machines() {
        machine.env.script("bin/dsh", "#!/bin/sh\necho begun\ncat fifo\n");
        assert!(machine.shell("mkfifo fifo").status().expect("mkfifo").success());
        let on = |backend: &str, command: &str| {
            format!(
                "CLAUDE_RUN_LOCK=exclusive CLAUDE_RUN_LOCK_FILE=$PWD/{backend}.lock CLAUDE_RUN_WAIT=0 claude_run_with_watchdog {command}"
            )
        };
        let export = |call: String| {
            call.replace("CLAUDE_RUN_LOCK=", "export CLAUDE_RUN_LOCK=").replace(" claude_run_with", "; claude_run_with")
        };
        let first = machine.start(&export(on("llama-1", "dsh --profile headless x")));
        first.expect_line("begun");
        let ended = machine.run(&format!("{} || echo $?", on("llama-1", "dsh")));
        assert_eq!(ended.stdout, ["75"], "{ended:?}");
        let ended = machine.run(&on("llama-2", "claude -p 'say other'"));
        assert_eq!(ended.stdout, ["other"], "{ended:?}");
        fs::write(machine.env.path("fifo"), "").expect("a reader");
        assert_eq!(first.end().code(), 0);
    }
}

/// From a terminal it is a run that nobody watches, all the same.
#[test]
fn call_from_a_terminal_has_limits_and_leaves_nothing() {
    for machine in machines() {
        let script =
            Machine::sourced(&format!("{}; claude_run_with_watchdog claude-run settings", call("tool& sleep 7321; exit 0")));
        let mut terminal = crate::terminal::OnTerminal::start(machine.shell(&script));
        terminal.shows("rc 0");
        assert_eq!(terminal.ends(), 0);
        assert!(!is_there("7321"), "{}", machine.log());
    }
}

#[test]
fn ctrl_c_in_a_terminal_ends_script_and_claude() {
    for machine in machines() {
        let script =
            Machine::sourced("unset LOGFILE; output=$(claude_run_with_watchdog claude -p 'ready; hang' | tee /dev/tty)");
        let mut terminal = crate::terminal::OnTerminal::start(machine.shell(&script));
        let [claude, claude_run, ..] = terminal.ready();
        terminal.types("\x03");
        wait_until("both have ended", || !crate::env::is_alive(claude) && !crate::env::is_alive(claude_run));
    }
}

#[test]
fn arguments_of_any_kind_and_the_callers_shell_survive() {
    for machine in machines() {
        let prompt = r#"say a  b * $HOME "q" 'r' (s) %d \\n"#;
        let script = format!(
            r#"args=(-p '{}'$'\n''say two'); output=$(claude_run_with_watchdog claude "${{args[@]}}") && rc=0 || rc=$?; echo "rc $rc"; echo "$output"; echo "$- ${{name-none}} ${{code-none}}""#,
            prompt.replace('\'', r"'\''")
        );
        let ended = machine.run(&script);
        assert_eq!(ended.stdout[..3], ["rc 0", prompt.trim_start_matches("say "), "say two"], "{ended:?}");
        let last = ended.stdout.last().expect("a line");
        assert!(last.contains('e') && last.contains('u') && last.ends_with("none none"), "{ended:?}");
    }
}

#[test]
fn missing_claude_run_is_127() {
    for machine in machines() {
        let ended = machine.run(&format!("CLAUDE_RUN=/nonesuch/claude-run; {}", call("exit 0")));
        assert_eq!(ended.stdout[0], "rc 127", "{ended:?}");
        assert!(machine.log().contains("/nonesuch/claude-run"), "{}", machine.log());
    }
}

#[test]
fn another_version_of_claude_run_is_said() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(fs::read_to_string(SDK).expect("a script").contains(&format!("\nCLAUDE_RUN_SDK_VERSION={version}\n")));
    for machine in machines() {
        machine.call("exit 0");
        assert!(!machine.log().contains("from one package"), "{}", machine.log());
        let older = format!(
            "#!/bin/sh\n[ \"$1\" != --version ] || exec echo 'claude-run {version}9 (abc)'\nexec '{}' \"$@\"\n",
            binary().display()
        );
        let older = machine.env.script("older", &older);
        let ended = machine.run(&format!("CLAUDE_RUN='{}'; {}", older.display(), call("exit 4")));
        assert_eq!(ended.stdout[0], "rc 4", "{ended:?}");
        let expected = format!("agent-sdk.sh is of claude-run {version}, {} is claude-run {version}9", older.display());
        assert!(machine.log().contains(&expected), "{}", machine.log());
    }
}

/// The diff in the README, on a factory's file: patch takes it, and both calls go through claude-run, with the switch on and off.
#[test]
fn readme_diff_patches_a_factorys_file() {
    let readme = include_str!("../../README.md");
    let diff = readme.split("\n```diff\n").nth(1).and_then(|rest| rest.split("\n```").next()).expect("a diff");
    for machine in machines() {
        let before = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/factory/agent-sdk.sh");
        fs::create_dir(machine.env.path("lib")).expect("a directory");
        fs::copy(before, machine.env.path("lib/agent-sdk.sh")).expect("a copy");
        fs::write(machine.env.path("diff"), format!("{diff}\n")).expect("a file");
        // GNU's: busybox's patch takes no hunk without context.
        let patched = machine.shell("/usr/bin/patch lib/agent-sdk.sh <diff").output().expect("patch");
        assert!(patched.status.success(), "{patched:?}");
        for (switch, events) in [("", 0), ("1", 2)] {
            let script = format!(
                "set -euo pipefail; LOGFILE=$PWD/log; log() {{ echo \"log: $*\" >>\"$LOGFILE\"; }}; CLAUDE_RUN_SDK='{SDK}'\n\
                 . lib/agent-sdk.sh; export CLAUDE_RUN_WAIT=5; CLAUDE_EXTERNAL_LOCK={switch}\n\
                 agent_run 'say {{}}; result new ok; exit 3' || rc=$?; echo \"$rc $_AGENT_SESSION_ID\""
            );
            let ended = Running::start(machine.shell(&script)).end();
            assert_eq!(ended.stdout, ["3 fake"], "{ended:?}\n{}", machine.log());
            let log = machine.log();
            assert!(log.contains("log: watchdog: timeout_exit=0 ") && !log.contains("the old function ran"), "{log}");
            assert_eq!(log.matches("event=run.ended").count(), 2, "{log}");
            // Of the two with the switch on, the nudge has its caller's.
            assert_eq!(log.matches("event=lock.acquired").count(), events, "{log}");
            fs::remove_file(machine.env.path("log")).expect("a log");
        }
    }
}
