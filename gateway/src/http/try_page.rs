//! Pages to try the chat: `GET /`, a visitor's window as a site would show it, and `GET /agent`, an inbox. Their files
//! are those of `web/page`, with the client of `web/client`, and are compiled in.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

use crate::app::Gateway;
use crate::problem::Problem;

/// Nothing but files of this gateway, and connections to it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

const VISITOR: &str = include_str!("../../../web/page/index.html");
const AGENT: &str = include_str!("../../../web/page/agent.html");

/// What the pages load: name, type, content.
pub const FILES: [(&str, &str, &str); 15] = [
    ("page.css", STYLE, include_str!("../../../web/page/page.css")),
    ("visitor.js", SCRIPT, include_str!("../../../web/page/visitor.js")),
    ("agent.js", SCRIPT, include_str!("../../../web/page/agent.js")),
    ("view.js", SCRIPT, include_str!("../../../web/page/view.js")),
    ("outbox.js", SCRIPT, include_str!("../../../web/page/outbox.js")),
    ("sessions.js", SCRIPT, include_str!("../../../web/page/sessions.js")),
    ("chat.js", SCRIPT, include_str!("../../../web/client/chat.js")),
    ("messages.js", SCRIPT, include_str!("../../../web/client/messages.js")),
    ("tabs.js", SCRIPT, include_str!("../../../web/client/tabs.js")),
    ("signals.js", SCRIPT, include_str!("../../../web/client/signals.js")),
    ("icon.svg", PICTURE, include_str!("../../../web/page/icon.svg")),
    ("waiting.svg", PICTURE, include_str!("../../../web/page/waiting.svg")),
    ("accepted.svg", PICTURE, include_str!("../../../web/page/accepted.svg")),
    ("stored.svg", PICTURE, include_str!("../../../web/page/stored.svg")),
    ("refused.svg", PICTURE, include_str!("../../../web/page/refused.svg")),
];

/// The visitor's window.
pub async fn visitor(State(gateway): State<Arc<Gateway>>) -> Response {
    page(&gateway, VISITOR)
}

/// The inbox. The page itself is no secret: what it shows needs a token where there is a key.
pub async fn agent(State(gateway): State<Arc<Gateway>>) -> Response {
    page(&gateway, AGENT)
}

fn page(gateway: &Gateway, text: &'static str) -> Response {
    if !gateway.config.try_page {
        return Problem::not_found().into_response();
    }
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(text)).into_response()
}

/// What the pages load.
pub async fn file(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>) -> Response {
    let found = FILES.into_iter().find(|(known, ..)| gateway.config.try_page && *known == name);
    let Some((_, kind, text)) = found else { return Problem::not_found().into_response() };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Asked for again each time and told by their ETag: after an update all are of one release.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What stands in quotes behind one of these.
    fn named(text: &str, before: &str) -> Vec<String> {
        let parts = text.split(before).skip(1);
        parts.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
    }

    #[test]
    fn what_the_pages_load_is_here_and_nothing_else() {
        let mut asked = BTreeSet::new();
        for page in [VISITOR, AGENT] {
            for attribute in ["href=\"/page/", "src=\"/page/"] {
                asked.extend(named(page, attribute));
            }
        }
        for (name, _, text) in FILES {
            let before = if name == "page.css" { "url(\"/page/" } else { " from \"./" };
            asked.extend(named(text, before));
        }
        let served: BTreeSet<_> = FILES.iter().map(|(name, ..)| (*name).to_owned()).collect();
        assert_eq!(asked, served);
    }

    #[test]
    fn no_script_or_style_stands_in_a_page_and_nothing_comes_from_elsewhere() {
        for page in [VISITOR, AGENT] {
            assert_eq!(page.matches("<script").count(), page.matches("<script src=\"/").count());
            for forbidden in
                ["<style", " style=", " onclick", "javascript:", "http://", "https://", "\"//"]
            {
                assert!(!page.contains(forbidden), "{forbidden}");
            }
        }
    }
}
