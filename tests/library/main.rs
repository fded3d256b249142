//! The library entry leaves nothing behind in its own process: no descriptor, no thread, no child, no memory over 1,000 runs, or
//! over as many as its first argument says.
//! A program of its own, without a test harness, because a run takes over the signals and children of its process.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a test says what is wrong by ending")]

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use claude_run::outcome::Outcome;
use nix::sys::signal::{Signal, raise};

fn count(dir: &str) -> usize {
    fs::read_dir(dir).expect("/proc").count()
}

/// Resident memory that is no file's, in KiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn run(words: &[&str]) -> Outcome {
    let words = ["claude-run"].iter().chain(words).map(OsString::from).collect();
    claude_run::run(words).expect("a run")
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if arguments.iter().any(|word| word == "--list") {
        // What nextest asks of a test program first; it has one test, and no ignored ones.
        if !arguments.iter().any(|word| word == "--ignored") {
            println!("a_thousand_runs_leave_nothing_behind: test");
        }
        return;
    }
    if let Some(signal) = arguments.iter().find_map(|word| word.strip_prefix("--raise=")) {
        let signal: Signal = signal.parse().expect("a signal");
        // A job in the background of a script ignores INT.
        // SAFETY: the default disposition runs no code.
        unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl).expect("a disposition") };
        assert_eq!(run(&["true"]), Outcome::Exited(0));
        raise(signal).expect("raise");
        return;
    }
    let home = tempfile::TempDir::new().expect("a temporary directory");
    // SAFETY: no other thread is there yet.
    unsafe { std::env::set_var("HOME", home.path()) };
    let runs: u32 = arguments.iter().skip(1).find_map(|word| word.parse().ok()).unwrap_or(1_000);
    for _ in 0..20 {
        assert_eq!(run(&["true"]), Outcome::Exited(0)); // whatever is set up once is set up now
    }
    let before = (count("/proc/self/fd"), count("/proc/self/task"));
    let mut memory_before = memory();
    for number in 0..runs {
        if number == 100 {
            memory_before = memory(); // the allocator has what it needs by now
        }
        let status = (number % 256) as u8;
        assert_eq!(run(&["--", "sh", "-c", &format!("exit {status}")]), Outcome::Exited(status));
    }
    let more = memory().saturating_sub(memory_before);
    assert!(more < 128, "{more} KiB more than before {runs} runs");
    assert_eq!(run(&["--timeout", "0.01", "sleep", "600"]), Outcome::HardLimit);
    assert!(claude_run::run(vec!["claude-run".into(), "/nonesuch".into()]).is_err());
    assert_eq!((count("/proc/self/fd"), count("/proc/self/task")), before, "(descriptors, threads)");
    let children = fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).expect("children");
    assert_eq!(children, "");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let itself = std::env::current_exe().expect("a path");
        let status = Command::new(itself).arg(format!("--raise={signal}")).status().expect("this program");
        assert_eq!(status.signal(), Some(signal as i32), "a run gives back the disposition of {signal}");
    }
    // The line that a test runner's reader looks for.
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out ({runs} runs of the library entry)");
}
