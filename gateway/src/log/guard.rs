//! Keeps the connection that publishes, and what was acked with it.
//!
//! A log may lose what it took: it was wiped, or lost its tail in a power cut, or an older copy was put back. What was
//! acked and is not stored is kept ([`crate::log::pending_sends`]). The connection has one life: when it is cut, what
//! waits to be written goes with it. Before anything new goes out over the next one, the newest record that the log
//! took is looked for in it. If it is gone, what Postgres does not have is published again, under the same ids and in
//! the same order: ids make it harmless where it was not needed.
//!
//! The same is done where a persister finds another log, which may happen without a cut.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::PublishAckFuture;
use bytes::Bytes;
use shared::lifecycle::{Backoff, Stop, pause};
use shared::log::{Log, LogSettings};
use shared::nats::NatsUrl;
use tokio_util::sync::CancellationToken;

use crate::db::history::History;
use crate::log::pending_sends::{Kept, PendingSends, Ticket};
use crate::log::publisher::{PublishConnection, Publisher};
use crate::log::session_lookup::SessionLookup;
use crate::metrics::METRICS;

/// Pauses between tries while NATS does not answer: what waits is refused meanwhile.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Requests that are published again at a time.
const WINDOW: usize = 256;
/// Longest wait for Postgres, which only spares the log what is stored already.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Guard {
    pub nats: NatsUrl,
    pub log: LogSettings,
    pub publisher: Arc<Publisher>,
    pub pending: Arc<PendingSends>,
    pub lookup: Arc<SessionLookup>,
    pub history: History,
}

impl Guard {
    /// Keeps a connection until the stop.
    pub async fn run(self, stop: Stop) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
        let (mut lacks_something, mut is_told, mut is_first) = (false, false, true);
        while !stop.is_cancelled() {
            match stop.run_until_cancelled(Box::pin(self.connect(&mut lacks_something))).await {
                None => break,
                Some(Ok((connection, cut))) => {
                    backoff.reset();
                    is_told = false;
                    if !std::mem::take(&mut is_first) {
                        self.lookup.log_is_back();
                    }
                    self.publisher.open(Some(connection));
                    lacks_something = self.until_cut(&cut, &stop).await;
                    self.publisher.open(None);
                    self.lookup.log_is_away();
                }
                Some(Err(error)) => {
                    // NATS may be away for long.
                    if !std::mem::replace(&mut is_told, true) {
                        let error = shared::causes::told(error.as_ref());
                        tracing::warn!("nothing can be published yet: {error}");
                    }
                    if !pause(&stop, backoff.pause()).await {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits for the end of a connection; `true` if the log is another one, and lacks something.
    async fn until_cut(&self, cut: &CancellationToken, stop: &Stop) -> bool {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return false,
                () = cut.cancelled() => return false,
                () = self.pending.log_replaced() => {}
            }
            if self.pending.newest().is_some() {
                return true;
            }
        }
    }

    /// Connects, and makes sure that the log has what was acked. That it lacks something stands until all of it was
    /// published again: what was so last is there, wherever that broke off.
    async fn connect(
        &self,
        lacks_something: &mut bool,
    ) -> anyhow::Result<(PublishConnection, CancellationToken)> {
        let (client, cut) = self.nats.connect_until_cut("gateway, publishing").await?;
        let connection = PublishConnection::new(client);
        // Makes it where it was deleted: persisters may be away.
        let log = shared::log::open(connection.jetstream(), &self.log).await?;
        if let Some((sequence, payload)) = self.pending.newest() {
            *lacks_something |= !has(&log, sequence, &payload).await?;
            if *lacks_something {
                self.publish_again(&connection).await?;
            }
        }
        *lacks_something = false;
        Ok((connection, cut))
    }

    /// Publishes what Postgres does not have, in the order in which it was published first.
    async fn publish_again(&self, connection: &PublishConnection) -> anyhow::Result<()> {
        let kept = self.pending.kept();
        tracing::error!(
            requests = kept.len(),
            "the log has lost what it took: what is not stored yet is published again"
        );
        self.settle_stored(&kept).await;
        let left = self.pending.kept();
        for window in left.chunks(WINDOW) {
            let mut under_way = Vec::with_capacity(window.len());
            for Kept { ticket, sought, payload } in window {
                let partition = ticket.partition;
                let ack = connection.put(partition, sought.session, payload.clone()).await;
                let ack = ack.map_err(|error| anyhow::anyhow!("{}", error.message))?;
                under_way.push((*ticket, ack));
            }
            for (ticket, ack) in under_way {
                self.took_again(ticket, ack).await?;
            }
        }
        Ok(())
    }

    async fn took_again(&self, ticket: Ticket, ack: PublishAckFuture) -> anyhow::Result<()> {
        let sequence = ack.await?.sequence;
        self.pending.taken(ticket, sequence, Duration::ZERO);
        METRICS.published_again.inc();
        Ok(())
    }

    /// Answers what Postgres has, if it answers.
    async fn settle_stored(&self, kept: &[Kept]) {
        for some in kept.chunks(WINDOW) {
            let sought: Vec<_> = some.iter().map(|kept| &kept.sought).collect();
            match tokio::time::timeout(ASK_TIMEOUT, self.history.fates(&sought)).await {
                Ok(Ok(fates)) => {
                    for (kept, found) in some.iter().zip(fates) {
                        self.pending.found(kept.ticket, &found, false);
                    }
                }
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

/// Whether the log has this record where it was.
async fn has(log: &Log, sequence: u64, payload: &Bytes) -> anyhow::Result<bool> {
    let record = log.record(sequence).await?;
    Ok(record.is_some_and(|record| record.payload == *payload))
}
