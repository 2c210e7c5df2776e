//! A client that comes back with `after` misses nothing and sees nothing twice.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tests::{JsClients, Link, Stack, eventually};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_client_resumes_without_gap_or_repeat_on_any_gateway() {
    let stack = Stack::builder().gateways(2).persisters(2).start().await;
    stack.node_test("resume.test.mjs", &[]).await;
}

#[tokio::test]
async fn a_resume_that_postgres_cannot_answer_is_unavailable_and_keeps_the_id() {
    let stack = Stack::builder().own_postgres().start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    stack.postgres().kill().await;
    let resume = json!({ "sessionId": session, "after": "" });
    let ack = client.ask("init_session", resume).await;
    assert_eq!(
        (&ack["sessionId"], &ack["error"]["code"]),
        (&session.as_str().into(), &"unavailable".into())
    );
    // Without `after` there is nothing to read: a returning visitor keeps the conversation.
    let ack = client.ask("init_session", json!({ "sessionId": session })).await;
    assert_eq!(ack["sessionId"], session.as_str());
    assert!(ack["error"].is_null(), "{ack}");
}

/// The first was waiting in the client's buffer when it lost its connection.
#[tokio::test]
async fn a_client_that_resumes_twice_at_once_hears_everything_though_the_first_is_refused() {
    let stack = Stack::builder().proxy(Link::GatewayPostgres).start().await;
    let js_clients = JsClients::start().await;
    let [speaker, listener] = [
        js_clients.client(&stack.url(""), &["websocket"]).await,
        js_clients.client(&stack.url(""), &["websocket"]).await,
    ];
    let session = speaker.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    let proxy = stack.proxy(Link::GatewayPostgres, 0);
    proxy.cut();
    let resume = || {
        let (listener, resume) = (listener.clone(), json!({ "sessionId": session, "after": "" }));
        tokio::spawn(async move { listener.ask("init_session", resume).await })
    };
    let [first, second] = [resume(), resume()];
    speaker.ask("user_message", json!({ "sessionId": session, "content": "meanwhile" })).await;
    let refused = first.await.unwrap();
    assert_eq!(refused["error"]["code"], "unavailable", "{refused}");
    proxy.mend();
    let resumed = second.await.unwrap();
    assert_eq!(resumed["resumed"], true, "{resumed}");
    assert_eq!(resumed["messages"][0]["content"], "meanwhile", "{resumed}");
    speaker.ask("user_message", json!({ "sessionId": session, "content": "heard" })).await;
    eventually(SOON, "it is heard", async || listener.messages().await.len() == 1).await;
}

#[tokio::test]
async fn a_client_whose_resume_is_refused_is_shown_nothing_of_the_session() {
    let stack = Stack::builder().proxy(Link::GatewayPostgres).start().await;
    let js_clients = JsClients::start().await;
    let speaker = js_clients.client(&stack.url(""), &["websocket"]).await;
    let listener = js_clients.client(&stack.url(""), &["websocket"]).await;
    let session = speaker.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    stack.proxy(Link::GatewayPostgres, 0).cut();
    let refused = tokio::spawn({
        let (listener, resume) = (listener.clone(), json!({ "sessionId": session, "after": "" }));
        async move { listener.ask("init_session", resume).await }
    });
    speaker.ask("user_message", json!({ "sessionId": session, "content": "secret" })).await;
    eventually(SOON, "it is said", async || speaker.messages().await.len() == 1).await;
    let refused = refused.await.unwrap();
    assert_eq!(refused["error"]["code"], "unavailable", "{refused}");
    // What was emitted before comes before this answer.
    listener.ask("user_message", json!({})).await;
    assert!(listener.messages().await.is_empty());
}

/// It was shown the message by another gateway, and this one is behind.
#[tokio::test]
async fn a_client_is_not_shown_again_what_it_comes_back_with() {
    let stack = Stack::builder().gateways(2).proxy(Link::GatewayNats).start().await;
    let js_clients = JsClients::start().await;
    let there = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    let here = js_clients.client(&stack.gateway(0).url(""), &["websocket"]).await;
    let session = there.stay(None).await["sessionId"].clone();
    stack.proxy(Link::GatewayNats, 0).cut();
    there.ask("user_message", json!({ "sessionId": session, "content": "known" })).await;
    eventually(SOON, "it is shown there", async || there.messages().await.len() == 1).await;
    let after = there.messages().await[0]["id"].clone();
    let ack = here.ask("init_session", json!({ "sessionId": session, "after": after })).await;
    assert_eq!((&ack["resumed"], &ack["messages"]), (&json!(true), &json!([])), "{ack}");
    stack.proxy(Link::GatewayNats, 0).mend();
    there.ask("user_message", json!({ "sessionId": session, "content": "new" })).await;
    eventually(SOON, "what is new is shown", async || {
        here.messages().await.iter().any(|message| message["content"] == "new")
    })
    .await;
    assert_eq!(here.messages().await.len(), 1, "{:?}", here.messages().await);
}

/// Postgres is asked about many of them by one statement.
#[tokio::test]
async fn each_of_a_crowd_that_comes_back_at_once_is_in_its_own_session_and_given_what_it_missed() {
    const CROWD: usize = 60;
    let stack = Stack::start().await;
    let js_clients = JsClients::start().await;
    let speaker = js_clients.client(&stack.url(""), &["websocket"]).await;
    let mut comings = Vec::new();
    for number in 0..CROWD {
        let session = speaker.stay(None).await["sessionId"].clone();
        let say = async |text: String| {
            let message = json!({ "sessionId": session, "content": text });
            speaker.ask("user_message", message).await["id"].clone()
        };
        let known = say(format!("{number} known")).await;
        for missed in 0..number % 3 {
            say(format!("{number} missed {missed}")).await;
        }
        comings.push(match number % 5 {
            0 => json!({ "sessionId": session }),
            _ => json!({ "sessionId": session, "after": known }),
        });
    }
    let is_erased = |number: usize| number % 7 == 3;
    for number in (0..CROWD).filter(|number| is_erased(*number)) {
        let session = comings[number]["sessionId"].as_str().unwrap();
        let url = stack.url(&format!("/api/chats/{session}"));
        assert!(stack.http().delete(url).send().await.unwrap().status().is_success());
    }
    stack.gateway(0).terminate().await;
    stack.gateway(0).start().await;
    let clients = (0..CROWD).map(async |_| js_clients.client(&stack.url(""), &["websocket"]).await);
    let clients = join_all(clients).await;
    let asked = clients.iter().zip(&comings);
    let back = asked.map(async |(client, coming)| client.ask("init_session", coming.clone()).await);
    for (number, ack) in join_all(back).await.into_iter().enumerate() {
        let is_same = ack["sessionId"] == comings[number]["sessionId"];
        assert_eq!((is_same, &ack["resumed"]), (!is_erased(number), &json!(is_same)), "{ack}");
        let messages = ack["messages"].as_array().unwrap();
        let missed = if is_same && number % 5 > 0 { number % 3 } else { 0 };
        let wanted = (0..missed).map(|nth| format!("{number} missed {nth}"));
        assert!(wanted.eq(messages.iter().map(|message| message["content"].as_str().unwrap())));
        assert_eq!(ack["reset"], false, "{ack}");
    }
}

/// The longest is a row that something else than this system wrote.
#[tokio::test]
async fn a_long_history_is_given_in_parts_of_so_many_bytes_and_none_is_missing() {
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    let insert = r#"
        INSERT INTO "Message" ("id", "sender", "content", "chatSessionId")
        SELECT 'm' || n, 'user', n || repeat(CASE n % 3 WHEN 0 THEN chr(1) ELSE 'я' END, CASE n
            WHEN 31 THEN 400000 WHEN 32 THEN 200000 ELSE 5 + 1000 * (n % 7) END), s."id"
        FROM "ChatSession" s, generate_series(1, 700) n WHERE s."sessionId" = $1 ORDER BY n"#;
    sqlx::query(insert).bind(&session).execute(&stack.pool()).await.unwrap();
    let mut seen: Vec<String> = Vec::new();
    let mut parts = 0;
    loop {
        let after = seen.last().map_or("none of this session", String::as_str);
        let ack = client.ask("init_session", json!({ "sessionId": session, "after": after })).await;
        let messages = ack["messages"].as_array().unwrap();
        let bytes = ack.to_string().len();
        assert!(bytes < 300_000 || messages.len() == 1, "{} in {bytes} bytes", messages.len());
        assert!(!messages.is_empty() && messages.len() <= 500);
        assert_eq!(ack["reset"], seen.is_empty());
        seen.extend(messages.iter().map(|message| message["id"].as_str().unwrap().to_owned()));
        parts += 1;
        if ack["more"] == false {
            break;
        }
    }
    let all: Vec<_> = (1..=700).map(|n| format!("m{n}")).collect();
    assert_eq!(seen, all);
    assert!(parts > 10, "{parts} parts");
    // Nothing follows the last.
    let last = json!({ "sessionId": session, "after": "m700" });
    let ack = client.ask("init_session", last).await;
    assert_eq!((&ack["messages"], &ack["more"]), (&json!([]), &json!(false)));
}
