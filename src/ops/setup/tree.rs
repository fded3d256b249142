//! Comparison of a directory tree with its copy: names, kinds, modes, owners, times, contents, symlinks and hard links.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::sys::file_id::FileId;

/// Describes the first thing of `old` that is not in `new` as it is, if any. What `new` has besides does not matter.
pub(super) fn difference(old: &Path, new: &Path) -> io::Result<Option<String>> {
    Comparison::default().of(old, new)
}

#[derive(Default)]
struct Comparison {
    /// Files with several names, and their copies.
    hard_links: HashMap<FileId, FileId>,
}

impl Comparison {
    fn of(&mut self, old: &Path, new: &Path) -> io::Result<Option<String>> {
        let one = fs::symlink_metadata(old)?;
        let Ok(other) = fs::symlink_metadata(new) else { return Ok(Some(format!("{} is missing", new.display()))) };
        if let Some(what) = self.unlike(old, &one, new, &other)? {
            return Ok(Some(format!("{} and {} differ in {what}", old.display(), new.display())));
        }
        if one.is_dir() {
            for entry in fs::read_dir(old)? {
                let name = entry?.file_name();
                if let Some(difference) = self.of(&old.join(&name), &new.join(&name))? {
                    return Ok(Some(difference));
                }
            }
        }
        Ok(None)
    }

    fn unlike(&mut self, old: &Path, one: &Metadata, new: &Path, other: &Metadata) -> io::Result<Option<&'static str>> {
        if one.file_type() != other.file_type() {
            return Ok(Some("their kind"));
        }
        if (one.mode(), one.uid(), one.gid()) != (other.mode(), other.uid(), other.gid()) {
            return Ok(Some("mode or owner"));
        }
        if one.is_symlink() {
            return Ok((fs::read_link(old)? != fs::read_link(new)?).then_some("where they lead"));
        }
        if one.file_type().is_block_device() || one.file_type().is_char_device() {
            return Ok((one.rdev() != other.rdev()).then_some("which device they are"));
        }
        if (one.mtime(), one.mtime_nsec()) != (other.mtime(), other.mtime_nsec()) {
            return Ok(Some("their time"));
        }
        if !one.is_file() {
            return Ok(None);
        }
        if one.nlink() > 1 {
            let copy = *self.hard_links.entry(FileId::of(one)).or_insert(FileId::of(other));
            if copy != FileId::of(other) {
                return Ok(Some("which other names they have"));
            }
        }
        Ok((one.len() != other.len() || !same_bytes(old, new)?).then_some("what is in them"))
    }
}

fn same_bytes(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (BufReader::new(File::open(one)?), BufReader::new(File::open(other)?));
    let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let length = one.read(&mut a)?;
        if length == 0 {
            return Ok(other.read(&mut b[..1])? == 0);
        }
        if other.read_exact(&mut b[..length]).is_err() || a[..length] != b[..length] {
            return Ok(false);
        }
    }
}
