//! The little of /proc that supervision needs: who is whose parent, since when, whether this /proc is about us, and where we are.

use std::fs;
use std::path::Path;
use std::process;

use nix::unistd::gethostname;

use crate::sys::file_id::FileId;

/// What /proc/PID/stat says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    /// `R`, `S`, `T` (stopped), `Z` (zombie) …
    pub(crate) state: u8,
    pub(crate) parent: i32,
    threads: u32,
    /// Clock ticks from boot to its start: with the pid, the name of one process for ever.
    pub(crate) start: u64,
}

impl Stat {
    /// The process `pid`, if it is there.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads a line of the form `4711 (any (name) S 1 …`.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        // The name is the process' own choice and may hold anything, parentheses and newlines too; no later field does.
        let end = line.iter().rposition(|&byte| byte == b')')?;
        let pid = str::from_utf8(&line[..line.iter().position(|&byte| byte == b' ')?]).ok()?.parse().ok()?;
        let mut fields = str::from_utf8(&line[end + 1..]).ok()?.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        // Fields 20 and 22 of proc(5); four are behind us, the pid and the name among them.
        let threads = fields.nth(15)?.parse().ok()?;
        let start = fields.nth(1)?.parse().ok()?;
        Some(Self { pid, state, parent, threads, start })
    }

    /// The name of this very process, whoever has its pid later.
    pub(crate) fn process(&self) -> (i32, u64) {
        (self.pid, self.start)
    }

    /// Whether only its remains are left. A process whose first thread has ended is shown as a zombie, too, but lives on
    /// in its other threads.
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X') && self.threads <= 1
    }

    /// All processes that can be seen. Not a snapshot: some may be gone by now, some may be new.
    pub(crate) fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::read).collect()
    }
}

/// An flock(2), held or waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flock {
    /// Who has asked for it: not who has it now, if that was inherited.
    pub(crate) pid: i32,
    /// Whether it is not there yet.
    pub(crate) waits: bool,
}

/// The flocks on `file` that the kernel shows us: those of our PID namespace.
pub(crate) fn flocks(file: FileId) -> Vec<Flock> {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let inode = format!(":{} ", file.inode); // most lines are about other files, and need no closer look
    let about_it = locks.lines().filter(|line| line.contains(&inode));
    let all: Vec<_> = about_it.filter_map(parse_flock).filter(|(_, at)| at.inode == file.inode).collect();
    // Some file systems show another device number to stat(2) than to the kernel; then the inode has to do.
    let is_exact = all.iter().any(|(_, at)| *at == file);
    all.into_iter().filter(|(_, at)| !is_exact || *at == file).map(|(flock, _)| flock).collect()
}

/// Reads a line of the form `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`, with `->` before FLOCK while it waits.
fn parse_flock(line: &str) -> Option<(Flock, FileId)> {
    let mut words = line.split_whitespace().skip(1).peekable();
    let waits = words.next_if_eq(&"->").is_some();
    if words.next()? != "FLOCK" {
        return None;
    }
    let pid = words.nth(2)?.parse().ok()?;
    let mut file = words.next()?.split(':');
    let mut hex = || u32::from_str_radix(file.next()?, 16).ok();
    let device = libc::makedev(hex()?, hex()?);
    let inode = file.next()?.parse().ok()?;
    Some((Flock { pid, waits }, FileId { device, inode }))
}

/// What the process `pid` calls itself, and the PID namespace in which it does.
pub(crate) fn innermost_pid(pid: i32) -> Option<(i32, String)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()?;
    let namespace = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()?;
    Some((inner, namespace.to_string_lossy().into_owned()))
}

/// Our PID namespace, by the name that /proc has for it.
pub(crate) fn pid_namespace() -> Option<String> {
    fs::read_link("/proc/self/ns/pid").ok().map(|name| name.to_string_lossy().into_owned())
}

/// Which start of the kernel this is.
pub(crate) fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// The name of this host, or container.
pub(crate) fn host() -> String {
    gethostname().map(|host| host.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether ours is the PID namespace in which every process, and every lock, can be seen.
pub(crate) fn is_outermost_pid_namespace() -> bool {
    // The kernel has given it this number since there are such numbers (PROC_PID_INIT_INO).
    fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name == Path::new("pid:[4026531836]"))
}

/// Whether the pids in /proc are those that we see. A container may show the /proc of the host, whose pid 7 is not ours.
pub(crate) fn is_of_our_pid_namespace() -> bool {
    fs::read_link("/proc/self").is_ok_and(|us| us == Path::new(&process::id().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_read() {
        let rest = "S 17 4711 4711 0 -1 4194560 115 0 0 0 0 0 0 0 20 0 1 0 9876543 5832704";
        for name in ["sh", "a) R 1 (b", "((", "))", "", "x\ny", " "] {
            let line = format!("4711 ({name}) {rest}\n");
            let expected = Stat { pid: 4711, state: b'S', parent: 17, threads: 1, start: 9_876_543 };
            assert_eq!(Stat::parse(line.as_bytes()), Some(expected), "{name:?}");
        }
    }

    #[test]
    fn a_cut_line_is_no_process() {
        let line = b"4711 (sh) S 17 4711 4711 0 -1 4194560 115 0 0 0 0 0 0 0 20 0 1 0 9876543";
        for length in 0..line.len() - 6 {
            assert_eq!(Stat::parse(&line[..length]), None, "{length}");
        }
    }

    #[test]
    fn flocks_are_told_from_other_locks() {
        let file = FileId { device: libc::makedev(8, 0x21), inode: 1234 };
        let flock = |waits| Some((Flock { pid: 4711, waits }, file));
        assert_eq!(parse_flock("1: FLOCK  ADVISORY  WRITE 4711 08:21:1234 0 EOF"), flock(false));
        assert_eq!(parse_flock("12: -> FLOCK  ADVISORY  READ  4711 08:21:1234 0 EOF"), flock(true));
        for other in ["", "1:", "1: POSIX  ADVISORY  WRITE 4711 08:21:1234 0 EOF", "1: FLOCK  ADVISORY  WRITE 4711 08:21"] {
            assert_eq!(parse_flock(other), None, "{other:?}");
        }
    }

    #[test]
    fn we_are_among_all() {
        assert!(is_of_our_pid_namespace());
        assert!(Stat::all().iter().any(|stat| stat.pid == process::id() as i32));
    }
}
