//! Monitor of a lock helper: this program once more, as a process between us and the helper, which ends the helper when we ask for
//! it, or die. A signal at our death, as the child gets it, would reach the helper alone, and not what a helper that is a script has
//! started; EOF on a socket whose other end only we have reaches the monitor in any case. It ends only after the helper and all that
//! the helper has started. Nobody else reaps the helper, so its pid never means another process.
//!
//! The monitor has none of our descriptors, above all not the lock's; it blocks all signals, so that no key ends or stops it; and it is a
//! subreaper, so that no process that the helper has left becomes a child of ours, where it would pass for one of the run's.

use std::ffi::OsString;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::{set_child_subreaper, set_name, set_pdeathsig};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid, getppid, setpgid};
use serde::{Deserialize, Serialize};

use crate::claude::program::Program;
use crate::config::duration::after;
use crate::sys::exec::{Exec, SpawnError, dup_onto, spawn};
use crate::sys::signal::{self, InheritedDispositions};
use crate::sys::signal_pipe;
use crate::sys::wait::{self, ChildStatus};

/// Name under which this program is a monitor.
pub const MONITOR: &str = "lock-monitor";

/// Message of the monitor, a line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The helper's first line on stdout.
    Key(String),
    /// Reason why there may never be one.
    NoKey(String),
    /// Reason why there will never be one.
    NeverKey(String),
    /// A line on the helper's stderr.
    Message(String),
    /// The helper cannot be signalled, by this errno.
    OutOfReach(i32),
    /// The kill grace has expired: KILL is sent.
    Killing,
    End(HelperEnd),
}

/// End of a lock helper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum HelperEnd {
    /// End of a helper that ran: its status or signal, and its last line on stderr.
    Ended(String),
    /// execve(2) failed with this errno.
    NotExecutable(i32),
    /// There was no process for it; the reason.
    NotStarted(String),
}

/// Starts the monitor of a helper that runs `program`. It reads control bytes from `socket`, of which the first requests TERM, and the
/// second, or EOF when we die, an immediate KILL; and writes [`Report`]s. A refresh before the start outlives us, and has the other end, too.
pub(super) fn start(
    program: &Program,
    kill_grace: Option<Duration>,
    signals: &InheritedDispositions,
    socket: UnixStream,
) -> io::Result<Child> {
    let grace = kill_grace.map_or_else(|| "none".to_owned(), |grace| grace.as_millis().to_string());
    let mut command = Command::new("/proc/self/exe");
    command.arg0(MONITOR).arg(grace).arg(&program.path).args(&program.argv);
    // In a group of its own: a terminal's keys are not for it.
    command.stdin(OwnedFd::from(socket)).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let signals = *signals;
    // SAFETY: both are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            signal_pipe::forget();
            Ok(signals.restore()?)
        })
    }
    .spawn()
}

/// Runs the monitor that `start` has started with `words`.
///
/// # Errors
/// There is nobody to report to.
pub fn run_monitor(words: &[OsString]) -> Result<()> {
    let inherited = inherited_descriptors();
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let end = run(words, inherited, &socket).unwrap_or_else(|error| HelperEnd::NotStarted(format!("{error:#}")));
    report(&socket, &Report::End(end));
    Ok(())
}

/// Descriptors from before our exec that are no standard ones. The helper inherits them, as the child does.
fn inherited_descriptors() -> Vec<OwnedFd> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<RawFd> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // That of the directory itself is closed by now.
    let is_open = |number: &RawFd| *number > 2 && Path::new(&format!("/proc/self/fd/{number}")).exists();
    // SAFETY: they are open, and nothing in this process owns them.
    numbers.into_iter().filter(is_open).map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
}

fn report(mut socket: &UnixStream, report: &Report) {
    // An error means that nobody reads.
    let _ = serde_json::to_string(report).map(|line| socket.write_all((line + "\n").as_bytes()));
}

/// Starts the helper, and keeps it until it and all that it has started have ended.
fn run(words: &[OsString], inherited: Vec<OwnedFd>, socket: &UnixStream) -> Result<HelperEnd> {
    let [_, grace, path, argv @ ..] = words else { bail!("words are missing") };
    let kill_grace = grace.to_str().and_then(|grace| grace.parse().ok()).map(Duration::from_millis);
    let signals = InheritedDispositions::take()?;
    SigSet::all().thread_block()?;
    let changes = SignalFd::with_flags(&SigSet::from(Signal::SIGCHLD), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let _ = set_name(c"lock-monitor");
    let _ = set_child_subreaper(true); // where that is refused, none of the helper's processes becomes a child of ours either
    let ((stdout, its_stdout), (stderr, its_stderr)) = (io::pipe()?, io::pipe()?);
    let environment: Vec<_> = env::vars_os().collect();
    let exec = Exec::new(Path::new(path), argv, &environment, &[libc::STDIN_FILENO])?;
    let monitor = getpid();
    let prepare = || {
        // In a group of its own, it can be ended with all that it has started.
        let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
        // Where that is refused, only a KILL of the monitor itself can leave the helper behind.
        let _ = set_pdeathsig(Signal::SIGKILL);
        if getppid() != monitor {
            return Err(Errno::ECHILD);
        }
        dup_onto(its_stdout.as_fd(), libc::STDOUT_FILENO)?;
        dup_onto(its_stderr.as_fd(), libc::STDERR_FILENO)
    };
    // SAFETY: those are async-signal-safe.
    let helper = match unsafe { spawn(&exec, &signals, prepare) } {
        Ok(helper) => helper,
        Err(SpawnError::NoProcess(errno)) => return Err(errno).context("no process for it"),
        Err(SpawnError::Prepare(errno) | SpawnError::Exec(errno)) => return Ok(HelperEnd::NotExecutable(errno as i32)),
    };
    drop((its_stdout, its_stderr, exec, inherited));
    let (stdout, stderr) = (Lines::of(stdout), Lines::of(stderr));
    let mut monitor = Monitor { helper, socket, changes, stdout, stderr, has_answer: false, last_message: String::new() };
    let how = monitor.supervise(kill_grace);
    monitor.end_descendants();
    for _ in 0..64 * 1024 / Lines::LONGEST {
        monitor.wait(Some(Instant::now()), false); // what it has printed before its end: as much as a pipe holds
    }
    Ok(HelperEnd::Ended(how + &monitor.last_message))
}

/// A monitor at work.
struct Monitor<'a> {
    helper: Pid,
    socket: &'a UnixStream,
    /// Readable after a SIGCHLD.
    changes: SignalFd,
    stdout: Lines,
    stderr: Lines,
    has_answer: bool,
    last_message: String,
}

/// State of the helper.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    /// TERM was sent; KILL follows at this time.
    Terminating(Option<Instant>),
    Killed,
}

impl Monitor<'_> {
    /// Serves requests until the helper has ended. It stays a zombie, so that its process group means no other.
    fn supervise(&mut self, kill_grace: Option<Duration>) -> String {
        let mut stage = Stage::Running;
        loop {
            if let Some(how) = self.how_it_ended() {
                return how;
            }
            let kill_at = if let Stage::Terminating(at) = stage { at } else { None };
            if kill_at.is_some_and(|at| Instant::now() >= at) {
                report(self.socket, &Report::Killing);
                stage = self.kill();
            } else if self.wait(kill_at, stage != Stage::Killed) {
                let is_request = self.socket.read(&mut [0]).is_ok_and(|length| length > 0);
                // Else it is asked again; or claude-run is dead, and the kernel sends claude a TERM at this moment. A helper that KILL
                // ends cannot release its lock, which so, where the engine has leases, lasts for the time that claude needs to end.
                stage = if is_request && stage == Stage::Running { self.terminate(kill_grace) } else { self.kill() };
            }
        }
    }

    fn terminate(&self, kill_grace: Option<Duration>) -> Stage {
        if let Err(errno) = killpg(self.helper, Signal::SIGTERM) {
            report(self.socket, &Report::OutOfReach(errno as i32));
        }
        let _ = killpg(self.helper, Signal::SIGCONT); // a stopped process does not handle TERM
        Stage::Terminating(after(Instant::now(), kill_grace))
    }

    fn kill(&self) -> Stage {
        let _ = killpg(self.helper, Signal::SIGKILL);
        Stage::Killed
    }

    /// How the helper has ended, if it has. Other zombies are reaped.
    fn how_it_ended(&self) -> Option<String> {
        while let Ok(Some(ChildStatus { pid, code, status })) = wait::next_status(None, libc::WEXITED | libc::WNOWAIT) {
            if pid == self.helper.as_raw() {
                return Some(match code {
                    libc::CLD_EXITED => format!("exit status {status}"),
                    _ => format!("ended by {}", signal::name(status)),
                });
            }
            wait::reap(Pid::from_raw(pid));
        }
        None
    }

    /// Ends what is left of the group of the helper, a zombie, and what has left that: orphans, and so children of ours.
    fn end_descendants(&self) {
        self.kill();
        wait::reap(self.helper);
        while wait::has_children(libc::WSTOPPED) {
            let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
            let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
            if pids.filter(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok()).count() == 0 {
                return;
            }
            let _ = waitpid(None::<Pid>, None); // then look again
        }
    }

    /// Sleeps until a child has changed, the helper has printed something, `deadline` has come or, if it `is_listening`, there is a
    /// request. Reports what was printed. True if there is a request, or EOF.
    fn wait(&mut self, deadline: Option<Instant>, is_listening: bool) -> bool {
        let timeout = deadline.map(|at| TimeSpec::from_duration(at.saturating_duration_since(Instant::now())));
        let control = is_listening.then(|| self.socket.as_fd());
        let sources = [Some(self.changes.as_fd()), control, self.stdout.source(), self.stderr.source()];
        let mut polled: Vec<_> = sources.iter().flatten().map(|source| PollFd::new(*source, PollFlags::POLLIN)).collect();
        let _ = ppoll(&mut polled, timeout, None); // no signal interrupts it
        let mut polled = polled.iter();
        let is_ready = sources.map(|source| source.and_then(|_| polled.next()?.any()).unwrap_or(false));
        let [_, is_asked, has_stdout, has_stderr] = is_ready;
        let _ = self.changes.read_signal(); // the children tell the rest
        if has_stderr {
            self.stderr.fill();
            for line in self.stderr.take_lines() {
                self.last_message = format!(": {line}");
                report(self.socket, &Report::Message(line));
            }
        }
        if has_stdout {
            self.stdout.fill();
            if let Some(answer) = self.stdout.first_line().filter(|_| !self.has_answer) {
                self.has_answer = matches!(answer, Report::Key(_) | Report::NeverKey(_));
                report(self.socket, &answer);
            }
            if self.has_answer {
                self.stdout.partial.clear(); // later lines are of no interest, but must not fill the pipe
            }
        }
        is_asked
    }
}

/// One of the helper's outputs, cut into lines.
struct Lines {
    from: PipeReader,
    partial: Vec<u8>,
    at_end: bool,
}

impl Lines {
    /// Longest key or message, of which the rest is cut; and most that is read at once.
    const LONGEST: usize = 4096;

    fn of(from: PipeReader) -> Self {
        Self { from, partial: Vec::new(), at_end: false }
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        (!self.at_end).then(|| self.from.as_fd())
    }

    /// Reads once.
    fn fill(&mut self) {
        let mut piece = [0; Self::LONGEST];
        let length = self.from.read(&mut piece).unwrap_or(0);
        self.partial.extend_from_slice(&piece[..length]);
        self.at_end = length == 0;
    }

    /// Lines that are complete, or too long to wait for their end.
    fn take_lines(&mut self) -> Vec<String> {
        let is_enough = self.at_end || self.partial.len() > Self::LONGEST;
        let end = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<_> = self.partial.drain(..if is_enough { self.partial.len() } else { end }).collect();
        lines.split_inclusive(|byte| *byte == b'\n').map(text).collect()
    }

    /// The first line, or the reason why there is none: one that is cut or has no end says nothing.
    fn first_line(&self) -> Option<Report> {
        let end = self.partial.iter().position(|byte| *byte == b'\n');
        Some(match end {
            Some(end) if end <= Self::LONGEST => Report::Key(text(&self.partial[..end])),
            _ if self.partial.len() > Self::LONGEST => Report::NeverKey("its first line is longer than 4 KiB".to_owned()),
            _ if self.partial.is_empty() && self.at_end => Report::NoKey("it has closed its stdout without a line".to_owned()),
            _ if self.partial.is_empty() => return None,
            _ if self.at_end => Report::NeverKey("it has closed its stdout before the end of its first line".to_owned()),
            _ => Report::NoKey("it has printed something, but no whole line".to_owned()),
        })
    }
}

/// `line` without control characters, cut if it is too long.
fn text(line: &[u8]) -> String {
    let line = &line[..line.len().min(Lines::LONGEST)];
    String::from_utf8_lossy(line).chars().filter(|character| !character.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_clean() -> Result<()> {
        let (from, mut to) = io::pipe()?;
        let mut lines = Lines::of(from);
        let read = |lines: &mut Lines| {
            lines.fill();
            lines.take_lines()
        };
        to.write_all(b"factory/69")?;
        assert!(read(&mut lines).is_empty() && !lines.at_end, "not whole yet");
        to.write_all(b"4d\r\n\n\x1b[31mred\0\xff\nhalf")?;
        assert_eq!(read(&mut lines), ["factory/694d", "", "[31mred\u{fffd}"]);
        to.write_all(&[b'x'; Lines::LONGEST])?;
        assert_eq!(read(&mut lines).concat().len(), Lines::LONGEST, "cut");
        to.write_all(b"last")?;
        drop(to);
        assert!(read(&mut lines).is_empty());
        assert_eq!(read(&mut lines), ["last"]);
        assert!(lines.at_end && lines.source().is_none());
        Ok(())
    }

    #[test]
    fn first_line_counts_only_with_its_end() -> Result<()> {
        let first = |text: &[u8], is_closed: bool| -> Result<Option<String>> {
            let (from, mut to) = io::pipe()?;
            let mut lines = Lines::of(from);
            to.write_all(text)?;
            for _ in 0..text.len().div_ceil(Lines::LONGEST) {
                lines.fill();
            }
            let _open = (!is_closed).then_some(to);
            if is_closed {
                lines.fill();
            }
            Ok(lines.first_line().map(|report| format!("{report:?}").split('(').next().unwrap_or_default().to_owned()))
        };
        let long = [vec![b'x'; Lines::LONGEST + 1], vec![b'\n']].concat();
        let longest = &long[1..];
        for (text, is_closed, expected) in [
            (&b"key\nmore"[..], false, Some("Key")),
            (b"key\n", true, Some("Key")),
            (longest, false, Some("Key")),
            (&long, false, Some("NeverKey")),
            (&long[..long.len() - 1], false, Some("NeverKey")),
            (b"key", true, Some("NeverKey")),
            (b"key", false, Some("NoKey")),
            (b"", true, Some("NoKey")),
        ] {
            assert_eq!(first(text, is_closed)?.as_deref(), expected, "{} bytes, {is_closed}", text.len());
        }
        Ok(())
    }
}
