// Answers a visitor: SESSION_ID says in which session, TOKEN is for a gateway that has a key.
import { io } from "socket.io-client";
const { GATEWAY_URL: url = "http://localhost:4000", SESSION_ID: sessionId, TOKEN: token } = process.env;

const socket = io(url);
socket.on("connect", () => socket.emit("init_session", { sessionId }, () => console.log("listening")));
socket.on("message", async ({ id, sender, content }) => {
  if (sender !== "user") return;
  const headers = { "content-type": "application/json", "idempotency-key": id };
  if (token) headers.authorization = `Bearer ${token}`;
  const body = JSON.stringify({ content: `You said: ${content}`, isAI: true });
  const answer = await fetch(`${url}/api/chats/${sessionId}/messages`, { method: "POST", headers, body });
  console.log(answer.status, await answer.json());
});
