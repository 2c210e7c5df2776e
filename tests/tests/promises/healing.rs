//! A connected client never misses a saved message, whatever was not announced.

use std::time::Duration;

use futures_util::TryStreamExt;
use serde_json::{Value, json};
use shared::announcement::{Epoch, Position};
use shared::ids::SessionId;
use shared::partition::{Partition, PartitionCount};
use tests::{Client, Conversation, JsClients, Link, Stack, announcing, eventually, is_taken};
use time::OffsetDateTime;

/// Delivery resumes within this time after NATS is back.
const RESUMES_WITHIN: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(10);

async fn sees(client: &Client, within: Duration, count: usize) {
    let what = format!("a client sees {count} messages");
    eventually(within, &what, async || client.count("message").await >= count).await;
}

/// A visitor on the first gateway and an agent on the second.
async fn visitor_and_agent(stack: &Stack) -> (Client, Client, String) {
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.gateway(0).url(""), &["websocket"]).await;
    let agent = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    let session = visitor.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    agent.stay(Some(&session)).await;
    (visitor, agent, session)
}

async fn say(client: &Client, session: &str, count: usize) {
    let payloads = (0..count).map(|n| json!({ "sessionId": session, "content": format!("{n}") }));
    let acks = client.burst("admin_message", payloads.collect()).await;
    assert!(acks.iter().all(is_taken), "{acks:?}");
}

#[tokio::test]
async fn a_gateway_that_lost_nats_emits_what_was_saved_meanwhile() {
    let stack = Stack::builder().gateways(2).proxy(Link::GatewayNats).start().await;
    let (visitor, agent, session) = visitor_and_agent(&stack).await;
    say(&agent, &session, 3).await;
    sees(&visitor, SOON, 3).await;
    for round in 1..=3 {
        stack.proxy(Link::GatewayNats, 0).cut();
        say(&agent, &session, 700).await;
        sees(&agent, SOON, 3 + round * 700).await;
        stack.proxy(Link::GatewayNats, 0).mend();
        sees(&visitor, RESUMES_WITHIN, 3 + round * 700).await;
    }
    assert_eq!(visitor.messages().await, agent.messages().await);
}

/// Until a persister asks for the log anew of which it is given nothing, and for what waits in it.
const ASKS_ANEW_WITHIN: Duration = Duration::from_secs(15);

/// As one does that lives on a server of a cluster that never gets what the others have: it sends heartbeats, and no
/// records.
#[tokio::test]
async fn a_consumer_that_gives_nothing_though_records_wait_is_made_anew() {
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    say(&client, &session, 1).await;
    sees(&client, SOON, 1).await;
    let log = async_nats::jetstream::new(stack.nats_client().await);
    let log = log.get_stream(shared::log::STREAM).await.unwrap();
    let consumers: Vec<_> = log.consumer_names().try_collect().await.unwrap();
    let until = OffsetDateTime::now_utc() + Duration::from_hours(1);
    // Of a term that ended there may be one that nobody reads.
    for consumer in consumers {
        assert!(log.pause_consumer(&consumer, until).await.unwrap().paused);
    }
    say(&client, &session, 3).await;
    sees(&client, ASKS_ANEW_WITHIN, 4).await;
    assert!(stack.persister(0).logs().contains("records wait that the log does not give"));
}

#[tokio::test]
async fn what_a_writer_stored_and_did_not_announce_is_emitted() {
    let stack = Stack::builder().gateways(2).start().await;
    let (visitor, agent, session) = visitor_and_agent(&stack).await;
    say(&agent, &session, 1).await;
    sees(&visitor, SOON, 1).await;
    stack.persister(0).terminate().await;
    say(&agent, &session, 1).await;
    store_without_a_word(&stack, &session).await;
    stack.persister(0).start().await;
    sees(&visitor, RESUMES_WITHIN, 2).await;
    say(&agent, &session, 1).await;
    sees(&visitor, SOON, 3).await;
    sees(&agent, SOON, 3).await;
    assert_eq!(visitor.messages().await, agent.messages().await);
}

/// Commits the log's last record as a persister does that dies before it announces.
async fn store_without_a_word(stack: &Stack, session: &str) {
    let log =
        async_nats::jetstream::new(stack.nats_client().await).get_stream("CHAT").await.unwrap();
    let subject = format!("chat.requests.*.{session}");
    let record = log.direct_get_last_for_subject(subject).await.unwrap();
    let message: serde_json::Value = serde_json::from_slice(&record.payload).unwrap();
    let commit = r#"
        WITH moved AS (
            UPDATE "LogPartition" SET "sequence" = $1, "recordedAt" = $2
            WHERE "partition" = $3 RETURNING "epoch"
        )
        INSERT INTO "Message" ("id", "sender", "content", "chatSessionId", "logEpoch", "logSequence")
        SELECT $4, 'admin', '0', s."id", moved."epoch", $1 FROM moved, "ChatSession" s WHERE s."sessionId" = $5"#;
    let partition: i16 = record.subject.split('.').nth(2).unwrap().parse().unwrap();
    let stored = sqlx::query(commit)
        .bind(record.sequence.cast_signed())
        .bind(record.time)
        .bind(partition)
        .bind(message["message"]["id"].as_str().unwrap().to_owned())
        .bind(session.to_owned())
        .execute(&stack.pool())
        .await
        .unwrap();
    assert_eq!(stored.rows_affected(), 1);
}

#[tokio::test]
async fn every_gateway_and_persister_may_lose_every_link_in_turn() {
    let links =
        [Link::GatewayNats, Link::GatewayPostgres, Link::PersisterNats, Link::PersisterPostgres];
    let builder = links.into_iter().fold(Stack::builder().persisters(2), tests::Builder::proxy);
    let stack = builder.start().await;
    let conversation = Conversation::begin(&stack, &JsClients::start().await).await;
    for link in links {
        conversation.is_delivered(10).await;
        stack.proxies(link).for_each(tests::Proxy::cut);
        let service = match link {
            Link::GatewayNats | Link::GatewayPostgres => stack.gateway(0),
            Link::PersisterNats | Link::PersisterPostgres => stack.persister(0),
        };
        eventually(SOON, "a service notices", async || {
            !is_ready(&stack, &service.url("/ready")).await
        })
        .await;
        stack.proxies(link).for_each(tests::Proxy::mend);
        conversation.is_accepted(10).await;
        conversation.is_delivered(10).await;
    }
    conversation.end(&stack).await;
}

async fn is_ready(stack: &Stack, url: &str) -> bool {
    stack.http().get(url).send().await.unwrap().status().is_success()
}

/// A gateway that hears nothing, and a database in which much happened meanwhile.
struct Behind {
    stack: Stack,
    pool: sqlx::PgPool,
    nats: async_nats::Client,
}

impl Behind {
    /// Nobody announces anything but us.
    async fn begin() -> Self {
        let stack = Stack::start().await;
        let (pool, nats) = (stack.pool(), stack.nats_client().await);
        Self { stack, pool, nats }
    }

    /// A session with a client in it.
    async fn session(&self, clients: &JsClients) -> (Client, SessionId) {
        let client = clients.client(&self.stack.url(""), &["websocket"]).await;
        let joined = client.ask("init_session", json!(null)).await;
        (client, SessionId::parse(joined["sessionId"].as_str().unwrap()).unwrap())
    }

    async fn position(&self, partition: Partition) -> Position {
        let position = r#"SELECT "epoch", "sequence" FROM "LogPartition" WHERE "partition" = $1"#;
        let position = sqlx::query_as(position).bind(partition.to_column());
        let (epoch, sequence): (i64, i64) = position.fetch_one(&self.pool).await.unwrap();
        Position { epoch: Epoch(epoch), sequence: sequence.cast_unsigned() }
    }

    /// Its log is another one from now on.
    async fn begin_epoch(&self, partition: Partition) -> Position {
        let epoch = Epoch::random().unwrap();
        let begun = r#"
            WITH begun AS (UPDATE "LogPartition" SET "epoch" = $2, "sequence" = 0 WHERE "partition" = $1)
            INSERT INTO "LogEpoch" ("partition", "epoch") VALUES ($1, $2)"#;
        let begun = sqlx::query(begun).bind(partition.to_column()).bind(epoch.0);
        begun.execute(&self.pool).await.unwrap();
        Position { epoch, sequence: 0 }
    }

    /// Stores so many messages behind a position, and moves the offset behind them.
    async fn store(
        &self,
        partition: Partition,
        session: SessionId,
        after: Position,
        count: u64,
    ) -> Position {
        let to = Position { sequence: after.sequence + 2 * count, ..after };
        let stored = r#"
            INSERT INTO "Message" ("id", "sender", "content", "chatSessionId", "logEpoch", "logSequence")
            SELECT $2 || '-' || $3 + 2 * n, 'admin', $2 || '-' || $3 + 2 * n, s."id", $2, $3 + 2 * n
            FROM generate_series(1, $4) n, "ChatSession" s WHERE s."sessionId" = $1 ORDER BY n"#;
        let stored = sqlx::query(stored)
            .bind(session.to_string())
            .bind(after.epoch.0)
            .bind(after.sequence.cast_signed())
            .bind(count.cast_signed());
        assert_eq!(stored.execute(&self.pool).await.unwrap().rows_affected(), count);
        let moved = r#"UPDATE "LogPartition" SET "sequence" = $2 WHERE "partition" = $1"#;
        let moved = sqlx::query(moved).bind(partition.to_column()).bind(to.sequence.cast_signed());
        moved.execute(&self.pool).await.unwrap();
        to
    }

    /// As the owner of a partition repeats it.
    async fn announce(&self, partition: Partition, position: Position) {
        announcing::repeat(&self.nats, partition, position).await;
    }

    /// As the owner of a partition announces what it stored.
    async fn say(
        &self,
        partition: Partition,
        session: SessionId,
        place: (Position, u64),
        content: &str,
    ) {
        let message = json!({ "id": content, "content": content });
        announcing::say(&self.nats, partition, place, session, message).await;
    }
}

/// What was stored behind a position.
fn contents(after: Position, count: u64) -> Vec<String> {
    (1..=count).map(|n| format!("{}-{}", after.epoch.0, after.sequence + 2 * n)).collect()
}

async fn sees_all(client: &Client, wanted: &[String]) {
    let text = |message: &Value| message["content"].as_str().unwrap().to_owned();
    let mut seen = Vec::new();
    eventually(SOON, "it is given all of it", async || {
        seen = client.messages().await.iter().map(text).collect();
        seen.len() >= wanted.len()
    })
    .await;
    assert_eq!(seen, wanted);
}

#[tokio::test]
async fn what_was_missed_over_several_lives_of_the_log_is_given_in_order_and_ends_are_heard_of() {
    let behind = Behind::begin().await;
    let clients = JsClients::start().await;
    let (reader, session) = behind.session(&clients).await;
    let partition = PartitionCount::DEFAULT.partition_of(session);
    behind.stack.persister(0).kill();
    // Pages that are full, one that ends in the middle, and a life in which nothing was said.
    let first = behind.position(partition).await;
    behind.store(partition, session, first, 1_000).await;
    let second = behind.begin_epoch(partition).await;
    behind.store(partition, session, second, 3).await;
    let third = behind.begin_epoch(partition).await;
    let fourth = behind.begin_epoch(partition).await;
    let last = behind.store(partition, session, fourth, 700).await;
    // Somebody else's end, in the life in which nothing was said.
    let (gone, ended) = behind.session(&clients).await;
    let end = r#"
        INSERT INTO "ErasedSession" ("digest", "logEpoch", "erasedSequence", "lastSequence", "erasedAt")
        VALUES ($1, $2, 5, 5, now())"#;
    let end = sqlx::query(end).bind(ended.digest().as_bytes().to_vec()).bind(third.epoch.0);
    end.execute(&behind.pool).await.unwrap();
    behind.announce(partition, last).await;
    let mut all = [contents(first, 1_000), contents(second, 3), contents(fourth, 700)].concat();
    sees_all(&reader, &all).await;
    let said = gone.ask("user_message", json!({ "sessionId": ended, "content": "late" })).await;
    assert_eq!(said["error"]["code"], "session_not_found", "{said}");
    // What follows goes on from there.
    let more = behind.store(partition, session, last, 2).await;
    behind.announce(partition, more).await;
    all.extend(contents(last, 2));
    sees_all(&reader, &all).await;
}

#[tokio::test]
async fn while_one_partition_is_read_from_postgres_the_rooms_of_the_others_do_not_wait() {
    const MISSED: u64 = 600;
    /// More than waits for a partition that is read.
    const LIVE: u64 = 3_000;
    let behind = Behind::begin().await;
    let clients = JsClients::start().await;
    let (reader, session) = behind.session(&clients).await;
    let partition = PartitionCount::DEFAULT.partition_of(session);
    let (bystander, beside, other) = loop {
        let (client, session) = behind.session(&clients).await;
        let other = PartitionCount::DEFAULT.partition_of(session);
        if other != partition {
            break (client, session, other);
        }
    };
    behind.stack.persister(0).kill();
    let first = behind.position(partition).await;
    let then = behind.store(partition, session, first, MISSED).await;
    behind.store(partition, session, then, LIVE).await;

    // Postgres answers nothing about messages.
    let mut holder = behind.pool.begin().await.unwrap();
    let lock = r#"LOCK TABLE "Message" IN ACCESS EXCLUSIVE MODE"#;
    sqlx::raw_sql(lock).execute(&mut *holder).await.unwrap();
    behind.announce(partition, then).await;
    for (n, content) in (1..).zip(contents(then, LIVE)) {
        let position = Position { sequence: then.sequence + 2 * n, ..then };
        let place = (position, position.sequence - 2);
        behind.say(partition, session, place, &content).await;
    }
    let position = behind.position(other).await;
    // Nothing was said there before.
    let place = (Position { sequence: position.sequence + 1, ..position }, 0);
    behind.say(other, beside, place, "beside").await;
    sees_all(&bystander, &["beside".to_owned()]).await;
    assert!(reader.messages().await.is_empty());
    holder.rollback().await.unwrap();
    sees_all(&reader, &[contents(first, MISSED), contents(then, LIVE)].concat()).await;
}
