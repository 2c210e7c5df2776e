// Many messages at once: none is lost, none overtakes another.

import assert from "node:assert/strict";
import { it } from "node:test";
import {
  arrive, assertAccepted, contents, enter, eventually, history, say,
} from "./lib.mjs";

const MESSAGES = 2_000;

for (const transport of ["websocket", "polling"]) {
  const transports = [transport];
  it(`${MESSAGES} messages emitted at once by one ${transport} are acked, broadcast and stored in order`, async (t) => {
    const visitor = await enter(t, { transports });
    const { socket, sessionId } = visitor;
    const admin = await enter(t, { transports, sessionId });
    const sent = Array.from({ length: MESSAGES }, (_, n) => `${n}`);
    const ids = (await Promise.all(sent.map((text) => say(socket, sessionId, text)))).map(assertAccepted);
    await arrive(visitor.messages, MESSAGES);
    await arrive(admin.messages, MESSAGES);
    const stored = await history(sessionId);
    assert.deepEqual(contents(stored), sent);
    assert.deepEqual(stored.map(({ id }) => id), ids);
    assert.deepEqual(visitor.messages, stored);
    assert.deepEqual(admin.messages, stored);
  });
}

it("more than a socket may have waiting is refused, and what is accepted keeps its order", async (t) => {
  const { socket, sessionId, messages } = await enter(t);
  const sent = Array.from({ length: 20_000 }, (_, n) => `${n}`);
  const acks = await Promise.all(sent.map((text) => say(socket, sessionId, text)));
  const those = (fits) => sent.filter((_, n) => fits(acks[n]));
  const accepted = those((ack) => ack.status === "accepted");
  // Surely not taken; of `unavailable`, which a busy machine may answer, nobody knows.
  const refused = new Set(those((ack) => ack.error?.code === "overloaded"));
  const doubtful = new Set(those((ack) => ack.error?.code === "unavailable"));
  assert.equal(accepted.length + refused.size + doubtful.size, sent.length);
  assert.ok(accepted.length > 0 && refused.size > 0);
  assertAccepted(await say(socket, sessionId, "end"));
  await eventually("the end", () => messages.at(-1)?.content === "end");
  assert.deepEqual(await history(sessionId), messages);
  const stored = contents(messages).slice(0, -1);
  assert.deepEqual(stored.filter((text) => !doubtful.has(text)), accepted);
  assert.deepEqual(stored, stored.toSorted((a, b) => a - b));
});
