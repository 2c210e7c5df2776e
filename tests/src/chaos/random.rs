//! Random choices that a seed repeats: the same on every machine and with every version of every crate.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::Duration;

/// `SplitMix64`.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Choices of its own for somebody with this name.
    pub(super) fn of(seed: u64, name: &str) -> Self {
        Self(seed ^ hash(name))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// An index of a list of this length.
    pub(super) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or_default()
    }

    /// A time between these, in milliseconds.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to.saturating_sub(from) + 1))
    }

    /// Whether something happens that does so often.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            list.swap(end, self.index(end + 1));
        }
    }
}

/// FNV-1a: the standard library's hash may change with its version.
pub(super) fn hash(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// A seed for a run that was given none.
pub(super) fn any_seed() -> u64 {
    let state = BuildHasherDefault::<DefaultHasher>::new();
    let now = std::time::SystemTime::now();
    state.hash_one((now, std::process::id())) % 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_choices_and_another_one_does_not() {
        let choices = |seed| {
            let mut random = Random::new(seed);
            [(); 8].map(|()| random.next())
        };
        assert_eq!(choices(7), choices(7));
        assert_ne!(choices(7), choices(8));
    }

    #[test]
    fn times_lie_between_their_bounds() {
        let mut random = Random::new(1);
        let times: Vec<_> = (0..1_000).map(|_| random.between(10, 12)).collect();
        let bounds = Duration::from_millis(10)..=Duration::from_millis(12);
        assert!(times.iter().all(|time| bounds.contains(time)));
        assert!(bounds.start() == times.iter().min().unwrap());
        assert!(bounds.end() == times.iter().max().unwrap());
    }
}
