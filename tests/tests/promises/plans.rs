//! However much is stored, no statement reads, sorts or gathers more than its page, and a gateway that missed
//! a million messages of one partition gives them all, while the rooms of the others do not wait.
//!
//! Postgres is asked what it did for every statement of both services as they prepare and send it: a statement
//! that is not among them fails the test, so that nobody forgets a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use gateway::db::history::{History, Resume, STRETCH};
use gateway::db::rows::{Cursor, Sought, Storage};
use gateway::db::search::{SearchState, Window};
use persister::batch::{self, LogPlace, LogRecord};
use persister::search::index::{self, Outcome};
use persister::store::Store;
use persister::store::offsets::Fingerprint;
use persister::store::operator::OperatorStore;
use serde_json::{Value, json};
use shared::announcement::{Epoch, Position};
use shared::database::Database;
use shared::ids::{MessageId, SessionId};
use shared::lifecycle::Stop;
use shared::message::Sender;
use shared::partition::{Partition, PartitionCount};
use shared::reading::ReadMark;
use shared::record::Record;
use shared::subjects;
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Client, JsClients, Stack, announcing, eventually, workspace};
use time::OffsetDateTime;

/// The partition that is behind, and the one whose session is long.
const BEHIND: u16 = 0;
const MISSED: u64 = 1_000_000;
const LONG: u64 = 300_000;
const SESSIONS: u64 = 200_000;
/// One that can be erased while plans are looked at: its last messages go in two pieces.
const TO_ERASE: u64 = 12_000;

/// Most rows that a step of a statement may give or look at: a page of the lists and one more, and a batch of
/// a persister is as long.
const PAGE: f64 = 501.0;
/// Where it is another number, and why.
const OTHER_PAGES: [(&str, f64); 14] = [
    // Of each session as many messages are counted as are shown.
    ("LISTED", 99.0 * 501.0),
    ("NEWEST", 99.0 * 501.0),
    // Pages of histories.
    ("MESSAGES", 1_001.0),
    ("LAST_MESSAGES", 1_001.0),
    // 16 clients that come back, of each a page.
    ("MESSAGES_FROM", 8_032.0),
    // The page ends within a session, of which as many may be looked at.
    ("MESSAGES_OF", 2_000.0),
    // What the index has of a wide window, whose rows are not read beyond a narrow one's.
    ("SEARCH", 65_536.0),
    // It deletes in pieces of this size, and keeps as many.
    ("THIN_OUT", 10_000.0),
    // They count.
    ("EXTENT", f64::MAX),
    ("UNCLEARED_COUNT", f64::MAX),
    ("DEAD_LETTER_COUNT", f64::MAX),
    // Each message of a batch is compared with each session that the batch opens, whatever is stored.
    ("COMMIT", 250_000.0),
    ("COMMIT_AND_CHANGE", 250_000.0),
    // What it deletes, thinned out before.
    ("COMMIT_AND_ERASE", 10_000.0),
];
/// Tables that grow with what is said.
const BIG: [&str; 5] =
    ["Message", "ChatSession", "ErasedSession", "SessionChange", "RefusedMessage"];

/// A million messages through a gateway that was not optimised, on a busy machine.
const RECOVERS_WITHIN: Duration = Duration::from_mins(10);
const SOON: Duration = Duration::from_secs(20);

/// As many rows as nobody has yet, without the checks that rows one by one need.
const FILL: &[&str] = &[
    "SET session_replication_role = replica",
    r#"DROP INDEX "Message_chatSessionId_seq_idx""#,
    r#"DROP INDEX "Message_log_key""#,
    r#"ALTER TABLE "Message" DROP CONSTRAINT "Message_pkey""#,
    r#"INSERT INTO "ChatSession" ("id", "sessionId", "createdAt")
       SELECT 's' || n, '00000000-0000-4000-8000-' || lpad(n::text, 12, '0'),
              timestamp '2026-01-01' + n * interval '1 second'
       FROM generate_series(1, {sessions} + 2) n"#,
    r#"INSERT INTO "Message" ("id", "sender", "content", "createdAt", "chatSessionId", "seq", "logEpoch", "logSequence")
       SELECT 'm' || n, 'user', 'missed ' || n, timestamp '2026-01-01' + n * interval '1 second',
              's' || (1 + n % {sessions}), n, {epoch}, 2 * n
       FROM generate_series(1, {missed}) n"#,
    r#"INSERT INTO "Message" ("id", "sender", "content", "createdAt", "chatSessionId", "seq", "logEpoch", "logSequence")
       SELECT 'l' || n, 'user', 'long ' || n, timestamp '2026-01-01' + n * interval '1 second', 's7',
              {missed} + n, {long_epoch}, n
       FROM generate_series(1, {long}) n"#,
    r#"INSERT INTO "Message" ("id", "sender", "content", "createdAt", "chatSessionId", "seq")
       SELECT 'e' || s || '-' || n, 'user', 'to erase ' || n, timestamp '2026-01-01', 's' || s,
              {missed} + {long} + (s - {sessions} - 1) * {to_erase} + n
       FROM generate_series({sessions} + 1, {sessions} + 2) s, generate_series(1, {to_erase}) n"#,
    r#"ALTER TABLE "Message" ADD CONSTRAINT "Message_pkey" PRIMARY KEY ("id")"#,
    r#"CREATE INDEX "Message_chatSessionId_seq_idx" ON "Message" ("chatSessionId", "seq")"#,
    r#"CREATE UNIQUE INDEX "Message_log_key" ON "Message" ("logEpoch", "logSequence") WHERE "logEpoch" IS NOT NULL"#,
    r#"SELECT setval(pg_get_serial_sequence('"Message"', 'seq'), 10000000)"#,
    // Ends of sessions in the log that is behind; some wait to be removed from the log.
    r#"INSERT INTO "ErasedSession" ("digest", "logEpoch", "erasedSequence", "lastSequence", "clearedSequence", "erasedAt")
       SELECT sha256(convert_to('erased ' || n, 'UTF8')), {epoch}, 2 * n + 1, 2 * n + 1,
              CASE WHEN n % 100 = 0 THEN 0 ELSE 2 * n + 1 END, now()
       FROM generate_series(1, {sessions}) n"#,
    r#"INSERT INTO "DeadLetter" ("subject", "payload", "reason", "logEpoch", "logSequence", "recordedAt")
       SELECT 'chat.requests.1.00000000-0000-4000-8000-' || lpad(n::text, 12, '0'), '\x00', 'garbage', {epoch}, n, now()
       FROM generate_series(1, 5000) n"#,
    r#"INSERT INTO "SessionChange" ("id", "chatSessionId", "isApplied", "status", "createdAt", "logEpoch", "logSequence")
       SELECT 'd' || n, 's' || n, true, 'closed', timestamp '2026-01-01', {epoch}, 2 * n + 1
       FROM generate_series(1, {sessions}) n"#,
    r#"INSERT INTO "RefusedMessage" ("id", "recordedAt", "chatSessionId")
       SELECT 'r' || n, timestamp '2026-01-01', 's' || n FROM generate_series(1, {sessions}) n"#,
    "ANALYZE",
];

/// A database with partitions and nothing else, a gateway that knows it, and then all that it missed.
struct Big {
    stack: Stack,
    database: Database,
    pool: PgPool,
}

impl Big {
    async fn start() -> Self {
        let stack = Stack::builder().own_postgres().busy().services_stopped().start().await;
        let database: Database = stack.database_url().parse().unwrap();
        persister::migrate::run_within(&database, Duration::ZERO).await.unwrap();
        let store = Store::connect(&database, Uuid::from_u128(7));
        store.prepare_until_done(PartitionCount::DEFAULT, &Stop::new()).await.unwrap();
        stack.gateway(0).start().await;
        let pool = stack.pool();
        Self { stack, database, pool }
    }

    async fn epoch(&self, partition: u16) -> Epoch {
        let epoch = r#"SELECT "epoch" FROM "LogPartition" WHERE "partition" = $1"#;
        let partition = Partition::new(partition).to_column();
        Epoch(sqlx::query_scalar(epoch).bind(partition).fetch_one(&self.pool).await.unwrap())
    }

    async fn fill(&self) {
        let begun = Instant::now();
        let numbers = [
            ("{sessions}", SESSIONS.to_string()),
            ("{missed}", MISSED.to_string()),
            ("{long}", LONG.to_string()),
            ("{to_erase}", TO_ERASE.to_string()),
            ("{epoch}", self.epoch(BEHIND).await.0.to_string()),
            ("{long_epoch}", self.epoch(BEHIND + 1).await.0.to_string()),
        ];
        let mut connection = self.pool.acquire().await.unwrap();
        for statement in FILL {
            let filled = |text: String, (name, number): &(&str, String)| text.replace(name, number);
            let statement = numbers.iter().fold((*statement).to_owned(), filled);
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await.unwrap();
        }
        connection.close_on_drop();
        eprintln!("filled within {:?}", begun.elapsed());
    }

    /// A message as the first record of a partition.
    async fn store_one(&self, epoch: Epoch, session: u64, content: &str) {
        let message = r#"
            INSERT INTO "Message" ("id", "sender", "content", "chatSessionId", "logEpoch", "logSequence")
            VALUES ($1, 'user', $1, 's' || $2, $3, 1)"#;
        let message = sqlx::query(message).bind(content).bind(session.cast_signed()).bind(epoch.0);
        message.execute(&self.pool).await.unwrap();
    }

    /// From the next connection on Postgres writes down what it did.
    async fn explain(&self, mode: &str) {
        let database = self.database.options.get_database().unwrap();
        for (name, value) in [
            ("session_preload_libraries", "auto_explain"),
            ("auto_explain.log_min_duration", "0"),
            ("auto_explain.log_analyze", "on"),
            ("auto_explain.log_timing", "off"),
            ("auto_explain.log_format", "json"),
            ("plan_cache_mode", mode),
        ] {
            let set = format!("ALTER DATABASE \"{database}\" SET {name} = '{value}'");
            sqlx::raw_sql(AssertSqlSafe(set)).execute(&self.pool).await.unwrap();
        }
    }

    async fn explain_no_more(&self) {
        let database = self.database.options.get_database().unwrap();
        let reset = format!("ALTER DATABASE \"{database}\" RESET ALL");
        sqlx::raw_sql(AssertSqlSafe(reset)).execute(&self.pool).await.unwrap();
    }

    /// What Postgres did since the log was so long: statements and their plans.
    fn plans(&self, since: usize) -> Vec<(String, Value)> {
        let log = self.stack.log_of("postgres");
        let mut lines = log[since..].lines().peekable();
        let mut plans = Vec::new();
        while let Some(line) = lines.next() {
            if !line.ends_with("plan:") {
                continue;
            }
            let mut json = String::new();
            while let Some(line) = lines.next_if(|line| line.starts_with('\t')) {
                json += line;
            }
            let plan: Value = serde_json::from_str(&json).unwrap();
            plans.push((plan["Query Text"].as_str().unwrap().to_owned(), plan["Plan"].clone()));
        }
        plans
    }
}

/// The statements of both services, by name: those that are sent, each with what it is made of.
struct Statements {
    sent: BTreeMap<String, String>,
}

impl Statements {
    fn of_both_services() -> Self {
        let (mut constants, mut made) = (BTreeMap::<String, String>::new(), BTreeMap::new());
        for folder in ["gateway/src", "persister/src", "shared/src"] {
            for source in sources(&workspace().join(folder)) {
                let text = fs::read_to_string(&source).unwrap();
                for (name, sql) in constants_of(&text) {
                    let other = constants.insert(name.clone(), sql);
                    assert_eq!(other, None, "{}: another is called {name} too", source.display());
                }
                made.extend(made_of(&text));
                // Migrating is done before anything is stored.
                if !source.ends_with("migrate.rs") {
                    let name = source.display();
                    assert!(!sends_a_literal(&text), "{name}: a statement without a name");
                }
            }
        }
        let parts: BTreeSet<_> = made.values().flatten().cloned().collect();
        let whole =
            |names: &Vec<String>| names.iter().map(|name| constants[name].as_str()).collect();
        let mut sent: BTreeMap<_, String> =
            made.iter().map(|(name, names)| (name.clone(), whole(names))).collect();
        sent.extend(constants.into_iter().filter(|(name, _)| !parts.contains(name)));
        Self { sent }
    }

    /// More than one may have the same text.
    fn names(&self, text: &str) -> Vec<&str> {
        let same = self.sent.iter().filter(|(_, sent)| *sent == text);
        same.map(|(name, _)| name.as_str()).collect()
    }
}

fn sources(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// `const NAME: &str = "…"` where the text is SQL.
fn constants_of(source: &str) -> Vec<(String, String)> {
    let is_sql = |text: &str| {
        ["SELECT", "INSERT INTO", "DELETE FROM", "UPDATE \"", "ON CONFLICT", "ORDER BY"]
            .iter()
            .any(|verb| text.contains(verb))
    };
    let declared = source.split("const ").skip(1).filter_map(|rest| {
        let (name, rest) = rest.split_once(": &str =")?;
        let rest = rest.trim_start();
        let text = match rest.strip_prefix("r#\"") {
            Some(raw) => raw.split_once("\"#")?.0,
            None => rest.strip_prefix('"')?.split_once('"')?.0,
        };
        (name.len() < 40 && is_sql(text)).then(|| (name.to_owned(), text.to_owned()))
    });
    declared.collect()
}

/// `static NAME: LazyLock<String> = LazyLock::new(|| [ONE, OTHER].concat())`.
fn made_of(source: &str) -> Vec<(String, Vec<String>)> {
    let declared = source.split("static ").skip(1).filter_map(|rest| {
        let (name, rest) = rest.split_once(": LazyLock<String>")?;
        // However it is broken into lines.
        let rest: String = rest.split_whitespace().collect();
        let (names, _) = rest.split_once('[')?.1.split_once("].concat()")?;
        let names = names.split(',').map(|name| name.trim().to_owned());
        Some((name.to_owned(), names.filter(|name| !name.is_empty()).collect()))
    });
    declared.collect()
}

fn sends_a_literal(source: &str) -> bool {
    let calls = source.split("sqlx::query").skip(1);
    calls.filter_map(|rest| rest.split_once('(')).any(|(_, argument)| {
        let argument = argument.trim_start();
        argument.starts_with('"') || argument.starts_with("r#\"")
    })
}

/// Steps of a plan that read a whole table, or give or look at more rows than they may.
fn faults(plan: &Value, most: f64) -> Vec<String> {
    let number = |name: &str| plan[name].as_f64().unwrap_or_default();
    let rows = number("Actual Rows")
        + number("Rows Removed by Filter")
        + number("Rows Removed by Join Filter")
        + number("Rows Removed by Index Recheck");
    let rows = rows * number("Actual Loops");
    let (step, table) = (&plan["Node Type"], plan["Relation Name"].as_str().unwrap_or_default());
    let mut found = Vec::new();
    if step == "Seq Scan" && BIG.contains(&table) {
        found.push(format!("reads all of {table}"));
    }
    if rows > most {
        found.push(format!("{step} {table}: {rows} rows"));
    }
    let steps = plan["Plans"].as_array().into_iter().flatten();
    found.extend(steps.flat_map(|step| faults(step, most)));
    found
}

fn session(number: u64) -> SessionId {
    SessionId::parse(&format!("00000000-0000-4000-8000-{number:012}")).unwrap()
}

/// Searches: for a word that every message around has, in a narrow window and a wide one, and for one that few have.
async fn search(history: &History) {
    let state = history.search_state("missed").await.unwrap();
    assert!(matches!(state, SearchState::Ready { end, is_phrase: false } if end > 1_000_000));
    for end in [i64::try_from(MISSED).unwrap(), 500_001] {
        for is_wide in [false, true] {
            let window = Window::before(end, is_wide);
            for (words, least) in [("missed", 200), ("missed 499999", 0), ("erase", 0)] {
                let hits = history.search(words, window, end, 200).await.unwrap();
                assert!(hits.rows.len() >= least, "{words}");
                assert!(is_wide || !hits.is_cut());
            }
        }
    }
    let window = Window::before(500_001, true);
    let hits = history.search("499999", window, 500_001, 200).await.unwrap();
    assert_eq!((hits.rows.len(), hits.count), (1, 1));
}

/// Every statement of a gateway, with its largest pages.
async fn ask_as_a_gateway(history: &History, (behind, long): (Epoch, Epoch)) {
    history.ping().await.unwrap();
    assert_eq!(history.look().await.unwrap(), None);
    assert!(!history.is_replica().await.unwrap());
    assert!(history.schema_version().await.unwrap().is_some());
    let (one, known) = (session(7), session(7).to_string());
    let crowd = join_all((0..=256).map(|number| history.storage_of(session(number)))).await;
    assert_eq!(
        crowd.into_iter().filter(|it| *it.as_ref().unwrap() == Storage::Stored).count(),
        256
    );
    assert!(history.session(&known).await.unwrap().is_some());
    assert!(history.extent(&known).await.unwrap().unwrap().count >= i64::try_from(LONG).unwrap());
    for seqs in [0..i64::MAX, 1_100_000..1_200_000] {
        assert_eq!(history.messages(&known, seqs.clone(), 1_001).await.unwrap().len(), 1_001);
        assert_eq!(history.last_messages(&known, seqs, 1_001).await.unwrap().len(), 1_001);
    }
    assert!(history.seq_of(&known, "l1000").await.unwrap().is_some());
    for id in ["l1000", "l290000", "nobody's"] {
        // A crowd of them.
        let resume = || Resume { partition: Partition::new(7), session: one, id: id.to_owned() };
        let all = join_all((0..16).map(|_| history.messages_from(resume()))).await;
        assert!(all.into_iter().all(|snapshot| snapshot.unwrap().rows.len() == 502));
    }
    let first = history.sessions(None, 201).await.unwrap();
    let cursor = Cursor::from(first.last().unwrap());
    assert_eq!(history.sessions(Some(&cursor), 201).await.unwrap().len(), 201);
    let ids: Vec<_> = (1..=200).map(|number| format!("s{number}")).collect();
    for (before, seq) in [(0, -1), (6, 1_100_000), (7, -1)] {
        assert!(history.messages_of(&ids[before..], seq, 1_000).await.unwrap().len() > 900);
    }
    assert!(history.content("l1000").await.unwrap().is_some());
    let sought = |number: u64| Sought {
        id: format!("l{number}"),
        session: one,
        digest: one.digest(),
        position: Position { epoch: behind, sequence: number },
    };
    let sought: Vec<_> = (1..=500).map(sought).collect();
    let fates = history.fates(&sought.iter().collect::<Vec<_>>()).await.unwrap();
    assert!(fates.iter().all(|found| found.words.is_some()));
    for before in [None, Some("l200000")] {
        assert_eq!(history.latest(one, before, 500).await.unwrap().len(), 500);
    }
    let some: Vec<_> = (1..=500).map(session).collect();
    assert!(history.listed(&some).await.unwrap().len() > 490);
    let first = history.newest(None, 501).await.unwrap();
    let cursor = first.last().unwrap().cursor();
    assert_eq!(history.newest(Some(&cursor), 501).await.unwrap().len(), 501);
    assert_eq!(history.positions().await.unwrap().len(), 16);
    assert_eq!(history.offsets().await.unwrap().len(), 16);
    for sequence in [0, MISSED] {
        let position = Position { epoch: behind, sequence };
        let stretch = history.stored_after(Partition::new(BEHIND), position).await.unwrap();
        assert_eq!(stretch.rows.len(), STRETCH);
    }
    let begin = Position { epoch: behind, sequence: 0 };
    assert_eq!(history.erased_after(begin).await.unwrap().len(), STRETCH);
    assert!(history.epoch_after(Partition::new(BEHIND), long).await.is_ok());
    assert!(history.changed_after(begin).await.is_ok());
    assert!(history.read_up_to(one).await.unwrap().user.is_none());
    assert!(history.older_workers().await.is_ok());
    search(history).await;
    feed(history, behind).await;
}

/// A feed behind a partition's first record, and one of another database.
async fn feed(history: &History, behind: Epoch) {
    let partition = Partition::new(BEHIND);
    assert_eq!(history.known_epochs(&[behind]).await.unwrap(), [(partition, behind)]);
    for sequence in [0, MISSED] {
        let position = Position { epoch: behind, sequence };
        // It reads its pages, though this database says that less is stored.
        assert!(history.events_after(partition, position).await.unwrap().is_last);
    }
    let elsewhere = Position { epoch: Epoch(0), sequence: 0 };
    assert!(!history.events_after(partition, elsewhere).await.unwrap().is_last);
}

fn record(partition: u16, sequence: u64, session: SessionId, payload: String) -> LogRecord {
    let partition = Partition::new(partition);
    LogRecord {
        place: LogPlace { partition, sequence, recorded_at: OffsetDateTime::UNIX_EPOCH },
        subject: subjects::request(partition, session),
        payload: payload.into(),
    }
}

/// A message, or the opening of a session, with this number as its id.
fn payload(kind: &str, number: u64) -> String {
    let id = format!("c{number:0>24}");
    let content = match kind {
        "message" => json!({ "id": id, "sender": "user", "content": "Hello!" }),
        "change" => json!({ "id": id, "aiEnabled": number.is_multiple_of(8) }),
        _ => json!({ "id": id, "ip": null, "userAgent": null }),
    };
    json!({ kind: content }).to_string()
}

fn erasure(of: SessionId) -> String {
    let (_, erase) = Record::erase(&of.to_string());
    String::from_utf8(erase.encode().unwrap()).unwrap()
}

/// The batches of a persister, each as large as they get: messages alone, the same once more, all kinds of records, an
/// erasure.
async fn store_as_a_persister(store: &Store, round: u64) {
    let all: Vec<_> = PartitionCount::DEFAULT.all().collect();
    let partition = 3;
    let place = Partition::new(partition);
    let stored = async || {
        let offsets = store.offsets(&all).await.unwrap();
        offsets.iter().find(|offset| offset.partition == place).unwrap().stored
    };
    let unique = 1_000_000 * (round + 1);
    let erased = session(SESSIONS + 1 + round);
    let messages = |n: u64| (session(1_000 + n), payload("message", unique + n));
    let mixed = |n: u64| match n % 4 {
        0 => (SessionId::random(), payload("session", unique + 10_000 + n)),
        1 => (SessionId::random(), payload("message", unique + 20_000 + n)),
        2 => (session(2_000 + n), "garbage".to_owned()),
        _ => (erased, payload("message", unique + 30_000 + n)),
    };
    let ai = |n: u64| {
        let id = format!("c{:0>24}", unique + 40_000 + n);
        let content = json!({ "id": id, "sender": "admin", "content": "Hello!", "isAI": true });
        json!({ "message": content }).to_string()
    };
    let changes = |n: u64| match n % 4 {
        0 => (session(3_000 + n / 4), payload("change", unique + 50_000 + n)),
        1 => (session(3_000 + n / 4), ai(n)),
        2 => (session(3_000 + n / 4), payload("message", unique + 60_000 + n)),
        _ => (SessionId::random(), payload("session", unique + 70_000 + n)),
    };
    let batches: [Vec<(SessionId, String)>; 5] = [
        (0..500).map(messages).collect(),
        (0..500).map(changes).collect(),
        (0..500).map(messages).collect(),
        (0..500).map(mixed).collect(),
        vec![(erased, erasure(erased))],
    ];
    for records in batches {
        let before = stored().await;
        let records = (1..).zip(records).map(|(n, (session, payload))| {
            record(partition, before.sequence + n, session, payload)
        });
        let batch = batch::prepare(&records.collect::<Vec<_>>());
        store.thin_out(&batch).await.unwrap();
        let mut committed =
            store.commit(&batch, |_| before, OffsetDateTime::UNIX_EPOCH).await.unwrap();
        assert_eq!(committed.claimed, [place]);
        // As if it had stored nothing: all of it is looked for.
        committed.stored.clear();
        store.look_for_repeated(&batch, &mut committed).await;
    }
}

/// Every other statement of a persister.
async fn ask_as_a_persister(store: &Store, round: u64) {
    store.is_durable().await.unwrap();
    store.prepare_until_done(PartitionCount::DEFAULT, &Stop::new()).await.unwrap();
    let mut owned = Vec::new();
    eventually(SOON, "all partitions are its own", async || {
        owned = store.share().await.unwrap().owned;
        owned.len() == 16
    })
    .await;
    store_as_a_persister(store, round).await;
    let read = |number: u64| ReadMark {
        session: session(number),
        reader: if number.is_multiple_of(2) { Sender::User } else { Sender::Admin },
        message: MessageId::random(),
    };
    let (kept, busy) = store.mark_read(&(1..=500).map(read).collect::<Vec<_>>()).await.unwrap();
    assert!(kept.is_empty() && busy.is_empty());
    let marks = store.marks().await.unwrap();
    let last: Vec<_> = marks.iter().filter(|mark| mark.partition == owned[15]).copied().collect();
    let head = Fingerprint { sequence: 1, recorded_at: OffsetDateTime::UNIX_EPOCH };
    store.mark(&last, head).await.unwrap();
    let created = OffsetDateTime::UNIX_EPOCH;
    assert_eq!(store.begin_epochs(&last, 0, created, Some(head)).await.unwrap(), 1);
    let stored = store.stored_sequences().await.unwrap();
    store.move_idle(&stored[5..6], stored[5].1 + 1, created).await.unwrap();
    let uncleared = store.uncleared(500).await.unwrap();
    assert_eq!(uncleared.len(), 500);
    store.cleared(&uncleared[0]).await.unwrap();
    assert!(store.uncleared_count().await.unwrap() > 500);
    assert!(store.dead_letter_count().await.unwrap() > 4_000);
    store.leave().await.unwrap();
}

/// Every statement of the commands.
async fn ask_as_an_operator(store: &OperatorStore) {
    assert!(store.knows_session(&session(7).to_string()).await.unwrap());
    let some: Vec<_> = (1..=500).map(|number| session(number).to_string()).collect();
    assert!(store.count_sessions(&some).await.unwrap() > 490);
    assert!(store.extent(&session(7).to_string()).await.unwrap().is_some());
    for after in [None, Some(1_100_000)] {
        let page = store.messages_between("s7", after, i64::MAX, 500).await.unwrap();
        assert_eq!(page.len(), 500);
    }
    let before = OffsetDateTime::now_utc() + Duration::from_hours(24 * 365);
    let ages = store.session_ages(None, before, 500).await.unwrap();
    assert_eq!(store.session_ages(ages.last(), before, 500).await.unwrap().len(), 500);
    let letters = store.dead_letters(500).await.unwrap();
    assert_eq!(letters.len(), 500);
    assert!(store.dead_letter(letters[0].id).await.unwrap().is_some());
    store.drop_dead_letter(letters[0].id).await.unwrap();
}

async fn make_search_index(big: &Big) {
    let begun = Instant::now();
    let made = index::make(&big.database, |line| eprintln!("{line}")).await.unwrap();
    assert_eq!(made, Outcome::Made);
    sqlx::raw_sql("ANALYZE").execute(&big.pool).await.unwrap();
    eprintln!("made the index within {:?}", begun.elapsed());
}

/// Has every statement sent, and looks at what Postgres did: once planned for its parameters, once for any.
async fn no_statement_takes_more_than_its_page(big: &Big) {
    let statements = Statements::of_both_services();
    let epochs = (big.epoch(BEHIND).await, big.epoch(BEHIND + 1).await);
    let mut found = Vec::new();
    make_search_index(big).await;
    for (round, mode) in (0..).zip(["force_custom_plan", "force_generic_plan"]) {
        let since = big.stack.log_of("postgres").len();
        big.explain(mode).await;
        ask_as_a_gateway(&History::connect(&big.database), epochs).await;
        ask_as_a_persister(&Store::connect(&big.database, Uuid::from_u128(7)), round).await;
        ask_as_an_operator(&OperatorStore::connect(&big.database)).await;
        // Those of who makes the index; it is there.
        assert_eq!(index::make(&big.database, |_| ()).await.unwrap(), Outcome::Stands);
        let mut unseen: BTreeSet<_> = statements.sent.keys().map(String::as_str).collect();
        for (text, plan) in big.plans(since) {
            for name in statements.names(&text) {
                unseen.remove(name);
                let other = OTHER_PAGES.iter().find(|(other, _)| *other == name);
                let most = other.map_or(PAGE, |(_, most)| *most);
                let faults = faults(&plan, most).into_iter();
                found.extend(faults.map(|fault| format!("{name}, {mode}: {fault}")));
            }
        }
        assert!(unseen.is_empty(), "{mode}: nobody asked for {unseen:?}");
    }
    big.explain_no_more().await;
    assert!(found.is_empty(), "{found:#?}");
}

/// A number of the gateway's metrics.
async fn metric(stack: &Stack, name: &str) -> u64 {
    stack.gateway(0).metric(name).await.unwrap_or_default()
}

async fn contents(client: &Client) -> Vec<String> {
    let text = |message: &Value| message["content"].as_str().unwrap().to_owned();
    client.messages().await.iter().map(text).collect()
}

/// One partition is told to be a million messages ahead of what its gateway heard.
async fn a_million_missed_are_given_in_order_and_nobody_else_waits(big: &Big) {
    let stack = &big.stack;
    let nats = stack.nats_client().await;
    let clients = JsClients::start().await;
    let (behind, beside) = (Partition::new(BEHIND), Partition::new(5));
    let (epoch, other_epoch) = (big.epoch(BEHIND).await, big.epoch(5).await);
    // Its messages were missed, wherever else its own would stand.
    let (missed, other) = (session(4_321), session(54_321));
    let (reader, bystander) = (
        clients.client(&stack.url(""), &["websocket"]).await,
        clients.client(&stack.url(""), &["websocket"]).await,
    );
    for (client, session) in [(&reader, missed), (&bystander, other)] {
        let joined = client.ask("init_session", json!({ "sessionId": session })).await;
        assert_eq!(joined["resumed"], true, "{joined}");
    }
    let recovered = "chat_gateway_recovered_messages_total";
    assert_eq!(metric(stack, recovered).await, 0);
    let begun = Instant::now();
    let position = Position { epoch, sequence: 2 * MISSED };
    announcing::repeat(&nats, behind, position).await;
    eventually(SOON, "it reads what it missed", async || metric(stack, recovered).await > 0).await;
    // The other partition missed something too.
    big.store_one(other_epoch, 54_321, "missed there").await;
    let at = Position { epoch: other_epoch, sequence: 1 };
    announcing::repeat(&nats, beside, at).await;
    let live = json!({ "id": "live", "content": "live" });
    announcing::say(&nats, beside, (Position { sequence: 2, ..at }, 1), other, live.clone()).await;
    // Behind everything that is read meanwhile, though it is heard before.
    let at = Position { epoch, sequence: 2 * MISSED + 2 };
    announcing::say(&nats, behind, (at, position.sequence), missed, live).await;
    eventually(SOON, "the bystander is told", async || {
        contents(&bystander).await == ["missed there", "live"]
    })
    .await;
    let read = metric(stack, recovered).await;
    assert!(read < MISSED / 2, "the bystander waited until {read} were read");
    eventually(RECOVERS_WITHIN, "all of it is read", async || {
        contents(&reader).await.last().is_some_and(|last| last == "live")
    })
    .await;
    eprintln!("recovered {MISSED} messages within {:?}", begun.elapsed());
    assert_eq!(metric(stack, recovered).await, MISSED + 1);
    let own = (1..=MISSED).filter(|n| 1 + n % SESSIONS == 4_321);
    let own: Vec<_> = own.map(|n| format!("missed {n}")).chain(["live".into()]).collect();
    assert_eq!(contents(&reader).await, own);
}

#[tokio::test]
async fn a_million_messages_cost_no_statement_more_than_its_page_and_no_room_its_turn() {
    let big = Big::start().await;
    big.fill().await;
    no_statement_takes_more_than_its_page(&big).await;
    a_million_missed_are_given_in_order_and_nobody_else_waits(&big).await;
}
