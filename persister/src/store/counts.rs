//! How much is stored, and how much is left.

use shared::partition::Partition;
use shared::pool::Pool;

use crate::store::{Store, partition};

/// How far every partition is stored.
const STORED: &str = r#"SELECT "partition", "sequence" FROM "LogPartition""#;

const UNCLEARED_COUNT: &str = r#"
    SELECT count(*) FROM "ErasedSession" WHERE "clearedSequence" < "lastSequence" "#;

const DEAD_LETTER_COUNT: &str = r#"SELECT count(*) FROM "DeadLetter""#;

impl Store {
    /// How far every partition is stored, also those of other workers.
    pub async fn stored_sequences(&self) -> sqlx::Result<Vec<(Partition, u64)>> {
        stored_sequences(&self.pool).await
    }

    /// Erased sessions of which the log may still hold something.
    pub async fn uncleared_count(&self) -> sqlx::Result<i64> {
        self.pool.fetch_one(sqlx::query(UNCLEARED_COUNT)).await.map(|(value,)| value)
    }

    /// How many dead letters there are.
    pub async fn dead_letter_count(&self) -> sqlx::Result<i64> {
        self.pool.fetch_one(sqlx::query(DEAD_LETTER_COUNT)).await.map(|(value,)| value)
    }
}

/// How far every partition is stored, also those of other workers.
pub async fn stored_sequences(pool: &Pool) -> sqlx::Result<Vec<(Partition, u64)>> {
    let rows: Vec<(i16, i64)> = pool.fetch_all(sqlx::query(STORED)).await?;
    let stored = |(number, sequence): (i16, i64)| (partition(number), sequence.cast_unsigned());
    Ok(rows.into_iter().map(stored).collect())
}
