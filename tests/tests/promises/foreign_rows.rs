//! Rows that others wrote: whatever Postgres holds in the columns of Prisma's tables is served as it is, and ends
//! nobody's work.
//!
//! The same thousand rows every time; `ROWS_SEED=2 cargo test foreign_rows::` takes others.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use shared::ids::SessionId;
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Client, JsClients, Link, Stack, eventually, is_taken};
use tokio::process::Command;

const INIT: &str = include_str!("../../fixtures/20251212153812_init.sql");
const SESSIONS: usize = 200;
const MESSAGES: usize = 800;
const SOON: Duration = Duration::from_secs(20);
const ENDS_WITHIN: Duration = Duration::from_secs(90);
/// Every route that reads, and its parameters.
const OPENAPI: &str = include_str!("../../../gateway/src/http/openapi/openapi.json");

/// Writes each time as JavaScript does. What it does not know is written as the nearest that it knows: infinity, and
/// what comes after its last time, as that; minus infinity as the first time of Postgres.
const WRITE: &str = r"
    const bounds = [-210866803200000, 8640000000000000];
    const write = (time) => new Date(Math.min(Math.max(Number(time), bounds[0]), bounds[1])).toISOString();
    console.log(JSON.stringify(JSON.parse(process.env.TIMES).map(write)));
";

/// A time as SQL knows it: one that has a name, else a day since 1970 and milliseconds of it.
#[derive(Clone, Debug)]
struct Time {
    name: Option<&'static str>,
    day: i32,
    millis: i32,
}

#[derive(Clone, Debug)]
struct Session {
    id: String,
    /// Its `sessionId`.
    name: String,
    ip: Option<String>,
    user_agent: Option<String>,
    time: Time,
}

#[derive(Clone, Debug)]
struct Message {
    id: String,
    sender: String,
    content: String,
    time: Time,
    is_ai: bool,
    of: usize,
}

/// Any text that Postgres takes.
fn text(chars: usize) -> impl Strategy<Value = String> {
    let any = proptest::collection::vec(any::<char>(), 0..chars);
    let any = any.prop_map(|chars| chars.into_iter().filter(|c| *c != '\0').collect());
    prop_oneof![
        4 => any,
        1 => Just(String::new()),
        1 => Just("a/b?c=d#e%2F &+\r\n\"\\>; rel=\"next\"".to_owned()),
        1 => Just("\u{202e}\u{feff}\u{ffff}🂡\u{1}\u{7f}".to_owned()),
        1 => Just("infinity_x".to_owned()),
    ]
}

fn time() -> impl Strategy<Value = Time> {
    let named = proptest::sample::select(
        &[
            "infinity",
            "-infinity",
            "4714-11-24 00:00:00 BC",
            "0001-12-31 23:59:59.999 BC",
            "9999-12-31 23:59:59.999",
            "10000-01-01 00:00:00",
            "275760-09-13 00:00:00",
            "275760-09-13 00:00:00.001",
            "294276-12-31 23:59:59.999",
        ][..],
    );
    let named = named.prop_map(|name| Time { name: Some(name), day: 0, millis: 0 });
    let of =
        |days| (days, 0..86_400_000).prop_map(|(day, millis)| Time { name: None, day, millis });
    prop_oneof![named, of(-2_440_588..106_751_990_i32), of(20_000..20_010)]
}

fn session() -> impl Strategy<Value = Session> {
    let uuid =
        any::<u128>().prop_map(|bits| SessionId::standing_for(&bits.to_string()).to_string());
    let name =
        prop_oneof![2 => uuid.clone(), 1 => uuid.prop_map(|id| id.to_uppercase()), 3 => text(300)];
    let optional = || proptest::option::weighted(0.7, text(100));
    (text(300), name, optional(), optional(), time())
        .prop_map(|(id, name, ip, user_agent, time)| Session { id, name, ip, user_agent, time })
}

fn message() -> impl Strategy<Value = Message> {
    let content = prop_oneof![6 => text(300), 1 => text(3).prop_map(|text| text.repeat(20_000))];
    let sender =
        prop_oneof![2 => Just("user".to_owned()), 1 => Just("admin".to_owned()), 1 => text(40)];
    (text(300), sender, content, time(), any::<bool>(), 0..SESSIONS).prop_map(
        |(id, sender, content, time, is_ai, of)| Message { id, sender, content, time, is_ai, of },
    )
}

/// So many of a kind, each with another key.
fn rows<T>(
    runner: &mut TestRunner,
    strategy: impl Strategy<Value = T>,
    count: usize,
    keys: impl Fn(&T) -> Vec<&String>,
) -> Vec<T> {
    let mut rows: Vec<T> = Vec::new();
    while rows.len() < count {
        let row = strategy.new_tree(runner).unwrap().current();
        let is_taken =
            |other: &T| keys(other).iter().zip(keys(&row)).any(|(one, two)| **one == *two);
        if !rows.iter().any(is_taken) {
            rows.push(row);
        }
    }
    rows
}

struct Rows {
    sessions: Vec<Session>,
    messages: Vec<Message>,
}

impl Rows {
    fn random() -> Self {
        let seed = env::var("ROWS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1_u8);
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let sessions = rows(&mut runner, session(), SESSIONS, |row| vec![&row.id, &row.name]);
        let messages = rows(&mut runner, message(), MESSAGES, |row| vec![&row.id]);
        Self { sessions, messages }
    }

    async fn insert(&self, pool: &PgPool) {
        let time = r#"coalesce("name"::timestamp(3),
            timestamp '1970-01-01' + "day" * interval '1 day' + "millis" * interval '1 ms')"#;
        let sessions = format!(
            r#"INSERT INTO "ChatSession" ("id", "sessionId", "ip", "userAgent", "createdAt")
               SELECT "id", "sessionId", "ip", "userAgent", {time}
               FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::int[], $7::int[])
                   AS rows ("id", "sessionId", "ip", "userAgent", "name", "day", "millis")"#
        );
        let of = &self.sessions;
        sqlx::query(AssertSqlSafe(sessions))
            .bind(of.iter().map(|row| row.id.clone()).collect::<Vec<_>>())
            .bind(of.iter().map(|row| row.name.clone()).collect::<Vec<_>>())
            .bind(of.iter().map(|row| row.ip.clone()).collect::<Vec<_>>())
            .bind(of.iter().map(|row| row.user_agent.clone()).collect::<Vec<_>>())
            .bind(of.iter().map(|row| row.time.name).collect::<Vec<_>>())
            .bind(of.iter().map(|row| row.time.day).collect::<Vec<_>>())
            .bind(of.iter().map(|row| row.time.millis).collect::<Vec<_>>())
            .execute(pool)
            .await
            .unwrap();
        let messages = format!(
            r#"INSERT INTO "Message" ("id", "sender", "content", "createdAt", "isAI", "chatSessionId")
               SELECT "id", "sender", "content", {time}, "isAI", "of"
               FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int[], $6::int[], $7::bool[], $8::text[])
                   AS rows ("id", "sender", "content", "name", "day", "millis", "isAI", "of")"#
        );
        let of = &self.messages;
        let session = |row: &Message| self.sessions[row.of].id.clone();
        sqlx::query(AssertSqlSafe(messages))
            .bind(of.iter().map(|row| row.id.clone()).collect::<Vec<_>>())
            .bind(of.iter().map(|row| row.sender.clone()).collect::<Vec<_>>())
            .bind(of.iter().map(|row| row.content.clone()).collect::<Vec<_>>())
            .bind(of.iter().map(|row| row.time.name).collect::<Vec<_>>())
            .bind(of.iter().map(|row| row.time.day).collect::<Vec<_>>())
            .bind(of.iter().map(|row| row.time.millis).collect::<Vec<_>>())
            .bind(of.iter().map(|row| row.is_ai).collect::<Vec<_>>())
            .bind(of.iter().map(session).collect::<Vec<_>>())
            .execute(pool)
            .await
            .unwrap();
    }

    /// What every client is to be given of each session, by its key: its messages in no order.
    async fn wanted(&self, pool: &PgPool) -> BTreeMap<String, (Value, BTreeMap<String, Value>)> {
        let sessions = written(pool, "ChatSession").await;
        let messages = written(pool, "Message").await;
        let mut wanted = BTreeMap::new();
        for row in &self.sessions {
            let head = json!({
                "id": row.id, "sessionId": row.name, "ip": row.ip, "userAgent": row.user_agent,
                "createdAt": sessions[&row.id],
            });
            wanted.insert(row.id.clone(), (head, BTreeMap::new()));
        }
        for row in &self.messages {
            let of = &self.sessions[row.of].id;
            let message = json!({
                "id": row.id, "sender": row.sender, "content": row.content, "createdAt": messages[&row.id],
                "isAI": row.is_ai, "chatSessionId": of,
            });
            wanted.get_mut(of).unwrap().1.insert(row.id.clone(), message);
        }
        wanted
    }
}

/// When each row of a table was made, by its id, as JavaScript writes what Postgres has.
async fn written(pool: &PgPool, table: &str) -> HashMap<String, String> {
    let times =
        format!(r#"SELECT "id", (extract(epoch FROM "createdAt") * 1000)::text FROM "{table}""#);
    let times: Vec<(String, String)> =
        sqlx::query_as(AssertSqlSafe(times)).fetch_all(pool).await.unwrap();
    let (ids, times): (Vec<_>, Vec<_>) = times.into_iter().unzip();
    let env = ("TIMES".to_owned(), json!(times).to_string());
    let run = tests::node(&["-e", WRITE], &[env]).await;
    let written: Vec<String> = serde_json::from_str(&run.output).unwrap();
    ids.into_iter().zip(written).collect()
}

/// A session of an answer as it is wanted.
fn served(chat: &Value) -> (String, (Value, BTreeMap<String, Value>)) {
    let mut head = chat.clone();
    let messages = head.as_object_mut().unwrap().remove("messages").unwrap();
    (id_of(chat), (head, by_id(&messages)))
}

fn id_of(row: &Value) -> String {
    row["id"].as_str().unwrap().to_owned()
}

fn by_id(rows: &Value) -> BTreeMap<String, Value> {
    rows.as_array().unwrap().iter().map(|row| (id_of(row), row.clone())).collect()
}

async fn get(stack: &Stack, path: &str) -> (Option<String>, Value) {
    let answer = stack.http().get(stack.url(path)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    let next = next(&answer);
    (next, answer.json().await.unwrap())
}

/// The path that an answer names as that of the next page.
fn next(answer: &Response) -> Option<String> {
    let link = answer.headers().get("link")?.to_str().unwrap();
    Some(link.strip_prefix('<').unwrap().split_once('>').unwrap().0.to_owned())
}

/// All that the pages from here on hold.
async fn pages(stack: &Stack, path: &str) -> Vec<Value> {
    let (mut all, mut path) = (Vec::new(), Some(path.to_owned()));
    while let Some(page) = path {
        let (next, Value::Array(rows)) = get(stack, &page).await else { panic!("{page}") };
        all.extend(rows);
        path = next;
    }
    all
}

/// The path of a session, unless its id cannot stand in a URL as a part of its own.
fn path_of(session_id: &str) -> Option<String> {
    let is_part = !["", ".", ".."].contains(&session_id);
    is_part.then(|| format!("/api/chats/{}", utf8_percent_encode(session_id, NON_ALPHANUMERIC)))
}

#[tokio::test]
async fn a_thousand_rows_of_others_are_served_by_every_route_and_event() {
    let stack = Stack::builder().empty_database().services_stopped().start().await;
    let pool = stack.pool();
    sqlx::raw_sql(INIT).execute(&pool).await.unwrap();
    let rows = Rows::random();
    rows.insert(&pool).await;
    stack.start_services().await;
    let ids = (stack.gateway(0).id(), stack.persister(0).id());
    let wanted = rows.wanted(&pool).await;

    let (_, whole) = get(&stack, "/api/chats").await;
    let served_whole: BTreeMap<_, _> = whole.as_array().unwrap().iter().map(served).collect();
    assert_eq!(served_whole, wanted);
    for limit in [1, 7, 200] {
        let paged = pages(&stack, &format!("/api/chats?limit={limit}")).await;
        assert_eq!(Value::from(paged), whole, "pages of {limit}");
    }
    every_session_is_served(&stack, &whole).await;
    every_route_answers(&stack, &rows).await;
    every_event_answers(&stack, &rows).await;
    every_command_goes_on(&stack, &rows).await;
    assert_eq!(ids, (stack.gateway(0).id(), stack.persister(0).id()));
    nobody_failed(&stack);
}

async fn every_session_is_served(stack: &Stack, whole: &Value) {
    for chat in whole.as_array().unwrap() {
        let Some(path) = path_of(chat["sessionId"].as_str().unwrap()) else { continue };
        assert_eq!(get(stack, &path).await.1, chat["messages"], "{path}");
        assert_eq!(Value::from(pages(stack, &format!("{path}?limit=3")).await), chat["messages"]);
        let (_, mut exported) = get(stack, &format!("{path}/export")).await;
        for decided in ["status", "assignee", "aiEnabled", "changes"] {
            assert!(exported.as_object_mut().unwrap().remove(decided).is_some(), "{exported}");
        }
        assert_eq!(exported, *chat);
    }
}

/// Whatever is asked for by ids that are there, nothing is answered as if the server were at fault.
async fn every_route_answers(stack: &Stack, rows: &Rows) {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    for (path, operations) in document["paths"].as_object().unwrap() {
        // The others change what the rest of this test looks at.
        let Some(operation) = operations.get("get") else { continue };
        // It has no end.
        if path == "/api/events" {
            continue;
        }
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let parameters: Vec<_> =
            parameters.filter_map(|parameter| parameter["name"].as_str()).collect();
        for (number, message) in rows.messages.iter().enumerate().step_by(20) {
            let session = &rows.sessions[message.of].name;
            let mut url = reqwest::Url::parse(&stack.url("")).unwrap();
            let segments = path.split('/').skip(1);
            let segments = segments.map(|part| if part.starts_with('{') { session } else { part });
            url.path_segments_mut().unwrap().clear().extend(segments);
            let given =
                parameters.iter().filter(|name| **name == ["after", "before"][number / 20 % 2]);
            url.query_pairs_mut().extend_pairs(given.map(|name| (name, &message.id)));
            let answer = stack.http().get(url.clone()).send().await.unwrap();
            assert!(!answer.status().is_server_error(), "{url}: {answer:?}");
            answer.bytes().await.unwrap();
        }
    }
}

async fn every_event_answers(stack: &Stack, rows: &Rows) {
    let js_clients = JsClients::start().await;
    let client = js_clients.client(&stack.url(""), &["websocket"]).await;
    client.ask("admin-connect", Value::Null).await;
    assert_eq!(listed(&client).await, rows.sessions.len());
    let all = client.ask("get-all-sessions", Value::Null).await;
    assert_eq!(all["sessions"].as_array().unwrap().len(), rows.sessions.len().min(200), "{all}");
    for (number, session) in rows.sessions.iter().enumerate() {
        let Ok(id) = SessionId::parse(&session.name) else { continue };
        let named = json!({ "sessionId": id });
        let history = client.ask("get-messages", named.clone()).await;
        let of: Vec<_> = rows.messages.iter().filter(|message| message.of == number).collect();
        assert_eq!(history["messages"].as_array().unwrap().len(), of.len(), "{history}");
        for after in of.iter().map(|message| Some(&message.id)).chain([None]) {
            let resume = json!({ "sessionId": id, "after": after.map_or("?", |after| after) });
            let resumed = client.ask("init_session", resume).await;
            assert_eq!((&resumed["sessionId"], &resumed["resumed"]), (&json!(id), &json!(true)));
            assert_eq!(resumed["reset"], after.is_none(), "{resumed}");
            let before = json!({ "sessionId": id, "before": after });
            assert!(client.ask("get-messages", before).await["messages"].is_array());
        }
        for event in ["init_session", "admin-join-session"] {
            assert_eq!(client.ask(event, named.clone()).await["sessionId"], json!(id));
        }
        for event in ["user_message", "admin_message"] {
            let said = client.ask(event, json!({ "sessionId": id, "content": "honest" })).await;
            assert!(is_taken(&said), "{said}");
        }
        let switched = json!({ "sessionId": id, "enabled": false });
        assert_eq!(client.ask("toggle-ai-mode", switched.clone()).await["sessionId"], json!(id));
        assert_eq!(client.ask("admin-leave-session", named).await["sessionId"], json!(id));
    }
    assert!(client.ask("get-sessions", Value::Null).await["sessions"].is_array());
}

/// How many sessions all pages of an agent's list hold.
async fn listed(client: &Client) -> usize {
    let (mut count, mut cursor) = (0, Value::Null);
    loop {
        let mut page = json!({ "limit": 9 });
        if !cursor.is_null() {
            page["cursor"] = cursor;
        }
        let list = client.ask("get-all-sessions", page).await;
        count += list["sessions"].as_array().unwrap().len();
        cursor = list["nextCursor"].clone();
        if cursor.is_null() {
            return count;
        }
    }
}

/// What operators do with sessions.
async fn every_command_goes_on(stack: &Stack, rows: &Rows) {
    let quiet = command(stack, &["prune", "--older-than", "1d", "--dry-run"]).await;
    assert_ne!(quiet, 0);
    for session in rows.sessions.iter().step_by(20) {
        command(stack, &["export", "--", &session.name]).await;
    }
    command(stack, &["prune", "--older-than", "1d"]).await;
    let left = r#"SELECT count(*) FROM "ChatSession" WHERE "createdAt" = 'infinity'"#;
    let left: i64 = sqlx::query_scalar(left).fetch_one(&stack.pool()).await.unwrap();
    let infinite = rows.sessions.iter().filter(|row| row.time.name == Some("infinity")).count();
    assert_eq!(left, i64::try_from(infinite).unwrap(), "what is of the future is not old");
}

/// Runs `persister sessions …`; how many lines it prints.
async fn command(stack: &Stack, args: &[&str]) -> usize {
    let program = tokio::task::spawn_blocking(|| tests::program("persister")).await.unwrap();
    let mut command = Command::new(program);
    command.arg("sessions").args(args).env_clear().current_dir(env::temp_dir());
    command.env("DATABASE_URL", stack.database_url()).env("NATS_URL", stack.nats().url());
    let output = tokio::time::timeout(ENDS_WITHIN, command.kill_on_drop(true).output());
    let output = output.await.unwrap().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().lines().count()
}

fn nobody_failed(stack: &Stack) {
    for service in [stack.gateway(0), stack.persister(0)] {
        assert!(service.is_running() && !service.logs().contains("panicked"), "{}", service.logs());
    }
}

/// What a gateway was not told of it reads from Postgres: there it may have become anything.
#[tokio::test]
async fn a_message_whose_time_was_changed_before_it_was_delivered_is_delivered() {
    let stack = Stack::builder().gateways(2).proxy(Link::GatewayNats).start().await;
    let js_clients = JsClients::start().await;
    let there = js_clients.client(&stack.gateway(0).url(""), &["websocket"]).await;
    let here = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    let session = here.ask("init_session", json!({})).await["sessionId"].clone();
    there.ask("init_session", json!({ "sessionId": session })).await;
    stack.proxy(Link::GatewayNats, 0).cut();
    let times = ["infinity", "-infinity", "294276-12-31 23:59:59.999", "4714-11-24 BC"];
    for time in times {
        let said = here.ask("user_message", json!({ "sessionId": session, "content": time })).await;
        assert!(is_taken(&said), "{said}");
    }
    eventually(SOON, "all are stored", async || {
        let stored = r#"SELECT count(*) FROM "Message""#;
        sqlx::query_scalar::<_, i64>(stored).fetch_one(&stack.pool()).await.unwrap() == 4
    })
    .await;
    let change = r#"UPDATE "Message" SET "createdAt" = "content"::timestamp"#;
    sqlx::query(change).execute(&stack.pool()).await.unwrap();
    stack.proxy(Link::GatewayNats, 0).mend();
    eventually(SOON, "all are delivered", async || there.messages().await.len() == times.len())
        .await;
    let created: Vec<_> =
        there.messages().await.iter().map(|message| message["createdAt"].clone()).collect();
    let wanted = [
        "+275760-09-13T00:00:00.000Z",
        "-004713-11-24T00:00:00.000Z",
        "+275760-09-13T00:00:00.000Z",
        "-004713-11-24T00:00:00.000Z",
    ];
    assert_eq!(created, wanted);
    for gateway in stack.gateways() {
        assert!(gateway.is_running() && !gateway.logs().contains("panicked"), "{}", gateway.logs());
    }
}

/// Messages of one session, and how long each is.
const LONG: (usize, usize) = (20, 4 * 1024 * 1024);
/// The longest of all, in a session of its own.
const LONGEST: usize = 200 * 1024 * 1024;
/// What an inbox's page of 16 MiB costs while it is read, and written as JSON for an ack and for an event. Two of the
/// messages cost less.
const LONG_COST_MAX_BYTES: u64 = 192 * 1024 * 1024;

const INSERT_LONG: &str = r#"
    WITH s AS (INSERT INTO "ChatSession" ("id", "sessionId") VALUES ('c' || $1, $1) RETURNING "id")
    INSERT INTO "Message" ("id", "sender", "content", "chatSessionId")
    SELECT s."id" || '-' || n, 'user', repeat('x', $2), s."id" FROM s, generate_series(1, $3) n"#;

#[tokio::test]
async fn contents_of_any_length_are_served_and_cost_no_more_than_a_page() {
    let stack = Stack::builder().busy().start().await;
    let long = SessionId::random().to_string();
    insert_long(&stack, &long, LONG).await;
    let gateway = stack.gateway(0);
    let before = gateway.resident_bytes();
    let mut most = before;
    let (count, length) = LONG;
    let path = format!("/api/chats/{long}");
    let forward = format!("?limit={count}&after=c{long}-1");
    let back = format!("?limit={count}&before=c{long}-{count}");
    for (query, left_out) in [(String::new(), 0), (forward, 1), (back, 1)] {
        let (messages, said) = without_x(&stack, &format!("{path}{query}"), &mut most).await;
        assert_eq!(messages.as_array().unwrap().len(), count - left_out, "{query}");
        assert_eq!(said, (count - left_out) * length, "{query}");
    }
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let (sessions, said) = without_x(&stack, "/api/chats", &mut most).await;
    assert_eq!((sessions.as_array().unwrap().len(), said), (1, count * length));
    let history = client.ask("get-messages", json!({ "sessionId": long })).await;
    let newest = history["messages"].as_array().unwrap().iter().map(id_of);
    let wanted = (count - 3..=count).map(|number| format!("c{long}-{number}"));
    assert!(newest.eq(wanted), "as long as a page may be");
    most = most.max(gateway.resident_bytes());
    let grown = (most - before) / 1024 / 1024;
    println!("{count} messages of {} MiB: {grown} MiB more at most", length / 1024 / 1024);
    assert!(most - before < LONG_COST_MAX_BYTES, "{grown} MiB more");

    insert_long(&stack, "longest", (1, LONGEST)).await;
    let (messages, said) = without_x(&stack, "/api/chats/longest", &mut most).await;
    assert_eq!((messages.as_array().unwrap().len(), said), (1, LONGEST));
    assert_eq!(listed(&client).await, 2);
    nobody_failed(&stack);
}

async fn insert_long(stack: &Stack, session: &str, (count, length): (usize, usize)) {
    let insert = sqlx::query(INSERT_LONG).bind(session).bind(i32::try_from(length).unwrap());
    insert.bind(i32::try_from(count).unwrap()).execute(&stack.pool()).await.unwrap();
}

/// What a path answers but for each x, and how many there were; `most` is the most memory that its gateway took.
async fn without_x(stack: &Stack, path: &str, most: &mut u64) -> (Value, usize) {
    let mut answer = stack.http().get(stack.url(path)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    let (mut json, mut all) = (Vec::new(), 0);
    while let Some(bytes) = answer.chunk().await.unwrap() {
        all += bytes.len();
        json.extend(bytes.iter().copied().filter(|byte| *byte != b'x'));
        *most = stack.gateway(0).resident_bytes().max(*most);
    }
    let x_count = all - json.len();
    (serde_json::from_slice(&json).unwrap(), x_count)
}
