//! Several hosts under one lock of etcd's, by `--lock-helper 'etcdctl lock NAME'`: real members on loopback, and for each host namespaces
//! of its own, with its own config dir and lock file at the same path.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::env::{Env, Running, binary, fake_claude, needs, wait_until};
use crate::hosts::{are_possible, files_without_locks, host};
use crate::oauth::{EXPIRED, StandIn};

/// Three members, ended when the test is.
struct Cluster {
    dir: PathBuf,
    endpoints: String,
    /// On a small machine, two clusters at once keep each other from their elections, and leases run out for nothing.
    _alone: MutexGuard<'static, ()>,
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

impl Cluster {
    /// Starts a cluster, if there is an etcd.
    fn up(env: &Env) -> Option<Self> {
        if !needs("etcd") || !needs("etcdctl") || !are_possible() {
            return None;
        }
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cluster = Self { dir: env.path("cluster"), endpoints: String::new(), _alone: alone };
        assert!(cluster.script("up", &[]), "no cluster");
        cluster.endpoints = fs::read_to_string(cluster.dir.join("endpoints")).expect("endpoints").trim().to_owned();
        Some(cluster)
    }

    fn script(&self, command: &str, words: &[&str]) -> bool {
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/etcd-cluster.sh"));
        script.arg(command).arg(&self.dir).args(words).stdin(Stdio::null()).stdout(Stdio::null());
        script.status().is_ok_and(|status| status.success())
    }

    /// The pid of a member: 1, 2 or 3.
    fn member(&self, number: usize) -> Pid {
        let pid = fs::read_to_string(self.dir.join(format!("{number}.pid"))).expect("a pid");
        Pid::from_raw(pid.trim().parse().expect("a number"))
    }

    /// The number of the member that leads.
    fn leader(&self) -> usize {
        for (number, endpoint) in (1..).zip(self.endpoints.split(',')) {
            let status = self.etcdctl(&["--endpoints", endpoint, "endpoint", "status"]);
            // endpoint, id, version, size, is leader, …
            if status.split(", ").nth(4) == Some("true") {
                return number;
            }
        }
        panic!("nobody leads");
    }

    fn etcdctl(&self, words: &[&str]) -> String {
        let mut etcdctl = Command::new("etcdctl");
        let output = etcdctl.args(words).env("ETCDCTL_API", "3").output().expect("etcdctl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.script("down", &[]);
    }
}

/// Host whose config dir is mounted where all have theirs.
struct Host<'a> {
    env: Env,
    name: String,
    cluster: &'a Cluster,
}

impl<'a> Host<'a> {
    fn several(cluster: &'a Cluster, count: usize) -> Vec<Self> {
        (1..=count).map(|number| Self { env: Env::new(), name: format!("host{number}"), cluster }).collect()
    }

    /// claude-run on it, with a session of `ttl` seconds at the engine.
    fn run(&self, place: &Env, ttl: u32, options: &[&str], words: &[&str]) -> Running {
        let shared = place.path("claude");
        let own = self.env.path("claude");
        for dir in [&shared, &own] {
            fs::create_dir_all(dir).expect("a directory");
        }
        let mut host = host(place, &self.name, &format!("mount --bind '{}' '{}'", own.display(), shared.display()));
        host.env("CLAUDE_CONFIG_DIR", &shared);
        host.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", &self.cluster.endpoints);
        let helper = format!("etcdctl --keepalive-time 1s --keepalive-timeout 1s lock --ttl {ttl} claude/login");
        host.env("CLAUDE_RUN_LOCK_HELPER", helper);
        host.arg(binary()).args(options).arg("--").args(words);
        Running::start(host)
    }
}

/// The pids of the etcdctl that hold, or wait for, a lock of `cluster`.
fn helpers(cluster: &Cluster) -> Vec<i32> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_one = |pid: &i32| {
        let read = |name| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        read("cmdline").starts_with(b"etcdctl\0")
            && String::from_utf8_lossy(&read("environ")).contains(cluster.endpoints.as_str())
    };
    pids.filter(is_one).collect()
}

#[test]
fn hosts_take_turns_while_members_fail() {
    let place = Env::new();
    let Some(cluster) = Cluster::up(&place) else { return };
    let hosts = Host::several(&cluster, 3);
    let inside = place.path("inside");
    let alone = format!("mkdir '{0}' && sleep 0.1 && rmdir '{0}'", inside.display());
    let round = |what: &str| {
        // Two agents a host: the second is the one that waits for the first alone.
        let runs: Vec<_> =
            (0..6).map(|number| hosts[number % 3].run(&place, 30, &["--wait", "60"], &["sh", "-c", &alone])).collect();
        let ended: Vec<_> = runs.into_iter().map(Running::end).collect();
        // An engine that is about to lose its leader may refuse: that is a conflict, and no more.
        for run in &ended {
            assert!([0, 75].contains(&run.code()), "{what}: {run:?}");
        }
        ended.iter().filter(|run| run.code() == 0).count()
    };
    assert_eq!(round("all is well"), 6);
    let leader = cluster.leader();
    let follower = leader % 3 + 1;
    let holder = hosts[0].run(&place, 30, &[], &["sh", "-c", &format!("{}; echo held; read line", alone)]);
    holder.expect_line("held");
    kill(cluster.member(follower), Signal::SIGSTOP).expect("it lives");
    drop(holder); // by TERM
    assert!(round("a member is stopped") > 0);
    kill(cluster.member(follower), Signal::SIGCONT).expect("it lives");
    kill(cluster.member(leader), Signal::SIGKILL).expect("it lives");
    round("the leader is killed");
    assert_eq!(round("another leads"), 6);
    assert!(cluster.script("start", &[&leader.to_string()]));
    assert_eq!(round("it is back"), 6);
    assert!(!inside.exists());
    assert_eq!(helpers(&cluster), [0; 0]);
}

#[test]
fn expired_token_is_refreshed_once_by_all_hosts() {
    let place = Env::new();
    let (Some(cluster), Some(mount)) = (Cluster::up(&place), files_without_locks(&place)) else { return };
    for (mode, together) in [("refresh", "6"), ("exclusive", "1")] {
        place.log_in(EXPIRED);
        let stand_in = StandIn::start(&place, &["--refresh-takes", "0.3", "--together", together]);
        // Two agents a host; each mounts the files for itself, so that no flock keeps even those two apart.
        let agents = (0..6).map(|number| {
            let mut host = host(&place, &format!("host{}", number % 3), &mount);
            host.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", &cluster.endpoints).env("FAKE_API", &stand_in.address);
            host.args([binary(), Path::new("--lock"), Path::new(mode), Path::new("--claude"), fake_claude()]);
            host.args(["--lock-helper", "etcdctl lock --ttl 30 claude/login", "--", "-p", "refresh none; ask"]);
            Running::start(host)
        });
        for agent in agents.collect::<Vec<_>>() {
            let ended = agent.end();
            assert_eq!(ended.code(), 0, "{mode}: {ended:?}");
        }
        let counts = stand_in.counts();
        let of = |name: &str| counts[name].as_u64().expect("a number");
        assert_eq!((of("posts"), of("invalid_grant"), of("answered")), (1, 0, 6), "{mode}: {counts}");
        assert_eq!(of("most_at_once").to_string(), together, "{mode}: {counts}");
    }
    wait_until("no helper is left", || helpers(&cluster).is_empty());
}

#[test]
fn expired_lease_passes_the_lock_and_ends_with_69() {
    let place = Env::new();
    let Some(cluster) = Cluster::up(&place) else { return };
    let hosts = Host::several(&cluster, 2);
    let holder = hosts[0].run(&place, 3, &["--label", "first"], &["sh", "-c", "echo $CLAUDE_RUN_LOCK_KEY; exec sleep 600"]);
    let key = holder.line();
    assert!(key.starts_with("claude/login/"), "{key}");
    let [helper] = helpers(&cluster)[..] else { panic!("one helper") };
    let other = hosts[1].run(&place, 3, &["--wait", "0"], &["true"]).end();
    assert_eq!(other.code(), 75, "{other:?}");
    let waiter = hosts[1].run(&place, 3, &[], &["sh", "-c", "echo $CLAUDE_RUN_LOCK_KEY"]);
    assert!(waiter.message().contains("waiting for the lock helper etcdctl"));
    // As when its host is paused: nobody keeps the lease alive.
    kill(Pid::from_raw(helper), Signal::SIGSTOP).expect("it lives");
    assert_ne!(waiter.line(), key);
    assert_eq!(waiter.end().code(), 0);
    kill(Pid::from_raw(helper), Signal::SIGCONT).expect("it lives");
    let ended = holder.end();
    assert_eq!(ended.code(), 69, "{ended:?}");
    assert!(ended.stderr_text().contains("the lock helper etcdctl has ended"), "{ended:?}");
    assert!(ended.stderr_text().contains("the lock is lost"), "{ended:?}");
    // A host that is gone keeps nobody out for longer than its lease.
    let holder = hosts[0].run(&place, 3, &[], &["sh", "-c", "echo held; exec sleep 600"]);
    holder.expect_line("held");
    holder.signal(Signal::SIGKILL);
    holder.end();
    assert_eq!(hosts[1].run(&place, 3, &[], &["true"]).end().code(), 0);
    wait_until("no helper is left", || helpers(&cluster).is_empty());
}

#[test]
fn partitioned_host_ends_its_child() {
    let place = Env::new();
    let Some(cluster) = Cluster::up(&place) else { return };
    let hosts = Host::several(&cluster, 2);
    let holder = hosts[0].run(&place, 3, &[], &["sh", "-c", "echo held; exec sleep 600"]);
    holder.expect_line("held");
    // As behind a network that swallows everything: connections stand, and nobody answers.
    let all = |signal| (1..=3).for_each(|number| kill(cluster.member(number), signal).expect("it lives"));
    all(Signal::SIGSTOP);
    let ended = holder.end();
    assert_eq!(ended.code(), 69, "{ended:?}");
    let waiter = hosts[1].run(&place, 3, &["--wait", "2"], &["touch", "started"]).end();
    assert_eq!(waiter.code(), 75, "{waiter:?}");
    assert!(!place.path("started").exists());
    all(Signal::SIGCONT);
    // The engine finds itself again, and lets the lease of the one that was cut off run out.
    wait_until("the other host has its turn", || hosts[1].run(&place, 3, &["--wait", "20"], &["true"]).end().code() == 0);
    wait_until("no helper is left", || helpers(&cluster).is_empty());
}

#[test]
fn missing_cluster_ends_the_child_and_starts_none() {
    let place = Env::new();
    let Some(cluster) = Cluster::up(&place) else { return };
    let hosts = Host::several(&cluster, 1);
    let holder = hosts[0].run(&place, 3, &[], &["sh", "-c", "echo held; exec sleep 600"]);
    holder.expect_line("held");
    (1..=3).for_each(|number| kill(cluster.member(number), Signal::SIGKILL).expect("it lives"));
    let ended = holder.end();
    assert_eq!(ended.code(), 69, "{ended:?}");
    for wait in ["5", "0"] {
        let ended = hosts[0].run(&place, 3, &["--wait", wait], &["touch", "started"]).end();
        assert_eq!(ended.code(), 75, "{ended:?}");
        assert!(ended.stderr_text().contains("nothing was started"), "{ended:?}");
    }
    assert!(!place.path("started").exists());
    wait_until("no helper is left", || helpers(&cluster).is_empty());
}
