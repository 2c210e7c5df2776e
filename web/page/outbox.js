// What an agent said and is not stored yet. It survives a reload of the tab, and is sent again with the same
// `clientOffset`, one after the other, until the gateway has it: so it is stored once and in order.

const KEPT = "support-chat:outbox";
/** What sending again does not change. */
const LASTING = ["invalid_payload", "session_not_found", "unauthorized", "forbidden", "conflict", "too_large"];

export class Outbox {
  #socket;
  #times;
  #changed;
  #items = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
  #isSending = false;

  constructor(socket, { ANSWER_WITHIN, RETRY_AFTER, changed }) {
    this.#socket = socket;
    this.#times = { ANSWER_WITHIN, RETRY_AFTER };
    this.#changed = changed;
    socket.on("message_error", ({ id, error }) => {
      // Without one it is of another event: what is not acked yet has none either.
      if (id) this.#refuse(this.#items.find((item) => item.id === id), error);
    });
  }

  /** What was said in this conversation, as a list of messages shows it. */
  of(sessionId) {
    return this.#items.filter((item) => item.sessionId === sessionId);
  }

  send(sessionId, content) {
    const clientOffset = unique();
    const createdAt = new Date().toISOString();
    this.#items.push({ sessionId, content, clientOffset, key: clientOffset, mine: true, createdAt, state: "waiting" });
    this.#keep();
    this.#pump();
  }

  retry(clientOffset) {
    const item = this.#take(clientOffset);
    if (item) this.send(item.sessionId, item.content);
  }

  discard(clientOffset) {
    this.#take(clientOffset);
    this.#keep();
  }

  /** It is in the history. */
  stored(id) {
    if (!this.#items.some((item) => item.id === id)) return;
    this.#items = this.#items.filter((item) => item.id !== id);
    this.#keep();
  }

  /** The socket may send: what was accepted and not seen stored is asked for again, too. */
  connected() {
    for (const item of this.#items) {
      if (item.state !== "refused") item.isSent = false;
    }
    this.#pump();
  }

  async #pump() {
    if (this.#isSending) return;
    this.#isSending = true;
    for (let item = this.#next(); item && this.#socket.connected; item = this.#next()) await this.#try(item);
    this.#isSending = false;
  }

  #next() {
    return this.#items.find((item) => !item.isSent && item.state !== "refused");
  }

  async #try(item) {
    const { sessionId, content, clientOffset } = item;
    const sent = this.#socket.timeout(this.#times.ANSWER_WITHIN);
    const ack = await sent.emitWithAck("admin_message", { sessionId, content, clientOffset }).catch(() => null);
    if (!ack) return;
    if (!ack.error) {
      Object.assign(item, { id: ack.id, state: ack.status, isSent: true });
      this.#keep();
    } else if (LASTING.includes(ack.error.code)) {
      this.#refuse(item, ack.error);
    } else {
      await new Promise((resolve) => setTimeout(resolve, ack.error.retryAfterMs ?? this.#times.RETRY_AFTER));
    }
  }

  #refuse(item, error) {
    if (!item) return;
    Object.assign(item, { state: "refused", error });
    this.#keep();
  }

  #take(clientOffset) {
    const item = this.#items.find((one) => one.clientOffset === clientOffset);
    this.#items = this.#items.filter((one) => one !== item);
    return item;
  }

  #keep() {
    sessionStorage.setItem(KEPT, JSON.stringify(this.#items));
    this.#changed();
  }
}

/** 128 random bits; `crypto.randomUUID` is there on pages with HTTPS only. */
function unique() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
