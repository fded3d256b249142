//! claude-run: Claude Code under one session lock and a watchdog that leaves nothing behind.
//!
//! This is the map. What users are promised stands in the README; here is how it is kept, and where.
//!
//! # The flow
//!
//! It goes one way. [`run()`] is the whole story in a page:
//!
//! ```text
//! words, environment, claude-run.toml
//!   |
//!   |  cli: what was typed; settings: what it means
//!   v
//! Plan            the settings, in the light of config dir, terminal and PATH
//!   |
//!   |  lock::take: one flock(2), waited for asleep; in `refresh` mode only if a refresh is due; then, if asked for, a lock helper
//!   v
//! LockGuard
//!   |
//!   |  run::supervise: spawn, then one event after the other until the tree is dead; then, or after the refresh, the lock is free
//!   v
//! Outcome         THE exit-code table
//! ```
//!
//! While a child runs, everything that happens arrives on one channel, and one pure function of state, event and time says what
//! to do. Nothing polls, nothing sleeps in a handler, and no thread but the relay's touches what claude prints:
//!
//! ```text
//! signals -------.                                              .--> signals to the child and its tree
//! child ends ----+    +---------+    +-----------------------+  +--> the lock let go
//! frames --------+--> | EventQueue |--> | Policy::on            |--+--> a message, a record
//! credentials ---+    +---------+    | (happening, now)      |  +--> the next deadline
//! deadlines -----'                   | -> actions            |  '--> the outcome
//!                                    +-----------------------+
//! ```
//!
//! # The rooms
//!
//! In the order of the flow; a module imports only from those above it and from the leaves (`outcome`, `diag`, `procfs`,
//! `run_id`, `identity`, `files`, `changes`, `mounts`, `children`):
//!
//! | room | what is in it, and nowhere else |
//! |---|---|
//! | [`cli`] | what was typed: the table of options, which also makes the help, and with the build script man page and completions |
//! | [`settings`] | what it means: flag, environment, file, default |
//! | [`claude`] | all that is known about Claude Code: config dir, program, frames, auth, credentials, refresh locks, telemetry |
//! | [`event`] | the one channel on which everything arrives |
//! | [`signals`] | our dispositions, and the child's |
//! | `exec` | clone(2) and execve(2), with all made before |
//! | [`records`] | what is kept of runs: a record of each live one, a history of the others |
//! | [`lock`] | the session lock: when it is taken, who holds it, whether that is somebody above us; the lock helper and its keeper |
//! | [`mod@run`] | one supervised run, sole owner of the child: policy (pure), spawn, tree, refresh, output, supervise |
//! | [`ops`] | what operators ask for: status, mode, settings, report, doctor, setup, events |
//! | [`plan`] | the settings, seen in the light of config dir, terminal and PATH |
//! | [`outcome`] | how it ended, and THE exit-code table |
//! | [`diag`] | the only writer to stderr and to the log |
//!
//! `src/build.rs` is the build script. `tests/it` proves the promises on the binary, `tests/model` explores the policy and the lock
//! in every order of events, `tests/faults` breaks what can be broken at random, `tests/fuzz` feeds what reads others' bytes.

pub mod app;
pub mod claude;
pub mod config;
pub mod events;
pub mod lock;
pub mod logging;
pub mod ops;
pub mod outcome;
pub mod plan;
pub mod records;
pub mod run_id;
pub mod supervisor;
pub mod sys;

pub use app::{main, run};
