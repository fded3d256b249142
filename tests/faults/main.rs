//! Faults: hundreds of agents at once on one config dir, old `flock` callers among them, while claude-run, what it runs and
//! what stands below that are killed, told to end and stopped at random, the lock file is replaced and removed, the disk is
//! full, the config dir is read-only, the credentials are cut, the clock is stepped, the mode and the slots are set anew, and
//! claude is killed in mid-refresh. All the time the promises are checked: by the agents themselves (`agent.rs`), from outside
//! (`watch.rs`), and on runs that have each one fault of their own, and one way to end (`cases.rs`).
//!
//!     faults [--seconds N] [--agents N] [--seed N] --claude-run PATH
//!
//! `faults slots` is another one, of runs that wait for slots (`slots.rs`).
//!
//! It wants to be the first process of a PID and a mount namespace of its own (`unshare -mpf --mount-proc`, and `-r` for
//! those who are not root): then it sees, and can signal, nobody but those whom it has started, and when it ends, so do they.
//! `scripts/faults.sh` does that. It prints what it did and ends with 0 if every promise was kept, with 1 if not.
//!
//! Nothing of claude's own locks is here: every agent refreshes under claude-run's lock alone, and finds it out if another
//! does so at the same time.
//!
//! The clock that is stepped is not the machine's, which nobody else here would thank us for. All that claude-run compares
//! with the wall clock is in files; so the expiry in the credentials is moved by as much as the clock would be.

#![expect(clippy::print_stdout, reason = "it prints what it did")]

mod agent;
mod board;
mod cases;
mod fleet;
mod inject;
mod slots;
mod watch;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::getpid;

use board::Board;
use cases::Cases;
use fleet::Fleet;
use inject::Injector;
use watch::Watch;

/// What was asked for.
struct Asked {
    seconds: u64,
    agents: usize,
    seed: u64,
    claude_run: PathBuf,
}

fn main() -> Result<ExitCode> {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("agent") => agent::agent(&words[1..]),
        Some("tool") => agent::tool(&words[1..]),
        Some("chain") => cases::chain(&words[1..]),
        Some("slots") => slots::run(&words[1..]),
        Some("slot-agent") => slots::agent(&words[1..]),
        _ => {
            // What our caller ignores, nohup(1) for one, a run would rightly leave ignored.
            for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
                // SAFETY: SIG_DFL runs no code.
                unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl)? };
            }
            run(&asked(&words)?)
        }
    }
}

fn asked(words: &[String]) -> Result<Asked> {
    let mut asked = Asked { seconds: 60, agents: 200, seed: fastrand::u64(..), claude_run: PathBuf::new() };
    for pair in words.chunks(2) {
        let [option, value] = pair else { bail!("{} needs a value", pair[0]) };
        match option.as_str() {
            "--seconds" => asked.seconds = value.parse()?,
            "--agents" => asked.agents = value.parse()?,
            "--seed" => asked.seed = value.parse()?,
            "--claude-run" => asked.claude_run = Path::new(value).canonicalize().with_context(|| value.clone())?,
            _ => bail!("{option} is none of --seconds, --agents, --seed and --claude-run"),
        }
    }
    ensure!(asked.claude_run.is_file(), "--claude-run PATH is wanted");
    ensure!(getpid().as_raw() == 1, "faults wants a PID namespace of its own: see scripts/faults.sh");
    Ok(asked)
}

fn run(asked: &Asked) -> Result<ExitCode> {
    fastrand::seed(asked.seed);
    // In a mount namespace of our own: nobody else sees these, and they go with us.
    let (config_dir, boards) = (Path::new("/mnt/config"), Path::new("/mnt/board"));
    mount("/mnt", "size=1g")?;
    let (calm, full) = (Path::new("/mnt/calm"), Path::new(cases::FULL));
    for dir in [config_dir, boards, calm, full] {
        std::fs::create_dir(dir)?;
    }
    mount(cases::FULL, "size=64k")?;
    mount("/mnt/config", "size=32m,nr_inodes=4k,mode=0700")?; // small enough to be filled up at once
    let board = Board::new(boards);
    board.save_credentials(config_dir, board::now_ms() + 400_000)?;
    println!("{} agents at once for {} s, seed {}", asked.agents, asked.seconds, asked.seed);

    let mut fleet = Fleet::new(&asked.claude_run, config_dir, &board);
    let mut injector = Injector::new(&asked.claude_run, config_dir, &board);
    let mut watch = Watch::new(&board);
    let mut cases = Cases::new(&asked.claude_run, calm, &board);
    let end = Instant::now() + Duration::from_secs(asked.seconds);
    while Instant::now() < end {
        for _ in 0..8 {
            if fleet.len() < asked.agents {
                fleet.start()?;
            }
        }
        injector.act(&mut fleet)?;
        cases.start()?;
        cases.act();
        watch.look(&fleet);
        fleet.reap(&mut cases);
        sleep(Duration::from_millis(2));
    }
    // From here on everything is in order again, so everybody gets the lock in the end, and ends.
    injector.repair(&mut fleet)?;
    let patience = Instant::now() + Duration::from_secs(120);
    // Those below whoever was killed, too: they have their turn, or end by themselves.
    while (fleet.len() + cases.len() > 0 || !fleet::processes().is_empty()) && Instant::now() < patience {
        cases.act();
        watch.look(&fleet);
        fleet.reap(&mut cases);
        sleep(Duration::from_millis(2));
    }
    watch.after_all(&fleet, &asked.claude_run, config_dir)?;

    println!("agents: {}", fleet.told());
    println!("ended: {}", fleet.ends());
    println!("refreshes: {}", board.refreshes());
    println!("faults: {}", injector.told());
    println!("cases: {}", cases.told());
    let violations = board.violations();
    for violation in violations.iter().take(50) {
        println!("VIOLATION: {violation}");
    }
    println!("violations: {}", violations.len());
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn mount(at: &str, options: &str) -> Result<()> {
    let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "faults", at]).status().context("mount")?;
    ensure!(status.success(), "cannot mount a tmpfs at {at}");
    Ok(())
}
