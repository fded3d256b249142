//! How an invocation ended, and THE exit-code table. Nothing else in this crate knows an exit code.

/// How an invocation of claude-run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Outcome {
    /// Help, version or a report was printed, or an operation has succeeded.
    Shown,
    /// An operation has found trouble.
    Trouble,
    /// The child ended by itself with this status.
    Exited(u8),
    /// The child was ended by a signal of this number, which may be a real-time one.
    Killed(i32),
    HardLimit,
    IdleLimit,
    /// With `--require-result`: the child exited with 0, but printed no complete, successful result frame.
    NoResult,
    /// The exit code would be 0, but some of the child's output could not be written.
    OutputLost,
    /// claude-run ended a child that hung after its result frame, which decides on the exit code.
    HungAfterResult {
        is_error: bool,
    },
    /// The lock helper ended, and with it the lock, and claude-run ended the child.
    LockLost,
    /// The session lock was not free within `--wait`; `code` is `--conflict-exit-code`, by default EX_TEMPFAIL, "try again later".
    LockBusy {
        code: u8,
    },
    /// No slot was free within `--wait`; `code` is `--conflict-exit-code`.
    SlotBusy {
        code: u8,
    },
    /// This signal ended the wait for a slot or the lock; the child was never started.
    EndedWaiting(i32),
    /// This signal ended the wait for the reader of the output; the child had ended, and some of its output is lost.
    EndedDraining(i32),
    CannotRun,
    NotFound,
    /// claude-run itself failed, usage errors included.
    Failed,
}

impl Outcome {
    /// The exit code: the contract with every caller.
    pub fn exit_code(self) -> u8 {
        self.entry().0
    }

    /// Signal by which this process is to end, too: a shell that has run it then sees the same as without it.
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Killed(signal) | Self::EndedWaiting(signal) | Self::EndedDraining(signal) => Some(signal),
            _ => None,
        }
    }

    /// Name in records.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    fn entry(self) -> (u8, &'static str) {
        match self {
            Self::Shown => (0, "shown"),
            Self::Trouble => (1, "trouble"),
            Self::Exited(status) => (status, "exited"),
            Self::Killed(signal) => (of_signal(signal), "killed"),
            Self::EndedWaiting(signal) => (of_signal(signal), "ended-waiting"),
            Self::EndedDraining(signal) => (of_signal(signal), "ended-draining"),
            Self::HardLimit => (124, "hard-limit"),
            Self::IdleLimit => (124, "idle-limit"),
            Self::NoResult => (65, "no-result"),     // EX_DATAERR
            Self::OutputLost => (74, "output-lost"), // EX_IOERR
            Self::LockLost => (69, "lock-lost"),     // EX_UNAVAILABLE
            Self::HungAfterResult { is_error } => (u8::from(is_error), "hung-after-result"),
            Self::LockBusy { code } => (code, "lock-busy"),
            Self::SlotBusy { code } => (code, "slot-busy"),
            Self::Failed => (125, "failed"),
            Self::CannotRun => (126, "cannot-run"),
            Self::NotFound => (127, "not-found"),
        }
    }
}

fn of_signal(number: i32) -> u8 {
    u8::try_from(number).map_or(u8::MAX, |number| number.saturating_add(128))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_of_the_child_passes_unchanged() {
        for status in 0..=255 {
            assert_eq!(Outcome::Exited(status).exit_code(), status);
        }
    }

    #[test]
    fn signal_is_128_plus_its_number() {
        for signal in 1..=64 {
            for outcome in [Outcome::Killed(signal), Outcome::EndedWaiting(signal), Outcome::EndedDraining(signal)] {
                assert_eq!((i32::from(outcome.exit_code()), outcome.signal()), (128 + signal, Some(signal)));
            }
        }
    }

    #[test]
    fn our_own_endings_can_be_told_apart() {
        let ours = [
            Outcome::HardLimit,
            Outcome::IdleLimit,
            Outcome::NoResult,
            Outcome::OutputLost,
            Outcome::LockBusy { code: 75 },
            Outcome::SlotBusy { code: 75 },
            Outcome::Failed,
            Outcome::CannotRun,
            Outcome::NotFound,
        ];
        assert_eq!(ours.map(Outcome::exit_code), [124, 124, 65, 74, 75, 75, 125, 126, 127]);
    }
}
