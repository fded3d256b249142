//! All live runs, by their records: whether they see the same lock, and have one version.

use std::collections::BTreeSet;
use std::path::Path;

use super::Check;
use crate::ops::text::count;
use crate::records::{PathView, RecordStore, RunRecord};

pub(super) fn check_views(config_dir: &Path, check: &mut Check) {
    let live = match RecordStore::of(config_dir).census() {
        Ok(census) => census.live,
        Err(error) => {
            let what = format!("the run records cannot be read: {error}");
            return check.fail(what, "who runs cannot be told", "see who owns them");
        }
    };
    if live.is_empty() {
        return check.pass("no live run to compare");
    }
    for path in &SHARED_PATHS {
        path.compare(&live, check);
    }
    if check.is_clean() {
        check.pass(format!("{}, and no two see another lock", count(live.len(), "live run")));
    }
}

/// A path that has to be the same file for all runs.
struct SharedPath {
    name: &'static str,
    of: fn(&RunRecord) -> Option<&PathView>,
    means: &'static str,
    todo: &'static str,
}

const SHARED_PATHS: [SharedPath; 3] = [
    SharedPath {
        name: "lock file",
        of: |run| run.lock.as_ref(),
        means: "the session lock does not keep them apart",
        todo: "give both the same config dir, and no --lock-file of their own",
    },
    SharedPath {
        name: "config dir",
        of: |run| Some(&run.config_dir),
        means: "each has a login of its own, though they share these records",
        todo: "give both the same CLAUDE_CONFIG_DIR, mounted from the same place",
    },
    SharedPath {
        name: "directory above the config dir",
        of: |run| Some(&run.parent),
        means: "claude before 2.1.128 has its lock there: two refreshes at once, and one of them loses",
        todo: "mount the directory above the config dir, at the same absolute path everywhere",
    },
];

impl SharedPath {
    /// Adds a finding for each view that differs from that of the oldest run.
    fn compare(&self, live: &[RunRecord], check: &mut Check) {
        let mut known: Vec<(&RunRecord, &PathView)> = Vec::new();
        for (run, seen) in live.iter().filter_map(|run| Some((run, (self.of)(run)?))) {
            if !known.iter().any(|(other, view)| is_same(view, seen, other.boot == run.boot)) {
                known.push((run, seen));
            }
        }
        let [first, others @ ..] = known.as_slice() else { return };
        for other in others {
            let what = format!("two runs see another {}: {}; {}", self.name, describe(first), describe(other));
            check.fail(what, self.means, self.todo);
        }
    }
}

fn describe((run, seen): &(&RunRecord, &PathView)) -> String {
    let file = seen.file_id().map_or_else(|| "not there".into(), |id| format!("device {}, inode {}", id.device, id.inode));
    format!("{} in {} sees {} ({file})", run.who(), run.host, seen.path)
}

/// True if both are the same file. Device numbers are not comparable between hosts; paths count only where there is no file yet.
fn is_same(one: &PathView, other: &PathView, same_host: bool) -> bool {
    match (one.file_id(), other.file_id()) {
        (Some(one), Some(other)) => one.inode == other.inode && (one.device == other.device || !same_host),
        _ => one.path == other.path,
    }
}

pub(super) fn check_versions(config_dir: &Path, check: &mut Check) {
    let live = RecordStore::of(config_dir).census().unwrap_or_default().live;
    let ours = env!("CARGO_PKG_VERSION");
    let mut versions: BTreeSet<_> = live.iter().map(|run| run.version.as_str()).collect();
    versions.insert(ours);
    if versions.len() == 1 {
        return check.pass(format!("{ours}; no live run has another version"));
    }
    let others = live.iter().filter(|run| run.version != ours).map(|run| format!("{} has {}", run.who(), run.version));
    let what = format!("this is {ours}, but {}", others.collect::<Vec<_>>().join(", "));
    let means = "they lock alike, but may not understand each other's records and settings in full";
    check.warn(what, means, "install one version everywhere");
}
