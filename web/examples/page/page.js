import { openChat } from "../../client/chat.js";

const find = (/** @type {string} */ selector) => /** @type {HTMLElement} */ (document.querySelector(selector));
const [status, list, form] = ["[role=status]", "ol", "form"].map(find);
const WORDS = { waiting: "sending …", accepted: "sent", stored: "delivered", refused: "not sent" };

// `io` comes from the script before this one.
const chat = openChat({ url: document.documentElement.dataset.gateway });

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const field = /** @type {HTMLInputElement} */ (form.querySelector("input"));
  if (field.value.trim()) chat.send(field.value);
  field.value = "";
});

/** @type {Map<string | null, HTMLElement>} */
const items = new Map();

/** The item of a message: the same one as long as the message is shown. */
function item(/** @type {import("../../client/chat.js").ShownMessage} */ message) {
  const key = message.clientOffset ?? message.id;
  const item = items.get(key) ?? document.createElement("li");
  items.set(key, item);
  const own = message.sender === "user";
  item.textContent = own ? `${message.content} (${WORDS[message.state]})` : message.content;
  item.className = own ? "own" : "answer";
  if (message.state === "refused") item.append(again(String(message.clientOffset)));
  return item;
}

function again(/** @type {string} */ clientOffset) {
  const button = document.createElement("button");
  button.textContent = "Try again";
  button.addEventListener("click", () => chat.retry(clientOffset));
  return button;
}

function show() {
  const { connection, messages } = chat.state;
  status.textContent = connection === "connected" ? "" : "No connection. What you write is sent once there is one.";
  messages.map(item).forEach((item, index) => {
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
  });
  while (list.children.length > messages.length) list.lastElementChild?.remove();
}

chat.subscribe(show);
show();
