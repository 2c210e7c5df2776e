//! `cargo up`, step by step.

mod command;
mod home;
mod options;
mod programs;
mod ready;
mod running;
mod servers;
mod services;
mod settings;
mod signals;
mod tools;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use anyhow::{Error, Result};
use clap::Parser;
use stack::machine::Machine;
use stack::npm;

use home::Home;
use options::Options;
use running::Running;
use servers::Servers;
use settings::Settings;
use signals::{Interrupted, Signals};

/// As shells have it: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// Starts everything, and stops it when asked, or when something ended that should not.
pub(crate) fn run() -> Result<ExitCode> {
    let options = Options::parse();
    let machine = Machine::detect(env::current_exe()?)?;
    let settings = Settings::read(&options)?;
    if let Some(tool) = &options.tool {
        return tools::run(&machine, &settings, &options, tool);
    }
    let home = Home::open(&machine, &settings, &options)?;
    services::refuse_taken_ports(&settings, &options)?;
    let signals = Signals::listen(&home)?;
    match up(&options, &machine, &settings, &home, &signals) {
        _ if signals.forced() => Ok(ExitCode::from(INTERRUPTED)),
        Err(error) if error.is::<Interrupted>() => Ok(ExitCode::from(INTERRUPTED)),
        result => result,
    }
}

/// The files of Socket.IO's client for browsers, or why they are not here; nothing where the settings name some.
fn client_files(machine: &Machine, settings: &Settings) -> Option<Result<PathBuf>> {
    (!settings.has_client_files).then(|| npm::client_files(machine, &settings.project))
}

fn up(
    options: &Options,
    machine: &Machine,
    settings: &Settings,
    home: &Home,
    signals: &Signals,
) -> Result<ExitCode> {
    let servers = Servers::prepare(machine, settings, home)?;
    // Beside the build, which takes longer.
    let (client_files, programs) = thread::scope(|scope| {
        let fetching = scope.spawn(|| client_files(machine, settings));
        let programs = programs::build(machine, settings, home, options, signals);
        let fetched = fetching.join();
        (fetched.unwrap_or_else(|_| Some(Err(Error::msg("they cannot be fetched")))), programs)
    });
    let programs = programs?;
    let mut running = Running::new(servers, client_files, signals);
    let result = running.start(machine, settings, options, &programs, home).and_then(|()| {
        match options.command.split_first() {
            None => running.until_stopped(),
            Some((program, args)) => command::run(machine, &running, program, args, signals),
        }
    });
    running.stop();
    result
}
