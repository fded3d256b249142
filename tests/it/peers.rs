//! Call lines of flock(1), timeout(1), tini(1) and dumb-init(1): each is run with the real tool and with
//! what the README says to write instead, and the exit codes of both are as told there.

use std::ffi::OsStr;
use std::fs;

use crate::env::{Env, Running, binary};

/// `$F` is the lock file, `$CR` claude-run.
struct Line {
    peer: &'static str,
    code: i32,
    ours: &'static str,
    our_code: i32,
}

const fn line(peer: &'static str, code: i32, ours: &'static str, our_code: i32) -> Line {
    Line { peer, code, ours, our_code }
}

fn shell(env: &Env, words: &str) -> Running {
    let mut shell = env.command("sh");
    shell.args(["-c", &format!("exec {words}")]).env("F", env.lock_file()).env("CR", binary());
    Running::start(shell)
}

fn compare(env: &Env, lines: &[Line]) {
    for line in lines {
        for (words, code) in [(line.peer, line.code), (line.ours, line.our_code)] {
            let ended = shell(env, words).end();
            assert_eq!(ended.code(), code, "{words}: {ended:?}");
        }
    }
}

#[test]
fn flock_is_matched_while_the_lock_is_busy() {
    let env = Env::new();
    let _holder = env.hold_lock();
    compare(
        &env,
        &[
            line("flock -n $F true", 1, "$CR --wait 0 true", 75),
            line("flock -n -E 9 $F true", 9, "$CR --wait 0 -E 9 true", 9),
            line("flock -w 0.3 $F true", 1, "$CR -w 0.3 true", 75),
            line("flock -w 0.3 -E 0 $F true", 0, "$CR -w 0.3 -E 0 true", 0),
            line("flock -n -F -E 123 $F true", 123, "$CR --wait 0 -E 123 true", 123),
            line("flock -n --exclusive -E 123 $F true", 123, "$CR --lock exclusive --wait 0 -E 123 true", 123),
            // A shared lock is not free either for who wants it alone; one that is not wanted at all is `pass-through`.
            line("flock -s -n $F true", 1, "$CR --lock pass-through true", 0),
        ],
    );
}

#[test]
fn flock_is_matched_while_the_lock_is_free() {
    let env = Env::new();
    env.make_lock_file();
    compare(
        &env,
        &[
            line("flock $F -c 'exit 7'", 7, "$CR -- sh -c 'exit 7'", 7),
            line("flock $F sh -c 'kill -KILL $$'", 137, "$CR -- sh -c 'kill -KILL $$'", 137),
            line("flock -F $F sh -c 'exit 7'", 7, "$CR -- sh -c 'exit 7'", 7),
            line("flock --verbose $F true", 0, "$CR -v true", 0),
            line("sh -c '( flock -n 9 && exec sh -c \"exit 7\" ) 9>$F'", 7, "$CR --wait 0 -- sh -c 'exit 7'", 7),
            // The caller's own lock on a descriptor is the lock.
            line(
                "sh -c '( flock -n 9; flock 9; exit 7 ) 9>$F'",
                7,
                "sh -c '( flock -n 9; $CR --wait 0 sh -c \"exit 7\" ) 9>$F'",
                7,
            ),
        ],
    );
    // `-o`: with flock the lock is free at once, and the child unprotected.
    let daemon = "sh -c 'setsid sleep 5 >&- 2>&- & exit 0'";
    assert_eq!(shell(&env, &format!("flock $F {daemon}")).end().code(), 0);
    assert!(env.is_locked(), "flock leaves the lock with a daemon");
    let other = Env::new();
    assert_eq!(shell(&other, &format!("$CR -- {daemon}")).end().code(), 0);
    assert!(!other.is_locked());
}

#[test]
fn timeout_is_matched() {
    let env = Env::new();
    fs::write(env.path("no-program"), "x").expect("a file");
    compare(
        &env,
        &[
            line("timeout 0.2 sleep 60", 124, "$CR --timeout 0.2 sleep 60", 124),
            line("timeout 60 sh -c 'exit 124'", 124, "$CR --timeout 60 -- sh -c 'exit 124'", 124),
            line("timeout 0 true", 0, "$CR --timeout 0 true", 0),
            line("timeout 1e-3 sleep 60", 124, "$CR --timeout 1e-3 sleep 60", 124),
            line("timeout 1d true", 0, "$CR --timeout 1d true", 0),
            line("timeout 60 /nonesuch", 127, "$CR --timeout 60 /nonesuch", 127),
            line("timeout 60 ./no-program", 126, "$CR --timeout 60 ./no-program", 126),
            line("timeout 42D true", 125, "$CR --timeout 42D true", 125),
            line("timeout invalid true", 125, "$CR --timeout invalid true", 125),
            line("timeout --kill-after=invalid 1 true", 125, "$CR --kill-after=invalid true", 125),
            line("timeout 10.34 true", 0, "$CR --timeout 10.34 true", 0),
            line("timeout 9.999999999 true", 0, "$CR --timeout 9.999999999 true", 0),
            line("timeout 99999999999999999999d true", 0, "$CR --timeout 99999999999999999999d true", 0),
            line("timeout 60 .", 126, "$CR --timeout 60 .", 126),
            line("timeout 60 sh -c 'exit 2'", 2, "$CR --timeout 60 -- sh -c 'exit 2'", 2),
            // A child from before the exec, and a caller that ignores SIGCHLD, change nothing.
            line(
                "sh -c 'sleep 0.1 & exec timeout 0.5 sleep 60'",
                124,
                "sh -c 'sleep 0.1 & exec $CR --timeout 0.5 sleep 60'",
                124,
            ),
            line("sh -c 'trap \"\" CHLD; exec timeout 60 true'", 0, "sh -c 'trap \"\" CHLD; exec $CR --timeout 60 true'", 0),
            // One in another.
            line("timeout 60 timeout 0.2 sleep 60", 124, "$CR --timeout 60 $CR --timeout 0.2 sleep 60", 124),
            line("timeout -- -1 true", 125, "$CR --timeout=-1 true", 125),
            // With KILL, timeout(1) tells of the KILL; claude-run of the limit, whatever it took.
            line(
                "timeout -k 0.2 1 sh -c 'trap \"\" TERM; while :; do sleep 60; done'",
                137,
                "$CR -k 0.2 --timeout 1 -- sh -c 'trap \"\" TERM; while :; do sleep 60; done'",
                124,
            ),
            // What it makes of its TERM is told by the message and the record alone.
            line(
                "timeout --preserve-status 1 sh -c 'trap \"exit 3\" TERM; sleep 60 & wait'",
                3,
                "$CR --timeout 0.2 -- sh -c 'trap \"exit 3\" TERM; sleep 60 & wait'",
                124,
            ),
            line("timeout -s INT 0.2 env --default-signal=INT sleep 60", 124, "$CR --timeout 0.2 sleep 60", 124),
            line("timeout 60 sh -c 'kill -TERM $$'", 143, "$CR --timeout 60 -- sh -c 'kill -TERM $$'", 143),
        ],
    );
}

#[test]
fn tini_and_dumb_init_are_matched() {
    let env = Env::new();
    compare(
        &env,
        &[
            line("tini -s -- sh -c 'exit 7'", 7, "$CR -- sh -c 'exit 7'", 7),
            line("tini -s -- sh -c 'kill -TERM $$'", 143, "$CR -- sh -c 'kill -TERM $$'", 143),
            line("tini -s -e 143 -- sh -c 'kill -TERM $$'", 0, "sh -c '$CR -- sh -c \"kill -TERM \\$\\$\" || [ $? = 143 ]'", 0),
            line("tini -s -g -v -w -- true", 0, "$CR -v true", 0),
            line("tini -s -p SIGKILL -- true", 0, "$CR true", 0),
            line("tini -s -- /nonesuch", 127, "$CR /nonesuch", 127),
            line("sh -c 'TINI_SUBREAPER= tini -- sh -c \"exit 255\"'", 255, "$CR -- sh -c 'exit 255'", 255),
            line("dumb-init /nonesuch", 2, "$CR /nonesuch", 127),
            line("dumb-init sh -c 'exit 7'", 7, "$CR -- sh -c 'exit 7'", 7),
            line("dumb-init -c sh -c 'kill -KILL $$'", 137, "$CR -- sh -c 'kill -KILL $$'", 137),
            line("dumb-init -v true", 0, "$CR -v true", 0),
        ],
    );
}

/// The peers have to be installed.
#[test]
fn peers_are_installed() {
    for tool in ["flock", "timeout", "tini", "dumb-init"] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).any(|dir| dir.join(OsStr::new(tool)).exists());
        assert!(found, "{tool} is missing; scripts/test.sh installs it");
    }
}
