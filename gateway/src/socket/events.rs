//! Every event that a client may emit, on one screen.

use std::future::ready;
use std::sync::Arc;

use shared::message::Sender;
use socketioxide::SocketIo;
use socketioxide::extract::{AckSender, SocketRef, TryData};
use socketioxide::handler::ConnectHandler;
use socketioxide::socket::DisconnectReason;

use crate::access::client_address;
use crate::access::limits::{self, Excess, SocketSlot};
use crate::access::rights::Role;
use crate::app::Gateway;
use crate::error::{ClientError, ErrorCode};
use crate::socket::ack::Ack;
use crate::socket::connection::Connection;
use crate::socket::handshake::{self, Handshake};
use crate::socket::payload::RawEvent;
use crate::socket::{change_events, inbox_events, init_session, send_message, side_events};
use crate::transport::disconnect::{self, disconnect};

/// Serves the default namespace.
pub fn register(io: &SocketIo, gateway: &Arc<Gateway>) {
    let gateway = Arc::clone(gateway);
    let keys = Arc::clone(&gateway);
    // Before the connection counts: what it returns as an error is a `connect_error`.
    let authenticate = move |socket: SocketRef, auth: TryData<Handshake>| {
        ready(handshake::authenticate(&keys, &socket, auth.0.ok()))
    };
    let connect = move |socket: SocketRef| {
        on_connect(&socket, &gateway);
        ready(())
    };
    io.ns("/", connect.with(authenticate));
}

/// Registers the handlers before anything is awaited: a client may emit at once.
///
/// One handler takes every event, inline in the socket's read loop; it only queues. Handlers that
/// await run out of order, and a handler per event costs memory per socket.
fn on_connect(socket: &SocketRef, gateway: &Arc<Gateway>) {
    tracing::debug!(socket = %socket.id, "client connected");
    let caller = handshake::caller_of(socket, gateway);
    let network = client_address::address(socket.req_parts()).map(limits::network);
    let backlog = disconnect::backlog_of(socket, || gateway.backlogs.begin(network));
    gateway.backlogs.add(socket, network, &backlog);
    let connection = Arc::new(Connection::new(Arc::clone(gateway), caller, network, backlog));
    let expiry = Connection::end_with_token(&connection, socket);
    if connection.caller.role == Role::Admin {
        connection.become_agent(socket);
    }
    let leaving = Arc::clone(&connection);
    socket.on_fallback(move |socket: SocketRef, event: RawEvent, sender: AckSender| {
        let under_way = connection.gateway.answers.token();
        let ack = Ack::new(under_way, socket, sender, event.wants_ack);
        dispatch(&connection, &event, ack);
        ready(())
    });
    socket.on_disconnect(move |socket: SocketRef, reason: DisconnectReason| {
        tracing::debug!(socket = %socket.id, "client disconnected");
        // Who leaves the namespace and keeps its connection must not leave behind what waits for it.
        if matches!(reason, DisconnectReason::ClientNSDisconnect) && leaving.backlog.waiting() > 0 {
            disconnect(&socket);
        }
        leaving.close(&socket);
        if let Some(expiry) = &expiry {
            expiry.abort();
        }
        ready(())
    });
}

/// Events whose refusal is told by `message_error` where no ack is waited for; sends tell of theirs themselves.
const TOLD: [&str; 14] = [
    "init_session",
    "admin-connect",
    "get-sessions",
    "get-all-sessions",
    "get-messages",
    "admin-join-session",
    "admin-leave-session",
    "toggle-ai-mode",
    "claim-session",
    "release-session",
    "set-status",
    "get-session",
    "mark-read",
    "typing",
];

fn dispatch(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    let name = event.name();
    let ack = match TOLD.into_iter().find(|told| *told == name) {
        Some(told) => ack.or_told_of(told, || event.session_id()),
        None => ack,
    };
    match handshake::slot_of(&ack.socket).map_or(Ok(()), SocketSlot::event) {
        Ok(()) => {}
        Err(Excess::Refused(error)) => return refuse(&name, event, ack, &error),
        Err(Excess::CutOff) => return disconnect(&ack.socket),
    }
    if event.has_attachments() {
        let error = ClientError::new(ErrorCode::InvalidPayload, "binary attachments are not taken");
        return refuse(&name, event, ack, &error);
    }
    match &*name {
        "init_session" => init_session::on_init_session(connection, event, ack),
        "user_message" => send_message::on_send(connection, Sender::User, event, ack),
        "admin_message" => send_message::on_send(connection, Sender::Admin, event, ack),
        "admin-connect" => inbox_events::on_connect(connection, event, ack),
        "get-sessions" => inbox_events::on_get_sessions(connection, event, ack),
        "get-all-sessions" => inbox_events::on_get_all_sessions(connection, event, ack),
        "get-messages" => inbox_events::on_get_messages(connection, event, ack),
        "admin-join-session" => inbox_events::on_join(connection, event, ack),
        "admin-leave-session" => inbox_events::on_leave(connection, event, ack),
        "get-session" => inbox_events::on_get_session(connection, event, ack),
        "toggle-ai-mode" => change_events::on_toggle_ai_mode(connection, event, ack),
        "mark-read" => side_events::on_mark_read(connection, event, ack),
        "typing" => side_events::on_typing(connection, event, ack),
        "claim-session" => change_events::on_claim(connection, event, ack),
        "release-session" => change_events::on_release(connection, event, ack),
        "set-status" => change_events::on_set_status(connection, event, ack),
        _ => ack.refuse(&ClientError::new(ErrorCode::InvalidPayload, "there is no such event")),
    }
}

/// Answers an event that is not taken, in the form that it has for this event.
fn refuse(name: &str, event: &RawEvent, ack: Ack, error: &ClientError) {
    match name {
        "init_session" => init_session::refuse(event, ack, error),
        "user_message" => send_message::refuse(Sender::User, event, ack, error),
        "admin_message" => send_message::refuse(Sender::Admin, event, ack, error),
        _ => ack.refuse(error),
    }
}
