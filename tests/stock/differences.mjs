// What differs from the Node server, each with what it covers: `name`, `field`, `stock` and `here` of one difference, and
// the `statuses` of both. The first that covers it counts. `settle` takes something away from all packets beforehand.

const isOneOf = (...all) => (one) => all.includes(one);
const refused = ({ statuses: [stock, here] }) => stock >= 400 && here >= 400;
const ofCase = (start) => ({ name }) => name.startsWith(start);
const ends = (told) => /closed|400 -|unknown/.test(told);

export const DIFFERENCES = [
  {
    what: "headers of every answer", node: "`X-Powered-By: Express`", here: "none of it",
    covers: ({ field }) => field === "x-powered-by",
  },
  {
    what: "CORS", node: "`OPTIONS` is 204", here: "`OPTIONS` is 200 and remembered for ten minutes; scripts may read `Link` and `Retry-After`",
    covers: ({ field, statuses }) => field.startsWith("access-control-") && statuses?.[0] === statuses?.[1]
      || field === "vary" || (statuses?.[0] === 204 && statuses?.[1] === 200),
  },
  {
    what: "length of an answer", node: "chunks for what Socket.IO refuses", here: "chunks for histories and lists that are streamed, which have no `ETag` then: `If-None-Match: *` is answered as a whole",
    covers: ({ name, field, statuses }) => field === "transfer-encoding" || field === "etag" || field === "content-length"
      || (name.includes("If-None-Match: *") && statuses?.[1] === 200),
  },
  {
    what: "a connection of HTTP/1.0", node: "`Connection: close`", here: "closed without saying so",
    covers: ({ name, field }) => name.includes("HTTP/1.0") && field === "connection",
  },
  {
    what: "`Host`", node: "two, or what is no host, are taken", here: "400",
    covers: ({ name }) => name.includes("| Host: "),
  },
  {
    what: "requests of HTTP/0.9 or 2.0 by their first line", node: "taken", here: "400 and the connection ends",
    covers: ({ name }) => /HTTP\/(0\.9|2\.0)/.test(name),
  },
  {
    what: "more than 100 headers", node: "taken, up to 16 KB", here: "431",
    covers: ({ statuses }) => statuses?.[0] === 200 && statuses[1] === 431,
  },
  {
    what: "upgrades, and `CONNECT`, to what is no websocket", node: "the connection ends; under `/socket.io/` 400 in plain text, for other methods than `GET` too", here: "an answer as without them",
    covers: ({ name, stock, statuses }) => (name.includes("| Upgrade: ") || name.startsWith("CONNECT"))
      && (statuses?.[0] === "no answer" || /^(POST|GET).*(POST|h2c|transport=polling)/.test(name) || stock.includes("Invalid HTTP method")),
  },
  {
    what: "a websocket of an older protocol (`EIO=3`)", node: "101, and 400 behind it", here: "400",
    covers: ({ name, statuses }) => name.includes("| Upgrade: ") && statuses?.[0] === 101,
  },
  {
    what: "a websocket of another version", node: "`Sec-WebSocket-Version: 13, 8` in the refusal", here: "the refusal alone",
    covers: ({ field }) => field === "sec-websocket-version",
  },
  {
    what: "a request for a websocket without `Upgrade` or `Connection`", node: "the connection stays", here: "it ends",
    covers: ({ name, field }) => name.includes("| Upgrade: ") && isOneOf("connection", "keep-alive")(field),
  },
  {
    what: "`/socket.io` without a slash", node: "404", here: "as with it",
    covers: ({ name }) => /^\w+ \/socket\.io( |$)/.test(name),
  },
  {
    what: "`/`, `/agent`, `/docs`, `/openapi.json`, `/asyncapi.json`, `/ready`, and [more routes](http.md)", node: "404", here: "served",
    covers: ({ name }) => /^(GET|HEAD) \/$/.test(name) || /^POST \/api\/chats\/CHAT\/messages/.test(name),
  },
  {
    what: "`//health`", node: "404", here: "as `/health`",
    covers: ({ name }) => /^\w+ \/\/health/.test(name),
  },
  {
    what: "paths in capitals (`/HEALTH`, `/API/Chats`)", node: "as in small letters", here: "404",
    covers: ({ name }) => /^\w+ \/(HEALTH|API)/.test(name),
  },
  {
    what: "a method that a path does not have", node: "404", here: "405 with `Allow`",
    covers: ({ statuses }) => statuses?.[0] === 404 && statuses[1] === 405,
  },
  {
    what: "a body that is wrong, or an escape in a path, where nothing is served or by another method", node: "400, 413 or 415", here: "404 or 405: nobody reads it",
    covers: (one) => one.statuses && refused(one) && isOneOf(404, 405)(one.statuses[1]) && one.statuses[0] !== one.statuses[1],
  },
  {
    what: "errors", node: "HTML pages, with `Content-Security-Policy` and `X-Content-Type-Options`", here: "`application/problem+json`",
    covers: (one) => one.statuses && refused(one),
  },
  {
    what: "`maxPayload` at the beginning of a connection", node: "1,000,000; ids of connections have 20 characters", here: "`MAX_PAYLOAD_BYTES`, 1,100,000; they have 16",
    settle: (told) => told.replace(/"maxPayload":\d+/g, '"maxPayload":0'),
    covers: ({ field, statuses }) => field === "body" && statuses?.[0] === 200 && statuses[1] === 200,
  },
  {
    what: "the first ping", node: "after 25 seconds", here: "at once",
    settle: (told) => told.replace(/^(0\{.*\})\n2(?=\n|$)/, "$1").replace(/UTF-8 2\u001e/, "UTF-8 ").replace(/\u001e2(?=[\u001e\n]|$)/, ""),
    covers: () => false,
  },
  {
    what: "the end of a connection", node: "closed", here: "a close packet before it, where there is time",
    settle: (told) => told.replaceAll("\n1\nclosed", "\nclosed"),
    covers: () => false,
  },
  {
    what: "faulty input to `init_session`, `user_message`, `admin_message`, and `init_session` without ack", node: "ends the server", here: "an error in the ack, or `message_error`; `init_session` opens a session",
    covers: ({ stock }) => stock === "the server ended",
  },
  {
    what: "the ack of `init_session`", node: "`{sessionId}`, as it was given", here: "`{sessionId, resumed, messages, reset, more}`; an id that does not exist is answered with a new session's",
    covers: ofCase("chat, init_session"),
  },
  {
    what: "a content that is empty, has half an emoji, or more than `MAX_CONTENT_CHARS` characters", node: "stored; with half an emoji Prisma ends the server", here: "`message_error`",
    covers: ({ name }) => /^chat, \w+_message, (empty content|half an emoji|of 10,000)/.test(name),
  },
  {
    what: "the ack of `user_message` and `admin_message`", node: "none", here: "`{id, status}`, or `{error}`",
    covers: ({ name }) => /^chat, \w+_message, with ack/.test(name),
  },
  {
    what: "`admin-connect` and the [other events of an inbox](contract.md#events)", node: "passed over", here: "served",
    covers: ({ name }) => name === "chat, admin-connect" || name === "chat, get-messages",
  },
  {
    what: "an event that is unknown, with ack", node: "passed over", here: "`{error}`",
    covers: ({ name }) => name === "by websocket, an unknown event with ack",
  },
  {
    what: "other methods than `GET` and `POST` with the id of a connection", node: "500", here: "400",
    covers: ({ name }) => /^by polling, (HEAD|PUT|PATCH|DELETE)$/.test(name),
  },
  {
    what: "a packet that is too large", node: "above 1,000,000 bytes: closed with 1009, or 413", here: "above `MAX_PAYLOAD_BYTES`: closed without a code, or 400",
    covers: ({ name }) => /a packet of|"x{20}/.test(name),
  },
  {
    what: "a second websocket for one connection", node: "closed in order", here: "closed",
    covers: ({ name }) => name === "by polling, a second websocket",
  },
  {
    what: "a second connect to the same namespace", node: "closed, or answered again by polling", here: "passed over",
    covers: ({ name }) => name.includes("two connects") || name.includes("40\\u001e40"),
  },
  {
    what: "an event's name with an escape in it, or one that is a number", node: "taken", here: "the connection ends",
    covers: ({ name }) => /whose name (has an escape|is a number)/.test(name),
  },
  {
    what: "packets of Engine.IO that only servers send, or that come at a wrong time", node: "passed over, or answered with 200 and the connection ends", here: "the connection ends, with 400 by polling",
    covers: ({ here }) => ends(here),
  },
  {
    what: "packets of Socket.IO that cannot be read, for a namespace that was not joined, or with a reserved name; a ping from the client; a `POST` of nothing", node: "the connection ends", here: "passed over",
    covers: ({ stock, here }) => ends(stock) && !ends(here),
  },
];

const cell = (text) => text.replaceAll("|", "\\|");

/** As it stands in the document. */
export function table() {
  const rows = DIFFERENCES.map(({ what, node, here }) => `| ${cell(what)} | ${cell(node)} | ${cell(here)} |`);
  return ["| What | Node server | Here |", "|---|---|---|", ...rows, ""].join("\n");
}
