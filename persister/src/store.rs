//! All SQL of the persister. Every statement is its own transaction, so a worker that is paused can
//! never sit inside one.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use shared::announcement::{Epoch, Position};
use shared::database::Database;
use shared::ids::{ChatSessionId, SessionDigest, SessionId};
use shared::lifecycle::{Backoff, Stop, pause};
use shared::message::{Message, SessionHead};
use shared::partition::{Partition, PartitionCount};
use shared::timestamp::Timestamp;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgPool, PgPoolOptions};
use time::{OffsetDateTime, PrimitiveDateTime};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::batch::{Batch, Place, storable};

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
/// Messages that one statement deletes, so that it ends long before its bound.
const ERASED_ROWS_MAX: i64 = 5_000;
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
    INSERT INTO "Worker" ("id", "aliveUntil") VALUES ($1, now() + $2 * interval '1 millisecond')
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

/// By what every partition, whoever owns it, knows its log again.
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

/// The partitions of a batch, where each is expected to stand and where it stands then.
const EXPECTED: &str = r#"
    WITH expected AS (
        SELECT * FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                             $7::timestamptz[])
            AS e ("partition", "epoch", "sequence", "first", "next", "nextAt")
    )"#;

/// Locks the partitions that count and moves their offsets. One that was moved meanwhile over records of
/// other partitions counts all the same: every record of its own behind `sequence` is in the batch.
const CLAIMED: &str = r#", locked AS (
        SELECT p."partition", e."next", e."nextAt"
        FROM "LogPartition" p JOIN expected e ON e."partition" = p."partition"
        WHERE p."owner" = $1 AND p."epoch" = e."epoch"
            AND p."sequence" >= e."sequence" AND p."sequence" < e."first"
        ORDER BY p."partition"
        FOR UPDATE OF p
    ), claimed AS (
        UPDATE "LogPartition" p
        SET "sequence" = l."next", "recordedAt" = l."nextAt", "streamCreatedAt" = $8,
            "headSequence" = $9, "headRecordedAt" = $10
        FROM locked l WHERE p."partition" = l."partition"
        RETURNING p."partition", p."epoch"
    )"#;

/// Stores whatever a batch may hold but erasures.
const STORED_ALL: &str = r#", begun AS (
        SELECT s.*, c."epoch", z."digest"
        FROM unnest($19::smallint[], $20::bigint[], $21::text[], $22::text[], $23::text[], $24::text[],
                    $25::timestamp[])
            WITH ORDINALITY AS s ("partition", "sequence", "id", "sessionId", "ip", "userAgent", "createdAt",
                                  "ord")
        JOIN claimed c ON c."partition" = s."partition"
        LEFT JOIN LATERAL (
            SELECT e."digest" FROM "ErasedSession" e
            WHERE e."digest" = sha256(convert_to(s."sessionId", 'UTF8')) LIMIT 1
        ) z ON true
    ), opened AS (
        INSERT INTO "ChatSession" ("id", "sessionId", "ip", "userAgent", "createdAt")
        SELECT "id", "sessionId", "ip", "userAgent", "createdAt" FROM begun WHERE "digest" IS NULL
        ORDER BY "ord"
        ON CONFLICT DO NOTHING
        RETURNING "id", "sessionId"
    ), sent AS MATERIALIZED (
        SELECT m.*, c."epoch", coalesce(o."id", k."id") AS "chatSessionId"
        FROM unnest($11::smallint[], $12::bigint[], $13::text[], $14::text[], $15::text[], $16::timestamp[],
                    $17::bool[], $18::text[])
            WITH ORDINALITY AS m ("partition", "sequence", "id", "sender", "content", "createdAt", "isAI",
                                  "sessionId", "ord")
        JOIN claimed c ON c."partition" = m."partition"
        LEFT JOIN opened o ON o."sessionId" = m."sessionId"
        LEFT JOIN LATERAL (
            SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = m."sessionId" LIMIT 1
        ) k ON true
    ), strays AS (
        SELECT m.*, z."digest" FROM sent m
        LEFT JOIN LATERAL (
            SELECT e."digest" FROM "ErasedSession" e
            WHERE e."digest" = sha256(convert_to(m."sessionId", 'UTF8')) LIMIT 1
        ) z ON true
        WHERE m."chatSessionId" IS NULL
    ), reopened AS (
        INSERT INTO "ChatSession" ("id", "sessionId", "createdAt")
        SELECT DISTINCT ON (t."sessionId") i."id", t."sessionId", t."createdAt"
        FROM strays t JOIN unnest($32::text[], $33::text[]) AS i ("sessionId", "id") ON i."sessionId" = t."sessionId"
        WHERE t."digest" IS NULL
        ORDER BY t."sessionId", t."ord"
        ON CONFLICT ("sessionId") DO UPDATE SET "sessionId" = EXCLUDED."sessionId"
        RETURNING "id", "sessionId"
    ), stored AS (
        INSERT INTO "Message" ("id", "sender", "content", "createdAt", "isAI", "chatSessionId", "logEpoch",
                               "logSequence")
        SELECT m."id", m."sender", m."content", m."createdAt", m."isAI", coalesce(m."chatSessionId", r."id"),
               m."epoch", m."sequence"
        FROM sent m LEFT JOIN reopened r ON r."sessionId" = m."sessionId"
        WHERE coalesce(m."chatSessionId", r."id") IS NOT NULL
        ORDER BY m."ord"
        ON CONFLICT DO NOTHING
        RETURNING "logSequence", "chatSessionId"
    ), filled AS (
        UPDATE "ChatSession" s
        SET "ip" = coalesce(s."ip", b."ip"), "userAgent" = coalesce(s."userAgent", b."userAgent")
        FROM begun b JOIN unnest($32::text[], $33::text[]) AS i ("sessionId", "id") ON i."sessionId" = b."sessionId"
        WHERE s."id" = i."id" AND s."sessionId" = b."sessionId" AND b."digest" IS NULL AND s."id" = ANY ($33)
            AND (s."ip" IS NULL AND b."ip" IS NOT NULL OR s."userAgent" IS NULL AND b."userAgent" IS NOT NULL)
    ), faulty AS (
        SELECT r.*, c."epoch", z."digest"
        FROM unnest($26::smallint[], $27::bigint[], $28::text[], $29::bytea[], $30::text[], $31::timestamptz[])
            AS r ("partition", "sequence", "subject", "payload", "reason", "recordedAt")
        JOIN claimed c ON c."partition" = r."partition"
        LEFT JOIN LATERAL (
            SELECT e."digest" FROM "ErasedSession" e
            WHERE e."digest" = sha256(convert_to(split_part(r."subject", '.', 4), 'UTF8')) LIMIT 1
        ) z ON true
    ), rejected AS (
        INSERT INTO "DeadLetter" ("subject", "payload", "reason", "logEpoch", "logSequence", "recordedAt")
        SELECT "subject", "payload", "reason", "epoch", "sequence", "recordedAt"
        FROM faulty WHERE "digest" IS NULL
        ON CONFLICT DO NOTHING
        RETURNING "logSequence"
    ), refused AS (
        SELECT "digest", "epoch", "sequence" FROM begun WHERE "digest" IS NOT NULL
        UNION ALL SELECT "digest", "epoch", "sequence" FROM strays WHERE "digest" IS NOT NULL
        UNION ALL SELECT "digest", "epoch", "sequence" FROM faulty WHERE "digest" IS NOT NULL
    ), noted AS (
        UPDATE "ErasedSession" e
        SET "erasedSequence" = CASE WHEN e."logEpoch" = r."epoch" THEN e."erasedSequence" ELSE 0 END,
            "clearedSequence" = CASE WHEN e."logEpoch" = r."epoch" THEN e."clearedSequence" ELSE 0 END,
            "logEpoch" = r."epoch", "lastSequence" = r."last"
        FROM (
            SELECT "digest", "epoch", max("sequence") AS "last" FROM refused GROUP BY "digest", "epoch"
        ) r
        WHERE e."digest" = r."digest" AND e."digest" = ANY (ARRAY(SELECT "digest" FROM refused))
    )"#;

/// Messages alone, and their sessions. Where one of them is not stored, nothing counts.
const EXPECTED_IF_KNOWN: &str = r#"
    WITH sent AS MATERIALIZED (
        SELECT m.*, k."id" AS "chatSessionId"
        FROM unnest($11::smallint[], $12::bigint[], $13::text[], $14::text[], $15::text[], $16::timestamp[],
                    $17::bool[], $18::text[])
            WITH ORDINALITY AS m ("partition", "sequence", "id", "sender", "content", "createdAt", "isAI",
                                  "sessionId", "ord")
        LEFT JOIN LATERAL (
            SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = m."sessionId" LIMIT 1
        ) k ON true
    ), expected AS (
        SELECT * FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                             $7::timestamptz[])
            AS e ("partition", "epoch", "sequence", "first", "next", "nextAt")
        WHERE (SELECT bool_and("chatSessionId" IS NOT NULL) FROM sent)
    )"#;

/// Stores messages alone.
const STORED_KNOWN: &str = r#", stored AS (
        INSERT INTO "Message" ("id", "sender", "content", "createdAt", "isAI", "chatSessionId", "logEpoch",
                               "logSequence")
        SELECT m."id", m."sender", m."content", m."createdAt", m."isAI", m."chatSessionId", c."epoch", m."sequence"
        FROM sent m JOIN claimed c ON c."partition" = m."partition"
        ORDER BY m."ord"
        ON CONFLICT DO NOTHING
        RETURNING "logSequence", "chatSessionId"
    )
    SELECT
        coalesce((SELECT array_agg("partition") FROM claimed), '{}') AS claimed,
        '{}'::text[] AS opened,
        coalesce((SELECT array_agg("logSequence") FROM stored), '{}') AS sequences,
        coalesce((SELECT array_agg("chatSessionId") FROM stored), '{}') AS chats,
        '{}'::text[] AS reopened,
        '{}'::bigint[] AS refused"#;

/// What is done besides where a batch erases sessions: their rows and dead letters go. `ANY` and `OFFSET`
/// keep it at looks into indexes, however many rows there are.
const ERASE: &str = r#", ending AS (
        SELECT x.*, c."epoch"
        FROM unnest($34::smallint[], $35::bigint[], $36::bigint[], $37::timestamptz[], $38::text[], $39::bytea[])
            AS x ("partition", "sequence", "last", "recordedAt", "sessionId", "digest")
        JOIN claimed c ON c."partition" = x."partition"
    ), erased AS (
        INSERT INTO "ErasedSession" ("digest", "logEpoch", "erasedSequence", "lastSequence", "erasedAt")
        SELECT "digest", "epoch", "sequence", "last", "recordedAt" FROM ending
        ON CONFLICT ("digest") DO UPDATE
        SET "logEpoch" = EXCLUDED."logEpoch", "erasedSequence" = EXCLUDED."erasedSequence",
            "lastSequence" = EXCLUDED."lastSequence", "clearedSequence" = 0
    ), emptied AS (
        DELETE FROM "Message" WHERE "id" = ANY (ARRAY(
            SELECT m."id" FROM ending x
            CROSS JOIN LATERAL (
                SELECT k."id" FROM "ChatSession" k WHERE k."sessionId" = x."sessionId" LIMIT 1
            ) s
            CROSS JOIN LATERAL (SELECT c."id" FROM "Message" c WHERE c."chatSessionId" = s."id" OFFSET 0) m
        ))
    ), ended AS (
        DELETE FROM "ChatSession" WHERE "sessionId" = ANY (ARRAY(SELECT "sessionId" FROM ending))
    ), forgotten AS (
        DELETE FROM "DeadLetter" WHERE "id" = ANY (ARRAY(
            SELECT d."id" FROM ending x
            CROSS JOIN LATERAL (
                SELECT l."id" FROM "DeadLetter" l WHERE split_part(l."subject", '.', 4) = x."sessionId" OFFSET 0
            ) d
        ))
    )"#;

/// What became of a batch.
const COMMITTED: &str = r#"
    SELECT
        coalesce((SELECT array_agg("partition") FROM claimed), '{}') AS claimed,
        coalesce((SELECT array_agg("sessionId") FROM opened), '{}') AS opened,
        coalesce((SELECT array_agg("logSequence") FROM stored), '{}') AS sequences,
        coalesce((SELECT array_agg("chatSessionId") FROM stored), '{}') AS chats,
        coalesce((SELECT array_agg("sessionId") FROM reopened), '{}') AS reopened,
        coalesce((SELECT array_agg("sequence") FROM refused), '{}') AS refused"#;

/// Stores a batch and moves the offsets, partition by partition all or nothing.
///
/// A partition counts only where the worker still owns it and its offset is the expected one; the
/// rows of the others are left out. Rows are locked in one order, so that two workers cannot wait
/// for each other. The session of a message may be opened by this same statement, which its own
/// snapshot does not show: hence the union of both. A session that is missing all the same, since the
/// record that should have opened it is lost, is opened by its first message under an id that is derived from
/// its own; should the record come later, it adds what only it knows. `DO UPDATE` in place of `DO NOTHING`
/// gives the id of a row that somebody else inserted meanwhile.
///
/// What belongs to an erased session is refused; a message is looked at for it only where its session is
/// not stored. Of those that this batch erases nothing else is in it.
static COMMIT: LazyLock<String> =
    LazyLock::new(|| [EXPECTED, CLAIMED, STORED_ALL, COMMITTED].concat());
/// The same where the batch erases sessions.
static COMMIT_AND_ERASE: LazyLock<String> =
    LazyLock::new(|| [EXPECTED, CLAIMED, STORED_ALL, ERASE, COMMITTED].concat());
/// Most batches hold only messages of sessions that are stored, and would pay for all that a batch may hold:
/// opening so many tables and indexes takes as long as storing some rows.
static COMMIT_MESSAGES: LazyLock<String> =
    LazyLock::new(|| [EXPECTED_IF_KNOWN, CLAIMED, STORED_KNOWN].concat());

/// Deletes some of what sessions that are to be erased have beyond the first so many messages, so that
/// erasing even the longest takes no statement longer than it may.
const THIN_OUT: &str = r#"
    DELETE FROM "Message" WHERE "id" = ANY (ARRAY(
        SELECT m."id" FROM unnest($1::text[]) AS x ("sessionId")
        CROSS JOIN LATERAL (
            SELECT k."id" FROM "ChatSession" k WHERE k."sessionId" = x."sessionId" LIMIT 1
        ) s
        CROSS JOIN LATERAL (
            SELECT c."id" FROM "Message" c WHERE c."chatSessionId" = s."id" ORDER BY c."seq" LIMIT 2 * $2
        ) m
        OFFSET $2 LIMIT $2
    ))"#;

/// What an operator is told whose Postgres does not sync.
pub const NOT_DURABLE: &str =
    "Postgres runs with fsync = off: a power cut loses what was stored and acknowledged";

const IS_DURABLE: &str = "SELECT current_setting('fsync')::bool";

/// How far every partition is stored.
const STORED: &str = r#"SELECT "partition", "sequence" FROM "LogPartition""#;

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

/// Erased sessions of which the log may still hold something, and whether it is the log that they were
/// erased in.
const UNCLEARED: &str = r#"
    SELECT e."digest", e."erasedSequence", e."lastSequence",
           EXISTS (SELECT FROM "LogPartition" p WHERE p."epoch" = e."logEpoch")
    FROM "ErasedSession" e
    WHERE e."clearedSequence" < e."lastSequence"
    ORDER BY e."lastSequence" LIMIT $1"#;

const UNCLEARED_COUNT: &str = r#"
    SELECT count(*) FROM "ErasedSession" WHERE "clearedSequence" < "lastSequence" "#;

/// Takes note that the log holds nothing more of an erased session, unless a record came meanwhile.
const CLEARED: &str = r#"
    UPDATE "ErasedSession" SET "clearedSequence" = "lastSequence"
    WHERE "digest" = $1 AND "erasedSequence" = $2 AND "lastSequence" = $3"#;

const DEAD_LETTERS: &str = r#"
    SELECT "id", "subject", "payload", "reason", "recordedAt" FROM "DeadLetter"
    WHERE $1::bigint IS NULL OR "id" = $1
    ORDER BY "id" LIMIT $2"#;

/// Whether anything of a session is stored.
const KNOWS_SESSION: &str = r#"
    SELECT EXISTS (SELECT FROM "ChatSession" WHERE "sessionId" = $1)
        OR EXISTS (SELECT FROM "DeadLetter" WHERE split_part("subject", '.', 4) = $1)"#;

const COUNT_SESSIONS: &str = r#"SELECT count(*) FROM "ChatSession" WHERE "sessionId" = ANY ($1)"#;

/// A session and the extent of what is said in it, at one moment.
const EXTENT: &str = r#"
    SELECT s."id", s."sessionId", s."ip", s."userAgent", s."createdAt", said."count", said."last"
    FROM "ChatSession" s
    CROSS JOIN LATERAL (
        SELECT count(*) AS "count", coalesce(max(m."seq"), -1) AS "last"
        FROM "Message" m WHERE m."chatSessionId" = s."id"
    ) said
    WHERE s."sessionId" = $1"#;

/// A page of a session's messages, oldest first.
const MESSAGES_BETWEEN: &str = r#"
    SELECT "id", "sender", "content", "createdAt", "isAI", "chatSessionId", "seq" FROM "Message"
    WHERE "chatSessionId" = $1 AND "seq" > coalesce($2, -1) AND "seq" <= $3 ORDER BY "seq" LIMIT $4"#;

/// A page of the sessions older than a time, oldest first, and whether nothing was said since then.
const SESSION_AGES: &str = r#"
    SELECT s."id", s."sessionId", s."createdAt", coalesce(last."createdAt" < $3, true) AS "isQuiet"
    FROM (
        SELECT "id", "sessionId", "createdAt" FROM "ChatSession"
        WHERE ("createdAt", "id") > (coalesce($1::timestamp, '-infinity'), $2) AND "createdAt" < $3
        ORDER BY "createdAt", "id" LIMIT $4
    ) s
    LEFT JOIN LATERAL (
        SELECT m."createdAt" FROM "Message" m WHERE m."chatSessionId" = s."id" ORDER BY m."seq" DESC LIMIT 1
    ) last ON true
    ORDER BY s."createdAt", s."id""#;

const DEAD_LETTER_COUNT: &str = r#"SELECT count(*) FROM "DeadLetter""#;

const DROP_DEAD_LETTER: &str = r#"DELETE FROM "DeadLetter" WHERE "id" = $1"#;

/// The persister's hold on Postgres. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: PgPool,
    committing: Arc<Mutex<Option<PoolConnection<Postgres>>>>,
    worker: Uuid,
    waiting: Arc<AtomicBool>,
}

/// A batch waits to be stored, while it is held.
pub struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// How far a partition is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Offset {
    /// Which partition.
    pub partition: Partition,
    /// The last stored record; sequence 0 before the first.
    pub stored: Position,
    /// Sequence of the last message that was stored, and so announced or lost on the way.
    pub announced: u64,
}

/// A record of the log, to know the log again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// Its stream sequence.
    pub sequence: u64,
    /// Its timestamp; Postgres keeps microseconds of it.
    pub recorded_at: OffsetDateTime,
}

/// By what a partition knows its log again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    /// Which partition.
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

/// A session as it is stored.
#[derive(Debug, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct StoredSession {
    /// Primary key.
    pub id: String,
    session_id: String,
    ip: Option<String>,
    user_agent: Option<String>,
    created_at: PrimitiveDateTime,
}

impl StoredSession {
    /// As REST answers have it.
    pub fn to_head(&self) -> SessionHead<'_> {
        SessionHead {
            id: &self.id,
            session_id: &self.session_id,
            ip: self.ip.as_deref(),
            user_agent: self.user_agent.as_deref(),
            created_at: Timestamp::from_column(self.created_at),
        }
    }
}

/// A session, and what is said in it at one moment.
#[derive(Debug, sqlx::FromRow)]
pub struct Extent {
    /// The session.
    #[sqlx(flatten)]
    pub session: StoredSession,
    /// Messages.
    pub count: i64,
    /// `seq` of the last of them; -1 without any.
    pub last: i64,
}

/// A message as it is stored.
#[derive(Debug, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct StoredMessage {
    id: String,
    sender: String,
    content: String,
    created_at: PrimitiveDateTime,
    #[sqlx(rename = "isAI")]
    is_ai: bool,
    chat_session_id: String,
    /// Orders the messages of a session.
    pub seq: i64,
}

impl StoredMessage {
    /// As REST answers have it.
    pub fn to_message(&self) -> Message<'_> {
        Message {
            id: &self.id,
            sender: &self.sender,
            content: &self.content,
            created_at: Timestamp::from_column(self.created_at),
            is_ai: self.is_ai,
            chat_session_id: &self.chat_session_id,
        }
    }
}

/// How old a session is.
#[derive(Debug, Clone, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct SessionAge {
    id: String,
    /// What clients call it.
    pub session_id: String,
    /// When it was opened.
    pub created_at: PrimitiveDateTime,
    /// Whether nothing was said in it since the time that was asked for.
    pub is_quiet: bool,
}

/// An erased session of which the log may still hold something.
#[derive(Debug)]
pub struct Uncleared {
    /// Which session.
    pub digest: SessionDigest,
    /// Sequence of the record that erased it; 0 if this log has none.
    pub erased_sequence: u64,
    /// Sequence of its last record that was read.
    pub last_sequence: u64,
    /// Whether the sequences count in this log, and not in one before it.
    pub in_this_log: bool,
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
    /// Sessions that are new because of a message: the record that should have opened them is lost.
    pub reopened: Vec<SessionId>,
    /// Records of sessions that were erased before.
    pub refused: HashSet<u64>,
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
            // What is announced as stored must survive a power cut, whatever is the default for others.
            .options([
                ("statement_timeout", STATEMENT_TIMEOUT_MS.to_string()),
                ("synchronous_commit", "on".to_owned()),
            ]);
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(options);
        Self { pool, committing: Arc::default(), worker, waiting: Arc::default() }
    }

    /// The connections, to be counted.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Says that a batch waits because Postgres did not take it.
    pub fn wait(&self) -> Waiting {
        self.waiting.store(true, Ordering::Relaxed);
        Waiting(Arc::clone(&self.waiting))
    }

    /// Whether a batch waits: a server whose disk is full answers all the same.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether what Postgres commits is on its disk then; an error if it does not answer.
    pub async fn is_durable(&self) -> sqlx::Result<bool> {
        answered(sqlx::query_scalar(IS_DURABLE).fetch_one(&self.pool)).await
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
        if self.is_durable().await.is_ok_and(|durable| !durable) {
            tracing::warn!("{NOT_DURABLE}");
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
        let numbers: Vec<i16> = partitions.iter().copied().map(Partition::to_column).collect();
        let query = sqlx::query_as(OFFSETS).bind(self.worker).bind(numbers);
        let rows: Vec<(i16, i64, i64, i64)> = answered(query.fetch_all(&self.pool)).await?;
        let offset = |(number, epoch, sequence, announced): (i16, i64, i64, i64)| Offset {
            partition: partition(number),
            stored: Position { epoch: Epoch(epoch), sequence: sequence.cast_unsigned() },
            announced: announced.cast_unsigned(),
        };
        Ok(rows.into_iter().map(offset).collect())
    }

    /// By what the partitions, whoever owns them, know their log again.
    pub async fn marks(&self) -> sqlx::Result<Vec<Mark>> {
        type Time = Option<OffsetDateTime>;
        type Row = (i16, i64, i64, Time, Time, Option<i64>, Time);
        let rows: Vec<Row> = answered(sqlx::query_as(MARKS).fetch_all(&self.pool)).await?;
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
        Ok(answered(query.execute(&self.pool)).await?.rows_affected())
    }

    /// Gives a fingerprint to those of the partitions that have none.
    pub async fn mark(&self, observed: &[Mark], head: Fingerprint) -> sqlx::Result<()> {
        let query = bind_observed(sqlx::query(MARK), observed)
            .bind(column(head.sequence))
            .bind(head.recorded_at);
        answered(query.execute(&self.pool)).await.map(drop)
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

    /// Some erased sessions of which the log may still hold something.
    pub async fn uncleared(&self, limit: u32) -> sqlx::Result<Vec<Uncleared>> {
        let query = sqlx::query_as(UNCLEARED).bind(i64::from(limit));
        let rows: Vec<(Vec<u8>, i64, i64, bool)> = answered(query.fetch_all(&self.pool)).await?;
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

    /// Erased sessions of which the log may still hold something.
    pub async fn uncleared_count(&self) -> sqlx::Result<i64> {
        answered(sqlx::query_scalar(UNCLEARED_COUNT).fetch_one(&self.pool)).await
    }

    /// The log holds nothing more of an erased session.
    pub async fn cleared(&self, erased: &Uncleared) -> sqlx::Result<()> {
        let query = sqlx::query(CLEARED)
            .bind(erased.digest.as_bytes().to_vec())
            .bind(column(erased.erased_sequence))
            .bind(column(erased.last_sequence));
        answered(query.execute(&self.pool)).await.map(drop)
    }

    /// Whether anything of a session is stored.
    pub async fn knows_session(&self, session_id: &str) -> sqlx::Result<bool> {
        let query = sqlx::query_scalar(KNOWS_SESSION).bind(session_id.to_owned());
        answered(query.fetch_one(&self.pool)).await
    }

    /// How many of these sessions are stored.
    pub async fn count_sessions(&self, session_ids: &[String]) -> sqlx::Result<i64> {
        let query = sqlx::query_scalar(COUNT_SESSIONS).bind(session_ids.to_vec());
        answered(query.fetch_one(&self.pool)).await
    }

    /// A session and what is said in it now, if it is stored.
    pub async fn extent(&self, session_id: &str) -> sqlx::Result<Option<Extent>> {
        let query = sqlx::query_as(EXTENT).bind(session_id.to_owned());
        answered(query.fetch_optional(&self.pool)).await
    }

    /// At most `limit` messages of the session with this key behind a `seq` and up to another one, oldest
    /// first.
    pub async fn messages_between(
        &self,
        id: &str,
        after: Option<i64>,
        last: i64,
        limit: u16,
    ) -> sqlx::Result<Vec<StoredMessage>> {
        let query = sqlx::query_as(MESSAGES_BETWEEN)
            .bind(id.to_owned())
            .bind(after)
            .bind(last)
            .bind(i64::from(limit));
        answered(query.fetch_all(&self.pool)).await
    }

    /// At most `limit` sessions behind the given one that were opened before a time, oldest first.
    pub async fn session_ages(
        &self,
        behind: Option<&SessionAge>,
        before: OffsetDateTime,
        limit: u16,
    ) -> sqlx::Result<Vec<SessionAge>> {
        let query = sqlx::query_as(SESSION_AGES)
            .bind(behind.map(|session| session.created_at))
            .bind(behind.map(|session| session.id.clone()).unwrap_or_default())
            .bind(Timestamp::truncate(before).to_column())
            .bind(i64::from(limit));
        answered(query.fetch_all(&self.pool)).await
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

    /// Deletes messages of sessions that the batch erases, until few enough are left for its commit. The
    /// record that erases them is in the log: whoever commits it deletes the rest.
    pub async fn thin_out(&self, batch: &Batch) -> sqlx::Result<()> {
        if batch.erasures.is_empty() {
            return Ok(());
        }
        let sessions: Vec<_> = batch.erasures.values().map(|row| row.session_id.clone()).collect();
        loop {
            let query = sqlx::query(THIN_OUT).bind(sessions.clone()).bind(ERASED_ROWS_MAX);
            let deleted = answered(query.execute(&self.pool)).await?.rows_affected();
            if deleted == 0 {
                return Ok(());
            }
        }
    }

    /// Commits a batch. `expected` holds the offset of every partition in it.
    pub async fn commit(
        &self,
        batch: &Batch,
        expected: impl Fn(Partition) -> Position,
        stream_created_at: OffsetDateTime,
    ) -> sqlx::Result<Committed> {
        if batch.has_only_messages() {
            let query = self.bind_commit(&COMMIT_MESSAGES, batch, &expected, stream_created_at);
            let committed = self.commit_row(query).await?;
            // Else the whole statement finds out why: a session is missing, or another worker was faster.
            if !committed.claimed.is_empty() {
                return Ok(committed);
            }
        }
        let erases = !batch.erasures.is_empty();
        self.commit_whole(batch, &expected, stream_created_at, erases).await
    }

    /// Whether Postgres takes the statement that would store this batch, without a row.
    pub async fn takes_nothing(&self, batch: &Batch) -> bool {
        let nothing = Batch::default();
        let nowhere = |_| Position { epoch: Epoch(0), sequence: 0 };
        let erases = !batch.erasures.is_empty();
        let created = OffsetDateTime::UNIX_EPOCH;
        self.commit_whole(&nothing, &nowhere, created, erases).await.is_ok()
    }

    async fn commit_whole(
        &self,
        batch: &Batch,
        expected: &impl Fn(Partition) -> Position,
        stream_created_at: OffsetDateTime,
        erases: bool,
    ) -> sqlx::Result<Committed> {
        let sql: &'static str = if erases { &COMMIT_AND_ERASE } else { &COMMIT };
        let query = self.bind_commit(sql, batch, expected, stream_created_at);
        let query = bind_stand_ins(bind_rejects(bind_sessions(query, batch), batch), batch);
        self.commit_row(if erases { bind_erasures(query, batch) } else { query }).await
    }

    /// Binds what every statement that commits begins with.
    fn bind_commit(
        &self,
        sql: &'static str,
        batch: &Batch,
        expected: &impl Fn(Partition) -> Position,
        stream_created_at: OffsetDateTime,
    ) -> Query<'static, CommitRow> {
        let head = batch.newest();
        let query = bind_offsets(sqlx::query_as(sql), self.worker, batch, expected)
            .bind(stream_created_at)
            .bind(head.map(|place| column(place.sequence)))
            .bind(head.map(|place| place.recorded_at));
        bind_messages(query, batch)
    }

    /// Commits on a connection that is kept: the pool would ask Postgres before and behind every statement
    /// whether it is still there.
    async fn commit_row(&self, query: Query<'_, CommitRow>) -> sqlx::Result<Committed> {
        let mut kept = self.committing.lock().await;
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.pool.acquire().await?,
        };
        let row = answered(query.fetch_one(&mut *connection)).await;
        match row.as_ref().err() {
            // A statement that was prepared before the tables changed may be good no more.
            Some(error) if is_of_class(error, &["0A", "26"]) => connection.close_on_drop(),
            // One that failed is looked at by the pool.
            Some(error) if is_passing(error) => {}
            _ => *kept = Some(connection),
        }
        row.map(committed)
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

type Query<'q, Row> = sqlx::query::QueryAs<'q, sqlx::Postgres, Row, sqlx::postgres::PgArguments>;

fn bind_offsets<'q, Row>(
    query: Query<'q, Row>,
    worker: Uuid,
    batch: &Batch,
    expected: impl Fn(Partition) -> Position,
) -> Query<'q, Row> {
    let expected: Vec<_> = batch.last.keys().map(|partition| expected(*partition)).collect();
    query
        .bind(worker)
        .bind(batch.last.keys().map(|partition| partition.to_column()).collect::<Vec<_>>())
        .bind(expected.iter().map(|position| position.epoch.0).collect::<Vec<_>>())
        .bind(expected.iter().map(|position| column(position.sequence)).collect::<Vec<_>>())
        .bind(batch.first.values().copied().map(column).collect::<Vec<_>>())
        .bind(batch.last.values().map(|place| column(place.sequence)).collect::<Vec<_>>())
        .bind(batch.last.values().map(|place| place.recorded_at).collect::<Vec<_>>())
}

fn bind_sessions<'q, Row>(query: Query<'q, Row>, batch: &Batch) -> Query<'q, Row> {
    let rows = &batch.sessions;
    query
        .bind(rows.iter().map(|row| row.place.partition.to_column()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| column(row.place.sequence)).collect::<Vec<_>>())
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
        .bind(rows.iter().map(|row| storable(&row.record.subject)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.record.payload.to_vec()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.reason.clone()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.record.place.recorded_at).collect::<Vec<_>>())
}

/// The ids of sessions that their messages open if nothing else did.
fn bind_stand_ins<'q, Row>(query: Query<'q, Row>, batch: &Batch) -> Query<'q, Row> {
    let sessions: BTreeSet<SessionId> = batch.all_sessions().collect();
    let id = |session: &SessionId| String::from(ChatSessionId::derived(*session));
    query
        .bind(sessions.iter().map(SessionId::to_string).collect::<Vec<_>>())
        .bind(sessions.iter().map(id).collect::<Vec<_>>())
}

fn bind_erasures<'q, Row>(query: Query<'q, Row>, batch: &Batch) -> Query<'q, Row> {
    let rows = || batch.erasures.values();
    query
        .bind(rows().map(|row| row.place.partition.to_column()).collect::<Vec<_>>())
        .bind(rows().map(|row| column(row.place.sequence)).collect::<Vec<_>>())
        .bind(rows().map(|row| column(row.last.sequence)).collect::<Vec<_>>())
        .bind(rows().map(|row| row.place.recorded_at).collect::<Vec<_>>())
        .bind(rows().map(|row| row.session_id.clone()).collect::<Vec<_>>())
        .bind(
            batch
                .erasures
                .keys()
                .map(|session| session.digest().as_bytes().to_vec())
                .collect::<Vec<_>>(),
        )
}

/// What [`COMMIT`] selects.
type CommitRow = (Vec<i16>, Vec<String>, Vec<i64>, Vec<String>, Vec<String>, Vec<i64>);

fn committed(row: CommitRow) -> Committed {
    let (claimed, opened, sequences, chats, reopened, refused) = row;
    let sessions = |texts: Vec<String>| -> Vec<SessionId> {
        texts.iter().filter_map(|text| SessionId::parse(text).ok()).collect()
    };
    // Both arrays come from the same rows; that they were inserted in log order is no promise of SQL.
    let mut stored: Vec<_> = sequences.into_iter().map(i64::cast_unsigned).zip(chats).collect();
    stored.sort_unstable_by_key(|(sequence, _)| *sequence);
    Committed {
        claimed: claimed.into_iter().map(partition).collect(),
        opened: sessions(opened),
        stored,
        reopened: sessions(reopened),
        refused: refused.into_iter().map(i64::cast_unsigned).collect(),
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

/// Whether waiting may help: no connection, no resources, operator intervention, system error.
pub fn is_passing(error: &sqlx::Error) -> bool {
    error.as_database_error().is_none()
        || is_of_class(error, &["08", "25", "40", "53", "55", "57", "58"])
}

/// Whether waiting may help, or the same on another connection, where a batch is refused; what is left
/// is the fault of a record or of the tables. Also passing is what no record can be blamed for: a login that
/// is not valid any more, a faulty configuration, a damaged table.
pub fn may_pass(error: &sqlx::Error) -> bool {
    is_passing(error) || is_of_class(error, &["0A", "26", "28", "F0", "XX"])
}

/// Whether the SQLSTATE of an error is of one of these classes.
fn is_of_class(error: &sqlx::Error, classes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| classes.iter().any(|class| code.starts_with(class)))
}
