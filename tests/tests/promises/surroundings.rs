//! What is there already: databases, schemas and streams of others are looked at when a service starts. What cannot
//! work is refused in one line that says how it could.

use std::time::Duration;

use async_nats::jetstream::{self, stream::Config};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Conversation, JsClients, Service, Stack};
use tokio::process::Command;
use url::Url;

const INIT: &str = include_str!("../../fixtures/20251212153812_init.sql");
/// A session as the Node server left it.
const CHAT: &str = r#"
    INSERT INTO "ChatSession" ("id", "sessionId") VALUES ('c1', '550e8400-e29b-41d4-a716-446655440000');
    INSERT INTO "Message" ("id", "sender", "content", "chatSessionId") VALUES ('m1', 'user', 'was there', 'c1')"#;
const ENDS_WITHIN: Duration = Duration::from_mins(1);

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

/// A role, with the password of the one that the stack has, and a schema of its own name.
async fn make_role(stack: &Stack, pool: &PgPool) {
    let url = Url::parse(stack.database_url()).unwrap();
    let role = format!(
        "CREATE ROLE shop LOGIN SUPERUSER PASSWORD '{}'; CREATE SCHEMA shop AUTHORIZATION shop",
        url.password().unwrap_or_default()
    );
    execute(pool, &role).await;
}

/// The URL for another role, database or parameters.
fn url(stack: &Stack, change: impl FnOnce(&mut Url)) -> String {
    let mut url = Url::parse(stack.database_url()).unwrap();
    change(&mut url);
    url.into()
}

/// Why each of these services does not start: its last line.
async fn refused(services: &[&Service]) -> Vec<String> {
    let mut lines = Vec::new();
    for service in services {
        service.kill();
        let before = service.logs().len();
        service.spawn();
        let ended = service.exit_status(ENDS_WITHIN).await;
        let logs = service.logs();
        assert!(!ended.success() && !logs.contains("panicked"), "{logs}");
        lines.push(logs[before..].lines().last().unwrap().to_owned());
    }
    lines
}

fn set(stack: &Stack, name: &str, value: &str) {
    for service in [stack.gateway(0), stack.persister(0)] {
        service.kill();
        service.set_env(name, value);
    }
}

async fn contents(stack: &Stack) -> Vec<String> {
    let chats = stack.http().get(stack.url("/api/chats")).send().await.unwrap();
    let chats: serde_json::Value = chats.json().await.unwrap();
    let messages =
        chats.as_array().unwrap().iter().flat_map(|chat| chat["messages"].as_array().unwrap());
    messages.map(|message| message["content"].as_str().unwrap().to_owned()).collect()
}

/// As Prisma does: its tables are in `public` where nothing else is said, whoever comes.
#[tokio::test]
async fn a_role_with_a_schema_of_its_own_name_finds_prismas_tables_where_they_are() {
    for parameters in [None, Some("schema=public"), Some("schema=Shop&connect_timeout=9")] {
        let builder = Stack::builder().own_postgres().empty_database().services_stopped();
        let stack = builder.start().await;
        let pool = stack.pool();
        make_role(&stack, &pool).await;
        let other = parameters.is_some_and(|parameters| parameters.contains("Shop"));
        if other {
            execute(&pool, r#"CREATE SCHEMA "Shop""#).await;
        }
        let place = if other { r#"SET LOCAL search_path = "Shop";"# } else { "" };
        execute(&pool, &format!("BEGIN; {place} {INIT}; {CHAT}; COMMIT")).await;
        let role = url(&stack, |url| {
            url.set_username("shop").unwrap();
            url.set_query(parameters);
        });
        set(&stack, "DATABASE_URL", &role);
        stack.start_services().await;
        assert_eq!(contents(&stack).await, ["was there"], "{parameters:?}");
        let empty = "SELECT NOT EXISTS (SELECT FROM pg_tables WHERE schemaname = 'shop')";
        assert!(sqlx::query_scalar::<_, bool>(empty).fetch_one(&pool).await.unwrap());
    }
}

/// Before, the tables went into the role's schema where the URL named none, or `public`.
#[tokio::test]
async fn tables_in_the_schema_of_the_role_are_not_left_alone_in_silence() {
    let stack = Stack::builder().own_postgres().services_stopped().start().await;
    let pool = stack.pool();
    make_role(&stack, &pool).await;
    let with = |query: Option<&str>| {
        url(&stack, |url| {
            url.set_username("shop").unwrap();
            url.set_query(query);
        })
    };
    set(&stack, "DATABASE_URL", &with(Some("schema=shop")));
    stack.start_services().await;
    set(&stack, "DATABASE_URL", &with(None));
    for line in refused(&[stack.persister(0), stack.gateway(0)]).await {
        assert!(line.contains("DATABASE_URL") && line.contains("schema=shop"), "{line}");
    }
    set(&stack, "DATABASE_URL", &with(Some("schema=public")));
    stack.start_services().await;
}

#[tokio::test]
async fn a_database_that_cannot_hold_every_text_is_refused_with_its_encoding() {
    let stack = Stack::builder().own_postgres().services_stopped().start().await;
    let pool = stack.pool();
    for encoding in ["LATIN1", "SQL_ASCII", "WIN1251", "EUC_JP"] {
        let name = encoding.to_lowercase();
        let create = format!(
            "CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        );
        execute(&pool, &create).await;
        set(&stack, "DATABASE_URL", &url(&stack, |url| url.set_path(&name)));
        for line in refused(&[stack.persister(0), stack.gateway(0)]).await {
            assert!(line.starts_with("DATABASE_URL: ") && line.contains(encoding), "{line}");
            assert!(line.contains("ENCODING 'UTF8'"), "{line}");
        }
    }
    let other = url(&stack, |url| url.set_path("latin1"));
    let output = persister(&stack, &["migrate"], &[("DATABASE_URL", &other)]).await;
    assert!(output.contains("LATIN1") && output.lines().count() == 1, "{output}");
}

/// What a command of the persister says of what is wrong.
async fn persister(stack: &Stack, args: &[&str], env: &[(&str, &str)]) -> String {
    let program = tokio::task::spawn_blocking(|| tests::program("persister")).await.unwrap();
    let mut command = Command::new(program);
    command.args(args).env_clear().current_dir(std::env::temp_dir()).kill_on_drop(true);
    command.env("DATABASE_URL", stack.database_url()).env("NATS_URL", stack.nats().url());
    command.envs(env.iter().copied());
    let output = tokio::time::timeout(ENDS_WITHIN, command.output()).await.unwrap().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

/// Streams of others: by name, by what they take, and one that only looks like ours.
#[tokio::test]
async fn a_stream_of_somebody_else_is_told_of_and_left_alone() {
    let stack = Stack::builder().services_stopped().start().await;
    let jetstream = jetstream::new(stack.nats_client().await);
    let theirs = |name: &str, subject: &str| Config {
        name: name.into(),
        subjects: vec![subject.into()],
        description: Some("Orders of the shop".into()),
        ..Config::default()
    };
    let services = [stack.persister(0), stack.gateway(0)];
    for subject in ["shop.orders.>", "chat.requests.*.*"] {
        jetstream.create_stream(theirs("CHAT", subject)).await.unwrap();
        for line in refused(&services).await {
            for word in ["CHAT", subject, "Orders of the shop", "LOG_STREAM"] {
                assert!(line.contains(word), "{word}: {line}");
            }
            assert!(!line.contains("delete"), "{line}");
        }
        let told = persister(&stack, &["sessions", "export", "x"], &[]).await;
        assert!(told.contains("LOG_STREAM") && !told.contains("delete"), "{told}");
        jetstream.delete_stream("CHAT").await.unwrap();
    }
    jetstream.create_stream(theirs("ORDERS", "chat.>")).await.unwrap();
    for line in refused(&services).await {
        for word in ["ORDERS", "chat.requests", "Orders of the shop", "account"] {
            assert!(line.contains(word), "{word}: {line}");
        }
        assert!(!line.contains("delete"), "{line}");
    }
    jetstream.delete_stream("ORDERS").await.unwrap();

    let mut stream = jetstream.create_stream(theirs("CHAT", "shop.orders.>")).await.unwrap();
    set(&stack, "LOG_STREAM", "SUPPORT");
    stack.start_services().await;
    let js_clients = JsClients::start().await;
    let conversation = Conversation::begin(&stack, &js_clients).await;
    conversation.is_delivered(20).await;
    conversation.end(&stack).await;
    let info = jetstream.get_stream("SUPPORT").await.unwrap().get_info().await.unwrap();
    assert_ne!(info.state.messages, 0);
    assert_eq!(stream.info().await.unwrap().state.messages, 0);
    let client = js_clients.client(&stack.url(""), &["websocket"]).await;
    let session = client.ask("init_session", json!({})).await["sessionId"].clone();
    let args = ["sessions", "erase", session.as_str().unwrap()];
    let told = persister(&stack, &args, &[("LOG_STREAM", "SUPPORT")]).await;
    assert_eq!(told, "", "an erasure is stored by its place in the log");
}
