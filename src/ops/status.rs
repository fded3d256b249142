//! `claude-run status`: holder of the session lock, waiters, other runs, refresh locks, login and last runs. It only looks, and
//! works in a config dir that is empty or read-only, with a settings file that is broken, and without records.

mod json;
mod rows;
mod watch;

use std::cell::OnceCell;
use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use self::json::StatusJson;
use super::checks::{self, Check};
use super::fleet::{Fleet, is_claude_run};
use super::{Context, Factory, layout, present, text};
use crate::claude::auth::Auth;
use crate::claude::config_dir::obstacle;
use crate::claude::credentials::Login;
use crate::claude::refresh_locks::{CutRefresh, RefreshLock, Standing};
use crate::config::duration::show_seconds;
use crate::config::settings::{LockMode, Slots};
use crate::lock::describe_refresh_lock;
use crate::outcome::Outcome;
use crate::records::FinishedRun;
use crate::sys::proc;
use crate::sys::terminal;

pub(super) struct Status<'a> {
    factory: &'a Factory,
    fleet: Fleet,
    /// Those of the login first.
    refresh_locks: Vec<RefreshLock>,
    login: Login,
    auth: Auth,
    /// What doctor finds as well: of the room and the last runs, which is trouble, and of the login, as this shell sees it.
    found: Vec<String>,
    login_objections: Vec<String>,
    /// Why the config dir cannot be.
    obstacle: Option<String>,
    /// The latest first.
    last: Vec<FinishedRun>,
    trouble: OnceCell<Vec<String>>,
}

pub(super) fn show(context: &Context, json: bool, watch: bool, out: &mut impl Write) -> Result<Outcome> {
    let factory = Factory::of(context)?;
    let is_dumb = || (context.environment)("TERM").is_some_and(|kind| kind == "dumb");
    // A job in the background may write to its terminal, but not take it.
    if watch && !json && io::stdout().is_terminal() && !is_dumb() && !terminal::is_in_background(io::stdout()) {
        return watch::on_terminal(&factory, context);
    }
    loop {
        let status = Status::look(&factory, context);
        // With a prompt below.
        let height = terminal::size_of(io::stdout()).map_or(usize::MAX, |size| usize::from(size.ws_row) - 1);
        let text = || {
            let text = status.to_text(layout::width(), height);
            if watch { format!("{}\n{text}\n", watch::head()) } else { text }
        };
        let has_reader = present(out, json, text, || StatusJson::of(&status))?;
        if !watch || !has_reader {
            return Ok(if status.trouble().is_empty() { Outcome::Shown } else { Outcome::Trouble });
        }
        // Ages change with the clock: there is no event to wait for.
        thread::sleep(Duration::from_secs(1));
    }
}

impl<'a> Status<'a> {
    pub(super) fn look(factory: &'a Factory, context: &Context) -> Self {
        let fleet = Fleet::look(factory);
        let login = Login::read_whole(&factory.storage.credentials());
        let claude = context.invocation(&factory.config_dir);
        let auth = claude.auth(&login);
        let obstacle = obstacle(&factory.config_dir);
        let (mut found, mut of_login) = (Check::default(), Check::default());
        checks::check_room(&factory.config_dir, &mut found);
        if factory.settings.lock_mode != LockMode::PassThrough {
            checks::check_lock_file(&factory.lock_file, &factory.config_dir, &mut found);
        }
        if checks::check_records(&factory.records, false, &mut found)
            && let Some(why) = &fleet.unreadable
        {
            found.fail(why, "of the runs, only what the kernel shows is listed", "see what is wrong there");
        }
        if factory.settings.slots != Slots::Unlimited {
            checks::check_slots(&factory.records, false, &mut found);
        }
        let last = factory.records.last_finished().unwrap_or_default(); // what cannot be read is told by now
        checks::check_last_runs(&last, &factory.storage.credentials(), &mut found);
        checks::check_claude_settings(&claude, &mut found);
        if !matches!(login, Login::Unclear(_)) && obstacle.is_none() {
            checks::check_login(&factory.storage.credentials(), &login, &auth, &mut of_login);
        }
        Self {
            factory,
            fleet,
            refresh_locks: RefreshLock::of_concern(&factory.storage),
            auth,
            found: found.objections().collect(),
            login_objections: of_login.objections().collect(),
            login,
            last: last.into_iter().rev().take(5).collect(),
            obstacle,
            trouble: OnceCell::new(),
        }
    }

    fn trouble(&self) -> &[String] {
        self.trouble.get_or_init(|| self.find_trouble())
    }

    fn find_trouble(&self) -> Vec<String> {
        // All else would only follow from it.
        if let Some(obstacle) = &self.obstacle {
            return vec![format!("no run starts: the config dir {} {obstacle}", self.factory.config_dir.display())];
        }
        let of_holders = checks::trouble_with_holders(self.fleet.held()).into_iter();
        let refresh_locks = self.refresh_locks.iter().filter_map(|lock| match lock.standing(SystemTime::now()) {
            Standing::Free | Standing::Live | Standing::NotKnown => None,
            Standing::Stale(_) | Standing::Stuck(_) => Some(format!("the refresh lock {}", describe_refresh_lock(lock))),
            Standing::OwnerDead(left) => {
                let (path, left) = (lock.path.display(), show_seconds(left));
                Some(format!(
                    "the owner of the refresh lock {path} is dead: a claude that has to refresh fails for another {left}"
                ))
            }
        });
        let (state, _, why) = self.token();
        let file = self.factory.storage.credentials();
        let login = (state == "unclear").then(|| format!("{} {why}", file.display()));
        let holders = (self.fleet.holders.len() > 1).then(|| "several runs hold the session lock".to_owned());
        let broken =
            self.fleet.broken.iter().map(|what| format!("{what}: it keeps apart from nobody who came later; let it end"));
        let broken = broken.chain(self.fleet.slots.trouble());
        let cut = CutRefresh::last(&self.factory.storage)
            .map(|cut| format!("{cut}: the login is probably lost; log in again if the next run fails"));
        let settings = self.factory.mistake.as_ref().map(|error| format!("no run starts: {error}"));
        let all = of_holders.chain(refresh_locks).chain(login).chain(cut).chain(broken).chain(holders);
        all.chain(settings).chain(self.found.iter().cloned()).collect()
    }

    /// State of the token of the login, its expiry, and both for people.
    fn token(&self) -> (&'static str, Option<SystemTime>, String) {
        match &self.login {
            Login::None => ("none", None, "no OAuth login here".to_owned()),
            Login::Unclear(why) => ("unclear", None, why.clone()),
            Login::Expires(at) => {
                let left = at.duration_since(SystemTime::now());
                let margin = self.factory.settings.refresh_margin.as_span();
                let is_due = left.as_ref().is_ok_and(|left| margin.is_none_or(|margin| *left <= margin));
                let due = if is_due { ": a refresh is due" } else { "" };
                (if left.is_ok() { "valid" } else { "expired" }, Some(*at), text::expiry(*at) + due)
            }
        }
    }
}

/// True for the only operation that takes the session lock.
fn is_setup(pid: i32) -> bool {
    is_claude_run(pid) && proc::command_line(pid).is_some_and(|words| words.get(1).is_some_and(|word| word == "setup"))
}
