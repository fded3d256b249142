//! Priority of the thread that ends a tree: a fork bomb of a thousand processes leaves it hardly any time, and one of as many sessions
//! less than a nice value can change (autogroups, sched(7)).

use std::{mem, ptr};

/// Runs this thread before others until it is dropped, where that is allowed.
#[derive(Debug)]
pub(crate) struct Urgency {
    nice_before: libc::c_int,
}

impl Urgency {
    pub(crate) fn new() -> Self {
        // SAFETY: getpriority(2) touches no memory. It cannot fail for ourselves.
        let nice_before = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        set(libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, 1, -20);
        Self { nice_before }
    }
}

impl Drop for Urgency {
    fn drop(&mut self) {
        set(libc::SCHED_OTHER, 0, self.nice_before);
    }
}

/// Both calls fail where they are not allowed; a real-time policy is not in some cgroups either.
fn set(policy: libc::c_int, priority: libc::c_int, nice: libc::c_int) {
    // SAFETY: all zero is a valid sched_param.
    let mut parameters: libc::sched_param = unsafe { mem::zeroed() };
    parameters.sched_priority = priority;
    // SAFETY: they touch no memory but the parameters. musl has no sched_setscheduler of its own.
    unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, policy, ptr::from_ref(&parameters));
        libc::setpriority(libc::PRIO_PROCESS, 0, nice);
    }
}
