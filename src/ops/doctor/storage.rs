//! Where claude keeps its login, and whether all who share the login share the locks around its refresh as well. They are beside the
//! credentials file: whoever shares that file alone has other locks.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{Check, Subject};
use crate::claude::version::Version;
use crate::sys::mount;

pub(super) fn check(subject: &Subject, check: &mut Check) {
    let storage = &subject.storage;
    let (dir, file) = (storage.dir.display(), storage.credentials());
    let version = subject.claude.as_ref().ok().and_then(|(_, answer)| Version::parse(answer));
    if let (Some(variable), Some(version)) = (storage.moved_by, version)
        && version < Version::INNER_LOCK
        && variable == crate::claude::storage::VARIABLE
    {
        let means = "it keeps its login in the config dir, and those that know the variable elsewhere: two logins";
        check.warn(
            format!("{variable} is set, and this claude does not know it"),
            means,
            "update claude, or unset the variable",
        );
    }
    let shown = file.display();
    let todo = "share the directory, not the file";
    if mount::is_mount_point(&file) {
        let means =
            "its locks are not shared with it, so that two refresh at once; and 2.1.330 cannot replace it: the login is lost";
        check.fail(format!("{shown} is a mount point"), means, todo);
    }
    if fs::symlink_metadata(&file).is_ok_and(|found| found.is_file() && found.nlink() > 1) {
        let means = "2.1.330 replaces it at the next refresh, and who has it by its other name is logged out";
        check.fail(format!("{shown} has another name elsewhere"), means, todo);
    }
    let leads_out =
        || fs::canonicalize(&file).ok()?.parent().map(|dir| fs::canonicalize(&storage.dir).ok().as_deref() != Some(dir));
    if file.is_symlink() && leads_out().unwrap_or(true) {
        let means = "2.1.330 replaces it by a plain file at the next refresh: who shares what it leads to is logged out";
        check.fail(format!("{shown} is a symlink"), means, todo);
    }
    check.pass_if_clean(match storage.moved_by {
        Some(variable) => format!("{dir} is claude's storage, by {variable}"),
        None => format!("{dir}, the config dir, is claude's storage"),
    });
}
