// The list of conversations: those of visitors who are here, kept up by the gateway, or all, page by page.

import { byId, make, when } from "./view.js";

const PAGE = 50;

export class Sessions {
  #choose;
  #ask;
  #active = [];
  #all = [];
  #cursor = null;
  #unread = new Map();
  #chosen = null;
  #buttons = new Map();

  constructor({ choose, ask }) {
    this.#choose = choose;
    this.#ask = ask;
    byId("filter").addEventListener("input", () => this.#show());
    for (const radio of document.getElementsByName("which")) radio.addEventListener("change", () => this.#which());
    byId("more-sessions").addEventListener("click", () => this.#more());
    byId("sessions").addEventListener("keydown", (event) => this.#move(event));
  }

  /** The gateway's list of who is here. */
  active(sessions) {
    this.#active = sessions;
    byId("active-count").textContent = `(${sessions.length})`;
    this.#show();
  }

  /** After a connection was lost, pages that were read are old. */
  connected() {
    if (this.#isAll()) this.#which();
  }

  /** A visitor said something. */
  heard(sessionId, chosen) {
    if (sessionId === chosen && !document.hidden) return;
    this.#unread.set(sessionId, (this.#unread.get(sessionId) ?? 0) + 1);
    this.#show();
  }

  /** This conversation is read now. */
  chosen(sessionId) {
    this.#chosen = sessionId;
    this.#unread.delete(sessionId);
    this.#show();
  }

  focus(sessionId) {
    this.#buttons.get(sessionId)?.focus();
  }

  #isAll() {
    return document.querySelector("[name=which]:checked").value === "all";
  }

  async #which() {
    [this.#all, this.#cursor] = [[], null];
    if (this.#isAll()) await this.#more();
    this.#show();
  }

  async #more() {
    const page = { limit: PAGE, ...(this.#cursor && { cursor: this.#cursor }) };
    const { sessions, nextCursor, error } = await this.#ask("get-all-sessions", page);
    if (error) return;
    this.#all.push(...sessions);
    this.#cursor = nextCursor;
    this.#show();
  }

  /** Everybody who is to be shown, as the newest list has them. */
  #wanted() {
    const active = new Map(this.#active.map((session) => [session.sessionId, session]));
    const current = (session) => active.get(session.sessionId) ?? { ...session, isActive: false };
    const sessions = this.#isAll() ? this.#all.map(current) : this.#active;
    const words = byId("filter").value.trim().toLowerCase();
    return sessions.filter(({ user, lastMessage }) => `${user} ${lastMessage}`.toLowerCase().includes(words));
  }

  #show() {
    const wanted = this.#wanted();
    const place = byId("sessions");
    const kept = new Map();
    let next = place.firstElementChild;
    for (const session of wanted) {
      const button = this.#buttons.get(session.sessionId) ?? this.#button(session.sessionId);
      kept.set(session.sessionId, button);
      this.#fill(button, session);
      if (button.parentElement === next) next = next.nextElementSibling;
      // One that has the focus is not moved: it would lose it.
      else if (!button.contains(document.activeElement) || !button.isConnected) place.insertBefore(button.parentElement, next);
    }
    for (const [sessionId, button] of this.#buttons) {
      if (!kept.has(sessionId)) button.parentElement.remove();
    }
    this.#buttons = kept;
    byId("no-sessions").hidden = wanted.length > 0;
    byId("more-sessions").hidden = !this.#isAll() || this.#cursor === null;
    this.#showChosen();
  }

  #button(sessionId) {
    const button = make("button", { type: "button", onclick: () => this.#choose(sessionId) });
    make("li", {}, button);
    return button;
  }

  #fill(button, session) {
    const { sessionId, user, lastMessage, lastMessageAt, createdAt, isActive } = session;
    const unread = this.#unread.get(sessionId) ?? 0;
    const now = JSON.stringify([user, lastMessage, lastMessageAt, isActive, unread]);
    button.setAttribute("aria-current", sessionId === this.#chosen);
    if (button.dataset.shown === now) return;
    button.dataset.shown = now;
    const here = make("span", { className: "here", textContent: user });
    here.dataset.here = isActive;
    here.append(make("span", { className: "hidden", textContent: isActive ? ", here now" : ", away" }));
    const clock = make("time", { className: "clock", dateTime: lastMessageAt ?? createdAt, textContent: when(lastMessageAt ?? createdAt) });
    button.replaceChildren(here, clock, make("span", { className: "last", dir: "auto", textContent: lastMessage }));
    if (unread > 0) {
      const more = make("span", { className: "hidden", textContent: " unread" });
      button.append(make("span", { className: "unread" }, `${unread}`, more));
    }
  }

  #showChosen() {
    const unread = [...this.#unread.values()].reduce((sum, count) => sum + count, 0);
    document.title = unread > 0 ? `(${unread}) Inbox` : "Inbox";
    if (!this.#chosen) return;
    const known = [...this.#active, ...this.#all].find(({ sessionId }) => sessionId === this.#chosen);
    const isHere = this.#active.some(({ sessionId }) => sessionId === this.#chosen);
    byId("visitor").textContent = known?.user ?? `User-${this.#chosen.slice(0, 8)}`;
    byId("presence").className = "small here";
    byId("presence").dataset.here = isHere;
    byId("presence").textContent = isHere ? "Here now" : "Away";
  }

  /** Up and down go through the list. */
  #move(event) {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const to = step && document.activeElement.closest("li")?.[step];
    if (!to) return;
    event.preventDefault();
    to.firstElementChild.focus();
  }
}
