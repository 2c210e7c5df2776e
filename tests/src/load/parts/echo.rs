//! The socket library alone, in a process of its own: every message goes to its room at once.

use std::future::ready;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use serde::{Deserialize, Serialize};
use socketioxide::SocketIo;
use socketioxide::extract::{AckSender, Data, SocketRef};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::load::arguments::Crowd;
use crate::load::figures::Figures;
use crate::load::talk::{Load, measure as talk};
use crate::load::target::Target;
use crate::load::usage::{Server, Servers};

use super::Cost;

/// As many packets as the gateway keeps for a client.
const SEND_BUFFER_PACKETS: usize = 8_192;
const SERVER: &str = "echo";

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Joining {
    session_id: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    session_id: String,
    content: String,
}

#[derive(Serialize)]
struct Accepted {
    status: &'static str,
}

/// Serves until it is killed, and says on which port.
pub(in crate::load) async fn serve() -> Result<()> {
    let (layer, io) = SocketIo::builder().max_buffer_size(SEND_BUFFER_PACKETS).build_layer();
    io.ns("/", |socket: SocketRef| {
        socket.on(
            "init_session",
            |socket: SocketRef, Data(joining): Data<Joining>, ack: AckSender| {
                let session = joining.session_id.unwrap_or_else(|| socket.id.to_string());
                socket.join(session.clone());
                ack.send(&Joining { session_id: Some(session) }).ok();
                ready(())
            },
        );
        for event in ["user_message", "admin_message"] {
            socket.on(event, |Data(message): Data<Message>, ack: AckSender, io: SocketIo| {
                ack.send(&Accepted { status: "accepted" }).ok();
                let room = message.session_id.clone();
                // A closure that awaits nothing keeps the order.
                drop(futures_util::FutureExt::now_or_never(io.to(room).emit("message", &message)));
                ready(())
            });
        }
        ready(())
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?.port());
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        stream.set_nodelay(true).ok();
    });
    Ok(axum::serve(listener, Router::new().layer(layer)).await?)
}

/// Lets the clients of a closed loop talk to it.
pub(super) async fn measure(sessions: usize, in_flight: u64, lasts: Duration) -> Result<Cost> {
    let mut server = Command::new(std::env::current_exe()?)
        .arg("echo")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let out = server.stdout.take().context("no output")?;
    let port = BufReader::new(out).lines().next_line().await?.context("no port")?;
    let id = server.id().context("it ended")?;
    let target = Target {
        addresses: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse()?))],
        servers: Servers(vec![Server { name: SERVER.to_owned(), ids: vec![id] }]),
        stack: None,
    };
    let crowd = Crowd { sessions, seconds: lasts.as_secs(), warm_up: 1 };
    let figures = talk(&target, &crowd, Load::Closed(in_flight)).await?;
    server.kill().await?;
    let get = |figures: &Figures, name: &str| figures.get(name).context("not measured");
    Ok(Cost {
        rate: get(&figures, "messages")?,
        server: get(&figures, &format!("processor, {SERVER}"))?,
        client: 0.0,
    })
}
