// What would be published of the client for pages.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { it } from "node:test";
import { gzipSync } from "node:zlib";
import { packed } from "./stage.mjs";

const CLIENT = new URL("../../web/client/", import.meta.url);
/** What a page loads, without its peers and the hook for React. */
const LOADED = ["chat.js", "messages.js", "tabs.js"];
const BYTES_MAX = 6_000;

const read = (file) => readFile(new URL(file, CLIENT), "utf8");

it("the package is its modules, their types, what it is and how it is used", async () => {
  const files = (await packed()).map(({ path }) => path).sort();
  const types = ["chat.d.ts", "events.d.ts", "react.d.ts", "signals.d.ts"];
  assert.deepEqual(files, ["README.md", ...LOADED, ...types, "package.json", "react.js", "signals.js"].sort());
  const { exports, dependencies } = JSON.parse(await read("package.json"));
  const named = Object.values(exports).flatMap(Object.values).map((path) => path.slice(2));
  assert.ok(named.every((file) => files.includes(file)), named.join());
  assert.equal(dependencies, undefined);
});

it("what a page loads takes less than 6 KB, with its comments", async () => {
  const sources = await Promise.all(LOADED.map(read));
  const bytes = gzipSync(sources.join(""), { level: 9 }).length;
  console.log(`${bytes} bytes`);
  assert.ok(bytes < BYTES_MAX, `${bytes} bytes`);
});

it("a module imports its neighbours, and its peers only where they are asked for", async () => {
  for (const file of [...LOADED, "react.js", "signals.js"]) {
    const source = await read(file);
    const imported = [...source.matchAll(/from "([^"]+)"/g)].map(([, name]) => name);
    const expected = { "chat.js": ["./messages.js", "./tabs.js"], "react.js": ["react", "./chat.js"] }[file] ?? [];
    assert.deepEqual(imported, expected, file);
  }
});
