// The JavaScript clients of other versions against the gateway at GATEWAY_URL: those from 3.1 on talk, and those before 3.0
// are refused as the Node server refuses them.
//
//     npm ci --prefix tests/stock
//     cargo up --fresh -- node tests/stock/clients.mjs

import assert from "node:assert/strict";
import { once } from "node:events";
import { createRequire } from "node:module";
import { setTimeout as pause } from "node:timers/promises";

const URL = process.env.GATEWAY_URL;
const SOON = 20_000;
const MESSAGES = 20;
const require = createRequire(import.meta.url);

async function until(what, condition) {
  for (const deadline = Date.now() + SOON; !(await condition()); await pause(5)) {
    assert.ok(Date.now() < deadline, `waited ${SOON} ms in vain: ${what}`);
  }
}

/** Emits and waits for the ack; clients before 4.6 have no `emitWithAck`. */
const ask = (socket, event, payload) => Promise.race([
  new Promise((resolve) => { socket.emit(event, payload, resolve); }),
  pause(SOON).then(() => { throw new Error(`no ack to ${event}`); }),
]);

const connect = async (io, transports) => {
  const socket = io(URL, { transports, forceNew: true, reconnection: false });
  await Promise.race([once(socket, "connect"), once(socket, "connect_error").then(([error]) => { throw error; })]);
  return socket;
};

async function talk(name, transports) {
  const io = require(name);
  const visitor = await connect(io, transports);
  const heard = [];
  visitor.on("message", (message) => heard.push(message));
  const { sessionId } = await ask(visitor, "init_session", {});
  const agent = await connect(io, transports);
  const lists = [];
  agent.on("sessions-list", (list) => lists.push(list));
  agent.emit("admin-connect");
  await until("the list of sessions", () => lists.some((list) => list.some((one) => one.sessionId === sessionId)));
  const contents = Array.from({ length: MESSAGES }, (_, n) => `${n} ü🙂`);
  const acks = await Promise.all(contents.map((content) => ask(visitor, "user_message", { sessionId, content })));
  for (const ack of acks) assert.ok(ack.id && ack.status, JSON.stringify(ack));
  await until("all messages", () => heard.length >= MESSAGES);
  await ask(agent, "admin_message", { sessionId, content: "answer" });
  await until("the answer", () => heard.length === MESSAGES + 1);
  assert.deepEqual(heard.map((message) => message.content), [...contents, "answer"]);
  visitor.disconnect();
  await ask(agent, "admin_message", { sessionId, content: "while away" });
  const history = async () => (await fetch(`${URL}/api/chats/${sessionId}`)).json();
  await until("it is stored", async () => (await history()).length === MESSAGES + 2);
  const back = await connect(io, transports);
  const ack = await ask(back, "init_session", { sessionId, after: heard.at(-1).id });
  assert.deepEqual(ack.messages.map((message) => message.content), ["while away"]);
  back.disconnect();
  agent.disconnect();
  const { version } = require(`${name}/package.json`);
  console.log(`socket.io-client ${version} by ${transports.join(" and ")}: ${MESSAGES + 1} messages, in order, and what was missed`);
}

async function isRefused(name, transports) {
  const socket = require(name)(URL, { transports, forceNew: true, reconnection: false });
  const outcome = await Promise.race([
    new Promise((resolve) => { socket.on("connect", () => resolve("connected")); }),
    new Promise((resolve) => { socket.on("connect_error", (error) => resolve(error)); }),
    pause(SOON).then(() => "silence"),
  ]);
  socket.close();
  assert.ok(outcome instanceof Error, `${name}: ${outcome}`);
  const { version } = require(`${name}/package.json`);
  console.log(`socket.io-client ${version} by ${transports.join(" and ")} is refused: ${outcome.message}`);
}

for (const name of ["socket.io-client-3", "socket.io-client-4.0", "socket.io-client"]) {
  for (const transports of [["websocket"], ["polling"], ["polling", "websocket"]]) await talk(name, transports);
}
for (const name of ["socket.io-client-1", "socket.io-client-2"]) {
  for (const transports of [["polling"], ["websocket"]]) await isRefused(name, transports);
}
const old = await fetch(`${URL}/socket.io/?EIO=3&transport=polling`);
assert.deepEqual([old.status, await old.text()], [400, '{"code":5,"message":"Unsupported protocol version"}']);
