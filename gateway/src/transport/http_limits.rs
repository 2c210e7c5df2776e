//! Bounds of an HTTP connection, as the settings say.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use shared::settings::Settings;
use tokio::time::{Instant, Sleep};

/// Less than any browser sends would refuse everybody.
const HEADER_BYTES_MIN: usize = 1_024;
/// Beyond that the server gives up by itself.
const HEADER_BYTES_MAX: usize = 262_144;
/// Longest times of HTTP connections, in seconds.
const HTTP_SECONDS_MAX: u64 = 3_600;
/// The same of slow clients.
const SLOW_SECONDS_MAX: u32 = 3_600;
/// No telephone line sends as much.
const BYTES_PER_SECOND_MAX: u32 = 1_000_000;

/// Bounds of an HTTP connection.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// Most bytes of a request's headers.
    pub header_bytes: usize,
    /// Longest time from a request's first byte to the end of its headers; of the first request, from the
    /// beginning of the connection.
    pub header_time: Duration,
    /// Longest wait for a request.
    pub idle_time: Duration,
    /// How fast clients send bodies and read.
    pub least_rate: LeastRate,
}

/// The least rate at which something comes or goes.
#[derive(Debug, Clone, Copy)]
pub struct LeastRate {
    pub bytes_per_second: u32,
    /// How long it may be less.
    pub grace_seconds: u32,
}

impl LeastRate {
    /// How long it may be less.
    pub fn grace(self) -> Duration {
        Duration::from_secs(self.grace_seconds.into())
    }

    /// What comes or goes at this rate in that time.
    pub fn bytes_in_grace(self) -> u64 {
        u64::from(self.bytes_per_second) * u64::from(self.grace_seconds)
    }
}

/// How long something may take to come: a time, and a second more for every so many bytes of it that came. Who sends
/// much at once gets no more than that time for the rest.
pub struct Pace {
    least: LeastRate,
    /// Until when more must come; nothing before it is waited for.
    end: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Nothing is waited for yet.
    pub fn new(least: LeastRate) -> Self {
        Self { least, end: None }
    }

    /// Waits for more, until the time for what came so far is over.
    pub fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let grace = self.least.grace();
        let end = self
            .end
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + grace)));
        end.as_mut().poll(cx)
    }

    /// So many bytes came.
    pub fn came(&mut self, bytes: u64) {
        let Some(end) = &mut self.end else { return };
        let earned = end.deadline() + Duration::from_secs(bytes) / self.least.bytes_per_second;
        end.as_mut().reset(earned.min(Instant::now() + self.least.grace()));
    }

    /// All of it came.
    pub fn stop(&mut self) {
        self.end = None;
    }
}

impl HttpLimits {
    pub fn read(settings: &mut Settings) -> Self {
        let mut seconds = |name| Duration::from_secs(settings.number(name, 1..=HTTP_SECONDS_MAX));
        let (header_time, idle_time) = (seconds("HEADER_SECONDS"), seconds("IDLE_SECONDS"));
        let least_rate = LeastRate {
            bytes_per_second: settings.number("MIN_BYTES_PER_SECOND", 1..=BYTES_PER_SECOND_MAX),
            grace_seconds: settings.number("SLOW_SECONDS", 1..=SLOW_SECONDS_MAX),
        };
        let header_bytes = settings.number("MAX_HEADER_BYTES", HEADER_BYTES_MIN..=HEADER_BYTES_MAX);
        Self { header_bytes, header_time, idle_time, least_rate }
    }
}
