import { History, Outbox } from "./messages.js";
import { meetTabs, openStorage } from "./tabs.js";

const ANSWERS_WITHIN_MS = 10_000;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 5_000;
/** Most messages of a page over REST. */
const PAGE = 1_000;
/** Codes after which the same message may be taken; all others would come again. */
const PASSING = ["overloaded", "rate_limited", "unavailable", "session_not_found"];
const LOST = { error: { code: "unavailable", message: "no answer" } };

/** README.md says what the options are, chat.d.ts what comes back. */
export const openChat = (options) => new Chat(options);

class Chat {
  #url;
  #token;
  #storage;
  #sessionKey;
  #sessionId;
  #outbox;
  #history = new History();
  #tabs;
  #leads = false;
  #socket;
  #isOwnSocket = false;
  #isClosed = false;
  #isSending = false;
  /** Names this joining: what began under another one is void. */
  #turn = null;
  /** What came while what was said before it is still being read. */
  #held = [];
  /** Offsets answered on this connection; of others that are only accepted, the fate is asked again. */
  #answered = new Set();
  /** Ends of all that waits for an answer or a time. */
  #waiting = new Set();
  #listeners = new Set();
  #state = null;
  #telling = null;
  #status = { connection: "connecting", error: null };

  constructor({ url = "", socket, io, storage, token } = {}) {
    this.#url = (url || socket?.io?.uri || "").replace(/\/+$/, "");
    this.#token = token;
    this.#storage = openStorage(storage);
    const name = `support-chat ${this.#url} `;
    this.#sessionKey = `${name}session`;
    this.#sessionId = this.#storage.get(this.#sessionKey);
    this.#outbox = new Outbox(this.#storage, `${name}out `);
    this.#tabs = meetTabs(name, this.#storage, this.#heard, this.#led);
    if (socket) this.#attach(socket);
    else this.#open(io);
  }

  get state() {
    return (this.#state ??= this.#snapshot());
  }

  get socket() {
    return this.#socket;
  }

  subscribe = (listener) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  send = (content) => {
    const clientOffset = this.#outbox.add(String(content));
    this.#tell();
    this.#pump();
    return clientOffset;
  };

  /** Under a new offset: something else may be stored under the old one. */
  retry = (clientOffset) => {
    const content = this.#outbox.find(clientOffset)?.content;
    return this.discard(clientOffset) ? this.send(content) : null;
  };

  discard = (clientOffset) => {
    if (this.#outbox.find(clientOffset)?.state !== "refused") return false;
    this.#outbox.remove(clientOffset);
    this.#tell();
    return true;
  };

  close = () => {
    this.#isClosed = true;
    this.#turn = null;
    this.#tabs.close();
    this.#listen("off");
    if (this.#isOwnSocket) this.#socket.disconnect();
    this.#wake();
    this.#changed({ connection: "offline" });
    this.#listeners.clear();
  };

  // Connection

  async #open(io) {
    try {
      io ??= globalThis.io ?? (await import("socket.io-client")).io;
    } catch ({ message }) {
      return this.#changed({ connection: "offline", error: { ...LOST.error, message } });
    }
    if (this.#isClosed) return;
    this.#isOwnSocket = true;
    const auth = async (give) => give({ token: await this.#freshToken() });
    this.#attach(io(this.#url || undefined, { auth }));
  }

  /** Without one the gateway says what is missing. */
  async #freshToken() {
    try {
      return await (typeof this.#token === "function" ? this.#token() : this.#token);
    } catch {
      return undefined;
    }
  }

  #attach(socket) {
    this.#socket = socket;
    this.#listen("on");
    if (socket.connected) this.#handlers.connect();
  }

  #handlers = {
    connect: () => {
      this.#wake();
      this.#answered.clear();
      this.#changed({ connection: "connecting", error: null });
      this.#tabs.lead(true);
      if (!this.#turn) this.#join();
      this.#pump();
    },
    disconnect: (reason) => {
      this.#turn = null;
      this.#tabs.lead(false);
      this.#wake();
      this.#changed({ connection: "offline" });
      if (reason !== "io client disconnect") this.#revive();
    },
    connect_error: ({ message, data }) => {
      const error = this.#socket.active ? null : { ...LOST.error, ...data, message };
      this.#changed({ connection: "offline", error });
      this.#revive();
    },
    message: (message) => (this.#held ? this.#held.push(message) : this.#add([message])),
    message_error: ({ id, error }) => {
      const entry = this.#outbox.entries.find((entry) => entry.id && entry.id === id);
      if (entry) this.#refuse(entry.clientOffset, error);
    },
  };

  #listen(how) {
    for (const [event, handler] of Object.entries(this.#handlers)) this.#socket?.[how](event, handler);
  }

  /** After a refusal, and when the server ends a connection, the socket does not come back by itself. */
  async #revive() {
    if (this.#socket.active) return;
    await this.#pause(LONGEST_PAUSE_MS);
    if (!this.#isClosed && !this.#socket.active) this.#socket.connect();
  }

  // Joining

  /** Tries until this connection is in the session and has all that was said. */
  async #join() {
    const turn = (this.#turn = {});
    this.#held = [];
    for (let tries = 0; turn === this.#turn; tries++) {
      const error = await this.#enter(turn);
      if (!error) return;
      if (!PASSING.includes(error.code)) this.#changed({ error });
      await this.#pause(pauseAfter(error, tries));
    }
  }

  /** What went wrong, if something did. */
  async #enter(turn) {
    const asked = this.#storage.get(this.#sessionKey);
    // Only one of several tabs opens a session; this one hears of it.
    if (!asked && !this.#leads) return void (this.#turn = null);
    if (asked !== this.#sessionId) this.#switchTo(asked);
    const before = this.#outbox.entries.filter(({ state }) => state === "stored");
    const after = this.#history.lastId;
    const ack = await this.#ask("init_session", asked ? { sessionId: asked, after } : {});
    if (turn !== this.#turn) return;
    if (ack.error || !this.#adopt(asked, ack.sessionId)) return ack.error ?? LOST.error;
    if (ack.reset) this.#history = new History();
    this.#add(ack.messages ?? []);
    for (let { more } = ack; more; ) {
      const page = await this.#page();
      if (turn !== this.#turn) return;
      if (!page) return LOST.error;
      this.#add(page);
      more = page.length === PAGE;
    }
    this.#add(this.#held);
    this.#held = null;
    // What was stored and is in no history was erased.
    before.filter(({ id }) => !this.#history.has(id)).forEach((entry) => this.#outbox.remove(entry.clientOffset));
    this.#changed({ connection: "connected", error: null });
    this.#pump();
  }

  /** Keeps the session's id; not, if another tab was faster. */
  #adopt(asked, given) {
    const kept = this.#storage.get(this.#sessionKey);
    if (kept && kept !== asked && kept !== given) return false;
    if (given !== this.#sessionId) this.#switchTo(given);
    if (given !== kept) {
      this.#storage.set(this.#sessionKey, given);
      this.#tabs.changed();
    }
    return true;
  }

  #switchTo(sessionId) {
    this.#sessionId = sessionId;
    this.#history = new History();
  }

  /** The messages after the last one, or nothing if they cannot be read. */
  async #page() {
    const token = await this.#freshToken();
    const headers = token ? { authorization: `Bearer ${token}` } : {};
    const url = `${this.#url}/api/chats/${this.#sessionId}?limit=${PAGE}&after=${this.#history.lastId}`;
    const signal = AbortSignal.timeout?.(ANSWERS_WITHIN_MS);
    const read = (response) => (response.ok ? response.json() : null);
    return fetch(url, { headers, signal }).then(read).catch(() => null);
  }

  #add(messages) {
    for (const message of messages) {
      const own = this.#outbox.entries.find(({ id }) => id === message.id);
      this.#history.add(message, own?.clientOffset);
      if (own) this.#outbox.remove(own.clientOffset);
    }
    if (messages.length) this.#changed();
  }

  // Sending

  /** One after the other, so that none overtakes one that must be sent again. */
  async #pump() {
    if (this.#isSending) return;
    this.#isSending = true;
    for (let entry, tries = 0; (entry = this.#next()); ) {
      const error = await this.#transmit(entry);
      tries = error ? tries + 1 : 0;
      if (error && this.#socket.connected) await this.#pause(pauseAfter(error, tries - 1));
    }
    this.#isSending = false;
  }

  #next() {
    if (!this.#leads || !this.#sessionId || !this.#socket?.connected) return undefined;
    const isDue = ({ state, clientOffset }) =>
      state === "waiting" || (state === "accepted" && !this.#answered.has(clientOffset));
    return this.#outbox.entries.find(isDue);
  }

  /** The error after which it must be sent again, if there is one. */
  async #transmit({ clientOffset, content, sent }) {
    if (sent === undefined) this.#outbox.change(clientOffset, { sent: this.#history.lastId });
    const { id, status, error } = await this.#ask("user_message", { sessionId: this.#sessionId, content, clientOffset });
    if (id) {
      this.#answered.add(clientOffset);
      this.#outbox.change(clientOffset, { id, state: status });
      if (this.#history.claim(id, clientOffset)) this.#outbox.remove(clientOffset);
      this.#tell();
    } else if (error && !PASSING.includes(error.code)) {
      this.#refuse(clientOffset, error);
    } else {
      if (error?.code === "session_not_found") this.#join();
      return error ?? LOST.error;
    }
  }

  #refuse(clientOffset, error) {
    const passes = PASSING.includes(error.code);
    this.#outbox.change(clientOffset, passes ? { state: "waiting" } : { state: "refused", error });
    this.#tell();
    this.#pump();
  }

  #ask(event, payload) {
    if (!this.#socket.connected) return LOST;
    return this.#until((end) => {
      this.#socket.timeout(ANSWERS_WITHIN_MS).emit(event, payload, (failed, ack) => end(failed || !ack ? LOST : ack));
    }, LOST);
  }

  #pause(ms) {
    return this.#until((end) => setTimeout(end, ms));
  }

  /** What it is ended with; `otherwise`, where the connection comes or goes before. */
  #until(begin, otherwise) {
    return new Promise((resolve) => {
      const end = (value = otherwise) => {
        this.#waiting.delete(end);
        resolve(value);
      };
      this.#waiting.add(end);
      begin(end);
    });
  }

  #wake() {
    for (const end of this.#waiting) end();
  }

  // Tabs

  /** Another tab changed something. */
  #heard = () => {
    this.#outbox.read();
    if (this.#storage.get(this.#sessionKey) !== this.#sessionId && this.#socket?.connected) this.#join();
    this.#changed();
    this.#pump();
  };

  /** It is this tab's turn to send for all, or no more. */
  #led = (leads) => {
    this.#leads = leads;
    if (!leads) return;
    this.#outbox.read();
    if (!this.#turn) this.#join();
    this.#pump();
  };

  #tell() {
    this.#tabs.changed();
    this.#changed();
  }

  // State

  #changed(changes) {
    Object.assign(this.#status, changes);
    this.#state = null;
    // Once for all that changes in one go.
    this.#telling ??= Promise.resolve().then(() => {
      this.#telling = null;
      for (const listener of this.#listeners) listener();
    });
  }

  #snapshot() {
    const { messages } = this.#history;
    const own = this.#outbox.entries.filter((entry) => !this.#history.seems(entry));
    return {
      ...this.#status,
      sessionId: this.#sessionId,
      isActive: this.#status.connection === "connected",
      isAI: messages.findLast(({ sender }) => sender === "admin")?.isAI ?? false,
      messages: [...messages, ...own.map(({ sent, ...entry }) => entry)],
    };
  }
}

function pauseAfter({ retryAfterMs }, tries) {
  const pause = Math.min(FIRST_PAUSE_MS * 2 ** tries, LONGEST_PAUSE_MS);
  return retryAfterMs ?? pause * (0.5 + Math.random() / 2);
}
