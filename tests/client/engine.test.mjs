// What a request for Socket.IO is refused with: the codes and words of Socket.IO's own server, seen in a run of
// version 4.8.1.

import assert from "node:assert/strict";
import { once } from "node:events";
import { request } from "node:http";
import { describe, it } from "node:test";
import { GATEWAY_URL, get } from "./lib.mjs";
import { rawPolling, rawWebSocket } from "./raw.mjs";

const UNKNOWN_TRANSPORT = { code: 0, message: "Transport unknown" };
const UNKNOWN_SESSION = { code: 1, message: "Session ID unknown" };
const BAD_METHOD = { code: 2, message: "Bad handshake method" };
const BAD_REQUEST = { code: 3, message: "Bad request" };
const UNSUPPORTED = { code: 5, message: "Unsupported protocol version" };

async function assertRefused(query, expected, options) {
  const response = await get(`/socket.io/${query}`, options);
  assert.equal(response.status, 400, query);
  assert.equal(response.headers.get("content-type"), "application/json", query);
  assert.equal(response.headers.get("access-control-allow-origin"), "*", query);
  assert.equal(await response.text(), JSON.stringify(expected), query);
}

/** The name of a polling socket. */
async function polling() {
  const open = await (await get("/socket.io/?EIO=4&transport=polling")).text();
  return JSON.parse(open.slice(1)).sid;
}

/** The answer to a request that asks for a websocket. */
async function upgrade(query, headers = {}) {
  const asked = request(`${GATEWAY_URL}/socket.io/?${query}`, {
    headers: {
      Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13",
      "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", ...headers,
    },
  });
  asked.end();
  const [response] = await Promise.race([once(asked, "response"), once(asked, "upgrade")]);
  if (response.statusCode === 101) return { response, body: "" };
  const parts = await response.toArray();
  return { response, body: Buffer.concat(parts).toString() };
}

describe("a request for Socket.IO", { concurrency: true }, () => {
  it("without a transport that there is", async () => {
    const queries = ["", "?EIO=4", "?EIO=4&transport=", "?EIO=4&transport=carrier-pigeon", "?EIO=4&transport=webtransport",
      "?transport=POLLING", "?EIO=%00&transport=%ff", "?EIO=4&transport=polling&transport=none", "?sid=unknown"];
    for (const query of queries) await assertRefused(query, UNKNOWN_TRANSPORT);
    await assertRefused("unknown.js", UNKNOWN_TRANSPORT);
  });

  it("of a socket that is unknown", async () => {
    for (const sid of ["unknown", "AAAAAAAAAAAAAAAA", "%00", "../..", "x".repeat(1_000)]) {
      await assertRefused(`?EIO=4&transport=polling&sid=${sid}`, UNKNOWN_SESSION);
      await assertRefused(`?EIO=3&transport=polling&sid=${sid}`, UNKNOWN_SESSION);
      await assertRefused(`?EIO=4&transport=websocket&sid=${sid}`, UNKNOWN_SESSION);
      await assertRefused(`?EIO=4&transport=polling&sid=${sid}`, UNKNOWN_SESSION, { method: "POST", body: "40" });
    }
  });

  it("of a socket that has ended", async () => {
    const { post, url } = await rawPolling();
    assert.equal(await (await post("1")).text(), "ok");
    await assertRefused(url.split("/socket.io/")[1], UNKNOWN_SESSION);
  });

  it("that opens none by its method", async () => {
    for (const method of ["POST", "PUT", "PATCH", "DELETE"]) {
      await assertRefused("?EIO=4&transport=polling", BAD_METHOD, { method });
      await assertRefused("?EIO=3&transport=polling", BAD_METHOD, { method });
    }
  });

  it("that contradicts itself, or what its socket is", async (t) => {
    await assertRefused("?EIO=4&transport=websocket", BAD_REQUEST);
    const sid = await polling();
    await assertRefused(`?EIO=4&transport=websocket&sid=${sid}`, BAD_REQUEST);
    await assertRefused(`?EIO=3&transport=polling&sid=${sid}`, BAD_REQUEST);
    const raw = await rawWebSocket(t);
    const open = raw.frames.find((frame) => frame.startsWith("0{"));
    const { sid: other } = JSON.parse(open.slice(1));
    await assertRefused(`?EIO=4&transport=polling&sid=${other}`, BAD_REQUEST);
  });

  it("of clients before 3.0", async () => {
    for (const protocol of ["", "EIO=&", "EIO=2&", "EIO=3&", "EIO=5&", "EIO=44&"]) {
      await assertRefused(`?${protocol}transport=polling`, UNSUPPORTED);
    }
  });

  it("that asks for a websocket is told in plain text, and its connection ends", async () => {
    const refused = [
      ["EIO=4&transport=none", {}, "Transport unknown"],
      ["EIO=4&transport=websocket&sid=unknown", {}, "Session ID unknown"],
      ["EIO=3&transport=websocket", {}, "Unsupported protocol version"],
      ["EIO=4&transport=websocket", { "Sec-WebSocket-Key": "short" }, "Missing or invalid Sec-WebSocket-Key header"],
      ["EIO=4&transport=websocket", { "Sec-WebSocket-Version": "12" }, "Missing or invalid Sec-WebSocket-Version header"],
    ];
    for (const [query, headers, text] of refused) {
      const { response, body } = await upgrade(query, headers);
      assert.equal(response.statusCode, 400, query);
      assert.equal(response.headers["content-type"], "text/html");
      assert.equal(response.headers.connection, "close");
      assert.equal(body, text);
    }
    const { response } = await upgrade("EIO=4&transport=websocket");
    assert.equal(response.statusCode, 101);
    response.socket.destroy();
  });

  it("counts the last of several values, decodes them, and takes an empty name for none", async () => {
    for (const query of ["EIO=3&EIO=4&transport=polling", "EIO=%34&transport=poll%69ng", "EIO=4&transport=polling&sid="]) {
      const open = await get(`/socket.io/?${query}`);
      assert.equal(open.status, 200, query);
      assert.equal(open.headers.get("cache-control"), "no-store");
      assert.match(await open.text(), /^0\{"sid":"/);
    }
  });

  it("that says something is answered as HTML, which browsers do not save", async () => {
    const { post } = await rawPolling();
    const said = await post('42["nonsense"]');
    assert.equal(said.headers.get("content-type"), "text/html");
    assert.equal(said.headers.get("cache-control"), "no-store");
    assert.equal(await said.text(), "ok");
  });
});
