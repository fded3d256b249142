//! Frames of Claude's stream: what is masked in their strings leaves the rest of them alone.

use serde_json::{Value, json};

use super::*;

/// A mention of a key's BEGIN is no key: what stands behind it in a frame, and the next frame, stays as it is.
#[test]
fn mention_of_a_key_leaves_a_frame_alone() {
    let begin = "-----BEGIN PRIVATE KEY-----";
    let mut random = random(11);
    let parts = [
        begin,
        " only",
        "\n",
        "\"",
        "'",
        "(",
        "/home/user/projects/Factory1/agents",
        " internationalization",
        "{\"a\":1}",
        ", ",
    ];
    for _ in 0..200 {
        let text = mixture(&parts, &mut random);
        let frame = |text: &str| {
            serde_json::json!({
                "content": [{ "grep": text, "cwd": "/home/user/projects/factory/agents/alpha" }],
                "session_id": "0f8e7d6c-5b4a-3928-1706-f5e4d3c2b1a0", "uuid": "0f8e7d6c5b4a39281706f5e4d3c2b1a0",
                "is_error": false, "subtype": "success", "total_cost_usd": 0.1, "list": [begin, "a", 2],
            })
        };
        for frame in [frame(&text), frame(&frame(&text).to_string())] {
            let lines = format!("{frame}\nMIIEpAIBAAKCAQEA0123456789abcdefgh next line of others\n{frame}\n");
            assert_eq!(masked(&lines), lines);
        }
    }
}

/// A value without its strings, but with its keys.
fn skeleton(value: &Value) -> Value {
    match value {
        Value::String(_) => Value::Null,
        Value::Array(values) => values.iter().map(skeleton).collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), skeleton(value))).collect(),
        other => other.clone(),
    }
}

#[test]
fn masks_in_a_frame_leave_its_structure_alone() {
    let parts = [
        "-----BEGIN PRIVATE KEY-----",
        "-----END PRIVATE KEY-----",
        "MIIEpAIBAAKCAQEA0123+/abcdefghijklmnopqrstuvwxyz",
        "Authorization: Digest a=\"b\", c=\"d\"",
        "Authorization: OAuth a1b2c3d4e5",
        "Cookie: a={\"b\":1}; c=d",
        "curl -u a:b1 ",
        "[\"--token\", \"a1b2c3\"]",
        "('X-Api-Key', 'a1b2c3')",
        "const TOKEN: &str = \"a1\";",
        "<password a=\"b\">",
        "<add value=\"v\" key=\"password\"/>",
        "https://u:p@h",
        "DB_PASSWORD='a1",
        "Cookie: a=b; ",
        "mysql -u root '-p",
        "\"",
        "'",
        "\\",
        "\n",
        " word ",
        "/home/user/Projects/a",
    ];
    let mut random = random(13);
    for _ in 0..400 {
        let text = mixture(&parts, &mut random);
        let frame = |text: &str| {
            json!({
                "type": "user", "message": { "content": [{ "t": text, "cwd": "/home/user/projects/factory/agents" }, text] },
                "uuid": "0f8e7d6c5b4a39281706f5e4d3c2b1a0", "is_error": false, "args": [text, "--flag", 1], "cost": 0.1, "end": null,
            })
        };
        for frame in [frame(&text), frame(&frame(&text).to_string())] {
            let out = masked(&format!("x\n{frame}"));
            let after: Value = serde_json::from_str(&out[2..]).expect("JSON");
            assert_eq!(skeleton(&after), skeleton(&frame), "{frame}\n{out}");
        }
    }
}

#[test]
fn list_may_end_anywhere() {
    let text = r#"["curl","-u","a:b1"],('X-Api-Key','a1b2c3'),<add value="v" key="password"/>,x: [ 'a-key': ['v'"#;
    for text in [text, "x-a-key: [v1]"] {
        for end in 0..=text.len() {
            masked(&text[..end]);
        }
    }
}

#[test]
fn headers_are_masked_to_their_end_at_any_length() {
    let cookies: String = (0..4_000).map(|at| format!("c{at}={at:064}; ")).collect();
    let cookies = cookies.trim_end().to_owned();
    let far = format!("{{\"t\":\"{} Cookie: ", "x".repeat(5_000));
    for (before, after) in [
        ("Cookie: ", ""),
        ("> Set-Cookie: ", "\r"),
        ("{\"t\":\"Cookie: ", "\",\"n\":1}"),
        (&far, "\",\"n\":1}"),
        ("-H 'Cookie: ", "' x"),
    ] {
        for value in [&cookies, &cookies[..9_000], &cookies[..400]] {
            assert_eq!(masked(&format!("{before}{value}{after}\n")), format!("{before}***{after}\n"));
        }
    }
    for length in [10, 4_000, 5_000, 90_000] {
        let password = "aB3".repeat(length / 3);
        let text = masked(&format!("x https://me:{password}@host/a y\n"));
        assert!(text.starts_with("x https://me:***") && text.ends_with(" y\n") && text.len() < 50, "{text}");
    }
}
