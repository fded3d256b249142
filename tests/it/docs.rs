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

/// The names of all tests, as `file::name` or `path::of::module`.
fn tests(dir: &std::path::Path, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).expect("sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            tests(&path, names);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let file = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let lines: Vec<_> = text.lines().collect();
        for pair in lines.windows(2).filter(|pair| pair[0].trim() == "#[test]") {
            let name = pair[1].trim().trim_start_matches("fn ").split('(').next().unwrap_or_default();
            names.push(format!("{file}::{name}"));
        }
    }
}

#[test]
fn every_test_that_the_readme_names_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = Vec::new();
    tests(&root.join("tests/it"), &mut known);
    let table = README.split("## What is promised").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the table");
    let named: Vec<_> = table.split('`').skip(1).step_by(2).collect();
    let mut count = 0;
    for name in named.into_iter().filter(|name| name.contains("::") && !name.starts_with("lib ")) {
        assert!(known.iter().any(|test| test == name), "{name}");
        count += 1;
    }
    assert!(count > 50, "{count}");
    for path in ["tests/library", "tests/model"] {
        assert!(table.contains(path) && root.join(path).is_dir(), "{path}");
    }
}

#[test]
fn every_script_stands_in_the_readme() {
    let scripts = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    for entry in std::fs::read_dir(scripts).expect("scripts").flatten() {
        let name = entry.file_name().into_string().expect("a name");
        assert!(name == "lib.sh" || README.contains(&format!("scripts/{name}")), "{name}");
    }
}
