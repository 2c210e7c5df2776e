//! What becomes of a person's data: it can be exported, it can be erased, and what is erased is gone.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Backups, Client, Conversation, JsClients, Link, Stack, eventually, is_taken};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

const SOON: Duration = Duration::from_secs(20);
/// A look of the persister at what it removes from the log, on a busy machine.
const CLEARED_WITHIN: Duration = Duration::from_secs(30);
/// A command that waits for the persisters.
const ENDS_WITHIN: Duration = Duration::from_secs(90);

/// `persister sessions …`
async fn command(stack: &Stack, args: &[&str]) -> Command {
    let program = tokio::task::spawn_blocking(|| tests::program("persister")).await.unwrap();
    let mut command = Command::new(program);
    command.arg("sessions").args(args).env_clear().current_dir(std::env::temp_dir());
    command.env("DATABASE_URL", stack.database_url()).env("NATS_URL", stack.nats().url());
    command.kill_on_drop(true);
    command
}

async fn run(stack: &Stack, args: &[&str]) -> Output {
    let mut command = command(stack, args).await;
    tokio::time::timeout(ENDS_WITHIN, command.output()).await.unwrap().unwrap()
}

async fn prints(stack: &Stack, args: &[&str]) -> String {
    let output = run(stack, args).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn get(stack: &Stack, gateway: usize, path: &str) -> (u16, Value) {
    let answer = stack.http().get(stack.gateway(gateway).url(path)).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn delete(stack: &Stack, session: &str) -> (u16, Value) {
    let url = stack.url(&format!("/api/chats/{session}"));
    let answer = stack.http().delete(url).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn erase(stack: &Stack, session: &str) {
    let accepted = json!({ "sessionId": session, "status": "accepted" });
    assert_eq!(delete(stack, session).await, (202, accepted));
}

/// A client of each gateway.
async fn clients(stack: &Stack, js_clients: &JsClients) -> Vec<Client> {
    let mut clients = Vec::new();
    for gateway in stack.gateways() {
        clients.push(js_clients.client(&gateway.url(""), &["websocket"]).await);
    }
    clients
}

async fn open(client: &Client) -> String {
    client.ask("init_session", json!({})).await["sessionId"].as_str().unwrap().to_owned()
}

async fn send(client: &Client, session: &str, content: &str) -> Value {
    client.ask("user_message", json!({ "sessionId": session, "content": content })).await
}

async fn say(client: &Client, session: &str, content: &str) {
    assert!(is_taken(&send(client, session, content).await), "{content}");
}

async fn is_stored(stack: &Stack, session: &str, contents: &[&str]) {
    eventually(SOON, &format!("stored: {contents:?}"), async || {
        let (_, history) = get(stack, 0, &format!("/api/chats/{session}")).await;
        let stored: Vec<_> = history.as_array().into_iter().flatten().collect();
        stored.len() == contents.len()
            && stored.iter().zip(contents).all(|(one, wanted)| one["content"] == *wanted)
    })
    .await;
}

/// Waits until nobody knows the session any more: no gateway, in none of their answers.
async fn is_unknown_everywhere(stack: &Stack, js_clients: &JsClients, session: &str) {
    for (gateway, client) in clients(stack, js_clients).await.iter().enumerate() {
        eventually(SOON, "the session is unknown", async || {
            send(client, session, "is anybody there?").await["error"]["code"] == "session_not_found"
        })
        .await;
        eventually(SOON, "its history is empty", async || {
            get(stack, gateway, &format!("/api/chats/{session}")).await == (200, json!([]))
        })
        .await;
        let named = json!({ "sessionId": session });
        for event in ["admin_message", "user_message"] {
            let message = json!({ "sessionId": session, "content": "too late" });
            assert_eq!(client.ask(event, message).await["error"]["code"], "session_not_found");
        }
        let joined = client.ask("admin-join-session", named.clone()).await;
        assert_eq!(joined["error"]["code"], "session_not_found", "{joined}");
        assert_eq!(client.ask("get-messages", named.clone()).await, json!({ "messages": [] }));
        let opened = client.ask("init_session", named).await;
        assert_eq!(opened["resumed"], false, "{opened}");
        assert_ne!(opened["sessionId"], *session);
        let listed = client.ask("get-all-sessions", json!({})).await["sessions"].to_string();
        assert!(!listed.contains(session), "{listed}");
        assert!(!get(stack, gateway, "/api/chats").await.1.to_string().contains(session));
        assert_eq!(get(stack, gateway, &format!("/api/chats/{session}/export")).await.0, 404);
    }
    assert_eq!(delete(stack, session).await.0, 404);
}

/// Whether some row of some table holds one of these texts.
async fn holds(pool: &PgPool, texts: &[&str]) -> bool {
    let tables = "SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(pool).await.unwrap();
    for table in tables {
        let sql = format!(
            r#"SELECT EXISTS (SELECT FROM "{table}" t, unnest($1::text[]) x WHERE strpos(t::text, x) > 0)"#
        );
        let found = sqlx::query_scalar(AssertSqlSafe(sql)).bind(texts).fetch_one(pool).await;
        if found.unwrap_or(true) {
            return true;
        }
    }
    false
}

async fn is_nowhere(stack: &Stack, texts: &[&str]) {
    let pool = stack.pool();
    eventually(SOON, "no table holds it", async || !holds(&pool, texts).await).await;
}

async fn log(stack: &Stack) -> Stream {
    let jetstream = async_nats::jetstream::new(stack.nats_client().await);
    jetstream.get_stream("CHAT").await.unwrap()
}

/// What the log holds of a session.
async fn records(log: &Stream, session: &str) -> Vec<Value> {
    let state = log.get_info().await.unwrap().state;
    let mut records = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        match log.get_raw_message(sequence).await {
            Ok(record) if record.subject.ends_with(session) => {
                records.push(serde_json::from_slice(&record.payload).unwrap_or(Value::Null));
            }
            Ok(record) => {
                let text = String::from_utf8_lossy(&record.payload).into_owned();
                assert!(!text.contains(session), "{text}");
            }
            Err(error) => assert_eq!(error.kind(), RawMessageErrorKind::NoMessageFound),
        }
    }
    records
}

/// Waits until the log holds the record that erased the session, and nothing else of it.
async fn only_the_erasure_is_in_the_log(stack: &Stack, session: &str) {
    let log = log(stack).await;
    let erasure = json!({ "erase": { "sessionId": session } });
    eventually(CLEARED_WITHIN, "only the erasure is left in the log", async || {
        records(&log, session).await == [erasure.clone()]
    })
    .await;
}

async fn restart(stack: &Stack) {
    for service in stack.persisters().iter().chain(stack.gateways()) {
        service.kill();
    }
    stack.start_services().await;
}

/// The key of a session's row, and its visitor's address.
async fn key(stack: &Stack, session: &str) -> String {
    let (status, exported) = get(stack, 0, &format!("/api/chats/{session}/export")).await;
    assert_eq!(status, 200);
    exported["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_session_that_is_erased_while_both_sides_talk_is_gone_and_its_neighbours_notice_nothing()
{
    // One partition: the neighbour's messages stand among those that are erased.
    let stack = Stack::builder().gateways(2).persisters(2).env("PARTITIONS", "1").start().await;
    let js_clients = JsClients::start().await;
    let inbox = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    inbox.ask("admin-connect", json!({})).await;
    let erased = Conversation::begin(&stack, &js_clients).await;
    let neighbour = Conversation::begin_on(&stack, &js_clients, 1).await;
    erased.is_delivered(20).await;
    let session = erased.session.as_str();
    say(&erased.visitor, session, "a confession").await;
    let key = key(&stack, session).await;
    eventually(SOON, "the inbox lists it", async || {
        inbox
            .seen("sessions-list")
            .await
            .last()
            .is_some_and(|list| list.to_string().contains(session))
    })
    .await;

    erase(&stack, session).await;
    is_unknown_everywhere(&stack, &js_clients, session).await;
    for client in [&erased.visitor, &erased.admin] {
        let refused = client.refused().await + 3;
        eventually(SOON, "both are refused", async || client.refused().await >= refused).await;
        let talk = client.hush().await;
        assert_eq!(talk.refused.last().unwrap(), "session_not_found");
        let silent = client.messages().await.len();
        neighbour.is_delivered(20).await;
        assert_eq!(client.messages().await.len(), silent);
    }
    eventually(SOON, "the inbox lists it no more", async || {
        inbox
            .seen("sessions-list")
            .await
            .last()
            .is_some_and(|list| !list.to_string().contains(session))
    })
    .await;
    is_nowhere(&stack, &[session, &key, "a confession"]).await;
    only_the_erasure_is_in_the_log(&stack, session).await;

    neighbour.is_delivered(20).await;
    restart(&stack).await;
    is_unknown_everywhere(&stack, &js_clients, session).await;
    neighbour.is_delivered(20).await;
    neighbour.end(&stack).await;
    is_nowhere(&stack, &[session, &key, "a confession"]).await;
    only_the_erasure_is_in_the_log(&stack, session).await;
    for persister in stack.persisters() {
        let logs = persister.logs();
        assert!(!logs.contains("are lost") && !logs.contains("is not the log"), "{logs}");
        assert!(!logs.contains("set aside"), "{logs}");
    }
}

#[tokio::test]
async fn what_stands_in_the_log_behind_an_erasure_is_refused_and_removed() {
    let stack = Stack::builder().gateways(2).start().await;
    let js_clients = JsClients::start().await;
    let clients = clients(&stack, &js_clients).await;
    let session = open(&clients[0]).await;
    let other = open(&clients[1]).await;
    say(&clients[0], &session, "before").await;
    is_stored(&stack, &session, &["before"]).await;
    let jetstream = async_nats::jetstream::new(stack.nats_client().await);
    let log = log(&stack).await;
    let opened = log.direct_get_last_for_subject(format!("chat.requests.*.{session}")).await;
    let subject = opened.unwrap().subject.to_string();

    // What gateways put there that have not heard of it, by one batch with the erasure and by a later one.
    stack.persister(0).kill();
    erase(&stack, &session).await;
    let message = |id: char| {
        let id = format!("c{}", id.to_string().repeat(24));
        json!({ "message": { "id": id, "sender": "user", "content": "late secret" } }).to_string()
    };
    let again = json!({ "session": { "id": format!("c{}", "s".repeat(24)), "ip": "192.0.2.7", "userAgent": null } });
    let late = || [message('a'), again.to_string(), "garbage: late secret".into(), message('b')];
    for record in late() {
        jetstream.publish(subject.clone(), record.into()).await.unwrap().await.unwrap();
    }
    stack.persister(0).start().await;
    is_unknown_everywhere(&stack, &js_clients, &session).await;
    only_the_erasure_is_in_the_log(&stack, &session).await;
    for record in late() {
        jetstream.publish(subject.clone(), record.into()).await.unwrap().await.unwrap();
    }
    only_the_erasure_is_in_the_log(&stack, &session).await;
    say(&clients[1], &other, "life goes on").await;
    is_stored(&stack, &other, &["life goes on"]).await;
    is_nowhere(&stack, &[&session, "late secret", "192.0.2.7"]).await;
    let logs = stack.persister(0).logs();
    assert!(!logs.contains("are lost") && !logs.contains("set aside"), "{logs}");
}

/// Whoever asks for it: an agent over HTTP, an operator at the command line.
#[tokio::test]
async fn gateways_take_nothing_more_for_a_session_before_its_erasure_is_done() {
    let stack = Stack::builder().gateways(2).start().await;
    let js_clients = JsClients::start().await;
    let clients = clients(&stack, &js_clients).await;
    for by_command in [true, false] {
        let session = open(&clients[0]).await;
        for client in &clients {
            client.ask("init_session", json!({ "sessionId": session })).await;
            say(client, &session, "hello").await;
        }
        is_stored(&stack, &session, &["hello", "hello"]).await;
        stack.persister(0).kill();
        let asks = async {
            if by_command {
                prints(&stack, &["erase", &session]).await;
            } else {
                erase(&stack, &session).await;
            }
        };
        let refused = async {
            for client in &clients {
                eventually(SOON, "it is refused", async || {
                    send(client, &session, "too late").await["error"]["code"] == "session_not_found"
                })
                .await;
            }
            stack.persister(0).start().await;
        };
        tokio::join!(asks, refused);
        is_nowhere(&stack, &[&session]).await;
    }
}

#[tokio::test]
async fn a_gateway_that_hears_of_no_erasure_learns_of_it_by_itself() {
    let stack = Stack::builder().gateways(2).proxy(Link::GatewayNats).start().await;
    let js_clients = JsClients::start().await;
    let clients = clients(&stack, &js_clients).await;
    let session = open(&clients[0]).await;
    let other = open(&clients[1]).await;
    for client in &clients {
        client.ask("init_session", json!({ "sessionId": session })).await;
        say(client, &session, "hello").await;
    }
    is_stored(&stack, &session, &["hello", "hello"]).await;
    stack.proxy(Link::GatewayNats, 1).cut();
    erase(&stack, &session).await;
    is_nowhere(&stack, &[&session]).await;
    only_the_erasure_is_in_the_log(&stack, &session).await;
    stack.proxy(Link::GatewayNats, 1).mend();
    stack.gateway(1).ready().await;
    eventually(SOON, "it is refused there", async || {
        send(&clients[1], &session, "is anybody there?").await["error"]["code"]
            == "session_not_found"
    })
    .await;
    is_unknown_everywhere(&stack, &js_clients, &session).await;
    say(&clients[1], &other, "life goes on").await;
    is_stored(&stack, &other, &["life goes on"]).await;
    is_nowhere(&stack, &[&session]).await;
    only_the_erasure_is_in_the_log(&stack, &session).await;
}

#[tokio::test]
async fn a_database_restored_from_before_an_erasure_is_told_of_it_again() {
    let stack = Stack::builder().own_postgres().gateways(2).persisters(2).start().await;
    let js_clients = JsClients::start().await;
    let clients = clients(&stack, &js_clients).await;
    let database = Backups::of(&stack).await;
    // Once from before the session, once from the middle of it.
    for has_begun in [false, true] {
        let other = open(&clients[1]).await;
        if !has_begun {
            database.back_up().await;
            stack.start_services().await;
        }
        let mut session = String::new();
        eventually(SOON, "a session is opened", async || {
            let opened = clients[0].ask("init_session", json!({})).await;
            session = opened["sessionId"].as_str().unwrap_or_default().to_owned();
            !session.is_empty()
        })
        .await;
        say(&clients[0], &session, "a confession").await;
        say(&clients[1], &other, "small talk").await;
        is_stored(&stack, &session, &["a confession"]).await;
        if has_begun {
            database.back_up().await;
        }
        say(&clients[0], &session, "and another").await;
        say(&clients[1], &other, "more of it").await;
        is_stored(&stack, &session, &["a confession", "and another"]).await;
        let key = key(&stack, &session).await;
        erase(&stack, &session).await;
        is_nowhere(&stack, &[&session, &key]).await;
        only_the_erasure_is_in_the_log(&stack, &session).await;

        database.restore().await;
        // Stored behind the erasure, so that all of it was replayed.
        say(&clients[1], &other, "goodbye").await;
        is_stored(&stack, &other, &["small talk", "more of it", "goodbye"]).await;
        is_unknown_everywhere(&stack, &js_clients, &session).await;
        is_nowhere(&stack, &[&session, &key, "a confession", "and another"]).await;
        restart(&stack).await;
        is_unknown_everywhere(&stack, &js_clients, &session).await;
        is_nowhere(&stack, &[&session, &key, "a confession", "and another"]).await;
        only_the_erasure_is_in_the_log(&stack, &session).await;
    }
}

#[tokio::test]
async fn an_older_log_that_knows_nothing_of_an_erasure_brings_nothing_back() {
    let stack = Stack::start().await;
    let js_clients = JsClients::start().await;
    let client = js_clients.client(&stack.url(""), &["websocket"]).await;
    let session = open(&client).await;
    say(&client, &session, "a confession").await;
    is_stored(&stack, &session, &["a confession"]).await;
    let nats = stack.nats();
    let copy = nats.store().with_extension("copy");
    nats.stop().await;
    let cp = |from: &Path, to: &Path| {
        assert!(
            std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success()
        );
    };
    cp(&nats.store(), &copy);
    nats.start().await;
    stack.gateway(0).ready().await;
    eventually(SOON, "it is taken", async || delete(&stack, &session).await.0 == 202).await;
    is_nowhere(&stack, &[&session, "a confession"]).await;

    nats.stop().await;
    nats.wipe();
    cp(&copy, &nats.store());
    nats.start().await;
    eventually(SOON, "it is noticed", async || {
        stack.persister(0).logs().contains("this is not the log")
    })
    .await;
    let log = log(&stack).await;
    eventually(CLEARED_WITHIN, "nothing is left in the log", async || {
        records(&log, &session).await.is_empty()
    })
    .await;
    is_unknown_everywhere(&stack, &js_clients, &session).await;
    is_nowhere(&stack, &[&session, "a confession"]).await;
}

#[tokio::test]
async fn persisters_that_are_killed_while_they_erase_leave_nothing() {
    let stack = Stack::builder().persisters(2).start().await;
    let js_clients = JsClients::start().await;
    let client = js_clients.client(&stack.url(""), &["websocket"]).await;
    let mut sessions = Vec::new();
    for _ in 0..30 {
        let session = open(&client).await;
        say(&client, &session, "a confession").await;
        sessions.push(session);
    }
    for (count, session) in sessions.iter().enumerate() {
        erase(&stack, session).await;
        if count % 10 == 9 {
            let persister = stack.persister(count / 10 % 2);
            persister.kill();
            persister.start().await;
        }
    }
    is_nowhere(&stack, &["a confession"]).await;
    for session in &sessions {
        only_the_erasure_is_in_the_log(&stack, session).await;
    }
    let stored =
        r#"SELECT (SELECT count(*) FROM "ChatSession"), (SELECT count(*) FROM "ErasedSession")"#;
    let counts: (i64, i64) = sqlx::query_as(stored).fetch_one(&stack.pool()).await.unwrap();
    assert_eq!(counts, (0, 30));
}

/// Sessions as a Node server left them, each with so many messages: the last one is `age` old.
async fn legacy(pool: &PgPool, ids: &[String], messages: i32, age: &str) {
    let sql = r#"
        WITH s AS (
            INSERT INTO "ChatSession" ("id", "sessionId", "ip", "createdAt")
            SELECT 'c' || md5(x), x, '192.0.2.7', now() AT TIME ZONE 'UTC' - interval '200 days'
            FROM unnest($1::text[]) x
            RETURNING "id"
        )
        INSERT INTO "Message" ("id", "sender", "content", "createdAt", "chatSessionId")
        SELECT 'm' || md5(s."id" || n), 'user', 'legacy ' || n, now() AT TIME ZONE 'UTC' - $3::interval, s."id"
        FROM s, generate_series(1, $2) n ORDER BY n"#;
    sqlx::query(sql).bind(ids).bind(messages).bind(age).execute(pool).await.unwrap();
}

fn uuids(count: usize) -> Vec<String> {
    (0..count).map(|_| shared::ids::SessionId::random().to_string()).collect()
}

#[tokio::test]
async fn an_export_is_the_session_with_its_whole_history() {
    let stack = Stack::start().await;
    let js_clients = JsClients::start().await;
    let client = js_clients.client(&stack.url(""), &["websocket"]).await;
    let short = open(&client).await;
    say(&client, &short, "\"quoted\" } ü").await;
    is_stored(&stack, &short, &["\"quoted\" } ü"]).await;
    let empty = open(&client).await;
    let claim = json!({ "sessionId": short, "agent": "anna" });
    assert!(client.ask("claim-session", claim).await["error"].is_null());
    // An id that no gateway gives out, and more messages than are read at a time.
    let legacy_id = "visitor 7/ü";
    legacy(&stack.pool(), &[legacy_id.to_owned()], 2_345, "1 day").await;
    let (_, chats) = get(&stack, 0, "/api/chats").await;
    for (id, path) in [(&*short, &*short), (&empty, &empty), (legacy_id, "visitor%207%2F%C3%BC")] {
        let (status, exported) = get(&stack, 0, &format!("/api/chats/{path}/export")).await;
        assert_eq!(status, 200);
        let chat = chats.as_array().unwrap().iter().find(|chat| chat["sessionId"] == id);
        let mut spoken = exported.clone();
        let spoken_of = spoken.as_object_mut().unwrap();
        let decided = ["status", "assignee", "aiEnabled", "changes"];
        let decided = decided.map(|key| spoken_of.remove(key).unwrap());
        assert_eq!(Some(&spoken), chat);
        let claims: Vec<_> =
            decided[3].as_array().unwrap().iter().map(|it| &it["assignee"]).collect();
        let wanted = if id == short { vec!["anna"] } else { vec![] };
        assert_eq!(claims, wanted);
        assert_eq!(decided[..3], [json!("open"), json!(wanted.first()), json!(true)]);
        let (_, history) = get(&stack, 0, &format!("/api/chats/{path}")).await;
        assert_eq!(exported["messages"], history);
        let printed: Value = serde_json::from_str(&prints(&stack, &["export", id]).await).unwrap();
        assert_eq!(printed, exported);
    }
    assert_eq!(chats.as_array().unwrap().len(), 3);
    assert!(!run(&stack, &["export", "unknown"]).await.status.success());
    assert_eq!(get(&stack, 0, "/api/chats/unknown%00/export").await.0, 404);

    // It can be erased too, though its id cannot stand in a subject.
    assert_eq!(delete(&stack, "visitor%207%2F%C3%BC").await.0, 202);
    is_nowhere(&stack, &[legacy_id, "legacy 1", "192.0.2.7"]).await;
    assert_eq!(delete(&stack, "visitor%207%2F%C3%BC").await.0, 404);
    is_stored(&stack, &short, &["\"quoted\" } ü"]).await;
}

/// More than what is under way between the two ends at a time, and more messages than one statement deletes.
async fn long_session(stack: &Stack) -> String {
    let session = uuids(1).remove(0);
    let pool = stack.pool();
    legacy(&pool, std::slice::from_ref(&session), 6_000, "1 day").await;
    let padded = r#"UPDATE "Message" SET "content" = "content" || repeat('.', 7900)"#;
    sqlx::query(padded).execute(&pool).await.unwrap();
    session
}

#[tokio::test]
async fn an_export_of_a_session_that_is_erased_meanwhile_does_not_look_complete() {
    let stack = Stack::start().await;
    let session = long_session(&stack).await;
    let export = format!("/api/chats/{session}/export");
    let mut answer = stack.http().get(stack.url(&export)).send().await.unwrap();
    let begun = answer.chunk().await.unwrap().unwrap();
    assert!(begun.starts_with(br#"{"id":"#));
    let mut printing = command(&stack, &["export", &session]).await;
    let mut printing = printing.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut printed = vec![0; 1_000];
    printing.stdout.as_mut().unwrap().read_exact(&mut printed).await.unwrap();

    erase(&stack, &session).await;
    is_nowhere(&stack, &[&session, "legacy 1"]).await;
    let rest = async {
        while answer.chunk().await?.is_some() {}
        Ok::<_, reqwest::Error>(())
    };
    tokio::time::timeout(SOON, rest).await.unwrap().unwrap_err();
    let output = printing.wait_with_output();
    let output = tokio::time::timeout(ENDS_WITHIN, output).await.unwrap().unwrap();
    assert!(!output.status.success());
    printed.extend(output.stdout);
    assert!(serde_json::from_slice::<Value>(&printed).is_err());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.ends_with("it was erased meanwhile: what was printed is not all of it\n"),
        "{told}"
    );

    // What waits to be erased is not exported any more.
    let session = long_session(&stack).await;
    stack.persister(0).kill();
    erase(&stack, &session).await;
    assert_eq!(get(&stack, 0, &format!("/api/chats/{session}/export")).await.0, 404);
    assert!(!run(&stack, &["export", &session]).await.status.success());
}

#[tokio::test]
async fn the_command_erases_whatever_there_is_of_a_session_and_says_when_there_is_nothing() {
    let stack = Stack::start().await;
    let js_clients = JsClients::start().await;
    let client = js_clients.client(&stack.url(""), &["websocket"]).await;
    // More messages than one statement deletes.
    let long = uuids(1).remove(0);
    legacy(&stack.pool(), std::slice::from_ref(&long), 12_345, "1 day").await;
    assert_eq!(prints(&stack, &["erase", &long]).await, format!("erased {long}\n"));
    is_nowhere(&stack, &[&long, "legacy 1"]).await;
    is_unknown_everywhere(&stack, &js_clients, &long).await;

    // Nothing but a record that could not be stored.
    let session = open(&client).await;
    let nobody = uuids(1).remove(0);
    let jetstream = async_nats::jetstream::new(stack.nats_client().await);
    for subject in [&session, &nobody] {
        let subject = format!("chat.requests.3.{subject}");
        jetstream.publish(subject, "garbage: a secret".into()).await.unwrap().await.unwrap();
    }
    let pool = stack.pool();
    let letters = async || -> i64 {
        sqlx::query_scalar(r#"SELECT count(*) FROM "DeadLetter""#).fetch_one(&pool).await.unwrap()
    };
    eventually(SOON, "both are set aside", async || letters().await == 2).await;
    for session in [&session, &nobody] {
        assert_eq!(prints(&stack, &["erase", session]).await, format!("erased {session}\n"));
        let again = run(&stack, &["erase", session]).await;
        assert!(!again.status.success());
        let told = String::from_utf8(again.stderr).unwrap();
        assert!(told.ends_with(&format!("there is no session {session}\n")), "{told}");
    }
    assert_eq!(letters().await, 0);
    is_nowhere(&stack, &[&session, &nobody, "a secret"]).await;
}

/// How many of these sessions are stored.
async fn left(pool: &PgPool, ids: &[String]) -> i64 {
    let sql = r#"SELECT count(*) FROM "ChatSession" WHERE "sessionId" = ANY ($1)"#;
    sqlx::query_scalar(sql).bind(ids).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_prune_that_is_killed_goes_on_where_it_was_and_leaves_what_is_young() {
    let stack = Stack::start().await;
    let pool = stack.pool();
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let (old, empty, alive) = (uuids(900), uuids(50), uuids(150));
    let odd = vec!["visitor 7".to_owned()];
    legacy(&pool, &old, 3, "91 days").await;
    legacy(&pool, &empty, 0, "91 days").await;
    legacy(&pool, &odd, 3, "91 days").await;
    legacy(&pool, &alive, 3, "89 days").await;
    let young = open(&client).await;
    say(&client, &young, "hello").await;
    is_stored(&stack, &young, &["hello"]).await;

    let would = prints(&stack, &["prune", "--older-than", "90d", "--dry-run"]).await;
    let would: BTreeSet<_> = would.lines().collect();
    let gone = [&old, &empty, &odd].into_iter().flatten();
    assert_eq!(would, gone.map(String::as_str).collect());
    assert_eq!(left(&pool, &old).await, 900, "nothing was erased");

    let mut prune = command(&stack, &["prune", "--older-than", "90d"]).await;
    let mut prune = prune.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(prune.stdout.take().unwrap()).lines();
    let progress = tokio::time::timeout(ENDS_WITHIN, lines.next_line()).await.unwrap().unwrap();
    assert!(progress.as_ref().is_some_and(|line| line.starts_with("erased ")), "{progress:?}");
    prune.kill().await.unwrap();
    let after_kill = left(&pool, &old).await;
    assert!((1..900).contains(&after_kill), "{after_kill}");

    let told = prints(&stack, &["prune", "--older-than", "90d"]).await;
    let last = told.lines().last().unwrap();
    assert!(last.contains("sessions in which nothing happened since"), "{told}");
    for ids in [&old, &empty, &odd] {
        assert_eq!(left(&pool, ids).await, 0);
    }
    assert_eq!(left(&pool, &alive).await, 150);
    is_stored(&stack, &young, &["hello"]).await;
    let (_, history) = get(&stack, 0, &format!("/api/chats/{}", alive[0])).await;
    assert_eq!(history.as_array().unwrap().len(), 3);
    let nothing = prints(&stack, &["prune", "--older-than", "90d"]).await;
    assert!(nothing.lines().last().unwrap().starts_with("erased 0 sessions"), "{nothing}");
    assert!(!run(&stack, &["prune", "--older-than", "soon"]).await.status.success());
}

/// What the persisters erased by themselves, each.
async fn pruned(stack: &Stack) -> Vec<u64> {
    let mut pruned = Vec::new();
    for persister in stack.persisters() {
        let metrics = stack.http().get(persister.ops_url("/metrics")).send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let name = "chat_persister_sessions_pruned_total ";
        let count = metrics.lines().find_map(|line| line.strip_prefix(name)).expect("a count");
        pruned.push(count.parse().unwrap());
    }
    pruned.sort_unstable();
    pruned
}

#[tokio::test]
async fn what_was_idle_for_its_retention_is_erased_by_one_persister_and_what_lives_stays() {
    let stack = Stack::builder().persisters(2).persister_env("RETENTION", "90d");
    let stack = stack.services_stopped().start().await;
    let pool = stack.pool();
    let (old, empty, alive) = (uuids(120), uuids(30), uuids(120));
    legacy(&pool, &alive, 2, "89 days").await;
    legacy(&pool, &empty, 0, "91 days").await;
    legacy(&pool, &old, 2, "91 days").await;
    // They look first five seconds after their start, and then every hour.
    stack.start_services().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    say(&client, &open(&client).await, "new").await;
    eventually(CLEARED_WITHIN * 2, "the idle ones are erased", async || {
        left(&pool, &old).await + left(&pool, &empty).await == 0
    })
    .await;
    assert_eq!(left(&pool, &alive).await, 120);
    assert_eq!(get(&stack, 0, &format!("/api/chats/{}", old[0])).await, (200, json!([])));
    eventually(SOON, "one has done it", async || pruned(&stack).await == [0, 150]).await;
    say(&client, &alive[3], "still here").await;
    let path = format!("/api/chats/{}", alive[3]);
    eventually(SOON, "it lives", async || {
        get(&stack, 0, &path).await.1.as_array().map(Vec::len) == Some(3)
    })
    .await;
}

#[tokio::test]
async fn a_session_that_comes_to_life_while_others_are_pruned_stays() {
    let stack = Stack::start().await;
    let pool = stack.pool();
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let old = uuids(20);
    legacy(&pool, &old, 1, "91 days").await;
    // In the log and not in Postgres yet.
    stack.persister(0).kill();
    say(&client, &old[7], "I am back").await;
    let mut prune = command(&stack, &["prune", "--older-than", "90d"]).await;
    let prune = prune.stdout(Stdio::piped()).spawn().unwrap();
    let log = log(&stack).await;
    eventually(SOON, "the others are to be erased", async || {
        log.get_info().await.unwrap().state.messages == 20
    })
    .await;
    stack.persister(0).start().await;
    let output =
        tokio::time::timeout(ENDS_WITHIN, prune.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    is_stored(&stack, &old[7], &["legacy 1", "I am back"]).await;
    assert_eq!(left(&pool, &old).await, 1);
}
