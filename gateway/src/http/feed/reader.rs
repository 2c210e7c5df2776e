//! One feed: what it tells next.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use shared::announcement::{Fate, Position};
use shared::ids::{SessionDigest, SessionId};
use shared::partition::Partition;
use shared::timestamp::Timestamp;

use crate::app::Gateway;
use crate::db::events::{BEGINNING, StoredEvent};
use crate::delivery::heard::{Heard, HeardEntry};
use crate::delivery::ring::RingReader;
use crate::http::feed::cursor::Cursor;
use crate::metrics::METRICS;

/// Pause after Postgres did not answer.
const RETRY: Duration = Duration::from_secs(1);

/// A feed that is read.
pub struct FeedReader {
    gateway: Arc<Gateway>,
    ring: RingReader,
    known: Cursor,
    /// Whether the epochs of the cursor it was given are to be looked up, and the first event is to come.
    is_new: bool,
    /// What was announced and not told yet.
    heard: VecDeque<Arc<Heard>>,
    /// Partitions that something is to be read of from Postgres.
    behind: BTreeSet<Partition>,
    /// What was announced before which something is missing.
    held: Option<Arc<Heard>>,
}

/// A part of a batch.
enum Piece {
    Text(String),
    /// A session that is told as it is now.
    Updated(SessionId),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Opened {
    session_id: SessionId,
    created_at: Option<Timestamp>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Said<'a, M: ?Sized> {
    session_id: SessionId,
    message: &'a M,
}

#[derive(Serialize)]
struct Updated<'a> {
    session: &'a RawValue,
}

#[derive(Serialize)]
struct Erased {
    digest: String,
}

#[derive(Serialize)]
struct Reset<'a> {
    partitions: &'a [u16],
}

impl FeedReader {
    /// Goes on behind a cursor, or begins now.
    pub fn new(gateway: Arc<Gateway>, cursor: Option<Cursor>) -> Self {
        METRICS.feeds.inc();
        // Before it is looked where everything stands: what is announced then is not missed.
        let ring = gateway.ring.reader();
        let behind = match &cursor {
            Some(_) => gateway.config.log.partitions.all().collect(),
            None => BTreeSet::new(),
        };
        let known = cursor.unwrap_or_else(|| Cursor(gateway.positions.all()));
        let (heard, held) = (VecDeque::new(), None);
        Self { gateway, ring, known, is_new: true, heard, behind, held }
    }

    /// The next batch of events, once there is one.
    pub async fn next(&mut self) -> Bytes {
        if self.is_new {
            return self.first().await.into();
        }
        loop {
            let pieces = match self.behind.first().copied() {
                Some(partition) => self.read(partition).await,
                None => self.hear().await,
            };
            let (pieces, known) = match pieces {
                Ok(Some(told)) => told,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%error, "a feed cannot be read yet");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            let sessions = match self.updated(&pieces).await {
                Ok(sessions) => sessions,
                Err(error) => {
                    tracing::warn!(%error, "a feed cannot be read yet");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            self.go_on(known);
            let text = self.write(pieces, &sessions);
            if !text.is_empty() {
                return text.into();
            }
        }
    }

    /// An event of its own, so that whoever is cut off before anything happens can go on from here; of partitions of
    /// whose epochs the database knows nothing, what it has is told anew.
    async fn first(&mut self) -> String {
        let epochs: Vec<_> = self.known.0.values().map(|position| position.epoch).collect();
        let is_given = !self.behind.is_empty();
        let known = loop {
            if !is_given {
                break Vec::new();
            }
            match self.gateway.history.known_epochs(&epochs).await {
                Ok(known) => break known,
                Err(error) => tracing::warn!(%error, "a feed cannot be read yet"),
            }
            tokio::time::sleep(RETRY).await;
        };
        let mut text = String::new();
        let is_known = |(partition, position): &(&Partition, &Position)| {
            position.epoch == BEGINNING.epoch || known.contains(&(**partition, position.epoch))
        };
        let places = self.known.0.iter();
        let unknown: Vec<_> =
            places.filter(|it| is_given && !is_known(it)).map(|it| *it.0).collect();
        if !unknown.is_empty() {
            let partitions: Vec<_> = unknown.iter().map(|it| it.number()).collect();
            event(&mut text, "reset", &Reset { partitions: &partitions });
            self.known.0.extend(unknown.into_iter().map(|partition| (partition, BEGINNING)));
        }
        // What the cursor does not name begins with its first record.
        for partition in &self.behind {
            self.known.0.entry(*partition).or_insert(BEGINNING);
        }
        self.is_new = false;
        event(&mut text, "ready", &serde_json::json!({}));
        end_batch(&mut text, &self.known);
        text
    }

    /// Reads what a partition has behind its position.
    async fn read(&mut self, partition: Partition) -> sqlx::Result<Option<Told>> {
        let Some(position) = self.known.0.get(&partition).copied() else {
            self.behind.remove(&partition);
            return Ok(None);
        };
        let page = self.gateway.history.events_after(partition, position).await?;
        let pieces = page.events.iter().map(piece_of_stored).collect();
        let then = if page.is_last { Then::IsThere(partition) } else { Then::GoesOn };
        Ok(Some((pieces, Known { places: vec![(partition, page.upto)], then })))
    }

    /// Takes what was announced, up to where something is missing.
    async fn hear(&mut self) -> sqlx::Result<Option<Told>> {
        if self.heard.is_empty() && self.held.is_none() {
            self.heard.extend(self.ring.next().await);
        }
        let mut pieces = Vec::new();
        let mut places: HashMap<Partition, Position> = HashMap::new();
        let held = self.held.as_ref();
        let mut taken = 0;
        for (n, heard) in held.into_iter().chain(&self.heard).enumerate() {
            let at = places.get(&heard.partition).or_else(|| self.known.0.get(&heard.partition));
            let at = at.copied();
            // One that was never heard of begins here.
            let at = at.unwrap_or_else(|| *places.entry(heard.partition).or_insert(heard.before));
            if !heard.before.is_within(at) {
                // What was read for it is there by now: a worker that was fenced had a last word.
                if n == 0 && held.is_some() {
                    taken += 1;
                    continue;
                }
                let then = Then::Lacks(heard.partition, taken);
                return Ok(Some((pieces, Known { places: places.into_iter().collect(), then })));
            }
            let news = heard.entries.iter().filter(|entry| !entry.position.is_within(at));
            pieces.extend(news.filter_map(piece_of_heard));
            if !heard.position.is_within(at) {
                places.insert(heard.partition, heard.position);
            }
            taken += 1;
        }
        let places = places.into_iter().collect();
        Ok(Some((pieces, Known { places, then: Then::Took(taken) })))
    }

    /// Everything up to there is told.
    fn go_on(&mut self, known: Known) {
        self.known.0.extend(known.places);
        match known.then {
            Then::GoesOn => {}
            Then::IsThere(partition) => drop(self.behind.remove(&partition)),
            Then::Took(count) => self.drop_taken(count),
            Then::Lacks(partition, count) => {
                self.drop_taken(count);
                self.held = self.held.take().or_else(|| self.heard.pop_front());
                self.behind.insert(partition);
                METRICS.feed_gaps.inc();
            }
        }
    }

    fn drop_taken(&mut self, mut count: usize) {
        if count > 0 && self.held.take().is_some() {
            count -= 1;
        }
        self.heard.drain(..count);
    }

    /// The sessions that are told as they are now.
    async fn updated(&self, pieces: &[Piece]) -> sqlx::Result<HashMap<SessionId, Box<RawValue>>> {
        let sessions: BTreeSet<_> = pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Updated(session) => Some(*session),
                Piece::Text(_) => None,
            })
            .collect();
        if sessions.is_empty() {
            return Ok(HashMap::new());
        }
        self.gateway.entries.by_id(&sessions.into_iter().collect::<Vec<_>>()).await
    }

    fn write(&self, pieces: Vec<Piece>, sessions: &HashMap<SessionId, Box<RawValue>>) -> String {
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(one) => text += &one,
                Piece::Updated(session) => {
                    // Of one that was erased meanwhile that is told.
                    if let Some(session) = sessions.get(&session) {
                        event(&mut text, "session-updated", &Updated { session });
                    }
                }
            }
        }
        if !text.is_empty() {
            end_batch(&mut text, &self.known);
        }
        text
    }
}

impl Drop for FeedReader {
    fn drop(&mut self) {
        METRICS.feeds.dec();
    }
}

/// A batch, and where the feed is once it is told.
type Told = (Vec<Piece>, Known);

struct Known {
    places: Vec<(Partition, Position)>,
    then: Then,
}

/// What follows a batch.
enum Then {
    /// More of the same partition.
    GoesOn,
    /// A partition is where it stands.
    IsThere(Partition),
    /// So many announcements are told.
    Took(usize),
    /// The same, and before the next one something of this partition is missing.
    Lacks(Partition, usize),
}

/// One event, without the end of the batch. Neither names nor JSON hold a line break.
fn event<T: Serialize>(text: &mut String, name: &str, data: &T) {
    if let Ok(json) = serde_json::to_string(data) {
        // Writing into a text cannot fail.
        write!(text, "event: {name}\ndata: {json}\n\n").ok();
        METRICS.feed_events.inc();
    }
}

/// The last event of a batch has the id that stands for all before it too.
fn end_batch(text: &mut String, known: &Cursor) {
    text.truncate(text.trim_end().len());
    write!(text, "\nid: {known}\n\n").ok();
}

fn text<T: Serialize>(name: &str, data: &T) -> Piece {
    let mut text = String::new();
    event(&mut text, name, data);
    Piece::Text(text)
}

fn opened(session_id: SessionId, created_at: Option<Timestamp>) -> Piece {
    text("session", &Opened { session_id, created_at })
}

fn erased(digest: SessionDigest) -> Piece {
    text("erased", &Erased { digest: digest.to_string() })
}

fn piece_of_heard(entry: &HeardEntry) -> Option<Piece> {
    let session_id = entry.session;
    match entry.fate {
        Fate::Opened => Some(opened(session_id, entry.recorded_at.map(Timestamp::truncate))),
        Fate::Stored => {
            let message = &*entry.saved.as_ref()?.json;
            Some(text("message", &Said { session_id, message }))
        }
        Fate::Changed if entry.change.is_some() => Some(Piece::Updated(session_id)),
        Fate::Erased => Some(erased(session_id.digest())),
        _ => None,
    }
}

fn piece_of_stored(event: &StoredEvent) -> Piece {
    match event {
        StoredEvent::Opened { session, created_at } => opened(*session, Some(*created_at)),
        StoredEvent::Message { session, message } => {
            text("message", &Said { session_id: *session, message: &message.to_message() })
        }
        StoredEvent::Updated { session } => Piece::Updated(*session),
        StoredEvent::Erased { digest } => erased(*digest),
    }
}
