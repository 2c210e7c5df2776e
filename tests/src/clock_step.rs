//! What a clock that is set back leaves in the database.

use sqlx::PgPool;

/// In the order in which persisters lock partitions: anything else is a deadlock under load.
const FROM_THE_FUTURE: [&str; 2] = [
    r#"
    WITH locked AS (SELECT "partition" FROM "LogPartition" ORDER BY "partition" FOR UPDATE)
    UPDATE "LogPartition" p SET "leaseUntil" = "leaseUntil" + interval '1 hour'
    FROM locked WHERE locked."partition" = p."partition""#,
    r#"UPDATE "Worker" SET "aliveUntil" = "aliveUntil" + interval '1 hour'"#,
];

/// Leases and workers' words as a clock that was an hour ahead left them.
///
/// # Errors
/// Those of the database.
pub async fn step_clock_back(pool: &PgPool) -> sqlx::Result<()> {
    for moved in FROM_THE_FUTURE {
        sqlx::query(moved).execute(pool).await?;
    }
    Ok(())
}
