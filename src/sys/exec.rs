//! clone(2) and execve(2). A cloned process, whose parent may have had other threads, may not allocate: all arguments are prepared
//! before.

use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getresgid, getresuid};

use super::signal::InheritedDispositions;

/// File that is empty to whoever reads it, and takes what is written.
pub(crate) const NULL: &str = "/dev/null";

/// Prepared arguments of an execve(2).
#[derive(Debug)]
pub(crate) struct Exec {
    path: CString,
    /// The strings that `argv` and `environment` point to, one behind the other.
    _words: Vec<u8>,
    argv: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// /dev/null, and the descriptors that it is to be.
    null: Option<File>,
    nulls: &'static [RawFd],
}

impl Exec {
    /// Prepares `path` with `argv`, whose first word is the name it is called by, and the whole `environment`. The descriptors `nulls`
    /// are /dev/null.
    pub(crate) fn new(
        path: &Path,
        argv: &[OsString],
        environment: &[(OsString, OsString)],
        nulls: &'static [RawFd],
    ) -> Result<Self> {
        const NUL: &str = "a NUL byte in an argument";
        let path = CString::new(path.as_os_str().as_bytes()).context(NUL)?;
        let (mut words, mut places) = (Vec::new(), Vec::with_capacity(argv.len() + environment.len()));
        let arguments = argv.iter().map(|word| [word.as_bytes(), b"", b""]);
        let variables = environment.iter().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()]);
        for word in arguments.chain(variables) {
            ensure!(!word.iter().any(|part| part.contains(&0)), NUL);
            places.push(words.len());
            word.iter().for_each(|part| words.extend_from_slice(part));
            words.push(0);
        }
        let pointers = |places: &[usize]| places.iter().map(|&at| words[at..].as_ptr().cast()).chain([ptr::null()]).collect();
        let (argv, environment) = (pointers(&places[..argv.len()]), pointers(&places[argv.len()..]));
        let null = (!nulls.is_empty()).then(|| File::options().read(true).write(true).open(NULL));
        let null = null.transpose().with_context(|| format!("cannot open {NULL}"))?;
        Ok(Self { path, argv, environment, _words: words, null, nulls })
    }

    /// Executes the program; returns only if that fails. Async-signal-safe.
    pub(crate) fn run(&self) -> Errno {
        for (null, number) in self.null.iter().flat_map(|null| self.nulls.iter().map(move |number| (null, *number))) {
            if let Err(error) = dup_onto(null.as_fd(), number) {
                return error;
            }
        }
        // SAFETY: NUL-terminated strings and null-terminated arrays of them, all alive here.
        unsafe { libc::execve(self.path.as_ptr(), self.argv.as_ptr(), self.environment.as_ptr()) };
        Errno::last()
    }
}

/// Step of [`spawn`] that failed. But for the first, there was a process, which is reaped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SpawnError {
    NoProcess(Errno),
    Prepare(Errno),
    Exec(Errno),
}

/// Starts a process that calls `prepare`, gets the dispositions `signals`, and executes `exec`. Sleeps until it has.
///
/// # Safety
/// `prepare` calls only async-signal-safe functions.
pub(crate) unsafe fn spawn(
    exec: &Exec,
    signals: &InheritedDispositions,
    mut prepare: impl FnMut() -> nix::Result<()>,
) -> std::result::Result<Pid, SpawnError> {
    let mut result = Ok(());
    let child = || {
        let prepared = prepare().and_then(|()| signals.restore());
        // It writes this into the memory that it shares with us until its exec.
        result = Err(prepared.map_or_else(SpawnError::Prepare, |()| SpawnError::Exec(exec.run())));
    };
    // No handler of ours runs in the child before it has its own group.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(SpawnError::NoProcess)?;
    // SAFETY: neither `restore` nor `run` calls anything else either.
    let pid = unsafe { clone(child) };
    let _ = mask.thread_set_mask(); // it fails for invalid arguments only
    let pid = pid.map_err(SpawnError::NoProcess)?;
    result.map(|()| pid).inspect_err(|_| {
        let _ = waitpid(pid, None); // it has exited, and to reap our own child cannot fail
    })
}

/// The stack of a child that shares our memory, while there is one.
static CHILD_STACK: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// True in a child of [`spawn`] that has not executed its program yet. Async-signal-safe.
pub(super) fn is_child_of_ours() -> bool {
    let on_stack = 0_u8;
    let here = ptr::from_ref(&on_stack).addr();
    let [start, end] = CHILD_STACK.each_ref().map(|at| at.load(Ordering::SeqCst));
    (start..end).contains(&here)
}

/// Starts a process that does `work` and exits with 127; sleeps until it has executed a program or exited. fork(3) would wait for locks
/// that other threads may hold.
///
/// # Safety
/// `work` calls only async-signal-safe functions.
unsafe fn clone<F: FnMut()>(mut work: F) -> nix::Result<Pid> {
    extern "C" fn enter<F: FnMut()>(work: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the pointer that `clone` passes, into the memory of our parent, which sleeps.
        unsafe { (*work.cast::<F>())() };
        127
    }
    // Room for handlers and their registers, and too small for a mapping of its own, which costs more than all else here.
    let mut stack = Vec::<u8>::with_capacity(64 * 1024);
    let Range { start, end } = stack.spare_capacity_mut().as_mut_ptr_range();
    let mark = |places: [usize; 2]| CHILD_STACK.iter().zip(places).for_each(|(at, place)| at.store(place, Ordering::SeqCst));
    mark([start.addr(), end.addr()]);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: with CLONE_VFORK we sleep until the child is done with the stack and with all that `work` borrows, and nobody else
    // touches them; the stack grows down from its end, which x86_64 and aarch64 want aligned to 16 bytes.
    let pid = unsafe { libc::clone(enter::<F>, end.sub(end.addr() % 16).cast(), flags, (&raw mut work).cast()) };
    mark([0; 2]);
    Errno::result(pid).map(Pid::from_raw)
}

/// Duplicates `descriptor` as `number`, without close-on-exec. Async-signal-safe.
pub(crate) fn dup_onto(descriptor: BorrowedFd, number: RawFd) -> nix::Result<()> {
    // SAFETY: dup2(2) touches only descriptors, and `number` is a standard one.
    Errno::result(unsafe { libc::dup2(descriptor.as_raw_fd(), number) }).map(|_| ())
}

/// Opens /dev/null as each of stdin, stdout and stderr that our caller has closed, so that no file of ours gets such a number. To read
/// or write there still fails with EBADF, but for stderr, which daemons close on purpose. They are close-on-exec: the child finds them
/// closed.
///
/// # Errors
/// /dev/null cannot be opened.
pub fn fill_standard_descriptors() -> io::Result<()> {
    for number in 0..=2 {
        // SAFETY: F_GETFD only queries, and `number` need not be open.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            // open(2) takes the lowest free number, which is this one.
            let _ = File::options().read(number != 0).write(number != 1).open(NULL)?.into_raw_fd();
        }
    }
    Ok(())
}

/// True if we run with privileges that our caller has not: set-user-ID, set-group-ID or file capabilities. AT_SECURE alone is no proof:
/// it is also set where SELinux or AppArmor changes the domain of a program.
pub fn has_foreign_privileges() -> bool {
    // SAFETY: getauxval(3) reads what the kernel has given us at the start.
    let is_secure = unsafe { libc::getauxval(libc::AT_SECURE) != 0 };
    let changes_ids = || {
        let user = getresuid().is_ok_and(|ids| ids.real != ids.effective || ids.real != ids.saved);
        user || getresgid().is_ok_and(|ids| ids.real != ids.effective || ids.real != ids.saved)
    };
    // SAFETY: getxattr(2) with C strings and no buffer gives the length of the value.
    let has_capabilities =
        || unsafe { libc::getxattr(OURSELVES.as_ptr(), c"security.capability".as_ptr(), ptr::null_mut(), 0) > 0 };
    is_secure && (changes_ids() || has_capabilities())
}

const OURSELVES: &CStr = c"/proc/self/exe";
