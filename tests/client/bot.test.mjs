// What the bot of docs/http.md promises.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { it } from "node:test";
import { GATEWAY_URL, arrive, contents, enter, eventually, history, say } from "./lib.mjs";

it("a bot joins a session, hears what the visitor says and answers once", async (t) => {
  const { socket, sessionId, messages } = await enter(t);
  const env = { ...process.env, GATEWAY_URL, SESSION_ID: sessionId };
  const bot = spawn(process.execPath, ["bot.mjs"], { env });
  t.after(() => bot.kill());
  let output = "";
  for (const stream of [bot.stdout, bot.stderr]) stream.on("data", (data) => { output += data; });
  await eventually("a bot that listens", () => output.includes("listening"));
  await say(socket, sessionId, "Hello!");
  await arrive(messages, 2);
  assert.deepEqual(contents(messages), ["Hello!", "You said: Hello!"]);
  assert.deepEqual([messages[1].sender, messages[1].isAI], ["admin", true]);
  assert.deepEqual(await history(sessionId), messages);
  await eventually("an answer to the bot", () => output.includes("202 { id:"));
});
