//! Builds the services.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use stack::build::{self, Programs};
use stack::launch::{Output, Program};
use stack::machine::Machine;
use stack::wait;

use super::home::Home;
use super::options::Options;
use super::settings::Settings;
use super::signals::Signals;

/// A build from nothing on a slow machine.
const BUILDS_WITHIN: Duration = Duration::from_hours(1);

/// Runs cargo, whose progress goes to the terminal.
pub(crate) fn build(
    machine: &Machine,
    settings: &Settings,
    home: &Home,
    options: &Options,
    signals: &Signals,
) -> Result<Programs> {
    let report = home.path().join("build.json");
    let cargo = Program {
        folder: Some(settings.project.clone()),
        clean_env: true,
        env: build::environment().collect(),
        output: Output::Report(report.clone()),
        foreground: true,
        ..Program::new("cargo", build::cargo()).args(build::args(
            build::SERVICES,
            build::PROGRAMS,
            options.release,
        ))
    };
    let child = cargo.start(machine)?;
    let status = wait::until(BUILDS_WITHIN, "the build", || {
        signals.check()?;
        child.ended()
    })?;
    ensure!(status.success(), "the services do not build");
    let report = fs::read_to_string(&report).context("cannot read what cargo reported")?;
    Ok(Programs::of_report(&report))
}
