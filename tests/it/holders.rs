//! Who holds the session lock, by the words of `status` and of a waiter, and for programs.

use std::ops::Deref;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::env::{Env, Running, fake_claude, records, wait_for_records, wait_until};

/// An environment that ends with all who work in it: nobody ends what an old caller leaves behind.
struct Old(Env);

impl Deref for Old {
    type Target = Env;

    fn deref(&self) -> &Env {
        &self.0
    }
}

impl Drop for Old {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // it may have ended
        }
    }
}

fn status(env: &Env) -> Value {
    serde_json::from_slice(&env.claude_run().args(["status", "--json"]).output().expect("started").stdout).expect("JSON")
}

fn text(env: &Env) -> String {
    String::from_utf8(env.claude_run().arg("status").output().expect("started").stdout).expect("text")
}

/// Pids and names of the processes of the only holder.
fn processes(seen: &Value) -> Vec<(i64, &str)> {
    let all = seen["holders"][0]["processes"].as_array().map_or(&[][..], |all| all);
    all.iter().map(|process| (process["pid"].as_i64().expect("a pid"), process["name"].as_str().expect("a name"))).collect()
}

/// What a waiter says of the holder.
fn waiter_names(env: &Env) -> String {
    let message = env.start(["--wait", "2", "--", "true"]).message();
    message.split_once(", held by ").unwrap_or_else(|| panic!("{message}")).1.to_owned()
}

/// An old caller's block: flock(1) around a command.
fn old_caller(env: &Env, script: &str) -> Running {
    let mut old = env.command("flock");
    old.args(["-w", "600"]).arg(env.make_lock_file()).args(["bash", "-c", script]);
    let old = Running::start(old);
    old.expect_line("held");
    old
}

#[test]
fn all_processes_with_the_lock_are_named() {
    let env = Old(Env::new());
    let old = old_caller(&env, "echo held; sleep 1000 | cat; true");
    wait_until("all have started", || processes(&status(&env)).len() == 4);
    let seen = status(&env);
    let found = processes(&seen);
    assert_eq!(found.iter().map(|(_, name)| *name).collect::<Vec<_>>(), ["flock", "bash", "sleep", "cat"], "{seen}");
    let holder = &seen["holders"][0];
    assert_eq!((&holder["pid"], &holder["processes"][2]["command"]), (&old.pid().as_raw().into(), &"sleep 1000".into()));
    let names: Vec<_> = found.iter().map(|(pid, name)| format!("{name} (pid {pid})")).collect();
    let named = format!("{}, without a run record", names.join(", "));
    let shown = text(&env);
    assert!(shown.contains(&format!("held by        {named}, started ")), "{shown}");
    for (place, command) in [(0, format!("flock -w 600 {} bash -c ~", env.lock_file().display())), (2, "sleep 1000".to_owned())]
    {
        assert!(shown.contains(&format!("pid {}: {command}\n", found[place].0)), "{command}: {shown}");
    }
    let pids = found.iter().map(|(pid, _)| pid.to_string()).collect::<Vec<_>>().join(" ");
    let way_out =
        format!("; if they are leftovers, end them: kill {pids}, or kill -KILL where that is ignored; the lock is free");
    assert!(shown.contains(&way_out), "{way_out}: {shown}");
    assert_eq!(waiter_names(&env), named);
}

#[test]
fn command_line_has_no_secret_and_no_prompt() {
    let secret = format!("ghp_{}", "a1B2".repeat(9));
    for (name, words, hidden, shown) in [
        ("claude", ["-p", "why"], "why", "…"),
        ("slowclaude-2.1.84", ["-p", "hang"], "hang", "…"),
        ("cli.js", ["--print", "hang"], "hang", "…"),
        ("old", ["-p", "hang"], "hang", "-p …"),
        ("old", ["-x", "昨日の売上"], "昨日", "-x …"),
        ("old", ["-p", "what is this"], "what", "-p …"),
        ("old", ["-x", &format!("GH_TOKEN={secret}")], &secret, "-x GH_TOKEN=***"),
    ] {
        let env = Old(Env::new());
        let script = env.script(name, "#!/bin/sh\nsleep 1000; true\n");
        let shown = format!("/bin/sh {} {shown}", script.display());
        let mut holder = env.command("flock");
        holder.arg(env.make_lock_file()).arg(&script).args(words);
        let _holder = Running::start(holder);
        wait_until("all have started", || processes(&status(&env)).len() == 3);
        let (text, seen) = (text(&env), status(&env));
        assert_eq!(seen["holders"][0]["processes"][1]["command"], shown, "{seen}");
        assert!(text.contains(&shown.replace('…', "~")), "{shown}: {text}");
        assert!(!text.contains(hidden) && !seen.to_string().contains(hidden), "{hidden}: {text}");
    }
}

#[test]
fn more_processes_than_four_are_counted() {
    let env = Old(Env::new());
    let _old = old_caller(&env, "for i in 1 2 3 4 5; do sleep 1000 & done; echo held; wait");
    wait_until("all have started", || processes(&status(&env)).len() == 7);
    assert!(text(&env).contains(" and 3 more, without a run record, started "), "{}", text(&env));
}

#[test]
fn descriptor_of_a_shell_is_held_by_it_and_its_child() {
    let env = Old(Env::new());
    let mut old = env.command("bash");
    old.args(["-c", r#"exec 9>"$0"; flock 9; echo held; sleep 1000; true"#]).arg(env.make_lock_file());
    let old = Running::start(old);
    old.expect_line("held");
    wait_until("both are there", || processes(&status(&env)).len() == 2);
    let seen = status(&env);
    let [(shell, "bash"), (_, "sleep")] = processes(&seen)[..] else { panic!("{seen}") };
    assert_eq!(shell, i64::from(old.pid().as_raw()));
}

#[test]
fn old_caller_behind_a_killed_run_is_not_its_orphan() {
    let env = Old(Env::new());
    let run = env.start_fake(&["--label", "killed"], "ready; hang");
    run.ready();
    wait_until("it holds the lock", || status(&env)["holders"][0]["record"]["label"] == "killed");
    run.signal(Signal::SIGKILL);
    run.end();
    // Its claude has ended at the signal of the kernel, and nobody has looked at its record since.
    let _old = old_caller(&env, "echo held; exec sleep 1000");
    wait_until("it sleeps", || processes(&status(&env)).iter().any(|(_, name)| *name == "sleep"));
    let seen = status(&env);
    assert_eq!((&seen["holders"][0]["orphaned"], &seen["holders"][0]["record"]), (&false.into(), &Value::Null), "{seen}");
    assert!(seen["orphaned"].as_array().is_some_and(Vec::is_empty) && !waiter_names(&env).contains("killed"), "{seen}");
}

#[test]
fn stopped_holder_has_one_hint() {
    let env = Old(Env::new());
    let old = old_caller(&env, "echo held; exec sleep 1000");
    wait_until("it sleeps", || processes(&status(&env)).iter().any(|(_, name)| *name == "sleep"));
    old.signal(Signal::SIGSTOP);
    let hint = format!("kill -CONT {} lets it go on", old.pid());
    wait_until("it is stopped, and status says so", || text(&env).contains(&hint));
    let shown = text(&env);
    assert!(shown.contains(", without a run record, stopped\n") && !shown.contains("leftover"), "{shown}");
    old.signal(Signal::SIGCONT);
}

#[test]
fn orphan_is_a_holder_by_one_name_for_all() {
    let env = Old(Env::new());
    let run = env.start_fake(&["--label", "orphan"], "ignore TERM; ready; hang");
    let [child, ..] = run.ready();
    wait_until("it holds the lock", || status(&env)["holders"][0]["record"]["label"] == "orphan");
    run.signal(Signal::SIGKILL);
    let run = run.pid();
    wait_until("it is an orphan", || status(&env)["holders"][0]["orphaned"] == true);
    let seen = status(&env);
    let holder = &seen["holders"][0];
    assert_eq!(
        (&holder["pid"], &holder["name"], &holder["record"]["run"]),
        (&child.into(), &"orphan".into(), &seen["orphaned"][0]["run"])
    );
    let named = format!("what orphan (pid {run}) left when it was killed: fake_claude (pid {child})");
    assert!(text(&env).contains(&format!("held by        {named}\n")), "{}", text(&env));
    assert_eq!(waiter_names(&env), named);
    let pid = Pid::from_raw(child);
    kill(pid, Signal::SIGSTOP).expect("alive");
    let advice = format!("let it go on: kill -CONT {pid}; if it is to end, give it a minute then");
    wait_until("it is stopped, and status says so", || text(&env).contains(&advice));
    let doctor = env.claude_run().arg("doctor").env("CLAUDE_RUN_CLAUDE", fake_claude()).output().expect("started");
    let doctor = String::from_utf8_lossy(&doctor.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(doctor.contains(&advice) && !doctor.contains("then end it"), "{doctor}");
    kill(pid, Signal::SIGKILL).expect("alive");
}

#[test]
fn killed_runs_do_not_hide_the_holder() {
    let env = Env::new();
    let holder = env.start_fake(&["--label", "the-holder"], "ready; hang");
    holder.ready();
    wait_for_records(&env.config_dir(), 1);
    let record = records(&env.config_dir()).remove(0);
    let text = std::fs::read_to_string(&record).expect("a record");
    let run = record.file_stem().expect("a name").to_str().expect("text");
    for old in 1..=12 {
        let killed = format!("{}-{old}", i32::MAX);
        let text = text.replace(run, &killed).replace("the-holder", "killed");
        std::fs::write(record.with_file_name(format!("{killed}.json")), text).expect("written");
    }
    assert!(waiter_names(&env).starts_with("the-holder"));
    assert_eq!(records(&env.config_dir()), [record]);
}
