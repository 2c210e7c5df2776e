//! The files of Socket.IO's client for browsers, served as Socket.IO's own server does (`serveClient`).
//!
//! They are read anew for each request: they are asked for once per browser and version, and would take a megabyte
//! of memory.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::problem::Problem;

/// Before the name of a file.
const PREFIX: &str = "/socket.io/";
/// What is served; nothing else of the folder ever is.
const NAMES: [&str; 8] = [
    "socket.io.js",
    "socket.io.js.map",
    "socket.io.min.js",
    "socket.io.min.js.map",
    "socket.io.esm.min.js",
    "socket.io.esm.min.js.map",
    "socket.io.msgpack.min.js",
    "socket.io.msgpack.min.js.map",
];
/// In the first lines of each script; the version follows.
const BANNER: &str = "Socket.IO v";

/// A folder with these files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    folder: PathBuf,
    /// What each answer is named by: the version, as Socket.IO's server has it.
    tag: String,
}

impl FromStr for ClientFiles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let folder = PathBuf::from(text);
        let missing = NAMES.iter().find(|name| !folder.join(name).is_file());
        if let Some(name) = missing {
            return Err(format!("there is no file {name}: name the folder socket.io-client/dist"));
        }
        let script = std::fs::read_to_string(folder.join(NAMES[0]));
        let script = script.map_err(|error| format!("{} cannot be read: {error}", NAMES[0]))?;
        let version =
            script.split_once(BANNER).and_then(|(_, rest)| rest.split_whitespace().next());
        let version = version.ok_or_else(|| format!("{} does not tell its version", NAMES[0]))?;
        Ok(Self { folder, tag: format!("\"{version}\"") })
    }
}

impl ClientFiles {
    async fn answer(&self, name: &'static str, asked: &HeaderMap) -> Response {
        let asked = asked.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        if asked.is_some_and(|asked| asked.trim_start_matches("W/") == self.tag) {
            return StatusCode::NOT_MODIFIED.into_response();
        }
        let is_map = Path::new(name).extension().is_some_and(|extension| extension == "map");
        let kind = if is_map { "json" } else { "javascript" };
        match tokio::fs::read(self.folder.join(name)).await {
            Ok(file) => {
                let headers = [
                    (header::CACHE_CONTROL, "public, max-age=0".to_owned()),
                    (header::CONTENT_TYPE, format!("application/{kind}; charset=utf-8")),
                    (header::ETAG, self.tag.clone()),
                    (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
                ];
                (headers, file).into_response()
            }
            Err(error) => {
                tracing::warn!(%error, name, "a file of SOCKET_IO_CLIENT cannot be read");
                Problem::new(StatusCode::NOT_FOUND, "this file cannot be read").into_response()
            }
        }
    }
}

/// Answers requests for one of the files; all others go on.
pub async fn serve(
    State(files): State<Option<Arc<ClientFiles>>>,
    request: Request,
    next: Next,
) -> Response {
    let name = request.uri().path().strip_prefix(PREFIX);
    let Some(name) = NAMES.into_iter().find(|one| name == Some(*one)) else {
        return next.run(request).await;
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Problem::method_not_allowed().into_response();
    }
    let is_head = request.method() == Method::HEAD;
    let answer = match files {
        Some(files) => files.answer(name, request.headers()).await,
        None => absent().into_response(),
    };
    if is_head { without_body(answer) } else { answer }
}

fn absent() -> Problem {
    let detail = "this gateway has no files of Socket.IO's client: SOCKET_IO_CLIENT names a folder with them";
    Problem::new(StatusCode::NOT_FOUND, detail)
}

/// The same answer to `HEAD`: with the length of what it does not hold.
fn without_body(answer: Response) -> Response {
    use hyper::body::Body as _;
    let length = answer.body().size_hint().exact();
    let (mut head, _) = answer.into_parts();
    if let Some(length) = length.filter(|_| head.status == StatusCode::OK) {
        head.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Response::from_parts(head, axum::body::Body::empty())
}
