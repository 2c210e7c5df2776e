//! A record that cannot be stored is set aside with its reason, and never stops its partition.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use async_nats::jetstream;
use serde_json::{Value, json};
use tests::{Client, JsClients, Stack, eventually};

const SOON: Duration = Duration::from_secs(15);

/// A stack with one session, and the way to its partition past the gateway.
struct Poisoned {
    stack: Stack,
    client: Client,
    session: String,
    subject: String,
    jetstream: jetstream::Context,
    dead: i64,
}

/// What stands in the table.
#[derive(sqlx::FromRow)]
struct DeadLetter {
    id: i64,
    subject: String,
    payload: Vec<u8>,
    reason: String,
    #[sqlx(rename = "logSequence")]
    log_sequence: i64,
}

impl Poisoned {
    async fn start() -> Self {
        let stack = Stack::start().await;
        let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
        let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
        let jetstream = jetstream::new(stack.nats_client().await);
        let log = jetstream.get_stream("CHAT").await.unwrap();
        let opened = log.direct_get_last_for_subject(format!("chat.requests.*.{session}")).await;
        let subject = opened.unwrap().subject.to_string();
        Self { stack, client, session, subject, jetstream, dead: 0 }
    }

    /// In the same partition as the session.
    fn beside(&self, session: &str) -> String {
        self.subject.replace(&self.session, session)
    }

    async fn publish(&self, subject: &str, record: impl Into<Vec<u8>>) -> u64 {
        let record: Vec<u8> = record.into();
        let ack = self.jetstream.publish(subject.to_owned(), record.into()).await.unwrap();
        ack.await.unwrap().sequence
    }

    async fn say(&self, content: &str) {
        let message = json!({ "sessionId": self.session, "content": content });
        assert_eq!(self.client.ask("user_message", message).await["status"], "accepted");
    }

    /// Waits until these and no others were broadcast and stored.
    async fn said(&self, contents: &[&str]) {
        eventually(SOON, "everything is broadcast", async || {
            self.client.messages().await.len() >= contents.len()
        })
        .await;
        assert_eq!(words(&self.client.messages().await), contents);
        let url = self.stack.url(&format!("/api/chats/{}", self.session));
        let history = self.stack.http().get(url).send().await.unwrap().json::<Vec<Value>>().await;
        assert_eq!(words(&history.unwrap()), contents);
    }

    /// Waits for dead letters that were not looked at yet.
    async fn set_aside(&mut self, count: usize) -> Vec<DeadLetter> {
        let sql = r#"SELECT "id", "subject", "payload", "reason", "logSequence" FROM "DeadLetter"
                     WHERE "id" > $1 ORDER BY "id""#;
        let pool = self.stack.pool();
        let mut letters: Vec<DeadLetter> = Vec::new();
        eventually(SOON, "it is set aside", async || {
            letters = sqlx::query_as(sql).bind(self.dead).fetch_all(&pool).await.unwrap();
            letters.len() >= count
        })
        .await;
        assert_eq!(letters.len(), count);
        self.dead = letters.last().map_or(self.dead, |last| last.id);
        letters
    }

    /// `persister dead-letters …`
    async fn command(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program().await);
        command.arg("dead-letters").args(args).env_clear().current_dir(std::env::temp_dir());
        command.env("DATABASE_URL", self.stack.database_url());
        command.env("NATS_URL", self.stack.nats().url());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn prints(&self, args: &[&str]) -> String {
        let output = self.command(args).await;
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

async fn program() -> PathBuf {
    tokio::task::spawn_blocking(|| tests::program("persister")).await.unwrap()
}

fn words(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["content"].as_str().unwrap()).collect()
}

fn message(id: char, content: &str) -> String {
    let id = format!("c{}", id.to_string().repeat(24));
    json!({ "message": { "id": id, "sender": "user", "content": content } }).to_string()
}

/// What a gateway never writes, and a bug or a stranger may.
fn poison() -> Vec<Vec<u8>> {
    let id = "c00000000000000000000000z";
    vec![
        Vec::new(),
        b"garbage".to_vec(),
        vec![0xff, 0xfe, 0x00, 0x80],
        b"null".to_vec(),
        b"{}".to_vec(),
        br#"{"\u0000":{}}"#.to_vec(),
        br#"{"erase":{}}"#.to_vec(),
        "[".repeat(100_000).into_bytes(),
        message('a', "U+0000: \u{0}").into_bytes(),
        message('b', "x").replace("user", "nobody").into_bytes(),
        message('c', "x").replace("\"x\"", "42").into_bytes(),
        message('d', "x").replace("\"x\"", r#""\ud800""#).into_bytes(),
        message('E', "x").into_bytes(),
        json!({ "message": { "id": id, "sender": "user" } }).to_string().into_bytes(),
        json!({ "session": { "id": "x" } }).to_string().into_bytes(),
        json!({ "session": { "id": id, "ip": null, "userAgent": "\u{0}" } })
            .to_string()
            .into_bytes(),
    ]
}

#[tokio::test]
async fn poison_is_set_aside_with_its_bytes_and_a_reason_and_the_partition_goes_on() {
    let mut poisoned = Poisoned::start().await;
    let subject = poisoned.subject.clone();
    for record in poison() {
        let sequence = poisoned.publish(&subject, record.clone()).await;
        let letter = poisoned.set_aside(1).await.remove(0);
        assert_eq!(letter.payload, record);
        assert_eq!(letter.subject, subject);
        assert_eq!(letter.log_sequence, i64::try_from(sequence).unwrap());
        assert!(!letter.reason.is_empty());
    }
    poisoned.say("after all that").await;
    poisoned.said(&["after all that"]).await;
}

#[tokio::test]
async fn poison_among_good_records_takes_none_of_them_with_it() {
    let mut poisoned = Poisoned::start().await;
    let subject = poisoned.subject.clone();
    // All of them wait for the persister, so that they come to it as one batch.
    poisoned.stack.persister(0).kill();
    let poison = poison();
    let said: Vec<_> = (0..=poison.len()).map(|n| n.to_string()).collect();
    for (said, record) in said.iter().zip(&poison) {
        poisoned.say(said).await;
        poisoned.publish(&subject, record.clone()).await;
    }
    poisoned.say(&said[poison.len()]).await;
    poisoned.stack.persister(0).start().await;
    poisoned.said(&said.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let letters = poisoned.set_aside(poison.len()).await;
    let mut payloads: Vec<_> = letters.into_iter().map(|letter| letter.payload).collect();
    let mut wanted = poison;
    payloads.sort();
    wanted.sort();
    assert_eq!(payloads, wanted);
}

#[tokio::test]
async fn a_record_of_no_session_is_set_aside_and_those_beside_it_are_stored() {
    let mut poisoned = Poisoned::start().await;
    let nobody = poisoned.beside("11111111-1111-4111-8111-111111111111");
    let foreign = poisoned.beside("nobody");
    poisoned.stack.persister(0).kill();
    poisoned.say("before").await;
    poisoned.publish(&nobody, message('a', "to nobody")).await;
    poisoned.publish(&foreign, message('b', "to no id")).await;
    poisoned.say("after").await;
    poisoned.stack.persister(0).start().await;
    poisoned.said(&["before", "after"]).await;
    let mut letters = poisoned.set_aside(2).await;
    letters.sort_by_key(|letter| letter.log_sequence);
    let [orphan, foreigner] = letters.try_into().ok().unwrap();
    assert_eq!((orphan.subject, foreigner.subject), (nobody, foreign));
    let record: Value = serde_json::from_slice(&orphan.payload).unwrap();
    assert_eq!(record["message"]["content"], "to nobody");
    assert_eq!(record["message"]["id"], format!("c{}", "a".repeat(24)));
    assert!(orphan.reason.contains("session"), "{}", orphan.reason);
    assert!(foreigner.reason.contains("session"), "{}", foreigner.reason);
}

#[tokio::test]
async fn a_record_that_stands_in_the_log_again_changes_nothing() {
    let mut poisoned = Poisoned::start().await;
    let subject = poisoned.subject.clone();
    for content in ["first", "second"] {
        poisoned.publish(&subject, message('a', content)).await;
    }
    let again = json!({ "session": { "id": format!("c{}", "b".repeat(24)), "ip": null, "userAgent": null } });
    poisoned.publish(&subject, again.to_string()).await;
    poisoned.say("end").await;
    poisoned.said(&["first", "end"]).await;
    poisoned.set_aside(0).await;
    let sessions: i64 = sqlx::query_scalar(r#"SELECT count(*) FROM "ChatSession""#)
        .fetch_one(&poisoned.stack.pool())
        .await
        .unwrap();
    assert_eq!(sessions, 1);
}

#[tokio::test]
async fn dead_letters_are_listed_shown_requeued_and_dropped() {
    let mut poisoned = Poisoned::start().await;
    let early = "22222222-2222-4222-8222-222222222222";
    let subject = poisoned.beside(early);
    poisoned.publish(&subject, message('a', "too early")).await;
    poisoned.publish(&poisoned.subject, "garbage").await;
    let letters = poisoned.set_aside(2).await;
    let [orphan, garbage] = [&letters[0], &letters[1]].map(|letter| letter.id.to_string());

    let list = poisoned.prints(&["list"]).await;
    assert_eq!(list.lines().count(), 2, "{list}");
    assert!(list.starts_with(&orphan) && list.contains(&letters[0].reason), "{list}");
    let shown = poisoned.prints(&["show", &orphan]).await;
    assert!(shown.contains("too early"), "{shown}");
    assert_eq!(poisoned.prints(&["show", &garbage]).await.trim(), "garbage");

    // What kept it from being stored is mended: now there is the session.
    let session = json!({ "session": { "id": format!("c{}", "c".repeat(24)), "ip": null, "userAgent": null } });
    poisoned.publish(&subject, session.to_string()).await;
    poisoned.prints(&["requeue", &orphan]).await;
    eventually(SOON, "it is stored", async || {
        let stored = r#"SELECT EXISTS (SELECT FROM "Message" WHERE "content" = 'too early')"#;
        sqlx::query_scalar(stored).fetch_one(&poisoned.stack.pool()).await.unwrap()
    })
    .await;
    poisoned.prints(&["drop", &garbage]).await;
    assert_eq!(poisoned.prints(&["list"]).await, "");
    assert!(!poisoned.command(&["show", &garbage]).await.status.success());
    assert!(!poisoned.command(&["drop", &garbage]).await.status.success());
}
