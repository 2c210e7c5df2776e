// Who may do what in keyed mode: each cell of the table.

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  GATEWAY_URL, TRANSPORTS, all, arrive, ask, assertAccepted, client, connect, contents, enter, eventually, history, init, say,
} from "./lib.mjs";
import { hmacWith, inSeconds, pem, token } from "./tokens.mjs";

/** Why a socket is not let in. */
async function refusal(t, auth, options = {}) {
  const socket = client(t, { auth, reconnection: false, ...options });
  let reason;
  socket.on("connect_error", (error) => { reason = error.message; });
  await eventually("a connect_error", () => reason);
  assert.equal(socket.connected, false);
  return reason;
}

const get = (path, bearer, options) => {
  const headers = bearer === undefined ? {} : { Authorization: `Bearer ${bearer}` };
  return fetch(`${GATEWAY_URL}${path}`, { ...options, headers: { ...headers, ...options?.headers } });
};

const post = (sessionId, bearer) => get(`/api/chats/${sessionId}/messages`, bearer, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ content: "posted" }),
});

/** What each event answers to somebody who may emit it, as far as the others never get it. */
const EVENTS = {
  init_session: (sessionId) => ({ sessionId }),
  user_message: (sessionId) => ({ sessionId, content: "from the visitor" }),
  admin_message: (sessionId) => ({ sessionId, content: "from the agent" }),
  "admin-connect": () => undefined,
  "get-sessions": () => undefined,
  "get-all-sessions": () => undefined,
  "get-messages": (sessionId) => ({ sessionId }),
  "toggle-ai-mode": (sessionId) => ({ sessionId, enabled: true }),
  "admin-join-session": (sessionId) => ({ sessionId }),
  "admin-leave-session": (sessionId) => ({ sessionId }),
};

const ROUTES = {
  "GET /api/chats": (sessionId, bearer) => get("/api/chats", bearer),
  "GET /api/messages": (sessionId, bearer) => get("/api/messages?q=visitor", bearer),
  "GET /api/chats/:sessionId": (sessionId, bearer) => get(`/api/chats/${sessionId}`, bearer),
  "POST /api/chats/:sessionId/messages": post,
  "GET /api/chats/:sessionId/export": (sessionId, bearer) => get(`/api/chats/${sessionId}/export`, bearer),
  "DELETE /api/chats/:sessionId": (sessionId, bearer) => get(`/api/chats/${sessionId}`, bearer, { method: "DELETE" }),
};

const OPEN_TO_ALL = ["init_session", "user_message", "GET /api/chats/:sessionId"];

/** Who they are, and what may they do to session B beyond what is open to whoever knows its id? */
const WHO = {
  "an anonymous stranger": { also: [], code: "unauthorized", status: 401 },
  "a visitor of session A": { own: true, also: [], code: "unauthorized", status: 401 },
  "an integrator": {
    bearer: () => token({ sub: "bot", role: "integrator" }),
    also: ["POST /api/chats/:sessionId/messages"],
    code: "forbidden",
    status: 403,
  },
  "an admin": { bearer: () => token(), also: [...Object.keys(EVENTS), ...Object.keys(ROUTES)] },
};

/** Tokens that are refused, whatever they ask for. */
const REFUSED = {
  expired: () => token({ exp: inSeconds(-60) }),
  "not valid yet": () => token({ nbf: inSeconds(60) }),
  "without an end": () => token({ exp: undefined }),
  "without a subject": () => token({ sub: undefined }),
  "of an unknown role": () => token({ role: "root" }),
  "signed by nobody": () => token({ alg: "none" }),
  "signed with another secret": () => token({ signer: hmacWith("somebody else's secret of thirty-two bytes") }),
  "signed with the public key as a secret": () => token({ signer: hmacWith(pem("public")) }),
  "of another algorithm of the same secret": () => token({ alg: "HS512" }),
  "of another algorithm of the same key": () => token({ alg: "RS512" }),
  "with another padding of the same key": () => token({ alg: "PS256" }),
  "with another algorithm's name": () => token({ alg: "EdDSA", signer: hmacWith("x".repeat(32)) }),
  "that is no token": () => "nonsense",
  "that is empty": () => "",
};

describe("rights", { concurrency: true }, () => {
  for (const [name, { bearer, own, also, code, status }] of Object.entries(WHO)) {
    for (const [event, payload] of Object.entries(EVENTS)) {
      it(`${name}: ${event}`, async (t) => {
        const b = await enter(t);
        const auth = bearer && { token: bearer() };
        const socket = await connect(t, { auth });
        if (own) await init(socket);
        const args = [payload(b.sessionId)].filter((value) => value !== undefined);
        const ack = await ask(socket, event, ...args);
        if ([...OPEN_TO_ALL, ...also].includes(event)) assert.equal(ack.error, undefined, JSON.stringify(ack));
        else assert.equal(ack.error?.code, code, JSON.stringify(ack));
      });
    }
    for (const [route, call] of Object.entries(ROUTES)) {
      it(`${name}: ${route}`, async (t) => {
        const b = await enter(t);
        const answer = await call(b.sessionId, bearer?.());
        if ([...OPEN_TO_ALL, ...also].includes(route)) return assert.ok(answer.ok, `${answer.status}`);
        assert.equal(answer.status, status);
        assert.equal(answer.headers.get("content-type"), "application/problem+json");
        if (status === 401) assert.equal(answer.headers.get("www-authenticate"), "Bearer");
        assert.equal((await answer.json()).code, code);
      });
    }
  }

  for (const [name, make] of Object.entries(REFUSED)) {
    it(`a token ${name}: no connection, no route`, async (t) => {
      const b = await enter(t);
      const bearer = make();
      assert.match(await refusal(t, { token: bearer }), /token/);
      for (const call of Object.values(ROUTES)) {
        const answer = await call(b.sessionId, bearer);
        assert.equal(answer.status, 401);
        assert.equal((await answer.json()).code, "unauthorized");
      }
    });
  }

  for (const alg of ["HS256", "RS256", "ES256", "EdDSA"]) {
    it(`a token of ${alg} is an admin's`, async (t) => {
      const { sessionId } = await enter(t);
      const socket = await connect(t, { auth: { token: token({ alg }) } });
      assertAccepted(await ask(socket, "admin_message", { sessionId, content: alg }));
      assert.equal((await get("/api/chats?limit=1", token({ alg }))).status, 200);
    });
  }

  it("a token that is no text is no visitor either", async (t) => {
    for (const bad of [1, true, {}, ["x"]]) await refusal(t, { token: bad });
    assert.ok(await connect(t, { auth: { token: null } }));
  });

  for (const [way, transports] of Object.entries(TRANSPORTS)) {
    it(`a token in a header of the handshake counts as one in auth does: ${way}`, async (t) => {
      const { sessionId } = await enter(t);
      const shown = (...tokens) => ({
        transports,
        extraHeaders: { Authorization: tokens.map((one) => `Bearer ${one}`) },
      });
      const agent = await connect(t, shown(token()));
      assertAccepted(await ask(agent, "admin_message", { sessionId, content: way }));
      const both = await connect(t, { ...shown(token()), auth: { token: token() } });
      assertAccepted(await ask(both, "admin_message", { sessionId, content: "both" }));
      for (const make of Object.values(REFUSED)) {
        assert.match(await refusal(t, undefined, shown(make())), /token/);
        assert.match(await refusal(t, { token: token() }, shown(make())), /token/);
      }
      assert.match(await refusal(t, { token: "nonsense" }, shown(token())), /token/);
      assert.match(await refusal(t, { token: token({ sub: "bob" }) }, shown(token())), /different owners/);
      assert.match(await refusal(t, { token: token({ role: "integrator" }) }, shown(token())), /different owners/);
      assert.ok(await connect(t, { transports, extraHeaders: { Authorization: "Basic YTpi" } }));
    });
  }

  it("a token that stands where it does not count makes nobody a visitor", async (t) => {
    const elsewhere = /counts as auth.token and as Authorization: Bearer/;
    for (const query of [{ token: token() }, { access_token: "x" }, { jwt: token() }, { a: `Bearer ${token()}` }]) {
      assert.match(await refusal(t, undefined, { query }), elsewhere);
    }
    for (const auth of [{ jwt: token() }, { authorization: `Bearer ${token()}` }, { accessToken: token() }]) {
      assert.match(await refusal(t, auth), elsewhere);
    }
    assert.ok(await connect(t, { auth: { name: "alice", page: "1.2.3" }, query: { page: "a.b.c", token: "" } }));
    const { sessionId } = await enter(t);
    for (const query of [`token=${token()}`, `a=${token()}`]) {
      assert.equal((await get(`/api/chats/${sessionId}?${query}`)).status, 401);
    }
    const two = { Authorization: `Bearer ${token()}` };
    assert.equal((await get(`/api/chats/${sessionId}`, undefined, { headers: two })).status, 200);
  });

  it("an inbox without a token is told so, with an ack or without", async (t) => {
    const socket = await connect(t);
    const errors = all(socket, "message_error");
    const silent = Object.keys(EVENTS).filter((event) => !OPEN_TO_ALL.includes(event) && event !== "admin_message");
    const sessionId = crypto.randomUUID();
    for (const event of silent) socket.emit(event, EVENTS[event](sessionId));
    await arrive(errors, silent.length);
    assert.deepEqual(errors.map(({ event }) => event).sort(), silent.sort());
    for (const told of errors) {
      assert.equal(told.error.code, "unauthorized");
      assert.equal(told.sessionId, EVENTS[told.event](sessionId) ? sessionId : null);
    }
  });

  it("a stranger hears nothing of a session whose id it does not know", async (t) => {
    const stranger = await connect(t);
    const heard = [];
    stranger.onAny((event) => heard.push(event));
    const b = await enter(t);
    await say(b.socket, b.sessionId, "between us");
    await arrive(b.messages, 1);
    // Its own session comes after whatever it could have heard.
    const own = await init(stranger);
    await say(stranger, own.sessionId, "mine");
    await eventually("its own message", () => heard.includes("message"));
    assert.deepEqual(heard, ["message"]);
  });

  it("a refused send without an ack is told as message_error", async (t) => {
    const { socket, sessionId } = await enter(t);
    const errors = all(socket, "message_error");
    socket.emit("admin_message", { sessionId, content: "I am the agent" });
    await arrive(errors, 1);
    const [{ event, sessionId: told, error }] = errors;
    assert.deepEqual([event, told, error.code], ["admin_message", sessionId, "unauthorized"]);
    assert.deepEqual(await history(sessionId), []);
  });

  it("the same clientOffset of two agents is two messages, and of one agent one", async (t) => {
    const { sessionId } = await enter(t);
    const send = async (sub) => {
      const socket = await connect(t, { auth: { token: token({ sub }) } });
      return (await ask(socket, "admin_message", { sessionId, content: sub, clientOffset: "1" })).id;
    };
    const ids = [await send("alice"), await send("bob"), await send("alice")];
    assert.equal(ids[0], ids[2]);
    assert.notEqual(ids[0], ids[1]);
    await eventually("both are stored", async () => (await history(sessionId)).length === 2);
    assert.deepEqual(contents(await history(sessionId)), ["alice", "bob"]);
  });

  it("an inbox hears nothing any more once its token ended", async (t) => {
    const visitor = await enter(t);
    const inbox = await connect(t, { auth: { token: token({ exp: inSeconds(10) }) } });
    const heard = all(inbox, "new-message");
    let ended;
    inbox.on("disconnect", (reason) => { ended = reason; });
    await ask(inbox, "admin-connect");
    await say(visitor.socket, visitor.sessionId, "before");
    await eventually("the news", () => heard.length > 0);
    await eventually("the end", () => ended, 40_000);
    const { length } = heard;
    await say(visitor.socket, visitor.sessionId, "after");
    await arrive(visitor.messages, 2);
    assert.equal(heard.length, length);
  });

  it("an agent in a session is not its visitor", async (t) => {
    const { socket, sessionId } = await enter(t);
    const admin = await connect(t, { auth: { token: token() } });
    await init(admin, sessionId);
    const isActive = async () => {
      const { sessions } = await ask(admin, "get-all-sessions");
      return sessions.find((one) => one.sessionId === sessionId).isActive;
    };
    await eventually("the visitor", isActive);
    socket.disconnect();
    await eventually("the visitor's leaving", async () => !(await isActive()));
  });

  it("rights end with the token, also while connected", async (t) => {
    const visitor = await enter(t);
    // Clocks may differ by 5 s: it ends that much after `exp`.
    const end = inSeconds(10);
    const socket = await connect(t, { auth: { token: token({ exp: end }) } });
    let [ended, endedAt] = [];
    socket.on("disconnect", (reason) => { [ended, endedAt] = [reason, Date.now()]; });
    const heard = all(socket, "message");
    await init(socket, visitor.sessionId);
    await say(visitor.socket, visitor.sessionId, "before");
    await arrive(heard, 1);
    await eventually("the end", () => ended, 40_000);
    assert.equal(ended, "io server disconnect");
    const late = endedAt / 1_000 - (end + 5);
    assert.ok(late < 2, `ended ${late} s late`);
    await say(visitor.socket, visitor.sessionId, "after");
    await arrive(visitor.messages, 2);
    assert.deepEqual(contents(heard), ["before"]);
    assert.match(await refusal(t, { token: token({ exp: end }) }), /expired/);
  });
});
