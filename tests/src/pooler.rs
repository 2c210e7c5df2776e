//! A `PgBouncer` in front of a stack's database.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use stack::launch::{Output, Program};
use stack::{Child, Machine, Port};
use tokio::net::TcpStream;
use url::Url;

use crate::binaries::Binaries;
use crate::stack::Stack;
use crate::wait::{blocking, eventually, must};

const STARTS_WITHIN: Duration = Duration::from_secs(20);
/// Where Debian puts it, which is not on every user's PATH.
const MORE_FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];
/// Fewer than a gateway alone would like to have.
const SERVER_CONNECTIONS: u32 = 3;

/// `PgBouncer`; ends with this value.
#[derive(Debug)]
pub struct Pooler {
    url: String,
    // For as long as it is asked.
    _port: Port,
    _child: Child,
}

impl Pooler {
    /// One that gives a session of Postgres to each `transaction`, `statement` or `session`, with more lines of its
    /// configuration. `None`, and a line that says so, where there is no `PgBouncer`.
    pub async fn start(stack: &Stack, mode: &str, lines: &str) -> Option<Self> {
        let Some(program) = find() else {
            println!("NOT CHECKED: a pooler. There is no PgBouncer here (apt install pgbouncer).");
            return None;
        };
        let port = must(Port::reserve(), "a port for a pooler");
        let url = must(Url::parse(stack.database_url()), "the URL of a database");
        let folder = stack.home.path().join(format!("pooler-{}", port.number()));
        let log = folder.with_extension("log");
        let file_lines = configuration(&url, port.number(), mode, lines);
        let users = users(&url);
        let child = blocking("starting a pooler", move || {
            let machine = Binaries::get().machine();
            machine.make_folder(&folder)?;
            let file = |name: &str, text: &str| file(&machine, folder.join(name), text);
            file("users.txt", &users)?;
            let file_lines = file_lines.replace("{folder}", &folder.to_string_lossy());
            let configuration = file("pgbouncer.ini", &file_lines)?;
            let program = Program {
                clean_env: true,
                user: machine.postgres_user().cloned(),
                output: Output::File(log),
                ..Program::new("pooler", program)
            };
            program.args([configuration]).start(&machine)
        })
        .await;
        let mut url = url;
        must(url.set_port(Some(port.number())), "the URL of a pooler");
        eventually(STARTS_WITHIN, "a pooler starts", async || {
            TcpStream::connect(("127.0.0.1", port.number())).await.is_ok()
        })
        .await;
        Some(Self { url: url.into(), _port: port, _child: child })
    }

    /// The URL of the database through it.
    pub fn url(&self) -> &str {
        &self.url
    }
}

fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(MORE_FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join("pgbouncer")).find(|program| program.is_file())
}

fn configuration(url: &Url, port: u16, mode: &str, lines: &str) -> String {
    let server = url.port().unwrap_or(5432);
    format!(
        "[databases]\n* = host=127.0.0.1 port={server}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
         auth_type = trust\nauth_file = {{folder}}/users.txt\npool_mode = {mode}\n\
         default_pool_size = {SERVER_CONNECTIONS}\n{lines}\n"
    )
}

/// Whom it knows, and what it shows to Postgres for them.
fn users(url: &Url) -> String {
    let password = url.password().unwrap_or_default();
    format!("\"{}\" \"{password}\"\n", url.username())
}

fn file(machine: &Machine, path: PathBuf, text: &str) -> Result<PathBuf> {
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    if let Some(user) = machine.postgres_user() {
        user.take(&path)?;
    }
    Ok(path)
}
