//! Settings come from the environment and from a `.env` file in the working directory, as the Node
//! server read them; the environment wins.
//!
//! A service lists its settings in a table of [`Setting`]s, which is also what `--help` prints, and
//! reads them through [`Settings`], which collects every mistake instead of stopping at the first.

use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use crate::env_file::EnvFile;

/// Lines that a warning names at most.
const LINES_NAMED: usize = 10;

/// One setting, as `--help` shows it.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Name of the environment variable.
    pub name: &'static str,
    /// What holds when it is not set; empty if nothing does.
    pub default: &'static str,
    /// One sentence, with the unit.
    pub help: &'static str,
}

/// Settings that both services have.
pub const COMMON: &[Setting] = &[
    Setting {
        name: "DATABASE_URL",
        default: "postgresql://localhost:5432/chatbot_db",
        help: "Postgres, as Prisma writes it: postgresql://user:password@host:port/database?schema=public",
    },
    Setting {
        name: "NATS_URL",
        default: "nats://127.0.0.1:4222",
        help: "NATS with JetStream; several servers separated by commas",
    },
    Setting {
        name: "PARTITIONS",
        default: "16",
        help: "Partitions of the log, fixed when it is made; the most persisters that can share the work",
    },
    Setting {
        name: "LOG_MAX_BYTES",
        default: "1073741824",
        help: "Most bytes of the log in NATS; when it is full, sends are refused as overloaded",
    },
    Setting {
        name: "LOG_STREAM",
        default: "CHAT",
        help: "Name of the log's stream in NATS, fixed when it is made, for a NATS where another one is called CHAT",
    },
    Setting {
        name: "LOG_REPLICAS",
        default: "1",
        help: "Copies of the log in a NATS cluster: 1, 3 or 5",
    },
    Setting {
        name: "SEARCH",
        default: "off",
        help: "on serves GET /api/messages?q= and has persisters, or persister migrate, make the index that it needs; off \
               leaves an index that is there as it is",
    },
    Setting {
        name: "RUST_LOG",
        default: "info,async_nats=warn,sqlx=warn",
        help: "What is logged: error, warn, info, debug, trace, or per module as in gateway=debug,info",
    },
    Setting {
        name: "LOG_FORMAT",
        default: "text",
        help: "Form of the logs: text for people, json for machines",
    },
    Setting {
        name: "SHUTDOWN_SECONDS",
        default: "10",
        help: "Longest time from SIGTERM to the end, in seconds; a second signal ends at once",
    },
];

/// The values of a table of settings, and the mistakes found in them.
pub struct Settings {
    table: Vec<Setting>,
    values: HashMap<&'static str, String>,
    mistakes: Vec<String>,
}

/// The `.env` file of the working directory: one further up belongs to something else.
pub struct DotEnv(io::Result<EnvFile>);

impl DotEnv {
    pub fn read() -> Self {
        Self(EnvFile::read(Path::new(".env")))
    }

    /// Warns of what was passed over. No line is repeated: it may hold a secret.
    pub fn warn(&self) {
        let passed_over = match &self.0 {
            Ok(file) => &file.passed_over,
            Err(error) => return tracing::warn!(%error, ".env cannot be read and sets nothing"),
        };
        if !passed_over.is_empty() {
            let lines: Vec<_> =
                passed_over.iter().take(LINES_NAMED).map(usize::to_string).collect();
            let more = if passed_over.len() > LINES_NAMED { " and more" } else { "" };
            let lines = lines.join(", ");
            tracing::warn!("of .env these lines set nothing and were passed over: {lines}{more}");
        }
    }
}

/// Every mistake in the settings, a line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Mistakes(pub Vec<String>);

impl Settings {
    /// Reads the environment and `.env` for the settings of these tables. What is set there to nothing counts: it
    /// keeps what the file says away.
    pub fn from_environment(tables: &[&[Setting]], file: &DotEnv) -> Self {
        let of_file = |name: &str| file.0.as_ref().ok()?.values.get(name).cloned();
        Self::new(tables, |name| match std::env::var_os(name) {
            Some(value) => value.into_string().ok(),
            None => of_file(name),
        })
    }

    /// Reads the settings of these tables from a function; a test's environment.
    pub fn new(tables: &[&[Setting]], lookup: impl Fn(&str) -> Option<String>) -> Self {
        let table: Vec<Setting> = tables.concat();
        let set = |setting: &Setting| lookup(setting.name).filter(|value| !value.is_empty());
        let values =
            table.iter().filter_map(|setting| Some((setting.name, set(setting)?))).collect();
        Self { table, values, mistakes: Vec::new() }
    }

    /// The setting, or its default; a value that cannot be parsed is noted as a mistake.
    ///
    /// # Panics
    /// At start-up, if the table lacks the setting or its default cannot be parsed.
    #[allow(clippy::expect_used)]
    pub fn get<T: FromStr<Err: Display>>(&mut self, name: &str) -> T {
        let parsed = self.optional(name);
        let default = self.table.iter().find(|setting| setting.name == name);
        parsed.unwrap_or_else(|| {
            let default = default.expect("a setting that is read stands in the table").default;
            default.parse().ok().expect("a default can be parsed")
        })
    }

    /// A number within a range, or its default; anything else is noted as a mistake.
    ///
    /// # Panics
    /// As [`Settings::get`].
    pub fn number<T>(&mut self, name: &str, range: RangeInclusive<T>) -> T
    where
        T: FromStr<Err: Display> + PartialOrd + Display + Copy,
    {
        let set = self.values.remove(name);
        let number = set.as_deref().map(|text| text.trim().parse().ok());
        match number {
            Some(Some(number)) if range.contains(&number) => number,
            Some(_) => {
                let (least, most) = (range.start(), range.end());
                self.mistake(format!("{name}: must be a number from {least} to {most}"));
                self.get(name)
            }
            None => self.get(name),
        }
    }

    /// The setting if it is set; a value that cannot be parsed is noted as a mistake.
    pub fn optional<T: FromStr<Err: Display>>(&mut self, name: &str) -> Option<T> {
        let value = self.values.get(name)?;
        match value.trim().parse() {
            Ok(parsed) => Some(parsed),
            // The value itself is not repeated: it may hold a password.
            Err(error) => {
                self.mistakes.push(format!("{name}: {error}"));
                None
            }
        }
    }

    /// Notes a mistake that only several settings together show.
    pub fn mistake(&mut self, text: impl Into<String>) {
        self.mistakes.push(text.into());
    }

    /// Ends the reading: all mistakes, or none.
    pub fn finish(self) -> Result<(), Mistakes> {
        if self.mistakes.is_empty() { Ok(()) } else { Err(Mistakes(self.mistakes)) }
    }
}

/// The tables as `--help` prints them.
pub fn help(tables: &[&[Setting]]) -> String {
    let entries: Vec<String> = tables.concat().iter().map(Setting::entry).collect();
    format!("Settings, from the environment or a .env file:\n{}", entries.join("\n"))
}

impl Setting {
    fn entry(&self) -> String {
        let default = if self.default.is_empty() { "not set" } else { self.default };
        format!("  {}\n      {} [default: {default}]", self.name, self.help)
    }
}

/// A switch: `true` or `false`, `on` or `off`, `1` or `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "1" | "yes" => Ok(Self(true)),
            "false" | "off" | "0" | "no" => Ok(Self(false)),
            _ => Err("must be true or false"),
        }
    }
}

/// Longest drain that makes sense, in seconds.
pub const SHUTDOWN_SECONDS_MAX: u64 = 3_600;

/// An IP address and a port: `127.0.0.1:4010`, `[::1]:4010`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address(pub SocketAddr);

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse()
            .map(Self)
            .map_err(|_| "must be an IP address and a port such as 127.0.0.1:4010")
    }
}

/// A span of time: `100ms`, `30s`, `15m`, `12h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const INVALID: &str = "must be a span of time such as 100ms, 30s, 15m, 12h or 7d";
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60 * 1_000,
            "h" => 60 * 60 * 1_000,
            "d" => 24 * 60 * 60 * 1_000,
            _ => return Err(INVALID),
        };
        let number: u32 = number.parse().map_err(|_| INVALID)?;
        Ok(Self(Duration::from_millis(u64::from(number) * millis)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Setting] = &[
        Setting { name: "PORT", default: "4000", help: "Port" },
        Setting { name: "KEY", default: "", help: "Key" },
    ];

    fn settings(set: &'static [(&str, &str)]) -> Settings {
        let find = move |name: &str| set.iter().find(|(key, _)| *key == name);
        Settings::new(&[TABLE], move |name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn a_default_holds_where_nothing_or_an_empty_text_is_set() {
        assert_eq!(settings(&[]).get::<u16>("PORT"), 4000);
        assert_eq!(settings(&[("PORT", "")]).get::<u16>("PORT"), 4000);
        assert_eq!(settings(&[("PORT", " 80 ")]).get::<u16>("PORT"), 80);
        assert_eq!(settings(&[]).optional::<u16>("KEY"), None);
    }

    #[test]
    fn every_mistake_is_one_line_and_repeats_no_value() {
        let mut settings = settings(&[("PORT", "secret"), ("KEY", "secret")]);
        let _: u16 = settings.get("PORT");
        let _: Option<u16> = settings.optional("KEY");
        let mistakes = settings.finish().unwrap_err().to_string();
        assert_eq!(mistakes.lines().count(), 2);
        assert!(mistakes.starts_with("PORT: ") && !mistakes.contains("secret"), "{mistakes}");
    }

    #[test]
    fn a_span_has_a_unit() {
        assert_eq!("7d".parse(), Ok(Span(Duration::from_hours(168))));
        assert_eq!("0s".parse(), Ok(Span(Duration::ZERO)));
        assert_eq!("100ms".parse(), Ok(Span(Duration::from_millis(100))));
        for text in ["", "7", "d", "-1d", "1w", "7é", "1 s", "1.5s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_default_of_the_common_settings_is_shown() {
        let help = help(&[COMMON]);
        for setting in COMMON {
            assert!(help.contains(setting.name) && help.contains(setting.default));
        }
    }
}
