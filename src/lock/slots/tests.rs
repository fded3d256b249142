//! Tests of the search for a slot, without processes: what it does at each of its stages.

use std::fs;
use std::path::Path;

use super::super::wait::tests::recorder;
use super::*;
use crate::sys::signal::{Signal, SignalSource};

fn request(dir: &Path, wait: Wait) -> SlotRequest {
    SlotRequest {
        store: RecordStore::of(dir),
        of: 1,
        file: None,
        session_lock: dir.join("session.lock"),
        wait,
        conflict_exit_code: 75,
        above: AncestorRuns::default(),
    }
}

fn acquired(attempt: LockAttempt) -> FlockGuard {
    match attempt {
        LockAttempt::Acquired(flock) => flock,
        LockAttempt::Busy(_) => panic!("it is busy"),
    }
}

/// Takes the flock on the file `name` among the slots.
fn hold(request: &SlotRequest, name: &str) -> Result<FlockGuard> {
    Ok(acquired(LockFile::open_among_slots(&request.store, name)?.try_lock()?))
}

fn search(request: &SlotRequest, stage: Stage) -> Search<'_> {
    Search { request, of: request.of, stage, was_free: false }
}

/// Our ticket behind `before`.
fn behind(request: &SlotRequest, before: u64, events: &EventQueue) -> Result<Stage> {
    let number = before + 1;
    let flock = LockFile::new_ticket(&request.store, &ticket_name(number))?;
    let thread = FlockThread::start(LockFile::open_ticket(&request.store, &ticket_name(before))?, events.sender())?;
    Ok(Stage::Behind(Some(Ticket { number, store: request.store.clone(), flock }), thread))
}

#[test]
fn run_that_cannot_wait_passes_only_a_busy_queue() -> Result<()> {
    let (dir, mut events) = (tempfile::tempdir()?, EventQueue::open()?);
    let (request, mut recorder) = (request(dir.path(), Wait::No), recorder(dir.path()));
    let queue = || LockFile::open_among_slots(&request.store, QUEUE);
    let slot = hold(&request, "1")?;
    let mut first_look = search(&request, Stage::Arriving(Some(queue()?)));
    let mut wait = LockWait::new(first_look.awaited(), Instant::now(), &mut recorder, &mut events);
    assert!(matches!(first_look.wait(&mut wait)?, Acquisition::NotAcquired));
    assert_eq!(wait.deadline, None, "all slots are held: it has not slept");
    drop(slot);
    let mut second_look = search(&request, Stage::Arriving(Some(queue()?)));
    second_look.wait(&mut wait)?;
    assert_eq!(wait.limit, Some(PASSING), "one may be for us");
    assert_eq!((wait.next_progress_at, wait.is_announced), (None, false), "and that is no wait");
    Ok(())
}

#[test]
fn run_that_cannot_wait_waits_for_a_proof_that_it_need_not() -> Result<()> {
    let (dir, mut events) = (tempfile::tempdir()?, EventQueue::open()?);
    let (mut request, mut recorder) = (request(dir.path(), Wait::No), recorder(dir.path()));
    let slot = hold(&request, "1")?;
    let claim = Claim { lock: slot.file_id(), run: RunId { pid: i32::MAX, taken_at: 1 } }.to_string();
    request.above = AncestorRuns::of(&move |name| (name == Claim::SLOTS_VARIABLE).then(|| claim.clone().into()));
    events.signal_pipe().write(Signal::SIGTERM.number(), SignalSource::Kernel);
    let mut search = search(&request, Stage::Arriving(Some(LockFile::open_among_slots(&request.store, QUEUE)?)));
    let mut wait = LockWait::new(search.awaited(), Instant::now(), &mut recorder, &mut events);
    assert!(matches!(search.wait(&mut wait)?, Acquisition::Interrupted(Signal::SIGTERM)), "it has slept");
    assert!(wait.ancestor_checks.is_some() && wait.limit == Some(PASSING));
    Ok(())
}

#[test]
fn run_that_cannot_wait_follows_the_tickets() -> Result<()> {
    let (dir, mut events) = (tempfile::tempdir()?, EventQueue::open()?);
    let (request, mut recorder) = (request(dir.path(), Wait::No), recorder(dir.path()));
    let (first, second) = (hold(&request, "t1")?, hold(&request, "t2")?);
    let mut search = search(&request, behind(&request, 2, &events)?);
    let mut wait = LockWait::new(search.awaited(), Instant::now(), &mut recorder, &mut events);
    drop(second);
    let second = request.store.slots().join("t2");
    while second.exists() {
        let events = wait.events.wait(None)?;
        assert!(search.advance(&mut wait, &events)?.is_none(), "it is not the first yet");
    }
    drop(first);
    let acquisition = loop {
        let events = wait.events.wait(None)?;
        if let Some(acquisition) = search.advance(&mut wait, &events)? {
            break acquisition;
        }
    };
    assert!(matches!(acquisition, Acquisition::Held(_)));
    Ok(())
}

#[test]
fn lost_turn_is_taken_at_the_second_look() -> Result<()> {
    let (dir, mut events) = (tempfile::tempdir()?, EventQueue::open()?);
    let (mut request, mut recorder) = (request(dir.path(), Wait::Forever), recorder(dir.path()));
    request.file = Some(dir.path().join("claude-run.toml"));
    let (_first, slot) = (hold(&request, "t1")?, hold(&request, "1")?);
    let mut search = search(&request, behind(&request, 1, &events)?);
    let mut wait = LockWait::new(search.awaited(), Instant::now(), &mut recorder, &mut events);
    fs::write(dir.path().join("claude-run.toml"), "slots = 1\n")?;
    assert!(search.take_lost_turn(&mut wait)?.is_none() && !search.was_free, "it is held");
    drop(slot);
    assert!(search.take_lost_turn(&mut wait)?.is_none() && search.was_free, "free for a moment");
    search.on_moved(&mut wait);
    assert!(search.take_lost_turn(&mut wait)?.is_none() && search.was_free, "those before us are others now");
    let _slot = hold(&request, "1")?;
    fs::write(dir.path().join("claude-run.toml"), "slots = 2\n")?;
    assert!(matches!(search.take_lost_turn(&mut wait)?, Some(Acquisition::Held(slot)) if slot.number == 2));
    Ok(())
}

#[test]
fn first_looks_once_at_the_settings_file() -> Result<()> {
    let (dir, mut events) = (tempfile::tempdir()?, EventQueue::open()?);
    let (mut request, mut recorder) = (request(dir.path(), Wait::Forever), recorder(dir.path()));
    request.file = Some(dir.path().join("claude-run.toml"));
    fs::write(dir.path().join("claude-run.toml"), "slots = 1\n")?;
    let _slot = hold(&request, "1")?;
    let flock = LockFile::new_ticket(&request.store, "t1")?;
    let stage = Stage::First(Some(Ticket { number: 1, store: request.store.clone(), flock }), Vec::new());
    let mut search = search(&request, stage);
    let awaited = Awaited::Slot { of: 1, ticket: None };
    let mut wait = LockWait::new(awaited, Instant::now(), &mut recorder, &mut events);
    search.on_moved(&mut wait);
    assert!(matches!(wait.awaited, Awaited::Slot { of: 1, ticket: Some(1) }));
    let events = wait.events.wait(Some(Instant::now()))?;
    assert!(events.contains(&Event::FilesChanged), "it may have changed before");
    assert!(search.advance(&mut wait, &events)?.is_none());
    assert_eq!(wait.events.wait(Some(Instant::now()))?, [], "and nothing wakes it again");
    Ok(())
}

#[test]
fn bound_that_cannot_be_read_stays_as_it_was() -> Result<()> {
    let (dir, file) = (tempfile::tempdir()?, |dir: &tempfile::TempDir| dir.path().join("claude-run.toml"));
    let mut request = request(dir.path(), Wait::Forever);
    let bound = |request: &SlotRequest| {
        let mut search = search(request, Stage::Arriving(None));
        search.follow_bound().map_or(Some(search.of), |_| None)
    };
    assert_eq!(bound(&request), Some(1), "set by an option");
    request.file = Some(file(&dir));
    for (text, expected) in [("slots = 7\n", Some(7)), ("slots = x\n", Some(1)), ("", None)] {
        fs::write(file(&dir), text)?;
        assert_eq!(bound(&request), expected, "{text}");
    }
    fs::remove_file(file(&dir))?;
    fs::create_dir(file(&dir))?;
    assert_eq!(bound(&request), Some(1), "a directory");
    Ok(())
}
