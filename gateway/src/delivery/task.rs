//! One task emits saved messages to their rooms, in the order in which they were stored, and ends the
//! sessions that were erased.
//!
//! It keeps one position per partition. An announcement at or below it was emitted before; one
//! whose predecessor is the position, or below it, comes next; anything else means that something
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
use shared::announcement::{Announcement, Position};
use shared::ids::SessionId;
use shared::lifecycle::{Backoff, Stop, pause};
use shared::log::Log;
use shared::partition::Partition;
use shared::subjects;
use tokio::task::JoinSet;

use crate::db::history::History;
use crate::delivery::audience::Audience;
use crate::delivery::positions::Positions;
use crate::delivery::recovery::Recovery;
use crate::delivery::rooms::Saved;

/// Messages emitted before everything else has its turn again. When thousands of sockets are ready a round
/// takes long: the runtime's own 128 a round would leave deliveries behind, and the rest of the machine idle.
const IN_ONE_GO: usize = 1_024;
/// What may wait for a partition that is behind. At 1,000 announcements a second of one partition it is that
/// of a second and more, which a recovery that is nearly done needs.
const WAITING_MAX: usize = 2_048;
/// The same in bytes of messages.
const WAITING_BYTES_MAX: usize = 1024 * 1024;
/// Pauses between tries while Postgres does not answer.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

pub struct Delivery {
    audience: Audience,
    positions: Arc<Positions>,
    saved: Subscriber,
    recovery: Recovery,
    /// Which partitions are behind, and what was announced of them meanwhile.
    behind: HashMap<Partition, Behind>,
    /// What reads for them: whose recovery it is, and whether Postgres has all that was announced.
    recovering: JoinSet<(Partition, bool)>,
}

/// An announcement that arrived.
struct Heard {
    partition: Partition,
    announcement: Announcement,
    message: Option<(SessionId, Saved)>,
}

/// A partition that missed something.
struct Behind {
    first: Heard,
    /// What came after that.
    waiting: VecDeque<Heard>,
    bytes: usize,
}

impl Delivery {
    /// Subscribes, then reads where every partition stands: what is stored later is emitted.
    /// `None` if the stop came first.
    pub async fn start(
        audience: Audience,
        positions: Arc<Positions>,
        history: &History,
        client: &Client,
        log: &Log,
        stop: &Stop,
    ) -> anyhow::Result<Option<Self>> {
        let saved = client.subscribe(subjects::ALL_SAVED).await?;
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
                        saved,
                        recovery,
                        behind: HashMap::new(),
                        recovering: JoinSet::new(),
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
        // Without the runtime's budget: `IN_ONE_GO` is ours.
        tokio::task::unconstrained(self.emit_all(stop)).await
    }

    async fn emit_all(mut self, stop: Stop) -> anyhow::Result<()> {
        let mut emitted: usize = 0;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(recovered) = self.recovering.join_next() => {
                    let (partition, is_complete) = recovered?;
                    self.go_on(partition, is_complete);
                }
                message = self.saved.next() => match message {
                    Some(message) => self.hear(&message),
                    None => anyhow::bail!("the subscription to saved messages ended"),
                }
            }
            emitted = (emitted + 1) % IN_ONE_GO;
            if emitted == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn hear(&mut self, message: &Message) {
        let place = subjects::parse_saved(&message.subject);
        let announcement = message.headers.as_ref().and_then(Announcement::from_headers);
        if let (true, Some((_, Some(session)))) = (message.payload.is_empty(), place) {
            // Also where its place was passed before, and where it has none yet: it does no harm to
            // hear it twice.
            self.audience.end(session);
            if announcement.is_none() {
                return;
            }
        }
        let (Some((partition, session)), Some(announcement)) = (place, announcement) else {
            tracing::warn!("an announcement cannot be read");
            return;
        };
        let message = session.and_then(|session| {
            Some((session, Saved::read(&message.payload, announcement.position)?))
        });
        self.emit_or_recover(Heard { partition, announcement, message });
    }

    fn emit_or_recover(&mut self, heard: Heard) {
        if let Some(behind) = self.behind.get_mut(&heard.partition) {
            behind.wait(heard);
        } else if !self.emit_next(&heard) {
            self.recover(Behind { first: heard, waiting: VecDeque::new(), bytes: 0 });
        }
    }

    /// Emits what was announced, unless it was before; `false` if something was missed before it.
    fn emit_next(&self, heard: &Heard) -> bool {
        let Heard { partition, announcement, message } = heard;
        let before = announcement.before();
        let known = self.positions.of_or_begin(*partition, before);
        if !before.is_within(known) {
            return false;
        }
        if !announcement.position.is_within(known) {
            self.positions.advance(*partition, announcement.position);
            if let Some((session, message)) = message {
                self.audience.deliver(*session, message, announcement.recorded_at);
            }
        }
        true
    }

    fn recover(&mut self, behind: Behind) {
        let (partition, before) = (behind.first.partition, behind.first.announcement.before());
        let recovery = self.recovery.clone();
        self.recovering
            .spawn(async move { (partition, recovery.read_up_to(partition, before).await) });
        self.behind.insert(partition, behind);
    }

    /// A partition has everything that Postgres had; `is_complete` tells whether that was all that was
    /// announced before.
    fn go_on(&mut self, partition: Partition, is_complete: bool) {
        let Some(Behind { first, mut waiting, .. }) = self.behind.remove(&partition) else {
            return;
        };
        if is_complete {
            waiting.push_front(first);
        }
        while let Some(next) = waiting.pop_front() {
            if !self.emit_next(&next) {
                let bytes = waiting.iter().map(Heard::bytes).sum();
                return self.recover(Behind { first: next, waiting, bytes });
            }
        }
    }
}

impl Heard {
    fn bytes(&self) -> usize {
        self.message.as_ref().map_or(0, |(_, saved)| saved.json.get().len())
    }
}

impl Behind {
    /// Keeps the newest: what is dropped comes before them, and is read from Postgres.
    fn wait(&mut self, heard: Heard) {
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
