//! `GET /asyncapi.json`: the events of Socket.IO as `AsyncAPI` 3, made from what `openapi.json` says of them, so that
//! the two cannot differ.
//!
//! Operations are the gateway's: it receives what clients emit, and sends what they hear. An ack is the reply of
//! an operation.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What it is made from: see [`crate::http::openapi::DOCUMENT`].
const EVENTS: &str = "x-socket-io";
/// Where the schemas of both documents stand.
const SCHEMAS: &str = "#/components/schemas/";

/// The events of this document of the routes.
pub fn made_of(openapi: &Value) -> Value {
    let events = &openapi[EVENTS];
    let mut made = Made::default();
    for (name, event) in entries(&events["clientEmits"]) {
        made.receive(name, event);
    }
    for (name, event) in entries(&events["serverEmits"]) {
        made.send(name, event);
    }
    let in_channel = made.messages.keys().map(|name| (name.clone(), message(name)));
    let in_channel: Map<_, _> = in_channel.collect();
    let channel = json!({
        "address": "/",
        "title": "The default namespace",
        "description": events["description"],
        "messages": in_channel,
    });
    let schemas = schemas_of(&made, openapi);
    json!({
        "asyncapi": "3.0.0",
        "info": info(&openapi["info"]),
        "defaultContentType": "application/json",
        "servers": { "gateway": server() },
        "channels": { CHANNEL: channel },
        "operations": made.operations,
        "components": { "messages": made.messages, "schemas": schemas },
    })
}

const CHANNEL: &str = "default";

/// What the events come to.
#[derive(Default)]
struct Made {
    operations: Map<String, Value>,
    messages: BTreeMap<String, Value>,
}

impl Made {
    /// What a client emits, with its ack.
    fn receive(&mut self, name: &str, event: &Value) {
        self.message(name, &event["payload"], event);
        let mut operation = operation("receive", name, event);
        let ack = &event["ack"];
        if ack.is_object() {
            let reply = format!("{name}.ack");
            let done = json!({ "description": "Done.", "allOf": [ack["schema"]] });
            let either = json!({ "oneOf": [done, ack["refused"]] });
            self.message(&reply, &json!({ "schema": either, "example": ack["example"] }), ack);
            operation["reply"] = json!({ "channel": channel(), "messages": [of_channel(&reply)] });
        }
        self.operations.insert(name.to_owned(), operation);
    }

    /// What a client is given. An event that clients emit too has another key here, and the same name.
    fn send(&mut self, name: &str, event: &Value) {
        let is_emitted = self.operations.contains_key(name);
        let key = if is_emitted { format!("{name}.told") } else { name.to_owned() };
        self.message_named(&key, name, &event["payload"], event);
        let operation = operation("send", &key, event);
        self.operations.insert(key, operation);
    }

    fn message(&mut self, name: &str, payload: &Value, of: &Value) {
        self.message_named(name, name, payload, of);
    }

    fn message_named(&mut self, key: &str, name: &str, payload: &Value, of: &Value) {
        let mut message = json!({ "name": name });
        for key in ["summary", "description"] {
            copy(&of[key], key, &mut message);
        }
        message["payload"] = match &payload["schema"] {
            Value::Null => json!({ "type": "null", "description": payload["description"] }),
            schema => schema.clone(),
        };
        if payload["example"].is_object() {
            message["examples"] = json!([{ "payload": payload["example"] }]);
        }
        self.messages.insert(key.to_owned(), message);
    }
}

fn operation(action: &str, name: &str, event: &Value) -> Value {
    let mut operation =
        json!({ "action": action, "channel": channel(), "messages": [of_channel(name)] });
    for key in ["summary", "description"] {
        copy(&event[key], key, &mut operation);
    }
    operation
}

fn copy(value: &Value, key: &str, to: &mut Value) {
    if !value.is_null() {
        to[key] = value.clone();
    }
}

fn channel() -> Value {
    json!({ "$ref": format!("#/channels/{CHANNEL}") })
}

fn of_channel(name: &str) -> Value {
    json!({ "$ref": format!("#/channels/{CHANNEL}/messages/{name}") })
}

fn message(name: &str) -> Value {
    json!({ "$ref": format!("#/components/messages/{name}") })
}

fn info(of_routes: &Value) -> Value {
    json!({
        "title": of_routes["title"],
        "version": of_routes["version"],
        "license": { "name": of_routes["license"]["name"] },
        "description": "What visitors and agents say and hear by Socket.IO. The routes are in `/openapi.json`; \
                        what both promise is in `docs/contract.md`.",
    })
}

fn server() -> Value {
    json!({
        "host": "localhost:4000",
        "pathname": "/socket.io/",
        "protocol": "ws",
        "description": "Socket.IO, protocol 5, over websocket or polling: `io(\"http://localhost:4000\")`.",
    })
}

/// The schemas that the messages name, and those that these name.
fn schemas_of(made: &Made, openapi: &Value) -> Map<String, Value> {
    let mut left: Vec<_> = made.messages.values().flat_map(named).collect();
    let mut found = Map::new();
    while let Some(name) = left.pop() {
        if !found.contains_key(name) {
            let mut schema = openapi["components"]["schemas"][name].clone();
            left.extend(named(&openapi["components"]["schemas"][name]));
            if name == "ErrorCode" {
                schema["description"] = explained(&openapi[EVENTS]["codes"]).into();
            }
            found.insert(name.to_owned(), schema);
        }
    }
    found
}

/// Each code with what it means, a line each.
fn explained(codes: &Value) -> String {
    let lines = entries(codes).map(|(code, means)| {
        let means = means.as_str().unwrap_or_default();
        format!("- `{code}`: {means}\n")
    });
    lines.collect()
}

/// The schemas that this names.
fn named(value: &Value) -> Vec<&str> {
    match value {
        Value::Object(entries) => {
            let target = entries.get("$ref").and_then(Value::as_str);
            let target = target.and_then(|target| target.strip_prefix(SCHEMAS));
            target.into_iter().chain(entries.values().flat_map(named)).collect()
        }
        Value::Array(items) => items.iter().flat_map(named).collect(),
        _ => Vec::new(),
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}
