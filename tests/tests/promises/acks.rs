//! What an ack says is so: stored is stored, accepted is in the log and told of again only if it is refused.

use std::time::Duration;

use serde_json::{Value, json};
use shared::content::ClientOffset;
use shared::ids::{MessageId, SessionId};
use shared::message::Sender;
use shared::partition::{Partition, PartitionCount};
use shared::record::Record;
use shared::subjects;
use sqlx::PgPool;
use tests::{Client, JsClients, Link, Stack, announcing, copy_folder, eventually, is_taken};

/// `STORED_WAIT` of the gateway, where it is set so.
const STORED_WAIT: Duration = Duration::from_secs(4);
/// Within less than what the first one waits a send is acked while nothing is stored, once that is known. On a quiet
/// machine it is 0.2 s.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(15);

/// A visitor in a session.
struct Visitor {
    stack: Stack,
    client: Client,
    session: SessionId,
}

impl Visitor {
    async fn of(stack: Stack) -> Self {
        let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
        let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
        Self { stack, client, session: SessionId::parse(&session).unwrap() }
    }

    fn send(&self, content: &str, offset: Option<&str>) -> Value {
        json!({ "sessionId": self.session, "content": content, "clientOffset": offset })
    }

    async fn say(&self, content: &str, offset: Option<&str>) -> Value {
        self.client.ask("user_message", self.send(content, offset)).await
    }

    fn partition(&self) -> Partition {
        PartitionCount::DEFAULT.partition_of(self.session)
    }

    async fn history(&self) -> Vec<String> {
        let url = self.stack.url(&format!("/api/chats/{}", self.session));
        let history: Vec<Value> =
            self.stack.http().get(url).send().await.unwrap().json().await.unwrap();
        let text = |message: &Value| message["content"].as_str().unwrap().to_owned();
        history.iter().map(text).collect()
    }

    async fn metric(&self, name: &str) -> u64 {
        let number = self.stack.gateway(0).metric(name).await;
        number.unwrap_or_else(|| panic!("no {name}"))
    }

    async fn nothing_is_pending(&self) {
        eventually(SOON, "nothing is pending", async || {
            self.metric("chat_gateway_pending_sends").await == 0
        })
        .await;
    }

    /// What another writer stores under the id of a send, and where the partition stands then. Nobody announces
    /// what became of the send.
    async fn stored_by_another(&self, pool: &PgPool, content: &str, offset: &str) {
        let offset = ClientOffset::parse(offset.to_owned()).unwrap();
        let id = MessageId::derived(self.session, Sender::User, None, &offset);
        let stored = r#"
            INSERT INTO "Message" ("id", "sender", "content", "chatSessionId")
            SELECT $2, 'user', $3, s."id" FROM "ChatSession" s WHERE s."sessionId" = $1"#;
        let stored =
            sqlx::query(stored).bind(self.session.to_string()).bind(id.as_str()).bind(content);
        assert_eq!(stored.execute(pool).await.unwrap().rows_affected(), 1);
    }

    /// The partition stands behind everything that is in the log.
    async fn passes(&self, pool: &PgPool) {
        let nats = self.stack.nats_client().await;
        let jetstream = async_nats::jetstream::new(nats.clone());
        let log = jetstream.get_stream("CHAT").await.unwrap();
        let last = log.get_info().await.unwrap().state.last_sequence;
        let moved = r#"
            UPDATE "LogPartition" SET "sequence" = $2 WHERE "partition" = $1 RETURNING "epoch""#;
        let moved = sqlx::query_scalar(moved).bind(self.partition().to_column());
        let epoch: i64 = moved.bind(last.cast_signed()).fetch_one(pool).await.unwrap();
        let epoch = shared::announcement::Epoch(epoch);
        let position = shared::announcement::Position { epoch, sequence: last };
        announcing::repeat(&nats, self.partition(), position).await;
    }
}

#[tokio::test]
async fn what_is_acked_as_stored_stands_in_the_history() {
    let stack = Stack::builder().gateway_env("STORED_WAIT", "60s").start().await;
    let visitor = Visitor::of(stack).await;
    let mut said = Vec::new();
    for n in 0..20 {
        let ack = visitor.say(&n.to_string(), None).await;
        assert_eq!(ack["status"], "stored", "{ack}");
        said.push(n.to_string());
        assert_eq!(visitor.history().await, said);
    }
    let again = [visitor.say("once", Some("1")).await, visitor.say("once", Some("1")).await];
    assert_eq!(again[0], again[1]);
    assert_eq!(again[0]["status"], "stored", "{again:?}");
    visitor.nothing_is_pending().await;
}

#[tokio::test]
async fn while_nothing_is_stored_sends_are_acked_as_accepted_and_only_the_first_waits() {
    let stack = Stack::builder().gateway_env("STORED_WAIT", "4s").start().await;
    let visitor = Visitor::of(stack).await;
    visitor.stack.persister(0).pause();
    let (took, first) = visitor.client.timed("user_message", visitor.send("first", None)).await;
    assert_eq!(first["status"], "accepted", "{first}");
    assert!(took >= STORED_WAIT && took < STORED_WAIT + ACCEPTED_WITHIN, "{took:?}");
    let mut said = vec!["first".to_owned()];
    for n in 0..10 {
        let (took, ack) =
            visitor.client.timed("user_message", visitor.send(&n.to_string(), None)).await;
        assert_eq!(ack["status"], "accepted", "{ack}");
        assert!(took < ACCEPTED_WITHIN, "{took:?}");
        said.push(n.to_string());
    }
    assert_eq!(visitor.metric("chat_gateway_pending_sends").await, 11);
    visitor.stack.persister(0).resume();
    eventually(SOON, "all of it is stored", async || visitor.history().await == said).await;
    visitor.nothing_is_pending().await;
    assert_eq!(visitor.client.count("message_error").await, 0);
    eventually(SOON, "sends are acked as stored again", async || {
        visitor.say("after", None).await["status"] == "stored"
    })
    .await;
}

#[tokio::test]
async fn another_message_under_the_same_offset_is_a_conflict() {
    let stack = Stack::builder().gateways(2).gateway_env("STORED_WAIT", "60s").start().await;
    let visitor = Visitor::of(stack).await;
    let first = visitor.say("the first", Some("1")).await;
    assert_eq!(first["status"], "stored", "{first}");
    let other = visitor.say("another", Some("1")).await;
    assert_eq!(other["error"]["code"], "conflict", "{other}");
    // Both before either is stored, through two gateways: the first in the log stands.
    let url = visitor.stack.gateway(1).url("");
    let beside = JsClients::start().await.client(&url, &["websocket"]).await;
    visitor.stack.persister(0).pause();
    let sends = async {
        tokio::join!(
            visitor.say("one", Some("2")),
            beside.ask("user_message", visitor.send("two", Some("2")))
        )
    };
    let resumed = async {
        eventually(SOON, "both are in the log", async || {
            visitor.metric("chat_gateway_publishes_in_flight").await == 0
                && visitor.metric("chat_gateway_pending_sends").await == 1
        })
        .await;
        visitor.stack.persister(0).resume();
    };
    let ((one, two), ()) = tokio::join!(sends, resumed);
    let history = visitor.history().await;
    assert_eq!(history.len(), 2, "{history:?}");
    let (stored, refused) = if history[1] == "one" { (one, two) } else { (two, one) };
    assert_eq!(stored["status"], "stored", "{stored}");
    assert_eq!(refused["error"]["code"], "conflict", "{refused}");
}

#[tokio::test]
async fn an_accepted_message_of_a_session_that_was_erased_before_it_is_told_of() {
    let visitor = Visitor::of(Stack::start().await).await;
    visitor.stack.persister(0).pause();
    // In the log, and told to no gateway.
    let (session, erase) = Record::erase(&visitor.session.to_string());
    let subject = subjects::request(visitor.partition(), session);
    let jetstream = async_nats::jetstream::new(visitor.stack.nats_client().await);
    jetstream.publish(subject, erase.encode().unwrap().into()).await.unwrap().await.unwrap();
    let ack = visitor.say("too late", Some("1")).await;
    assert_eq!(ack["status"], "accepted", "{ack}");
    visitor.stack.persister(0).resume();
    eventually(SOON, "it is told of", async || visitor.client.count("message_error").await > 0)
        .await;
    let told = visitor.client.last("message_error").await;
    assert_eq!((&told["id"], &told["clientOffset"]), (&ack["id"], &json!("1")), "{told}");
    assert_eq!(told["error"]["code"], "session_not_found", "{told}");
    visitor.nothing_is_pending().await;
}

#[tokio::test]
async fn what_became_of_a_send_is_found_also_where_nobody_announced_it() {
    let stack = Stack::builder().gateway_env("STORED_WAIT", "60s").start().await;
    let visitor = Visitor::of(stack).await;
    let pool = visitor.stack.pool();
    visitor.stack.persister(0).kill();
    visitor.stored_by_another(&pool, "the same", "1").await;
    visitor.stored_by_another(&pool, "the first", "2").await;
    let sends = async {
        tokio::join!(visitor.say("the same", Some("1")), visitor.say("another", Some("2")))
    };
    let passed = async {
        eventually(SOON, "both are in the log", async || {
            visitor.metric("chat_gateway_publishes_in_flight").await == 0
                && visitor.metric("chat_gateway_pending_sends").await == 2
        })
        .await;
        visitor.passes(&pool).await;
    };
    let ((same, other), ()) = tokio::join!(sends, passed);
    assert_eq!(same["status"], "stored", "{same}");
    assert_eq!(other["error"]["code"], "conflict", "{other}");
    assert_eq!(visitor.metric("chat_gateway_fates_sought_total").await, 2);
}

/// Sends that are acked as accepted, since nothing is stored.
async fn accepted(visitor: &Visitor, name: &str, count: usize) -> Vec<String> {
    let said: Vec<_> = (0..count).map(|n| format!("{name} {n}")).collect();
    let sends = said.iter().map(|content| visitor.send(content, None)).collect();
    let acks = visitor.client.burst("user_message", sends).await;
    assert!(acks.iter().all(|ack| ack["status"] == "accepted"), "{acks:?}");
    said
}

async fn is_stored_and_shown_once(visitor: &Visitor, said: &[String]) {
    eventually(SOON, "all of it is stored", async || visitor.history().await == said).await;
    let text = |message: &Value| message["content"].as_str().unwrap().to_owned();
    eventually(SOON, "all of it is shown", async || {
        visitor.client.messages().await.iter().map(text).collect::<Vec<_>>() == said
    })
    .await;
    visitor.nothing_is_pending().await;
    assert_eq!(visitor.client.count("message_error").await, 0);
}

#[tokio::test]
async fn a_log_that_is_wiped_while_a_gateway_lives_loses_nothing_that_was_acked() {
    let visitor = Visitor::of(Stack::start().await).await;
    let mut said = vec!["stored".to_owned()];
    assert!(is_taken(&visitor.say("stored", None).await));
    eventually(SOON, "it is stored", async || visitor.history().await == said).await;
    let erased = JsClients::start().await.client(&visitor.stack.url(""), &["websocket"]).await;
    let gone = erased.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    visitor.stack.persister(0).kill();
    said.extend(accepted(&visitor, "accepted", 20).await);
    // A session that is opened and one that is erased, both only in the log.
    let other = JsClients::start().await.client(&visitor.stack.url(""), &["websocket"]).await;
    let opened = other.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    let hello = json!({ "sessionId": opened, "content": "Hello!" });
    assert_eq!(other.ask("user_message", hello).await["status"], "accepted");
    let url = visitor.stack.url(&format!("/api/chats/{gone}"));
    assert_eq!(visitor.stack.http().delete(url).send().await.unwrap().status(), 202);

    let nats = visitor.stack.nats();
    nats.kill().await;
    nats.wipe();
    nats.start().await;
    visitor.stack.persister(0).start().await;
    is_stored_and_shown_once(&visitor, &said).await;
    let chats = async || {
        let url = visitor.stack.url("/api/chats");
        let chats = visitor.stack.http().get(url).send().await.unwrap();
        chats.json::<Vec<Value>>().await.unwrap()
    };
    eventually(SOON, "one is opened and one is erased", async || {
        let chats = chats().await;
        let find = |id: &str| chats.iter().find(|chat| chat["sessionId"] == id);
        find(&gone).is_none()
            && find(&opened).is_some_and(|chat| chat["messages"][0]["content"] == "Hello!")
    })
    .await;
    // With the address of the visitor: it is its opening that was published again.
    let chats = chats().await;
    let chat = chats.iter().find(|chat| chat["sessionId"] == opened.as_str()).unwrap();
    assert!(chat["ip"].is_string(), "{chat}");
    assert!(visitor.metric("chat_gateway_published_again_total").await >= 23);
}

#[tokio::test]
async fn a_session_that_the_log_lost_is_not_called_unknown_before_it_can_be_published_again() {
    let builder = Stack::builder().gateways(2).proxy(Link::GatewayNats);
    let stack = builder.gateway_env("STORED_WAIT", "100ms").start().await;
    let js_clients = JsClients::start().await;
    let client = async |gateway: usize| {
        js_clients.client(&stack.gateway(gateway).url(""), &["websocket"]).await
    };
    let (visitor, neighbour) = (client(0).await, client(1).await);
    let hello = async |client: &Client, session: &Value| {
        client.ask("user_message", json!({ "sessionId": session, "content": "Hello!" })).await
    };
    let known = neighbour.stay(None).await["sessionId"].clone();
    stack.persister(0).kill();
    let lost = visitor.stay(None).await["sessionId"].clone();
    assert_eq!(hello(&visitor, &lost).await["status"], "accepted");

    // The gateway that could publish it again comes back last.
    let proxy = stack.proxy(Link::GatewayNats, 0);
    proxy.cut();
    stack.nats().kill().await;
    stack.nats().wipe();
    stack.nats().start().await;
    eventually(SOON, "the other gateway publishes again", async || {
        let returned = neighbour.ask("init_session", json!({ "sessionId": lost })).await;
        assert_eq!(returned["sessionId"], lost, "another one was opened in its place");
        assert_eq!(hello(&neighbour, &lost).await["error"]["code"], "unavailable");
        hello(&neighbour, &known).await["status"] == "accepted"
    })
    .await;
    proxy.mend();
    eventually(SOON, "it is there again", async || {
        hello(&neighbour, &lost).await["status"] == "accepted"
    })
    .await;
    // After a while, who was never there is not.
    let nobody = json!(SessionId::random().to_string());
    eventually(SOON, "an unknown session is called so", async || {
        hello(&neighbour, &nobody).await["error"]["code"] == "session_not_found"
    })
    .await;
}

#[tokio::test]
async fn a_log_that_loses_its_tail_while_a_gateway_lives_loses_nothing_that_was_acked() {
    let visitor = Visitor::of(Stack::start().await).await;
    visitor.stack.persister(0).kill();
    let mut said = accepted(&visitor, "kept", 5).await;
    let nats = visitor.stack.nats();
    let copy = nats.store().with_extension("copy");
    nats.stop().await;
    copy_folder(&nats.store(), &copy).unwrap();
    nats.start().await;
    eventually(SOON, "the gateway publishes again", async || {
        visitor.say("between", Some("1")).await["status"] == "accepted"
    })
    .await;
    said.push("between".to_owned());
    said.extend(accepted(&visitor, "lost", 5).await);
    nats.stop().await;
    nats.wipe();
    copy_folder(&copy, &nats.store()).unwrap();
    nats.start().await;
    eventually(SOON, "the gateway publishes again", async || {
        visitor.say("after", Some("2")).await["status"] == "accepted"
    })
    .await;
    said.push("after".to_owned());
    visitor.stack.persister(0).start().await;
    is_stored_and_shown_once(&visitor, &said).await;
}

#[tokio::test]
async fn what_a_log_lost_is_published_again_to_the_end_however_often_that_breaks_off() {
    // Room for what it keeps and for some of what is published again, until a persister makes more.
    let builder = Stack::builder().env("LOG_MAX_BYTES", "66000");
    let visitor = Visitor::of(builder.start().await).await;
    visitor.stack.persister(0).kill();
    let long = |name: &str| format!("{name} {}", "x".repeat(400));
    let mut said = accepted(&visitor, &long("kept"), 60).await;
    let nats = visitor.stack.nats();
    let copy = nats.store().with_extension("copy");
    nats.pause().await;
    copy_folder(&nats.store(), &copy).unwrap();
    nats.resume().await;
    said.extend(accepted(&visitor, &long("lost"), 12).await);
    nats.kill().await;
    nats.wipe();
    std::fs::rename(&copy, nats.store()).unwrap();
    nats.start().await;
    let again = async || visitor.metric("chat_gateway_published_again_total").await;
    eventually(SOON, "some of it is published again", async || again().await > 20).await;
    assert!(again().await < 60, "there is room for all of it");
    visitor.stack.persister(0).start().await;
    is_stored_and_shown_once(&visitor, &said).await;
}

#[tokio::test]
async fn a_log_that_is_deleted_behind_a_connection_that_stays_loses_nothing_that_was_acked() {
    let visitor = Visitor::of(Stack::start().await).await;
    visitor.stack.persister(0).kill();
    let said = accepted(&visitor, "accepted", 10).await;
    let jetstream = async_nats::jetstream::new(visitor.stack.nats_client().await);
    jetstream.delete_stream("CHAT").await.unwrap();
    visitor.stack.persister(0).start().await;
    is_stored_and_shown_once(&visitor, &said).await;
}
