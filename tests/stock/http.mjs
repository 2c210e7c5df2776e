// Bytes over TCP and what comes back: no client stands in between that would mend a request or hide an answer.

import { connect } from "node:net";

/** Longest wait for the end of an answer. */
const ANSWERS_WITHIN = 10_000;

/** All that a server at `port` sends to these bytes until it ends the connection, or is silent after an answer. */
export async function exchange(port, bytes) {
  const socket = connect({ host: "127.0.0.1", port });
  const parts = [];
  socket.on("data", (part) => parts.push(part));
  socket.on("error", () => {});
  const end = new Promise((resolve) => { socket.on("close", resolve); });
  const late = setTimeout(() => socket.destroy(), ANSWERS_WITHIN);
  socket.write(bytes);
  await end;
  clearTimeout(late);
  return parsed(Buffer.concat(parts).toString("latin1"), bytes.startsWith("HEAD "));
}

/** A request as text, whose connection ends with the answer unless its headers say otherwise. */
export function requestOf({ method = "GET", path, headers = {}, body = "", version = "1.1" }) {
  const all = { Host: "chat.example", Connection: "close", ...headers };
  const length = Buffer.byteLength(body, "latin1");
  if (length > 0 && !("Transfer-Encoding" in all) && !("Content-Length" in all)) all["Content-Length"] = length;
  const lines = Object.entries(all).flatMap(([name, values]) => [values].flat().filter((value) => value !== undefined)
    .map((value) => `${name}: ${value}`));
  return [`${method} ${path} HTTP/${version}`, ...lines, "", body].join("\r\n");
}

function parsed(text, isHead) {
  if (text === "") return { status: "no answer", headers: {}, body: "" };
  const split = text.indexOf("\r\n\r\n");
  // What comes first may say no more than that the body is waited for.
  if (text.startsWith("HTTP/1.1 100 ")) return parsed(text.slice(split + 4), isHead);
  const [line, ...lines] = text.slice(0, split).split("\r\n");
  const headers = {};
  for (const one of lines) {
    const at = one.indexOf(":");
    const name = one.slice(0, at).toLowerCase();
    headers[name] = [headers[name], one.slice(at + 1).trim()].filter((value) => value !== undefined).join(", ");
  }
  const rest = text.slice(split + 4);
  const body = !isHead && /chunked/i.test(headers["transfer-encoding"] ?? "") ? joined(rest) : rest;
  return { status: Number(line.split(" ")[1]), headers, body: Buffer.from(body, "latin1").toString() };
}

function joined(chunks) {
  const size = parseInt(chunks, 16);
  if (!(size > 0)) return "";
  const start = chunks.indexOf("\r\n") + 2;
  return chunks.slice(start, start + size) + joined(chunks.slice(start + size + 2));
}
