// Answers every visitor. GATEWAY_URL is where the gateway is, TOKEN an agent's for a gateway that has a key.
import { io } from "socket.io-client";

const { GATEWAY_URL: url = "http://localhost:4000", TOKEN: token } = process.env;

/** What to say to a message. */
const reply = (/** @type {string} */ content) => `You said: ${content}`;

/** Of each session the last message that was dealt with. @type {Map<string, import("support-chat-client").Message>} */
const seen = new Map();
/** Of each session what is being done, one thing after the other. @type {Map<string, Promise<void>>} */
const work = new Map();

/** Asks until there is an answer that another try would not change. */
async function http(/** @type {string} */ path, /** @type {RequestInit} */ request = {}) {
  for (;;) {
    const headers = { ...request.headers, ...(token && { authorization: `Bearer ${token}` }) };
    const response = await fetch(url + path, { ...request, headers }).catch(() => null);
    if (response && response.status !== 429 && response.status < 500) return response;
    await new Promise((resolve) => setTimeout(resolve, 1_000));
  }
}

/** Answers once, however often it is asked: the key of an answer is the id of what it answers. */
async function answer(/** @type {string} */ sessionId, /** @type {{ id: string, content: string }} */ { id, content }) {
  const headers = { "content-type": "application/json", "idempotency-key": id };
  const body = JSON.stringify({ content: reply(content), isAI: true });
  const response = await http(`/api/chats/${sessionId}/messages`, { method: "POST", headers, body });
  console.log(sessionId, response.status, await response.text());
}

/** Answers what a session has that was not answered yet. */
async function deal(/** @type {string} */ sessionId) {
  const last = seen.get(sessionId);
  const response = await http(`/api/chats/${sessionId}${last ? `?after=${last.id}` : ""}`);
  // It was erased.
  if (!response.ok) return void seen.delete(sessionId);
  const messages = /** @type {import("support-chat-client").Message[]} */ (await response.json());
  // A bot that starts finds the answers of the one before it, one for each message.
  const answered = last ? 0 : messages.filter(({ isAI }) => isAI).length;
  for (const message of messages.filter(({ sender }) => sender === "user").slice(answered)) await answer(sessionId, message);
  const newest = messages.at(-1);
  if (newest) seen.set(sessionId, newest);
}

function onNews(/** @type {string} */ sessionId) {
  const before = work.get(sessionId) ?? Promise.resolve();
  const done = before.then(() => deal(sessionId)).catch(() => onNews(sessionId));
  work.set(sessionId, done);
  done.then(() => work.get(sessionId) === done && work.delete(sessionId));
}

/** Whatever was said while the bot was away. */
async function catchUp() {
  /** @type {string | undefined} */
  let cursor;
  do {
    /** @type {import("support-chat-client").SessionsPage | import("support-chat-client").Refusal} */
    const page = await socket.emitWithAck("get-all-sessions", { limit: 500, cursor });
    if ("error" in page) throw new Error(page.error.message);
    for (const { sessionId, lastMessageAt } of page.sessions) {
      if (lastMessageAt && seen.get(sessionId)?.createdAt !== lastMessageAt) onNews(sessionId);
    }
    cursor = page.nextCursor ?? undefined;
  } while (cursor);
}

/** An inbox is told of every visitor's message. */
async function listen() {
  try {
    const ack = await socket.emitWithAck("admin-connect");
    if ("error" in ack) throw new Error(ack.error.message);
    await catchUp();
    console.log("listening");
  } catch (error) {
    console.error(String(error));
    if (socket.connected) setTimeout(listen, 1_000);
  }
}

/** @type {import("support-chat-client").ChatSocket} */
const socket = io(url, { auth: { token }, ackTimeout: 10_000 });
socket.on("connect", listen);
socket.on("new-message", ({ sessionId }) => onNews(sessionId));
socket.on("connect_error", (error) => console.error(`${url} does not answer (${error.message}): does it run?`));
