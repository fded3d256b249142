//! The protocol of the slots, step by step as `lock::slots` and `app` take it, among a few runs that are killed at any step, while the
//! bound is changed: who may start, in which order, and that slots and session lock never wait for each other in a circle. The kernel's
//! part is modelled: flock(2) serves first who came first.

use stateright::{Checker, Model, Property};

/// What a run wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// A slot alone: `pass-through`, or `refresh` with a fresh token.
    Slot,
    /// A slot, and then the session lock: `exclusive`, or a refresh that is due.
    Both,
    /// Its caller, an old shell block, holds the session lock for it.
    InBlock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    Start,
    /// Asleep in the queue.
    Queued,
    /// First of the queue, and about to look at this slot, having seen those before it.
    Looking(usize),
    /// First of the queue, asleep until one of the slots is free that it has seen held.
    Asleep,
    /// Has a slot, or needs none.
    Admitted,
    /// Asleep in the queue for the session lock.
    WaitsForLock,
    Running,
    /// Its claude-run was killed, and its child lives, with all descriptors.
    Orphaned,
    Done,
}

/// All there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    at: Vec<At>,
    /// Who holds each slot.
    slots: Vec<Option<usize>>,
    /// The slots that the first of the queue has seen held since it began to look.
    seen_held: Vec<usize>,
    seen_free: Option<usize>,
    /// Who holds the lock on the queue, and who waits for it.
    first: Option<usize>,
    queue: Vec<usize>,
    lock: Option<usize>,
    lock_queue: Vec<usize>,
    /// The number of slots; `None`: no bound any more.
    bound: Option<usize>,
    kills: u8,
    changes: u8,
    /// A run took a slot when there was none for it, or before one that was there first.
    broken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Go(usize),
    Kill(usize),
    /// Of claude-run alone.
    Orphan(usize),
    SetBound(Option<usize>),
}

/// Who takes part, and how much goes wrong.
#[derive(Clone, Debug)]
struct Shape {
    kinds: Vec<Kind>,
    bound: usize,
    kills: u8,
    changes: u8,
}

impl World {
    fn held(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// What the end of its last process frees.
    fn free(&mut self, run: usize) {
        self.slots.iter_mut().for_each(|slot| *slot = slot.filter(|&owner| owner != run));
        self.first = self.first.filter(|&owner| owner != run);
        self.lock = self.lock.filter(|&owner| owner != run);
        self.queue.retain(|&waiter| waiter != run);
        self.lock_queue.retain(|&waiter| waiter != run);
    }

    fn look_again(&mut self) -> At {
        (self.seen_held, self.seen_free) = (Vec::new(), None);
        At::Looking(0)
    }

    fn go(&mut self, run: usize, kind: Kind) -> At {
        match self.at[run] {
            At::Start if self.first.is_none() && self.queue.is_empty() => {
                self.first = Some(run);
                self.look_again()
            }
            At::Start if kind == Kind::InBlock => At::Admitted,
            At::Start => {
                self.queue.push(run);
                At::Queued
            }
            At::Queued if self.first.is_none() && self.queue[0] == run => {
                self.queue.remove(0);
                self.first = Some(run);
                self.look_again()
            }
            At::Looking(_) if self.bound.is_none() => {
                self.first = None;
                At::Admitted
            }
            At::Looking(slot) => self.look(run, slot, kind),
            // The bound has changed, or one of those is free: a thread that slept on it has it for a moment.
            At::Asleep if self.seen_held.iter().any(|&slot| self.slots[slot].is_none()) => self.look_again(),
            At::Admitted if kind == Kind::Both => {
                if self.lock.is_none() && self.lock_queue.is_empty() {
                    self.lock = Some(run);
                    return At::Running;
                }
                self.lock_queue.push(run);
                At::WaitsForLock
            }
            At::Admitted => At::Running,
            At::WaitsForLock if self.lock.is_none() && self.lock_queue[0] == run => {
                self.lock_queue.remove(0);
                self.lock = Some(run);
                At::Running
            }
            At::Running | At::Orphaned => {
                self.free(run);
                At::Done
            }
            at => at,
        }
    }

    /// One look at one slot: others may go on between two.
    fn look(&mut self, run: usize, slot: usize, kind: Kind) -> At {
        let bound = self.bound.unwrap_or_default();
        if slot < self.slots.len() && self.seen_held.len() < bound {
            match self.slots[slot] {
                Some(_) => self.seen_held.push(slot),
                None if slot < bound => self.seen_free = self.seen_free.or(Some(slot)),
                None => {}
            }
            return At::Looking(slot + 1);
        }
        match self.seen_free {
            Some(free) if self.seen_held.len() < bound => {
                self.broken |= self.held() >= bound || self.slots[free].is_some();
                self.slots[free] = Some(run);
                self.first = None;
                At::Admitted
            }
            _ if kind == Kind::InBlock => {
                self.first = None;
                At::Admitted
            }
            _ => At::Asleep,
        }
    }
}

impl Model for Shape {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            at: vec![At::Start; self.kinds.len()],
            slots: vec![None; self.bound + usize::from(self.changes)],
            seen_held: Vec::new(),
            seen_free: None,
            first: None,
            queue: Vec::new(),
            lock: self.kinds.iter().position(|&kind| kind == Kind::InBlock),
            lock_queue: Vec::new(),
            bound: Some(self.bound),
            kills: 0,
            changes: 0,
            broken: false,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for (run, at) in world.at.iter().enumerate().filter(|(_, at)| **at != At::Done) {
            steps.push(Step::Go(run));
            if world.kills < self.kills {
                steps.push(Step::Kill(run));
                steps.extend((*at == At::Running).then_some(Step::Orphan(run)));
            }
        }
        if world.changes < self.changes {
            steps.extend([None, Some(1), Some(self.bound + 1)].map(Step::SetBound));
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        match step {
            Step::Go(run) => next.at[run] = next.go(run, self.kinds[run]),
            Step::Kill(run) => {
                next.kills += 1;
                next.free(run);
                next.at[run] = At::Done;
            }
            Step::Orphan(run) => {
                next.kills += 1;
                next.at[run] = At::Orphaned;
            }
            Step::SetBound(bound) => {
                next.changes += 1;
                next.bound = bound;
                // The first of the queue is told of it; whoever looks at this moment has read the bound, and is told, too.
                if let Some(first) = next.first
                    && matches!(next.at[first], At::Asleep | At::Looking(_))
                {
                    next.at[first] = next.look_again();
                }
            }
        }
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("a slot is taken only if less than the bound are held", |_, world| !world.broken),
            Property::<Self>::always("never more slots than there are places", |shape, world| {
                shape.changes > 0 || world.held() <= shape.bound
            }),
            Property::<Self>::always("what runs has a slot, or needs none", |shape, world| {
                shape.changes > 0
                    || world.at.iter().enumerate().all(|(run, at)| {
                        let has_slot = world.slots.contains(&Some(run)) || shape.kinds[run] == Kind::InBlock;
                        !matches!(at, At::Admitted | At::WaitsForLock | At::Running | At::Orphaned) || has_slot
                    })
            }),
            Property::<Self>::always("one at most holds the session lock", |shape, world| {
                let inside = |(run, at): (usize, &At)| {
                    matches!(at, At::Running | At::Orphaned) && shape.kinds[run] != Kind::Slot && world.lock != Some(run)
                };
                !world.at.iter().enumerate().any(inside)
            }),
            Property::<Self>::always("who sleeps for a slot has somebody to wait for", |_, world| {
                let sleeps = world.first.is_some_and(|first| world.at[first] == At::Asleep);
                let may_start = world.bound.is_none_or(|bound| world.held() < bound);
                let is_woken = world.seen_held.iter().any(|&slot| world.slots[slot].is_none());
                !(sleeps && may_start) || is_woken
            }),
            Property::<Self>::eventually("everybody comes to an end", |_, world| {
                world.at.iter().all(|at| *at == At::Done) && world.held() == 0 && world.lock.is_none()
            }),
            Property::<Self>::sometimes("somebody waits for a slot, and another for the lock", |shape, world| {
                !shape.kinds.contains(&Kind::Both)
                    || shape.bound < 2
                    || (world.at.contains(&At::Asleep) && world.at.contains(&At::WaitsForLock))
            }),
            Property::<Self>::sometimes("more run than a bound that was lowered", |shape, world| {
                shape.changes == 0 || shape.bound < 2 || world.bound.is_some_and(|bound| world.held() > bound)
            }),
        ]
    }
}

#[test]
fn no_order_of_steps_and_crashes_breaks_a_promise_of_the_slots() {
    use Kind::{Both, InBlock, Slot};
    let mut states = 0;
    for (kinds, bound, kills, changes) in [
        (vec![Slot, Slot, Slot, Slot], 2, 2, 0),
        (vec![Both, Both, Both, Slot], 2, 1, 0),
        (vec![Both, Both, Slot], 1, 2, 0),
        (vec![InBlock, Both, Both], 1, 1, 0),
        (vec![InBlock, Both, Both, Slot], 2, 1, 0),
        (vec![Slot, Slot, Slot], 2, 1, 2),
        (vec![Both, Both, InBlock], 1, 0, 2),
    ] {
        let shape = Shape { kinds, bound, kills, changes };
        let shown = format!("{shape:?}");
        let checker = shape.checker().threads(2).spawn_bfs().join();
        println!("{shown}: {} states", checker.unique_state_count());
        states += checker.unique_state_count();
        checker.assert_properties();
    }
    println!("{states} states in all");
    assert!(states > 10_000, "{states}");
}
