//! Three nats-servers and three copies of the log: any one server may go.

use std::time::Duration;

use async_nats::jetstream::stream::Stream;
use futures_util::future::join_all;
use tests::{Builder, Conversation, JsClients, Nats, Service, Stack, copy_folder, eventually};

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

/// Three servers with so many copies of the log, and people who talk.
async fn talked_over(copies: &str) -> Option<(Stack, Stream, Vec<Conversation>)> {
    let stack = cluster()?.env("LOG_REPLICAS", copies).start().await;
    let log = log(&stack).await;
    let conversations = conversations(&stack, &JsClients::start().await).await;
    Some((stack, log, conversations))
}

async fn all_end(conversations: Vec<Conversation>, stack: &Stack) {
    for conversation in conversations {
        conversation.end(stack).await;
    }
}

async fn is_delivered(conversations: &[Conversation]) {
    for conversation in conversations {
        conversation.is_delivered(10).await;
    }
}

#[tokio::test]
async fn the_server_that_leads_the_log_may_be_killed_again_and_again() {
    let Some((stack, log, conversations)) = talked_over("3").await else { return };
    for _ in 0..3 {
        let leader = leader(&stack, &log).await;
        leader.kill().await;
        is_delivered(&conversations).await;
        leader.start().await;
    }
    all_end(conversations, &stack).await;
}

/// Takes from these servers what they write from now on, as a power cut would that comes before they sync, while
/// the persisters are away; the others are killed too.
async fn lose_tail(stack: &Stack, of: &[&Nats], conversations: &[Conversation]) {
    for server in of {
        server.pause().await;
        copy_folder(&server.store(), &server.store().with_extension("copy")).unwrap();
        server.resume().await;
    }
    for conversation in conversations {
        conversation.is_accepted(5).await;
    }
    for server in stack.nats_servers() {
        server.kill().await;
    }
    for server in of {
        server.wipe();
        std::fs::rename(server.store().with_extension("copy"), server.store()).unwrap();
        server.start().await;
    }
}

#[tokio::test]
async fn servers_that_lose_the_tail_of_the_log_lose_nothing_that_was_acked() {
    let Some((stack, log, conversations)) = talked_over("3").await else { return };
    is_delivered(&conversations).await;
    let leader = leader(&stack, &log).await;
    let follower = stack.nats_servers().find(|it| it.name() != leader.name()).unwrap();
    // With two of three, the log itself goes back: they are the majority.
    for of in [&[leader][..], &[leader, follower]] {
        stack.persisters().iter().for_each(Service::kill);
        lose_tail(&stack, of, &conversations).await;
        if of.len() == 2 {
            join_all(conversations.iter().map(|it| it.is_accepted(3))).await;
        }
        let is_other = |server: &&Nats| of.iter().all(|it| it.name() != server.name());
        for server in stack.nats_servers().filter(is_other) {
            server.start().await;
        }
        join_all(stack.persisters().iter().map(Service::start)).await;
        is_delivered(&conversations).await;
    }
    // Whose log is longer than that of the two may never be given theirs: begun empty, it is.
    let longer =
        stack.nats_servers().find(|it| ![leader.name(), follower.name()].contains(&it.name()));
    let longer = longer.unwrap();
    longer.kill().await;
    longer.wipe();
    longer.start().await;
    self::leader(&stack, &log).await;
    is_delivered(&conversations).await;
    all_end(conversations, &stack).await;
    let told = |name: &'static str| join_all(stack.gateways().iter().map(|it| it.metric(name)));
    let published_again = told("chat_gateway_published_again_total").await;
    let overtaken = told("chat_gateway_sends_overtaken_total").await;
    println!("published again: {published_again:?}, overtaken: {overtaken:?}");
    assert!(published_again.iter().flatten().sum::<u64>() > 0, "the log did not go back");
}

#[tokio::test]
async fn every_server_may_be_stopped_in_turn() {
    let Some((stack, log, conversations)) = talked_over("3").await else { return };
    for server in stack.nats_servers() {
        leader(&stack, &log).await;
        server.stop().await;
        is_delivered(&conversations).await;
        server.start().await;
    }
    all_end(conversations, &stack).await;
}

#[tokio::test]
async fn more_copies_of_the_log_are_made_by_a_restart_with_the_setting() {
    let Some((stack, log, conversations)) = talked_over("1").await else { return };
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
    all_end(conversations, &stack).await;
}
