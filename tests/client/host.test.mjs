// `Host`, byte by byte: a load balancer has its own mind about it.

import assert from "node:assert/strict";
import { connect as connectTcp } from "node:net";
import { it } from "node:test";
import { GATEWAY_URL, eventually } from "./lib.mjs";

/** The status of the answer to these bytes. */
async function statusOf(t, bytes) {
  const { hostname, port } = new URL(GATEWAY_URL);
  const socket = connectTcp({ host: hostname, port });
  t.after(() => socket.destroy());
  let text = "";
  socket.on("data", (data) => { text += data; });
  socket.write(bytes);
  await eventually("an answer", () => text.includes("\r\n\r\n"));
  return Number(text.split(" ")[1]);
}

it("a request that names no host, or two, is 400", async (t) => {
  const wrong = ["", "Host: a\r\nHost: a\r\n", "Host: a\r\nhost: b\r\n", "Host: a, b\r\n", "Host: a b\r\n",
    "Host: user@a\r\n", "Host: a/b\r\n", "Host: a:99999\r\n"];
  for (const path of ["/health", "/api/chats", "/socket.io/?EIO=4&transport=polling"]) {
    for (const host of wrong) assert.equal(await statusOf(t, `GET ${path} HTTP/1.1\r\n${host}\r\n`), 400, host);
    for (const host of ["Host: a\r\n", "Host: a:80\r\n", "HOST: [::1]:4000\r\n", "Host:\r\n"]) {
      assert.equal(await statusOf(t, `GET ${path} HTTP/1.1\r\n${host}\r\n`), 200, host);
    }
    assert.equal(await statusOf(t, `GET ${path} HTTP/1.0\r\n\r\n`), 200);
  }
});
