// The visitor's window: what the client keeps is shown, what is written is handed to it.

import { openChat } from "./chat.js";
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
    list.show(messages.map(shown));
  });
  chat.subscribe(show);
  show();
  composer((content) => chat.send(content));
}

function shown(message) {
  return { ...message, key: message.clientOffset ?? message.id, mine: message.sender === "user" };
}
