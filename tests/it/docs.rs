//! The documents say what the code does: every option, variable and exit code stands in the README.

use claude_run::cli::{OPTIONS, VERBOSITY_VARIABLE};

const README: &str = include_str!("../../README.md");

#[test]
fn every_option_and_variable_stands_in_the_readme() {
    for option in OPTIONS {
        assert!(README.contains(&format!("`--{}", option.flag)), "--{}", option.flag);
        assert!(README.contains(&format!("`{}`", option.variable)), "{}", option.variable);
    }
    assert!(README.contains(VERBOSITY_VARIABLE));
}

#[test]
fn every_exit_code_of_ours_stands_in_the_readme() {
    for code in ["65", "75", "124", "125", "126", "127", "128+N"] {
        assert!(README.contains(&format!("| {code} |")), "{code}");
    }
}

#[test]
fn every_operation_event_and_field_stands_in_the_readme() {
    let operations = ["status", "mode", "settings", "report", "doctor", "setup", "events"];
    let events = "lock.acquiring lock.waiting lock.acquired lock.timeout lock.unneeded lock.released refresh.unclear refresh.waiting refresh.waited \
                  refresh.spared run.started run.result run.limit run.stopping run.ended";
    let fields = "run label version state since began mode hold host boot pid_namespace pid child program cwd lock config_dir parent \
                  holders waiting waiting_without_record running orphaned refresh_locks auth token last trouble age_ms";
    for operation in operations {
        assert!(README.contains(&format!("claude-run {operation}")), "{operation}");
    }
    for name in events.split(' ').chain(fields.split_whitespace()) {
        assert!(README.contains(&format!("`{name}`")), "{name}");
    }
}
