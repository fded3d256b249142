//! A fake claude: does what Claude Code was measured to do, on request, and says what happens to it.
//!
//!     fake_claude -p 'STEP; STEP; …' [any other argument of claude]
//!
//! | step | what it does |
//! |---|---|
//! | `ready` | prints `ready PID PPID PGID SID` |
//! | `signals` | from now on prints `signal NAME` for each HUP INT QUIT TERM USR2 WINCH CONT, and lives on |
//! | `ignore NAME` | ignores the signal |
//! | `on NAME exit N` | at that signal prints its line and exits with N |
//! | `tool COMMAND` | a Bash tool: `/bin/bash -c COMMAND` in a session of its own; waits for it |
//! | `tool& COMMAND` | the same, without waiting |
//! | `orphans N` | N processes that lose their parent and end at once |
//! | `bomb N` | N processes in sessions of their own that ignore TERM, each started by another; each ends after two minutes |
//! | `init` | the frame that opens a stream |
//! | `result ORDER WHAT` | a result frame; ORDER: `new` (2.1.330's order of keys) or `old` (2.1.84's); WHAT: `ok`, `error`, or `refused`, by an API that refuses the login |
//! | `text N` | N bytes on stdout, in lines of 80 |
//! | `dropping N` | N bytes in one write to a stdout made non-blocking, what it does not take at once lost, as 2.1.84 does |
//! | `say WORDS` | a line of text |
//! | `env NAME` | prints `NAME=value`, or `NAME unset` |
//! | `refresh KIND [STEP]` | refreshes its token if that is due: see `refresh.rs` |
//! | `ask [KIND]` | asks the API, prints `answered`; with KIND, refreshes a token that is refused |
//! | `read` | reads stdin to its end and prints `read N` bytes |
//! | `open PATH` | opens a FIFO for reading, and so waits until somebody opens its other end |
//! | `sleep SECONDS`, `hang` | waits, or waits for ever |
//! | `headless` | ends its first thread and lives on in another, so that /proc calls it a zombie |
//! | `hide` | hides its namespaces and environment, as a program with capabilities does |
//! | `stop` | stops itself |
//! | `exit N`, `die NAME` | ends, by itself or by the signal |
//!
//! Without an `exit` it ends with 0. As `fake_claude mcp get NAME`, the steps are those of the variable `FAKE_MCP_GET`.

#![expect(clippy::exit, clippy::print_stderr, reason = "a test says what is wrong by ending")]

mod refresh;

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigHandler, Signal, raise, signal};
use nix::unistd::{ForkResult, fork, getpgrp, getpid, getppid, getsid, pause, setsid};

const SHOWN: [Signal; 7] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR2, Signal::SIGWINCH, Signal::SIGCONT];

fn main() {
    let mut arguments = env::args().skip(1).peekable();
    let prompt = match arguments.peek().map(String::as_str) {
        Some("mcp") => env::var("FAKE_MCP_GET").ok(),
        _ => arguments.by_ref().find(|word| word == "-p").and_then(|_| arguments.next()),
    };
    for step in prompt.unwrap_or_default().split(';').map(str::trim).filter(|step| !step.is_empty()) {
        if let Err(error) = act(step) {
            eprintln!("fake_claude: {step}: {error}");
            exit(98);
        }
    }
}

fn act(step: &str) -> io::Result<()> {
    let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
    match verb {
        "ready" => say(&format!("ready {} {} {} {}", getpid(), getppid(), getpgrp(), getsid(None)?)),
        "signals" => {
            for shown in SHOWN {
                on(shown, None)?;
            }
            Ok(())
        }
        // SAFETY: SIG_IGN runs no code.
        "ignore" => Ok(unsafe { signal(named(rest)?, SigHandler::SigIgn) }.map(|_| ())?),
        "on" => match rest.split(' ').collect::<Vec<_>>()[..] {
            [name, "exit", status] => on(named(name)?, Some(number(status)?)),
            _ => Err(io::Error::other("on NAME exit N")),
        },
        "tool" => tool(rest)?.wait().map(|_| ()),
        "tool&" => tool(rest).map(|_| ()),
        "orphans" => orphans(number(rest)?),
        "bomb" => bomb(number(rest)?),
        "init" => say(r#"{"type":"system","subtype":"init","session_id":"fake"}"#),
        "result" => say(&result(rest)),
        "text" => text(number(rest)?),
        "dropping" => dropping(number(rest)?),
        "say" => say(rest),
        "env" => match env::var(rest) {
            Ok(value) => say(&format!("{rest}={value}")),
            Err(_) => say(&format!("{rest} unset")),
        },
        "refresh" => refresh::refresh(rest),
        "ask" => refresh::ask(rest),
        "read" => {
            let mut all = Vec::new();
            io::stdin().read_to_end(&mut all)?;
            say(&format!("read {}", all.len()))
        }
        "open" => File::open(rest)?.read_to_end(&mut Vec::new()).map(|_| ()),
        "sleep" => {
            sleep(Duration::from_secs_f64(rest.parse().map_err(io::Error::other)?));
            Ok(())
        }
        "hang" => loop {
            pause();
        },
        "headless" => {
            std::thread::spawn(|| {
                loop {
                    pause();
                }
            });
            // SAFETY: exit(2) itself, unlike the C library's, ends one thread alone; nothing of Rust's runs after it.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            Ok(())
        }
        "hide" => Ok(nix::sys::prctl::set_dumpable(false)?),
        "stop" => Ok(raise(Signal::SIGSTOP)?),
        "exit" => exit(number(rest)?),
        "die" => {
            let name = named(rest)?;
            if name != Signal::SIGKILL {
                // SAFETY: SIG_DFL runs no code.
                unsafe { signal(name, SigHandler::SigDfl) }?;
            }
            Ok(raise(name)?)
        }
        _ => Err(io::Error::other("unknown step")),
    }
}

fn say(line: &str) -> io::Result<()> {
    // One write a line, so that lines from a signal handler cannot fall into another.
    io::stdout().write_all(format!("{line}\n").as_bytes())?;
    io::stdout().flush()
}

fn named(name: &str) -> io::Result<Signal> {
    Ok(format!("SIG{name}").parse()?)
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| io::Error::other("a number is wanted"))
}

/// Prints `signal NAME` from the handler itself, so that the order on stdout is that of arrival.
fn on(shown: Signal, status: Option<i32>) -> io::Result<()> {
    let line = format!("signal {}\n", &shown.as_str()[3..]);
    let action = move || {
        // SAFETY: write(2) and _exit(2) are async-signal-safe; the line lives as long as the handler.
        unsafe {
            libc::write(libc::STDOUT_FILENO, line.as_ptr().cast(), line.len());
            if let Some(status) = status {
                libc::_exit(status);
            }
        }
    };
    // SAFETY: the action is async-signal-safe, see there.
    unsafe { signal_hook::low_level::register(shown as i32, action) }.map(|_| ())
}

fn tool(command: &str) -> io::Result<std::process::Child> {
    let mut bash = Command::new("/bin/bash");
    // SAFETY: setsid(2) is async-signal-safe.
    unsafe { bash.pre_exec(|| Ok(setsid().map(|_| ())?)) };
    bash.args(["-c", command]).spawn()
}

fn orphans(count: u32) -> io::Result<()> {
    for _ in 0..count {
        // SAFETY: this program has one thread; the children only fork, wait and exit.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                nix::sys::wait::waitpid(child, None)?;
            }
            // SAFETY: as above; _exit(2) runs nothing of the parent's.
            ForkResult::Child => unsafe {
                let _ = fork();
                libc::_exit(0)
            },
        }
    }
    Ok(())
}

/// Returns when all have been started.
fn bomb(most: u32) -> io::Result<()> {
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping touches nothing.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, flags, -1, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    // SAFETY: the page is zero, which is a valid counter, and is never unmapped.
    let count = unsafe { &*page.cast::<AtomicU32>() };
    // SAFETY: this program has one thread.
    if let ForkResult::Parent { .. } = unsafe { fork() }? {
        while count.load(Ordering::Relaxed) < most {
            sleep(Duration::from_millis(1));
        }
        return Ok(());
    }
    // SAFETY: SIG_IGN runs no code.
    unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }?;
    loop {
        nix::unistd::alarm::set(120);
        let _ = setsid();
        // SAFETY: as above.
        while count.fetch_add(1, Ordering::Relaxed) >= most || unsafe { fork() }?.is_parent() {
            sleep(Duration::from_millis(1));
        }
    }
}

fn result(what: &str) -> String {
    let (order, ending) = what.split_once(' ').unwrap_or((what, "ok"));
    let is_error = ending != "ok";
    let text = match (order, ending) {
        ("old", "refused") => "Failed to authenticate. API Error: 401 OAuth token has expired.",
        (_, "refused") => "Failed to authenticate: OAuth session expired and could not be refreshed",
        _ => "done",
    };
    match order {
        "old" => format!(
            r#"{{"type":"result","subtype":"success","is_error":{is_error},"session_id":"fake","num_turns":1,"total_cost_usd":0.01,"result":"{text}"}}"#
        ),
        _ => format!(
            r#"{{"duration_api_ms":65,"stop_reason":"end_turn","session_id":"fake","total_cost_usd":0.01,"result":"{text}","num_turns":1,"is_error":{is_error},"subtype":"success","type":"result"}}"#
        ),
    }
}

fn dropping(bytes: usize) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(io::stdout(), FcntlArg::F_GETFL)?);
    fcntl(io::stdout(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    say("about to answer")?;
    sleep(Duration::from_millis(300)); // as long as an API takes at least
    let mut answer = b"x".repeat(bytes);
    answer.push(b'\n');
    let _ = nix::unistd::write(io::stdout(), &answer)?;
    Ok(())
}

fn text(bytes: usize) -> io::Result<()> {
    let line = [b"x".repeat(79), b"\n".to_vec()].concat();
    let mut out = io::BufWriter::new(io::stdout());
    for at in (0..bytes).step_by(line.len()) {
        out.write_all(&line[..line.len().min(bytes - at)])?;
    }
    out.flush()
}
