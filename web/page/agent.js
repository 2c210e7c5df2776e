// The inbox: who is here, what was said, and answers that are sent until they are stored.

import { Outbox } from "./outbox.js";
import { Sessions } from "./sessions.js";
import { MessageList, byId, composer, hasClient, notice, planned, showConnection } from "./view.js";

/** Longest wait for an answer of the gateway, in milliseconds. */
const ANSWER_WITHIN = 10_000;
/** Before what failed is asked for again. */
const RETRY_AFTER = 1_000;
/** Who types says so at most this often, and does not any more after this time without another, in milliseconds. */
const TYPING_TOLD = 3_000;
const TYPING_OVER = 6_000;
/** As many the gateway gives at once. */
const PAGE = 500;
/** Where the token is, which conversation is open, and who this is where nobody shows a token, until the tab is closed. */
const TOKEN = "support-chat:token";
const CHOSEN = "support-chat:chosen";
const AGENT = "support-chat:agent";

if (hasClient()) new Inbox().start();

function Inbox() {
  let token = sessionStorage.getItem(TOKEN);
  const socket = globalThis.io({ auth: (give) => give(token ? { token } : {}), autoConnect: false });
  const outbox = new Outbox(socket, { ANSWER_WITHIN, RETRY_AFTER, changed: () => showSoon() });
  const sessions = new Sessions({ choose, ask });
  const list = new MessageList({
    "Try again": ({ clientOffset }) => outbox.retry(clientOffset),
    Discard: ({ clientOffset }) => outbox.discard(clientOffset),
  });
  const agent = sessionStorage.getItem(AGENT) ?? `Agent ${Math.floor(1_000 + 9_000 * Math.random())}`;
  sessionStorage.setItem(AGENT, agent);
  /** What of the chosen conversation is known: its messages, and whether there are older ones. */
  let chosen = null;
  let typingEnd;

  const showSoon = planned(show);

  this.start = start;

  function start() {
    socket.on("connect", connected);
    socket.on("disconnect", (reason) => {
      showConnection("offline");
      // The gateway ended it: a token that is not valid any more, or one that restarts.
      if (reason === "io server disconnect") setTimeout(() => socket.connect(), RETRY_AFTER);
    });
    socket.on("connect_error", ({ message }) => {
      showConnection("offline");
      // Only an answer of the gateway leaves the socket inactive.
      if (!socket.active) signIn(message);
    });
    socket.on("sessions-list", (active) => sessions.active(active));
    socket.on("message", heard);
    socket.on("new-message", ({ sessionId }) => sessions.heard(sessionId, chosen?.sessionId));
    socket.on("typing", ({ sessionId, sender, typing }) => {
      if (sessionId === chosen?.sessionId && sender === "user") visitorTypes(typing);
    });
    socket.on("session-updated", ({ session }) => decided(session));
    composer((content) => {
      if (!chosen) return;
      types(false);
      outbox.send(chosen.sessionId, content);
    });
    byId("content").addEventListener("input", ({ target }) => types(target.value !== ""));
    document.addEventListener("visibilitychange", read);
    byId("older").addEventListener("click", older);
    byId("back").addEventListener("click", close);
    byId("ai").addEventListener("change", () => change("toggle-ai-mode", { enabled: byId("ai").checked }));
    byId("claim").addEventListener("click", () => change(chosen.session?.assignee ? "release-session" : "claim-session", { agent }));
    byId("status").addEventListener("click", () =>
      change("set-status", { status: chosen.session?.status === "closed" ? "open" : "closed" }));
    byId("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      token = byId("token").value.trim();
      socket.disconnect().connect();
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && close());
    socket.connect();
    const last = sessionStorage.getItem(CHOSEN);
    if (last) choose(last);
  }

  /** Emits until there is an answer, or a reason that lasts. */
  async function ask(event, payload) {
    const asking = payload === undefined ? [event] : [event, payload];
    const ack = await socket.timeout(ANSWER_WITHIN).emitWithAck(...asking).catch(() => null);
    if (ack && !ack.error) return ack;
    if (ack?.error.code === "unauthorized" || ack?.error.code === "forbidden") signIn(ack.error.message);
    return { error: ack?.error ?? { code: "unavailable", message: "The gateway does not answer." } };
  }

  async function connected() {
    const ack = await ask("admin-connect");
    if (ack.error) return again(connected, ack.error);
    if (token) sessionStorage.setItem(TOKEN, token);
    byId("sign-in").hidden = true;
    byId("inbox").hidden = false;
    notice("");
    showConnection("connected");
    sessions.connected();
    outbox.connected();
    if (chosen) await open(chosen);
  }

  /** Once more a little later, unless the connection is gone or nobody may. */
  function again(what, error, ...args) {
    if (!socket.connected || error.code === "unauthorized" || error.code === "forbidden") return;
    notice(`${error.message} Trying again …`);
    setTimeout(() => socket.connected && what(...args), error.retryAfterMs ?? RETRY_AFTER);
  }

  function signIn(reason) {
    const wasShown = !byId("sign-in").hidden;
    byId("sign-in").hidden = false;
    byId("inbox").hidden = true;
    byId("token-error").hidden = !token;
    byId("token-error").textContent = reason;
    sessionStorage.removeItem(TOKEN);
    if (!wasShown || token) byId("token").focus();
  }

  /** Shows a conversation, and joins it to hear what is said. */
  async function choose(sessionId) {
    if (chosen?.sessionId === sessionId) return byId("content").focus();
    if (chosen && socket.connected) socket.emit("admin-leave-session", { sessionId: chosen.sessionId });
    chosen = { sessionId, stored: new Map(), hasOlder: false };
    sessionStorage.setItem(CHOSEN, sessionId);
    list.clear();
    visitorTypes(false);
    show();
    byId("visitor").focus();
    if (socket.connected) await open(chosen);
  }

  function close() {
    if (!chosen) return;
    const { sessionId } = chosen;
    if (socket.connected) socket.emit("admin-leave-session", { sessionId });
    chosen = null;
    sessionStorage.removeItem(CHOSEN);
    show();
    sessions.focus(sessionId);
  }

  /** First the room, then the history: what is said meanwhile comes behind it, and nothing twice. */
  async function open(conversation) {
    const { sessionId } = conversation;
    for (const event of ["admin-join-session", "get-messages"]) {
      const ack = await ask(event, { sessionId });
      if (conversation !== chosen) return;
      if (ack.error?.code === "session_not_found") return close();
      if (ack.error) return again(open, ack.error, conversation);
      if (ack.messages) take(conversation, ack.messages);
    }
    notice("");
    show();
    // One that is too new to be stored is what every session is at first.
    const { session } = await ask("get-session", { sessionId });
    if (session) decided(session);
  }

  /** The newest messages: those before them stay, unless something is missing in between. */
  function take(conversation, messages) {
    const newest = new Map(messages.map((message) => [message.id, ofHistory(message)]));
    const overlaps = messages.some(({ id }) => conversation.stored.has(id));
    const before = overlaps ? [...conversation.stored].filter(([id]) => !newest.has(id)) : [];
    if (!overlaps) conversation.hasOlder = messages.length === PAGE;
    conversation.stored = new Map([...before, ...newest]);
  }

  async function older() {
    const conversation = chosen;
    const [first] = conversation.stored.keys();
    const ack = await ask("get-messages", { sessionId: conversation.sessionId, before: first });
    if (ack.error) return notice(ack.error.message);
    const found = ack.messages.map((message) => [message.id, ofHistory(message)]);
    conversation.stored = new Map([...found, ...conversation.stored]);
    conversation.hasOlder = found.length === PAGE;
    if (conversation === chosen) list.keepPlace(show);
  }

  function heard(message) {
    outbox.stored(message.id);
    if (!chosen?.stored || chosen.stored.has(message.id)) return;
    const mine = message.sender === "admin";
    chosen.stored.set(message.id, { ...message, key: message.id, mine, state: mine ? "stored" : null });
    showSoon();
  }

  function types(typing) {
    if (!chosen || (typing ? Date.now() < (chosen.typingTold ?? 0) + TYPING_TOLD : !chosen.typingTold)) return;
    chosen.typingTold = typing ? Date.now() : 0;
    if (socket.connected) socket.emit("typing", { sessionId: chosen.sessionId, typing });
  }

  function visitorTypes(typing) {
    clearTimeout(typingEnd);
    byId("typing").textContent = typing ? "The visitor is writing …" : "";
    if (typing) typingEnd = setTimeout(() => visitorTypes(false), TYPING_OVER);
  }

  /** Everything that is shown was read. */
  function read() {
    const last = chosen && [...chosen.stored.keys()].at(-1);
    if (!last || last === chosen.marked || document.hidden || !socket.connected) return;
    chosen.marked = last;
    socket.emit("mark-read", { sessionId: chosen.sessionId, messageId: last });
  }

  /** Changes something about the chosen conversation; all agents are told how it is then. */
  async function change(event, payload) {
    const { sessionId } = chosen;
    const ack = await ask(event, { sessionId, ...payload });
    notice(ack.error?.message ?? "");
    showDecided();
  }

  function decided(session) {
    if (session.sessionId !== chosen?.sessionId) return;
    chosen.session = session;
    showDecided();
  }

  function showDecided() {
    const { assignee = null, status = "open", aiEnabled = true } = chosen?.session ?? {};
    byId("ai").checked = aiEnabled;
    byId("claim").textContent = assignee ? "Release" : "Claim";
    byId("status").textContent = status === "closed" ? "Open again" : "Close";
    byId("dealt-with").textContent = [status === "closed" && "closed", assignee && `with ${assignee}`].filter(Boolean).join(", ");
  }

  function show() {
    byId("inbox").classList.toggle("reading", chosen !== null);
    byId("chosen").hidden = !chosen;
    byId("nothing-chosen").hidden = chosen !== null;
    sessions.chosen(chosen?.sessionId ?? null);
    if (!chosen) return;
    byId("older").hidden = !chosen.hasOlder;
    showDecided();
    read();
    const mine = outbox.of(chosen.sessionId).filter(({ id }) => !chosen.stored.has(id));
    list.show([...chosen.stored.values(), ...mine]);
  }
}

/** A message of `messages-history` as the list shows it. */
function ofHistory({ id, message, isAdmin, isAI, timestamp }) {
  return { key: id, mine: isAdmin, content: message, isAI, createdAt: timestamp, state: isAdmin ? "stored" : null };
}
