//! Keeps up to which message each side has read a session, as gateways say, and tells all gateways what it kept.
//!
//! Marks come over a connection of their own: whatever is said there holds up no message. What waits for Postgres is
//! merged and bounded; what cannot be kept is lost, and whoever reads on says so again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt;
use shared::ids::{MessageId, SessionId};
use shared::lifecycle::{Stop, pause};
use shared::message::Sender;
use shared::nats::NatsUrl;
use shared::reading::{ReadMark, ReadMarks};
use shared::subjects;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::store::Store;
use crate::store::read_marks::Kept;

/// Persisters share the marks.
const QUEUE: &str = "persisters";
/// Sides of sessions whose marks wait, and marks of each: gateways do not know which of two is further.
const SIDES_MAX: usize = 20_000;
const MARKS_OF_SIDE: usize = 8;
/// Marks of one statement.
const MARKS_MAX: usize = 500;
/// A session whose row is being changed is tried again so often, after so long.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// What waits to be kept.
#[derive(Default)]
struct Waiting {
    sides: Mutex<HashMap<(SessionId, Sender), Vec<MessageId>>>,
    came: Notify,
}

/// Keeps what gateways say until the stop.
pub async fn keep(store: Store, nats: NatsUrl, stop: &Stop) -> anyhow::Result<()> {
    let (client, _disturbances) = shared::nats::connect(&nats, "persister, what is read").await?;
    let waiting = Arc::<Waiting>::default();
    let _taking = AbortOnDropHandle::new(tokio::spawn(take(client.clone(), Arc::clone(&waiting))));
    while stop.run_until_cancelled(waiting.came.notified()).await.is_some() {
        let marks = waiting.take();
        for some in marks.chunks(MARKS_MAX) {
            keep_these(&store, &client, some.to_vec(), stop).await;
        }
    }
    Ok(())
}

/// Takes what comes as it comes.
async fn take(client: Client, waiting: Arc<Waiting>) {
    let Ok(mut said) = client.queue_subscribe(subjects::READ_MARKS, QUEUE.into()).await else {
        return;
    };
    while let Some(message) = said.next().await {
        match serde_json::from_slice::<ReadMarks>(&message.payload) {
            Ok(ReadMarks { marks }) => waiting.add(marks),
            Err(error) => tracing::warn!(%error, "what was read of sessions cannot be read"),
        }
    }
}

impl Waiting {
    fn add(&self, marks: Vec<ReadMark>) {
        let mut sides = self.lock();
        for ReadMark { session, reader, message } in marks {
            let key = (session, reader);
            if sides.len() >= SIDES_MAX && !sides.contains_key(&key) {
                continue;
            }
            let ids = sides.entry(key).or_default();
            if ids.len() >= MARKS_OF_SIDE {
                ids.remove(0);
            }
            ids.push(message);
        }
        self.came.notify_one();
    }

    fn take(&self) -> Vec<ReadMark> {
        let sides = std::mem::take(&mut *self.lock());
        let marks = |((session, reader), ids): ((SessionId, Sender), Vec<MessageId>)| {
            ids.into_iter().map(move |message| ReadMark { session, reader, message })
        };
        sides.into_iter().flat_map(marks).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(SessionId, Sender), Vec<MessageId>>> {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn keep_these(store: &Store, client: &Client, mut left: Vec<ReadMark>, stop: &Stop) {
    for _ in 0..TRIES {
        let (moved, busy) = match store.mark_read(&left).await {
            Ok(kept) => kept,
            Err(error) => return tracing::warn!(%error, "what was read of sessions is not kept"),
        };
        tell(client, moved).await;
        left = busy;
        if left.is_empty() || !pause(stop, PAUSE).await {
            return;
        }
    }
}

async fn tell(client: &Client, moved: Kept) {
    if moved.is_empty() {
        return;
    }
    if let Ok(payload) = serde_json::to_vec(&ReadMarks { marks: moved }) {
        client.publish(subjects::READ_UP_TO, payload.into()).await.ok();
    }
}
