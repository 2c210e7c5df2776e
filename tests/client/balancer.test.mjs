// Where clients of the balancer come from. PROXY is the address of a proxy that it was told of.

import assert from "node:assert/strict";
import { Agent } from "node:http";
import { describe, it } from "node:test";
import { enter, findChat, TRANSPORTS } from "./lib.mjs";

const { PROXY } = process.env;
const SPOOFED = { Forwarded: "for=203.0.113.1", "X-Real-IP": "203.0.113.1" };

/** The address that is stored of a client that comes from here and says this of itself. */
async function stored(t, transports, localAddress, said) {
  const agent = new Agent({ localAddress, keepAlive: true });
  t.after(() => agent.destroy());
  const extraHeaders = { ...SPOOFED, ...(said && { "X-Forwarded-For": said }) };
  const { sessionId } = await enter(t, { transports, agent, extraHeaders });
  return (await findChat((chat) => chat.sessionId === sessionId)).ip;
}

for (const [name, transports] of Object.entries(TRANSPORTS)) {
  describe(name, () => {
    it("a client is where it connects from, whatever it says", async (t) => {
      assert.equal(await stored(t, transports, "127.0.0.21"), "127.0.0.21");
      assert.equal(await stored(t, transports, "127.0.0.22", "203.0.113.1"), "127.0.0.22");
      assert.equal(await stored(t, transports, "127.0.0.23", `203.0.113.1, ${PROXY}`), "127.0.0.23");
    });

    it("a proxy of ours is believed about its peer and about nobody before", async (t) => {
      assert.equal(await stored(t, transports, PROXY, "203.0.113.1, 198.51.100.7"), "198.51.100.7");
      assert.equal(await stored(t, transports, PROXY, "2001:db8::7"), "2001:db8::7");
      assert.equal(await stored(t, transports, PROXY, `203.0.113.1, 198.51.100.8, ${PROXY}`), "198.51.100.8");
      assert.equal(await stored(t, transports, PROXY), PROXY);
    });
  });
}
