//! Reading files of others: a FIFO in their place must not hang us, and an endless file must not fill the memory.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens `path` for reading, without blocking, unless it is a FIFO.
pub(crate) fn open_to_read(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if file.metadata()?.file_type().is_fifo() {
        return Err(io::Error::other("it is a FIFO"));
    }
    Ok(file)
}

/// Reads the whole file `path`, of at most `most` bytes.
pub(crate) fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_to_read(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {most} bytes")));
    }
    Ok(bytes)
}

/// Reads the whole text file `path`, of at most `most` bytes.
pub(crate) fn read_bounded_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read_bounded(path, most)?).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn neither_a_fifo_nor_what_never_ends_is_waited_for() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU)?;
        assert_eq!(read_bounded(&fifo, 9).map_err(|error| error.to_string()), Err("it is a FIFO".to_owned()));
        assert!(read_bounded(Path::new("/dev/zero"), 9).is_err_and(|error| error.to_string().contains("larger than 9")));
        assert_eq!(read_bounded(Path::new("/dev/null"), 9)?, b"");
        let file = dir.path().join("file");
        std::fs::write(&file, "123456789")?;
        assert_eq!(read_bounded_text(&file, 9)?, "123456789");
        assert!(read_bounded(&file, 8).is_err() && read_bounded(&dir.path().join("none"), 8).is_err());
        Ok(())
    }
}
