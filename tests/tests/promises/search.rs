//! What was said can be found by its words, where `SEARCH=on` says so: newest first, without a gap, at the cost of a page.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Client, JsClients, Stack, eventually, is_taken};
use url::Url;

const SECRET: &str = "a secret of this test alone of 32 bytes or more";
const SOON: Duration = Duration::from_mins(1);
/// Longer than any ack takes while an index is made, on a busy machine.
const ACKED_WITHIN: Duration = Duration::from_secs(5);

async fn search(stack: &Stack, query: &str) -> (u16, Value, Option<String>) {
    let url = stack.url(&format!("/api/messages?{query}"));
    let answer = stack.http().get(url).send().await.unwrap();
    let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
    let next = link.map(|link| {
        link.split_once("/api/messages?").unwrap().1.split_once('>').unwrap().0.to_owned()
    });
    (answer.status().as_u16(), answer.json().await.unwrap(), next)
}

async fn can_be_searched(stack: &Stack) {
    eventually(SOON, "the index is made", async || search(stack, "q=x").await.0 == 200).await;
}

/// All pages: their contents with their sessions.
async fn found(stack: &Stack, query: &str) -> Vec<(String, String)> {
    let (mut query, mut all) = (query.to_owned(), Vec::new());
    loop {
        let (status, page, next) = search(stack, &query).await;
        assert_eq!(status, 200, "{query}: {page}");
        all.extend(page.as_array().unwrap().iter().map(|message| {
            let text = |name: &str| message[name].as_str().unwrap().to_owned();
            (text("content"), text("sessionId"))
        }));
        let Some(next) = next else { return all };
        query = next;
    }
}

async fn contents(stack: &Stack, query: &str) -> Vec<String> {
    found(stack, query).await.into_iter().map(|(content, _)| content).collect()
}

async fn open(client: &Client) -> String {
    client.ask("init_session", json!({})).await["sessionId"].as_str().unwrap().to_owned()
}

async fn say(client: &Client, session: &str, content: &str) {
    let ack = client.ask("user_message", json!({ "sessionId": session, "content": content })).await;
    assert!(is_taken(&ack), "{content}: {ack}");
}

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.unwrap();
}

/// Messages past the services, as an adopter's are: so many, with these contents.
async fn fill(pool: &PgPool, count: u32, content: &str) {
    run(
        pool,
        &format!(
            r#"INSERT INTO "ChatSession" ("id", "sessionId") VALUES ('old', 'an old session') ON CONFLICT DO NOTHING;
               INSERT INTO "Message" ("id", "sender", "content", "chatSessionId")
               SELECT gen_random_uuid()::text, 'user', {content}, 'old' FROM generate_series(1, {count}) n"#
        ),
    )
    .await;
}

async fn index_is(pool: &PgPool, valid: bool) -> bool {
    let states: Vec<bool> = sqlx::query_scalar(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('\"Message_search_idx\"')",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    states == [valid]
}

async fn with_search() -> Stack {
    let stack = Stack::builder().env("SEARCH", "on").env("STORED_WAIT", "5s").start().await;
    can_be_searched(&stack).await;
    stack
}

#[tokio::test]
async fn words_are_found_newest_first_across_pages_while_new_ones_come_until_they_are_erased() {
    let stack = with_search().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let (one, other) = (open(&client).await, open(&client).await);
    let mut wanted = Vec::new();
    for n in 0..25 {
        let session = if n % 3 == 0 { &one } else { &other };
        say(&client, session, &format!("Refund, please: number {n}")).await;
        say(&client, session, &format!("nothing of it {n}")).await;
        wanted.insert(0, (format!("Refund, please: number {n}"), session.clone()));
    }
    // A page at a time: what comes meanwhile moves nothing.
    let (mut query, mut seen) = ("q=refund%20PLEASE&limit=4".to_owned(), Vec::new());
    loop {
        let (status, page, next) = search(&stack, &query).await;
        assert_eq!(status, 200, "{page}");
        assert!(page.as_array().unwrap().len() <= 4);
        for message in page.as_array().unwrap() {
            let keys: Vec<_> = message.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), 7, "{message}");
            let text = |name: &str| message[name].as_str().unwrap().to_owned();
            seen.push((text("content"), text("sessionId")));
        }
        say(&client, &one, "another refund, please").await;
        let Some(next) = next else { break };
        query = next;
    }
    assert_eq!(seen, wanted);
    for (query, count) in [
        ("q=%22number+7%22", 1),
        ("q=%22please+refund%22+7", 0),
        ("q=refund+7", 1),
        ("q=refund+-number", 7),
        ("q=7+or+8", 4),
        ("q=nobody", 0),
        ("q=refunds", 0),
    ] {
        assert_eq!(found(&stack, query).await.len(), count, "{query}");
    }
    let url = stack.url(&format!("/api/chats/{one}"));
    assert_eq!(stack.http().delete(url).send().await.unwrap().status(), 202);
    wanted.retain(|(_, session)| *session != one);
    eventually(SOON, "what is erased is not found", async || {
        found(&stack, "q=refund+please").await == wanted
    })
    .await;
}

#[tokio::test]
async fn words_are_found_wherever_they_stand_among_very_many_messages() {
    let stack = with_search().await;
    let pool = stack.pool();
    // Rare ones in wide windows, then so many that a wide window has too many, then none.
    fill(&pool, 1, "'needle oldest'").await;
    fill(&pool, 70_000, "'common hay ' || n").await;
    fill(&pool, 1, "'needle older'").await;
    fill(&pool, 140_000, "'hay ' || n").await;
    fill(&pool, 1, "'needle newest'").await;
    let needles = ["needle newest", "needle older", "needle oldest"];
    assert_eq!(contents(&stack, "q=needle").await, needles);
    assert_eq!(contents(&stack, "q=needle&limit=1").await, needles);
    let newest = |count: u32| (0..count).map(|n| format!("common hay {}", 70_000 - n));
    let (_, page, next) = search(&stack, "q=common&limit=200").await;
    let page: Vec<_> = page.as_array().unwrap().iter().map(|one| one["content"].clone()).collect();
    assert_eq!(page, newest(200).collect::<Vec<_>>());
    let (_, page, _) = search(&stack, &next.unwrap()).await;
    assert_eq!(page[0]["content"], "common hay 69800");
    assert_eq!(contents(&stack, "q=%22common+hay+3%22").await, ["common hay 3"]);
}

#[tokio::test]
async fn nobody_but_admins_may_search_and_a_gateway_that_does_not_says_what_it_needs() {
    let stack = Stack::builder().gateway_env("JWT_SECRET", SECRET).start().await;
    let gateway = tokio::task::spawn_blocking(|| tests::program("gateway")).await.unwrap();
    let token = async |role: &str| {
        let mut command = tokio::process::Command::new(&gateway);
        command.args(["token", "--sub", "alice", "--ttl", "1h", "--role", role]);
        command.env("JWT_SECRET", SECRET).current_dir(std::env::temp_dir());
        String::from_utf8(command.output().await.unwrap().stdout).unwrap()
    };
    let ask = async |token: Option<String>| {
        let request = stack.http().get(stack.url("/api/messages?q=x"));
        let request = match token {
            Some(token) => request.bearer_auth(token.trim()),
            None => request,
        };
        let answer = request.send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    assert_eq!(ask(None).await.0, 401);
    assert_eq!(ask(Some(token("integrator").await)).await.0, 403);
    let (status, problem) = ask(Some(token("admin").await)).await;
    assert_eq!(status, 404);
    assert!(problem["detail"].as_str().unwrap().contains("SEARCH=on"), "{problem}");
}

#[tokio::test]
async fn the_index_is_made_while_messages_are_stored_and_none_waits_for_it() {
    let stack = Stack::builder().own_postgres().services_stopped().start().await;
    let pool = stack.pool();
    stack.start_services().await;
    fill(&pool, 200_000, "'said before ' || n || repeat(' filler', 20)").await;
    let (status, problem, _) = {
        stack.gateway(0).terminate().await;
        stack.gateway(0).set_env("SEARCH", "on");
        stack.gateway(0).start().await;
        search(&stack, "q=before").await
    };
    assert_eq!(status, 503, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("index"), "{problem}");
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = open(&client).await;
    stack.persister(0).terminate().await;
    stack.persister(0).set_env("SEARCH", "on");
    stack.persister(0).start().await;
    let (mut said, mut during, mut slowest) = (0, 0, Duration::ZERO);
    let begun = Instant::now();
    while !index_is(&pool, true).await {
        assert!(begun.elapsed() < 3 * SOON, "the index is not made");
        let content = format!("meanwhile {said}");
        let message = json!({ "sessionId": session, "content": content });
        let (took, ack) = client.timed("user_message", message).await;
        assert!(is_taken(&ack), "{ack}");
        said += 1;
        if index_is(&pool, false).await {
            during += 1;
            slowest = slowest.max(took);
        }
    }
    eprintln!("{during} messages were stored while the index was made, the slowest in {slowest:?}");
    assert!(during > 2, "nothing was stored while it was made");
    assert!(slowest < ACKED_WITHIN, "{slowest:?}");
    eventually(SOON, "all of it is found", async || {
        contents(&stack, "q=meanwhile&limit=200").await.len() == said
    })
    .await;
    assert_eq!(contents(&stack, "q=before+77777").await.len(), 1);
}

#[tokio::test]
async fn an_index_that_was_broken_off_is_made_anew_by_one_of_those_who_try() {
    let stack = Stack::builder().services_stopped().persisters(2).env("SEARCH", "on").start().await;
    let pool = stack.pool();
    // What is open somewhere is waited for: meanwhile it can be broken off.
    let mut open = pool.begin().await.unwrap();
    sqlx::raw_sql(r#"INSERT INTO "ChatSession" ("id", "sessionId") VALUES ('x', 'x')"#)
        .execute(&mut *open)
        .await
        .unwrap();
    sqlx::raw_sql(r#"LOCK TABLE "Message" IN ROW EXCLUSIVE MODE"#)
        .execute(&mut *open)
        .await
        .unwrap();
    stack.start_services().await;
    eventually(SOON, "it is begun", async || index_is(&pool, false).await).await;
    let ended: Vec<bool> = sqlx::query_scalar(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE application_name = 'chat-persister-search' AND datname = current_database() AND query LIKE '%CREATE INDEX%'",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(ended, [true], "one of two makes it");
    open.rollback().await.unwrap();
    let said = async || stack.persister(0).logs() + &stack.persister(1).logs();
    eventually(SOON, "a line says so", async || {
        said().await.contains("messages cannot be searched yet")
    })
    .await;
    assert!(index_is(&pool, false).await);
    // Those who run look again after a minute; the command does at once.
    let program = tokio::task::spawn_blocking(|| tests::program("persister")).await.unwrap();
    let migrate = async || {
        let mut migrate = tokio::process::Command::new(&program);
        migrate.arg("migrate").env("DATABASE_URL", stack.database_url()).env("SEARCH", "on");
        let output = migrate.current_dir(std::env::temp_dir()).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let (one, other) = tokio::join!(migrate(), migrate());
    assert_eq!((one + &other).matches("made the index of SEARCH in").count(), 1);
    assert!(migrate().await.ends_with("the index of SEARCH is there\n"));
    can_be_searched(&stack).await;
}

#[tokio::test]
async fn what_cannot_be_indexed_whole_is_stored_all_the_same() {
    let stack = with_search().await;
    let pool = stack.pool();
    // As many words as 100,000 characters can have, each three times in the index: whole, and in two parts.
    let packed =
        "(SELECT string_agg(chr(131072 + i) || '-' || chr(131072 + (i * 7 + 1) % 42000), ' ')
                   FROM generate_series(1, 40000) i)";
    for content in [
        "'early ' || repeat('x', 4 * 1024 * 1024)",
        "'early ' || repeat('many words ', 400000) || 'late'",
        "'early ' || repeat('wörd-', 100000)",
        packed,
    ] {
        fill(&pool, 1, content).await;
    }
    let (_, found, _) = search(&stack, "q=early").await;
    // Long ones come alone.
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!(contents(&stack, "q=early").await.len(), 3);
    assert_eq!(contents(&stack, "q=late").await.len(), 0);
    let last = char::from_u32(131_072 + 39).unwrap();
    assert_eq!(contents(&stack, &format!("q={last}")).await.len(), 1);
}

#[tokio::test]
async fn no_query_is_so_odd_that_it_is_not_answered() {
    let stack = with_search().await;
    fill(&stack.pool(), 3, "'100% of ''em said \"yes\" 😀 https://example.com/a?b=c #1'").await;
    let long = "ä-".repeat(500);
    let word = "🂡".repeat(1_000);
    let letters = (0..500).map(|n| char::from_u32(0x4e00 + n).unwrap());
    let letters: Vec<_> = letters.map(String::from).collect();
    let (all, any) = (letters.join(" "), letters[..250].join(" or "));
    let odd = [
        "",
        " ",
        "'",
        "\"",
        "\"\"",
        "\\",
        "%",
        "_",
        "*",
        "a*",
        ":*",
        "a:*",
        "&",
        "|",
        "!",
        "<->",
        "a <-> b",
        "()",
        "-",
        "--",
        "- - -",
        "-x",
        "or",
        "or or",
        "\" or \"",
        "'; DROP TABLE \"Message\"; --",
        "$1",
        "#0",
        "'#0'",
        "##0",
        "😀",
        "\u{202e}\u{feff}",
        "\u{1}",
        "https://example.com/#12",
        "<#0>",
        "&#0;",
        "a\\'b",
        "\"yes",
        "100%",
        &long,
        &word,
        &all,
        &any[..],
    ];
    for words in odd {
        let url = Url::parse_with_params(&stack.url("/api/messages"), [("q", words)]).unwrap();
        let answer = stack.http().get(url).send().await.unwrap();
        let expected = if words.chars().count() > 1_000 { 400 } else { 200 };
        assert_eq!(answer.status().as_u16(), expected, "{words:?}");
    }
    for query in
        ["", "q=%00", "q=a&q=b", "q=a&limit=0", "q=a&limit=201", "q=a&cursor=x", "q=a&cursor="]
    {
        let (status, problem, _) = search(&stack, query).await;
        assert_eq!(status, 400, "{query}: {problem}");
    }
    for nothing in ["q=", "q=%22", "q=%23", "q=%230", "q=-100+-yes"] {
        assert_eq!(search(&stack, nothing).await.1, json!([]), "{nothing}");
    }
    assert_eq!(search(&stack, "q=100%25+%22yes%22").await.1.as_array().unwrap().len(), 3);
    let (_, page, next) = search(&stack, "q=yes&cursor=9223372036854775807").await;
    assert_eq!((page.as_array().unwrap().len(), next), (3, None));
}
