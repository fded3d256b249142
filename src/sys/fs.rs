//! Opening files in places where others may have put something else: a FIFO must neither hang us nor lose what its writer writes, and
//! an endless file must not fill the memory.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Error;
use fs4::{FileExt, TryLockError};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::geteuid;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::dir::Dir;
use super::steps::ensure_no_foreign_link;

/// Number and interval of the looks at a file that may be half-written, which outlast the rewriting of a small one.
const LOOKS: u32 = 20;
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What `read` gives, as soon as it is not `unsettled`, or at last.
pub(crate) fn settled<T>(read: impl Fn() -> T, is_unsettled: impl Fn(&T) -> bool) -> T {
    for _ in 0..LOOKS {
        let result = read();
        if !is_unsettled(&result) {
            return result;
        }
        thread::sleep(LOOK_EVERY);
    }
    read()
}

/// What was opened; `None` if nothing is there.
pub(crate) fn if_there<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Error of `opened`, the directory at `path`, for who writes there or lists it alone; without one, the errors `within` it. None if it is
/// missing.
pub(crate) fn obstacles(
    path: &Path,
    opened: io::Result<Dir>,
    writes: bool,
    within: impl FnOnce(&Dir) -> Vec<Error>,
) -> Vec<Error> {
    match if_there(opened.and_then(|dir| dir.check_access(writes).map(|()| dir))) {
        Ok(dir) => dir.as_ref().map_or(Vec::new(), within),
        Err(error) => vec![unusable(path, error)],
    }
}

/// Error of the file `name` in `dir`, the directory at `path`, if it is there. That its file system is read-only is none.
pub(crate) fn file_obstacle(dir: &Dir, path: &Path, name: &str, flags: OFlag) -> Option<Error> {
    let error = if_there(dir.open_file(name, flags)).err().filter(|error| error.kind() != ErrorKind::ReadOnlyFilesystem);
    error.map(|error| unusable(&path.join(name), error))
}

fn unusable(path: &Path, error: io::Error) -> Error {
    Error::new(error).context(format!("{} cannot be used", path.display()))
}

/// The directory in which `path` is: of a bare name, the working directory.
pub(crate) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `path` without symbolic links; as it is where it leads nowhere.
pub(crate) fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Time between the two, whichever is the later: clocks of two hosts differ.
pub(crate) fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|error| error.duration())
}

/// Takes an flock on `file` for us alone. False if another has one; where there is none, nobody can be kept out.
pub(crate) fn try_flock(file: &File) -> bool {
    !matches!(FileExt::try_lock(file), Err(TryLockError::WouldBlock))
}

/// True if the disk, or a quota, has no room or no inode left.
pub(crate) fn is_for_lack_of_room(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// True if `dir` has no room for `bytes`, or no inode, by what its file system says itself: of a quota it may not know. One that is read-only
/// may be full.
pub(crate) fn lacks_room(dir: &Path, bytes: usize) -> bool {
    statvfs(dir).is_ok_and(|found| {
        // Some blocks are for root alone.
        let free = if geteuid().is_root() { found.blocks_free() } else { found.blocks_available() };
        let has_no_room = found.blocks() > 0 && free.saturating_mul(found.fragment_size()) < bytes as u64;
        let has_no_inode = found.files() > 0 && found.files_available() == 0;
        (has_no_room || has_no_inode) && !found.flags().contains(FsFlags::ST_RDONLY)
    })
}

/// Opens `path` for reading, unless it is a FIFO or a socket.
pub(crate) fn open_to_read(path: &Path) -> io::Result<File> {
    Ok(open_if(path, File::options().read(true), |kind| !kind.is_fifo() && !kind.is_socket())?.0)
}

/// Opens the regular file `path` by `options`.
pub(crate) fn open_regular(path: &Path, options: &OpenOptions) -> io::Result<(File, Metadata)> {
    open_if(path, options, FileType::is_file)
}

/// Opens the regular file `path` to read and write. If nothing is there, it is made, with `mode`; by root, for the owner of the directory.
pub(crate) fn open_or_make_regular(path: &Path, mode: u32) -> io::Result<(File, Metadata)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(mode);
    let open = || open_regular(path, &options);
    match open() {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        opened => return opened,
    }
    let dir = Dir::open(parent_of(path))?;
    match dir.make_file(path.file_name().unwrap_or_default(), Mode::from_bits_truncate(mode)) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return check(made?, FileType::is_file),
    }
    // Another has made it at this moment; or it is a link, by whose owner's wish something is to be made elsewhere.
    match ensure_no_foreign_link(path) {
        Ok(()) => check(options.create(true).custom_flags(SAFELY).open(path)?, FileType::is_file),
        Err(refusal) => open().map_err(|_| refusal),
    }
}

/// Never hangs, and no terminal becomes ours.
const SAFELY: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

/// Looks first: opening a FIFO lets its writer go on, and opening a device can have effects of its own. What is put there at this very
/// moment is opened, without hanging, and refused.
fn open_if(path: &Path, options: &OpenOptions, is_wanted: impl Fn(&FileType) -> bool) -> io::Result<(File, Metadata)> {
    ensure_wanted(fs::metadata(path)?.file_type(), &is_wanted)?;
    check(options.clone().custom_flags(SAFELY).open(path)?, is_wanted)
}

fn check(file: File, is_wanted: impl Fn(&FileType) -> bool) -> io::Result<(File, Metadata)> {
    let found = file.metadata()?;
    ensure_wanted(found.file_type(), is_wanted)?;
    Ok((file, found))
}

fn ensure_wanted(kind: FileType, is_wanted: impl Fn(&FileType) -> bool) -> io::Result<()> {
    if is_wanted(&kind) { Ok(()) } else { Err(io::Error::other(format!("it is {}", name(kind)))) }
}

fn name(kind: FileType) -> &'static str {
    match () {
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () if kind.is_dir() => "a directory",
        () => "no regular file",
    }
}

/// Time at which the file or link `path` was made, where the file system keeps it. std asks for it with glibc alone.
pub(crate) fn birth(path: &Path) -> Option<SystemTime> {
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BTIME).ok()?;
    let is_kept = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME);
    let since = Duration::new(found.stx_btime.tv_sec.try_into().ok()?, found.stx_btime.tv_nsec);
    SystemTime::UNIX_EPOCH.checked_add(since).filter(|_| is_kept)
}

/// Reads the whole file `path`, of at most `most` bytes.
pub(crate) fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_all(&open_to_read(path)?, most)
}

/// Reads `file` from where it stands, as [`read_bounded`] does.
pub(crate) fn read_all(file: &File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {most} bytes")));
    }
    Ok(bytes)
}

/// Bytes with a secret in them, which are overwritten when dropped.
#[derive(Debug, Default)]
pub(crate) struct Wiped(Vec<u8>);

impl std::ops::Deref for Wiped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.fill(0);
        std::hint::black_box(&self.0); // or a compiler may find that nobody reads the zeros
    }
}

/// Reads the whole file `path`, as [`read_bounded`] does, leaving no copy behind.
pub(crate) fn read_secret(path: &Path, most: u64) -> io::Result<Wiped> {
    let file = open_to_read(path)?;
    // With room for all of it from the start: a vector that grows leaves its old places as they were.
    let size = file.metadata()?.len().min(most) as usize;
    let mut bytes = Wiped(Vec::with_capacity(size + 1));
    (&file).take(size as u64).read_to_end(&mut bytes.0)?;
    let mut more = [0; 1];
    match (&file).read(&mut more)? {
        0 => Ok(bytes),
        _ => Err(io::Error::other(format!("it is larger than {most} bytes, or grows"))),
    }
}

/// Reads the whole text file `path`, of at most `most` bytes.
pub(crate) fn read_bounded_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read_bounded(path, most)?).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|&byte| byte == b'\n').count();
        io::Error::other(format!("line {line} is not UTF-8"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unsettled_is_read_again_and_taken_at_last() {
        for (settles_at, expected) in [(1, 1), (4, 4), (u32::MAX, LOOKS + 1)] {
            let looks = std::cell::Cell::new(0);
            let read = || looks.replace(looks.get() + 1) + 1;
            assert_eq!(settled(read, |look| *look < settles_at), expected);
        }
    }

    #[test]
    fn open_waits_for_no_fifo_and_no_end() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU)?;
        assert_eq!(read_bounded(&fifo, 9).map_err(|error| error.to_string()), Err("it is a FIFO".to_owned()));
        assert!(read_bounded(Path::new("/dev/zero"), 9).is_err_and(|error| error.to_string().contains("larger than 9")));
        assert_eq!(read_bounded(Path::new("/dev/null"), 9)?, b"");
        let file = dir.path().join("file");
        std::fs::write(&file, "123456789")?;
        assert_eq!(read_bounded_text(&file, 9)?, "123456789");
        std::fs::write(&file, b"1\n2\xff4567\n")?;
        assert!(read_bounded_text(&file, 9).is_err_and(|error| error.to_string() == "line 2 is not UTF-8"));
        // The writer of a FIFO still waits for a reader.
        let writes = || File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo);
        assert!(open_regular(&fifo, File::options().read(true).write(true)).is_err() && writes().is_err());
        assert!(read_bounded(&file, 8).is_err() && read_bounded(&dir.path().join("none"), 8).is_err());
        Ok(())
    }
}
