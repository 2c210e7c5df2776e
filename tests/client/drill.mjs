// Talks in many sessions through GATEWAY_URL, runs the command that it is given meanwhile, and then looks
// whether anything was lost, doubled, altered or turned round: node drill.mjs COMMAND ARGUMENT…
//
// Every client keeps what was not acked and sends it again with the same clientOffset, and comes back with
// `after`, as the README's does. It ends well if the command did and everything is as it was said.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as pause } from "node:timers/promises";
import { io } from "socket.io-client";

const url = process.env.GATEWAY_URL ?? "http://localhost:4000";
const SESSIONS = 12;
/** The ways to the gateway, in turn. */
const TRANSPORTS = [["websocket"], ["polling"], ["polling", "websocket"]];
/** Between an ack and the next message of a sender; beyond 20 a second it takes LIMITS=off. */
const PAUSE = 10;
/** Longest wait for an ack before it is asked again. */
const ACKED_WITHIN = 5_000;
/** From the end of the command until everybody is shown again what they say, and from there to the end. */
const MENDED_WITHIN = 60_000;
const LOOK = 50;

const tally = { connects: 0, refusals: 0, longest: 0 };
let talking = true;
/** What ended a sender. */
let failure;

async function eventually(what, condition) {
  const deadline = Date.now() + MENDED_WITHIN;
  while (!condition()) {
    if (failure) throw failure;
    if (Date.now() > deadline) throw new Error(`waited ${MENDED_WITHIN / 1_000} s in vain until ${what}`);
    await pause(LOOK);
  }
}

/** One of the two in a session. */
class Member {
  joined = false;
  /** What it said: clientOffset, content, when, and the id of the ack. */
  said = [];
  /** What it was shown, in order; a message that it is shown twice stands there twice. */
  shown = [];
  /** What comes while a history is read. */
  waiting = undefined;

  constructor(room, event, transports) {
    this.room = room;
    this.event = event;
    this.socket = io(url, { forceNew: true, transports, reconnectionDelay: 100, reconnectionDelayMax: 1_000 });
    this.socket.on("connect", () => { tally.connects += 1; this.join(); });
    this.socket.on("disconnect", () => { this.joined = false; this.connectAgain(); });
    this.socket.on("connect_error", () => this.connectAgain());
    this.socket.on("message", (message) => (this.waiting ? this.waiting.push(message) : this.show(message)));
  }

  /** Where the client does not do it by itself: it was sent away, or not let in. */
  connectAgain() {
    if (!this.socket.active) setTimeout(() => this.socket.connect(), 500);
  }

  /** In a callback, because what follows the ack may come before a promise is looked at. */
  join() {
    const asked = { sessionId: this.room.sessionId, after: this.shown.at(-1)?.id };
    this.socket.timeout(ACKED_WITHIN).emit("init_session", asked, (error, ack) => {
      if (error || ack.error) {
        tally.refusals += ack?.error ? 1 : 0;
        if (this.socket.connected) setTimeout(() => this.socket.connected && this.join(), 500);
        return;
      }
      this.room.sessionId ??= ack.sessionId;
      ack.messages.forEach((message) => this.show(message));
      if (ack.more) this.readOn();
      this.joined = true;
    });
  }

  /** The rest is in the history. */
  async readOn() {
    this.waiting = [];
    const last = this.shown.at(-1)?.id;
    const all = await history(this.room);
    const rest = all.slice(all.findIndex(({ id }) => id === last) + 1);
    const read = new Set(rest.map(({ id }) => id));
    rest.concat(this.waiting.filter(({ id }) => !read.has(id))).forEach((message) => this.show(message));
    this.waiting = undefined;
  }

  show(message) {
    this.shown.push(message);
    const own = this.said.find(({ content, seen }) => !seen && content === message.content);
    if (!own) return;
    own.seen = Date.now();
    tally.longest = Math.max(tally.longest, own.seen - own.at);
  }

  async talk() {
    while (talking) {
      const clientOffset = `${this.event} ${this.said.length}`;
      const message = { clientOffset, content: `${this.room.number} ${clientOffset}`, at: Date.now() };
      this.said.push(message);
      message.id = await this.say(message);
      await pause(PAUSE);
    }
  }

  async say({ clientOffset, content }) {
    const { sessionId } = this.room;
    for (;;) {
      if (this.joined) {
        const sent = this.socket.timeout(ACKED_WITHIN).emitWithAck(this.event, { sessionId, content, clientOffset });
        const ack = await sent.catch(() => ({}));
        if (ack.id) return ack.id;
        tally.refusals += ack.error ? 1 : 0;
        if (ack.error && !["unavailable", "overloaded", "rate_limited"].includes(ack.error.code)) {
          throw new Error(`${content}: ${JSON.stringify(ack.error)}`);
        }
      }
      await pause(LOOK);
    }
  }

  /** Whether it was shown something that it said after that time. */
  hasSaid(since) {
    return this.said.some(({ at, seen }) => at > since && seen);
  }
}

async function history({ sessionId }) {
  for (;;) {
    const answer = await fetch(`${url}/api/chats/${sessionId}`).catch(() => undefined);
    const messages = answer?.ok ? await answer.json().catch(() => undefined) : undefined;
    if (messages) return messages;
    await pause(LOOK);
  }
}

/** What is wrong in a session. */
async function mistakes(room) {
  const stored = await history(room);
  const list = (messages) => messages.map(({ id, content }) => `${id} ${content}`);
  const wrong = [];
  const compare = (what, are, should) => {
    if (are.length === should.length && are.every((one, place) => one === should[place])) return;
    const place = should.findIndex((one, place) => one !== are[place]);
    wrong.push(`session ${room.sessionId}: ${what}: ${are.length} of ${should.length}, `
      + `the first that differs is ${are[place]} in place of ${should[place]}`);
  };
  for (const member of room.members) {
    const sender = member.event === "user_message" ? "user" : "admin";
    compare(`stored of ${sender}`, list(stored.filter((message) => message.sender === sender)), list(member.said));
    compare(`shown to ${sender}`, list(member.shown), list(stored));
  }
  return wrong;
}

async function enter() {
  const rooms = [];
  for (let number = 0; number < SESSIONS; number += 1) {
    const room = { number, members: [] };
    rooms.push(room);
    for (const event of ["user_message", "admin_message"]) {
      const transports = TRANSPORTS[(2 * number + room.members.length) % TRANSPORTS.length];
      const member = new Member(room, event, transports);
      room.members.push(member);
      await eventually(`a client is in its session at ${url}`, () => member.joined);
    }
  }
  return rooms;
}

async function command([program, ...words]) {
  const child = spawn(program, words, { stdio: "inherit" });
  const [code] = await once(child, "exit");
  if (code !== 0) throw new Error(`the command ended with ${code}: ${program} ${words.join(" ")}`);
}

async function drill() {
  const rooms = await enter();
  const members = rooms.flatMap((room) => room.members);
  const connects = tally.connects;
  let ended = 0;
  const began = Date.now();
  members.forEach((member) => member.talk().then(() => { ended += 1; }, (error) => { failure = error; }));
  const flows = (since) => () => members.every((member) => member.hasSaid(since));
  await eventually("everybody is shown what they say", flows(0));
  await command(process.argv.slice(2));
  await eventually("everybody is shown what they say again", flows(Date.now()));
  talking = false;
  await eventually("everything is acked", () => ended === members.length);
  const took = (Date.now() - began) / 1_000;
  const said = members.reduce((sum, member) => sum + member.said.length, 0);
  const shown = () => members.reduce((sum, member) => sum + member.shown.length, 0);
  // What comes too late, or twice, is told below.
  await eventually("everything is shown", () => shown() >= 2 * said).catch(() => {});
  const wrong = (await Promise.all(rooms.map(mistakes))).flat();
  members.forEach((member) => member.socket.disconnect());
  if (wrong.length > 0) throw new Error(wrong.join("\n"));
  console.log(`${said} messages in ${took.toFixed(1)} s, ${Math.round(said / took)} a second, each stored and `
    + `shown once, in order; the longest wait was ${(tally.longest / 1_000).toFixed(1)} s, `
    + `${tally.connects - connects} connections were made anew, ${tally.refusals} answers were errors`);
}

try {
  await drill();
  process.exit(0);
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
