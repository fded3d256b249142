//! A thread that sleeps in flock(2), in the kernel's queue, while we sleep on the event queue. When we give up, it is interrupted, and
//! releases what it may have acquired meanwhile.

use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};

use super::file::{LockAttempt, LockFile};
use crate::events::{Event, EventSender};
use crate::sys::signal;

/// The thread. Dropping it interrupts it.
pub(super) struct FlockThread {
    thread: Option<JoinHandle<()>>,
    answer: mpsc::Receiver<Result<LockAttempt>>,
}

impl FlockThread {
    pub(super) fn start(file: LockFile, events: EventSender) -> Result<Self> {
        let (sender, answer) = mpsc::channel();
        let work = move || {
            // If the wait was given up, nobody takes it: then the file is closed, and the lock free.
            if sender.send(file.lock_blocking()).is_ok() {
                events.send(Event::FlockReturned);
            }
        };
        let thread = signal::spawn_with_signals_blocked("flock", 64 * 1024, work)
            .context("cannot start the thread that waits for the lock")?;
        Ok(Self { thread: Some(thread), answer })
    }

    /// Takes the answer, if it is there. An [`Event::FlockReturned`] says that some thread has one, which may be gone by now.
    pub(super) fn answer(&mut self) -> Option<Result<LockAttempt>> {
        let answer = match self.answer.try_recv() {
            Err(mpsc::TryRecvError::Empty) => return None,
            answer => answer.unwrap_or_else(|_| bail!("the thread that waits for the lock is gone")),
        };
        self.thread = None; // it is about to end
        Some(answer)
    }

    /// Interrupts all at once.
    pub(super) fn interrupt(threads: Vec<Self>) {
        signal::interrupt_threads(threads.into_iter().filter_map(|mut thread| thread.thread.take()).collect());
    }
}

impl Drop for FlockThread {
    fn drop(&mut self) {
        signal::interrupt_threads(self.thread.take().into_iter().collect());
    }
}
