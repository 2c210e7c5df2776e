// What the HTTP routes promise.

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { answer, arrive, enter, get, say, unknownId } from "./lib.mjs";

const JSON_TYPE = "application/json; charset=utf-8";

async function assertProblem(response, status, detail = /./) {
  assert.equal(response.status, status);
  assert.equal(response.headers.get("content-type"), "application/problem+json");
  const problem = await response.json();
  assert.equal(problem.status, status);
  assert.ok(problem.title.length > 0);
  assert.match(problem.detail, detail);
}

/** A session with one message of each side. */
async function conversation(t) {
  const { socket, sessionId, messages } = await enter(t);
  await say(socket, sessionId, "Hello!");
  await answer(socket, sessionId, "Hi! How can I help you?");
  await arrive(messages, 2);
  return { sessionId, messages };
}

describe("the routes", { concurrency: true }, () => {
  it("/health answers exactly as the seed's", async () => {
    const response = await get("/health");
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("content-type"), JSON_TYPE);
    assert.equal(await response.text(), '{"status":"ok"}');
  });

  it("/ready has a line per dependency", async () => {
    const response = await get("/ready");
    assert.equal(response.status, 200);
    assert.equal(await response.text(), "service: serving\npostgres: ok\nnats: ok\n");
  });

  it("/api/chats/:sessionId answers the messages, oldest first", async (t) => {
    const { sessionId, messages } = await conversation(t);
    const response = await get(`/api/chats/${sessionId}`);
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("content-type"), JSON_TYPE);
    assert.equal(await response.text(), JSON.stringify(messages));
  });

  it("/api/chats answers every session with its messages, newest first", async (t) => {
    const sessions = [await conversation(t), await conversation(t), await conversation(t)];
    const response = await get("/api/chats");
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("content-type"), JSON_TYPE);
    const text = await response.text();
    for (const { messages } of sessions) {
      assert.ok(text.includes(`"messages":${JSON.stringify(messages)}`));
    }
    const listed = JSON.parse(text).map(({ sessionId }) => sessionId);
    const ours = sessions.map(({ sessionId }) => sessionId);
    assert.deepEqual(listed.filter((id) => ours.includes(id)), ours.reverse());
    const times = JSON.parse(text).map(({ createdAt }) => createdAt);
    assert.deepEqual(times, times.toSorted().reverse());
  });

  it("/api/chats/:sessionId answers [] for whatever is unknown", async () => {
    const unknown = [unknownId(), "garbage", "%F0%9F%99%82", "a%2Fb", "*", "a%20b", "%00", "%27%3B--"];
    for (const path of [...unknown, "x".repeat(5_000)]) {
      const response = await get(`/api/chats/${path}`);
      assert.equal(response.status, 200, path);
      assert.equal(response.headers.get("content-type"), JSON_TYPE);
      assert.equal(await response.text(), "[]");
    }
  });

  it("a trailing slash makes no difference", async (t) => {
    const { sessionId } = await conversation(t);
    for (const path of ["/health", `/api/chats/${sessionId}`, "/api/chats/garbage"]) {
      const [plain, slash] = await Promise.all([get(path), get(`${path}/`)]);
      assert.equal(slash.status, 200);
      assert.equal(await slash.text(), await plain.text());
    }
    assert.equal((await get("/api/chats/")).status, 200);
  });

  it("a query that they do not know makes no difference", async (t) => {
    const { sessionId, messages } = await conversation(t);
    const response = await get(`/api/chats/${sessionId}?_=1700000000000&a[]=%00&b=%zz`);
    assert.equal(await response.text(), JSON.stringify(messages));
  });

  it("HEAD answers as GET without a body", async (t) => {
    const { sessionId } = await conversation(t);
    for (const path of ["/health", "/api/chats", `/api/chats/${sessionId}`]) {
      const response = await get(path, { method: "HEAD" });
      assert.equal(response.status, 200);
      assert.equal(response.headers.get("content-type"), JSON_TYPE);
      assert.equal(await response.text(), "");
    }
  });
});

describe("a wrong request", { concurrency: true }, () => {
  it("to a path that is not served is 404", async () => {
    for (const path of ["/", "/api", "/api/chat", "/api/chats/a/b", "/health/live", "/favicon.ico"]) {
      await assertProblem(await get(path), 404);
    }
  });

  it("by another method is 405 and names the methods", async () => {
    const requests = [["POST", "/health"], ["DELETE", "/api/chats"], ["PUT", "/api/chats"]];
    for (const [method, path] of requests) {
      const response = await get(path, { method });
      assert.deepEqual(response.headers.get("allow")?.split(/,\s*/).sort(), ["GET", "HEAD"], path);
      await assertProblem(response, 405);
    }
  });

  it("with an escape that cannot be decoded is 400 and names the parameter, as Express does", async () => {
    for (const escape of ["%FF", "%C0%80", "%ED%A0%80", "%zz", "%", "%4"]) {
      await assertProblem(await get(`/api/chats/${escape}`), 400, /sessionId/);
    }
  });

  it("to Socket.IO's path is an error and nothing more", async () => {
    const query = ["", "?EIO=4", "?EIO=3&transport=polling", "?EIO=4&transport=carrier-pigeon",
      "?EIO=4&transport=polling&sid=unknown", "?EIO=4&transport=websocket", "?EIO=%00&transport=%ff"];
    for (const text of query) {
      const { status } = await get(`/socket.io/${text}`);
      assert.ok(status >= 400 && status < 500, `${text}: ${status}`);
    }
  });
});

describe("a browser of any origin", { concurrency: true }, () => {
  const origin = "https://shop.example";

  it("may read every answer, errors too", async () => {
    const paths = ["/health", "/api/chats/garbage", "/nowhere", "/api/chats/%FF",
      "/socket.io/?EIO=4&transport=polling", "/socket.io/?EIO=4&transport=polling&sid=unknown"];
    for (const path of paths) {
      const response = await get(path, { headers: { origin } });
      assert.equal(response.headers.get("access-control-allow-origin"), "*", path);
      await response.text();
    }
  });

  for (const path of ["/api/chats", "/api/chats/garbage", "/socket.io/?EIO=4&transport=polling"]) {
    it(`may ask ${path} for what an authorized request needs`, async () => {
      const asked = "authorization,content-type";
      const response = await get(path, {
        method: "OPTIONS",
        headers: {
          origin,
          "access-control-request-method": "DELETE",
          "access-control-request-headers": asked,
        },
      });
      assert.ok(response.ok, `${response.status}`);
      const allowed = (name) => response.headers.get(`access-control-allow-${name}`);
      assert.equal(allowed("origin"), "*");
      assert.equal(allowed("headers"), asked);
      const methods = allowed("methods").split(/,\s*/).sort();
      assert.deepEqual(methods, ["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"]);
    });
  }
});
