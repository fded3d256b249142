//! The files of the slots, in `<config dir>/claude-run/slots`: `1`, `2` and so on, each locked by the run that has that slot; and the
//! tickets `t1`, `t2` and so on of those who wait, each locked by its run. Here they are only looked at, and the tickets of the dead
//! removed.

use nix::fcntl::OFlag;

use super::file::LockFile;
use crate::records::{RecordStore, is_locked};
use crate::sys::dir::Dir;
use crate::sys::file_id::FileId;

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

/// Numbers of the slots in `dir`, in order.
pub(super) fn numbers(dir: &Dir) -> Vec<u16> {
    let names = dir.names().unwrap_or_default();
    let number = |name: &String| name.parse().ok().filter(|number: &u16| number.to_string() == *name);
    let mut numbers: Vec<u16> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// Name of the ticket `number`.
pub(super) fn ticket_name(number: u64) -> String {
    format!("t{number}")
}

/// Numbers of all tickets, in order; some may be of the dead.
pub(super) fn tickets(store: &RecordStore) -> Vec<u64> {
    store.open_slots().map(|dir| tickets_in(&dir)).unwrap_or_default()
}

fn tickets_in(dir: &Dir) -> Vec<u64> {
    let names = dir.names().unwrap_or_default();
    let mut tickets: Vec<u64> = names.iter().filter_map(|name| name.strip_prefix('t')?.parse().ok()).collect();
    tickets.sort_unstable();
    tickets
}

/// The last ticket before `number` whose run lives. Removes those of the dead on the way: a ticket is locked before there is a later one.
pub(super) fn ticket_before(store: &RecordStore, number: u64) -> Option<LockFile> {
    let dir = store.open_slots().ok()?;
    tickets_in(&dir).into_iter().rev().filter(|&earlier| earlier < number).find_map(|earlier| {
        let name = ticket_name(earlier);
        let file = dir.open_file(&name, OFlag::O_RDONLY).ok()?;
        if is_locked(&file) {
            return LockFile::open_ticket(store, &name).ok();
        }
        let _ = dir.remove(&name); // in a directory that is read-only, it stays
        None
    })
}
