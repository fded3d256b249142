//! Secrets that are known by what stands before them.

use super::{Matcher, Rule, rule};

/// A pattern of a command and its arguments, which end where the next command begins.
macro_rules! command {
    ($names:literal, $argument:literal) => {
        concat!(
            "(?:",
            $names,
            r#")\b(?:"(?:\\[^n\n]|[^"\\\n])*"|'[^'\n]*'|\$\([^)\n]*\)|\\[^n\n]|[^\n;|&"'\\]|[;|&][^\s;|&]|["'])*?\s"#,
            $argument
        )
    };
}

/// Names, headers, command lines and URLs.
#[rustfmt::skip]
pub(super) const CONTEXTS: [Rule; 22] = [
    rule("name", &["token", "secret", "passw", "pass", "credential", "key", "creds", "pwd", "kennwort", "jwt", "pat"], Matcher::Name),
    rule("authorization", &["authorization", "ssws"], Matcher::Context(
        r#"(?:(?:proxy-)?authorization["'`]?\]?\s*(?:[:=,]|=>)\s*\[?\s*(?:[bfru]{0,2}["'`])?(?:bearer|basic|token|negotiate|ssws|api-?key|key|flyv1)[ :]\s*|ssws\s+)([^\s"'`\\<${][^\s"'`\\]*)"#)),
    rule("authorization by any scheme", &["authorization"], Matcher::Line(
        r#"authorization["'`]?\]?\s*(?::|(?:[=,]|=>)\s*\[?\s*[bfru]{0,2}["'`])\s*\[?\s*(?:[bfru]{0,2}["'`])?([a-z][a-z0-9-]*) +([a-z_]+=(?:\\*"[^\s{$<%])|[^\s"'`\\<${][^\s"'`\\]*)"#)),
    rule("authorization header", &["authorization"], Matcher::Value(
        r#"authorization["'`]?\]?\s*:\s*\[?\s*(?:[bfru]{0,2}["'`])?(?:([a-z-]{3,})[ \t\r]*(?:$|\n|[^\sa-z0-9.(<\[:=$/+-])|([a-z-]*(?:[^\s"'`\\<${a-z-]|[a-z-][<${])[^\s"'`\\]*))"#)),
    rule("authorization value", &["authorization"], Matcher::Login(
        r#"authorization["'`]?\]?\s*(?:=>?\s*["'`]?|,\s*["'`])([^\s"'`\\<${][^\s"'`\\]*)"#)),
    rule("bearer", &["bearer"], Matcher::Context(r"bearer[ \t]+([a-z0-9._~+/-]*[0-9][a-z0-9._~+/=-]{7,})")),
    rule("cookie", &["cookie"], Matcher::Line(
        r#"cookie["'`]?\]?\s*(?:(?:[:=]|=>)\s*\[?\s*(?:[bfru]{0,2}["'`])?|,\s*\[?\s*[bfru]{0,2}["'`])([^\s"'`=;,]+=(?:[^\s;]|[ ;]+[^\s"'`=;]+=[^\s;]))"#)),
    rule("cookie of curl", &["curl"], Matcher::Context(
        command!("curl", r#"(?:-b|--cookie)[ =]?(?:["'\\]+([^\s"'`=;\\]+=[^"'`\\\n]+)|([^\s"'`=;\\]+=[^\s"'`\\]+))"#))),
    rule("url password", &["://", r":\/\/"], Matcher::Context(
        r#":(?:\\?/){2}[^\s:/"'`<>\[]*:([^\s"'`<>/${*\\][^\s"'`<>/\\]*)@"#)),
    rule("url token", &["://"], Matcher::Context(r#"://([a-z0-9_-]*[0-9][a-z0-9_-]{19,})(?::(?:x-oauth-basic)?)?@"#)),
    rule("query", &["?key=", "&key=", "sig=", "signature=", "?auth=", "&auth=", "?code=", "&code=", "&pw=", "?pw="], Matcher::Context(
        r#"[?&]?(?:(?:auth|pw)=([a-z0-9%._~+/=-]{6,})|(?:key|sig|signature|code)=([a-z%._~+/=-]*[0-9][a-z0-9%._~+/=-]{3,}|[a-z%._~+/=-]{4,}[0-9][a-z0-9%._~+/=-]*|[a-z%._~+/=-]{20,}))"#)),
    rule("command line password", &["curl", "wget", "etcdctl"], Matcher::Context(
        command!("curl|wget|etcdctl", r#"["'\\]*(?:-[a-z]{0,4}u|--user|--proxy-user)[ =]?["'\\]*[^\s:"']+:([^\s"'`\\$]+)"#))),
    rule("curl secret", &["curl"], Matcher::Context(
        command!("curl", r#"(?:(?:-E|--cert|--proxy-cert)[ =]?["'\\]*[^\s:"'/]+:([^\s"'`\\$/]+)|--oauth2-bearer[ =]["'\\]*([^\s"'`\\$]+))"#))),
    rule("mysql password", &["mysql", "mariadb"], Matcher::Context(
        command!("mysql[a-z_]*|mariadb[a-z-]*", r#"["']?-[vsfnbtrqwi]{0,3}p['"]?([^\s"'`\\$=-][^\s"'`\\]*)"#))),
    rule("sshpass password", &["sshpass"], Matcher::Context(
        r#"sshpass(?:\s+-(?:[ve]|[dfP]\s*\S+))*\s+-v?p\s*['"]?([^\s"'`\\$=-][^\s"'`\\]*)"#)),
    rule("login password", &["login"], Matcher::Context(
        r#"login[ \t](?:[^\n|;&]*?[ \t])?(?:-u[ =]?|--user(?:name)?[ =])[^\n|;&]*?[ \t]-p[ =]?['"]?([^\s"'`\\$=-][^\s"'`\\]*)|login[ \t]+(?:[^\n|;&]*?[ \t])?-p[ =]?['"]?([^\s"'`\\$=-][^\s"'`\\]*)['"]?[ \t][^\n|;&]*?(?:-u|--user(?:name)?)[ =]"#)),
    rule("sql password", &["alter user", "create user"], Matcher::Context(
        r#"(?:alter|create) user\s[^;\n]*?\sidentified\s+(?:with\s+\S+\s+)?by\s+(?:password\s+)?["']([^"'\n]+)"#)),
    rule("netrc", &["login", "machine", "password", "passwd"], Matcher::Context(
        r"(?:machine[ \t]+\S+[ \t]+)?login[ \t]+\S+[ \t]+password[ \t]+(\S+)|machine[ \t]+\S+[ \t]+password[ \t]+(\S+)|passw(?:or)?d[ \t]+([^\s:=]*[0-9][^\s:]*)[ \t]*(?:$|[\r\n])")),
    rule("docker auth", &["\"auth\"", "_auth", "\\\"auth"], Matcher::Login(
        r#"["\\_]*auth[\\"]*\s*[:=]\s*[\\"']*(?:[a-z0-9._@-]+:([^\s"'`\\<>:]+)|([a-z0-9+/_-]{8,}={1,2})|([a-z0-9+/_-]{8,})(?:$|[\s"'\\,;}&`)<|\]]))"#)),
    rule("webhook", &["/services/", "/api/webhooks/", "/workflows/", "/webhookb2/", "/triggers/"], Matcher::Context(
        r"/(?:services/T|workflows/T?|triggers/T?|api/webhooks/|webhookb2/)([a-z0-9@-]{6,}/[a-z0-9_/-]{8,})")),
    rule("mask of a CI job", &["::add-mask::"], Matcher::Context(
        r#"::add-mask::([^\s"'`\\<${%][^\r\n"'`\\]*)"#)),
    rule("asana", &["0/1", "1/1", "2/1"], Matcher::Context(r"[012]/1[0-9]{12,18}(?:/[0-9]{13,19})?:([0-9a-f]{32})")),
];
