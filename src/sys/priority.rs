//! Priority of the thread that ends a tree: a fork bomb of a thousand processes leaves it hardly any time.

/// Runs this thread before others until it is dropped, where that is allowed.
#[derive(Debug)]
pub(crate) struct Urgency {
    before: libc::c_int,
}

impl Urgency {
    pub(crate) fn new() -> Self {
        // SAFETY: getpriority(2) touches no memory. It cannot fail for ourselves.
        let before = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        set_priority(-20);
        Self { before }
    }
}

impl Drop for Urgency {
    fn drop(&mut self) {
        set_priority(self.before);
    }
}

fn set_priority(nice: libc::c_int) {
    // SAFETY: setpriority(2) touches no memory. It fails where we may not, or for a priority that we have.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}
