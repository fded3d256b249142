//! Token refresh of the fake claude: under no lock at all, under the older versions' lock (the protocol of npm's
//! proper-lockfile, at the real path's sibling), or under the newer ones' two, with an owner's file; as both were measured.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::thread::{self, sleep};
use std::time::{Duration, SystemTime};

use nix::unistd::gethostname;
use serde_json::{Value, json};

/// Variable with the stand-in's address.
const API: &str = "FAKE_API";

/// Time before the expiry from which a refresh is due.
const DUE: Duration = Duration::from_secs(5 * 60);

/// The kinds of lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Legacy,
    Modern,
}

/// Refreshes the token if that is due. `what`: `none`, `legacy` or `modern`, and behind it the step at which to stay for ever:
/// `locked`, `posted`, `half` (the file is half-written), `saved`. `leave posted`: it fails at that step, as the real one does over a mistake in
/// its arguments: the locks are removed, the owner's file is not; so does `leave written`, once it has written the file with the old login. Each step is printed as it is reached.
pub(crate) fn refresh(what: &str) -> io::Result<()> {
    let (kind, stay_at) = what.split_once(' ').unwrap_or((what, ""));
    refresh_if(kind, stay_at, is_due)
}

/// Refreshes the token of credentials that want it by `is_due`.
fn refresh_if(kind: &str, stay_at: &str, is_due: impl Fn(&Value) -> bool) -> io::Result<()> {
    let kind = match kind {
        "none" => Kind::None,
        "legacy" => Kind::Legacy,
        "modern" => Kind::Modern,
        _ => return Err(io::Error::other("none, legacy or modern")),
    };
    let steps = Steps { stay_at };
    let config_dir = config_dir();
    let file = config_dir.join(".credentials.json");
    if !is_due(&read(&file)?) {
        return super::say("fresh");
    }
    let mut locks = Locks::take(kind, &config_dir)?;
    steps.reach("locked")?;
    let mut credentials = read(&file)?;
    if !is_due(&credentials) {
        return super::say("fresh"); // somebody else was faster
    }
    super::say("posting")?;
    let asked = json!({"grant_type": "refresh_token", "refresh_token": credentials["claudeAiOauth"]["refreshToken"]});
    let answer = minreq::post(format!("{}/v1/oauth/token", api()?)).with_body(asked.to_string()).send();
    let answer = answer.map_err(io::Error::other)?;
    let tokens: Value = serde_json::from_slice(answer.as_bytes())?;
    if answer.status_code != 200 {
        return Err(io::Error::other(tokens["error"].as_str().unwrap_or("no answer").to_owned()));
    }
    steps.reach("posted")?;
    if stay_at == "leave written" {
        save(kind, &file, &credentials.to_string(), &steps)?; // as for a token of an MCP server
    }
    if stay_at.starts_with("leave ") {
        locks.owner = None;
        return Err(io::Error::other("left in the midst of a refresh"));
    }
    let life = Duration::from_secs(tokens["expires_in"].as_u64().unwrap_or_default());
    let login = &mut credentials["claudeAiOauth"];
    login["accessToken"] = tokens["access_token"].clone();
    login["refreshToken"] = tokens["refresh_token"].clone();
    login["expiresAt"] = milliseconds(SystemTime::now() + life).into();
    save(kind, &file, &credentials.to_string(), &steps)?;
    steps.reach("saved")?;
    super::say("refreshed")
}

/// Asks the API something, with the access token that is there now. One that is refused is refreshed under the locks of `kind`, if one
/// is named, whenever it expires: as from 2.1.126 on.
pub(crate) fn ask(kind: &str) -> io::Result<()> {
    let token = || Ok::<_, io::Error>(read(&config_dir().join(".credentials.json"))?["claudeAiOauth"]["accessToken"].clone());
    let refused = token()?;
    let mut status = status_with(&refused)?;
    if status == 401 && !kind.is_empty() {
        refresh_if(kind, "", |credentials| credentials["claudeAiOauth"]["accessToken"] == refused)?;
        status = status_with(&token()?)?;
    }
    match status {
        200 => super::say("answered"),
        status => Err(io::Error::other(format!("the API says {status}"))),
    }
}

/// Status of the API's answer to a question with this access token.
fn status_with(token: &Value) -> io::Result<u16> {
    let question = minreq::post(format!("{}/v1/messages", api()?));
    let question = question.with_header("authorization", format!("Bearer {}", token.as_str().unwrap_or_default()));
    Ok(question.with_body("hi").send().map_err(io::Error::other)?.status_code)
}

struct Steps<'a> {
    stay_at: &'a str,
}

impl Steps<'_> {
    fn reach(&self, step: &str) -> io::Result<()> {
        super::say(step)?;
        if self.stay_at != step {
            return Ok(());
        }
        loop {
            sleep(Duration::from_secs(600));
        }
    }
}

/// Directory of login and locks; an empty variable stands for `~/.claude`.
fn config_dir() -> PathBuf {
    let named = ["CLAUDE_SECURESTORAGE_CONFIG_DIR", "CLAUDE_CONFIG_DIR"].into_iter().find_map(env::var_os);
    let named = named.filter(|path| !path.is_empty()).map(PathBuf::from);
    named.unwrap_or_else(|| Path::new(&env::var_os("HOME").unwrap_or_default()).join(".claude"))
}

fn api() -> io::Result<String> {
    env::var(API).map_err(io::Error::other)
}

fn milliseconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn read(file: &Path) -> io::Result<Value> {
    // A file that is just being rewritten is read again.
    for _ in 0..50 {
        if let Ok(credentials) = serde_json::from_slice(&fs::read(file)?) {
            return Ok(credentials);
        }
        sleep(Duration::from_millis(10));
    }
    Err(io::Error::other("not logged in"))
}

fn is_due(credentials: &Value) -> bool {
    credentials["claudeAiOauth"]["expiresAt"].as_u64().is_none_or(|at| at < milliseconds(SystemTime::now() + DUE))
}

/// The newer versions replace the file; the older ones rewrite it in place.
fn save(kind: Kind, file: &Path, text: &str, steps: &Steps) -> io::Result<()> {
    let temporary = file.with_extension("tmp");
    let path = if kind == Kind::Modern { &temporary } else { file };
    let mut open = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let (head, tail) = text.split_at(text.len() / 2);
    open.write_all(head.as_bytes())?;
    steps.reach("half")?;
    open.write_all(tail.as_bytes())?;
    if kind == Kind::Modern { fs::rename(temporary, file) } else { Ok(()) }
}

/// The locks of a kind, held; kept fresh by a thread that ends with the process.
struct Locks {
    dirs: Vec<PathBuf>,
    owner: Option<PathBuf>,
}

impl Locks {
    fn take(kind: Kind, config_dir: &Path) -> io::Result<Self> {
        let mut sibling = fs::canonicalize(config_dir)?.into_os_string();
        sibling.push(".lock");
        let newer = config_dir.join(".oauth_refresh.lock");
        let mut locks = Self { dirs: Vec::new(), owner: None };
        let dirs = match kind {
            Kind::None => vec![],
            Kind::Legacy => vec![(PathBuf::from(sibling), 10)],
            Kind::Modern => vec![(newer, 60), (sibling.into(), 60)],
        };
        for (dir, stale_after) in dirs {
            make(&dir, Duration::from_secs(stale_after))?;
            locks.dirs.push(dir);
        }
        if kind == Kind::Modern {
            let owner = config_dir.join(".oauth_refresh.lock.owner");
            let mut name = our_name()?;
            for (dir, key) in locks.dirs.iter().zip(["lockBirthtimeMs", "legacyLockBirthtimeMs"]) {
                name[key] = milliseconds(fs::metadata(dir)?.created()?).into();
            }
            fs::write(&owner, name.to_string())?;
            locks.owner = Some(owner);
        }
        let dirs = locks.dirs.clone();
        thread::spawn(move || {
            loop {
                sleep(Duration::from_secs(4));
                for dir in &dirs {
                    // It is gone once the refresh is over.
                    let _ = File::open(dir).and_then(|dir| dir.set_modified(SystemTime::now()));
                }
            }
        });
        Ok(locks)
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        let _ = self.owner.take().map(fs::remove_file);
        for dir in self.dirs.drain(..).rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

fn make(dir: &Path, stale_after: Duration) -> io::Result<()> {
    for _ in 0..40 {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => return other,
        }
        let age = fs::metadata(dir).and_then(|found| found.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age >= stale_after) {
            let _ = fs::remove_dir(dir); // the next round finds out who was faster
        } else {
            sleep(Duration::from_millis(200));
        }
    }
    Err(io::Error::other(format!("{} is held", dir.display())))
}

fn our_name() -> io::Result<Value> {
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid")?;
    let stat = fs::read_to_string("/proc/self/stat")?;
    let start = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)).unwrap_or_default();
    let domain = format!("linux:{}:{}", machine.trim(), namespace.display());
    let space = format!("{}#{}", gethostname()?.display(), namespace.display());
    Ok(json!({"pid": process::id(), "procStart": start, "pidDomain": domain, "pidSpace": space}))
}
