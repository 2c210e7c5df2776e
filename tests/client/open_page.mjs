// Pages that end with their test.

import { GATEWAY_URL, eventually } from "./lib.mjs";
import { newPage } from "./pages.mjs";

/** For thousands of messages, or a crash, on a busy machine. */
const LATER = 60_000;

/** Opens a page. */
export function openPage(t, storage, options) {
  const page = newPage(storage, { url: GATEWAY_URL, ...options });
  t.after(page.close);
  return page;
}

/** Waits until a page shows so many messages, all of them stored. */
export const settled = (page, count, within = LATER) =>
  eventually(`${count} stored messages`, () => {
    const { messages } = page.chat.state;
    return messages.length >= count && messages.every(({ state }) => state === "stored");
  }, within);

/** Waits until a page is in its session. */
export const joined = (page) => eventually("a page that is in its session", () => page.chat.state.connection === "connected", LATER);
