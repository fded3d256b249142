//! What an operator sees on terminals of both sizes, 80x24 and 200x50.

use std::fs;

use crate::env::{Env, Running, binary, needs, wait_until};
use crate::terminal::OnTerminal;

const SIZES: [(u16, u16); 2] = [(80, 24), (200, 50)];

/// `text` without its escape sequences.
fn plain(text: &str) -> String {
    let mut pieces = text.split('\x1b');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| c.is_ascii_alphabetic()).map_or(piece.len(), |at| at + 1);
        plain.push_str(&piece[end..]);
    }
    plain.replace('\r', "")
}

fn command(env: &Env, words: &[&str]) -> std::process::Command {
    let mut command = env.command(binary());
    command.env("TERM", "xterm-256color").env("LANG", "C.UTF-8").args(words);
    command
}

/// Text that `words` print on a terminal of that size.
fn printed(env: &Env, words: &[&str], (columns, rows): (u16, u16)) -> String {
    let mut terminal = OnTerminal::sized(command(env, words), columns, rows);
    terminal.ends();
    terminal.read_to_end();
    plain(&terminal.shown())
}

fn assert_fits(text: &str, columns: u16) {
    let too_long = text.lines().find(|line| line.chars().count() > usize::from(columns));
    assert_eq!(too_long, None, "{text}");
}

/// A holder, and `count` waiters with long names.
fn crowd(env: &Env, count: usize) -> Vec<Running> {
    let holder = env.start_fake(&["--label", "dev-agent"], "ready; hang");
    holder.ready();
    let label = |index| format!("agent-{index}-of-a-branch-with-a-very-long-name-that-no-terminal-of-80-columns-has-room-for");
    let mut all: Vec<_> = (0..count).map(|index| env.start(["--label", &label(index), "--", "true"])).collect();
    all.iter().for_each(|waiter| drop(waiter.message()));
    wait_until("all wait", || env.waiters() == count);
    all.push(holder);
    all
}

#[test]
fn status_is_wrapped_with_a_hanging_indent() {
    let env = Env::new();
    let _all = crowd(&env, 2);
    fs::write(env.home().join(".claude/claude-run.toml"), format!("{} = 1\n", "k".repeat(60))).expect("a file");
    for size in SIZES {
        let text = printed(&env, &["status"], size);
        assert_fits(&text, size.0);
        assert!(text.contains("held by        dev-agent (pid "), "{text}");
        assert!(text.starts_with("trouble        no run starts: "), "trouble comes first: {text}");
        let indented = |line: &str| line.starts_with("               ") || !line.starts_with(' ');
        assert!(text.lines().all(indented), "{text}");
    }
    let narrow = printed(&env, &["status"], (30, 24));
    assert_fits(&narrow, 30);
    assert!(narrow.contains("\nheld by\n  dev-agent (pid "), "{narrow}");
}

#[test]
fn watch_fits_the_screen_and_leaves_it_as_it_was() {
    let env = Env::new();
    let _all = crowd(&env, 30);
    for ((columns, rows), key, code) in [(SIZES[0], "q", 0), (SIZES[1], "\x03", 130)] {
        let mut terminal = OnTerminal::sized(command(&env, &["status", "--watch"]), columns, rows);
        wait_until("two screens were shown", || terminal.shown().matches("\x1b[J").count() > 1);
        let shown = terminal.shown();
        assert!(shown.starts_with("\x1b[?1049h"), "the alternate screen: {shown:?}");
        let screen = shown.split("\x1b[H").nth(1).expect("a screen").to_owned();
        let screen = plain(&screen);
        assert!(screen.lines().count() <= usize::from(rows), "{screen}");
        assert_fits(&screen, columns);
        for part in
            ["claude-run status  20", "held by        dev-agent (pid ", "lock mode      exclusive", "waiting        30\n"]
        {
            assert!(screen.contains(part), "{part:?}: {screen}");
        }
        let mut numbers = screen.lines().filter_map(|line| line.trim().strip_prefix("… and ")?.strip_suffix(" more"));
        let hidden: usize = numbers.next().map_or(0, |number| number.parse().expect("a number"));
        let listed = screen.lines().filter(|line| line.contains(". agent-")).count();
        assert_eq!(hidden + listed, 30, "{screen}");
        assert!((rows == 24) == (hidden > 0) && listed > 1, "{screen}");
        let once = printed(&env, &["status"], (columns, rows));
        assert!(once.lines().count() < usize::from(rows) && once.contains("held by        dev-agent (pid "), "{once}");
        terminal.types(key);
        assert_eq!(terminal.ends(), code);
        wait_until("the screen is left", || terminal.shown().ends_with("\x1b[?25h\x1b[?1049l"));
    }
}

#[test]
fn watch_in_the_background_leaves_the_terminal_alone() {
    let env = Env::new();
    // As under timeout(1), it has a process group of its own.
    let script = r#"set -m; "$0" status --watch & echo pid $!; wait $!; echo ended $?; exec bash --norc --noprofile -i"#;
    let mut shell = env.command("bash");
    shell.env("TERM", "xterm-256color").args(["-c", script]).arg(binary());
    let mut terminal = OnTerminal::start(shell);
    let pid = terminal.shows("pid ")[4..].parse().expect("a pid");
    terminal.shows("claude-run status  20");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).expect("it lives");
    terminal.shows("ended 143");
    let enters = |terminal: &OnTerminal| terminal.shown().matches("\x1b[?1049h").count();
    assert_eq!(enters(&terminal), 0);
    terminal.types(&format!("'{}' status --watch; echo st\\opped\n", binary().display()));
    wait_until("the screen is shown", || enters(&terminal) == 1);
    terminal.types("\x1a");
    terminal.shows("stopped");
    terminal.types("bg; sleep 2; jobs; echo lo\\oked\n");
    assert!(terminal.shows("status --watch &").contains('1'));
    terminal.shows("looked");
    assert_eq!(enters(&terminal), 1, "{}", terminal.shown());
    terminal.types("fg; echo code $?\n");
    wait_until("it is shown again", || enters(&terminal) == 2);
    terminal.types("q");
    terminal.shows("code 0");
    terminal.leaves();
}

#[test]
fn piped_watch_tells_one_look_from_the_next() {
    let env = Env::new();
    let watch = env.start(["status", "--watch"]);
    let line = watch.line();
    assert!(line.starts_with("claude-run status  20") && line.ends_with(" UTC"), "{line}");
    while !watch.line().is_empty() {}
    assert!(watch.line().starts_with("claude-run status  20"));
}

#[test]
fn report_fits_the_terminal() {
    let env = Env::new();
    let label = "l".repeat(90);
    env.claude_run().args(["--label", &label, "true"]).assert().code(0);
    env.claude_run().args(["--label", "short", "sh", "-c", "exit 3"]).assert().code(3);
    // Many labels, which a low terminal has no room for.
    let history = env.home().join(".claude/claude-run/history.jsonl");
    let line = fs::read_to_string(&history).expect("a history").lines().next().expect("a line").to_owned();
    let others: String = (0..30).map(|index| line.replace(&label, &format!("other-{index}")) + "\n").collect();
    let all = fs::read_to_string(&history).expect("a history") + &others;
    fs::write(&history, all.repeat(2)).expect("written");
    let narrow = printed(&env, &["report"], (60, 200));
    assert!(narrow.contains("lll…") && narrow.contains("short "), "{narrow}");
    for (columns, rows) in SIZES {
        let text = printed(&env, &["report"], (columns, rows));
        assert_fits(&text, columns);
        assert!(text.lines().count() < usize::from(rows), "{text}");
        for part in [
            "exited (0)",
            "exited (3)",
            " more with no more runs each",
            "last day ",
            "refreshes ",
            "most 64",
            "lost to the lock: ",
        ] {
            assert!(text.contains(part), "{part:?}: {text}");
        }
    }
}

#[test]
fn doctor_is_wrapped_behind_the_names_of_its_checks() {
    let env = Env::new();
    env.make_lock_file();
    for (columns, rows) in [SIZES[0], SIZES[1], (40, 24)] {
        let text = printed(&env, &["doctor"], (columns, rows));
        assert_fits(&text, columns);
        assert!(text.contains("session lock"), "{text}");
    }
}

#[test]
fn events_are_wrapped_with_a_hanging_indent() {
    let env = Env::new();
    for (columns, rows) in SIZES {
        let text = printed(&env, &["events"], (columns, rows));
        assert_fits(&text, columns);
        assert!(text.contains("\nhealthy, as far as can be seen: "), "{text}");
        assert_eq!(text.contains("\n  "), columns == 80, "{text}");
    }
}

#[test]
fn setup_is_wrapped_but_for_commands() {
    let env = Env::new();
    let shared = env.path("shared").join("s".repeat(60));
    for (columns, rows) in SIZES {
        let text = printed(&env, &["setup", "--dry-run", "--shared-dir", shared.to_str().expect("text")], (columns, rows));
        let (steps, lines_to_copy) = text.split_once("\nfor the shell: ").expect("steps, and lines to copy");
        assert_fits(steps, columns);
        assert_eq!(lines_to_copy.lines().count(), 3, "{text}");
        assert!(text.starts_with("would make "), "{text}");
        assert_eq!(text.contains("\n  "), columns == 80, "{text}");
        let text = printed(&env, &["setup", "--home", "/missing"], (columns, rows));
        assert!(text.starts_with("claude-run: there is no home /missing; name it with --home"), "{text}");
    }
}

#[test]
fn waiting_line_shows_the_holder_in_80_columns() {
    let env = Env::new();
    let holder = env.start_fake(&["--label", "dev-agent"], "ready; hang");
    holder.ready();
    let mut old = env.command("flock");
    old.arg(env.lock_file()).arg("true");
    let _old = Running::start(old);
    let beside = env.start_fake(&["--lock", "pass-through"], "ready; hang");
    beside.ready(); // a live run that does not wait
    wait_until("the old caller waits", || env.waiters() == 1);
    let start = |(columns, rows)| OnTerminal::sized(command(&env, &["--", "true"]), columns, rows);
    let narrow = start(SIZES[0]);
    wait_until("it waits", || env.waiters() == 2);
    let wide = start(SIZES[1]);
    wait_until("a third one waits", || env.waiters() == 3);
    for (waiter, place, columns, hint) in [(narrow, "2nd", 79, false), (wide, "3rd", 199, true)] {
        let held = format!("s of 10m, {place} of 3; held by dev-agent (pid {}), ", holder.pid());
        wait_until("place and holder are shown", || waiter.shown().contains(&held));
        let lines = waiter.shown().split('\r').map(plain).collect::<Vec<_>>().join("\n");
        assert_fits(&lines, columns);
        assert_eq!(lines.contains("; Ctrl-C ends it"), hint, "{lines}");
    }
}

#[test]
fn waiting_line_is_rewritten_each_second_and_wiped() {
    let env = Env::new();
    let _holder = env.hold_lock();
    let (columns, rows) = SIZES[1];
    let mut waiter = OnTerminal::sized(command(&env, &["--", "true"]), columns, rows);
    let shows = |seconds: u32| waiter.shown().contains(&format!("waited {seconds}s"));
    wait_until("it counts the seconds", || (2..9).any(shows));
    assert!(waiter.shown().matches("waited ").count() < 20, "{}", waiter.shown());
    waiter.types("\x03");
    assert_eq!(waiter.ends(), 130);
    waiter.read_to_end();
    let shown = waiter.shown();
    let (_, end) = shown.rsplit_once("; Ctrl-C ends it").expect("a live line");
    assert!(end.contains("\r\x1b[Kclaude-run: SIGINT ended the wait for the session lock"), "{shown:?}");
}

#[test]
fn waiting_line_is_for_the_foreground() {
    let env = Env::new();
    let holder = env.hold_lock();
    let mut shell = env.command("bash");
    shell.args(["--norc", "-c", "set -m; \"$0\" echo it ran & wait"]).arg(binary());
    let mut terminal = OnTerminal::start(shell);
    terminal.shows("waiting for the session lock");
    let (columns, rows) = SIZES[1];
    let beside = OnTerminal::sized(command(&env, &["--", "true"]), columns, rows);
    wait_until("seconds pass", || beside.shown().matches("waited ").count() > 2);
    drop(holder);
    terminal.shows("it ran");
    assert_eq!(terminal.ends(), 0);
    assert_eq!(terminal.count("waiting for the session lock"), 1, "{:?}", terminal.seen);
    assert_eq!(terminal.count("waited "), 0, "{:?}", terminal.seen);
}

#[test]
fn waiting_line_counts_no_waiter_for_another_lock() {
    let env = Env::new();
    let _holder = env.hold_lock();
    let other = env.path("other.lock").display().to_string();
    let holder = env.start(["--lock-file", &other, "--", "sh", "-c", "echo held; exec sleep 600"]);
    holder.expect_line("held");
    let earlier = env.start(["--lock-file", &other, "--", "true"]);
    assert!(earlier.message().contains("waiting for the session lock"), "and its record says so");
    let (columns, rows) = SIZES[1];
    let waiter = OnTerminal::sized(command(&env, &["--", "true"]), columns, rows);
    wait_until("its place is shown", || waiter.shown().contains(" of 10m, "));
    wait_until("it is alone", || waiter.shown().contains(" of 10m, 1st of 1; "));
    assert!(!waiter.shown().contains(" of 2; "), "{}", waiter.shown());
}

#[test]
fn waiting_line_shows_the_place_for_a_slot() {
    let env = Env::new();
    let slots = ["--lock", "pass-through", "--slots", "1"];
    let holder = env.start_fake(&slots, "ready; hang");
    holder.ready();
    let mut waiters = Vec::new();
    for place in ["1st of 1", "2nd of 2"] {
        let (columns, rows) = SIZES[0];
        waiters.push(OnTerminal::sized(command(&env, &[&slots[..], &["--", "true"]].concat()), columns, rows));
        let line = format!(", {place}; 1 of 1 slots in use");
        wait_until("its place is shown", || waiters.last().is_some_and(|waiter| waiter.shown().contains(&line)));
    }
    wait_until("the first counts the other", || waiters[0].shown().contains(", 1st of 2; "));
}

#[test]
fn drain_says_first_what_is_set_then_who_is_waited_for() {
    let env = Env::new();
    let _all = crowd(&env, 1);
    for (columns, rows) in SIZES {
        let mut drain = OnTerminal::sized(command(&env, &["mode", "pass-through", "--drain", "10m"]), columns, rows);
        drain.shows("the lock mode is pass-through now, set in");
        drain.shows("waiting for 2 live runs of another mode; Ctrl-C stops only the wait");
        wait_until("it is shown who is waited for", || drain.shown().contains("s of 10m for dev-agent (pid "));
        let line = plain(&drain.shown());
        let line = line.lines().last().expect("a line");
        assert!(line.ends_with(" and 1 more") == (columns == 80), "{line}");
        drain.types("\x03");
        assert_eq!(drain.ends(), 130);
    }
    env.claude_run().arg("mode").assert().code(0);
    let shown = printed(&env, &["mode", "pass-through", "--drain", "1"], SIZES[0]);
    assert!(shown.contains("gave up after 1s: 2 live runs still follow another mode: exclusive\n"), "{shown}");
    let file = fs::read_to_string(env.home().join(".claude/claude-run.toml")).expect("a file");
    assert_eq!(file, "lock = \"pass-through\"\n", "Ctrl-C stops the wait, not the mode");
}

#[test]
fn help_is_wrapped_and_paged_on_a_terminal() {
    let env = Env::new();
    env.script("pager", "#!/bin/sh\necho \"$1\" >paged; exec cat >>paged\n");
    for (columns, rows) in SIZES {
        let shown = |variables: &[(&str, &str)]| {
            let _ = fs::remove_file(env.path("paged"));
            let mut command = command(&env, &["help", "watchdog"]);
            command.envs(variables.iter().copied());
            let mut terminal = OnTerminal::sized(command, columns, rows);
            assert_eq!(terminal.ends(), 0);
            terminal.read_to_end();
            (plain(&terminal.shown()), fs::read_to_string(env.path("paged")).unwrap_or_default())
        };
        let (shown_beside, paged) = shown(&[("PAGER", "./pager 'a b'")]);
        assert_eq!(shown_beside, "", "the pager has the terminal");
        assert!(paged.starts_with("a b\nThe watchdog\n\n    claude-run ") && paged.contains("\nSignals\n"), "{paged}");
        // Code keeps its lines.
        let prose = |text: &str| text.lines().filter(|line| !line.starts_with("    ")).collect::<Vec<_>>().join("\n");
        assert_fits(&prose(&paged), columns);
        // No pager, no wish for one, or a terminal that has no use for it.
        let home = env.home();
        let path = home.to_str().expect("text");
        let others = [&[("PAGER", "")][..], &[("PAGER", "cat")], &[("PAGER", "./pager"), ("TERM", "dumb")], &[("PATH", path)]];
        for variables in others {
            let (text, not_paged) = shown(variables);
            assert!(text.starts_with("The watchdog\n\n    claude-run ") && not_paged.is_empty(), "{variables:?}: {text}");
            assert_fits(&prose(&text), columns);
        }
    }
    // What a screen has room for needs no pager.
    let mut terminal = OnTerminal::sized(command(&env, &["help", "status"]), 80, 50);
    terminal.ends();
    terminal.read_to_end();
    assert!(plain(&terminal.shown()).starts_with("Shows who holds the session lock"));
}

#[test]
fn help_goes_through_less_where_it_is() {
    if !needs("less") {
        return;
    }
    let env = Env::new();
    let mut less = OnTerminal::sized(command(&env, &["help", "modes"]), 80, 24);
    wait_until("less shows the first screen", || less.shown().contains("\x1b[1mLock\x1b[0m"));
    assert!(!less.shown().contains("Claude's own refresh locks"));
    less.types("q");
    assert_eq!(less.ends(), 0);
}

#[test]
fn marks_are_ascii_where_the_locale_is() {
    let env = Env::new();
    env.claude_run().args(["--label", &"l".repeat(90), "true"]).assert().code(0);
    let operations = "status mode slots settings report doctor events version man-page -h --help help nonsense --nonsense";
    let others =
        ["setup --dry-run", "completions bash", "completions fish", "completions zsh", "report --prometheus", "mode exclusive"];
    let all = operations.split(' ').chain(others).map(str::to_owned);
    let pages = claude_run::guide::TOPICS.iter().map(|(topic, _)| *topic).chain(["status", "setup"]);
    for line in all.chain(pages.map(|topic| format!("help {topic}"))) {
        let words: Vec<_> = line.split(' ').collect();
        let started = |words: &[&str]| {
            let mut command = command(&env, words);
            command.env("LANG", "C").env("PAGER", "cat");
            command
        };
        let mut terminal = OnTerminal::sized(started(&words), 80, 24);
        terminal.ends();
        terminal.read_to_end();
        let shown = terminal.shown();
        assert!(shown.is_ascii() && !shown.is_empty(), "{line}: {shown}");
        let piped = started(&words).output().expect("started");
        assert!(piped.stdout.is_ascii() && piped.stderr.is_ascii(), "{line}: {piped:?}");
    }
}

/// node makes its terminal non-blocking, and may leave it so.
#[test]
fn answer_from_a_nonblocking_terminal_is_waited_for() {
    if !needs("perl") {
        return;
    }
    let env = Env::new();
    env.make_lock_file();
    let mut command = env.command("perl");
    command.args(["-MFcntl", "-e", "fcntl(STDIN, F_SETFL, O_RDWR | O_NONBLOCK) and exec @ARGV"]).arg(binary());
    command.args(["setup", "--shared-dir"]).arg(env.path("shared"));
    let mut setup = OnTerminal::start(command);
    wait_until("it asks", || setup.shown().contains("[Y/n]"));
    setup.types("y\n");
    assert_eq!(setup.ends(), 0, "{}", setup.shown());
    assert!(env.home().join(".claude").is_symlink());
}
