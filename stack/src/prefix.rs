//! The lines of several programs in one stream, each behind its program's name.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::style::{Paint, Style};
use crate::wait;

/// Wide enough for `persister-10`.
const WIDTH: usize = 12;
/// What a program wrote before its end is read soon after it.
const READ_WITHIN: Duration = Duration::from_secs(2);

/// Which lines are shown, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// As they are, except those with such a text.
    Except(&'static [&'static str]),
    /// Log lines of our services, shortened. Other lines wait for the log line behind them: the last
    /// ones are why the service ended, and the program that started it says that.
    OfService,
}

/// What a program said last.
#[derive(Debug, Default)]
pub(crate) struct LastWords {
    held: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl LastWords {
    /// The lines behind the last log line of a program that ended.
    pub(crate) fn take(&self) -> Vec<String> {
        let read = || Ok(self.readers.iter().all(JoinHandle::is_finished).then_some(()));
        // A grandchild may keep the pipe open; what came so far must do.
        let _ = wait::until(READ_WITHIN, "its last words", read);
        std::mem::take(&mut *lock(&self.held))
    }
}

/// Copies what `child` prints to our standard error, line by line, until it ends.
pub(crate) fn forward(name: &str, child: &mut Child, lines: Lines) -> LastWords {
    let style = Style::of_errors();
    let number = name.bytes().map(usize::from).sum();
    let label = format!("{} ", style.paint(Paint::Number(number), &format!("{name:WIDTH$} │")));
    let mut words = LastWords::default();
    let held = Arc::clone(&words.held);
    let copy =
        |pipe| Copier { label: label.clone(), style, lines, held: Arc::clone(&held) }.run(pipe);
    words.readers.extend(child.stdout.take().map(|pipe| copy(Box::new(pipe) as Pipe)));
    words.readers.extend(child.stderr.take().map(|pipe| copy(Box::new(pipe) as Pipe)));
    words
}

type Pipe = Box<dyn Read + Send>;

struct Copier {
    label: String,
    style: Style,
    lines: Lines,
    held: Arc<Mutex<Vec<String>>>,
}

impl Copier {
    fn run(self, pipe: Pipe) -> JoinHandle<()> {
        thread::spawn(move || {
            let mut lines = BufReader::new(pipe);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                self.take(String::from_utf8_lossy(&line).trim_end());
                line.clear();
            }
        })
    }

    fn take(&self, line: &str) {
        match self.lines {
            Lines::Except(except) if except.iter().any(|text| line.contains(text)) => {}
            Lines::Except(_) => self.show(line),
            Lines::OfService => match shortened(line, self.style) {
                Some(short) => {
                    let held = std::mem::take(&mut *lock(&self.held));
                    for line in &held {
                        self.show(line);
                    }
                    self.show(&short);
                }
                None => lock(&self.held).push(line.to_owned()),
            },
        }
    }

    fn show(&self, line: &str) {
        // One write, so that lines of two programs do not mix. The child must be able to print on when
        // nobody reads our output any more.
        let _ = io::stderr().write_all(format!("{}{line}\n", self.label).as_bytes());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A log line without what one at a terminal knows: the day, and which program it is. Nothing if it is
/// no log line. One for machines stays as it is.
fn shortened(line: &str, style: Style) -> Option<String> {
    if line.starts_with('{') {
        return Some(line.to_owned());
    }
    let (time, rest) = line.split_once(' ')?;
    let clock = time.strip_suffix('Z')?.split_once('T')?.1.split('.').next()?;
    let (level, said) = rest.trim_start().split_once(' ')?;
    let paint = match level {
        "ERROR" => Paint::Bad,
        "WARN" => Paint::Warning,
        "INFO" => Paint::Good,
        "DEBUG" | "TRACE" => Paint::Faint,
        _ => return None,
    };
    let said = said.split_once(": ").map_or(said, |(target, text)| {
        let ours = ["gateway", "persister", "shared"];
        let of_ours = target.split("::").next().is_some_and(|name| ours.contains(&name));
        if of_ours { text } else { said }
    });
    let level = style.paint(paint, &format!("{level:5}"));
    Some(format!("{} {level} {said}", style.paint(Paint::Faint, clock)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(line: &str) -> Option<String> {
        // No test runs on a terminal that a line would be painted for.
        shortened(line, Style::plain())
    }

    #[test]
    fn a_log_line_is_short_and_says_which_library_it_is_of() {
        let line = "2026-01-31T09:41:07.123456Z  INFO gateway::run: listening on http://[::1]:4000";
        assert_eq!(short(line).unwrap(), "09:41:07 INFO  listening on http://[::1]:4000");
        let line = "2026-01-31T09:41:07.123Z  WARN async_nats::connector: gone: no route";
        assert_eq!(short(line).unwrap(), "09:41:07 WARN  async_nats::connector: gone: no route");
        let json = r#"{"timestamp":"2026-01-31T09:41:07.123Z"}"#;
        assert_eq!(short(json).unwrap(), json);
    }

    #[test]
    fn an_error_of_the_program_is_no_log_line() {
        for line in
            ["PORT: must be a number", "", "error: x", "2026 was INFO a year", "at 12:00Z INFO x"]
        {
            assert_eq!(short(line), None, "{line}");
        }
    }
}
