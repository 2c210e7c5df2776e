import { io } from "socket.io-client";
const url = process.env.GATEWAY_URL ?? "http://localhost:4000";

const socket = io(url, { ackTimeout: 10_000 });
let sessionId, after; // A page keeps both, in local storage for example.

// Everybody in the session is given it once it is stored, the sender included.
const stored = new Promise((resolve) => socket.on("message", resolve));
const show = (message) => { after = message.id; console.log("stored:", message); };
socket.on("message", show);

// Asks until there is an answer: of one clientOffset one message is stored, however often it is sent.
async function ask(event, data) {
  for (;;) {
    const ack = await socket.emitWithAck(event, data()).catch((error) => ({ error }));
    if (!ack.error) return ack;
    console.error(`${event}: ${ack.error.message}`);
    if (["invalid_payload", "unauthorized", "forbidden", "too_large"].includes(ack.error.code)) throw ack.error;
    await new Promise((resolve) => setTimeout(resolve, 1_000));
  }
}

// At every connect, not only the first: join, and be given what was said since `after`. Of more than 500 messages
// the rest is in the history: ack.more.
const joined = new Promise((resolve) => socket.on("connect", async () => {
  const ack = await ask("init_session", () => ({ sessionId, after }));
  sessionId = ack.sessionId;
  ack.messages.forEach(show);
  resolve();
}));
socket.on("connect_error", (error) => console.error(`${url} does not answer (${error.message}): does it run?`));

await joined;
const ack = await ask("user_message", () => ({ sessionId, content: "Hello!", clientOffset: "1" }));
console.log("in the log:", ack);
await stored;

const history = await fetch(`${url}/api/chats/${sessionId}`);
console.log("history:", await history.json());

socket.close();
