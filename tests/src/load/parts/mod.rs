//! What the parts can do alone on this machine: the floor that the pipeline is divided by.
//!
//! Each is driven by the client library that the services use, with records and rows like theirs; the
//! processor time of that client counts as much as the server's.

pub(super) mod echo;
mod log;
mod rows;

use std::time::Duration;

use anyhow::{Context, Result};

pub(super) use log::Window;

use super::arguments::Arguments;
use super::figures::{Figures, Unit};
use super::target::{Target, builder};
use super::usage::Server;

/// Acks that are waited for at a time.
const WINDOWS: [usize; 4] = [1, 16, 256, 2_000];
/// Rows of a batch.
const BATCHES: [usize; 4] = [1, 10, 100, 500];
/// Sessions and messages of each sender on their way to the socket library.
const ECHOES: [(usize, u64); 3] = [(50, 1), (50, 8), (500, 1)];

/// Processor time of a part for each message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// Messages a second.
    pub(super) rate: f64,
    /// Of the server, in microseconds.
    pub(super) server: f64,
    /// Of its client, in microseconds.
    pub(super) client: f64,
}

impl Cost {
    fn add_to(self, figures: &mut Figures, name: &str) {
        figures.add(name, Unit::PerSecond, self.rate);
        figures.add(format!("{name}: server"), Unit::Micros, self.server);
        if self.client > 0.0 {
            figures.add(format!("{name}: client"), Unit::Micros, self.client);
        }
    }

    fn all(self) -> f64 {
        self.server + self.client
    }
}

/// Log and database that are used by nobody else.
struct Alone<'a> {
    nats: &'a Server,
    postgres: &'a Server,
    target: &'a Target,
}

impl<'a> Alone<'a> {
    fn of(target: &'a Target) -> Result<Self> {
        let server = |name| target.servers.get(name).with_context(|| format!("no {name}"));
        Ok(Self { nats: server("NATS")?, postgres: server("Postgres")?, target })
    }

    async fn client(&self) -> Result<async_nats::Client> {
        let stack = self.target.stack.as_ref().context("no stack of our own")?;
        Ok(stack.nats_client().await)
    }

    async fn pool(&self) -> Result<sqlx::PgPool> {
        let pool = self.target.pool().context("no stack of our own")?;
        rows::prepare(&pool).await?;
        Ok(pool)
    }
}

/// All of them, at several concurrencies.
pub(super) async fn measure(arguments: &Arguments, lasts: Duration) -> Result<Figures> {
    let target = Target::ours(builder(arguments, None).gateways(0).persisters(1).start().await);
    stop_services(&target).await;
    let alone = Alone::of(&target)?;
    let client = alone.client().await?;
    let mut figures = Figures::default();
    for window in WINDOWS {
        let published = log::publish(&client, alone.nats, window, lasts).await?;
        published.add_to(&mut figures, &format!("JetStream, publish, window {window}"));
    }
    log::consume(&client, alone.nats).await?.add_to(&mut figures, "JetStream, consume");
    log::announce(alone.client().await?, client, alone.nats, lasts)
        .await?
        .add_to(&mut figures, "NATS, publish and receive");
    let pool = alone.pool().await?;
    for batch in BATCHES {
        let stored = rows::store(&pool, alone.postgres, batch, lasts).await?;
        stored.add_to(&mut figures, &format!("Postgres, batches of {batch}"));
    }
    for (sessions, in_flight) in ECHOES {
        let name = format!("socketioxide, {sessions} sessions, {in_flight} in flight");
        echo::measure(sessions, in_flight, lasts).await?.add_to(&mut figures, &name);
    }
    Ok(figures)
}

/// What a closed loop would take if there were only the parts: at its concurrency, with its batches.
/// The services of the target are stopped for it.
pub(super) async fn floor(
    target: &Target,
    sessions: usize,
    in_flight: u64,
    batch: f64,
) -> Result<Figures> {
    const LASTS: Duration = Duration::from_secs(3);
    const ROWS_MAX: f64 = 500.0;
    stop_services(target).await;
    let alone = Alone::of(target)?;
    let client = alone.client().await?;
    let window = sessions * super::talker::MEMBERS * usize::try_from(in_flight)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to 500")]
    let batch = batch.clamp(1.0, ROWS_MAX) as usize;
    let parts = [
        ("socket library", echo::measure(sessions, in_flight, LASTS).await?),
        ("log, publish", log::publish(&client, alone.nats, window, LASTS).await?),
        ("log, consume", log::consume(&client, alone.nats).await?),
        ("rows", rows::store(&alone.pool().await?, alone.postgres, batch, LASTS).await?),
        ("announce", log::announce(alone.client().await?, client, alone.nats, LASTS).await?),
    ];
    let mut figures = Figures::default();
    for (name, cost) in parts {
        figures.add(format!("floor, {name}"), Unit::Micros, cost.all());
    }
    figures.add("floor, all parts", Unit::Micros, parts.iter().map(|(_, cost)| cost.all()).sum());
    Ok(figures)
}

async fn stop_services(target: &Target) {
    let stack = target.stack.iter();
    let services = stack.flat_map(|stack| stack.gateways().iter().chain(stack.persisters()));
    for service in services.filter(|service| service.is_running()) {
        service.terminate().await;
    }
}
