//! From TERM to KILL: everybody in the tree gets a TERM first, and time to follow it.

use nix::sys::signal::Signal;

use crate::env::{Env, fake_claude, is_alive};
use crate::leftovers::{UNTIL_GO, expect_leftovers, go, pid, shell};

#[test]
fn descendants_get_term_before_any_kill() {
    let env = Env::new();
    // bash runs its trap only when its foreground child has ended.
    let script =
        "trap 'echo cleanup; exit 3' TERM; (trap 'echo tool; exit' TERM; echo ready; while :; do sleep 0.01; done); true";
    for second in [false, true] {
        let run = shell(&env, &["--kill-after", if second { "1h" } else { "4" }], script);
        run.expect_line("ready");
        run.signal(Signal::SIGTERM);
        if second {
            run.term_again();
        }
        run.expect_line("tool");
        run.expect_line("cleanup");
        assert_eq!(run.end().code(), 3, "{second}");
    }
}

#[test]
fn rest_of_the_tree_gets_term_whatever_the_kill_grace() {
    let env = Env::new();
    for kill_after in ["0", "1h"] {
        let script = "trap 'echo cleanup; exit 3' TERM; (echo ready; exec sleep 600); true";
        let run = shell(&env, &["--kill-after", kill_after], script);
        run.expect_line("ready");
        run.signal(Signal::SIGTERM);
        run.expect_line("cleanup");
        assert_eq!(run.end().code(), 3, "{kill_after}");
    }
}

#[test]
fn process_started_after_the_term_gets_one_too() {
    let env = Env::new();
    let newcomer = format!("'{}' -p 'on TERM exit 0; ready; hang'", fake_claude().display());
    let left = format!("(trap '' TERM; echo up; until [ -e later ]; do sleep 0.01; done; {newcomer}; true)");
    let run = shell(&env, &["--kill-after", "1h"], &format!("{left} & {UNTIL_GO}; exit 4"));
    run.expect_line("up");
    go(&env);
    expect_leftovers(&run);
    std::fs::write(env.path("later"), "").expect("a file");
    run.ready();
    run.signal(Signal::SIGTERM);
    run.expect_line("signal TERM");
    assert_eq!(run.end().code(), 4);
}

#[test]
fn term_after_the_end_shortens_the_kill_grace() {
    let env = Env::new();
    let script = format!("(trap '' TERM; echo $BASHPID; exec sleep 600) & {UNTIL_GO}; exit 4");
    let run = shell(&env, &["--kill-after", "1h"], &script);
    let left = pid(&run);
    go(&env);
    expect_leftovers(&run);
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end().code(), 4);
    assert!(!is_alive(left));
}

#[test]
fn second_term_counts_on_when_the_child_ends() {
    let env = Env::new();
    let script = "trap 'echo got; [ $((++terms)) = 1 ] || exit 4' TERM; (trap '' TERM; exec sleep 600) & echo ready; while :; do sleep 0.01; done";
    let run = shell(&env, &["--kill-after", "1h"], script);
    run.expect_line("ready");
    run.signal(Signal::SIGTERM);
    run.expect_line("got");
    run.term_again();
    run.end();
    assert!(env.processes().is_empty());
}
