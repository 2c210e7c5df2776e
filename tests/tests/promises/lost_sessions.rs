//! A session whose opening record is lost is opened by its next message; one that was deleted is not.

use std::time::Duration;

use serde_json::{Value, json};
use shared::ids::{ChatSessionId, SessionId};
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Client, JsClients, Link, Stack, eventually, is_taken};

const SOON: Duration = Duration::from_secs(15);

/// A stack whose persister has not seen the session yet.
struct Lost {
    stack: Stack,
    client: Client,
    session: String,
    subject: String,
}

impl Lost {
    /// The session's opening record is gone before it was stored.
    async fn begin() -> Self {
        let stack = Stack::start().await;
        stack.persister(0).kill();
        let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
        let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
        let jetstream = async_nats::jetstream::new(stack.nats_client().await);
        let log = jetstream.get_stream("CHAT").await.unwrap();
        let opened = log.direct_get_last_for_subject(format!("chat.requests.*.{session}")).await;
        let opened = opened.unwrap();
        log.delete_message(opened.sequence).await.unwrap();
        Self { stack, client, session, subject: opened.subject.to_string() }
    }

    async fn say(&self, content: &str) {
        let message = json!({ "sessionId": self.session, "content": content });
        assert!(is_taken(&self.client.ask("user_message", message).await));
    }

    async fn publish(&self, record: Value) {
        let jetstream = async_nats::jetstream::new(self.stack.nats_client().await);
        let payload = record.to_string().into();
        jetstream.publish(self.subject.clone(), payload).await.unwrap().await.unwrap();
    }

    /// Waits until these are stored, and seen.
    async fn said(&self, contents: &[&str]) {
        eventually(SOON, "it is stored", async || {
            history(&self.stack, &self.session).await == contents
        })
        .await;
        eventually(SOON, "it is seen", async || {
            self.client.messages().await.len() == contents.len()
        })
        .await;
    }

    /// Key, address, browser and age of the session's row.
    async fn row(&self) -> (String, Option<String>, Option<String>, String) {
        let sql = r#"SELECT "id", "ip", "userAgent", "createdAt"::text FROM "ChatSession"
                     WHERE "sessionId" = $1"#;
        sqlx::query_as(sql).bind(&self.session).fetch_one(&self.stack.pool()).await.unwrap()
    }
}

async fn history(stack: &Stack, session: &str) -> Vec<String> {
    let url = stack.url(&format!("/api/chats/{session}"));
    let history = stack.http().get(url).send().await.unwrap().json::<Vec<Value>>().await.unwrap();
    history.iter().map(|message| message["content"].as_str().unwrap().to_owned()).collect()
}

async fn count(pool: &PgPool, table: &str) -> i64 {
    let sql = format!(r#"SELECT count(*) FROM "{table}""#);
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(pool).await.unwrap()
}

fn opening(id: char) -> Value {
    json!({ "session": { "id": format!("c{}", id.to_string().repeat(24)), "ip": "192.0.2.7", "userAgent": "a browser" } })
}

#[tokio::test]
async fn a_message_whose_session_is_missing_opens_it_the_same_each_time() {
    let lost = Lost::begin().await;
    let inbox = JsClients::start().await.client(&lost.stack.url(""), &["websocket"]).await;
    inbox.ask("admin-connect", json!({})).await;
    lost.say("one").await;
    lost.say("two").await;
    lost.stack.persister(0).start().await;
    lost.said(&["one", "two"]).await;
    let derived = ChatSessionId::derived(SessionId::parse(&lost.session).unwrap());
    assert_eq!(lost.row().await.0, derived.as_str());
    eventually(SOON, "the inbox lists it", async || {
        let lists = inbox.seen("sessions-list").await;
        lists.last().is_some_and(|list| list.to_string().contains(&lost.session))
    })
    .await;
    let pool = lost.stack.pool();
    assert_eq!(count(&pool, "DeadLetter").await, 0);

    // Nothing of it is stored: the log gives the same again.
    lost.stack.persister(0).kill();
    let forget = r#"TRUNCATE "Message", "ChatSession"; UPDATE "LogPartition" SET "sequence" = 0, "recordedAt" = NULL"#;
    sqlx::raw_sql(forget).execute(&pool).await.unwrap();
    lost.stack.persister(0).start().await;
    lost.said(&["one", "two"]).await;
    assert_eq!(lost.row().await.0, derived.as_str());
}

#[tokio::test]
async fn an_opening_that_comes_later_adds_what_only_it_knows() {
    let lost = Lost::begin().await;
    lost.say("one").await;
    lost.stack.persister(0).start().await;
    lost.said(&["one"]).await;
    let (id, ip, _, created_at) = lost.row().await;
    assert_eq!(ip, None);
    lost.publish(opening('a')).await;
    lost.say("two").await;
    lost.said(&["one", "two"]).await;
    let filled = (id, Some("192.0.2.7".into()), Some("a browser".into()), created_at);
    assert_eq!(lost.row().await, filled);
    // Once; and not where a session was opened in order.
    let mut other = opening('b');
    other["session"]["ip"] = "192.0.2.8".into();
    lost.publish(other.clone()).await;
    let client = JsClients::start().await.client(&lost.stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    let ordinary = Lost { client, session, ..lost };
    ordinary.say("hello").await;
    ordinary.said(&["hello"]).await;
    let sql = r#"UPDATE "ChatSession" SET "ip" = NULL, "userAgent" = NULL WHERE "sessionId" = $1"#;
    sqlx::query(sql).bind(&ordinary.session).execute(&ordinary.stack.pool()).await.unwrap();
    let jetstream = async_nats::jetstream::new(ordinary.stack.nats_client().await);
    let log = jetstream.get_stream("CHAT").await.unwrap();
    let subject = format!("chat.requests.*.{}", ordinary.session);
    let subject = log.direct_get_last_for_subject(subject).await.unwrap().subject.to_string();
    let ordinary = Lost { subject, ..ordinary };
    ordinary.publish(other).await;
    ordinary.say("again").await;
    ordinary.said(&["hello", "again"]).await;
    assert_eq!(ordinary.row().await.1, None);
    let sql = r#"SELECT count(*) FROM "ChatSession" WHERE "ip" = '192.0.2.7'"#;
    let left: i64 = sqlx::query_scalar(sql).fetch_one(&ordinary.stack.pool()).await.unwrap();
    assert_eq!(left, 1);
}

#[tokio::test]
async fn a_message_between_the_loss_and_a_new_opening_is_stored_in_one_batch_with_it() {
    let lost = Lost::begin().await;
    lost.say("before").await;
    lost.publish(opening('a')).await;
    lost.say("behind").await;
    // The same key is another session's.
    let other = lost.subject.replace(&lost.session, "33333333-3333-4333-8333-333333333333");
    let taken = Lost { subject: other.clone(), ..lost };
    taken.publish(opening('a')).await;
    let message = json!({ "message": { "id": format!("c{}", "m".repeat(24)), "sender": "user", "content": "mine" } });
    taken.publish(message).await;
    taken.stack.persister(0).start().await;
    taken.said(&["before", "behind"]).await;
    assert_eq!(taken.row().await.1.as_deref(), Some("192.0.2.7"));
    eventually(SOON, "so is the other's", async || {
        history(&taken.stack, "33333333-3333-4333-8333-333333333333").await == ["mine"]
    })
    .await;
    assert_eq!(count(&taken.stack.pool(), "DeadLetter").await, 0);
}

/// As a Prisma client with rights on its own two tables deletes.
async fn delete_as_prisma(pool: &PgPool, session: &str) {
    let role = format!("prisma_{}", SessionId::random().short());
    let mut connection = pool.acquire().await.unwrap();
    let statements = [
        format!("CREATE ROLE {role}"),
        format!(r#"GRANT SELECT, INSERT, UPDATE, DELETE ON "ChatSession", "Message" TO {role}"#),
        format!("SET ROLE {role}"),
        format!(
            r#"DELETE FROM "Message" WHERE "chatSessionId" IN
               (SELECT "id" FROM "ChatSession" WHERE "sessionId" = '{session}')"#
        ),
        format!(r#"DELETE FROM "ChatSession" WHERE "sessionId" = '{session}'"#),
        "RESET ROLE".to_owned(),
        format!("DROP OWNED BY {role}; DROP ROLE {role}"),
    ];
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await.unwrap();
    }
}

#[tokio::test]
async fn a_session_that_was_deleted_by_sql_is_not_opened_again() {
    let stack = Stack::start().await;
    let pool = stack.pool();
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    let send = json!({ "sessionId": session, "content": "hello" });
    assert!(is_taken(&client.ask("user_message", send.clone()).await));
    eventually(SOON, "it is stored", async || history(&stack, &session).await == ["hello"]).await;
    delete_as_prisma(&pool, &session).await;
    let digest = SessionId::parse(&session).unwrap().digest();
    let known = r#"SELECT count(*) FROM "ErasedSession" WHERE "digest" = $1"#;
    let known: i64 =
        sqlx::query_scalar(known).bind(digest.as_bytes()).fetch_one(&pool).await.unwrap();
    assert_eq!(known, 1);

    // Its gateway does not know yet.
    client.ask("user_message", send.clone()).await;
    eventually(SOON, "it is refused", async || {
        client.ask("user_message", send.clone()).await["error"]["code"] == "session_not_found"
    })
    .await;
    for table in ["ChatSession", "Message", "DeadLetter"] {
        assert_eq!(count(&pool, table).await, 0, "{table}");
    }
    assert!(!stack.persister(0).logs().contains("opened by its message"));
}

#[tokio::test]
async fn a_deleted_session_is_remembered_by_the_id_that_stands_in_its_records() {
    let stack = Stack::start().await;
    let pool = stack.pool();
    let canonical = SessionId::random().to_string();
    let odd = ["visitor 7", "", "ü/ñ", &canonical.to_uppercase(), &canonical];
    for session in odd {
        let insert = r#"INSERT INTO "ChatSession" ("id", "sessionId") VALUES ('c' || md5($1), $1)"#;
        sqlx::query(insert).bind(session).execute(&pool).await.unwrap();
        let delete = r#"DELETE FROM "ChatSession" WHERE "sessionId" = $1"#;
        sqlx::query(delete).bind(session).execute(&pool).await.unwrap();
        let known = r#"SELECT count(*) FROM "ErasedSession" WHERE "digest" = $1"#;
        let digest = SessionId::standing_for(session).digest();
        let known: i64 =
            sqlx::query_scalar(known).bind(digest.as_bytes()).fetch_one(&pool).await.unwrap();
        assert_eq!(known, 1, "{session}");
    }
    assert_eq!(count(&pool, "ErasedSession").await, 5);
}

#[tokio::test]
async fn a_session_that_goes_from_the_log_to_postgres_while_it_is_looked_up_is_known() {
    let stack = Stack::builder().proxy(Link::GatewayNats).start().await;
    let pool = stack.pool();
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    client.stay(None).await;
    let session = SessionId::random().to_string();
    let begun: String = sqlx::query_scalar("SELECT now()::text").fetch_one(&pool).await.unwrap();
    stack.proxy(Link::GatewayNats, 0).freeze();
    let joining = client.ask("init_session", json!({ "sessionId": session }));
    let stored = async {
        // Postgres has said that there is no such session; the log has not been heard of.
        let asked = r#"SELECT EXISTS (
            SELECT FROM pg_stat_activity
            WHERE "datname" = current_database() AND "state" = 'idle' AND "query" LIKE '%"ErasedSession"%'
                AND "query" LIKE '%"sessionId"%' AND "query_start" > $1::timestamptz AND "pid" <> pg_backend_pid()
                AND "application_name" LIKE '%gateway%')"#;
        eventually(SOON, "the gateway has asked Postgres", async || {
            sqlx::query_scalar(asked).bind(&begun).fetch_one(&pool).await.unwrap()
        })
        .await;
        let insert = r#"INSERT INTO "ChatSession" ("id", "sessionId") VALUES ($1, $2)"#;
        let id = ChatSessionId::random().as_str().to_owned();
        sqlx::query(insert).bind(id).bind(&session).execute(&pool).await.unwrap();
        stack.proxy(Link::GatewayNats, 0).mend();
    };
    let (joined, ()) = tokio::join!(joining, stored);
    assert_eq!(
        (&joined["sessionId"], &joined["resumed"]),
        (&json!(session), &json!(true)),
        "{joined}"
    );
}
