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
use shared::log::Log;
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

/// Sessions as Postgres and the log have them.
pub struct Sessions {
    pub store: OperatorStore,
    client: Client,
    jetstream: context::Context,
    log: Log,
    partitions: PartitionCount,
}

/// Where the last of some records stands in each partition.
type Asked = BTreeMap<Partition, u64>;

impl Sessions {
    /// Connects to NATS, and finds the log.
    pub async fn connect(store: OperatorStore, nats: &NatsUrl) -> anyhow::Result<Self> {
        let client = nats.connect_once().await.context("NATS cannot be reached (NATS_URL)")?;
        let jetstream = jetstream::new(client.clone());
        let (log, partitions) = shared::log::find(&jetstream).await?;
        Ok(Self { store, client, jetstream, log, partitions })
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
        self.done(&asked, &[session_id.to_owned()]).await?;
        println!("erased {session_id}");
        Ok(())
    }

    /// Says what [`Sessions::prune`] would erase now.
    pub async fn list_quiet(&self, before: OffsetDateTime) -> anyhow::Result<()> {
        let (mut count, mut behind) = (0, None);
        loop {
            let found = self.store.session_ages(behind.as_ref(), before, PAGE).await?;
            let Some(last) = found.last() else { break };
            for session_id in self.quiet(&found, before).await?.keys() {
                println!("{session_id}");
                count += 1;
            }
            behind = Some(last.clone());
        }
        let before = Timestamp::truncate(before);
        eprintln!("would erase {count} sessions in which nothing happened since {before}");
        Ok(())
    }

    /// Erases the sessions in which nothing happened since then.
    pub async fn prune(&self, before: OffsetDateTime) -> anyhow::Result<()> {
        let (mut erased, mut behind) = (0, None);
        loop {
            let found = self.store.session_ages(behind.as_ref(), before, PAGE).await?;
            let Some(last) = found.last() else { break };
            let pruned = self.prune_page(&found, behind.as_ref(), before).await?;
            erased += pruned;
            println!("erased {erased}, all up to {}", Timestamp::from_column(last.created_at));
            behind = Some(last.clone());
        }
        println!(
            "erased {erased} sessions in which nothing happened since {}",
            Timestamp::truncate(before)
        );
        Ok(())
    }

    /// Erases those of a page that are still quiet; how many.
    async fn prune_page(
        &self,
        found: &[SessionAge],
        behind: Option<&SessionAge>,
        before: OffsetDateTime,
    ) -> anyhow::Result<usize> {
        let last_records = self.quiet(found, before).await?;
        // What happened before the look at the log is in Postgres now or was in the log; what happens
        // after it changes the last sequence.
        let still = self.store.session_ages(behind, before, PAGE).await?;
        let mut asked = Asked::new();
        let mut sessions = Vec::new();
        for session in still.into_iter().filter(|session| session.is_quiet) {
            let Some(last) = last_records.get(&session.session_id) else { continue };
            if self.ask(&session.session_id, Some(*last), &mut asked).await? {
                sessions.push(session.session_id);
            }
        }
        self.done(&asked, &sessions).await?;
        Ok(sessions.len())
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

    /// Waits until the persisters have come to what was asked for.
    async fn done(&self, asked: &Asked, sessions: &[String]) -> anyhow::Result<()> {
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
        let left = self.store.count_sessions(sessions).await?;
        anyhow::ensure!(
            left == 0,
            "{left} of the sessions cannot be erased: `persister dead-letters list` says why"
        );
        Ok(())
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
