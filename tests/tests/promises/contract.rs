//! The contract as the real client sees it: the promises themselves stand in `tests/client`.

use std::net::TcpListener;

use serde_json::Value;
use tests::{Builder, JsClients, Stack};

/// What is acked is stored, however slow this machine is.
fn patient() -> Builder {
    Stack::builder().gateway_env("STORED_WAIT", "1m")
}

#[tokio::test]
async fn sessions_are_opened_and_resumed_as_the_contract_says() {
    patient().start().await.node_test("session.test.mjs", &[]).await;
}

#[tokio::test]
async fn messages_reach_their_room_and_the_history_as_the_contract_says() {
    patient().start().await.node_test("messages.test.mjs", &[]).await;
}

#[tokio::test]
async fn many_messages_at_once_are_acked_broadcast_and_stored_in_order() {
    Stack::builder().busy().start().await.node_test("burst.test.mjs", &[]).await;
}

#[tokio::test]
async fn http_answers_as_the_seed_does() {
    let stack = patient().start().await;
    for file in ["rest.test.mjs", "host.test.mjs"] {
        stack.node_test(file, &[]).await;
    }
}

#[tokio::test]
async fn a_wrong_message_is_told_what_is_wrong_and_what_of_it_could_be_read() {
    let stack = patient().start().await;
    stack.node_test("words.test.mjs", &[]).await;
}

#[tokio::test]
async fn pages_of_listed_origins_may_call_however_they_are_listed_and_no_others() {
    let origins = "https://a.example:443, HTTPS://B.example/, https://*.c.example, https://bücher.example, \
                   http://localhost:3000, capacitor://localhost, null";
    for credentials in ["false", "true"] {
        let stack = Stack::builder()
            .gateway_env("CORS_ORIGINS", origins)
            .gateway_env("CORS_CREDENTIALS", credentials)
            .start()
            .await;
        stack.node_test("origins.test.mjs", &[("CREDENTIALS", credentials)]).await;
    }
}

#[tokio::test]
async fn requests_for_sockets_are_refused_in_the_words_of_the_server_of_node() {
    Stack::start().await.node_test("engine.test.mjs", &[]).await;
}

#[tokio::test]
async fn an_ipv4_address_is_stored_as_one_whichever_socket_it_came_over() {
    // Without IPv6 there is one way only.
    let every = if TcpListener::bind("[::]:0").is_ok() { "::" } else { "0.0.0.0" };
    let open = patient().gateway_env("ALLOW_INSECURE_OPEN", "true");
    let stack = open.gateway_env("HOST", every).start().await;
    assert_eq!(address_of_a_client_of(&stack, &stack.url("")).await, "127.0.0.1");
}

#[tokio::test]
async fn localhost_is_both_addresses_of_this_machine() {
    let stack = patient().gateway_env("HOST", "localhost").start().await;
    assert_eq!(address_of_a_client_of(&stack, &stack.url("")).await, "127.0.0.1");
    if TcpListener::bind("[::1]:0").is_ok() {
        let url = stack.url("").replace("127.0.0.1", "[::1]");
        assert_eq!(address_of_a_client_of(&stack, &url).await, "::1");
    }
}

/// The `ip` that is stored for a visitor who comes by this URL.
async fn address_of_a_client_of(stack: &Stack, url: &str) -> String {
    let client = JsClients::start().await.client(url, &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].clone();
    let chats = stack.http().get(stack.url("/api/chats")).send().await.unwrap();
    let chats: Vec<Value> = chats.json().await.unwrap();
    let chat = chats.iter().find(|chat| chat["sessionId"] == session).unwrap();
    chat["ip"].as_str().unwrap().to_owned()
}

/// More sessions, and more messages, than are read at a time at first.
#[tokio::test]
async fn an_answer_that_is_short_comes_whole_and_with_its_name() {
    let stack = Stack::start().await;
    let sessions = r#"
        INSERT INTO "ChatSession" ("id", "sessionId") SELECT 's' || n, 'of ' || n FROM generate_series(1, 250) n"#;
    let messages = r#"
        INSERT INTO "Message" ("id", "sender", "content", "chatSessionId")
        SELECT 'm' || n, 'user', 'Hello!', 's' || CASE WHEN n % 2 = 0 THEN 1 ELSE n END FROM generate_series(1, 249) n"#;
    for statement in [sessions, messages] {
        sqlx::query(statement).execute(&stack.pool()).await.unwrap();
    }
    for (path, count) in [("/api/chats", 250), ("/api/chats/of%201", 125)] {
        let answer = stack.http().get(stack.url(path)).send().await.unwrap();
        assert!(answer.headers().contains_key("etag"), "{path}");
        assert_eq!(answer.json::<Vec<Value>>().await.unwrap().len(), count, "{path}");
    }
}
