// What the bot and the snippet of the documentation promise, also when something is wrong.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import net from "node:net";
import { it } from "node:test";
import { GATEWAY_URL, arrive, contents, enter, eventually, history, say, unknownId } from "./lib.mjs";

/** A script that runs, with all it printed. */
function start(t, script, env) {
  const child = spawn(process.execPath, [script], { env: { ...process.env, GATEWAY_URL, ...env } });
  t.after(() => child.kill());
  // Not its exit: what it printed may be on its way then.
  const run = { output: "", ended: once(child, "close").then(([code]) => code) };
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => { run.output += data; });
  return run;
}

/** A way to the gateway that can be cut and mended. */
async function way(t) {
  const { hostname, port } = new URL(GATEWAY_URL);
  const open = new Set();
  const server = net.createServer((near) => {
    const far = net.connect(port, hostname);
    for (const end of [near, far]) {
      open.add(end);
      end.on("error", () => {}).on("close", () => { open.delete(end); near.destroy(); far.destroy(); });
    }
    near.pipe(far).pipe(near);
  });
  const listen = async (on) => { server.listen(on, "127.0.0.1"); await once(server, "listening"); };
  await listen(0);
  const { port: own } = server.address();
  const cut = async () => {
    const closed = once(server, "close");
    server.close();
    open.forEach((end) => end.destroy());
    await closed;
  };
  t.after(() => { server.close(); open.forEach((end) => end.destroy()); });
  return { url: `http://127.0.0.1:${own}`, cut, mend: () => listen(own) };
}

const said = (run, text) => eventually(`"${text}" in ${run.output}`, () => run.output.includes(text));

it("a bot joins a session, hears what the visitor says and answers once", async (t) => {
  const { socket, sessionId, messages } = await enter(t);
  const bot = start(t, "bot.mjs", { SESSION_ID: sessionId });
  await said(bot, "listening");
  await say(socket, sessionId, "Hello!");
  await arrive(messages, 2);
  assert.deepEqual(contents(messages), ["Hello!", "You said: Hello!"]);
  assert.deepEqual([messages[1].sender, messages[1].isAI], ["admin", true]);
  assert.deepEqual(await history(sessionId), messages);
  await said(bot, "201 { id:");
});

for (const before of [[], ["Before"]]) {
  it(`a bot that was cut off answers what it missed, after ${before.length} messages`, async (t) => {
    const { socket, sessionId, messages } = await enter(t);
    for (const text of before) await say(socket, sessionId, text);
    await arrive(messages, before.length);
    const { url, cut, mend } = await way(t);
    const bot = start(t, "bot.mjs", { SESSION_ID: sessionId, GATEWAY_URL: url });
    await said(bot, "listening");
    await cut();
    await say(socket, sessionId, "one");
    await say(socket, sessionId, "two");
    await said(bot, "does not answer");
    await mend();
    await arrive(messages, before.length + 4);
    const answers = messages.filter(({ sender }) => sender === "admin");
    assert.deepEqual(contents(answers), ["You said: one", "You said: two"]);
  });
}

it("a bot says what is wrong with its session and ends", async (t) => {
  const missing = start(t, "bot.mjs", { SESSION_ID: "" });
  assert.equal(await missing.ended, 1);
  assert.match(missing.output, /^SESSION_ID is missing/);
  const sessionId = unknownId();
  const unknown = start(t, "bot.mjs", { SESSION_ID: sessionId });
  assert.equal(await unknown.ended, 1);
  assert.equal(unknown.output.trim(), `there is no session ${sessionId}`);
});

it("the snippet says that nothing listens and goes on once something does", async (t) => {
  const { url, cut, mend } = await way(t);
  await cut();
  const snippet = start(t, "snippet.mjs", { GATEWAY_URL: url });
  await said(snippet, `${url} does not answer`);
  await mend();
  assert.equal(await snippet.ended, 0, snippet.output);
  for (const text of ["in the log:", "stored:", "history:"]) assert.equal(snippet.output.split(text).length, 2);
});
