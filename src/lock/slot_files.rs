//! The files of the slots, in `<config dir>/claude-run/slots`: `1`, `2` and so on, each locked by the run that has that slot; and the
//! tickets `t1`, `t2` and so on of those who wait, each locked by its run. Here they are only looked at, and the tickets of the dead
//! removed.

use anyhow::Error;
use nix::fcntl::OFlag;

use super::file::LockFile;
use super::holder::{Holder, Queue};
use crate::records::{RecordStore, is_locked};
use crate::sys::dir::Dir;
use crate::sys::file_id::FileId;
use crate::sys::fs::{file_obstacle, obstacles, settled};

/// Slot, as anybody can see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotFile {
    pub(crate) number: u16,
    pub(crate) file_id: FileId,
    pub(crate) is_held: bool,
}

/// All slots that there ever were, in order.
pub(crate) fn slot_files(store: &RecordStore) -> Vec<SlotFile> {
    let slots = SlotsDir::read(store);
    let Some(dir) = &slots.dir else { return Vec::new() };
    let look = |number: &u16| {
        let file = dir.open_file(&number.to_string(), OFlag::O_RDONLY).ok()?;
        Some(SlotFile { number: *number, file_id: FileId::of(&file.metadata().ok()?), is_held: is_locked(&file) })
    };
    slots.numbers.iter().filter_map(look).collect()
}

/// Errors that keep a run from using the slots, or from looking at them alone.
pub(crate) fn slot_obstacles(store: &RecordStore, writes: bool) -> Vec<Error> {
    let path = store.slots();
    obstacles(&path, store.open_slots(), writes, |dir| {
        let numbers = SlotsDir::read(store).numbers;
        let names = numbers.iter().map(u16::to_string).chain([QUEUE.to_owned()]);
        names.filter_map(|name| file_obstacle(dir, &path, &name, OFlag::O_RDONLY)).collect()
    })
}

/// Holder of the lock on the queue, if it stays locked: a run holds it for a moment only.
pub(crate) fn queue_holder(store: &RecordStore) -> Option<Holder> {
    let file = store.open_slots().ok()?.open_file(QUEUE, OFlag::O_RDONLY).ok()?;
    let lock = FileId::of(&file.metadata().ok()?);
    let owner = is_locked(&file).then(|| Queue::look(lock).owner())?;
    let is_still_locked = settled(|| is_locked(&file), |is_locked| *is_locked);
    let queue = is_still_locked.then(|| Queue::look(lock)).filter(|queue| queue.owner() == owner)?;
    Holder::find_without_record(&queue, Some(store))
}

/// Name of the file that is locked while a ticket is made.
pub(super) const QUEUE: &str = "queue";

/// Beyond the number of any ticket: a name with more is another's, and would leave no number for the next.
const BEYOND: u64 = u64::MAX / 2;

/// The directory of the slots, read once.
pub(super) struct SlotsDir {
    /// `None` if it is missing.
    pub(super) dir: Option<Dir>,
    /// Numbers of the slots, in order.
    pub(super) numbers: Vec<u16>,
    /// Numbers of all tickets, in order; some may be of the dead.
    pub(super) tickets: Vec<u64>,
}

impl SlotsDir {
    pub(super) fn read(store: &RecordStore) -> Self {
        let dir = store.open_slots().ok();
        let (mut numbers, mut tickets) = (Vec::new(), Vec::new());
        let visit = |name: &str| match name.strip_prefix('t') {
            Some(ticket) => tickets.extend(ticket.parse().ok().filter(|number: &u64| *number < BEYOND)),
            None => numbers.extend(name.parse().ok().filter(|number: &u16| number.to_string() == name)),
        };
        let _ = dir.as_ref().map(|dir| dir.for_each_name(usize::MAX, visit)); // what cannot be read is empty, as what is missing
        numbers.sort_unstable();
        tickets.sort_unstable();
        Self { dir, numbers, tickets }
    }

    /// The last ticket before `number` whose run lives. Removes those of the dead on the way: a ticket is locked before there is a later
    /// one.
    pub(super) fn ticket_before(&self, store: &RecordStore, number: u64) -> Option<LockFile> {
        let dir = self.dir.as_ref()?;
        self.tickets.iter().rev().filter(|&&earlier| earlier < number).find_map(|&earlier| {
            let name = ticket_name(earlier);
            let file = dir.open_file(&name, OFlag::O_RDONLY).ok()?;
            if is_locked(&file) {
                return LockFile::open_ticket(store, &name).ok();
            }
            let _ = dir.remove(&name); // in a directory that is read-only, it stays
            None
        })
    }
}

/// Name of the ticket `number`.
pub(super) fn ticket_name(number: u64) -> String {
    format!("t{number}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn slots_are_listed_by_number() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let store = RecordStore::of(dir.path());
        fs::create_dir_all(store.slots())?;
        for number in (1..=40_u16).rev().chain([100]) {
            fs::write(store.slots().join(number.to_string()), "")?;
        }
        let numbers: Vec<_> = slot_files(&store).iter().map(|slot| slot.number).collect();
        assert_eq!(numbers, (1..=40).chain([100]).collect::<Vec<_>>());
        Ok(())
    }
}
