//! One task emits saved messages to their rooms, in the order in which they were stored, and ends the
//! sessions that were erased.
//!
//! It keeps one position per partition. What is announced at or below it was emitted before; a stretch
//! whose beginning is the position, or below it, comes next; anything else means that something
//! was missed, and the missing stretch is read from Postgres. That one rule covers announcements
//! that were lost, reconnects, a subscription that was too slow, and writers that died between
//! commit and announcement.
//!
//! Each partition that missed something has a task of its own that reads it ([`crate::delivery::recovery`]), so that
//! the rooms of the others do not wait. What is announced of it meanwhile waits for the end of that, as
//! long as it does not take too much memory; what is dropped then is missed again, and read too.
//!
//! A position never goes back. A Postgres behind it was restored from an older backup: what is
//! replayed then was emitted before.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt;
use shared::announcement::Position;
use shared::lifecycle::{Backoff, Stop, pause};
use shared::log::Log;
use shared::partition::Partition;
use shared::subjects;
use tokio::task::JoinSet;

use crate::db::history::History;
use crate::delivery::audience::{Audience, Turn};
use crate::delivery::feed::Feed;
use crate::delivery::heard::{self, Heard};
use crate::delivery::positions::Positions;
use crate::delivery::recovery::Recovery;
use crate::delivery::ring::Ring;

/// What may wait for a partition that is behind. At 1,000 commits a second it is that of a second and more, which a
/// recovery that is nearly done needs.
const WAITING_MAX: usize = 2_048;
/// The same in bytes of messages.
const WAITING_BYTES_MAX: usize = 1024 * 1024;
/// Pauses between tries while Postgres does not answer.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

pub struct Delivery {
    audience: Audience,
    positions: Arc<Positions>,
    feed: Feed,
    /// For those who read everything.
    ring: Arc<Ring>,
    ended: Subscriber,
    recovery: Recovery,
    /// Which partitions are behind, and what was announced of them meanwhile.
    behind: HashMap<Partition, Behind>,
    /// What reads for them: whose recovery it is, and whether Postgres has all that was announced.
    recovering: JoinSet<(Partition, bool)>,
    turn: Turn,
}

/// A partition that missed something.
struct Behind {
    first: Arc<Heard>,
    /// What came after that.
    waiting: VecDeque<Arc<Heard>>,
    bytes: usize,
}

impl Delivery {
    /// Subscribes, then reads where every partition stands: what is stored later is emitted.
    /// `None` if the stop came first.
    pub async fn start(
        audience: Audience,
        positions: Arc<Positions>,
        ring: Arc<Ring>,
        history: &History,
        client: &Client,
        log: &Log,
        stop: &Stop,
    ) -> anyhow::Result<Option<Self>> {
        let feed = Feed::start(client.subscribe(subjects::ALL_COMMITS).await?);
        let ended = client.subscribe(subjects::ALL_ENDED).await?;
        let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
        loop {
            match stored_positions(history, log).await {
                Ok(stored) => {
                    positions.begin(stored);
                    let recovery =
                        Recovery::new(history.clone(), Arc::clone(&positions), audience.clone());
                    return Ok(Some(Self {
                        audience,
                        positions,
                        feed,
                        ring,
                        ended,
                        recovery,
                        behind: HashMap::new(),
                        recovering: JoinSet::new(),
                        turn: Turn::default(),
                    }));
                }
                Err(error) => tracing::warn!(
                    "waiting for Postgres and NATS: {}",
                    shared::causes::told(error.as_ref())
                ),
            }
            if !pause(stop, backoff.pause()).await {
                return Ok(None);
            }
        }
    }

    /// Emits until the stop.
    pub async fn run(self, stop: Stop) -> anyhow::Result<()> {
        // Without the runtime's budget: a turn has ours.
        tokio::task::unconstrained(self.emit_all(stop)).await
    }

    async fn emit_all(mut self, stop: Stop) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(recovered) = self.recovering.join_next() => {
                    let (partition, is_complete) = recovered?;
                    self.go_on(partition, is_complete).await;
                }
                message = self.ended.next() => match message {
                    Some(message) => self.end(&message),
                    None => anyhow::bail!("the subscription to ends of sessions ended"),
                },
                payload = self.feed.next() => match payload {
                    Some(payload) => self.hear(&payload).await,
                    None => anyhow::bail!("the subscription to commits ended"),
                }
            }
        }
    }

    /// The end of a session is in the log.
    fn end(&self, message: &Message) {
        if let Some((_, session)) = subjects::parse(&message.subject) {
            self.audience.end(session);
        }
    }

    /// Tells what an announcement tells.
    async fn hear(&mut self, payload: &[u8]) {
        self.turn.count(1).await;
        let Ok(stretches) = heard::read(payload) else {
            tracing::warn!("an announcement cannot be read");
            return;
        };
        for heard in stretches {
            // Also where their place was passed before, and where they have none yet: it does no harm to
            // hear it twice.
            heard.ended().for_each(|session| self.audience.end(session));
            let heard = Arc::new(heard);
            self.ring.push(&heard);
            self.emit_or_recover(heard).await;
        }
    }

    async fn emit_or_recover(&mut self, heard: Arc<Heard>) {
        if let Some(behind) = self.behind.get_mut(&heard.partition) {
            behind.wait(heard);
        } else if !self.emit_next(&heard).await {
            self.recover(Behind { first: heard, waiting: VecDeque::new(), bytes: 0 });
        }
    }

    /// Emits what was announced, unless it was before; `false` if something was missed before it.
    async fn emit_next(&mut self, heard: &Heard) -> bool {
        let known = self.positions.of_or_begin(heard.partition, heard.before);
        if !heard.before.is_within(known) {
            return false;
        }
        if !heard.position.is_within(known) {
            self.positions.advance(heard.partition, heard.position);
        }
        for entry in &heard.entries {
            // A stretch may reach over where this gateway stands: Postgres was read up to there.
            let told = if entry.position.is_within(known) {
                self.audience.answer(entry);
                1
            } else {
                self.audience.tell(entry)
            };
            self.turn.count(told).await;
        }
        true
    }

    fn recover(&mut self, behind: Behind) {
        let (partition, before) = (behind.first.partition, behind.first.before);
        let recovery = self.recovery.clone();
        self.recovering
            .spawn(async move { (partition, recovery.read_up_to(partition, before).await) });
        self.behind.insert(partition, behind);
    }

    /// A partition has everything that Postgres had; `is_complete` tells whether that was all that was
    /// announced before.
    async fn go_on(&mut self, partition: Partition, is_complete: bool) {
        let Some(Behind { first, mut waiting, .. }) = self.behind.remove(&partition) else {
            return;
        };
        if is_complete {
            waiting.push_front(first);
        }
        while let Some(next) = waiting.pop_front() {
            if !self.emit_next(&next).await {
                let bytes = waiting.iter().map(|heard| heard.bytes()).sum();
                return self.recover(Behind { first: next, waiting, bytes });
            }
        }
    }
}

impl Behind {
    /// Keeps the newest: what is dropped comes before them, and is read from Postgres.
    fn wait(&mut self, heard: Arc<Heard>) {
        self.bytes += heard.bytes();
        self.waiting.push_back(heard);
        while self.waiting.len() > WAITING_MAX || self.bytes > WAITING_BYTES_MAX {
            let Some(dropped) = self.waiting.pop_front() else { return };
            self.bytes -= dropped.bytes();
        }
    }
}

/// Where every partition stands, read after the server surely knows the subscription.
async fn stored_positions(
    history: &History,
    log: &Log,
) -> anyhow::Result<HashMap<Partition, Position>> {
    // A flush is no round trip; a request on the same connection is.
    log.stream().get_info().await?;
    Ok(history.positions().await?.into_iter().collect())
}
