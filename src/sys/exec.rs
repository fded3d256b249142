//! A new process, and the program that takes it over: clone(2) and execve(2), with all that they want made before. Behind a clone,
//! in a process that may have had other threads, nothing may be allocated.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::unistd::Pid;

/// Source of a program's standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdin {
    /// Our own stdin.
    Inherit,
    /// /dev/null.
    Null,
}

/// A program, ready to take a process over.
#[derive(Debug)]
pub(crate) struct Exec {
    path: CString,
    /// Owns what `argv` and `environment` point to.
    _words: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    null: Option<File>,
}

impl Exec {
    /// The program at `path` with these words, the name it is called by first, and this environment, the whole of it.
    ///
    /// # Errors
    /// A word has a NUL byte, or there is no /dev/null.
    pub(crate) fn new(path: &Path, argv: &[OsString], environment: &[(OsString, OsString)], stdin: Stdin) -> Result<Self> {
        let path = c_string(path.as_os_str().as_bytes())?;
        let mut words = Vec::with_capacity(argv.len() + environment.len());
        let count = argv.len();
        for word in argv {
            words.push(c_string(word.as_bytes())?);
        }
        for (name, value) in environment {
            words.push(c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat())?);
        }
        let (argv, environment) = words.split_at(count);
        let null = match stdin {
            Stdin::Inherit => None,
            Stdin::Null => Some(File::open("/dev/null").context("cannot open /dev/null for stdin")?),
        };
        Ok(Self { path, argv: pointers(argv), environment: pointers(environment), _words: words, null })
    }

    /// Becomes the program. Returns only if that fails. Async-signal-safe.
    pub(crate) fn run(&self) -> Errno {
        if let Some(null) = &self.null
            && let Err(error) = put(null.as_fd(), libc::STDIN_FILENO)
        {
            return error;
        }
        // SAFETY: NUL-terminated strings and null-terminated arrays of them, all alive until here.
        unsafe { libc::execve(self.path.as_ptr(), self.argv.as_ptr(), self.environment.as_ptr()) };
        Errno::last()
    }
}

/// The stack of a process that [`clone`] makes. Large enough to be mapped for itself: of its pages, only those that are used are
/// ever made.
pub(crate) fn stack() -> Vec<u8> {
    vec![0; 256 * 1024]
}

/// Makes a process that does `work` on `stack`, then exits with 127. `how` are flags and the signal of its end, as clone(2) has
/// them. Not fork(3), which waits for locks that other threads may have, and whose child may be waited for by whoever waits for any.
///
/// # Safety
/// `work` calls nothing but async-signal-safe functions; with `CLONE_VM`, `how` has `CLONE_VFORK` as well.
pub(crate) unsafe fn clone<F: FnMut()>(how: libc::c_int, stack: &mut [u8], mut work: F) -> nix::Result<Pid> {
    extern "C" fn enter<F: FnMut()>(work: *mut libc::c_void) -> libc::c_int {
        // SAFETY: what `clone` has passed on: in memory of our own, or in our parent's while it sleeps.
        unsafe { (*work.cast::<F>())() };
        127
    }
    let work = (&raw mut work).cast();
    let end = stack.as_mut_ptr_range().end;
    // SAFETY: as told above; the stack grows down from its end, which every machine that we know of wants aligned to 16 bytes.
    let pid = unsafe { libc::clone(enter::<F>, end.sub(end.addr() % 16).cast(), how, work) };
    Errno::result(pid).map(Pid::from_raw)
}

/// Makes `number` another name of `descriptor`, one that survives the exec. Async-signal-safe.
pub(crate) fn put(descriptor: BorrowedFd, number: RawFd) -> nix::Result<()> {
    // SAFETY: dup2(2) touches descriptors alone, and `number` is one of the standard ones.
    Errno::result(unsafe { libc::dup2(descriptor.as_raw_fd(), number) }).map(|_| ())
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).context("a NUL byte in an argument")
}

fn pointers(words: &[CString]) -> Vec<*const libc::c_char> {
    words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
}
