// What both pages show alike: messages, where the connection is, a field to write in.

const STATES = { waiting: "Waiting", accepted: "Accepted", stored: "Stored", refused: "Refused" };
const CONNECTIONS = { connecting: "Connecting …", connected: "Connected", offline: "Offline. What you write waits here." };
/** How often a page that nobody looks at is kept up, in milliseconds. */
const HIDDEN = 200;
/** Nearer to the end than this counts as at the end, in pixels. */
const NEAR = 80;

const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const shortDay = new Intl.DateTimeFormat([], { day: "numeric", month: "short" });
const calendar = new Intl.DateTimeFormat([], { weekday: "long", day: "numeric", month: "long" });

const days = new Map();

/** The element of the page with this id. */
export const byId = (id) => document.getElementById(id);

/** A new element. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** `09:41` as this browser writes it. */
export const time = (iso) => clock.format(new Date(iso));

/** The same today, and the day before. */
export function when(iso) {
  const date = new Date(iso);
  return date.toDateString() === new Date().toDateString() ? clock.format(date) : shortDay.format(date);
}

/** The day of a message. Thousands are asked for at once, and ten minutes lie within one day everywhere. */
function dayOf(iso) {
  const minutes = iso.slice(0, "2026-01-31T09:4".length);
  if (!days.has(minutes)) days.set(minutes, calendar.format(new Date(iso)));
  return days.get(minutes);
}

/** Shows where the connection is. */
export function showConnection(connection) {
  const place = byId("connection");
  if (place.dataset.connection === connection) return;
  place.dataset.connection = connection;
  place.textContent = CONNECTIONS[connection];
}

/** Says something in plain words above the messages; nothing takes it away. */
export function notice(text) {
  const place = byId("notice");
  place.hidden = !text;
  if (place.textContent !== text) place.textContent = text;
}

/** Whether Socket.IO's client is there; else the page says so. */
export function hasClient() {
  if (typeof globalThis.io === "function") return true;
  showConnection("offline");
  notice(
    "This page needs Socket.IO’s client for browsers, which this gateway was not given: set SOCKET_IO_CLIENT to the " +
      "folder “dist” of the npm package socket.io-client and start the gateway again.",
  );
  return false;
}

/** Calls `show` once for many changes: before the next frame, or soon where nobody looks. */
export function planned(show) {
  let isPlanned = false;
  return () => {
    if (isPlanned) return;
    isPlanned = true;
    const now = () => {
      isPlanned = false;
      show();
    };
    if (document.hidden) setTimeout(now, HIDDEN);
    else requestAnimationFrame(now);
  };
}

/** A list of messages in the page. A message is `{key, mine, content, createdAt, isAI, state, error}`. */
export class MessageList {
  #log = byId("log");
  #list = byId("messages");
  #newest = byId("newest");
  #shown = new Map();
  #actions;
  #isNearEnd = true;

  /** `actions` are what a refused message offers: `{"Try again": (message) => …}`. */
  constructor(actions) {
    this.#actions = actions;
    this.#log.addEventListener("scroll", () => this.#looked(), { passive: true });
    this.#newest.addEventListener("click", () => this.toEnd());
    // What is measured late, such as a keyboard that comes up, must not hide the end.
    new ResizeObserver(() => this.#isNearEnd && this.toEnd()).observe(this.#log);
    new ResizeObserver(() => this.#isNearEnd && this.toEnd()).observe(this.#list);
  }

  /** Shows these in place of what is shown. Only what changed is touched. */
  show(messages) {
    const wanted = new Map();
    let day = "";
    for (const message of messages) {
      const its = dayOf(message.createdAt);
      if (its !== day) wanted.set(`day ${its} ${message.key}`, { day: its });
      day = its;
      wanted.set(message.key, message);
    }
    for (const [key, { element }] of this.#shown) {
      if (!wanted.has(key)) {
        element.remove();
        this.#shown.delete(key);
      }
    }
    const isFirst = this.#shown.size === 0;
    if (isFirst) this.#log.setAttribute("aria-busy", "true");
    const added = this.#place(wanted);
    if (isFirst) requestAnimationFrame(() => this.#log.removeAttribute("aria-busy"));
    if (this.#isNearEnd || added.at(-1)?.mine) this.toEnd();
    else if (added.length > 0 && !this.#isAbove(added)) this.#newest.hidden = false;
  }

  /** Takes everything away. */
  clear() {
    this.#shown.clear();
    this.#list.replaceChildren();
    this.#isNearEnd = true;
    this.#newest.hidden = true;
  }

  /** What is shown stays where it is, while `show` puts something above it. */
  keepPlace(show) {
    const { scrollHeight, scrollTop } = this.#log;
    show();
    this.#log.scrollTop = scrollTop + this.#log.scrollHeight - scrollHeight;
  }

  /** Shows the newest message. */
  toEnd() {
    this.#isNearEnd = true;
    this.#newest.hidden = true;
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  /** Puts everything where it belongs; what is new comes back. */
  #place(wanted) {
    const added = [];
    let next = this.#list.firstElementChild;
    for (const [key, message] of wanted) {
      let shown = this.#shown.get(key);
      if (!shown) {
        shown = { message, element: make("li") };
        this.#shown.set(key, shown);
        fill(shown.element, message, this.#actions);
        if (!message.day) added.push(message);
      } else if (differs(shown.message, message)) {
        fill(shown.element, message, this.#actions);
        shown.message = message;
      }
      if (shown.element === next) next = next.nextElementSibling;
      else this.#list.insertBefore(shown.element, next);
    }
    return added;
  }

  /** Older ones, which were asked for, are nothing new. */
  #isAbove(added) {
    return this.#list.lastElementChild !== this.#shown.get(added.at(-1).key)?.element;
  }

  #looked() {
    const { scrollHeight, scrollTop, clientHeight } = this.#log;
    this.#isNearEnd = scrollHeight - scrollTop - clientHeight < NEAR;
    if (this.#isNearEnd) this.#newest.hidden = true;
  }
}

function differs(one, other) {
  return one.state !== other.state || one.createdAt !== other.createdAt || one.content !== other.content;
}

function fill(element, message, actions) {
  if (message.day) {
    element.className = "day";
    element.textContent = message.day;
    return;
  }
  const { mine, content, createdAt, isAI, state, error } = message;
  element.className = [mine && "mine", state === "refused" && "refused"].filter(Boolean).join(" ");
  const text = make("p", { dir: "auto", textContent: content });
  const who = make("span", { className: "hidden", textContent: mine ? "You:" : isAI ? "Program:" : "They:" });
  const foot = make("div", { className: "foot" });
  if (isAI) foot.append(make("span", { className: "ai", textContent: "AI" }));
  foot.append(make("time", { dateTime: createdAt, textContent: time(createdAt) }));
  if (mine && state) {
    const mark = make("span", { className: "mark" });
    mark.dataset.state = state;
    foot.append(mark, make("span", { className: "state", textContent: STATES[state] }));
  }
  if (state === "refused") {
    foot.append(make("span", { className: "why", textContent: error?.message ?? "It cannot be taken." }));
    for (const [name, act] of Object.entries(actions)) {
      foot.append(make("button", { type: "button", className: "plain", textContent: name, onclick: () => act(message) }));
    }
  }
  element.replaceChildren(make("div", { className: "bubble" }, who, text), foot);
}

/** Calls `send` with what was written, at Enter and at the button. */
export function composer(send) {
  const [form, field] = [byId("composer"), byId("content")];
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const content = field.value.trim();
    if (content) {
      send(content);
      field.value = "";
    }
    field.focus();
  });
  field.addEventListener("keydown", (event) => {
    // An input method that composes a word takes Enter for itself.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
}
