//! All SQL of the persister. Every statement is its own transaction, so a worker that is paused can
//! never sit inside one.

use std::time::Duration;

use shared::announcement::{Epoch, Position};
use shared::database::Database;
use shared::ids::SessionId;
use shared::lifecycle::{Backoff, Stop, pause};
use shared::partition::{Partition, PartitionCount};
use shared::timestamp::Timestamp;
use sqlx::postgres::{PgPool, PgPoolOptions};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::batch::{Batch, Place};

/// One connection commits, one renews the leases, one looks at what is old or behind, one is for
/// health.
const CONNECTIONS: u32 = 4;
/// Bound of a wait for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bound of a statement on the server: a future that is dropped does not end its query.
const STATEMENT_TIMEOUT_MS: u32 = 10_000;
/// Bound of a statement as seen from here: a cut network answers nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);
/// How long a partition stays with a worker that does not say that it lives. With the pause between
/// looks ([`crate::ownership::LOOK_INTERVAL`]) it keeps a takeover within 5 s.
const LEASE_MS: i32 = 2_500;
/// Pauses between tries while the database cannot be reached.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Makes the row of each partition that has none, with a random epoch.
const PREPARE: &str = r#"
    WITH missing AS (
        INSERT INTO "LogPartition" ("partition", "epoch")
        SELECT * FROM unnest($1::smallint[], $2::bigint[])
        ON CONFLICT ("partition") DO NOTHING
        RETURNING "partition", "epoch"
    )
    INSERT INTO "LogEpoch" ("partition", "epoch") SELECT * FROM missing"#;

/// Says that the worker lives, and forgets those that have been silent for long.
const ALIVE: &str = r#"
    WITH silent AS (
        SELECT "id" FROM "Worker"
        WHERE "aliveUntil" < now() - interval '1 minute' AND "id" <> $1
        FOR UPDATE SKIP LOCKED
    ), forgotten AS (
        DELETE FROM "Worker" WHERE "id" IN (SELECT "id" FROM silent)
    )
    INSERT INTO "Worker" ("id", "aliveUntil") VALUES ($1, now() + $2 * interval '1 millisecond')
    ON CONFLICT ("id") DO UPDATE SET "aliveUntil" = EXCLUDED."aliveUntil""#;

/// Renews the worker's leases up to its fair share, gives up what is above it, takes what is free
/// below it. Nobody waits for a row that another worker is taking.
///
/// This and every other statement that waits for rows of `LogPartition` locks them in the order of
/// the partitions first: two that did so in their own orders would wait for each other, until the
/// server notices after its `deadlock_timeout`, a second in which nothing is stored.
const SHARE: &str = r#"
    WITH share AS (
        SELECT ceil((SELECT count(*) FROM "LogPartition")::numeric / greatest(count(*), 1))::int AS most
        FROM "Worker" WHERE "aliveUntil" > now()
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
        WHERE "owner" IS DISTINCT FROM $1 AND ("owner" IS NULL OR "leaseUntil" < now())
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

/// How far the worker's partitions are stored and, from the rows, how far they were announced at most.
const OFFSETS: &str = r#"
    SELECT p."partition", p."epoch", p."sequence", p."recordedAt", p."streamCreatedAt",
           coalesce(last."logSequence", 0)
    FROM "LogPartition" p
    LEFT JOIN LATERAL (
        SELECT m."logSequence" FROM "Message" m
        WHERE m."logEpoch" = p."epoch" ORDER BY m."logSequence" DESC LIMIT 1
    ) last ON true
    WHERE p."owner" = $1 AND p."partition" = ANY($2)"#;

/// Begins a new epoch: nothing of the log that is there now counts as stored.
const BEGIN_EPOCH: &str = r#"
    WITH begun AS (
        UPDATE "LogPartition"
        SET "epoch" = $4, "sequence" = $5, "recordedAt" = NULL, "streamCreatedAt" = NULL
        WHERE "partition" = $2 AND "epoch" = $3 AND "owner" = $1
        RETURNING "partition", "epoch"
    )
    INSERT INTO "LogEpoch" ("partition", "epoch") SELECT * FROM begun"#;

/// Stores a batch and moves the offsets, partition by partition all or nothing.
///
/// A partition counts only where the worker still owns it and its offset is the expected one; the
/// rows of the others are left out. Rows are locked in one order, so that two workers cannot wait
/// for each other. The session of a message may be opened by this same statement, which its own
/// snapshot does not show: hence the union of both.
const COMMIT: &str = r#"
    WITH expected AS (
        SELECT * FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::timestamptz[])
            AS e ("partition", "epoch", "sequence", "next", "nextAt")
    ), locked AS (
        SELECT p."partition", e."next", e."nextAt"
        FROM "LogPartition" p JOIN expected e ON e."partition" = p."partition"
        WHERE p."owner" = $1 AND p."epoch" = e."epoch" AND p."sequence" = e."sequence"
        ORDER BY p."partition"
        FOR UPDATE OF p
    ), claimed AS (
        UPDATE "LogPartition" p
        SET "sequence" = l."next", "recordedAt" = l."nextAt", "streamCreatedAt" = $7
        FROM locked l WHERE p."partition" = l."partition"
        RETURNING p."partition", p."epoch"
    ), opened AS (
        INSERT INTO "ChatSession" ("id", "sessionId", "ip", "userAgent", "createdAt")
        SELECT s."id", s."sessionId", s."ip", s."userAgent", s."createdAt"
        FROM unnest($8::smallint[], $9::text[], $10::text[], $11::text[], $12::text[], $13::timestamp[])
            WITH ORDINALITY AS s ("partition", "id", "sessionId", "ip", "userAgent", "createdAt", "ord")
        JOIN claimed c ON c."partition" = s."partition"
        ORDER BY s."ord"
        ON CONFLICT DO NOTHING
        RETURNING "id", "sessionId"
    ), sent AS MATERIALIZED (
        SELECT m.*, c."epoch", coalesce(o."id", k."id") AS "chatSessionId"
        FROM unnest($14::smallint[], $15::bigint[], $16::text[], $17::text[], $18::text[], $19::timestamp[],
                    $20::bool[], $21::text[])
            WITH ORDINALITY AS m ("partition", "sequence", "id", "sender", "content", "createdAt", "isAI",
                                  "sessionId", "ord")
        JOIN claimed c ON c."partition" = m."partition"
        LEFT JOIN opened o ON o."sessionId" = m."sessionId"
        LEFT JOIN LATERAL (
            SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = m."sessionId" LIMIT 1
        ) k ON true
    ), stored AS (
        INSERT INTO "Message" ("id", "sender", "content", "createdAt", "isAI", "chatSessionId", "logEpoch",
                               "logSequence")
        SELECT "id", "sender", "content", "createdAt", "isAI", "chatSessionId", "epoch", "sequence"
        FROM sent WHERE "chatSessionId" IS NOT NULL
        ORDER BY "ord"
        ON CONFLICT DO NOTHING
        RETURNING "logSequence", "chatSessionId"
    ), orphaned AS (
        INSERT INTO "DeadLetter" ("subject", "payload", "reason", "logEpoch", "logSequence", "recordedAt")
        SELECT 'chat.requests.' || "partition" || '.' || "sessionId",
               convert_to(json_build_object('message', json_build_object(
                   'id', "id", 'sender', "sender", 'content', "content", 'isAI', "isAI"))::text, 'UTF8'),
               'no session with this id is stored', "epoch", "sequence", "createdAt" AT TIME ZONE 'UTC'
        FROM sent WHERE "chatSessionId" IS NULL
        ORDER BY "ord"
        ON CONFLICT DO NOTHING
        RETURNING "logSequence"
    ), rejected AS (
        INSERT INTO "DeadLetter" ("subject", "payload", "reason", "logEpoch", "logSequence", "recordedAt")
        SELECT r."subject", r."payload", r."reason", c."epoch", r."sequence", r."recordedAt"
        FROM unnest($22::smallint[], $23::bigint[], $24::text[], $25::bytea[], $26::text[], $27::timestamptz[])
            AS r ("partition", "sequence", "subject", "payload", "reason", "recordedAt")
        JOIN claimed c ON c."partition" = r."partition"
        ON CONFLICT DO NOTHING
        RETURNING "logSequence"
    )
    SELECT
        coalesce((SELECT array_agg("partition") FROM claimed), '{}') AS claimed,
        coalesce((SELECT array_agg("sessionId") FROM opened), '{}') AS opened,
        coalesce((SELECT array_agg("logSequence") FROM stored), '{}') AS sequences,
        coalesce((SELECT array_agg("chatSessionId") FROM stored), '{}') AS chats,
        coalesce((SELECT array_agg("logSequence") FROM orphaned), '{}') AS orphaned"#;

/// How far every partition is stored.
const STORED: &str = r#"SELECT "partition", "sequence" FROM "LogPartition""#;

/// Moves offsets over records of other partitions, to where no record of their own is named.
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
    SET "sequence" = $3, "recordedAt" = NULL, "streamCreatedAt" = $4
    FROM idle WHERE p."partition" = idle."partition""#;

const DEAD_LETTERS: &str = r#"
    SELECT "id", "subject", "payload", "reason", "recordedAt" FROM "DeadLetter"
    WHERE $1::bigint IS NULL OR "id" = $1
    ORDER BY "id" LIMIT $2"#;

const DEAD_LETTER_COUNT: &str = r#"SELECT count(*) FROM "DeadLetter""#;

const DROP_DEAD_LETTER: &str = r#"DELETE FROM "DeadLetter" WHERE "id" = $1"#;

/// The persister's hold on Postgres. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: PgPool,
    worker: Uuid,
}

/// How far a partition is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Offset {
    /// Which partition.
    pub partition: Partition,
    /// The last stored record; sequence 0 before the first.
    pub stored: Position,
    /// Timestamp of that record.
    pub recorded_at: Option<OffsetDateTime>,
    /// When the stream was made that it stood in.
    pub stream_created_at: Option<OffsetDateTime>,
    /// Sequence of the last message that was stored, and so announced or lost on the way.
    pub announced: u64,
}

/// A record that could not be stored.
#[derive(Debug, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct DeadLetter {
    /// Its number.
    pub id: i64,
    /// Where it stood.
    pub subject: String,
    /// Its bytes.
    pub payload: Vec<u8>,
    /// Why it could not be stored.
    pub reason: String,
    /// When the log took it.
    pub recorded_at: OffsetDateTime,
}

/// What a commit did.
#[derive(Debug, Default)]
pub struct Committed {
    /// Partitions whose offset moved; the rows of the others were left out.
    pub claimed: Vec<Partition>,
    /// Sessions that are new.
    pub opened: Vec<SessionId>,
    /// Messages that are new, in log order: their sequence and the key of their session's row.
    pub stored: Vec<(u64, String)>,
    /// Messages set aside because their session is not stored.
    pub orphaned: Vec<u64>,
}

/// Partitions after a look at the leases.
#[derive(Debug, Default, PartialEq)]
pub struct Leases {
    /// The worker's own until the next look.
    pub owned: Vec<Partition>,
    /// Given up for others in this look.
    pub released: usize,
}

impl Store {
    /// Prepares the pool; connects when first used.
    pub fn connect(database: &Database, worker: Uuid) -> Self {
        let options = database
            .options
            .clone()
            .application_name("chat-persister")
            .options([("statement_timeout", STATEMENT_TIMEOUT_MS.to_string())]);
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(options);
        Self { pool, worker }
    }

    /// The connections, to be counted.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Whether Postgres answers.
    pub async fn ping(&self) -> sqlx::Result<()> {
        answered(sqlx::query("SELECT 1").execute(&self.pool)).await.map(drop)
    }

    /// Makes the rows of the partitions as soon as Postgres answers. `None` if the stop came first.
    pub async fn prepare_until_done(&self, count: PartitionCount, stop: &Stop) -> Option<()> {
        let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
        while let Err(error) = self.prepare(count).await {
            tracing::warn!(%error, "the partitions cannot be prepared yet");
            if !pause(stop, backoff.pause()).await {
                return None;
            }
        }
        Some(())
    }

    async fn prepare(&self, count: PartitionCount) -> anyhow::Result<()> {
        let partitions: Vec<i16> = count.all().map(Partition::to_column).collect();
        let epochs: Vec<i64> = partitions
            .iter()
            .map(|_| Epoch::random().map(|epoch| epoch.0))
            .collect::<Result<_, _>>()?;
        answered(sqlx::query(PREPARE).bind(partitions).bind(epochs).execute(&self.pool)).await?;
        Ok(())
    }

    /// Renews the leases, takes and gives up partitions towards the worker's fair share.
    pub async fn share(&self) -> sqlx::Result<Leases> {
        answered(sqlx::query(ALIVE).bind(self.worker).bind(LEASE_MS).execute(&self.pool)).await?;
        let rows: Vec<(i16, bool)> =
            answered(sqlx::query_as(SHARE).bind(self.worker).bind(LEASE_MS).fetch_all(&self.pool))
                .await?;
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

    /// Gives up everything.
    pub async fn leave(&self) -> sqlx::Result<()> {
        answered(sqlx::query(LEAVE).bind(self.worker).execute(&self.pool)).await.map(drop)
    }

    /// The offsets of those of the partitions that the worker owns.
    pub async fn offsets(&self, partitions: &[Partition]) -> sqlx::Result<Vec<Offset>> {
        type Row = (i16, i64, i64, Option<OffsetDateTime>, Option<OffsetDateTime>, i64);
        let numbers: Vec<i16> = partitions.iter().copied().map(Partition::to_column).collect();
        let query = sqlx::query_as(OFFSETS).bind(self.worker).bind(numbers);
        let rows: Vec<Row> = answered(query.fetch_all(&self.pool)).await?;
        let offset =
            |(number, epoch, sequence, recorded_at, stream_created_at, announced): Row| Offset {
                partition: partition(number),
                stored: Position { epoch: Epoch(epoch), sequence: sequence.cast_unsigned() },
                recorded_at,
                stream_created_at,
                announced: announced.cast_unsigned(),
            };
        Ok(rows.into_iter().map(offset).collect())
    }

    /// Begins a new epoch of a partition in place of the one that `start` names, behind its sequence.
    pub async fn begin_epoch(&self, partition: Partition, start: Position) -> anyhow::Result<()> {
        let new = Epoch::random()?;
        let query = sqlx::query(BEGIN_EPOCH)
            .bind(self.worker)
            .bind(partition.to_column())
            .bind(start.epoch.0)
            .bind(new.0)
            .bind(column(start.sequence));
        answered(query.execute(&self.pool)).await?;
        Ok(())
    }

    /// How far every partition is stored, whoever owns it.
    pub async fn stored_sequences(&self) -> sqlx::Result<Vec<(Partition, u64)>> {
        let rows: Vec<(i16, i64)> = answered(sqlx::query_as(STORED).fetch_all(&self.pool)).await?;
        Ok(rows
            .into_iter()
            .map(|(number, sequence)| (partition(number), sequence.cast_unsigned()))
            .collect())
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
        answered(query.bind(column(to)).bind(stream_created_at).execute(&self.pool)).await.map(drop)
    }

    /// The oldest dead letters.
    pub async fn dead_letters(&self, limit: u32) -> sqlx::Result<Vec<DeadLetter>> {
        let query = sqlx::query_as(DEAD_LETTERS).bind(None::<i64>).bind(i64::from(limit));
        answered(query.fetch_all(&self.pool)).await
    }

    /// How many dead letters there are.
    pub async fn dead_letter_count(&self) -> sqlx::Result<i64> {
        answered(sqlx::query_scalar(DEAD_LETTER_COUNT).fetch_one(&self.pool)).await
    }

    /// One dead letter.
    pub async fn dead_letter(&self, id: i64) -> sqlx::Result<Option<DeadLetter>> {
        answered(sqlx::query_as(DEAD_LETTERS).bind(id).bind(1_i64).fetch_optional(&self.pool)).await
    }

    /// Forgets a dead letter.
    pub async fn drop_dead_letter(&self, id: i64) -> sqlx::Result<()> {
        answered(sqlx::query(DROP_DEAD_LETTER).bind(id).execute(&self.pool)).await.map(drop)
    }

    /// Commits a batch. `expected` holds the offset of every partition in it.
    pub async fn commit(
        &self,
        batch: &Batch,
        expected: impl Fn(Partition) -> Position,
        stream_created_at: OffsetDateTime,
    ) -> sqlx::Result<Committed> {
        let partitions = || batch.last.keys().copied();
        let query = sqlx::query_as(COMMIT)
            .bind(self.worker)
            .bind(partitions().map(Partition::to_column).collect::<Vec<_>>())
            .bind(partitions().map(|partition| expected(partition).epoch.0).collect::<Vec<_>>())
            .bind(
                partitions()
                    .map(|partition| column(expected(partition).sequence))
                    .collect::<Vec<_>>(),
            )
            .bind(batch.last.values().map(|place| column(place.sequence)).collect::<Vec<_>>())
            .bind(batch.last.values().map(|place| place.recorded_at).collect::<Vec<_>>())
            .bind(stream_created_at);
        let query = bind_rejects(bind_messages(bind_sessions(query, batch), batch), batch);
        let row: CommitRow = answered(query.fetch_one(&self.pool)).await?;
        Ok(committed(row))
    }
}

type Query<'q, Row> = sqlx::query::QueryAs<'q, sqlx::Postgres, Row, sqlx::postgres::PgArguments>;

fn bind_sessions<'q, Row>(query: Query<'q, Row>, batch: &Batch) -> Query<'q, Row> {
    let rows = &batch.sessions;
    query
        .bind(rows.iter().map(|row| row.place.partition.to_column()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.new.id.as_str().to_owned()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.session.to_string()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.new.ip.clone()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.new.user_agent.clone()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| created_at(row.place)).collect::<Vec<_>>())
}

fn bind_messages<'q, Row>(query: Query<'q, Row>, batch: &Batch) -> Query<'q, Row> {
    let rows = &batch.messages;
    query
        .bind(rows.iter().map(|row| row.place.partition.to_column()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| column(row.place.sequence)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.new.id.as_str().to_owned()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.new.sender.as_str().to_owned()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.new.content.as_str().to_owned()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| created_at(row.place)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.new.is_ai).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.session.to_string()).collect::<Vec<_>>())
}

fn bind_rejects<'q, Row>(query: Query<'q, Row>, batch: &Batch) -> Query<'q, Row> {
    let rows = &batch.rejects;
    query
        .bind(rows.iter().map(|row| row.record.place.partition.to_column()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| column(row.record.place.sequence)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.record.subject.clone()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.record.payload.to_vec()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.reason.clone()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.record.place.recorded_at).collect::<Vec<_>>())
}

/// What [`COMMIT`] selects.
type CommitRow = (Vec<i16>, Vec<String>, Vec<i64>, Vec<String>, Vec<i64>);

fn committed((claimed, opened, sequences, chats, orphaned): CommitRow) -> Committed {
    // Both arrays come from the same rows; that they were inserted in log order is no promise of SQL.
    let mut stored: Vec<_> = sequences.into_iter().map(i64::cast_unsigned).zip(chats).collect();
    stored.sort_unstable_by_key(|(sequence, _)| *sequence);
    Committed {
        claimed: claimed.into_iter().map(partition).collect(),
        opened: opened.iter().filter_map(|text| SessionId::parse(text).ok()).collect(),
        stored,
        orphaned: orphaned.into_iter().map(i64::cast_unsigned).collect(),
    }
}

/// `createdAt` of a row: the time of the log, cut to the column's milliseconds.
fn created_at(place: Place) -> time::PrimitiveDateTime {
    Timestamp::truncate(place.recorded_at).to_column()
}

/// A stream sequence as Postgres stores it; JetStream's never reach the sign.
fn column(sequence: u64) -> i64 {
    sequence.cast_signed()
}

/// A partition as Postgres stores it.
fn partition(number: i16) -> Partition {
    Partition::new(number.unsigned_abs())
}

/// Bounds the wait for an answer.
async fn answered<T>(query: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    tokio::time::timeout(ANSWER_TIMEOUT, query).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// Whether the record itself is at fault: SQLSTATE class 22, data exception, or 23, integrity
/// constraint violation.
pub fn is_data_error(error: &sqlx::Error) -> bool {
    sqlstate_class(error).is_some_and(|class| matches!(class.as_str(), "22" | "23"))
}

/// Whether waiting may help: no connection, no resources, operator intervention, system error.
pub fn is_passing(error: &sqlx::Error) -> bool {
    let class = sqlstate_class(error);
    class.is_none_or(|class| {
        matches!(class.as_str(), "08" | "25" | "40" | "53" | "55" | "57" | "58")
    })
}

fn sqlstate_class(error: &sqlx::Error) -> Option<String> {
    let code = error.as_database_error()?.code()?;
    code.get(..2).map(str::to_owned)
}
