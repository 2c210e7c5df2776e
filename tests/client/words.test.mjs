// What a client is told of a wrong message: what of it can be read, and what is wrong, in words for people.

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { all, arrive, ask, assertAccepted, connect, enter, eventually, get, history, say, unknownId } from "./lib.mjs";

const HALF = "\ud83d";
/** How libraries speak of types, places and fields. */
const OF_A_LIBRARY = /invalid type|expected|line \d|column \d|missing field|unknown variant|serde|surrogate in hex/i;

/** The `message_error` to a send that has no ack. */
async function told(socket, event, payload) {
  const errors = all(socket, "message_error");
  socket.emit(event, payload);
  await arrive(errors, 1);
  socket.off("message_error");
  return errors[0];
}

describe("a wrong message without ack is known by its own words", { concurrency: true }, () => {
  const wrong = {
    "half an emoji in its content": { content: `x${HALF}` },
    "a number as its content": { content: 42 },
    "no content": {},
    "an object as its content": { content: { text: [HALF] } },
    "an empty content": { content: "" },
    "half an emoji in a field that nobody asked for": { content: "", more: { [HALF]: HALF } },
  };
  for (const [what, fields] of Object.entries(wrong)) {
    it(what, async (t) => {
      const { socket, sessionId } = await enter(t);
      for (const event of ["user_message", "admin_message"]) {
        const error = await told(socket, event, { ...fields, sessionId, clientOffset: "mine" });
        assert.deepEqual([error.event, error.sessionId, error.clientOffset], [event, sessionId, "mine"]);
        assert.equal(error.error.code, "invalid_payload");
      }
      assert.deepEqual(await history(sessionId), []);
    });
  }

  it("its session where its clientOffset is wrong, and the other way round", async (t) => {
    const { socket, sessionId } = await enter(t);
    for (const clientOffset of [42, true, [HALF], {}, ""]) {
      const error = await told(socket, "user_message", { sessionId, content: "x", clientOffset });
      assert.deepEqual([error.sessionId, error.clientOffset], [sessionId, clientOffset === "" ? "" : null]);
      assert.match(error.error.message, /^clientOffset must /);
    }
    for (const wrongId of [42, null, {}]) {
      const error = await told(socket, "user_message", { sessionId: wrongId, content: "x", clientOffset: "mine" });
      assert.deepEqual([error.sessionId, error.clientOffset], [null, "mine"]);
      assert.equal(error.error.message, "sessionId must be a string");
    }
    const error = await told(socket, "user_message", { sessionId: `a${HALF}`, content: "x", clientOffset: `b${HALF}` });
    assert.deepEqual([error.sessionId, error.clientOffset], ["a\ufffd", "b\ufffd"]);
  });

  it("256 characters of each", async (t) => {
    const { socket } = await enter(t);
    const long = { sessionId: "я".repeat(10_000), clientOffset: "😀".repeat(10_000), content: HALF };
    const error = await told(socket, "user_message", long);
    assert.deepEqual([error.sessionId, error.clientOffset], ["я".repeat(256), "😀".repeat(256)]);
    for (const event of ["get-messages", "admin-join-session"]) {
      assert.equal((await told(socket, event, { sessionId: "я".repeat(10_000) })).sessionId, "я".repeat(256));
    }
  });
});

describe("an init_session of which a field cannot be read", { concurrency: true }, () => {
  for (const after of [`x${HALF}`, HALF, 42, {}, [HALF]]) {
    it(`comes back to its session where it is after: ${JSON.stringify(after)}`, async (t) => {
      const { socket, sessionId } = await enter(t);
      const id = assertAccepted(await say(socket, sessionId, "before"));
      const other = await connect(t);
      const ack = await ask(other, "init_session", { sessionId, after });
      assert.deepEqual([ack.sessionId, ack.resumed, ack.reset], [sessionId, true, true]);
      assert.deepEqual(ack.messages.map((message) => message.id), [id]);
    });
  }

  it("and opens a new one where it is the session's id", async (t) => {
    const socket = await connect(t);
    const ack = await ask(socket, "init_session", { sessionId: HALF, after: "x" });
    assert.deepEqual([ack.resumed, ack.messages], [false, []]);
  });
});

describe("what is wrong is said in words for people", { concurrency: true }, () => {
  const id = unknownId();
  const sends = [
    [[], "an object with sessionId and content is missing"],
    [42, "the payload must be an object"],
    [["x"], "the payload must be an object"],
    [{}, "sessionId must be a string, and is missing"],
    [{ sessionId: 42 }, "sessionId must be a string"],
    [{ sessionId: id }, "content must be a string, and is missing"],
    [{ sessionId: id, content: 42 }, "content must be a string"],
    [{ sessionId: id, content: null }, "content must be a string"],
    [{ sessionId: id, content: HALF }, "content is not Unicode: it holds half of a surrogate pair"],
    [{ sessionId: id, content: "x", clientOffset: 1.5 }, "clientOffset must be a string"],
  ];
  const named = [
    [[], "an object with sessionId is missing"],
    [{}, "sessionId must be a string, and is missing"],
    [{ sessionId: [] }, "sessionId must be a string"],
    ["x", "the payload must be an object"],
  ];
  const events = {
    user_message: sends,
    admin_message: sends,
    "admin-join-session": named,
    "admin-leave-session": named,
    "get-messages": [...named, [{ sessionId: id, before: 42 }, "before must be a string"]],
    "toggle-ai-mode": [
      [[], "an object with sessionId and enabled is missing"],
      [{ sessionId: id }, "enabled must be true or false, and is missing"],
      [{ sessionId: id, enabled: "yes" }, "enabled must be true or false"],
      [{ sessionId: true, enabled: true }, "sessionId must be a string"],
    ],
    "get-all-sessions": [
      [{ limit: -1 }, "limit must be a whole number from 1 to 500"],
      [{ limit: 0 }, "limit must be a whole number from 1 to 500"],
      [{ limit: 501 }, "limit must be a whole number from 1 to 500"],
      [{ limit: 1e9 }, "limit must be a whole number from 1 to 500"],
      [{ limit: 1.5 }, "limit must be a whole number from 1 to 500"],
      [{ limit: "5" }, "limit must be a whole number from 1 to 500"],
      [{ cursor: 5 }, "cursor must be a string"],
      [{ cursor: "x" }, "cursor must be a nextCursor that was given before"],
      [42, "the payload must be an object"],
    ],
  };
  for (const [event, cases] of Object.entries(events)) {
    it(event, async (t) => {
      const socket = await connect(t);
      for (const [payload, text] of cases) {
        const nothing = Array.isArray(payload) && payload.length === 0;
        const { error } = await ask(socket, event, ...(nothing ? [] : [payload]));
        assert.deepEqual([error.code, error.message], ["invalid_payload", text], JSON.stringify(payload));
      }
    });
  }

  it("a body over HTTP", async (t) => {
    const { sessionId } = await enter(t);
    const post = (body, type = "application/json") =>
      get(`/api/chats/${sessionId}/messages`, { method: "POST", body, headers: { "content-type": type } });
    const cases = [
      ["", "the body is not JSON"],
      ["{", "the body is not JSON"],
      ["[]", "the body must be an object"],
      ["null", "the body must be an object"],
      ["{}", "content must be a string, and is missing"],
      ['{"content":42}', "content must be a string"],
      ['{"content":"\\ud800"}', "content is not Unicode: it holds half of a surrogate pair"],
      ['{"content":"a","content":"b"}', "content is given more than once"],
      ['{"content":"a","isAI":"yes"}', "isAI must be true or false"],
      [Buffer.from([0x7b, 0xff, 0x7d]), "the body is not UTF-8"],
    ];
    for (const [body, text] of cases) {
      const response = await post(body);
      assert.equal(response.status, 400);
      assert.equal((await response.json()).detail, text, `${body}`);
    }
    assert.equal((await post("{}", "text/plain")).status, 415);
  });

  it("and never in those of a library", async (t) => {
    const socket = await connect(t);
    const values = [undefined, null, 42, -1, 1.5, true, "", HALF, [], {}, [[1]], "x".repeat(100)];
    const fields = ["sessionId", "content", "clientOffset", "before", "limit", "cursor", "enabled", "after"];
    for (const event of Object.keys(events)) {
      for (const field of fields) {
        await Promise.all(values.map(async (value) => {
          const payload = { sessionId: id, content: "x", enabled: true, [field]: value };
          const { error } = await ask(socket, event, payload);
          if (error) assert.doesNotMatch(error.message, OF_A_LIBRARY, `${event} ${field} ${JSON.stringify(value)}`);
        }));
      }
    }
  });
});

describe("an event of an inbox without ack", { concurrency: true }, () => {
  const nobody = unknownId();
  const refused = [
    ["get-messages", {}, null, "invalid_payload"],
    ["get-messages", { sessionId: "x", before: 42 }, "x", "invalid_payload"],
    ["get-all-sessions", { limit: 0 }, null, "invalid_payload"],
    ["admin-join-session", { sessionId: nobody }, nobody, "session_not_found"],
    ["admin-leave-session", { sessionId: "garbage" }, "garbage", "session_not_found"],
    ["toggle-ai-mode", { sessionId: nobody }, nobody, "invalid_payload"],
    ["toggle-ai-mode", { sessionId: nobody, enabled: true }, nobody, "session_not_found"],
  ];
  for (const [event, payload, sessionId, code] of refused) {
    it(`${event} ${JSON.stringify(payload)} is told that it is refused`, async (t) => {
      const socket = await connect(t);
      const error = await told(socket, event, payload);
      assert.deepEqual(Object.keys(error), ["event", "sessionId", "clientOffset", "error"]);
      assert.deepEqual([error.event, error.sessionId, error.clientOffset], [event, sessionId, null]);
      assert.equal(error.error.code, code);
    });
  }

  it("that is served is not told of it, and one with an ack is told by that alone", async (t) => {
    const socket = await connect(t);
    const errors = all(socket, "message_error");
    const lists = all(socket, "sessions-list");
    socket.emit("admin-connect");
    await eventually("the list", () => lists.length > 0);
    assert.equal((await ask(socket, "get-messages", {})).error.code, "invalid_payload");
    assert.deepEqual(errors, []);
  });
});
