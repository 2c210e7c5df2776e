// A client that sends whatever bytes it is told to, past the real client's manners.

import { once } from "node:events";
import WebSocket from "ws";
import { GATEWAY_URL, eventually } from "./lib.mjs";

const PATH = "/socket.io/?EIO=4&transport=";

/** A websocket that has spoken the handshake of Engine.IO, and of Socket.IO unless told otherwise. */
export async function rawWebSocket(t, { join = true } = {}) {
  const socket = new WebSocket(GATEWAY_URL.replace(/^http/, "ws") + PATH + "websocket");
  t.after(() => socket.terminate());
  const frames = [];
  let closed = false;
  socket.on("message", (data) => {
    if (`${data}` === "2") socket.send("3");
    else frames.push(`${data}`);
  });
  socket.on("close", () => { closed = true; });
  // An end in disorder is an end.
  socket.on("error", () => {});
  await once(socket, "open");
  const raw = {
    frames,
    closed: () => closed,
    /** A text frame, of a string or of any bytes. */
    text: (data) => socket.send(data, { binary: false }),
    binary: (data) => socket.send(data, { binary: true }),
    /** The first frame that begins so. */
    async frame(start) {
      const found = () => frames.find((frame) => frame.startsWith(start));
      await eventually(`a frame ${start}… after ${frames.slice(-3)}`, () => closed || found());
      return found();
    },
    socket,
  };
  await raw.frame("0{");
  if (join) {
    raw.text("40");
    await raw.frame("40{");
  }
  return raw;
}

/** A polling session: its `post` and its `poll`, and where both go. */
export async function rawPolling() {
  const url = `${GATEWAY_URL}${PATH}polling`;
  const open = await (await fetch(url)).text();
  const { sid } = JSON.parse(open.slice(1));
  const post = (body, options = {}) => fetch(`${url}&sid=${sid}`, { method: "POST", body, ...options });
  const poll = () => fetch(`${url}&sid=${sid}`);
  await post("40");
  await poll();
  return { post, poll, url: `${url}&sid=${sid}` };
}
