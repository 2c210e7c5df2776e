//! One order everywhere: the log's, the rows', the rooms'. And each record once, whoever is killed.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use async_nats::jetstream::{self, stream::Stream as Log};
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::{Client, JsClients, Stack, eventually, is_taken};

const SOON: Duration = Duration::from_secs(20);
/// From the death of a persister until its partitions can be taken, and more.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);

const STORED_IDS: &str = r#"
    SELECT m."id" FROM "Message" m JOIN "ChatSession" s ON s."id" = m."chatSessionId"
    WHERE s."sessionId" = $1 ORDER BY m."seq""#;

/// Rows beyond the offset of their partition, or an offset beyond its rows.
const TORN: &str = r#"
    SELECT count(*) FROM "LogPartition" p LEFT JOIN LATERAL (
        SELECT max(m."logSequence") AS "last" FROM "Message" m WHERE m."logEpoch" = p."epoch"
    ) rows ON true
    WHERE rows."last" > p."sequence""#;

/// How many rows are stored, and whether rows and offsets moved together.
async fn stored(pool: &PgPool) -> i64 {
    let torn: i64 = sqlx::query_scalar(TORN).fetch_one(pool).await.unwrap();
    assert_eq!(torn, 0, "rows lie beyond the offset of their partition");
    sqlx::query_scalar(r#"SELECT count(*) FROM "Message""#).fetch_one(pool).await.unwrap()
}

async fn stored_ids(pool: &PgPool, session: &str) -> Vec<String> {
    sqlx::query_scalar(STORED_IDS).bind(session).fetch_all(pool).await.unwrap()
}

async fn log(stack: &Stack) -> Log {
    jetstream::new(stack.nats_client().await).get_stream("CHAT").await.unwrap()
}

/// The subject of a session's records, from the record that opened it.
async fn subject(log: &Log, session: &str) -> String {
    let subject = format!("chat.requests.*.{session}");
    log.direct_get_last_for_subject(subject).await.unwrap().subject.to_string()
}

/// The ids of the messages of each subject, in the order of the log.
async fn logged_ids(log: &Log) -> HashMap<String, Vec<String>> {
    let mut ids: HashMap<String, Vec<String>> = HashMap::new();
    for sequence in 1..=log.get_info().await.unwrap().state.last_sequence {
        let record = log.direct_get(sequence).await.unwrap();
        let request: Value = serde_json::from_slice(&record.payload).unwrap();
        if let Some(id) = request["message"]["id"].as_str() {
            ids.entry(record.subject.to_string()).or_default().push(id.to_owned());
        }
    }
    ids
}

fn ids(messages: &[Value]) -> Vec<String> {
    messages.iter().map(|message| message["id"].as_str().unwrap().to_owned()).collect()
}

async fn opened(client: &Client) -> String {
    client.stay(None).await["sessionId"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn rooms_and_rows_have_the_order_of_the_log_whoever_speaks() {
    const EACH: usize = 200;
    let stack = Stack::builder().busy().start().await;
    let js_clients = JsClients::start().await;
    let mut members: BTreeMap<String, Vec<Client>> = BTreeMap::new();
    for _ in 0..3 {
        let first = js_clients.client(&stack.url(""), &["websocket"]).await;
        let session = opened(&first).await;
        let mut clients = vec![first];
        for transport in ["polling", "websocket"] {
            let client = js_clients.client(&stack.url(""), &[transport]).await;
            client.stay(Some(&session)).await;
            clients.push(client);
        }
        members.insert(session, clients);
    }
    let everybody =
        members.iter().flat_map(|(id, clients)| clients.iter().map(move |one| (id, one)));
    let bursts = everybody.map(|(session, client)| {
        let say = |n| json!({ "sessionId": session, "content": format!("{n}") });
        client.burst("user_message", (0..EACH).map(say).collect())
    });
    for acks in join_all(bursts).await {
        assert!(acks.iter().all(is_taken), "{acks:?}");
    }
    let log = log(&stack).await;
    let logged = logged_ids(&log).await;
    for (session, clients) in &members {
        let logged = &logged[&subject(&log, session).await];
        assert_eq!(logged.len(), 3 * EACH);
        for client in clients {
            eventually(SOON, "everything is broadcast", async || {
                client.count("message").await >= logged.len()
            })
            .await;
            assert_eq!(&ids(&client.messages().await), logged);
        }
        assert_eq!(&stored_ids(&stack.pool(), session).await, logged);
    }
}

#[tokio::test]
async fn a_row_has_the_time_of_the_log_cut_to_milliseconds() {
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = opened(&client).await;
    let say = |n: usize| json!({ "sessionId": session, "content": format!("{n}") });
    client.burst("user_message", (0..50).map(say).collect()).await;
    eventually(SOON, "delivery", async || client.count("message").await == 50).await;
    let log = log(&stack).await;
    let created = r#"SELECT "logSequence", "createdAt" FROM "Message" ORDER BY "logSequence""#;
    let rows: Vec<(i64, sqlx::types::time::PrimitiveDateTime)> =
        sqlx::query_as(created).fetch_all(&stack.pool()).await.unwrap();
    assert_eq!(rows.len(), 50);
    for (sequence, created) in rows {
        let record = log.direct_get(u64::try_from(sequence).unwrap()).await.unwrap();
        let nanos = record.time.unix_timestamp_nanos();
        assert_eq!(created.assume_utc().unix_timestamp_nanos(), nanos - nanos % 1_000_000);
    }
}

/// Sessions to which records are published past the gateway.
struct Flood {
    jetstream: jetstream::Context,
    sessions: Vec<(String, String)>,
    published: usize,
}

impl Flood {
    /// Opens sessions and finds where their records go.
    async fn prepare(stack: &Stack, sessions: usize) -> Self {
        let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
        let log = log(stack).await;
        let mut named = Vec::new();
        for _ in 0..sessions {
            let session = opened(&client).await;
            named.push((subject(&log, &session).await, session));
        }
        Self { jetstream: jetstream::new(stack.nats_client().await), sessions: named, published: 0 }
    }

    /// The id of the nth record: they are stored in the order of these numbers.
    fn id(n: usize) -> String {
        format!("c{n:024}")
    }

    /// Publishes records to one session after the other; some stand in the log twice.
    async fn publish(&mut self, count: usize) {
        const WINDOW: usize = 500;
        let numbers: Vec<_> = (self.published..self.published + count).collect();
        for window in numbers.chunks(WINDOW) {
            let mut acks = Vec::new();
            for n in window.iter().flat_map(|n| if n % 10 == 0 { vec![*n, *n] } else { vec![*n] }) {
                let (subject, _) = &self.sessions[n % self.sessions.len()];
                let message =
                    json!({ "id": Self::id(n), "sender": "user", "content": format!("{n}") });
                let record = json!({ "message": message }).to_string();
                acks.push(self.jetstream.publish(subject.clone(), record.into()).await.unwrap());
            }
            for ack in join_all(acks.into_iter().map(IntoFuture::into_future)).await {
                ack.unwrap();
            }
        }
        self.published += count;
    }

    /// Every record is stored once, in the order of the log, and nothing else is.
    async fn assert_stored(&self, pool: &PgPool) {
        let all = i64::try_from(self.published).unwrap();
        eventually(SOON, "everything is stored", async || stored(pool).await >= all).await;
        assert_eq!(stored(pool).await, all);
        for (place, (_, session)) in self.sessions.iter().enumerate() {
            let wanted: Vec<_> =
                (place..self.published).step_by(self.sessions.len()).map(Self::id).collect();
            assert_eq!(stored_ids(pool, session).await, wanted);
        }
        let dead: i64 = sqlx::query_scalar(r#"SELECT count(*) FROM "DeadLetter""#)
            .fetch_one(pool)
            .await
            .unwrap();
        assert_eq!(dead, 0);
    }
}

#[tokio::test]
async fn a_persister_that_is_killed_again_and_again_loses_nothing_and_stores_nothing_twice() {
    const KILLS: usize = 6;
    const RECORDS: usize = 3_000;
    let stack = Stack::start().await;
    let mut flood = Flood::prepare(&stack, 24).await;
    let pool = stack.pool();
    for _ in 0..KILLS {
        stack.persister(0).kill();
        let before = stored(&pool).await;
        stack.persister(0).spawn();
        let progress =
            eventually(TAKEN_WITHIN, "some are stored", async || stored(&pool).await > before);
        tokio::join!(flood.publish(RECORDS), progress);
    }
    stack.persister(0).kill();
    stack.persister(0).start().await;
    flood.assert_stored(&pool).await;
}

#[tokio::test]
async fn a_partition_that_another_worker_takes_for_a_while_stalls_no_other_and_is_not_forgotten() {
    const TAKE: &str = r#"UPDATE "LogPartition" SET "owner" = '11111111-1111-4111-8111-111111111111',
        "leaseUntil" = now() + interval '2 seconds' WHERE "partition" = $1"#;
    const RENEWED_EVERY: Duration = Duration::from_millis(200);
    const FREE: &str = r#"UPDATE "LogPartition" SET "leaseUntil" = now() WHERE "partition" = $1"#;
    /// Some of these whiles are shorter than the pause between two looks at the leases.
    const WHILES: usize = 4;
    const SESSIONS: usize = 8;
    const EACH: usize = 20;
    let stack = Stack::start().await;
    let mut flood = Flood::prepare(&stack, SESSIONS).await;
    let pool = stack.pool();
    let partition = |subject: &str| subject.split('.').nth(2).unwrap().parse::<i16>().unwrap();
    let taken = partition(&flood.sessions[0].0);
    let (theirs, ours): (Vec<_>, Vec<_>) =
        flood.sessions.iter().cloned().partition(|(subject, _)| partition(subject) == taken);
    for round in 0..WHILES {
        sqlx::query(TAKE).bind(taken).execute(&pool).await.unwrap();
        let renews = async {
            let mut renewal = tokio::time::interval(RENEWED_EVERY);
            loop {
                renewal.tick().await;
                sqlx::query(TAKE).bind(taken).execute(&pool).await.unwrap();
            }
        };
        let others_go_on = async {
            flood.publish(SESSIONS * EACH).await;
            for (_, session) in &ours {
                eventually(SOON, "the other partitions go on", async || {
                    stored_ids(&pool, session).await.len() == (round + 1) * EACH
                })
                .await;
            }
            for (_, session) in &theirs {
                assert_eq!(stored_ids(&pool, session).await.len(), round * EACH);
            }
        };
        tokio::select! {
            () = others_go_on => {}
            () = renews => {}
        }
        sqlx::query(FREE).bind(taken).execute(&pool).await.unwrap();
        flood.assert_stored(&pool).await;
    }
}
