// The client for pages, in the states that its README names.

import assert from "node:assert/strict";
import { it } from "node:test";
import { GATEWAY_URL, answer, ask, connect, contents, enter, eventually, get, history } from "./lib.mjs";
import { joined, openPage, settled } from "./open_page.mjs";
import { FakeStorage, shown, stored } from "./pages.mjs";

it("a message is waiting, then stored, and an answer comes behind it", async (t) => {
  const page = openPage(t, new FakeStorage());
  assert.deepEqual([page.chat.state.connection, page.chat.state.sessionId], ["connecting", null]);
  const clientOffset = page.chat.send("Hello!");
  const [waiting] = page.chat.state.messages;
  assert.deepEqual([waiting.clientOffset, waiting.state, waiting.id], [clientOffset, "waiting", null]);
  await settled(page, 1);
  const { sessionId } = page.chat.state;
  const agent = await connect(t);
  await answer(agent, sessionId, "Good morning!");
  await settled(page, 2);
  assert.deepEqual(stored(page), await history(sessionId));
  assert.deepEqual(page.chat.state.messages.map((message) => message.clientOffset), [clientOffset, null]);
  assert.deepEqual([page.chat.state.connection, page.chat.state.isActive], ["connected", true]);
});

it("a page that is opened again shows the same conversation, and sends what the last one could not", async (t) => {
  const storage = new FakeStorage();
  const first = openPage(t, storage);
  first.chat.send("one");
  await settled(first, 1);
  first.close();
  first.chat.send("two");
  const second = openPage(t, storage);
  assert.deepEqual(shown(second), ["two"]);
  await settled(second, 2);
  assert.equal(second.chat.state.sessionId, first.chat.state.sessionId);
  assert.deepEqual(contents(await history(second.chat.state.sessionId)), ["one", "two"]);
  second.close();
  assert.equal(storage.length, 1, "nothing is left but the session's id");
});

it("states are objects of their own, told of after each change", async (t) => {
  const page = openPage(t, new FakeStorage());
  const told = [];
  const unsubscribe = page.chat.subscribe(() => told.push(page.chat.state));
  const before = page.chat.state;
  assert.equal(page.chat.state, before);
  page.chat.send("one");
  assert.notEqual(page.chat.state, before);
  assert.deepEqual(before.messages, []);
  await settled(page, 1);
  await eventually("all were told", () => told.at(-1) === page.chat.state);
  assert.equal(new Set(told).size, told.length, "each is told of once");
  const states = new Set(told.flatMap(({ messages }) => messages.map(({ state }) => state)));
  assert.ok(states.has("waiting") && states.has("stored"), [...states].join());
  unsubscribe();
  const count = told.length;
  page.chat.send("two");
  await settled(page, 2);
  assert.equal(told.length, count);
});

it("a message that is too large is refused, does not hold up the next, and can be taken away or sent once more", async (t) => {
  const storage = new FakeStorage();
  const page = openPage(t, storage);
  const large = page.chat.send("x".repeat(8_001));
  page.chat.send("next");
  const refused = () => page.chat.state.messages.find(({ state }) => state === "refused");
  await eventually("a refusal, and the next one stored", () => refused() && shown(page)[0] === "next");
  assert.deepEqual([refused().clientOffset, refused().error.code], [large, "too_large"]);
  page.close();
  const again = openPage(t, storage);
  await joined(again);
  const seen = () => again.chat.state.messages.at(-1);
  assert.deepEqual([seen().clientOffset, seen().state], [large, "refused"]);
  const retried = again.chat.retry(large);
  assert.notEqual(retried, large);
  assert.deepEqual([seen().clientOffset, seen().state], [retried, "waiting"]);
  await eventually("the second refusal", () => seen().state === "refused");
  assert.equal(again.chat.discard("nobody's"), false);
  assert.equal(again.chat.discard(retried), true);
  assert.equal(again.chat.retry(retried), null);
  assert.deepEqual(shown(again), ["next"]);
  again.close();
  assert.equal(storage.length, 1, "nothing is left but the session's id");
});

/** Web Locks, as far as the client needs them: this Node may have none. */
class FakeLocks {
  #queue = Promise.resolve();

  request(name, { signal }, hold) {
    const turn = this.#queue.then(() => (signal.aborted ? null : hold()));
    this.#queue = turn;
    return turn;
  }
}

/** Another global, until the test is over. */
function give(t, name, value) {
  const before = Object.getOwnPropertyDescriptor(globalThis, name);
  Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  t.after(() => {
    delete globalThis[name];
    if (before) Object.defineProperty(globalThis, name, before);
  });
}

/** A storage whose changes are told as in browsers: by an event. */
function tellingStorage(t) {
  const window = new EventTarget();
  give(t, "addEventListener", window.addEventListener.bind(window));
  const tell = (key) => setTimeout(() => window.dispatchEvent(Object.assign(new Event("storage"), { key })));
  return new (class extends FakeStorage {
    setItem(key, text) {
      super.setItem(key, text);
      tell(key);
    }

    removeItem(key) {
      super.removeItem(key);
      tell(key);
    }
  })();
}

const BROWSERS = {
  "Web Locks": (t) => {
    give(t, "navigator", { locks: new FakeLocks() });
    return new FakeStorage();
  },
  "a lease in the storage": (t) => {
    give(t, "navigator", {});
    return new FakeStorage();
  },
  "a lease and storage events": (t) => {
    give(t, "navigator", {});
    give(t, "BroadcastChannel", undefined);
    return tellingStorage(t);
  },
};

for (const [name, begin] of Object.entries(BROWSERS)) {
  it(`several pages of one visitor show one conversation, and each message is sent once, by ${name}`, async (t) => {
    const storage = begin(t);
    const pages = [0, 1, 2].map(() => openPage(t, storage));
    for (let n = 0; n < 10; n++) pages.forEach((page, index) => page.chat.send(`${index} ${n}`));
    for (const page of pages) await settled(page, 30);
    const all = contents(await history(pages[0].chat.state.sessionId));
    assert.equal(new Set(pages.map(({ chat }) => chat.state.sessionId)).size, 1);
    for (const page of pages) assert.deepEqual(shown(page), all);
    for (const index of [0, 1, 2]) {
      const own = all.filter((content) => content.startsWith(`${index} `));
      assert.deepEqual(own, Array.from({ length: 10 }, (_, n) => `${index} ${n}`));
    }
    const sends = pages.flatMap(({ emitted }) => emitted).filter(([event]) => event === "user_message").length;
    // On a machine that stands still for seconds a lease is over while its page still sends.
    assert.ok(name === "Web Locks" ? sends === 30 : sends < 60, `${sends} sends`);
    pages.forEach((page) => page.close());
    assert.equal(storage.length, 1, "nothing is left but the session's id");
  });
}

it("a history of more than an ack holds is shown whole, also while more is said", async (t) => {
  const { socket, sessionId } = await enter(t);
  const talk = async (from, to) => {
    const sends = Array.from({ length: to - from }, (_, i) => ask(socket, "user_message", { sessionId, content: `${from + i}` }));
    await Promise.all(sends);
  };
  await talk(0, 1_700);
  const storage = new FakeStorage();
  storage.setItem(`support-chat ${GATEWAY_URL} session`, sessionId);
  const page = openPage(t, storage);
  await eventually("the page reads", () => page.chat.state.messages.length > 0);
  await talk(1_700, 2_000);
  await settled(page, 2_000);
  assert.deepEqual(stored(page), await history(sessionId));
  assert.deepEqual(shown(page), Array.from({ length: 2_000 }, (_, n) => `${n}`));
});

it("where a session was erased a new one begins, and what waits is said there", async (t) => {
  const storage = new FakeStorage();
  const first = openPage(t, storage);
  first.chat.send("old");
  await settled(first, 1);
  const { sessionId } = first.chat.state;
  first.close();
  first.chat.send("new");
  assert.equal((await get(`/api/chats/${sessionId}`, { method: "DELETE" })).status, 202);
  await eventually("it is gone", async () => (await history(sessionId)).length === 0);
  const second = openPage(t, storage);
  await settled(second, 1);
  assert.deepEqual(shown(second), ["new"]);
  assert.notEqual(second.chat.state.sessionId, sessionId);
  assert.deepEqual(contents(await history(second.chat.state.sessionId)), ["new"]);
});

it("a session that is erased while its visitor is there goes on as a new one", async (t) => {
  const page = openPage(t, new FakeStorage());
  page.chat.send("old");
  await settled(page, 1);
  const { sessionId } = page.chat.state;
  assert.equal((await get(`/api/chats/${sessionId}`, { method: "DELETE" })).status, 202);
  await eventually("it is gone", async () => (await history(sessionId)).length === 0);
  page.chat.send("new");
  await eventually("the new one", () => page.chat.state.sessionId !== sessionId);
  await settled(page, 1);
  assert.deepEqual(shown(page), ["new"]);
});

for (const end of ["close", "crash"]) {
  it(`a page that sends for the others may ${end}: another one goes on`, async (t) => {
    const storage = new FakeStorage();
    const first = openPage(t, storage);
    await joined(first);
    const second = openPage(t, storage);
    await joined(second);
    first.chat.send("one");
    await settled(second, 1);
    first[end]();
    second.chat.send("two");
    await settled(second, 2);
    assert.deepEqual(shown(second), ["one", "two"]);
  });
}

for (const [what, storage] of [
  ["is full", new FakeStorage(90)],
  ["cannot be reached", { getItem() { throw new Error("denied"); } }],
]) {
  it(`a storage that ${what} does not keep anybody from talking`, async (t) => {
    const page = openPage(t, storage);
    for (let n = 0; n < 5; n++) page.chat.send(`${n}`);
    await settled(page, 5);
    assert.deepEqual(shown(page), ["0", "1", "2", "3", "4"]);
  });
}
