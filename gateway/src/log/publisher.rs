//! The way into the log: publishes requests and learns whether JetStream took them.

use std::error::Error as _;
use std::sync::Arc;

use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream::context::{
    ContextBuilder, PublishAckFuture, PublishError, PublishErrorKind,
};
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;
use shared::announcement;
use shared::ids::SessionId;
use shared::partition::{Partition, PartitionCount};
use shared::subjects;
use socketioxide::socket::Sid;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::error::{ClientError, ErrorCode as Code};
use crate::log::health::{ANSWER_TIMEOUT, LogHealth};
use crate::log::send_permits::{SendPermit, SendPermits};
use crate::metrics::METRICS;

/// Requests on their way to the log at a time. It bounds memory and the wait of the last one: at
/// 30,000 a second it is a seventh of a second.
const IN_FLIGHT_MAX: u32 = 4_096;

pub struct Publisher {
    /// What is told to other gateways.
    client: Client,
    /// While there is a connection, and nothing stands before what is new.
    open: watch::Sender<Option<PublishConnection>>,
    partitions: PartitionCount,
    permits: Arc<Semaphore>,
    sends: SendPermits,
    health: LogHealth,
}

/// A connection of its own for what is published: see [`crate::log::guard`]. Cheap to clone.
#[derive(Clone)]
pub struct PublishConnection {
    client: Client,
    jetstream: jetstream::Context,
}

/// A request that is on its way to the log.
pub struct PendingPublish {
    ack: PublishAckFuture,
    deadline: Instant,
    health: LogHealth,
    _permit: PublishPermit,
}

/// One of the [`IN_FLIGHT_MAX`].
struct PublishPermit(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

impl Publisher {
    /// Publishes once it is opened, and notes what the log takes; tells other gateways over `client`.
    pub fn new(client: Client, partitions: PartitionCount, health: LogHealth) -> Self {
        Self {
            client,
            open: watch::Sender::new(None),
            partitions,
            permits: Arc::new(Semaphore::new(IN_FLIGHT_MAX as usize)),
            sends: SendPermits::default(),
            health,
        }
    }

    /// From now on requests are published over this connection; without one they are refused.
    pub fn open(&self, connection: Option<PublishConnection>) {
        self.open.send_replace(connection);
    }

    /// Resolves once requests are published.
    pub async fn is_open(&self) {
        // It cannot fail: what would be told of the end is held here.
        self.open.subscribe().wait_for(Option::is_some).await.ok();
    }

    /// Tells all gateways, this one too, that the end of a session is in the log.
    pub async fn tell_ended(&self, session: SessionId) {
        let partition = self.partitions.partition_of(session);
        let told = announcement::tell_ended(&self.client, partition, session);
        // Nobody waits for a connection whose queue is full.
        tokio::time::timeout(ANSWER_TIMEOUT, told).await.ok();
    }

    /// When a request that arrives now must be answered.
    pub fn deadline() -> Instant {
        Instant::now() + ANSWER_TIMEOUT
    }

    /// Room for one more send of a socket, or of a request, to wait; `None` if what waits already cannot be stored soon.
    pub fn send_permit(&self, socket: Option<Sid>) -> Option<SendPermit> {
        self.sends.get(socket)
    }

    /// Puts the bytes of a request on their way. Requests get into the log in the order of these calls.
    pub async fn publish(
        &self,
        session: SessionId,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<PendingPublish, ClientError> {
        // Without a connection the library would queue it.
        let connection = self.open.borrow().clone().filter(PublishConnection::is_up);
        let Some(connection) = connection else {
            return Err(ClientError::unavailable());
        };
        let partition = self.partitions.partition_of(session);
        let sent = async {
            let permit = Arc::clone(&self.permits).acquire_owned().await;
            let permit = PublishPermit::new(permit.map_err(|_| ClientError::unavailable())?);
            let ack = connection.put(partition, session, payload).await?;
            let health = self.health.clone();
            Ok(PendingPublish { ack, deadline, health, _permit: permit })
        };
        // Until it resolves nothing was sent.
        tokio::time::timeout_at(deadline, sent)
            .await
            .unwrap_or_else(|_| Err(ClientError::overloaded()))
    }
}

impl PublishConnection {
    pub fn new(client: Client) -> Self {
        let jetstream = ContextBuilder::new()
            .timeout(ANSWER_TIMEOUT)
            // Ours bounds it first; the library's would block without a word.
            .max_ack_inflight(2 * IN_FLIGHT_MAX as usize)
            .build(client.clone());
        Self { client, jetstream }
    }

    pub fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Puts the bytes of a request on their way.
    pub async fn put(
        &self,
        partition: Partition,
        session: SessionId,
        payload: Bytes,
    ) -> Result<PublishAckFuture, ClientError> {
        let subject = subjects::request(partition, session);
        self.jetstream.publish(subject, payload).await.map_err(|error| client_error(&error))
    }
}

impl PendingPublish {
    /// Waits until the request is in the log, and says where it stands.
    pub async fn accepted(self) -> Result<u64, ClientError> {
        let answer = tokio::time::timeout_at(self.deadline, self.ack.into_future()).await;
        let left = self.deadline.saturating_duration_since(Instant::now());
        let waited = ANSWER_TIMEOUT.saturating_sub(left);
        match answer {
            Ok(Ok(ack)) => {
                METRICS.accept_seconds.observe(waited.as_secs_f64());
                self.health.took();
                Ok(ack.sequence)
            }
            Ok(Err(error)) => {
                let error = client_error(&error);
                // One that is larger than the log takes says nothing of the log.
                if error.code != Code::TooLarge {
                    self.health.refused(waited);
                }
                Err(error)
            }
            Err(_) => {
                self.health.refused(waited);
                Err(ClientError::unavailable())
            }
        }
    }
}

impl PublishPermit {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        METRICS.publishes_in_flight.inc();
        Self(permit)
    }
}

impl Drop for PublishPermit {
    fn drop(&mut self) {
        METRICS.publishes_in_flight.dec();
    }
}

/// What a failed publish means for the client: only a refusal by the server is surely not taken.
fn client_error(error: &PublishError) -> ClientError {
    let refused = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    match refused.map(jetstream::Error::error_code) {
        Some(ErrorCode::STREAM_STORE_FAILED | ErrorCode::INSUFFICIENT_RESOURCES) => {
            tracing::warn!(%error, "the log is full");
            return ClientError::overloaded();
        }
        Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM) => return too_large(),
        Some(_) => tracing::warn!(%error, "the log refuses a request"),
        None => tracing::debug!(%error, "a request may not have reached the log"),
    }
    if error.kind() == PublishErrorKind::MaxPayloadExceeded {
        return too_large();
    }
    ClientError::unavailable()
}

fn too_large() -> ClientError {
    ClientError::new(Code::TooLarge, "larger than the log takes")
}
