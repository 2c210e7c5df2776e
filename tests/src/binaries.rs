//! The services' programs, built before the first test needs them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use anyhow::Result;
use stack::build::{self, Programs};
use stack::lock::Lock;
use stack::machine::Machine;
use stack::tool;

use crate::wait::must;

/// What tests and drills run.
const PROGRAMS: &[&str] = &["gateway", "persister", "stack"];
/// A build from nothing on a slow machine.
const BUILDS_WITHIN: Duration = Duration::from_mins(30);

/// Where the programs lie.
#[derive(Debug)]
pub(crate) struct Binaries {
    programs: Programs,
}

impl Binaries {
    /// Builds them, once per test process.
    pub(crate) fn get() -> &'static Self {
        static BINARIES: OnceLock<Binaries> = OnceLock::new();
        BINARIES.get_or_init(|| {
            let report = must(build_once_per_run(), "building the services");
            Binaries { programs: Programs::of_report(&report) }
        })
    }

    /// The file of one program.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        must(self.programs.path(name), "looking for a program").to_path_buf()
    }

    /// What the machine allows.
    pub(crate) fn machine(&self) -> Machine {
        must(Machine::detect(self.path("stack")), "looking at this machine")
    }
}

/// nextest runs every test in a process of its own and names the run: only the first one builds.
fn build_once_per_run() -> Result<String> {
    let Ok(run) = env::var("NEXTEST_RUN_ID") else { return build() };
    let note = env::temp_dir().join(format!("chat-tests-{run}"));
    let _lock = Lock::exclusive(&note.with_extension("lock"), BUILDS_WITHIN)?;
    if let Ok(text) = fs::read_to_string(&note) {
        return Ok(text);
    }
    let text = build()?;
    fs::write(&note, &text)?;
    Ok(text)
}

/// With the profile of the tests and the features of the whole workspace, so that cargo finds
/// nearly everything built already; no other programs, whose linking takes minutes with optimisation.
fn build() -> Result<String> {
    let release = !cfg!(debug_assertions);
    let mut cargo = Command::new(build::cargo());
    cargo.args(build::args(build::WORKSPACE, PROGRAMS, release));
    cargo.arg("--quiet").current_dir(workspace());
    cargo.env_clear().envs(build::environment());
    tool::run_visibly(cargo, BUILDS_WITHIN)
}

/// The file of a program of the workspace, built if need be.
pub fn program(name: &str) -> PathBuf {
    Binaries::get().path(name)
}

/// What this machine allows, for tests that start servers themselves.
pub fn machine() -> Machine {
    Binaries::get().machine()
}

/// The folder of the whole project: of the package that cargo runs, if it runs us. Of two checkouts that share a
/// target folder, or a copy of one, the other may have compiled us: cargo sees no difference.
pub fn workspace() -> &'static Path {
    static WORKSPACE: LazyLock<PathBuf> = LazyLock::new(|| {
        let run = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let package = run.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        must(package.parent().ok_or("no parent"), "looking for the project").to_path_buf()
    });
    &WORKSPACE
}
