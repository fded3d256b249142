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
pub(super) const CONTEXTS: [Rule; 20] = [
    rule("name", &["token", "secret", "passw", "pass", "credential", "key", "creds", "pwd", "kennwort", "jwt", "pat"], Matcher::Name, &[
        "GH_TOKEN=«abc» d", "forge_token=«abc» d", "GH_api_key=«abc»", "Claude_Code_Secret='«a b»' c", "my-github_pass=«abc»",
        "myGithubToken=«abc»", "MYGH_TOKEN=«abc»", "TOKEN=«abc»", "PASS=«hunter2»", "dbPassword=«hunter2»", "DB_PASSWD=«hunter2»",
        "api-key: «a1b2c3»", "apiKey: '«a1b2c3»'", "API_KEY += \"«abc»\"", "secret := \"«abc»\"", ":password => \"«abc»\"",
        "AWS_SECRET_ACCESS_KEY=«abc/def+ghi»", "aws_secret_access_key = «abc/def1»", "PRIVATE_KEY=«abc»", "CREDENTIALS=«abc»",
        "PGPASSWORD=«abc» psql", "export ANTHROPIC_API_KEY=«abc» def", "MY_VAULT_PASSWORD_2=«a/b+c==»", "CLAW_KEY = \"«abc»\"",
        "password = «swordfish»", "  token: «hunter2»", "- password: «hunter2»", "token: \"«a b c d»\"",
        "--password «x1» y", "--token=«abc» y", "tool --api-key '«a b»' y", "set -x GH_TOKEN «abc»", "ENV API_KEY «abc»",
        "Server=x;Password=«a,b»;Database=z", "?access_token=«abc»&page=2", "//registry.npmjs.org/:_authToken=«abc»",
        "AccountName=x;AccountKey=«ab+c/d==»;EndpointSuffix=y", "SharedAccessKey=«abc=»", "<password>«abc»</password>",
        r#"{"name":"API_KEY","value":"«abc»"}"#, "os.environ[\"TOKEN\"] = \"«abc»\"", "> X-Vault-Token: «s.abc»", "Private-Token: «abc»",
        "-H 'x-api-key: «abc»' url", "-H 'X-Goog-Api-Key:«abc»'", "PASSWORD=«pa(ss$1»", "\"password\": \"«123456»\"",
        "the token: «a1b2c3d4e5», it is new", "spring.datasource.password=«abc»", "setenv GH_TOKEN «abc»", "$env:GH_TOKEN = \"«abc»\"",
        r#"{"github_token":"«abc»","x":1}"#, r#"{"t":"anthropic_api_key=«abc»\nnext"}"#, r#"{"text":"{\"GH_TOKEN\":\"«a\\\"b»\"}"}"#,
        r#""{\"t\":\"GH_TOKEN=\\\"«a b»\\\" c\"}""#, r#"{"t":"GH_TOKEN='«abc»"}"#, "secret_id: «a1b2c3»", "token%3D«abcdef1»%26x%3D1",
        "GITHUB_PAT=«abc»", "${PASSWORD:-«hunter2»}", "JWT=«abc»", "\"jwt\": \"«abc»\"", "OPENAI_KEY=«abc»", "stripeKey: '«abc1»'", "PASSWORD='«the cat sat»'",
        "DB_PASSWORD=\"«correct horse battery of staple»\"", r#"{"api_keys": ["«a1b2c3d4»", "«b2c3d4e5»"]}"#,
        "password=&quot;«abc»&quot;", "password %3D «abc1»",
        "TOKEN = b\"«abc»\"", "PASSWORD=$'«a b»'", "password: «swordfish», and more", "api_key = «abcdefghijklmnopqrst»", "f(password=«hunter2»)", "DB_PASSWORD_OLD=«abc1»", "token=«/AbCdEfGhIjKlMnOpQrStUvWxYz0123456789»", "PASSWORD=«+a1»", "password=«%abc1»", "password=«a:»", "PASSWORD=«$1abc»",
        "spring.datasource.password=«kX9|mQ2vL7pR»", "password: «kX9[mQ2vL7pR»", "password: «kX9(mQ2v»", "password: «kX9<mQ2v»", "password: «kX9mQ2v?»", "x --password=«kX9|mQ2v» y", "api_key=«kX9mQ(2v»",
        r#"{"password":"«kX9(mQ)2vL7pR»"}"#, "DB_PASSWORD=\"«kX9(mQ)2vL7pR»\"", "PGPASSWORD='«kX9(mQ)2v»'", "password: «/8Zp;HT]pa(>e9U»", "password: «+kX9(mQ]2v»",
        "SSHPASS=«abc1»", "Ocp-Apim-Subscription-Key: «0a1b2c3d»", "aws configure set aws_secret_access_key «abc/d1»", "<add key=\"password\" value=\"«abc»\"/>",
        "GH_TOKEN='«abc'\"'\"'def123»' x", "GH_TOKEN='«abc'\\''def123»' x", "GH_TOKEN=«abc\\ def123» x", "TOKEN=`«a1b2c3»`",
        "PASSWORD=«a/Authorization:» Bearer «kX9mQ2vL7»", "TOKEN=«x-Cookie:» «sid=abc»", "password=«foo/curl» -u bob:«kX9»",
        "\"--api-key «x1»\"", "'--api-key «x1»'", "x\t--api-key «x1»", "-password «x1» y", r#"{"t":"x\n--api-key «x1»"}"#, "\x1b[1m--api-key «x1»", "a%0A--api-key «x1»", r#"{"t":"a\nGITHUB_PAT=«abc1»"}"#, "--api-key '«it'\"'\"'s1»' x", "--token «TOKEN1»", "GH_TOKEN=\t«abc» d",
        "TOKEN = rb\"«abc»\"", "TOKEN = #\"«abc»\"#", "token = `«a1 b2c3d4»`", "token: `«a1 b2c3d4»`", "token=`«swordfish»`", "if token == \"«kX9mQ2vL7»\":",
        "{name:\"API_KEY\",value:\"«abc»\"}", "\"name\": \"API_KEY\", \"value\": \"«abc»\"", "TOKEN => \"«abc1»\"", "\"token\" => \"«abc1»\"", "<password >«abc»</password>",
        r#"{"t":"GH_TOKEN=\"«it»'s\nx\" y"}"#, "?apiKey: '«a1b2c3»'", r#"token: "«a1b2c3\"»"#, r"token: «a1b2c3»\",
        "password: «swordfish» ", "password: «swordfish»\t", "GH_TOKEN = «a_b»", "api_key = «abcdefghijklmnop»", "f(API_KEY=«swordfish»)", "see MY_TOKEN:«abc»",
        "see PASSWD:«abc»", "see client_secret:«abc»", "see api-key:«abc»", "curl -H token:«swordfish»", "f(password: «swordfish»)", "token: «a1b2c3»]",
        "AccountKey=«ab+c/d==»;Endpoint.Suffix=y", "client_secrets=«abc1»", "TOKEN=«ab;=c»", "PASSWORD=«&abc=1»", "PASS=«a»;b=c;y=2",
        r#"{"args":["-y","mcp-x","--api-key","«kX9mQ2vL7pR4»"]}"#, "Command '['x', '--password', '«swordfish»']'", r#"execve("/usr/bin/x", ["x", "--token", "«kX9a1»"], 0x7)"#,
        "('X-Api-Key', '«v»')", "[ 'X-Api-Key', '«a1b2c3»', 'Host', 'x' ]", "req.set('x-api-key','«v»')", "(b'x-api-key', b'«v»')", "map[X-Api-Key:[«a1b2c3»]]",
        r#"http.Header{"X-Api-Key": []string{"«v»"}}"#, "'x-api-key': [ '«v»' ],", "proxy_set_header X-Api-Key \"«v»\";", "setenv(\"API_KEY\", \"«v»\", 1)",
        "define('DB_PASSWORD', '«v»');", "OrderedDict([('password', '«hunter2»')])", r#"{"x-api-keys":["«a1b2c3»","«b2c3d4»"]}"#,
        "const TOKEN: &str = \"«v»\";", "API_KEY: str = \"«v»\"", "API_KEY: Final[str] = \"«v»\"", "export const API_KEY: string = '«v»';", "val password: String = \"«v»\"",
        "var apiKey string = \"«v»\"", "#define API_KEY \"«v»\"", "password: Some(\"«v»\"),", "password=SecretStr('«v»')",
        "<password encrypted=\"false\">«v»</password>", "<password><![CDATA[«v»]]></password>", "<ns:password>«v»</ns:password>", "<wsse:Password Type=\"x\">«v»</wsse:Password>",
        "<property name=\"password\">«v»</property>", "<add value=\"«v»\" key=\"password\"/>", "<key>password</key><string>«v»</string>", "- {name: DB_PASSWORD, value: \"«v»\"}",
        "GITHUB_TOKENS=«a1,b2»", "GITHUB_TOKENS=«1a2b,3c»", "claude_tokens: \"«abc»\"", "MYVAULT_KEY=«abc»", "[\"x\"] password=«0123-4567»", "{x} password=«1234-5678»",
        "PresharedKey = «a1b2c3d4e5+/a=»", "<entry key=\"password\">«v»</entry>", "<prop key=\"password\">«v»</prop>", "<param name=\"password\">«v»</param>", "<string name=\"api_key\">«v»</string>",
        "let password = String::from(\"«v»\");", "password := []byte(\"«v»\")", "add_header X-Api-Key \"«v»\";", "const apiKey string = \"«v»\"", "password: «aB3dE6gH=»",
        "if (token === \"«kX9mQ2vL7»\")", "TOKEN ?= «abc1»", "apiKey?: string = \"«v»\"", "<add value=\"«v»\" name=\"password\"/>", "<key>password</key> <string>«v»</string>",
        "password: !!str «v»", "password: &a «v1»", "npm config set //registry.npmjs.org/:_authToken «v1»",
        "<password kind=\"x\">«v1»<br/>", "password: «Swordfish=x1»", "let password: String='«a b»';", "GH_TOKEN=«Ey» = \"abc\"", "<add value=\"\" key=\"password\" value=\"«v1»\"/>",
        r#"{"t":"define('DB_PASSWORD',\n '«v»')"}"#, "[\"-api_key\", \"«abc1»\"]", "f(\"password\", \"«Ab»\")", "f(\"API_KEY\", \"«a1_b2»\")", "password: «Some(b2c3»", "password=<![CDATA[«v1]]>»",
        "\"password\": &a «v1»", "password: !!str «v1» ", "x-api-key=[«a1b2c3»]", "x-api-key: «[a»",
        "TOKEN = «rbu»\"x y\"", "let password = r########\"«v1»\"########;", "TOKEN=«r#########»\"v1\"", r#"DB_PASSWORD="«a\\\" b»""#, r#"--api-key '«a1'"'"'b»"#, r#"GH_TOKEN="«a1\"»'b c"#,
        r#"{"t":"GH_TOKEN='«a\nb»' c"}"#, r#"{"GH_TOKEN":"«a\"\nb»"}"#, "`token=«abc1»` x",
    ], &[
        "", "GH_TOKEN", "GH_TOKEN=", "GH_TOKEN= ", "GH_TOKEN=\"\"", "GITHUB_REPOSITORY=abc", "GH_TOKEN=\\n", "max_tokens=4096",
        "input_tokens=12", "\"cache_read_input_tokens\":123", "monkey=banana", "keyboard=us", "highpass=low", "FORGE_API=http://x/y",
        "GH_TOKEN=$FORGE_TOKEN", "TOKEN=${TOKEN}", "key = process.env.API_KEY", "token = os.environ[\"TOKEN\"]",
        "let token = std::env::var(\"API_KEY\")?;", "token: str", "password: null", "password: true", "password: \"\"",
        "token: <your-token>", "--token <TOKEN>", "--token TOKEN", "the token: it expires soon", "token=4096", "TOKEN=/run/secrets/x",
        "token_type: Bearer", "\"token_type\":\"Bearer\"", "api_key=api_key", "password = getpass.getpass()", "def f(token: str = None):",
        "--- PASS: TestToken (0.00s)", "use the --password option", "print(\"token: \" + token)", "input(\"Password: \")",
        "password: Option<String>,", "apiKeySource\":\"ANTHROPIC_API_KEY\"", "self.token = token", "token == null", "Token::new(a)",
        "\"password\": \"Enter your password\"", "GH_TOKEN: ${{ secrets.GITHUB_TOKEN }}", "tokenizer=gpt2", "primary_key=id", "OLDPWD=x1", "CLAUDE_TOKENS_LEFT=abc", "NIGHTLY_KEY=abc",
        "PATH=/usr/bin:/bin", "PATHS=abc", "pat=abc", "JWT_ALGORITHM=RS256", "LANGFUSE_PUBLIC_KEY=pk1", "PASSWORD='Enter your password'",
        r#"{"tokens":["the","cat"]}"#, r#"{"password":["required","min:8"]}"#, "token: T,", "    pub token: Token,", "fn f(token: T) -> U {",
        "password =~ \"ab1\"", "token>a1<b", "Token: it expires soon", "secret = swordfish", "secret = first_second_third", "f(password=some_value)", "the secret:swordfish", "see the token: swordfish", "KEY_GITHUB=abc", "password=%s", "TOKEN=%GH_TOKEN%", "password=#{pw1}", "password: *anchor", "secret: config.production.value,", "password: \"get_it(1)\"", "api_key = os.key",
        "secret: SecretString,", "password: Password {", "key: u64,", "token: Vec<u8>,", "token: T", "api_key=os.environ['X']",
        r#"{"github_token":null,"password":12345678}"#, "const { token } = props;", "sort_key=abc", "PWD=work", "token => token.value",
        "token: Token![;],", "token = parse_token2(s)", "secret = (LPBYTE)pw1;", "password: tokens[0]", "key: Option<Base64>", "_token = r'(?:[^x]+)' % y", "passphrase: &lt;id&gt;[,x]",
        "fetch(u,{credentials:'same-origin'})", "{\"credentials\":\"include\"}", "--color-token-primary: #ff00aa", "TOKEN=`cat f`", "token=`cat f1`", "let secret = r#\"{{\"a\"",
        "jwts=abc1", "HIGH_KEY=abc", "claude_tokens=4096", "CLAUDE_MAX_TOKENS: 4096", "tokens=abc1", "tokens: abc1", "TOKEN=$(cat f)", "config set password_file x1", "<add key=\"password\" value=\"\"/>", "<add value=\"\" key=\"password\"/>", "<a name=\"password\">Swordfish1</a>",
        "m[token] = \"a1b2c3\"", "${TOKEN=", "TOKEN: str|None", "TOKEN = str|None", "api-key = str|None", "TOKEN=\"redacted\"", "TOKEN=`get_pw(1)`", "TOKEN=`whoami`",
        "if (password == \"swordfish\")", "\"token\" x", "set -x token value=\"a1b2c3\"", "--password|a1b2", "see \"--password\" there", "$--api-key x1 y",
        "reset -x GH_TOKEN abc", "set my GH_TOKEN abc", "ENV token a1b2", "\"a\" \"token: \"x1y2\"", "token => \"abc1\"", "apiKey: '", "GH_TOKEN=\"", r"GH_TOKEN=\$TOKEN",
        "token == a1b2c3", "x password = swordfish", "password = some words here", "api_key = abcdefghijklmno", "f(a, password=some_value)", "see Private-Token: abc",
        "PASS: test1234", "--token VALUE", "--token MY_VALUE]", "--token --other1", "a*token: swordfish", "the \"x\" secret: swordfish", "password={pw1}", "def f(token: str):",
                "passenv: ['GH_TOKEN', 'PATH']", "env=[\"API_KEY\", \"HOME\"]", "allowedHeaders: ['X-Api-Key', 'content-type']", "add_argument('--token', '-t', help='x')", "option('--api-key', 'API key to use')",
        "f(\"API_KEY\", \"HOME\")", "f(\"X-Api-Key\", \"content-type\")", "f(\"API_KEY\", \"user_id\")", "f(\"API_KEY\", \"-t1\")", "f(\"API_KEY\", \"a key\")", "f(\"token\", \"abc1\", 1)", "env=[\"API_KEY\", \"home\"]",
        "t(\"password\", \"Password\")", "fields = (\"password\", \"email\")", r#"{"input":{"pattern":"--token","path":"src"}}"#, r#"{"t":["--token"],"n":[1]}"#, "f(\"token\", \"abc\", 1)", "getenv(\"API_KEY\", \"\")", "password: &str, x: u8", "token: String = f(x)", "<span class=\"token\">const</span>",
        "<label for=\"password\">Password</label>", "fn f(token: &str) -> &str { \"x\" }", "const token = f()", "password: &mut String", "<token a=b/>", "type Token = { token: string }; x = 'y'",
        "password: kept = \"v\"", "<password.min a=\"b\">8x</password.min>", "<password field>abc</password>", "<password a=x<b>v1</b>", "<token a=b/>abc1</b>", "[\"API_KEY\", \"value\"\"x1\"]",
        "x value=\"v1\" key=\"password\"", "see --token', 'v1'", "f(\"API_KEY\", \"a b\")", "[\"--token\", \"value\"]", "[\"token\", \"abc1234\"]", "password=&a v1", "see the token: &a \"v1\"",
        "password: &anchor", "password: &self.a v1", "password: &*a v1", "api-key:", "x-api-key: [header]", "x-api-key: [page1]", "x-api-key: [", "please set aws_secret_access_key here1", "npm config get api_key x1",
        "t(\"tokens\", [\"utf8a1\", \"utf8b2\"])", "<input value=\"v1\" name=\"password hint\"/>", r#"{"t":"GH_TOKEN=\"\nnext1 line"}"#, "{name: API_KEY, value: other}",
    ]),
    rule("authorization", &["authorization", "ssws"], Matcher::Context(
        r#"(?:(?:proxy-)?authorization["'`]?\]?\s*(?:[:=,]|=>)\s*\[?(?:[bfru]{0,2}["'`])?(?:bearer|basic|token|negotiate|ssws|api-?key|key|flyv1)[ :]\s*|ssws\s+)([^\s"'`\\<${][^\s"'`\\]*)"#), &[
        "Authorization: Bearer «abc»", "Authorization: Bearer «a1b2c3d4» f6 x", "-H 'Authorization: token «abc»' x", "Proxy-Authorization: Basic «YTpi»",
        r#"{"Authorization":"Bearer «abc»"}"#, r#"{"t":"-H \"Authorization: Bearer «abc»\" x"}"#, "SSWS «00abc»",
        ".header(\"Authorization\", \"Bearer «abc»\")", "headers={\"Authorization\": f\"Bearer «abc»\"}", r#"{"Authorization":["Basic «dXNl»"]}"#,
    ], &["Authorization: Bearer $TOKEN", "Authorization: `Bearer ${token}`", "authorization: <token>", "authorization failed",
        "headers={\"Authorization\": f\"Bearer {token}\"}", "headers[\"Authorization\"] = f\"Bearer {token}\"", "Authorization: Bearer null", "Authorization: Bearer %s"]),
    rule("authorization by any scheme", &["authorization"], Matcher::Line(
        r#"authorization["'`]?\]?\s*(?::|(?:[=,]|=>)\s*\[?[bfru]{0,2}["'`])\s*\[?(?:[bfru]{0,2}["'`])?([a-z][a-z0-9-]*) +([a-z_]+=(?:\\*"[^\s{$<%])|[^\s"'`\\<${][^\s"'`\\]*)"#), &[
        "Authorization: OAuth «2YotnFZFEjr1zCsicMWpAA»", "Authorization: Klaviyo-API-Key «pk_0a1b2c»", "Authorization: SharedKey «acc:aGVsbG8gd29ybGQ1»",
        "Authorization: Digest «username=\"bob\", qop=auth, response=\"0a1b\"» ", "-H 'Authorization: MAC «id=\"h480\", mac=\"abc\"»' x",
        r#"{"Authorization":"OAuth «oauth_consumer_key=\"a\", b=\"c\"»","x":1}"#, r#"{"t":"> Authorization: Digest «a=\"b\", c=\"d\"»\nHost: x"}"#,
        r#"{"t":"{\"t\":\"a Authorization: Digest «a=\\\"b\\\", c=\\\"d\\\"»\",\"x\":1}"}"#, "Authorization: «AWS4-HMAC-SHA256» «Credential=AKIAIOSFODNN7EXAMPLE/20261123, Signature=ab»",
        "('Authorization', 'Splunk «a1b2c3d4»')",
        "('Authorization', 'Splunk «a1b2c3=»')", r#"{"t":"say \"x\" Authorization: Digest «a=\"b\"»","n":1}"#,
    ], &["Authorization: required for all of them", "Authorization: see oauth2-server", "Authorization: OAuth ${token}", "Authorization: Digest user1=\"{user}\"", "Authorization: Digest username=\"{user}\"",
        "authorization = await f1(token2)"]),
    rule("authorization header", &["authorization"], Matcher::Value(
        r#"authorization["'`]?\]?\s*:\s*\[?(?:[bfru]{0,2}["'`])?(?:([a-z-]{3,})[ \t\r]*(?:$|\n|[^\sa-z0-9.(<\[:=$/+-])|([a-z-]*(?:[^\s"'`\\<${a-z-]|[a-z-][<${])[^\s"'`\\]*))"#), &["authorization: «abc»", "\"authorization\": \"«abc»\"", "Authorization: «a1b2c3»", "Authorization: «Swordfish»"],
        &["authorization: string;", "authorization: authHeader(token),", "authorization: Authorization,", "{ authorization: null }", "authorization: )", "authorization: str|None"]),
    rule("authorization value", &["authorization"], Matcher::Login(
        r#"authorization["'`]?\]?\s*(?:=>?\s*["'`]?|,\s*["'`])([^\s"'`\\<${][^\s"'`\\]*)"#),
        &["AUTHORIZATION=«a1b2c3d4e5»", "setRequestHeader('Authorization', '«a1B2c3d4e5»')", "headers[\"Authorization\"] = \"«dXNlcjpwYXNz»\""],
        &["allowedHeaders: ['Authorization', 'Content-Type']", "Access-Control-Allow-Headers: Authorization, Content-Type",
        "authorization = authorization.split()", "authorization = req.headers[0]", "Authorization = ),"]),
    rule("bearer", &["bearer"], Matcher::Context(r"bearer[ \t]+([a-z0-9._~+/-]*[0-9][a-z0-9._~+/=-]{7,})"),
        &["Bearer «abcdefgh12345678»", "Bearer%20«abcdefgh12345678»"], &["bearer authentication-scheme", "Bearer $TOKEN"]),
    rule("cookie", &["cookie"], Matcher::Line(
        r#"cookie["'`]?\]?\s*(?:(?:[:=]|=>)\s*\[?\s*(?:[bfru]{0,2}["'`])?|,\s*\[?\s*[bfru]{0,2}["'`])([^\s"'`=;,]+=(?:[^\s;]|[ ;]+[^\s"'`=;]+=[^\s;]))"#),
        &["Cookie: «a=b; c=d»", "{'Cookie': '«a=b; c=d»', 'x': 'y'}", "cookie = '«a=b; c=d»' + x", "Set-Cookie: «sid=abc; Path=/»", r#"{"set-cookie":"«sid=abc»"}"#, r#"{"set-cookie":["«sid=abc; Path=/»"],"x":1}"#,
        "-H 'X-Cookie: «a=b»' x c=d", "Cookie: «theme={\"a\":1}; session=kX9»", "Cookie: «a=\"b c\"; d=e»", "-H 'Cookie: «a=\"b c\"; d=e»' x", r#"{"t":"Cookie: «a=\"b\"; c=d»\r\nHost: x"}"#,
        "('Cookie', '«a=b»')", "Cookie: «_ga=; sid=kX9mQ2»", "Set-Cookie: «foo=bar»"], &["cookie: yes", "cookie = jar", "a cookie, domain='%s' x"]),
    rule("cookie of curl", &["curl"], Matcher::Context(
        command!("curl", r#"(?:-b|--cookie)[ =]?(?:["'\\]+([^\s"'`=;\\]+=[^"'`\\\n]+)|([^\s"'`=;\\]+=[^\s"'`\\]+))"#)),
        &["curl -b \"«sid=abc; c=d»\" x", "curl -s --cookie «sid=abc» x", r#"[ "curl", "-b", "«sid=abc; c=d»" ]"#, r#"run("curl.exe", "-b", "«sid=abc; c=d»")"#,
        r#"{"./my_x-1.0/curl", "-b", "«sid=abc; c=d»"}"#], &["curl -b jar.txt x", "curl -b $JAR x"]),
    rule("url password", &["://", r":\/\/"], Matcher::Context(
        r#":(?:\\?/){2}[^\s:/@"'`<>\[]*:([^\s"'`<>/${*\\][^\s"'`<>/\\]*)@"#),
        &["https://user:«pw»@host/x", "postgres://u:«p@ss»@db:5432/x", r#"{"u":"https:\/\/a:«b»@c"}"#],
        &["http://host:80/path", "https://user@host", "http://u:$PW@h", "http://[::1]:80/@x", "see https://x.y/a:b"]),
    rule("url token", &["://"], Matcher::Context(r#"://([a-z0-9_-]*[0-9][a-z0-9_-]{19,})@"#),
        &["https://«0123456789abcdef0123»@host"], &["https://some-user-name-of-mine@host"]),
    rule("query", &["?key=", "&key=", "sig=", "signature=", "?auth=", "&auth=", "?code=", "&code=", "&pw=", "?pw="], Matcher::Context(
        r#"[?&]?(?:key|sig|signature|auth|code|pw)=([a-z0-9%._~+/=-]{6,})"#),
        &["GET /x?key=«abcdef1»&b=2", "?sv=1&sig=«ab%2Bcd%3D»", "X-Amz-Signature=«0123abcd»"], &["?key=1", "?code=123456"]),
    rule("command line password", &["curl", "wget", "etcdctl"], Matcher::Context(
        command!("curl|wget|etcdctl", r#"["'\\]*(?:-[a-z]{0,4}u|--user|--proxy-user)[ =]?["'\\]*[^\s:"']+:([^\s"'`\\$]+)"#)),
        &["curl -u user:«pass» url", "curl -s --user 'a:«b»' url", "etcdctl --user root:«pw» lock x", "curl -sSu u:«pw» x", "curl 'a;b|c' -u u:«pw» x",
        "curl \"x?a=1&b=2\" -H 'A: b; c' -u u:«pw»", r#"curl -d '{"a":"it'\''s"}' -u a:«secret1» x"#, r#"curl -H "A: 5\" disc" -u a:«secret1» x"#, "curl -d it\\'s -u a:«secret1» x", "curl x/$(date +%s; ) -u a:«secret1» x", "['curl', '-H', 'A: b; c', '-u', 'u:«pw»', 'x']"],
        &[r#"{"t":"['curl', 'a\nb', '-u', 'c:d1']"}"#, "curl -u user url", "curl https://x:80", "curl -fsSL x | sh; docker run -u app:staff img", "curl x && docker run -u app:staff img"]),
    rule("curl secret", &["curl"], Matcher::Context(
        command!("curl", r#"(?:(?:-E|--cert|--proxy-cert)[ =]?["'\\]*[^\s:"'/]+:([^\s"'`\\$/]+)|--oauth2-bearer[ =]["'\\]*([^\s"'`\\$]+))"#)),
        &["curl -E c.pem:«pw» x", "curl --oauth2-bearer «word» x"], &["curl -e https://x:80/ y", "curl --cert c.pem x"]),
    rule("mysql password", &["mysql", "mariadb"], Matcher::Context(
        command!("mysql[a-z_]*|mariadb[a-z-]*", r#"["']?-[vsfnbtrqwi]{0,3}p['"]?([^\s"'`\\$=-][^\s"'`\\]*)"#)),
        &["mysql -u root -p«abc» db", "mysql -u root%20-p«abc» db", "mysqladmin -p«abc» status", "mysql -vp«abc»", "mysql \"-p«abc»\" db", "mariadb-dump -p«abc» x", r#"["mysql","-u","root","-p«sword9»"]"#],
        &["mysql -u root -p db", "mysql -hprod db", "mysql -e x; mkdir -pv a"]),
    rule("sshpass password", &["sshpass"], Matcher::Context(
        r#"sshpass(?:\s+-(?:[ve]|[dfP]\s*\S+))*\s+-v?p\s*['"]?([^\s"'`\\$=-][^\s"'`\\]*)"#),
        &["sshpass -p«abc» ssh x", "sshpass -p «S3cretPw9» ssh x", "sshpass -v -P word -p '«abc»' ssh x", "sshpass -vp «abc» ssh x"],
        &["sshpass -e ssh -p 2222 x", "sshpass -f pw ssh x mkdir -p a/b"]),
    rule("login password", &["login"], Matcher::Context(
        r#"login[ \t](?:[^\n|;&]*?[ \t])?(?:-u[ =]?|--user(?:name)?[ =])[^\n|;&]*?[ \t]-p[ =]?['"]?([^\s"'`\\$=-][^\s"'`\\]*)|login[ \t]+(?:[^\n|;&]*?[ \t])?-p[ =]?['"]?([^\s"'`\\$=-][^\s"'`\\]*)['"]?[ \t][^\n|;&]*?(?:-u|--user(?:name)?)[ =]"#),
        &["docker login -u x -p «S3cretPw9»", "docker login -p «S3cretPw9» -u x ghcr.io", "helm registry login r.io -u x -p «abc»", "docker login -ux -p«abc»", r#"["docker","login","-u","x","-p","«abc»"]"#],
        &["docker login -u x", "docker login -u x --password-stdin", "login -p -h host", "docker login -u x -p $PW"]),
    rule("netrc", &["login", "machine", "password", "passwd"], Matcher::Context(
        r"(?:machine[ \t]+\S+[ \t]+)?login[ \t]+\S+[ \t]+password[ \t]+(\S+)|machine[ \t]+\S+[ \t]+password[ \t]+(\S+)|passw(?:or)?d[ \t]+([^\s:=]*[0-9][^\s:]*)[ \t]*(?:$|[\r\n])"),
        &["machine x login y password «abc»", "  password «a1b2c3»"],
        &["password required", "reset the password", "password authentication is off", "login page asks password twice"]),
    rule("docker auth", &["\"auth\"", "_auth", "\\\"auth"], Matcher::Login(
        r#"["\\_]*auth[\\"]*\s*[:=]\s*[\\"']*(?:[a-z0-9._@-]+:([^\s"'`\\<>:]+)|([a-z0-9+/_-]{8,}={1,2})|([a-z0-9+/_-]{8,})(?:$|[\s"'\\,;}&`)<|\]]))"#),
        &[r#"{"auth":"«dXNlcjpwYXNz»"}"#, "_auth=«dXNlcjpwYXNz»", "`x:_auth=«dXNlcjpwYXNzd29yZDE=»`", "<b>_auth=«dXNlcjpwYXNz»</b>", "_auth=«dXNlcjpwYXNzd29yZDE=».", "(_auth=«dXNlcjpwYXNz»)", "_auth=«dXNlcjpwYXNzMQ»", r#"{"auth":"«a1b2c3d4e5f6a7»"}"#, "export BASIC_AUTH=username:«pass99»"],
        &[r#""auth":"none""#, r#"{"auth":"passthrough"}"#, "CLIENT_AUTH: \"clientAuth\"", "SERVER_AUTH = ObjectIdentifier(\"1.3.6.1\")",
        "USE_AUTH=disabled", "X_AUTH=localhost:5000", "USE_AUTH=oauth2"]),
    rule("webhook", &["/services/", "/api/webhooks/", "/workflows/", "/webhookb2/", "/triggers/"], Matcher::Context(
        r"/(?:services/T|workflows/T?|triggers/T?|api/webhooks/|webhookb2/)([a-z0-9@-]{6,}/[a-z0-9_/-]{8,})"),
        &["https://hooks.slack.com/services/T«00000000/B00000000/abcdefabcdef»", "https://discord.com/api/webhooks/«123456789/abcdef-ABC»"],
        &["src/services/Token.ts"]),
    rule("asana", &["0/1", "1/1", "2/1"], Matcher::Context(r"[012]/1[0-9]{12,18}(?:/[0-9]{13,19})?:([0-9a-f]{32})"),
        &["1/1234567890123456:«0123456789abcdef0123456789abcdef»"], &["1/12"]),
];
