// A client that says it came from elsewhere, to a gateway that trusts nobody.

import assert from "node:assert/strict";
import { it } from "node:test";
import { all, client, connect, enter, eventually, findChat, init } from "./lib.mjs";

const SOCKETS = Number(process.env.SOCKETS_PER_ADDRESS);
const SESSIONS = Number(process.env.NEW_SESSIONS_PER_MINUTE);

const spoofed = (n) => ({
  extraHeaders: { "X-Forwarded-For": `192.0.2.${n}`, Forwarded: `for=192.0.2.${n}`, "X-Real-IP": `192.0.2.${n}` },
});

it("spoofed headers change neither what is stored nor what is limited", async (t) => {
  const first = await enter(t, spoofed(1));
  let chat;
  await eventually("it is stored", async () => (chat = await findChat(({ sessionId }) => sessionId === first.sessionId)));
  assert.equal(chat.ip, "127.0.0.1");
  for (let n = 2; n <= SESSIONS; n++) await enter(t, spoofed(n));
  const more = await connect(t, spoofed(100));
  assert.equal((await init(more)).error.code, "rate_limited");
  for (let n = SESSIONS + 2; n <= SOCKETS; n++) await connect(t, spoofed(n));
  const late = client(t, { ...spoofed(200), reconnection: false });
  const errors = all(late, "connect_error");
  await eventually("a refusal", () => errors.length > 0);
  assert.match(errors[0].description.message, /429/);
});
