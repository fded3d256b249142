//! The slots: can they be had, does the bound hold, and is one held by what nobody knows of?

use super::{Check, Subject};
use crate::config::settings::Slots;
use crate::lock::Holder;
use crate::ops::checks::{all_stopped, check_slots, let_go_on};
use crate::ops::slots::SlotsInUse;
use crate::ops::text;
use crate::records::State;

pub(super) fn check(subject: &Subject, check: &mut Check) {
    let (Ok(factory), Ok(census)) = (&subject.factory, &subject.census) else { return }; // reported by their own checks
    let records = &factory.records;
    if !check_slots(records, true, check) {
        return;
    }
    let in_use = SlotsInUse::look(records, census, true);
    for ((slot, holder), stopped) in in_use.holders().zip(all_stopped(in_use.holders().map(|(_, holder)| holder))) {
        let what = format!("{slot} is held by {holder}");
        match (holder, stopped) {
            (_, Some(pids)) => check.warn(format!("{what}; stopped: {pids}"), "one run less may start", let_go_on(&pids)),
            (Holder::Run(_), None) => {}
            (Holder::Orphan(..) | Holder::Processes(_), None) => {
                let means = "its claude-run was killed, or keeps no record: one run less may start";
                check.warn(what, means, text::end_orphan(holder));
            }
        }
    }
    for what in &in_use.broken {
        check.warn(what, "it counts for nobody who came later, and one run more may start", "let it end");
    }
    let Slots::AtMost(bound) = factory.settings.slots else {
        return check.pass_if_clean(format!("there is no bound; {}", in_use.summary()));
    };
    let running = census.live.iter().filter(|run| run.state == State::Running).count();
    if running > usize::from(bound) {
        let what = format!("{} at once, and the bound is {bound}", text::count(running, "run"));
        let means = "they began before it was set, below another run, or with a bound of their own";
        check.warn(what, means, "wait for the end of those that began before; if there are more again, take --slots and CLAUDE_RUN_SLOTS out of single calls");
    }
    check.pass_if_clean(format!("{bound} at most; {}", in_use.summary()));
}
