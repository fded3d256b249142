//! What claude-run runs here: an agent that works for a moment, may refresh the token, leave tools behind, call claude-run
//! again, ignore TERM or hang; and that looks all the time whether what it was promised is so.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{getpid, getppid, setsid};

use crate::board::{Board, Kind, Mark, credentials, now_ms};

/// A refresh is due when the token lives no longer than this, as for claude.
const DUE_MS: u64 = 300_000;

/// How much more than that the margin is that the agents' claude-runs are given, and how long the token that a refresh brings
/// lives beyond it: nobody who was started without the lock is to find a refresh due.
pub(crate) const MARGIN_MS: u64 = DUE_MS + 15_000;

/// The lock that is held for us.
struct Lock {
    device: u64,
    inode: u64,
}

/// `agent WORK_MS EXIT FLAGS [ARGUMENTS OF CLAUDE]`. Flags: `t` leaves a tool behind, `d` one that ignores TERM, `w` waits for a tool, `T` ignores
/// TERM itself, `n` calls claude-run, `h` hangs, `r` prints a result and hangs.
pub(crate) fn agent(words: &[String]) -> Result<ExitCode> {
    let [work, exit, flags, ..] = words else { anyhow::bail!("WORK_MS EXIT FLAGS") };
    let work = Duration::from_millis(work.parse()?);
    let flags = |flag| flags.contains(flag);
    let board = Board::new(&PathBuf::from(env::var_os(Board::VARIABLE).context("no board")?));
    if flags('T') {
        ignore_term()?;
    }
    let mut mode = env::var("FAULTS_MODE").unwrap_or_default();
    let lock = lock_for_us(&mode)?;
    if mode == "settings" {
        // If it was set while we were started, only what we have tells.
        let by_lock = || if lock.is_some() { "refresh" } else { "pass-through" }.to_owned();
        mode = board.mode_since(env::var("FAULTS_BEGAN")?.parse()?).unwrap_or_else(by_lock);
    }
    // The old block has no run id.
    let slot = if mode == "block" { None } else { claim_of_ours("CLAUDE_RUN_SLOT")? };
    let _in_slot = match slot {
        Some(slot) => mark_alone(&board, &format!("slot-{}", slot.inode), "two agents have one slot at once")?,
        None => None,
    };
    // In `refresh` mode the lock may be free again from the moment that somebody's new token is on the disk.
    let whole_run = mode == "exclusive" || mode == "block";
    let _inside = match &lock {
        Some(lock) if whole_run => Some(enter(&board, lock, &mode)?),
        None if mode == "exclusive" || mode == "block" => {
            board.violation(&format!("an agent in {mode} mode without the lock: {}", about_us()));
            None
        }
        _ => None,
    };
    let (started, parent) = (Instant::now(), getppid());
    for (flag, arguments) in [('t', ["300", ""]), ('d', ["300", "T"]), ('w', ["5", ""])] {
        if flags(flag) {
            let mut tool = start_tool(&arguments)?;
            if flag == 'w' {
                tool.wait()?;
            }
        }
    }
    if mode != "pass-through" && mode != "nested" {
        refresh(&board, &mode, lock.as_ref())?;
    }
    if flags('n') {
        nested()?;
    }
    if flags('r') {
        use std::io::Write;
        writeln!(std::io::stdout(), r#"{{"type":"result","subtype":"success","is_error":false}}"#)?;
    }
    let hangs = flags('h') || flags('r');
    let mut orphaned = None;
    // Whoever ignores TERM and whose claude-run was killed would keep the lock for ever, as it should.
    while started.elapsed() < work || (hangs && orphaned.is_none_or(|at: Instant| at.elapsed() < Duration::from_millis(300))) {
        // As the first of its namespace, nobody else starts agents.
        if getppid() != parent || parent.as_raw() == 1 {
            orphaned.get_or_insert_with(Instant::now);
        }
        if let Some(lock) = lock.as_ref().filter(|_| whole_run)
            && !is_locked_by_our_descriptor(lock)
        {
            board.violation(&format!("the lock is free while the agent lives: {}", about_us()));
            break;
        }
        sleep(Duration::from_millis(2));
    }
    Ok(ExitCode::from(exit.parse::<u8>()?))
}

/// `tool LIVES_MS FLAGS`, in a session of its own and without the lock's descriptor, as claude's tools are.
pub(crate) fn tool(words: &[String]) -> Result<ExitCode> {
    let [lives, flags] = words else { anyhow::bail!("LIVES_MS FLAGS") };
    if flags.contains('T') {
        ignore_term()?;
    }
    let board = Board::new(&PathBuf::from(env::var_os(Board::VARIABLE).context("no board")?));
    // In `refresh` mode the lock may be free before the run ends.
    let _mark = match lock_claimed().filter(|_| env::var("FAULTS_LOCK").is_ok_and(|lock| lock == "exclusive")) {
        Some(lock) => {
            board.note(&format!("tool-{}", getpid()), &env::var("CLAUDE_RUN_LINEAGE").unwrap_or_default());
            board.mark(&format!("tools-{}", lock.inode), Kind::Shared)?.ok()
        }
        None => None,
    };
    sleep(Duration::from_millis(lives.parse()?));
    Ok(ExitCode::SUCCESS)
}

fn start_tool(arguments: &[&str]) -> Result<std::process::Child> {
    let mut command = Command::new(env::current_exe()?);
    // SAFETY: setsid(2) and close_range(2) are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int);
            Ok(())
        });
    }
    Ok(command.arg("tool").args(arguments).stdin(Stdio::null()).spawn()?)
}

fn ignore_term() -> Result<()> {
    // SAFETY: SIG_IGN runs no code.
    unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }?;
    Ok(())
}

/// The claim that our own run has made, or the descriptor that the old block has left us.
fn lock_for_us(mode: &str) -> Result<Option<Lock>> {
    if mode == "block" {
        let found = fs::metadata("/proc/self/fd/9")?;
        return Ok(Some(Lock { device: found.dev(), inode: found.ino() }));
    }
    claim_of_ours("CLAUDE_RUN_HELD")
}

/// What our own run has claimed in `variable`.
fn claim_of_ours(variable: &str) -> Result<Option<Lock>> {
    let run = env::var("CLAUDE_RUN_ID").context("no CLAUDE_RUN_ID")?;
    let claims = env::var(variable).unwrap_or_default();
    Ok(claims.split(',').find_map(|claim| claim.strip_suffix(&format!(":{run}"))).and_then(parse))
}

/// Marks `name` for us alone; if somebody else has it, `what` is so.
fn mark_alone(board: &Board, name: &str, what: &str) -> Result<Option<Mark>> {
    let mark = board.mark(name, Kind::Exclusive)?;
    if let Err(pid) = mark {
        board.violation(&format!("{what}: {} and pid {pid}", about_us()));
    }
    Ok(mark.ok())
}

/// The lock that is held for the whole tree that we are in.
fn lock_claimed() -> Option<Lock> {
    let claims = env::var("CLAUDE_RUN_HELD").ok()?;
    parse(claims.split(',').next()?)
}

fn parse(claim: &str) -> Option<Lock> {
    let mut parts = claim.split(':');
    Some(Lock { device: parts.next()?.parse().ok()?, inode: parts.next()?.parse().ok()? })
}

/// Nobody else is inside, and nobody is left of those who were.
fn enter(board: &Board, lock: &Lock, mode: &str) -> Result<Option<Mark>> {
    if !is_locked_by_our_descriptor(lock) {
        board.violation(&format!("an agent has started without the lock on its descriptor: {}", about_us()));
    }
    // The old block does not look again which file it has locked.
    let file = env::var_os("CLAUDE_CONFIG_DIR").map(|dir| PathBuf::from(dir).join("session.lock"));
    let is_the_file = file.and_then(|file| fs::metadata(file).ok()).is_some_and(|found| found.ino() == lock.inode);
    if mode != "block" && !is_the_file && board.time_of("lock-file") + 2500 < now_ms() {
        board.violation(&format!("an agent holds a lock file that was replaced before: {}", about_us()));
    }
    let mark = mark_alone(board, &format!("inside-{}", lock.inode), "two agents hold one lock at once")?;
    if let Err(tool) = board.mark(&format!("tools-{}", lock.inode), Kind::Exclusive)? {
        let lineage = fs::read_to_string(board.path(&format!("tool-{tool}"))).unwrap_or_default();
        let is_ours = env::var("CLAUDE_RUN_LINEAGE").is_ok_and(|ours| ours == lineage && !ours.is_empty());
        // A claude-run that was killed with KILL cannot end its tools, and says so in its README.
        let was_killed = lineage.split(',').any(|run| board.is_noted(&format!("killed-{}", pid_of(run))));
        if tool != 0 && !was_killed && !is_ours {
            board.violation(&format!("the lock was passed on while tool {tool} of {lineage} lives: {}", about_us()));
        }
    }
    Ok(mark)
}

/// A run id begins with the pid.
pub(crate) fn pid_of(run: &str) -> &str {
    run.split('-').next().unwrap_or_default()
}

/// Whether the kernel says that one of our descriptors holds a flock on that file.
fn is_locked_by_our_descriptor(lock: &Lock) -> bool {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return false };
    descriptors.flatten().any(|entry| {
        fs::metadata(entry.path()).is_ok_and(|found| (found.dev(), found.ino()) == (lock.device, lock.inode))
            && fs::read_to_string(format!("/proc/self/fdinfo/{}", entry.file_name().display()))
                .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:") && line.contains("FLOCK")))
    })
}

/// Refreshes the token if that is due.
fn refresh(board: &Board, mode: &str, lock: Option<&Lock>) -> Result<()> {
    let config_dir = PathBuf::from(env::var_os("CLAUDE_CONFIG_DIR").context("no config dir")?);
    let file = config_dir.join(".credentials.json");
    let began: u64 = env::var("FAULTS_BEGAN")?.parse()?;
    let text = fs::read_to_string(&file).unwrap_or_default();
    let Some(expires) = text.split(r#""expiresAt":"#).nth(1).and_then(|rest| rest.trim_end_matches('}').parse::<u64>().ok())
    else {
        return Ok(()); // it is cut just now
    };
    if expires >= now_ms() + DUE_MS {
        return Ok(());
    }
    let Some(lock) = lock else {
        // What it was started by was true then: not if somebody has moved the clock since, or stopped it for long.
        if board.time_of("login") < began && now_ms() < began + 10_000 {
            board.violation(&format!("a refresh without the lock, in {mode} mode: {}", about_us()));
        }
        return Ok(());
    };
    let started = now_ms();
    let mark = board.mark(&format!("refreshing-{}", lock.inode), Kind::Exclusive)?;
    if let Err(pid) = mark
        // Whoever moves the expiry in the midst of a refresh ends the lock that is held for it.
        && board.time_of("login") + 2000 < started
    {
        board.violation(&format!("two refreshes at once: {} and pid {pid}", about_us()));
    }
    sleep(Duration::from_millis(started % 30));
    let expires = now_ms() + MARGIN_MS + 500 + started % 2000;
    if started.is_multiple_of(3) {
        let _ = fs::write(&file, credentials(expires)); // in place, as older versions do; the disk may be full
    } else {
        let _ = board.save_credentials(&config_dir, expires);
    }
    board.count_refresh();
    Ok(())
}

/// claude-run below claude-run: with the lock that is held above, or a lock of nobody's.
fn nested() -> Result<()> {
    let claude_run = env::var_os("FAULTS_CLAUDE_RUN").context("no claude-run")?;
    let mut command = Command::new(claude_run);
    // SAFETY: close_range(2) is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int);
            Ok(())
        });
    }
    command.args(["--lock", "exclusive"]).arg(env::current_exe()?).args(["agent", "1", "0", "w"]);
    command.env("FAULTS_MODE", "nested").status()?;
    Ok(())
}

fn about_us() -> String {
    let told = |name| env::var(name).unwrap_or_default();
    format!("pid {} of run {} ({})", getpid(), told("CLAUDE_RUN_ID"), told("FAULTS_MODE"))
}
