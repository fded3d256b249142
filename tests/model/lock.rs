//! The lock protocol, step by step as `lock::file`, `lock::queue`, `lock::acquire`, `lock::refresh_due`, `lock::claims` and
//! `supervisor::run` take it, among a few processes that are killed at any step, while the lock file is replaced. The kernel's
//! part (flock(2), inherited descriptors) is modelled; the steps are those between which somebody else can run.

use stateright::{Checker, Model, Property};

/// How a process uses the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Mode {
    Exclusive,
    Refresh,
    /// `flock FILE COMMAND` of old: does not look again which file it has locked.
    Block,
    /// Exclusive, and its child starts another claude-run, without the descriptor.
    Nesting,
}

/// Where a claude-run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    Start,
    /// Has found the token due.
    Due,
    Opened,
    /// Asleep in flock(2).
    Waiting,
    Locked,
    /// Has the lock on the file that the path names, as far as it has looked.
    Confirmed,
    /// Has read the expiry again, and is about to start the child with the lock.
    ToStart,
    /// The child runs.
    Running,
    /// The child and all below it are gone.
    Cleared,
    Done,
    Killed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Child {
    None,
    Lives,
    /// Sends its refresh token.
    Posting,
    /// Waits for the claude-run that it has started.
    Nested,
    Gone,
}

/// One claude-run and its child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Process {
    mode: Mode,
    at: At,
    child: Child,
    /// Which file its descriptor is open on, here and in the child.
    file: Option<u8>,
    child_has_descriptor: bool,
    /// The expiry (a count of refreshes) that it has read, for which the lock is held.
    until_after: Option<u8>,
    nested_at: At,
    nested_file: Option<u8>,
}

/// All there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    processes: Vec<Process>,
    /// The file that the path names, and the next that will be made.
    path: Option<u8>,
    next_file: u8,
    /// Who holds the lock of each file: the open file description of that process.
    holders: Vec<Option<u8>>,
    /// So many refreshes have been made; the token is due while this is 0.
    refreshes: u8,
    posted: u8,
    kills: u8,
    replacements: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The claude-run of this process goes on.
    Go(usize),
    /// Its child does.
    Child(usize),
    /// Its child begins or ends a refresh.
    Refresh(usize),
    /// The nested claude-run of its child goes on.
    Nested(usize),
    KillRun(usize),
    KillChild(usize),
    Remove,
    Replace,
}

/// Who takes part, and how much goes wrong.
#[derive(Clone, Debug)]
struct Shape {
    modes: Vec<Mode>,
    kills: u8,
    replacements: u8,
}

/// The number under which a nested claude-run of process `index` holds a lock.
const NESTED: u8 = 100;

impl World {
    fn holder(&self, file: u8) -> Option<u8> {
        self.holders[usize::from(file)]
    }

    fn open(&mut self) -> u8 {
        let file = self.path.unwrap_or(self.next_file);
        if self.path.is_none() {
            self.make();
        }
        file
    }

    fn make(&mut self) {
        self.path = Some(self.next_file);
        self.next_file += 1;
        self.holders.push(None);
    }

    /// The kernel frees a lock with the last descriptor of its open file description.
    fn settle(&mut self) {
        for (index, process) in self.processes.iter().enumerate() {
            let run_lives = !matches!(process.at, At::Done | At::Killed);
            let child_keeps = process.child_has_descriptor && !matches!(process.child, Child::None | Child::Gone);
            for holder in &mut self.holders {
                if *holder == Some(index as u8) && !run_lives && !child_keeps {
                    *holder = None;
                }
                let nested_lives = process.child == Child::Nested;
                if *holder == Some(index as u8 + NESTED) && !nested_lives {
                    *holder = None;
                }
            }
        }
    }

    fn is_inside(&self, process: &Process) -> bool {
        matches!(process.child, Child::Lives | Child::Posting | Child::Nested) && process.mode != Mode::Refresh
    }

    fn is_due(&self) -> bool {
        self.refreshes == 0
    }

    fn go(&mut self, index: usize) {
        let me = index as u8;
        let mut process = self.processes[index];
        process.at = match process.at {
            At::Start if process.mode == Mode::Refresh && !self.is_due() => {
                process.child = Child::Lives;
                At::Running
            }
            At::Start => At::Due,
            At::Due => {
                process.file = Some(self.open());
                At::Opened
            }
            At::Opened | At::Waiting => {
                let file = usize::from(process.file.unwrap_or_default());
                if self.holders[file].is_none() {
                    self.holders[file] = Some(me);
                    At::Locked
                } else if process.mode == Mode::Refresh && !self.is_due() {
                    process.child = Child::Lives; // meanwhile somebody has refreshed: the wait is given up
                    At::Running
                } else {
                    At::Waiting
                }
            }
            At::Locked if process.mode == Mode::Block || process.file == self.path => At::Confirmed,
            At::Locked => {
                self.let_go(me);
                process.file = None;
                At::Due
            }
            At::Confirmed => {
                if process.mode == Mode::Refresh && !self.is_due() {
                    self.let_go(me); // the one before us has refreshed it
                } else if process.mode == Mode::Refresh {
                    process.until_after = Some(self.refreshes);
                }
                At::ToStart
            }
            At::ToStart => {
                process.child = Child::Lives;
                process.child_has_descriptor = true;
                At::Running
            }
            At::Running if process.child == Child::Gone => At::Cleared,
            At::Running => {
                if process.until_after.is_some_and(|expiry| self.refreshes > expiry) {
                    process.until_after = None;
                    self.let_go(me); // LOCK_UN: for the child's descriptor as well
                }
                At::Running
            }
            At::Cleared => {
                self.let_go(me);
                At::Done
            }
            at @ (At::Done | At::Killed) => at,
        };
        self.processes[index] = process;
    }

    fn let_go(&mut self, owner: u8) {
        for holder in &mut self.holders {
            if *holder == Some(owner) {
                *holder = None;
            }
        }
    }

    /// The claude-run that the child has started: it is below a holder as long as a process above it has the lock on a
    /// descriptor, be that the claude-run, or the child alone.
    fn go_nested(&mut self, index: usize) {
        let mut process = self.processes[index];
        let above_holds = process.file.is_some_and(|file| self.holder(file) == Some(index as u8));
        process.nested_at = match process.nested_at {
            At::Start => {
                process.nested_file = Some(self.open());
                At::Opened
            }
            At::Opened | At::Waiting => {
                let file = usize::from(process.nested_file.unwrap_or_default());
                if self.holders[file].is_none() {
                    self.holders[file] = Some(index as u8 + NESTED);
                    At::Done
                } else if above_holds && process.nested_file == process.file {
                    At::Done
                } else {
                    At::Waiting
                }
            }
            at => at,
        };
        if process.nested_at == At::Done {
            process.child = Child::Lives;
        }
        self.processes[index] = process;
    }
}

impl Model for Shape {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let process = |&mode| Process {
            mode,
            at: At::Start,
            child: Child::None,
            file: None,
            child_has_descriptor: false,
            until_after: None,
            nested_at: At::Start,
            nested_file: None,
        };
        let processes = self.modes.iter().map(process).collect();
        let (kills, replacements) = (0, 0);
        let holders = Vec::new();
        vec![World { processes, path: None, next_file: 0, holders, refreshes: 0, posted: 0, kills, replacements }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for (index, process) in world.processes.iter().enumerate() {
            if !matches!(process.at, At::Done | At::Killed) {
                steps.push(Step::Go(index));
                if world.kills < self.kills {
                    steps.push(Step::KillRun(index));
                }
            }
            match process.child {
                Child::Lives => {
                    steps.push(Step::Child(index));
                    if world.is_due() {
                        steps.push(Step::Refresh(index));
                    }
                }
                Child::Posting => steps.push(Step::Refresh(index)),
                // It waits for that, whatever has become of its own claude-run: it may ignore the kernel's TERM.
                Child::Nested => steps.push(Step::Nested(index)),
                Child::None | Child::Gone => {}
            }
            if !matches!(process.child, Child::None | Child::Gone) && world.kills < self.kills {
                steps.push(Step::KillChild(index));
            }
        }
        if world.replacements < self.replacements && world.path.is_some() {
            steps.extend([Step::Remove, Step::Replace]);
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        match step {
            Step::Go(index) => next.go(index),
            Step::Nested(index) => next.go_nested(index),
            Step::Child(index) => {
                let process = &mut next.processes[index];
                let nests = process.mode == Mode::Nesting && process.nested_at == At::Start && process.child == Child::Lives;
                process.child = if nests { Child::Nested } else { Child::Gone };
            }
            Step::Refresh(index) => {
                let process = &mut next.processes[index];
                if process.child == Child::Posting {
                    process.child = Child::Lives;
                    next.refreshes = 1;
                } else {
                    process.child = Child::Posting;
                    next.posted += 1;
                }
            }
            Step::KillRun(index) => {
                next.kills += 1;
                next.processes[index].at = At::Killed;
            }
            Step::KillChild(index) => {
                next.kills += 1;
                next.processes[index].child = Child::Gone;
            }
            Step::Remove | Step::Replace => {
                next.replacements += 1;
                next.path = None;
                if step == Step::Replace {
                    next.make();
                }
            }
        }
        next.settle();
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("never two inside one file's lock", |_, world| {
                let inside = |file: usize| {
                    let of_file = |process: &&Process| world.is_inside(process) && process.file == Some(file as u8);
                    world.processes.iter().filter(of_file).count()
                };
                (0..world.holders.len()).all(|file| inside(file) <= 1)
            }),
            Property::<Self>::always("the lock is never free while the child lives", |_, world| {
                world.processes.iter().enumerate().all(|(index, process)| {
                    let holder = process.file.and_then(|file| world.holder(file));
                    !world.is_inside(process) || holder == Some(index as u8)
                })
            }),
            Property::<Self>::always("never two refreshes at once", |shape, world| {
                let posting = world.processes.iter().filter(|process| process.child == Child::Posting).count();
                shape.replacements > 0 || posting <= 1
            }),
            Property::<Self>::always("one refresh, unless who made it was killed", |shape, world| {
                shape.replacements > 0 || world.posted <= 1 + world.kills
            }),
            Property::<Self>::eventually("everybody comes to an end", |_, world| {
                let over = |process: &Process| {
                    matches!(process.at, At::Done | At::Killed) && matches!(process.child, Child::None | Child::Gone)
                };
                world.processes.iter().all(over) && world.holders.iter().all(Option::is_none)
            }),
            Property::<Self>::sometimes("a waiter gets a file that was made while it waited", |shape, world| {
                shape.replacements == 0
                    || world.processes.iter().any(|process| process.at == At::Running && process.file > Some(0))
            }),
            Property::<Self>::sometimes("somebody is killed in the midst of it", |shape, world| {
                let orphan = |process: &Process| process.at == At::Killed && process.child == Child::Lives;
                shape.kills == 0 || world.processes.iter().any(orphan)
            }),
        ]
    }
}

#[test]
fn no_order_of_steps_and_crashes_breaks_a_promise_of_the_lock() {
    use Mode::{Block, Exclusive, Nesting, Refresh};
    let mut states = 0;
    for (modes, kills, replacements) in [
        (vec![Exclusive, Exclusive, Exclusive], 2, 0),
        (vec![Exclusive, Exclusive, Block], 2, 1),
        (vec![Refresh, Refresh, Refresh], 2, 0),
        (vec![Exclusive, Refresh, Refresh], 1, 0),
        (vec![Block, Refresh, Exclusive], 1, 1),
        (vec![Nesting, Exclusive], 2, 1),
        (vec![Nesting, Nesting, Refresh], 1, 0),
        (vec![Exclusive, Exclusive], 2, 2),
    ] {
        let shape = Shape { modes, kills, replacements };
        let shown = format!("{shape:?}");
        let checker = shape.checker().threads(2).spawn_bfs().join();
        println!("{shown}: {} states", checker.unique_state_count());
        states += checker.unique_state_count();
        checker.assert_properties();
    }
    println!("{states} states in all");
    assert!(states > 10_000, "{states}");
}
