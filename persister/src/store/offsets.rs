//! How far each partition is stored, and by what it knows its log again.

use shared::announcement::{Epoch, Position};
use shared::partition::Partition;
use sqlx::Postgres;
use time::OffsetDateTime;

use crate::store::{Store, column, partition};

/// How far the worker's partitions are stored and, from the rows, how far they were announced at most.
const OFFSETS: &str = r#"
    SELECT p."partition", p."epoch", p."sequence", greatest(last."logSequence", erased."lastSequence", 0)
    FROM "LogPartition" p
    LEFT JOIN LATERAL (
        SELECT m."logSequence" FROM "Message" m
        WHERE m."logEpoch" = p."epoch" ORDER BY m."logSequence" DESC LIMIT 1
    ) last ON true
    LEFT JOIN LATERAL (
        SELECT e."lastSequence" FROM "ErasedSession" e
        WHERE e."logEpoch" = p."epoch" ORDER BY e."lastSequence" DESC LIMIT 1
    ) erased ON true
    WHERE p."owner" = $1 AND p."partition" = ANY($2)"#;

/// By what every partition, of all workers, knows its log again.
const MARKS: &str = r#"
    SELECT "partition", "epoch", "sequence", "recordedAt", "streamCreatedAt", "headSequence", "headRecordedAt"
    FROM "LogPartition" ORDER BY "partition""#;

/// Begins new epochs: nothing of the log that is there now counts as stored. All or nothing, so that of
/// several workers that find another log only one does it; the commits of the others are fenced.
const BEGIN_EPOCHS: &str = r#"
    WITH observed AS (
        SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS o ("partition", "epoch", "next")
    ), locked AS (
        SELECT p."partition", o."next"
        FROM "LogPartition" p JOIN observed o ON o."partition" = p."partition" AND o."epoch" = p."epoch"
        ORDER BY p."partition"
        FOR UPDATE OF p
    ), begun AS (
        UPDATE "LogPartition" p
        SET "epoch" = l."next", "sequence" = $4, "recordedAt" = NULL, "streamCreatedAt" = $5,
            "headSequence" = $6, "headRecordedAt" = $7
        FROM locked l
        WHERE p."partition" = l."partition"
            AND (SELECT count(*) FROM locked) = (SELECT count(*) FROM observed)
        RETURNING p."partition", p."epoch"
    )
    INSERT INTO "LogEpoch" ("partition", "epoch") SELECT * FROM begun"#;

/// Gives a fingerprint to partitions that have none: those of an older version, and those of which no record
/// was stored yet.
const MARK: &str = r#"
    WITH unmarked AS (
        SELECT p."partition"
        FROM "LogPartition" p
        JOIN unnest($1::smallint[], $2::bigint[]) AS o ("partition", "epoch")
            ON o."partition" = p."partition" AND o."epoch" = p."epoch"
        WHERE p."headSequence" IS NULL
        ORDER BY p."partition"
        FOR UPDATE OF p
    )
    UPDATE "LogPartition" p SET "headSequence" = $3, "headRecordedAt" = $4
    FROM unmarked WHERE p."partition" = unmarked."partition""#;

/// Moves offsets over records of other partitions, to where no record of their own is named. What the
/// partition knows its log by stays, also where that was the record at its offset.
const MOVE_IDLE: &str = r#"
    WITH idle AS (
        SELECT p."partition"
        FROM "LogPartition" p
        JOIN unnest($1::smallint[], $2::bigint[]) AS e ("partition", "sequence")
            ON p."partition" = e."partition" AND p."sequence" = e."sequence"
        ORDER BY p."partition"
        FOR UPDATE OF p
    )
    UPDATE "LogPartition" p
    SET "sequence" = $3, "recordedAt" = NULL, "streamCreatedAt" = coalesce(p."streamCreatedAt", $4),
        "headSequence" = CASE
            WHEN p."headSequence" IS NULL AND p."recordedAt" IS NOT NULL THEN p."sequence"
            ELSE p."headSequence" END,
        "headRecordedAt" = coalesce(p."headRecordedAt", p."recordedAt")
    FROM idle WHERE p."partition" = idle."partition""#;

/// How far a partition is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Offset {
    pub partition: Partition,
    /// The last stored record; sequence 0 before the first.
    pub stored: Position,
    /// Sequence of the last message that was stored, and so announced or lost on the way.
    pub announced: u64,
}

/// A record of the log, to know the log again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    pub sequence: u64,
    /// Its timestamp; Postgres keeps microseconds of it.
    pub recorded_at: OffsetDateTime,
}

/// By what a partition knows its log again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    pub partition: Partition,
    /// The last stored record; sequence 0 before the first.
    pub stored: Position,
    /// Timestamp of that record; none if the offset was moved to where another partition's may stand.
    pub recorded_at: Option<OffsetDateTime>,
    /// When the stream was made that it stood in.
    pub stream_created_at: Option<OffsetDateTime>,
    /// The newest record of the stream that was known when the offset moved.
    pub head: Option<Fingerprint>,
}

impl Store {
    /// The offsets of those of the partitions that the worker owns.
    pub async fn offsets(&self, partitions: &[Partition]) -> sqlx::Result<Vec<Offset>> {
        let numbers: Vec<i16> = partitions.iter().copied().map(Partition::to_column).collect();
        let query = sqlx::query(OFFSETS).bind(self.worker).bind(numbers);
        let rows: Vec<(i16, i64, i64, i64)> = self.pool.fetch_all(query).await?;
        let offset = |(number, epoch, sequence, announced): (i16, i64, i64, i64)| Offset {
            partition: partition(number),
            stored: Position { epoch: Epoch(epoch), sequence: sequence.cast_unsigned() },
            announced: announced.cast_unsigned(),
        };
        Ok(rows.into_iter().map(offset).collect())
    }

    /// By what the partitions, of all workers, know their log again.
    pub async fn marks(&self) -> sqlx::Result<Vec<Mark>> {
        type Time = Option<OffsetDateTime>;
        type Row = (i16, i64, i64, Time, Time, Option<i64>, Time);
        let rows: Vec<Row> = self.pool.fetch_all(sqlx::query(MARKS)).await?;
        let mark = |(number, epoch, sequence, recorded_at, created, head, head_at): Row| Mark {
            partition: partition(number),
            stored: Position { epoch: Epoch(epoch), sequence: sequence.cast_unsigned() },
            recorded_at,
            stream_created_at: created,
            head: head.zip(head_at).map(|(sequence, recorded_at)| Fingerprint {
                sequence: sequence.cast_unsigned(),
                recorded_at,
            }),
        };
        Ok(rows.into_iter().map(mark).collect())
    }

    /// Begins a new epoch of every partition in place of those that were observed, behind `sequence` of a
    /// stream. How many were begun: none if another worker was faster.
    pub async fn begin_epochs(
        &self,
        observed: &[Mark],
        sequence: u64,
        stream_created_at: OffsetDateTime,
        head: Option<Fingerprint>,
    ) -> anyhow::Result<u64> {
        let new: Vec<i64> = observed
            .iter()
            .map(|_| Epoch::random().map(|epoch| epoch.0))
            .collect::<Result<_, _>>()?;
        let query = bind_observed(sqlx::query(BEGIN_EPOCHS), observed)
            .bind(new)
            .bind(column(sequence))
            .bind(stream_created_at)
            .bind(head.map(|head| column(head.sequence)))
            .bind(head.map(|head| head.recorded_at));
        Ok(self.pool.execute(query).await?)
    }

    /// Gives a fingerprint to those of the partitions that have none.
    pub async fn mark(&self, observed: &[Mark], head: Fingerprint) -> sqlx::Result<()> {
        let query = bind_observed(sqlx::query(MARK), observed)
            .bind(column(head.sequence))
            .bind(head.recorded_at);
        self.pool.execute(query).await.map(drop)
    }

    /// Moves the offsets of partitions in which nothing is pending up to a sequence.
    pub async fn move_idle(
        &self,
        idle: &[(Partition, u64)],
        to: u64,
        stream_created_at: OffsetDateTime,
    ) -> sqlx::Result<()> {
        let partitions: Vec<i16> =
            idle.iter().map(|(partition, _)| partition.to_column()).collect();
        let sequences: Vec<i64> = idle.iter().map(|(_, sequence)| column(*sequence)).collect();
        let query = sqlx::query(MOVE_IDLE).bind(partitions).bind(sequences);
        let query = query.bind(column(to)).bind(stream_created_at);
        self.pool.execute(query).await.map(drop)
    }
}

fn bind_observed<'q>(
    query: sqlx::query::Query<'q, Postgres, sqlx::postgres::PgArguments>,
    observed: &[Mark],
) -> sqlx::query::Query<'q, Postgres, sqlx::postgres::PgArguments> {
    query
        .bind(observed.iter().map(|mark| mark.partition.to_column()).collect::<Vec<_>>())
        .bind(observed.iter().map(|mark| mark.stored.epoch.0).collect::<Vec<_>>())
}
