//! A visitor and an admin who talk while a test breaks what carries their words.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::js_client::{Client, JsClients, Talk};
use crate::stack::Stack;
use crate::wait::{eventually, must};

/// From the end of an outage until everything is as if nothing had been.
const RECOVERS_WITHIN: Duration = Duration::from_secs(30);

/// Both talk, each in its own way: the visitor sends again what was not accepted, with a
/// `clientOffset`; the admin does not and goes on.
#[derive(Debug)]
pub struct Conversation {
    /// The session's id.
    pub session: String,
    /// By websocket.
    pub visitor: Client,
    /// By polling.
    pub admin: Client,
}

impl Conversation {
    /// Begins to talk through the first gateway.
    pub async fn begin(stack: &Stack, js_clients: &JsClients) -> Self {
        Self::begin_on(stack, js_clients, 0).await
    }

    /// Begins to talk through a gateway, counted from 0.
    pub async fn begin_on(stack: &Stack, js_clients: &JsClients, gateway: usize) -> Self {
        Self::begin_at(&stack.gateway(gateway).url(""), js_clients).await
    }

    /// Begins to talk at this URL.
    pub async fn begin_at(url: &str, js_clients: &JsClients) -> Self {
        let visitor = js_clients.client(url, &["websocket"]).await;
        let admin = js_clients.client(url, &["polling"]).await;
        let session = text(&visitor.stay(None).await, "sessionId");
        admin.stay(Some(&session)).await;
        visitor.talk("user_message", &session, true).await;
        admin.talk("admin_message", &session, false).await;
        Self { session, visitor, admin }
    }

    /// Waits until each has said so many things more that were accepted.
    pub async fn is_accepted(&self, more: u64) {
        for client in [&self.visitor, &self.admin] {
            let enough = client.accepted().await + more;
            eventually(RECOVERS_WITHIN, "sends are accepted", async || {
                client.accepted().await >= enough
            })
            .await;
        }
    }

    /// Waits until each has seen so many messages more.
    pub async fn is_delivered(&self, more: usize) {
        for client in [&self.visitor, &self.admin] {
            let enough = client.count("message").await + more;
            eventually(RECOVERS_WITHIN, "messages are delivered", async || {
                client.count("message").await >= enough
            })
            .await;
        }
    }

    /// Ends it: what was accepted is stored exactly once and in order, and both have seen exactly
    /// what is stored, each message once and all in one order. What the visitor and the admin said.
    ///
    /// # Panics
    /// That is how it fails.
    pub async fn end(self, stack: &Stack) -> [Talk; 2] {
        let talks = [self.visitor.hush().await, self.admin.hush().await];
        let accepted = talks.iter().map(|talk| talk.accepted.len()).sum();
        eventually(RECOVERS_WITHIN, "everything accepted is stored", async || {
            self.history(stack).await.len() >= accepted
        })
        .await;
        // Said after everything that is in doubt: once it is seen, all before it is too.
        let end = serde_json::json!({ "sessionId": self.session, "content": "end" });
        self.visitor.ask("user_message", end).await;
        for client in [&self.visitor, &self.admin] {
            eventually(RECOVERS_WITHIN, "everything is seen", async || {
                client.last("message").await["content"] == "end"
            })
            .await;
        }
        let mut stored = self.history(stack).await;
        assert_eq!(
            self.visitor.messages().await,
            stored,
            "what the visitor saw and what is stored"
        );
        assert_eq!(self.admin.messages().await, stored, "what the admin saw and what is stored");
        stored.pop();
        for (talk, sender) in talks.iter().zip(["user", "admin"]) {
            assert_said(&stored, sender, talk);
        }
        talks
    }

    /// The session's messages over REST.
    pub async fn history(&self, stack: &Stack) -> Vec<Value> {
        let url = stack.url(&format!("/api/chats/{}", self.session));
        let answer = must(stack.http().get(url).send().await, "asking for a history");
        must(answer.json().await, "reading a history")
    }
}

/// Exactly what one side said is stored: what was accepted, and of what is in doubt some.
fn assert_said(stored: &[Value], sender: &str, talk: &Talk) {
    let said = stored.iter().filter(|message| message["sender"] == sender);
    let said: Vec<_> =
        said.map(|message| (text(message, "content"), text(message, "id"))).collect();
    let places: HashMap<_, _> = said.iter().map(|(content, _)| content).zip(0..).collect();
    assert_eq!(places.len(), said.len(), "{sender}: something is stored twice");
    let sure: Vec<_> =
        said.iter().filter(|(content, _)| !talk.doubtful.contains(content)).cloned().collect();
    assert_eq!(sure, talk.accepted, "{sender}: stored, and accepted");
    let numbers = said.iter().map(|(content, _)| number(content));
    assert!(numbers.is_sorted(), "{sender}: out of order: {said:?}");
}

/// `user_message 12`
fn number(content: &str) -> u64 {
    let number = content.rsplit(' ').next().and_then(|digits| digits.parse().ok());
    must(number.context("no number in it"), content)
}

fn text(value: &Value, key: &str) -> String {
    must(value[key].as_str().with_context(|| value.to_string()), key).to_owned()
}
