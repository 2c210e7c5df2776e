// Bytes that no real client sends. Whatever they are: the connection answers or ends, nothing wrong is
// stored, and no other client notices.

import assert from "node:assert/strict";
import { connect as connectTcp } from "node:net";
import { after, before, describe, it } from "node:test";
import { bystanders } from "./bystander.mjs";
import { GATEWAY_URL, all, assertError, enter, eventually, get, history } from "./lib.mjs";
import { rawPolling, rawWebSocket } from "./raw.mjs";

const DEEP = 100_000;

let others;
const cleanups = [];
before(async () => {
  others = await bystanders({ after: (cleanup) => cleanups.push(cleanup) });
});
after(async () => {
  try {
    await others.end();
  } finally {
    cleanups.forEach((cleanup) => cleanup());
  }
});

/** A send with ack 7 whose content is this JSON text. */
const send = (sessionId, json) => `427["user_message",{"sessionId":"${sessionId}","content":${json}}]`;

/** Either the connection has ended, or it still answers. */
async function assertAnswersOrEnds(raw) {
  if (!raw.closed()) raw.text('4299["nonsense"]');
  await eventually("an answer or an end", () =>
    raw.closed() || raw.frames.some((frame) => frame.startsWith("4399[")));
}

describe("an event that cannot be read", () => {
  const contents = {
    "a lone high surrogate": '"HOSTILE\\ud800"',
    "a lone low surrogate": '"\\udfffHOSTILE"',
    "an escaped U+0000": '"HOSTILE\\u0000"',
    "a content twice": '"HOSTILE","content":"HOSTILE"',
    "a number beyond all numbers": "1e999999",
    "a very long number": "9".repeat(DEEP),
    "arrays in arrays": "[".repeat(DEEP) + "]".repeat(DEEP),
    "objects in objects": '{"a":'.repeat(DEEP) + "1" + "}".repeat(DEEP),
    "a string like a prototype": '{"__proto__":{"content":"HOSTILE"}}',
  };
  for (const [what, json] of Object.entries(contents)) {
    it(`is refused: ${what}`, async (t) => {
      const { sessionId } = await enter(t);
      const raw = await rawWebSocket(t);
      raw.text(send(sessionId, json));
      const frame = await raw.frame("437[");
      const [{ error }] = JSON.parse(frame.slice(3));
      assertError(error, "invalid_payload");
      assert.deepEqual(await history(sessionId), []);
      await others.goOn();
    });
  }

  it("is refused beside a deep argument that nobody asked for", async (t) => {
    const raw = await rawWebSocket(t);
    raw.text(`427["init_session",{},${"[".repeat(DEEP)}${"]".repeat(DEEP)}]`);
    await assertAnswersOrEnds(raw);
    await others.goOn();
  });
});

describe("a frame that is no event", () => {
  const frames = {
    "nothing": "",
    "garbage": "garbage",
    "an unknown Engine.IO packet": "9",
    "an Engine.IO open": "0{}",
    "an Engine.IO close": "1",
    "a ping from the wrong side": "2probe",
    "a pong that nobody asked for": "3probe",
    "an upgrade that nobody asked for": "5",
    "an empty message": "4",
    "an unknown Socket.IO packet": "49",
    "an event without JSON": "42",
    "an event without an end": '42["user_message"',
    "an event that is an object": '42{"user_message":1}',
    "an event that is null": "42null",
    "an event without a name": "42[]",
    "an event whose name is a number": "421[42,{}]",
    "an event whose name is an object": "421[{},{}]",
    "an event in an unknown namespace": '42/admin,["user_message",{}]',
    "an ack id beyond all numbers": `42${"9".repeat(50)}["nonsense"]`,
    "a negative ack id": '42-1["nonsense"]',
    "an ack that nobody waits for": "431[{}]",
    "an ack of nothing": "43",
    "a second connect": "40",
    "a connect with garbage": "40{garbage",
    "a connect to another namespace": "40/admin,",
    "a disconnect": "41",
    "a connect error from the client": '44{"message":"HOSTILE"}',
    "a binary event without attachments": '450-["user_message",{}]',
    "a binary event whose attachments do not come": '451-["user_message",{"_placeholder":true,"num":0}]',
    "a binary event of a million attachments": '451000000-["user_message",{"_placeholder":true,"num":999999}]',
    "a binary ack": '461-1[{"_placeholder":true,"num":0}]',
    "only brackets": `42${"[".repeat(DEEP)}`,
    "bytes that are no UTF-8": Buffer.from([0x34, 0x32, 0x5b, 0x22, 0xff, 0xfe, 0xc0, 0x80, 0x22, 0x5d]),
    "an encoded surrogate": Buffer.from([0x34, 0x32, 0x5b, 0x22, 0xed, 0xa0, 0x80, 0x22, 0x5d]),
    "a record separator": '42["nonsense"]\u001e42["nonsense"]',
  };
  for (const [what, frame] of Object.entries(frames)) {
    it(`is answered or ends the connection: ${what}`, async (t) => {
      const raw = await rawWebSocket(t);
      raw.text(frame);
      await assertAnswersOrEnds(raw);
      await others.goOn();
    });
  }

  it("is answered or ends the connection: binary frames of any size", async (t) => {
    for (const size of [0, 1, 1_000_000, 5_000_000]) {
      const raw = await rawWebSocket(t);
      raw.binary(Buffer.alloc(size, 0x34));
      await assertAnswersOrEnds(raw);
    }
    await others.goOn();
  });

  it("before the connect is answered or ends the connection", async (t) => {
    const early = ['42["user_message",{}]', '427["init_session",{}]', "41", "garbage", '451-["x",{}]'];
    for (const frame of early) {
      const raw = await rawWebSocket(t, { join: false });
      raw.text(frame);
      raw.text("40");
      await eventually("a connect or an end", () =>
        raw.closed() || raw.frames.some((one) => one.startsWith("40{") || one.startsWith("44{")));
    }
    await others.goOn();
  });
});

describe("a polling request", () => {
  const bodies = {
    nothing: "",
    garbage: "garbage",
    "separators only": "\u001e".repeat(10_000),
    "a packet without an end": '42["user_message"',
    "binary that is no base64": "b!!!!",
    "bytes that are no UTF-8": Buffer.from([0x34, 0x32, 0xff, 0xfe]),
    "many packets": Array.from({ length: 1_000 }, () => '42["nonsense"]').join("\u001e"),
    "2 MB": "4".repeat(2_000_000),
    "20 MB": "4".repeat(20_000_000),
  };
  for (const [what, body] of Object.entries(bodies)) {
    it(`is answered or its connection ends: ${what}`, async () => {
      const { post } = await rawPolling();
      const status = await post(body).then((response) => response.status, () => "ended");
      assert.ok(status === "ended" || (status >= 200 && status < 500), `${status}`);
      await others.goOn();
    });
  }
});

describe("bytes that are no HTTP", () => {
  const requests = {
    nothing: "",
    garbage: "garbage\r\n\r\n",
    "another protocol": Buffer.from([0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01]),
    "another version": "GET /health HTTP/9.9\r\n\r\n",
    "an endless header": `GET /health HTTP/1.1\r\nX: ${"x".repeat(1_000_000)}\r\n\r\n`,
    "endless headers": `GET /health HTTP/1.1\r\n${"X: x\r\n".repeat(10_000)}\r\n`,
    "an endless path": `GET /${"x".repeat(1_000_000)} HTTP/1.1\r\nHost: x\r\n\r\n`,
    "U+0000 in the path": "GET /api/chats/\u0000 HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": "POST /health HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "an absolute path": "GET http://elsewhere/health HTTP/1.1\r\nHost: elsewhere\r\n\r\n",
    "an upgrade to nothing": "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "a proxy's CONNECT": "CONNECT elsewhere:80 HTTP/1.1\r\nHost: elsewhere\r\n\r\n",
  };
  for (const [what, bytes] of Object.entries(requests)) {
    it(`end the connection or are answered: ${what}`, async (t) => {
      const { hostname, port } = new URL(GATEWAY_URL);
      const socket = connectTcp({ host: hostname, port });
      t.after(() => socket.destroy());
      socket.on("error", () => {});
      const answers = all(socket, "data");
      const ends = all(socket, "close");
      socket.end(bytes);
      await eventually("an answer or an end", () => answers.length + ends.length > 0);
      await others.goOn();
      assert.equal((await get("/health")).status, 200);
    });
  }
});
