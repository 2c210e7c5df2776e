//! The lines of several programs in one stream, each behind its program's name.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::Child;
use std::thread;

/// Wide enough for `persister-10`.
const WIDTH: usize = 12;

/// Copies what `child` prints to our standard error, line by line, until it ends.
pub(crate) fn forward(name: &str, child: &mut Child, except: &'static [&'static str]) {
    let label = format!("{name:WIDTH$} │ ");
    if let Some(pipe) = child.stdout.take() {
        copy_lines(label.clone(), pipe, except);
    }
    if let Some(pipe) = child.stderr.take() {
        copy_lines(label, pipe, except);
    }
}

fn copy_lines(label: String, pipe: impl Read + Send + 'static, except: &'static [&'static str]) {
    thread::spawn(move || {
        let mut lines = BufReader::new(pipe);
        let mut line = Vec::from(label.as_bytes());
        while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            if !line.ends_with(b"\n") {
                line.push(b'\n');
            }
            let text = String::from_utf8_lossy(&line);
            if !except.iter().any(|except| text.contains(except)) {
                // The child must be able to print on when nobody reads our output any more.
                let _ = io::stderr().write_all(&line);
            }
            line.truncate(label.len());
        }
    });
}
