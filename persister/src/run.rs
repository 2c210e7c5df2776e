//! Runs a persister: connects, starts its work, and drains when it is stopped.

use anyhow::Context;
use async_nats::Client;
use shared::lifecycle::{Stop, Tasks, until_deadline};
use shared::nats::Disturbances;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::config::Config;
use crate::lag::LagWatch;
use crate::metrics::METRICS;
use crate::ownership::Ownership;
use crate::progress::ProgressWatch;
use crate::readiness::Readiness;
use crate::retention::prune::Sessions;
use crate::retention::pruner::Pruner;
use crate::retention::trim::Trimmer;
use crate::search::keeper::SearchIndex;
use crate::store::Store;
use crate::store::operator::OperatorStore;
use crate::worker::Worker;
use crate::{migrate, ops, read_marks};

/// Runs a persister until it is stopped: migrates, takes its share of the partitions, stores. A task that ends
/// before ends it with an error.
///
/// `ops` is where operators look.
pub async fn run(config: Config, ops: TcpListener, stop: Stop) -> anyhow::Result<()> {
    let services = Services::connect(&config, &stop).await?;
    let mut watched = Tasks::default();
    watched.spawn("the operators' server", ops::serve(ops, services.readiness.clone()));
    watched.spawn("the watch over NATS", shared::nats::watch(services.disturbances.clone()));
    METRICS.partitions.set(config.log.partitions.get().into());
    let storing = async {
        match Box::pin(start(&config, services, &stop)).await? {
            Some(tasks) => drain(tasks, &config, &stop).await,
            None => Ok(()),
        }
    };
    watched.while_they_run(storing).await
}

/// What a persister uses.
struct Services {
    worker: Uuid,
    nats: Client,
    disturbances: Disturbances,
    store: Store,
    readiness: Readiness,
}

impl Services {
    async fn connect(config: &Config, stop: &Stop) -> anyhow::Result<Self> {
        let (nats, disturbances) = shared::nats::connect(&config.nats, "persister").await?;
        let worker = Uuid::new_v4();
        let store = Store::connect(&config.database, worker);
        let readiness = Readiness::new(nats.clone(), store.clone(), stop.clone());
        Ok(Self { worker, nats, disturbances, store, readiness })
    }
}

/// Waits for tables, log and partitions, then starts the work. `None` if the stop came first.
async fn start(config: &Config, services: Services, stop: &Stop) -> anyhow::Result<Option<Tasks>> {
    let Services { worker, nats, disturbances, store, readiness } = services;
    let jetstream = async_nats::jetstream::new(nats.clone());
    let Some(()) = migrate::until_done(&config.database, stop).await? else { return Ok(None) };
    let log = shared::log::open_until_done(&jetstream, &config.log, stop).await?;
    let Some(log) = log else { return Ok(None) };
    let prepared = store.prepare_until_done(config.log.partitions, stop).await;
    let Some(()) = prepared else { return Ok(None) };

    let (ownership, owned) = Ownership::new(store.clone(), nats.clone());
    let (progress, waiting) = ProgressWatch::new(store.clone(), log.clone(), owned.clone());
    readiness.follow(owned.clone(), waiting.clone());
    let trimmer = Trimmer::new(store.clone(), log.clone(), owned.clone(), config.log_keep);
    let operator = OperatorStore::connect(&config.database);
    let sessions = Sessions::new(operator, nats.clone(), log.clone(), config.log.partitions);
    let pruner = Pruner::new(sessions, owned.clone(), config.retention);
    let search_index = SearchIndex::new(&config.database, owned.clone(), config.search);
    let lag = LagWatch::new(store.clone(), nats.clone(), log.clone(), owned.clone());
    let (marks, marking) = (store.clone(), config.nats.clone());
    let persister = Worker::new(store, jetstream, config.log.clone(), owned, waiting, disturbances);
    let mut tasks = Tasks::default();
    let work_stop = stop.clone();
    tasks.spawn("the work", async move {
        let stop = &work_stop;
        tokio::try_join!(
            goes_on("the leases", stop, ownership.run(stop)),
            goes_on("the storing", stop, persister.run(stop)),
            goes_on("the trimming", stop, trimmer.run(stop)),
            goes_on("what keeps what was read", stop, read_marks::keep(marks, marking, stop)),
            goes_on("the pruning", stop, pruner.run(stop)),
            goes_on("the index of SEARCH", stop, search_index.run(stop)),
            goes_on("the watch over the lag", stop, lag.run(stop)),
            goes_on("the watch over the progress", stop, progress.run(stop))
        )?;
        // After the last batch, and after the last look that could take a partition again.
        ownership.leave().await;
        Ok(())
    });
    tracing::info!(%worker, "persister started");
    Ok(Some(tasks))
}

/// Waits for the stop, then for the work to end.
async fn drain(mut tasks: Tasks, config: &Config, stop: &Stop) -> anyhow::Result<()> {
    until_deadline(stop, config.shutdown, async {
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
