// Compares the gateway at GATEWAY_URL with the Node server that it replaces, which is started here: status, headers and
// bodies of every request, and what comes back to every packet. What differs must stand in `differences.mjs`, and what
// stands there must be in `docs/moving-over.md`; WRITE=1 writes it. WHAT=… compares only cases whose name has it.
//
//     npm ci --prefix tests/stock
//     LIMITS=off cargo up --fresh -- node tests/stock/compare.mjs

import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { io } from "socket.io-client";
import { DIFFERENCES, table } from "./differences.mjs";
import { exchange, requestOf } from "./http.mjs";
import { requests } from "./requests.mjs";
import { cases } from "./sockets.mjs";

const { GATEWAY_URL, WHAT = "", WRITE } = process.env;
const DOCUMENT = new URL("../../docs/moving-over.md", import.meta.url);
const AT_ONCE = 8;
const [BEGIN, END] = ["<!-- differences -->\n", "<!-- end -->"];

/** The Node server, which some of this ends: it is started again then. */
class Stock {
  port = 0;

  async start() {
    const env = { ...process.env, PORT: `${this.port}`, NODE_ENV: "production" };
    this.child = spawn(process.execPath, [new URL("server.mjs", import.meta.url).pathname], { env, stdio: ["ignore", "pipe", "ignore"] });
    const [line] = await once(createInterface({ input: this.child.stdout }), "line");
    this.port = Number(line.split(" ").at(-1));
    this.chat = await chatOf(this.port);
  }

  hasEnded() { return this.child.exitCode !== null; }

  stop() { this.child.kill(); }
}

/** A session with a message of each side. */
async function chatOf(port) {
  const socket = io(`http://127.0.0.1:${port}`, { transports: ["websocket"], reconnection: false });
  const { sessionId } = await socket.timeout(10_000).emitWithAck("init_session", { sessionId: null });
  for (const event of ["user_message", "admin_message"]) {
    const heard = once(socket, "message");
    socket.emit(event, { sessionId, content: "Hello ü!" });
    await heard;
  }
  socket.disconnect();
  return sessionId;
}

/** What is another one every time. */
const settled = (text) => text
  .replace(/("sid":")[^"]+/g, "$1SID")
  .replace(/[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}/g, "UUID")
  .replace(/"c[a-z0-9]{24}"/g, '"ID"')
  .replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z/g, "TIME");

/** What is taken away from all packets: which of it was seen counts. */
const seen = new Set();
const withoutKnown = (told) => DIFFERENCES.filter(({ settle }) => settle).reduce((text, one) => {
  const without = one.settle(text);
  if (without !== text) seen.add(one);
  return without;
}, told);

/** The differences of two answers, field by field. */
function differences(name, stock, here) {
  const fields = ["status", "body", ...new Set([...Object.keys(stock.headers), ...Object.keys(here.headers)])];
  const value = (answer, field) => (field in answer ? answer[field] : answer.headers[field]);
  const settledValue = (answer, field) => (field === "etag" && value(answer, field) ? "a name" : settled(`${value(answer, field)}`));
  return fields.filter((field) => field !== "date" && field !== "headers").map((field) => ({
    name, field, stock: settledValue(stock, field), here: settledValue(here, field),
  })).filter((one) => one.stock !== one.here).map((one) => ({ ...one, statuses: [stock.status, here.status] }));
}

/** Does something with each, several at a time: most of it is waiting. */
async function together(all, work) {
  const left = [...all];
  const worker = async () => { while (left.length > 0) await work(left.shift()); };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

async function compareRequests(stock, port, chat) {
  const found = [];
  const ofStock = requests(stock.chat).filter(({ name }) => name.includes(WHAT));
  const ofGateway = requests(chat).filter(({ name }) => name.includes(WHAT));
  const pairs = ofStock.map((request, n) => [request, ofGateway[n]]);
  const says = ([{ name }]) => name.startsWith("POST /api/chats/CHAT/messages");
  const compare = async ([toStock, toGateway]) => {
    const answers = await Promise.all([exchange(stock.port, requestOf(toStock)), exchange(port, requestOf(toGateway))]);
    found.push(...differences(toStock.name, ...answers));
    if (stock.hasEnded()) throw new Error(`a request ended the Node server: ${toStock.name}`);
  };
  await together(pairs.filter((pair) => !says(pair)), compare);
  await together(pairs.filter(says), compare);
  return [ofStock.length, found];
}

async function compareSockets(stock, port, chat) {
  const found = [];
  const all = cases().filter(({ name }) => name.includes(WHAT));
  const compare = async ({ name, run }) => {
    const [theirs, ours] = await Promise.all([run(stock.port, stock.chat), run(port, chat)]);
    const ended = stock.hasEnded();
    if (ended) await stock.start();
    const [one, other] = [ended ? ["the server ended"] : theirs, ours].map((told) => withoutKnown(settled(told.join("\n"))));
    if (one !== other) found.push({ name, field: "packets", stock: one, here: other });
  };
  await together(all.filter(({ mayEnd }) => !mayEnd), compare);
  for (const one of all.filter(({ mayEnd }) => mayEnd)) await compare(one);
  return [all.length, found];
}

async function checkDocument() {
  const text = await readFile(DOCUMENT, "utf8");
  const [before, rest] = text.split(BEGIN);
  if (rest === undefined) throw new Error(`docs/moving-over.md has no ${BEGIN}`);
  const now = `${before}${BEGIN}${table()}${rest.slice(rest.indexOf(END))}`;
  if (WRITE) await writeFile(DOCUMENT, now);
  else if (now !== text) throw new Error("docs/moving-over.md has not what differences.mjs has: WRITE=1 writes it");
}

const stock = new Stock();
try {
  await stock.start();
  const port = Number(new URL(GATEWAY_URL).port);
  const chat = await chatOf(port);
  const [asked, differing] = await compareRequests(stock, port, chat);
  const [told, others] = await compareSockets(stock, port, chat);
  const found = [...differing, ...others];
  const rule = (one) => DIFFERENCES.find(({ covers }) => covers(one));
  const unknown = found.filter((one) => !rule(one));
  for (const { name, field, stock: theirs, here } of unknown) {
    console.log(`NOT IN THE TABLE: ${name}\n  ${field}\n    Node: ${JSON.stringify(theirs.slice(0, 400))}\n    here: ${JSON.stringify(here.slice(0, 400))}`);
  }
  const unused = WHAT ? [] : DIFFERENCES.filter((one) => !seen.has(one) && !found.some((difference) => rule(difference) === one));
  for (const { what } of unused) console.log(`IN THE TABLE, AND NOT SEEN: ${what}`);
  const same = asked + told - new Set(found.map(({ name }) => name)).size;
  const marked = new Set(found.filter(({ field }) => ["status", "body", "packets"].includes(field)).map(({ name }) => name)).size;
  console.log(`${asked} requests and ${told} exchanges over sockets compared: ${same} the same to the last header, ${marked} differ in `
    + `status, body or packets; ${DIFFERENCES.length} rows of the table say how, ${unknown.length} differences stand in none`);
  if (unknown.length > 0 || unused.length > 0) process.exitCode = 1;
  await checkDocument();
} finally {
  stock.stop();
}
