//! A real browser in the hands of a Rust test.

use std::env;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::js_client::JsClients;
use crate::node::web_node;
use crate::room::Room;
use crate::wait::must;

/// What Chromium is called in packages.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
const OLDEST_NODE: u32 = 20;
/// A desk's window.
const DESK: (u32, u32) = (1_280, 800);

/// Chromium, and the people who use it.
#[derive(Clone, Debug)]
pub struct Browser {
    control: JsClients,
    /// It draws with the processor.
    _room: Arc<Room>,
}

/// One tab of a [`Browser`].
#[derive(Clone, Debug)]
pub struct Tab {
    control: JsClients,
    tab: u64,
}

/// A message as a page shows it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Shown {
    /// Its text.
    pub text: String,
    /// Whether it stands on the side of who looks.
    pub mine: bool,
    /// The word for its state, if it has one.
    pub state: Option<String>,
}

impl Browser {
    /// Starts it once half of the machine is free of other tests; says that nothing is checked where it is not on this
    /// machine.
    pub async fn start() -> Option<Self> {
        let Some(chromium) = chromium() else {
            println!(
                "NOT CHECKED: pages in a browser. There is no Chromium here (apt install chromium)."
            );
            return None;
        };
        // The driver of the browser asks for as much.
        let version = web_node(&["-p", "process.versions.node.split('.')[0]"], &[]).await.output;
        if version.trim().parse::<u32>().is_ok_and(|major| major < OLDEST_NODE) {
            println!("NOT CHECKED: pages in a browser. Node is older than {OLDEST_NODE}.");
            return None;
        }
        let room = Arc::new(Room::take(Room::half()).await);
        let chromium = chromium.to_string_lossy().into_owned();
        let control = JsClients::of_web("browser.mjs", vec![("CHROMIUM".into(), chromium)]).await;
        Some(Self { control, _room: room })
    }

    /// Opens a page in a new tab of this person, with storage of their own.
    pub async fn open(&self, person: &str, url: &str) -> Tab {
        let tab = Tab { tab: self.control.number(), control: self.control.clone() };
        let viewport = json!({ "width": DESK.0, "height": DESK.1 });
        let options = json!({ "viewport": viewport, "locale": "en-GB", "timezoneId": "UTC" });
        tab.act("open", json!({ "person": person, "url": url, "options": options })).await;
        tab
    }
}

/// Chromium on PATH.
fn chromium() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let all = env::split_paths(&path).flat_map(|folder| NAMES.map(|name| folder.join(name)));
    all.into_iter().find(|program| program.is_file())
}

impl Tab {
    /// Does one of the things that `browser.mjs` knows.
    pub async fn act(&self, what: &str, mut request: Value) -> Value {
        request["do"] = what.into();
        request["client"] = self.tab.into();
        must(self.control.request(request).await, what)
    }

    /// Writes this and presses Enter.
    pub async fn say(&self, content: &str) {
        self.act("say", json!({ "content": content })).await;
    }

    /// Clicks the first thing that fits.
    pub async fn click(&self, selector: &str) {
        self.act("click", json!({ "selector": selector })).await;
    }

    /// What stands there.
    pub async fn text(&self, selector: &str) -> String {
        let text = self.act("text", json!({ "selector": selector })).await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// The messages that are shown, in order.
    pub async fn shown(&self) -> Vec<Shown> {
        let shown = self.act("shown", json!({})).await;
        must(serde_json::from_value(shown).context("messages"), "what a page shows")
    }

    /// How many of them stand on the side of who looks.
    pub async fn mine(&self) -> usize {
        self.shown().await.iter().filter(|message| message.mine).count()
    }

    /// How many messages are shown.
    pub async fn count(&self) -> u64 {
        self.act("count", json!({})).await.as_u64().unwrap_or_default()
    }

    /// Whether the page says that it is connected.
    pub async fn is_connected(&self) -> bool {
        self.act("connection", json!({})).await == "connected"
    }

    /// Loads the page anew.
    pub async fn reload(&self) {
        self.act("reload", json!({})).await;
    }

    /// Takes the network away from all tabs of this person, or gives it back.
    pub async fn offline(&self, on: bool) {
        self.act("offline", json!({ "on": on })).await;
    }

    /// Begins to write `1`, `2`, … all the time.
    pub async fn chatter(&self) {
        self.act("chatter", json!({})).await;
    }

    /// How many of them were written.
    pub async fn said(&self) -> u64 {
        self.act("said", json!({})).await.as_u64().unwrap_or_default()
    }

    /// Ends that; how many were written.
    pub async fn hush(&self) -> u64 {
        self.act("hush", json!({})).await.as_u64().unwrap_or_default()
    }

    /// Errors that the page or the browser told, and what the page's policy forbade.
    pub async fn problems(&self) -> Vec<String> {
        let told = self.act("problems", json!({})).await;
        must(serde_json::from_value(told).context("texts"), "what a page told")
    }
}
