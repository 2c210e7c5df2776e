//! Erases sessions: one of them, or those in which nothing happened for long.
//!
//! Whatever is erased is erased by a record in the log, on the session's own subject: what was said before
//! it goes, what comes behind it is refused, and a database restored from an older backup reads it again.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use async_nats::Client;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, context};
use shared::announcement;
use shared::ids::SessionId;
use shared::log::{Log, StreamName};
use shared::nats::NatsUrl;
use shared::partition::{Partition, PartitionCount};
use shared::record::Record;
use shared::subjects;
use shared::timestamp::Timestamp;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use crate::store::operator::{OperatorStore, SessionAge};

/// Sessions looked at together. Messages of others wait behind their erasure: a tenth of a second
/// where each has a hundred messages.
const PAGE: u16 = 100;
/// Pause between two looks at how far the persisters are.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Longest wait for the persisters to come to a record: as long as a restart and a backlog may take.
const STORED_WITHIN: Duration = Duration::from_mins(1);

/// What an operator is told who names no session.
pub fn unknown(session_id: &str) -> String {
    format!("there is no session {session_id}")
}

/// What is said where an erasure was set aside.
pub fn stuck(sessions: usize) -> String {
    format!("{sessions} of the sessions cannot be erased: `persister dead-letters list` says why")
}

/// Sessions as Postgres and the log have them.
pub struct Sessions {
    pub store: OperatorStore,
    client: Client,
    jetstream: context::Context,
    log: Log,
    partitions: PartitionCount,
}

/// Sessions that are looked at together.
pub struct Page {
    behind: Option<SessionAge>,
    sessions: Vec<SessionAge>,
    pub last: SessionAge,
}

/// What became of a page.
#[derive(Debug, Default)]
pub struct Pruned {
    pub erased: usize,
    /// Sessions whose erasure was set aside.
    pub stuck: usize,
}

/// Where the last of some records stands in each partition.
type Asked = BTreeMap<Partition, u64>;

impl Sessions {
    /// Connects to NATS, and finds the log.
    pub async fn connect(
        store: OperatorStore,
        nats: &NatsUrl,
        stream: &StreamName,
    ) -> anyhow::Result<Self> {
        let client = nats.connect_once().await.context("NATS cannot be reached (NATS_URL)")?;
        let jetstream = jetstream::new(client.clone());
        let (log, partitions) = shared::log::find(&jetstream, stream).await?;
        Ok(Self::new(store, client, log, partitions))
    }

    /// With a log that is found.
    pub fn new(store: OperatorStore, client: Client, log: Log, partitions: PartitionCount) -> Self {
        Self { jetstream: jetstream::new(client.clone()), store, client, log, partitions }
    }

    /// Erases a session, and waits until it is done.
    pub async fn erase(&self, session_id: &str) -> anyhow::Result<()> {
        let last = self.last_record(session_id).await?;
        let waits = last.is_some_and(|last| !last.erases);
        if !waits && !self.store.knows_session(session_id).await? {
            anyhow::bail!(unknown(session_id));
        }
        let mut asked = Asked::new();
        self.ask(session_id, None, &mut asked).await?;
        let stuck = self.done(&asked, &[session_id.to_owned()]).await?;
        anyhow::ensure!(stuck == 0, self::stuck(stuck));
        println!("erased {session_id}");
        Ok(())
    }

    /// Says what [`Sessions::prune`] would erase now.
    pub async fn list_quiet(&self, before: OffsetDateTime) -> anyhow::Result<()> {
        let (mut count, mut behind) = (0, None);
        while let Some(page) = self.page(behind, before).await? {
            for session_id in self.quiet(&page.sessions, before).await?.keys() {
                println!("{session_id}");
                count += 1;
            }
            behind = Some(page.last);
        }
        let before = Timestamp::truncate(before);
        eprintln!("would erase {count} sessions in which nothing happened since {before}");
        Ok(())
    }

    /// Erases the sessions in which nothing happened since then, and shows how far it is.
    pub async fn prune(&self, before: OffsetDateTime) -> anyhow::Result<()> {
        let (mut erased, mut behind) = (0, None);
        while let Some(page) = self.page(behind, before).await? {
            let pruned = self.prune_page(&page, before).await?;
            anyhow::ensure!(pruned.stuck == 0, stuck(pruned.stuck));
            erased += pruned.erased;
            println!("erased {erased}, all up to {}", page.last.created_at);
            behind = Some(page.last);
        }
        println!(
            "erased {erased} sessions in which nothing happened since {}",
            Timestamp::truncate(before)
        );
        Ok(())
    }

    /// The sessions behind the given one that were opened before a time; `None` if there are no more.
    pub async fn page(
        &self,
        behind: Option<SessionAge>,
        before: OffsetDateTime,
    ) -> anyhow::Result<Option<Page>> {
        let sessions = self.store.session_ages(behind.as_ref(), before, PAGE).await?;
        Ok(sessions.last().cloned().map(|last| Page { behind, sessions, last }))
    }

    /// Erases those of a page that are still quiet.
    pub async fn prune_page(&self, page: &Page, before: OffsetDateTime) -> anyhow::Result<Pruned> {
        let last_records = self.quiet(&page.sessions, before).await?;
        if last_records.is_empty() {
            return Ok(Pruned::default());
        }
        // What happened before the look at the log is in Postgres now or was in the log; what happens
        // after it changes the last sequence.
        let still = self.store.session_ages(page.behind.as_ref(), before, PAGE).await?;
        let mut asked = Asked::new();
        let mut sessions = Vec::new();
        for session in still.into_iter().filter(|session| session.is_quiet) {
            let Some(last) = last_records.get(&session.session_id) else { continue };
            if self.ask(&session.session_id, Some(*last), &mut asked).await? {
                sessions.push(session.session_id);
            }
        }
        let stuck = self.done(&asked, &sessions).await?;
        Ok(Pruned { erased: sessions.len() - stuck, stuck })
    }

    /// Those of a page in which nothing happened, also not in the log, with their last records' sequences.
    async fn quiet(
        &self,
        found: &[SessionAge],
        before: OffsetDateTime,
    ) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut last_records = BTreeMap::new();
        for session in found.iter().filter(|session| session.is_quiet) {
            match self.last_record(&session.session_id).await? {
                Some(last) if last.time >= before && !last.erases => {}
                last => {
                    let sequence = last.map_or(0, |last| last.sequence);
                    last_records.insert(session.session_id.clone(), sequence);
                }
            }
        }
        Ok(last_records)
    }

    /// Asks for an erasure, where the session's last record is the expected one; `false` if it is not.
    async fn ask(
        &self,
        session_id: &str,
        expected: Option<u64>,
        asked: &mut Asked,
    ) -> anyhow::Result<bool> {
        let (session, request) = Record::erase(session_id);
        let partition = self.partitions.partition_of(session);
        let mut message = PublishMessage::build().payload(request.encode()?.into());
        if let Some(sequence) = expected {
            message = message.expected_last_subject_sequence(sequence);
        }
        let subject = subjects::request(partition, session);
        let ack = self.jetstream.send_publish(subject, message).await?;
        match ack.await {
            Ok(ack) => {
                asked.insert(partition, ack.sequence);
                announcement::tell_ended(&self.client, partition, session).await?;
                Ok(true)
            }
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the persisters have come to what was asked for; how many sessions are there all the same.
    async fn done(&self, asked: &Asked, sessions: &[String]) -> anyhow::Result<usize> {
        let deadline = Instant::now() + STORED_WITHIN;
        loop {
            let stored: BTreeMap<_, _> = self.store.stored_sequences().await?.into_iter().collect();
            if asked.iter().all(|(partition, sequence)| stored.get(partition) >= Some(sequence)) {
                break;
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "no persister has come to it: it is in the log and will be erased when one does"
            );
            // Persisters tell nobody who is no gateway: their offsets are looked at.
            sleep(LOOK_INTERVAL).await;
        }
        Ok(usize::try_from(self.store.count_sessions(sessions).await?)?)
    }

    /// The last record of a session, if the log has one.
    pub async fn last_record(&self, session_id: &str) -> anyhow::Result<Option<LastRecord>> {
        let session = SessionId::standing_for(session_id);
        let partition = self.partitions.partition_of(session);
        let subject = subjects::request(partition, session);
        let last = self.log.last_record(&subject).await?;
        Ok(last.map(|record| LastRecord {
            sequence: record.sequence,
            time: record.time,
            erases: matches!(Record::decode(&record.payload), Ok(Record::Erase(_))),
        }))
    }
}

/// The last record of a session in the log.
#[derive(Clone, Copy)]
pub struct LastRecord {
    pub sequence: u64,
    /// When the log took it.
    pub time: OffsetDateTime,
    /// Whether it is an erasure.
    pub erases: bool,
}
