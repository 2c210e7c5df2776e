//! The inbox of an agent: what it shows, wherever it happens. The public admin page's flow stands in
//! `tests/client`.

use std::time::Duration;

use serde_json::{Value, json};
use shared::timestamp::Timestamp;
use sqlx::PgPool;
use tests::{Client, JsClients, Link, Stack, eventually, is_taken};

/// From a visitor's coming or going until every inbox shows it.
const PRESENT_WITHIN: Duration = Duration::from_secs(2);
/// Socket.IO's `pingTimeout`.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Socket.IO's `pingInterval`: when a ping is sent that a lost client does not answer.
const PING_INTERVAL: Duration = Duration::from_secs(25);
const SOON: Duration = Duration::from_secs(10);
/// A client that does not read.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_public_admin_page_works_and_hears_of_what_happens_on_another_gateway() {
    let zone = "Asia/Kolkata";
    let stack = Stack::builder().gateways(2).gateway_env("INBOX_TZ", zone).start().await;
    stack.node_test("inbox.test.mjs", &[("INBOX_TZ", zone)]).await;
    assert!(!stack.gateway(0).logs().contains("panicked"), "{}", stack.gateway(0).logs());
    assert!(!stack.gateway(1).logs().contains("panicked"), "{}", stack.gateway(1).logs());
}

/// The active sessions that an inbox was shown last.
async fn shown(inbox: &Client) -> Vec<String> {
    let lists = inbox.seen("sessions-list").await;
    let last = lists.last().and_then(Value::as_array).cloned().unwrap_or_default();
    last.iter().map(|session| session["sessionId"].as_str().unwrap().to_owned()).collect()
}

async fn shows(inbox: &Client, within: Duration, session: &str, active: bool) {
    let what = format!("an inbox shows that a visitor {}", if active { "came" } else { "left" });
    eventually(within, &what, async || shown(inbox).await.contains(&session.to_owned()) == active)
        .await;
}

/// An inbox on one gateway and a visitor on another, which the inbox shows.
async fn inbox_and_visitor(
    stack: &Stack,
    (inbox, visitor): (usize, usize),
) -> (Client, Client, String) {
    let js_clients = JsClients::start().await;
    let inbox = js_clients.client(&stack.gateway(inbox).url(""), &["websocket"]).await;
    inbox.ask("admin-connect", Value::Null).await;
    let visitor = js_clients.client(&stack.gateway(visitor).url(""), &["websocket"]).await;
    let session = visitor.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    shows(&inbox, SOON, &session, true).await;
    (inbox, visitor, session)
}

#[tokio::test]
async fn visitors_of_a_gateway_that_was_killed_are_gone_within_a_ping_timeout() {
    let stack = Stack::builder().gateways(2).start().await;
    let (inbox, visitor, session) = inbox_and_visitor(&stack, (1, 0)).await;
    stack.gateway(0).kill();
    shows(&inbox, PING_TIMEOUT, &session, false).await;
    // The visitor comes back by itself.
    stack.gateway(0).start().await;
    visitor.connected().await;
    shows(&inbox, SOON, &session, true).await;
    // A graceful stop says farewell.
    stack.gateway(0).terminate().await;
    shows(&inbox, PRESENT_WITHIN, &session, false).await;
}

#[tokio::test]
async fn a_gateway_that_starts_later_knows_every_visitor() {
    let stack = Stack::builder().gateways(2).services_stopped().start().await;
    stack.persister(0).start().await;
    stack.gateway(0).start().await;
    let visitor = JsClients::start().await.client(&stack.gateway(0).url(""), &["websocket"]).await;
    let session = visitor.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    stack.gateway(1).start().await;
    let inbox = JsClients::start().await.client(&stack.gateway(1).url(""), &["polling"]).await;
    inbox.ask("admin-connect", Value::Null).await;
    shows(&inbox, PRESENT_WITHIN, &session, true).await;
}

#[tokio::test]
async fn a_gateway_that_lost_nats_is_right_again_when_it_is_back() {
    let stack = Stack::builder().gateways(2).proxy(Link::GatewayNats).start().await;
    let (inbox, visitor, session) = inbox_and_visitor(&stack, (1, 0)).await;
    stack.proxy(Link::GatewayNats, 0).cut();
    shows(&inbox, PING_TIMEOUT, &session, false).await;
    stack.proxy(Link::GatewayNats, 0).mend();
    shows(&inbox, SOON, &session, true).await;
    // What happens while it is cut off is known afterwards.
    stack.proxy(Link::GatewayNats, 1).cut();
    visitor.disconnect().await;
    stack.proxy(Link::GatewayNats, 1).mend();
    shows(&inbox, SOON, &session, false).await;
}

#[tokio::test]
async fn a_visitor_that_vanished_is_gone_within_a_ping_and_its_timeout() {
    let stack = Stack::builder().gateways(2).start().await;
    let js_clients = JsClients::start().await;
    let inbox = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    inbox.ask("admin-connect", Value::Null).await;
    // The client notices too, and connects again, but not to this session.
    let visitor = js_clients.client(&stack.gateway(0).url(""), &["websocket"]).await;
    let ack = visitor.ask("init_session", json!({})).await;
    let session = ack["sessionId"].as_str().unwrap().to_owned();
    shows(&inbox, PRESENT_WITHIN, &session, true).await;
    visitor.stop_reading().await;
    shows(&inbox, PING_INTERVAL + PING_TIMEOUT + PRESENT_WITHIN, &session, false).await;
}

#[tokio::test]
async fn an_inbox_that_does_not_read_holds_nobody_up_and_is_cut_off() {
    let stack = Stack::builder().busy().gateway_env("RUST_LOG", "info,gateway=debug").start().await;
    let (inbox, visitor, session) = inbox_and_visitor(&stack, (0, 0)).await;
    inbox.stop_reading().await;
    let payload = json!({ "sessionId": session, "content": "x".repeat(7_000) });
    let start = tokio::time::Instant::now();
    let mut said = 0;
    // Either its buffer is full, or the kernel waited long enough for it to read.
    while !stack.gateway(0).logs().contains("client disconnected") {
        let acks = visitor.burst("user_message", vec![payload.clone(); 500]).await;
        assert!(acks.iter().all(is_taken), "the visitor waits");
        said += acks.len();
        assert!(start.elapsed() < CUT_OFF_WITHIN, "not cut off after {said} messages");
    }
    eventually(SOON, "the visitor has everything", async || visitor.count("message").await == said)
        .await;
    inbox.go_on_reading().await;
    eventually(CUT_OFF_WITHIN, "it comes back", async || inbox.count("connect").await > 1).await;
}

#[tokio::test]
async fn more_active_sessions_than_a_list_holds_are_all_in_the_other_list() {
    const SESSIONS: usize = 520;
    let stack = Stack::builder().gateways(2).start().await;
    let js_clients = JsClients::start().await;
    let inbox = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    let visitor = js_clients.client(&stack.gateway(0).url(""), &["websocket"]).await;
    let mut opened = Vec::new();
    while opened.len() < SESSIONS {
        let acks = visitor.burst("init_session", vec![json!({}); 40]).await;
        let ids = acks.iter().filter(|ack| ack["error"].is_null());
        opened.extend(ids.map(|ack| ack["sessionId"].clone()));
    }
    eventually(SOON, "all are active on the other gateway", async || {
        let all = inbox.ask("get-all-sessions", Value::Null).await;
        let active = all["sessions"].as_array().unwrap().clone();
        let active = active.iter().filter(|session| session["isActive"] == true);
        active.count() == opened.len()
    })
    .await;
    let list = inbox.ask("get-sessions", Value::Null).await["sessions"].clone();
    assert_eq!(list.as_array().unwrap().len(), 500);
    // What happened last comes first.
    let said = json!({ "sessionId": opened[0], "content": "hello" });
    visitor.ask("user_message", said).await;
    eventually(SOON, "it comes first", async || {
        let list = inbox.ask("get-sessions", Value::Null).await;
        list["sessions"][0]["sessionId"] == opened[0]
    })
    .await;
}

/// Makes so many sessions with two messages each, the oldest first.
async fn fill(pool: &PgPool, sessions: i32) {
    let fill = r#"
        WITH made AS (
            INSERT INTO "ChatSession" ("id", "sessionId", "createdAt")
            SELECT 's' || n, gen_random_uuid(), timestamp '2024-01-01' + n * interval '1 second'
            FROM generate_series(1, $1) n RETURNING "id"
        )
        INSERT INTO "Message" ("id", "sender", "content", "chatSessionId")
        SELECT "id" || '-' || n, 'user', 'hello', "id" FROM made, generate_series(1, 2) n"#;
    sqlx::query(fill).bind(sessions).execute(pool).await.unwrap();
    sqlx::raw_sql(r#"ANALYZE "ChatSession", "Message""#).execute(pool).await.unwrap();
}

#[tokio::test]
async fn a_list_costs_the_same_with_200_000_sessions_as_with_200() {
    let mut costs = Vec::new();
    for sessions in [200, 200_000] {
        let stack = Stack::builder().services_stopped().start().await;
        let pool = stack.pool();
        fill(&pool, sessions).await;
        let some = r#"SELECT "sessionId" FROM "ChatSession" ORDER BY random() LIMIT 100"#;
        let some: Vec<String> = sqlx::query_scalar(some).fetch_all(&pool).await.unwrap();
        let active =
            Plan::of(&pool, &gateway::db::history::LISTED, |query| query.bind(51).bind(some)).await;
        let newest = Plan::of(&pool, &gateway::db::history::NEWEST, |query| {
            query.bind(51).bind(None::<Timestamp>).bind("").bind(201_i64)
        })
        .await;
        costs.push((sessions, active, newest));
    }
    let [(_, few_active, few_newest), (_, many_active, many_newest)] = &costs[..] else {
        panic!("two databases")
    };
    let returned =
        [few_active, many_active, few_newest, many_newest].map(|plan| plan.returned.to_string());
    assert_eq!(returned, ["100", "100", "200", "201"], "{costs:?}");
    assert!(
        many_active.whole_tables.is_empty() && many_newest.whole_tables.is_empty(),
        "{costs:?}"
    );
    // Some rows of slack: a page of 201 is one longer than all of 200.
    assert!(many_active.rows <= few_active.rows, "{costs:?}");
    assert!(many_newest.rows <= few_newest.rows + 10.0, "{costs:?}");
}

/// What a statement did.
#[derive(Debug)]
struct Plan {
    returned: f64,
    /// Rows that its parts read or passed on; since Postgres 18 they are told with decimals.
    rows: f64,
    /// Tables that it read as a whole.
    whole_tables: Vec<String>,
}

type Explain<'q> = sqlx::query::QueryScalar<'q, sqlx::Postgres, Value, sqlx::postgres::PgArguments>;

impl Plan {
    async fn of(pool: &PgPool, sql: &str, bind: impl FnOnce(Explain<'_>) -> Explain<'_>) -> Self {
        let explain = format!("EXPLAIN (ANALYZE, FORMAT JSON) {sql}");
        let query = bind(sqlx::query_scalar(sqlx::AssertSqlSafe(explain)));
        let plan: Value = query.fetch_one(pool).await.unwrap();
        let root = &plan[0]["Plan"];
        let mut plan = Self { returned: 0.0, rows: 0.0, whole_tables: Vec::new() };
        plan.returned = root["Actual Rows"].as_f64().unwrap();
        plan.walk(root);
        plan
    }

    fn walk(&mut self, node: &Value) {
        let number = |key: &str| node[key].as_f64().unwrap_or_default();
        let read = number("Actual Rows") + number("Rows Removed by Filter");
        self.rows += read * number("Actual Loops");
        if node["Node Type"] == "Seq Scan" {
            self.whole_tables.extend(node["Relation Name"].as_str().map(str::to_owned));
        }
        node["Plans"].as_array().into_iter().flatten().for_each(|child| self.walk(child));
    }
}
