// Visitors behind ways that are cut in the middle of anything, whose pages are reloaded and crash and whose messages are
// refused: PROXY_URLS names a way for each seed from 1 on.

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { ask, connect, contents, eventually, history, inbox } from "./lib.mjs";
import { openPage, settled } from "./open_page.mjs";
import { FakeStorage, stored } from "./pages.mjs";

const WAYS = process.env.PROXY_URLS.split(",");
const COUNT = 1_000;
/** Less than whoever started this waits. */
const WITHIN = 570_000;
/** And one send in so many is refused. */
const REFUSALS = 30;
/** Answers in place of the gateway's; after one of them it has the message all the same. */
const REFUSED = [
  { error: { code: "overloaded", message: "" }, isSent: false },
  { error: { code: "rate_limited", message: "", retryAfterMs: 50 }, isSent: false },
  { error: { code: "unavailable", message: "" }, isSent: true },
];

/** How many of the last messages are looked at after each change. */
const LAST = 100;
/** Most messages that wait in an outbox. */
const WAITING = 20;
/** One message in so many is followed by a reload, or a crash. */
const RELOADS = 60;
/** And in so many by an answer of an agent. */
const ANSWERS = 10;

const totals = { reloads: 0, crashes: 0, connections: 0, sends: 0, refusals: 0 };

/** Mulberry32: a number from 0 to `end - 1`. */
function random(seed) {
  let state = seed;
  return (end) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % end;
  };
}

/** An agent without faults, in the session from its first message on. */
async function watch(t, sessionId) {
  const socket = await connect(t);
  const seen = inbox(socket);
  await ask(socket, "admin-join-session", { sessionId });
  return { seen, say: (content) => ask(socket, "admin_message", { sessionId, content }) };
}

/**
 * No page may show anything twice or out of order at any time, nor leave anything out once it says that it has all; what is
 * new is among the last.
 */
function check({ chat }) {
  const { connection, messages } = chat.state;
  const last = messages.slice(-LAST).filter(({ sender }) => sender === "user");
  const own = last.map(({ content }) => Number(content));
  const follows = (number, before) => (connection === "connected" ? number === before + 1 : number > before);
  const wrong = own.findIndex((number, index) => index > 0 && !follows(number, own[index - 1]));
  assert.equal(wrong, -1, `${connection}: ${own[wrong - 1]} and then ${own[wrong]}`);
}

function open(t, storage, url, choose) {
  const refuse = () => (choose(REFUSALS) ? null : REFUSED[choose(REFUSED.length)]);
  const page = openPage(t, storage, { url, refuse });
  page.chat.subscribe(() => check(page));
  return page;
}

function count(page) {
  totals.connections += page.connects;
  totals.sends += page.emitted.filter(([event]) => event === "user_message").length;
  totals.refusals += page.refusals.length;
}

describe("at once", { concurrency: true }, () => {
  WAYS.forEach((url, index) => {
    const seed = index + 1;
    it(`${COUNT} messages are stored and shown once and in order, seed ${seed}`, { timeout: WITHIN }, async (t) => {
      const choose = random(seed);
      const storage = new FakeStorage();
      let page = open(t, storage, url, choose);
      const replace = (how) => {
        count(page);
        page[how]();
        totals[how === "close" ? "reloads" : "crashes"] += 1;
        page = open(t, storage, url, choose);
      };
      await eventually("a session", () => page.chat.state.sessionId, WITHIN);
      const { sessionId } = page.chat.state;
      const agent = await watch(t, sessionId);
      let answers = 0;
      for (let n = 0; n < COUNT; n++) {
        page.chat.send(`${n}`);
        const waits = () => page.chat.state.messages.filter(({ state }) => state === "waiting").length;
        if (choose(RELOADS) === 0) replace(choose(3) ? "close" : "crash");
        if (choose(ANSWERS) === 0) await agent.say(`answer ${answers++}`);
        await eventually("room in the outbox", () => waits() < 1 + choose(WAITING), WITHIN);
      }
      await settled(page, COUNT + answers, WITHIN);
      count(page);
      const all = await history(sessionId);
      const of = (sender) => contents(all.filter((message) => message.sender === sender));
      assert.deepEqual(of("user"), Array.from({ length: COUNT }, (_, n) => `${n}`));
      assert.deepEqual(of("admin"), Array.from({ length: answers }, (_, n) => `answer ${n}`));
      assert.deepEqual(stored(page), all);
      await eventually("the agent has seen all", () => agent.seen.length >= all.length);
      assert.deepEqual(agent.seen, all);
      page.close();
      assert.equal(storage.length, 1, "nothing is left but the session's id");
    });
  });
});

it("there was a storm", () => {
  console.log(JSON.stringify(totals));
  const { reloads, crashes, connections, sends, refusals } = totals;
  const pages = WAYS.length + reloads + crashes;
  assert.ok(reloads > 0 && crashes > 0, "pages were reloaded and crashed");
  assert.ok(connections > pages + WAYS.length, "connections broke");
  assert.ok(refusals > WAYS.length, "sends were refused");
  assert.ok(sends > WAYS.length * COUNT, "and sent again");
});
