// The real JavaScript client, for `cargo chaos`: what it is told on standard input it does, and what
// happens to it, it tells on standard output, a line of JSON each. It comes back by itself when its
// connection is lost, as in a browser. It ends with its input.

import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const sockets = new Map();
const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

const deeds = {
  open({ c, port, transport }) {
    const socket = sockets.get(c) ?? make(c, port, transport);
    if (socket.connected) tell({ c, open: true });
    else if (!socket.active) socket.connect();
  },
  emit({ c, event, n, data }) {
    const socket = sockets.get(c);
    // What is emitted while it is away would be sent when it is back, before it is in its room.
    if (socket?.connected) socket.emit(event, data, (answer) => tell({ c, ack: n, data: answer }));
  },
  drop({ c }) {
    const socket = sockets.get(c);
    // Nothing is said to the gateway where the transport allows that.
    socket?.io.engine?.transport?.ws?.terminate?.();
    socket?.disconnect();
  },
};

function make(c, port, transport) {
  const socket = io(`http://127.0.0.1:${port}`, {
    autoConnect: false,
    forceNew: true,
    reconnectionDelay: 100,
    reconnectionDelayMax: 1_000,
    timeout: 3_000,
    transports: [transport],
  });
  socket.on("connect", () => tell({ c, open: true }));
  socket.on("disconnect", (reason) => tell({ c, gone: reason }));
  socket.on("message", (message) => tell({ c, message }));
  sockets.set(c, socket);
  return socket;
}

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const { do: deed, ...what } = JSON.parse(line);
    deeds[deed](what);
  })
  .on("close", () => process.exit(0));
