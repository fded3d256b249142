//! /proc: processes, their parents, signals to one certain process, flocks, PID namespaces.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use nix::NixPath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, gethostname};

use super::file_id::FileId;
use super::mount;
use super::signal_table::{Signal, kill};

/// Fields of /proc/PID/stat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    /// Name of its program, padded with NULs.
    name: [u8; 15],
    /// `R`, `S`, `T` (stopped), `Z` (zombie) …
    pub(crate) state: u8,
    pub(crate) parent: i32,
    /// Process group.
    pub(crate) group: i32,
    pub(crate) session: i32,
    pub(crate) threads: u32,
    /// Clock ticks from boot to its start. With the pid, it identifies one process for ever.
    pub(crate) start: u64,
}

impl Stat {
    /// Reads the process `pid`, if it exists.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        Self::read_from(pid, File::open(format!("/proc/{pid}/stat")).ok()?)
    }

    fn read_from(pid: i32, mut file: File) -> Option<Self> {
        let mut line = [0; 1024];
        let length = file.read(&mut line).ok()?;
        Self::parse(pid, &line[..length])
    }

    /// Reads a line of the form `4711 (any (name) S 1 …`.
    fn parse(pid: i32, line: &[u8]) -> Option<Self> {
        // The name may hold anything, parentheses and newlines too; later fields do not.
        let start = line.iter().position(|byte| *byte == b'(')? + 1;
        let end = line.iter().rposition(|byte| *byte == b')')?;
        let mut name = [0; 15];
        name.iter_mut().zip(line.get(start..end)?).for_each(|(to, from)| *to = *from);
        let mut fields = str::from_utf8(&line[end + 1..]).ok()?.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        let session = fields.next()?.parse().ok()?;
        // Fields 20 and 22 of proc(5); six are read, the pid and the name among them.
        let threads = fields.nth(13)?.parse().ok()?;
        let start = fields.nth(1)?.parse().ok()?;
        Some(Self { pid, name, state, parent, group, session, threads, start })
    }

    /// Name of its program, of at most 15 bytes.
    pub(crate) fn name(&self) -> String {
        String::from_utf8_lossy(&self.name).trim_end_matches('\0').to_owned()
    }

    /// Identity of the process: pid and start.
    pub(crate) fn process(&self) -> (i32, u64) {
        (self.pid, self.start)
    }

    /// True for a zombie. A process whose first thread has ended is shown as a zombie too, but lives in its other threads.
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X') && self.threads <= 1
    }

    /// Signals this process, but none that has its pid by now. A stopped one gets CONT with its TERM. The error is ESRCH if it has
    /// ended, EPERM if we may not signal it.
    pub(crate) fn signal(&self, signal: Signal) -> nix::Result<()> {
        let process = Process::open(self.pid).filter(|process| process.stat.start == self.start).ok_or(Errno::ESRCH)?;
        process.signal(signal)?;
        if signal == Signal::SIGTERM && process.stat.state == b'T' {
            process.signal(Signal::SIGCONT)?;
        }
        Ok(())
    }

    /// Reads all visible processes. This is not a snapshot: processes start and end meanwhile.
    pub(crate) fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::read).collect()
    }
}

/// An open process. Its directory in /proc stays bound to it, and serves as a pidfd; few system calls are made through it, since a fork
/// bomb does not wait.
#[derive(Debug)]
pub(crate) struct Process {
    dir: File,
    pub(crate) stat: Stat,
}

impl Process {
    /// Opens the process that has `pid` now, if there is one.
    pub(crate) fn open(pid: i32) -> Option<Self> {
        let dir = File::open(format!("/proc/{pid}")).ok()?;
        let stat = Stat::read_from(pid, open_in(&dir, "stat").ok()?)?;
        Some(Self { dir, stat })
    }

    /// Sends `signal` to it. The error is ESRCH if it has ended, EPERM if we may not signal it.
    pub(crate) fn signal(&self, signal: Signal) -> nix::Result<()> {
        let no_info = ptr::null::<libc::siginfo_t>();
        // SAFETY: a descriptor, a number, no siginfo and no flags: no memory is touched.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.dir.as_raw_fd(), signal.number(), no_info, 0) };
        match Errno::result(sent) {
            // Before Linux 5.1, or behind a seccomp filter that does not know the call: the pid was right a moment ago.
            Err(Errno::ENOSYS | Errno::EPERM) => kill(Pid::from_raw(self.stat.pid), signal),
            sent => sent.map(|_| ()),
        }
    }
}

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

fn open_in(dir: impl AsFd, path: &(impl NixPath + ?Sized)) -> nix::Result<File> {
    openat(dir, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map(File::from)
}

/// Links from parents to children: the lists of the kernel or, where it has none (CONFIG_PROC_CHILDREN), a look at all processes.
#[derive(Debug)]
pub(crate) struct Links(Option<Vec<Stat>>);

impl Links {
    pub(crate) fn read() -> Self {
        Self((!Path::new("/proc/thread-self/children").exists()).then(Stat::all))
    }

    /// Pids of our own children.
    pub(crate) fn our_children(&self) -> Vec<i32> {
        let us = process::id().cast_signed();
        self.0.as_ref().map_or_else(|| children_by_threads(us), |all| children_among(all, us))
    }

    /// Pids of the children of `parent`.
    pub(crate) fn children(&self, parent: &Process) -> Vec<i32> {
        match &self.0 {
            Some(all) => children_among(all, parent.stat.pid),
            None if parent.stat.threads == 1 => {
                let list = open_in(&parent.dir, &*format!("task/{}/children", parent.stat.pid));
                list.map_or_else(|_| Vec::new(), read_pids)
            }
            None => children_by_threads(parent.stat.pid),
        }
    }

    /// All below the process `pid`.
    pub(crate) fn descendants(pid: i32) -> Vec<Stat> {
        let (links, mut found) = (Self::read(), Vec::new());
        let mut open: Vec<_> = Process::open(pid).into_iter().collect();
        while let Some(parent) = open.pop() {
            open.extend(links.children(&parent).into_iter().filter_map(Process::open));
            found.push(parent.stat);
        }
        found
    }
}

fn children_among(all: &[Stat], parent: i32) -> Vec<i32> {
    all.iter().filter(|stat| stat.parent == parent).map(|stat| stat.pid).collect()
}

fn children_by_threads(parent: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| File::open(thread.path().join("children")).ok()).flat_map(read_pids).collect()
}

/// Reads the list without the calls by which a file's size is found.
fn read_pids(mut file: File) -> Vec<i32> {
    let (mut list, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = file.read(&mut piece) {
        list.extend_from_slice(&piece[..length]);
        if length < piece.len() / 2 {
            break; // the kernel fills what it can
        }
    }
    String::from_utf8_lossy(&list).split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// An flock(2) that is held or waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flock {
    /// Pid that called flock(2); a process that inherited the descriptor may hold the lock now.
    pub(crate) pid: i32,
    pub(crate) waits: bool,
    pub(crate) is_exclusive: bool,
}

/// Flocks on `file` by processes of our PID namespace; the kernel shows no others.
pub(crate) fn flocks(file: FileId) -> Vec<Flock> {
    // It writes a page at a time: while others come and go, an entry on a later page may be missed.
    for _ in 0..4 {
        let (flocks, is_one_page) = look_for_flocks(file);
        if is_one_page || flocks.iter().any(|flock| !flock.waits) {
            return flocks;
        }
    }
    look_for_flocks(file).0
}

/// Also true if all locks of the machine were on one page.
fn look_for_flocks(file: FileId) -> (Vec<Flock>, bool) {
    // Each read(2) halts all locking on the machine.
    let mut text = Vec::with_capacity(64 << 10);
    let _ = File::open("/proc/locks").and_then(|mut file| file.read_to_end(&mut text)); // without it, there are none
    let (locks, inode) = (String::from_utf8_lossy(&text), format!(":{} ", file.inode));
    let lines = locks.lines().filter(|line| line.contains(&inode));
    let is_on_it = |(flock, at): &(Flock, FileId)| is_of(*at, file, || may_have_opened(flock.pid, file));
    let flocks = lines.filter_map(parse_flock).filter(is_on_it).map(|(flock, _)| flock);
    (flocks.collect(), locks.len() < 4096 - 128)
}

/// Reads a line of the form `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`, with `->` before FLOCK while it waits.
fn parse_flock(line: &str) -> Option<(Flock, FileId)> {
    let mut words = line.split_ascii_whitespace().skip(1).peekable();
    let waits = words.next_if_eq(&"->").is_some();
    let ("FLOCK", _, kind, pid, file) = (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?) else {
        return None;
    };
    let mut numbers = file.split(':');
    let mut hex = || u32::from_str_radix(numbers.next()?, 16).ok();
    let device = libc::makedev(hex()?, hex()?);
    let flock = Flock { pid: pid.parse().ok()?, waits, is_exclusive: kind == "WRITE" };
    Some((flock, FileId { device, inode: numbers.next()?.parse().ok()? }))
}

/// The flock on `file` that a descriptor of `process`, by its name in /proc, holds.
pub(crate) fn flock_of(process: impl Display, file: FileId) -> Option<Flock> {
    flock_among(process, &[file])
}

/// The first flock on one of `files` that a descriptor of `process`, by its name in /proc, holds. Reads fdinfo, and but for one that may
/// be such a file nothing else: stat(2) of a descriptor hangs with the file system of a file that has nothing to do with us.
pub(crate) fn flock_among(process: impl Display, files: &[FileId]) -> Option<Flock> {
    let mut descriptors = Dir::open(&*format!("/proc/{process}/fdinfo"), DIRECTORY, Mode::empty()).ok()?;
    let names = descriptors.iter().flatten().map(|entry| entry.file_name().to_owned());
    let names: Vec<_> = names.filter(|name| !name.to_bytes().starts_with(b".")).collect();
    names.iter().find_map(|name| {
        // An ancestor has dozens of them: one read each, since the locks stand at the beginning.
        let mut piece = [0; 4096];
        let length = open_in(&descriptors, &**name).ok()?.read(&mut piece).ok()?;
        let info = String::from_utf8_lossy(&piece[..length]);
        let mut flocks = info.lines().filter_map(|line| parse_flock(line.strip_prefix("lock:")?));
        let is_opened = |file| name.to_str().is_ok_and(|name| has_opened(&process, name, file));
        flocks.find_map(|(flock, at)| files.iter().any(|file| is_of(at, *file, || is_opened(*file))).then_some(flock))
    })
}

/// True if the descriptors of the process `pid` are hidden from us, as those of another user.
pub(crate) fn is_hidden(pid: i32) -> bool {
    fs::read_dir(format!("/proc/{pid}/fdinfo")).is_err_and(|error| match error.kind() {
        io::ErrorKind::NotFound => is_invisible(pid),
        kind => kind == io::ErrorKind::PermissionDenied,
    })
}

/// Liveness of the process `pid` that `is_it`; `None` if it cannot be seen, since /proc is that of another PID namespace, or hides it.
pub(crate) fn lives(pid: i32, is_it: impl FnOnce(&Stat) -> bool) -> Option<bool> {
    let stat = Stat::read(pid);
    let is_seen = is_of_our_pid_namespace() && (stat.is_some() || !is_invisible(pid));
    is_seen.then(|| stat.is_some_and(|stat| !stat.is_dead() && is_it(&stat)))
}

/// True if there is a process `pid` though /proc does not show it: another user's, where /proc is mounted with `hidepid`.
pub(crate) fn is_invisible(pid: i32) -> bool {
    Stat::read(pid).is_none() && nix::sys::signal::kill(Pid::from_raw(pid), None) == Err(Errno::EPERM)
}

/// True if the kernel means `file` by `at`. Where stat(2) gives another device number than the kernel's own, the inode is the same, and
/// what has been opened decides: two subvolumes, or two overlays of one directory, have files of one number.
fn is_of(at: FileId, file: FileId, is_opened: impl FnOnce() -> bool) -> bool {
    at == file || (at.inode == file.inode && mount::has_own_device_numbers(at.device) && is_opened())
}

/// True if `process`, by its name in /proc, has opened `file` as its `descriptor`.
fn has_opened(process: impl Display, descriptor: &str, file: FileId) -> bool {
    FileId::at(Path::new(&format!("/proc/{process}/fd/{descriptor}"))) == Some(file)
}

/// True if a descriptor of the process `pid` is `file`, or if that cannot be seen. Looks at those of that inode alone.
fn may_have_opened(pid: i32, file: FileId) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return true };
    descriptors.flatten().any(|entry| {
        let info = fs::read_to_string(entry.path()).unwrap_or_default();
        let inode = info.lines().find_map(|line| line.strip_prefix("ino:")); // since Linux 5.14
        let is_it = || entry.file_name().to_str().is_some_and(|name| has_opened(pid, name, file));
        inode.is_none_or(|inode| inode.trim() == file.inode.to_string() && is_it())
    })
}

/// Pid of the process `pid` in its own PID namespace, and the name of that namespace; `None` as well if that is below ours, and hidden from us.
pub(crate) fn innermost_pid(pid: i32) -> Option<(i32, String)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace();
    let (ours, inner) = (pids.next()?, pids.last());
    // The name is hidden of another user's, and of one that may not be dumped.
    let namespace = if inner.is_none() { pid_namespace() } else { namespace_of(pid) };
    Some((inner.unwrap_or(ours).parse().ok()?, namespace?))
}

/// Name of our PID namespace, as `pid:[4026531836]`.
pub(crate) fn pid_namespace() -> Option<String> {
    static OURS: OnceLock<Option<String>> = OnceLock::new();
    OURS.get_or_init(|| namespace_of("self")).clone()
}

fn namespace_of(process: impl Display) -> Option<String> {
    fs::read_link(format!("/proc/{process}/ns/pid")).ok().map(|name| name.to_string_lossy().into_owned())
}

/// True in the initial PID namespace, which shows every process and every lock.
pub(crate) fn is_outermost_pid_namespace() -> bool {
    pid_namespace().is_some_and(|name| name == "pid:[4026531836]") // PROC_PID_INIT_INO in the kernel
}

/// Identifies this boot of the kernel.
pub(crate) fn boot_id() -> Option<String> {
    static ID: OnceLock<Option<String>> = OnceLock::new();
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned());
    ID.get_or_init(read).clone()
}

/// Time since the start of the process `pid`.
pub(crate) fn age(pid: i32) -> Option<Duration> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
    now.checked_sub(Duration::from_millis(Stat::read(pid)?.start.saturating_mul(10)))
}

/// Words of the command line of the process `pid`: of a long one, the beginning.
pub(crate) fn command_line(pid: i32) -> Option<Vec<String>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/cmdline")).ok()?.take(4096).read_to_end(&mut bytes).ok()?;
    bytes.pop_if(|last| *last == 0);
    Some(bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

/// Name of this host or container.
pub(crate) fn host() -> String {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| gethostname().map(|host| host.to_string_lossy().into_owned()).unwrap_or_default()).clone()
}

/// True if /proc is that of our PID namespace. A container may mount the /proc of its host.
pub(crate) fn is_of_our_pid_namespace() -> bool {
    fs::read_link("/proc/self").is_ok_and(|us| us == Path::new(&process::id().to_string()))
}

#[cfg(test)]
mod tests;
