//! Erased sessions of which the log may still hold something.

use shared::ids::SessionDigest;

use crate::store::{Store, column};

/// Erased sessions of which the log may still hold something, and whether it is the log that they were
/// erased in.
const UNCLEARED: &str = r#"
    SELECT e."digest", e."erasedSequence", e."lastSequence",
           EXISTS (SELECT FROM "LogPartition" p WHERE p."epoch" = e."logEpoch")
    FROM "ErasedSession" e
    WHERE e."clearedSequence" < e."lastSequence"
    ORDER BY e."lastSequence" LIMIT $1"#;

/// Takes note that the log holds nothing more of an erased session, unless a record came meanwhile.
const CLEARED: &str = r#"
    UPDATE "ErasedSession" SET "clearedSequence" = "lastSequence"
    WHERE "digest" = $1 AND "erasedSequence" = $2 AND "lastSequence" = $3"#;

/// An erased session of which the log may still hold something.
#[derive(Debug)]
pub struct Uncleared {
    pub digest: SessionDigest,
    /// Sequence of the record that erased it; 0 if this log has none.
    pub erased_sequence: u64,
    /// Sequence of its last record that was read.
    pub last_sequence: u64,
    /// Whether the sequences count in this log, and not in one before it.
    pub in_this_log: bool,
}

impl Store {
    /// Some erased sessions of which the log may still hold something.
    pub async fn uncleared(&self, limit: u32) -> sqlx::Result<Vec<Uncleared>> {
        let query = sqlx::query(UNCLEARED).bind(i64::from(limit));
        let rows: Vec<(Vec<u8>, i64, i64, bool)> = self.pool.fetch_all(query).await?;
        let uncleared = |(digest, erased, last, in_this_log): (Vec<u8>, i64, i64, bool)| {
            Some(Uncleared {
                digest: SessionDigest::from_column(&digest)?,
                erased_sequence: erased.cast_unsigned(),
                last_sequence: last.cast_unsigned(),
                in_this_log,
            })
        };
        Ok(rows.into_iter().filter_map(uncleared).collect())
    }

    /// The log holds nothing more of an erased session.
    pub async fn cleared(&self, erased: &Uncleared) -> sqlx::Result<()> {
        let query = sqlx::query(CLEARED)
            .bind(erased.digest.as_bytes().to_vec())
            .bind(column(erased.erased_sequence))
            .bind(column(erased.last_sequence));
        self.pool.execute(query).await.map(drop)
    }
}
