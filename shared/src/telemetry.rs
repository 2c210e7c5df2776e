//! Logs: text for people, JSON for machines, on standard error.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;

use time::OffsetDateTime;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::timestamp::Timestamp;

/// What the client of NATS says below `info` here holds whole URLs, passwords included. What it calls an error is said
/// by [`crate::nats`] too, or is only the end of a connection that has one life.
const CONNECTOR: &str = "async_nats::connector";

/// Form of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be text or json"),
        }
    }
}

/// What is logged; the value of `RUST_LOG`.
pub struct Filter(EnvFilter);

impl FromStr for Filter {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let filter = EnvFilter::builder().parse(text);
        filter
            .map(Self)
            .map_err(|_| "must be a level (error, warn, info, debug, trace) or levels per module")
    }
}

/// Starts logging for the whole process; a second call changes nothing.
pub fn start(filter: Filter, format: LogFormat) {
    // https://no-color.org
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colour = std::io::stderr().is_terminal() && !plain;
    let subscriber = subscriber(filter, format, colour, std::io::stderr);
    if let Err(error) = subscriber.try_init() {
        tracing::debug!(%error, "logging had been started before");
    }
}

fn subscriber(
    filter: Filter,
    format: LogFormat,
    colour: bool,
    writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
) -> impl Subscriber + Send + Sync {
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colour);
    let lines = match format {
        LogFormat::Text => lines.with_timer(Milliseconds).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // A directive of the filter could not do this: it would raise the level where less is asked for.
    let worth_telling = filter_fn(is_worth_telling);
    tracing_subscriber::registry().with(filter.0).with(worth_telling).with(lines)
}

fn is_worth_telling(metadata: &Metadata<'_>) -> bool {
    !metadata.target().starts_with(CONNECTOR)
        || [Level::INFO, Level::WARN].contains(metadata.level())
}

/// The time of a line as people read it.
struct Milliseconds;

impl FormatTime for Milliseconds {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", Timestamp::truncate(OffsetDateTime::now_utc()))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex, MutexGuard};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    struct Line<'a>(MutexGuard<'a, Vec<u8>>);

    impl io::Write for Line<'_> {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Page {
        type Writer = Line<'a>;

        fn make_writer(&'a self) -> Line<'a> {
            Line(self.0.lock().unwrap())
        }
    }

    /// What is logged of the same few events.
    fn said(filter: &str, format: LogFormat) -> String {
        let page = Page::default();
        let subscriber = subscriber(filter.parse().unwrap(), format, false, page.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!(target: "async_nats::connector", "secret");
            tracing::trace!(target: "async_nats::connector::deeper", "secret");
            tracing::info!(target: "async_nats::connector", server = 4222, "connected");
            tracing::warn!(target: "async_nats::connector", "lost");
            tracing::error!(target: "async_nats::connector", "cut");
            tracing::debug!(target: "async_nats", "detail");
            tracing::info!(target: "gateway", "listening");
            tracing::error!(target: "gateway", "broken");
        });
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }

    fn words(filter: &str) -> Vec<String> {
        let last = |line: &str| line.split_whitespace().nth(3).unwrap().to_owned();
        said(filter, LogFormat::Text).lines().map(last).collect()
    }

    #[test]
    fn a_library_says_no_more_than_it_was_asked_for() {
        let default = crate::settings::COMMON.iter().find(|one| one.name == "RUST_LOG").unwrap();
        assert_eq!(words(default.default), ["lost", "listening", "broken"]);
        assert_eq!(words("error"), ["broken"]);
        assert_eq!(words("off"), [""; 0]);
        assert_eq!(words("async_nats=error,gateway=info"), ["listening", "broken"]);
    }

    #[test]
    fn passwords_are_not_logged_whatever_is_asked_for() {
        let all = ["connected", "lost", "detail", "listening", "broken"];
        for filter in ["trace", "debug", "async_nats::connector=trace,debug"] {
            assert_eq!(words(filter), all, "{filter}");
            assert!(!said(filter, LogFormat::Json).contains("secret"), "{filter}");
        }
    }

    #[test]
    fn a_line_for_people_has_milliseconds_and_one_for_machines_is_an_object() {
        let line = said("error", LogFormat::Text);
        let (time, rest) = line.split_once(' ').unwrap();
        assert_eq!(time.len(), "2026-01-31T09:41:07.123Z".len(), "{line}");
        assert_eq!(rest.trim(), "ERROR gateway: broken");
        let object: serde_json::Value =
            serde_json::from_str(said("error", LogFormat::Json).trim()).unwrap();
        assert_eq!(object["message"], "broken");
    }
}
