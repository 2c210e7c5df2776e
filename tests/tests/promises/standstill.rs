//! A gateway says when nothing is stored, and goes on taking messages all the same.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::{Client, JsClients, Stack, eventually, is_taken};

/// 10 s, a look every second, and a busy machine.
const TOLD_WITHIN: Duration = Duration::from_secs(40);
const SOON: Duration = Duration::from_secs(20);

struct Chat {
    stack: Stack,
    client: Client,
    session: String,
}

impl Chat {
    async fn begin() -> Self {
        let stack = Stack::start().await;
        let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
        let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
        Self { stack, client, session }
    }

    async fn say(&self) -> Value {
        let message = json!({ "sessionId": self.session, "content": "Hello!" });
        self.client.ask("user_message", message).await
    }

    async fn is_accepted(&self) {
        eventually(SOON, "it is accepted", async || is_taken(&self.say().await)).await;
    }

    /// What `/ready` answers.
    async fn ready(&self) -> (u16, String) {
        let answer = reqwest::get(self.stack.gateway(0).ops_url("/ready")).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn is_ready(&self) -> bool {
        self.ready().await.0 == 200
    }

    /// Nothing is stored, although all that it depends on answers and a balancer sends clients to it.
    async fn is_told_to_stand_still(&self) {
        let mut told = (0, String::new());
        eventually(TOLD_WITHIN, "it says that nothing is stored", async || {
            told = self.ready().await;
            told.1.contains("fault: ")
        })
        .await;
        let (status, text) = told;
        assert_eq!(status, 503);
        assert!(text.starts_with("service: serving\npostgres: ok\nnats: ok\n"), "{text}");
        assert!(text.contains("\nfault: records wait and nothing was stored for 1"), "{text}");
        assert!(is_taken(&self.say().await));
    }
}

#[tokio::test]
async fn a_gateway_without_a_persister_says_so_once_records_wait() {
    let chat = Chat::begin().await;
    chat.is_accepted().await;
    eventually(SOON, "it is shown", async || !chat.client.messages().await.is_empty()).await;
    let persister = chat.stack.persister(0);
    persister.terminate().await;
    // Nothing waits: nobody misses it for longer than a fault takes to be told.
    let begun = tokio::time::Instant::now();
    eventually(TOLD_WITHIN, "that takes long enough", async || {
        let (_, told) = chat.ready().await;
        assert!(!told.contains("fault: "), "{told}");
        begun.elapsed() > Duration::from_secs(13)
    })
    .await;
    chat.is_accepted().await;
    chat.is_told_to_stand_still().await;
    persister.start().await;
    eventually(SOON, "it is ready again", async || chat.is_ready().await).await;
}

#[tokio::test]
async fn a_gateway_says_that_nothing_is_stored_where_a_persister_is_frozen_or_cannot_write() {
    let chat = Chat::begin().await;
    let persister = chat.stack.persister(0);
    persister.pause();
    chat.is_accepted().await;
    chat.is_told_to_stand_still().await;
    persister.resume();
    eventually(SOON, "it is ready again", async || chat.is_ready().await).await;

    let mut holder = PgConnection::connect(chat.stack.database_url()).await.unwrap();
    let mut holding = holder.begin().await.unwrap();
    sqlx::raw_sql(r#"LOCK TABLE "Message" IN EXCLUSIVE MODE"#)
        .execute(&mut *holding)
        .await
        .unwrap();
    chat.is_accepted().await;
    chat.is_told_to_stand_still().await;
    holding.rollback().await.unwrap();
    eventually(SOON, "it is ready again", async || chat.is_ready().await).await;
}
