//! Access control lists, as acl(5) describes them.

use std::path::Path;

use rustix::fs::getxattr;

/// Attribute with the list of a file or directory.
pub(crate) const ACL: &str = "system.posix_acl_access";

/// Tags of entries, and the bit for writing.
const USER: u16 = 2;
const MASK: u16 = 16;
const WRITE: u16 = 2;

/// Users whom the list of `path` names, and lets write.
pub(crate) fn named_writers(path: &Path) -> Vec<u32> {
    let mut list = vec![0; 64 << 10];
    let length = getxattr(path, ACL, &mut list[..]).unwrap_or(0); // mostly there is none
    // Behind its version: tag, permissions and id of each entry.
    let entry = |bytes: &[u8; 8]| {
        let [a, b, c, d, id @ ..] = *bytes;
        (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]), u32::from_le_bytes(id))
    };
    let entries: Vec<_> = list[length.min(4)..length].as_chunks().0.iter().map(entry).collect();
    let mask = entries.iter().find(|(tag, ..)| *tag == MASK).map_or(u16::MAX, |(_, bits, _)| *bits);
    entries.iter().filter(|(tag, bits, _)| *tag == USER && bits & mask & WRITE != 0).map(|(.., user)| *user).collect()
}
