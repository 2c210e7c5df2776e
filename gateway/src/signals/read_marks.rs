//! Up to which message each side has read a session. Marks go to a persister, which keeps the furthest and says so;
//! those of a side of a session go on once a second.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::value::to_raw_value;
use shared::ids::{MessageId, SessionId};
use shared::lifecycle::Stop;
use shared::message::Sender;
use shared::reading::{ReadMark, ReadMarks};
use shared::subjects;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::delivery::inboxes::Inboxes;
use crate::delivery::rooms::Rooms;
use crate::emitted::Emitted;
use crate::error::ClientError;

/// How often marks of a side of a session go on.
const GAP: Duration = Duration::from_secs(1);
/// Marks of many sides go on together.
const GATHER: Duration = Duration::from_millis(50);
/// Marks of a side in that time that are kept, the last ones: which is the furthest, Postgres knows.
const MARKS_OF_SIDE: usize = 8;
/// Sides whose marks wait at a time.
const WAITING_MAX: usize = 100_000;
/// Marks in one packet of about 130 KB; NATS takes 1 MB.
const MARKS_MAX: usize = 1_000;
/// Longest wait for NATS to take them.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(1);

type Key = (SessionId, Sender);

/// Marks of this gateway's clients.
pub struct Reading {
    client: Client,
    rooms: Arc<Rooms>,
    inboxes: Arc<Inboxes>,
    state: Mutex<Marks>,
    marked: Notify,
}

#[derive(Default)]
struct Marks {
    waiting: HashMap<Key, Vec<MessageId>>,
    /// Whose mark went on within the last second.
    sent: HashSet<Key>,
}

/// `read`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Read<'a> {
    session_id: SessionId,
    reader: Sender,
    message_id: &'a MessageId,
}

impl Reading {
    /// Nothing is read yet.
    pub fn new(client: Client, rooms: Arc<Rooms>, inboxes: Arc<Inboxes>) -> Self {
        Self { client, rooms, inboxes, state: Mutex::default(), marked: Notify::new() }
    }

    /// A client says that its side has read the session up to a message.
    ///
    /// # Errors
    /// Where too many wait, or NATS is away.
    pub fn mark(
        &self,
        session: SessionId,
        reader: Sender,
        message: MessageId,
    ) -> Result<(), ClientError> {
        if self.client.connection_state() != State::Connected {
            return Err(ClientError::unavailable());
        }
        let mut state = self.lock();
        if state.waiting.len() >= WAITING_MAX {
            return Err(ClientError::overloaded());
        }
        let key = (session, reader);
        let ids = state.waiting.entry(key).or_default();
        ids.retain(|id| *id != message);
        if ids.len() >= MARKS_OF_SIDE {
            ids.remove(0);
        }
        ids.push(message);
        if !state.sent.contains(&key) {
            self.marked.notify_one();
        }
        Ok(())
    }

    /// Sends marks on, and tells what persisters kept, until the stop.
    pub async fn run(self: Arc<Self>, stop: Stop) -> anyhow::Result<()> {
        let mut kept = self.client.subscribe(subjects::READ_UP_TO).await?;
        let mut second = tokio::time::interval(GAP);
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                message = kept.next() => {
                    let Some(message) = message else {
                        anyhow::bail!("the subscription to what was read ended");
                    };
                    self.hear(&message.payload);
                }
                _ = second.tick() => {
                    self.lock().sent.clear();
                    self.send().await;
                }
                () = self.marked.notified() => {
                    tokio::time::sleep(GATHER).await;
                    self.send().await;
                }
            }
        }
    }

    /// Sends those on whose turn it is.
    async fn send(&self) {
        let marks: Vec<_> = {
            let Marks { waiting, sent } = &mut *self.lock();
            let due = waiting.extract_if(|key, _| sent.insert(*key));
            let marks = |((session, reader), ids): (Key, Vec<MessageId>)| {
                ids.into_iter().map(move |message| ReadMark { session, reader, message })
            };
            due.flat_map(marks).collect()
        };
        for some in marks.chunks(MARKS_MAX) {
            let Ok(payload) = serde_json::to_vec(&ReadMarks { marks: some.to_vec() }) else {
                return;
            };
            let published = self.client.publish(subjects::READ_MARKS, payload.into());
            tokio::time::timeout(PUBLISH_TIMEOUT, published).await.ok();
        }
    }

    fn hear(&self, payload: &[u8]) {
        let marks = match serde_json::from_slice::<ReadMarks>(payload) {
            Ok(ReadMarks { marks }) => marks,
            Err(error) => return tracing::warn!(%error, "what was read cannot be read"),
        };
        for ReadMark { session, reader, message } in &marks {
            let read = Read { session_id: *session, reader: *reader, message_id: message };
            if let Ok(data) = to_raw_value(&read) {
                self.rooms.tell(*session, Emitted::Read, &data, None);
            }
            if *reader == Sender::Admin {
                self.inboxes.touched(*session);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Marks> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
