//! Who answers a session, whether it is open and whether an AI may answer are decided by the order in the log: two
//! gateways, a restart and a log that is read again cannot disagree. Who reads and who types is told beside it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Backups, Client, JsClients, Link, Stack, eventually, is_taken};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(20);
/// Who types and says nothing more does not.
const TYPES_FOR: Duration = Duration::from_secs(6);
const SECRET: &str = "a secret of this test alone of 32 bytes or more";

async fn open(client: &Client) -> String {
    client.ask("init_session", json!({})).await["sessionId"].as_str().unwrap().to_owned()
}

fn with(session: &str, name: &str, value: impl Into<Value>) -> Value {
    json!({ "sessionId": session, name: value.into() })
}

async fn session_of(client: &Client, session: &str) -> Value {
    client.ask("get-session", json!({ "sessionId": session })).await["session"].clone()
}

async fn say(client: &Client, event: &str, session: &str, content: &str) -> Value {
    let ack = client.ask(event, with(session, "content", content)).await;
    assert!(is_taken(&ack), "{ack}");
    ack
}

/// Posts what an AI says; the status, and the code of an error.
async fn post(stack: &Stack, session: &str, content: &str, key: Option<&str>) -> (u16, String) {
    let url = stack.url(&format!("/api/chats/{session}/messages"));
    let mut request = stack.http().post(url).json(&json!({ "content": content, "isAI": true }));
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let code =
        answer.json::<Value>().await.unwrap()["code"].as_str().unwrap_or_default().to_owned();
    (status, code)
}

async fn patch(
    stack: &Stack,
    gateway: usize,
    session: &str,
    body: &Value,
    token: Option<&str>,
) -> (u16, Value) {
    let url = stack.gateway(gateway).url(&format!("/api/chats/{session}"));
    let mut request = stack.http().patch(url).json(body);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// What `gateway token` prints.
async fn token(name: &str, role: &str) -> String {
    let gateway = tokio::task::spawn_blocking(|| tests::program("gateway")).await.unwrap();
    let mut command = tokio::process::Command::new(gateway);
    command.args(["token", "--sub", name, "--role", role, "--ttl", "1h"]);
    let printed = command.env("JWT_SECRET", SECRET).output().await.unwrap();
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).unwrap().trim().to_owned()
}

/// An agent who claims sessions, and whether each claim was told to have won.
struct Claimant {
    name: String,
    client: Client,
    won: HashMap<String, bool>,
}

impl Claimant {
    /// Claims all these at once, and again what nobody answered for.
    async fn claim(&mut self, sessions: &[String]) {
        let mut left = sessions.to_vec();
        while !left.is_empty() {
            let claims = left.iter().map(|session| with(session, "agent", &*self.name)).collect();
            let acks = self.client.burst("claim-session", claims).await;
            let mut again = Vec::new();
            for (session, ack) in left.into_iter().zip(acks) {
                let assignee = ack["session"]["assignee"].as_str();
                match ack["error"]["code"].as_str() {
                    None => {
                        assert_eq!(assignee, Some(&*self.name), "{ack}");
                        self.won.insert(session, true);
                    }
                    Some("conflict") => {
                        assert!(assignee.is_some_and(|it| it != self.name), "{ack}");
                        self.won.insert(session, false);
                    }
                    Some("unavailable" | "overloaded") => again.push(session),
                    Some(_) => panic!("{ack}"),
                }
            }
            left = again;
        }
    }
}

#[tokio::test]
async fn of_claims_at_once_on_two_gateways_one_counts_and_every_loser_is_told() {
    const AGENTS: usize = 50;
    const CLAIMS_OF_EACH: usize = 200;
    const SESSIONS: usize = 1_000;
    let builder = Stack::builder().gateways(2).persisters(2).gateway_env("LIMITS", "off");
    let stack = builder.start().await;
    let js_clients = JsClients::start().await;
    let (mut sessions, mut agents) = (Vec::new(), Vec::new());
    for n in 0..AGENTS {
        let client = js_clients.client(&stack.gateway(n % 2).url(""), &["websocket"]).await;
        let opened = client.burst("init_session", vec![json!({}); SESSIONS / AGENTS]).await;
        sessions.extend(opened.iter().map(|ack| ack["sessionId"].as_str().unwrap().to_owned()));
        agents.push(Claimant { name: format!("agent-{n}"), client, won: HashMap::new() });
    }
    let claiming = join_all(agents.iter_mut().enumerate().map(|(n, agent)| {
        // Ten agents claim each session.
        let first = n % (SESSIONS / CLAIMS_OF_EACH) * CLAIMS_OF_EACH;
        let sessions = &sessions[first..first + CLAIMS_OF_EACH];
        async move { agent.claim(sessions).await }
    }));
    let killing = async {
        for persister in stack.persisters() {
            persister.kill();
            persister.start().await;
        }
    };
    tokio::join!(claiming, killing);
    let mut winners: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for agent in &agents {
        for (session, _) in agent.won.iter().filter(|(_, won)| **won) {
            winners.entry(session).or_default().push(&agent.name);
        }
    }
    assert_eq!(winners.len(), SESSIONS);
    let pool = stack.pool();
    let rows: Vec<(String, Option<String>)> =
        sqlx::query_as(r#"SELECT "sessionId", "assignee" FROM "ChatSession""#)
            .fetch_all(&pool)
            .await
            .unwrap();
    let stored: HashMap<_, _> = rows.into_iter().collect();
    let seen_by = [&agents[0].client, &agents[1].client];
    for (session, winners) in winners {
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(stored[session].as_deref(), Some(winners[0]));
    }
    for client in seen_by {
        let page = client.ask("get-all-sessions", json!({ "limit": 500 })).await;
        for entry in page["sessions"].as_array().unwrap() {
            assert_eq!(
                entry["assignee"].as_str(),
                stored[entry["sessionId"].as_str().unwrap()].as_deref()
            );
        }
    }
    assert_eq!(agents.iter().map(|agent| agent.won.len()).sum::<usize>(), AGENTS * CLAIMS_OF_EACH);
}

/// What stands in a partition of the log behind what: a message of an AI, or a switch.
async fn switches_and_answers(pool: &PgPool) -> Vec<(String, i64, Option<bool>)> {
    let rows = r#"
        SELECT s."sessionId", m."logSequence", NULL::bool FROM "Message" m
        JOIN "ChatSession" s ON s."id" = m."chatSessionId" WHERE m."isAI"
        UNION ALL
        SELECT s."sessionId", c."logSequence", c."aiEnabled" FROM "SessionChange" c
        JOIN "ChatSession" s ON s."id" = c."chatSessionId" WHERE c."isApplied"
        ORDER BY 1, 2"#;
    sqlx::query_as(rows).fetch_all(pool).await.unwrap()
}

#[tokio::test]
async fn no_answer_of_an_ai_stands_behind_where_an_agent_switched_it_off() {
    const SESSIONS: usize = 8;
    const ANSWERS: usize = 60;
    let builder = Stack::builder().gateways(2).persisters(2).gateway_env("LIMITS", "off");
    let stack = builder.start().await;
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.url(""), &["websocket"]).await;
    let agent = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(open(&visitor).await);
    }
    let bots = join_all(sessions.iter().map(|session| {
        let stack = &stack;
        async move {
            let mut fates = Vec::new();
            for n in 0..ANSWERS {
                let content = n.to_string();
                let fate = loop {
                    // The key makes it safe to say again what is not decided.
                    match post(stack, session, &content, Some(&content)).await {
                        (503 | 202, _) => {}
                        fate => break fate,
                    }
                };
                fates.push(fate);
            }
            fates
        }
    }));
    let switching = async {
        let mut n = 0_usize;
        loop {
            let session = &sessions[n % SESSIONS];
            let enabled = (n / SESSIONS) % 2 == 1;
            let ack = agent.ask("toggle-ai-mode", with(session, "enabled", enabled)).await;
            assert!(ack["error"].is_null() || ack["error"]["code"] == "unavailable", "{ack}");
            n += 1;
        }
    };
    let killing = async {
        for persister in stack.persisters() {
            persister.kill();
            persister.start().await;
        }
        std::future::pending::<()>().await;
    };
    let fates = tokio::select! {
        fates = bots => fates,
        () = killing => unreachable!("it waits for ever"),
        () = switching => unreachable!("it never ends"),
    };
    let (mut taken, mut refused) = (0, 0);
    for (session, fates) in sessions.iter().zip(&fates) {
        let url = stack.url(&format!("/api/chats/{session}"));
        let history: Vec<Value> = stack.http().get(url).send().await.unwrap().json().await.unwrap();
        let said: Vec<_> = history.iter().map(|it| it["content"].as_str().unwrap()).collect();
        let wanted = fates.iter().enumerate().filter(|(_, fate)| fate.0 == 201);
        let wanted: Vec<_> = wanted.map(|(n, _)| n.to_string()).collect();
        assert_eq!(said, wanted);
        for fate in fates {
            match (fate.0, fate.1.as_str()) {
                (201, _) => taken += 1,
                (409, "ai_off") => refused += 1,
                _ => panic!("{fate:?}"),
            }
        }
    }
    assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
    let mut enabled: HashMap<String, bool> = HashMap::new();
    let all = switches_and_answers(&stack.pool()).await;
    for (session, sequence, switch) in &all {
        let is_on = enabled.entry(session.clone()).or_insert(true);
        match switch {
            Some(switch) => *is_on = *switch,
            None => assert!(*is_on, "an answer at {sequence} behind the switch: {all:?}"),
        }
    }
}

/// What sessions are, and what is said in them.
async fn everything(pool: &PgPool) -> Vec<Value> {
    let rows = r#"
        SELECT jsonb_build_array(s."sessionId", s."status", s."assignee", s."aiEnabled",
            (SELECT jsonb_agg(m."content" ORDER BY m."seq") FROM "Message" m WHERE m."chatSessionId" = s."id"),
            (SELECT count(*) FROM "SessionChange" c WHERE c."chatSessionId" = s."id"))
        FROM "ChatSession" s ORDER BY 1"#;
    sqlx::query_scalar(rows).fetch_all(pool).await.unwrap()
}

/// A session with a past: claimed, closed and opened again, with an AI that was switched off and on.
async fn live(stack: &Stack, visitor: &Client, agent: &Client) -> String {
    let session = open(visitor).await;
    say(visitor, "user_message", &session, "Hello?").await;
    assert_eq!(post(stack, &session, "I am a machine", None).await.0, 201);
    let off = agent.ask("toggle-ai-mode", with(&session, "enabled", false)).await;
    assert_eq!(off["enabled"], false, "{off}");
    assert_eq!(post(stack, &session, "I am not heard", None).await, (409, "ai_off".into()));
    agent.ask("claim-session", with(&session, "agent", "anna")).await;
    agent.ask("claim-session", with(&session, "agent", "ben")).await;
    say(agent, "admin_message", &session, "Hi!").await;
    agent.ask("set-status", with(&session, "status", "closed")).await;
    say(visitor, "user_message", &session, "One more thing").await;
    agent.ask("toggle-ai-mode", with(&session, "enabled", true)).await;
    session
}

#[tokio::test]
async fn a_log_that_is_read_from_its_start_decides_nothing_anew() {
    let stack = Stack::builder().start().await;
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.url(""), &["websocket"]).await;
    let agent = js_clients.client(&stack.url(""), &["websocket"]).await;
    let session = live(&stack, &visitor, &agent).await;
    agent.ask("set-status", with(&session, "status", "closed")).await;
    let pool = stack.pool();
    let before = everything(&pool).await;
    let said = json!(["Hello?", "I am a machine", "Hi!", "One more thing"]);
    assert_eq!(before[0], json!([session, "closed", "anna", true, said, 7]));

    let persister = stack.persister(0);
    persister.terminate().await;
    // As if this were another log.
    let another = r#"
        UPDATE "LogPartition" SET "streamCreatedAt" = '2001-01-01'"#;
    sqlx::query(another).execute(&pool).await.unwrap();
    persister.start().await;
    let epochs = r#"
        SELECT count(*) FROM "LogPartition" p
        WHERE p."sequence" > 0 AND (SELECT count(*) FROM "LogEpoch" e WHERE e."partition" = p."partition") > 1"#;
    eventually(SOON, "the log is read again", async || {
        sqlx::query_scalar::<_, i64>(epochs).fetch_one(&pool).await.unwrap() > 0
    })
    .await;
    // Behind everything that is read again.
    say(&agent, "admin_message", &session, "Bye").await;
    let mut wanted = before.clone();
    wanted[0][4].as_array_mut().unwrap().push("Bye".into());
    assert_eq!(everything(&pool).await, wanted);
}

#[tokio::test]
async fn a_database_that_is_restored_learns_what_was_decided_since() {
    let stack = Stack::builder().gateways(2).own_postgres().start().await;
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.url(""), &["websocket"]).await;
    let agent = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    let backups = Backups::of(&stack).await;
    let early = live(&stack, &visitor, &agent).await;
    backups.back_up().await;
    eventually(SOON, "sends are stored again", async || {
        agent.ask("release-session", json!({ "sessionId": early })).await["error"].is_null()
    })
    .await;
    live(&stack, &visitor, &agent).await;
    let before = everything(&stack.pool()).await;
    backups.restore().await;
    eventually(SOON, "it is as it was", async || everything(&stack.pool()).await == before).await;
}

#[tokio::test]
async fn agents_on_every_gateway_are_told_what_is_decided_and_those_with_deltas_what_changes() {
    let stack = Stack::builder().gateways(2).start().await;
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.url(""), &["websocket"]).await;
    let [inbox, member, deltas, nobody] = [
        js_clients.client(&stack.gateway(0).url(""), &["websocket"]).await,
        js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await,
        js_clients.client(&stack.gateway(1).url(""), &["polling"]).await,
        js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await,
    ];
    let session = open(&visitor).await;
    inbox.ask("admin-connect", Value::Null).await;
    member.ask("admin-join-session", json!({ "sessionId": session })).await;
    let list = deltas.ask("admin-connect", json!({ "deltas": true })).await;
    assert!(list["sessions"].is_array(), "{list}");

    say(&visitor, "user_message", &session, "Hello?").await;
    eventually(SOON, "a delta", async || {
        deltas.last("session-updated").await["session"]["unread"] == 1
    })
    .await;
    assert_eq!(inbox.count("session-updated").await, 0, "nothing was decided");

    let claimed = member.ask("claim-session", with(&session, "agent", "anna")).await;
    assert_eq!(claimed["session"]["assignee"], "anna", "{claimed}");
    let late = inbox.ask("claim-session", with(&session, "agent", "ben")).await;
    assert_eq!(
        (&late["error"]["code"], &late["session"]["assignee"]),
        (&json!("conflict"), &json!("anna"))
    );
    let again = member.ask("claim-session", with(&session, "agent", "anna")).await;
    assert!(again["error"].is_null(), "{again}");
    for agent in [&inbox, &member, &deltas] {
        eventually(SOON, "who has claimed it", async || {
            agent.last("session-updated").await["session"]["assignee"] == "anna"
        })
        .await;
    }
    let off = member.ask("toggle-ai-mode", with(&session, "enabled", false)).await;
    assert_eq!(off, with(&session, "enabled", false));
    for agent in [&inbox, &deltas] {
        eventually(SOON, "the switch", async || agent.last("ai-mode-changed").await == off).await;
    }
    let closed = inbox.ask("set-status", with(&session, "status", "closed")).await;
    assert_eq!(closed["session"]["status"], "closed", "{closed}");
    let shows = async |status: &str| {
        for agent in [&inbox, &member, &deltas] {
            eventually(SOON, status, async || {
                agent.last("session-updated").await["session"]["status"] == status
            })
            .await;
        }
    };
    shows("closed").await;
    say(&visitor, "user_message", &session, "Still there?").await;
    shows("open").await;
    let freed = deltas.ask("release-session", json!({ "sessionId": session })).await;
    assert_eq!(freed["session"]["assignee"], Value::Null, "{freed}");
    visitor.disconnect().await;
    eventually(SOON, "that the visitor left", async || {
        deltas.last("session-updated").await["session"]["isActive"] == false
    })
    .await;
    assert_eq!(nobody.count("session-updated").await + visitor.count("session-updated").await, 0);
    assert_eq!(deltas.count("sessions-list").await, 1, "lists are for others");
    let unknown = json!({ "sessionId": "550e8400-e29b-41d4-a716-446655440000" });
    for event in ["release-session", "get-session"] {
        assert_eq!(inbox.ask(event, unknown.clone()).await["error"]["code"], "session_not_found");
    }
}

#[tokio::test]
async fn what_is_not_read_is_counted_and_marks_only_move_forward() {
    let stack = Stack::builder().gateways(2).persisters(2).start().await;
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.url(""), &["websocket"]).await;
    let agent = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    let session = open(&visitor).await;
    agent.ask("admin-join-session", json!({ "sessionId": session })).await;
    let mut ids = Vec::new();
    for n in 0..105 {
        ids.push(say(&visitor, "user_message", &session, &n.to_string()).await["id"].clone());
    }
    assert_eq!(session_of(&agent, &session).await["unread"], 99);
    // What is marked here goes on with what is marked in the session: when that is told, the other is decided.
    let beside = open(&visitor).await;
    agent.ask("admin-join-session", json!({ "sessionId": beside })).await;
    for (nth, (reads, unread)) in
        [(vec![50], 54), (vec![20], 54), (vec![102, 70], 2)].into_iter().enumerate()
    {
        let seen = say(&visitor, "user_message", &beside, "Hello?").await["id"].clone();
        for mark in reads.into_iter().map(|read| with(&session, "messageId", ids[read].clone())) {
            assert_eq!(agent.ask("mark-read", mark.clone()).await, mark);
        }
        agent.ask("mark-read", with(&beside, "messageId", seen.clone())).await;
        eventually(SOON, "what is beside it is told", async || {
            let told = agent.seen("read").await;
            told.iter().filter(|it| it["sessionId"] == *beside).count() == nth + 1
        })
        .await;
        eventually(SOON, "it is counted", async || {
            session_of(&agent, &session).await["unread"] == unread
        })
        .await;
    }
    let of_agent =
        |read: usize| json!({ "sessionId": session, "reader": "admin", "messageId": ids[read] });
    for client in [&visitor, &agent] {
        let told = async || {
            let told = client.seen("read").await.into_iter();
            told.filter(|it| it["sessionId"] == *session).collect::<Vec<_>>()
        };
        eventually(SOON, "the room is told", async || told().await.len() == 2).await;
        assert_eq!(told().await, [of_agent(50), of_agent(102)]);
    }
    let mark = with(&session, "messageId", ids[104].clone());
    visitor.ask("mark-read", mark).await;
    eventually(SOON, "the other side", async || {
        session_of(&agent, &session).await["read"] == json!({ "user": ids[104], "admin": ids[102] })
    })
    .await;
    say(&agent, "admin_message", &session, "Hi!").await;
    assert_eq!(session_of(&agent, &session).await["unread"], 0);
    say(&visitor, "user_message", &session, "One more").await;
    assert_eq!(session_of(&agent, &session).await["unread"], 1);

    let other = open(&visitor).await;
    let strange = agent.ask("mark-read", with(&other, "messageId", ids[0].clone())).await;
    assert_eq!(strange["error"]["code"], "session_not_found", "it is not in that session");
    let wrong = agent.ask("mark-read", with(&session, "messageId", "nonsense")).await;
    assert_eq!(wrong["error"]["code"], "invalid_payload");
}

#[tokio::test]
async fn who_types_is_told_to_the_others_and_over_after_six_seconds_or_with_its_socket() {
    let stack = Stack::builder().gateways(2).start().await;
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.url(""), &["websocket"]).await;
    let agent = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    let session = open(&visitor).await;
    agent.ask("admin-join-session", json!({ "sessionId": session })).await;
    let typed = |sender: &str, typing: bool| json!({ "sessionId": session, "sender": sender, "typing": typing });
    let hears = async |client: &Client, wanted: &[Value]| {
        eventually(SOON, "who types", async || client.seen("typing").await.len() >= wanted.len())
            .await;
        assert_eq!(client.seen("typing").await, wanted);
    };
    let began = Instant::now();
    for _ in 0..5 {
        visitor.ask("typing", with(&session, "typing", true)).await;
    }
    hears(&agent, &[typed("user", true)]).await;
    hears(&agent, &[typed("user", true), typed("user", false)]).await;
    assert!(began.elapsed() >= TYPES_FOR, "{:?}", began.elapsed());
    agent.tell("typing", with(&session, "typing", true)).await;
    agent.tell("typing", with(&session, "typing", false)).await;
    hears(&visitor, &[typed("admin", true), typed("admin", false)]).await;
    let program = stack.url(&format!("/api/chats/{session}/typing"));
    let answer = stack.http().post(program).json(&json!({ "typing": true })).send().await.unwrap();
    assert_eq!(answer.status(), 204);
    eventually(SOON, "a program types", async || {
        agent.last("typing").await == typed("admin", true)
    })
    .await;
    agent.ask("admin-leave-session", json!({ "sessionId": session })).await;
    let outside = agent.ask("typing", with(&session, "typing", true)).await;
    assert_eq!(outside["error"]["code"], "session_not_found");
    agent.ask("admin-join-session", json!({ "sessionId": session })).await;
    visitor.ask("typing", with(&session, "typing", true)).await;
    visitor.disconnect().await;
    eventually(SOON, "its socket is gone", async || {
        let seen = agent.seen("typing").await;
        seen.ends_with(&[typed("user", true), typed("user", false)])
    })
    .await;
    assert_eq!(agent.count("message").await + visitor.count("message").await, 0);
}

#[tokio::test]
async fn a_program_changes_a_session_as_an_agent_does_all_of_it_or_nothing() {
    let stack = Stack::builder().gateways(2).gateway_env("JWT_SECRET", SECRET).start().await;
    let visitor = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = open(&visitor).await;
    let [bot, anna] = [token("bot", "integrator").await, token("anna", "admin").await];
    let take = json!({ "aiEnabled": false, "assignee": "me" });
    let (status, answer) = patch(&stack, 0, &session, &take, Some(&anna)).await;
    assert_eq!((status, &answer["session"]["assignee"]), (200, &json!("anna")), "{answer}");
    assert_eq!(answer["session"]["aiEnabled"], false);
    let all = json!({ "aiEnabled": true, "assignee": "me", "status": "closed" });
    let (status, answer) = patch(&stack, 1, &session, &all, Some(&bot)).await;
    assert_eq!((status, &answer["code"]), (409, &json!("conflict")), "{answer}");
    assert_eq!(answer["session"]["assignee"], "anna");
    let state = |answer: &Value| {
        (answer["session"]["status"].clone(), answer["session"]["aiEnabled"].clone())
    };
    assert_eq!(state(&answer), (json!("open"), json!(false)), "nothing of it counts");
    let give_up = json!({ "assignee": null });
    let (status, answer) = patch(&stack, 1, &session, &give_up, Some(&bot)).await;
    assert_eq!((status, &answer["session"]["assignee"]), (200, &Value::Null), "{answer}");
    assert_eq!(state(&answer), (json!("open"), json!(false)));
    for (body, code) in [
        (json!({}), "invalid_payload"),
        (json!({ "assignee": "anna" }), "invalid_payload"),
        (json!({ "status": "gone" }), "invalid_payload"),
        (json!({ "aiEnabled": 1 }), "invalid_payload"),
    ] {
        let (status, answer) = patch(&stack, 0, &session, &body, Some(&bot)).await;
        assert_eq!((status, &answer["code"]), (400, &json!(code)), "{body}: {answer}");
    }
    assert_eq!(patch(&stack, 0, &session, &give_up, None).await.0, 401);
    let nobody = "550e8400-e29b-41d4-a716-446655440000";
    assert_eq!(patch(&stack, 0, nobody, &give_up, Some(&bot)).await.0, 404);
    assert_eq!(patch(&stack, 0, "nobody", &give_up, Some(&bot)).await.0, 404);
}

#[tokio::test]
async fn while_postgres_is_away_nothing_is_decided_and_what_was_asked_for_takes_effect_later() {
    let stack = Stack::builder().proxy(Link::PersisterPostgres).start().await;
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.url(""), &["websocket"]).await;
    let session = open(&visitor).await;
    say(&visitor, "user_message", &session, "Hello?").await;
    stack.proxies(Link::PersisterPostgres).for_each(tests::Proxy::cut);
    let ack = visitor.ask("toggle-ai-mode", with(&session, "enabled", false)).await;
    assert_eq!(ack["error"]["code"], "unavailable", "{ack}");
    stack.proxies(Link::PersisterPostgres).for_each(tests::Proxy::mend);
    eventually(SOON, "it took effect", async || {
        session_of(&visitor, &session).await["aiEnabled"] == false
    })
    .await;
}

#[tokio::test]
async fn what_was_decided_goes_with_an_erased_session() {
    let stack = Stack::start().await;
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.url(""), &["websocket"]).await;
    let session = live(&stack, &visitor, &visitor).await;
    let erased = stack.http().delete(stack.url(&format!("/api/chats/{session}"))).send().await;
    assert_eq!(erased.unwrap().status(), 202);
    let pool = stack.pool();
    let left = r#"
        SELECT (SELECT count(*) FROM "SessionChange") + (SELECT count(*) FROM "RefusedMessage")
            + (SELECT count(*) FROM "ChatSession")"#;
    eventually(SOON, "nothing is left", async || {
        sqlx::query_scalar::<_, i64>(left).fetch_one(&pool).await.unwrap() == 0
    })
    .await;
    let late = visitor.ask("claim-session", with(&session, "agent", "anna")).await;
    assert_eq!(late["error"]["code"], "session_not_found", "{late}");
    eventually(SOON, "the log holds nothing of it but the erasure", async || {
        stack.persister(0).metric("chat_persister_erased_in_log").await == Some(0)
    })
    .await;
    assert_eq!(stack.persister(0).metric("chat_persister_dead_letters_added_total").await, Some(0));
}

/// Rights that were given table by table may not cover a new one.
#[tokio::test]
async fn a_right_that_is_missing_sets_nothing_aside() {
    let stack = Stack::builder().own_postgres().services_stopped().start().await;
    let pool = stack.pool();
    stack.start_services().await;
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.url(""), &["websocket"]).await;
    let session = open(&visitor).await;
    say(&visitor, "user_message", &session, "before").await;
    for table in ["RefusedMessage", "SessionChange"] {
        let rename = |from: &str, to: &str| format!(r#"ALTER TABLE "{from}" RENAME TO "{to}""#);
        let away = AssertSqlSafe(rename(table, "away"));
        sqlx::raw_sql(away).execute(&pool).await.unwrap();
        say(&visitor, "user_message", &session, table).await;
        let failures = stack.persister(0).metric("chat_persister_commit_failures_total").await;
        eventually(SOON, "it is tried again", async || {
            let now = stack.persister(0).metric("chat_persister_commit_failures_total").await;
            now > failures || table == "SessionChange"
        })
        .await;
        let back = AssertSqlSafe(rename("away", table));
        sqlx::raw_sql(back).execute(&pool).await.unwrap();
    }
    say(&visitor, "user_message", &session, "behind").await;
    let said = json!(["before", "RefusedMessage", "SessionChange", "behind"]);
    eventually(SOON, "all is stored", async || everything(&pool).await[0][4] == said).await;
    assert_eq!(stack.persister(0).metric("chat_persister_dead_letters_added_total").await, Some(0));
}

/// A change that stands in the log before its session is there, as where the opening was lost.
#[tokio::test]
async fn a_change_of_no_session_is_refused_and_ends_nothing() {
    let stack = Stack::start().await;
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.url(""), &["websocket"]).await;
    let session = open(&visitor).await;
    say(&visitor, "user_message", &session, "before").await;
    // Somebody's tool emptied the tables: the gateway knows the session still.
    let pool = stack.pool();
    let emptied = r#"TRUNCATE "Message", "ChatSession""#;
    sqlx::raw_sql(emptied).execute(&pool).await.unwrap();
    let claim = with(&session, "agent", "anna");
    let refused = visitor.ask("claim-session", claim.clone()).await;
    assert_eq!(refused["error"]["code"], "session_not_found", "{refused}");
    say(&visitor, "user_message", &session, "behind").await;
    let claimed = visitor.ask("claim-session", claim).await;
    assert_eq!(claimed["session"]["assignee"], "anna", "{claimed}");
}

#[tokio::test]
async fn a_gateway_waits_for_persisters_that_would_set_changes_aside() {
    let stack = Stack::start().await;
    let pool = stack.pool();
    let older = r#"
        INSERT INTO "Worker" ("id", "aliveUntil", "version")
        VALUES ('11111111-1111-4111-8111-111111111111', now() + interval '30 seconds', 4)"#;
    sqlx::query(older).execute(&pool).await.unwrap();
    let gateway = stack.gateway(0);
    gateway.terminate().await;
    gateway.spawn();
    eventually(SOON, "it says why it waits", async || {
        gateway.logs().contains("waiting for persisters of an earlier release to stop")
    })
    .await;
    sqlx::query(r#"DELETE FROM "Worker" WHERE "version" = 4"#).execute(&pool).await.unwrap();
    gateway.ready().await;
}
