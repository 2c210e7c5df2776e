// The real client, told by a Rust test what to do: JSON lines over TCP, each request
// `{n, do, client, …}` answered by `{n, ok}` or `{n, error}`. Ends with the connection.

import { connect as connectTcp } from "node:net";
import { createInterface } from "node:readline";
import { io } from "socket.io-client";
import { FakeStorage, newPage, stored } from "./pages.mjs";
import { isTaken } from "./taken.mjs";

/** Longer than any answer that is promised. */
const ANSWER_WITHIN = 8_000;
/** The last of thousands of answers, on a busy machine. */
const ANSWERS_WITHIN = 30_000;
/** Between two sends of a light load, in milliseconds. */
const BREATH = 5;
/** Between two things that a visitor says, in milliseconds. */
const SPEAKS_EVERY = 100;
/** Before a send that failed is tried again. */
const RETRY = 50;

/** Most messages of a visitor that are not stored. */
const WAITING = 100;
/** The states of a visitor's message, and those that it has passed by then. */
const STATES = ["waiting", "accepted", "stored"];

const clients = new Map();

const commands = {
  /** Makes a client; it connects by itself, and again whenever it is cut off. */
  make({ client, url, options }) {
    const socket = io(url, { forceNew: true, reconnectionDelayMax: 500, reconnectionDelay: 50, ...options });
    const seen = { message: [] };
    const me = { socket, seen, behind: false };
    for (const event of ["connect", "disconnect", "connect_error"]) {
      seen[event] = [];
      socket.on(event, (what) => seen[event].push(`${what ?? ""}`));
    }
    socket.onAny((event, data) => {
      // Comes again with the rest of what was missed.
      if (event === "message" && me.behind) return;
      (seen[event] ??= []).push(data);
    });
    const silence = { longest: 0, since: performance.now() };
    socket.on("message", () => endSilence(silence));
    clients.set(client, Object.assign(me, { silence }));
  },

  /** Whether it is connected now. */
  connected: ({ socket }) => socket.connected,

  /** What it has seen of an event. */
  seen: ({ seen, event }) => seen[event] ?? [],

  /** How often: who waits asks often, and the whole of it may be megabytes. */
  count: ({ seen, event }) => (seen[event] ?? []).length,

  /** The last of it. */
  last: ({ seen, event }) => seen[event]?.at(-1),

  /** The longest time in milliseconds without a message since it was asked last. */
  silence({ silence }) {
    endSilence(silence);
    const { longest } = silence;
    silence.longest = 0;
    return longest;
  },

  /** Emits and waits for the ack: `[milliseconds, ack]`. */
  async ask({ socket, event, args }) {
    const start = performance.now();
    const ack = await socket.timeout(ANSWER_WITHIN).emitWithAck(event, ...args);
    return [performance.now() - start, ack];
  },

  /** Emits and waits for nothing. */
  tell({ socket, event, args }) {
    socket.emit(event, ...args);
  },

  /** Emits all of these at once and waits for the acks. */
  burst: ({ socket, event, payloads }) =>
    Promise.all(payloads.map((payload) => socket.timeout(ANSWERS_WITHIN).emitWithAck(event, payload))),

  /** Is away until `connect`. */
  disconnect({ socket }) {
    socket.disconnect();
  },

  connect({ socket }) {
    socket.connect();
  },

  /** Takes nothing from the network any more; the connection stays. */
  deafen({ socket }) {
    socket.io.engine.transport.ws._socket.pause();
  },

  /** Takes what came meanwhile. */
  hear({ socket }) {
    socket.io.engine.transport.ws._socket.resume();
  },

  /** Joins a session, and comes back to it after its last message whenever it was cut off. */
  async stay({ client, sessionId }) {
    const me = clients.get(client);
    const ack = await me.socket.timeout(ANSWER_WITHIN).emitWithAck("init_session", { sessionId });
    me.socket.on("connect", () => comeBack(me, ack.sessionId, me.socket.id));
    return ack;
  },

  /**
   * Talks until `hush`, one thing after the other. With offsets each is said again until it is
   * accepted, and only the last one may stay in doubt; without, what was not accepted stays in doubt, and the
   * next thing is said.
   */
  talk({ client, event, sessionId, name, offsets }) {
    const me = clients.get(client);
    me.talk = { stopping: false, count: 0, accepted: [], doubtful: [], refused: [] };
    me.talk.done = talk(me, { event, sessionId, name, offsets });
    me.talk.done.catch((error) => { me.talk.failure = error; });
  },

  /** How far a talk got: `[accepted, refused]`. */
  talked({ talk: { failure, accepted, refused } }) {
    if (failure) throw failure;
    return [accepted.length, refused.length];
  },

  /** Ends a talk: `accepted` as `[content, id]`, contents in doubt, the codes of all errors. */
  async hush({ talk: { done, ...talk }, client }) {
    clients.get(client).talk.stopping = true;
    await done;
    return [talk.accepted, talk.doubtful, talk.refused];
  },

  /** Opens pages of one visitor, who says one thing after the other on them in turn until `leave`. */
  visit({ client, url, pages: count }) {
    const storage = new FakeStorage();
    const pages = Array.from({ length: count }, () => newPage(storage, { url }));
    const said = pages.map(() => []);
    const timer = setInterval(() => say(pages, said), SPEAKS_EVERY);
    clients.set(client, { pages, said, timer });
  },

  /** How many messages every page shows in this state or a later one. */
  visited: ({ pages, state }) => Math.min(...pages.map((page) => reached(page, state))),

  /** Ends it: what was said and is shown, once all of it is stored. */
  leave({ pages, said, timer }) {
    clearInterval(timer);
    const count = said.flat().length;
    if (!pages.every((page) => reached(page, "stored") >= count)) return null;
    const { sessionId } = pages[0].chat.state;
    pages.forEach((page) => page.close());
    return { sessionId, said, shown: pages.map(stored) };
  },
};

function say(pages, said) {
  const turn = said.flat().length;
  const page = pages[turn % pages.length];
  const { messages } = page.chat.state;
  if (messages.filter(({ state }) => state !== "stored").length >= WAITING) return;
  page.chat.send(`${turn}`);
  said[turn % pages.length].push(`${turn}`);
}

const reached = ({ chat }, state) =>
  chat.state.messages.filter((message) => STATES.indexOf(message.state) >= STATES.indexOf(state)).length;

function endSilence(silence) {
  const now = performance.now();
  silence.longest = Math.max(silence.longest, now - silence.since);
  silence.since = now;
}

function comeBack(me, sessionId, connection) {
  const { socket, seen } = me;
  if (socket.id !== connection) return;
  const after = seen.message.at(-1)?.id ?? "";
  const done = (error, ack) => {
    if (socket.id !== connection) return;
    if (error || ack.error) return setTimeout(comeBack, RETRY, me, sessionId, connection);
    // Not later: what follows the ack may be here already.
    seen.message.push(...ack.messages);
    me.behind = ack.more;
    if (ack.more) comeBack(me, sessionId, connection);
  };
  socket.timeout(ANSWER_WITHIN).emit("init_session", { sessionId, after }, done);
}

async function talk({ socket, talk: mine }, { event, sessionId, name, offsets }) {
  let left = null;
  while (!mine.stopping) {
    // The time for an answer would run already.
    if (!socket.connected) {
      await breath(BREATH);
      continue;
    }
    const content = `${name} ${mine.count}`;
    const payload = { sessionId, content, ...(offsets && { clientOffset: content }) };
    const ack = await answered(socket, event, payload);
    if (isTaken(ack)) mine.accepted.push([content, ack.id]);
    else mine.refused.push(ack.error.code);
    if (ack.error && !offsets) mine.doubtful.push(content);
    left = ack.error && offsets ? content : null;
    if (!ack.error || !offsets) mine.count += 1;
    await breath(ack.error ? RETRY : BREATH);
  }
  if (left) mine.doubtful.push(left);
}

/** A send whose connection is lost is an answer too. */
const answered = (socket, event, payload) =>
  socket.timeout(ANSWER_WITHIN).emitWithAck(event, payload)
    .catch((error) => ({ error: { code: error.message } }));

const breath = (duration) => new Promise((resolve) => { setTimeout(resolve, duration); });

const control = connectTcp({ host: "127.0.0.1", port: Number(process.env.CONTROL_PORT) });
control.on("close", () => process.exit());
createInterface({ input: control }).on("line", async (line) => {
  const { n, do: name, ...request } = JSON.parse(line);
  let answer;
  try {
    const ok = await commands[name]({ ...clients.get(request.client), ...request });
    answer = { n, ok: ok ?? null };
  } catch (error) {
    answer = { n, error: `${error.stack ?? error}` };
  }
  control.write(`${JSON.stringify(answer)}\n`);
});
