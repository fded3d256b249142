//! Work that a file system may keep from its end, as one whose server is away. The thread that hears signals and keeps limits does not do
//! it, and waits for it no longer than this.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::locked;
use super::signal::spawn_with_signals_blocked;

/// How long work is waited for: longer than the reader of a pipe may take for a line.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Threads that are waited for no longer. They end with the process.
static STUCK: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

/// What `work` gives; `None` if that takes long, or if what was of this `name` before is not at its end yet. Where no thread can be
/// started, the work is done all the same.
pub(crate) fn within<T: Send + 'static>(name: &'static str, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    if is_stuck(name) {
        return None;
    }
    let (sender, result) = mpsc::sync_channel(1);
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<_>>| locked(work).take();
    let of_thread = Arc::clone(&work);
    let send = move || drop(take(&of_thread).map(|work| sender.send(work())));
    let Ok(thread) = spawn_with_signals_blocked(name, 256 * 1024, send) else { return take(&work).map(|work| work()) };
    let result = result.recv_timeout(PATIENCE).ok();
    if result.is_none() {
        locked(&STUCK).push(thread);
    }
    result
}

fn is_stuck(name: &str) -> bool {
    let mut stuck = locked(&STUCK);
    stuck.retain(|thread| !thread.is_finished());
    stuck.iter().any(|thread| thread.thread().name() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_hangs_is_not_waited_for_twice() {
        assert_eq!(within("outer", || within("inner", || 7)), Some(Some(7)));
        let (sender, stop) = mpsc::channel::<()>();
        assert_eq!(within("slow", move || stop.recv().is_ok()), None);
        assert_eq!((within("slow", || true), within("quick", || 8)), (None, Some(8)));
        drop(sender);
        while within("slow", || true).is_none() {
            std::thread::yield_now();
        }
    }
}
