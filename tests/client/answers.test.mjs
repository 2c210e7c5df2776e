// The client for pages and every answer that a gateway may give: by a socket that answers as it is told.

import assert from "node:assert/strict";
import { EventEmitter } from "node:events";
import { it } from "node:test";
import { openChat } from "../../web/client/chat.js";
import { eventually } from "./lib.mjs";
import { FakeStorage, shown } from "./pages.mjs";

const SESSION = "11111111-1111-4111-8111-111111111111";
const JOINED = { sessionId: SESSION, resumed: false, messages: [], reset: false, more: false };
/** An answer that never comes. */
const SILENCE = Symbol("silence");

/** The socket of a gateway that gives one answer after the other to sends, and the last of them for ever. */
class Socket extends EventEmitter {
  connected = false;
  active = true;
  sends = [];
  times = [];

  constructor(answers, join = () => JOINED) {
    super();
    this.answers = answers;
    this.join = join;
    this.emitted = super.emit.bind(this);
  }

  timeout() {
    return { emit: (...args) => this.ask(...args) };
  }

  ask(event, payload, ack) {
    if (event === "init_session") return setImmediate(() => ack(null, this.join(payload)));
    this.sends.push(payload);
    this.times.push(performance.now());
    const answer = this.answers.length > 1 ? this.answers.shift() : this.answers[0];
    if (answer === SILENCE) return setImmediate(() => ack(new Error("operation has timed out")));
    return setImmediate(() => ack(null, typeof answer === "function" ? answer(payload) : answer));
  }

  connect() {
    this.connected = true;
    this.active = true;
    this.emitted("connect");
  }

  drop(reason = "transport close") {
    this.connected = false;
    this.emitted("disconnect", reason);
  }
}

const error = (code, more) => ({ error: { code, message: code, ...more } });
const accepted = ({ clientOffset }) => ({ id: `id of ${clientOffset}`, status: "accepted" });
const storedAs = ({ clientOffset }) => ({ id: `id of ${clientOffset}`, status: "stored" });

function begin(t, answers, { join, storage = new FakeStorage() } = {}) {
  const socket = new Socket(answers, join);
  const chat = openChat({ socket, storage });
  t.after(chat.close);
  socket.connect();
  return { socket, chat, storage };
}

const states = (chat) => chat.state.messages.map(({ state }) => state);
const reaches = (chat, ...wanted) =>
  eventually(`${wanted}, not ${states(chat)}`, () => states(chat).join() === wanted.join());

for (const passing of [error("overloaded"), error("unavailable"), SILENCE, {}, null, error("session_not_found")]) {
  it(`after ${JSON.stringify(passing?.error?.code ?? passing) ?? "no answer"} the same message is sent again, and none before it`, async (t) => {
    const { socket, chat } = begin(t, [passing, passing, storedAs]);
    const offsets = [chat.send("one"), chat.send("two")];
    await reaches(chat, "stored", "stored");
    assert.deepEqual(socket.sends.map(({ content }) => content), ["one", "one", "one", "two"]);
    assert.deepEqual([...new Set(socket.sends.map(({ clientOffset }) => clientOffset))], offsets);
  });
}

it("after rate_limited it is sent when the gateway says", async (t) => {
  const { socket, chat } = begin(t, [error("rate_limited", { retryAfterMs: 1_200 }), storedAs]);
  chat.send("one");
  await reaches(chat, "stored");
  assert.equal(socket.sends.length, 2);
  assert.ok(socket.times[1] - socket.times[0] >= 1_199, `${socket.times[1] - socket.times[0]} ms`);
});

for (const code of ["conflict", "too_large", "invalid_payload", "forbidden", "unauthorized", "ai_off"]) {
  it(`${code} is lasting, and the next message goes on`, async (t) => {
    const { socket, chat } = begin(t, [error(code), storedAs]);
    const clientOffset = chat.send("one");
    chat.send("two");
    await reaches(chat, "refused", "stored");
    assert.deepEqual(chat.state.messages[0].error, { code, message: code });
    const retried = chat.retry(clientOffset);
    await reaches(chat, "stored", "stored");
    assert.deepEqual(socket.sends.map(({ content }) => content), ["one", "two", "one"]);
    assert.deepEqual([socket.sends[2].clientOffset, retried === clientOffset], [retried, false]);
  });
}

it("what was accepted and is refused says so", async (t) => {
  const { socket, chat } = begin(t, [accepted]);
  const clientOffset = chat.send("one");
  await reaches(chat, "accepted");
  const message = { event: "user_message", sessionId: SESSION, clientOffset, id: `id of ${clientOffset}` };
  socket.emitted("message_error", { ...message, id: "another's", ...error("conflict") });
  socket.emitted("message_error", { ...message, ...error("conflict") });
  await reaches(chat, "refused");
  assert.equal(chat.state.messages[0].error.code, "conflict");
  assert.equal(socket.sends.length, 1);
});

it("what is accepted is not sent again on this connection, but on the next", async (t) => {
  const { socket, chat, storage } = begin(t, [accepted]);
  const clientOffset = chat.send("one");
  await reaches(chat, "accepted");
  chat.send("two");
  await reaches(chat, "accepted", "accepted");
  assert.equal(socket.sends.length, 2);
  socket.drop();
  assert.equal(chat.state.connection, "offline");
  socket.connect();
  await eventually("both are asked for again", () => socket.sends.length === 4);
  const message = { id: `id of ${clientOffset}`, sender: "user", content: "one", createdAt: "", isAI: false, chatSessionId: "c" };
  socket.emitted("message", message);
  await reaches(chat, "stored", "accepted");
  // Where there are locks who sends is none of the storage's business.
  const keys = globalThis.navigator?.locks ? 2 : 3;
  assert.equal(storage.keys?.length ?? storage.length, keys, "the session, who sends, and what is not stored");
});

it("a message that comes before its ack, and twice, is shown once", async (t) => {
  const { socket, chat } = begin(t, [SILENCE, storedAs]);
  await eventually("it is in", () => chat.state.connection === "connected");
  const clientOffset = chat.send("one");
  await eventually("it is sent", () => socket.sends.length === 1);
  const message = { id: `id of ${clientOffset}`, sender: "user", content: "one", createdAt: "", isAI: false, chatSessionId: "c" };
  socket.emitted("message", message);
  socket.emitted("message", message);
  assert.deepEqual(shown({ chat }), ["one"]);
  await eventually("it is sent again", () => socket.sends.length === 2);
  await eventually("it is known as one's own", () => chat.state.messages[0].clientOffset === clientOffset);
  assert.deepEqual(shown({ chat }), ["one"]);
});

it("a message of another session than `after` is of starts the history anew", async (t) => {
  const message = (id) => ({ id, sender: "admin", content: id, createdAt: "", isAI: true, chatSessionId: "c" });
  const joins = [
    { ...JOINED, messages: [message("a"), message("b")] },
    { ...JOINED, resumed: true, messages: [message("c")], reset: true },
  ];
  const { socket, chat } = begin(t, [storedAs], { join: () => (joins.length > 1 ? joins.shift() : joins[0]) });
  await eventually("the first history", () => shown({ chat }).join() === "a,b");
  assert.equal(chat.state.isAI, true);
  socket.drop();
  socket.connect();
  await eventually("the second history", () => shown({ chat }).join() === "c");
});

it("joining is tried again until it succeeds, and the chat says what stands in its way", async (t) => {
  const joins = [error("unavailable"), error("forbidden"), JOINED];
  const { chat } = begin(t, [storedAs], { join: () => joins.shift() });
  const errors = new Set();
  chat.subscribe(() => errors.add(chat.state.error?.code));
  await eventually("it is in", () => chat.state.connection === "connected");
  assert.ok(errors.has("forbidden"), [...errors].join());
  assert.equal(chat.state.error, null);
});

it("a connection that the server refused or ended is opened again, and says why", async (t) => {
  const { socket, chat } = begin(t, [storedAs]);
  socket.active = false;
  socket.drop("io server disconnect");
  socket.emitted("connect_error", Object.assign(new Error("expired"), { data: { code: "unauthorized" } }));
  assert.deepEqual([chat.state.connection, chat.state.error], ["offline", { code: "unauthorized", message: "expired" }]);
  await eventually("it is back", () => chat.state.connection === "connected");
});

it("a token is asked for at each connection", async (t) => {
  const tokens = ["first", "second"];
  let auth;
  const socket = new Socket([storedAs]);
  const io = (url, options) => Object.assign(socket, { auth: options.auth, disconnect: () => socket.drop("io client disconnect") });
  const chat = openChat({ url: "http://gateway.example/", io, storage: "memory", token: async () => tokens.shift() });
  t.after(chat.close);
  for (const token of ["first", "second", undefined]) {
    auth = await new Promise((give) => { socket.auth(give); });
    assert.deepEqual(auth, { token });
  }
});

it("a chat without a client library says so", async (t) => {
  const chat = openChat({ storage: "memory", url: "http://gateway.example" });
  t.after(chat.close);
  await eventually("an error", () => chat.state.connection === "offline");
  assert.match(chat.state.error.message, /socket\.io-client/);
});
