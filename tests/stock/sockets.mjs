// What both servers answer to packets: of Engine.IO by polling and by websocket, of Socket.IO, and to each event of
// the chat. A case is told as the lines that came back.

import { once } from "node:events";
import { setTimeout as pause } from "node:timers/promises";
import WebSocket from "ws";
import { exchange, requestOf } from "./http.mjs";

/** Nothing more comes when it has been silent for so long. */
const SILENT = 1_000;
const OPENS_WITHIN = 5_000;
const PATH = "/socket.io/?EIO=4&transport=";

/** A websocket, and what came by it. */
async function websocket(port, query = "websocket") {
  const socket = new WebSocket(`ws://127.0.0.1:${port}${PATH}${query}`);
  const told = [];
  let last = Date.now();
  const note = (line) => { last = Date.now(); told.push(line); };
  socket.on("message", (data, isBinary) => note(isBinary ? `binary ${data.length}` : `${data}`));
  socket.on("close", (code) => note(`closed ${code}`));
  socket.on("error", (error) => note(`error ${error.message}`));
  await Promise.race([once(socket, "open"), once(socket, "close"), pause(OPENS_WITHIN, undefined, { ref: false })]).catch(() => {});
  const silence = async () => { do await pause(SILENT / 5); while (Date.now() - last < SILENT); };
  const send = async (...frames) => {
    for (const frame of frames) {
      last = Date.now();
      if (socket.readyState === WebSocket.OPEN) socket.send(frame, { binary: Buffer.isBuffer(frame) });
      await silence();
    }
  };
  await silence();
  const end = () => {
    socket.removeAllListeners("close");
    socket.terminate();
  };
  return { send, told, end };
}

async function polling(port) {
  const ask = (method, query, body) => exchange(port, requestOf({ method, path: `${PATH}polling${query}`, body }));
  const open = await ask("GET", "");
  const { sid } = JSON.parse(open.body.slice(1));
  const told = [];
  const note = async (what, answering) => {
    const { status, headers, body } = await answering;
    told.push(`${what}: ${status} ${headers["content-type"] ?? "-"} ${body}`);
  };
  return {
    sid, told, note,
    post: (body) => note(`post ${body.slice(0, 20)}`, ask("POST", `&sid=${sid}`, body)),
    poll: () => note("poll", ask("GET", `&sid=${sid}`)),
    ask: (method, body) => ask(method, `&sid=${sid}`, body),
  };
}

const frames = {
  "the handshake": [], "a connect": ["40"], "a connect with auth": ['40{"token":"x"}'], "a connect with a text": ['40"x"'],
  "a connect with a number": ["4042"], "a connect with garbage": ["40{"], "two connects": ["40", "40"],
  "a connect to another namespace": ["40/admin,"], "a connect to another namespace with a query": ["40/admin?x=1,"],
  "an event before the connect": ['42["init_session",{}]'], "an unknown event": ["40", '42["nonsense",1]'],
  "an unknown event with ack": ["40", '427["nonsense",1]'], "an event in another namespace": ["40", '42/admin,["x"]'],
  "an event without a name": ["40", "42[]"], "an event that is an object": ["40", '42{"a":1}'], "an event that is null": ["40", "42null"],
  "an event whose name is a number": ["40", "42[42]"], "an event whose name is an object": ["40", "42[{}]"],
  "an event of a reserved name": ["40", '42["connect"]'], "another event of a reserved name": ["40", '42["disconnecting"]'],
  "an event that is no JSON": ["40", '42["a"'], "an event whose name has an escape": ["40", '427["init\\u005fsession",{}]'],
  "an ack that nobody waits for": ["40", "431[1]"], "an ack that is no JSON": ["40", "431{"],
  "a disconnect": ["40", "41"], "a disconnect, then an event": ["40", "41", '42["nonsense"]'], "a disconnect before the connect": ["41"],
  "a connect error": ["40", '44{"message":"x"}'], "an unknown packet of Socket.IO": ["40", "49"],
  "an empty message": ["40", "4"], "an empty frame": ["40", ""], "an unknown packet of Engine.IO": ["40", "9"],
  "garbage": ["40", "garbage"], "an open": ["40", "0{}"], "a close": ["40", "1"], "a ping": ["40", "2"], "a ping with a text": ["40", "2probe"],
  "a pong": ["40", "3"], "a pong with a text": ["40", "3probe"], "an upgrade": ["40", "5"], "a noop": ["40", "6"],
  "a binary frame": ["40", Buffer.from("x")], "an empty binary frame": ["40", Buffer.alloc(0)],
  "a binary event": ["40", '451-["nonsense",{"_placeholder":true,"num":0}]', Buffer.from("x")],
  "a binary event and a text before its attachment": ["40", '451-["nonsense",{"_placeholder":true,"num":0}]', '42["a"]'],
  "a binary event without attachments": ["40", '450-["nonsense"]'], "a binary event with a bad number": ["40", '45x-["nonsense"]'],
  "a placeholder beyond its attachments": ["40", '451-["nonsense",{"_placeholder":true,"num":5}]', Buffer.from("x")],
  "a packet of 1,000,001 bytes": ["40", `42["nonsense","${"x".repeat(999_985)}"]`],
  "a packet of 2 MB": ["40", `42["nonsense","${"x".repeat(2_000_000)}"]`],
};

const POSTS = ["", "40", "40\u001e40", "garbage", "9", "2", "3", "1", "0", "5", "4", "49", "40/admin,", '42["nonsense"]', "b4AA==", "40\u001egarbage",
  "40\u001e\u001e", "x".repeat(1_000_001), "x".repeat(1_500_000)];

const CHAT = {
  "init_session, nothing, no ack": () => '42["init_session"]', "init_session, null, no ack": () => '42["init_session",null]',
  "init_session, {}, no ack": () => '42["init_session",{}]', "init_session, nothing": () => '427["init_session"]',
  "init_session, null": () => '427["init_session",null]', "init_session, {}": () => '427["init_session",{}]',
  "init_session, null id": () => '427["init_session",{"sessionId":null}]', "init_session, empty id": () => '427["init_session",{"sessionId":""}]',
  "init_session, known id": (chat) => `427["init_session",{"sessionId":"${chat}"}]`,
  "init_session, unknown id": () => '427["init_session",{"sessionId":"11111111-1111-4111-8111-111111111111"}]',
  "init_session, garbage id": () => '427["init_session",{"sessionId":"garbage"}]', "init_session, number as id": () => '427["init_session",{"sessionId":42}]',
  "init_session, array": () => '427["init_session",[]]', "init_session, text": () => '427["init_session","x"]',
  ...Object.fromEntries(["user_message", "admin_message"].flatMap((event) => [
    [`${event}, nothing`, () => `42["${event}"]`], [`${event}, null`, () => `42["${event}",null]`], [`${event}, {}`, () => `42["${event}",{}]`],
    [`${event}, text`, () => `42["${event}","x"]`], [`${event}, unknown session`, () => `42["${event}",{"sessionId":"x","content":"y"}]`],
    [`${event}, no content`, (chat) => `42["${event}",{"sessionId":"${chat}"}]`],
    [`${event}, number as content`, (chat) => `42["${event}",{"sessionId":"${chat}","content":42}]`],
    [`${event}, empty content`, (chat) => `42["${event}",{"sessionId":"${chat}","content":""}]`],
    [`${event}, half an emoji`, (chat) => `42["${event}",{"sessionId":"${chat}","content":"\\ud83d"}]`],
    [`${event}, number as id`, () => `42["${event}",{"sessionId":42,"content":"y"}]`],
    [`${event}, in the room`, (chat) => `42["${event}",{"sessionId":"${chat}","content":"said"}]`],
    [`${event}, with ack`, (chat) => `427["${event}",{"sessionId":"${chat}","content":"said"}]`],
    [`${event}, of 10,000 characters`, (chat) => `42["${event}",{"sessionId":"${chat}","content":"${"x".repeat(10_000)}"}]`],
  ])),
  "admin-connect": () => '42["admin-connect"]', "get-messages": () => '42["get-messages",{}]',
};

function pollings() {
  const cases = POSTS.map((body, n) => [`by polling, post ${n}: ${JSON.stringify(body.slice(0, 20))}${body.length > 20 ? "…" : ""}`, async (port) => {
    const { post, poll, told } = await polling(port);
    await post(body);
    if (body.startsWith("40") || body === "1") await poll();
    if (told[0].startsWith("post") && body !== "40") await post("40");
    return told;
  }]);
  return [...cases,
    ["by polling, two polls at once", async (port) => {
      const { post, poll, ask, note, told } = await polling(port);
      await post("40");
      await poll();
      const first = note("first", ask("GET"));
      await pause(SILENT);
      await note("second", ask("GET"));
      await first;
      // Which of the two is answered first is nobody's business.
      return told.sort();
    }],
    ...["HEAD", "PUT", "PATCH", "DELETE"].map((method) => [`by polling, ${method}`, async (port) => {
      const { ask, note, told } = await polling(port);
      await note(method, ask(method));
      return told;
    }]),
    ["by polling, another protocol", async (port) => {
      const { sid, note, told } = await polling(port);
      await note("EIO=3", exchange(port, requestOf({ path: `/socket.io/?EIO=3&transport=polling&sid=${sid}` })));
      await note("websocket", exchange(port, requestOf({ path: `${PATH}websocket&sid=${sid}` })));
      return told;
    }],
    ["by polling, a poll of a websocket", async (port) => {
      const { told, end } = await websocket(port);
      const { sid } = JSON.parse(told[0].slice(1));
      const { status, body } = await exchange(port, requestOf({ path: `${PATH}polling&sid=${sid}` }));
      end();
      return [`${status} ${body}`];
    }],
    ["by polling, upgraded to a websocket", async (port) => {
      const { sid, post, poll, told } = await polling(port);
      await post("40");
      await poll();
      const upgraded = await websocket(port, `websocket&sid=${sid}`);
      await upgraded.send("2probe", "5", '42["nonsense"]');
      upgraded.end();
      return [...told, ...upgraded.told];
    }],
    ["by polling, a second websocket", async (port) => {
      const { sid, post, poll } = await polling(port);
      await post("40");
      await poll();
      const first = await websocket(port, `websocket&sid=${sid}`);
      await first.send("2probe", "5");
      const second = await websocket(port, `websocket&sid=${sid}`);
      await second.send("2probe");
      first.end();
      second.end();
      return ["first", ...first.told, "second", ...second.told];
    }],
  ];
}

/** Every case by its name, and whether it may end the Node server. */
export function cases() {
  const packets = Object.entries(frames).map(([name, sent]) => [`by websocket, ${name}`, async (port) => {
    const { send, told, end } = await websocket(port);
    await send(...sent);
    end();
    return told;
  }]);
  const chat = Object.entries(CHAT).map(([name, frame]) => [`chat, ${name}`, async (port, session) => {
    const { send, told, end } = await websocket(port);
    await send("40", `421["init_session",{"sessionId":"${session}"}]`);
    told.length = 0;
    await send(frame(session));
    end();
    return told;
  }]);
  const named = (mayEnd) => ([name, run]) => ({ name, run, mayEnd });
  return [...[...packets, ...pollings()].map(named(false)), ...chat.map(named(true))];
}
