//! Tests of the wait, without processes: its order, and what it leaves for the next.

use super::*;
use crate::config::duration::LATE;
use crate::config::settings::LockMode;
use crate::records::{RunInfo, WaitsFor};
use crate::run_id::RunId;
use crate::sys::signal::SignalSource;

/// Recorder of a run of this process.
pub(in crate::lock) fn recorder(config_dir: &Path) -> RunRecorder {
    let (run, program, records) = (RunId::take(), "claude".into(), Some(RecordStore::of(config_dir)));
    let (label, lock_file, record_file) = (None, None, None);
    RunRecorder::open(RunInfo { run, label, program, lock_mode: LockMode::Exclusive, records, lock_file, record_file })
}

#[test]
fn second_wait_starts_afresh_and_writes_what_is_due() -> Result<()> {
    let (dir, mut events) = (tempfile::tempdir()?, EventQueue::open()?);
    let mut recorder = recorder(dir.path());
    recorder.on_wait(WaitsFor::Lock);
    recorder.on_started(1);
    let due = recorder.next_deadline();
    assert!(due.is_some());
    let now = Instant::now();
    let mut wait = LockWait::new(Awaited::RefreshLocks, now, &mut recorder, &mut events);
    (wait.recheck_at, wait.next_progress_at, wait.is_announced) = (Some(now), Some(now), true);
    wait.begin(Awaited::RefreshLocks, Some(Duration::from_secs(10)));
    assert_eq!((wait.recheck_at, wait.next_progress_at, wait.is_announced), (None, None, false));
    let end = wait.until(|wait, _| Ok((wait.recorder.next_deadline() != due).then(|| wait.deadline > Some(Instant::now()))))?;
    assert!(matches!(end, WaitEnd::Met(true)), "it wakes up for the recorder, not only at its end");
    Ok(())
}

#[test]
fn value_at_the_deadline_is_no_timeout() -> Result<()> {
    let (dir, mut events) = (tempfile::tempdir()?, EventQueue::open()?);
    let mut recorder = recorder(dir.path());
    let mut wait = LockWait::new(Awaited::RefreshLocks, Instant::now(), &mut recorder, &mut events);
    wait.begin(Awaited::RefreshLocks, Some(Duration::ZERO));
    assert!(matches!(wait.until(|_, _| Ok(Some(())))?, WaitEnd::Met(())));
    assert!(matches!(wait.until(|_, _| Ok(None::<()>))?, WaitEnd::TimedOut));
    Ok(())
}

#[test]
fn late_wake_up_judges_no_deadline_before_it_has_caught_up() -> Result<()> {
    let (dir, mut events) = (tempfile::tempdir()?, EventQueue::open()?);
    let mut recorder = recorder(dir.path());
    let mut wait = LockWait::new(Awaited::RefreshLocks, Instant::now(), &mut recorder, &mut events);
    for comes in [true, false] {
        wait.begin(Awaited::RefreshLocks, Some(Duration::from_nanos(1)));
        let mut looks = 0;
        let end = wait.until(|_, _| {
            looks += 1;
            std::thread::sleep(if looks == 1 || !comes { LATE } else { Duration::ZERO }); // as if we were stopped
            Ok((comes && looks > 1).then_some(()))
        })?;
        assert_eq!((looks > 1, matches!(end, WaitEnd::Met(()))), (true, comes));
        assert!(comes || matches!(end, WaitEnd::TimedOut));
    }
    Ok(())
}

#[test]
fn events_behind_the_signal_that_ends_a_wait_stay() -> Result<()> {
    let (dir, mut events) = (tempfile::tempdir()?, EventQueue::open()?);
    let [ignored, read, ends, stays] = [Signal::SIGHUP, Signal::SIGWINCH, Signal::SIGTERM, Signal::SIGINT];
    for signal in [ignored, read, ends, stays] {
        events.signal_pipe().write(signal.number(), SignalSource::Kernel);
    }
    events.sender().send(Event::FlockReturned);
    let mut recorder = recorder(dir.path());
    events.inherited.ignored.add(ignored);
    let mut wait = LockWait::new(Awaited::RefreshLocks, Instant::now(), &mut recorder, &mut events);
    wait.events.watch_files(&[dir.path().join("watched")]);
    assert!(matches!(wait.until(|_, _| Ok(None::<()>))?, WaitEnd::Interrupted(signal) if signal == ends));
    drop(wait);
    assert_eq!(events.wait(Some(Instant::now()))?, [Event::Signal(stays, SignalSource::Kernel), Event::FlockReturned]);
    std::fs::write(dir.path().join("watched"), "")?;
    assert_eq!(events.wait(Some(Instant::now()))?, [], "nobody watches it any more");
    Ok(())
}

#[test]
fn progress_names_the_path_and_the_time() -> Result<()> {
    let (dir, mut events) = (tempfile::tempdir()?, EventQueue::open()?);
    let mut recorder = recorder(dir.path());
    let awaited = Awaited::SessionLock("/some/lock".into(), FileId { device: 1, inode: 1 });
    let long_ago = Instant::now() - Duration::from_secs(300);
    let wait = LockWait::new(awaited, long_ago, &mut recorder, &mut events);
    let progress = wait.progress();
    assert!(progress.starts_with("waiting for the session lock /some/lock (5m"), "{progress}");
    assert!(progress.contains(" of no limit)"), "{progress}");
    Ok(())
}

#[test]
fn places_are_read_as_people_say_them() {
    let shown: Vec<_> = [1, 2, 3, 4, 11, 12, 13, 21, 102, 111].map(ordinal).to_vec();
    assert_eq!(shown, ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th"]);
}
