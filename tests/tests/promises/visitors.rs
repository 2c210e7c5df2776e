//! `web/client`, the client for pages: it keeps its word, whatever happens between it and the database.

use std::collections::BTreeSet;

use serde_json::Value;
use tests::{JsClients, NodeRun, Proxy, Stack, Visit};

/// `STORM_SEEDS=10 cargo test visitors::over` takes as many; each is half a minute of a processor.
const SEEDS: u64 = 2;
/// Twice the history, which a page that is opened again reads in one go; a third of the connections carries a tenth of it or less.
const BYTES_MAX: u64 = 600_000;
/// Said and seen before, during and after an outage.
const ENOUGH: u64 = 30;

#[tokio::test]
async fn the_client_for_pages_does_what_its_readme_says() {
    let stack = Stack::start().await;
    stack.node_test("visitor.test.mjs", &[]).await;
    stack.node_test("answers.test.mjs", &[]).await;
}

#[tokio::test]
async fn the_package_of_the_client_is_small_and_holds_what_it_names() {
    web_test("package.test.mjs", &[]).await;
}

#[tokio::test]
async fn the_examples_of_the_client_are_typed_and_work() {
    let stack = Stack::start().await;
    web_test("examples.test.mjs", &[("GATEWAY_URL".into(), stack.url(""))]).await;
}

async fn web_test(file: &str, env: &[(String, String)]) {
    let NodeRun { status, output } = tests::web_node(&["--test", file], env).await;
    assert!(status.success(), "{status}: {output}");
}

#[tokio::test]
async fn over_ways_that_break_a_thousand_messages_of_each_seed_come_once_and_in_order() {
    let stack = Stack::builder()
        .busy()
        .env("LIMITS", "on")
        .gateway_env("MESSAGES_PER_SECOND", "60")
        .gateway_env("MESSAGES_BURST", "10")
        .gateway_env("HANDSHAKES_PER_MINUTE", "100000")
        .gateway_env("HTTP_READS_PER_SECOND", "1000")
        .start()
        .await;
    let mut proxies = Vec::new();
    let seeds = std::env::var("STORM_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    for seed in 1..=seeds.unwrap_or(SEEDS) {
        let proxy = Proxy::to(stack.gateway(0).port()).await;
        proxy.wear(seed, BYTES_MAX);
        proxies.push(proxy);
    }
    let ways: Vec<_> =
        proxies.iter().map(|proxy| format!("http://127.0.0.1:{}", proxy.port())).collect();
    stack.node_test("storm.test.mjs", &[("PROXY_URLS", &ways.join(","))]).await;
}

#[tokio::test]
async fn a_visitor_with_two_pages_loses_nothing_while_a_gateway_postgres_and_nats_go_away() {
    let stack = Stack::builder().own_postgres().start().await;
    let visitor = JsClients::start().await.visitor(&stack.url(""), 2).await;
    visitor.sees_more("stored", ENOUGH).await;
    stack.gateway(0).kill();
    visitor.sees_more("waiting", ENOUGH).await;
    stack.gateway(0).start().await;
    visitor.sees_more("stored", ENOUGH).await;
    stack.postgres().kill().await;
    visitor.sees_more("accepted", ENOUGH).await;
    stack.postgres().start().await;
    visitor.sees_more("stored", ENOUGH).await;
    stack.nats().kill().await;
    visitor.sees_more("waiting", ENOUGH).await;
    stack.nats().start().await;
    visitor.sees_more("stored", ENOUGH).await;
    all_is_there_once(&stack, &visitor.leave().await).await;
}

/// Both pages show what is stored, and that is what was said, in the order of each page.
async fn all_is_there_once(stack: &Stack, visit: &Visit) {
    let url = stack.url(&format!("/api/chats/{}", visit.session_id));
    let stored: Vec<Value> = stack.http().get(url).send().await.unwrap().json().await.unwrap();
    for shown in &visit.shown {
        assert_eq!(*shown, stored);
    }
    let contents: Vec<_> = stored.iter().map(|it| it["content"].as_str().unwrap()).collect();
    for said in &visit.said {
        let own: BTreeSet<_> = said.iter().map(String::as_str).collect();
        let of_page: Vec<_> = contents.iter().filter(|content| own.contains(*content)).collect();
        assert!(of_page.iter().copied().eq(said), "{of_page:?} {said:?}");
    }
    assert_eq!(contents.len(), visit.said.iter().map(Vec::len).sum::<usize>());
}
