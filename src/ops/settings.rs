//! `claude-run settings`: every setting, its value, and its origin. `claude-run mode`: the lock mode of the whole factory, who still
//! follows another, and how to change it.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use super::{Context, Factory, answer, text, wait_until_none};
use crate::claude::version::Version;
use crate::config::duration::{DurationSetting, after};
use crate::config::file::{self, SettingsFile};
use crate::config::settings::{LockMode, Origin, Written};
use crate::logging::escaped;
use crate::outcome::Outcome;
use crate::records::{Census, RunRecord};
use crate::sys::mount::is_mount_point;

/// One line, or one object, for each. Refuses what a run would refuse.
pub(super) fn show(context: &Context, json: bool, out: &mut impl Write) -> Result<Outcome> {
    context.settings()?;
    let settings = context.written();
    answer(out, json, true, &to_text(&settings), &settings.iter().map(text::setting_json).collect())
}

fn to_text(settings: &[Written]) -> String {
    let values: Vec<_> = settings.iter().map(|setting| escaped(&setting.value.to_string_lossy()).into_owned()).collect();
    let width = values.iter().map(|value| value.chars().count()).max().unwrap_or_default();
    let row = |(Written { name, origin, .. }, value): (&Written, &String)| {
        format!("{name:<20}{value:<width$}  {}\n", text::origin(origin))
    };
    settings.iter().zip(&values).map(row).collect()
}

/// Shows the mode, or sets it; with `drain`, waits so long at most until no live run follows another.
pub(super) fn mode(
    mut context: Context,
    set: Option<LockMode>,
    drain: Option<DurationSetting>,
    json: bool,
    out: &mut impl Write,
) -> Result<Outcome> {
    let mut place = Factory::of(&context)?;
    let path = place.config_dir.join(file::NAME);
    if let Some(mode) = set {
        SettingsFile::set(&path, "lock", mode.name())?;
        context.file = SettingsFile::read(&path)?;
        place = Factory::of(&context)?;
    }
    let mode = set.unwrap_or(place.settings.lock_mode);
    let (_, unseen) = place.visible_census()?;
    let others = match drain {
        Some(bound) => {
            let deadline = after(Instant::now(), bound.as_limit());
            wait_until_none(&place.records, deadline, || followers_of_others(&place, mode))?
        }
        None => followers_of_others(&place, mode)?,
    };
    let Written { value: here, origin, .. } = &place.mode;
    let mut lines = match set {
        Some(mode) => format!("{} is the lock mode now, by {}\n", mode.name(), path.display()),
        None => text::setting(&place.mode) + "\n",
    };
    // What was said here goes before the file, and may be said elsewhere, too.
    if set.is_some_and(|set| here != set.name()) && matches!(origin, Origin::Flag | Origin::Variable(_)) {
        lines += &format!("but here {} says {}, and goes before the file\n", text::origin(origin), here.display());
    }
    lines += advice(&context, &place, mode).unwrap_or_default();
    let mut by_mode = BTreeMap::<_, usize>::new();
    others.iter().for_each(|record| *by_mode.entry(&record.mode).or_default() += 1);
    let modes: Vec<_> = by_mode.iter().map(|(mode, count)| format!("{count} {mode}")).collect();
    lines += &match others.len() {
        _ if let Some(why) = &unseen => format!("who follows another mode cannot be told: {why}\n"),
        0 => format!("no live run follows another mode than {}\n", mode.name()),
        1 => format!("1 live run still follows another mode: {}\n", modes.join(", ")),
        count => format!("{count} live runs still follow another mode: {}\n", modes.join(", ")),
    };
    lines.extend(others.iter().map(|record| format!("  {}\n", text::run(record))));
    let mut value = text::setting_json(&place.mode);
    value["set"] = json!(set.map(LockMode::name));
    value["others"] = others.iter().map(text::run_json).collect();
    answer(out, json, unseen.is_none() && (drain.is_none() || others.is_empty()), &lines, &value)
}

/// Advice on `mode` where claude's own lock, that of its older versions alone, is not shared with the config dir.
fn advice(context: &Context, place: &Factory, mode: LockMode) -> Option<&'static str> {
    let has_inner_lock = || Some(Version::of_program(&context.claude().ok()?.path)? >= Version::INNER_LOCK);
    let is_split = mode == LockMode::Refresh && is_mount_point(&place.storage.dir);
    (is_split && has_inner_lock() != Some(true)).then_some(
        "but the config dir is a mount point, and claude before 2.1.128 then has no lock around a refresh in mid-run: with that, better \
         exclusive, or a refresh-margin of the hard limit and 5 minutes\n",
    )
}

/// All runs that follow another mode than `mode`, orphaned ones and those of other hosts included.
fn followers_of_others(place: &Factory, mode: LockMode) -> Result<Vec<RunRecord>> {
    let (Census { live, orphaned, elsewhere, .. }, _) = place.visible_census()?;
    let all = live.into_iter().chain(orphaned).chain(elsewhere);
    Ok(all.filter(|record| record.mode != mode.name()).collect())
}
