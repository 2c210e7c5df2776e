// One socket emits as fast as it can, in another session people go on talking.

import assert from "node:assert/strict";
import test from "node:test";
import { ask, assertAccepted, connect, enter, eventually, inbox } from "./lib.mjs";

const EVENTS = 200_000;
const CODES = new Set(["overloaded", "rate_limited", "unavailable"]);

test("every event of a flood is answered or its client is cut off", { timeout: 120_000 }, async (t) => {
  const neighbour = await enter(t);
  const heard = inbox(neighbour.socket);
  const { socket, sessionId } = await enter(t, { reconnection: false });
  let ended = false;
  socket.on("disconnect", () => { ended = true; });
  let answered = 0;
  const codes = new Set();
  for (let i = 0; i < EVENTS; i++) {
    socket.emit("user_message", { sessionId, content: `${i}` }, (ack) => {
      answered += 1;
      if (ack.error) codes.add(ack.error.code);
    });
  }
  let said = 0;
  await eventually("the flood is over", async () => {
    const ack = await ask(neighbour.socket, "user_message", { sessionId: neighbour.sessionId, content: `${said++}` });
    assertAccepted(ack);
    return ended || answered === EVENTS;
  }, 90_000);
  assert.ok([...codes].every((code) => CODES.has(code)), [...codes].join());
  await eventually("the neighbour has everything", () => heard.length === said);
  const back = await connect(t);
  assert.ok(back.connected);
});
