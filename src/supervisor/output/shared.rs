//! What the relay's thread tells the supervisor.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::claude::frames::LastResult;
use crate::events::EventSender;

/// Shared between the relay's thread and the supervisor.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) sender: EventSender,
    started: Instant,
    /// Nanoseconds from `started` to the last byte.
    last_output: AtomicU64,
    /// Nanoseconds from `started` to the last time that our reader has taken something.
    last_delivery: AtomicU64,
    /// True while the child has to wait for our reader.
    is_stalled: AtomicBool,
    pub(super) last_result: OnceLock<LastResult>,
    pub(super) lost_output: AtomicBool,
    pub(super) session_id: OnceLock<String>,
}

impl Shared {
    pub(super) fn new(sender: EventSender) -> Self {
        Self {
            sender,
            started: Instant::now(),
            last_output: AtomicU64::new(0),
            last_delivery: AtomicU64::new(0),
            is_stalled: AtomicBool::new(false),
            last_result: OnceLock::new(),
            lost_output: AtomicBool::new(false),
            session_id: OnceLock::new(),
        }
    }

    pub(super) fn note_output(&self) {
        self.note(&self.last_output);
    }

    pub(super) fn note_delivery(&self) {
        self.note(&self.last_delivery);
    }

    pub(super) fn last_delivery(&self) -> Instant {
        self.noted(&self.last_delivery)
    }

    /// Notes whether the child has to wait for our reader.
    pub(super) fn note_stall(&self, is_stalled: bool) {
        if self.is_stalled.swap(is_stalled, Ordering::Relaxed) && !is_stalled {
            self.note_output();
        }
    }

    /// Time of the child's last output. One that has to wait for our reader cannot show that it is alive, and counts as if it did.
    pub(super) fn last_output(&self) -> Instant {
        if self.is_stalled.load(Ordering::Relaxed) {
            return Instant::now();
        }
        self.noted(&self.last_output)
    }

    fn note(&self, time: &AtomicU64) {
        time.store(self.started.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    fn noted(&self, time: &AtomicU64) -> Instant {
        self.started + Duration::from_nanos(time.load(Ordering::Relaxed))
    }
}
