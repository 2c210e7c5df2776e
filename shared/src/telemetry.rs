//! Logs: text for people, JSON for machines, on standard error.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

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
        const INVALID: &str =
            "must be a level (error, warn, info, debug, trace) or levels per module";
        // The client prints whole URLs below this level, passwords included.
        let silenced = "async_nats::connector=info".parse().map_err(|_| INVALID)?;
        let filter = EnvFilter::builder().parse(text).map_err(|_| INVALID)?;
        Ok(Self(filter.add_directive(silenced)))
    }
}

/// Starts logging for the whole process; a second call changes nothing.
pub fn start(filter: Filter, format: LogFormat) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter.0)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging had been started before");
    }
}
