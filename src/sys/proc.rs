//! Reads /proc: processes and their parents, flocks, PID namespaces.

use std::fs;
use std::path::Path;
use std::process;

use nix::unistd::gethostname;

use super::file_id::FileId;

/// Fields of /proc/PID/stat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    /// `R`, `S`, `T` (stopped), `Z` (zombie) …
    pub(crate) state: u8,
    pub(crate) parent: i32,
    /// Process group.
    pub(crate) group: i32,
    threads: u32,
    /// Clock ticks from boot to its start. With the pid, it identifies one process for ever.
    pub(crate) start: u64,
}

impl Stat {
    /// Reads the process `pid`, if it exists.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads a line of the form `4711 (any (name) S 1 …`.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        // The name may hold anything, parentheses and newlines too; later fields do not.
        let end = line.iter().rposition(|&byte| byte == b')')?;
        let pid = str::from_utf8(&line[..line.iter().position(|&byte| byte == b' ')?]).ok()?.parse().ok()?;
        let mut fields = str::from_utf8(&line[end + 1..]).ok()?.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        // Fields 20 and 22 of proc(5); five are read, the pid and the name among them.
        let threads = fields.nth(14)?.parse().ok()?;
        let start = fields.nth(1)?.parse().ok()?;
        Some(Self { pid, state, parent, group, threads, start })
    }

    /// Identity of the process: pid and start.
    pub(crate) fn process(&self) -> (i32, u64) {
        (self.pid, self.start)
    }

    /// True for a zombie. A process whose first thread has ended is shown as a zombie too, but lives in its other threads.
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X') && self.threads <= 1
    }

    /// Reads all visible processes. This is not a snapshot: processes start and end meanwhile.
    pub(crate) fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::read).collect()
    }
}

/// An flock(2) that is held or waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flock {
    /// Pid that called flock(2); a process that inherited the descriptor may hold the lock now.
    pub(crate) pid: i32,
    pub(crate) waits: bool,
}

/// Flocks on `file` by processes of our PID namespace; the kernel shows no others.
pub(crate) fn flocks(file: FileId) -> Vec<Flock> {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let inode = format!(":{} ", file.inode); // skips most lines without parsing them
    let about_it = locks.lines().filter(|line| line.contains(&inode));
    let all: Vec<_> = about_it.filter_map(parse_flock).filter(|(_, at)| at.inode == file.inode).collect();
    // On some file systems (btrfs, overlay) stat(2) gives another device number than /proc/locks: then the inode decides.
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

/// Pid of the process `pid` in its own PID namespace, and the name of that namespace.
pub(crate) fn innermost_pid(pid: i32) -> Option<(i32, String)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()?;
    let namespace = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()?;
    Some((inner, namespace.to_string_lossy().into_owned()))
}

/// Name of our PID namespace, as `pid:[4026531836]`.
pub(crate) fn pid_namespace() -> Option<String> {
    fs::read_link("/proc/self/ns/pid").ok().map(|name| name.to_string_lossy().into_owned())
}

/// Identifies this boot of the kernel.
pub(crate) fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// Name of this host or container.
pub(crate) fn host() -> String {
    gethostname().map(|host| host.to_string_lossy().into_owned()).unwrap_or_default()
}

/// True in the initial PID namespace, which shows every process and every lock.
pub(crate) fn is_outermost_pid_namespace() -> bool {
    // PROC_PID_INIT_INO in the kernel.
    fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name == Path::new("pid:[4026531836]"))
}

/// True if /proc is that of our PID namespace. A container may mount the /proc of its host.
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
            let expected = Stat { pid: 4711, state: b'S', parent: 17, group: 4711, threads: 1, start: 9_876_543 };
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
