//! Tests of claims: on which file they count, and for whom.

use std::fs::File;

use serde_json::{Value, json};

use super::*;

const FILE: FileId = FileId { device: 2049, inode: 77 };
const OTHER: FileId = FileId { inode: 78, ..FILE };

/// A config dir with records of runs in another PID namespace, that live as long as this does.
struct Elsewhere {
    dir: tempfile::TempDir,
    locked: Vec<File>,
}

impl Elsewhere {
    fn new() -> std::io::Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::create_dir_all(dir.path().join("claude-run/runs"))?;
        Ok(Self { dir, locked: Vec::new() })
    }

    fn store(&self) -> RecordStore {
        RecordStore::of(self.dir.path())
    }

    /// Adds the record of `run`, with these `fields`.
    fn add(&mut self, run: RunId, fields: Value) -> std::io::Result<()> {
        let path = json!({ "path": "/c" });
        let mut record = json!({
            "run": run.to_string(), "state": "running", "since": "2026-01-01T00:00:00Z", "began": "2026-01-01T00:00:00Z",
            "mode": "exclusive", "pid": run.pid, "pid_namespace": "pid:[1]", "boot": proc::boot_id(), "program": "claude",
            "config_dir": path, "parent": path,
        });
        fields.as_object().into_iter().flatten().for_each(|(name, value)| record[name] = value.clone());
        let name = self.dir.path().join(format!("claude-run/runs/{run}.json"));
        fs::write(&name, record.to_string())?;
        let file = File::open(name)?;
        fs4::FileExt::lock(&file)?;
        self.locked.push(file);
        Ok(())
    }
}

fn view(file: FileId) -> Value {
    json!({ "path": "/f", "device": file.device, "inode": file.inode })
}

/// Ids of runs that are no process here.
fn runs() -> [RunId; 2] {
    [1, 2].map(|taken_at| RunId { pid: i32::MAX, taken_at })
}

#[test]
fn lineage_forgets_the_dead_that_are_long_gone() {
    let (us, dead) = (RunId::take().to_string(), |number| format!("{}-{number}", i32::MAX));
    let above = |runs: Vec<String>| AncestorRuns { runs, ..AncestorRuns::default() };
    assert!(above(vec![us.clone(); MAX_NESTING]).are_too_many());
    let runs: Vec<_> = [dead(0), us].into_iter().chain((1..=MAX_NESTING).map(dead)).collect();
    let chain = above(runs.clone());
    assert!(!chain.are_too_many(), "one after another");
    let run = RunId { pid: 7, taken_at: 11 };
    assert_eq!(chain.lineage_with(run), [&runs[1..], &["7-11".to_owned()]].concat().join(","));
    assert_eq!(AncestorRuns::of(&|_| None).lineage_with(run), "7-11");
}

#[test]
fn key_without_a_run_that_could_have_given_it_is_stale() {
    let has_stale_key = |key: bool, run: &str| {
        let value = |name: &str| match name {
            KEY_VARIABLE if key => Some("etcd/1".into()),
            RunId::LINEAGE => Some(run.into()),
            _ => None,
        };
        AncestorRuns::of(&value).has_stale_key(None)
    };
    let us = RunId::take().to_string();
    for (key, run, expected) in [(true, "", true), (true, "7-11", true), (true, &us, false), (false, "", false)] {
        assert_eq!(has_stale_key(key, run), expected, "{key} {run}");
    }
}

#[test]
fn claims_read_as_written_and_nothing_else() {
    let claims = [FILE, OTHER].map(|lock| Claim { lock, run: RunId::take() });
    let list = claims.map(|claim| claim.to_string()).join(",");
    assert_eq!(Claim::parse_list(OsStr::new(&list)), claims);
    assert_eq!(Claim::parse_list(OsStr::new(&format!("x,{},1:2", claims[0]))), claims[..1]);
    for text in ["", "1", "1:2", "1:2:3", "1:2:3-", "1:2:3-4-5", "a:b:c-d", "1:2:3-4 ", "1:2:3:4-5", ",", "\u{e9}"] {
        assert_eq!(Claim::parse_list(OsStr::new(text)), [], "{text:?}");
    }
}

#[test]
fn claim_counts_on_its_file_while_the_lock_is_held() -> std::io::Result<()> {
    let file = tempfile::tempfile()?;
    let lock = FileId::of(&file.metadata()?);
    let claim = Claim { lock, run: RunId::take() };
    assert!(!claim.holds_above_us(lock, None), "not locked");
    fs4::FileExt::lock(&file)?;
    assert!(claim.holds_above_us(lock, None));
    assert!(!claim.holds_above_us(FileId { inode: lock.inode + 1, ..lock }, None));
    assert!(!Claim { lock: FILE, ..claim }.holds_above_us(lock, None), "a claim on another file");
    let of_another = RunId { taken_at: 0, ..claim.run };
    assert!(!Claim { run: of_another, ..claim }.holds_above_us(lock, None), "a pid used again");
    fs4::FileExt::unlock(&file)?;
    assert!(!claim.holds_above_us(lock, None), "released");
    Ok(())
}

#[test]
fn record_from_elsewhere_has_to_say_so() -> std::io::Result<()> {
    let mut there = Elsewhere::new()?;
    let ([holder, nested], records) = (runs(), Some(there.store()));
    there.add(holder, json!({ "lock": view(FILE), "hold": "own", "slot": view(OTHER) }))?;
    there.add(nested, json!({ "lock": view(FILE), "hold": "run-above" }))?;
    let claim = |run, lock| Claim { lock, run };
    assert!(claim(holder, FILE).holds_above_us(FILE, records.as_ref()));
    assert!(!claim(holder, OTHER).holds_above_us(OTHER, records.as_ref()), "its slot");
    assert!(!claim(nested, FILE).holds_above_us(FILE, records.as_ref()), "not its own hold");
    for (run, file, expected) in [(holder, OTHER, true), (holder, FILE, false), (nested, OTHER, false)] {
        let above = AncestorRuns { slots: vec![claim(run, file)], ..AncestorRuns::default() };
        assert_eq!(above.have_slot(&[file], records.as_ref(), true), expected, "{run} {file:?}");
        assert!(!above.have_slot(&[], records.as_ref(), true), "free by now");
    }
    for namespace in [json!(null), json!(proc::pid_namespace())] {
        let mut here = Elsewhere::new()?;
        for run in [holder, RunId::take()] {
            here.add(run, json!({ "lock": view(FILE), "hold": "own", "pid_namespace": namespace }))?;
            assert!(!claim(run, FILE).holds_above_us(FILE, Some(&here.store())), "{namespace}: its descriptors tell");
        }
    }
    Ok(())
}

#[test]
fn inherited_slot_counts_unless_threads_wait() -> std::io::Result<()> {
    let (file, above) = (tempfile::tempfile()?, AncestorRuns::default());
    let slots = [OTHER, FileId::of(&file.metadata()?)];
    fs4::FileExt::lock_shared(&file)?;
    assert!(!above.have_slot(&slots, None, false), "shared");
    fs4::FileExt::lock(&file)?;
    assert!(above.have_slot(&slots, None, false));
    assert!(!above.have_slot(&slots, None, true), "by a thread of ours");
    Ok(())
}

#[test]
fn inherited_lock_counts_unless_a_thread_waits() -> std::io::Result<()> {
    let (file, above) = (tempfile::tempfile()?, AncestorRuns::default());
    let lock = FileId::of(&file.metadata()?);
    fs4::FileExt::lock(&file)?;
    assert_eq!(above.hold_for_us(lock, None, false), Some(Hold::Caller));
    assert_eq!(above.hold_for_us(lock, None, true), None, "by a thread of ours");
    Ok(())
}

#[test]
fn run_that_holds_itself_says_if_it_has_a_helper() -> std::io::Result<()> {
    let ([holder, nested], us) = (runs(), RunId::take());
    let above = AncestorRuns {
        claims: vec![Claim { lock: FILE, run: us }],
        runs: [holder, nested].map(|run| run.to_string()).to_vec(),
        has_key: true,
        ..AncestorRuns::default()
    };
    for (key, expected) in [(json!(null), false), (json!("etcd/1"), true)] {
        let mut there = Elsewhere::new()?;
        there.add(nested, json!({ "lock": view(FILE), "hold": "run-above" }))?;
        let records = Some(there.store());
        assert!(above.is_helped(FILE, records.as_ref()), "by our environment");
        there.add(holder, json!({ "lock": view(FILE), "hold": "own", "lock_key": key }))?;
        let without_key = AncestorRuns { has_key: false, ..above.clone() };
        assert_eq!(above.is_helped(FILE, records.as_ref()), expected, "{key}");
        assert_eq!(without_key.is_helped(FILE, records.as_ref()), expected, "{key}");
        assert!(!above.is_helped(OTHER, records.as_ref()));
        assert!(above.may_hold(FILE) && !above.may_hold(OTHER));
        assert!(!without_key.is_helped(FILE, None));
    }
    let mut there = Elsewhere::new()?;
    there.add(holder, json!({ "lock": view(FILE), "hold": "own" }))?;
    there.add(nested, json!({ "lock": view(FILE), "hold": "run-above", "lock_key": "etcd/1" }))?;
    assert!(above.is_helped(FILE, Some(&there.store())), "the nested one has a helper of its own");
    let claims = vec![Claim { lock: FILE, run: holder }, Claim { lock: OTHER, run: us }];
    let above = AncestorRuns { claims, ..above };
    assert!(above.is_helped(OTHER, None) && !above.is_helped(FILE, None), "only a run that lives");
    Ok(())
}

#[test]
fn outdated_claims_are_not_passed_on() {
    let [run, us] = runs();
    let above = AncestorRuns { claims: [FILE, OTHER].map(|lock| Claim { lock, run }).to_vec(), ..AncestorRuns::default() };
    let own = Claim { lock: FILE, run: us };
    let passed_on = |outdated| Claim::parse_list(OsStr::new(&above.claims_with(own, outdated)));
    assert_eq!(passed_on(true), [above.claims[1], own]);
    assert_eq!(passed_on(false), [above.claims[0], above.claims[1], own]);
}

#[test]
fn slots_from_above_are_passed_on() {
    let [run, us] = runs();
    let (above, own) = (Claim { lock: FILE, run }, Claim { lock: OTHER, run: us });
    let runs = AncestorRuns { slots: vec![above], ..AncestorRuns::default() };
    assert_eq!(Claim::parse_list(OsStr::new(&runs.slots_with(own))), [above, own]);
}
