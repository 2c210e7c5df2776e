// Pages of one visitor, as a browser has them: each with its client, all with one storage.

import { io } from "socket.io-client";
import { openChat } from "../../web/client/chat.js";

/** A client that comes back soon. */
export const soon = (url, options) => io(url, { reconnectionDelay: 50, reconnectionDelayMax: 500, ...options });

/** Web Storage, of so many characters. */
export class FakeStorage {
  #texts = new Map();
  #room;

  constructor(room = Infinity) {
    this.#room = room;
  }

  get length() {
    return this.#texts.size;
  }

  key(index) {
    return [...this.#texts.keys()][index] ?? null;
  }

  getItem(key) {
    return this.#texts.get(key) ?? null;
  }

  setItem(key, text) {
    const size = [...this.#texts].reduce((sum, [key, text]) => sum + key.length + text.length, 0);
    const freed = key.length + (this.#texts.get(key)?.length ?? -key.length);
    if (size - freed + key.length + text.length > this.#room) throw new DOMException("full", "QuotaExceededError");
    this.#texts.set(key, text);
  }

  removeItem(key) {
    this.#texts.delete(key);
  }
}

/** A storage that a page which crashed cannot reach any more. */
class Reach {
  #storage;
  isCut = false;

  constructor(storage) {
    this.#storage = storage;
  }

  get #reached() {
    if (this.isCut) throw new Error("this page is gone");
    return this.#storage;
  }

  get length() {
    return this.#reached.length;
  }

  key(index) {
    return this.#reached.key(index);
  }

  getItem(key) {
    return this.#reached.getItem(key);
  }

  setItem(key, text) {
    this.#reached.setItem(key, text);
  }

  removeItem(key) {
    this.#reached.removeItem(key);
  }
}

/**
 * Opens a page at this gateway. `refuse`, if given, is asked at each send for an answer in place of the gateway's: an error, and
 * whether the gateway gets the send all the same.
 */
export function newPage(storage, { url, refuse = () => null, ...options }) {
  const reach = new Reach(storage);
  const page = { emitted: [], connects: 0, refusals: [], refuse };
  const connect = (...args) => {
    page.socket = spied(soon(...args), page);
    return page.socket;
  };
  page.chat = openChat({ url, io: connect, storage: reach, ...options });
  page.close = () => page.chat.close();
  // No page is asked before it is gone: what it holds in the storage stays as it is.
  page.crash = () => {
    reach.isCut = true;
    page.socket.io.reconnection(false);
    page.socket.io.engine?.close();
    page.chat.close();
  };
  return page;
}

/** Notes what goes out, and what is answered with an error. */
function spied(socket, page) {
  const { emit } = socket;
  socket.emit = (event, ...args) => {
    const ack = args.pop();
    const refusal = event === "user_message" ? page.refuse() : null;
    const noted = (failed, answer) => {
      const given = refusal && !failed ? { error: refusal.error } : answer;
      if (given?.error) page.refusals.push(given.error.code);
      ack(failed, given);
    };
    page.emitted.push([event, ...args]);
    if (refusal && !refusal.isSent) return setImmediate(noted, null);
    return emit.call(socket, event, ...args, noted);
  };
  socket.on("connect", () => { page.connects += 1; });
  return socket;
}

/** What a page shows. */
export const shown = ({ chat }) => chat.state.messages.map(({ content }) => content);

/** What a page shows as stored, as the history has it. */
export const stored = ({ chat }) =>
  chat.state.messages
    .filter(({ state }) => state === "stored")
    .map(({ clientOffset, state, error, ...message }) => message);
