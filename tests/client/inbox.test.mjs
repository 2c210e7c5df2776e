// What the inbox of an agent promises: the public admin page's flow, on two gateways, and the shapes
// that it reads.

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import {
  CUID, ISO_TIME, all, answer, arrive, ask, assertAccepted, assertRefused, connect, contents, enter, eventually,
  history, say, unknownId,
} from "./lib.mjs";

const [HERE, THERE] = process.env.GATEWAY_URLS.split(",");
/** From a visitor's coming or going until every inbox shows it. */
const PRESENT_WITHIN = 2_000;
const KEYS = ["sessionId", "user", "lastMessage", "timestamp", "isActive", "createdAt", "lastMessageAt",
  "status", "assignee", "aiEnabled", "unread"];

/** The admin page: refreshes its list whenever the active sessions change. */
async function page(t, options = {}) {
  const socket = await connect(t, { url: THERE, transports: ["polling", "websocket"], ...options });
  const seen = { active: all(socket, "sessions-list"), news: all(socket, "new-message"), sessions: [] };
  socket.on("all-sessions-list", (sessions) => { seen.sessions = sessions; });
  socket.on("sessions-list", () => socket.emit("get-all-sessions"));
  socket.emit("admin-connect");
  socket.emit("get-all-sessions");
  await eventually("the first list", () => seen.active.length > 0);
  return { socket, find: (id) => seen.sessions.find((one) => one.sessionId === id), ...seen, seen };
}

/** What the page does when an agent chooses a session. */
function choose(socket, sessionId) {
  const shown = { messages: [], read: false };
  socket.emit("admin-join-session", { sessionId });
  socket.emit("get-messages", { sessionId });
  socket.on("messages-history", (messages) => {
    shown.messages = messages.map(({ message }) => message);
    shown.read = true;
  });
  socket.on("message", ({ content }) => shown.messages.push(content));
  return shown;
}

/** Emits without an ack and waits for the event that answers. */
async function told(socket, event, args, answering) {
  const answers = all(socket, answering);
  socket.emit(event, ...args);
  await eventually(answering, () => answers.length > 0);
  return answers[0];
}

const clock = (time) => new Date(time).toLocaleTimeString("en-US",
  { hour: "2-digit", minute: "2-digit", timeZone: process.env.INBOX_TZ }).replace("\u202f", " ");

describe("the public admin page", { concurrency: true }, () => {
  it("sees a visitor arrive, joins, reads, answers, and sees the visitor leave", async (t) => {
    const admin = await page(t);
    const visitor = await enter(t, { url: HERE });
    const { sessionId } = visitor;
    const shows = (what, condition, within) => eventually(what, () => {
      const session = admin.find(sessionId);
      return session && condition(session);
    }, within);
    await shows("the visitor", ({ isActive }) => isActive, PRESENT_WITHIN);
    assertAccepted(await say(visitor.socket, sessionId, "Hello?"));
    await shows("what the visitor says", ({ lastMessage }) => lastMessage === "Hello?");
    await eventually("the news", () => admin.news.some((one) => one.sessionId === sessionId));
    const shown = choose(admin.socket, sessionId);
    await eventually("the history", () => shown.read);
    admin.socket.emit("admin_message", { sessionId, content: "Hi!" });
    await arrive(visitor.messages, 2);
    await shows("the answer", ({ lastMessage }) => lastMessage === "Admin: Hi!");
    await eventually("the answer in the room", () => shown.messages.length === 2);
    assert.deepEqual(shown.messages, ["Hello?", "Hi!"]);
    visitor.socket.disconnect();
    await shows("that the visitor left", ({ isActive }) => !isActive, PRESENT_WITHIN);
    assert.deepEqual(admin.news.filter((one) => one.sessionId === sessionId), [{ sessionId, message: "Hello?" }]);
    admin.socket.emit("admin-leave-session", { sessionId });
    const again = await enter(t, { url: HERE, sessionId });
    await shows("the visitor again", ({ isActive }) => isActive, PRESENT_WITHIN);
    assertAccepted(await say(again.socket, sessionId, "Still there?"));
    await eventually("the news", () => admin.news.filter((one) => one.sessionId === sessionId).length === 2);
    assert.deepEqual(shown.messages, ["Hello?", "Hi!"]);
  });

  it("shows a session as active while any of its visitors is connected to any gateway", async (t) => {
    const admin = await page(t);
    const one = await enter(t, { url: HERE });
    const two = await enter(t, { url: THERE, sessionId: one.sessionId });
    await eventually("the visitor", () => admin.find(one.sessionId)?.isActive, PRESENT_WITHIN);
    one.socket.disconnect();
    const probe = await enter(t, { url: HERE });
    await eventually("what happened later", () => admin.find(probe.sessionId)?.isActive, PRESENT_WITHIN);
    assert.equal(admin.find(one.sessionId).isActive, true);
    two.socket.disconnect();
    await eventually("the end", () => admin.find(one.sessionId)?.isActive === false, PRESENT_WITHIN);
  });

  it("is no visitor itself, though it was one", async (t) => {
    const admin = await page(t);
    const { socket, sessionId } = await enter(t, { url: HERE });
    await eventually("the visitor", () => admin.find(sessionId)?.isActive, PRESENT_WITHIN);
    await ask(socket, "admin-connect");
    await eventually("an inbox", () => admin.find(sessionId)?.isActive === false, PRESENT_WITHIN);
    await ask(socket, "init_session", { sessionId });
    await ask(admin.socket, "admin-join-session", { sessionId });
    const { sessions } = await ask(admin.socket, "get-all-sessions");
    assert.equal(sessions.find((one) => one.sessionId === sessionId).isActive, false);
  });

  it("hears every message of every visitor once and in order, and no others", async (t) => {
    const admin = await page(t);
    const visitors = await Promise.all([HERE, THERE].map((url) => enter(t, { url })));
    for (let n = 0; n < 100; n += 1) {
      for (const { socket, sessionId } of visitors) socket.emit("user_message", { sessionId, content: `${n}` });
      for (const { socket, sessionId } of visitors) socket.emit("admin_message", { sessionId, content: "an answer" });
    }
    for (const { sessionId } of visitors) {
      const news = () => admin.news.filter((one) => one.sessionId === sessionId);
      await eventually("the news", () => news().length >= 100);
      const wanted = Array.from({ length: 100 }, (_, n) => ({ sessionId, message: `${n}` }));
      assert.deepEqual(news(), wanted);
    }
  });

  it("reads a history and then what follows without gap or repeat, while others talk", async (t) => {
    const visitor = await enter(t, { url: HERE });
    const { socket, sessionId } = visitor;
    const admin = await page(t);
    let talking = true;
    const talk = (async () => {
      for (let n = 0; talking; n += 1) assertAccepted(await say(socket, sessionId, `${n}`));
    })();
    await eventually("a beginning", () => visitor.messages.length > 5);
    for (let round = 0; round < 5; round += 1) {
      const shown = choose(admin.socket, sessionId);
      await eventually("the history", () => shown.read);
      const enough = visitor.messages.length + 20;
      await eventually("more", () => visitor.messages.length >= enough);
      admin.socket.off("message");
      admin.socket.off("messages-history");
      const seen = [...shown.messages];
      await eventually("the same", () => visitor.messages.some(({ content }) => content === seen.at(-1)));
      const said = contents(visitor.messages);
      assert.deepEqual(seen, said.slice(said.indexOf(seen[0]), said.indexOf(seen.at(-1)) + 1));
      assert.ok(seen[0] === "0" || seen.length >= 500);
      await ask(admin.socket, "admin-leave-session", { sessionId });
    }
    talking = false;
    await talk;
  });
});

describe("the shapes", { concurrency: true }, () => {
  it("of a session are those of the contract, field by field", async (t) => {
    const { socket, sessionId } = await enter(t);
    const admin = await connect(t, { url: THERE });
    const look = async () => {
      const { sessions } = await ask(admin, "get-all-sessions");
      return sessions.find((one) => one.sessionId === sessionId);
    };
    await eventually("the session", look);
    const empty = await look();
    assert.deepEqual(Object.keys(empty), KEYS);
    assert.equal(empty.user, `User-${sessionId.slice(0, 8)}`);
    assert.equal(empty.lastMessage, "No messages yet");
    assert.match(empty.createdAt, ISO_TIME);
    assert.equal(empty.lastMessageAt, null);
    assert.equal(empty.timestamp, clock(empty.createdAt));
    assert.match(empty.timestamp, /^\d\d:\d\d [AP]M$/);
    const fifty = "ü".repeat(50);
    for (const [send, content, wanted] of [
      [say, fifty, fifty], [say, `${fifty}!`, `${fifty}...`],
      [answer, fifty, `Admin: ${fifty}`], [answer, `${fifty}!`, `Admin: ${fifty}...`],
    ]) {
      await send(socket, sessionId, content);
      await eventually(wanted, async () => (await look()).lastMessage === wanted);
    }
    const full = await look();
    const last = (await history(sessionId)).at(-1);
    assert.deepEqual(full, {
      ...empty, isActive: true, lastMessage: `Admin: ${fifty}...`, timestamp: clock(last.createdAt),
      lastMessageAt: last.createdAt,
    });
  });

  it("of a history are those of the contract, newest 500, and before one of them", async (t) => {
    const { socket, sessionId, messages } = await enter(t);
    const said = Array.from({ length: 510 }, (_, n) => `${n}`);
    await Promise.all(said.map((content) => say(socket, sessionId, content)));
    await arrive(messages, said.length);
    const stored = await history(sessionId);
    const admin = await connect(t, { url: THERE });
    const shown = stored.map(({ id, content, sender, isAI, createdAt }) =>
      ({ id, message: content, isAdmin: sender === "admin", isAI, sender, timestamp: createdAt }));
    const event = await told(admin, "get-messages", [{ sessionId }], "messages-history");
    assert.deepEqual(event, shown.slice(10));
    assert.deepEqual(Object.keys(event[0]), ["id", "message", "isAdmin", "isAI", "sender", "timestamp"]);
    const get = (more) => ask(admin, "get-messages", { sessionId, ...more });
    assert.deepEqual(await get({}), { messages: shown.slice(10) });
    assert.deepEqual(await get({ before: shown[10].id }), { messages: shown.slice(0, 10) });
    assert.deepEqual(await get({ before: shown[0].id }), { messages: [] });
    assert.deepEqual(await get({ before: "of another session" }), { messages: [] });
    assert.deepEqual(await ask(admin, "get-messages", { sessionId: unknownId() }), { messages: [] });
  });

  it("of the acks and events are the same lists", async (t) => {
    const { sessionId } = await enter(t);
    const admin = await connect(t);
    for (const [event, answering] of [
      ["admin-connect", "sessions-list"], ["get-sessions", "sessions-list"], ["get-all-sessions", "all-sessions-list"],
    ]) {
      const answers = all(admin, answering);
      const ack = await ask(admin, event);
      assert.deepEqual(Object.keys(ack), ["sessions", "nextCursor"]);
      assert.ok(ack.sessions.some((one) => one.sessionId === sessionId && one.isActive), event);
      // An inbox may be given another list in between.
      await eventually(event, () => answers.some((list) => isDeepStrictEqual(list, ack.sessions)));
    }
    assert.deepEqual(await ask(admin, "admin-join-session", { sessionId }), { sessionId });
    assert.deepEqual(await ask(admin, "admin-leave-session", { sessionId }), { sessionId });
    const ids = (await ask(admin, "get-all-sessions")).sessions.map((one) => one.sessionId);
    assert.equal(new Set(ids).size, ids.length);
  });

  it("of pages lead through every session once, newest first", async (t) => {
    const opened = [];
    for (let n = 0; n < 7; n += 1) opened.unshift((await enter(t)).sessionId);
    const admin = await connect(t, { url: THERE });
    const found = [];
    let cursor;
    do {
      const list = await ask(admin, "get-all-sessions", { limit: 2, cursor });
      assert.ok(list.sessions.length <= 2);
      found.push(...list.sessions.map((one) => one.sessionId));
      cursor = list.nextCursor;
    } while (cursor);
    assert.equal(new Set(found).size, found.length);
    assert.deepEqual(found.filter((id) => opened.includes(id)), opened);
  });
});

describe("AI mode", () => {
  it("is relayed to the inboxes of every gateway, in order, and to nobody else", async (t) => {
    const { socket, sessionId } = await enter(t);
    const nobody = all(socket, "ai-mode-changed");
    const admins = await Promise.all([HERE, THERE].map((url) => connect(t, { url })));
    await Promise.all(admins.map((admin) => ask(admin, "admin-connect")));
    const changes = admins.map((admin) => all(admin, "ai-mode-changed"));
    const wanted = [true, false, true].map((enabled) => ({ sessionId, enabled }));
    for (const mode of wanted) assert.deepEqual(await ask(admins[0], "toggle-ai-mode", mode), mode);
    for (const seen of changes) {
      await arrive(seen, wanted.length);
      assert.deepEqual(seen, wanted);
    }
    assert.deepEqual(nobody, []);
  });
});

describe("hostile payloads", () => {
  const unknown = unknownId();
  const NO_OBJECT = [42, "HOSTILE", true, [], [{}], ["HOSTILE"]];
  const wrong = {
    "get-all-sessions": [...NO_OBJECT, ...[0, 501, -1, 1.5, "1", {}, 1e99].map((limit) => ({ limit })),
      ...["", "x", "\u0000", "1_\u0000", "x".repeat(100_000), 7, {}].map((cursor) => ({ cursor }))],
    "get-messages": [...NO_OBJECT, null, {}, { sessionId: 7 }, { sessionId: null }, { sessionId: unknown, before: 7 }],
    "toggle-ai-mode": [...NO_OBJECT, null, {}, { sessionId: unknown }, { sessionId: unknown, enabled: "true" }, { enabled: true }],
    "admin-join-session": [...NO_OBJECT, null, {}, { sessionId: 7 }],
    "admin-leave-session": [...NO_OBJECT, null, {}, { sessionId: [] }],
  };
  const strange = ["", "*", ">", "chat.requests.0.*", "\u0000", "'; --", "x".repeat(100_000), "__proto__"];
  for (const [event, payloads] of Object.entries(wrong)) {
    it(`of ${event} are refused with a typed error, and the socket lives on`, async (t) => {
      const { socket, sessionId, messages } = await enter(t);
      for (const payload of payloads) {
        assertRefused(await ask(socket, event, payload), "invalid_payload");
        socket.emit(event, payload);
      }
      if (event !== "get-all-sessions") {
        for (const id of strange) {
          assertRefused(await ask(socket, event, { sessionId: id, enabled: true }), "session_not_found");
        }
      }
      assertAccepted(await say(socket, sessionId, "still here"));
      await arrive(messages, 1);
    });
  }

  it("of a join or a switch with an id that nobody has are session_not_found", async (t) => {
    const { socket, sessionId } = await enter(t);
    assertRefused(await ask(socket, "admin-join-session", { sessionId: unknown }), "session_not_found");
    assertRefused(await ask(socket, "toggle-ai-mode", { sessionId: unknown, enabled: true }), "session_not_found");
    assert.deepEqual(await ask(socket, "get-all-sessions", { cursor: "-99999999999999_x" }),
      { sessions: [], nextCursor: null });
    for (const before of ["\u0000", "x".repeat(100_000), "'; --"]) {
      assert.deepEqual(await ask(socket, "get-messages", { sessionId, before }), { messages: [] });
    }
  });

  it("of events that take none are ignored", async (t) => {
    const socket = await connect(t);
    for (const event of ["admin-connect", "get-sessions"]) {
      for (const payload of [...NO_OBJECT, null, { sessionId: 7 }]) {
        assert.ok(Array.isArray((await ask(socket, event, payload)).sessions));
      }
    }
  });

  it("in numbers are bounded and answered", async (t) => {
    const socket = await connect(t);
    const acks = await Promise.all(Array.from({ length: 500 }, () => ask(socket, "get-all-sessions")));
    for (const ack of acks) {
      if (ack.error) assert.equal(ack.error.code, "overloaded");
      else assert.ok(Array.isArray(ack.sessions));
    }
  });
});

describe("a busy system", () => {
  it("gives an inbox at most one list a second, and the last one is right", async (t) => {
    const admin = await connect(t, { url: THERE });
    await ask(admin, "admin-connect");
    const times = [];
    admin.on("sessions-list", () => times.push(performance.now()));
    const visitors = await Promise.all(Array.from({ length: 10 }, () => enter(t, { url: HERE })));
    const start = performance.now();
    const end = start + 4_000;
    const busy = async ({ socket, sessionId }) => {
      while (performance.now() < end) await say(socket, sessionId, "busy");
    };
    await Promise.all(visitors.map(busy));
    const seconds = (performance.now() - start) / 1_000;
    const lists = times.filter((time) => time >= start).length;
    assert.ok(lists >= 2 && lists <= seconds + 1, `${lists} lists in ${seconds} s`);
    const last = all(admin, "sessions-list");
    await Promise.all(visitors.map(({ socket, sessionId }) => say(socket, sessionId, "the last word")));
    const ids = new Set(visitors.map(({ sessionId }) => sessionId));
    await eventually("the last word", () => {
      const mine = last.at(-1)?.filter(({ sessionId }) => ids.has(sessionId));
      return mine?.length === ids.size && mine.every(({ lastMessage }) => lastMessage === "the last word");
    });
    // Nothing happens, nothing is sent.
    visitors.forEach(({ socket }) => socket.disconnect());
    await eventually("all gone", () => !last.at(-1).some(({ sessionId }) => ids.has(sessionId)));
    const quiet = last.length;
    await pause(1_500);
    assert.equal(last.length, quiet);
  });
});
