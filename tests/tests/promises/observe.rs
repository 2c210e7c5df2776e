//! What operators see: metrics, what rules and dashboard make of them, health.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use shared::ids::SessionId;
use shared::partition::PartitionCount;
use tests::{Client, JsClients, Link, Service, Stack, eventually, is_taken};

const SOON: Duration = Duration::from_secs(15);
/// A persister looks at its lag every 5 s.
const LOOKED_WITHIN: Duration = Duration::from_secs(20);

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

async fn text(service: &Service) -> String {
    let answer = reqwest::get(service.ops_url("/metrics")).await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    answer.text().await.expect("a text")
}

/// The sum of a metric over all its labels.
async fn sum(service: &Service, name: &str) -> f64 {
    let text = text(service).await;
    let samples = text.lines().filter_map(|line| {
        let (sample, value) = line.rsplit_once(' ')?;
        (sample.split('{').next() == Some(name)).then(|| value.parse::<f64>().expect(line))
    });
    samples.sum()
}

async fn say(client: &Client, session: &str, content: &str) -> Value {
    client.ask("user_message", json!({ "sessionId": session, "content": content })).await
}

async fn enter(client: &Client) -> String {
    client.stay(None).await["sessionId"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn every_stage_of_a_message_is_counted_and_measured() {
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    for n in 0..20 {
        assert!(is_taken(&say(&client, &session, &n.to_string()).await));
    }
    say(&client, &session, "").await;
    let (gateway, persister) = (stack.gateway(0), stack.persister(0));
    for (service, name, wanted) in [
        // The session itself is a request too.
        (gateway, "chat_gateway_accept_seconds_count", 21.0),
        (persister, "chat_persister_store_seconds_count", 21.0),
        (persister, "chat_persister_messages_stored_total", 20.0),
        (persister, "chat_persister_sessions_stored_total", 1.0),
        (gateway, "chat_gateway_delivery_seconds_count", 20.0),
        (gateway, "chat_gateway_emits_total", 20.0),
        (gateway, "chat_gateway_refused_total", 1.0),
        (gateway, "chat_gateway_sockets", 1.0),
        (gateway, "chat_gateway_rooms", 1.0),
        (gateway, "chat_gateway_sessions_opened_total", 1.0),
        (gateway, "chat_gateway_publishes_in_flight", 0.0),
        (gateway, "chat_gateway_ready", 1.0),
        (persister, "chat_persister_partitions_owned", 16.0),
        (persister, "chat_persister_ready", 1.0),
    ] {
        eventually(SOON, &format!("{name} is {wanted}"), async || {
            (sum(service, name).await - wanted).abs() < 0.1
        })
        .await;
    }
    assert!(
        text(gateway).await.contains(r#"chat_gateway_refused_total{code="invalid_payload"} 1"#)
    );
    eventually(SOON, "a connection to Postgres is idle", async || {
        text(persister).await.lines().any(|line| {
            line.starts_with(r#"chat_persister_postgres_connections{state="idle"}"#)
                && !line.ends_with(" 0")
        })
    })
    .await;
    client.disconnect().await;
    eventually(SOON, "the socket and the room are gone", async || {
        let gauges = ["chat_gateway_sockets", "chat_gateway_rooms"];
        sum(gateway, gauges[0]).await + sum(gateway, gauges[1]).await < 0.1
    })
    .await;
}

#[tokio::test]
async fn while_postgres_is_away_the_lag_is_seen_in_records_and_seconds() {
    let stack = Stack::builder().own_postgres().start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    let persister = stack.persister(0);
    let lag = async || sum(persister, "chat_persister_log_lag_records").await;
    eventually(LOOKED_WITHIN, "offsets were read once", async || {
        text(persister).await.contains("chat_persister_log_lag_records{partition=")
    })
    .await;
    stack.postgres().stop().await;
    for n in 0..7 {
        assert!(is_taken(&say(&client, &session, &n.to_string()).await));
    }
    eventually(LOOKED_WITHIN, "7 records behind", async || (lag().await - 7.0).abs() < 0.1).await;
    assert!(sum(persister, "chat_persister_log_lag_seconds").await > 0.0);
    assert!(sum(persister, "chat_persister_dependency_up").await < 1.1, "NATS alone");
    stack.postgres().start().await;
    eventually(LOOKED_WITHIN, "nothing behind", async || lag().await < 0.1).await;
}

/// Waits until each of these is at least so much.
async fn reach(service: &Service, wanted: &[(&str, f64)]) {
    for (name, least) in wanted {
        eventually(LOOKED_WITHIN, &format!("{name} is at least {least}"), async || {
            sum(service, name).await > least - 0.1
        })
        .await;
    }
}

/// Puts a record into the log past all gateways.
async fn put(stack: &Stack, session: &str, record: &str) {
    let partition = PartitionCount::DEFAULT.partition_of(SessionId::parse(session).expect("an id"));
    let jetstream = async_nats::jetstream::new(stack.nats_client().await);
    let subject = format!("chat.requests.{partition}.{session}");
    let ack = jetstream.publish(subject, record.to_owned().into()).await.expect("sent");
    ack.await.expect("taken");
}

fn record(id: char) -> String {
    let id = format!("c{}", id.to_string().repeat(24));
    json!({ "message": { "id": id, "sender": "user", "content": "past the gateway" } }).to_string()
}

#[tokio::test]
async fn what_comes_of_records_is_counted_by_what_it_is() {
    let stack = Stack::builder().own_postgres().persister_env("LOG_KEEP", "0s").start().await;
    let (gateway, persister) = (stack.gateway(0), stack.persister(0));
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    say(&client, &session, "hello").await;
    reach(persister, &[("chat_persister_messages_stored_total", 1.0)]).await;
    for metric in ["duplicates_total", "dead_letters_added_total", "sessions_erased_total"] {
        assert!(sum(persister, &format!("chat_persister_{metric}")).await < 0.1, "{metric}");
    }
    put(&stack, &session, &record('a')).await;
    put(&stack, &session, &record('a')).await;
    reach(persister, &[("chat_persister_duplicates_total", 1.0)]).await;
    put(&stack, &session, "garbage").await;
    reach(
        persister,
        &[
            ("chat_persister_dead_letters_added_total", 1.0),
            ("chat_persister_dead_letters", 1.0),
            ("chat_persister_log_records_trimmed_total", 4.0),
            ("chat_persister_log_bytes_max", 1.0),
            ("chat_persister_batch_records_count", 4.0),
            ("chat_persister_batch_records_sum", 5.0),
            ("chat_persister_commit_seconds_count", 4.0),
            ("chat_persister_terms_total", 1.0),
            ("chat_persister_partitions", 16.0),
        ],
    )
    .await;

    stack.postgres().stop().await;
    say(&client, &session, "while Postgres is away").await;
    reach(
        persister,
        &[("chat_persister_commit_failures_total", 1.0), ("chat_persister_log_bytes", 1.0)],
    )
    .await;
    stack.postgres().start().await;
    reach(persister, &[("chat_persister_messages_stored_total", 3.0)]).await;
    let erased = stack.http().delete(stack.url(&format!("/api/chats/{session}"))).send();
    assert_eq!(erased.await.expect("an answer").status(), 202);
    reach(persister, &[("chat_persister_sessions_erased_total", 1.0)]).await;
    put(&stack, &session, &record('b')).await;
    reach(persister, &[("chat_persister_records_refused_total", 1.0)]).await;
    assert_eq!(say(&client, &session, "too late").await["error"]["code"], "session_not_found");
    let elsewhere = "22222222-2222-4222-8222-222222222222";
    say(&client, elsewhere, "nobody is there").await;
    say(&client, &session, &"x".repeat(8_001)).await;
    let text = text(gateway).await;
    for (code, count) in [("session_not_found", 2), ("too_large", 1)] {
        let line = format!("chat_gateway_refused_total{{code=\"{code}\"}} {count}\n");
        assert!(text.contains(&line), "{line}{text}");
    }

    // A database whose offsets are older than the log, and a log that is another one.
    let old = r#"UPDATE "LogPartition" SET "sequence" = 1, "recordedAt" = NULL"#;
    sqlx::query(old).execute(&stack.pool()).await.expect("an older offset");
    reach(persister, &[("chat_persister_log_gaps_total", 1.0)]).await;
    assert!(sum(persister, "chat_persister_log_replaced_total").await < 0.1);
    stack.nats().stop().await;
    stack.nats().wipe();
    stack.nats().start().await;
    reach(
        persister,
        &[
            ("chat_persister_log_replaced_total", 1.0),
            ("chat_persister_nats_reconnects_total", 1.0),
            ("chat_persister_terms_total", 3.0),
        ],
    )
    .await;
    reach(gateway, &[("chat_gateway_nats_reconnects_total", 1.0)]).await;
}

#[tokio::test]
async fn what_is_left_of_erased_sessions_in_the_log_is_counted_until_it_is_gone() {
    let stack = Stack::start().await;
    let persister = stack.persister(0);
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    say(&client, &session, "hello").await;
    reach(persister, &[("chat_persister_messages_stored_total", 1.0)]).await;
    let uncleared = r#"
        INSERT INTO "ErasedSession" ("digest", "logEpoch", "erasedSequence", "lastSequence", "erasedAt")
        VALUES ('\x00', (SELECT max("epoch") FROM "LogPartition"), 1_000_000, 1_000_000, now())"#;
    let uncleared = uncleared.replace('_', "");
    sqlx::query(sqlx::AssertSqlSafe(uncleared)).execute(&stack.pool()).await.expect("a row");
    reach(persister, &[("chat_persister_erased_in_log", 1.0)]).await;
    let erased = stack.http().delete(stack.url(&format!("/api/chats/{session}"))).send();
    assert_eq!(erased.await.expect("an answer").status(), 202);
    reach(persister, &[("chat_persister_log_records_cleared_total", 2.0)]).await;
    let cleared = r#"DELETE FROM "ErasedSession" WHERE "lastSequence" = 1000000"#;
    sqlx::query(cleared).execute(&stack.pool()).await.expect("no row");
    eventually(LOOKED_WITHIN, "nothing is left", async || {
        sum(persister, "chat_persister_erased_in_log").await < 0.1
    })
    .await;
}

#[tokio::test]
async fn who_comes_back_and_what_was_missed_and_who_does_not_read_is_counted() {
    // Before the kernel gives the deaf client's connection up, of which nobody is told.
    let stack =
        Stack::builder().gateway_env("SLOW_SECONDS", "5").proxy(Link::GatewayNats).start().await;
    let gateway = stack.gateway(0);
    let js_clients = JsClients::start().await;
    let client = js_clients.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    client.ask("init_session", json!({ "sessionId": session })).await;
    reach(gateway, &[("chat_gateway_sessions_resumed_total", 1.0)]).await;
    let recovered = ["chat_gateway_gaps_recovered_total", "chat_gateway_recovered_messages_total"];
    assert!(sum(gateway, recovered[0]).await + sum(gateway, recovered[1]).await < 0.1);
    stack.proxy(Link::GatewayNats, 0).cut();
    put(&stack, &session, &record('a')).await;
    reach(stack.persister(0), &[("chat_persister_messages_stored_total", 1.0)]).await;
    stack.proxy(Link::GatewayNats, 0).mend();
    reach(gateway, &[(recovered[0], 1.0), (recovered[1], 1.0)]).await;
    gateway.ready().await;

    let deaf = js_clients.client(&stack.url(""), &["websocket"]).await;
    deaf.stay(Some(&session)).await;
    deaf.stop_reading().await;
    let message = json!({ "sessionId": session, "content": "x".repeat(7_000) });
    eventually(Duration::from_secs(30), "it is cut off", async || {
        client.burst("user_message", vec![message.clone(); 500]).await;
        // Its queue is full, or it read too slowly for too long: what comes first depends on the machine.
        let [full, slow] = ["chat_gateway_emit_failures_total", "chat_gateway_slow_readers_total"];
        sum(gateway, full).await + sum(gateway, slow).await > 0.1
    })
    .await;
}

/// Every metric of both services, with its samples' names.
async fn metrics(stack: &Stack) -> (BTreeMap<String, String>, BTreeSet<String>) {
    let text = text(stack.gateway(0)).await + &text(stack.persister(0)).await;
    let described = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    let described = described.map(|(name, help)| (name.to_owned(), help.to_owned())).collect();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let names = samples.filter_map(|line| line.split(['{', ' ']).next());
    (described, names.map(str::to_owned).collect())
}

/// Every word of a text that is the name of a metric of ours.
fn used(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = ["chat_gateway_", "chat_persister_"];
    let is_ours = |word: &&str| ours.iter().any(|prefix| word.starts_with(prefix));
    words.filter(is_ours).map(str::to_owned).collect()
}

#[tokio::test]
async fn rules_and_dashboard_use_only_metrics_that_the_running_services_have() {
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    say(&client, &session, "").await;
    eventually(LOOKED_WITHIN, "the lag was looked at", async || {
        text(stack.persister(0)).await.contains("chat_persister_log_lag_records{partition=")
    })
    .await;
    let (described, samples) = metrics(&stack).await;
    let read = |path: &str| fs::read_to_string(deploy().join(path)).expect(path);
    let dashboard = read("grafana/dashboards/support-chat.json");
    let in_use: BTreeSet<_> = used(&dashboard).union(&used(&read("alerts.yml"))).cloned().collect();
    assert!(in_use.len() > 30, "{in_use:?}");
    let unknown: Vec<_> = in_use.difference(&samples).collect();
    assert!(unknown.is_empty(), "nobody has {unknown:?}");
    for (name, help) in &described {
        assert!(help.len() > 10 && help.ends_with('.'), "{name}: {help}");
        let shown = in_use.iter().any(|used| used.starts_with(name.as_str()));
        assert!(shown, "{name} is shown nowhere");
    }
    serde_json::from_str::<Value>(&dashboard).expect("a dashboard is JSON");
    promtool(&["check", "rules", "alerts.yml"], None);
    let tested = read("alerts.test.yml");
    let alerts = read("alerts.yml");
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(
            tested.contains(&format!("alertname=\"{alert}\"")),
            "{alert} was never seen to fire"
        );
    }
    promtool(&["test", "rules", "alerts.test.yml"], None);
    promtool(&["check", "config", "--syntax-only", "prometheus.yml"], None);
    for service in [stack.gateway(0), stack.persister(0)] {
        promtool(&["check", "metrics"], Some(text(service).await));
    }
}

/// What `promtool` says, where there is one: Debian has it in the package `prometheus`.
fn promtool(args: &[&str], input: Option<String>) {
    let mut command = Command::new("promtool");
    command.args(args).current_dir(deploy());
    let file = input.map(|input| {
        let file = std::env::temp_dir().join(format!("chat-metrics-{}", std::process::id()));
        fs::write(&file, input).expect("a file");
        file
    });
    if let Some(file) = &file {
        command.stdin(fs::File::open(file).expect("a file"));
    }
    match command.output() {
        Ok(output) => assert!(output.status.success(), "{args:?}: {output:?}"),
        Err(error) => eprintln!("NOT CHECKED with promtool {args:?}: {error}"),
    }
}

/// What a log in JSON tells of this message: what happened, the session, and where it stands.
fn told_in_json(logs: &str, message: &str) -> BTreeMap<String, [String; 3]> {
    let lines = logs.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let told = lines.filter(|line| line["message_id"] == message).map(|line| {
        let fields = ["session", "partition", "sequence"].map(|name| text(&line[name]));
        (text(&line["message"]), fields)
    });
    told.collect()
}

/// The same for text.
fn told_in_text(logs: &str, message: &str) -> BTreeMap<String, [String; 3]> {
    let field = |line: &str, name: &str| {
        let value = line.split_once(&format!(" {name}="));
        let value = value.and_then(|(_, value)| value.split_whitespace().next());
        value.unwrap_or_default().trim_matches('"').to_owned()
    };
    let lines = logs.lines().filter(|line| field(line, "message_id") == message);
    let told = lines.map(|line| {
        let event = ["accepted", "stored", "emitted"].into_iter().find(|what| line.contains(what));
        let fields = ["session", "partition", "sequence"].map(|name| field(line, name));
        (event.unwrap_or_default().to_owned(), fields)
    });
    told.collect()
}

#[tokio::test]
async fn one_message_can_be_followed_by_its_id_from_socket_to_room() {
    for format in ["json", "text"] {
        // All of debug would have the library print what clients send.
        let ours = "gateway=debug,persister=debug,info";
        let stack = Stack::builder().env("RUST_LOG", ours).env("LOG_FORMAT", format).start().await;
        let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
        let session = enter(&client).await;
        let ack = say(&client, &session, "what nobody else may read").await;
        let id = ack["id"].as_str().expect("an id");
        eventually(SOON, "it is seen", async || client.messages().await.len() == 1).await;
        let told_in = if format == "json" { told_in_json } else { told_in_text };
        eventually(SOON, "it is told", async || {
            told_in(&stack.gateway(0).logs(), id).contains_key("emitted")
        })
        .await;
        let (gateway, persister) = (stack.gateway(0).logs(), stack.persister(0).logs());
        let mut places = BTreeSet::new();
        for (logs, what) in [(&gateway, "accepted"), (&persister, "stored"), (&gateway, "emitted")]
        {
            let told = told_in(logs, id);
            let fields = told.get(what).expect(what);
            assert_eq!(fields[0], session[..8], "{format}: {told:?}");
            assert!(fields.iter().all(|field| !field.is_empty()), "{format}: {told:?}");
            places.insert(fields.clone());
        }
        assert_eq!(places.len(), 1, "one place in the log: {places:?}");
        for logs in [gateway, persister] {
            assert!(!logs.contains("what nobody else may read"), "contents are not logged");
        }
    }
}

/// At the level that everybody has, also through a fault and a stop.
#[tokio::test]
async fn nothing_personal_is_logged_above_debug() {
    let stack = Stack::builder().gateway_env("TRUSTED_PROXIES", "127.0.0.1").start().await;
    let polled = stack.http().get(stack.url("/socket.io/?EIO=4&transport=polling"));
    let (agent, address) = ("Visitors-Browser/9.9", "203.0.113.77");
    let polled = polled.header("user-agent", agent).header("x-forwarded-for", address);
    polled.send().await.expect("an answer");
    let client = JsClients::start().await.client(&stack.url(""), &["polling"]).await;
    let session = enter(&client).await;
    let content = "what nobody else may read";
    let ack = say(&client, &session, content).await;
    eventually(SOON, "it is seen", async || client.messages().await.len() == 1).await;
    // A record that is set aside is what is written about most.
    let stream = async_nats::jetstream::new(stack.nats_client().await);
    let subject = format!("chat.requests.3.{}", "22222222-2222-4222-8222-222222222222");
    stream.publish(subject, content.into()).await.expect("sent").await.expect("taken");
    eventually(SOON, "it is set aside", async || {
        sum(stack.persister(0), "chat_persister_dead_letters_added_total").await > 0.0
    })
    .await;
    stack.nats().kill().await;
    say(&client, &session, content).await;
    stack.nats().start().await;
    eventually(SOON, "it is accepted", async || is_taken(&say(&client, &session, content).await))
        .await;
    // What is told of a person's data, and of its end.
    let chat = stack.url(&format!("/api/chats/{session}"));
    let exported = stack.http().get(format!("{chat}/export")).send().await.expect("an answer");
    assert!(exported.text().await.expect("a text").contains(content));
    let erased = stack.http().delete(&chat).send().await.expect("an answer");
    assert_eq!(erased.status(), 202);
    // In one batch with it the record would go with it.
    reach(stack.persister(0), &[("chat_persister_sessions_erased_total", 1.0)]).await;
    put(&stack, &session, &record('z')).await;
    reach(
        stack.persister(0),
        &[
            ("chat_persister_records_refused_total", 1.0),
            ("chat_persister_log_records_cleared_total", 2.0),
        ],
    )
    .await;
    for service in [stack.gateway(0), stack.persister(0)] {
        assert!(service.terminate().await.success());
        let logs = service.logs();
        assert!(logs.contains("stopping"), "{logs}");
        let id = ack["id"].as_str().expect("an id");
        let others = ["22222222-2222-4222", "past the gateway"];
        for personal in [content, &session, agent, address, id].into_iter().chain(others) {
            assert!(!logs.contains(personal), "{personal}: {logs}");
        }
    }
}
