//! Gateways read through a pooler that gives each transaction another session of Postgres. Persisters do not, and
//! say so.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tests::{Conversation, JsClients, Pooler, Service, Stack};

const ENDS_WITHIN: Duration = Duration::from_mins(1);
/// More than the pooler has sessions of Postgres.
const READERS: usize = 20;
/// What another program may leave in a session that is not its own.
const SPOILS: &str =
    "SET search_path = nowhere; SET bytea_output = 'escape'; SET DateStyle = 'German'";

/// Why a service does not start: its last line.
async fn refused(service: &Service, database: &str) -> String {
    service.kill();
    service.set_env("DATABASE_URL", database);
    service.spawn();
    let ended = service.exit_status(ENDS_WITHIN).await;
    assert!(!ended.success(), "{}", service.logs());
    service.logs().lines().last().unwrap().to_owned()
}

/// As many sessions as the pooler has, each spoiled.
async fn spoil(pooler: &Pooler) {
    let options: PgConnectOptions = pooler.url().parse().unwrap();
    let options = options.extra_float_digits(None);
    let mut connections = Vec::new();
    for _ in 0..3 {
        let mut connection = options.connect().await.unwrap();
        sqlx::raw_sql("BEGIN").execute(&mut connection).await.unwrap();
        connections.push(connection);
    }
    for mut connection in connections {
        sqlx::raw_sql(SPOILS).execute(&mut connection).await.unwrap();
        sqlx::raw_sql("COMMIT").execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
}

async fn history(stack: &Stack, gateway: usize, session: &str) -> Value {
    let url = stack.gateway(gateway).url(&format!("/api/chats/{session}"));
    let answer = stack.http().get(url).send().await.unwrap();
    assert!(answer.status().is_success(), "{answer:?}");
    answer.json().await.unwrap()
}

#[tokio::test]
async fn a_gateway_serves_through_a_pooler_whose_sessions_are_anybodys() {
    let stack = Stack::builder().gateways(2).services_stopped().start().await;
    let Some(pooler) = Pooler::start(&stack, "transaction", "").await else { return };
    spoil(&pooler).await;
    for gateway in stack.gateways() {
        gateway.set_env(
            "DATABASE_URL",
            &format!("{}?pgbouncer=true&connection_limit=5", pooler.url()),
        );
    }
    stack.persister(0).set_env("DIRECT_URL", stack.database_url());
    stack.persister(0).set_env("DATABASE_URL", &format!("{}?pgbouncer=true", pooler.url()));
    stack.start_services().await;

    let js_clients = JsClients::start().await;
    let here = Conversation::begin(&stack, &js_clients).await;
    let there = Conversation::begin_on(&stack, &js_clients, 1).await;
    here.is_delivered(30).await;
    spoil(&pooler).await;
    there.is_delivered(30).await;
    let sessions = [here.session.clone(), there.session.clone()];
    // Each asks for another thing at the same time: no statement is answered by somebody else's.
    let direct = stack.pool();
    let readers = (0..READERS).map(|number| {
        let (stack, sessions, direct) = (&stack, &sessions, &direct);
        async move {
            for session in sessions {
                let wanted = r#"SELECT m."id" FROM "Message" m JOIN "ChatSession" s ON s."id" = m."chatSessionId"
                                WHERE s."sessionId" = $1 ORDER BY m."seq" LIMIT 10"#;
                let wanted: Vec<String> =
                    sqlx::query_scalar(wanted).bind(session).fetch_all(direct).await.unwrap();
                let read = history(stack, number % 2, session).await;
                let read: Vec<_> =
                    read.as_array().unwrap().iter().map(|message| message["id"].as_str().unwrap()).collect();
                assert_eq!(&read[..wanted.len()], wanted);
            }
        }
    });
    futures_util::future::join_all(readers).await;
    here.end(&stack).await;
    there.end(&stack).await;

    let agent = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    let all = agent.ask("get-all-sessions", json!({})).await;
    assert_eq!(all["sessions"].as_array().unwrap().len(), 2, "{all}");
    let whole = stack.http().get(stack.url("/api/chats")).send().await.unwrap();
    let whole: Value = whole.json().await.unwrap();
    assert_eq!(whole.as_array().unwrap().len(), 2);
    for service in stack.gateways().iter().chain(stack.persisters()) {
        let logs = service.logs();
        assert!(!logs.contains("prepared statement") && !logs.contains("panicked"), "{logs}");
    }
}

#[tokio::test]
async fn a_pooler_that_the_url_does_not_name_is_noticed() {
    let stack = Stack::builder().services_stopped().start().await;
    // The second one is told to pass over what it cannot keep.
    for more in ["", "ignore_startup_parameters = extra_float_digits, options, search_path"] {
        let Some(pooler) = Pooler::start(&stack, "transaction", more).await else { return };
        for service in [stack.gateway(0), stack.persister(0)] {
            let line = refused(service, pooler.url()).await;
            assert!(line.starts_with("DATABASE_URL: "), "{line}");
            assert!(line.contains("pgbouncer=true") && line.contains("DIRECT_URL"), "{line}");
        }
    }
}

#[tokio::test]
async fn what_no_pooler_can_keep_is_refused_with_the_way_around_it() {
    let stack = Stack::builder().services_stopped().start().await;
    let Some(pooler) = Pooler::start(&stack, "statement", "").await else { return };
    let url = format!("{}?pgbouncer=true", pooler.url());
    let line = refused(stack.gateway(0), &url).await;
    assert!(
        line.starts_with("DATABASE_URL: ") && line.contains("pool_mode = transaction"),
        "{line}"
    );
    let line = refused(stack.persister(0), &url).await;
    assert!(line.starts_with("DATABASE_URL: ") && line.contains("DIRECT_URL"), "{line}");
}
