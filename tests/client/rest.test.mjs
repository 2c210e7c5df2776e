// What the HTTP routes promise.

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { gzipSync } from "node:zlib";
import {
  answer, arrive, assertAccepted, contents, enter, eventually, get, history, say, unknownId,
} from "./lib.mjs";

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

/** A session with so many messages, and its history. */
async function sessionOf(t, count) {
  const { socket, sessionId, messages } = await enter(t);
  for (let n = 1; n <= count; n += 1) await say(socket, sessionId, `${n}`);
  await arrive(messages, count);
  return { sessionId, messages };
}

/** The path that the answer names as the next page. */
function nextOf(response) {
  const link = response.headers.get("link");
  if (link === null) return undefined;
  const [, path] = link.match(/^<(\/api\/chats[^<>\s]*)>; rel="next"$/) ?? assert.fail(link);
  return path;
}

/** Every page from a path on. */
async function pages(path) {
  const all = [];
  for (let next = path; next !== undefined;) {
    const response = await get(next);
    assert.equal(response.status, 200, next);
    assert.equal(response.headers.get("content-type"), JSON_TYPE);
    all.push(await response.json());
    next = nextOf(response);
  }
  return all;
}

describe("a page", { concurrency: true }, () => {
  it("of messages follows the other until all were seen", async (t) => {
    const { sessionId, messages } = await sessionOf(t, 5);
    const [a, b, c, d, e] = messages;
    const path = `/api/chats/${sessionId}`;
    assert.deepEqual(await pages(`${path}?limit=2`), [[a, b], [c, d], [e]]);
    assert.deepEqual(await pages(`${path}?limit=5`), [messages]);
    assert.deepEqual(await pages(`${path}/?limit=2&after=${b.id}`), [[c, d], [e]]);
    assert.deepEqual(await pages(`${path}?limit=2&after=${e.id}`), [[]]);
    assert.deepEqual(await pages(`${path}?limit=2&before=${e.id}`), [[c, d], [a, b]]);
    assert.deepEqual(await pages(`${path}?limit=2&after=${a.id}&before=${e.id}`), [[b, c], [d]]);
    assert.deepEqual(await pages(`${path}?limit=2&after=${e.id}&before=${a.id}`), [[]]);
    assert.deepEqual(await pages(`${path}?after=${b.id}`), [[c, d, e]]);
    assert.deepEqual(await pages(`${path}?before=${c.id}`), [[a, b]]);
    assert.deepEqual(await pages(`/api/chats/${unknownId()}?limit=2`), [[]]);
  });

  it("of sessions stays where it was while others arrive", async (t) => {
    const ours = [];
    for (let n = 0; n < 3; n += 1) ours.unshift(await sessionOf(t, n));
    const seen = [];
    for (let next = "/api/chats?limit=1"; next !== undefined && seen.length < 500;) {
      const response = await get(next);
      const page = await response.json();
      assert.equal(page.length, 1);
      seen.push(...page);
      if (seen.length < 10) await sessionOf(t, 0);
      next = nextOf(response);
    }
    const ids = seen.map(({ sessionId }) => sessionId);
    assert.equal(new Set(ids).size, ids.length);
    const found = seen.filter(({ sessionId }) => ours.some((one) => one.sessionId === sessionId));
    assert.deepEqual(found.map(({ messages }) => messages), ours.map(({ messages }) => messages));
    const times = seen.map(({ createdAt }) => createdAt);
    assert.deepEqual(times, times.toSorted().reverse());
  });

  it("by HEAD has the same link and no body", async (t) => {
    const { sessionId } = await sessionOf(t, 2);
    const path = `/api/chats/${sessionId}?limit=1`;
    const [head, whole] = [await get(path, { method: "HEAD" }), await get(path)];
    assert.ok(nextOf(head));
    assert.equal(nextOf(head), nextOf(whole));
    assert.equal(await head.text(), "");
  });

  it("can be turned by a browser of another origin", async () => {
    const response = await get("/health", { headers: { origin: "https://shop.example" } });
    assert.match(response.headers.get("access-control-expose-headers"), /\blink\b/i);
  });

  it("that is asked for by a parameter that cannot be used is 400 and names it", async (t) => {
    const [one, other] = [await sessionOf(t, 1), await sessionOf(t, 1)];
    const path = `/api/chats/${one.sessionId}`;
    const stranger = other.messages[0].id;
    const wrong = ["limit=", "limit=0", "limit=-1", "limit=1.5", "limit=x", "limit=1e3", "limit=%00",
      "limit=%ff", "limit=99999999999999999999", "limit=1&limit=1", "after=", "after=nobody", "after=%00",
      `after=${stranger}`, `before=${stranger}`, "before=", "before=%ff", "after=1&after=1"];
    for (const query of wrong) {
      await assertProblem(await get(`${path}?${query}`), 400, new RegExp(`^${query.split("=")[0]}: `));
    }
    await assertProblem(await get(`${path}?limit=1001`), 400, /^limit: .*1000/);
    await assertProblem(await get(`/api/chats/${unknownId()}?after=${stranger}`), 400, /^after: /);
    for (const query of ["limit=201", "limit=", "cursor=", "cursor=x", "cursor=%00", "cursor=1_%00", "cursor=a&cursor=a"]) {
      await assertProblem(await get(`/api/chats?${query}`), 400, new RegExp(`^${query.split("=")[0]}: `));
    }
  });
});

/** Says something over HTTP. */
const post = (sessionId, body, headers = {}) =>
  get(`/api/chats/${sessionId}/messages`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });

describe("an answer over HTTP", { concurrency: true }, () => {
  it("takes the way of an admin's message", async (t) => {
    const { sessionId, messages } = await enter(t);
    const response = await post(sessionId, { content: "Hi!", isAI: true });
    assert.equal(response.status, 201);
    assert.equal(response.headers.get("content-type"), JSON_TYPE);
    const id = assertAccepted(await response.json());
    await arrive(messages, 1);
    const [{ sender, content, isAI }] = messages;
    assert.deepEqual([messages[0].id, sender, content, isAI], [id, "admin", "Hi!", true]);
    assert.deepEqual(await history(sessionId), messages);
  });

  it("is by no machine unless it says so", async (t) => {
    const { sessionId, messages } = await enter(t);
    await post(sessionId, { content: "Hi!" });
    await arrive(messages, 1);
    assert.equal(messages[0].isAI, false);
  });

  it("that is repeated with its Idempotency-Key is stored once", async (t) => {
    const { socket, sessionId, messages } = await enter(t);
    const key = { "idempotency-key": "x".repeat(64) };
    const first = await (await post(sessionId, { content: "1" }, key)).json();
    const again = await (await post(sessionId, { content: "1" }, key)).json();
    assert.deepEqual(again, first);
    await assertProblem(await post(sessionId, { content: "2" }, key), 409);
    const other = await (await post(sessionId, { content: "3" }, { "idempotency-key": "other" })).json();
    assert.notEqual(other.id, first.id);
    const bySocket = await answer(socket, sessionId, "3", { clientOffset: "other" });
    assert.equal(bySocket.id, other.id);
    await say(socket, sessionId, "last");
    await eventually("the last message", () => messages.at(-1)?.content === "last");
    assert.deepEqual(contents(messages), ["1", "3", "last"]);
  });

  it("is taken in every form that JSON has, by a path with a trailing slash too", async (t) => {
    const { sessionId, messages } = await enter(t);
    const type = { "content-type": "Application/JSON; charset=utf-8" };
    assert.equal((await post(sessionId, ' {"more":[1],"content":"\\ud83d\\ude42"} ', type)).status, 201);
    const path = `/api/chats/${sessionId}/messages/`;
    const slash = await get(path, { method: "POST", headers: type, body: '{"content":"x"}' });
    assert.equal(slash.status, 201);
    await arrive(messages, 2);
    assert.equal(messages[0].content, "🙂");
  });

  const packed = { "content-encoding": "gzip" };
  const marked = (content) => `\ufeff${JSON.stringify({ content })}`;

  it("is taken packed, with a mark in front, and both", async (t) => {
    const { sessionId, messages } = await enter(t);
    const bodies = [
      [marked("1"), {}],
      [gzipSync(JSON.stringify({ content: "2" })), packed],
      [gzipSync(marked("3")), { "content-encoding": "GZIP" }],
      [JSON.stringify({ content: "4" }), { "content-encoding": "identity" }],
    ];
    for (const [body, headers] of bodies) {
      const response = await get(`/api/chats/${sessionId}/messages`, {
        method: "POST", body, headers: { "content-type": "application/json", ...headers },
      });
      assert.equal(response.status, 201, await response.text());
    }
    await arrive(messages, bodies.length);
    assert.deepEqual(contents(messages), ["1", "2", "3", "4"]);
  });

  it("that is packed in another way is 415, what is not packed 400, and a bomb too large", async (t) => {
    const { sessionId } = await enter(t);
    const refused = async (body, encoding, status) => {
      const response = await get(`/api/chats/${sessionId}/messages`, {
        method: "POST", body, headers: { "content-type": "application/json", "content-encoding": encoding },
      });
      await assertProblem(response, status, status === 415 ? /^Content-Encoding: / : /^the body is /);
    };
    const body = JSON.stringify({ content: "Hi!" });
    for (const encoding of ["br", "deflate", "zstd", "gzip, gzip", "compress"]) await refused(body, encoding, 415);
    await refused(body, "gzip", 400);
    await refused(gzipSync(body).subarray(0, 20), "gzip", 400);
    await refused("", "gzip", 400);
    for (const megabytes of [2, 500]) {
      await refused(gzipSync(Buffer.alloc(megabytes * 1_000_000, 0x20)), "gzip", 413);
    }
    assert.deepEqual(await history(sessionId), []);
  });

  it("that cannot be taken is an error with a code, and nothing is stored", async (t) => {
    const { sessionId } = await enter(t);
    const refused = async (response, status, code) => {
      const text = await response.clone().json();
      await assertProblem(response, status);
      assert.equal(text.code, code, text.detail);
    };
    const bodies = ["", "{", "[]", '["Hi!",true]', "null", '"Hi!"', "{}", '{"content":1}', '{"content":""}',
      '{"content":"\\u0000"}', '{"content":"\\ud800"}', '{"content":"a","content":"b"}', '{"content":"a","isAI":"yes"}'];
    for (const body of bodies) await refused(await post(sessionId, body), 400, "invalid_payload");
    await refused(await post(sessionId, { content: "x".repeat(8_001) }), 413, "too_large");
    await refused(await post(sessionId, { content: "x".repeat(1_200_000) }), 413, "too_large");
    for (const id of [unknownId(), "garbage", "*", "%00"]) {
      await refused(await post(id, { content: "Hi!" }), 404, "session_not_found");
    }
    for (const type of ["text/plain", "application/x-www-form-urlencoded", "*/*"]) {
      await assertProblem(await post(sessionId, { content: "Hi!" }, { "content-type": type }), 415);
    }
    for (const key of ["", "x".repeat(65)]) {
      const response = await post(sessionId, { content: "Hi!" }, { "idempotency-key": key });
      await assertProblem(response, 400, /^Idempotency-Key: /);
    }
    await assertProblem(await post("%FF", { content: "Hi!" }), 400, /^sessionId: /);
    const response = await get(`/api/chats/${sessionId}/messages`);
    assert.equal(response.headers.get("allow"), "POST");
    await assertProblem(response, 405);
    assert.deepEqual(await history(sessionId), []);
  });
});

describe("the documentation", { concurrency: true }, () => {
  it("is a page that loads nothing and may load nothing", async () => {
    const response = await get("/docs");
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("content-type"), "text/html; charset=utf-8");
    assert.match(response.headers.get("content-security-policy"), /^default-src 'none'; style-src/);
    const page = await response.text();
    assert.doesNotMatch(page, /<(script|link|img|iframe|object|embed)\b|\bsrc=|@import|url\(|\son\w+=/i);
    const { paths } = await (await get("/openapi.json")).json();
    // A path may be broken behind its slashes, for narrow windows.
    const unbroken = page.replaceAll("<wbr>", "");
    for (const path of Object.keys(paths)) assert.ok(unbroken.includes(`<code>${path}</code>`), path);
    const anchors = [...page.matchAll(/href="?#([^">\s]+)/g)].map(([, name]) => name);
    assert.ok(anchors.length > 10);
    for (const name of anchors) assert.match(page, new RegExp(`id="?${name}[">]`), name);
  });
});

describe("a wrong request", { concurrency: true }, () => {
  it("to a path that is not served is 404", async () => {
    for (const path of ["/api", "/api/chat", "/api/chats/a/b", "/health/live", "/favicon.ico"]) {
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
