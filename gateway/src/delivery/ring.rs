//! What was announced last, for feeds: one ring for all of them, bounded in bytes. What has fallen out of it before a
//! feed took it is a gap for that feed, which reads it from Postgres.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::delivery::heard::Heard;

/// What may wait for feeds: those of a second at 10,000 messages of 500 bytes a second.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// What an entry takes beside its message, about.
const ENTRY_BYTES: usize = 256;
/// Most bytes that a feed takes at a time, but one stretch in any case.
const TAKEN_MAX: usize = 256 * 1024;

/// Stretches in the order in which they were announced. Nothing is kept where nobody reads it.
#[derive(Default)]
pub struct Ring {
    stretches: Mutex<Stretches>,
    readers: AtomicUsize,
    /// How many were ever kept.
    kept: watch::Sender<u64>,
}

#[derive(Default)]
struct Stretches {
    /// Number of the first that is there.
    first: u64,
    kept: VecDeque<Arc<Heard>>,
    bytes: usize,
}

/// One feed's place in the ring.
pub struct RingReader {
    ring: Arc<Ring>,
    next: u64,
    kept: watch::Receiver<u64>,
}

fn bytes_of(heard: &Heard) -> usize {
    heard.bytes() + ENTRY_BYTES * (1 + heard.entries.len())
}

impl Ring {
    /// Keeps a stretch, if anybody reads it.
    pub fn push(&self, heard: &Arc<Heard>) {
        if self.readers.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut stretches = self.lock();
        stretches.bytes += bytes_of(heard);
        stretches.kept.push_back(Arc::clone(heard));
        while stretches.bytes > BYTES_MAX {
            let Some(dropped) = stretches.kept.pop_front() else { break };
            stretches.bytes -= bytes_of(&dropped);
            stretches.first += 1;
        }
        let count = stretches.first + stretches.kept.len() as u64;
        drop(stretches);
        self.kept.send_replace(count);
    }

    /// Reads whatever is announced from now on.
    pub fn reader(self: &Arc<Self>) -> RingReader {
        self.readers.fetch_add(1, Ordering::Relaxed);
        let kept = self.kept.subscribe();
        let stretches = self.lock();
        let next = stretches.first + stretches.kept.len() as u64;
        drop(stretches);
        RingReader { ring: Arc::clone(self), next, kept }
    }

    /// How many read.
    pub fn readers(&self) -> usize {
        self.readers.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Stretches> {
        self.stretches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RingReader {
    /// What came next, once something has.
    pub async fn next(&mut self) -> Vec<Arc<Heard>> {
        // It cannot fail: what would be told of the end is held here.
        self.kept.wait_for(|kept| *kept > self.next).await.ok();
        let stretches = self.ring.lock();
        let passed =
            usize::try_from(self.next.saturating_sub(stretches.first)).unwrap_or(usize::MAX);
        self.next = self.next.max(stretches.first);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for heard in stretches.kept.iter().skip(passed) {
            bytes += bytes_of(heard);
            if bytes > TAKEN_MAX && !taken.is_empty() {
                break;
            }
            taken.push(Arc::clone(heard));
        }
        self.next += taken.len() as u64;
        taken
    }
}

impl Drop for RingReader {
    fn drop(&mut self) {
        // With the last of them everything goes.
        if self.ring.readers.fetch_sub(1, Ordering::Relaxed) == 1 {
            let mut stretches = self.ring.lock();
            stretches.first += stretches.kept.len() as u64;
            stretches.bytes = 0;
            stretches.kept = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use shared::announcement::{Epoch, Fate, Position};
    use shared::ids::SessionId;
    use shared::partition::Partition;

    use super::*;
    use crate::delivery::heard::HeardEntry;
    use crate::delivery::rooms::Saved;

    fn heard(sequence: u64, bytes: usize) -> Arc<Heard> {
        let position = Position { epoch: Epoch(1), sequence };
        let json = RawValue::from_string(format!("\"{}\"", "x".repeat(bytes))).unwrap();
        let entry = HeardEntry {
            position,
            session: SessionId::random(),
            recorded_at: None,
            fate: Fate::Stored,
            id: None,
            saved: Some(Saved::new(position, json)),
            change: None,
        };
        let before = Position { sequence: sequence - 1, ..position };
        Arc::new(Heard { partition: Partition::FIRST, before, position, entries: vec![entry] })
    }

    fn sequences(taken: &[Arc<Heard>]) -> Vec<u64> {
        taken.iter().map(|heard| heard.position.sequence).collect()
    }

    #[tokio::test]
    async fn each_reader_has_what_came_since_it_began_and_nobodys_is_kept() {
        let ring = Arc::<Ring>::default();
        ring.push(&heard(1, 10));
        let mut one = ring.reader();
        ring.push(&heard(2, 10));
        let mut two = ring.reader();
        ring.push(&heard(3, TAKEN_MAX));
        ring.push(&heard(4, 10));
        assert_eq!(sequences(&one.next().await), [2]);
        assert_eq!(sequences(&one.next().await), [3]);
        assert_eq!(sequences(&two.next().await), [3]);
        assert_eq!(sequences(&two.next().await), [4]);
        drop((one, two));
        {
            let left = ring.lock();
            assert_eq!((left.bytes, left.kept.len(), left.first), (0, 0, 3));
        }
        let mut late = ring.reader();
        ring.push(&heard(5, 10));
        assert_eq!(sequences(&late.next().await), [5]);
    }

    #[tokio::test]
    async fn it_is_bounded_in_bytes_and_a_late_reader_goes_on_with_what_is_left() {
        let ring = Arc::<Ring>::default();
        let mut reader = ring.reader();
        for sequence in 1..=100 {
            ring.push(&heard(sequence, BYTES_MAX / 10));
        }
        assert!(ring.lock().bytes <= BYTES_MAX);
        let mut taken = Vec::new();
        while taken.last() != Some(&100) {
            taken.extend(sequences(&reader.next().await));
        }
        assert_eq!(taken, (92..=100).collect::<Vec<_>>());
    }
}
