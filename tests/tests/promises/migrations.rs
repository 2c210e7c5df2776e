//! The migrations run on an empty database and on one that Prisma made and the Node server filled;
//! afterwards a Prisma client still reads and writes.

use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::types::time::OffsetDateTime;
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Database, JsClients, Stack, eventually};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const SOON: Duration = Duration::from_secs(15);
/// A migration that waits for a lock of another does so for ever.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

const INIT: &str = include_str!("../../fixtures/20251212153812_init.sql");
const PRISMA_MIGRATIONS: &str = include_str!("../../fixtures/prisma_migrations.sql");
const ROWS: &str = include_str!("../../fixtures/node_server_rows.sql");

const LEGACY: &str = "550e8400-e29b-41d4-a716-446655440000";
const LEGACY_KEY: &str = "cmj3k1x8q0000v8l4h2d7a1b2";

/// `persister …`
async fn persister(url: &str, args: &[&str]) -> Output {
    let program = tokio::task::spawn_blocking(|| tests::program("persister")).await.unwrap();
    let mut command = Command::new(program);
    command.args(args).env_clear().env("DATABASE_URL", url).kill_on_drop(true);
    command.current_dir(std::env::temp_dir());
    let ended = tokio::time::timeout(ENDS_WITHIN, command.output()).await;
    ended.unwrap_or_else(|_| panic!("persister {args:?} does not end")).unwrap()
}

async fn migrate(url: &str) {
    let output = persister(url, &["migrate"]).await;
    assert!(output.status.success(), "{output:?}");
}

async fn status(url: &str) -> Vec<String> {
    let output = persister(url, &["migrate", "status"]).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.unwrap();
}

/// The rows of a query as JSON, in its order.
async fn rows(pool: &PgPool, query: &str) -> Vec<Value> {
    let sql = format!("SELECT to_jsonb(q)::text FROM ({query}) q");
    let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(pool).await.unwrap();
    rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect()
}

/// As Prisma and the Node server left it.
async fn fill(pool: &PgPool) {
    for sql in [INIT, PRISMA_MIGRATIONS, ROWS] {
        execute(pool, sql).await;
    }
}

/// Columns, constraints and indexes of Prisma's two tables.
async fn shape(pool: &PgPool) -> Vec<Value> {
    let columns = r"SELECT table_name, column_name, data_type, datetime_precision, is_nullable, column_default
        FROM information_schema.columns WHERE table_schema = current_schema()
        AND (table_name, column_name) IN (
            ('ChatSession', 'id'), ('ChatSession', 'sessionId'), ('ChatSession', 'ip'),
            ('ChatSession', 'userAgent'), ('ChatSession', 'createdAt'),
            ('Message', 'id'), ('Message', 'sender'), ('Message', 'content'), ('Message', 'createdAt'),
            ('Message', 'isAI'), ('Message', 'chatSessionId'))
        ORDER BY table_name, column_name";
    let constraints = r#"SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE contype IN ('p', 'f', 'u') AND conrelid IN ('"ChatSession"'::regclass, '"Message"'::regclass)
        ORDER BY conname"#;
    let unique = r"SELECT indexname, indexdef FROM pg_indexes
        WHERE schemaname = current_schema() AND indexname = 'ChatSession_sessionId_key'";
    let mut shape = Vec::new();
    for query in [columns, constraints, unique] {
        let found = rows(pool, query).await;
        assert!(!found.is_empty());
        shape.extend(found);
    }
    shape
}

async fn pool(url: &str) -> PgPool {
    PgPool::connect(url).await.unwrap()
}

#[tokio::test]
async fn an_empty_database_gets_the_tables_that_prisma_would_make() {
    let (ours, prismas) = tokio::join!(Database::empty(), Database::empty());
    migrate(ours.url()).await;
    let prisma = pool(prismas.url()).await;
    execute(&prisma, INIT).await;
    assert_eq!(shape(&pool(ours.url()).await).await, shape(&prisma).await);
    migrate(prismas.url()).await;
    assert_eq!(shape(&pool(ours.url()).await).await, shape(&prisma).await);
}

#[tokio::test]
async fn a_migration_tells_before_it_starts_what_it_writes_and_after_it_how_long_it_took() {
    let database = Database::empty().await;
    let filled = pool(database.url()).await;
    fill(&filled).await;
    let count: i64 =
        sqlx::query_scalar(r#"SELECT count(*) FROM "Message""#).fetch_one(&filled).await.unwrap();
    let output = persister(database.url(), &["migrate"]).await;
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = told.lines().collect();
    let writes = format!("applying 2 log: it writes the {count} rows of \"Message\"");
    let before = lines.iter().position(|line| line.starts_with(&writes));
    let after =
        lines.iter().position(|line| line.starts_with("applied 2 log in ") && line.ends_with(" s"));
    assert!(before.is_some() && before < after, "{told}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    let again = persister(database.url(), &["migrate"]).await;
    let again = String::from_utf8(again.stdout).unwrap();
    assert!(
        again.starts_with("the database is up to date") && again.lines().count() == 1,
        "{again}"
    );
}

#[tokio::test]
async fn who_waits_for_a_long_migration_is_told_that_it_goes_on() {
    let database = Database::empty().await;
    let pool = pool(database.url()).await;
    fill(&pool).await;
    // The table's lock is somebody else's, until the second line that says so.
    let mut lock = pool.begin().await.unwrap();
    sqlx::query(r#"LOCK TABLE "Message" IN SHARE MODE"#).execute(&mut *lock).await.unwrap();
    let program = tokio::task::spawn_blocking(|| tests::program("persister")).await.unwrap();
    let mut command = Command::new(program);
    command.arg("migrate").env_clear().env("DATABASE_URL", database.url()).kill_on_drop(true);
    command.current_dir(std::env::temp_dir()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut migrating = command.spawn().unwrap();
    let mut lines = BufReader::new(migrating.stdout.take().unwrap()).lines();
    let mut next = async || {
        tokio::time::timeout(ENDS_WITHIN, lines.next_line()).await.unwrap().unwrap().unwrap()
    };
    while !next().await.starts_with("applying 2 log") {}
    for seconds in ["5 s", "10 s"] {
        assert_eq!(next().await, format!("still applying 2 log: {seconds}"));
    }
    lock.rollback().await.unwrap();
    assert!(next().await.starts_with("applied 2 log in 1"));
    let output = tokio::time::timeout(ENDS_WITHIN, migrating.wait_with_output()).await.unwrap();
    let output = output.unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[tokio::test]
async fn migrating_twice_changes_nothing() {
    const APPLIED: &str = "SELECT * FROM _sqlx_migrations ORDER BY version";
    let database = Database::empty().await;
    migrate(database.url()).await;
    let pool = pool(database.url()).await;
    let applied = rows(&pool, APPLIED).await;
    assert!(!applied.is_empty());
    migrate(database.url()).await;
    assert_eq!(rows(&pool, APPLIED).await, applied);
}

#[tokio::test]
async fn status_tells_what_is_pending_and_what_is_applied_and_changes_nothing() {
    let database = Database::empty().await;
    let before = status(database.url()).await;
    assert!(!before.is_empty());
    assert!(before.iter().all(|line| line.starts_with("pending")), "{before:?}");
    let tables = "SELECT * FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(rows(&pool(database.url()).await, tables).await, Vec::<Value>::new());
    migrate(database.url()).await;
    let after = status(database.url()).await;
    let wanted: Vec<_> = before.iter().map(|line| line.replace("pending", "applied")).collect();
    assert_eq!(after, wanted);
}

#[tokio::test]
async fn several_migrating_at_once_do_not_disturb_each_other() {
    let database = Database::empty().await;
    let url = database.url();
    tokio::join!(migrate(url), migrate(url), migrate(url), migrate(url));
    assert!(status(url).await.iter().all(|line| line.starts_with("applied")));
    // And the same at the start of two persisters.
    let stack = Stack::builder().empty_database().persisters(2).start().await;
    assert!(status(stack.database_url()).await.iter().all(|line| line.starts_with("applied")));
}

#[tokio::test]
async fn a_migration_that_fails_says_why_leaves_no_lock_and_nothing_half_done() {
    let database = Database::empty().await;
    let pool = pool(database.url()).await;
    fill(&pool).await;
    execute(&pool, r#"CREATE TABLE "LogPartition" ("in the way" INT)"#).await;
    let before = shape(&pool).await;
    for _ in 0..2 {
        let failed = persister(database.url(), &["migrate"]).await;
        assert!(!failed.status.success());
        let why = String::from_utf8(failed.stderr).unwrap();
        assert!(why.contains("LogPartition"), "{why}");
    }
    let locks = "SELECT * FROM pg_locks WHERE locktype = 'advisory' AND database = \
                 (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually(SOON, "the locks are gone", async || rows(&pool, locks).await.is_empty()).await;
    let seq = "SELECT FROM information_schema.columns WHERE column_name = 'seq'";
    assert_eq!(rows(&pool, seq).await, Vec::<Value>::new());
    assert_eq!(shape(&pool).await, before);
    execute(&pool, r#"DROP TABLE "LogPartition""#).await;
    migrate(database.url()).await;
    assert!(status(database.url()).await.iter().all(|line| line.starts_with("applied")));
}

#[tokio::test]
async fn a_schema_of_the_url_is_made_and_used_by_both_services() {
    let stack = Stack::builder().empty_database().services_stopped().start().await;
    let url = format!("{}?schema=chat", stack.database_url());
    stack.gateway(0).set_env("DATABASE_URL", &url);
    stack.persister(0).set_env("DATABASE_URL", &url);
    stack.start_services().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].clone();
    client.ask("user_message", json!({ "sessionId": session, "content": "hello" })).await;
    eventually(SOON, "it is delivered", async || client.messages().await.len() == 1).await;
    let schemas =
        "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname IN ('public', 'chat')";
    assert_eq!(rows(&stack.pool(), schemas).await, [json!({ "schemaname": "chat" })]);
    let stored = r#"SELECT "content" FROM chat."Message""#;
    assert_eq!(rows(&stack.pool(), stored).await, [json!({ "content": "hello" })]);
    assert!(status(&url).await.iter().all(|line| line.starts_with("applied")));
}

/// A stack on the database of a Node server that was stopped.
async fn adopted() -> Stack {
    let stack = Stack::builder().empty_database().services_stopped().start().await;
    fill(&stack.pool()).await;
    stack
}

async fn rest(stack: &Stack, path: &str) -> Value {
    let answer = stack.http().get(stack.url(path)).send().await.unwrap();
    answer.error_for_status().unwrap().json().await.unwrap()
}

/// The sessions and their messages as the contract orders them, from the six columns alone.
const EVERYTHING: &str = r#"
    SELECT s."id", s."sessionId", s."ip", s."userAgent",
           to_char(s."createdAt", 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS "createdAt",
           coalesce((
               SELECT jsonb_agg(jsonb_build_object(
                   'id', m."id", 'sender', m."sender", 'content', m."content",
                   'createdAt', to_char(m."createdAt", 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
                   'isAI', m."isAI", 'chatSessionId', m."chatSessionId"
               ) ORDER BY m."createdAt", m."id" COLLATE "C")
               FROM "Message" m WHERE m."chatSessionId" = s."id"
           ), '[]') AS messages
    FROM "ChatSession" s ORDER BY s."createdAt" DESC, s."id" COLLATE "C" DESC"#;

#[tokio::test]
async fn the_history_of_a_node_server_is_read_in_order_and_none_of_its_rows_changes() {
    const PRISMAS: &str = r#"SELECT * FROM "_prisma_migrations""#;
    let stack = adopted().await;
    let (history, prismas) =
        (rows(&stack.pool(), EVERYTHING).await, rows(&stack.pool(), PRISMAS).await);
    assert!(history.len() > 300 && prismas.len() == 1);
    stack.start_services().await;
    assert_eq!(rest(&stack, "/api/chats").await, Value::from(history.clone()));
    for session in [
        "550e8400-e29b-41d4-a716-446655440000",
        "F47AC10B-58CC-4372-A567-0E02B2C3D479",
        "legacy%2F%20session%3F%C3%BC",
        "7c9e6679-7425-40de-944b-e07fc1f90ae7",
    ] {
        let decoded = session.replace("%2F%20session%3F%C3%BC", "/ session?ü");
        let wanted = history.iter().find(|chat| chat["sessionId"] == decoded).unwrap();
        assert_eq!(rest(&stack, &format!("/api/chats/{session}")).await, wanted["messages"]);
    }
    assert_eq!(rows(&stack.pool(), EVERYTHING).await, history);
    assert_eq!(rows(&stack.pool(), PRISMAS).await, prismas);
}

#[tokio::test]
async fn a_visitor_of_a_node_server_goes_on_where_the_conversation_ended() {
    let stack = adopted().await;
    stack.start_services().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let ack = client.stay(Some(LEGACY)).await;
    assert_eq!((&ack["sessionId"], &ack["resumed"]), (&json!(LEGACY), &json!(true)));
    client.ask("user_message", json!({ "sessionId": LEGACY, "content": "it is me again" })).await;
    eventually(SOON, "it is delivered", async || client.messages().await.len() == 1).await;
    let history = rest(&stack, &format!("/api/chats/{LEGACY}")).await;
    let contents: Vec<_> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["content"].as_str().unwrap())
        .collect();
    let older =
        ["first, by its time", "second, by its id", "third, by its id", "last, by its time"];
    assert_eq!(contents[..4], older);
    assert_eq!(contents[4..], ["it is me again"]);
    assert_eq!(history[4]["chatSessionId"], LEGACY_KEY);
    // Not canonical: a socket is given a new session, the history stays readable.
    let other = client.ask("init_session", json!({ "sessionId": "legacy/ session?ü" })).await;
    assert_eq!(other["resumed"], false);
}

/// Exactly the statements that Prisma 7.1 issues for the Node server's code, on a database of ours.
mod prisma {
    pub(super) const CREATE_SESSION: &str = r#"INSERT INTO "public"."ChatSession" ("id","sessionId","ip","userAgent","createdAt") VALUES ($1,$2,$3,$4,$5) RETURNING "public"."ChatSession"."id", "public"."ChatSession"."sessionId", "public"."ChatSession"."ip", "public"."ChatSession"."userAgent", "public"."ChatSession"."createdAt""#;
    pub(super) const FIND_SESSION: &str = r#"SELECT "public"."ChatSession"."id", "public"."ChatSession"."sessionId", "public"."ChatSession"."ip", "public"."ChatSession"."userAgent", "public"."ChatSession"."createdAt" FROM "public"."ChatSession" WHERE ("public"."ChatSession"."sessionId" = $1 AND 1=1) LIMIT $2 OFFSET $3"#;
    pub(super) const CREATE_MESSAGE: &str = r#"INSERT INTO "public"."Message" ("id","sender","content","createdAt","isAI","chatSessionId") VALUES ($1,$2,$3,$4,$5,$6) RETURNING "public"."Message"."id", "public"."Message"."sender", "public"."Message"."content", "public"."Message"."createdAt", "public"."Message"."isAI", "public"."Message"."chatSessionId""#;
    pub(super) const MESSAGES: &str = r#"SELECT "public"."Message"."id", "public"."Message"."sender", "public"."Message"."content", "public"."Message"."createdAt", "public"."Message"."isAI", "public"."Message"."chatSessionId" FROM "public"."Message" WHERE "public"."Message"."chatSessionId" IN ($1) OFFSET $2"#;
    pub(super) const SESSIONS: &str = r#"SELECT "public"."ChatSession"."id", "public"."ChatSession"."sessionId", "public"."ChatSession"."ip", "public"."ChatSession"."userAgent", "public"."ChatSession"."createdAt" FROM "public"."ChatSession" WHERE 1=1 ORDER BY "public"."ChatSession"."createdAt" DESC OFFSET $1"#;
}

async fn prisma_creates_message(pool: &PgPool, id: &str, content: &str, session: &str) {
    let now = OffsetDateTime::now_utc();
    let query = sqlx::query(prisma::CREATE_MESSAGE).bind(id).bind("admin").bind(content);
    query
        .bind(sqlx::types::time::PrimitiveDateTime::new(now.date(), now.time()))
        .bind(true)
        .bind(session)
        .fetch_one(pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_prisma_client_still_reads_and_writes_and_its_messages_follow_the_older_ones() {
    let stack = adopted().await;
    stack.start_services().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    client.stay(Some(LEGACY)).await;
    let say = async |content: &str, seen: usize| {
        client.ask("user_message", json!({ "sessionId": LEGACY, "content": content })).await;
        eventually(SOON, "it is delivered", async || client.messages().await.len() == seen).await;
    };
    let pool = stack.pool();
    prisma_creates_message(&pool, "cmzzzzzzz0000v8l4h2d7a1b2", "by Prisma", LEGACY_KEY).await;
    say("by the gateway", 1).await;
    // An id that sorts before all others: the order is not that of the ids.
    prisma_creates_message(&pool, "c000000000000v8l4h2d7a1b2", "by Prisma again", LEGACY_KEY).await;
    say("by the gateway again", 2).await;

    let history = rest(&stack, &format!("/api/chats/{LEGACY}")).await;
    let contents: Vec<_> =
        history.as_array().unwrap()[4..].iter().map(|message| message["content"].clone()).collect();
    assert_eq!(
        contents,
        ["by Prisma", "by the gateway", "by Prisma again", "by the gateway again"]
    );
    assert_eq!(history[4]["isAI"], true);

    let found = sqlx::query(prisma::FIND_SESSION).bind(LEGACY).bind(1_i64).bind(0_i64);
    assert_eq!(found.fetch_all(&pool).await.unwrap().len(), 1);
    let messages = sqlx::query(prisma::MESSAGES).bind(LEGACY_KEY).bind(0_i64);
    assert_eq!(messages.fetch_all(&pool).await.unwrap().len(), 8);
    let sessions = sqlx::query(prisma::SESSIONS).bind(0_i64).fetch_all(&pool).await.unwrap();
    assert_eq!(sessions.len(), rest(&stack, "/api/chats").await.as_array().unwrap().len());
}

#[tokio::test]
async fn a_session_that_a_prisma_client_makes_is_a_session() {
    let stack = Stack::start().await;
    let (key, session) = ("cmzzzzzzz0001v8l4h2d7a1b2", "9b2f2c1e-3a52-4f0e-8f43-3a6a9f1f2b10");
    let now = OffsetDateTime::now_utc();
    let create = sqlx::query(prisma::CREATE_SESSION).bind(key).bind(session).bind(Some("::1"));
    let create = create
        .bind(None::<String>)
        .bind(sqlx::types::time::PrimitiveDateTime::new(now.date(), now.time()));
    create.fetch_one(&stack.pool()).await.unwrap();
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    assert_eq!(client.stay(Some(session)).await["resumed"], true);
    client.ask("user_message", json!({ "sessionId": session, "content": "hello" })).await;
    eventually(SOON, "it is delivered", async || client.messages().await.len() == 1).await;
    assert_eq!(client.messages().await[0]["chatSessionId"], key);
}

#[tokio::test]
async fn times_are_utc_wherever_the_database_thinks_it_is() {
    let stack = Stack::builder().empty_database().services_stopped().start().await;
    let pool = stack.pool();
    let name = &rows(&pool, "SELECT current_database() AS name").await[0]["name"];
    let elsewhere =
        format!(r#"ALTER DATABASE "{}" SET timezone TO 'Asia/Kolkata'"#, name.as_str().unwrap());
    execute(&pool, &elsewhere).await;
    stack.start_services().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].clone();
    client.ask("user_message", json!({ "sessionId": session, "content": "now" })).await;
    eventually(SOON, "it is delivered", async || client.messages().await.len() == 1).await;
    let stored =
        "SELECT abs(extract(epoch FROM now() AT TIME ZONE 'UTC' - \"createdAt\")) < 60 AS now";
    for table in ["\"Message\"", "\"ChatSession\""] {
        assert_eq!(rows(&pool, &format!("{stored} FROM {table}")).await, [json!({ "now": true })]);
    }
    let chat = rest(&stack, "/api/chats").await;
    assert_eq!(chat[0]["messages"], Value::from(client.messages().await));
}
