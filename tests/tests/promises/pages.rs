//! The pages to try the chat, in a real browser, and the files of Socket.IO's client that they load.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tests::{Browser, Builder, JsClients, Shown, Stack, Tab, eventually, workspace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(30);
/// Until everything that was said is stored and shown, after all is whole again.
const IN_THE_END: Duration = Duration::from_mins(2);
const SECRET: &str = "a secret of this test alone of 32 bytes or more";
/// A few more than the page of an inbox shows at once, and than a page of the history holds.
const MANY: usize = 5_000;
/// With all messages laid out anew a frame would take longer, also where other programs take most of the processors.
const LONGEST_FRAME_MS: f64 = 5_000.0;

/// The folder with the client's files, as npm installs it.
async fn client_files() -> PathBuf {
    // What is asked for is installed by this.
    tests::node(&["--version"], &[]).await;
    workspace().join("tests/client/node_modules/socket.io-client/dist")
}

async fn with_client_files() -> Builder {
    let folder = client_files().await;
    Stack::builder().gateway_env("SOCKET_IO_CLIENT", folder.to_str().unwrap())
}

#[tokio::test]
async fn the_client_of_browsers_is_served_as_socket_io_serves_it() {
    let stack = with_client_files().await.start().await;
    let folder = client_files().await;
    let names = ["socket.io", "socket.io.min", "socket.io.esm.min", "socket.io.msgpack.min"];
    let names = names.iter().flat_map(|name| [format!("{name}.js"), format!("{name}.js.map")]);
    let mut tag = String::new();
    for name in names {
        let path = format!("/socket.io/{name}");
        let answer = stack.http().get(stack.url(&format!("{path}?v=1"))).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{name}");
        let headers = answer.headers().clone();
        let kind = if name.contains(".map") { "json" } else { "javascript" };
        assert_eq!(headers["content-type"], format!("application/{kind}; charset=utf-8"));
        assert_eq!(headers["cache-control"], "public, max-age=0");
        assert_eq!(headers["access-control-allow-origin"], "*");
        headers["etag"].to_str().unwrap().clone_into(&mut tag);
        assert!(tag.starts_with("\"4."), "{tag}");
        let file = std::fs::read(folder.join(&name)).unwrap();
        assert_eq!(answer.bytes().await.unwrap(), file, "{name}");
        for known in [tag.clone(), format!("W/{tag}")] {
            let again = stack.http().get(stack.url(&path)).header("if-none-match", &known);
            let again = again.send().await.unwrap();
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{name} {known}");
        }
        let head = stack.http().head(stack.url(&path)).send().await.unwrap();
        assert_eq!(head.headers()["content-length"], file.len().to_string(), "{name}");
    }
    let other = stack.http().get(stack.url("/socket.io/socket.io.js"));
    let other = other.header("if-none-match", "\"3.0.0\"").send().await.unwrap();
    assert_eq!(other.status(), StatusCode::OK);
    let post = stack.http().request(Method::POST, stack.url("/socket.io/socket.io.js"));
    assert_eq!(post.send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    nothing_else_is_served(&stack).await;
}

/// Names that are not in the list, and ways out of the folder; clients normalise some, so these are written by hand.
async fn nothing_else_is_served(stack: &Stack) {
    for path in [
        "/socket.io/package.json",
        "/socket.io/../package.json",
        "/socket.io/%2e%2e/package.json",
        "/socket.io/..%2fpackage.json",
        "/socket.io/socket.io.js/../../package.json",
        "/socket.io//socket.io.js",
        "/socket.io/socket.io.js%00",
        "/socket.io/socket.io.js/",
        "/socket.io/",
    ] {
        let answer = get_as_written(stack.gateway(0).port(), path).await;
        let status = answer.split(' ').nth(1).unwrap();
        assert!(["400", "404"].contains(&status), "{path}: {answer}");
        assert!(!answer.contains("\"name\""), "{path}: {answer}");
    }
}

async fn get_as_written(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_gateway_without_the_clients_files_says_so() {
    let stack = Stack::start().await;
    let answer = stack.http().get(stack.url("/socket.io/socket.io.js")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert!(answer.text().await.unwrap().contains("SOCKET_IO_CLIENT"));
    let Some(browser) = Browser::start().await else { return };
    for page in ["/", "/agent"] {
        let tab = browser.open(page, &stack.url(page)).await;
        assert!(tab.text("#notice").await.contains("SOCKET_IO_CLIENT"), "{page}");
    }
}

#[tokio::test]
async fn a_page_may_load_nothing_but_files_of_its_gateway() {
    let stack = Stack::start().await;
    for page in ["/", "/agent"] {
        let answer = stack.http().get(stack.url(page)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        let parts: Vec<_> = policy.split(';').map(str::trim).collect();
        for part in
            ["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"]
        {
            assert!(parts.contains(&part), "{policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    }
}

/// What was said, without the states.
fn texts(shown: &[Shown]) -> Vec<&str> {
    shown.iter().map(|message| message.text.as_str()).collect()
}

async fn connected(tab: &Tab) {
    eventually(SOON, "a page is connected", async || tab.is_connected().await).await;
}

async fn shows(tab: &Tab, wanted: &[(&str, bool, Option<&str>)]) {
    let wanted: Vec<_> = wanted
        .iter()
        .map(|(text, mine, state)| Shown {
            text: (*text).into(),
            mine: *mine,
            state: state.map(str::to_owned),
        })
        .collect();
    eventually(SOON, &format!("a page shows {wanted:?}"), async || tab.shown().await == wanted)
        .await;
}

/// Opens the inbox and, in it, the only conversation.
async fn agent_of(browser: &Browser, stack: &Stack) -> Tab {
    let agent = browser.open("agent", &stack.url("/agent")).await;
    connected(&agent).await;
    agent.click("#sessions button").await;
    eventually(SOON, "it is here", async || agent.text("#presence").await == "Here now").await;
    agent
}

const STORED: Option<&str> = Some("Stored");

#[tokio::test]
async fn two_people_talk_in_two_pages_and_nobody_stumbles() {
    let Some(browser) = Browser::start().await else { return };
    let stack = with_client_files().await.start().await;
    let visitor = browser.open("visitor", &stack.url("/")).await;
    connected(&visitor).await;
    let agent = agent_of(&browser, &stack).await;
    let long = "Donaudampfschifffahrtsgesellschaft".repeat(12);
    visitor.say("Hello!").await;
    agent.say("שלום, how can I help?").await;
    shows(&visitor, &[("Hello!", true, STORED), ("שלום, how can I help?", false, None)]).await;
    visitor.say(&long).await;
    let seen =
        [("Hello!", false, None), ("שלום, how can I help?", true, STORED), (&long, false, None)];
    shows(&agent, &seen).await;

    // Who writes is seen, and no more once it is said.
    visitor.act("fill", json!({ "selector": "#content", "text": "Hm" })).await;
    eventually(SOON, "the agent sees it", async || {
        agent.text("#typing").await == "The visitor is writing …"
    })
    .await;
    visitor.act("fill", json!({ "selector": "#content", "text": "" })).await;
    eventually(SOON, "it is over", async || agent.text("#typing").await.is_empty()).await;

    // One who returns finds it all, and a second tab is in the same conversation.
    visitor.reload().await;
    let said = ["Hello!", "שלום, how can I help?", &long];
    eventually(SOON, "it comes back", async || texts(&visitor.shown().await) == said).await;
    let second = browser.open("visitor", &stack.url("/")).await;
    eventually(SOON, "a second tab shows it", async || second.count().await == 3).await;
    second.say("From the second tab").await;
    visitor.say("From the first tab").await;
    for tab in [&visitor, &second, &agent] {
        eventually(SOON, "each tab shows both once", async || tab.count().await == 5).await;
    }
    agent.reload().await;
    eventually(SOON, "the inbox opens where it was", async || agent.count().await == 5).await;
    eventually(SOON, "all show them in one order", async || {
        let histories = [visitor.shown().await, second.shown().await, agent.shown().await];
        histories.iter().all(|shown| texts(shown) == texts(&histories[0]))
    })
    .await;

    switches(&browser, &stack, &agent).await;
    for (tab, name) in [(&visitor, "visitor"), (&agent, "agent")] {
        nobody_stumbles(tab, name).await;
    }
    for tab in [&visitor, &second, &agent] {
        assert_eq!(tab.problems().await, Vec::<String>::new());
    }
}

/// The switch of the AI, who has claimed the conversation and that it is closed are seen in the other inboxes, and the
/// keyboard is enough.
async fn switches(browser: &Browser, stack: &Stack, agent: &Tab) {
    let other = browser.open("colleague", &stack.url("/agent")).await;
    connected(&other).await;
    other.click("#sessions button").await;
    agent.click("#ai").await;
    let is_off = "#ai:not(:checked)";
    eventually(SOON, "a colleague sees it", async || {
        other.act("matches", json!({ "selector": is_off })).await == true
    })
    .await;
    agent.click("#claim").await;
    agent.click("#status").await;
    eventually(SOON, "a colleague sees who has it", async || {
        let dealt_with = other.text("#dealt-with").await;
        dealt_with.starts_with("closed, with Agent ")
    })
    .await;
    other.click("#claim").await;
    other.click("#status").await;
    eventually(SOON, "it is nobody's again", async || agent.text("#dealt-with").await.is_empty())
        .await;
    agent.act("press", json!({ "keys": "Escape" })).await;
    agent.act("press", json!({ "keys": "Enter" })).await;
    eventually(SOON, "it is open again", async || agent.count().await == 5).await;
    assert_eq!(other.problems().await, Vec::<String>::new());
}

/// In light and dark, on a desk and a phone. `SCREENSHOTS` names a folder for pictures to look at.
async fn nobody_stumbles(tab: &Tab, name: &str) {
    for (look, width, height) in [("desk", 1_280, 800), ("phone", 390, 780)] {
        for scheme in ["light", "dark"] {
            let how = json!({ "colorScheme": scheme, "width": width, "height": height });
            tab.act("look", how).await;
            assert_eq!(tab.act("axe", json!({})).await, json!([]), "{name} {look} {scheme}");
            assert_eq!(tab.act("overflows", json!({})).await, false, "{name} {look} {scheme}");
            if let Ok(folder) = std::env::var("SCREENSHOTS") {
                let file = format!("{folder}/{name}-{look}-{scheme}.png");
                tab.act("screenshot", json!({ "file": file })).await;
            }
        }
    }
}

/// Errors that are no more than the outage itself.
fn besides_the_outage(problems: Vec<String>) -> Vec<String> {
    let of_network = ["Failed to load resource", "WebSocket connection to"];
    problems.into_iter().filter(|one| !of_network.iter().any(|known| one.contains(known))).collect()
}

#[tokio::test]
async fn whatever_breaks_while_a_visitor_writes_both_pages_show_it_once_and_in_order() {
    let Some(browser) = Browser::start().await else { return };
    let stack = with_client_files().await.own_postgres().start().await;
    let visitor = browser.open("visitor", &stack.url("/")).await;
    connected(&visitor).await;
    let agent = agent_of(&browser, &stack).await;
    visitor.chatter().await;
    let goes_on = async |what: &str| {
        let said = visitor.said().await;
        eventually(SOON, what, async || visitor.said().await >= said + 3).await;
    };
    goes_on("the visitor writes").await;

    visitor.reload().await;
    goes_on("after a reload").await;
    stack.gateway(0).kill();
    goes_on("without a gateway").await;
    visitor.offline(true).await;
    stack.gateway(0).start().await;
    goes_on("without a network").await;
    visitor.offline(false).await;
    stack.postgres().kill().await;
    goes_on("without Postgres").await;
    agent.say("I am here").await;
    stack.postgres().start().await;
    stack.nats().kill().await;
    goes_on("without NATS").await;
    visitor.reload().await;
    stack.nats().start().await;
    goes_on("with everything").await;

    let said = visitor.hush().await;
    let wanted: Vec<_> = (1..=said).map(|number| number.to_string()).collect();
    for tab in [&visitor, &agent] {
        eventually(IN_THE_END, "each message is shown once and in order", async || {
            let shown = tab.shown().await;
            let of_visitor = shown.iter().map(|message| &message.text);
            of_visitor.filter(|text| *text != "I am here").eq(&wanted)
        })
        .await;
        eventually(SOON, "all is stored", async || {
            let states = tab.shown().await.into_iter().filter_map(|message| message.state);
            states.eq(std::iter::repeat_n("Stored", tab.mine().await))
        })
        .await;
        assert_eq!(besides_the_outage(tab.problems().await), Vec::<String>::new());
    }
    eventually(SOON, "both show the same", async || {
        texts(&visitor.shown().await) == texts(&agent.shown().await)
    })
    .await;
}

#[tokio::test]
async fn five_thousand_messages_scroll() {
    let Some(browser) = Browser::start().await else { return };
    let stack = with_client_files().await.start().await;
    let visitor = browser.open("visitor", &stack.url("/")).await;
    connected(&visitor).await;
    let agent = agent_of(&browser, &stack).await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let sessions = client.ask("get-sessions", Value::Null).await;
    let session = sessions["sessions"][0]["sessionId"].clone();
    let numbers: Vec<_> = (1..=MANY).collect();
    for some in numbers.chunks(250) {
        let payload = |number: &usize| {
            let content = format!("Message {number}");
            json!({ "sessionId": session, "content": content, "clientOffset": content })
        };
        let payloads: Vec<_> = some.iter().map(payload).collect();
        // What was refused is sent again: of one offset one message is stored.
        eventually(IN_THE_END, "they are taken", async || {
            client.burst("admin_message", payloads.clone()).await.iter().all(tests::is_taken)
        })
        .await;
    }
    for (tab, name) in [(&visitor, "visitor"), (&agent, "agent")] {
        eventually(IN_THE_END, "all are shown", async || tab.count().await == MANY as u64).await;
        let scrolled = tab.act("scroll", json!({})).await;
        assert_eq!(scrolled["first"], "Message 1", "{name}");
        let longest = scrolled["longest"].as_f64().unwrap();
        println!("{name}: the longest time between two frames was {longest:.0} ms");
        assert!(longest < LONGEST_FRAME_MS, "{name}: {longest} ms");
    }
    visitor.reload().await;
    eventually(IN_THE_END, "all come back", async || visitor.count().await == MANY as u64).await;
    agent.reload().await;
    eventually(SOON, "the newest come back", async || agent.count().await == 500).await;
    agent.click("#older").await;
    eventually(SOON, "older ones are asked for", async || agent.count().await == 1_000).await;
    for tab in [&visitor, &agent] {
        assert_eq!(tab.problems().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn an_inbox_asks_for_a_token_where_there_is_a_key() {
    let Some(browser) = Browser::start().await else { return };
    let keyed =
        with_client_files().await.gateway_env("JWT_SECRET", SECRET).gateway_env("TRY_PAGE", "on");
    let stack = keyed.start().await;
    let visitor = browser.open("visitor", &stack.url("/")).await;
    visitor.say("Hello!").await;
    shows(&visitor, &[("Hello!", true, STORED)]).await;
    let agent = browser.open("agent", &stack.url("/agent")).await;
    let sign_in = async |token: &str| {
        agent.act("fill", json!({ "selector": "#token", "text": token })).await;
        agent.click("#sign-in button").await;
    };
    sign_in("nonsense").await;
    eventually(SOON, "it says what is wrong", async || {
        agent.act("matches", json!({ "selector": "#token-error:not([hidden])" })).await == true
    })
    .await;
    assert_eq!(agent.act("axe", json!({})).await, json!([]));
    sign_in(&token().await).await;
    connected(&agent).await;
    agent.click("#sessions button").await;
    shows(&agent, &[("Hello!", false, None)]).await;
    agent.reload().await;
    shows(&agent, &[("Hello!", false, None)]).await;
    // Whoever shows another token ends the connection before, and the browser tells of a websocket that it gave up,
    // and of a poll that comes behind the farewell.
    let given_up = |one: &String| {
        one.contains("WebSocket is closed before the connection is established")
            || one.contains("status of 400") && one.contains("&sid=")
    };
    let problems = agent.problems().await.into_iter().filter(|one| !given_up(one));
    assert_eq!(problems.collect::<Vec<_>>(), Vec::<String>::new());
}

/// What `gateway token` prints.
async fn token() -> String {
    let gateway = tokio::task::spawn_blocking(|| tests::program("gateway")).await.unwrap();
    let mut command = tokio::process::Command::new(gateway);
    command.args(["token", "--sub", "alice", "--ttl", "1h"]).env("JWT_SECRET", SECRET);
    let output = command.current_dir(std::env::temp_dir()).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
