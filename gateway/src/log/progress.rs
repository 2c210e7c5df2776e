//! Whether what waits in the log is stored. Postgres and NATS may both answer, and no persister may run, or one that
//! runs may store nothing all the same.
//!
//! Progress is that of a persister: it reads the log in order, and a partition may have to wait until one that
//! talks more is stored. So what counts is whether it stores anything of any of its partitions.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use shared::health::Waiting;
use shared::lifecycle::{Stop, pause};
use shared::log::Log;
use shared::partition::Partition;
use shared::subjects;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::db::history::History;
use crate::db::rows::Offset;

/// Pause between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks after what is stored.
pub struct ProgressWatch {
    history: History,
    log: Log,
    waiting: watch::Sender<Option<Instant>>,
    before: Vec<Offset>,
    /// Since when a partition waits for a persister that stores nothing.
    since: BTreeMap<Partition, Instant>,
    /// With this last sequence of the log nothing waited for them.
    idle_at: Option<u64>,
}

impl ProgressWatch {
    /// Looks at all partitions, its own and those of others.
    pub fn new(history: History, log: Log) -> (Self, Waiting) {
        let (waiting, receiver) = watch::channel(None);
        let (before, since) = (Vec::new(), BTreeMap::new());
        (Self { history, log, waiting, before, since, idle_at: None }, receiver)
    }

    /// Looks until the stop.
    pub async fn run(mut self, stop: Stop) -> anyhow::Result<()> {
        while pause(&stop, LOOK_INTERVAL).await {
            match stop.run_until_cancelled(self.look()).await {
                None => break,
                Some(Ok(())) => {}
                // What cannot be looked at has not answered: that is told elsewhere.
                Some(Err(_)) => self.since.clear(),
            }
            self.waiting.send_replace(self.since.values().min().copied());
        }
        Ok(())
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let offsets = self.history.offsets().await?;
        let idle = idle(&self.before, &offsets);
        if self.before != offsets {
            self.idle_at = None;
        }
        self.before = offsets;
        let last = self.log.stream().get_info().await?.state.last_sequence;
        if self.idle_at == Some(last) {
            self.since.clear();
            return Ok(());
        }
        let all = idle.len() == self.before.len();
        let mut waiting = BTreeMap::new();
        for offset in idle {
            if self.last_sequence(offset.partition).await? > offset.sequence {
                let since = self.since.get(&offset.partition).copied();
                waiting.insert(offset.partition, since.unwrap_or_else(Instant::now));
            }
        }
        self.since = waiting;
        // What its persister stores was not looked at, and may be what waits from now on.
        if all && self.since.is_empty() {
            self.idle_at = Some(last);
        }
        Ok(())
    }

    async fn last_sequence(&self, partition: Partition) -> anyhow::Result<u64> {
        let last = self.log.last_record(&subjects::requests_of(partition)).await?;
        Ok(last.map_or(0, |last| last.sequence))
    }
}

/// The partitions of those owners that stored nothing since the last look; those of nobody are one's together.
fn idle(before: &[Offset], now: &[Offset]) -> Vec<Offset> {
    let stored = |offset: &&Offset| {
        let same = before.iter().find(|before| before.partition == offset.partition);
        same.is_none_or(|before| before.sequence != offset.sequence)
    };
    let busy: HashSet<_> = now.iter().filter(stored).map(|offset| &offset.owner).collect();
    now.iter().filter(|offset| !busy.contains(&offset.owner)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(all: [(u64, Option<&str>); 4]) -> Vec<Offset> {
        let offset = |(partition, (sequence, owner)): (u16, (u64, Option<&str>))| Offset {
            partition: Partition::new(partition),
            sequence,
            owner: owner.map(str::to_owned),
        };
        (0..).zip(all).map(offset).collect()
    }

    #[test]
    fn partitions_wait_for_their_own_persister_only() {
        let (one, other) = (Some("one"), Some("other"));
        let before = offsets([(1, one), (2, one), (3, other), (4, None)]);
        let numbers = |now: Vec<Offset>| -> Vec<_> {
            idle(&before, &now).iter().map(|offset| offset.partition.to_column()).collect()
        };
        assert_eq!(numbers(before.clone()), [0, 1, 2, 3]);
        assert_eq!(numbers(offsets([(1, one), (9, one), (3, other), (4, None)])), [2, 3]);
        assert_eq!(numbers(offsets([(1, one), (2, one), (9, other), (4, None)])), [0, 1, 3]);
        // Its new owner has stored nothing yet.
        assert_eq!(numbers(offsets([(1, other), (2, one), (3, other), (4, None)])), [0, 1, 2, 3]);
        assert!(idle(&[], &before).is_empty(), "the first look tells nothing");
    }
}
