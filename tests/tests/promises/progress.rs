//! What the persister's readiness says although Postgres and NATS answer: nothing is stored, or what is stored
//! may be lost.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tests::{JsClients, Service, Stack, eventually, is_taken};

const SOON: Duration = Duration::from_secs(30);

async fn ready(service: &Service) -> (u16, String) {
    let answer = reqwest::get(service.ops_url("/ready")).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn metric(service: &Service, name: &str) -> String {
    let metrics = reqwest::get(service.ops_url("/metrics")).await.unwrap().text().await.unwrap();
    let line = metrics.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.unwrap().rsplit(' ').next().unwrap().to_owned()
}

async fn is_stored(stack: &Stack, session: &Value, contents: &[&str]) {
    let url = stack.url(&format!("/api/chats/{}", session.as_str().unwrap()));
    eventually(SOON, &format!("stored: {contents:?}"), async || {
        let history = stack.http().get(&url).send().await.unwrap().json::<Vec<Value>>().await;
        let history = history.unwrap_or_default();
        history
            .iter()
            .map(|message| message["content"].as_str().unwrap())
            .eq(contents.iter().copied())
    })
    .await;
}

#[tokio::test]
async fn records_that_wait_while_nothing_is_stored_make_a_persister_unready() {
    let stack = Stack::start().await;
    let pool = stack.pool();
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].clone();
    let mut said = Vec::new();
    // The log is not read; no partition is anybody's.
    for column in ["headSequence", "leaseUntil"] {
        stack.persister(0).kill();
        let rename = |from: &str, to: &str| {
            AssertSqlSafe(format!(r#"ALTER TABLE "LogPartition" RENAME COLUMN "{from}" TO "{to}""#))
        };
        sqlx::query(rename(column, "gone")).execute(&pool).await.unwrap();
        let message = json!({ "sessionId": session, "content": column });
        assert!(is_taken(&client.ask("user_message", message).await));
        said.push(column);
        stack.persister(0).spawn();
        let mut answer = String::new();
        eventually(SOON, "it is not ready and says why", async || {
            let Ok(asked) = reqwest::get(stack.persister(0).ops_url("/ready")).await else {
                return false;
            };
            let status = asked.status().as_u16();
            answer = asked.text().await.unwrap();
            status == 503 && answer.contains("fault: records wait and nothing was stored for")
        })
        .await;
        assert!(answer.contains("postgres: ok\nnats: ok\n"), "{answer}");
        eventually(SOON, "it is measured", async || {
            metric(stack.persister(0), "chat_persister_stalled").await == "1"
        })
        .await;
        sqlx::query(rename("gone", column)).execute(&pool).await.unwrap();
        stack.persister(0).ready().await;
        is_stored(&stack, &session, &said).await;
        assert!(!ready(stack.persister(0)).await.1.contains("fault"));
    }
}

#[tokio::test]
async fn a_postgres_that_does_not_sync_is_told_and_keeps_nobody_from_the_work() {
    let (lazy, durable) =
        tokio::join!(Stack::builder().own_postgres().start(), Stack::builder().durable().start());
    let (status, answer) = ready(lazy.persister(0)).await;
    assert!(
        status == 200 && answer.contains("warning: Postgres runs with fsync = off"),
        "{answer}"
    );
    assert_eq!(metric(lazy.persister(0), "chat_persister_postgres_fsync").await, "0");
    assert!(lazy.persister(0).logs().contains("Postgres runs with fsync = off"));
    let (status, answer) = ready(durable.persister(0)).await;
    assert!(status == 200 && !answer.contains("warning"), "{answer}");
    assert_eq!(metric(durable.persister(0), "chat_persister_postgres_fsync").await, "1");
    assert!(!durable.persister(0).logs().contains("fsync"));
}

/// Has each message say how it is committed.
const TELLS: &str = r#"
    CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW."content" := current_setting('synchronous_commit'); RETURN NEW; END $$;
    CREATE TRIGGER tell BEFORE INSERT ON "Message" FOR EACH ROW EXECUTE FUNCTION tell()"#;

#[tokio::test]
async fn commits_wait_for_the_disk_whatever_the_database_says() {
    let stack = Stack::builder().services_stopped().start().await;
    let pool = stack.pool();
    sqlx::raw_sql(TELLS).execute(&pool).await.unwrap();
    let name: String =
        sqlx::query_scalar("SELECT current_database()::text").fetch_one(&pool).await.unwrap();
    let off = format!("ALTER DATABASE {name} SET synchronous_commit = off");
    sqlx::query(AssertSqlSafe(off)).execute(&pool).await.unwrap();
    stack.start_services().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].clone();
    let message = json!({ "sessionId": session, "content": "how?" });
    assert!(is_taken(&client.ask("user_message", message).await));
    is_stored(&stack, &session, &["on"]).await;
}
