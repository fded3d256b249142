//! Tests of the standing of refresh locks, of their owners, and of refreshes that are cut short.

use std::process;

use super::*;
use crate::sys::proc::Stat;

fn lock(touched: Option<SystemTime>, lives: Option<Option<bool>>) -> RefreshLock {
    let owner = lives.map(|lives| Owner { pid: 1, lives, namespace: None, older: OlderLock::None });
    RefreshLock {
        path: PathBuf::new(),
        touched,
        made: None,
        owner,
        is_hidden: false,
        inode: 0,
        stale_after: STALE_AFTER,
        flaw: None,
    }
}

#[test]
fn standing_follows_from_age_and_owner() {
    let now = SystemTime::now();
    let millisecond = Duration::from_millis(1);
    for lives in [None, Some(None), Some(Some(true)), Some(Some(false))] {
        let is_dead = lives == Some(Some(false));
        let standing = |touched| lock(touched, lives).standing(now);
        let live = |left| if is_dead { Standing::OwnerDead(left) } else { Standing::Live };
        assert_eq!(standing(None), Standing::Free);
        assert_eq!(standing(Some(now)), live(STALE_AFTER));
        assert_eq!(standing(Some(now + Duration::from_secs(99))), live(STALE_AFTER), "a clock that was set back");
        let ahead = Some(now + MAX_CLOCK_SKEW + millisecond);
        let is_stuck = matches!(standing(ahead), Standing::Stuck(_)) && lock(ahead, lives).blocks_for(now).is_none();
        assert_eq!(is_stuck, lives != Some(Some(true)), "who lives touches it again");
        assert_eq!(standing(Some(now - STALE_AFTER + millisecond)), live(millisecond));
        assert_eq!(standing(Some(now - STALE_AFTER)), Standing::Stale(STALE_AFTER));
        let blocks = |touched| lock(touched, lives).blocks_for(now);
        assert_eq!((blocks(None), blocks(Some(now - STALE_AFTER))), (None, None));
        assert_eq!(blocks(Some(now - STALE_AFTER + millisecond)), Some(millisecond));
    }
}

#[test]
fn both_locks_of_a_newer_claude_share_their_owner() -> std::io::Result<()> {
    let dir = tempfile::tempdir()?;
    let config_dir = dir.path().join("config");
    fs::create_dir(&config_dir)?;
    fs::create_dir(dir.path().join("config.lock"))?;
    let aged = SystemTime::now() + Duration::from_secs(30);
    let standings = || RefreshLock::of(&ClaudeStorage::at(&config_dir)).map(|lock| lock.standing(aged));
    assert!(matches!(standings(), [Standing::Stale(_), Standing::Free]));
    let newer = config_dir.join(NEWER);
    fs::create_dir(&newer)?;
    assert!(matches!(standings(), [Standing::Stale(_), Standing::Live]), "nobody says that they have one holder");
    let birth = |path: &Path| -> std::io::Result<f64> {
        let made = fs::metadata(path)?.created()?;
        Ok(made.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1000.0)
    };
    let older = birth(&dir.path().join("config.lock"))?;
    let said = |birth: f64| format!(r#","legacyLockBirthtimeMs":{birth}"#);
    let newer_alone = format!(r#","lockBirthtimeMs":{}"#, birth(&newer)?);
    for (sibling, is_its) in [(said(older), true), (said(older + 50.0), false), (newer_alone, false), (String::new(), true)] {
        let owner = format!(r#"{{"pid":4194304,"procStart":"1","pidDomain":"{}"{sibling}}}"#, domain());
        fs::write(owner_file(&newer), owner)?;
        let [older, newer] = standings();
        assert!(matches!(newer, Standing::OwnerDead(_)));
        assert_eq!(matches!(older, Standing::OwnerDead(_)), is_its, "{sibling}");
    }
    std::thread::sleep(Duration::from_millis(20)); // the grain of a file system's clock
    fs::remove_dir(dir.path().join("config.lock"))?;
    fs::create_dir(dir.path().join("config.lock"))?;
    assert!(matches!(standings(), [Standing::Stale(_), Standing::OwnerDead(_)]), "made by somebody else, later");
    fs::remove_dir(newer)?;
    assert!(matches!(standings(), [Standing::Stale(_), Standing::Free]), "an owner file left behind");
    Ok(())
}

#[test]
fn silence_says_nothing_of_a_holder_that_may_have_been_stopped() {
    let now = SystemTime::now();
    let start = now - Duration::from_secs(100);
    let ago = |seconds| Some(now - Duration::from_secs(seconds));
    let ahead = Some(now + Duration::from_secs(3600));
    // Since its start, any age will do; before it, only a fresh one, by which somebody may have come into the tree since.
    for (touched, made, may_be_held) in [
        (None, None, false),
        (ago(1), ago(200), true),
        (ago(9), None, true),
        (ago(11), None, true),
        (ago(99), ago(99), true),
        (ago(110), None, false),
        (ago(50), ago(300), false),
        (ahead, ago(50), true),
    ] {
        for lives in [None, Some(None), Some(Some(true)), Some(Some(false))] {
            let lock = RefreshLock { made, ..lock(touched, lives) };
            let is_dead = lives == Some(Some(false));
            assert_eq!(lock.may_be_held_by_one_of(start), may_be_held && !is_dead, "{touched:?} {made:?} {lives:?}");
        }
    }
    for far_ahead in [ahead, SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(i64::MAX as u64))] {
        let left_behind = RefreshLock { made: ago(300), ..lock(far_ahead, None) };
        assert!(!left_behind.may_be_held_by_one_of(start));
    }
    let file = RefreshLock { flaw: Some(NO_DIRECTORY), ..lock(ago(1), None) };
    let full = RefreshLock { flaw: Some("has something in it"), ..lock(ago(1), None) };
    assert!(!file.may_be_held_by_one_of(start) && full.may_be_held_by_one_of(start));
}

#[test]
fn refresh_is_cut_short_whatever_else_is_written() -> std::io::Result<()> {
    let dir = tempfile::tempdir()?;
    let (storage, now) = (ClaudeStorage::at(dir.path()), SystemTime::now());
    let log_in = |expiry: SystemTime| {
        let at = expiry.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        fs::write(
            storage.credentials(),
            format!(r#"{{"claudeAiOauth":{{"accessToken":"a","refreshToken":"r","expiresAt":{at}}}}}"#),
        )
    };
    let [due, fresh, fresher] = [60, 3600, 7200].map(|seconds| now + Duration::from_secs(seconds));
    // Expiry before and after; is that seen with and without a look before?
    for (before, after, is_seen) in
        [(due, due, [true; 2]), (fresh, fresh, [true, false]), (due, fresh, [false; 2]), (fresh, fresher, [false; 2])]
    {
        let _ = fs::remove_file(owner_file(&dir.path().join(NEWER)));
        log_in(before)?;
        let watch = CutWatch::begin(&storage);
        let owner = format!(r#"{{"pid":4194304,"procStart":"1","pidDomain":"{}"}}"#, domain());
        fs::write(owner_file(&dir.path().join(NEWER)), owner)?;
        std::thread::sleep(Duration::from_millis(20)); // the grain of a file system's clock
        log_in(after)?;
        assert_eq!([watch.end(&storage), CutRefresh::last(&storage)].map(|cut| cut.is_some()), is_seen);
        assert_eq!(CutWatch::begin(&storage).end(&storage), None, "it was there before");
    }
    Ok(())
}

/// `pidDomain` as 2.1.330 writes it.
fn domain() -> String {
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    format!("linux:{}:{}", machine.trim(), pid_namespace().unwrap_or_default())
}

fn owner(pid: i32, start: u64, domain: &str) -> Option<Owner> {
    let text = format!(r#"{{"pid":{pid},"procStart":"{start}","pidDomain":"{domain}"}}"#);
    Owner::parse(text.as_bytes())
}

#[test]
fn owner_is_one_process_of_one_pid_namespace() {
    let us = process::id() as i32;
    let start = Stat::read(us).map(|stat| stat.start).unwrap_or_default();
    let boot = boot_id().unwrap_or_default().replace('-', "");
    let by_boot = format!("linux:{boot}:{}", pid_namespace().unwrap_or_default());
    let lives = |pid, start, domain: &str| owner(pid, start, domain).and_then(|owner| owner.lives);
    for domain in [domain(), by_boot] {
        assert_eq!(lives(us, start, &domain), Some(true));
        assert_eq!(lives(us, start + 1, &domain), Some(false), "another process with that pid");
        assert_eq!(lives(4_194_304, start, &domain), Some(false));
    }
    assert_eq!(lives(us, start, &format!("linux:elsewhere:{}", pid_namespace().unwrap_or_default())), None);
    assert_eq!(lives(us, start, "linux:other:pid:[1]"), None);
    let space = |space: &str| {
        let text = format!(r#"{{"pid":{us},"procStart":"{start}","pidDomain":"{}","pidSpace":"{space}"}}"#, domain());
        Owner::parse(text.as_bytes()).and_then(|owner| owner.lives)
    };
    assert_eq!(space(&format!("{}#{}", host(), pid_namespace().unwrap_or_default())), Some(true));
    assert_eq!(space("another host#pid:[4026531836]"), None, "of a copy of this machine");
    assert_eq!(Owner::parse(b"{"), None);
}

#[test]
fn owner_may_be_among_known_processes() {
    let processes = [(7, "pid:[1]".to_owned()), (8, "pid:[2]".to_owned())];
    let may_be = |pid, domain: &str| owner(pid, 1, domain).is_some_and(|owner| owner.may_be_among(&processes));
    assert!(may_be(7, "linux:m:pid:[1]") && may_be(8, "linux::pid:[2]"));
    assert!(!may_be(7, "linux:m:pid:[2]") && !may_be(9, "linux:m:pid:[1]"));
    assert!(may_be(9, "") && may_be(9, "linux"));
}
