//! claude-run runs Claude Code under one session lock and a watchdog that leaves nothing behind. This page is the map of its code:
//! the README and the [`guide`] have the promises to users, the map says where each of them is kept.
//!
//! # One run, step by step
//!
//! ```text
//! words, environment, claude-run.toml
//!   |
//!   |  config: parse the words, find for each option the value that counts
//!   v
//! Settings
//!   |
//!   |  plan: look at the config dir, the terminal and PATH
//!   v
//! Plan  (program, lock request, watchdog limits, what to read the output for)
//!   |
//!   |  lock: acquire a slot and the session lock, if this run needs them; sleep while they are busy
//!   v
//! LockGuard
//!   |
//!   |  supervisor: start the child, watch it, end its whole tree; then release the lock
//!   v
//! Outcome  ->  exit code
//! ```
//!
//! `app.rs` is this story in code, and `lock/acquire.rs` and `supervisor/run.rs` are its two long chapters. Everything that happens
//! meanwhile is an event in one queue. The thread that owns the queue sleeps until an event or the next deadline, and asks one pure
//! function of state, event and time what to do:
//!
//! ```text
//! signals ------------.                                            .--> signals to the child and its tree
//! end of the child ---+                                            +--> release of the lock
//! frames on stdout ---+-->  EventQueue  -->  Policy::on  --------  +--> messages, run record
//! changes of files ---+     (events)         (supervisor/policy)   +--> the next deadline
//! deadlines ----------'                                            '--> the outcome
//! ```
//!
//! Nothing polls where the kernel can wake, no handler sleeps, and only the relay's thread touches claude's output.
//!
//! # The rooms, from top to bottom
//!
//! A module imports only from rooms below its own; `tests/it/rooms.rs` checks that. Within a room there is no circle either.
//!
//! ```text
//!    |     +-------------------------------------------+
//!    |     | app                                       |
//!    |     +-------------------------------------------+
//!    |     | plan               | ops                  |
//!    |     +--------------------+                      |
//!    |     | supervisor         |                      |
//!    |     +-------------------------------------------+
//!    |     | lock                                      |
//!    |     +-------------------------------------------+
//!    |     | records                                   |
//! imports  +-------------------------------------------+
//!    |     | events                                    |
//!    |     +-------------------------------------------+
//!    |     | claude                                    |
//!    |     +-------------------------------------------+
//!    |     | logging                                   |
//!    |     +-------------------------------------------+
//!    |     | config                                    |
//!    |     +-------------------------------------------+
//!    |     | run_id                                    |
//!    |     +-------------------------------------------+
//!    |     | sys      | redact   | outcome  | guide    |
//!    v     +-------------------------------------------+
//! ```
//!
//! | room | what it does |
//! |---|---|
//! | `app` | dispatches: an operation, or one supervised run |
//! | `plan` | turns settings into a `Plan`: program, environment, `LockRequest`, `PolicyConfig` |
//! | `ops` | prints what operators ask for: `status`, `mode`, `slots`, `settings`, `report`, `doctor`, `setup`, `events`, `redact`, man page, completions |
//! | `supervisor` | owns the child: `run` (the loop), `policy` (the decisions), `spawn`, `process_tree`, `output/` (`capture`, `relay`, `sink`, `spool`, `line_logger`) |
//! | `lock` | acquires and releases: `file` (the flock), `holder` and `claims` (who holds it), `refresh_due`, `helper`, `wait` (the one wait), `guard`, `acquire` (the story), `slots` |
//! | `records` | keeps a record of each live run and a history of the others: `run_record`, `store`, `spare` (its files), `recorder`, `history`; `census` sweeps, and finds what killed runs have left |
//! | `events` | queues signals, frames, ends of threads and changes of files |
//! | `claude` | knows Claude Code: config dir, storage, settings, program, version, frames, authentication, credentials, refresh locks, telemetry, daemon |
//! | `logging` | writes to stderr and to the log, and nobody else does: `messages`, `format`, `log_file`, `live_line` |
//! | `config` | reads settings: `options` (the table), `cli`, `operations`, `values`, `duration`, `file`, `settings` (flag over environment over file), `help` |
//! | `run_id` | names a run |
//! | `sys` | calls Linux, and knows nothing of claude: processes, signals, files, mounts, pipes, terminals |
//! | `redact` | masks secrets in text: `rules` (the table), `names`, `values` and `nested`, `environment`, `masker` (the stream) |
//! | `outcome` | lists the ways in which a run ends, each with its exit code |
//! | `guide` | has the chapters of the guide for users |
//!
//! `plan` stands above `supervisor` and `lock`, since it makes their `PolicyConfig`, `OutputConfig` and `LockRequest` of the settings.
//! `claude` stands below them: they ask it what a frame or a refresh lock means, and never look into one.
//!
//! # Where to change what
//!
//! | to change | look in |
//! |---|---|
//! | how long a second TERM is taken for the first | `sys/signal.rs`, `DUPLICATE_WINDOW`; from one timeout(1): `events.rs`, `TIMEOUT_WINDOW` |
//! | what is done with each signal | the table in `sys/signal_table.rs`: `REQUESTS`, `FORWARDED`, `TERMINAL_STOPS` |
//! | what counts as a result frame, or as an open background task | `claude/frames.rs`, `FrameReader::on_frame` |
//! | what counts as success with `--require-result` | `claude/frames.rs`, `LastResult::is_success` |
//! | the text a waiter sees | the sentences: `lock/wait.rs`, of claude's refresh locks: `lock/acquire.rs`; the name of the holder: `lock/holder.rs` and `records/run_record.rs`, `who`; the line on a terminal: `logging/live_line.rs` |
//! | an option, with its variable, its key in the file, help, man page and completions | `config/options.rs`, one row, and its row in the guide, `options.md`, for which a test asks; a new type of value: `config/values.rs`; in the short help: `config/help.rs`, `SHORT_OPTIONS` |
//! | an operation | `config/operations.rs` for its words, `ops/` for what it does |
//! | a default | `config/options.rs`; those that depend on the terminal: `plan.rs`, `policy_config`; the hard limit: `config/settings.rs`, `HARD_LIMIT` |
//! | what is masked: a format, or a name before a value | a row of `redact/rules/tokens.rs` or `redact/rules/contexts.rs`, and its examples in `redact/tests/examples.rs`; which names: `redact/names/tables.rs` |
//! | when the watchdog sends which signal, and each limit and grace | `supervisor/policy.rs`, `Policy::decide`; from TERM to KILL: `supervisor/policy/escalation.rs` |
//! | how long signals are deferred for a refresh of claude's | `supervisor/policy/refresh_guard.rs`, `MAX_DEFERRAL` |
//! | how long a start waits for claude's refresh locks | `lock/acquire.rs`, `MAX_REFRESH_LOCK_WAIT` |
//! | when a refresh lock of claude's counts as stale | `claude/refresh_locks.rs`, `STALE_AFTER` and `NEWER_STALE_AFTER` |
//! | when a refresh of the token is due | `lock/refresh_due.rs`; the expiry is read in `claude/credentials.rs` |
//! | which authentication needs no lock | `claude/auth.rs` |
//! | where the login and its locks are | `claude/storage.rs`; which settings of claude are read: `claude/settings.rs` |
//! | what a version of claude changed | `claude/version.rs` |
//! | how long a lock is held for a refresh that does not come | `lock/refresh_due.rs`, `MAX_DELAY` |
//! | when claude-run is above us already, and the lock is not acquired again | `lock/claims.rs` |
//! | who may run where there are slots | `lock/slots.rs` |
//! | how a lock helper is started and ended | `lock/helper.rs`; the process that outlives us to end it: `lock/monitor.rs` |
//! | the exit codes | `outcome.rs`, `Outcome::exit_code` |
//! | when the record of a run is swept | `records/census.rs`, `SILENT_RECORD_TTL` |
//! | the fields of a run record, and of a line of history | `records/run_record.rs`, `records/history.rs` |
//! | what ends a process left over by claude | when: `supervisor/policy/escalation.rs`; how it is found and signalled: `supervisor/process_tree.rs` |
//! | what happens to output that the caller is slow to read | `supervisor/output/spool.rs` |
//! | a new doctor check | a function in `ops/doctor/` that adds its findings, and a line in `CHECKS` of `ops/doctor.rs`; one for status, too: `ops/checks.rs` |
//! | the verdict of `claude-run events` | `claude/telemetry.rs` for the events, `ops/events.rs` for the verdict |
//! | how long a file system may take to answer | `sys/bounded.rs`, `PATIENCE` |
//! | the form of a message on stderr or in the log | `logging/format.rs` |
//!
//! # The tests
//!
//! | where | what it tests |
//! |---|---|
//! | beside the code, `mod tests` | one module, without processes or real time |
//! | `tests/it/` | the binary, one file a promise; `env.rs` has what they share, `rooms.rs` keeps the order of the rooms, `docs.rs` the docs complete |
//! | `tests/fake_claude/` | the child of those tests: does what its arguments say, and prints what happens to it |
//! | `tests/oauth/` | a stand-in for the endpoint that refreshes tokens |
//! | `tests/model/` | `policy` and the lock, explored in every order of events |
//! | `tests/faults/` | random faults over hundreds of agents, with every promise checked meanwhile |
//! | `tests/fuzz/` | random bytes for everything that reads what others have written |
//! | `tests/library/` | 1,000 runs in one process, which must not leak descriptors |
//!
//! `scripts/test.sh` runs them as CI does, `scripts/bench.sh` measures the bounds.

#[cfg(not(target_os = "linux"))]
compile_error!("claude-run needs Linux: its subreaper, /proc, inotify, clone(2) and pidfds have no counterpart elsewhere");

pub mod app;
pub mod claude;
pub mod config;
pub mod events;
pub mod guide;
pub mod lock;
pub mod logging;
pub mod ops;
pub mod outcome;
mod plan;
pub mod records;
pub mod redact;
pub mod run_id;
pub mod supervisor;
pub mod sys;

pub use app::{main, run};
