//! `claude-run mode`: the lock mode of the whole factory: what it is, who still follows another, and how to change it.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{Context, Factory, cannot_read, text, wait_until_none, write, write_json};
use crate::config::duration::{DurationSetting, after};
use crate::config::file::{self, SettingsFile};
use crate::config::settings::{LockMode, Origin};
use crate::outcome::Outcome;
use crate::records::RunRecord;

/// JSON form of `mode`.
#[derive(Serialize)]
struct ModeJson<'a> {
    #[serde(flatten)]
    setting: text::SettingJson<'a>,
    /// The mode that was set.
    set: Option<&'static str>,
    /// Runs that follow another mode.
    others: Vec<text::RecordJson<'a>>,
}

/// Shows the mode, or sets it; with `drain`, waits so long at most until no live run follows another.
pub(super) fn run(
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
    let deadline = drain.map(|bound| after(Instant::now(), bound.as_limit()));
    let others = match deadline {
        Some(deadline) => wait_until_none(&place.records, deadline, || followers_of_others(&place, mode))?,
        None => followers_of_others(&place, mode)?,
    };
    let now = SystemTime::now();
    let (here, origin) = &place.mode;
    if json {
        let (setting, others) = (text::setting(here, origin), text::records(&others, now));
        write_json(out, &ModeJson { setting, set: set.map(LockMode::name), others })?;
    } else {
        let mut lines = match set {
            Some(mode) => format!("{} is the lock mode now, by {}\n", mode.name(), path.display()),
            None => format!("{} ({})\n", mode.name(), text::origin(origin)),
        };
        // What was said here goes before the file, and may be said elsewhere, too.
        if set.is_some_and(|set| here != set.name()) && matches!(origin, Origin::Flag | Origin::Variable(_)) {
            lines.push_str(&format!("but here {} says {here}, and goes before the file\n", text::origin(origin)));
        }
        lines.push_str(&summary(&others, mode));
        lines.extend(others.iter().map(|record| format!("  {}\n", text::run(record, now))));
        write(out, &lines)?;
    }
    Ok(if drain.is_some() && !others.is_empty() { Outcome::Trouble } else { Outcome::Shown })
}

fn summary(others: &[RunRecord], mode: LockMode) -> String {
    let mut by_mode = BTreeMap::<_, usize>::new();
    others.iter().for_each(|record| *by_mode.entry(&record.mode).or_default() += 1);
    if by_mode.is_empty() {
        return format!("no live run follows another mode than {}\n", mode.name());
    }
    let modes: Vec<_> = by_mode.iter().map(|(mode, count)| format!("{count} {mode}")).collect();
    let verb = if others.len() == 1 { "follows" } else { "follow" };
    format!("{} still {verb} another mode: {}\n", text::count(others.len(), "live run"), modes.join(", "))
}

/// The live runs, those that claude-run has left behind, and those of hosts whose locks cannot be seen from here, which follow
/// another mode than `mode`.
fn followers_of_others(place: &Factory, mode: LockMode) -> Result<Vec<RunRecord>> {
    let census = place.records.census().with_context(|| cannot_read(&place.records.runs()))?;
    let all = census.live.into_iter().chain(census.orphaned).chain(census.elsewhere);
    Ok(all.filter(|record| record.mode != mode.name()).collect())
}
