// Many messages at once: none is lost, none overtakes another.

import assert from "node:assert/strict";
import { it } from "node:test";
import { arrive, assertAccepted, contents, enter, history, say } from "./lib.mjs";

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
