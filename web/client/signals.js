// Who types, and up to where each side has read: beside the messages, and lost without harm.

/** Who types says so again in half of this time, and does not any more after it without another. */
const TYPING_MS = 6_000;

/** README.md says how it is used; `changed` is called after every change. */
export const openSignals = (chat, changed = () => {}) => new Signals(chat, changed);

class Signals {
  isAgentTyping = false;
  agentRead = null;
  #chat;
  #changed;
  #socket;
  #unsubscribe;
  #typedAt = 0;
  #typingEnd;
  #marked;

  constructor(chat, changed) {
    this.#chat = chat;
    this.#changed = changed;
    this.#unsubscribe = chat.subscribe(this.#attach);
    this.#attach();
  }

  /** To be called at each key. */
  typing = (typing = true) => {
    if (typing ? Date.now() < this.#typedAt + TYPING_MS / 2 : !this.#typedAt) return;
    this.#typedAt = typing ? Date.now() : 0;
    this.#emit("typing", { typing });
  };

  markRead = () => {
    const messageId = this.#chat.state.messages.findLast(({ id, state }) => id && state === "stored")?.id;
    if (messageId && messageId !== this.#marked && this.#emit("mark-read", { messageId })) this.#marked = messageId;
  };

  close = () => {
    clearTimeout(this.#typingEnd);
    this.#unsubscribe();
    this.#listen("off");
  };

  /** The chat may open its socket later. */
  #attach = () => {
    if (this.#socket || !this.#chat.socket) return;
    this.#socket = this.#chat.socket;
    this.#listen("on");
  };

  #handlers = {
    typing: ({ sessionId, sender, typing }) => {
      if (sender === "admin" && sessionId === this.#chat.state.sessionId) this.#types(typing);
    },
    read: ({ sessionId, reader, messageId }) => {
      if (reader !== "admin" || sessionId !== this.#chat.state.sessionId) return;
      this.agentRead = messageId;
      this.#changed();
    },
  };

  #listen(how) {
    for (const [event, handler] of Object.entries(this.#handlers)) this.#socket?.[how](event, handler);
  }

  #types(typing) {
    clearTimeout(this.#typingEnd);
    if (typing) this.#typingEnd = setTimeout(() => this.#types(false), TYPING_MS);
    this.isAgentTyping = typing;
    this.#changed();
  }

  /** Only while the chat is in its session. */
  #emit(event, payload) {
    const { connection, sessionId } = this.#chat.state;
    if (connection !== "connected") return false;
    this.#socket.emit(event, { sessionId, ...payload });
    return true;
  }
}
