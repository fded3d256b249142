//! Claude Code: everything that is known about it, and known nowhere else. Its config dir (`config_dir`), its command
//! line (`arguments`), its program and the commands that need no lock (`program`), its `version`, its JSON (`json`), its `settings`, the
//! frames on its stdout (`frames`), where it keeps its login (`storage`), the login (`credentials`), how it authenticates (`auth`), its
//! own locks around a token refresh (`refresh_locks`), its telemetry about them (`telemetry`) and its `daemon`.

mod arguments;
pub mod auth;
pub mod config_dir;
pub mod credentials;
pub(crate) mod daemon;
pub mod frames;
mod json;
pub mod program;
pub mod refresh_locks;
pub(crate) mod settings;
pub mod storage;
pub mod telemetry;
pub(crate) mod version;
