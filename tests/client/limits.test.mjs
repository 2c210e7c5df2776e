// What one client and one address may do: each excess is answered with a typed error, and nobody else
// notices. The gateway trusts this machine as a proxy: each test comes from an address of its own.

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import {
  TRANSPORTS, all, ask, assertAccepted, client, connect, enter, eventually, findChat, get, init,
  say, unknownId,
} from "./lib.mjs";

const number = (name) => Number(process.env[name]);
const BURST = number("MESSAGES_BURST");
const PER_SECOND = number("MESSAGES_PER_SECOND");
const SESSIONS = number("NEW_SESSIONS_PER_MINUTE");
const SOCKETS = number("SOCKETS_PER_ADDRESS");
const ROOMS = number("ROOMS_PER_SOCKET");
const HANDSHAKES = number("HANDSHAKES_PER_MINUTE");
const POSTS = number("HTTP_MESSAGES_BURST");

/** Sends at once, of which a machine that needs seconds to send them still has some refused. */
const MANY = 4 * BURST;

/** Refusals that a socket is told of at once before it is cut off, and some more. */
const FLOOD = 10_000;

let addresses = 0;
const newAddress = () => `192.0.2.${(addresses += 1)}`;

/** Comes over proxies, which saw this address. */
const from = (address) => ({ extraHeaders: { "X-Forwarded-For": address } });

/** An error that says when to try again. */
function assertLimited(error) {
  assert.deepEqual(Object.keys(error), ["code", "message", "retryAfterMs"]);
  assert.equal(error.code, "rate_limited");
  assert.ok(error.message.length > 0);
  assert.ok(Number.isInteger(error.retryAfterMs) && error.retryAfterMs > 0, `${error.retryAfterMs}`);
  return error.retryAfterMs;
}

/** The first refusal of a client that was not connected before. */
const refusal = async (socket) => {
  const errors = all(socket, "connect_error");
  await eventually("a refusal", () => errors.length > 0);
  assert.ok(!socket.connected);
  return errors[0];
};

for (const [name, transports] of Object.entries(TRANSPORTS)) {
  const visitor = (t, address = newAddress(), more = {}) => enter(t, { transports, ...from(address), ...more });

  describe(`by ${name}`, () => {
    it("a burst of messages is taken up to its limit, the rest is told when to come back", async (t) => {
      const { socket, sessionId } = await visitor(t);
      const start = Date.now();
      const acks = await Promise.all(Array.from({ length: MANY }, (_, n) => say(socket, sessionId, `${n}`)));
      const came = ((Date.now() - start) / 1_000) * PER_SECOND;
      const accepted = acks.filter((ack) => !ack.error);
      accepted.forEach(assertAccepted);
      const refused = acks.filter((ack) => ack.error);
      // The session took one; time brings some back.
      assert.ok(accepted.length >= BURST - 1 && accepted.length <= BURST + came, `${accepted.length} ${came}`);
      assert.ok(refused.length > 0);
      const waits = refused.map((ack) => assertLimited(ack.error));
      assert.ok(waits.every((wait) => wait <= 1_000 / PER_SECOND + 1), waits.join());
      await pause(waits.at(-1));
      assertAccepted(await say(socket, sessionId, "later"));
    });

    it("a send without ack is told by message_error", async (t) => {
      const { socket, sessionId } = await visitor(t);
      const errors = all(socket, "message_error");
      const payload = { sessionId, content: "x", clientOffset: "mine" };
      for (let n = 0; n < MANY; n++) socket.emit("user_message", payload);
      await eventually("a message_error", () => errors.length > 0);
      const { error, ...rest } = errors[0];
      assert.deepEqual(rest, { event: "user_message", sessionId, clientOffset: "mine" });
      assertLimited(error);
    });

    it("every other event is told in its ack, init_session with the id that it gave", async (t) => {
      const { socket, sessionId } = await visitor(t);
      const emit = (event, payload) => Array.from({ length: MANY / 2 }, () => ask(socket, event, payload));
      const acks = (await Promise.all([...emit("nonsense"), ...emit("init_session", { sessionId })])).slice(MANY / 2);
      const refused = acks.filter((ack) => ack.error?.code === "rate_limited");
      assert.ok(refused.length > 0);
      refused.forEach((ack) => {
        assert.equal(ack.sessionId, sessionId);
        assertLimited(ack.error);
      });
    });

    it("a socket that goes on for long is cut off, and its neighbour notices nothing", async (t) => {
      const neighbour = await visitor(t);
      const { socket, sessionId } = await visitor(t, newAddress(), { reconnection: false });
      const ends = all(socket, "disconnect");
      const answers = [];
      for (let n = 0; n < FLOOD; n++) socket.emit("user_message", { sessionId, content: "x" }, (ack) => answers.push(ack));
      await eventually("the end", () => ends.length > 0);
      assert.notEqual(ends[0], "io server disconnect", "it may come back");
      assert.ok(answers.length < FLOOD);
      answers.filter((ack) => ack.error).forEach((ack) => assertLimited(ack.error));
      assertAccepted(await say(neighbour.socket, neighbour.sessionId, "undisturbed"));
    });

    it("sockets of an address are limited and a place that is left is taken", async (t) => {
      const address = newAddress();
      const inside = [];
      for (let n = 0; n < SOCKETS; n++) inside.push(await connect(t, { transports, ...from(address) }));
      const late = client(t, { transports, ...from(address), reconnectionDelay: 50, reconnectionDelayMax: 200 });
      const error = await refusal(late);
      if (transports[0] === "polling") {
        assert.equal(error.context.status, 429);
      } else {
        assert.match(error.description.message, /429/);
      }
      await connect(t, { transports, ...from(newAddress()) });
      inside[0].disconnect();
      await eventually("the place is taken", () => late.connected);
    });

    it("new sessions of an address are limited, those who come back are not", async (t) => {
      const address = newAddress();
      const first = await visitor(t, address);
      for (let n = 1; n < SESSIONS; n++) assert.ok((await init(first.socket)).sessionId);
      const given = unknownId();
      for (const sessionId of [given, undefined]) {
        const ack = await init(first.socket, sessionId);
        assert.equal(ack.sessionId, sessionId ?? null);
        assertLimited(ack.error);
      }
      const returning = await visitor(t, address, { sessionId: first.sessionId });
      assert.equal(returning.ack.resumed, true);
      assert.equal(returning.sessionId, first.sessionId);
      assert.equal((await visitor(t)).ack.resumed, false);
    });

    it("a socket is in so many sessions at a time and no more", async (t) => {
      const sessions = [];
      for (let n = 0; n <= ROOMS; n++) sessions.push((await visitor(t)).sessionId);
      const last = sessions.pop();
      const socket = await connect(t, { transports, ...from(newAddress()) });
      for (const sessionId of sessions) assert.equal((await init(socket, sessionId)).resumed, true);
      for (const sessionId of [last, undefined]) {
        const ack = await init(socket, sessionId);
        assert.deepEqual(Object.keys(ack), ["sessionId", "error"]);
        assert.equal(ack.sessionId, sessionId ?? null);
        assert.equal(ack.error.code, "too_large");
      }
      assert.equal((await ask(socket, "admin-join-session", { sessionId: last })).error.code, "too_large");
      assert.equal((await init(socket, sessions[0])).resumed, true);
      await ask(socket, "admin-leave-session", { sessionId: sessions[1] });
      assert.equal((await init(socket, last)).resumed, true);
      assertAccepted(await say(socket, sessions[0], "still here"));
    });

    it("a browser is let in from a listed origin only, other programs always are", async (t) => {
      const headers = (origin) => ({ transports, extraHeaders: { Origin: origin, "X-Forwarded-For": newAddress() } });
      await connect(t, headers("https://shop.example"));
      for (const origin of ["https://evil.example", "https://shop.example.evil.example", "http://shop.example", "null"]) {
        const error = await refusal(client(t, { ...headers(origin), reconnection: false }));
        if (transports[0] === "polling") {
          assert.equal(error.context.status, 403);
        } else {
          assert.match(error.description.message, /403/);
        }
      }
      await connect(t, { transports, ...from(newAddress()) });
    });
  });
}

describe("the address of a client", () => {
  const stored = async (t, headers) => {
    const { sessionId } = await enter(t, { extraHeaders: headers });
    let chat;
    await eventually("it is stored", async () => (chat = await findChat((one) => one.sessionId === sessionId)));
    return chat.ip;
  };

  it("is the nearest one that no trusted proxy has", async (t) => {
    const trusted = "127.0.0.1, 10.1.2.3";
    assert.equal(await stored(t, { "X-Forwarded-For": `6.6.6.6, 198.51.100.1, ${trusted}` }), "198.51.100.1");
    assert.equal(await stored(t, { "X-Forwarded-For": "198.51.100.2:4711" }), "198.51.100.2");
    assert.equal(await stored(t, { Forwarded: 'for=6.6.6.6, for="[2001:db8::1]:80";proto=https, for=10.1.2.3' }), "2001:db8::1");
    assert.equal(await stored(t, { Forwarded: "for=198.51.100.3, for=_hidden, for=10.1.2.3" }), "10.1.2.3");
    assert.equal(await stored(t, {}), "127.0.0.1");
  });

  it("counts as its /64 where it is IPv6", async (t) => {
    for (let n = 0; n < SOCKETS; n++) await connect(t, from(`2001:db8:1:1::${n}`));
    await refusal(client(t, { ...from("2001:db8:1:1:ffff::"), reconnection: false }));
    await connect(t, from("2001:db8:1:2::1"));
  });
});

// Node's client keeps no body of a refusal; browsers do.
it("over HTTP another origin is a 403", async () => {
  const response = await get("/socket.io/?EIO=4&transport=polling", { headers: { Origin: "https://evil.example" } });
  assert.equal(response.status, 403);
  assert.equal((await response.json()).code, "forbidden");
});

/** A 429 that says when to come back, in milliseconds. */
async function assertRefused(response) {
  assert.equal(response.status, 429);
  assert.equal(response.headers.get("content-type"), "application/problem+json");
  const problem = await response.json();
  assert.deepEqual(Object.keys(problem), ["status", "title", "detail", "code", "retryAfterMs"]);
  assert.equal(problem.code, "rate_limited");
  assert.equal(Number(response.headers.get("retry-after")), Math.ceil(problem.retryAfterMs / 1_000));
  return problem.retryAfterMs;
}

const handshake = (address) =>
  get("/socket.io/?EIO=4&transport=polling", { headers: { "X-Forwarded-For": address } });

const refusals = async () => {
  const metrics = await (await fetch(process.env.METRICS_URL)).text();
  return Number(metrics.match(/^chat_gateway_refused_total\{code="rate_limited"\} (\d+)$/m)?.[1] ?? 0);
};

it("over HTTP a refusal is a 429 that says when to come back", async (t) => {
  const address = newAddress();
  for (let n = 0; n < SOCKETS; n++) await connect(t, from(address));
  await assertRefused(await handshake(address));
});

it("sockets that come and go are limited by address, and its neighbours are not", async (t) => {
  const address = newAddress();
  const share = 60_000 / HANDSHAKES;
  let connected = 0;
  const isRefused = async () => {
    const socket = client(t, { transports: ["websocket"], ...from(address), reconnection: false });
    const ended = new Promise((resolve) => { socket.on("connect", () => resolve(true)); socket.on("connect_error", () => resolve(false)); });
    const isIn = await ended;
    socket.disconnect();
    if (isIn) connected += 1;
    if (isIn) return false;
    const response = await handshake(address);
    // For want of a place it is refused for longer: those who left may not be gone yet.
    return response.status === 429 && await assertRefused(response) <= share + 1;
  };
  await eventually("a refusal for a minute's share", isRefused, 30_000);
  assert.ok(connected >= HANDSHAKES, `${connected}`);
  await connect(t, from(newAddress()));
});

it("messages over HTTP are limited by address, and time brings them back", async (t) => {
  const { sessionId } = await enter(t, from(newAddress()));
  const post = (address) => get(`/api/chats/${sessionId}/messages`, {
    method: "POST",
    headers: { "content-type": "application/json", "X-Forwarded-For": address },
    body: JSON.stringify({ content: "an answer" }),
  });
  const isTaken = ({ status }) => [201, 202].includes(status);
  const address = newAddress();
  const before = await refusals();
  const answers = await Promise.all(Array.from({ length: 3 * POSTS }, () => post(address)));
  const taken = answers.filter((response) => isTaken(response));
  assert.ok(taken.length >= POSTS && taken.length < 3 * POSTS, `${taken.length}`);
  const waits = await Promise.all(answers.filter((response) => !isTaken(response)).map(assertRefused));
  assert.ok(await refusals() >= before + waits.length);
  assert.ok(isTaken(await post(newAddress())));
  await pause(Math.max(...waits));
  assert.ok(isTaken(await post(address)));
});

it("an address that opens and leaves sockets as fast as it can sends no more than its sockets may", async (t) => {
  const address = newAddress();
  const { sessionId } = await enter(t, from(newAddress()));
  const accepted = [];
  const start = performance.now();
  let refusals = 0;
  while (refusals === 0 || performance.now() - start < 2_000) {
    const socket = client(t, { ...from(address), reconnection: false });
    const ended = new Promise((resolve) => { socket.on("connect", () => resolve(true)); socket.on("connect_error", () => resolve(false)); });
    if (await ended) {
      const acks = await Promise.all(Array.from({ length: BURST }, () => say(socket, sessionId, "x")));
      accepted.push(...acks.filter((ack) => !ack.error));
    } else {
      refusals += 1;
    }
    socket.disconnect();
  }
  const seconds = (performance.now() - start) / 1_000;
  const most = SOCKETS * (BURST + PER_SECOND * seconds);
  assert.ok(accepted.length <= most, `${accepted.length} of ${most} in ${seconds} s`);
});

