const TIME_DIGITS = 9;

/** The messages of a session as the history has them, each once. */
export class History {
  messages = [];
  #places = new Map();

  get lastId() {
    return this.messages.at(-1)?.id ?? "";
  }

  has(id) {
    return this.#places.has(id);
  }

  add(message, clientOffset = null) {
    if (this.has(message.id)) return;
    this.#places.set(message.id, this.messages.length);
    this.messages.push({ ...message, clientOffset, state: "stored", error: null });
  }

  /** Says under which offset a message was sent; false, if it is not here yet. */
  claim(id, clientOffset) {
    if (!this.has(id)) return false;
    const place = this.#places.get(id);
    this.messages[place] = { ...this.messages[place], clientOffset };
    return true;
  }

  /** Whether a message whose ack was lost seems to be here: the ack of the next try will tell. */
  seems({ state, sent, content }) {
    if (state !== "waiting" || sent === undefined) return false;
    const isIt = (message) => message.sender === "user" && !message.clientOffset && message.content === content;
    return this.messages.slice((this.#places.get(sent) ?? -1) + 1).some(isIt);
  }
}

/**
 * What was said here and no history shows yet, as it is shown, oldest first. Each message has a key of its own, so that tabs
 * that write at once lose nothing; keys sort by time. `sent` is the last message seen before the first try.
 */
export class Outbox {
  #storage;
  #prefix;
  entries = [];

  constructor(storage, prefix) {
    this.#storage = storage;
    this.#prefix = prefix;
    this.read();
  }

  read() {
    const entry = (key) => {
      try {
        return JSON.parse(this.#storage.get(key));
      } catch {
        return null;
      }
    };
    this.entries = this.#storage.keys(this.#prefix).map(entry).filter((entry) => entry?.clientOffset);
  }

  add(content) {
    const newest = this.entries.at(-1)?.clientOffset.slice(0, TIME_DIGITS) ?? "";
    const time = Math.max(Date.now(), parseInt(newest, 36) + 1 || 0);
    const clientOffset = `${time.toString(36).padStart(TIME_DIGITS, "0")}-${Math.random().toString(36).slice(2)}`;
    const createdAt = new Date(time).toISOString();
    const entry = { id: null, clientOffset, sender: "user", content, createdAt, isAI: false, chatSessionId: null };
    this.entries.push({ ...entry, state: "waiting", error: null });
    this.#keep(this.entries.at(-1));
    return clientOffset;
  }

  find(clientOffset) {
    return this.entries.find((entry) => entry.clientOffset === clientOffset);
  }

  change(clientOffset, changes) {
    const place = this.entries.indexOf(this.find(clientOffset));
    if (place < 0) return;
    this.entries[place] = { ...this.entries[place], ...changes };
    // Another tab may have settled it meanwhile.
    if (this.#storage.get(this.#prefix + clientOffset)) this.#keep(this.entries[place]);
  }

  remove(clientOffset) {
    this.entries = this.entries.filter((entry) => entry.clientOffset !== clientOffset);
    this.#storage.remove(this.#prefix + clientOffset);
  }

  #keep(entry) {
    this.#storage.set(this.#prefix + entry.clientOffset, JSON.stringify(entry));
  }
}
