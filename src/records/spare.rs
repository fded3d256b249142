//! A file for the next record: that of an earlier run's. To make a file and remove it can take longer than all else of a short run: for a
//! free inode, ext4 looks past every one that was removed in the last minutes.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt};

use fs4::FileExt;
use nix::fcntl::OFlag;

use crate::sys::dir::Dir;

/// Most of them in a config dir: a crowd of as many runs finds one each, where their pids are near each other.
const MOST: i32 = 256;

/// Longer than any record.
const LARGEST: u64 = 64 << 10;

const DIRECTORY: &str = "spare";

/// The place of a run's spare file, which it may share with others.
#[derive(Debug)]
pub(super) struct Spare {
    dir: Dir,
    name: String,
}

impl Spare {
    /// That of the run `pid`, in the directory of claude-run.
    pub(super) fn of(pid: i32, store: &Dir) -> io::Result<Self> {
        Ok(Self { dir: store.make_dir(DIRECTORY)?, name: (pid % MOST).to_string() })
    }

    /// Moves the file that is there to `name` in `runs`, where nothing is. It is locked: its age is that of an old text, by which a
    /// census would remove it.
    ///
    /// # Errors
    /// There is none, or one that is still locked, by the run that has put it there or by one that looks.
    pub(super) fn take(&self, runs: &Dir, name: &str) -> io::Result<File> {
        let file = self.dir.open_file(&self.name, OFlag::O_WRONLY)?;
        FileExt::try_lock(&file)?;
        self.dir.move_to(&self.name, runs, name)?;
        if runs.has(name, &file.metadata()?) { Ok(file) } else { Err(io::Error::other("another has come in its place")) }
    }

    /// Keeps `file`, which is `name` in `runs`, unless there is one already: who replaces it has to free its inode. Its text is to be
    /// [blanked](blank) before it is unlocked.
    pub(super) fn put(&self, runs: &Dir, name: &str, file: &File) -> io::Result<()> {
        let found = file.metadata()?;
        // To rename it to another name of its own does nothing, and others can put what they like in its place, or into it.
        if found.nlink() > 1 || found.len() > LARGEST || !runs.has(name, &found) {
            return Err(io::Error::other("it is not as we have made it"));
        }
        runs.move_to(name, &self.dir, &self.name)
    }
}

/// Leaves nothing of the text of a file that is kept.
pub(super) fn blank(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len().min(LARGEST);
    file.write_all_at(&vec![b' '; length as usize], 0)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, hard_link};
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};
    use std::thread;
    use std::time::{Duration, SystemTime};

    use anyhow::{Context, Result};

    use super::super::store::{RecordStore, read};
    use super::super::{RunInfo, RunRecorder, WaitsFor};
    use super::*;
    use crate::config::settings::LockMode;
    use crate::run_id::RunId;

    /// A run with a record.
    fn run(config_dir: &Path, pid: i32, taken_at: u64, label: &str) -> RunRecorder {
        let mut recorder = RunRecorder::open(RunInfo {
            run: RunId { pid, taken_at },
            label: Some(label.to_owned()),
            program: "/usr/bin/claude".into(),
            lock_mode: LockMode::Exclusive,
            records: Some(RecordStore::of(config_dir)),
            lock_file: None,
            record_file: None,
        });
        recorder.on_wait(WaitsFor::Lock);
        recorder
    }

    fn inode(path: &Path) -> Result<u64> {
        Ok(fs::metadata(path).with_context(|| path.display().to_string())?.ino())
    }

    #[test]
    fn next_run_of_a_like_pid_writes_into_the_same_file() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (runs, spare) = (dir.path().join("claude-run/runs"), dir.path().join("claude-run/spare/7"));
        drop(run(dir.path(), 7, 1, &"long ".repeat(20)));
        let first = inode(&spare)?;
        assert!(fs::read(&spare)?.trim_ascii().is_empty(), "nobody reads there who ran");
        let (second, third) = (run(dir.path(), 7 + MOST, 2, ""), run(dir.path(), 7, 3, ""));
        let record = runs.join(format!("{}-2.json", 7 + MOST));
        assert_eq!((inode(&record)?, spare.exists()), (first, false));
        assert_ne!(inode(&runs.join("7-3.json"))?, first);
        let text = fs::read_to_string(record)?;
        assert!(text.ends_with("}\n") && text.lines().count() == 1, "nothing is left of a longer text: {text}");
        drop(second);
        assert_eq!(inode(&spare)?, first);
        drop(third);
        assert_eq!((inode(&spare)?, fs::read_dir(runs)?.count()), (first, 0));
        Ok(())
    }

    #[test]
    fn what_others_have_or_have_put_there_is_left_alone() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (record, spare) = (dir.path().join("claude-run/runs/7-2.json"), dir.path().join("claude-run/spare/7"));
        drop(run(dir.path(), 7, 1, ""));
        let theirs = dir.path().join("theirs");
        fs::write(&theirs, "theirs")?;
        let held = File::open(&spare)?;
        FileExt::lock_shared(&held)?;
        type Link = fn(PathBuf, PathBuf) -> io::Result<()>;
        for link in [None, Some(symlink as Link), Some(hard_link)] {
            link.map_or(Ok(()), |link| link(theirs.clone(), spare.clone()))?;
            let recorder = run(dir.path(), 7, 2, "");
            assert!(inode(&record)? != inode(&spare)? && fs::read_to_string(&record)?.starts_with("{\"run\":\"7-2\""));
            fs::remove_file(&spare)?;
            drop(recorder);
            fs::remove_file(&spare)?;
        }
        assert_eq!(fs::read_to_string(theirs)?, "theirs");
        Ok(())
    }

    #[test]
    fn links_in_place_of_the_directory_are_not_followed() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir_all(&elsewhere)?;
        File::create(elsewhere.join("7"))?.write_all(b"theirs")?;
        fs::create_dir(dir.path().join("claude-run"))?;
        symlink(&elsewhere, dir.path().join("claude-run/spare"))?;
        drop(run(dir.path(), 7, 1, ""));
        assert_eq!((fs::read_to_string(elsewhere.join("7"))?, fs::read_dir(&elsewhere)?.count()), ("theirs".into(), 1));
        assert_eq!(fs::read_dir(dir.path().join("claude-run/runs"))?.count(), 0);
        Ok(())
    }

    #[test]
    fn file_with_the_text_of_an_earlier_run_is_removed() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let recorder = run(dir.path(), 7, 1, "");
        let (runs, spare) = (dir.path().join("claude-run/runs"), dir.path().join("claude-run/spare/7"));
        // As of a run that was killed before it wrote, and of one whose machine went down before that was on the disk.
        let copy = |from: &Path, name: &str| {
            fs::copy(from, runs.join(name))?;
            File::open(runs.join(name))?.set_modified(SystemTime::now() - Duration::from_secs(120))
        };
        ["9-9.tmp", "8-8.json"].iter().try_for_each(|name| copy(&runs.join("7-1.json"), name))?;
        drop(recorder);
        ["6-6.tmp", "6-6.json"].iter().try_for_each(|name| copy(&spare, name))?;
        fs::write(runs.join("5-5.json"), "theirs")?;
        let census = RecordStore::of(dir.path()).census()?;
        assert!(census.live.is_empty() && census.orphaned.is_empty() && census.elsewhere.is_empty());
        assert_eq!(fs::read_dir(&runs)?.count(), 1);
        assert!(!dir.path().join("claude-run/history.jsonl").exists(), "nobody knows who they were");
        Ok(())
    }

    #[test]
    fn only_a_file_as_we_have_made_it_is_kept() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (record, spare) = (dir.path().join("claude-run/runs/7-1.json"), dir.path().join("claude-run/spare/7"));
        let mut recorder = run(dir.path(), 7, 1, "");
        hard_link(&record, &spare)?;
        recorder.retire();
        assert!(!record.exists());
        fs::remove_file(&spare)?;
        recorder = run(dir.path(), 7, 1, "");
        File::options().write(true).open(&record)?.set_len(1 << 40)?;
        recorder.retire();
        assert!(!record.exists() && !spare.exists());
        recorder = run(dir.path(), 7, 1, "");
        fs::remove_file(&record)?;
        fs::create_dir(&record)?;
        recorder.retire();
        assert!(record.is_dir() && !spare.exists());
        Ok(())
    }

    #[test]
    fn record_is_not_read_under_the_name_of_another() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let first = run(dir.path(), 7, 1, "");
        let runs = Dir::open(&dir.path().join("claude-run/runs"))?;
        let open = |name| runs.open_file(name, OFlag::O_RDONLY);
        let file = open("7-1.json")?;
        drop(first);
        let _second = run(dir.path(), 7, 2, "");
        assert_eq!(file.metadata()?.ino(), open("7-2.json")?.metadata()?.ino());
        assert!(read(&runs, "7-1.json", &file)?.is_none());
        let (is_live, text, _) = read(&runs, "7-2.json", &open("7-2.json")?)?.context("the second")?;
        assert!(is_live && text.starts_with(b"{\"run\":\"7-2\""));
        Ok(())
    }

    #[test]
    fn end_is_seen_where_the_next_run_has_the_file() -> Result<()> {
        let dir = tempfile::tempdir()?;
        drop(run(dir.path(), 7, 1, ""));
        // The lock goes from run to run without a moment in which the one that waits could have it.
        let (store, claude_run) = (RecordStore::of(dir.path()), dir.path().join("claude-run"));
        let file = File::open(claude_run.join("spare/7"))?;
        FileExt::lock(&file)?;
        fs::rename(claude_run.join("spare/7"), claude_run.join("runs/7-2.json"))?;
        thread::scope(|scope| {
            let waiter = scope.spawn(|| store.wait_for_end("7-2", Duration::MAX));
            thread::sleep(Duration::from_millis(50)); // it waits by then, or finds nobody to wait for
            fs::rename(claude_run.join("runs/7-2.json"), claude_run.join("runs/7-3.json"))?;
            assert!(waiter.join().is_ok());
            Ok(())
        })
    }
}
