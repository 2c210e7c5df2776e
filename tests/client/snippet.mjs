import { io } from "socket.io-client";
const url = process.env.GATEWAY_URL ?? "http://localhost:4000";

const socket = io(url, { ackTimeout: 10_000 });
const stored = new Promise((resolve) => socket.on("message", resolve));

// A page keeps this id, in local storage for example, and gives it the next time: { sessionId }.
const { sessionId } = await socket.emitWithAck("init_session", {});

// Of one clientOffset one message is stored, however often it is sent.
const message = { sessionId, content: "Hello!", clientOffset: "1" };
const ack = await socket.emitWithAck("user_message", message);
if (ack.error) throw new Error(ack.error.message);
console.log("in the log:", ack);

// Everybody in the session gets it, the sender included.
console.log("stored:", await stored);

const history = await fetch(`${url}/api/chats/${sessionId}`);
console.log("history:", await history.json());

socket.close();
