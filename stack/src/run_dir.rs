//! Folders of running servers, removed at the end or, after a `kill -9`, by the next program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::lock::Lock;
use crate::machine::Machine;
use crate::stats;
use crate::wait;

/// Sweeping removes a few folders of some 40 MB.
const SWEEP_WITHIN: Duration = Duration::from_mins(1);

/// A folder of this process's own.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: Lock,
}

impl RunDir {
    /// Makes one, and sweeps away those whose owners are gone.
    pub fn create(machine: &Machine) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let home = machine.folder("run")?;
        // Between the folder and its lock a sweep would take it for abandoned.
        let _sweeping = Lock::exclusive(&home.join("sweep"), SWEEP_WITHIN)?;
        sweep(&home)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = home.join(format!("{}-{number}", process::id()));
        machine.make_folder(&path)?;
        let lock = Lock::exclusive(&path.join(LOCK), SWEEP_WITHIN)?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // What cannot be removed now is swept at the next start.
        let _ = fs::remove_dir_all(&self.path);
    }
}

const LOCK: &str = "lock";
/// After SIGKILL.
const DIES_WITHIN: Duration = Duration::from_secs(10);

/// Ends and removes what dead processes left.
pub fn sweep_all(machine: &Machine) -> Result<()> {
    let home = machine.folder("run")?;
    let _sweeping = Lock::exclusive(&home.join("sweep"), SWEEP_WITHIN)?;
    sweep(&home)
}

fn sweep(home: &Path) -> Result<()> {
    for folder in folders_in(home) {
        let swept = sweep_one(&folder);
        // Its owner may be removing it just now.
        if folder.exists() {
            swept?;
        }
    }
    Ok(())
}

fn sweep_one(folder: &Path) -> Result<()> {
    if Lock::try_exclusive(&folder.join(LOCK))?.is_some() {
        end_leftovers(folder);
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn folders_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir())
}

/// A frozen Postgres does not hear that its parent died, and systems without a parent-death signal
/// end nothing by themselves.
pub fn end_leftovers(folder: &Path) {
    for data in folders_in(folder) {
        let first_line = |text: String| text.lines().next()?.parse().ok();
        if let Some(id) = fs::read_to_string(data.join("postmaster.pid")).ok().and_then(first_line)
        {
            end_if_it_is(id, &data.to_string_lossy());
        }
    }
    let notes = folder.join("pids");
    for note in fs::read_dir(&notes).into_iter().flatten().flatten() {
        let program = fs::read_to_string(note.path()).unwrap_or_default();
        if let Some(id) = note.file_name().to_str().and_then(|name| name.parse().ok()) {
            end_if_it_is(id, &program);
        }
    }
    // Where there are none, there is nothing to remove.
    let _ = fs::remove_dir_all(&notes);
}

/// A process id may have been given out again: the command line tells.
fn end_if_it_is(id: u32, known_by: &str) {
    if stats::command_line(id).is_some_and(|line| line.contains(known_by)) {
        let family: Vec<_> = stats::children(id).into_iter().chain([id]).collect();
        signal_all(&family, Signal::KILL);
        // What does not die of that cannot be helped; the next step will say what it misses.
        let gone = || Ok(all_gone(&family).then_some(()));
        let _ = wait::until(DIES_WITHIN, "old processes to end", gone);
    }
}

/// A process that ended and that nobody has asked about has no command line any more.
pub(crate) fn all_gone(ids: &[u32]) -> bool {
    ids.iter().all(|id| stats::command_line(*id).is_none_or(|line| line.trim().is_empty()))
}

/// Signals processes that are not our children; there is nothing to do for those that are gone.
pub(crate) fn signal_all(ids: &[u32], signal: Signal) {
    for id in ids.iter().filter_map(|id| Pid::from_raw(i32::try_from(*id).ok()?)) {
        let _ = kill_process(id, signal);
    }
}
