//! The log is wiped, loses its tail, fills up, is trimmed; the database is restored from a backup.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tests::{
    Backups, Client, Conversation, JsClients, Link, Stack, copy_folder, eventually, is_taken,
};

const SOON: Duration = Duration::from_secs(20);
/// A look of the trimmer, and what it looks for.
const TRIMMED_WITHIN: Duration = Duration::from_secs(20);

struct Chat {
    stack: Stack,
    client: Client,
    session: String,
}

impl Chat {
    async fn begin(stack: Stack) -> Self {
        let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
        let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
        Self { stack, client, session }
    }

    async fn send(&self, content: &str) -> Value {
        let offset: String = content.chars().take(20).collect();
        let payload =
            json!({ "sessionId": self.session, "content": content, "clientOffset": offset });
        self.client.ask("user_message", payload).await
    }

    /// Sends until it is accepted.
    async fn say(&self, content: &str) {
        let what = format!("{content} is accepted");
        eventually(SOON, &what, async || is_taken(&self.send(content).await)).await;
    }

    async fn say_all(&self, contents: &[String]) {
        for content in contents {
            self.say(content).await;
        }
    }

    async fn stored(&self) -> Vec<String> {
        let url = self.stack.url(&format!("/api/chats/{}", self.session));
        let answer = self.stack.http().get(url).send().await.unwrap();
        texts(&answer.json::<Vec<Value>>().await.unwrap_or_default())
    }

    async fn is_stored(&self, contents: &[String]) {
        let what = format!("stored: {contents:?}");
        eventually(SOON, &what, async || self.stored().await == contents).await;
    }

    /// So many messages that are stored, and a backup that has them.
    async fn is_backed_up_with(&self, count: usize) -> (Vec<String>, Backups) {
        let before = numbered("before", count);
        self.say_all(&before).await;
        self.is_stored(&before).await;
        let database = Backups::of(&self.stack).await;
        database.back_up().await;
        (before, database)
    }

    async fn is_seen(&self, contents: &[String]) {
        let what = format!("seen: {contents:?}");
        eventually(SOON, &what, async || texts(&self.client.messages().await) == contents).await;
    }
}

fn texts(messages: &[Value]) -> Vec<String> {
    messages.iter().map(|message| message["content"].as_str().unwrap().to_owned()).collect()
}

fn numbered(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{name} {n}")).collect()
}

#[tokio::test]
async fn a_wiped_log_is_noticed_and_nothing_stored_is_touched() {
    let chat = Chat::begin(Stack::start().await).await;
    let before = numbered("before", 5);
    chat.say_all(&before).await;
    chat.is_seen(&before).await;
    chat.stack.nats().kill().await;
    chat.stack.nats().wipe();
    chat.stack.nats().start().await;
    // Fewer than were lost: numbers that the offset lies beyond.
    let after = numbered("after", 3);
    chat.say_all(&after).await;
    chat.is_seen(&[before, after].concat()).await;
    chat.is_stored(&texts(&chat.client.messages().await)).await;
    assert!(chat.stack.persister(0).logs().contains("this is not the log"));
}

#[tokio::test]
async fn an_older_copy_of_the_log_put_back_is_noticed_and_nothing_new_is_skipped() {
    let chat = Chat::begin(Stack::start().await).await;
    let before = numbered("before", 5);
    chat.say_all(&before).await;
    chat.is_stored(&before).await;
    let nats = chat.stack.nats();
    let copy = nats.store().with_extension("copy");
    nats.stop().await;
    copy_folder(&nats.store(), &copy).unwrap();
    nats.start().await;
    let lost = numbered("lost", 5);
    chat.say_all(&lost).await;
    chat.is_stored(&[before.clone(), lost.clone()].concat()).await;
    // More than were lost, before any persister can look: every number is given out again.
    chat.stack.persister(0).kill();
    nats.stop().await;
    nats.wipe();
    copy_folder(&copy, &nats.store()).unwrap();
    nats.start().await;
    let after = numbered("after", 12);
    chat.say_all(&after).await;
    chat.stack.persister(0).start().await;
    let all = [before, lost, after].concat();
    chat.is_stored(&all).await;
    chat.is_seen(&all).await;
    assert!(chat.stack.persister(0).logs().contains("another record stands at the offset"));
}

/// How an offset can lose sight of its own record before the log is another one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Idle {
    /// Moved over records of other partitions.
    Moved,
    /// And the record that stands in place of the newest one is removed too.
    MovedAndGone,
    /// And only another partition knows anything of the log.
    KnownToAnother,
}

/// Loses some records of an idle log and fills it beyond the old offsets before a persister can look.
async fn a_tail_is_lost_and_refilled(idle: Idle) {
    let chat = Chat::begin(Stack::builder().persisters(2).start().await).await;
    let pool = chat.stack.pool();
    let before = numbered("before", 5);
    chat.say_all(&before).await;
    chat.is_stored(&before).await;
    let nats = chat.stack.nats();
    let copy = nats.store().with_extension("copy");
    nats.stop().await;
    copy_folder(&nats.store(), &copy).unwrap();
    nats.start().await;
    let lost = numbered("lost", 5);
    chat.say_all(&lost).await;
    chat.is_stored(&[before.clone(), lost.clone()].concat()).await;
    // An erasure has every partition moved to the end of the log.
    let other = chat.client.ask("init_session", json!({})).await["sessionId"].clone();
    let url = chat.stack.url(&format!("/api/chats/{}", other.as_str().unwrap()));
    let erased = chat.stack.http().delete(url).send().await.unwrap();
    assert_eq!(erased.status(), 202);
    let moved =
        r#"SELECT count(*) FROM "LogPartition" WHERE "recordedAt" IS NULL AND "sequence" > 10"#;
    eventually(SOON, "the offsets are moved", async || {
        sqlx::query_scalar::<_, i64>(moved).fetch_one(&pool).await.unwrap() >= 14
    })
    .await;
    let blind = r#"
        SELECT count(*) FROM "LogPartition" p
        WHERE p."recordedAt" IS NULL AND p."headSequence" IS NULL
            AND EXISTS (SELECT 1 FROM "Message" m WHERE m."logEpoch" = p."epoch")"#;
    let blind: i64 = sqlx::query_scalar(blind).fetch_one(&pool).await.unwrap();
    assert_eq!(blind, 0, "a partition that stored something has forgotten which log it was");
    chat.stack.persister(0).kill();
    chat.stack.persister(1).kill();
    if idle == Idle::KnownToAnother {
        let forget = r#"
            UPDATE "LogPartition" SET "recordedAt" = NULL, "headSequence" = NULL, "headRecordedAt" = NULL
            WHERE "headSequence" IS DISTINCT FROM (SELECT max("headSequence") FROM "LogPartition")"#;
        assert!(sqlx::query(forget).execute(&pool).await.unwrap().rows_affected() >= 14);
        // Nor that one by the record at its own offset.
        let moved = r#"UPDATE "LogPartition" SET "recordedAt" = NULL"#;
        sqlx::query(moved).execute(&pool).await.unwrap();
    }
    nats.stop().await;
    nats.wipe();
    copy_folder(&copy, &nats.store()).unwrap();
    nats.start().await;
    let after = numbered("after", 20);
    chat.say_all(&after).await;
    if idle == Idle::MovedAndGone {
        let newest: Vec<i64> = sqlx::query_scalar(
            r#"SELECT DISTINCT "headSequence" FROM "LogPartition" WHERE "headSequence" IS NOT NULL"#,
        )
        .fetch_all(&pool)
        .await
        .unwrap();
        let jetstream = async_nats::jetstream::new(chat.stack.nats_client().await);
        let log = jetstream.get_stream("CHAT").await.unwrap();
        // A message of ours goes with each.
        for sequence in newest {
            log.delete_message(u64::try_from(sequence).unwrap()).await.unwrap();
        }
    }
    for persister in chat.stack.persisters() {
        persister.spawn();
    }
    let all = [before, lost, after].concat();
    let mut stored = Vec::new();
    eventually(SOON, "what was acked is stored", async || {
        stored = chat.stored().await;
        stored.len() == all.len()
    })
    .await;
    if idle == Idle::MovedAndGone {
        // The gateway published again what was taken out of the middle, behind what came after it.
        assert!(all.iter().all(|one| stored.contains(one)), "{stored:?}");
    } else {
        assert_eq!(stored, all);
    }
    for persister in chat.stack.persisters() {
        persister.ready().await;
    }
    let logs = [0, 1].map(|index| chat.stack.persister(index).logs()).concat();
    assert_eq!(logs.matches("this is not the log").count(), 1, "{logs}");
    let epochs = r#"SELECT count(*) FROM "LogEpoch""#;
    let epochs: i64 = sqlx::query_scalar(epochs).fetch_one(&pool).await.unwrap();
    assert_eq!(epochs, 32, "a new one of each partition, once");
}

#[tokio::test]
async fn a_tail_that_is_lost_while_partitions_are_idle_and_refilled_is_noticed() {
    a_tail_is_lost_and_refilled(Idle::Moved).await;
}

#[tokio::test]
async fn a_lost_tail_is_noticed_also_where_the_record_that_would_show_it_is_gone() {
    a_tail_is_lost_and_refilled(Idle::MovedAndGone).await;
}

#[tokio::test]
async fn one_partition_that_finds_another_log_tells_it_for_all_of_all_workers() {
    a_tail_is_lost_and_refilled(Idle::KnownToAnother).await;
}

#[tokio::test]
async fn an_erased_or_trimmed_record_makes_no_other_log() {
    let chat = Chat::begin(Stack::start().await).await;
    let before = numbered("before", 5);
    chat.say_all(&before).await;
    chat.is_stored(&before).await;
    let jetstream = async_nats::jetstream::new(chat.stack.nats_client().await);
    let log = jetstream.get_stream("CHAT").await.unwrap();
    for purge in [false, true] {
        chat.stack.persister(0).kill();
        let last = log.get_info().await.unwrap().state.last_sequence;
        if purge {
            log.purge().sequence(last + 1).await.unwrap();
        } else {
            log.delete_message(last).await.unwrap();
        }
        chat.stack.persister(0).start().await;
    }
    chat.say("more").await;
    chat.is_stored(&[before, vec!["more".into()]].concat()).await;
    let logs = chat.stack.persister(0).logs();
    assert!(!logs.contains("is not the log"), "{logs}");
}

/// It has the partition of its subject, and no session: it was set aside, and its offset is as good as any.
#[tokio::test]
async fn an_offset_at_a_record_that_was_set_aside_makes_no_other_log() {
    let chat = Chat::begin(Stack::start().await).await;
    chat.say("before").await;
    let jetstream = async_nats::jetstream::new(chat.stack.nats_client().await);
    for partition in 0..16 {
        let subject = format!("chat.requests.{partition}.nobody");
        jetstream.publish(subject, "garbage".into()).await.unwrap().await.unwrap();
    }
    eventually(SOON, "the records are set aside", async || {
        let dead = r#"SELECT count(*) FROM "DeadLetter""#;
        sqlx::query_scalar::<_, i64>(dead).fetch_one(&chat.stack.pool()).await.unwrap() == 16
    })
    .await;
    chat.stack.persister(0).kill();
    chat.stack.persister(0).start().await;
    chat.say("after").await;
    chat.is_stored(&["before".into(), "after".into()]).await;
    let logs = chat.stack.persister(0).logs();
    assert!(!logs.contains("is not the log"), "{logs}");
}

/// Times that the persisters read the log anew.
async fn terms(stack: &Stack) -> Vec<u64> {
    let mut terms = Vec::new();
    for persister in stack.persisters() {
        let metrics = stack.http().get(persister.ops_url("/metrics")).send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let line = metrics.lines().find(|line| line.starts_with("chat_persister_terms_total "));
        terms.push(line.unwrap().rsplit(' ').next().unwrap().parse().unwrap());
    }
    terms
}

#[tokio::test]
async fn trimming_and_erasing_end_no_term_of_any_worker() {
    let builder = Stack::builder().persisters(2).persister_env("LOG_KEEP", "0s");
    let chat = Chat::begin(builder.start().await).await;
    let shares =
        r#"SELECT count(*) FROM "LogPartition" WHERE "leaseUntil" > now() GROUP BY "owner""#;
    eventually(SOON, "both have their share", async || {
        sqlx::query_scalar::<_, i64>(shares).fetch_all(&chat.stack.pool()).await.unwrap() == [8, 8]
    })
    .await;
    chat.say("first").await;
    chat.is_stored(&["first".into()]).await;
    let jetstream = async_nats::jetstream::new(chat.stack.nats_client().await);
    let log = jetstream.get_stream("CHAT").await.unwrap();
    let is_empty = async || {
        eventually(TRIMMED_WITHIN, "the log is empty", async || {
            log.get_info().await.unwrap().state.messages == 0
        })
        .await;
    };
    is_empty().await;
    let before = terms(&chat.stack).await;
    let mut said = vec!["first".to_owned()];
    for round in 0..3 {
        let content = format!("round {round}");
        chat.say(&content).await;
        said.push(content);
        let other = chat.client.ask("init_session", json!({})).await["sessionId"].clone();
        let url = chat.stack.url(&format!("/api/chats/{}", other.as_str().unwrap()));
        assert_eq!(chat.stack.http().delete(url).send().await.unwrap().status(), 202);
        chat.is_stored(&said).await;
        is_empty().await;
    }
    // Whoever would read the log anew does so within a second.
    chat.say("last").await;
    said.push("last".into());
    chat.is_stored(&said).await;
    is_empty().await;
    assert_eq!(terms(&chat.stack).await, before);
}

#[tokio::test]
async fn a_database_restored_from_an_older_backup_catches_up_by_itself() {
    let chat = Chat::begin(Stack::builder().own_postgres().persisters(2).start().await).await;
    let (before, database) = chat.is_backed_up_with(5).await;
    let after = numbered("after", 30);
    chat.say_all(&after).await;
    chat.is_stored(&[before.clone(), after.clone()].concat()).await;
    database.restore().await;
    // Nobody says anything: the difference comes back all the same.
    chat.is_stored(&[before.clone(), after.clone()].concat()).await;
    let last = numbered("last", 3);
    chat.say_all(&last).await;
    let all = [before, after, last].concat();
    chat.is_stored(&all).await;
    chat.is_seen(&all).await;
}

#[tokio::test]
async fn a_database_restored_while_clients_talk_catches_up_and_skips_nothing() {
    let stack = Stack::builder().own_postgres().start().await;
    let database = Backups::of(&stack).await;
    let conversation = Conversation::begin(&stack, &JsClients::start().await).await;
    for _ in 0..3 {
        conversation.is_delivered(20).await;
        database.back_up().await;
        conversation.is_delivered(50).await;
        database.restore().await;
    }
    conversation.is_delivered(20).await;
    conversation.end(&stack).await;
}

/// What a client that comes back to the session is answered.
async fn come_back(client: &Client, session: &str, after: &Value) -> Value {
    client.ask("init_session", json!({ "sessionId": session, "after": after })).await
}

#[tokio::test]
async fn a_client_that_comes_back_while_an_older_backup_catches_up_waits_and_misses_nothing() {
    let stack = Stack::builder().own_postgres().gateways(2).start().await;
    let chat = Chat::begin(stack).await;
    let (before, database) = chat.is_backed_up_with(5).await;
    let after = numbered("after", 30);
    chat.say_all(&after).await;
    let all = [before.clone(), after.clone()].concat();
    chat.is_seen(&all).await;
    let seen = chat.client.messages().await;
    let (last_before, last) = (&seen[before.len() - 1]["id"], &seen[all.len() - 1]["id"]);

    chat.stack.persister(0).kill();
    database.restore().await;
    // A gateway that starts now never knew more than the backup.
    chat.stack.gateway(1).kill();
    chat.stack.gateway(1).start().await;
    let js_clients = JsClients::start().await;
    let mut returning = Vec::new();
    for gateway in chat.stack.gateways() {
        let client = js_clients.client(&gateway.url(""), &["websocket"]).await;
        let answer = come_back(&client, &chat.session, last).await;
        assert_eq!(answer["error"]["code"], "unavailable", "{}: {answer}", gateway.name());
        assert_eq!(answer["sessionId"], chat.session.as_str());
        returning.push(client);
    }
    let answer = come_back(&returning[0], &chat.session, last_before).await;
    assert_eq!(answer["error"]["code"], "unavailable", "{answer}");

    chat.stack.persister(0).start().await;
    for client in returning {
        let mut answer = Value::Null;
        eventually(SOON, "it comes back", async || {
            answer = come_back(&client, &chat.session, last_before).await;
            answer["error"].is_null()
        })
        .await;
        assert_eq!(answer["reset"], false, "{answer}");
        let mut given = texts(answer["messages"].as_array().unwrap());
        eventually(SOON, "it has everything", async || {
            [given.clone(), texts(&client.messages().await)].concat().len() >= after.len()
        })
        .await;
        given.extend(texts(&client.messages().await));
        assert_eq!(given, after);
        assert_eq!(come_back(&client, &chat.session, last).await["reset"], false);
    }
    assert_eq!(texts(&chat.client.messages().await), all, "who stayed saw nothing twice");
}

#[tokio::test]
async fn an_announcement_from_before_the_restore_makes_no_client_miss_what_is_replayed() {
    let builder = Stack::builder().own_postgres().gateways(2).proxy(Link::GatewayNats);
    let chat = Chat::begin(builder.start().await).await;
    let (before, database) = chat.is_backed_up_with(5).await;
    chat.is_seen(&before).await;

    // Stored and announced while the client's gateway hears nothing.
    let nats = chat.stack.nats_client().await;
    let mut announced = nats.subscribe("chat.commits.*").await.unwrap();
    // A flush is no round trip; a request is.
    async_nats::jetstream::new(nats.clone()).get_stream("CHAT").await.unwrap();
    chat.stack.proxy(Link::GatewayNats, 0).cut();
    let other =
        JsClients::start().await.client(&chat.stack.gateway(1).url(""), &["websocket"]).await;
    other.stay(Some(&chat.session)).await;
    let after = numbered("after", 10);
    for content in &after {
        let send = json!({ "sessionId": chat.session, "content": content });
        assert!(is_taken(&other.ask("user_message", send).await));
    }
    let mut last = None;
    let mut stored = 0;
    while stored < after.len() {
        let heard = tokio::time::timeout(SOON, announced.next()).await.unwrap().unwrap();
        let messages = String::from_utf8_lossy(&heard.payload).matches("\"stored\"").count();
        if messages > 0 {
            stored += messages;
            last = Some(heard.payload);
        }
    }
    chat.stack.persister(0).kill();
    database.restore().await;

    chat.stack.proxy(Link::GatewayNats, 0).mend();
    chat.stack.gateway(0).ready().await;
    nats.publish("chat.commits.all", last.unwrap()).await.unwrap();
    nats.flush().await.unwrap();
    eventually(SOON, "the gateway looks for what it missed", async || {
        chat.stack.gateway(0).logs().contains("reading what was missed")
    })
    .await;
    chat.stack.persister(0).start().await;
    let all = [before, after].concat();
    chat.is_seen(&all).await;
    chat.is_stored(&all).await;
}

#[tokio::test]
async fn a_backup_older_than_the_log_is_told_and_clients_come_back_all_the_same() {
    let builder = Stack::builder().own_postgres().persister_env("LOG_KEEP", "0s");
    let chat = Chat::begin(builder.start().await).await;
    let (before, database) = chat.is_backed_up_with(3).await;
    let lost = numbered("lost", 3);
    chat.say_all(&lost).await;
    chat.is_seen(&[before.clone(), lost].concat()).await;
    let jetstream = async_nats::jetstream::new(chat.stack.nats_client().await);
    let log = jetstream.get_stream("CHAT").await.unwrap();
    eventually(TRIMMED_WITHIN, "the log is empty", async || {
        log.get_info().await.unwrap().state.messages == 0
    })
    .await;
    database.restore().await;
    eventually(SOON, "the loss is told", async || {
        chat.stack.persister(0).logs().contains("are lost")
    })
    .await;
    // Nothing follows in the log that could show how far Postgres is.
    let returning = JsClients::start().await.client(&chat.stack.url(""), &["websocket"]).await;
    eventually(SOON, "a client comes back", async || {
        let answer = come_back(&returning, &chat.session, &Value::from("")).await;
        answer["messages"].as_array().is_some_and(|messages| texts(messages) == before)
    })
    .await;
    chat.say("more").await;
    chat.is_stored(&[before, vec!["more".into()]].concat()).await;
}

#[tokio::test]
async fn a_full_log_refuses_as_overloaded_and_recovers_when_the_backlog_is_stored() {
    let log = Stack::builder().env("LOG_MAX_BYTES", "131072").start().await;
    let chat = Chat::begin(log).await;
    let mut said = Vec::new();
    // Most sessions are in other partitions: idle ones must not hold the trimming back.
    chat.stack.persister(0).kill();
    let refused = loop {
        let content = format!("{} {}", said.len(), "x".repeat(1_000));
        let ack = chat.send(&content).await;
        if !is_taken(&ack) {
            break ack;
        }
        said.push(content);
        assert!(said.len() < 1_000, "the log never fills");
    };
    assert_eq!(refused["error"]["code"], "overloaded", "{refused}");
    chat.stack.persister(0).start().await;
    eventually(TRIMMED_WITHIN, "sends are accepted again", async || {
        is_taken(&chat.send("and on").await)
    })
    .await;
    said.push("and on".into());
    chat.is_stored(&said).await;
    chat.is_seen(&said).await;
}

#[tokio::test]
async fn records_that_are_stored_and_old_are_trimmed_and_a_backlog_is_not() {
    let chat = Chat::begin(Stack::builder().persister_env("LOG_KEEP", "0s").start().await).await;
    let stored = numbered("stored", 5);
    chat.say_all(&stored).await;
    let log = async_nats::jetstream::new(chat.stack.nats_client().await)
        .get_stream("CHAT")
        .await
        .unwrap();
    let records = async || log.get_info().await.unwrap().state.messages;
    eventually(TRIMMED_WITHIN, "the log is empty", async || records().await == 0).await;
    chat.stack.persister(0).kill();
    let backlog = numbered("backlog", 5);
    chat.say_all(&backlog).await;
    assert_eq!(records().await, 5);
    chat.stack.persister(0).start().await;
    let all = [stored, backlog].concat();
    chat.is_stored(&all).await;
    eventually(TRIMMED_WITHIN, "the log is empty", async || records().await == 0).await;
    // The offsets name records that are gone: that is no other log, and nothing is missing.
    chat.stack.persister(0).kill();
    chat.stack.persister(0).start().await;
    chat.say("more").await;
    chat.is_stored(&[all, vec!["more".into()]].concat()).await;
    let logs = chat.stack.persister(0).logs();
    assert!(!logs.contains("is not the log") && !logs.contains("are lost"), "{logs}");
}
