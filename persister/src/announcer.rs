//! Tells the gateways what was stored and what was erased: after the commit, in log order, with its place.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use bytes::Bytes;
use shared::announcement::{Announcement, Position};
use shared::ids::SessionId;
use shared::message::Message;
use shared::partition::Partition;
use shared::subjects;
use shared::timestamp::Timestamp;

use crate::batch::{Batch, LogPlace, MessageRow};
use crate::metrics::METRICS;
use crate::store::commit::Committed;

/// Longest wait for room in the connection's queue. Gateways find what is not announced by the
/// positions, so nothing may hold up the storing.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Announces for one term of ownership; knows the last announced position of each partition.
pub struct Announcer {
    client: Client,
    positions: HashMap<Partition, Position>,
}

impl Announcer {
    /// Goes on after the given positions.
    pub fn new(client: Client, positions: HashMap<Partition, Position>) -> Self {
        Self { client, positions }
    }

    /// Announces what a commit stored.
    pub async fn announce(&mut self, batch: &Batch, committed: &Committed) {
        for (subject, announcement, payload) in self.announcements(batch, committed) {
            if !self.publish(subject, Some(announcement), payload).await {
                return;
            }
        }
        for row in batch.sessions.iter().filter(|row| committed.opened.contains(&row.session)) {
            self.announce_opened(row.place.partition, row.session).await;
        }
        for session in &committed.reopened {
            let first = batch.messages.iter().find(|row| row.session == *session);
            if let Some(first) = first {
                self.announce_opened(first.place.partition, *session).await;
            }
        }
    }

    async fn announce_opened(&self, partition: Partition, session: SessionId) {
        self.publish(subjects::opened(partition, session), None, Bytes::new()).await;
    }

    /// Repeats the last position of every partition.
    pub async fn repeat_positions(&self) {
        for (partition, position) in &self.positions {
            let (position, previous) = (*position, position.sequence);
            let announcement = Announcement { position, previous, recorded_at: None };
            let subject = subjects::position(*partition);
            if !self.publish(subject, Some(announcement), Bytes::new()).await {
                return;
            }
        }
    }

    /// The announcements of a commit; moves the positions.
    fn announcements(
        &mut self,
        batch: &Batch,
        committed: &Committed,
    ) -> Vec<(String, Announcement, Bytes)> {
        let mut news = ends(batch, committed);
        let chats: HashMap<u64, &str> =
            committed.stored.iter().map(|(sequence, chat)| (*sequence, chat.as_str())).collect();
        for row in &batch.messages {
            let Some(chat) = chats.get(&row.place.sequence) else { continue };
            match serde_json::to_vec(&message(row, chat)) {
                Ok(json) => news.push((row.place, row.session, json.into())),
                Err(error) => tracing::error!(%error, "a stored message cannot be written as JSON"),
            }
        }
        news.sort_unstable_by_key(|(place, ..)| place.sequence);
        let announcement = |(place, session, payload): (LogPlace, SessionId, Bytes)| {
            let announcement = self.advance(place)?;
            Some((subjects::saved(place.partition, session), announcement, payload))
        };
        news.into_iter().filter_map(announcement).collect()
    }

    /// Moves a partition's position to the place of a message.
    fn advance(&mut self, place: LogPlace) -> Option<Announcement> {
        let position = self.positions.get_mut(&place.partition)?;
        let previous = std::mem::replace(&mut position.sequence, place.sequence);
        let recorded_at = Some(place.recorded_at);
        Some(Announcement { position: *position, previous, recorded_at })
    }

    /// `false` if NATS takes nothing; what follows would only wait as long.
    async fn publish(
        &self,
        subject: String,
        announcement: Option<Announcement>,
        payload: Bytes,
    ) -> bool {
        // Without a connection the queue would only fill with what gateways read from Postgres.
        if self.client.connection_state() != State::Connected {
            METRICS.announce_failures.inc();
            return false;
        }
        let published = async {
            match announcement {
                Some(announcement) => {
                    self.client
                        .publish_with_headers(subject, announcement.to_headers(), payload)
                        .await
                }
                None => self.client.publish(subject, payload).await,
            }
        };
        match tokio::time::timeout(PUBLISH_TIMEOUT, published).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => tracing::warn!(%error, "an announcement was not published"),
            Err(_) => tracing::warn!("an announcement was not published: NATS takes nothing"),
        }
        METRICS.announce_failures.inc();
        false
    }
}

/// What tells gateways that a session has ended: its erasure, and again every record of it that came
/// behind, since some gateway took it for a session that exists.
fn ends(batch: &Batch, committed: &Committed) -> Vec<(LogPlace, SessionId, Bytes)> {
    let is_ours = |place: &LogPlace| committed.claimed.contains(&place.partition);
    let erased = batch.erasures.iter().map(|(session, row)| (row.last, *session));
    let erased = erased.filter(|(place, _)| is_ours(place));
    let messages = batch.messages.iter().map(|row| (row.place, row.session));
    let refused = messages.filter(|(place, _)| committed.refused.contains(&place.sequence));
    erased.chain(refused).map(|(place, session)| (place, session, Bytes::new())).collect()
}

fn message<'a>(row: &'a MessageRow, chat: &'a str) -> Message<'a> {
    Message {
        id: row.new.id.as_str(),
        sender: row.new.sender.as_str(),
        content: row.new.content.as_str(),
        created_at: Timestamp::truncate(row.place.recorded_at),
        is_ai: row.new.is_ai,
        chat_session_id: chat,
    }
}
