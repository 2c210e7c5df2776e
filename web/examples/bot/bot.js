// Answers every visitor, each message once, and leaves a conversation to a human who is asked for. GATEWAY_URL is where the
// gateway is, TOKEN an integrator's or an agent's for a gateway that has a key. CURSOR_FILE keeps how far the bot is; the
// first time it answers whatever nobody has answered for it yet, from the first session on.
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { EventSource } from "eventsource";

const { GATEWAY_URL: url = "http://localhost:4000", TOKEN: token, CURSOR_FILE: file = "bot.cursor" } = process.env;

/** What to say to a message. */
const reply = (/** @type {string} */ content) => `You said: ${content}`;
/** Whether somebody asks for a human. */
const asksForHuman = (/** @type {string} */ content) => /\bhuman\b/i.test(content);

/** Of each session what is being done, one thing after the other. @type {Map<string, Promise<void>>} */
const work = new Map();

/** @type {typeof fetch} */
const authorized = (input, init = {}) =>
  fetch(input, { ...init, headers: { .../** @type {Record<string, string>} */ (init.headers), ...(token && { authorization: `Bearer ${token}` }) } });

/** Asks until there is an answer that another try would not change. */
async function http(/** @type {string} */ method, /** @type {string} */ path, /** @type {object | undefined} */ body = undefined, headers = {}) {
  for (;;) {
    const request = { method, headers: { "content-type": "application/json", ...headers }, ...(body && { body: JSON.stringify(body) }) };
    const response = await authorized(url + path, request).catch(() => null);
    if (response?.status === 401 || response?.status === 403) throw new Error(`TOKEN: ${await response.text()}`);
    if (response && response.status !== 429 && response.status < 500) return response;
    await new Promise((resolve) => setTimeout(resolve, 1_000));
  }
}

/** Answers once, however often it is asked: the key of an answer is the id of what it answers. */
async function answer(/** @type {string} */ sessionId, /** @type {import("support-chat-client").Message} */ { id, content }) {
  const chat = `/api/chats/${sessionId}`;
  // Told again of what was dealt with long ago, it must not switch itself off once more.
  if (asksForHuman(content) && (await isAnswered(chat, id))) return;
  const says = asksForHuman(content) ? "A human will answer you." : reply(content);
  const response = await http("POST", `${chat}/messages`, { content: says, isAI: true }, { "idempotency-key": id });
  // 409: it is answered, or an agent has taken over.
  console.log(sessionId, response.status, await response.text());
  if (response.status === 201 && asksForHuman(content)) await http("PATCH", chat, { aiEnabled: false });
}

/** Whether a program said something behind a message. */
async function isAnswered(/** @type {string} */ chat, /** @type {string} */ id) {
  const later = /** @type {import("support-chat-client").Message[]} */ (await (await http("GET", `${chat}?after=${id}`)).json());
  return later.some(({ isAI }) => isAI);
}

function onMessage(/** @type {{ sessionId: string, message: import("support-chat-client").Message }} */ { sessionId, message }) {
  if (message.sender !== "user") return;
  const done = (work.get(sessionId) ?? Promise.resolve()).then(() => answer(sessionId, message));
  work.set(sessionId, done);
  done.then(() => work.get(sessionId) === done && work.delete(sessionId));
}

/** Where to go on, once what came before is done: in one go, or a bot that is killed meanwhile leaves half of it. */
function keep(/** @type {string} */ cursor) {
  Promise.all(work.values()).then(() => {
    writeFileSync(`${file}.new`, cursor);
    renameSync(`${file}.new`, file);
  });
}

function kept() {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "0"; // Everything.
  }
}

let cursor = kept();

/** After a cut it comes back by itself, and goes on where it was; after a refusal we do. */
function listen() {
  const events = new EventSource(`${url}/api/events?after=${cursor}`, { fetch: authorized });
  events.addEventListener("ready", () => console.log("listening"));
  events.addEventListener("message", ({ data, lastEventId }) => {
    onMessage(JSON.parse(data));
    cursor = lastEventId || cursor;
    keep(cursor);
  });
  events.addEventListener("error", ({ code, message }) => {
    console.error(`${url} does not answer (${message ?? code}): does it run?`);
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 1_000);
  });
}

listen();
