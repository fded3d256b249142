//! What is masked, and what is not: the table's promises, through the binary. `claude-run redact` is the masker of `--log`.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::env::{Env, binary};

/// What `claude-run redact`, with this environment, makes of `input`.
fn redacted(env: &Env, variables: &[(&str, &str)], input: &[u8]) -> String {
    let mut command = env.command(binary());
    command.arg("redact").envs(variables.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut filter = command.spawn().expect("started");
    let mut stdin = filter.stdin.take().expect("a pipe");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let mut output = String::new();
    filter.stdout.take().expect("a pipe").read_to_string(&mut output).expect("text");
    writer.join().expect("no panic").expect("all is read");
    assert_eq!(filter.wait().expect("ended").code(), Some(0));
    output
}

#[test]
fn redact_masks_stdin_line_by_line() {
    let env = Env::new();
    let mut filter = env.command(binary()).arg("redact").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
    let (mut stdin, mut stdout) = (filter.stdin.take().expect("a pipe"), filter.stdout.take().expect("a pipe"));
    stdin.write_all(b"GH_TOKEN=abc\nghp_").expect("a reader");
    let mut line = [0; 13];
    stdout.read_exact(&mut line).expect("a line, before the end");
    assert_eq!(&line, b"GH_TOKEN=***\n");
    stdin.write_all(b"0123 \x1b[1mend").expect("a reader");
    drop(stdin);
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).expect("the rest");
    assert_eq!(String::from_utf8_lossy(&rest), "ghp_*** \u{1b}[1mend");
    assert_eq!(filter.wait().expect("ended").code(), Some(0));
}

#[test]
fn colours_and_encodings_around_a_secret_hide_it_not() {
    let env = Env::new();
    let token = "ghp_aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dF3hJ5";
    for (line, expected) in [
        (format!("\x1b[31m{token}\x1b[0m"), "\x1b[31mghp_***\x1b[0m"),
        ("\x1b[1;32mPASSWORD\x1b[0m: hunter2x".to_owned(), "\x1b[1;32mPASSWORD\x1b[0m: ***"),
        ("\x1b[01;31m\x1b[Ktoken\x1b[m\x1b[K=abc9defg".to_owned(), "\x1b[01;31m\x1b[Ktoken\x1b[m\x1b[K=***"),
        (format!(r#"{{"c":"\u001b[31m{token}\u001b[0m"}}"#), r#"{"c":"\u001b[31mghp_***\u001b[0m"}"#),
        (format!(r#"{{"c":"\u003d{token}"}}"#), r#"{"c":"\u003dghp_***"}"#),
        (format!("a%3D{token}"), "a%3Dghp_***"),
        (
            "\x1b[32m+\x1b[mmax_tokens=4096 \x1b[1mmonkey=banana\x1b[0m".to_owned(),
            "\x1b[32m+\x1b[mmax_tokens=4096 \x1b[1mmonkey=banana\x1b[0m",
        ),
    ] {
        assert_eq!(redacted(&env, &[], line.as_bytes()), expected, "{line:?}");
    }
}

/// A frame that speaks of a key, or shows a header, keeps its names, its other values, and the frame behind it.
#[test]
fn frame_keeps_what_stands_beside_a_secret() {
    let env = Env::new();
    let mention = r#"{"content":"it looks for -----BEGIN PRIVATE KEY----- only","cwd":"/home/user/projects/factory/alpha","is_error":false}"#;
    let header = r#"{"content":"> Cookie: «a={\"b\":1}; c=d»\n> Host: x","args":["--token","«a1b2c3»"],"cost":0.1}"#;
    let text = format!("{mention}\nMIIEpAIBAAKCAQEA0123456789abcdefgh next line of others\n{header}\n");
    let expected = text.replace(r#"«a={\"b\":1}; c=d»"#, "***").replace("«a1b2c3»", "***");
    assert_eq!(redacted(&env, &[], text.replace(['«', '»'], "").as_bytes()), expected);
}

#[test]
fn redact_needs_no_config_dir_and_no_reader() {
    let env = Env::new();
    let mut command = env.command(binary());
    command.env_remove("HOME").env_remove("CLAUDE_CONFIG_DIR").arg("redact").stdin(Stdio::null());
    assert_eq!(command.status().expect("started").code(), Some(0));
    let script = format!("yes GH_TOKEN=abc | '{}' redact | head -n 1; echo \"${{PIPESTATUS[1]}}\"", binary().display());
    let output = env.command("bash").args(["-c", &script]).output().expect("started");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "GH_TOKEN=***\n0\n");
}

#[test]
fn settings_file_adds_names_and_patterns() {
    let env = Env::new();
    fs::create_dir_all(env.config_dir()).expect("a dir");
    let text = "redact-names = ['factory_phrase']\nredact-patterns = ['ID-([0-9]{4})', 'zz+top']\n";
    fs::write(env.config_dir().join("claude-run.toml"), text).expect("a file");
    let input = "factory-phrase=open1 FACTORY_PHRASE: \"open\" ID-1234 zzztop deep-inside\n";
    let masked = "factory-phrase=*** FACTORY_PHRASE: \"***\" ID-*** *** ***\n";
    assert_eq!(redacted(&env, &[("FactoryPhrase", "deep-inside")], input.as_bytes()), masked);
    env.claude_run().args(["--log", "log", "echo", "zzztop ID-1234"]).assert().code(0);
    assert!(fs::read_to_string(env.path("log")).expect("a log").contains("stdout: *** ID-***\n"));
}

#[test]
fn wrong_names_and_patterns_are_refused_by_line() {
    let env = Env::new();
    fs::create_dir_all(env.config_dir()).expect("a dir");
    for (text, parts) in [
        ("\nredact-patterns = ['a', '(hunter2']\n", [":2: redact-patterns", "number 2", "unclosed group"]),
        ("redact-patterns = ['x*']\n", [":1: redact-patterns", "number 1", "would mask everything"]),
        ("redact-names = 'a'\n", [":1: redact-names", "a list of strings", "not string"]),
        ("redact-names = ['*_PAT']\n", [":1: redact-names", "\"*_PAT\" is no name", "redact-patterns"]),
        ("redact-names = [1]\n", [":1: redact-names", "a list of strings", ""]),
        ("redact-name = ['a']\n", [":1: unknown key", "did you mean \"redact-names\"", ""]),
    ] {
        fs::write(env.config_dir().join("claude-run.toml"), text).expect("a file");
        for words in [&["true"][..], &["redact"]] {
            let output = env.claude_run().args(words).assert().code(125).get_output().stderr.clone();
            let message = String::from_utf8_lossy(&output);
            assert!(parts.iter().all(|part| message.contains(part)) && message.lines().count() == 1, "{text}: {message}");
        }
    }
}

/// What agents print on an ordinary day: below `tests/it/ordinary`, and our own sources' prose.
#[test]
fn ordinary_output_is_not_masked() {
    let env = Env::new();
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> =
        fs::read_dir(top.join("tests/it/ordinary")).expect("a corpus").flatten().map(|entry| entry.path()).collect();
    files.extend(["src/supervisor/run.rs", "src/lock/file.rs", "Cargo.lock", "Cargo.toml"].map(|file| top.join(file)));
    assert!(files.len() >= 8);
    for file in files {
        let text = fs::read_to_string(&file).expect("text");
        let masked = redacted(&env, &[], text.as_bytes());
        let changed: Vec<_> = text.lines().zip(masked.lines()).filter(|(line, out)| line != out).collect();
        assert!(text == masked, "{}: {changed:#?}", file.display());
    }
}

#[test]
fn values_of_the_environment_are_masked_in_every_encoding() {
    let env = Env::new();
    let value = r#"p@ss/w"or'd\ + é&<1>"#;
    let names = [
        "MY_GH_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "OPENAI_API_KEY",
        "NPM_TOKEN",
        "PGPASSWORD",
        "DB_PASS",
        "apiKey",
        "SOME_CREDENTIALS",
        "VAULT_KEY",
        "clientSecret",
        "SSH_PRIVATE_KEY",
        "mysql_passwd",
    ];
    let python = "import base64,html,json,re,shlex,sys,urllib.parse as u\nv=sys.argv[1];b=v.encode()\nforms=[v,json.dumps(v),json.dumps(json.dumps(v)),json.dumps(json.dumps(json.dumps(v))),json.dumps(v,ensure_ascii=False).replace('/','\\\\/'),''.join('\\\\u%04x'%ord(c) for c in v),''.join('\\\\u%04X'%ord(c) for c in v),u.quote(v),u.quote(v,safe=''),u.quote(v,safe='').lower(),u.quote_plus(v),u.quote(u.quote(v,safe=''),safe=''),html.escape(v),html.escape(v,quote=False),''.join('&#%d;'%ord(c) for c in v),''.join('&#x%x;'%ord(c) for c in v),b.hex(),b.hex().upper(),shlex.quote(v),json.dumps({'a':json.dumps({'b':[v]})})]\nc=v[:4]+'\\x1b[01;31m\\x1b[K'+v[4:7]+'\\x1b[m'+v[7:]\nq=re.sub(r'([^\\w/@])',r'\\\\\\1',v)\nforms+=[re.escape(v),repr(v),q,c]+[json.dumps({'c':x}) for x in (re.escape(v),repr(v),q,c,u.quote(v),shlex.quote(v))]+[u.quote(json.dumps({'c':v}))]\nforms+=[e(b'x'*n+b+t).decode() for e in (base64.b64encode,base64.urlsafe_b64encode) for n in range(3) for t in (b'',b'yy')]\nprint(json.dumps(forms))";
    let output = Command::new("python3").args(["-c", python, value]).output().expect("python3");
    let forms: Vec<String> = serde_json::from_slice(&output.stdout).expect("forms");
    assert!(forms.len() > 30);
    let input: String = forms.iter().map(|form| format!("before {form} after\n")).collect();
    for name in names {
        let output = redacted(&env, &[(name, value)], input.as_bytes());
        assert_eq!(output.lines().count(), forms.len(), "{output}");
        for (form, line) in forms.iter().zip(output.lines()) {
            let shown = line.strip_prefix("before ").and_then(|rest| rest.strip_suffix(" after")).unwrap_or("");
            assert!(shown.contains("***") && shown.replace("***", "").len() < 32, "{name}: {form} -> {line}");
        }
    }
    let url = "postgres://me:pa55-w%2Ford@db/x";
    let masked = redacted(
        &env,
        &[("DATABASE_URL", url), ("CFG", "Server=x;Password=s3cr3t-pw;y=z")],
        b"pa55-w/ord pa55-w%2Ford s3cr3t-pw\n",
    );
    assert_eq!(masked, "*** *** ***\n");
    let wrapped = redacted(
        &env,
        &[("MY_TOKEN", &"0123456789abcdefghijk".repeat(5))],
        b"MDEyMzQ1Njc4OWFiY2RlZmdoaWprMDEyMzQ1Njc4OWFiY2RlZmdoaWprMDEyMzQ1Njc4OWFiY2Rl\nZmdoaWprMDEyMzQ1Njc4OWFi\n",
    );
    assert_eq!(wrapped, "***\n***\n");
    let lines = redacted(&env, &[("MY_SECRET", "first line\nsecond line\nend")], b"first line\n  second line.\n");
    assert_eq!(lines, "***\n  ***.\n");
}

#[test]
fn endless_lines_are_masked_in_bounded_memory() {
    let env = Env::new();
    for part in ["\\", "a", "GH_TOKEN=", "{\"k\":\"", "\\u0041"] {
        let mut filter =
            env.command(binary()).arg("redact").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
        let (mut stdin, mut stdout) = (filter.stdin.take().expect("a pipe"), filter.stdout.take().expect("a pipe"));
        let reader = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()).expect("read"));
        stdin.write_all(b"GH_TOKEN=").expect("a reader");
        let bytes = part.repeat((1 << 20) / part.len());
        for _ in 0..3 {
            stdin.write_all(bytes.as_bytes()).expect("a reader");
        }
        let status = fs::read_to_string(format!("/proc/{}/status", filter.id())).expect("alive");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        let peak: u64 = peak.split_whitespace().next().expect("a number").parse().expect("a number");
        drop(stdin);
        assert!(filter.wait().expect("ended").success() && reader.join().expect("no panic") > 0);
        assert!(peak < 32 << 10, "{part}: {peak} KiB");
    }
}
