// What a single client can do to harm: each is answered with a typed error where an answer is
// possible, stores nothing wrong, and no other client notices.
//
// Everything that may be stored begins with "honest"; the Rust side looks for anything else.

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { bystanders } from "./bystander.mjs";
import {
  SOON, UUID_V4, all, arrive, ask, assertAccepted, assertError, assertRefused, client, connect, contents,
  enter, eventually, get, history, init, say, unknownId,
} from "./lib.mjs";

const SENDS = ["user_message", "admin_message"];
const MB = 1_000_000;
/** An ack is not waited for longer where the connection is to end instead. */
const GONE_WITHIN = 10_000;

let others;
const cleanups = [];
before(async () => {
  others = await bystanders({ after: (cleanup) => cleanups.push(cleanup) });
});
after(async () => {
  try {
    await others.end();
  } finally {
    cleanups.forEach((cleanup) => cleanup());
  }
});

/** A test of one fault: the bystanders go on, and newcomers are served. */
function fault(name, work) {
  it(name, async (t) => {
    await work(t);
    await others.goOn();
    await served(t);
  });
}

async function served(t) {
  assert.equal((await get("/health")).status, 200);
  const { socket, sessionId, messages } = await enter(t);
  assertAccepted(await say(socket, sessionId, "honest newcomer"));
  await arrive(messages, 1);
}

/** An attacker in a session of its own, whose history must hold what it honestly said. */
async function attack(t, work, options) {
  const attacker = await enter(t, options);
  const { socket, sessionId } = attacker;
  const errors = all(socket, "message_error");
  assertAccepted(await say(socket, sessionId, "honest before"));
  await work(socket, sessionId, errors);
  assertAccepted(await say(socket, sessionId, "honest after"));
  const stored = ["honest before", "honest after"];
  await eventually("both", async () => (await history(sessionId)).length >= stored.length);
  assert.deepEqual(contents(await history(sessionId)), stored);
}

/** A send is refused in its ack, and by `message_error` where it has none. */
async function assertSendRefused(socket, errors, event, args, code) {
  assertRefused(await ask(socket, event, ...args), code);
  const told = errors.length;
  socket.emit(event, ...args);
  await arrive(errors, told + 1);
  assert.equal(errors[told].event, event);
  assertError(errors[told].error, code);
}

/** The library reads some packets only to the point of giving the connection up. */
async function assertRefusedOrGone(socket, event, payload) {
  const [outcome] = await Promise.allSettled([ask(socket, event, payload)]);
  if (outcome.status === "fulfilled") assertRefused(outcome.value, "invalid_payload");
  else assert.equal(socket.connected, false, "no answer and no end");
}

const NO_PAYLOAD = {
  "no argument": [],
  null: [null],
  "a number": [42],
  "a string": ["HOSTILE"],
  "a boolean": [true],
  "an empty array": [[]],
  "an array": [["HOSTILE", "HOSTILE"]],
  "an array of objects": [[{ content: "HOSTILE" }]],
  "several arguments": ["HOSTILE", null, 42, {}, []],
  "an empty object": [{}],
};

describe("a wrong argument", () => {
  for (const event of SENDS) {
    for (const [what, args] of Object.entries(NO_PAYLOAD)) {
      fault(`${event} given ${what} is invalid_payload`, (t) =>
        attack(t, (socket, _, errors) => assertSendRefused(socket, errors, event, args, "invalid_payload")));
    }
  }

  for (const [what, args] of Object.entries(NO_PAYLOAD)) {
    fault(`init_session given ${what} opens a session, with or without callback`, async (t) => {
      const socket = await connect(t);
      socket.emit("init_session", ...args);
      const { sessionId } = await ask(socket, "init_session", ...args);
      assert.match(sessionId, UUID_V4);
      assertAccepted(await say(socket, sessionId, "honest"));
    });
  }

  fault("more arguments and callbacks than an event takes are ignored", async (t) => {
    const { socket, sessionId, messages } = await enter(t);
    const payload = { sessionId, content: "honest" };
    assertAccepted(await ask(socket, "user_message", payload, { content: "HOSTILE" }, ["HOSTILE"]));
    // A function that is not the last argument travels as null.
    assertAccepted(await ask(socket, "user_message", payload, () => assert.fail("called back")));
    assert.equal((await ask(socket, "init_session", { sessionId }, () => {}, "more")).resumed, true);
    await arrive(messages, 2);
  });

  fault("keys that an event does not know are ignored", async (t) => {
    const { socket, sessionId, messages } = await enter(t);
    const more = { id: "HOSTILE", sender: "admin", isAI: true, createdAt: 0, constructor: "HOSTILE" };
    assertAccepted(await say(socket, sessionId, "honest", more));
    await arrive(messages, 1);
    assert.equal(messages[0].sender, "user");
    assert.equal(messages[0].isAI, false);
  });
});

describe("a wrong content", () => {
  const contents = {
    "missing content": [undefined, "invalid_payload"],
    "null content": [null, "invalid_payload"],
    "empty content": ["", "invalid_payload"],
    "numeric content": [42, "invalid_payload"],
    "boolean content": [true, "invalid_payload"],
    "an object as content": [{ text: "HOSTILE" }, "invalid_payload"],
    "an array as content": [["HOSTILE"], "invalid_payload"],
    "U+0000 as content": ["\u0000", "invalid_payload"],
    "U+0000 in the content": ["HOSTILE\u0000HOSTILE", "invalid_payload"],
    "a lone high surrogate": ["HOSTILE\ud800", "invalid_payload"],
    "a lone low surrogate": ["\udc00HOSTILE", "invalid_payload"],
    "surrogates in the wrong order": ["HOSTILE\udc00\ud800", "invalid_payload"],
    "one character too many": ["x".repeat(8_001), "too_large"],
    "one emoji too many": ["🙂".repeat(8_001), "too_large"],
    "1 MB": ["x".repeat(MB), "too_large"],
  };
  for (const event of SENDS) {
    for (const [what, [content, code]] of Object.entries(contents)) {
      fault(`${event} with ${what} is ${code}`, (t) =>
        attack(t, (socket, sessionId, errors) =>
          assertSendRefused(socket, errors, event, [{ sessionId, content }], code)));
    }
  }

  fault("1 MB by polling is too_large", (t) =>
    attack(t, (socket, sessionId, errors) => {
      const payload = { sessionId, content: "x".repeat(MB) };
      return assertSendRefused(socket, errors, "user_message", [payload], "too_large");
    }, { transports: ["polling"] }));

  for (const transport of ["websocket", "polling"]) {
    fault(`20 MB by ${transport} ends the connection, and the client comes back by itself`, (t) =>
      attack(t, async (socket, sessionId) => {
        const gone = all(socket, "disconnect");
        socket.emit("user_message", { sessionId, content: "HOSTILE".repeat(3 * MB) });
        await eventually("the end", () => gone.length === 1, GONE_WITHIN);
        await eventually("the return", () => socket.connected, GONE_WITHIN);
        assert.equal((await init(socket, sessionId)).resumed, true);
      }, { transports: [transport] }));
  }
});

describe("a wrong session", () => {
  const wrong = {
    "a missing id": [undefined, "invalid_payload"],
    "a null id": [null, "invalid_payload"],
    "a numeric id": [42, "invalid_payload"],
    "an object as id": [{}, "invalid_payload"],
    "an array as id": [[], "invalid_payload"],
    "an empty id": ["", "session_not_found"],
    "an unknown id": [unknownId(), "session_not_found"],
    "a garbage id": ["garbage", "session_not_found"],
    "a wildcard": ["*", "session_not_found"],
    "another wildcard": [">", "session_not_found"],
    "a NATS subject": ["chat.requests.0.x", "session_not_found"],
    "U+0000 as id": ["\u0000", "session_not_found"],
    "SQL as id": ["' OR 1=1; --", "session_not_found"],
    "a very long id": ["x".repeat(MB), "session_not_found"],
    "a lone surrogate as id": ["\ud800", "invalid_payload"],
  };
  for (const event of SENDS) {
    for (const [what, [sessionId, code]] of Object.entries(wrong)) {
      fault(`${event} with ${what} is ${code}`, (t) =>
        attack(t, (socket, _, errors) =>
          assertSendRefused(socket, errors, event, [{ sessionId, content: "HOSTILE" }], code)));
    }
  }

  fault("another spelling of a session's id is another id", (t) =>
    attack(t, async (socket, sessionId, errors) => {
      const spellings = [sessionId.toUpperCase(), ` ${sessionId}`, `${sessionId}\u0000`, `{${sessionId}}`,
        sessionId.replaceAll("-", ""), `urn:uuid:${sessionId}`, `${sessionId}.*`];
      for (const spelling of spellings) {
        const payload = { sessionId: spelling, content: "HOSTILE" };
        await assertSendRefused(socket, errors, "user_message", [payload], "session_not_found");
      }
    }));

  fault("a message to another session goes there and does not let its sender in", async (t) => {
    const victim = await enter(t);
    await attack(t, async (socket) => {
      const heard = all(socket, "message");
      assertAccepted(await say(socket, victim.sessionId, "honest from outside"));
      await arrive(victim.messages, 1);
      assertAccepted(await say(victim.socket, victim.sessionId, "honest answer"));
      await arrive(victim.messages, 2);
      assert.deepEqual(heard.filter(({ content }) => content !== "honest before"), []);
    });
  });
});

describe("a wrong event", () => {
  const names = ["nonsense", "", " ", "message", "message_error", "__proto__", "constructor",
    "USER_MESSAGE", "🙂", "x".repeat(100_000), "admin-disconnect", "join"];
  for (const name of names) {
    fault(`${JSON.stringify(name.slice(0, 20))} is invalid_payload, and nothing without a callback`, (t) =>
      attack(t, async (socket, sessionId) => {
        const payload = { sessionId, content: "HOSTILE" };
        assertRefused(await ask(socket, name, payload), "invalid_payload");
        assertRefused(await ask(socket, name), "invalid_payload");
        socket.emit(name, payload);
        socket.emit(name);
      }));
  }

  fault("a name that JSON has to escape is refused or ends the connection", async (t) => {
    const { sessionId } = await enter(t);
    for (const name of ["user_message\u0000", "user_message\n", '"', "\\", "\ud800"]) {
      const socket = await connect(t, { reconnection: false });
      await assertRefusedOrGone(socket, name, { sessionId, content: "HOSTILE" });
    }
    assert.deepEqual(await history(sessionId), []);
  });

  fault("binary attachments are invalid_payload", async (t) => {
    const { socket, sessionId } = await enter(t);
    const few = [Buffer.from("HOSTILE"), [Buffer.alloc(10), Buffer.alloc(10)], new ArrayBuffer(MB / 20), Array(64).fill(Buffer.alloc(1))];
    for (const content of few) {
      assertRefused(await ask(socket, "user_message", { sessionId, content }), "invalid_payload");
      const opened = await ask(socket, "init_session", { sessionId, content });
      assert.equal(opened.sessionId, sessionId);
      assert.equal(opened.error.code, "invalid_payload");
      assertRefused(await ask(socket, "get-messages", { sessionId, content }), "invalid_payload");
    }
    const told = all(socket, "message_error");
    socket.emit("user_message", { sessionId, clientOffset: "of the binary one", content: few[0] });
    await eventually("it is told by an event", () => told.some((one) => one.clientOffset === "of the binary one"));
    assert.ok(socket.connected);

    for (const content of [new ArrayBuffer(MB / 10), new ArrayBuffer(2 * MB), Array(1_000).fill(Buffer.alloc(1))]) {
      const other = await connect(t, { reconnection: false });
      await assertRefusedOrGone(other, "user_message", { sessionId, content });
    }
    assert.deepEqual(await history(sessionId), []);
  });

  fault("as many as eight namespaces that are not served are refused, and the default one goes on", async (t) => {
    const socket = client(t);
    const others = Array.from({ length: 8 }, (_, n) => socket.io.socket(`/other${n}`));
    const errors = others.map((other) => all(other, "connect_error"));
    await eventually("the refusals", () => errors.every((of) => of.length > 0));
    assert.deepEqual(errors.map(([error]) => error.message), Array(8).fill("Invalid namespace"));
    await eventually("the default namespace", () => socket.connected);
    const { sessionId } = await init(socket);
    const messages = all(socket, "message");
    socket.emit("user_message", { sessionId, content: "honest" });
    await eventually("the message", () => messages.length > 0);
    // A connection that breaks comes back in the default namespace alone.
    const gone = all(socket, "disconnect");
    socket.io.engine.close();
    await eventually("it is back", () => gone.length > 0 && socket.connected);
    assert.equal((await init(socket, sessionId)).resumed, true);
  });

  fault("a namespace that is not served is refused", async (t) => {
    const socket = client(t);
    const admin = socket.io.socket("/admin");
    const errors = all(admin, "connect_error");
    await eventually("the refusal", () => errors.length > 0);
    assert.equal(admin.connected, false);
    await eventually("the default namespace", () => socket.connected);
    assert.match((await init(socket)).sessionId, UUID_V4);
  });

  fault("a client that leaves before its answers takes nothing with it", async (t) => {
    for (let n = 0; n < 20; n += 1) {
      const socket = await connect(t, { reconnection: false });
      for (let m = 0; m < 10; m += 1) socket.emit("init_session", {}, () => {});
      socket.emit("user_message", { sessionId: unknownId(), content: "HOSTILE" }, () => {});
      if (n % 2) socket.disconnect();
      else socket.io.engine.close();
    }
  });

  fault("joining sessions without end is bounded and answered", async (t) => {
    const socket = await connect(t);
    // Those that may wait are opened one after the other.
    const open = () => socket.timeout(3 * SOON).emitWithAck("init_session", {});
    const answers = await Promise.all(Array.from({ length: 1_000 }, open));
    for (const ack of answers) {
      if (ack.error) assertError(ack.error, "overloaded");
      else assert.match(ack.sessionId, UUID_V4);
    }
  });
});
