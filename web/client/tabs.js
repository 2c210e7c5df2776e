const LEASE_MS = 2_500;
const LOOK_MS = 250;

/** Keeps texts where they outlive the page. What the storage cannot take (it is full, or forbidden) stays in memory. */
export function openStorage(wanted = "local") {
  const memory = new Map();
  const attempt = (act) => {
    try {
      return act();
    } catch {
      return undefined;
    }
  };
  const place = wanted === "local" ? attempt(() => localStorage) : wanted === "memory" ? null : wanted;
  const names = () => Array.from({ length: place.length }, (_, index) => place.key(index));
  return {
    isShared: Boolean(place),
    get: (key) => memory.get(key) ?? attempt(() => place.getItem(key)) ?? null,
    set(key, text) {
      memory.set(key, text);
      attempt(() => {
        place.setItem(key, text);
        memory.delete(key);
      });
    },
    remove(key) {
      memory.delete(key);
      attempt(() => place.removeItem(key));
    },
    keys(prefix) {
      const all = [...memory.keys(), ...(attempt(names) ?? [])];
      return [...new Set(all)].filter((key) => key?.startsWith(prefix)).sort();
    },
  };
}

/** Tabs with one storage: each hears when another changed something, and one of them leads. */
export function meetTabs(name, storage, heard, led) {
  const leaseKey = `${name}leader`;
  const closed = new AbortController();
  let channel;
  let turn;
  if (storage.isShared) {
    channel = globalThis.BroadcastChannel && new BroadcastChannel(name);
    channel?.unref?.();
    if (channel) channel.onmessage = heard;
    // A message may come before what it tells of can be read; this event does not.
    const onStorage = ({ key }) => key !== leaseKey && (key ?? name).startsWith(name) && heard();
    globalThis.addEventListener?.("storage", onStorage, closed);
  }
  return {
    changed: () => channel?.postMessage(0),
    /** A tab that has no connection lets others lead. */
    lead(wanted) {
      if (wanted === Boolean(turn)) return;
      turn?.abort();
      turn = wanted ? new AbortController() : null;
      if (!wanted) led(false);
      else if (!storage.isShared) led(true);
      else if (globalThis.navigator?.locks) lock(name, led, turn.signal);
      else lease(leaseKey, storage, led, turn.signal);
    },
    close() {
      this.lead(false);
      channel?.close();
      channel = null;
      closed.abort();
    },
  };
}

function lock(name, led, signal) {
  const hold = () => {
    led(true);
    return new Promise((release) => signal.addEventListener("abort", release));
  };
  navigator.locks.request(name, { signal }, hold).catch(() => {});
}

/** Where there are no Web Locks. Two may lead for a moment: a send that is repeated does no harm. */
function lease(key, storage, led, signal) {
  const me = Math.random().toString(36);
  let leads = false;
  const look = () => {
    const [owner, until] = (storage.get(key) ?? "").split(" ");
    const left = until - Date.now();
    const isMine = owner === me;
    // A lease longer than any is of a clock that went back.
    if (isMine || !(left > 0 && left <= LEASE_MS)) storage.set(key, `${me} ${Date.now() + LEASE_MS}`);
    // Who finds its own name at the next look was the last to write.
    if (isMine !== leads) led((leads = isMine));
  };
  const leave = () => storage.get(key)?.startsWith(`${me} `) && storage.remove(key);
  const timer = setInterval(look, LOOK_MS);
  signal.addEventListener("abort", () => {
    clearInterval(timer);
    leave();
  });
  globalThis.addEventListener?.("pagehide", leave, { signal });
  look();
}
