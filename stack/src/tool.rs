//! Short-lived programs, run to their end under a deadline.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::wait;

/// For programs that only print something.
const QUICK: Duration = Duration::from_secs(20);

/// What `program args…` prints.
pub fn output<I, A>(program: impl AsRef<OsStr>, args: I) -> Result<String>
where
    I: IntoIterator<Item = A>,
    A: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    run(command, QUICK)
}

/// Runs `command` and returns its standard output; a failure carries its standard error.
pub fn run(mut command: Command, within: Duration) -> Result<String> {
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    finish_reading(command, within)
}

/// The same, with this on its standard input.
pub fn run_fed(mut command: Command, input: fs::File, within: Duration) -> Result<String> {
    command.stdin(input).stderr(Stdio::piped());
    finish_reading(command, within)
}

/// The same, with standard error going where ours goes.
pub fn run_visibly(mut command: Command, within: Duration) -> Result<String> {
    command.stdin(Stdio::null());
    finish_reading(command, within)
}

/// Runs `command` and shows `look` again and again what it has printed so far; a failure carries its
/// standard error.
pub fn run_watched(
    mut command: Command,
    within: Duration,
    mut look: impl FnMut(&str),
) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let said = Arc::new(Mutex::new(String::new()));
    let printed = child.stdout.take().map(|pipe| note_lines(pipe, Arc::clone(&said)));
    let complained = reader(child.stderr.take());
    let ended = wait::until(within, &format!("{name} to end"), || {
        look(&said.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(child.try_wait()?)
    });
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let status = ended?;
    // What was printed last is shown too.
    printed.map(JoinHandle::join);
    look(&said.lock().unwrap_or_else(PoisonError::into_inner));
    ensure!(status.success(), "{name} failed ({status}): {}", text_of(complained).trim());
    Ok(())
}

fn note_lines(pipe: impl Read + Send + 'static, said: Arc<Mutex<String>>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push_str(&line);
            said.push('\n');
        }
    })
}

fn finish_reading(mut command: Command, within: Duration) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let said = reader(child.stdout.take());
    let complained = reader(child.stderr.take());
    let status = finish(&mut child, within, &name)?;
    let said = text_of(said);
    if status.success() {
        return Ok(said);
    }
    bail!("{name} failed ({status}): {}", text_of(complained).trim())
}

/// Waits for the end of `child`; past the deadline it is killed.
pub fn finish(child: &mut Child, within: Duration, name: &str) -> Result<ExitStatus> {
    let ended = wait::until(within, &format!("{name} to end"), || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    ended
}

/// Reads a pipe to its end beside the program that fills it, so that neither waits for the other.
fn reader(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read until an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn text_of(reader: JoinHandle<String>) -> String {
    reader.join().unwrap_or_default()
}

/// The last lines of a log.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
