//! Priority of the thread that ends a tree: a fork bomb of a thousand processes leaves it hardly any time, and one of as many sessions
//! less than a nice value can change (autogroups, sched(7)).

use std::{mem, ptr};

/// Runs this thread before others until it is dropped, where that is allowed and can be undone.
#[derive(Debug)]
pub(crate) struct Urgency {
    /// Scheduling policy, if it was changed; its priority is 0.
    policy_before: Option<libc::c_int>,
    nice_before: libc::c_int,
}

/// Policies of those who do not run before others as it is. Any thread may go back to one of them.
const ORDINARY: [libc::c_int; 3] = [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE];

impl Urgency {
    pub(crate) fn new() -> Self {
        // SAFETY: both touch no memory, and cannot fail for ourselves. musl has no sched_getscheduler of its own.
        let (nice_before, policy) = unsafe {
            (libc::getpriority(libc::PRIO_PROCESS, 0), libc::syscall(libc::SYS_sched_getscheduler, 0) as libc::c_int)
        };
        let flags = policy & libc::SCHED_RESET_ON_FORK; // only who has CAP_SYS_NICE may take it back
        let is_changed = ORDINARY.contains(&(policy & !flags)) && set_policy(libc::SCHED_RR | flags, 1);
        set_nice(-20);
        Self { policy_before: is_changed.then_some(policy), nice_before }
    }
}

impl Drop for Urgency {
    fn drop(&mut self) {
        if let Some(policy) = self.policy_before {
            set_policy(policy, 0);
        }
        set_nice(self.nice_before);
    }
}

/// Fails where it is not allowed; a real-time policy is not in some cgroups either.
fn set_policy(policy: libc::c_int, priority: libc::c_int) -> bool {
    // SAFETY: all zero is a valid sched_param.
    let mut parameters: libc::sched_param = unsafe { mem::zeroed() };
    parameters.sched_priority = priority;
    // SAFETY: it reads the parameters alone. musl has no sched_setscheduler of its own.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, ptr::from_ref(&parameters)) == 0 }
}

/// Fails where it is not allowed; a higher value always is.
fn set_nice(nice: libc::c_int) {
    // SAFETY: it touches no memory.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgency_gives_back_what_was_before() {
        let now = || {
            // SAFETY: they touch no memory.
            unsafe { (libc::syscall(libc::SYS_sched_getscheduler, 0), libc::getpriority(libc::PRIO_PROCESS, 0)) }
        };
        for policy in ORDINARY.into_iter().flat_map(|policy| [policy, policy | libc::SCHED_RESET_ON_FORK]) {
            let is_set = std::thread::spawn(move || {
                set_nice(5);
                assert!(set_policy(policy, 0), "any thread may");
                let before = now();
                drop(Urgency::new());
                assert_eq!(now(), before, "{policy:#x}");
            });
            is_set.join().expect("no assertion has failed");
        }
    }
}
