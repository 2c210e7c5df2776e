// The types that `openapi-typescript` makes of this gateway's routes compile, with a program that uses them.
// GATEWAY_URL says where it is.

import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import openapiTypescript, { astToString } from "openapi-typescript";
import ts from "typescript";

const USE = `
import type { components, paths } from "./types";
type Chat = paths["/api/chats/{sessionId}"]["get"]["responses"][200]["content"]["application/json"];
export const last = (chat: Chat): components["schemas"]["Message"] | undefined => chat[chat.length - 1];
export const text = (chat: Chat): string => last(chat)?.content ?? "";
export const code: components["schemas"]["ErrorCode"] = "rate_limited";
`;
const MISUSE = `
import type { components } from "./types";
export const code: components["schemas"]["ErrorCode"] = "never heard of";
export const content = (message: components["schemas"]["Message"]): number => message.content;
`;

const folder = await mkdtemp(join(tmpdir(), "chat-types-"));
try {
  const types = astToString(await openapiTypescript(new URL("/openapi.json", process.env.GATEWAY_URL)));
  await writeFile(join(folder, "types.d.ts"), types);
  const mistakes = await compile("use.ts", USE);
  if (mistakes.length > 0) throw new Error(mistakes.join("\n"));
  const found = await compile("misuse.ts", MISUSE);
  if (found.length !== 2) throw new Error(`two mistakes were made, and found were ${JSON.stringify(found)}`);
  console.log("types compile");
} finally {
  await rm(folder, { recursive: true });
}

async function compile(name, text) {
  const file = join(folder, name);
  await writeFile(file, text);
  const program = ts.createProgram([file, join(folder, "types.d.ts")], { strict: true, noEmit: true, types: [] });
  return ts.getPreEmitDiagnostics(program).map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, " "));
}
