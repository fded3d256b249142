//! Table of the signals, and of what claude-run does with each. Signals are numbers here, since nix has no names for the real-time ones.

use std::fmt;

use nix::errno::Errno;
use nix::sys::signal::Signal as Named;
use nix::unistd::Pid;

/// A signal, which may be a real-time one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

macro_rules! named {
    ($($name:ident)*) => { $(pub const $name: Self = Self(libc::$name);)* };
}

#[expect(missing_docs, reason = "signal(7)")]
impl Signal {
    named! { SIGHUP SIGINT SIGQUIT SIGTRAP SIGABRT SIGKILL SIGUSR1 SIGUSR2 SIGPIPE SIGALRM SIGTERM SIGSTKFLT SIGCHLD SIGCONT SIGSTOP }
    named! { SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM SIGPROF SIGWINCH SIGIO SIGPWR SIGSYS }

    pub fn iterator() -> impl Iterator<Item = Self> {
        (1..=64).map(Self)
    }

    pub const fn number(self) -> i32 {
        self.0
    }
}

impl From<i32> for Signal {
    fn from(number: i32) -> Self {
        Self(number)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Named::try_from(self.0) {
            Ok(named) => f.write_str(named.as_str()),
            Err(_) => write!(f, "signal {}", self.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Cause of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignalSource {
    /// The terminal, by the kernel: a key, a new window size, a hang-up whose session another process leads. Its whole foreground process
    /// group gets it.
    Kernel,
    /// A process with this pid, by kill(2) or a similar call; 0 for one outside our PID namespace, and for what the kernel sends to us
    /// alone: a timer or limit of ours, and a hang-up where we lead the session.
    Process(i32),
}

/// Sends `signal` to a process.
pub(crate) fn kill(pid: Pid, signal: Signal) -> nix::Result<()> {
    // SAFETY: kill(2) touches no memory.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal.0) }).map(|_| ())
}

/// Set of signals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SigSet(u64);

/// Forwarded to the child, and a request to end: each ends a process by default, and none is a fault of the program's own. Real-time
/// signals are among them, without those that a C library has for itself.
pub const REQUESTS: SigSet = SigSet::of(&[
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGXCPU,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGSTKFLT,
    Signal::SIGABRT,
    Signal::SIGTRAP,
    Signal::SIGSYS,
])
.and(SigSet(!0 << 33));

/// Forwarded to the child, which decides.
const FOR_CHILD: SigSet = SigSet::of(&[Signal::SIGINT, Signal::SIGUSR2, Signal::SIGWINCH, Signal::SIGCONT]);

/// Forwarded to the child.
pub const FORWARDED: SigSet = REQUESTS.and(FOR_CHILD);

/// Handled by us: a report, and a stop of us and the child.
#[cfg(test)]
const OURS: SigSet = SigSet::of(&[Signal::SIGUSR1, Signal::SIGTSTP]);

/// Ignored in us: what we write to fails for it, and is not to end us.
pub(super) const FAILED_WRITES: SigSet = SigSet::of(&[Signal::SIGPIPE, Signal::SIGXFSZ]);

/// Ignored in a supervisor: in the background, the terminal is not to stop a watchdog.
pub(super) const TERMINAL_STOPS: SigSet = SigSet::of(&[Signal::SIGTTIN, Signal::SIGTTOU]);

/// Sent by the terminal, if the kernel sends them: to its whole foreground process group.
pub(super) const OF_TERMINAL: SigSet =
    SigSet::of(&[Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGWINCH]).and(OF_HANG_UP);

/// Sent by a terminal that hangs up: to the leader of the session alone, and to the foreground process group when that leader has ended.
pub(super) const OF_HANG_UP: SigSet = SigSet::of(&[Signal::SIGHUP, Signal::SIGCONT]);

/// True for the forwarded signals that start the kill grace.
pub fn is_termination_request(signal: Signal) -> bool {
    REQUESTS.contains(signal)
}

/// True for those that end a child without handlers, if it has no terminal: INT as well.
pub fn requests_end(signal: Signal) -> bool {
    is_termination_request(signal) || signal == Signal::SIGINT
}

impl SigSet {
    /// The empty set.
    pub const fn empty() -> Self {
        Self(0)
    }

    const fn of(mut signals: &[Signal]) -> Self {
        let mut set = Self(0);
        while let [first, rest @ ..] = signals {
            set.0 |= first.bit();
            signals = rest;
        }
        set
    }

    /// The union with another set.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Adds a signal.
    pub fn add(&mut self, signal: Signal) {
        self.0 |= signal.bit();
    }

    /// True if it has `signal`.
    pub fn contains(self, signal: Signal) -> bool {
        self.0 & signal.bit() != 0
    }

    /// Its signals, by number.
    pub fn iter(self) -> impl Iterator<Item = Signal> {
        Signal::iterator().filter(move |&signal| self.contains(signal))
    }
}

impl Signal {
    const fn bit(self) -> u64 {
        1 << ((self.0 - 1) & 63)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_has_one_place_in_the_table() {
        let places = [REQUESTS, FOR_CHILD, OURS, FAILED_WRITES, TERMINAL_STOPS];
        // Faults of the program, those that nobody can handle, SIGCHLD, SIGURG, which wakes threads, and two of the C library's own.
        let others = [4, 7, 8, 11, 9, 19, 17, 23, 32, 33].map(Signal);
        for signal in Signal::iterator() {
            let count = places.iter().filter(|place| place.contains(signal)).count();
            assert_eq!(count, usize::from(!others.contains(&signal)), "{signal}");
        }
        assert_eq!((Signal(40).to_string(), format!("{:?}", Signal::SIGTERM)), ("signal 40".into(), "SIGTERM".into()));
    }
}
