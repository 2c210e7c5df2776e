//! The services' programs, built by cargo.

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// What cargo tells the programs that it runs; build scripts that watch these variables would see a
/// change in a cargo that such a program runs, and everything would be built again.
const TOLD_BY_CARGO: [&str; 5] =
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];

/// The cargo that runs us, if one does.
pub fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// What `cargo up` runs. The tests and what only they need are left out; that the rest has the same
/// features with and without them, so that it is built once, is held by a test.
pub const SERVICES: &[&str] = &["--package", "gateway", "--package", "persister"];
/// Their programs.
pub const PROGRAMS: &[&str] = &["gateway", "persister"];
/// Everything, for the tests.
pub const WORKSPACE: &[&str] = &["--workspace"];

/// Builds these programs with the features of these packages, and reports about them on standard output.
pub fn args(
    packages: &[&'static str],
    programs: &[&'static str],
    release: bool,
) -> Vec<&'static str> {
    let profile = release.then_some("--release");
    let fixed = ["build", "--message-format=json-render-diagnostics"];
    let programs = programs.iter().flat_map(|program| ["--bin", program]);
    fixed.into_iter().chain(packages.iter().copied()).chain(programs).chain(profile).collect()
}

/// Our environment without what cargo put there.
pub fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    let own = |name: &str| !TOLD_BY_CARGO.iter().any(|prefix| name.starts_with(prefix));
    env::vars_os().filter(move |(name, _)| own(&name.to_string_lossy()))
}

/// Where the programs lie.
#[derive(Clone, Debug)]
pub struct Programs(HashMap<String, PathBuf>);

impl Programs {
    /// Reads cargo's report: a line of JSON for every file that it made or found fresh.
    pub fn of_report(report: &str) -> Self {
        let messages = report.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let programs = messages.filter_map(|message| {
            let path = PathBuf::from(message["executable"].as_str()?);
            Some((message["target"]["name"].as_str()?.to_owned(), path))
        });
        Self(programs.collect())
    }

    /// The file of one program.
    pub fn path(&self, name: &str) -> Result<&Path> {
        let path =
            self.0.get(name).with_context(|| format!("the workspace has no program `{name}`"))?;
        Ok(path)
    }
}
