// Somebody else's conversation, which must notice nothing of what a suite does.

import assert from "node:assert/strict";
import { answer, assertAccepted, contents, enter, eventually, history, say } from "./lib.mjs";

/** Noticed by a client whose gateway is well: never. */
const ALARMS = ["disconnect", "connect_error", "message_error"];

/** A visitor and an admin who talk all the while; `t` is the suite. */
export async function bystanders(t) {
  const visitor = await enter(t, { transports: ["websocket"] });
  const { sessionId } = visitor;
  const admin = await enter(t, { transports: ["polling"], sessionId });
  const said = [];
  const alarms = [];
  for (const { socket } of [visitor, admin]) {
    for (const event of ALARMS) socket.on(event, (what) => alarms.push([event, what]));
  }

  const speak = async (send, { socket }) => {
    const content = `honest ${said.length}`;
    said.push(content);
    assertAccepted(await send(socket, sessionId, content));
    const heard = () => [visitor, admin].every(({ messages }) => messages.length >= said.length);
    await eventually("the bystanders hear each other", heard);
  };
  let stopping = false;
  const talking = (async () => {
    while (!stopping) {
      await speak(say, visitor);
      await speak(answer, admin);
    }
  })();
  // Looked at by whoever waits next; a rejection must not end the process before.
  talking.catch((error) => alarms.push(["talking", error]));

  const unharmed = () => {
    assert.deepEqual(alarms, []);
    for (const { messages } of [visitor, admin]) {
      assert.deepEqual(contents(messages), said.slice(0, messages.length));
    }
  };
  return {
    /** They exchange something that was begun after this call. */
    async goOn() {
      const enough = said.length + 3;
      await eventually("the bystanders go on", () => alarms.length > 0 || said.length >= enough);
      unharmed();
    },
    /** They end, and have missed nothing. */
    async end() {
      stopping = true;
      await talking;
      unharmed();
      assert.deepEqual(contents(await history(sessionId)), said);
      assert.deepEqual(visitor.messages, admin.messages);
    },
  };
}
