// Every request over HTTP that is made of both servers. `chat` is a session that has messages.

import { brotliCompressSync, deflateSync, gzipSync } from "node:zlib";

const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
const KEY = "dGhlIHNhbXBsZSBub25jZQ==";
const UPGRADE = { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Key": KEY, "Sec-WebSocket-Version": "13" };
const JSON_TYPE = { "Content-Type": "application/json" };
const latin1 = (buffer) => Buffer.from(buffer).toString("latin1");

const paths = (chat) => [
  "/", "/health", "/health/", "/HEALTH", "/health?a=1", "/health/x", "//health", "/%68ealth",
  "/api", "/api/", "/api/chats", "/api/chats/", "/API/Chats", "/api/chats?a[]=%zz&_=1", "/api//chats",
  `/api/chats/${chat}`, `/api/chats/${chat}/`, `/api/chats/${chat}?x`, "/api/chats/garbage", "/api/chats/a/b",
  "/api/chats/a%2Fb", "/api/chats/%20", "/api/chats/%F0%9F%99%82", "/api/chats/%00", "/api/chats/%FF", "/api/chats/%zz", "/api/chats/%",
  "/nowhere", "/favicon.ico", "/index.html", "/socket.iox", "/%FF", "/socket.io",
];

/** What Engine.IO is asked for, by each method. */
const QUERIES = ["", "?EIO=4", "?EIO=4&transport=", "?EIO=4&transport=none", "?EIO=4&transport=webtransport", "?transport=polling",
  "?EIO=3&transport=polling", "?EIO=2&transport=polling", "?EIO=5&transport=polling", "?EIO=4&transport=polling",
  "?EIO=4&transport=websocket", "?EIO=3&transport=websocket", "?EIO=4&transport=polling&sid=unknown",
  "?EIO=3&transport=polling&sid=unknown", "?EIO=4&transport=websocket&sid=unknown", "?EIO=4&transport=polling&sid=",
  "?EIO=4&transport=polling&sid=AAAAAAAAAAAAAAAAAAAA", "?EIO=3&EIO=4&transport=polling", "?EIO=%34&transport=poll%69ng",
  "?EIO=4&transport=polling&transport=none", "?EIO=4&transport=polling&b64=1", "?EIO=4&transport=polling&t=x"];

function plain(chat) {
  // To erase the session would leave nothing to compare.
  const methods = (path) => METHODS.filter((method) => method !== "DELETE" || !path.includes(chat));
  const of = (path) => methods(path).map((method) => ({ method, path }));
  return [...paths(chat).flatMap(of), ...QUERIES.flatMap((query) => of(`/socket.io/${query}`)),
    ...["/socket.io/x", "/socket.io/x?EIO=4&transport=polling", "/socket.io/../health", "/SOCKET.IO/?EIO=4&transport=polling"].flatMap(of)];
}

function origins(chat) {
  const all = ["/health", "/api/chats", `/api/chats/${chat}`, "/nowhere", "/api/chats/%FF", "/socket.io/?EIO=4&transport=polling",
    "/socket.io/?EIO=4&transport=polling&sid=unknown", "/socket.io/"];
  const preflight = { "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type,x-a" };
  return all.flatMap((path) => ["https://shop.example", "null", "not an origin"].flatMap((origin) => [
    { path, headers: { Origin: origin } },
    { method: "OPTIONS", path, headers: { Origin: origin, ...preflight } },
    { method: "OPTIONS", path, headers: { Origin: origin, "Access-Control-Request-Method": "PROPFIND" } },
  ]));
}

function bodies(chat) {
  const content = JSON.stringify({ content: "x" });
  const all = [
    ["", JSON_TYPE], ["{", JSON_TYPE], ["[]", JSON_TYPE], ["42", JSON_TYPE], ["null", JSON_TYPE], [content, JSON_TYPE],
    [content, {}], [content, { "Content-Type": "text/plain" }], ["a=1&b[c]=2", { "Content-Type": "application/x-www-form-urlencoded" }],
    [latin1(Buffer.from(`\ufeff${content}`)), JSON_TYPE], [content, { "Content-Type": "application/json; charset=latin1" }],
    [latin1(gzipSync(content)), { ...JSON_TYPE, "Content-Encoding": "gzip" }],
    [latin1(deflateSync(content)), { ...JSON_TYPE, "Content-Encoding": "deflate" }],
    [latin1(brotliCompressSync(content)), { ...JSON_TYPE, "Content-Encoding": "br" }],
    [content, { ...JSON_TYPE, "Content-Encoding": "gzip" }], [content, { ...JSON_TYPE, "Content-Encoding": "none" }],
    [latin1(gzipSync(Buffer.alloc(2_000_000, 0x20))), { ...JSON_TYPE, "Content-Encoding": "gzip" }],
    ["x".repeat(200_000), JSON_TYPE], [`"${"x".repeat(2_000_000)}"`, JSON_TYPE],
  ];
  const to = [["POST", "/api/chats"], ["POST", `/api/chats/${chat}/messages`], ["PUT", "/health"], ["POST", "/nowhere"]];
  return to.flatMap(([method, path]) => all.map(([body, headers]) => ({ method, path, body, headers })));
}

const conditions = (chat) => ["/health", "/api/chats", `/api/chats/${chat}`].flatMap((path) => [
  { "If-None-Match": "*" }, { "If-None-Match": 'W/"f-VaSQ4oDUiZblZNAEkkN+sX+q3Sg"' }, { "If-None-Match": '"other"' },
  { "If-Modified-Since": "Tue, 01 Jan 2030 00:00:00 GMT" }, { Range: "bytes=0-3" }, { Accept: "text/html" }, { Accept: "nothing" },
  { "Accept-Encoding": "gzip, br" }, { "Accept-Language": "de" }, { Cookie: "a=1" }, { "X-HTTP-Method-Override": "DELETE" },
  { Authorization: "Bearer nonsense" }, { "Cache-Control": "no-cache" }, { Expect: "100-continue" }, { TE: "trailers" },
].map((headers) => ({ path, headers })));

const lines = [
  { path: "/health", headers: { Host: undefined } }, { path: "/health", headers: { Host: ["a", "b"] } },
  { path: "/health", headers: { Host: ["a", "a"] } }, { path: "/health", headers: { Host: "" } },
  { path: "/health", headers: { Host: "a b" } }, { path: "/health", headers: { Host: "user@a" } },
  { path: "/health", headers: { Host: undefined }, version: "1.0" }, { path: "/health", version: "1.0" },
  { path: "/health", version: "2.0" }, { path: "/health", version: "0.9" },
  { path: "http://elsewhere/health" }, { path: "*", method: "OPTIONS" }, { path: "health" }, { path: "/health#x" },
  { path: "/health", method: "TRACE" }, { path: "/health", method: "PROPFIND" }, { path: "/health", method: "get" },
  { path: "/health", method: "QUERY" }, { path: "/health", method: "NONSENSE" }, { path: "elsewhere:80", method: "CONNECT" },
  { path: `/${"x".repeat(12_000)}` }, { path: `/${"x".repeat(70_000)}` }, { path: "/health", headers: { X: "x".repeat(12_000) } },
  { path: "/health", headers: { X: "x".repeat(17_000) } }, { path: "/health", headers: { X: Array(90).fill("x") } },
  { path: "/health", headers: { X: Array(150).fill("x") } }, { path: "/health", headers: { "X Y": "x" } },
  { path: "/health", headers: { X: "a\u0001b" } }, { path: "/health", headers: { X: "\u00e9" } },
  { path: "/health", method: "POST", headers: { "Content-Length": ["1", "2"] }, body: "xx" },
  { path: "/health", method: "POST", headers: { "Content-Length": "-1" } }, { path: "/health", method: "POST", headers: { "Content-Length": "x" } },
  { path: "/health", method: "POST", headers: { "Transfer-Encoding": "chunked" }, body: "3\r\nabc\r\n0\r\n\r\n" },
  { path: "/health", method: "POST", headers: { "Transfer-Encoding": "chunked" }, body: "zz\r\n" },
  { path: "/health", method: "POST", headers: { "Transfer-Encoding": "gzip" }, body: "x" },
  { path: "/health", method: "POST", headers: { "Transfer-Encoding": "chunked", "Content-Length": "3" }, body: "0\r\n\r\n" },
  { path: "/health", headers: { Connection: "Upgrade, close", Upgrade: "h2c" } },
  { path: "/health", headers: UPGRADE }, { path: "/nowhere", headers: UPGRADE }, { path: "/socket.iox?EIO=4&transport=websocket", headers: UPGRADE },
];

const upgrades = [
  ["EIO=4&transport=none", {}], ["EIO=4&transport=polling", {}], ["EIO=3&transport=websocket", {}], ["transport=websocket", {}],
  ["EIO=4&transport=websocket&sid=unknown", {}], ["EIO=4&transport=websocket", { "Sec-WebSocket-Key": undefined }],
  ["EIO=4&transport=websocket", { "Sec-WebSocket-Key": "short" }], ["EIO=4&transport=websocket", { "Sec-WebSocket-Version": "12" }],
  ["EIO=4&transport=websocket", { "Sec-WebSocket-Version": undefined }], ["EIO=4&transport=websocket", { Upgrade: "h2c" }],
  ["EIO=4&transport=websocket", { Upgrade: undefined }], ["EIO=4&transport=websocket", { Connection: "close" }],
].flatMap(([query, headers]) => ["GET", "POST"].map((method) =>
  ({ method, path: `/socket.io/?${query}`, headers: { ...UPGRADE, ...headers } })));

/** All of them, each with a name of its own; those come last that say something. */
export function requests(chat) {
  const all = [...plain(chat), ...origins(chat), ...conditions(chat), ...lines, ...upgrades, ...bodies(chat)];
  return all.map((one) => ({ ...one, name: nameOf(one, chat) }));
}

function nameOf({ method = "GET", path, headers = {}, body = "", version }, chat) {
  const shown = Object.entries(headers).map(([name, value]) => `${name}: ${String(value).slice(0, 60)}`);
  const parts = [`${method} ${path.replaceAll(chat, "CHAT").slice(0, 80)}`, version && `HTTP/${version}`, ...shown,
    body && `body ${JSON.stringify(body.slice(0, 30))}`];
  return parts.filter(Boolean).join(" | ");
}
