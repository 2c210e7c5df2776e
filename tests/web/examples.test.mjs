// The examples of the client for pages, as a person runs them.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { it } from "node:test";
import { pathToFileURL } from "node:url";
import { GATEWAY_URL, Manager, io, answer, arrive, connect, contents, enter, eventually, history, say } from "../client/lib.mjs";
import { compile, stage } from "./stage.mjs";

/** The oldest Node that the DOM of these tests runs on. */
const OLDEST_NODE = 20;
const hasDom = parseInt(process.versions.node, 10) >= OLDEST_NODE;
if (!hasDom) console.log(`NOT CHECKED: pages of the examples, which take Node ${OLDEST_NODE} here`);

const managers = new Set();
const { open: openManager } = Manager.prototype;
Manager.prototype.open = function (...args) {
  managers.add(this);
  return openManager.apply(this, args);
};

/** A browser's window with the body of an HTML file. What pages expect to be global is, until the next one. */
async function open(t, folder, file) {
  const { Window } = await import("happy-dom");
  const html = await readFile(join(folder, "examples", file), "utf8");
  const window = new Window({ url: "http://localhost/" });
  window.document.write(html.replaceAll(/<script.*<\/script>/g, "").replace("http://localhost:4000", GATEWAY_URL));
  const names = ["document", "localStorage", "navigator", "HTMLElement", "HTMLIFrameElement", "Node", "Event"];
  for (const name of names) give(name, window[name]);
  give("window", window);
  t.after(async () => {
    managers.forEach((manager) => {
      manager.reconnection(false);
      manager.engine.close();
    });
    managers.clear();
    await eventually("a page without connection", () => window.document.querySelector("[role=status]").textContent);
    await window.close();
  });
  return window;
}

/** Some of these Node has already, and lets nobody assign. */
const give = (name, value) => Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });

/** Writes into the form of a page and sends it. */
function write(window, text) {
  window.document.querySelector("input").value = text;
  window.document.querySelector("form").requestSubmit();
}

const items = (window) => [...window.document.querySelectorAll("li")].map(({ textContent }) => textContent);

/** A visitor writes, an agent answers, and the page shows both. */
async function talk(window) {
  await eventually("a form", () => window.document.querySelector("form"));
  await eventually("a connection", () => window.document.querySelector("[role=status]").textContent === "");
  write(window, "Hello!");
  await eventually("a message is stored", () => items(window)[0] === "Hello! (delivered)");
  const sessionId = window.localStorage.getItem(`support-chat ${GATEWAY_URL} session`);
  assert.deepEqual(contents(await history(sessionId)), ["Hello!"]);
  return sessionId;
}

async function isAnswered(t, window, sessionId) {
  await answer(await connect(t), sessionId, "Good morning!");
  await eventually("an answer", () => items(window).length === 2);
  assert.deepEqual(items(window), ["Hello! (delivered)", "Good morning!"]);
}

it("the examples and the types of the client hold in TypeScript's strict mode", async (t) => {
  const folder = await stage(t);
  assert.equal(await compile(folder), "");
});

it("the plain page sends what is written, and shows answers", { skip: !hasDom }, async (t) => {
  const folder = await stage(t);
  const window = await open(t, folder, "page/index.html");
  give("io", io);
  await import(pathToFileURL(join(folder, "examples/page/page.js")));
  const sessionId = await talk(window);
  await isAnswered(t, window, sessionId);
});

it("the React page sends what is written, and shows answers", { skip: !hasDom }, async (t) => {
  const folder = await stage(t);
  await compile(folder);
  const window = await open(t, folder, "react/index.html");
  await import(pathToFileURL(join(folder, "built/examples/react/app.js")));
  const sessionId = await talk(window);
  await isAnswered(t, window, sessionId);
});

it("the bot answers every visitor once, also what was said while it was away, until a human is asked for", async (t) => {
  const bots = [];
  // Before the folder goes that they write into.
  t.after(() => Promise.all(bots.map((bot) => bot.exitCode ?? bot.signalCode ?? (bot.kill(), once(bot, "exit")))));
  const folder = await stage(t);
  const start = () => {
    // Where it keeps how far it is.
    const env = { ...process.env, GATEWAY_URL };
    const bot = spawn(process.execPath, [join(folder, "examples/bot/bot.js")], { env, cwd: folder });
    bots.push(bot);
    return bot;
  };
  const visitors = [await enter(t), await enter(t)];
  for (const { socket, sessionId } of visitors) await say(socket, sessionId, "before");
  const first = start();
  for (const { messages } of visitors) await arrive(messages, 2);
  for (const { socket, sessionId } of visitors) await say(socket, sessionId, "during");
  for (const { messages } of visitors) await arrive(messages, 4);
  first.kill("SIGKILL");
  for (const { socket, sessionId } of visitors) for (const text of ["one", "two"]) await say(socket, sessionId, text);
  start();
  for (const { messages, sessionId } of visitors) {
    await arrive(messages, 8);
    const answers = (await history(sessionId)).filter(({ isAI }) => isAI);
    assert.deepEqual(contents(answers), ["before", "during", "one", "two"].map((text) => `You said: ${text}`));
  }
  const [{ socket, sessionId, messages }] = visitors;
  await say(socket, sessionId, "I want a human");
  await arrive(messages, 10);
  assert.equal(messages.at(-1).content, "A human will answer you.");
  const agent = await connect(t);
  await eventually("the AI is off", async () => !(await agent.emitWithAck("get-session", { sessionId })).session.aiEnabled);
  await say(socket, sessionId, "Hello?");
  await answer(agent, sessionId, "Good morning!");
  await arrive(messages, 12);
  assert.deepEqual(contents(messages.slice(-2)), ["Hello?", "Good morning!"]);
});
