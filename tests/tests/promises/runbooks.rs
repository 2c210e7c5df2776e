//! The runbooks' commands, as they stand there, against a running stack.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use stack::{Port, nats};
use tests::runbooks::{self, Shell, blocks};
use tests::{Client, JsClients, Service, Stack, eventually, is_taken, machine};
use url::Url;

const SOON: Duration = Duration::from_secs(20);

async fn terminate(service: &Service) {
    assert!(service.terminate().await.success(), "{}", service.logs());
}

async fn enter(stack: &Stack) -> (Client, String) {
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().expect("an id").to_owned();
    (client, session)
}

async fn say(client: &Client, session: &str, count: usize) {
    for n in 0..count {
        let said = json!({ "sessionId": session, "content": n.to_string() });
        let ack = client.ask("user_message", said).await;
        assert!(is_taken(&ack), "{ack}");
    }
}

async fn history(stack: &Stack, session: &str) -> Vec<Value> {
    let url = stack.url(&format!("/api/chats/{session}"));
    stack.http().get(url).send().await.expect("an answer").json().await.expect("a history")
}

async fn is_stored(stack: &Stack, session: &str, count: usize) {
    eventually(SOON, "everything is stored", async || history(stack, session).await.len() == count)
        .await;
}

#[tokio::test]
async fn a_restored_backup_catches_up_by_the_commands_of_the_runbook() {
    let Some(shell) = Shell::open_to_back_up().await else { return };
    let stack = Stack::start().await;
    let (client, session) = enter(&stack).await;
    let [back_up, restore, wait] = blocks("backup.md").try_into().expect("three blocks");
    say(&client, &session, 10).await;
    is_stored(&stack, &session, 10).await;
    shell.run(&stack, &back_up).await;
    say(&client, &session, 10).await;
    is_stored(&stack, &session, 20).await;
    let before = history(&stack, &session).await;
    terminate(stack.persister(0)).await;
    shell.run(&stack, &restore).await;
    assert_eq!(history(&stack, &session).await, before[..10], "an older one");
    say(&client, &session, 5).await;
    stack.persister(0).start().await;
    shell.run(&stack, &wait).await;
    is_stored(&stack, &session, 25).await;
    assert_eq!(history(&stack, &session).await[..20], before);
    eventually(SOON, "it is shown once", async || client.messages().await.len() == 25).await;
}

#[tokio::test]
async fn a_poisoned_record_is_looked_at_put_back_and_dropped() {
    let Some(shell) = Shell::open().await else { return };
    let stack = Stack::start().await;
    let (client, session) = enter(&stack).await;
    let [look, requeue, drop] = blocks("dead-letters.md").try_into().expect("three blocks");
    let stream = async_nats::jetstream::new(stack.nats_client().await);
    let subject = "chat.requests.3.22222222-2222-4222-8222-222222222222";
    stream.publish(subject, "poison".into()).await.expect("sent").await.expect("taken");
    say(&client, &session, 5).await;
    is_stored(&stack, &session, 5).await;
    let listed = async || shell.run(&stack, "persister dead-letters list").await;
    eventually(SOON, "it is set aside", async || listed().await.contains("22222222")).await;
    assert!(shell.run(&stack, &look).await.contains("poison"));
    shell.run(&stack, &requeue).await;
    // Nothing was mended: it is set aside again, under another number.
    eventually(SOON, "it is set aside again", async || listed().await.contains("22222222")).await;
    shell.run(&stack, &drop).await;
    assert!(!listed().await.contains("22222222"));
}

#[tokio::test]
async fn the_partition_count_is_changed_up_and_down_and_nothing_is_lost() {
    let Some(shell) = Shell::open().await else { return };
    let stack = Stack::builder().persisters(2).start().await;
    let (client, session) = enter(&stack).await;
    let [drain, delete] = blocks("partitions.md").try_into().expect("two blocks");
    let mut said = 0;
    for partitions in ["32", "8"] {
        say(&client, &session, 10).await;
        said += 10;
        terminate(stack.gateway(0)).await;
        terminate(stack.persister(1)).await;
        shell.run(&stack, &drain).await;
        terminate(stack.persister(0)).await;
        shell.run(&stack, &delete).await;
        for service in stack.persisters().iter().chain(stack.gateways()) {
            service.set_env("PARTITIONS", partitions);
        }
        stack.start_services().await;
        client.connected().await;
        is_stored(&stack, &session, said).await;
        say(&client, &session, 10).await;
        said += 10;
        is_stored(&stack, &session, said).await;
    }
    eventually(SOON, "it is shown once", async || client.messages().await.len() == said).await;
}

#[tokio::test]
async fn the_log_is_deleted_with_a_password_too() {
    let Some(shell) = Shell::open().await else { return };
    let home = shell.home().join("nats");
    let start = move || {
        let settings = nats::Settings { password: true, ..nats::Settings::default() };
        let server = nats::Nats::new(&machine(), &home, Port::reserve()?, settings)?;
        server.start().map(|()| server)
    };
    let server = tokio::task::spawn_blocking(start).await.expect("a start").expect("a server");
    let url = Url::parse(&server.url()).expect("a URL");
    let password = url.password().expect("a password").to_owned();
    let login = async_nats::ConnectOptions::with_user_and_password(url.username().into(), password);
    let client = login.connect(format!("127.0.0.1:{}", server.port())).await.expect("a client");
    let jetstream = async_nats::jetstream::new(client);
    let stream = async_nats::jetstream::stream::Config { name: "CHAT".into(), ..<_>::default() };
    jetstream.create_stream(stream).await.expect("a stream");
    let [_, delete] = blocks("partitions.md").try_into().expect("two blocks");
    shell.run_with(&[("NATS_URL", &server.url())], &delete).await;
    assert!(jetstream.get_stream("CHAT").await.is_err());
}

#[tokio::test]
async fn the_other_commands_run() {
    let Some(shell) = Shell::open().await else { return };
    let stack = Stack::start().await;
    for file in ["upgrade.md", "full-disk.md"] {
        for block in blocks(file) {
            shell.run(&stack, &block).await;
        }
    }
}

#[test]
fn every_runbook_is_listed() {
    let list = runbooks::text("README.md");
    for file in fs::read_dir(runbooks::folder()).expect("runbooks").flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        assert!(name == "README.md" || list.contains(&format!("]({name})")), "{name}");
    }
}
