// The visitor's window: what the client keeps is shown, what is written is handed to it.

import { openChat } from "./chat.js";
import { openSignals } from "./signals.js";
import { MessageList, byId, composer, hasClient, notice, planned, showConnection } from "./view.js";

if (hasClient()) start();

function start() {
  const chat = openChat({ io: globalThis.io });
  const list = new MessageList({
    "Try again": ({ clientOffset }) => chat.retry(clientOffset),
    Discard: ({ clientOffset }) => chat.discard(clientOffset),
  });

  const show = planned(() => {
    const { connection, error, messages } = chat.state;
    showConnection(connection);
    notice(error?.message ?? "");
    byId("empty").hidden = messages.length > 0;
    byId("typing").textContent = signals.isAgentTyping ? "An answer is being written …" : "";
    list.show(messages.map(shown));
    if (!document.hidden) signals.markRead();
  });
  const signals = openSignals(chat, () => show());
  chat.subscribe(show);
  show();
  composer((content) => {
    signals.typing(false);
    chat.send(content);
  });
  byId("content").addEventListener("input", ({ target }) => signals.typing(target.value !== ""));
  document.addEventListener("visibilitychange", show);
}

function shown(message) {
  return { ...message, key: message.clientOffset ?? message.id, mine: message.sender === "user" };
}
