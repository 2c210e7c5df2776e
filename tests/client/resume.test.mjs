// Coming back with `after` while messages pour in.

import assert from "node:assert/strict";
import test from "node:test";
import { GATEWAY_URL, SOON, ask, assertAccepted, connect, enter, eventually } from "./lib.mjs";

const GATEWAYS = (process.env.GATEWAY_URLS ?? GATEWAY_URL).split(",");
const ROUNDS = 12;
/** How much must have come live before a round counts. */
const LIVE = 50;
/** Most sends without an answer: a slow machine is given less. */
const UNANSWERED = 100;

const history = async (sessionId) => (await fetch(`${GATEWAY_URL}/api/chats/${sessionId}`)).json();
const number = (message) => Number(message.content);

/** Emits numbers until it is stopped, or the test ends. */
function pour(t, socket, sessionId) {
  let next = 0;
  let unanswered = 0;
  const acks = [];
  const send = () => {
    unanswered += 1;
    const answer = ask(socket, "user_message", { sessionId, content: `${next++}` });
    acks.push(answer.finally(() => { unanswered -= 1; }));
  };
  const timer = setInterval(() => { for (let i = 0; i < 3 && unanswered < UNANSWERED; i++) send(); }, 5);
  t.after(() => clearInterval(timer));
  return async () => {
    clearInterval(timer);
    for (const ack of await Promise.all(acks)) assertAccepted(ack);
    return next;
  };
}

/** Joins with `after`, so many messages back, by the callback, so that what follows the ack is surely behind it. */
async function resume(t, url, sessionId, back, transports) {
  const socket = await connect(t, { url, transports });
  const stored = await history(sessionId);
  const from = stored[Math.max(0, stored.length - 1 - back)];
  const seen = [];
  let ack;
  socket.on("message", (message) => seen.push([message, ack !== undefined]));
  socket.emit("init_session", { sessionId, after: from.id }, (answer) => { ack = answer; });
  await eventually("an ack and live messages", () => ack && seen.length >= LIVE);
  socket.disconnect();
  assert.ok(seen.every(([, behind]) => behind), "the ack leaves first");
  return { ack, from, messages: [...ack.messages, ...seen.map(([message]) => message)] };
}

test("what the ack carries and what follows meet without gap or repeat", { timeout: 120_000 }, async (t) => {
  const { socket, sessionId } = await enter(t);
  const stop = pour(t, socket, sessionId);
  await eventually("a history", async () => (await history(sessionId)).length > 100);
  for (let round = 0; round < ROUNDS; round++) {
    const transports = round % 2 ? ["polling"] : ["websocket"];
    const { ack, from, messages } = await resume(t, GATEWAYS[round % GATEWAYS.length], sessionId, round * 20, transports);
    assert.deepEqual([ack.sessionId, ack.resumed, ack.reset, ack.more], [sessionId, true, false, false]);
    assert.deepEqual(messages.map(number), messages.map((_, i) => number(from) + 1 + i));
  }
  const said = await stop();
  await eventually("all is stored", async () => (await history(sessionId)).length === said);
});

test("a message of no session, or of another, starts at the beginning, 500 at most", async (t) => {
  const { socket, sessionId } = await enter(t);
  const other = await enter(t);
  const foreign = await ask(other.socket, "user_message", { sessionId: other.sessionId, content: "foreign" });
  const sends = Array.from({ length: 501 }, (_, i) => ask(socket, "user_message", { sessionId, content: `${i}` }));
  await Promise.all(sends);
  await eventually("all is stored", async () => (await history(sessionId)).length === 501, SOON);
  for (const after of [foreign.id, "nonsense", "", 5, {}, "\u0000"]) {
    const ack = await ask(socket, "init_session", { sessionId, after });
    assert.deepEqual([ack.reset, ack.more, ack.messages.length], [true, true, 500]);
    assert.equal(ack.messages[0].content, "0");
  }
  const all = await history(sessionId);
  const ack = await ask(socket, "init_session", { sessionId, after: all[499].id });
  assert.deepEqual([ack.reset, ack.more, ack.messages], [false, false, [all[500]]]);
  const end = await ask(socket, "init_session", { sessionId, after: all[500].id });
  assert.deepEqual([end.reset, end.more, end.messages], [false, false, []]);
});
