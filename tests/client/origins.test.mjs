// Which pages a browser lets call, where origins are listed.

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { TRANSPORTS, client, connect, eventually, get } from "./lib.mjs";

const CREDENTIALS = process.env.CREDENTIALS === "true" ? "true" : null;
/** As browsers write them. */
const LISTED = ["https://a.example", "https://b.example", "https://x.c.example", "https://xn--bcher-kva.example",
  "http://localhost:3000", "capacitor://localhost", "null"];
const OTHERS = ["https://evil.example", "http://a.example", "https://a.example:8443", "https://c.example",
  "https://x.y.c.example", "https://a.example.evil.example", "http://localhost", "capacitor://other", "file://"];
const PATHS = ["/health", "/nowhere", "/api/chats/garbage", "/socket.io/?EIO=4&transport=polling"];

describe("a page", { concurrency: true }, () => {
  for (const origin of LISTED) {
    it(`of ${origin} may read answers and ask for more`, async (t) => {
      for (const path of PATHS) {
        const response = await get(path, { headers: { origin } });
        assert.equal(response.headers.get("access-control-allow-origin"), origin, path);
        assert.equal(response.headers.get("access-control-allow-credentials"), CREDENTIALS, path);
        assert.match(response.headers.get("vary"), /origin/i);
        await response.text();
        const asked = await get(path, {
          method: "OPTIONS",
          headers: { origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization" },
        });
        assert.equal(asked.headers.get("access-control-allow-origin"), origin, path);
        assert.equal(asked.headers.get("access-control-allow-credentials"), CREDENTIALS, path);
        assert.equal(asked.headers.get("access-control-allow-headers"), "authorization", path);
      }
      for (const transports of Object.values(TRANSPORTS)) {
        await connect(t, { transports, withCredentials: true, extraHeaders: { origin } });
      }
    });
  }

  for (const origin of OTHERS) {
    it(`of ${origin} may not`, async (t) => {
      for (const path of PATHS) {
        const response = await get(path, { headers: { origin } });
        assert.equal(response.headers.get("access-control-allow-origin"), null, path);
        assert.equal(response.status, path.startsWith("/socket.io") ? 403 : response.status);
      }
      for (const transports of [["polling"], ["websocket"]]) {
        const socket = client(t, { transports, reconnection: false, extraHeaders: { origin } });
        let refused = false;
        socket.on("connect_error", () => { refused = true; });
        await eventually("a refusal", () => refused);
      }
    });
  }
});
