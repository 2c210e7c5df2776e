//! Which partitions are this worker's: leases on Postgres's clock.
//!
//! Leases only spread the work. What keeps it correct is the comparison in the commit.

use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use futures_util::StreamExt;
use shared::lifecycle::Stop;
use shared::partition::Partition;
use shared::subjects;
use tokio::sync::watch;

use crate::store::Store;
use crate::store::leases::Leases;

/// Pause between two looks at the leases.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The worker's partitions, in order.
pub type Owned = watch::Receiver<Vec<Partition>>;

/// Keeps the worker's share of the partitions.
pub struct Ownership {
    store: Store,
    client: Client,
    owned: watch::Sender<Vec<Partition>>,
}

impl Ownership {
    /// Owns nothing until it runs.
    pub fn new(store: Store, client: Client) -> (Self, Owned) {
        let (owned, receiver) = watch::channel(Vec::new());
        (Self { store, client, owned }, receiver)
    }

    /// Keeps the share until the stop.
    pub async fn run(&self, stop: &Stop) -> anyhow::Result<()> {
        let mut released = self.client.subscribe(subjects::RELEASED).await?;
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = look.tick() => self.look().await,
                Some(_) = released.next() => self.look().await,
            }
        }
        Ok(())
    }

    async fn look(&self) {
        if self.client.connection_state() != State::Connected {
            // Without the log nothing can be stored: others may be better off.
            return self.give_up().await;
        }
        match self.store.share().await {
            Ok(leases) => self.apply(leases).await,
            // Still the owner for all we know: the commit will tell.
            Err(error) => tracing::warn!(%error, "the leases cannot be renewed"),
        }
    }

    async fn apply(&self, leases: Leases) {
        let Leases { owned, released } = leases;
        self.owned.send_if_modified(|before| {
            let changed = *before != owned;
            if changed {
                tracing::info!(partitions = owned.len(), "owned partitions changed");
                *before = owned;
            }
            changed
        });
        if released > 0 {
            self.tell_released().await;
        }
    }

    async fn give_up(&self) {
        if self.owned.borrow().is_empty() {
            return;
        }
        tracing::warn!("giving up all partitions until NATS is back");
        self.owned.send_replace(Vec::new());
        self.leave().await;
    }

    /// Gives everything up, at the end.
    pub async fn leave(&self) {
        match self.store.leave().await {
            Ok(()) => self.tell_released().await,
            Err(error) => {
                tracing::warn!(%error, "the partitions cannot be given up, their leases will end");
            }
        }
    }

    async fn tell_released(&self) {
        let told = async {
            self.client.publish(subjects::RELEASED, "".into()).await.ok();
            self.client.flush().await.ok();
        };
        tokio::time::timeout(LOOK_INTERVAL, told).await.ok();
    }
}
