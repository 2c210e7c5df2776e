//! A record that cannot be stored is set aside with its reason, and never stops its partition.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use async_nats::jetstream;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tests::{Client, JsClients, Stack, eventually, is_taken};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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
        assert!(is_taken(&self.client.ask("user_message", message).await));
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

    async fn is_stored(&self, content: &str) {
        let pool = self.stack.pool();
        eventually(SOON, content, async || {
            let stored = r#"SELECT EXISTS (SELECT FROM "Message" WHERE "content" = $1)"#;
            sqlx::query_scalar(stored).bind(content).fetch_one(&pool).await.unwrap()
        })
        .await;
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

/// Or anybody who puts one into each batch would have every record stored by a statement of its own.
#[tokio::test]
async fn a_record_that_postgres_refuses_costs_its_neighbours_a_few_statements() {
    let mut poisoned = Poisoned::start().await;
    let subject = poisoned.subject.clone();
    poisoned.stack.persister(0).kill();
    let said: Vec<_> = (0..400).map(|number| number.to_string()).collect();
    for (number, said) in said.iter().enumerate() {
        if number == 123 {
            poisoned.publish(&subject, message('a', "U+0000: \u{0}")).await;
        }
        let id = format!("c{number:024}");
        let record = message('a', said).replace(&format!("c{}", "a".repeat(24)), &id);
        poisoned.publish(&subject, record).await;
    }
    poisoned.stack.persister(0).start().await;
    poisoned.said(&said.iter().map(String::as_str).collect::<Vec<_>>()).await;
    poisoned.set_aside(1).await;
    let url = poisoned.stack.persister(0).ops_url("/metrics");
    let metrics = poisoned.stack.http().get(url).send().await.unwrap().text().await.unwrap();
    let name = "chat_persister_commit_seconds_count ";
    let statements = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let statements: u32 = statements.trim().parse().unwrap();
    assert!(statements < 60, "{statements} statements");
}

#[tokio::test]
async fn a_record_of_no_session_is_set_aside_and_those_beside_it_are_stored() {
    let mut poisoned = Poisoned::start().await;
    let foreign = poisoned.beside("nobody");
    // Longer than what an index of Postgres takes, and nearly what NATS takes.
    let long = poisoned.beside(&"x".repeat(3_400));
    let random: String =
        (0..200).map(|_| shared::ids::SessionId::random().to_string().replace('-', "")).collect();
    let incompressible = poisoned.beside(&random[..3_900]);
    poisoned.stack.persister(0).kill();
    poisoned.say("before").await;
    for subject in [&foreign, &long, &incompressible] {
        poisoned.publish(subject, message('b', "to no id")).await;
    }
    poisoned.say("after").await;
    poisoned.stack.persister(0).start().await;
    poisoned.said(&["before", "after"]).await;
    let mut letters = poisoned.set_aside(3).await;
    letters.sort_by_key(|letter| letter.log_sequence);
    for (letter, subject) in letters.iter().zip([foreign, long, incompressible]) {
        assert_eq!(letter.subject, subject);
        assert!(letter.reason.contains("session"), "{}", letter.reason);
        assert!(letter.reason.chars().count() <= 500, "{}", letter.reason);
    }
}

/// `chat_persister_records_foreign_total`
async fn foreign(stack: &Stack) -> u64 {
    let metrics = stack.http().get(stack.persister(0).ops_url("/metrics")).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let line =
        metrics.lines().find(|line| line.starts_with("chat_persister_records_foreign_total "));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_record_of_no_partition_is_counted_and_passed_over() {
    let poisoned = Poisoned::start().await;
    let session = &poisoned.session;
    let long = "9".repeat(3_400);
    let tokens = ["x", "16", "65536", "-1", "+1", "007", "1e1", "*", "¹", long.as_str()];
    for (count, token) in tokens.iter().enumerate() {
        let name = if count % 2 == 0 { "y" } else { session.as_str() };
        poisoned.publish(&format!("chat.requests.{token}.{name}"), message('a', "lost")).await;
    }
    poisoned.say("after all that").await;
    poisoned.said(&["after all that"]).await;
    assert_eq!(foreign(&poisoned.stack).await, tokens.len() as u64);
    let logs = poisoned.stack.persister(0).logs();
    assert_eq!(logs.matches("subjects of no partition").count(), 1, "{logs}");
    assert!(!logs.contains("reading the log anew"), "{logs}");
}

/// Has Postgres refuse some messages with the SQLSTATE that they name.
const REFUSES: &str = r#"
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW."content" LIKE 'refuse %' THEN
            RAISE EXCEPTION 'not this' USING ERRCODE = substr(NEW."content", 8);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON "Message" FOR EACH ROW EXECUTE FUNCTION refuse()"#;

#[tokio::test]
async fn whatever_lasting_error_a_record_causes_it_alone_is_set_aside() {
    let mut poisoned = Poisoned::start().await;
    let pool = poisoned.stack.pool();
    sqlx::raw_sql(REFUSES).execute(&pool).await.unwrap();
    let lasting = ["22021", "23514", "54000", "42804", "44000", "21000", "P0001", "42501", "99999"];
    let mut said = Vec::new();
    poisoned.stack.persister(0).kill();
    for state in lasting {
        poisoned.say(&format!("before {state}")).await;
        poisoned.say(&format!("refuse {state}")).await;
        said.push(format!("before {state}"));
    }
    poisoned.say("end").await;
    said.push("end".to_owned());
    poisoned.stack.persister(0).start().await;
    poisoned.said(&said.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for letter in poisoned.set_aside(lasting.len()).await {
        assert!(letter.reason.contains("not this"), "{}", letter.reason);
    }
}

#[tokio::test]
async fn what_is_no_fault_of_a_record_is_waited_for() {
    let mut poisoned = Poisoned::start().await;
    let pool = poisoned.stack.pool();
    sqlx::raw_sql(REFUSES).execute(&pool).await.unwrap();
    let mut said: Vec<String> = Vec::new();
    let faults = [
        (
            r#"ALTER TABLE "Message" RENAME COLUMN "isAI" TO "was"; SELECT 1"#,
            r#"ALTER TABLE "Message" RENAME COLUMN "was" TO "isAI""#,
            "no column",
        ),
        (
            r#"ALTER TABLE "DeadLetter" RENAME TO "Gone""#,
            r#"ALTER TABLE "Gone" RENAME TO "DeadLetter""#,
            "refuse 23514",
        ),
        ("SELECT 1", "DROP TRIGGER refuse ON \"Message\"", "refuse 53100"),
    ];
    for (breaks, mends, content) in faults {
        poisoned.stack.persister(0).kill();
        sqlx::raw_sql(breaks).execute(&pool).await.unwrap();
        poisoned.say(content).await;
        poisoned.stack.persister(0).spawn();
        let told = poisoned.stack.persister(0).logs().matches("not stored yet").count();
        eventually(SOON, "it is tried again", async || {
            poisoned.stack.persister(0).logs().matches("not stored yet").count() > told + 2
        })
        .await;
        sqlx::raw_sql(mends).execute(&pool).await.unwrap();
        if content == "refuse 23514" {
            let letter = poisoned.set_aside(1).await.remove(0);
            assert!(letter.reason.contains("not this"), "{}", letter.reason);
        } else {
            said.push(content.to_owned());
        }
        poisoned.said(&said.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    poisoned.set_aside(0).await;
}

/// A subject of the log, and what stands there.
fn any_record(session: &str) -> impl Strategy<Value = (String, Vec<u8>)> {
    let partition = prop_oneof![
        4 => (0..16u32).prop_map(|number| number.to_string()),
        1 => (0..70_000u32).prop_map(|number| number.to_string()),
        1 => "[^\\s.\\x00-\\x20*>]{1,1000}",
        1 => Just("*".to_owned()),
    ];
    let name = prop_oneof![
        1 => Just(session.to_owned()),
        2 => any::<u128>().prop_map(|_| shared::ids::SessionId::random().to_string()),
        1 => "[^\\s.\\x00-\\x20*>]{1,700}",
        1 => "[a-z0-9]{2705,2900}",
    ];
    let id = prop_oneof!["c[a-z0-9]{24}", "[a-z0-9]{0,40}", any::<String>()];
    let json = (id, any::<String>(), any::<bool>(), 0..4).prop_map(|(id, text, flag, kind)| {
        let record = match kind {
            0 => {
                json!({ "message": { "id": id, "sender": "user", "content": text, "isAI": flag } })
            }
            1 => json!({ "session": { "id": id, "ip": text, "userAgent": text } }),
            2 => json!({ "erase": { "sessionId": text } }),
            _ => json!({ text: { "id": id } }),
        };
        record.to_string().into_bytes()
    });
    let payload = prop_oneof![
        3 => json,
        2 => proptest::collection::vec(any::<u8>(), 0..2_000),
        1 => Just(message('a', "U+0000: \u{0}").into_bytes()),
    ];
    (partition, name, payload).prop_map(|(partition, name, payload)| {
        (format!("chat.requests.{partition}.{name}"), payload)
    })
}

#[tokio::test]
async fn a_thousand_records_of_any_kind_hold_up_nobody() {
    let poisoned = Poisoned::start().await;
    let mut runner = TestRunner::default();
    let mut taken = 0;
    for _ in 0..1_000 {
        let record = any_record(&poisoned.session);
        let (subject, payload) = record.new_tree(&mut runner).unwrap().current();
        let ack = poisoned.jetstream.publish(subject, payload.into()).await;
        let Ok(ack) = ack else { continue };
        taken += u32::from(ack.await.is_ok());
    }
    assert!(taken > 900, "only {taken} were taken");
    poisoned.say("honest").await;
    poisoned.is_stored("honest").await;
    let logs = poisoned.stack.persister(0).logs();
    assert!(!logs.contains("reading the log anew") && !logs.contains("panicked"), "{logs}");
}

/// Puts a record into the log byte by byte as it is given, as no library would.
async fn put_bytes(stack: &Stack, subject: &[u8], headers: &[u8], payload: &[u8]) {
    let address = stack.nats().url().replace("nats://", "");
    let mut nats = TcpStream::connect(address).await.unwrap();
    let mut sent = b"CONNECT {\"verbose\":false,\"headers\":true}\r\nSUB taken 1\r\nHPUB ".to_vec();
    sent.extend_from_slice(subject);
    let (before, all) = (headers.len(), headers.len() + payload.len());
    sent.extend_from_slice(format!(" taken {before} {all}\r\n").as_bytes());
    for part in [headers, payload, b"\r\n"] {
        sent.extend_from_slice(part);
    }
    nats.write_all(&sent).await.unwrap();
    let mut heard = String::new();
    eventually(SOON, "it is in the log", async || {
        let mut bytes = [0; 4_096];
        let read = nats.read(&mut bytes).await.unwrap();
        assert_ne!(read, 0, "{heard}");
        heard += &String::from_utf8_lossy(&bytes[..read]);
        assert!(!heard.contains("-ERR") && !heard.contains("\"error\""), "{heard}");
        heard.contains("\"seq\"")
    })
    .await;
}

/// Headers that the client library cannot read: it ends its connection over them.
const UNREADABLE_HEADERS: [&[u8]; 5] = [
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\n\xff: not UTF-8\r\n\r\n",
    b"NATS/1.0\r\nname with blanks: x\r\n\r\n",
    b"NATS/1.0 soon\r\n\r\n",
    b"HTTP/1.1 200\r\n\r\n",
];

#[tokio::test]
async fn records_whose_headers_or_subjects_cannot_be_read_hold_up_nobody() {
    let poisoned = Poisoned::start().await;
    for (headers, id) in UNREADABLE_HEADERS.into_iter().zip('a'..) {
        let content = format!("beside {}", String::from_utf8_lossy(headers).trim());
        let record = message(id, &content);
        put_bytes(&poisoned.stack, poisoned.subject.as_bytes(), headers, record.as_bytes()).await;
        poisoned.is_stored(&content).await;
    }
    let beside = [poisoned.beside("").as_bytes(), b"\xff\xfe"].concat();
    put_bytes(&poisoned.stack, &beside, UNREADABLE_HEADERS[0], b"garbage").await;
    put_bytes(&poisoned.stack, b"chat.requests.\xff.x", b"NATS/1.0\r\n\r\n", b"garbage").await;
    poisoned.say("honest").await;
    poisoned.is_stored("honest").await;
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
    let pool = poisoned.stack.pool();
    let refuse = r#"ALTER TABLE "Message" ADD CONSTRAINT early CHECK ("content" <> 'too early')"#;
    sqlx::query(refuse).execute(&pool).await.unwrap();
    let subject = poisoned.subject.clone();
    poisoned.publish(&subject, message('a', "too early")).await;
    poisoned.publish(&subject, "garbage").await;
    let letters = poisoned.set_aside(2).await;
    let [early, garbage] = [&letters[0], &letters[1]].map(|letter| letter.id.to_string());

    let list = poisoned.prints(&["list"]).await;
    assert_eq!(list.lines().count(), 2, "{list}");
    assert!(list.starts_with(&early) && list.contains(&letters[0].reason), "{list}");
    let shown = poisoned.prints(&["show", &early]).await;
    assert!(shown.contains("too early"), "{shown}");
    assert_eq!(poisoned.prints(&["show", &garbage]).await.trim(), "garbage");

    // What kept it from being stored is mended.
    sqlx::query(r#"ALTER TABLE "Message" DROP CONSTRAINT early"#).execute(&pool).await.unwrap();
    poisoned.prints(&["requeue", &early]).await;
    eventually(SOON, "it is stored", async || {
        let stored = r#"SELECT EXISTS (SELECT FROM "Message" WHERE "content" = 'too early')"#;
        sqlx::query_scalar(stored).fetch_one(&pool).await.unwrap()
    })
    .await;
    poisoned.prints(&["drop", &garbage]).await;
    assert_eq!(poisoned.prints(&["list"]).await, "");
    let none = poisoned.command(&["list"]).await.stderr;
    assert!(String::from_utf8(none).unwrap().starts_with("there are no dead letters"));
    assert!(!poisoned.command(&["show", &garbage]).await.status.success());
    assert!(!poisoned.command(&["drop", &garbage]).await.status.success());
}
