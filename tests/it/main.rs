//! The promises of claude-run, proved on the built binary. One file per kind of promise, one test per promise; `env` pins
//! everything that a test could otherwise take over from the machine it runs on.

#![expect(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test says what is wrong by ending")]

mod bookkeeping;
mod bounds;
mod command_line;
mod config_dir;
mod containers;
mod docs;
mod doctor;
mod documents;
mod env;
mod escalation;
mod etcd;
mod events;
mod examples;
mod exit_codes;
mod factory;
mod faults;
mod hosts;
mod install;
mod job_control;
mod leftovers;
mod limits;
mod lock;
mod lock_helper;
mod log;
mod mode;
mod nested;
mod oauth;
mod output;
mod peers;
mod proper_lockfile;
mod pty;
mod quiet;
mod record;
mod redact;
mod refresh;
mod refresh_locks;
mod report;
mod rooms;
mod schema;
mod screens;
mod sdk;
mod sdk_group;
mod sdk_lock;
mod settings;
mod setup;
mod shim;
mod signals;
mod start;
mod status;
mod system_calls;
mod terminal;
