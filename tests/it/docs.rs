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
