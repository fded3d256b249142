//! execve(2), with all that it wants made before the fork: behind one, in a process that may have had other threads, nothing may
//! be allocated.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::claude::program::Program;
use crate::settings::Stdin;

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
    /// `program` with this environment, the whole of it, and what it reads from.
    ///
    /// # Errors
    /// A word has a NUL byte, or there is no /dev/null.
    pub(crate) fn of(program: &Program, environment: &[(OsString, OsString)], stdin: Stdin) -> Result<Self> {
        let path = c_string(program.path.as_os_str().as_bytes())?;
        let mut words = Vec::with_capacity(program.argv.len() + environment.len());
        for word in &program.argv {
            words.push(c_string(word.as_bytes())?);
        }
        for (name, value) in environment {
            words.push(c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat())?);
        }
        let (argv, environment) = words.split_at(program.argv.len());
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
