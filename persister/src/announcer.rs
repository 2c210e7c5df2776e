//! Tells the gateways what a commit did: after it, in log order, with its place.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use async_nats::Client;
use async_nats::client::PublishError;
use async_nats::connection::State;
use shared::announcement::{self, Announcement, Entry, Fate, Position, Stretch};
use shared::content::json_bytes;
use shared::ids::{MessageId, SessionId};
use shared::message::Message;
use shared::partition::Partition;
use shared::record::Record;
use shared::subjects;
use shared::timestamp::Timestamp;

use crate::batch::fold::Decided;
use crate::batch::{Batch, LogPlace, MessageRow};
use crate::metrics::METRICS;
use crate::store::commit::Committed;

/// Longest wait for room in the connection's queue. Gateways find what is not announced by the
/// positions, so nothing may hold up the storing.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of one announcement, unless one message has more: far below what nats-server takes, and what a gateway
/// that is behind has to keep.
const PART_BYTES: usize = 256 * 1024;
/// What an entry has in JSON beside the content of its message, at most.
const ENTRY_BYTES: usize = 448;
/// What a change has in JSON, at most.
const CHANGE_BYTES: usize = 512;

/// Announces what is committed.
pub struct Announcer {
    client: Client,
}

/// What became of the records of a stretch.
type Entries<'a> = Vec<Entry<'a, Message<'a>>>;

impl Announcer {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Announces what a commit did with a batch, behind where its partitions stood before.
    pub async fn announce(
        &self,
        batch: &Batch,
        committed: &Committed,
        before: &HashMap<Partition, Position>,
    ) {
        let dead = dead_messages(batch);
        let mut stretches = Vec::new();
        for (partition, entries) in entries(batch, committed, &dead) {
            if let (Some(before), Some(last)) = (before.get(&partition), batch.last.get(&partition))
            {
                let Position { epoch, sequence: previous } = *before;
                let sequence = last.sequence;
                stretches.push(Stretch { partition, epoch, previous, sequence, entries });
            }
        }
        for part in parts(stretches) {
            if !self.publish(&part).await {
                return;
            }
        }
    }

    /// Repeats where every partition stands.
    pub async fn repeat_positions(&self, positions: &HashMap<Partition, Position>) {
        let repeat = |(partition, position): (&Partition, &Position)| {
            Stretch::repeated(*partition, *position)
        };
        if !self.publish(&Announcement { partitions: positions.iter().map(repeat).collect() }).await
        {
            return;
        }
        for (partition, position) in positions {
            let told = announcement::repeat_to_older_gateways(&self.client, *partition, *position);
            if !self.told(told).await {
                return;
            }
        }
    }

    async fn publish(&self, announcement: &Announcement<'_, Message<'_>>) -> bool {
        match serde_json::to_vec(announcement) {
            Ok(json) => self.told(self.client.publish(subjects::COMMITS, json.into())).await,
            Err(error) => {
                tracing::error!(%error, "an announcement cannot be written as JSON");
                false
            }
        }
    }

    /// `false` if NATS takes nothing; what follows would only wait as long.
    async fn told(&self, publishing: impl Future<Output = Result<(), PublishError>>) -> bool {
        // Without a connection the queue would only fill with what gateways read from Postgres.
        if self.client.connection_state() == State::Connected {
            match tokio::time::timeout(PUBLISH_TIMEOUT, publishing).await {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => tracing::warn!(%error, "an announcement was not published"),
                Err(_) => tracing::warn!("an announcement was not published: NATS takes nothing"),
            }
        }
        METRICS.announce_failures.inc();
        false
    }
}

/// What became of the records of each partition that moved, in the order of the log.
fn entries<'a>(
    batch: &'a Batch,
    committed: &'a Committed,
    dead: &'a [(LogPlace, SessionId, MessageId)],
) -> BTreeMap<Partition, Entries<'a>> {
    let mut all: BTreeMap<_, Entries<'a>> =
        committed.claimed.iter().map(|partition| (*partition, Vec::new())).collect();
    let mut add = |place: LogPlace, entry: Entry<'a, Message<'a>>| {
        if let Some(entries) = all.get_mut(&place.partition) {
            entries.push(entry);
        }
    };
    let entry = |place: LogPlace, session, fate| {
        Entry::new(place.sequence, session, place.recorded_at, fate)
    };
    let is_refused = |place: &LogPlace| committed.refused.contains(&place.sequence);
    for row in &batch.sessions {
        if is_refused(&row.place) {
            add(row.place, entry(row.place, row.session, Fate::Erased));
        } else if committed.opened.contains(&row.session) {
            add(row.place, entry(row.place, row.session, Fate::Opened));
        }
    }
    let chats: HashMap<u64, &str> =
        committed.stored.iter().map(|(sequence, chat)| (*sequence, chat.as_str())).collect();
    let mut reopened: HashSet<_> = committed.reopened.iter().copied().collect();
    for row in &batch.messages {
        let place = row.place;
        if reopened.remove(&row.session) {
            add(place, entry(place, row.session, Fate::Opened));
        }
        let (fate, message) = match chats.get(&place.sequence) {
            Some(chat) => (Fate::Stored, Some(message(row, chat))),
            None if is_refused(&place) => (Fate::Refused, None),
            None if !committed.folded.stores(row) => (Fate::AiOff, None),
            None => match committed.repeated.get(&place.sequence) {
                Some(fate) => (*fate, None),
                None => continue,
            },
        };
        add(place, entry(place, row.session, fate).of_message(row.new.id.as_str(), message));
    }
    for decided in &committed.folded.changes {
        let Decided { place, session, id, change, is_applied } = decided;
        let (fate, change) = match is_applied {
            _ if is_refused(place) => (Fate::Refused, None),
            true => (Fate::Changed, Some(change.clone())),
            false => (Fate::Claimed, None),
        };
        add(*place, entry(*place, *session, fate).of_change(id, change));
    }
    for row in &batch.changes {
        if let Some(fate) = committed.folded.decided_before.get(&row.place.sequence) {
            let entry = entry(row.place, row.session, *fate);
            add(row.place, entry.of_change(row.new.id.as_str(), None));
        }
    }
    for (place, session, id) in dead {
        let fate = if is_refused(place) { Fate::Refused } else { Fate::SetAside };
        add(*place, entry(*place, *session, fate).of_message(id.as_str(), None));
    }
    for (session, row) in &batch.erasures {
        add(row.last, entry(row.last, *session, Fate::Erased));
    }
    for entries in all.values_mut() {
        // Stable: what opens a session stays before what was said in it.
        entries.sort_by_key(|entry| entry.sequence);
    }
    all
}

/// The messages and changes among what is set aside: somebody may wait for them.
fn dead_messages(batch: &Batch) -> Vec<(LogPlace, SessionId, MessageId)> {
    let rejects = batch.rejects.iter().filter_map(|reject| {
        let (_, session) = subjects::parse(&reject.record.subject)?;
        match Record::decode(&reject.record.payload).ok()? {
            Record::Message(message) => Some((reject.record.place, session, message.id)),
            Record::Change(change) => Some((reject.record.place, session, change.id)),
            Record::Session(_) | Record::Erase(_) => None,
        }
    });
    rejects.collect()
}

/// Announcements of a bounded size. Each part of a stretch covers the whole interval up to its last entry.
fn parts<'a>(stretches: Vec<Stretch<'a, Message<'a>>>) -> Vec<Announcement<'a, Message<'a>>> {
    let mut parts = Vec::new();
    let mut partitions = Vec::new();
    let mut bytes = 0;
    for Stretch { partition, epoch, mut previous, sequence, entries } in stretches {
        let mut part: Entries<'a> = Vec::new();
        for entry in entries {
            let content = entry.message.as_ref().map_or(0, |it| json_bytes(it.content));
            let size = ENTRY_BYTES + content + entry.change.as_ref().map_or(0, |_| CHANGE_BYTES);
            let last = part.last().map_or(previous, |last| last.sequence);
            if bytes > 0 && bytes + size > PART_BYTES && last < entry.sequence {
                if !part.is_empty() {
                    let entries = std::mem::take(&mut part);
                    partitions.push(Stretch {
                        partition,
                        epoch,
                        previous,
                        sequence: last,
                        entries,
                    });
                    previous = last;
                }
                parts.push(Announcement { partitions: std::mem::take(&mut partitions) });
                bytes = 0;
            }
            bytes += size;
            part.push(entry);
        }
        bytes += ENTRY_BYTES;
        partitions.push(Stretch { partition, epoch, previous, sequence, entries: part });
    }
    if !partitions.is_empty() {
        parts.push(Announcement { partitions });
    }
    parts
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

#[cfg(test)]
mod tests {
    use shared::announcement::Epoch;

    use super::*;

    fn stretch(
        number: u16,
        contents: &[(u64, &'static str)],
    ) -> Stretch<'static, Message<'static>> {
        let message = |content| Message {
            id: "c1",
            sender: "user",
            content,
            created_at: Timestamp::truncate(time::OffsetDateTime::UNIX_EPOCH),
            is_ai: false,
            chat_session_id: "c2",
        };
        let entry = |&(sequence, content): &(u64, &'static str)| {
            let at = time::OffsetDateTime::UNIX_EPOCH;
            Entry::new(sequence, SessionId::random(), at, Fate::Stored)
                .of_message("c1", Some(message(content)))
        };
        let entries = contents.iter().map(entry).collect();
        let (partition, epoch) = (Partition::new(number), Epoch(1));
        Stretch { partition, epoch, previous: 10, sequence: 99, entries }
    }

    /// Partition, before, up to, and the entries.
    type Told = (u16, u64, u64, Vec<u64>);

    fn told(parts: &[Announcement<'_, Message<'_>>]) -> Vec<Vec<Told>> {
        let stretch = |it: &Stretch<'_, Message<'_>>| {
            let entries = it.entries.iter().map(|entry| entry.sequence).collect();
            (it.partition.number(), it.previous, it.sequence, entries)
        };
        parts.iter().map(|part| part.partitions.iter().map(stretch).collect()).collect()
    }

    #[test]
    fn a_commit_is_one_announcement() {
        let parts = parts(vec![stretch(1, &[(11, "a"), (12, "b")]), stretch(2, &[])]);
        assert_eq!(told(&parts), [vec![(1, 10, 99, vec![11, 12]), (2, 10, 99, vec![])]]);
    }

    #[test]
    fn a_large_commit_is_split_and_each_part_covers_all_up_to_its_end() {
        let long: &str = Box::leak("\u{1}".repeat(PART_BYTES / 12 - ENTRY_BYTES).into_boxed_str());
        let larger: &str = Box::leak("x".repeat(2 * PART_BYTES).into_boxed_str());
        let stretches = vec![
            stretch(1, &[(11, "a"), (12, long), (12, long), (15, long)]),
            stretch(2, &[(20, larger), (21, "b")]),
            stretch(3, &[(30, larger)]),
        ];
        let parts = parts(stretches);
        let wanted = [
            vec![(1, 10, 12, vec![11, 12, 12])],
            vec![(1, 12, 99, vec![15])],
            vec![(2, 10, 20, vec![20])],
            vec![(2, 20, 99, vec![21])],
            vec![(3, 10, 99, vec![30])],
        ];
        assert_eq!(told(&parts), wanted);
        for part in &parts[..2] {
            assert!(serde_json::to_vec(part).unwrap().len() <= PART_BYTES + PART_BYTES / 2);
        }
    }
}
