//! The persister: reads requests from the log in order, stores them in Postgres, announces them.
//!
//! One record's way: [`reader`] takes it from the log, [`batch`] decodes it with its neighbours,
//! [`store::commit`] stores them with the offsets in one statement, [`announcer`] tells the gateways. The
//! loop around them is [`worker`]; [`ownership`] says for which partitions it runs.

pub mod announcer;
pub mod batch;
pub mod commands;
pub mod config;
pub mod lag;
pub mod log_identity;
pub mod metrics;
pub mod migrate;
pub mod ops;
pub mod ownership;
pub mod progress;
pub mod reader;
pub mod readiness;
pub mod retention;
pub mod store;
pub mod worker;

use anyhow::Context;
use async_nats::Client;
use shared::lifecycle::{Stop, Tasks, until_deadline};
use shared::log;
use shared::nats::Disturbances;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::config::Config;
use crate::lag::LagWatch;
use crate::metrics::METRICS;
use crate::ownership::Ownership;
use crate::progress::ProgressWatch;
use crate::readiness::Readiness;
use crate::retention::trim::Trimmer;
use crate::store::Store;
use crate::worker::Worker;

/// Runs a persister until it is stopped: migrates, takes its share of the partitions, stores. A task that ends
/// before ends it with an error.
///
/// `ops` is where operators look.
pub async fn run(config: Config, ops: TcpListener, stop: Stop) -> anyhow::Result<()> {
    let (nats, disturbances) = shared::nats::connect(&config.nats, "persister").await?;
    let worker = Uuid::new_v4();
    let store = Store::connect(&config.database, worker);
    let readiness = Readiness::new(nats.clone(), store.clone(), stop.clone());
    let mut watched = Tasks::default();
    watched.spawn("the operators' server", ops::serve(ops, readiness.clone()));
    watched.spawn("the watch over NATS", shared::nats::watch(disturbances.clone()));
    METRICS.partitions.set(config.log.partitions.get().into());
    let needs = Needs { nats, disturbances, store, readiness };
    watched.while_they_run(Box::pin(store_all(config, worker, needs, stop))).await
}

/// What a persister uses.
struct Needs {
    nats: Client,
    disturbances: Disturbances,
    store: Store,
    readiness: Readiness,
}

async fn store_all(config: Config, worker: Uuid, needs: Needs, stop: Stop) -> anyhow::Result<()> {
    let Needs { nats, disturbances, store, readiness } = needs;
    let jetstream = async_nats::jetstream::new(nats.clone());
    let Some(()) = migrate::until_done(&config.database, &stop).await? else { return Ok(()) };
    let Some(log) = log::open_until_done(&jetstream, config.log, &stop).await? else {
        return Ok(());
    };
    let Some(()) = store.prepare_until_done(config.log.partitions, &stop).await else {
        return Ok(());
    };

    let (ownership, owned) = Ownership::new(store.clone(), nats.clone());
    let (progress, waiting) = ProgressWatch::new(store.clone(), log.clone(), owned.clone());
    readiness.follow(owned.clone(), waiting);
    let trimmer = Trimmer::new(store.clone(), log.clone(), owned.clone(), config.log_keep);
    let lag = LagWatch::new(store.clone(), nats.clone(), log.clone(), owned.clone());
    let persister = Worker::new(store, jetstream, config.log, owned, disturbances);
    let mut tasks = Tasks::default();
    let work_stop = stop.clone();
    tasks.spawn("the work", async move {
        let stop = &work_stop;
        tokio::try_join!(
            goes_on("the leases", stop, ownership.run(stop)),
            goes_on("the storing", stop, persister.run(stop)),
            goes_on("the trimming", stop, trimmer.run(stop)),
            goes_on("the watch over the lag", stop, lag.run(stop)),
            goes_on("the watch over the progress", stop, progress.run(stop))
        )?;
        // After the last batch, and after the last look that could take a partition again.
        ownership.leave().await;
        Ok(())
    });
    tracing::info!(%worker, "persister started");

    until_deadline(&stop, config.shutdown, async {
        tokio::select! {
            // First: they end by the same stop.
            biased;
            () = stop.cancelled() => tasks.all_ended().await,
            error = tasks.one_ended() => Err(error),
        }
    })
    .await
}

/// What ends before the stop is an error: the others would go on without it.
async fn goes_on(
    name: &str,
    stop: &Stop,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    work.await.with_context(|| format!("{name} ended"))?;
    anyhow::ensure!(stop.is_cancelled(), "{name} ended");
    Ok(())
}
