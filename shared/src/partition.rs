//! Partitions of the log: every session belongs to exactly one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::SessionId;

/// A partition's number, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Partition(u16);

/// How many partitions the log has. Fixed when the stream is made and written into its metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionCount(u16);

/// More would only add heartbeats; one worker per partition is the most that can share the work.
pub const MAX_PARTITIONS: u16 = 1_024;

/// The count is 0 or above [`MAX_PARTITIONS`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be from 1 to {MAX_PARTITIONS}")]
pub struct InvalidPartitionCount;

impl Partition {
    /// There is always this one.
    pub const FIRST: Self = Self(0);

    /// The partition with this number.
    pub fn new(number: u16) -> Self {
        Self(number)
    }

    pub fn number(self) -> u16 {
        self.0
    }

    /// Its number as Postgres stores it. [`MAX_PARTITIONS`] fits.
    pub fn to_column(self) -> i16 {
        i16::try_from(self.0).unwrap_or(i16::MAX)
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u16> for PartitionCount {
    type Error = InvalidPartitionCount;

    fn try_from(count: u16) -> Result<Self, InvalidPartitionCount> {
        if (1..=MAX_PARTITIONS).contains(&count) {
            Ok(Self(count))
        } else {
            Err(InvalidPartitionCount)
        }
    }
}

impl PartitionCount {
    /// Partitions unless `PARTITIONS` says otherwise.
    pub const DEFAULT: Self = Self(16);

    /// The number of partitions.
    pub fn get(self) -> u16 {
        self.0
    }

    /// Whether it is one of them.
    pub fn has(self, partition: Partition) -> bool {
        partition.0 < self.0
    }

    /// Every partition, in order.
    pub fn all(self) -> impl Iterator<Item = Partition> {
        (0..self.0).map(Partition)
    }

    /// The partition of a session: FNV-1a (64 bit, as published by Fowler, Noll and Vo) over the
    /// sixteen bytes of the id, modulo the count. It must never change: the log outlives releases.
    pub fn partition_of(self, session: SessionId) -> Partition {
        const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let hash = session
            .as_bytes()
            .iter()
            .fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
        // The remainder is below a u16, so the cast loses nothing.
        #[allow(clippy::cast_possible_truncation)]
        Partition((hash % u64::from(self.0)) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_never_changes_between_releases() {
        let count = PartitionCount::try_from(16).unwrap();
        let of = |text| count.partition_of(SessionId::parse(text).unwrap()).number();
        assert_eq!(of("550e8400-e29b-41d4-a716-446655440000"), 2);
        assert_eq!(of("00000000-0000-4000-8000-000000000000"), 5);
    }

    #[test]
    fn sessions_spread_over_all_partitions() {
        let count = PartitionCount::try_from(16).unwrap();
        let mut hits = [0; 16];
        for _ in 0..16_000 {
            hits[usize::from(count.partition_of(SessionId::random()).number())] += 1;
        }
        assert!(hits.iter().all(|hits| (800..1_200).contains(hits)), "{hits:?}");
    }

    #[test]
    fn a_count_out_of_range_is_refused() {
        assert_eq!(PartitionCount::try_from(0), Err(InvalidPartitionCount));
        assert_eq!(PartitionCount::try_from(MAX_PARTITIONS + 1), Err(InvalidPartitionCount));
    }
}
