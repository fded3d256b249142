//! The files of the slots, in `<config dir>/claude-run/slots`: `1`, `2` and so on, each locked by the run that has that slot, and
//! `queue`, locked by the first of those who wait for one. Here they are only looked at.

use nix::fcntl::OFlag;

use crate::records::{RecordStore, is_locked};
use crate::sys::dir::Dir;
use crate::sys::file_id::FileId;

/// Name of the file in whose kernel queue everybody waits but the first.
pub(super) const QUEUE: &str = "queue";

/// Slot, as anybody can see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotFile {
    pub(crate) number: u16,
    pub(crate) file_id: FileId,
    pub(crate) is_held: bool,
}

/// All slots that there ever were, in order.
pub(crate) fn slot_files(store: &RecordStore) -> Vec<SlotFile> {
    let Ok(dir) = store.open_slots() else { return Vec::new() };
    let look = |number: &u16| {
        let file = dir.open_file(&number.to_string(), OFlag::O_RDONLY).ok()?;
        Some(SlotFile { number: *number, file_id: FileId::of(&file.metadata().ok()?), is_held: is_locked(&file) })
    };
    numbers(&dir).iter().filter_map(look).collect()
}

/// The file in whose queue they wait.
pub(crate) fn slot_queue(store: &RecordStore) -> Option<FileId> {
    FileId::at(&store.slots().join(QUEUE))
}

/// Numbers of the slots in `dir`, in order.
pub(super) fn numbers(dir: &Dir) -> Vec<u16> {
    let names = dir.names().unwrap_or_default();
    let mut numbers: Vec<u16> =
        names.iter().filter_map(|name| name.parse().ok().filter(|number: &u16| number.to_string() == *name)).collect();
    numbers.sort_unstable();
    numbers
}
