//! The gateway, `asyncapi.json`, `docs/contract.md` and the types of `web/client` name the same events, fields and codes.
//!
//! Each is brought to one form: of every event the fields of its payload and of its ack, those that may be missing with
//! a `?`. What lies in a field that is a list or an object stands under the name of that field.

use std::collections::{BTreeMap, BTreeSet};

use gateway::emitted::Emitted;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tests::{JsClients, Stack, workspace};

/// By `emit user_message`, `ack user_message`, `refused user_message` and `on message`; below, by
/// `ack admin-connect.sessions`.
type Shapes = BTreeMap<String, BTreeSet<String>>;

const SECRET: &str = "a secret of this test alone of 32 bytes or more";
/// For what comes by itself.
const SOON: std::time::Duration = std::time::Duration::from_secs(20);

fn read(path: &str) -> String {
    std::fs::read_to_string(workspace().join(path)).expect(path)
}

fn asyncapi() -> Value {
    serde_json::from_str(&gateway::http::openapi::EVENTS).expect("JSON")
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// What a schema says, with the fields within its fields.
struct Schemas<'a> {
    document: &'a Value,
    found: Shapes,
}

impl<'a> Schemas<'a> {
    fn resolved(&self, value: &'a Value) -> &'a Value {
        let target = value["$ref"].as_str();
        target.map_or(value, |target| self.document.pointer(&target[1..]).expect(target))
    }

    fn add(&mut self, name: &str, schema: &'a Value) {
        let schema = self.resolved(schema);
        // An ack: `allOf` one schema.
        let schema = schema["allOf"].get(0).map_or(schema, |one| self.resolved(one));
        if schema["items"].is_object() {
            return self.add(name, &schema["items"]);
        }
        let Some(properties) = schema["properties"].as_object() else { return };
        let required: Vec<_> = items(&schema["required"]).filter_map(Value::as_str).collect();
        let mark = |field: &str| if required.contains(&field) { "" } else { "?" };
        let fields = properties.keys().map(|field| format!("{field}{}", mark(field))).collect();
        self.found.insert(name.to_owned(), fields);
        for (field, schema) in properties {
            self.add(&format!("{name}.{field}"), schema);
        }
    }
}

fn of_asyncapi(document: &Value) -> Shapes {
    let mut schemas = Schemas { document, found: Shapes::new() };
    for (name, operation) in entries(&document["operations"]) {
        let message = &document["components"]["messages"][name];
        let name = message["name"].as_str().expect("a name");
        let direction = if operation["action"] == "receive" { "emit" } else { "on" };
        let payload = format!("{direction} {name}");
        // An event without a payload is there as well.
        schemas.found.insert(payload.clone(), BTreeSet::new());
        schemas.add(&payload, &message["payload"]);
        if operation["reply"].is_object() {
            let ack = &document["components"]["messages"][&format!("{name}.ack")]["payload"];
            let done = format!("ack {name}");
            schemas.found.insert(done.clone(), BTreeSet::new());
            schemas.add(&done, &ack["oneOf"][0]);
            schemas.add(&format!("refused {name}"), &ack["oneOf"][1]);
        }
    }
    schemas.found
}

/// The structures of the gateway behind each event: payload, ack.
const CLIENT_EVENTS: &[(&str, &str, &str)] = &[
    ("init_session", "socket/init_session.rs Payload", "socket/init_session.rs Joined"),
    ("user_message", "socket/send_message.rs Payload", "log/accept_message.rs Acked"),
    ("admin_message", "socket/send_message.rs Payload", "log/accept_message.rs Acked"),
    ("admin-connect", "socket/inbox_events.rs Connect", "socket/inbox_events.rs Listed"),
    ("get-sessions", "", "socket/inbox_events.rs Listed"),
    ("get-all-sessions", "socket/inbox_events.rs Page", "socket/inbox_events.rs Listed"),
    ("get-messages", "socket/inbox_events.rs Read", "socket/inbox_events.rs Messages"),
    ("admin-join-session", "socket/inbox_events.rs Named", "socket/inbox_events.rs JoinedSession"),
    ("admin-leave-session", "socket/inbox_events.rs Named", "socket/inbox_events.rs JoinedSession"),
    ("get-session", "socket/inbox_events.rs Named", "socket/inbox_events.rs Shown"),
    ("toggle-ai-mode", "socket/change_events.rs Switch", "delivery/inboxes.rs AiMode"),
    ("claim-session", "socket/change_events.rs Claim", "socket/change_events.rs Changed"),
    ("release-session", "socket/change_events.rs Release", "socket/change_events.rs Changed"),
    ("set-status", "socket/change_events.rs SetStatus", "socket/change_events.rs Changed"),
    ("mark-read", "socket/side_events.rs MarkRead", "socket/side_events.rs Marked"),
    ("typing", "socket/side_events.rs Types", ""),
];

/// The structures of what clients are given.
fn server_event(event: Emitted) -> &'static str {
    match event {
        Emitted::Message => MESSAGE,
        Emitted::MessageError => "socket/ack.rs MessageError",
        Emitted::SessionsList | Emitted::AllSessionsList => ENTRY,
        Emitted::MessagesHistory => HISTORY,
        Emitted::NewMessage => "delivery/inboxes.rs NewMessage",
        Emitted::AiModeChanged => "delivery/inboxes.rs AiMode",
        Emitted::SessionUpdated => "delivery/inboxes.rs SessionUpdated",
        Emitted::Read => "signals/read_marks.rs Read",
        Emitted::Typing => "signals/typing.rs Typed",
    }
}

const SERVER_EVENTS: [Emitted; 10] = [
    Emitted::Message,
    Emitted::MessageError,
    Emitted::SessionsList,
    Emitted::AllSessionsList,
    Emitted::MessagesHistory,
    Emitted::NewMessage,
    Emitted::AiModeChanged,
    Emitted::SessionUpdated,
    Emitted::Read,
    Emitted::Typing,
];

const MESSAGE: &str = "../../shared/src/message.rs Message";
const ENTRY: &str = "inbox/entry.rs Entry";
const HISTORY: &str = "socket/inbox_events.rs HistoryMessage";
const ERROR: &str = "error.rs ClientError";

/// Lists and objects in a structure's fields.
fn within(structure: &str, field: &str) -> Option<&'static str> {
    match (structure.rsplit(' ').next()?, field) {
        ("Joined", "messages") => Some(MESSAGE),
        ("Messages", "messages") => Some(HISTORY),
        ("Listed", "sessions")
        | ("Changed" | "Lost" | "Shown" | "SessionUpdated", "session" | "session?") => Some(ENTRY),
        ("Entry", "read?") => Some("db/rows.rs ReadUpTo"),
        (_, "error") => Some(ERROR),
        _ => None,
    }
}

/// The fields of a structure as they are read or written.
fn fields(structure: &str) -> BTreeSet<String> {
    let Some((file, name)) = structure.split_once(' ') else { return BTreeSet::new() };
    let source = read(&format!("gateway/src/{file}"));
    let declared = format!("struct {name}");
    let begins = |rest: &&str| rest.starts_with(['<', ' ']);
    let mut parts = source.split(&declared);
    let before = parts.next().expect("a part");
    let body = parts.find(begins).unwrap_or_else(|| panic!("{structure} is not there"));
    let body = body.split("\n}").next().expect("a body");
    let derives = before.rsplit("#[derive").next().expect("a derive");
    // What is read may lack what is optional; what is written has it as null, unless it is skipped.
    let is_read = derives.contains("Deserialize") && !derives.contains("Serialize, De");
    let mut attributes = String::new();
    let mut found = BTreeSet::new();
    for line in body.lines().map(str::trim) {
        if line.starts_with("#[") {
            attributes.push_str(line);
        } else if let Some((field, kind)) = line.split_once(": ")
            && !line.starts_with("//")
        {
            let field = field.trim_start_matches("pub ");
            let renamed =
                attributes.split("rename = \"").nth(1).and_then(|it| it.split('"').next());
            let field = renamed.map_or_else(|| camel_case(field), str::to_owned);
            let optional = attributes.contains("skip_serializing_if")
                || is_read && kind.starts_with("Option<");
            found.insert(field + if optional { "?" } else { "" });
            attributes.clear();
        }
    }
    assert!(!found.is_empty(), "{structure}");
    found
}

fn camel_case(field: &str) -> String {
    let mut words = field.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |all, word| all + &word[..1].to_uppercase() + &word[1..])
}

fn add(shapes: &mut Shapes, name: &str, structure: &str) {
    let fields = fields(structure);
    for field in &fields {
        if let Some(inner) = within(structure, field) {
            add(shapes, &format!("{name}.{}", field.trim_end_matches('?')), inner);
        }
    }
    shapes.insert(name.to_owned(), fields);
}

/// The events that the gateway takes.
fn taken() -> BTreeSet<String> {
    let events = read("gateway/src/socket/events.rs");
    let arms = events.lines().filter_map(|line| line.trim().strip_prefix('"'));
    arms.filter_map(|line| line.split_once("\" =>")).map(|(name, _)| name.to_owned()).collect()
}

fn of_gateway() -> Shapes {
    let known: BTreeSet<_> = CLIENT_EVENTS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(taken(), known, "events that this test knows");
    let mut shapes = Shapes::new();
    for (name, payload, ack) in CLIENT_EVENTS {
        add(&mut shapes, &format!("emit {name}"), payload);
        add(&mut shapes, &format!("ack {name}"), ack);
        let refused = match *name {
            "init_session" => "socket/init_session.rs NotJoined",
            "claim-session" => "socket/change_events.rs Lost",
            _ => "socket/ack.rs Refusal",
        };
        add(&mut shapes, &format!("refused {name}"), refused);
    }
    for event in SERVER_EVENTS {
        add(&mut shapes, &format!("on {}", event.as_str()), server_event(event));
    }
    shapes
}

/// The cells of the rows of the contract's tables; `the same` is what stands above.
fn rows(table: &str) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let line = line.replace("\\|", "or");
        let cells = line.trim_matches('|').split('|').map(str::trim).enumerate();
        let above = rows.last().cloned().unwrap_or_default();
        let cell = |(at, cell): (usize, &str)| match cell {
            "the same" => above[at].clone(),
            cell => cell.to_owned(),
        };
        rows.push(cells.map(cell).collect());
    }
    rows
}

/// The names between the braces of a cell, and whether each may be missing.
fn named(cell: &str) -> BTreeSet<String> {
    let Some((_, rest)) = cell.split_once('{') else { return BTreeSet::new() };
    let names = rest.split('}').next().expect("an end").split(',');
    names.map(|name| name.split(':').next().expect("a name").trim().to_owned()).collect()
}

/// The events with the fields that the tables name: those within fields stand under *Records*.
fn of_contract() -> Shapes {
    let contract = read("docs/contract.md");
    let events = contract.split("<!-- events -->").nth(1).expect("the events");
    let events = events.split("<!-- end -->").next().expect("an end");
    let (emitted, heard) = events.split_once("| Server emits").expect("two tables");
    let mut shapes = Shapes::new();
    for row in rows(emitted) {
        let name = row[0].trim_matches('`');
        shapes.insert(format!("emit {name}"), named(&row[1]));
        shapes.insert(format!("ack {name}"), named(&row[2]));
    }
    for row in rows(heard) {
        shapes.insert(format!("on {}", row[0].trim_matches('`')), named(&row[1]));
    }
    shapes
}

/// Only what stands directly in an event or its ack.
fn shallow(shapes: &Shapes) -> Shapes {
    let kept = |name: &&String| !name.contains('.') && !name.starts_with("refused");
    shapes.keys().filter(kept).map(|name| (name.clone(), shapes[name].clone())).collect()
}

#[derive(Deserialize)]
struct Types {
    shapes: Shapes,
    codes: BTreeSet<String>,
}

/// What the types of the client for pages say.
async fn of_client() -> Types {
    let printed = tests::web_node(&["shapes.mjs"], &[]).await;
    assert!(printed.status.success(), "{}", printed.output);
    serde_json::from_str(&printed.output).expect("shapes and codes")
}

#[tokio::test]
async fn gateway_asyncapi_contract_and_client_name_the_same_events_fields_and_codes() {
    let document = asyncapi();
    let documented = of_asyncapi(&document);
    assert_eq!(documented, of_gateway());
    assert_eq!(shallow(&documented), of_contract());
    let client = of_client().await;
    assert_eq!(documented, client.shapes);
    assert_eq!(codes_of_gateway(), client.codes);
}

fn codes_of_gateway() -> BTreeSet<String> {
    let source = read("gateway/src/error.rs");
    let arms = source.lines().filter_map(|line| line.trim().strip_prefix("Self::"));
    let arms = arms.filter_map(|line| line.split_once("=> \"")?.1.split('"').next());
    arms.map(str::to_owned).collect()
}

#[test]
fn gateway_and_asyncapi_have_the_same_codes() {
    let codes = codes_of_gateway();
    let document = asyncapi();
    let code = &document["components"]["schemas"]["ErrorCode"];
    let listed = items(&code["enum"]).filter_map(Value::as_str).map(str::to_owned).collect();
    assert_eq!(codes, listed);
    let explained = code["description"].as_str().expect("a text");
    for code in codes {
        assert!(explained.contains(&format!("- `{code}`: ")), "{code}");
    }
}

/// Holds what is heard against the schemas of `asyncapi.json`.
struct Hearer {
    document: Value,
    heard: BTreeSet<String>,
}

impl Hearer {
    fn fits(&mut self, message: &str, payload: &Value) {
        let schema = &self.document["components"]["messages"][message]["payload"];
        let schema = json!({ "allOf": [schema], "components": self.document["components"] });
        let validator = jsonschema::draft7::new(&schema).expect("a schema");
        let mistakes: Vec<_> = validator.iter_errors(payload).map(|it| it.to_string()).collect();
        assert!(mistakes.is_empty(), "{message}: {mistakes:?}: {payload}");
        self.heard.insert(message.to_owned());
    }
}

#[tokio::test]
async fn every_ack_and_every_event_is_as_asyncapi_says() {
    let stack = Stack::builder().gateway_env("STORED_WAIT", "1m").start().await;
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.url(""), &["websocket"]).await;
    let agent = js_clients.client(&stack.url(""), &["websocket"]).await;
    let mut hearer = Hearer { document: asyncapi(), heard: BTreeSet::new() };

    let joined = visitor.ask("init_session", json!({})).await;
    hearer.fits("init_session.ack", &joined);
    let session = json!({ "sessionId": joined["sessionId"] });
    let with = |key: &str, value: Value| {
        let mut payload = session.clone();
        payload[key] = value;
        payload
    };
    let said = visitor.ask("user_message", with("content", "Anybody?".into())).await;
    let mark = with("messageId", said["id"].clone());
    let asked = [
        ("admin-connect", json!({ "deltas": true })),
        ("admin-connect", Value::Null),
        ("get-sessions", Value::Null),
        ("get-all-sessions", json!({ "limit": 1 })),
        ("admin-join-session", session.clone()),
        ("user_message", with("content", "Hello!".into())),
        ("admin_message", with("content", "Hi!".into())),
        ("get-messages", session.clone()),
        ("get-session", session.clone()),
        ("toggle-ai-mode", with("enabled", false.into())),
        ("claim-session", with("agent", "anna".into())),
        ("release-session", session.clone()),
        ("set-status", with("status", "closed".into())),
        ("mark-read", mark.clone()),
        ("typing", with("typing", true.into())),
    ];
    for (event, payload) in asked {
        let ack = agent.ask(event, payload).await;
        assert!(ack["error"].is_null(), "{event}: {ack}");
        hearer.fits(&format!("{event}.ack"), &ack);
    }
    let back = json!({ "sessionId": joined["sessionId"], "after": "nobody" });
    hearer.fits("init_session.ack", &visitor.ask("init_session", back).await);

    visitor.ask("typing", with("typing", true.into())).await;
    agent.ask("claim-session", with("agent", "anna".into())).await;
    let late = agent.ask("claim-session", with("agent", "ben".into())).await;
    assert_eq!(late["session"]["assignee"], "anna", "{late}");
    hearer.fits("claim-session.ack", &late);

    // Only who is in the room is told. A mark is lost where no persister listens yet, and whoever reads on says so again.
    tests::eventually(SOON, "what was read is told, and who types", async || {
        agent.ask("mark-read", mark.clone()).await;
        agent.count("read").await > 0 && agent.count("typing").await > 0
    })
    .await;
    let left = agent.ask("admin-leave-session", session.clone()).await;
    hearer.fits("admin-leave-session.ack", &left);

    // What is refused looks as documented too.
    for event in taken() {
        if !["init_session", "admin-connect", "get-sessions"].contains(&event.as_str()) {
            let ack = agent.ask(&event, json!(["no object"])).await;
            assert_eq!(ack["error"]["code"], "invalid_payload", "{event}: {ack}");
            hearer.fits(&format!("{event}.ack"), &ack);
        }
    }
    visitor.tell("user_message", json!({ "content": 1 })).await;

    for event in SERVER_EVENTS.map(Emitted::as_str) {
        let client = if event == "message_error" { &visitor } else { &agent };
        tests::eventually(SOON, event, async || client.count(event).await > 0).await;
        let told = format!("{event}.told");
        let is_emitted_too = hearer.document["components"]["messages"][&told].is_object();
        let message = if is_emitted_too { &told } else { event };
        hearer.fits(message, &client.last(event).await);
    }
    without_rights_and_log(&mut hearer).await;
    let messages = entries(&hearer.document["components"]["messages"]).map(|(name, _)| name);
    let emitted = taken();
    let spoken = messages.filter(|name| !emitted.contains(*name)).cloned();
    assert_eq!(spoken.collect::<BTreeSet<_>>(), hearer.heard);
}

/// With a key an inbox is for agents only; without the log no session is opened.
async fn without_rights_and_log(hearer: &mut Hearer) {
    let stack = Stack::builder().gateway_env("JWT_SECRET", SECRET).start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    for event in ["admin-connect", "get-sessions"] {
        let ack = client.ask(event, Value::Null).await;
        assert_eq!(ack["error"]["code"], "unauthorized", "{event}: {ack}");
        hearer.fits(&format!("{event}.ack"), &ack);
    }
    stack.nats().kill().await;
    let ack = client.ask("init_session", json!({})).await;
    assert!(ack["error"].is_object() && ack["sessionId"].is_null(), "{ack}");
    hearer.fits("init_session.ack", &ack);
}

#[tokio::test]
async fn asyncapi_json_is_asyncapi() {
    // What is asked for is installed by this.
    let printed = tests::web_node(&["-p", SCHEMA], &[]).await;
    assert!(printed.status.success(), "{}", printed.output);
    let schema: Value = serde_json::from_str(&printed.output).expect("a schema");
    let validator = jsonschema::draft7::new(&schema).expect("a schema that can be used");
    let mistakes = |document: &Value| {
        let errors = validator.iter_errors(document);
        errors.map(|error| format!("{}: {error}", error.instance_path())).collect::<Vec<_>>()
    };
    let document = asyncapi();
    assert_eq!(mistakes(&document), Vec::<String>::new());
    for (place, key, wrong) in [
        ("/operations/user_message", "action", json!("take")),
        ("/channels/default/messages", "message", json!(1)),
        ("/components/messages/message", "payloads", json!({})),
    ] {
        let mut document = document.clone();
        document.pointer_mut(place).expect(place)[key] = wrong;
        assert!(!mistakes(&document).is_empty(), "{place}/{key}");
    }
}

const SCHEMA: &str = "JSON.stringify(require('@asyncapi/specs/schemas/3.0.0-without-$id.json'))";

#[tokio::test]
async fn types_that_are_made_of_the_openapi_document_compile() {
    let stack = Stack::start().await;
    let made = tests::web_node(&["types.mjs"], &[("GATEWAY_URL".into(), stack.url(""))]).await;
    assert!(made.status.success(), "{}", made.output);
}
