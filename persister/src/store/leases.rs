//! Which partitions are the worker's: leases on Postgres's clock.

use shared::SCHEMA_VERSION;
use shared::partition::Partition;

use crate::store::{Store, partition};

/// How long a partition stays with a worker that does not say that it lives. With the pause between
/// looks (`LOOK_INTERVAL` of ownership) it keeps a takeover within 5 s.
const LEASE_MS: i32 = 2_500;

/// Says that the worker lives, and forgets those that have been silent for long, also by a clock that was
/// ahead.
const ALIVE: &str = r#"
    WITH silent AS (
        SELECT "id" FROM "Worker"
        WHERE "aliveUntil" NOT BETWEEN now() - interval '1 minute' AND clock_timestamp() + interval '1 minute'
            AND "id" <> $1
        FOR UPDATE SKIP LOCKED
    ), forgotten AS (
        DELETE FROM "Worker" WHERE "id" IN (SELECT "id" FROM silent)
    )
    INSERT INTO "Worker" ("id", "aliveUntil", "version")
    VALUES ($1, now() + $2 * interval '1 millisecond', $3)
    ON CONFLICT ("id") DO UPDATE SET "aliveUntil" = EXCLUDED."aliveUntil""#;

/// Renews the worker's leases up to its fair share, gives up what is above it, takes what is free
/// below it. Nobody waits for a row that another worker is taking.
///
/// No lease and no sign of life is longer than `$2`: one that seems to be was written before the clock was
/// set back, and nobody need be alive who renews it. The clock is looked at anew for that: `now()` is from
/// before the snapshot, which may show a lease that was renewed since.
///
/// This and every other statement that waits for rows of `LogPartition` locks them in the order of
/// the partitions first: two that did so in their own orders would wait for each other, until the
/// server notices after its `deadlock_timeout`, a second in which nothing is stored.
const SHARE: &str = r#"
    WITH share AS (
        SELECT ceil((SELECT count(*) FROM "LogPartition")::numeric / greatest(count(*), 1))::int AS most
        FROM "Worker"
        WHERE "aliveUntil" > now() AND "aliveUntil" <= clock_timestamp() + $2 * interval '1 millisecond'
    ), held AS (
        SELECT "partition" FROM "LogPartition" WHERE "owner" = $1 ORDER BY "partition" FOR UPDATE
    ), mine AS (
        SELECT "partition", row_number() OVER (ORDER BY "partition") <= (SELECT most FROM share) AS kept
        FROM held
    ), renewed AS (
        UPDATE "LogPartition" p
        SET "owner" = CASE WHEN mine.kept THEN $1 END,
            "leaseUntil" = CASE WHEN mine.kept THEN now() + $2 * interval '1 millisecond' END
        FROM mine WHERE p."partition" = mine."partition" AND p."owner" = $1
        RETURNING p."partition", p."owner"
    ), free AS (
        SELECT "partition" FROM "LogPartition"
        WHERE "owner" IS DISTINCT FROM $1 AND ("owner" IS NULL OR ("leaseUntil" >= now()
            AND "leaseUntil" <= clock_timestamp() + $2 * interval '1 millisecond') IS NOT TRUE)
        ORDER BY "partition"
        LIMIT greatest((SELECT most FROM share) - (SELECT count(*) FROM mine), 0)
        FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE "LogPartition" p SET "owner" = $1, "leaseUntil" = now() + $2 * interval '1 millisecond'
        FROM free WHERE p."partition" = free."partition"
        RETURNING p."partition"
    )
    SELECT "partition", false AS released FROM taken
    UNION ALL SELECT "partition", "owner" IS NULL FROM renewed"#;

/// Gives up everything, at the worker's end.
const LEAVE: &str = r#"
    WITH gone AS (
        DELETE FROM "Worker" WHERE "id" = $1
    ), held AS (
        SELECT "partition" FROM "LogPartition" WHERE "owner" = $1 ORDER BY "partition" FOR UPDATE
    )
    UPDATE "LogPartition" p SET "owner" = NULL, "leaseUntil" = NULL
    FROM held WHERE p."partition" = held."partition""#;

/// Partitions after a look at the leases.
#[derive(Debug, Default, PartialEq)]
pub struct Leases {
    /// The worker's own until the next look.
    pub owned: Vec<Partition>,
    /// Given up for others in this look.
    pub released: usize,
}

impl Store {
    /// Renews the leases, takes and gives up partitions towards the worker's fair share.
    pub async fn share(&self) -> sqlx::Result<Leases> {
        self.pool
            .execute(sqlx::query(ALIVE).bind(self.worker).bind(LEASE_MS).bind(SCHEMA_VERSION))
            .await?;
        let rows: Vec<(i16, bool)> =
            self.pool.fetch_all(sqlx::query(SHARE).bind(self.worker).bind(LEASE_MS)).await?;
        let mut leases = Leases::default();
        for (number, released) in rows {
            if released {
                leases.released += 1;
            } else {
                leases.owned.push(partition(number));
            }
        }
        leases.owned.sort_unstable();
        Ok(leases)
    }

    pub async fn leave(&self) -> sqlx::Result<()> {
        self.pool.execute(sqlx::query(LEAVE).bind(self.worker)).await.map(drop)
    }
}
