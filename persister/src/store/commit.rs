//! The statement that stores a batch and moves the offsets.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use shared::announcement::{Epoch, Fate, Position};
use shared::change::Assignment;
use shared::database::answered;
use shared::ids::{ChatSessionId, SessionId};
use shared::partition::Partition;
use shared::timestamp::Timestamp;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::batch::fold::{Decided, Folded, fold};
use crate::batch::{Batch, LogPlace, MessageRow, storable};
use crate::store::errors::{is_of_class, is_passing};
use crate::store::{Store, column, partition};

/// Messages that one statement deletes, so that it ends long before its bound.
const ERASED_ROWS_MAX: i64 = 5_000;

/// Batches whose messages are looked for behind one that was stored before.
const LOOKED_FOR: u32 = 1_000;
/// SQLSTATE where a message is stored under this id, or of this record.
const UNIQUE_VIOLATION: &str = "23505";

/// What every statement that commits is given, in the order in which it is bound:
///
/// | parameters | what | bound by |
/// |---|---|---|
/// | `$1` | the worker | `bind_offsets` |
/// | `$2`-`$7` | partitions: number, epoch, expected, first and last sequence, time of the last | `bind_offsets` |
/// | `$8`-`$10` | when the stream was made, its newest record here: sequence, time | `bind_commit` |
/// | `$11`-`$18` | messages: partition, sequence, id, sender, content, time, `isAI`, session | `bind_messages` |
///
/// and those that may store more than messages:
///
/// | parameters | what | bound by |
/// |---|---|---|
/// | `$19`-`$25` | sessions: partition, sequence, id, `sessionId`, address, browser, time | `bind_sessions` |
/// | `$26`-`$31` | records set aside: partition, sequence, subject, bytes, reason, time | `bind_rejects` |
/// | `$32`-`$33` | ids of sessions that their messages open: `sessionId`, id | `bind_stand_ins` |
///
/// those that may change something about sessions:
///
/// | parameters | what | bound by |
/// |---|---|---|
/// | `$34`-`$43` | changes: partition, sequence, id, session, whether it counts, status, AI, assignee, release, time | `bind_changes` |
/// | `$44`-`$48` | messages of an AI that are refused: partition, sequence, id, session, time | `bind_refused` |
/// | `$49`-`$53` | what sessions become: partition, session, status, AI, assignee | `bind_states` |
///
/// and those that erase:
///
/// | parameters | what | bound by |
/// |---|---|---|
/// | `$54`-`$59` | erasures: partition, sequence, last sequence, time, `sessionId`, digest | `bind_erasures` |
///
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

/// Sessions to open, but those that were erased.
const BEGUN: &str = r#", begun AS (
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
    )"#;

const OPENED: &str = r#", opened AS (
        INSERT INTO "ChatSession" ("id", "sessionId", "ip", "userAgent", "createdAt", "logEpoch", "logSequence")
        SELECT "id", "sessionId", "ip", "userAgent", "createdAt", "epoch", "sequence" FROM begun WHERE "digest" IS NULL
        ORDER BY "ord"
        ON CONFLICT DO NOTHING
        RETURNING "id", "sessionId"
    )"#;

/// The same where the batch may change something about them too: no row can be inserted and updated by one statement.
const OPENED_AS_CHANGED: &str = r#", becoming AS (
        SELECT t.*
        FROM unnest($49::smallint[], $50::text[], $51::text[], $52::bool[], $53::text[])
            AS t ("partition", "sessionId", "status", "aiEnabled", "assignee")
        JOIN claimed c ON c."partition" = t."partition"
    ), opened AS (
        INSERT INTO "ChatSession" ("id", "sessionId", "ip", "userAgent", "createdAt", "logEpoch", "logSequence",
                                   "status", "aiEnabled", "assignee")
        SELECT b."id", b."sessionId", b."ip", b."userAgent", b."createdAt", b."epoch", b."sequence",
               coalesce(t."status", 'open'), coalesce(t."aiEnabled", true), t."assignee"
        FROM begun b LEFT JOIN becoming t ON t."sessionId" = b."sessionId"
        WHERE b."digest" IS NULL
        ORDER BY b."ord"
        ON CONFLICT DO NOTHING
        RETURNING "id", "sessionId"
    )"#;

/// Messages, and those of sessions that are neither stored nor opened here.
const SENT: &str = r#", sent AS MATERIALIZED (
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
    )"#;

const REOPENED: &str = r#", reopened AS (
        INSERT INTO "ChatSession" ("id", "sessionId", "createdAt", "logEpoch", "logSequence")
        SELECT DISTINCT ON (t."sessionId") i."id", t."sessionId", t."createdAt", t."epoch", t."sequence"
        FROM strays t JOIN unnest($32::text[], $33::text[]) AS i ("sessionId", "id") ON i."sessionId" = t."sessionId"
        WHERE t."digest" IS NULL
        ORDER BY t."sessionId", t."ord"
        ON CONFLICT ("sessionId") DO UPDATE SET "sessionId" = EXCLUDED."sessionId"
        RETURNING "id", "sessionId"
    )"#;

const REOPENED_AS_CHANGED: &str = r#", reopened AS (
        INSERT INTO "ChatSession" ("id", "sessionId", "createdAt", "logEpoch", "logSequence", "status", "aiEnabled",
                                   "assignee")
        SELECT DISTINCT ON (t."sessionId") i."id", t."sessionId", t."createdAt", t."epoch", t."sequence",
               coalesce(n."status", 'open'), coalesce(n."aiEnabled", true), n."assignee"
        FROM strays t JOIN unnest($32::text[], $33::text[]) AS i ("sessionId", "id") ON i."sessionId" = t."sessionId"
        LEFT JOIN becoming n ON n."sessionId" = t."sessionId"
        WHERE t."digest" IS NULL
        ORDER BY t."sessionId", t."ord"
        ON CONFLICT ("sessionId") DO UPDATE SET "sessionId" = EXCLUDED."sessionId"
        RETURNING "id", "sessionId"
    )"#;

const STORED_MESSAGES: &str = r#", stored AS (
        INSERT INTO "Message" ("id", "sender", "content", "createdAt", "isAI", "chatSessionId", "logEpoch",
                               "logSequence")
        SELECT m."id", m."sender", m."content", m."createdAt", m."isAI", coalesce(m."chatSessionId", r."id"),
               m."epoch", m."sequence"
        FROM sent m LEFT JOIN reopened r ON r."sessionId" = m."sessionId"
        WHERE coalesce(m."chatSessionId", r."id") IS NOT NULL
        ORDER BY m."ord"
        ON CONFLICT DO NOTHING
        RETURNING "logSequence", "chatSessionId"
    )"#;

/// What a late opening adds to a session that its message opened.
const FILLED: &str = r#", filled AS (
        UPDATE "ChatSession" s
        SET "ip" = coalesce(s."ip", b."ip"), "userAgent" = coalesce(s."userAgent", b."userAgent")
        FROM begun b JOIN unnest($32::text[], $33::text[]) AS i ("sessionId", "id") ON i."sessionId" = b."sessionId"
        WHERE s."id" = i."id" AND s."sessionId" = b."sessionId" AND b."digest" IS NULL AND s."id" = ANY ($33)
            AND (s."ip" IS NULL AND b."ip" IS NOT NULL OR s."userAgent" IS NULL AND b."userAgent" IS NOT NULL)
    )"#;

/// The same, and what sessions become: a row is updated once by a statement.
const FILLED_AND_CHANGED: &str = r#", filling AS (
        SELECT coalesce(t."sessionId", b."sessionId") AS "sessionId", b."ip", b."userAgent", t."status",
               t."aiEnabled", t."assignee"
        FROM becoming t FULL JOIN (
            SELECT DISTINCT ON ("sessionId") "sessionId", "ip", "userAgent" FROM begun
            WHERE "digest" IS NULL ORDER BY "sessionId", "ord"
        ) b ON b."sessionId" = t."sessionId"
    ), filled AS (
        UPDATE "ChatSession" s
        SET "ip" = coalesce(s."ip", n."ip"), "userAgent" = coalesce(s."userAgent", n."userAgent"),
            "status" = coalesce(n."status", s."status"), "aiEnabled" = coalesce(n."aiEnabled", s."aiEnabled"),
            "assignee" = CASE WHEN n."status" IS NULL THEN s."assignee" ELSE n."assignee" END
        FROM filling n
        WHERE s."sessionId" = n."sessionId" AND s."sessionId" = ANY (ARRAY(SELECT "sessionId" FROM filling))
            AND (n."status" IS NOT NULL OR s."id" = ANY ($33)
                AND (s."ip" IS NULL AND n."ip" IS NOT NULL OR s."userAgent" IS NULL AND n."userAgent" IS NOT NULL))
    )"#;

/// Records that are set aside.
const REJECTED: &str = r#", faulty AS (
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
    )"#;

/// Changes that are decided by this batch, and messages that are refused by them.
const CHANGED: &str = r#", changes AS (
        SELECT x.*, c."epoch", coalesce(o."id", r."id", k."id") AS "chatSessionId", z."digest"
        FROM unnest($34::smallint[], $35::bigint[], $36::text[], $37::text[], $38::bool[], $39::text[], $40::bool[],
                    $41::text[], $42::bool[], $43::timestamp[])
            WITH ORDINALITY AS x ("partition", "sequence", "id", "sessionId", "isApplied", "status", "aiEnabled",
                                  "assignee", "isRelease", "createdAt", "ord")
        JOIN claimed c ON c."partition" = x."partition"
        LEFT JOIN opened o ON o."sessionId" = x."sessionId"
        LEFT JOIN reopened r ON r."sessionId" = x."sessionId"
        LEFT JOIN LATERAL (
            SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = x."sessionId" LIMIT 1
        ) k ON true
        LEFT JOIN LATERAL (
            SELECT e."digest" FROM "ErasedSession" e
            WHERE e."digest" = sha256(convert_to(x."sessionId", 'UTF8')) LIMIT 1
        ) z ON true
    ), changed AS (
        INSERT INTO "SessionChange" ("id", "chatSessionId", "isApplied", "status", "aiEnabled", "assignee",
                                     "isRelease", "createdAt", "logEpoch", "logSequence")
        SELECT "id", "chatSessionId", "isApplied", "status", "aiEnabled", "assignee", "isRelease", "createdAt",
               "epoch", "sequence"
        FROM changes WHERE "chatSessionId" IS NOT NULL
        ORDER BY "ord"
        ON CONFLICT DO NOTHING
        RETURNING "logSequence"
    ), declining AS (
        SELECT x.*, c."epoch", coalesce(o."id", r."id", k."id") AS "chatSessionId", z."digest"
        FROM unnest($44::smallint[], $45::bigint[], $46::text[], $47::text[], $48::timestamptz[])
            AS x ("partition", "sequence", "id", "sessionId", "recordedAt")
        JOIN claimed c ON c."partition" = x."partition"
        LEFT JOIN opened o ON o."sessionId" = x."sessionId"
        LEFT JOIN reopened r ON r."sessionId" = x."sessionId"
        LEFT JOIN LATERAL (
            SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = x."sessionId" LIMIT 1
        ) k ON true
        LEFT JOIN LATERAL (
            SELECT e."digest" FROM "ErasedSession" e
            WHERE e."digest" = sha256(convert_to(x."sessionId", 'UTF8')) LIMIT 1
        ) z ON true
    ), declined AS (
        INSERT INTO "RefusedMessage" ("id", "recordedAt", "chatSessionId")
        SELECT "id", "recordedAt", "chatSessionId" FROM declining WHERE "chatSessionId" IS NOT NULL
        ON CONFLICT DO NOTHING
    )"#;

/// What belongs to sessions that were erased.
const REFUSED: &str = r#", refused AS (
        SELECT "digest", "epoch", "sequence" FROM begun WHERE "digest" IS NOT NULL
        UNION ALL SELECT "digest", "epoch", "sequence" FROM strays WHERE "digest" IS NOT NULL
        UNION ALL SELECT "digest", "epoch", "sequence" FROM faulty WHERE "digest" IS NOT NULL"#;

const AND_CHANGES: &str = r#"
        UNION ALL SELECT "digest", "epoch", "sequence" FROM changes
        WHERE "chatSessionId" IS NULL AND "digest" IS NOT NULL
        UNION ALL SELECT "digest", "epoch", "sequence" FROM declining
        WHERE "chatSessionId" IS NULL AND "digest" IS NOT NULL"#;

const NOTED: &str = r#"
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

/// Messages alone, and their sessions. Where one of them is not stored, or is closed and opens by what a visitor says,
/// or where an AI may not speak, nothing counts.
const EXPECTED_IF_KNOWN: &str = r#"
    WITH sent AS MATERIALIZED (
        SELECT m.*, k."id" AS "chatSessionId",
               k."id" IS NOT NULL AND (k."status" <> 'closed' OR m."sender" <> 'user') AND (NOT m."isAI" OR k."aiEnabled" AND (
                   SELECT r."id" FROM "RefusedMessage" r WHERE r."id" = m."id" LIMIT 1
               ) IS NULL) AS "isOrdinary"
        FROM unnest($11::smallint[], $12::bigint[], $13::text[], $14::text[], $15::text[], $16::timestamp[],
                    $17::bool[], $18::text[])
            WITH ORDINALITY AS m ("partition", "sequence", "id", "sender", "content", "createdAt", "isAI",
                                  "sessionId", "ord")
        LEFT JOIN LATERAL (
            SELECT s."id", s."status", s."aiEnabled" FROM "ChatSession" s WHERE s."sessionId" = m."sessionId" LIMIT 1
        ) k ON true
    ), expected AS (
        SELECT * FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                             $7::timestamptz[])
            AS e ("partition", "epoch", "sequence", "first", "next", "nextAt")
        WHERE (SELECT bool_and("isOrdinary") FROM sent)
    )"#;

const INSERTED: &str = r#", stored AS (
        INSERT INTO "Message" ("id", "sender", "content", "createdAt", "isAI", "chatSessionId", "logEpoch",
                               "logSequence")
        SELECT m."id", m."sender", m."content", m."createdAt", m."isAI", m."chatSessionId", c."epoch", m."sequence"
        FROM sent m JOIN claimed c ON c."partition" = m."partition"
        ORDER BY m."ord""#;

const IF_NOT_STORED: &str = "
        ON CONFLICT DO NOTHING";

const STORED_KNOWN: &str = r#"
        RETURNING "logSequence", "chatSessionId"
    )
    SELECT
        coalesce((SELECT array_agg("partition") FROM claimed), '{}') AS claimed,
        '{}'::text[] AS opened,
        coalesce((SELECT array_agg("logSequence") FROM stored), '{}') AS sequences,
        coalesce((SELECT array_agg("chatSessionId") FROM stored), '{}') AS chats,
        '{}'::text[] AS reopened,
        '{}'::bigint[] AS refused,
        '{}'::bigint[] AS changed"#;

/// What is done besides where a batch erases sessions: their rows and dead letters go. `ANY` and `OFFSET`
/// keep it at looks into indexes, however many rows there are.
const ERASE: &str = r#", ending AS (
        SELECT x.*, c."epoch"
        FROM unnest($54::smallint[], $55::bigint[], $56::bigint[], $57::timestamptz[], $58::text[], $59::bytea[])
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
        coalesce((SELECT array_agg("sequence") FROM refused), '{}') AS refused,
        '{}'::bigint[] AS changed"#;

const COMMITTED_CHANGES: &str = r#"
    SELECT
        coalesce((SELECT array_agg("partition") FROM claimed), '{}') AS claimed,
        coalesce((SELECT array_agg("sessionId") FROM opened), '{}') AS opened,
        coalesce((SELECT array_agg("logSequence") FROM stored), '{}') AS sequences,
        coalesce((SELECT array_agg("chatSessionId") FROM stored), '{}') AS chats,
        coalesce((SELECT array_agg("sessionId") FROM reopened), '{}') AS reopened,
        coalesce((SELECT array_agg("sequence") FROM refused), '{}') AS refused,
        coalesce((SELECT array_agg("logSequence") FROM changed), '{}') AS changed"#;

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
static COMMIT: LazyLock<String> = LazyLock::new(|| {
    [
        EXPECTED,
        CLAIMED,
        BEGUN,
        OPENED,
        SENT,
        REOPENED,
        STORED_MESSAGES,
        FILLED,
        REJECTED,
        REFUSED,
        NOTED,
        COMMITTED,
    ]
    .concat()
});
/// The same where the batch changes something about sessions, or refuses messages.
static COMMIT_AND_CHANGE: LazyLock<String> = LazyLock::new(|| {
    [
        EXPECTED,
        CLAIMED,
        BEGUN,
        OPENED_AS_CHANGED,
        SENT,
        REOPENED_AS_CHANGED,
        STORED_MESSAGES,
        FILLED_AND_CHANGED,
        REJECTED,
        CHANGED,
        REFUSED,
        AND_CHANGES,
        NOTED,
        COMMITTED_CHANGES,
    ]
    .concat()
});
/// The same where the batch erases sessions too.
static COMMIT_AND_ERASE: LazyLock<String> = LazyLock::new(|| {
    [
        EXPECTED,
        CLAIMED,
        BEGUN,
        OPENED_AS_CHANGED,
        SENT,
        REOPENED_AS_CHANGED,
        STORED_MESSAGES,
        FILLED_AND_CHANGED,
        REJECTED,
        CHANGED,
        REFUSED,
        AND_CHANGES,
        NOTED,
        ERASE,
        COMMITTED_CHANGES,
    ]
    .concat()
});
/// Most batches hold only messages of sessions that are stored, and would pay for all that a batch may hold:
/// opening so many tables and indexes takes as long as storing some rows.
static COMMIT_MESSAGES: LazyLock<String> =
    LazyLock::new(|| [EXPECTED_IF_KNOWN, CLAIMED, INSERTED, IF_NOT_STORED, STORED_KNOWN].concat());
/// The same where none of them is stored yet, or it fails: to look for each of them in two indexes first takes a sixth
/// of the time.
static COMMIT_NEW_MESSAGES: LazyLock<String> =
    LazyLock::new(|| [EXPECTED_IF_KNOWN, CLAIMED, INSERTED, STORED_KNOWN].concat());

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

/// What is stored under these ids.
const WORDS: &str = r#"
    SELECT m."id", m."sender", m."content", s."sessionId"
    FROM "Message" m JOIN "ChatSession" s ON s."id" = m."chatSessionId"
    WHERE m."id" = ANY ($1)"#;

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
    /// Messages that were stored before, by their sequence: with the same words or with others. See
    /// [`Store::look_for_repeated`].
    pub repeated: HashMap<u64, Fate>,
    /// What it made of sessions.
    pub folded: Folded,
    /// Changes that were decided by it, by their sequences.
    pub changed: HashSet<u64>,
}

impl Store {
    /// Deletes messages of sessions that the batch erases, until few enough are left for its commit. The
    /// record that erases them is in the log: the worker that commits it deletes the rest.
    pub async fn thin_out(&self, batch: &Batch) -> sqlx::Result<()> {
        if batch.erasures.is_empty() {
            return Ok(());
        }
        let sessions: Vec<_> = batch.erasures.values().map(|row| row.session_id.clone()).collect();
        loop {
            let query = sqlx::query(THIN_OUT).bind(sessions.clone()).bind(ERASED_ROWS_MAX);
            let deleted = self.pool.execute(query).await?;
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
            let committed = self.commit_messages(batch, &expected, stream_created_at).await?;
            // Else the whole statement finds out why: a session is missing, or another worker was faster.
            if !committed.claimed.is_empty() {
                return Ok(committed);
            }
        }
        let folded = fold(batch, &self.known(batch).await?);
        let committed = self.commit_whole(batch, &folded, &expected, stream_created_at).await?;
        Ok(Committed { folded, ..committed })
    }

    /// Nearly all messages are new. Where one was not, the next are looked for: one client that resends must not have
    /// every batch sent twice, and what is read anew from the log is stored already.
    async fn commit_messages(
        &self,
        batch: &Batch,
        expected: &impl Fn(Partition) -> Position,
        stream_created_at: OffsetDateTime,
    ) -> sqlx::Result<Committed> {
        let all = Folded::default();
        let query = |sql| self.bind_commit(sql, batch, &all, expected, stream_created_at);
        if self.looked_for.load(Ordering::Relaxed) == 0 {
            match self.commit_row(query(&COMMIT_NEW_MESSAGES)).await {
                Err(error) if is_of_class(&error, &[UNIQUE_VIOLATION]) => {
                    self.looked_for.store(LOOKED_FOR, Ordering::Relaxed);
                }
                done => return done,
            }
        }
        let left = self.looked_for.load(Ordering::Relaxed).saturating_sub(1);
        self.looked_for.store(left, Ordering::Relaxed);
        self.commit_row(query(&COMMIT_MESSAGES)).await
    }

    /// Whether Postgres takes every statement that storing this batch may need, without a row: what fails without one is
    /// nobody's fault in there.
    pub async fn takes_nothing(&self, batch: &Batch) -> bool {
        let (nothing, all) = (Batch::default(), Folded::default());
        let nowhere = |_| Position { epoch: Epoch(0), sequence: 0 };
        let query =
            |sql| self.bind_commit(sql, &nothing, &all, &nowhere, OffsetDateTime::UNIX_EPOCH);
        let rest = |sql| {
            bind_stand_ins(bind_rejects(bind_sessions(query(sql), &nothing), &nothing), &nothing)
        };
        let changed =
            |sql| bind_states(bind_refused(bind_changes(rest(sql), &all), &nothing, &all), &all);
        let mut probes = vec![
            query(&COMMIT_NEW_MESSAGES),
            query(&COMMIT_MESSAGES),
            rest(&COMMIT),
            changed(&COMMIT_AND_CHANGE),
        ];
        if !batch.erasures.is_empty() {
            probes.push(bind_erasures(changed(&COMMIT_AND_ERASE), &nothing));
        }
        for probe in probes {
            if self.commit_row(probe).await.is_err() {
                return false;
            }
        }
        self.knows_nothing().await.is_ok()
    }

    async fn commit_whole(
        &self,
        batch: &Batch,
        folded: &Folded,
        expected: &impl Fn(Partition) -> Position,
        stream_created_at: OffsetDateTime,
    ) -> sqlx::Result<Committed> {
        let sql = statement_of(batch, folded);
        let query = self.bind_commit(sql, batch, folded, expected, stream_created_at);
        self.commit_row(bind_rest(query, batch, folded)).await
    }

    /// Looks for the messages of a commit that were neither stored nor refused: whoever sent them is told
    /// whether what is stored under their ids is what they said. That is read after the commit, and need not
    /// succeed: gateways look for what they are not told.
    pub async fn look_for_repeated(&self, batch: &Batch, committed: &mut Committed) {
        let stored: HashSet<u64> = committed.stored.iter().map(|(sequence, _)| *sequence).collect();
        let is_open = |row: &&MessageRow| {
            let LogPlace { partition, sequence, .. } = row.place;
            committed.claimed.contains(&partition)
                && !stored.contains(&sequence)
                && !committed.refused.contains(&sequence)
                && committed.folded.stores(row)
        };
        let open: Vec<_> = batch.messages.iter().filter(is_open).collect();
        if open.is_empty() {
            return;
        }
        let ids: Vec<_> = open.iter().map(|row| row.new.id.as_str().to_owned()).collect();
        let known = match self.words_of(ids).await {
            Ok(known) => known,
            Err(error) => return tracing::warn!(%error, "what was stored before cannot be read"),
        };
        let known: HashMap<_, _> = known
            .into_iter()
            .map(|(id, sender, content, session)| (id, (sender, content, session)))
            .collect();
        let fate = |row: &MessageRow| {
            let (sender, content, session) = known.get(row.new.id.as_str())?;
            let is_same = sender == row.new.sender.as_str()
                && content == row.new.content.as_str()
                && *session == row.session.to_string();
            Some(if is_same { Fate::StoredBefore } else { Fate::Conflict })
        };
        committed.repeated =
            open.into_iter().filter_map(|row| Some((row.place.sequence, fate(row)?))).collect();
    }

    /// Id, sender, content and session of those of these messages that are stored.
    async fn words_of(
        &self,
        ids: Vec<String>,
    ) -> sqlx::Result<Vec<(String, String, String, String)>> {
        let query = sqlx::query(WORDS).bind(ids);
        self.pool.fetch_all(query).await
    }

    /// Binds what every statement that commits begins with.
    fn bind_commit(
        &self,
        sql: &'static str,
        batch: &Batch,
        folded: &Folded,
        expected: &impl Fn(Partition) -> Position,
        stream_created_at: OffsetDateTime,
    ) -> Query<'static, CommitRow> {
        let head = batch.newest();
        let query = bind_offsets(sqlx::query_as(sql), self.worker, batch, expected)
            .bind(stream_created_at)
            .bind(head.map(|place| column(place.sequence)))
            .bind(head.map(|place| place.recorded_at));
        bind_messages(query, batch, folded)
    }

    /// Commits on a connection that is kept: the pool would ask Postgres before and behind every statement
    /// whether it is still there.
    async fn commit_row(&self, query: Query<'_, CommitRow>) -> sqlx::Result<Committed> {
        let mut kept = self.committing.lock().await;
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.pool.get().await?,
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

/// The statement that stores this.
fn statement_of(batch: &Batch, folded: &Folded) -> &'static str {
    if !batch.erasures.is_empty() {
        &COMMIT_AND_ERASE
    } else if batch.changes.is_empty() && folded.is_empty() {
        &COMMIT
    } else {
        &COMMIT_AND_CHANGE
    }
}

/// Binds what the statement of [`statement_of`] takes beside messages.
fn bind_rest<'q, Row>(query: Query<'q, Row>, batch: &Batch, folded: &Folded) -> Query<'q, Row> {
    let query = bind_stand_ins(bind_rejects(bind_sessions(query, batch), batch), batch);
    if batch.erasures.is_empty() && batch.changes.is_empty() && folded.is_empty() {
        return query;
    }
    let query = bind_states(bind_refused(bind_changes(query, folded), batch, folded), folded);
    if batch.erasures.is_empty() { query } else { bind_erasures(query, batch) }
}

fn bind_messages<'q, Row>(query: Query<'q, Row>, batch: &Batch, folded: &Folded) -> Query<'q, Row> {
    let rows: Vec<_> = batch.messages.iter().filter(|row| folded.stores(row)).collect();
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

fn bind_changes<'q, Row>(query: Query<'q, Row>, folded: &Folded) -> Query<'q, Row> {
    let rows = &folded.changes;
    let claims = |assignment: &Option<Assignment>| match assignment {
        Some(Assignment::Claim(agent)) => Some(agent.as_str().to_owned()),
        Some(Assignment::Release) | None => None,
    };
    let status = |row: &Decided| row.change.status.map(|status| status.as_str().to_owned());
    let releases = |row: &Decided| row.change.assignment == Some(Assignment::Release);
    query
        .bind(rows.iter().map(|row| row.place.partition.to_column()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| column(row.place.sequence)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.session.to_string()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.is_applied).collect::<Vec<_>>())
        .bind(rows.iter().map(status).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.change.ai_enabled).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| claims(&row.change.assignment)).collect::<Vec<_>>())
        .bind(rows.iter().map(releases).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| created_at(row.place)).collect::<Vec<_>>())
}

fn bind_refused<'q, Row>(query: Query<'q, Row>, batch: &Batch, folded: &Folded) -> Query<'q, Row> {
    let is_refused = |row: &&MessageRow| folded.refused.contains(&row.place.sequence);
    let rows: Vec<_> = batch.messages.iter().filter(is_refused).collect();
    query
        .bind(rows.iter().map(|row| row.place.partition.to_column()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| column(row.place.sequence)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.new.id.as_str().to_owned()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.session.to_string()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.place.recorded_at).collect::<Vec<_>>())
}

fn bind_states<'q, Row>(query: Query<'q, Row>, folded: &Folded) -> Query<'q, Row> {
    let rows = &folded.states;
    query
        .bind(rows.values().map(|row| row.partition.to_column()).collect::<Vec<_>>())
        .bind(rows.keys().map(SessionId::to_string).collect::<Vec<_>>())
        .bind(rows.values().map(|row| row.state.status.as_str().to_owned()).collect::<Vec<_>>())
        .bind(rows.values().map(|row| row.state.ai_enabled).collect::<Vec<_>>())
        .bind(rows.values().map(|row| row.state.assignee.clone()).collect::<Vec<_>>())
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
type CommitRow = (Vec<i16>, Vec<String>, Vec<i64>, Vec<String>, Vec<String>, Vec<i64>, Vec<i64>);

fn committed(row: CommitRow) -> Committed {
    let (claimed, opened, sequences, chats, reopened, refused, changed) = row;
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
        changed: changed.into_iter().map(i64::cast_unsigned).collect(),
        ..Committed::default()
    }
}

/// `createdAt` of a row: the time of the log, cut to the column's milliseconds.
fn created_at(place: LogPlace) -> Timestamp {
    Timestamp::truncate(place.recorded_at)
}
