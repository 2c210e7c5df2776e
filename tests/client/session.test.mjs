// What `init_session` promises.

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  CUID, ISO_TIME, UUID_V4, all, answer, arrive, ask, client, connect, contents, enter, eventually,
  findChat, history, init, say, unknownId,
} from "./lib.mjs";

/** The five keys, in the contract's order. */
function assertJoined(ack, { sessionId = ack.sessionId, resumed }) {
  const wanted = { sessionId, resumed, messages: [], reset: false, more: false };
  assert.deepEqual(Object.entries(ack), Object.entries(wanted));
  assert.match(sessionId, UUID_V4);
}

describe("init_session", { concurrency: true }, () => {
  const nothing = {
    "no argument": [],
    "{}": [{}],
    null: [null],
    "a null sessionId": [{ sessionId: null }],
    "an undefined sessionId": [{ sessionId: undefined }],
    "keys of another release": [{ later: { release: true } }],
  };
  for (const [what, args] of Object.entries(nothing)) {
    it(`opens a new session each time it is given ${what}`, async (t) => {
      const socket = await connect(t);
      const acks = [await ask(socket, "init_session", ...args), await ask(socket, "init_session", ...args)];
      acks.forEach((ack) => assertJoined(ack, { resumed: false }));
      assert.notEqual(acks[0].sessionId, acks[1].sessionId);
    });
  }

  it("resumes a known session, by any socket and any number of times", async (t) => {
    const { socket, sessionId } = await enter(t);
    const other = await connect(t);
    for (const who of [socket, other, other]) {
      assertJoined(await init(who, sessionId), { sessionId, resumed: true });
    }
  });

  it("resumes a session that only Postgres remembers the opening of", async (t) => {
    const { socket, sessionId } = await enter(t);
    await say(socket, sessionId, "still here");
    socket.disconnect();
    const later = await enter(t, { sessionId });
    assertJoined(later.ack, { sessionId, resumed: true });
    assert.deepEqual(contents(await history(sessionId)), ["still here"]);
  });

  it("opens a new session under a new id for a well-formed id that nobody has", async (t) => {
    const socket = await connect(t);
    const stale = unknownId();
    const ack = await init(socket, stale);
    assertJoined(ack, { resumed: false });
    assert.notEqual(ack.sessionId, stale);
    assert.deepEqual(await history(stale), []);
  });

  it("opens a new session for every malformed id", async (t) => {
    const { socket, sessionId } = await enter(t);
    const malformed = [
      "", " ", "garbage", "undefined", "null", "*", ">", "chat.requests.0.*", "\u0000", "'; --",
      sessionId.toUpperCase(), `${sessionId} `, `${sessionId}\u0000`, `{${sessionId}}`,
      sessionId.replaceAll("-", ""), "00000000-0000-0000-0000-000000000000", "x".repeat(10_000),
      "6fa459ea-ee8a-11ca-894e-db77e160355e", 0, 42, true, false, [], [sessionId], {}, { sessionId },
    ];
    const acks = await Promise.all(malformed.map((id) => init(socket, id)));
    acks.forEach((ack) => assertJoined(ack, { resumed: false }));
    assert.equal(new Set(acks.map((ack) => ack.sessionId)).size, malformed.length);
  });

  it("heals a stale id in a widget that stores every id it is handed and asks again", async (t) => {
    const socket = await connect(t);
    let stored = unknownId();
    let asked = 0;
    for (let handed; handed !== stored; asked += 1) {
      assert.ok(asked < 3, "the widget asks for ever");
      if (handed) stored = handed;
      handed = (await init(socket, stored)).sessionId;
    }
    assert.equal(asked, 2);
    await say(socket, stored, "healed");
    await eventually("the message", async () => (await history(stored)).length === 1);
  });

  it("needs no callback", async (t) => {
    const name = `no-callback-${unknownId()}`;
    const socket = await connect(t, { extraHeaders: { "User-Agent": name } });
    const seen = all(socket, "message");
    socket.emit("init_session", {});
    let chat;
    await eventually("the session", async () => (chat = await findChat((one) => one.userAgent === name)));
    const other = await connect(t);
    await answer(other, chat.sessionId, "welcome");
    await arrive(seen, 1);
  });

  it("takes what a client emits before it is connected", async (t) => {
    const acks = Array.from({ length: 40 }, () => ask(client(t), "init_session", {}));
    for (const ack of await Promise.all(acks)) assertJoined(ack, { resumed: false });
  });

  it("has joined the room before the next event of the same socket counts", async (t) => {
    const { sessionId } = await enter(t);
    const socket = await connect(t);
    const seen = all(socket, "message");
    socket.emit("init_session", { sessionId });
    socket.emit("user_message", { sessionId, content: "at once" });
    await arrive(seen, 1);
  });

  it("lets a socket be in several sessions, as an admin's is", async (t) => {
    const one = await enter(t);
    const two = await enter(t);
    const admin = await enter(t, { sessionId: one.sessionId });
    await init(admin.socket, two.sessionId);
    await say(one.socket, one.sessionId, "one");
    await arrive(admin.messages, 1);
    await say(two.socket, two.sessionId, "two");
    await arrive(admin.messages, 2);
    assert.deepEqual(contents(admin.messages), ["one", "two"]);
  });

  it("acks when the session can be read over REST", async (t) => {
    const opened = await Promise.all(Array.from({ length: 20 }, async () => {
      const { sessionId } = await enter(t);
      return findChat((chat) => chat.sessionId === sessionId);
    }));
    for (const chat of opened) {
      const keys = ["id", "sessionId", "ip", "userAgent", "createdAt", "messages"];
      assert.deepEqual(Object.keys(chat ?? {}), keys);
      assert.match(chat.id, CUID);
      assert.match(chat.createdAt, ISO_TIME);
      assert.deepEqual(chat.messages, []);
    }
  });

  it("stores the client's address and browser", async (t) => {
    const name = "Mozilla/5.0 (of a test)";
    const open = async (options) => {
      const { sessionId } = await enter(t, options);
      const { ip, userAgent } = await findChat((chat) => chat.sessionId === sessionId);
      return [ip, userAgent];
    };
    const extraHeaders = { "User-Agent": name };
    assert.deepEqual(await open({ extraHeaders }), ["127.0.0.1", name]);
    assert.deepEqual(await open({ transports: ["polling"], extraHeaders }), ["127.0.0.1", name]);
    // Node's own client says nothing over websocket.
    assert.deepEqual(await open({}), ["127.0.0.1", null]);
  });

  it("keeps the first address and browser when somebody else resumes the session", async (t) => {
    const { sessionId } = await enter(t, { extraHeaders: { "User-Agent": "first" } });
    await enter(t, { sessionId, extraHeaders: { "User-Agent": "second" } });
    assert.equal((await findChat((chat) => chat.sessionId === sessionId)).userAgent, "first");
  });
});
