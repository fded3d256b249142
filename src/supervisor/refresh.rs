//! Whether a refresh of claude's token is under way below us, so that no signal of ours may end it.

use std::path::Path;
use std::time::SystemTime;

use super::process_tree::ProcessTree;
use crate::claude::refresh_locks::{RefreshLock, Standing};

/// Whether one may be: somebody holds one of the refresh locks of `config_dir`, and it is not known to be somebody else.
pub(super) fn may_be_under_way(config_dir: &Path, descendants: &ProcessTree) -> bool {
    let now = SystemTime::now();
    let locks = RefreshLock::of(config_dir);
    let mut live = locks.iter().filter(|lock| lock.standing(now) == Standing::Live);
    live.any(|lock| match (&lock.owner, descendants.names()) {
        (Some(owner), Some(names)) => owner.may_be_among(&names),
        _ => true,
    })
}
