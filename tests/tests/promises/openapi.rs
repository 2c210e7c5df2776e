//! `GET /openapi.json` is what is served: each route, each status, each shape.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Map, Value, json};
use tests::{JsClients, Link, Stack};

const SECRET: &str = "a secret of this test alone of 32 bytes or more";

fn document() -> Value {
    serde_json::from_str(gateway::http::openapi::DOCUMENT).unwrap()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let target = value["$ref"].as_str().and_then(|target| document.pointer(&target[1..]));
    target.unwrap_or(value)
}

/// Every operation with each of its statuses, as `GET /health 200`.
fn documented() -> BTreeSet<String> {
    let document = document();
    let mut all = BTreeSet::new();
    for (path, methods) in entries(&document["paths"]) {
        for (method, operation) in entries(methods) {
            let statuses = entries(&operation["responses"]).map(|(status, _)| status);
            all.extend(statuses.map(|status| format!("{} {path} {status}", method.to_uppercase())));
        }
    }
    all
}

/// Asks for things and holds each answer against the document.
struct Asker<'a> {
    stack: &'a Stack,
    document: Value,
    seen: BTreeSet<String>,
}

impl Asker<'_> {
    fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        self.stack.http().request(method, self.stack.url(path))
    }

    /// The answer to a request for a documented route, which must be as documented.
    async fn expect(&mut self, route: (&str, &str), request: RequestBuilder, status: u16) {
        self.is_documented(route, request.send().await.unwrap(), status).await;
    }

    /// The same of some requests that come at once, of which one at least is answered so; on a machine that is too slow
    /// for that, of the next ones.
    async fn expect_of_many(
        &mut self,
        route: (&str, &str),
        request: impl Fn() -> RequestBuilder,
        status: u16,
    ) {
        for _ in 0..20 {
            let answers = join_all((0..4).map(|_| request().send())).await;
            let mut answers = answers.into_iter().map(Result::unwrap);
            if let Some(answer) = answers.find(|answer| answer.status().as_u16() == status) {
                return self.is_documented(route, answer, status).await;
            }
        }
        panic!("{route:?} is never answered with {status}");
    }

    async fn is_documented(&mut self, route: (&str, &str), response: Response, status: u16) {
        let (method, path) = route;
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
        let operation = &self.document["paths"][path][method.to_lowercase()];
        let described = resolved(&self.document, &operation["responses"][status.to_string()]);
        assert!(described.is_object(), "{method} {path} {status} is not documented");
        self.has_headers(described, &response);
        match response.status() {
            StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT => {
                assert_eq!(response.text().await.unwrap(), "");
            }
            _ => self.has_shape(described, response).await,
        }
        self.seen.insert(format!("{method} {path} {status}"));
    }

    fn has_headers(&self, described: &Value, response: &Response) {
        for (name, header) in entries(&described["headers"]) {
            let required = resolved(&self.document, header)["required"] == true;
            assert!(!required || response.headers().contains_key(name), "{name}");
        }
    }

    /// The first time it comes whole and with a name, the second time it has not changed.
    async fn expect_once(&mut self, route: (&str, &str), path: &str, token: &str) {
        let request = |ask: &Self, method| ask.request(method, path).bearer_auth(token);
        let first = request(self, "GET").send().await.unwrap();
        let tag = first.headers()["etag"].to_str().unwrap().to_owned();
        let head = request(self, "HEAD").send().await.unwrap();
        assert_eq!(head.headers()["etag"], tag.as_str(), "{path}");
        assert_eq!(head.headers()["content-length"], first.content_length().unwrap().to_string());
        self.expect(route, request(self, "GET"), 200).await;
        let again = request(self, "GET").header("if-none-match", &tag);
        self.expect(route, again, 304).await;
        let other = request(self, "GET").header("if-none-match", "W/\"2-other\"");
        self.expect(route, other, 200).await;
    }

    /// Before there is an index, and with it.
    async fn searches(&mut self, admin: &str, integrator: &str) {
        let get = |ask: &Self, path| ask.request("GET", path);
        self.expect(SEARCH, get(self, FOUND).bearer_auth(admin), 503).await;
        let database = self.stack.database_url().parse().unwrap();
        persister::search::index::make_by_command(&database).await.unwrap();
        self.expect_once(SEARCH, FOUND, admin).await;
        self.expect(SEARCH, get(self, SEARCH.1).bearer_auth(admin), 400).await;
        self.is_for_admins(SEARCH, FOUND, integrator).await;
    }

    /// What a program changes about a session, and that it types.
    async fn changes(&mut self, admin: &str, integrator: &str, session: &str) {
        let of = |route: (&str, &str)| route.1.replace("{sessionId}", session);
        let claim = json!({ "assignee": "me" });
        let to = |ask: &Self, route: (&str, &str), token: &str| {
            ask.request(route.0, &of(route)).bearer_auth(token)
        };
        self.expect(CHANGE, to(self, CHANGE, admin).json(&claim), 200).await;
        self.expect(CHANGE, to(self, CHANGE, integrator).json(&claim), 409).await;
        let released = json!({ "assignee": null });
        self.expect(CHANGE, to(self, CHANGE, integrator).json(&released), 200).await;
        let typing = json!({ "typing": true });
        self.expect(TYPING, to(self, TYPING, integrator).json(&typing), 204).await;
        for (route, body) in [(CHANGE, claim), (TYPING, typing)] {
            self.expect(route, to(self, route, admin).json(&json!({})), 400).await;
            self.expect(route, self.request(route.0, &of(route)).json(&body), 401).await;
            let unknown = self.request(route.0, &route.1.replace("{sessionId}", "unknown"));
            self.expect(route, unknown.bearer_auth(admin).json(&body), 404).await;
            let pending = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
            let slow = to(self, route, admin).header("content-type", "application/json");
            self.expect(route, slow.body(reqwest::Body::wrap_stream(pending)), 408).await;
            let large = json!({ "status": "x".repeat(2_000_000) });
            self.expect(route, to(self, route, admin).json(&large), 413).await;
            self.expect(route, to(self, route, admin).body("{}"), 415).await;
        }
    }

    /// As many feeds as a gateway serves, and one more.
    async fn feeds(&mut self, integrator: &str) {
        let get = |ask: &Self, path: &str| ask.request("GET", path);
        self.expect(EVENTS, get(self, EVENTS.1), 401).await;
        let feed = |ask: &Self, path| get(ask, path).bearer_auth(integrator);
        self.expect(EVENTS, feed(self, "/api/events?after=x"), 400).await;
        self.expect(EVENTS, feed(self, "/api/events?after=0"), 200).await;
        let feeds = join_all((0..65).map(|_| feed(self, EVENTS.1).send())).await;
        let is_refused = |it: &Response| it.status() == StatusCode::SERVICE_UNAVAILABLE;
        let refused = feeds.into_iter().map(Result::unwrap).find(is_refused);
        self.is_documented(EVENTS, refused.expect("one too many"), 503).await;
    }

    /// What a hasty client is told, where there is no index and no page.
    async fn over_limits(&mut self) {
        let limited = Stack::builder()
            .gateway_env("TRY_PAGE", "off")
            .gateway_env("LIMITS", "on")
            .gateway_env("HTTP_MESSAGES_PER_SECOND", "1")
            .gateway_env("HTTP_MESSAGES_BURST", "1")
            .gateway_env("HTTP_READS_PER_SECOND", "1")
            .gateway_env("HTTP_READS_BURST", "1");
        let limited = limited.start().await;
        let of = |path: &str, session| path.replace("{sessionId}", session);
        let hasty = limited.url(&of(MESSAGES.1, "unknown"));
        let http = limited.http();
        self.expect_of_many(MESSAGES, || http.post(&hasty).json(&json!({ "content": "Hi!" })), 429)
            .await;
        for (route, body) in
            [(CHANGE, json!({ "assignee": null })), (TYPING, json!({ "typing": true }))]
        {
            let hasty = limited.url(&of(route.1, "unknown"));
            let method = Method::from_bytes(route.0.as_bytes()).unwrap();
            let request = || http.request(method.clone(), &hasty).json(&body);
            self.expect_of_many(route, request, 429).await;
        }
        // The one read that it is let.
        self.expect(SEARCH, http.get(limited.url(FOUND)), 404).await;
        for read in [CHATS, CHAT, EXPORT, SEARCH, EVENTS] {
            let hasty = limited.url(&of(read.1, "unknown"));
            self.expect_of_many(read, || http.get(&hasty), 429).await;
        }

        for (route, path) in PAGES {
            self.expect(("GET", route), limited.http().get(limited.url(path)), 404).await;
        }
    }

    /// Nobody else is let in.
    async fn is_for_admins(&mut self, route: (&str, &str), path: &str, integrator: &str) {
        self.expect(route, self.request(route.0, path), 401).await;
        self.expect(route, self.request(route.0, path).bearer_auth(integrator), 403).await;
    }

    async fn has_shape(&self, described: &Value, mut response: Response) {
        let kind = response.headers()["content-type"].to_str().unwrap();
        let kind = kind.split(';').next().unwrap().to_owned();
        let content = &described["content"][&kind];
        assert!(content.is_object(), "{kind}");
        // A feed has no end.
        let text = if kind == "text/event-stream" {
            String::from_utf8(response.chunk().await.unwrap().unwrap().to_vec()).unwrap()
        } else {
            response.text().await.unwrap()
        };
        let body = if kind.ends_with("json") {
            serde_json::from_str(&text).unwrap()
        } else {
            Value::String(text)
        };
        self.fits(&content["schema"], &body);
    }

    fn fits(&self, schema: &Value, body: &Value) {
        let schema = json!({ "allOf": [schema], "components": self.document["components"] });
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let mistakes: Vec<_> = validator.iter_errors(body).map(|error| error.to_string()).collect();
        assert!(mistakes.is_empty(), "{mistakes:?}: {body}");
    }
}

/// What `gateway token` prints.
async fn token(role: &str) -> String {
    let gateway = tokio::task::spawn_blocking(|| tests::program("gateway")).await.unwrap();
    let mut command = tokio::process::Command::new(gateway);
    command.args(["token", "--sub", role, "--ttl", "1h", "--role", role]);
    command.env("JWT_SECRET", SECRET).current_dir(std::env::temp_dir());
    let token = String::from_utf8(command.output().await.unwrap().stdout).unwrap();
    token.trim().to_owned()
}

const CHATS: (&str, &str) = ("GET", "/api/chats");
const CHAT: (&str, &str) = ("GET", "/api/chats/{sessionId}");
const SEARCH: (&str, &str) = ("GET", "/api/messages");
const FOUND: &str = "/api/messages?q=hi&limit=1";
const ERASE: (&str, &str) = ("DELETE", "/api/chats/{sessionId}");
const EXPORT: (&str, &str) = ("GET", "/api/chats/{sessionId}/export");
const PAGES: [(&str, &str); 3] =
    [("/", "/"), ("/agent", "/agent"), ("/page/{file}", "/page/page.css")];
const EVENTS: (&str, &str) = ("GET", "/api/events");
const CHANGE: (&str, &str) = ("PATCH", "/api/chats/{sessionId}");
const TYPING: (&str, &str) = ("POST", "/api/chats/{sessionId}/typing");
const MESSAGES: (&str, &str) = ("POST", "/api/chats/{sessionId}/messages");

#[tokio::test]
async fn every_documented_answer_is_given_and_looks_as_documented() {
    let stack = Stack::builder()
        .gateway_env("JWT_SECRET", SECRET)
        .gateway_env("TRY_PAGE", "on")
        .gateway_env("SEARCH", "on")
        .proxy(Link::GatewayNats)
        .proxy(Link::GatewayPostgres)
        .start()
        .await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    let chat = format!("/api/chats/{session}");
    let to = format!("{chat}/messages");
    let (admin, integrator) = (token("admin").await, token("integrator").await);
    let mut ask = Asker { stack: &stack, document: document(), seen: BTreeSet::new() };

    for path in ["/health", "/ready", "/openapi.json", "/asyncapi.json", "/docs"] {
        ask.expect_once(("GET", path), path, &admin).await;
    }
    for (route, path) in PAGES {
        ask.expect_once(("GET", route), path, &admin).await;
    }
    let answer =
        |ask: &Asker, body: Value| ask.request("POST", &to).bearer_auth(&integrator).json(&body);
    let named = |ask: &Asker, content: &str| {
        answer(ask, json!({ "content": content, "isAI": true })).header("Idempotency-Key", "one")
    };
    ask.expect(MESSAGES, named(&ask, "Hi!"), 201).await;
    ask.expect(MESSAGES, named(&ask, "Hi!"), 201).await;
    ask.expect(MESSAGES, named(&ask, "Ho!"), 409).await;
    stack.persister(0).pause();
    ask.expect(MESSAGES, answer(&ask, json!({ "content": "Hi!" })), 202).await;
    ask.expect(MESSAGES, answer(&ask, json!({ "content": "Hi!", "isAI": true })), 202).await;
    stack.persister(0).resume();
    ask.expect(MESSAGES, answer(&ask, json!({ "content": "" })), 400).await;
    ask.expect(MESSAGES, ask.request("POST", &to).json(&json!({ "content": "Hi!" })), 401).await;
    let unknown = MESSAGES.1.replace("{sessionId}", "unknown");
    let unknown = ask.request("POST", &unknown).bearer_auth(&admin);
    ask.expect(MESSAGES, unknown.json(&json!({ "content": "Hi!" })), 404).await;
    // Its end never comes.
    let body = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let body = reqwest::Body::wrap_stream(body);
    let slow =
        ask.request("POST", &to).bearer_auth(&admin).header("content-type", "application/json");
    ask.expect(MESSAGES, slow.body(body), 408).await;
    ask.expect(MESSAGES, answer(&ask, json!({ "content": "x".repeat(8_001) })), 413).await;
    ask.expect(MESSAGES, ask.request("POST", &to).bearer_auth(&admin).body("{}"), 415).await;

    for path in ["/api/chats", "/api/chats?limit=1"] {
        ask.expect_once(CHATS, path, &admin).await;
    }
    ask.expect(CHATS, ask.request("GET", "/api/chats?limit=0").bearer_auth(&admin), 400).await;
    ask.is_for_admins(CHATS, "/api/chats", &integrator).await;
    for path in [chat.clone(), format!("{chat}?limit=1")] {
        ask.expect_once(CHAT, &path, &admin).await;
    }
    ask.expect(CHAT, ask.request("GET", &format!("{chat}?after=nobody")), 400).await;
    ask.expect(CHAT, ask.request("GET", &chat).bearer_auth("nonsense"), 401).await;

    ask.feeds(&integrator).await;
    ask.changes(&admin, &integrator, &session).await;
    ask.searches(&admin, &integrator).await;
    let exported = format!("{chat}/export");
    let of = |path: &str, session| path.replace("{sessionId}", session);
    ask.expect_once(EXPORT, &exported, &admin).await;
    for (one, path) in [(EXPORT, &exported), (ERASE, &chat)] {
        ask.is_for_admins(one, path, &integrator).await;
        let undecodable = of(one.1, "%zz");
        ask.expect(one, ask.request(one.0, &undecodable).bearer_auth(&admin), 400).await;
        let unknown = of(one.1, "unknown");
        ask.expect(one, ask.request(one.0, &unknown).bearer_auth(&admin), 404).await;
    }
    let other = client.ask("init_session", json!({})).await["sessionId"].clone();
    let other = of(ERASE.1, other.as_str().unwrap());
    ask.expect(ERASE, ask.request("DELETE", &other).bearer_auth(&admin), 202).await;

    ask.over_limits().await;
    stack.proxies(Link::GatewayPostgres).for_each(tests::Proxy::cut);
    ask.expect(EXPORT, ask.request("GET", &exported).bearer_auth(&admin), 503).await;
    ask.expect(("GET", "/ready"), ask.request("GET", "/ready"), 503).await;
    ask.expect(CHATS, ask.request("GET", "/api/chats").bearer_auth(&admin), 503).await;
    ask.expect(CHAT, ask.request("GET", &chat), 503).await;
    stack.proxies(Link::GatewayNats).for_each(tests::Proxy::cut);
    ask.expect(MESSAGES, answer(&ask, json!({ "content": "Hi!" })), 503).await;
    ask.expect(ERASE, ask.request("DELETE", &chat).bearer_auth(&admin), 503).await;
    let release = ask.request("PATCH", &chat).bearer_auth(&admin);
    ask.expect(CHANGE, release.json(&json!({ "assignee": null })), 503).await;
    let unsure = TYPING.1.replace("{sessionId}", "550e8400-e29b-41d4-a716-446655440000");
    let types = ask.request("POST", &unsure).bearer_auth(&admin);
    ask.expect(TYPING, types.json(&json!({ "typing": true })), 503).await;

    let mut missing = documented();
    missing.retain(|one| !ask.seen.contains(one));
    assert_eq!(missing, BTreeSet::new());
}

#[test]
fn every_route_that_is_served_is_documented_and_no_other() {
    let routes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gateway/src/http/routes.rs");
    let routes = fs::read_to_string(routes).unwrap();
    let routes = routes.split(".route(").skip(1).filter_map(|rest| rest.split_once(','));
    let served: BTreeSet<_> = routes
        .map(|(path, handler)| {
            let method = handler.trim().split('(').next().unwrap().to_uppercase();
            let path = path.trim().trim_matches('"').replace("{session_id}", "{sessionId}");
            format!("{method} {path}")
        })
        .collect();
    let route = |one: String| one.rsplit_once(' ').unwrap().0.to_owned();
    assert_eq!(documented().into_iter().map(route).collect::<BTreeSet<_>>(), served);
}

#[tokio::test]
async fn the_document_holds_together_and_is_of_this_release() {
    let document = document();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(document["openapi"], "3.1.0");
    let text = gateway::http::openapi::DOCUMENT;
    for target in text.split("\"$ref\": \"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(document.pointer(target).is_some(), "{target}");
    }
    let stack = Stack::start().await;
    let served = stack.http().get(stack.url("/openapi.json")).send().await.unwrap();
    assert_eq!(served.status(), StatusCode::OK);
    assert_eq!(served.json::<Value>().await.unwrap(), document);
}
