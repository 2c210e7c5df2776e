//! Three nats-servers and three copies of the log: any one server may go.

use std::time::Duration;

use async_nats::jetstream::stream::Stream;
use tests::{Builder, Conversation, JsClients, Nats, Stack, eventually};

/// A server that comes back is given what it missed.
const WHOLE_WITHIN: Duration = Duration::from_secs(30);

fn cluster() -> Option<Builder> {
    Stack::builder().gateways(2).persisters(2).nats_cluster()
}

async fn log(stack: &Stack) -> Stream {
    let jetstream = async_nats::jetstream::new(stack.nats_client().await);
    jetstream.get_stream(shared::log::STREAM).await.expect("the log")
}

/// The server that leads the log, once the two others have all of it.
async fn leader<'a>(stack: &'a Stack, log: &Stream) -> &'a Nats {
    let mut leader = None;
    eventually(WHOLE_WITHIN, "there are three copies", async || {
        let Ok(info) = log.get_info().await else { return false };
        let Some(cluster) = info.cluster else { return false };
        leader = cluster.leader;
        let whole = cluster.replicas.iter().filter(|copy| copy.current && !copy.offline);
        leader.is_some() && whole.count() == 2
    })
    .await;
    let leads = |server: &&Nats| Some(server.name()) == leader;
    stack.nats_servers().find(leads).expect("a server of ours")
}

async fn conversations(stack: &Stack, js_clients: &JsClients) -> Vec<Conversation> {
    let mut conversations = Vec::new();
    for number in 0..4 {
        conversations.push(Conversation::begin_on(stack, js_clients, number % 2).await);
    }
    conversations
}

async fn is_delivered(conversations: &[Conversation]) {
    for conversation in conversations {
        conversation.is_delivered(10).await;
    }
}

#[tokio::test]
async fn the_server_that_leads_the_log_may_be_killed_again_and_again() {
    let Some(cluster) = cluster() else { return };
    let stack = cluster.env("LOG_REPLICAS", "3").start().await;
    let log = log(&stack).await;
    let js_clients = JsClients::start().await;
    let conversations = conversations(&stack, &js_clients).await;
    for _ in 0..3 {
        let leader = leader(&stack, &log).await;
        leader.kill().await;
        is_delivered(&conversations).await;
        leader.start().await;
    }
    for conversation in conversations {
        conversation.end(&stack).await;
    }
}

#[tokio::test]
async fn every_server_may_be_stopped_in_turn() {
    let Some(cluster) = cluster() else { return };
    let stack = cluster.env("LOG_REPLICAS", "3").start().await;
    let log = log(&stack).await;
    let js_clients = JsClients::start().await;
    let conversations = conversations(&stack, &js_clients).await;
    for server in stack.nats_servers() {
        leader(&stack, &log).await;
        server.stop().await;
        is_delivered(&conversations).await;
        server.start().await;
    }
    for conversation in conversations {
        conversation.end(&stack).await;
    }
}

#[tokio::test]
async fn more_copies_of_the_log_are_made_by_a_restart_with_the_setting() {
    let Some(cluster) = cluster() else { return };
    let stack = cluster.start().await;
    let log = log(&stack).await;
    let js_clients = JsClients::start().await;
    let conversations = conversations(&stack, &js_clients).await;
    is_delivered(&conversations).await;
    assert_eq!(log.cached_info().config.num_replicas, 1);
    for service in stack.persisters().iter().chain(stack.gateways()) {
        assert!(service.terminate().await.success(), "{}", service.logs());
        service.set_env("LOG_REPLICAS", "3");
        service.start().await;
        is_delivered(&conversations).await;
    }
    leader(&stack, &log).await.kill().await;
    is_delivered(&conversations).await;
    for conversation in conversations {
        conversation.end(&stack).await;
    }
}
