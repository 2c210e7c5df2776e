// What the suites share: clients that end with their test, and waiting with deadlines.

import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";
import { io } from "socket.io-client";
import { isTaken } from "./taken.mjs";

export { Manager, io } from "socket.io-client";

export const GATEWAY_URL = process.env.GATEWAY_URL;
assert.ok(GATEWAY_URL, "GATEWAY_URL names the gateway to test");

/** Longest wait for anything that should come soon. */
export const SOON = 30_000;
const POLL = 5;

export const UUID_V4 = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
export const CUID = /^c[a-z0-9]{24}$/;
export const ISO_TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

/** Well-formed, and nobody's. */
export const unknownId = () => crypto.randomUUID();

/** The ways to the gateway that the client has. */
export const TRANSPORTS = {
  websocket: ["websocket"],
  polling: ["polling"],
  "polling upgraded to websocket": ["polling", "websocket"],
};

/** Looks until the condition holds; fails with `what` when the time is over. */
export async function eventually(what, condition, within = SOON) {
  const deadline = Date.now() + within;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, `waited ${within} ms in vain: ${what}`);
    await pause(POLL);
  }
}

/** A client that ends with its test, not connected yet. */
export function client(t, options = {}) {
  const { url = GATEWAY_URL, ...rest } = options;
  const socket = io(url, { forceNew: true, transports: ["websocket"], ...rest });
  t.after(() => socket.disconnect());
  return socket;
}

/** A connected client, by its last transport. */
export async function connect(t, options = {}) {
  const socket = client(t, options);
  const wanted = (options.transports ?? ["websocket"]).at(-1);
  let failure;
  socket.once("connect_error", (error) => { failure = error; });
  await eventually(`a connection by ${wanted}`, () => {
    assert.ifError(failure);
    return socket.connected && socket.io.engine.transport.name === wanted;
  });
  return socket;
}

/** Emits and waits for the answer. */
export const ask = (socket, event, ...args) => socket.timeout(SOON).emitWithAck(event, ...args);

/** Opens a session, or comes back to one. */
export const init = (socket, sessionId) => ask(socket, "init_session", { sessionId });

/** A connected client in a session of its own, or in the given one. */
export async function enter(t, { sessionId, ...options } = {}) {
  const socket = await connect(t, options);
  const messages = inbox(socket);
  const ack = await init(socket, sessionId);
  return { socket, messages, sessionId: ack.sessionId, ack };
}

/** Every `message` from now on. */
export const inbox = (socket) => all(socket, "message");

/** Every event of a name from now on. */
export function all(socket, event) {
  const seen = [];
  socket.on(event, (data) => seen.push(data));
  return seen;
}

/** Says something and waits for the ack. */
export const say = (socket, sessionId, content, more = {}) =>
  ask(socket, "user_message", { sessionId, content, ...more });

/** Says something as the admin and waits for the ack. */
export const answer = (socket, sessionId, content, more = {}) =>
  ask(socket, "admin_message", { sessionId, content, ...more });

/** The contents, which the tests tell messages apart by. */
export const contents = (messages) => messages.map(({ content }) => content);

/** Waits until so many have come, and not one more. */
export async function arrive(messages, count) {
  await eventually(`${count} messages`, () => messages.length >= count);
  assert.equal(messages.length, count);
}

/** An answer over HTTP. */
export const get = (path, options) => fetch(GATEWAY_URL + path, options);

/** The messages of a session, over REST. */
export async function history(sessionId) {
  const response = await get(`/api/chats/${sessionId}`);
  assert.equal(response.status, 200);
  return response.json();
}

/** The first session of the list over REST that fits. */
export async function findChat(fits) {
  const chats = await (await get("/api/chats")).json();
  return chats.find(fits);
}

/** An ack that says the message is stored, or in the log and surely will be. */
export function assertAccepted(ack) {
  assert.deepEqual(Object.keys(ack), ["id", "status"], JSON.stringify(ack));
  assert.match(ack.id, CUID);
  assert.ok(isTaken(ack), JSON.stringify(ack));
  return ack.id;
}

/** An answer that says what was wrong, in the words of the contract. */
export function assertRefused(ack, code) {
  assert.deepEqual(Object.keys(ack ?? {}), ["error"], JSON.stringify(ack));
  assertError(ack.error, code);
}

/** The error of an answer or of `message_error`. */
export function assertError(error, code) {
  assert.deepEqual(Object.keys(error), ["code", "message"]);
  assert.equal(error.code, code, error.message);
  assert.ok(error.message.length > 0);
}
