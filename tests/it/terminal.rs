//! In a terminal: the child is signalled by the terminal itself, exactly once, and job control works.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::unistd::setsid;
use wait_timeout::ChildExt;

use crate::env::{CEILING, Env, binary, fake_claude, is_alive, shell_code, wait_until};

/// Process that leads a session on a pseudo-terminal, as a login shell does.
pub(crate) struct OnTerminal {
    child: Child,
    /// Our side of the terminal; `None` after its hang-up.
    keyboard: Option<Arc<File>>,
    screen: Receiver<String>,
    pub(crate) seen: Vec<String>,
    /// All that has been shown, lines that may go on included.
    shown: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    pub(crate) fn start(command: Command) -> Self {
        Self::of_size(command, None)
    }

    /// On a terminal of so many columns and rows.
    pub(crate) fn sized(command: Command, columns: u16, rows: u16) -> Self {
        Self::of_size(command, Some(Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }))
    }

    fn of_size(mut command: Command, size: Option<Winsize>) -> Self {
        // Close-on-exec from the start, unlike openpty(3): else what another test starts at this moment would inherit both ends.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a pseudo-terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("a pseudo-terminal");
        let name = ptsname_r(&master).expect("its name");
        let slave = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name).expect("its other end");
        if let Some(size) = size {
            // SAFETY: it reads `size`.
            assert_eq!(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }, 0);
        }
        let stdio = || Stdio::from(slave.try_clone().expect("a descriptor"));
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        // SAFETY: setsid(2) and ioctl(2) are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                nix::errno::Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
                Ok(())
            });
        }
        let child = command.spawn().expect("started");
        drop((command, slave));
        let (sender, screen) = channel();
        let master = Arc::new(File::from(OwnedFd::from(master)));
        let reader = Arc::downgrade(&master);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&shown);
        thread::spawn(move || {
            let mut line = Vec::new();
            let mut bytes = [0; 4096];
            while let Some(master) = reader.upgrade() {
                // A read that waits would keep the terminal from its hang-up.
                if let Ok(0) = poll(&mut [PollFd::new(master.as_fd(), PollFlags::POLLIN)], 20u8) {
                    continue;
                }
                let Ok(length @ 1..) = (&*master).read(&mut bytes) else { break };
                all.lock().unwrap_or_else(PoisonError::into_inner).extend(&bytes[..length]);
                for &byte in &bytes[..length] {
                    if byte != b'\n' {
                        line.push(byte);
                        continue;
                    }
                    let text = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                    line.clear();
                    if sender.send(text).is_err() {
                        return;
                    }
                }
            }
        });
        Self { child, keyboard: Some(master), screen, seen: Vec::new(), shown }
    }

    fn keyboard(&self) -> &File {
        self.keyboard.as_ref().expect("no hang-up yet")
    }

    /// Closes the terminal, as a terminal emulator that ends.
    pub(crate) fn hangs_up(&mut self) {
        self.keyboard = None;
    }

    pub(crate) fn types(&mut self, keys: &str) {
        self.keyboard().write_all(keys.as_bytes()).expect("typed");
    }

    /// The next line with `part` in it.
    pub(crate) fn shows(&mut self, part: &str) -> String {
        loop {
            let line =
                self.screen.recv_timeout(CEILING).unwrap_or_else(|_| panic!("never shown: {part:?}; but: {:#?}", self.seen));
            self.seen.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Waits until a live line has counted two seconds, or more, of an hour, with `what` behind.
    fn expect_seconds(&self, what: &str) {
        wait_until(&format!("the line counts seconds: {what}"), || {
            let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            let shown = String::from_utf8_lossy(&shown);
            (2..60).any(|waited| shown.contains(&format!("waited {waited}s of 1h{what}")))
        });
    }

    /// All that has been shown so far.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    pub(crate) fn ready(&mut self) -> [i32; 4] {
        let line = self.shows("ready ");
        let numbers: Vec<i32> =
            line[line.find("ready ").expect("ready") + 6..].split(' ').map(|word| word.parse().expect("a number")).collect();
        numbers.try_into().expect("four numbers")
    }

    pub(crate) fn ends(&mut self) -> i32 {
        let status = self.child.wait_timeout(CEILING).expect("a child");
        shell_code(status.unwrap_or_else(|| panic!("still running: {:#?}", self.seen)))
    }

    /// Ends the shell that runs there.
    pub(crate) fn leaves(&mut self) {
        self.types("exit\n");
        self.ends();
    }

    /// Reads to the end of what a child that has ended has shown.
    pub(crate) fn read_to_end(&mut self) {
        while let Ok(line) = self.screen.recv_timeout(CEILING) {
            self.seen.push(line);
        }
    }

    /// Number of lines with `part`, after a moment in which no more came.
    pub(crate) fn count(&mut self, part: &str) -> usize {
        while let Ok(line) = self.screen.recv_timeout(Duration::from_millis(300)) {
            self.seen.push(line);
        }
        self.seen.iter().filter(|line| line.contains(part)).count()
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `claude-run` with the fake going through `steps`, as a line for a shell.
pub(crate) fn line(steps: &str) -> String {
    format!("'{}' --claude '{}' -- -p '{steps}'", binary().display(), fake_claude().display())
}

#[test]
fn ctrl_c_from_a_script_reaches_the_child_once() {
    let env = Env::new();
    let mut command = env.command("bash");
    // A trap, or bash itself would end at the key.
    command.args(["-c", &format!("trap : INT; {}; echo code $?", line("signals; ready; hang"))]);
    let mut terminal = OnTerminal::start(command);
    let [child, ..] = terminal.ready();
    terminal.types("\x03");
    terminal.shows("signal INT");
    assert_eq!(terminal.count("signal INT"), 1);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).expect("it lives");
    terminal.shows("code 137");
}

#[test]
fn keys_that_the_child_survived_cut_no_output() {
    let env = Env::new();
    let child = "trap : INT QUIT; echo ready >/dev/tty; until [ -e go ]; do sleep 0.01; done; head -c 4000000 /dev/zero";
    let reader = "trap : INT QUIT; until [ -e read ]; do sleep 0.01; done; wc -c";
    for key in ["\x03", "\x1c"] {
        let mut command = env.command("bash");
        let script =
            format!(r#"trap : INT QUIT; "$0" --log log -- bash -c "$1" | ({reader}); echo codes "${{PIPESTATUS[@]}}""#);
        command.args(["-c", &script]).arg(binary()).arg(child);
        let mut terminal = OnTerminal::start(command);
        terminal.shows("ready");
        terminal.types(key);
        thread::sleep(Duration::from_millis(200)); // the child has survived it
        std::fs::write(env.path("go"), "").expect("a file");
        wait_until("the child has ended, and the lock is free", || !env.is_locked());
        thread::sleep(Duration::from_millis(1500)); // longer than a reader may take after a request to end
        std::fs::write(env.path("read"), "").expect("a file");
        terminal.shows("4000000");
        terminal.shows("codes 0 0");
        for name in ["go", "read"] {
            std::fs::remove_file(env.path(name)).expect("a file");
        }
    }
}

#[test]
fn ctrl_c_ends_a_shell_loop_around_claude_run() {
    let env = Env::new();
    let run = format!("'{}' --claude '{}' -- -p 'ready; hang'", binary().display(), fake_claude().display());
    for waits in [false, true] {
        let mut holder = waits.then(|| env.hold_lock());
        let mut command = env.command("bash");
        command.args(["-c", &format!("for i in 1 2; do {run}; echo code $?; done; echo gone on")]);
        let mut terminal = OnTerminal::start(command);
        if waits {
            wait_until("it waits", || env.waiters() == 1);
        } else {
            terminal.ready();
        }
        terminal.types("\x03");
        assert_eq!(terminal.ends(), 130, "bash itself dies of the key");
        assert_eq!((terminal.count("code"), terminal.count("gone on")), (0, 0));
        holder.iter_mut().for_each(|holder| holder.close_stdin());
    }
}

#[test]
fn hangup_ends_child_and_frees_lock() {
    // claude-run leads the session: the kernel tells nobody else.
    for (kill_after, steps, code) in [("0", "ready; hang", 129), ("0.2", "ignore HUP; ready; hang", 143)] {
        let env = Env::new();
        let mut command = env.command(binary());
        command.args(["--kill-after", kill_after, "--claude"]).arg(fake_claude()).args(["--", "-p", steps]);
        let mut terminal = OnTerminal::start(command);
        let [child, ..] = terminal.ready();
        assert!(env.is_locked());
        terminal.hangs_up();
        assert_eq!(terminal.ends(), code, "it gets HUP, and a TERM before any KILL");
        assert!(!is_alive(child) && !env.is_locked());
    }
}

#[test]
fn attended_run_has_no_limit_and_keeps_leftovers() {
    let env = Env::new();
    let mut command = env.command(binary());
    // It must have left the session before bash ends, or the terminal hangs up on it as well.
    command.args([
        "--",
        "bash",
        "-c",
        "setsid sh -c 'echo left $$ >left; exec sleep 600' & until [ -s left ]; do sleep .01; done; cat left",
    ]);
    let mut terminal = OnTerminal::start(command);
    let left: i32 = terminal.shows("left ").rsplit(' ').next().expect("a pid").parse().expect("a pid");
    assert_eq!(terminal.ends(), 0);
    assert!(is_alive(left) && !env.is_locked());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), nix::sys::signal::Signal::SIGKILL).expect("it lives");
}

#[test]
fn pty_follows_our_size_and_modes_are_restored() {
    let env = Env::new();
    let mut command = env.command("bash");
    // bash forgets a signal that comes while its trap runs, so the child looks again and again.
    let child = r#"trap 'echo WINCH' WINCH; exec 3>&1; stty raw -echo; printf 'ready %s 0 0 0\r\n' $$
        before=; while :; do size=$(stty size <&3); [ "$size" = "$before" ] || echo "$size"; before=$size; sleep 0.05; done"#;
    // Killed, the child cannot put back the modes that it has set.
    let script = r#"stty -g; trap : INT; "$0" --pty -- bash -c "$1"; echo code $?; stty -g"#;
    command.args(["-c", script]).arg(binary()).arg(child);
    let mut terminal = OnTerminal::start(command);
    let before = terminal.shows(":");
    let [child, ..] = terminal.ready();
    for (rows, columns) in [(30, 100), (31, 99)] {
        let size = nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads one winsize.
        let set = unsafe { libc::ioctl(terminal.keyboard().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(set, 0);
        terminal.shows(&format!("{rows} {columns}"));
    }
    assert!(terminal.count("WINCH") > 0);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).expect("it lives");
    terminal.shows("code 137");
    terminal.shows(&before);
}

#[test]
fn logged_run_on_a_terminal_gets_a_terminal() {
    let env = Env::new();
    let mut command = env.command(binary());
    command.args([
        "--log",
        "log",
        "--",
        "sh",
        "-c",
        "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo three && until grep -q three log; do sleep 0.01; done && echo two >&2",
    ]);
    let mut terminal = OnTerminal::start(command);
    assert_eq!(terminal.shows("three"), "three");
    terminal.shows("two");
    assert_eq!(terminal.ends(), 0);
    let log = std::fs::read_to_string(env.path("log")).expect("a log");
    // One terminal for both keeps their order, and does not tell them apart.
    assert!(log.contains("stdout: three\n") && log.contains("stdout: two\n"), "{log}");
}

#[test]
fn require_result_is_refused_on_a_terminal() {
    let env = Env::new();
    let mut command = env.command(binary());
    command.args(["--require-result", "--", "touch", "started"]);
    let mut terminal = OnTerminal::start(command);
    assert!(terminal.shows("--require-result").contains("--pty"));
    assert_eq!(terminal.ends(), 125);
    assert!(!env.path("started").exists());
    // Set for all runs, it does not keep a person from logging in.
    let mut command = env.command(binary());
    command
        .env("CLAUDE_RUN_REQUIRE_RESULT", "on")
        .arg("--claude")
        .arg(env.script("claude", "#!/bin/sh\n"))
        .args(["--", "--continue"]);
    assert_eq!(OnTerminal::start(command).ends(), 0);
}

#[test]
fn waiter_shows_one_live_line() {
    let env = Env::new();
    let _holder = env.hold_lock();
    let mut command = env.command(binary());
    command.args(["--wait", "1h", "--", "touch", "started"]);
    let mut terminal = OnTerminal::start(command);
    wait_until("it is in the kernel's queue", || env.waiters() == 1);
    terminal.expect_seconds(", 1st of 1; held by flock (pid ");
    terminal.types("\x03");
    assert_eq!(terminal.ends(), 130);
    terminal.read_to_end();
    let seen = terminal.seen.join("\n");
    assert_eq!(seen.lines().count(), 1, "the live line is rewritten in place: {seen:?}");
    assert!(!env.path("started").exists());
}

#[test]
fn wait_for_lock_helper_is_one_live_line() {
    let env = Env::new();
    let mut command = env.command(binary());
    command.args(["--wait", "1h", "--lock-helper", "sleep 600", "--", "touch", "started"]);
    let mut terminal = OnTerminal::start(command);
    terminal.expect_seconds(" for the lock helper sleep; Ctrl-C ends it");
    terminal.types("\x03");
    assert_eq!(terminal.ends(), 130);
    terminal.read_to_end();
    let seen = terminal.seen.join("\n");
    assert_eq!(seen.lines().count(), 1, "the live line is rewritten in place: {seen:?}");
    assert!(!env.path("started").exists());
}

#[test]
fn setup_asks_before_it_moves_anything() {
    for (answer, moves) in [("n\n", false), ("x\n", false), ("\x04", false), ("\n", true), ("y\n", true)] {
        let env = Env::new();
        env.make_lock_file();
        let mut command = env.command(binary());
        command.args(["setup", "--shared-dir"]).arg(env.path("shared"));
        let mut setup = OnTerminal::start(command);
        setup.types(answer);
        setup.shows("[Y/n]");
        assert_eq!(setup.ends(), 0);
        assert_eq!(env.home().join(".claude").is_symlink(), moves, "{answer:?}");
    }
    // Where JSON is wanted, or no question is seen or answered, nobody is asked.
    for how in ["--json", "2>messages", "<answer"] {
        let env = Env::new();
        std::fs::write(env.path("answer"), "y\n").expect("a file");
        env.make_lock_file();
        let mut command = env.command("sh");
        command.args(["-c", &format!(r#""$0" setup --shared-dir shared {how}"#)]).arg(binary());
        let mut setup = OnTerminal::start(command);
        setup.types("y\n");
        setup.shows("--yes does it");
        assert_eq!((setup.ends(), env.home().join(".claude").is_symlink()), (0, false), "{how}");
    }
}

#[test]
fn lock_helper_gets_no_key_signals() {
    let env = Env::new();
    env.script(
        "helper",
        "#!/bin/bash\ntrap 'echo term; exit' TERM\ntrap 'echo int >>events' INT\necho key\nwhile :; do sleep 0.01; done\n",
    );
    let mut command = env.command("bash");
    let run = line("signals; ready; hang").replace(" --claude", " --lock-helper ./helper --claude");
    command.args(["-c", &format!("trap : INT; {run}; echo code $?")]);
    let mut terminal = OnTerminal::start(command);
    let [child, ..] = terminal.ready();
    terminal.types("\x03");
    terminal.shows("signal INT");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).expect("it lives");
    terminal.shows("code 137");
    assert!(!env.path("events").exists());
}

/// Steps of a fake whose tool, in a session of its own, writes its pid into the file `tool`.
const WITH_TOOL: &str = "tool& echo $$ >tool && exec sleep 600; ready";

fn pid_of_tool(env: &Env) -> i32 {
    let text = || std::fs::read_to_string(env.path("tool")).unwrap_or_default();
    wait_until("the tool is there", || text().ends_with('\n'));
    text().trim().parse().expect("a pid")
}

#[test]
fn headless_claude_leaves_no_tool_on_a_terminal() {
    let env = Env::new();
    let mut command = env.command(binary());
    command.arg("--claude").arg(fake_claude()).args(["--", "-p", &format!("{WITH_TOOL}; open go; exit 3")]);
    nix::unistd::mkfifo(&env.path("go"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let mut terminal = OnTerminal::start(command);
    terminal.ready();
    let tool = pid_of_tool(&env);
    drop(File::options().write(true).open(env.path("go")).expect("the fake reads"));
    assert_eq!(terminal.ends(), 3);
    assert!(!is_alive(tool));
}

#[test]
fn hangup_ends_the_tools_of_headless_claude() {
    let env = Env::new();
    let mut command = env.command("bash");
    command.args(["-c", &format!("{}; true", line(&format!("{WITH_TOOL}; hang")))]);
    let mut terminal = OnTerminal::start(command);
    terminal.ready();
    let tool = pid_of_tool(&env);
    // The kernel hangs up when the leader of the session is gone.
    terminal.child.kill().expect("killed");
    wait_until("the tool has ended", || !is_alive(tool));
}
