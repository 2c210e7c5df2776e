//! Up to where everything was emitted.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use shared::announcement::Position;
use shared::partition::Partition;

/// Up to where everything was emitted, by partition.
#[derive(Default)]
pub struct Positions(Mutex<HashMap<Partition, Position>>);

impl Positions {
    /// Where a partition stands; `None` if nothing was ever heard of it.
    pub fn of(&self, partition: Partition) -> Option<Position> {
        self.lock().get(&partition).copied()
    }

    /// Where every partition stands of which anything was heard.
    pub fn all(&self) -> BTreeMap<Partition, Position> {
        self.lock().iter().map(|(partition, position)| (*partition, *position)).collect()
    }

    /// Where every partition begins; what stood here before is forgotten.
    pub fn begin(&self, positions: HashMap<Partition, Position>) {
        *self.lock() = positions;
    }

    /// Where a partition stands; if nothing was ever heard of it, it begins here.
    pub fn of_or_begin(&self, partition: Partition, begin: Position) -> Position {
        *self.lock().entry(partition).or_insert(begin)
    }

    /// To be called before what it covers is emitted: a socket that joins later was not given it.
    pub fn advance(&self, partition: Partition, position: Position) {
        self.lock().insert(partition, position);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Partition, Position>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
