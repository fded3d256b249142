//! Checks 4 and 10: whether all live runs see the same lock, by the records that each keeps of what it sees, and are of one version.

use std::collections::BTreeSet;
use std::path::Path;

use super::Finding;
use crate::ops::text::count;
use crate::records::{PathView, RecordStore, RunRecord};

const FLEET: &str = "fleet";
const VERSION: &str = "claude-run";

pub(super) fn views(config_dir: &Path) -> Vec<Finding> {
    let census = match RecordStore::of(config_dir).census() {
        Ok(census) => census,
        Err(error) => {
            let means = "who runs cannot be told";
            return vec![Finding::failure(
                FLEET,
                format!("the run records cannot be read: {error}"),
                means,
                "see who owns them",
            )];
        }
    };
    let live = census.live;
    if live.is_empty() {
        return vec![Finding::pass(FLEET, "no live run to compare")];
    }
    let mut findings: Vec<_> = ASPECTS.iter().flat_map(|aspect| aspect.differences(&live)).collect();
    if findings.is_empty() {
        findings.push(Finding::pass(FLEET, format!("{}, and no two see another lock", count(live.len(), "live run"))));
    }
    findings
}

/// A thing that all runs have to see alike.
struct Aspect {
    name: &'static str,
    of: fn(&RunRecord) -> Option<&PathView>,
    means: &'static str,
    todo: &'static str,
}

const ASPECTS: [Aspect; 3] = [
    Aspect {
        name: "lock file",
        of: |run| run.lock.as_ref(),
        means: "the session lock does not keep them apart",
        todo: "give both the same config dir, and no --lock-file of their own",
    },
    Aspect {
        name: "config dir",
        of: |run| Some(&run.config_dir),
        means: "each has a login of its own, though they share these records",
        todo: "give both the same CLAUDE_CONFIG_DIR, mounted from the same place",
    },
    Aspect {
        name: "directory above the config dir",
        of: |run| Some(&run.parent),
        means: "claude before 2.1.128 has its lock there: two refreshes at once, and one of them loses",
        todo: "mount the directory above the config dir, at the same absolute path everywhere",
    },
];

impl Aspect {
    /// One finding for each view that is not that of the oldest run.
    fn differences(&self, live: &[RunRecord]) -> Vec<Finding> {
        let mut views = live.iter().filter_map(|run| Some((run, (self.of)(run)?)));
        let Some(first) = views.next() else { return Vec::new() };
        let mut known = vec![first];
        for (run, seen) in views {
            if !known.iter().any(|(other, view)| is_same(view, seen, other.boot == run.boot)) {
                known.push((run, seen));
            }
        }
        let [first, others @ ..] = known.as_slice() else { return Vec::new() };
        let difference = |other| format!("two runs see another {}: {}; {}", self.name, view(first), view(other));
        others.iter().map(|other| Finding::failure(FLEET, difference(other), self.means, self.todo)).collect()
    }
}

fn view((run, seen): &(&RunRecord, &PathView)) -> String {
    let identity = seen.identity.map_or_else(|| "not there".into(), |id| format!("device {}, inode {}", id.device, id.inode));
    format!("{} in {} sees {} ({identity})", run.who(), run.host, seen.path)
}

/// Between hosts, device numbers tell nothing. A path is compared only for the lock's sake: by another one, it is the same file.
fn is_same(one: &PathView, other: &PathView, same_host: bool) -> bool {
    match (one.identity, other.identity) {
        (Some(one), Some(other)) => one.inode == other.inode && (one.device == other.device || !same_host),
        _ => one.path == other.path, // it was not there yet
    }
}

pub(super) fn versions(config_dir: &Path) -> Vec<Finding> {
    let live = RecordStore::of(config_dir).census().unwrap_or_default().live;
    let ours = env!("CARGO_PKG_VERSION");
    let mut versions: BTreeSet<_> = live.iter().map(|run| run.version.as_str()).collect();
    versions.insert(ours);
    if versions.len() == 1 {
        return vec![Finding::pass(VERSION, format!("{ours}; no live run has another version"))];
    }
    let others = live.iter().filter(|run| run.version != ours).map(|run| format!("{} has {}", run.who(), run.version));
    let what = format!("this is {ours}, but {}", others.collect::<Vec<_>>().join(", "));
    let means = "they lock alike, but may not understand each other's records and settings in full";
    vec![Finding::warning(VERSION, what, means, "install one version everywhere")]
}
