//! What operators see: metrics, what rules and dashboard make of them, health.

#![expect(clippy::expect_used, reason = "clippy does not see that helpers of tests are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, Puppet, Service, Stack, eventually};

const SOON: Duration = Duration::from_secs(15);
/// A persister looks at its lag every 5 s.
const LOOKED_WITHIN: Duration = Duration::from_secs(20);

fn observe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.observe")
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
    let client = Puppet::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    for n in 0..20 {
        assert_eq!(say(&client, &session, &n.to_string()).await["status"], "accepted");
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
    let client = Puppet::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    let persister = stack.persister(0);
    let lag = async || sum(persister, "chat_persister_log_lag_records").await;
    eventually(LOOKED_WITHIN, "offsets were read once", async || {
        text(persister).await.contains("chat_persister_log_lag_records{partition=")
    })
    .await;
    stack.postgres().stop().await;
    for n in 0..7 {
        assert_eq!(say(&client, &session, &n.to_string()).await["status"], "accepted");
    }
    eventually(LOOKED_WITHIN, "7 records behind", async || (lag().await - 7.0).abs() < 0.1).await;
    assert!(sum(persister, "chat_persister_log_lag_seconds").await > 0.0);
    assert!(sum(persister, "chat_persister_dependency_up").await < 1.1, "NATS alone");
    stack.postgres().start().await;
    eventually(LOOKED_WITHIN, "nothing behind", async || lag().await < 0.1).await;
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
    let client = Puppet::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    say(&client, &session, "").await;
    eventually(LOOKED_WITHIN, "the lag was looked at", async || {
        text(stack.persister(0)).await.contains("chat_persister_log_lag_records{partition=")
    })
    .await;
    let (described, samples) = metrics(&stack).await;
    let read = |path: &str| fs::read_to_string(observe().join(path)).expect(path);
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
    promtool(&["check", "config", "--syntax-only", "prometheus.yml"], None);
    for service in [stack.gateway(0), stack.persister(0)] {
        promtool(&["check", "metrics"], Some(text(service).await));
    }
}

/// What `promtool` says, where there is one: Debian has it in the package `prometheus`.
fn promtool(args: &[&str], input: Option<String>) {
    let mut command = Command::new("promtool");
    command.args(args).current_dir(observe());
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

/// The lines of a log in JSON that carry this message's id.
fn lines_of(service: &Service, message: &str) -> Vec<Value> {
    let logs = service.logs();
    let lines = logs.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message_id"] == message).collect()
}

#[tokio::test]
async fn one_message_can_be_followed_by_its_id_from_socket_to_room() {
    // All of debug would have the library print what clients send.
    let ours = "gateway=debug,persister=debug,info";
    let stack = Stack::builder().env("RUST_LOG", ours).env("LOG_FORMAT", "json").start().await;
    let client = Puppet::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    let ack = say(&client, &session, "what nobody else may read").await;
    let id = ack["id"].as_str().expect("an id");
    eventually(SOON, "it is seen", async || client.messages().await.len() == 1).await;
    let of_gateway = lines_of(stack.gateway(0), id);
    let of_persister = lines_of(stack.persister(0), id);
    let mut places = BTreeSet::new();
    for (lines, what) in
        [(&of_gateway, "accepted"), (&of_persister, "stored"), (&of_gateway, "emitted")]
    {
        let line = lines.iter().find(|line| line["message"] == what).expect(what);
        assert_eq!(line["session"], session[..8], "{line}");
        places.insert(format!("{}/{}", line["partition"], line["sequence"]));
    }
    assert_eq!(places.len(), 1, "one place in the log: {places:?}");
    for service in [stack.gateway(0), stack.persister(0)] {
        assert!(!service.logs().contains("what nobody else may read"), "contents are not logged");
    }
}

/// At the level that everybody has, also through a fault and a stop.
#[tokio::test]
async fn nothing_personal_is_logged_above_debug() {
    let stack = Stack::start().await;
    let agent = "Visitors-Browser/9.9";
    let polled = stack.http().get(stack.url("/socket.io/?EIO=4&transport=polling"));
    polled.header("user-agent", agent).send().await.expect("an answer");
    let client = Puppet::start().await.client(&stack.url(""), &["polling"]).await;
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
    eventually(SOON, "it is accepted", async || {
        say(&client, &session, content).await["status"] == "accepted"
    })
    .await;
    for service in [stack.gateway(0), stack.persister(0)] {
        assert!(service.terminate().await.success());
        let logs = service.logs();
        assert!(logs.contains("stopping"), "{logs}");
        let id = ack["id"].as_str().expect("an id");
        for personal in [content, &session, agent, id, "22222222-2222-4222"] {
            assert!(!logs.contains(personal), "{personal}: {logs}");
        }
    }
}
