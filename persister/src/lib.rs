//! The persister: reads requests from the log in order, stores them in Postgres, announces them.
//!
//! One record's way: [`reader`] takes it from the log, [`batch`] decodes it with its neighbours,
//! [`store`] commits them with the offsets in one statement, [`announcer`] tells the gateways. The
//! loop around them is [`persist`]; [`ownership`] says for which partitions it runs.

pub mod announcer;
pub mod batch;
pub mod clear;
pub mod config;
pub mod dead_letters;
pub mod lag;
pub mod metrics;
pub mod migrate;
pub mod ops;
pub mod ownership;
pub mod persist;
pub mod reader;
pub mod sessions;
pub mod store;
pub mod trim;
pub mod verify;

use shared::lifecycle::Stop;
use shared::log;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::config::Config;
use crate::lag::LagWatch;
use crate::metrics::METRICS;
use crate::ownership::Ownership;
use crate::store::Store;

/// Runs a persister until it is stopped: migrates, takes its share of the partitions, stores.
///
/// `ops` is where operators look.
pub async fn run(config: Config, ops: TcpListener, stop: Stop) -> anyhow::Result<()> {
    let (nats, disturbances) = shared::nats::connect(&config.nats, "persister").await?;
    let worker = Uuid::new_v4();
    let store = Store::connect(&config.database, worker);
    let readiness = ops::Readiness::new(nats.clone(), store.clone(), stop.clone());
    // Ends with this function, whichever way that ends.
    let mut watched = JoinSet::new();
    watched.spawn(ops::serve(ops, readiness.clone()));
    METRICS.partitions.set(config.log.partitions.get().into());

    let jetstream = async_nats::jetstream::new(nats.clone());
    let Some(()) = migrate::until_done(&config.database, &stop).await? else { return Ok(()) };
    let Some(log) = log::open_until_done(&jetstream, config.log, &stop).await? else {
        return Ok(());
    };
    let Some(()) = store.prepare_until_done(config.log.partitions, &stop).await else {
        return Ok(());
    };

    let (ownership, owned) = Ownership::new(store.clone(), nats.clone());
    readiness.follow(owned.clone());
    let trimmer = trim::Trimmer::new(store.clone(), log.clone(), owned.clone(), config.log_keep);
    let lag = LagWatch::new(store.clone(), nats.clone(), log.clone(), owned.clone());
    let persister = persist::Persister::new(store, jetstream, config.log, owned, disturbances);
    let mut tasks = JoinSet::new();
    let work_stop = stop.clone();
    tasks.spawn(async move {
        let stop = &work_stop;
        tokio::try_join!(
            ownership.run(stop),
            persister.run(stop),
            trimmer.run(stop),
            lag.run(stop)
        )?;
        // After the last batch, and after the last look that could take a partition again.
        ownership.leave().await;
        Ok(())
    });
    tracing::info!(%worker, "persister started");

    let ended =
        shared::lifecycle::until_deadline(&stop, config.shutdown, all(&mut tasks, &stop)).await;
    ended.unwrap_or_else(|| anyhow::bail!("not everything ended within the deadline"))
}

/// Waits for every task; one that ends before the stop ends the process.
async fn all(tasks: &mut JoinSet<anyhow::Result<()>>, stop: &Stop) -> anyhow::Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended??;
        anyhow::ensure!(stop.is_cancelled(), "a task ended that should run for ever");
    }
    Ok(())
}
