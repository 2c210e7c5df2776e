//! A message on its way into the log, sent over a socket or over HTTP.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use shared::change::Change;
use shared::ids::{MessageId, SessionId};
use shared::partition::{Partition, PartitionCount};
use shared::record::{NewChange, NewMessage, Record};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::ClientError;
use crate::log::pending_sends::{Key, Nobody, Outcome, Outgoing, PendingSends, Ticket, Waiter};
use crate::log::publisher::{PendingPublish, Publisher};
use crate::log::send_permits::SendPermit;
use crate::log::session_lookup::{Existence, SessionLookup};

/// The answer to a send that is stored, or in the log and surely will be.
#[derive(Serialize)]
pub struct Acked<'a> {
    id: &'a MessageId,
    status: &'static str,
}

impl<'a> Acked<'a> {
    pub fn stored(id: &'a MessageId) -> Self {
        Self { id, status: "stored" }
    }

    pub fn accepted(id: &'a MessageId) -> Self {
        Self { id, status: "accepted" }
    }
}

/// A message or a change to be put into the log.
pub struct Send {
    pub session: SessionId,
    pub id: MessageId,
    pub record: Record,
    /// Whether it can be sent again under its id.
    pub has_offset: bool,
    pub deadline: Instant,
}

/// What a send goes through.
pub struct Way<'a> {
    pub lookup: &'a SessionLookup,
    pub pending: &'a Arc<PendingSends>,
    pub publisher: &'a Publisher,
    pub partitions: PartitionCount,
}

impl Send {
    /// What somebody says.
    pub fn message(session: SessionId, message: NewMessage, has_offset: bool) -> Self {
        let (id, record) = (message.id.clone(), Record::Message(message));
        Self { session, id, record, has_offset, deadline: Publisher::deadline() }
    }

    /// What somebody changes about a session.
    pub fn change(session: SessionId, change: Change) -> Self {
        let id = MessageId::random();
        let record = Record::Change(NewChange { id: id.clone(), change });
        Self { session, id, record, has_offset: false, deadline: Publisher::deadline() }
    }
}

/// Puts a message or a change on its way into the log, if its session exists. Who waits for it is told what becomes of it.
pub async fn put(way: Way<'_>, send: Send, mut permit: SendPermit, mut waiter: Box<dyn Waiter>) {
    let Send { session, id, record, has_offset, deadline } = send;
    let checked = match tokio::time::timeout_at(deadline, way.lookup.check(session)).await {
        Ok(Existence::Exists) => Ok(()),
        Ok(Existence::Absent) => Err(ClientError::session_not_found()),
        Ok(Existence::Unknown) => Err(ClientError::unavailable()),
        Err(_) => Err(ClientError::overloaded()),
    };
    let encode = || record.encode().map_err(|_| ClientError::unavailable());
    let payload = match checked.and_then(|()| encode()) {
        Ok(payload) => Bytes::from(payload),
        Err(error) => return waiter.tell(Outcome::Failed(error)),
    };
    permit.begin_wait();
    let outgoing = Outgoing {
        session,
        key: Key::Message(id),
        is_unique: !has_offset,
        payload: payload.clone(),
        permit: Some(permit),
    };
    let partition = way.partitions.partition_of(session);
    let Some(kept) = InDoubt::begin(way.pending, partition, outgoing, waiter) else { return };
    match way.publisher.publish(session, payload, deadline).await {
        // The next send need not wait for the log's answer: the log keeps their order.
        Ok(publish) => drop(tokio::spawn(follow(kept, publish))),
        Err(error) => kept.failed(error),
    }
}

/// Puts it on its way likewise, and waits for what becomes of it, or for that it is accepted.
pub async fn outcome(way: Way<'_>, send: Send) -> Outcome {
    let Some(permit) = way.publisher.send_permit(None) else {
        return Outcome::Failed(ClientError::overloaded());
    };
    let (sender, told) = oneshot::channel();
    put(way, send, permit, Box::new(FirstOutcome(Some(sender)))).await;
    told.await.unwrap_or_else(|_| Outcome::Failed(ClientError::unavailable()))
}

/// Tells the one who waits of the first that it is told.
struct FirstOutcome(Option<oneshot::Sender<Outcome>>);

impl Waiter for FirstOutcome {
    fn tell(&mut self, outcome: Outcome) {
        if let Some(waiting) = self.0.take() {
            waiting.send(outcome).ok();
        }
    }
}

/// Puts the opening or the end of a session into the log, and keeps it until that is done; says where it stands.
pub async fn request(
    way: Way<'_>,
    key: Key,
    session: SessionId,
    request: &Record,
) -> Result<u64, ClientError> {
    let payload = Bytes::from(request.encode().map_err(|_| ClientError::unavailable())?);
    let outgoing =
        Outgoing { session, key, is_unique: true, payload: payload.clone(), permit: None };
    let partition = way.partitions.partition_of(session);
    let kept = InDoubt::begin(way.pending, partition, outgoing, Box::new(Nobody));
    let kept = kept.ok_or_else(ClientError::overloaded)?;
    match way.publisher.publish(session, payload, Publisher::deadline()).await {
        Ok(publish) => follow(kept, publish).await,
        Err(error) => {
            kept.failed(error.clone());
            Err(error)
        }
    }
}

/// A send that is kept, and of which the log has said nothing yet. Whoever waits for that may go away: then nobody
/// was told anything, and it is kept no longer.
struct InDoubt {
    pending: Arc<PendingSends>,
    ticket: Option<Ticket>,
}

impl InDoubt {
    fn begin(
        pending: &Arc<PendingSends>,
        partition: Partition,
        send: Outgoing,
        waiter: Box<dyn Waiter>,
    ) -> Option<Self> {
        let ticket = Some(pending.begin(partition, send, waiter)?);
        Some(Self { pending: Arc::clone(pending), ticket })
    }

    fn taken(mut self, sequence: u64, waited: Duration) {
        if let Some(ticket) = self.ticket.take() {
            self.pending.taken(ticket, sequence, waited);
        }
    }

    fn failed(mut self, error: ClientError) {
        if let Some(ticket) = self.ticket.take() {
            self.pending.failed(ticket, error);
        }
    }
}

impl Drop for InDoubt {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.pending.failed(ticket, ClientError::unavailable());
        }
    }
}

/// Waits until the log has it, and says where it stands.
async fn follow(kept: InDoubt, publish: PendingPublish) -> Result<u64, ClientError> {
    let asked = Instant::now();
    let taken = publish.accepted().await;
    match &taken {
        Ok(sequence) => kept.taken(*sequence, asked.elapsed()),
        Err(error) => kept.failed(error.clone()),
    }
    taken
}
