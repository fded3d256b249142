//! `scripts/agent-sdk.sh`, as a factory sources it: in every bash that is here, with the system's tools and with busybox's.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::env::{binary, is_alive, wait_until};
use crate::factory::{Machine, SDK, call, is_there, machines};
use crate::terminal::OnTerminal;

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
fn closed_descriptors_are_no_reason_not_to_run() {
    for machine in machines() {
        for closed in [">&- <&- 2>&-", ">&- 2>&-", "<&- 2>&-", ">&- <&-", "2>&-"] {
            for prepare in ["LOGFILE=", "LOGFILE= CLAUDE_PGID_FILE=$PWD/pgid", ":"] {
                let site = format!("claude_run_with_watchdog claude -p 'exit 6' {closed} && rc=0 || rc=$?; echo rc $rc");
                let ended = machine.run(&format!("{prepare}; {site}"));
                assert_eq!(ended.stdout, ["rc 6"], "{prepare} {closed}: {ended:?}");
            }
        }
    }
}

#[test]
fn signal_that_ends_claude_is_no_news_of_bash() {
    for machine in machines() {
        for prepare in ["", "CLAUDE_PGID_FILE=$PWD/pgid; "] {
            let ended = machine.run(&format!("{prepare}{}", call("die KILL")));
            assert_eq!(ended.stdout, ["rc 137", ""], "{ended:?}");
            let said = ended.stderr_text() + &machine.log();
            assert!(said.contains("exit=137") && !said.contains("Killed"), "{said}");
        }
    }
}

#[test]
fn session_id_is_read_by_jq_from_the_captured_output() {
    for machine in machines() {
        let site = call("init; say {}; result old ok; result new ok");
        let ended =
            machine.run(&format!("{{ {site}; }} >/dev/null; printf '%s' \"$output\" | jq -rs 'last.session_id // empty'"));
        assert_eq!(ended.stdout, ["fake"], "{ended:?}");
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
        for (variable, file) in [("export CLAUDE_RUN_REDACT=log", ""), ("A=1", "redact = 'log'\n")] {
            machine.settings(file);
            let ended = machine.run(&format!("{variable}; {}", call("say GH_TOKEN=abc")));
            assert_eq!(ended.stdout[1], "GH_TOKEN=abc", "{ended:?}");
        }
    }
}

#[test]
fn messages_and_stderr_of_claude_go_to_the_logfile_once() {
    for machine in machines() {
        let ended = machine.run(&format!("CLAUDE_TIMEOUT=1; {}; echo here >&2", call("tool echo from claude >&2; hang")));
        assert_eq!((&*ended.stdout[0], &ended.stderr[..]), ("rc 124", &["here".to_owned()][..]), "{ended:?}");
        let log = machine.log();
        for once in ["stderr: from claude\n", "--timeout 1s reached: "] {
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
            ("CLAUDE_TIMEOUT='1h 30m'", "exit 3", "timeout_exit=0 elapsed_wall=0s limit=1h30m exit=3"),
            ("CLAUDE_TIMEOUT=1", "hang", "timeout_exit=124 elapsed_wall=1s limit=1s exit=124"),
            ("CLAUDE_TIMEOUT=$'1\\n0'", "hang", "timeout_exit=0 elapsed_wall=0s limit=? exit=125"),
            ("CLAUDE_IDLE_GRACE=0.2", "result new error; hang", "timeout_exit=0 elapsed_wall=0s limit=2h exit=1"),
            ("CLAUDE_EXTERNAL_LOCK=1 CLAUDE_RUN_WAIT=0", "hang", "timeout_exit=0 elapsed_wall=0s limit=2h exit=75"),
            ("CLAUDE_RUN_CLAUDE=/nonesuch", "hang", "timeout_exit=0 elapsed_wall=0s limit=2h exit=127"),
        ];
        for (variables, steps, expected) in cases {
            let _ = fs::remove_file(machine.env.path("log"));
            machine.run(&format!("log() {{ code=32; exit 33; }}; export A=1 {variables}; {}", call(steps)));
            let text = machine.log();
            let lines: Vec<_> = text.lines().filter(|line| line.contains(" watchdog: ")).collect();
            let [line] = lines[..] else { panic!("{variables}: {text}") };
            let (time, line) = line.split_once(" watchdog: ").expect("a time");
            assert!(time.starts_with("[20") && time.ends_with(" UTC]"), "{time}");
            // A busy machine may need more seconds.
            let words = |line: &str| line.split(' ').filter(|word| !word.starts_with("elapsed")).collect::<Vec<_>>().join(" ");
            assert_eq!(words(line), words(expected), "{text}");
        }
    }
}

/// What the caller's shell is set to, and what it exports, changes nothing, and reaches claude as it is.
#[test]
fn options_traps_and_variables_of_the_caller_do_no_harm() {
    for machine in machines() {
        for before in [
            "set -euC; CLAUDE_PGID_FILE=$(mktemp)",
            "set -e; CLAUDE_PGID_FILE=/nonesuch/pgid",
            "set -eET; trap 'echo debug' DEBUG; trap 'echo error' ERR; CLAUDE_PGID_FILE=$PWD/pgid",
            "IFS=:; shopt -s nullglob; set -f",
            "coproc cat; CLAUDE_PGID_FILE=$PWD/pgid",
            "readonly code=1 version=1 program=1 line=1",
            "IFS=$'\\n\\t'; readonly IFS SECONDS TZ",
            "set -a; CLAUDE_PGID_FILE=$PWD/pgid",
            "export SECRET_TOKEN=hunter2-hunter2; set -k",
            "set -xv",
        ] {
            let _ = fs::remove_file(machine.env.path("log"));
            let script =
                format!("{before}; claude_run_with_watchdog claude -p 'say hi'; trap - DEBUG ERR; kill %1 2>/dev/null || :");
            let ended = machine.run(&script);
            let lines: Vec<_> = ended.stdout.iter().filter(|line| *line != "debug").collect();
            assert_eq!(lines, ["hi"], "{before}: {ended:?}\n{}", machine.log());
            assert!(!machine.log().contains("from one package") && !machine.log().contains("coproc"), "{}", machine.log());
            assert!(!machine.log().contains("_cr_") && !machine.log().contains("claude -p"), "{before}: {}", machine.log());
            assert_eq!(machine.log().contains("cannot write CLAUDE_PGID_FILE /nonesuch/pgid"), before.contains("nonesuch"));
        }
        let names = ["name", "version", "limit", "code", "line", "program", "options", "settings", "key", "value", "IFS"];
        let exports: String = names.iter().map(|name| format!("export {name}='mine'; ")).collect();
        let steps: Vec<_> = names.iter().map(|name| format!("env {name}")).collect();
        let ended = machine.run(&format!("{exports} claude_run_with_watchdog claude -p '{}'", steps.join("; ")));
        let expected: Vec<_> = names.iter().map(|name| format!("{name}=mine")).collect();
        assert_eq!(ended.stdout[..names.len() - 1], expected[..names.len() - 1], "{ended:?}");
        let options = "set -ak; claude_run_with_watchdog claude -p 'tool env | sed -n /^_cr_/p; say end'; echo $-";
        let ended = machine.run(options);
        let is_kept = ended.stdout.last().is_some_and(|options| options.contains('a') && options.contains('k'));
        assert!(ended.stdout.len() == 2 && ended.stdout[0] == "end" && is_kept, "{ended:?}");
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
        let ended = machine.run(&script("head -c 1024 /dev/zero >$LOGFILE; ulimit -f 1"));
        assert_eq!(ended.stdout, ["4 hi"], "{ended:?}");
        let seen = machine.run("trap '' XFSZ; claude_run_with_watchdog grep SigIgn /proc/self/status").stdout;
        assert!(seen[0].ends_with("1000000"), "ignored, as it was: {seen:?}");
        let ended = machine.run(&script("unset LOGFILE"));
        assert_eq!((&ended.stdout[..], &ended.stderr[..]), (&["4 hi".to_owned()][..], &[][..]), "{ended:?}");
    }
}

const HI: &str = "claude_run_with_watchdog claude -p 'say hi; exit 4' && rc=0 || rc=$?; echo rc $rc";

#[test]
fn fifo_as_logfile_has_its_lines_and_is_not_waited_for() {
    for machine in machines() {
        for log in ["fifo", "link"] {
            let script = |reader: &str| {
                format!("rm -f fifo; mkfifo fifo; ln -sf fifo link; {reader} LOGFILE=$PWD/{log}; {HI}; wait; cat got")
            };
            let ended = machine.run(&script("echo none >got;"));
            assert_eq!(ended.stdout, ["hi", "rc 4", "none"], "{log}: {ended:?}");
            let ended = machine.run(&script("cat fifo >got &"));
            let is_told = ended.stdout.get(2).is_some_and(|line| line.contains("watchdog: timeout_exit=0 "));
            assert!(ended.stdout[..2] == ["hi", "rc 4"] && is_told, "{log}: {ended:?}");
        }
        // A log of a container: a link to the pipe that it has on stderr.
        let ended = machine.run(&format!("( ln -sf /dev/stderr link; LOGFILE=$PWD/link; {HI} ) 2>&1 | cat >got; cat got"));
        assert!(ended.stdout.iter().any(|line| line.contains("watchdog: timeout_exit=0 ")), "{ended:?}");
        let ended = machine.run(&format!("( LOGFILE=/dev/stderr; {HI} ) 2>file; cat file; ls /dev/stderr.*"));
        assert!(ended.stdout.iter().any(|line| line.contains("watchdog: timeout_exit=0 ")), "{ended:?}");
        assert!(!ended.stdout.iter().any(|line| line.contains("runs.jsonl")), "{ended:?}");
    }
}

#[test]
fn lack_of_descriptors_is_125() {
    for machine in machines() {
        for group in [":", "CLAUDE_PGID_FILE=$PWD/pgid"] {
            for limit in 4..16 {
                let ended = machine.run(&format!("unset LOGFILE; {group}; ulimit -n {limit}; {HI}"));
                let code = ended.stdout.last().map(String::as_str);
                assert!([Some("rc 4"), Some("rc 125")].contains(&code), "{group} {limit}: {ended:?}");
            }
        }
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

/// From a terminal it is a run that nobody watches, all the same: it has the hard limit, and leaves nothing.
#[test]
fn call_from_a_terminal_has_limits_and_leaves_nothing() {
    for machine in machines() {
        let script = Machine::sourced(&call("tool& sleep 7321; ready; read; hang"));
        let mut terminal = OnTerminal::start(machine.shell(&script));
        wait_until("claude runs", || machine.log().contains("stdout: ready "));
        let line = machine.log().lines().find(|line| line.contains("stdout: ready ")).expect("a line").to_owned();
        let claude_run: i32 = line.rsplit(' ').nth(2).expect("a parent").parse().expect("a pid");
        kill(Pid::from_raw(claude_run), Signal::SIGUSR1).expect("it lives");
        wait_until("it says when its limit is", || machine.log().contains("next limit in 1h 59m"));
        kill(Pid::from_raw(claude_run), Signal::SIGTERM).expect("it lives");
        terminal.shows("rc 143");
        assert_eq!(terminal.ends(), 0);
        assert!(!is_there("7321"), "{}", machine.log());
    }
}

#[test]
fn ctrl_c_in_a_terminal_ends_script_and_claude() {
    for machine in machines() {
        for file in ["A=1", "CLAUDE_PGID_FILE=$PWD/pgid"] {
            let script = Machine::sourced(&format!(
                "unset LOGFILE; {file}; output=$(claude_run_with_watchdog claude -p 'ready; hang' | tee /dev/tty)"
            ));
            let mut terminal = OnTerminal::start(machine.shell(&script));
            let [claude, claude_run, ..] = terminal.ready();
            terminal.types("\x03");
            wait_until("both have ended", || !is_alive(claude) && !is_alive(claude_run));
            wait_until("the file is gone", || !machine.env.path("pgid").exists());
        }
    }
}

/// As around `claude-run` itself.
#[test]
fn ctrl_c_ends_the_callers_loop() {
    for machine in machines() {
        for site in [
            "claude_run_with_watchdog claude -p 'ready; hang'",
            "CLAUDE_PGID_FILE=$PWD/pgid claude_run_with_watchdog claude -p 'ready; hang'",
            "output=$(claude_run_with_watchdog claude -p 'ready; hang' | tee /dev/tty)",
        ] {
            let script = format!("for turn in 1 2 3; do {site} && rc=0 || rc=$?; echo \"rc $rc\"; done");
            let mut terminal = OnTerminal::start(machine.shell(&Machine::sourced(&script)));
            terminal.ready();
            terminal.types("\x03");
            assert_eq!(terminal.ends(), 130, "{site}: {}", terminal.shown());
            assert!(!terminal.shown().contains("rc "), "{site}: {}", terminal.shown());
        }
        assert!(machine.log().contains(" exit=130\n"), "{}", machine.log());
    }
}

#[test]
fn code_130_of_a_command_ends_no_loop() {
    for machine in machines() {
        let call = "claude_run_with_watchdog claude -p 'exit 130' && rc=0 || rc=$?; echo \"rc $rc\"";
        let ended = machine.run(&format!("set -m; for turn in 1 2; do {call}; done; echo after"));
        assert_eq!(ended.stdout, ["rc 130", "rc 130", "after"], "{ended:?}");
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
        assert!(machine.log().contains("cannot find /nonesuch/claude-run; install claude-run, or"), "{}", machine.log());
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

/// What cannot be asked is not taken for "show everything".
#[test]
fn output_is_masked_where_settings_cannot_be_listed() {
    for machine in machines() {
        let mute = format!("#!/bin/sh\n[ \"$1\" != settings ] || exit 1\nexec '{}' \"$@\"\n", binary().display());
        let mute = machine.env.script("mute", &mute);
        let ended = machine.run(&format!("CLAUDE_RUN='{}'; {}", mute.display(), call("say GH_TOKEN=abc; exit 4")));
        assert_eq!(ended.stdout, ["rc 4", "GH_TOKEN=***"], "{ended:?}\n{}", machine.log());
    }
}
