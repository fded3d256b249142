//! The relay: every byte, whatever reads it; and what the frames in it set off.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::env::{Env, Running, binary, fake_claude, is_alive, wait_until};

/// claude-run with a relay: the fake claude is asked for frames.
fn framed(env: &Env, options: &[&str], steps: &str) -> Command {
    let mut command = env.command(binary());
    command.arg("--claude").arg(fake_claude()).args(options).args(["--", "-p", steps, "--output-format", "stream-json"]);
    command
}

fn start(env: &Env, options: &[&str], steps: &str) -> Running {
    Running::start(framed(env, options, steps))
}

#[test]
fn claude_hung_after_its_result_ends_with_0_or_1() {
    let env = Env::new();
    for order in ["new", "old"] {
        for (ending, code) in [("ok", 0), ("error", 1)] {
            let started = Instant::now();
            let run = start(&env, &["--result-grace", "0.3"], &format!("init; ready; result {order} {ending}; hang"));
            run.expect_line(r#"{"type":"system","subtype":"init","session_id":"fake"}"#);
            let [child, ..] = run.ready();
            let ended = run.end();
            assert_eq!((ended.code(), ended.stdout.len()), (code, 1), "{ended:?}");
            assert!(started.elapsed() >= Duration::from_millis(300) && !is_alive(child));
            assert!(ended.stderr_text().contains("result grace"), "{ended:?}");
        }
    }
}

#[test]
fn result_grace_variable_of_the_bash_block_counts() {
    let env = Env::new();
    let mut command = framed(&env, &[], "result new ok; hang");
    command.env("CLAUDE_IDLE_GRACE", "0.2");
    assert_eq!(Running::start(command).end().code(), 0);
}

#[test]
fn claude_that_ends_within_the_grace_keeps_its_code() {
    let env = Env::new();
    for code in [0, 1, 7] {
        assert_eq!(
            start(&env, &["--result-grace", "30"], &format!("result new ok; sleep 0.1; exit {code}")).end().code(),
            code
        );
    }
}

#[test]
fn later_frames_restart_the_result_grace() {
    let env = Env::new();
    let steps = "result old error; sleep 0.8; init; sleep 0.8; init; sleep 0.8; result new ok; hang";
    let ended = start(&env, &["--result-grace", "2"], steps).end();
    assert_eq!((ended.code(), ended.stdout.len()), (0, 4), "{ended:?}");
}

#[test]
fn open_background_task_has_the_task_grace() {
    let env = Env::new();
    let open = r#"say {"type":"system","subtype":"task_started","task_id":"a"}"#;
    let closed = r#"say {"type":"system","subtype":"task_notification","task_id":"a"}"#;
    let options = ["--result-grace", "1.5", "--task-grace", "1h"];
    assert_eq!(start(&env, &options, &format!("{open}; result new ok; sleep 2; {closed}; exit 3")).end().code(), 3);
    assert_eq!(start(&env, &options, &format!("{open}; result new ok; sleep 2; {closed}; hang")).end().code(), 0);
    let ended = start(&env, &["--task-grace", "0.2"], &format!("{open}; result new ok; hang")).end();
    assert!(ended.code() == 0 && ended.stderr_text().contains("task grace"), "{ended:?}");
}

#[test]
fn quoted_result_or_other_format_ends_nothing() {
    let env = Env::new();
    let quoted = r#"say {"type":"user","message":{"type":"result","is_error":false}}"#;
    assert_eq!(start(&env, &["--result-grace", "0.1"], &format!("{quoted}; sleep 0.5; exit 3")).end().code(), 3);
    let run = env.start_fake(&["--result-grace", "0.1"], "result new ok; sleep 0.5; exit 3");
    assert_eq!(run.end().code(), 3);
}

/// 40 MB that no compressor or line reader would like.
fn awkward_bytes() -> Vec<u8> {
    let mut state = 1u64;
    let random = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_ne_bytes()
    });
    let mut bytes: Vec<u8> = random.take(3 << 20).flatten().collect();
    bytes.extend([b'x'].repeat(10 << 20)); // one line of 10 MiB
    bytes.extend(b"\r\n\0\n\n".repeat(1 << 20));
    bytes.extend(b"no newline at the end");
    bytes
}

/// Runs a claude that prints a file.
fn printing(env: &Env, bytes: &[u8]) -> Command {
    std::fs::write(env.path("bytes"), bytes).expect("a file");
    let cat = env.script("cat-claude", "#!/bin/sh\ncat bytes\nexit 5\n");
    let mut command = env.command(binary());
    command.arg("--claude").arg(cat).args(["--", "-p", "x", "--output-format=json"]);
    command
}

#[test]
fn every_byte_passes_unchanged_and_in_order() {
    let env = Env::new();
    let bytes = awkward_bytes();
    let output = printing(&env, &bytes).output().expect("started");
    assert_eq!(output.status.code(), Some(5));
    assert!(output.stdout == bytes, "{} of {} bytes, or others", output.stdout.len(), bytes.len());
}

#[test]
fn end_of_bulk_output_arrives() {
    let env = Env::new();
    for reader in ["cat", "(sleep 1; cat)"] {
        let script = r#""$0" -- sh -c 'head -c 90000000 /dev/zero; printf end' x --output-format json | READER | tail -c 90000003 | wc -c"#;
        let mut shell = env.command("sh");
        shell.args(["-c", &script.replace("READER", reader)]).arg(binary());
        assert_eq!(Running::start(shell).end().stdout, ["90000003"], "{reader}");
    }
}

#[test]
fn slow_reader_loses_nothing_and_holds_no_lock() {
    let env = Env::new();
    let bytes = awkward_bytes();
    let mut run = printing(&env, &bytes).stdout(Stdio::piped()).spawn().expect("started");
    let children = format!("/proc/{0}/task/{0}/children", run.id());
    wait_until("the lock was taken", || env.lock_file().exists());
    wait_until("the child is done, and the lock free, though nothing was read", || {
        !env.is_locked() && std::fs::read_to_string(&children).is_ok_and(|children| children.trim().is_empty())
    });
    assert!(run.try_wait().expect("a child").is_none(), "it waits for its reader");
    let memory = std::fs::read_to_string(format!("/proc/{}/status", run.id())).expect("status");
    // Its own pages: those of an unoptimised program's file are no cost of the output.
    let peak = memory
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("RssAnon")
        .trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .expect("a number");
    assert!(peak < 20 << 10, "{peak} KiB");
    let mut read = Vec::new();
    run.stdout.take().expect("piped").read_to_end(&mut read).expect("read");
    assert!(read == bytes, "{} of {} bytes, or others", read.len(), bytes.len());
    assert_eq!(run.wait().expect("a child").code(), Some(5));
}

#[test]
fn child_gets_sigpipe_when_the_reader_goes() {
    let env = Env::new();
    let endless = env.script("endless-claude", "#!/bin/sh\ntrap 'exit 3' PIPE\nwhile echo y; do :; done 2>/dev/null\nexit 4\n");
    let mut command = env.command(binary());
    command.arg("--claude").arg(endless).args(["--", "-p", "x", "--output-format=json"]).stdout(Stdio::piped());
    let mut run = command.spawn().expect("started");
    let mut some = [0; 100];
    run.stdout.take().expect("piped").read_exact(&mut some).expect("some bytes");
    let code =
        wait_timeout::ChildExt::wait_timeout(&mut run, crate::env::CEILING).expect("a child").expect("it has ended").code();
    assert!(matches!(code, Some(3 | 4)), "{code:?}");
    assert!(!env.is_locked());
}

/// Waits until a run has released the lock, with its child, though nobody reads its output.
fn wait_until_it_waits_for_its_reader(env: &Env, run: u32) {
    wait_until("the child is done, and the lock free", || {
        env.lock_file().exists()
            && !env.is_locked()
            && std::fs::read_to_string(format!("/proc/{run}/task/{run}/children"))
                .is_ok_and(|children| children.trim().is_empty())
    });
}

#[test]
fn slow_reader_of_a_socket_holds_no_lock() {
    let env = Env::new();
    // One line that is longer than all pipes and buffers on its way.
    let bytes = [b'x'].repeat(12 << 20);
    let (mut reader, writer) = UnixStream::pair().expect("a socket");
    let mut run = printing(&env, &bytes).stdout(OwnedFd::from(writer)).spawn().expect("started");
    wait_until_it_waits_for_its_reader(&env, run.id());
    let mut read = Vec::new();
    reader.read_to_end(&mut read).expect("read");
    assert!(read == bytes, "{} of {} bytes, or others", read.len(), bytes.len());
    assert_eq!(run.wait().expect("a child").code(), Some(5));
}

#[test]
fn slow_reader_of_anothers_pipe_holds_no_lock() {
    if !crate::env::needs_root("to hand a pipe to another user") {
        return;
    }
    let env = Env::new();
    let bytes = [b'x'].repeat(12 << 20);
    let printing = printing(&env, &bytes);
    let mut command = env.command("setpriv");
    command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]).arg(printing.get_program());
    command.args(printing.get_args()).env("TMPDIR", "/tmp").stdout(Stdio::piped());
    assert!(Command::new("chown").args(["-R", "1000"]).arg(env.path("")).status().expect("chown").success());
    let mut run = command.spawn().expect("started");
    wait_until_it_waits_for_its_reader(&env, run.id());
    let mut read = Vec::new();
    run.stdout.take().expect("piped").read_to_end(&mut read).expect("read");
    assert!(read == bytes, "{} of {} bytes, or others", read.len(), bytes.len());
    assert_eq!(run.wait().expect("a child").code(), Some(5));
}

/// A child that waits until its reader is gone, and prints more than all pipes hold.
const AFTER_THE_READER: &str = r#"echo first; echo second; until [ -e gone ]; do sleep 0.01; done
    printf '{"type":"result","sub'; exec head -c 20000000 /dev/zero"#;

#[test]
fn reset_connection_is_a_reader_that_has_gone() {
    let env = Env::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let writer = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
    let (reader, _) = listener.accept().expect("a connection");
    let mut command = env.command(binary());
    command.args(["--timeout", "60", "--", "sh", "-c", AFTER_THE_READER, "x", "--output-format", "json"]);
    command.stdout(OwnedFd::from(writer)).stderr(Stdio::piped());
    let run = command.spawn().expect("started");
    drop(command);
    // What is left unread makes the end of a reader a reset.
    reader.peek(&mut [0; 13]).expect("some bytes");
    drop(reader);
    std::fs::write(env.path("gone"), "").expect("a file");
    let output = run.wait_with_output().expect("a child");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((crate::env::shell_code(output.status), &*stderr), (141, ""));
}

#[test]
fn child_that_outlives_its_reader_keeps_its_code() {
    let env = Env::new();
    // In the end it is there a little longer than the relay.
    let surviving = AFTER_THE_READER.replace("exec head", "head") + "; sleep 0.3; exit 3";
    for (script, code) in [(AFTER_THE_READER, 141), (&surviving, 3)] {
        let mut command = env.command(binary());
        command.args(["--timeout", "60", "--", "sh", "-c", script, "x", "--output-format", "json"]);
        let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
        run.stdout.take().expect("piped").read_exact(&mut [0; 13]).expect("some bytes");
        std::fs::write(env.path("gone"), "").expect("a file");
        let output = run.wait_with_output().expect("a child");
        // Nor is it reported that the reader has left in the middle of a frame.
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((crate::env::shell_code(output.status), &*stderr), (code, ""));
        std::fs::remove_file(env.path("gone")).expect("a file");
    }
}

#[test]
fn beginning_of_a_line_is_passed_on_at_once() {
    let env = Env::new();
    for (options, print, length) in [
        (&["--redact", "all"][..], "printf 'a prompt: '", 10),
        // As much as is read at once.
        (&["--result-grace", "1h"], "dd if=/dev/zero bs=65536 count=1 2>/dev/null", 65_536),
    ] {
        let script = format!("{print}; until [ -e go ]; do sleep 0.01; done; exit 3");
        let mut command = env.command(binary());
        command.args(options).args(["--timeout", "60", "--", "sh", "-c", &script, "x", "--output-format", "json"]);
        let mut run = command.stdout(Stdio::piped()).spawn().expect("started");
        run.stdout.as_mut().expect("piped").read_exact(&mut vec![0; length]).expect("it is passed on");
        std::fs::write(env.path("go"), "").expect("a file");
        assert_eq!(run.wait().expect("a child").code(), Some(3), "{print}");
        std::fs::remove_file(env.path("go")).expect("a file");
    }
}

#[test]
fn wait_for_a_reader_can_be_stopped_and_continued() {
    let env = Env::new();
    let mut run = printing(&env, &[b'x'; 9 << 20]).stdout(Stdio::piped()).spawn().expect("started");
    wait_until_it_waits_for_its_reader(&env, run.id());
    let us = nix::unistd::Pid::from_raw(run.id() as i32);
    nix::sys::signal::kill(us, Signal::SIGTSTP).expect("it lives");
    wait_until("it is stopped", || crate::env::state(us.as_raw()) == Some('T'));
    nix::sys::signal::kill(us, Signal::SIGCONT).expect("it lives");
    let mut read = Vec::new();
    run.stdout.take().expect("piped").read_to_end(&mut read).expect("read");
    assert_eq!((read.len(), run.wait().expect("a child").code()), (9 << 20, Some(5)));
}

#[test]
fn termination_ends_the_wait_for_a_reader() {
    let env = Env::new();
    let mut command = env.command("sh");
    // HUP is ignored, as under nohup(1).
    let printing = printing(&env, &[b'x'; 4 << 20]);
    command.args(["-c", r#"trap '' HUP; exec "$0" "$@""#]).arg(printing.get_program()).args(printing.get_args());
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    wait_until_it_waits_for_its_reader(&env, run.id());
    let us = nix::unistd::Pid::from_raw(run.id() as i32);
    let signal = |signal| nix::sys::signal::kill(us, signal).expect("it lives");
    let mut stderr = std::io::BufReader::new(run.stderr.take().expect("piped"));
    let mut message = String::new();
    signal(Signal::SIGHUP);
    signal(Signal::SIGUSR1);
    std::io::BufRead::read_line(&mut stderr, &mut message).expect("a message");
    assert!(message.contains("waits for our reader"), "{message}");
    signal(Signal::SIGTERM);
    let status = wait_timeout::ChildExt::wait_timeout(&mut run, crate::env::CEILING).expect("a child").expect("it has ended");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    stderr.read_to_string(&mut message).expect("messages");
    assert!(message.contains("SIGTERM") && message.contains("lost"), "{message}");
}

/// Waits until `run`, whose output nobody reads, has no child any more, and longer than a reader may take after a request to end.
fn wait_for_a_bound_drain(run: u32) {
    wait_until("the child is done", || {
        std::fs::read_to_string(format!("/proc/{run}/task/{run}/children")).is_ok_and(|children| children.trim().is_empty())
    });
    std::thread::sleep(Duration::from_millis(1500));
}

#[test]
fn interrupt_that_the_child_survived_cuts_no_output() {
    let env = Env::new();
    let script = "trap '' INT; echo >ready; until [ -e go ]; do sleep 0.01; done; head -c 4000000 /dev/zero";
    let mut command = env.command(binary());
    let mut run = command.args(["--log", "log", "--", "bash", "-c", script]).stdout(Stdio::piped()).spawn().expect("started");
    wait_until("the child ignores INT", || env.path("ready").exists());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(run.id() as i32), Signal::SIGINT).expect("it lives");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(run.id() as i32), Signal::SIGWINCH).expect("it lives");
    std::thread::sleep(Duration::from_millis(100)); // the signals are read before the end of the child
    std::fs::write(env.path("go"), "").expect("a file");
    wait_for_a_bound_drain(run.id());
    let mut read = Vec::new();
    run.stdout.take().expect("piped").read_to_end(&mut read).expect("read");
    assert_eq!((read.len(), run.wait().expect("a child").code()), (4_000_000, Some(0)));
}

#[test]
fn hard_limit_bounds_the_wait_for_a_reader() {
    // The second is long done at its limit.
    for (child, hard_limit, code) in [("yes", "3", 124), ("head -c 4000000 /dev/zero", "10", 74)] {
        let env = Env::new();
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = env.command(binary());
        command
            .args(["--log", "log", "--timeout", hard_limit, "--"])
            .args(child.split(' '))
            .stdout(writer)
            .stderr(Stdio::piped());
        let mut run = command.spawn().expect("started");
        drop(command);
        let ended = wait_timeout::ChildExt::wait_timeout(&mut run, crate::env::CEILING).expect("a child");
        let mut stderr = String::new();
        run.stderr.take().expect("piped").read_to_string(&mut stderr).expect("messages");
        assert_eq!(ended.expect("it has ended").code(), Some(code));
        assert!(stderr.contains("the hard limit ended the wait for the reader"), "{child}: {stderr}");
        drop(reader);
    }
}

#[test]
fn kept_descendant_with_the_pipe_is_not_waited_for() {
    let env = Env::new();
    // The others end by SIGPIPE.
    for descendant in ["setsid sleep 600", "yes noise & yes noise & yes noise"] {
        let leaving = env.script("leaving-claude", &format!("#!/bin/sh\n{descendant} & echo $!\nexit 6\n"));
        let mut command = env.command(binary());
        command.arg("--claude").arg(leaving).args(["--leftovers", "keep", "--", "-p", "x", "--output-format=json"]);
        let run = Running::start(command);
        let kept = std::iter::repeat_with(|| run.line().parse().ok()).flatten().next().expect("a pid");
        let ended = run.end();
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(kept), Signal::SIGKILL);
        assert_eq!(ended.code(), 6, "{descendant}");
    }
}

#[test]
fn full_disk_behind_stdout_is_74_after_the_run() {
    let env = Env::new();
    for (options, status, code) in [(&["-q"][..], 0, 74), (&["-q", "--pty"], 0, 74), (&[], 3, 3)] {
        let mut command = env.command("sh");
        let script = "\"$@\" >/dev/full";
        command.args(["-c", script, "sh"]).arg(binary()).args(options).args(["--record", "record", "--", "sh", "-c"]);
        command.arg(format!("head -c 3000000 /dev/zero; echo more; touch done; exit {status}")).args([
            "sh",
            "--output-format",
            "json",
        ]);
        let ended = Running::start(command).end();
        assert_eq!(ended.code(), code, "{ended:?}");
        assert_eq!(ended.stderr_text().matches("cannot write the child's output to stdout").count(), 1, "{ended:?}");
        let record = std::fs::read_to_string(env.path("record")).expect("a record");
        assert_eq!(record.contains("output-lost"), code == 74, "{record}");
        std::fs::remove_file(env.path("record")).expect("a record");
        std::fs::remove_file(env.path("done")).expect("the child went on to its end");
    }
}

#[test]
fn file_size_limit_loses_output_with_74() {
    let env = Env::new();
    let mut command = env.command("sh");
    let script = r#"trap '' XFSZ; ulimit -f 100; "$0" --lock pass-through -- sh -c 'head -c 1000000 /dev/zero; exit 0' x --output-format json >out"#;
    command.args(["-c", script]).arg(binary());
    let ended = Running::start(command).end();
    assert_eq!(ended.code(), 74, "{ended:?}");
}

/// Prints lines on both streams by turns.
const BOTH: &str = "i=0; while [ $i -lt 3000 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done";

#[test]
fn stdout_and_stderr_in_one_place_keep_their_order() {
    let env = Env::new();
    let expected: Vec<_> = (0..3000).flat_map(|at| [format!("o{at}"), format!("e{at}")]).collect();
    for options in ["--log log", "--idle-timeout 1h", "--require-result", "--redact all", "--pty"] {
        for place in ["2>&1 | cat", ">file 2>&1; cat file", ">>appended 2>>appended; cat appended; rm appended"] {
            let mut shell = env.command("sh");
            // Of two descriptors that append, one has been written to.
            let script = format!(r#"{{ echo claude-run follows; "$0" {options} -- sh -c "$1"; }} {place}"#);
            shell.args(["-c", &script]).arg(binary()).arg(BOTH);
            let mut lines = Running::start(shell).end().stdout;
            lines.retain(|line| !line.starts_with("claude-run"));
            assert!(lines == expected, "{options} {place}: {} lines", lines.len());
        }
    }
}

#[test]
fn lines_of_runs_with_one_file_stay_whole() {
    let env = Env::new();
    // Five lines a write: a pipe takes them as a whole, so that no pause, after which the beginning of a line is passed on, falls into one.
    let printing = |letter: &str| format!("yes {} | head -n 3000 | dd obs=3505 2>/dev/null", letter.repeat(700));
    let script = r#"for letter in a b c; do eval "lines=\$$letter"; "$0" --lock pass-through -- sh -c "$lines" x --output-format stream-json >>all & done; wait"#;
    let mut shell = env.command("sh");
    for letter in ["a", "b", "c"] {
        shell.env(letter, printing(letter));
    }
    shell.args(["-c", script]).arg(binary());
    assert_eq!(Running::start(shell).end().code(), 0);
    let all = std::fs::read_to_string(env.path("all")).expect("a file");
    assert_eq!(all.lines().count(), 9000);
    let torn = all.lines().filter(|line| line.len() != 700 || line.bytes().any(|byte| byte != line.as_bytes()[0])).count();
    assert_eq!(torn, 0);
}

#[test]
fn lines_behind_a_slow_reader_stay_whole() {
    let env = Env::new();
    // Each writes a line at a time, as claude does.
    let script = r#"( "$0" --lock pass-through -- sh -c 'yes 1111111111111111111111111111111111111111 | head -n 60000 | dd bs=41 iflag=fullblock 2>/dev/null' x --output-format stream-json &
        yes 222222222222222222222222222222 | head -n 60000 | dd bs=31 iflag=fullblock 2>/dev/null; wait ) | (sleep 1; cat)"#;
    let mut shell = env.command("sh");
    shell.args(["-c", script]).arg(binary());
    let lines = Running::start(shell).end().stdout;
    let ours: Vec<_> = lines.iter().filter(|line| line.contains('1')).collect();
    assert_eq!(ours.len(), 60_000);
    assert!(ours.iter().all(|line| line.trim_start_matches('2').trim_end_matches('2').len() == 40), "a line of ours is torn");
}

#[test]
fn child_waits_when_no_more_can_be_spooled() {
    let env = Env::new();
    let script = r#""$0" --idle-timeout 1h -- sh -c 'yes | head -c 80000000; touch done' |
        (read line <go; head -c 40000000; read line <again; cat) | wc -c"#;
    let mut shell = env.command("sh");
    assert!(Command::new("mkfifo").args([env.path("go"), env.path("again")]).status().expect("mkfifo").success());
    shell.env("TMPDIR", "/nonexistent").args(["-c", script]).arg(binary());
    let run = Running::start(shell);
    let message = run.message();
    // By as much as one read more, where the relay comes late.
    let is_bound = ["8 MiB behind", "9 MiB behind"].iter().any(|bound| message.contains(bound));
    assert!(is_bound && message.contains("has to wait"), "{message}");
    // A child that does not wait is done by then.
    std::thread::sleep(Duration::from_secs(1));
    assert!(!env.path("done").exists(), "the child waits");
    std::fs::write(env.path("go"), "\n").expect("a FIFO");
    // It waits once more, which is not said again.
    let mut again = std::fs::File::options().write(true).open(env.path("again")).expect("a FIFO");
    std::thread::sleep(Duration::from_secs(1));
    assert!(!env.path("done").exists(), "the child waits");
    again.write_all(b"\n").expect("a FIFO");
    drop(again);
    let ended = run.end();
    assert_eq!((ended.stdout, ended.stderr), (vec!["80000000".to_owned()], vec![]));
}

#[test]
fn output_is_whole_where_memory_is_short() {
    let env = Env::new();
    // One arena: with more, the C library reserves address space in steps of 64 MiB.
    let script = r#"export MALLOC_ARENA_MAX=1; size=$("$0" --log log sh -c 'grep VmPeak /proc/$PPID/status | tr -dc 0-9')
        (ulimit -v $((size + 5000)); "$0" --log log head -c 20000000 /dev/zero; echo code $? >&2) | (sleep 1; wc -c)"#;
    for dir in ["/tmp", "/nonexistent"] {
        let mut shell = env.command("sh");
        shell.env("TMPDIR", dir).args(["-c", script]).arg(binary());
        let ended = Running::start(shell).end();
        let has_ended = ended.stderr.last().is_some_and(|line| line == "code 0");
        assert!(ended.stdout == ["20000000"] && has_ended, "{dir}: {ended:?}");
    }
}

#[test]
fn output_that_ends_within_a_frame_is_reported() {
    let env = Env::new();
    for (text, is_reported) in [(r#"{"type":"result","res"#, true), ("an answer", false), (r#"{"type":"assistant"}"#, false)] {
        let ended = env.start(["--", "sh", "-c", r#"printf %s "$0""#, text, "--output-format", "json"]).end();
        assert_eq!(ended.stderr_text().contains("in the middle of a frame"), is_reported, "{text}: {ended:?}");
    }
}

#[test]
fn result_without_a_newline_is_found_before_the_end() {
    let env = Env::new();
    // Also behind another frame that a pause has made whole.
    for before in ["", r#"printf '{"type":"user"}'; sleep 0.5; echo;"#] {
        let script = format!(r#"{before} printf '{{"type":"result","subtype":"success","is_error":false}}'; exec sleep 600"#);
        let ended = env.start(["--result-grace", "0.2", "--", "sh", "-c", &script, "sh", "--output-format", "json"]).end();
        assert!(ended.code() == 0 && ended.stderr_text().contains("result grace"), "{ended:?}");
    }
}

#[test]
fn result_in_an_array_of_any_length_counts() {
    let env = Env::new();
    let script = r#"printf '[{"type":"user","content":"'; head -c 7000000 /dev/zero | tr '\0' x
        printf '"},{"type":"user","content":"'; head -c 7000000 /dev/zero | tr '\0' x
        printf '"},{"type":"result","subtype":"success","is_error":false}]'"#;
    let mut command = env.command(binary());
    command.args(["--require-result", "--", "sh", "-c", script]);
    assert_eq!(Running::start(command).end().code(), 0);
}

#[test]
fn frames_after_a_result_cost_little() {
    let env = Env::new();
    let script = r#"echo '{"type":"result","subtype":"success","is_error":false}'; yes '{"type":"user"}' | head -n 300000
        cat /proc/$PPID/stat >stat; exit 4"#;
    let ended = env.start(["--", "sh", "-c", script, "x", "--output-format", "stream-json"]).end();
    assert_eq!((ended.code(), ended.stdout.len()), (4, 300_001));
    let stat = std::fs::read_to_string(env.path("stat")).expect("its times");
    let ticks: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split(' ')
        .skip(12)
        .take(2)
        .map(|field| field.parse().unwrap_or_default())
        .collect();
    assert!(ticks.iter().sum::<u64>() < 300, "{ticks:?} hundredths of a second");
}

#[test]
fn nonblocking_write_of_the_child_arrives_whole() {
    let env = Env::new();
    let output = framed(&env, &[], "dropping 4000000; exit 3").output().expect("started");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(3), "about to answer\n".len() + 4_000_001));
}

#[test]
fn idle_limit_counts_bytes_on_either_stream() {
    let env = Env::new();
    let started = Instant::now();
    // Longer than the limit between two bytes on one of them.
    let script = "for i in 1 2; do sleep 1.2; echo $i; sleep 1.2; echo $i >&2; done; echo done; exec sleep 600";
    let ended = env.start(["--idle-timeout", "2", "--", "sh", "-c", script]).end();
    assert_eq!((ended.code(), ended.stdout.last().map(|line| &**line)), (124, Some("done")), "{ended:?}");
    assert!(ended.stderr_text().contains("--idle-timeout 2s reached: "), "{ended:?}");
    assert!(started.elapsed() >= Duration::from_millis(6_800));
    assert_eq!(env.start(["--idle-timeout", "0", "--", "sh", "-c", "sleep 0.3; exit 3"]).end().code(), 3);
}

#[test]
fn idle_limit_that_limits_the_whole_run_is_said() {
    let env = Env::new();
    for (format, is_said) in [("text", true), ("json", true), ("stream-json", false)] {
        let mut command = env.command(binary());
        command.arg("--claude").arg(fake_claude()).args([
            "--idle-timeout",
            "1h",
            "--",
            "-p",
            "exit 0",
            "--output-format",
            format,
        ]);
        let ended = Running::start(command).end();
        assert_eq!(
            (ended.code(), ended.stderr_text().contains("--idle-timeout limits the whole run")),
            (0, is_said),
            "{ended:?}"
        );
    }
}

#[test]
fn require_result_accepts_only_a_successful_frame() {
    let env = Env::new();
    let cut = r#"say {"type":"result","subtype":"success","is_error":fal"#;
    let max_turns = r#"say {"type":"result","subtype":"error_max_turns","is_error":false}"#;
    for (steps, code) in [
        ("init; result new ok; exit 0", 0),
        ("init; result old ok; exit 0", 0),
        ("result old error; result old ok; exit 0", 0),
        ("result old ok; result old error; exit 0", 65),
        ("init; exit 0", 65),
        (cut, 65),
        (max_turns, 65),
        (&format!("result old ok; init; {cut}"), 65),
        ("result old ok; init; exit 0", 65),
        ("init; exit 3", 3),
        ("result new ok; exit 3", 3),
        ("die KILL", 137),
    ] {
        let ended = start(&env, &["--require-result"], steps).end();
        assert_eq!(ended.code(), code, "{steps}: {ended:?}");
        assert_eq!(ended.stderr_text().contains("result frame"), code == 65, "{steps}: {ended:?}");
    }
    // Set for all runs, it counts for those that are asked for frames.
    let of_all = |options: &[&str]| {
        let mut command = env.command(binary());
        command.env("CLAUDE_RUN_REQUIRE_RESULT", "on").arg("--claude").arg(fake_claude()).args(["--", "-p", "exit 0"]);
        Running::start({
            command.args(options);
            command
        })
        .end()
        .code()
    };
    assert_eq!([of_all(&[]), of_all(&["--output-format", "json"])], [0, 65]);
    // Also where the arguments do not show that there will be frames; and a child that hangs after such a result.
    assert_eq!(env.start_fake(&["--require-result"], "result new ok").end().code(), 0);
    let options = ["--require-result", "--result-grace", "0.1"];
    assert_eq!(start(&env, &options, &format!("{max_turns}; hang")).end().code(), 65);
    assert_eq!(start(&env, &options, "result new ok; hang").end().code(), 0);
    assert_eq!(start(&env, &options, r#"result new ok; say {"type":"system","subtype":"hook; hang"#).end().code(), 0);
}

#[test]
fn stdout_and_stderr_are_redacted_only_on_request() {
    let env = Env::new();
    let print = r#"printf 'GH_'; sleep 0.1; printf 'TOKEN=ab'; sleep 0.1; echo "c $GITHUB_KEY"; echo sk-ant-x >&2"#;
    for (redact, out, err) in [("all", "GH_TOKEN=*** ***", "sk-ant-***"), ("log", "GH_TOKEN=abc geheim", "sk-ant-x")] {
        let mut command = env.command(binary());
        command.env("GITHUB_KEY", "geheim").args(["--redact", redact, "--log", "log", "--", "sh", "-c", print]);
        let ended = Running::start(command).end();
        assert_eq!((ended.stdout, ended.stderr), (vec![out.to_owned()], vec![err.to_owned()]), "{redact}");
    }
}

#[test]
fn new_turn_ends_the_result_grace() {
    let env = Env::new();
    let run = start(&env, &["--result-grace", "1"], "result old; init; sleep 3; result old; exit 4");
    assert_eq!(run.end().code(), 4);
}

#[test]
fn result_grace_begins_at_the_end_of_streamed_input() {
    let env = Env::new();
    let mut command = framed(&env, &["--result-grace", "1"], "result old; hang");
    command.args(["--input-format", "stream-json"]).stdin(std::process::Stdio::piped());
    let mut run = Running::start(command);
    run.line();
    std::thread::sleep(std::time::Duration::from_secs(3)); // longer than the grace, and the next message may come
    assert!(run.is_running());
    run.close_stdin();
    assert_eq!(run.end().code(), 0);
    let mut at_end = framed(&env, &["--result-grace", "1"], "result old; hang");
    at_end.args(["--input-format=stream-json"]).stdin(std::process::Stdio::null());
    assert_eq!(Running::start(at_end).end().code(), 0, "a file or a device is at its end");
}

#[test]
fn spool_leaves_most_of_a_small_disk_free() {
    if !crate::env::can_unshare("-rm") {
        return;
    }
    let env = Env::new();
    // A quarter of it for our reader, who comes late.
    let script = r#"mkdir disk; mount -t tmpfs -o size=16m none disk
        TMPDIR=$PWD/disk "$0" --log log -- head -c 60000000 /dev/zero | (read line <go; df --output=avail disk; wc -c)"#;
    assert!(Command::new("mkfifo").arg(env.path("go")).status().expect("mkfifo").success());
    let mut unshare = env.command("unshare");
    unshare.args(["-rm", "sh", "-c", script]).arg(binary());
    let run = Running::start(unshare);
    assert!(run.message().contains("has to wait"));
    std::fs::write(env.path("go"), "\n").expect("a FIFO");
    let ended = run.end();
    let free: u64 = ended.stdout[1].trim().parse().expect("KiB");
    assert!(free >= 12 << 10 && ended.stdout[2] == "60000000", "{ended:?}");
}

#[test]
fn closed_stdout_that_is_relayed_is_74_and_stderr_is_not() {
    let env = Env::new();
    for (closed, code) in [(">&-", "74\n"), ("2>&-", "0\n"), ("<&-", "0\n")] {
        let script = format!(r#"{{ "$0" --log log sh -c 'echo out; echo err >&2' {closed}; }} >/dev/null 2>&1; echo $?"#);
        let mut shell = env.command("sh");
        let output = shell.args(["-c", &script]).arg(binary()).output().expect("started");
        assert_eq!(String::from_utf8_lossy(&output.stdout), code, "{closed}");
    }
    let script = r#""$0" --log log sh -c 'echo err >&2' 3>&1 >&- 2>/dev/null; echo $?"#;
    let output = env.command("sh").args(["-c", script]).arg(binary()).output().expect("started");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n", "nothing was printed there");
}

#[test]
fn frames_in_dev_null_are_not_mixed_with_stderr() {
    let env = Env::new();
    let steps = "printf 'w... ' >&2; exec \"$1\" -p 'result new ok; hang' --output-format json";
    let script = format!(
        r#""$0" --result-grace 0.1 -- sh -c '{}' sh "$1" --output-format json >/dev/null 2>&1"#,
        steps.replace('\'', r"'\''")
    );
    let status = env.command("sh").args(["-c", &script]).arg(binary()).arg(fake_claude()).status().expect("started");
    assert_eq!(status.code(), Some(0));
    // But a log keeps their order.
    let script = r#""$0" --log log sh -c 'for i in 1 2 3 4 5 6 7 8; do echo a; echo b >&2; done' >/dev/null 2>&1"#;
    assert!(env.command("sh").args(["-c", script]).arg(binary()).status().expect("started").success());
    let log = std::fs::read_to_string(env.path("log")).expect("a log");
    let order: String = log.lines().filter_map(|line| line.split_once("stdout: ")).map(|(_, text)| text).collect();
    assert_eq!(order, "ab".repeat(8), "{log}");
}
