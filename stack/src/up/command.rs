//! `cargo up -- COMMAND`.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use stack::build;
use stack::child::{Child, Signal};
use stack::launch::Program;
use stack::machine::Machine;

use super::running::Running;
use super::signals::Signals;

/// How often we look whether it ended.
const LOOK: Duration = Duration::from_millis(20);
/// After SIGTERM.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// As shells have it for programs that a signal ended.
const BY_SIGNAL: i32 = 128;

/// Runs it in the present folder and on the present terminal; its exit code is the answer.
pub(crate) fn run(
    machine: &Machine,
    running: &Running,
    program: &OsString,
    args: &[OsString],
    signals: &Signals,
) -> Result<ExitCode> {
    let command = Program {
        foreground: true,
        clean_env: true,
        env: build::environment().collect(),
        ..Program::new(program.to_string_lossy(), program).args(args)
    };
    let command = command
        .env("GATEWAY_URL", running.url())
        .env("DATABASE_URL", running.servers().database_url())
        .env("NATS_URL", running.servers().nats_url());
    let child = command.start(machine)?;
    loop {
        if let Some(status) = child.ended()? {
            return Ok(exit_code(status));
        }
        if signals.stopping() {
            return end(&child);
        }
        running.check()?;
        thread::sleep(LOOK);
    }
}

/// The terminal has told it, too, if it was Ctrl-C; SIGTERM came to us alone.
fn end(child: &Child) -> Result<ExitCode> {
    Ok(exit_code(child.stop(Signal::TERM, STOPS_WITHIN)?))
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| BY_SIGNAL + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}
