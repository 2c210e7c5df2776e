//! Every event that a client may emit, on one screen.

use std::future::ready;
use std::sync::Arc;

use shared::message::Sender;
use socketioxide::SocketIo;
use socketioxide::extract::{AckSender, SocketRef, TryData};
use socketioxide::handler::ConnectHandler;

use crate::Gateway;
use crate::auth::{self, Handshake};
use crate::connection::{Answer, Connection};
use crate::error::{ClientError, ErrorCode};
use crate::limits::{Excess, Place};
use crate::payload::RawEvent;
use crate::{cut, inbox, send, session};

/// Serves the default namespace.
pub fn register(io: &SocketIo, gateway: &Arc<Gateway>) {
    let gateway = Arc::clone(gateway);
    let keys = Arc::clone(&gateway);
    // Before the connection counts: what it returns as an error is a `connect_error`.
    let authenticate = move |socket: SocketRef, auth: TryData<Handshake>| {
        ready(auth::authenticate(&keys, &socket, auth.0.ok()))
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
    let caller = auth::caller_of(socket, gateway);
    let connection = Arc::new(Connection::new(Arc::clone(gateway), caller));
    let expiry = Connection::end_with_token(&connection, socket);
    let leaving = Arc::clone(&connection);
    socket.on_fallback(move |socket: SocketRef, event: RawEvent, ack: AckSender| {
        dispatch(
            &connection,
            &event,
            Answer::new(&connection.gateway, socket, ack, event.wants_ack),
        );
        ready(())
    });
    socket.on_disconnect(move |socket: SocketRef| {
        tracing::debug!(socket = %socket.id, "client disconnected");
        leaving.close(&socket);
        if let Some(expiry) = &expiry {
            expiry.abort();
        }
        ready(())
    });
}

fn dispatch(connection: &Arc<Connection>, event: &RawEvent, answer: Answer) {
    let name = event.name();
    match Place::of(&answer.socket).map_or(Ok(()), Place::event) {
        Ok(()) => {}
        Err(Excess::Refused(error)) => return refuse(&name, event, answer, &error),
        Err(Excess::CutOff) => return cut::cut(&answer.socket),
    }
    match &*name {
        "init_session" => session::on_init_session(connection, event, answer),
        "user_message" => send::on_send(connection, Sender::User, event, answer),
        "admin_message" => send::on_send(connection, Sender::Admin, event, answer),
        "admin-connect" => inbox::on_connect(connection, event, answer),
        "get-sessions" => inbox::on_get_sessions(connection, event, answer),
        "get-all-sessions" => inbox::on_get_all_sessions(connection, event, answer),
        "get-messages" => inbox::on_get_messages(connection, event, answer),
        "admin-join-session" => inbox::on_join(connection, event, answer),
        "admin-leave-session" => inbox::on_leave(connection, event, answer),
        "toggle-ai-mode" => inbox::on_toggle_ai_mode(connection, event, answer),
        _ => answer.refuse(&ClientError::new(ErrorCode::InvalidPayload, "there is no such event")),
    }
}

/// Answers an event that is not taken, in the form that it has for this event.
fn refuse(name: &str, event: &RawEvent, answer: Answer, error: &ClientError) {
    match name {
        "init_session" => session::refuse(event, answer, error),
        "user_message" => send::refuse(Sender::User, event, answer, error),
        "admin_message" => send::refuse(Sender::Admin, event, answer, error),
        _ => answer.refuse(error),
    }
}
