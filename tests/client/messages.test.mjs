// What a send, its ack and the `message` event promise.

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  CUID, ISO_TIME, TRANSPORTS, all, answer, arrive, ask, assertAccepted, assertError, assertRefused,
  connect, contents, enter, eventually, findChat, history, init, say, unknownId,
} from "./lib.mjs";

const KEYS = ["id", "sender", "content", "createdAt", "isAI", "chatSessionId"];

describe("a conversation", { concurrency: true }, () => {
  for (const [name, transports] of Object.entries(TRANSPORTS)) {
    it(`reaches both sides and the history, by ${name}`, async (t) => {
      const visitor = await enter(t, { transports });
      const { sessionId } = visitor;
      const admin = await enter(t, { transports, sessionId });
      const asked = assertAccepted(await say(visitor.socket, sessionId, "Hello!"));
      await arrive(admin.messages, 1);
      const answered = assertAccepted(await answer(admin.socket, sessionId, "How can I help?"));
      await arrive(visitor.messages, 2);
      await arrive(admin.messages, 2);
      assert.deepEqual(visitor.messages, admin.messages);
      assert.deepEqual(visitor.messages, await history(sessionId));
      assert.deepEqual(visitor.messages.map((message) => message.id), [asked, answered]);
    });
  }

  for (const [name, transports] of Object.entries(TRANSPORTS)) {
    it(`acks what is stored before it shows it to its sender, by ${name}`, async (t) => {
      const { socket, sessionId, messages } = await enter(t, { transports });
      const shown = [];
      socket.on("message", ({ id }) => shown.push(id));
      const acks = [];
      for (let n = 0; n < 50; n += 1) {
        // A promise would see both, which come together.
        socket.emit("user_message", { sessionId, content: `${n}` }, (ack) => {
          acks.push({ ...ack, isLate: shown.includes(ack.id) });
        });
      }
      await arrive(messages, 50);
      assert.deepEqual(acks.map(({ id }) => id), shown);
      assert.deepEqual(acks.filter(({ status, isLate }) => status === "stored" && isLate), []);
    });
  }

  it("shows a message with exactly the six keys of the seed in its order", async (t) => {
    const { socket, sessionId, messages } = await enter(t);
    const before = new Date().toISOString();
    const id = assertAccepted(await say(socket, sessionId, "Testing message!"));
    await arrive(messages, 1);
    const { id: chatSessionId } = await findChat((chat) => chat.sessionId === sessionId);
    const [message] = messages;
    assert.deepEqual(Object.keys(message), KEYS);
    const { createdAt, ...rest } = message;
    const wanted = { id, sender: "user", content: "Testing message!", isAI: false, chatSessionId };
    assert.deepEqual(rest, wanted);
    assert.match(createdAt, ISO_TIME);
    assert.ok(before <= createdAt && createdAt <= new Date().toISOString(), createdAt);
    assert.match(chatSessionId, CUID);
  });

  it("is the same text over REST, key by key", async (t) => {
    const { socket, sessionId, messages } = await enter(t);
    await answer(socket, sessionId, "Hi! How can I help you?");
    await arrive(messages, 1);
    assert.equal(JSON.stringify(await history(sessionId)), JSON.stringify(messages));
    const chat = await findChat((one) => one.sessionId === sessionId);
    assert.equal(JSON.stringify(chat.messages), JSON.stringify(messages));
    assert.equal(messages[0].sender, "admin");
  });

  it("never leaks into the conversation beside it", async (t) => {
    const [one, two] = await Promise.all([enter(t), enter(t)]);
    const admins = [await enter(t, one), await enter(t, two)];
    for (let round = 0; round < 20; round += 1) {
      await Promise.all([
        say(one.socket, one.sessionId, `one ${round}`),
        say(two.socket, two.sessionId, `two ${round}`),
        answer(admins[0].socket, one.sessionId, `one's admin ${round}`),
        answer(admins[1].socket, two.sessionId, `two's admin ${round}`),
      ]);
    }
    // What leaked would have come before the last word of each room.
    await Promise.all([one, two].map(({ messages }) => arrive(messages, 40)));
    await say(one.socket, one.sessionId, "one's end");
    await say(two.socket, two.sessionId, "two's end");
    const rooms = [[one, admins[0], "one"], [two, admins[1], "two"]];
    for (const [visitor, admin, name] of rooms) {
      await arrive(visitor.messages, 41);
      await arrive(admin.messages, 41);
      assert.deepEqual(visitor.messages, admin.messages);
      assert.ok(contents(visitor.messages).every((content) => content.startsWith(name)));
    }
  });

  it("goes on under the old id after a reconnect, and nothing is lost meanwhile", async (t) => {
    const { socket, sessionId, messages } = await enter(t);
    const admin = await enter(t, { sessionId });
    socket.disconnect();
    await answer(admin.socket, sessionId, "while you were away");
    await arrive(admin.messages, 1);
    socket.connect();
    assert.equal((await init(socket, sessionId)).resumed, true);
    assert.deepEqual(contents(await history(sessionId)), ["while you were away"]);
    await answer(admin.socket, sessionId, "welcome back");
    await arrive(messages, 1);
    assert.deepEqual(contents(messages), ["welcome back"]);
  });

  it("does not reach a socket that left", async (t) => {
    const { socket, sessionId, messages } = await enter(t);
    const gone = await enter(t, { sessionId });
    gone.socket.disconnect();
    await say(socket, sessionId, "alone");
    await arrive(messages, 1);
    gone.socket.connect();
    await eventually("the reconnect", () => gone.socket.connected);
    await say(socket, sessionId, "still alone");
    await arrive(messages, 2);
    await ask(gone.socket, "init_session", {});
    assert.deepEqual(gone.messages, []);
  });

  it("takes a message from a socket that is not in the room", async (t) => {
    const { sessionId, messages } = await enter(t);
    const outside = await connect(t);
    const heard = all(outside, "message");
    assertAccepted(await answer(outside, sessionId, "from outside"));
    await arrive(messages, 1);
    await init(outside, unknownId());
    assert.deepEqual(heard, []);
  });

  it("carries every text that the contract allows, unchanged", async (t) => {
    const { socket, sessionId, messages } = await enter(t);
    const texts = [
      " ", "0", "a\nb\tc\r\n", "\u0001\u001f\u007f", "'; DROP TABLE \"Message\"; --", "\\", '"', "\\u0000",
      "<script>alert(1)</script>", "{}", "null", "ß→漢字", "👩‍👩‍👧‍👦 e\u0301", "\u2028\u2029\ufeff\uffff\ufffe",
      "x".repeat(8_000), "🙂".repeat(8_000),
    ];
    for (const text of texts) socket.emit("user_message", { sessionId, content: text });
    await arrive(messages, texts.length);
    assert.deepEqual(contents(messages), texts);
    assert.deepEqual(contents(await history(sessionId)), texts);
  });
});

describe("clientOffset", { concurrency: true }, () => {
  it("makes a resend the same message, whoever sends it and when", async (t) => {
    const { socket, sessionId, messages } = await enter(t);
    const clientOffset = "1";
    const id = assertAccepted(await say(socket, sessionId, "once", { clientOffset }));
    await arrive(messages, 1);
    const again = await connect(t);
    const resends = [socket, again, again].map((who) => say(who, sessionId, "once", { clientOffset }));
    for (const ack of await Promise.all(resends)) assert.equal(assertAccepted(ack), id);
    assertRefused(await say(again, sessionId, "twice", { clientOffset }), "conflict");
    await say(socket, sessionId, "end");
    await arrive(messages, 2);
    assert.deepEqual(contents(await history(sessionId)), ["once", "end"]);
  });

  it("stores one message when the same offset is sent many times at once", async (t) => {
    const one = await enter(t);
    const { sessionId, messages } = one;
    const two = await enter(t, { sessionId });
    const sends = Array.from({ length: 50 }, (_, n) =>
      say([one, two][n % 2].socket, sessionId, "the same", { clientOffset: "x" }));
    const ids = new Set((await Promise.all(sends)).map(assertAccepted));
    assert.equal(ids.size, 1);
    await say(one.socket, sessionId, "end");
    await arrive(messages, 2);
    assert.deepEqual(await history(sessionId), messages);
  });

  it("tells apart sessions, senders and offsets", async (t) => {
    const one = await enter(t);
    const two = await enter(t);
    const clientOffset = "1";
    const ids = (await Promise.all([
      say(one.socket, one.sessionId, "a", { clientOffset }),
      answer(one.socket, one.sessionId, "b", { clientOffset }),
      say(one.socket, one.sessionId, "c", { clientOffset: "2" }),
      say(two.socket, two.sessionId, "d", { clientOffset }),
    ])).map(assertAccepted);
    assert.equal(new Set(ids).size, 4);
    await arrive(one.messages, 3);
    await arrive(two.messages, 1);
  });

  it("has 1 to 64 characters", async (t) => {
    const { socket, sessionId, messages } = await enter(t);
    for (const clientOffset of ["x", "x".repeat(64), "🙂".repeat(64)]) {
      assertAccepted(await say(socket, sessionId, "good", { clientOffset }));
    }
    for (const clientOffset of ["", "x".repeat(65), "\u0000", 1, {}, [], true]) {
      assertRefused(await say(socket, sessionId, "bad", { clientOffset }), "invalid_payload");
    }
    await arrive(messages, 3);
    assert.deepEqual(contents(await history(sessionId)), ["good", "good", "good"]);
  });
});

describe("a send that is not accepted", { concurrency: true }, () => {
  it("is refused in its ack and nowhere else", async (t) => {
    const { socket, sessionId, messages } = await enter(t);
    const errors = all(socket, "message_error");
    assertRefused(await say(socket, unknownId(), "to nobody"), "session_not_found");
    assertRefused(await say(socket, sessionId, ""), "invalid_payload");
    assertRefused(await answer(socket, sessionId, "x".repeat(8_001)), "too_large");
    await say(socket, sessionId, "end");
    await arrive(messages, 1);
    assert.deepEqual(errors, []);
  });

  it("answers with message_error where no ack is asked for", async (t) => {
    const { socket, sessionId } = await enter(t);
    const errors = all(socket, "message_error");
    const nobody = unknownId();
    socket.emit("user_message", { sessionId: nobody, content: "to nobody", clientOffset: "7" });
    await arrive(errors, 1);
    socket.emit("admin_message", { sessionId, content: "", clientOffset: "8" });
    await arrive(errors, 2);
    socket.emit("user_message", { sessionId, content: 42 });
    await arrive(errors, 3);
    socket.emit("user_message", "garbage");
    await arrive(errors, 4);
    const told = errors.map(({ error, ...rest }) => Object.values(rest));
    assert.deepEqual(told, [
      ["user_message", nobody, "7"],
      ["admin_message", sessionId, "8"],
      ["user_message", sessionId, null],
      ["user_message", null, null],
    ]);
    const codes = ["session_not_found", "invalid_payload", "invalid_payload", "invalid_payload"];
    errors.forEach((event, n) => {
      assert.deepEqual(Object.keys(event), ["event", "sessionId", "clientOffset", "error"]);
      assertError(event.error, codes[n]);
    });
  });
});

describe("the client's own retries", { concurrency: true }, () => {
  const retrying = { retries: 3, ackTimeout: 5_000 };

  it("deliver each message once and in order", async (t) => {
    const { socket, sessionId, messages } = await enter(t, retrying);
    const sent = Array.from({ length: 30 }, (_, n) => `${n}`);
    const answers = sent.map((content) => new Promise((resolve, reject) => {
      const done = (error, ack) => (error ? reject(error) : resolve(ack));
      socket.emit("user_message", { sessionId, content, clientOffset: content }, done);
    }));
    (await Promise.all(answers)).forEach(assertAccepted);
    await arrive(messages, sent.length);
    assert.deepEqual(contents(messages), sent);
    assert.deepEqual(await history(sessionId), messages);
  });

  it("never wait for an answer that does not come", async (t) => {
    const { socket, sessionId, messages } = await enter(t, retrying);
    // Each of these would hold up what is behind it for four times `ackTimeout`.
    for (const event of ["init_session", "user_message", "nonsense", "message"]) socket.emit(event);
    socket.emit("user_message", { sessionId, content: "behind them" });
    await arrive(messages, 1);
  });
});
