//! `status --json` and `report --json` have the form of the schemas in src/ops/schema, and those have nothing else.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::env::{Env, wait_until};

fn schema(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/schema").join(name).with_extension("json");
    serde_json::from_slice(&fs::read(path).expect("a schema")).expect("JSON")
}

fn is_of_type(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => panic!("the schemas need no {kind}"),
    }
}

/// Where `value` is not as `part` of the `schema` says. Objects have all the keys that it names, and no other.
fn mistakes(value: &Value, part: &Value, schema: &Value, place: &str, found: &mut Vec<String>) {
    if let Some(name) = part["$ref"].as_str() {
        return mistakes(value, schema.pointer(&name[1..]).expect("a definition"), schema, place, found);
    }
    if let Some(parts) = part["anyOf"].as_array() {
        let each = parts.iter().map(|part| {
            let mut found = Vec::new();
            mistakes(value, part, schema, place, &mut found);
            found
        });
        return found.extend(each.min_by_key(Vec::len).expect("one of them"));
    }
    let kinds = part["type"].as_array().cloned().unwrap_or_else(|| vec![part["type"].clone()]);
    if !kinds.iter().any(|kind| is_of_type(value, kind.as_str().expect("a type"))) {
        return found.push(format!("{place}: {value} is none of {kinds:?}"));
    }
    if part["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        found.push(format!("{place}: {value} is no word of {}", part["enum"]));
    }
    if let Some(object) = value.as_object() {
        let known = part["properties"].as_object();
        if part["additionalProperties"] == Value::Bool(false) {
            let known: Vec<_> = known.expect("properties").keys().collect();
            let there: Vec<_> = object.keys().collect();
            found.extend(known.iter().filter(|key| !there.contains(key)).map(|key| format!("{place}: no {key}")));
            found.extend(there.iter().filter(|key| !known.contains(key)).map(|key| format!("{place}: unknown {key}")));
        }
        for (key, value) in object {
            let part = known.and_then(|known| known.get(key)).unwrap_or(&part["additionalProperties"]);
            if part.is_object() {
                mistakes(value, part, schema, &format!("{place}.{key}"), found);
            }
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        mistakes(item, &part["items"], schema, &format!("{place}[{index}]"), found);
    }
}

fn check(env: &Env, operation: &str) -> Value {
    let output = env.claude_run().args([operation, "--json"]).output().expect("started");
    let value = serde_json::from_slice(&output.stdout).expect("JSON");
    let (schema, mut found) = (schema(operation), Vec::new());
    mistakes(&value, &schema, &schema, operation, &mut found);
    assert_eq!(found, [""; 0], "{value}");
    value
}

/// Every part of the status, and of the report, is there at least once.
#[test]
fn json_of_status_and_report_has_its_schema() {
    let env = Env::new();
    let empty = check(&env, "status");
    check(&env, "report");
    env.claude_run().args(["--label", "one", "sh", "-c", "exit 7"]).assert().code(7);
    let config_dir = env.home().join(".claude");
    fs::create_dir(env.home().join(".claude.lock")).expect("a lock");
    fs::write(config_dir.join(".oauth_refresh.lock.owner"), r#"{"pid":1,"procStart":"1","pidDomain":"x"}"#).expect("a file");
    fs::create_dir(config_dir.join(".oauth_refresh.lock")).expect("a lock");
    let holder = env.start_fake(&["--label", "holder"], "ready; hang");
    holder.ready();
    let free = env.start_fake(&["--lock", "pass-through"], "ready; hang");
    free.ready();
    let _waiter = env.start(["--label", "waiter", "--", "true"]);
    wait_until("one waits", || env.waiters() == 1);
    let mut old = env.command("flock");
    let _old = crate::env::Running::start({
        old.arg(env.lock_file()).arg("true");
        old
    });
    wait_until("two wait", || env.waiters() == 2);
    wait_until("all are shown", || {
        let seen = check(&env, "status");
        let lists = ["holders", "waiting", "waiting_without_record", "queue", "running", "last", "trouble"];
        lists.iter().all(|list| seen[list].as_array().is_some_and(|list| !list.is_empty()) || *list == "trouble")
    });
    let seen = check(&env, "report");
    assert_eq!((&seen["endings"][0]["exit_code"], seen["last_day"].as_array().map(Vec::len)), (&7.into(), Some(24)));
    fs::write(config_dir.join("claude-run.toml"), "wait = [").expect("a file");
    assert!(check(&env, "status")["mode"].is_null() && empty["mode"].is_object());
}

#[test]
fn schema_check_finds_each_kind_of_mistake() {
    let env = Env::new();
    let (schema, good) = (schema("status"), check(&env, "status"));
    for (key, bad) in [("auth", Value::Null), ("trouble", "text".into()), ("token", "x".into()), ("new", 1.into())] {
        let (mut value, mut found) = (good.clone(), Vec::new());
        value[key] = bad;
        mistakes(&value, &schema, &schema, "status", &mut found);
        assert_eq!(found.len(), 1, "{key}: {found:?}");
    }
}
