//! The loop. A *term* lasts while the owned partitions, the connection and the log stay as they
//! are; when one of them changes, the next term starts again from the committed offsets.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream;
use shared::announcement::Position;
use shared::health::Waiting;
use shared::lifecycle::{Backoff, Stop, pause};
use shared::log::{Log, LogSettings};
use shared::nats::Disturbances;
use shared::partition::Partition;
use shared::timestamp::seconds_since;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::announcer::Announcer;
use crate::batch::{self, Batch, LogPlace, LogRecord};
use crate::log_identity::{self, AnotherLog, StreamState};
use crate::metrics::METRICS;
use crate::ownership::{LOOK_INTERVAL, Owned};
use crate::reader::{self, LogReader};
use crate::store::commit::Committed;
use crate::store::offsets::{Mark, Offset};
use crate::store::{Store, errors};

/// How often positions are repeated: what a gateway missed it learns within this time.
const POSITION_INTERVAL: Duration = Duration::from_secs(1);
/// Records may wait for so long, and the log's consumer give none, before it is made anew: of a cluster it may
/// live on a server that is late for ever and sends its heartbeats all the same.
const GIVEN_WITHIN: Duration = Duration::from_secs(3);
/// Pauses between tries while the database or the log cannot be used.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Stores what the log holds for the owned partitions.
pub struct Worker {
    store: Store,
    jetstream: jetstream::Context,
    log: LogSettings,
    owned: Owned,
    waiting: Waiting,
    disturbances: Disturbances,
    /// How often the connection was disturbed before the last term.
    begun_at: u64,
}

/// One term: offsets as of now, reader and announcer that go on from there.
struct Term {
    reader: LogReader,
    announcer: Announcer,
    offsets: HashMap<Partition, Position>,
    stream: StreamState,
    /// Whether Postgres knew another owner of some partition that was to be read: the next look at
    /// the leases finds out, or finds it back in our hands and so nothing changed.
    doubtful: bool,
}

/// Why a term ended, where it was no error.
enum Ended {
    /// Partitions or the connection changed, or another worker was faster.
    Changed,
    Stopped,
}

impl Worker {
    /// Everything the loop needs.
    pub fn new(
        store: Store,
        jetstream: jetstream::Context,
        log: LogSettings,
        owned: Owned,
        waiting: Waiting,
        disturbances: Disturbances,
    ) -> Self {
        Self { store, jetstream, log, owned, waiting, disturbances, begun_at: 0 }
    }

    /// Runs terms until the stop.
    pub async fn run(mut self, stop: &Stop) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
        while !stop.is_cancelled() {
            match self.term(stop, &mut backoff).await {
                Ok(Ended::Changed) => {}
                Ok(Ended::Stopped) => break,
                Err(error) => {
                    tracing::warn!(
                        "reading the log anew: {}",
                        shared::causes::told(error.as_ref())
                    );
                    pause(stop, backoff.pause()).await;
                }
            }
        }
        Ok(())
    }

    async fn term(&mut self, stop: &Stop, backoff: &mut Backoff) -> anyhow::Result<Ended> {
        let partitions = self.owned.borrow_and_update().clone();
        let disturbances = *self.disturbances.borrow_and_update();
        let reconnected = disturbances != self.begun_at;
        self.begun_at = disturbances;
        if partitions.is_empty() {
            return interrupted(&mut self.owned, &mut self.disturbances, stop).await;
        }
        METRICS.terms.inc();
        let mut term = self.begin(&partitions, reconnected).await?;
        let mut positions = interval(POSITION_INTERVAL);
        positions.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut doubt = std::pin::pin!(pause(stop, LOOK_INTERVAL));
        let mut given = Instant::now();
        loop {
            let records = tokio::select! {
                biased;
                ended = interrupted(&mut self.owned, &mut self.disturbances, stop) => return ended,
                _ = &mut doubt, if term.doubtful => return Ok(Ended::Changed),
                _ = positions.tick() => {
                    term.announcer.repeat_positions(&term.offsets).await;
                    if self.still_stands(&term.offsets, &partitions).await && !self.is_starved(given) {
                        continue;
                    }
                    return Ok(Ended::Changed);
                }
                records = term.reader.next_batch() => records.map_err(anyhow::Error::from_boxed)?,
            };
            // None where all of them are another worker's, or were read before.
            if !records.is_empty() {
                let confirmed = reader::confirm(term.reader.log(), &records).await;
                confirmed.map_err(anyhow::Error::from_boxed)?;
                if !self.store_records(&mut term, &records, stop).await? {
                    return Ok(Ended::Changed);
                }
                backoff.reset();
            }
            given = Instant::now();
        }
    }

    /// Whether records wait that the log's consumer does not give, which gave something at `given` last.
    fn is_starved(&self, given: Instant) -> bool {
        let wait = self.waiting.borrow().is_some_and(|since| since.elapsed() >= GIVEN_WITHIN);
        let starved = wait && given.elapsed() >= GIVEN_WITHIN;
        if starved {
            tracing::warn!("records wait that the log does not give: reading it anew");
        }
        starved
    }

    /// Whether Postgres knows the offsets that the term goes on from: a database restored from an
    /// older backup does not, and nobody need say anything for it to be told what it lacks.
    async fn still_stands(
        &self,
        offsets: &HashMap<Partition, Position>,
        partitions: &[Partition],
    ) -> bool {
        // While Postgres does not answer there is nothing to go on from either.
        let Ok(stored) = self.store.offsets(partitions).await else { return true };
        let known = |offset: &Offset| offsets.get(&offset.partition).copied();
        stored.iter().all(|offset| known(offset).is_none_or(|known| goes_on(known, offset)))
    }

    /// Reads the offsets, makes sure that they belong to this log, opens the log behind them.
    async fn begin(&self, partitions: &[Partition], reconnected: bool) -> anyhow::Result<Term> {
        // Opened anew: it may have been wiped. It is looked at before the partitions in it are: see
        // `LogReader::open`.
        let log = shared::log::open(&self.jetstream, &self.log).await?;
        let stream = log_identity::stream_state(&log);
        self.know_log_again(&log).await?;
        let mut offsets = self.store.offsets(partitions).await?;
        if self.pass_over_gaps(&stream, &offsets).await? {
            offsets = self.store.offsets(partitions).await?;
        }
        let stored: BTreeMap<_, _> =
            offsets.iter().map(|offset| (offset.partition, offset.stored.sequence)).collect();
        let client = self.jetstream.client();
        let count = self.log.partitions;
        let reader = LogReader::open(&log, &client, &stream, count, &stored, reconnected).await;
        Ok(Term {
            reader: reader.map_err(anyhow::Error::from_boxed)?,
            announcer: Announcer::new(self.jetstream.client()),
            doubtful: offsets.len() < partitions.len(),
            offsets: offsets.iter().map(|offset| (offset.partition, offset.stored)).collect(),
            stream,
        })
    }

    /// Makes sure that the log is the one that all offsets were taken from, before anything is committed: if
    /// it is another one, new epochs begin for all partitions of all workers.
    async fn know_log_again(&self, log: &Log) -> anyhow::Result<()> {
        let marks = self.store.marks().await?;
        let another =
            log_identity::another_log(log, &marks).await.map_err(anyhow::Error::from_boxed)?;
        let Some(AnotherLog { why, stream }) = another else {
            if marks.iter().any(|mark| mark.head.is_none()) {
                self.mark(log, &marks).await?;
            }
            return Ok(());
        };
        let head = log_identity::newest(log, &stream).await.map_err(anyhow::Error::from_boxed)?;
        let (start, created) = (stream.last_trimmed(), stream.created);
        let begun = self.store.begin_epochs(&marks, start, created, head).await?;
        METRICS.log_replaced.inc_by(begun);
        if begun > 0 {
            tracing::error!(
                partitions = begun,
                after = start,
                "this is not the log that the offsets were taken from ({why}): what was acked and not yet \
                 stored is gone, unless the gateway that took it lives; reading what there is from its start"
            );
        }
        Ok(())
    }

    /// Marks partitions that know nothing of the log by its newest record.
    async fn mark(&self, log: &Log, marks: &[Mark]) -> anyhow::Result<()> {
        let stream = log_identity::stream_state(log);
        let newest = log_identity::newest(log, &stream).await.map_err(anyhow::Error::from_boxed)?;
        if let Some(newest) = newest {
            self.store.mark(marks, newest).await?;
        }
        Ok(())
    }

    /// Moves offsets over what is gone from the log: nobody need wait for it, also where nothing follows.
    async fn pass_over_gaps(
        &self,
        stream: &StreamState,
        offsets: &[Offset],
    ) -> anyhow::Result<bool> {
        let to = stream.last_trimmed();
        let trimmed: Vec<_> = offsets
            .iter()
            .filter(|offset| stream.is_trimmed_beyond(offset))
            .map(|offset| (offset.partition, offset.stored.sequence))
            .collect();
        for (partition, sequence) in &trimmed {
            METRICS.log_gaps.inc();
            tracing::error!(
                %partition, from = sequence + 1, to,
                "the log was trimmed beyond what is stored: records of partition {partition} in this range \
                 are lost, if there were any"
            );
            self.store.move_idle(&[(*partition, *sequence)], to, stream.created).await?;
        }
        Ok(!trimmed.is_empty())
    }

    /// Stores records and announces them. `false` if the term cannot go on.
    async fn store_records(
        &self,
        term: &mut Term,
        records: &[LogRecord],
        stop: &Stop,
    ) -> anyhow::Result<bool> {
        match self.commit(term, &batch::prepare(records), stop).await? {
            Outcome::Settled(all) => Ok(all),
            Outcome::Refused(error) => {
                tracing::warn!(%error, records = records.len(), "Postgres refuses a batch, looking for the records");
                self.store_halves(term, records, stop).await
            }
        }
    }

    /// Halves what Postgres refuses until what it refuses is one record, which is set aside: its neighbours
    /// cost a few statements more, and not one each.
    async fn store_halves(
        &self,
        term: &mut Term,
        records: &[LogRecord],
        stop: &Stop,
    ) -> anyhow::Result<bool> {
        let mut left = vec![records];
        while let Some(records) = left.pop() {
            let settled = match (self.commit(term, &batch::prepare(records), stop).await?, records)
            {
                (Outcome::Settled(all), _) => all,
                (Outcome::Refused(error), [record]) => {
                    self.set_aside(term, record, &error, stop).await?
                }
                (Outcome::Refused(_), _) => {
                    let (first, rest) = records.split_at(records.len() / 2);
                    left.extend([rest, first]);
                    true
                }
            };
            if !settled {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn set_aside(
        &self,
        term: &mut Term,
        record: &LogRecord,
        error: &sqlx::Error,
        stop: &Stop,
    ) -> anyhow::Result<bool> {
        let reject = batch::reject(record.clone(), &error.to_string());
        match self.commit(term, &reject, stop).await? {
            Outcome::Settled(all) => Ok(all),
            Outcome::Refused(error) => Err(error).context("Postgres takes no dead letter"),
        }
    }

    /// Commits until Postgres takes or refuses it, or the partitions are no longer ours.
    async fn commit(&self, term: &mut Term, batch: &Batch, stop: &Stop) -> anyhow::Result<Outcome> {
        let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
        let mut waiting = None;
        loop {
            let expected = |partition| term.offsets[&partition];
            let started = Instant::now();
            let committed = async {
                self.store.thin_out(batch).await?;
                self.store.commit(batch, expected, term.stream.created).await
            };
            let committed = committed.await;
            METRICS.commit_seconds.observe(started.elapsed().as_secs_f64());
            METRICS.commit_failures.inc_by(committed.is_err().into());
            match committed {
                Ok(mut committed) => {
                    self.store.look_for_repeated(batch, &mut committed).await;
                    return Ok(Outcome::Settled(term.settle(batch, &committed).await));
                }
                Err(error) if self.is_at_fault(batch, &error).await => {
                    return Ok(Outcome::Refused(error));
                }
                Err(error) => tracing::warn!(%error, "a batch is not stored yet"),
            }
            waiting.get_or_insert_with(|| self.store.wait());
            if !pause(stop, backoff.pause()).await || self.owned.has_changed()? {
                return Ok(Outcome::Settled(false));
            }
        }
    }
}

impl Worker {
    /// Whether it is something in the batch that Postgres refuses. Waiting does not help then, and the same
    /// statement without a row goes through: a missing column or right is nobody's fault in there.
    async fn is_at_fault(&self, batch: &Batch, error: &sqlx::Error) -> bool {
        !errors::may_pass(error) && self.store.takes_nothing(batch).await
    }
}

/// What became of a batch.
enum Outcome {
    /// Decided: `true` if all of its partitions were still ours.
    Settled(bool),
    /// The data is at fault.
    Refused(sqlx::Error),
}

impl Term {
    /// Announces what was done and moves the offsets that were committed. `false` if some were fenced.
    async fn settle(&mut self, batch: &Batch, committed: &Committed) -> bool {
        measure(batch, committed);
        tell(batch, committed);
        self.announcer.announce(batch, committed, &self.offsets).await;
        for partition in &committed.claimed {
            if let (Some(place), Some(offset)) =
                (batch.last.get(partition), self.offsets.get_mut(partition))
            {
                offset.sequence = place.sequence;
            }
        }
        for place in set_aside(batch, committed) {
            tracing::warn!(partition = %place.partition, sequence = place.sequence, "a record was set aside");
        }
        for session in &committed.reopened {
            tracing::warn!(
                session = session.short(),
                "a session was opened by its message: the record that should have opened it is lost"
            );
        }
        let all = committed.claimed.len() == batch.last.len();
        if !all {
            METRICS.fenced.inc();
            tracing::info!("another persister was faster, reading the offsets anew");
        }
        all
    }
}

/// Records that cannot be stored, but those of erased sessions.
fn set_aside(batch: &Batch, committed: &Committed) -> impl Iterator<Item = LogPlace> {
    let places = batch.rejects.iter().map(|reject| reject.record.place);
    places.filter(|place| !committed.refused.contains(&place.sequence))
}

/// Counts what a commit stored.
fn measure(batch: &Batch, committed: &Committed) {
    let Committed { stored, opened, reopened, refused, .. } = committed;
    let records = batch.sessions.len()
        + batch.messages.len()
        + batch.changes.len()
        + batch.rejects.len()
        + batch.erasures.len();
    METRICS.batch_records.observe(f64::from(u32::try_from(records).unwrap_or(u32::MAX)));
    let is_ours = |partition: &Partition| committed.claimed.contains(partition);
    METRICS.messages_stored.inc_by(stored.len() as u64);
    METRICS.sessions_stored.inc_by((opened.len() + reopened.len()) as u64);
    METRICS.sessions_reopened.inc_by(reopened.len() as u64);
    let erased = batch.erasures.values().filter(|row| is_ours(&row.place.partition));
    METRICS.sessions_erased.inc_by(erased.count() as u64);
    METRICS.records_refused.inc_by(refused.len() as u64);
    METRICS.dead_letters_added.inc_by(set_aside(batch, committed).count() as u64);
    let sessions = batch.sessions.iter().map(|row| row.place);
    let places = sessions.chain(batch.messages.iter().map(|row| row.place));
    let mut claimed = 0;
    for place in places.filter(|place| is_ours(&place.partition)) {
        METRICS.store_seconds.observe(seconds_since(place.recorded_at));
        claimed += 1;
    }
    let declined = committed.folded.refused.len();
    METRICS.changes_decided.inc_by(committed.changed.len() as u64);
    METRICS.ai_messages_refused.inc_by(declined as u64);
    let new = stored.len() + opened.len() + refused.len() + declined;
    METRICS.duplicates.inc_by(u64::saturating_sub(claimed, new as u64));
}

/// So that one message can be followed through the logs of both services.
fn tell(batch: &Batch, committed: &Committed) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let stored: HashSet<u64> = committed.stored.iter().map(|(sequence, _)| *sequence).collect();
    for row in batch.messages.iter().filter(|row| stored.contains(&row.place.sequence)) {
        let LogPlace { partition, sequence, .. } = row.place;
        tracing::debug!(
            message_id = %row.new.id, session = row.session.short(), %partition, sequence, "stored"
        );
    }
}

/// Whether storing can go on behind the known offset: it is still there, or it was moved over records of
/// other partitions, as before a trim. Then nothing was announced in between.
fn goes_on(known: Position, offset: &Offset) -> bool {
    let moved_idle = offset.announced <= known.sequence && known.is_within(offset.stored);
    offset.stored == known || moved_idle
}

/// Waits for what ends a term from outside.
async fn interrupted(
    owned: &mut Owned,
    disturbances: &mut Disturbances,
    stop: &Stop,
) -> anyhow::Result<Ended> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(Ended::Stopped),
        changed = owned.changed() => Ok(changed.map(|()| Ended::Changed)?),
        changed = disturbances.changed() => Ok(changed.map(|()| Ended::Changed)?),
    }
}

#[cfg(test)]
mod tests {
    use shared::announcement::Epoch;

    use super::*;

    #[test]
    fn an_offset_that_was_moved_over_records_of_others_goes_on() {
        let position = |epoch, sequence| Position { epoch: Epoch(epoch), sequence };
        let offset = |epoch, sequence, announced| Offset {
            partition: Partition::FIRST,
            stored: position(epoch, sequence),
            announced,
        };
        let known = position(1, 10);
        assert!(goes_on(known, &offset(1, 10, 10)));
        assert!(goes_on(known, &offset(1, 15, 10)), "moved");
        assert!(goes_on(known, &offset(1, 15, 8)), "moved behind a record that was no message");
        assert!(!goes_on(known, &offset(1, 15, 15)), "another worker stored something");
        assert!(!goes_on(known, &offset(1, 9, 9)), "an older database");
        assert!(!goes_on(known, &offset(2, 10, 10)), "another log");
    }
}
