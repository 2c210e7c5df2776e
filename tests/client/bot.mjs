// Answers a visitor: SESSION_ID says in which session, TOKEN is for a gateway that has a key.
import { io } from "socket.io-client";
const { GATEWAY_URL: url = "http://localhost:4000", SESSION_ID: sessionId, TOKEN: token } = process.env;
const chat = `${url}/api/chats/${sessionId}`;

function fail(text) {
  console.error(text);
  process.exit(1);
}

if (!sessionId) fail("SESSION_ID is missing: give the sessionId of a session that exists");

let after; // The last message that was answered, or was there before.
let work = Promise.resolve();

// An answer is stored once, however often it is sent: its key is the id of what it answers.
async function answer({ id, sender, content }) {
  const headers = { "content-type": "application/json", "idempotency-key": id };
  if (token) headers.authorization = `Bearer ${token}`;
  const body = JSON.stringify({ content: `You said: ${content}`, isAI: true });
  while (sender === "user") {
    const response = await fetch(`${chat}/messages`, { method: "POST", headers, body }).catch(() => null);
    if (response) console.log(response.status, await response.json());
    if (response && response.status !== 429 && response.status !== 503) break;
    await new Promise((resolve) => setTimeout(resolve, 1_000));
  }
  after = id;
}

// One after the other, so that answers are in the order of what they answer.
const hear = (message) => { work = work.then(() => answer(message)); };

// At every connect: join, and be given what was said since `after`. One that no message has gives all of it.
async function join() {
  await work;
  const ack = await socket.timeout(10_000).emitWithAck("init_session", { sessionId, after }).catch((error) => ({ error }));
  const known = after ?? await fetch(chat).then((it) => it.json()).then((all) => all.at(-1)?.id ?? "none yet").catch(() => null);
  if (ack.error || !known) return socket.connected && setTimeout(join, 1_000);
  if (!ack.resumed) fail(`there is no session ${sessionId}`);
  after ??= known;
  ack.messages.forEach(hear);
  if (ack.more) return join();
  console.log("listening");
}

const socket = io(url);
socket.on("connect", join);
socket.on("message", hear);
socket.on("connect_error", (error) => console.error(`${url} does not answer (${error.message}): does it run?`));
