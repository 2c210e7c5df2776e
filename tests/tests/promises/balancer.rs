//! Several gateways and persisters behind the load balancer of `compose.yaml`: the real HAProxy with the
//! file that is shipped.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{
    Balancer, Builder, Client, Conversation, JsClients, Service, Stack, Talk, eventually, is_taken,
};

const SOON: Duration = Duration::from_secs(10);
/// What stood still starts again, and takes over what it lost meanwhile.
const STOPS_WITHIN: Duration = Duration::from_secs(30);
/// One look at a gateway every half second, and two that fail.
const NOTICED_WITHIN: Duration = Duration::from_secs(5);
/// Where the balancer comes from, as gateways see it.
const BALANCER: &str = "127.0.0.1";
/// A proxy before it.
const PROXY: &str = "127.0.0.99";
/// What a client says whose connection was lost while an answer was on its way.
const CUT: &str = "socket has been disconnected";
const CLIENTS: usize = 8;

fn scaled() -> Builder {
    let stack = Stack::builder().gateways(2).persisters(3).gateways_as_containers();
    stack.gateway_env("TRUSTED_PROXIES", BALANCER)
}

async fn start() -> (Stack, Balancer) {
    // What is acked is stored, however slow this machine is.
    let stack = scaled().gateway_env("STORED_WAIT", "1m").start().await;
    let balancer = Balancer::start(&stack, PROXY).await;
    (stack, balancer)
}

async fn enter(client: &Client) -> String {
    client.stay(None).await["sessionId"].as_str().expect("an id").to_owned()
}

async fn say(client: &Client, session: &str, content: &str) -> Value {
    client.ask("user_message", json!({ "sessionId": session, "content": content })).await
}

/// Clients in sessions of their own.
async fn crowd(
    balancer: &Balancer,
    js_clients: &JsClients,
    transport: &str,
) -> Vec<(Client, String)> {
    let mut crowd = Vec::new();
    let before = balancer.open_requests().await.expect("a count of requests");
    for nth in 1..=CLIENTS {
        let client = js_clients.client(&balancer.url(""), &[transport]).await;
        let session = enter(&client).await;
        crowd.push((client, session));
        // Between two polls a client is at no gateway, and that one would be given the next.
        let rests = async || balancer.open_requests().await == Some(before + nth);
        eventually(SOON, "each client polls, or has its websocket", rests).await;
    }
    crowd
}

async fn sockets(gateway: &Service) -> usize {
    let metrics = reqwest::get(gateway.ops_url("/metrics")).await.expect("metrics");
    let text = metrics.text().await.expect("a text");
    let line = text.lines().find_map(|line| line.strip_prefix("chat_gateway_sockets "));
    line.and_then(|count| count.parse().ok()).expect("a count of sockets")
}

#[tokio::test]
async fn clients_work_through_it_by_polling_by_websocket_and_with_the_upgrade() {
    let (stack, balancer) = start().await;
    let url = balancer.url("");
    for file in ["session.test.mjs", "messages.test.mjs", "resume.test.mjs", "rest.test.mjs"] {
        stack.node_test(file, &[("GATEWAY_URL", &url), ("GATEWAY_URLS", &url)]).await;
    }
}

#[tokio::test]
async fn a_client_is_where_it_is_and_not_where_it_says() {
    let (stack, balancer) = start().await;
    let url = balancer.url("");
    stack.node_test("balancer.test.mjs", &[("GATEWAY_URL", &url), ("PROXY", PROXY)]).await;
    for gateway in stack.gateways() {
        assert!(!gateway.logs().contains("Forwarded"), "{}", gateway.logs());
    }
}

#[tokio::test]
async fn clients_are_spread_over_the_gateways_and_those_that_poll_stay_with_theirs() {
    let (stack, balancer) = start().await;
    let js_clients = JsClients::start().await;
    let crowd = crowd(&balancer, &js_clients, "polling").await;
    for gateway in stack.gateways() {
        assert_eq!(sockets(gateway).await, CLIENTS / 2, "{}", gateway.name());
    }
    for (client, session) in &crowd {
        for n in 0..20 {
            assert!(is_taken(&say(client, session, &n.to_string()).await));
        }
    }
    for (client, _) in &crowd {
        eventually(SOON, "it is shown", async || client.messages().await.len() == 20).await;
        assert_eq!(client.seen("disconnect").await, Vec::<Value>::new());
    }
}

#[tokio::test]
async fn gateways_that_come_and_go_are_found_by_name() {
    let (stack, balancer) = start().await;
    let js_clients = JsClients::start().await;
    let [first, second]: [Ipv4Addr; 2] = [0, 1].map(|index| stack.gateway(index).address());
    balancer.set_addresses(vec![first]);
    balancer.knows(1).await;
    let before = crowd(&balancer, &js_clients, "websocket").await;
    assert_eq!(sockets(stack.gateway(1)).await, 0);
    balancer.set_addresses(vec![second, first]);
    balancer.knows(2).await;
    crowd(&balancer, &js_clients, "websocket").await;
    assert_eq!(sockets(stack.gateway(1)).await, CLIENTS);
    for (client, _) in &before {
        assert_eq!(client.seen("disconnect").await, Vec::<Value>::new());
    }
}

/// Everything that was said came, and nothing was refused but for the restart of a gateway.
async fn end(conversations: Vec<Conversation>, stack: &Stack) {
    for conversation in conversations {
        for Talk { refused, .. } in conversation.end(stack).await {
            let others = |code: &&String| !["unavailable", CUT].contains(&code.as_str());
            assert_eq!(refused.iter().filter(others).collect::<Vec<_>>(), Vec::<&String>::new());
        }
    }
}

async fn conversations(balancer: &Balancer, js_clients: &JsClients) -> Vec<Conversation> {
    let mut conversations = Vec::new();
    for _ in 0..4 {
        conversations.push(Conversation::begin_at(&balancer.url(""), js_clients).await);
    }
    conversations
}

/// Everybody goes on talking while each process behind it is taken down in turn.
async fn take_down_in_turn(take_down: impl AsyncFn(&Service)) {
    let (stack, balancer) = start().await;
    let js_clients = JsClients::start().await;
    let conversations = conversations(&balancer, &js_clients).await;
    for service in stack.gateways().iter().chain(stack.persisters()) {
        take_down(service).await;
        for conversation in &conversations {
            conversation.is_delivered(10).await;
        }
        service.start().await;
        balancer.knows(2).await;
    }
    end(conversations, &stack).await;
}

#[tokio::test]
async fn every_process_behind_it_may_be_stopped_in_turn() {
    take_down_in_turn(async |service: &Service| {
        assert!(service.terminate().await.success(), "{}", service.logs());
    })
    .await;
}

#[tokio::test]
async fn every_process_behind_it_may_be_killed_in_turn() {
    take_down_in_turn(async |service: &Service| service.kill()).await;
}

/// It waits for something to be stored, for as long as nobody stores: a log that does not answer would be given up
/// after seconds.
#[tokio::test]
async fn a_gateway_that_drains_is_given_nobody_and_keeps_whom_it_has() {
    let patient = scaled().gateway_env("STORED_WAIT", "1m").gateway_env("SHUTDOWN_SECONDS", "60");
    let stack = patient.start().await;
    let balancer = Balancer::start(&stack, PROXY).await;
    let js_clients = JsClients::start().await;
    let client = js_clients.client(&balancer.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    let mut gateways = [stack.gateway(0), stack.gateway(1)];
    if sockets(gateways[0]).await == 0 {
        gateways.reverse();
    }
    let [draining, other] = gateways;
    stack.persisters().iter().for_each(Service::pause);
    let under_way = tokio::spawn({
        let (client, session) = (client.clone(), session.clone());
        let payload = json!({ "sessionId": session, "content": "under way" });
        // It may take longer than one that is asked alone is given.
        async move { client.burst("user_message", vec![payload]).await.remove(0) }
    });
    eventually(SOON, "it is under way", async || {
        let metrics = reqwest::get(draining.ops_url("/metrics")).await.expect("metrics");
        metrics.text().await.expect("a text").contains("chat_gateway_pending_sends 1")
    })
    .await;
    draining.ask_to_stop();
    // Also before anybody noticed: who is refused a connection is given the other one.
    for _ in 0..10 {
        let answer = stack.http().get(balancer.url("/health")).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{answer:?}");
    }
    balancer.knows(1).await;
    assert!(draining.is_running(), "{}", draining.logs());
    stack.persisters().iter().for_each(Service::resume);
    let answer = under_way.await.expect("an answer");
    assert_eq!(answer["status"], "stored", "{answer} {}", draining.logs());
    assert!(draining.exit_status(STOPS_WITHIN).await.success(), "{}", draining.logs());
    client.connected().await;
    eventually(SOON, "it is delivered", async || client.messages().await.len() == 1).await;
    eventually(SOON, "it is with the other one", async || sockets(other).await == 1).await;
}

/// Not ready, and of use all the same: known sessions are talked in.
#[tokio::test]
async fn while_postgres_is_away_clients_reach_the_gateways() {
    let stack = scaled().own_postgres().start().await;
    let balancer = Balancer::start(&stack, "").await;
    let js_clients = JsClients::start().await;
    let client = js_clients.client(&balancer.url(""), &["polling"]).await;
    let session = enter(&client).await;
    stack.postgres().stop().await;
    let checked = async |gateway: &Service| {
        let text = reqwest::get(gateway.ops_url("/ready")).await.expect("an answer");
        text.status() == 503
    };
    for gateway in stack.gateways() {
        eventually(SOON, "it is not ready", async || checked(gateway).await).await;
    }
    // Longer than it takes to notice.
    let mut said = 0;
    let since = std::time::Instant::now();
    while since.elapsed() < NOTICED_WITHIN {
        assert!(is_taken(&say(&client, &session, &said.to_string()).await));
        said += 1;
    }
    assert_eq!(client.seen("disconnect").await, Vec::<Value>::new());
    balancer.knows(2).await;
    stack.postgres().start().await;
    eventually(SOON, "all is shown", async || client.messages().await.len() == said).await;
}
