//! `cargo up`: the whole product on this machine, with one command.

mod up;

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
#[cfg(target_os = "linux")]
use stack::launch;
use stack::machine::Machine;
use stack::shared_postgres;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    match args.first().and_then(|word| word.to_str()) {
        #[cfg(target_os = "linux")]
        Some(launch::EXEC) => launch::exec(&args[1..]).map(|()| ExitCode::SUCCESS),
        Some(shared_postgres::KEEP) => {
            shared_postgres::keep(&Machine::detect(env::current_exe()?)?)?;
            Ok(ExitCode::SUCCESS)
        }
        _ => up::run(),
    }
}
