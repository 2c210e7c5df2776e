//! Nobody is in where they do not belong: tokens, roles, and what each may do.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use shared::database::Database;
use tests::{JsClients, Stack, node};

/// Two, as while keys are changed.
const SECRETS: &str = "a secret of this test alone and of nobody,the one before it of 32 bytes too";

/// A folder with key pairs of a test's own.
async fn keys(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("chat-rights-{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let made = node(&["keys.mjs", folder.to_str().unwrap()], &[]).await;
    assert!(made.status.success(), "{}", made.output);
    folder
}

#[tokio::test]
async fn everybody_may_what_the_table_says_and_nothing_else() {
    let folder = keys("table").await;
    let folder = folder.to_str().unwrap();
    let stack = Stack::builder()
        .gateway_env("JWT_SECRET", SECRETS)
        .gateway_env("JWT_PUBLIC_KEY", &format!("{folder}/public.pem"))
        // The cells open more sessions than one address is let.
        .gateway_env("LIMITS", "off")
        .env("SEARCH", "on")
        .start()
        .await;
    // A search can be answered.
    let owner: Database = stack.database_url().parse().unwrap();
    persister::search::index::make_by_command(&owner).await.unwrap();
    let env = [("JWT_SECRET", SECRETS), ("KEYS_FOLDER", folder)];
    stack.node_test("rights.test.mjs", &env).await;
    one_line_for_each_socket_that_asks_for_an_inbox_in_vain(&stack).await;
    fs::remove_dir_all(folder).unwrap();
}

/// With an ack it would be told by that, and the logs hold nothing of it.
async fn one_line_for_each_socket_that_asks_for_an_inbox_in_vain(stack: &Stack) {
    let lines = || stack.gateway(0).logs().matches("an event without an ack is refused").count();
    let before = lines();
    let js_clients = JsClients::start().await;
    for sockets in 1..=2 {
        let admin_page = js_clients.client(&stack.url(""), &["websocket"]).await;
        for _ in 0..3 {
            admin_page.tell("admin-connect", Value::Null).await;
        }
        // Behind them, in order.
        admin_page.ask("admin-connect", Value::Null).await;
        assert_eq!(lines(), before + sockets);
    }
}

/// What `gateway token` prints.
async fn token(secrets: &str, args: &[&str]) -> std::process::Output {
    let gateway = tokio::task::spawn_blocking(|| tests::program("gateway")).await.unwrap();
    let mut command = tokio::process::Command::new(gateway);
    command.arg("token").args(args).env("JWT_SECRET", secrets).current_dir(std::env::temp_dir());
    command.output().await.unwrap()
}

#[tokio::test]
async fn a_token_that_the_gateway_prints_lets_its_owner_in_and_outlives_a_change_of_keys() {
    let printed =
        token("the old secret of thirty-two bytes or so", &["--sub", "alice", "--ttl", "1h"]).await;
    let old = String::from_utf8(printed.stdout).unwrap();
    let both = "the new secret of thirty-two bytes or so,the old secret of thirty-two bytes or so";
    let stack = Stack::builder().gateways(2).gateway_env("JWT_SECRET", both).start().await;
    let new =
        String::from_utf8(token(both, &["--sub", "bob", "--ttl", "1h"]).await.stdout).unwrap();
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.url(""), &["websocket"]).await;
    let session = visitor.stay(None).await["sessionId"].clone();
    let answer = json!({ "sessionId": session, "content": "hello" });
    assert_eq!(visitor.ask("admin_message", answer).await["error"]["code"], "unauthorized");
    for bearer in [&old, &new] {
        let chats = stack.http().get(stack.url("/api/chats")).bearer_auth(bearer.trim());
        let chats: Vec<Value> = chats.send().await.unwrap().json().await.unwrap();
        assert_eq!(chats[0]["sessionId"], session);
    }
    let refused = token("", &["--sub", "alice", "--ttl", "1h"]).await;
    assert!(!refused.status.success());
    assert!(String::from_utf8(refused.stderr).unwrap().starts_with("JWT_SECRET: not set"));
}

#[tokio::test]
async fn a_key_opens_other_addresses_than_loopback_without_a_word_more() {
    let keyed = Stack::builder().gateway_env("HOST", "0.0.0.0").gateway_env("JWT_SECRET", SECRETS);
    let stack = keyed.start().await;
    let chats = stack.http().get(stack.url("/api/chats")).send().await.unwrap();
    assert_eq!(chats.status(), 401);
}
