// A real browser, told by a Rust test what to do: JSON lines over TCP, each request `{n, do, client, …}` answered by
// `{n, ok}` or `{n, error}`. Ends with the connection. A client is a tab.

import { readFile } from "node:fs/promises";
import { connect as connectTcp } from "node:net";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const { CHROMIUM, CONTROL_PORT } = process.env;
/** Until the browser runs, the first time from a slow disk. */
const STARTS_WITHIN = 120_000;
/** Longest wait of one step, on a busy machine. */
const STEP_WITHIN = 30_000;
/** As fast as somebody who drags the bar. */
const PAGES_A_FRAME = 10;
/** Between two messages of somebody who writes all the time, in milliseconds. */
const BREATH = 150;

const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"], timeout: STARTS_WITHIN });
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const contexts = new Map();
const tabs = new Map();

/** Remembers what the policy of a page forbade. */
function watchPolicy() {
  globalThis.violations = [];
  addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI, sample }) =>
    globalThis.violations.push(`${violatedDirective}: ${blockedURI} ${sample}`));
}

/** Every message that a page shows. */
function shown() {
  return [...document.querySelectorAll("#messages > li:not(.day)")].map((item) => ({
    text: item.querySelector(".bubble p").textContent,
    mine: item.classList.contains("mine"),
    state: item.querySelector(".state")?.textContent ?? null,
  }));
}

const commands = {
  /** Opens a page in a tab of this person, who has cookies and storage of their own. */
  async open({ client, person, url, options }) {
    if (!contexts.has(person)) contexts.set(person, await browser.newContext(options));
    const context = contexts.get(person);
    const page = await context.newPage();
    page.setDefaultTimeout(STEP_WITHIN);
    const told = [];
    page.on("console", (message) => message.type() === "error" && told.push(`${message.text()} ${message.location().url}`));
    page.on("pageerror", (error) => told.push(`${error.stack ?? error}`));
    await page.addInitScript(watchPolicy);
    tabs.set(client, { page, context, told, chatter: null });
    await page.goto(url);
  },

  /** Writes this and presses Enter. */
  say: ({ page, content }) => say(page, content),

  shown: ({ page }) => page.evaluate(shown),

  count: ({ page }) => page.locator("#messages > li:not(.day)").count(),

  connection: ({ page }) => page.locator("#connection").getAttribute("data-connection"),

  text: ({ page, selector }) => page.locator(selector).innerText(),

  matches: ({ page, selector }) => page.locator(selector).count().then((count) => count > 0),

  click: ({ page, selector }) => page.locator(selector).first().click(),

  fill: ({ page, selector, text }) => page.locator(selector).fill(text),

  reload: ({ page }) => page.reload(),

  press: ({ page, keys }) => page.keyboard.press(keys),

  offline: ({ context, on }) => context.setOffline(on),

  look: ({ page, colorScheme, width, height }) =>
    Promise.all([page.emulateMedia({ colorScheme }), page.setViewportSize({ width, height })]),

  screenshot: ({ page, file }) => page.screenshot({ path: file }),

  /** Writes `1`, `2`, … all the time, whatever happens to the page. */
  chatter({ tab }) {
    tab.chatter = { said: 0, isOver: false };
    tab.chatter.ended = chatter(tab);
  },

  said: ({ tab }) => tab.chatter.said,

  async hush({ tab }) {
    tab.chatter.isOver = true;
    await tab.chatter.ended;
    return tab.chatter.said;
  },

  /** Errors that the page or the browser told, and what the policy forbade. */
  async problems({ page, told }) {
    return [...told, ...(await page.evaluate(() => globalThis.violations))];
  },

  /** What a person with a disability would stumble over, if it is serious. */
  async axe({ page }) {
    await page.evaluate(`${axe}; undefined`);
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
    return serious.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("; ")}`);
  },

  /** Whether anything is wider than the window. */
  overflows: ({ page }) => page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth),

  /** Scrolls the messages from the end to the beginning; the longest time between two frames on the way, in milliseconds. */
  scroll: ({ page }) => page.evaluate(scrollUp, PAGES_A_FRAME),
};

async function scrollUp(pages) {
  const log = document.getElementById("log");
  const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
  log.scrollTop = log.scrollHeight;
  await frame();
  let longest = 0;
  let last = performance.now();
  const step = pages * log.clientHeight;
  while (log.scrollTop > 0) {
    log.scrollTop -= step;
    await frame();
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
  }
  const top = log.getBoundingClientRect().top;
  const first = [...document.querySelectorAll("#messages > li:not(.day)")].find((item) => item.getBoundingClientRect().bottom > top);
  return { longest, first: first.querySelector(".bubble p").textContent };
}

async function say(page, content) {
  await page.locator("#content").fill(content);
  await page.locator("#content").press("Enter");
}

async function chatter(tab) {
  while (!tab.chatter.isOver) {
    const next = `${tab.chatter.said + 1}`;
    // A page that is being loaded anew takes nothing: nothing was said then.
    const taken = await say(tab.page, next).then(() => true, () => false);
    if (taken) tab.chatter.said += 1;
    await new Promise((resolve) => setTimeout(resolve, BREATH));
  }
}

const control = connectTcp(Number(CONTROL_PORT), "127.0.0.1");
for await (const line of createInterface(control)) {
  const request = JSON.parse(line);
  const tab = tabs.get(request.client);
  const answer = (what) => control.write(`${JSON.stringify({ n: request.n, ...what })}\n`);
  Promise.resolve()
    .then(() => commands[request.do]({ ...request, ...tab, tab }))
    .then((ok) => answer({ ok: ok ?? null }), (error) => answer({ error: `${error.stack ?? error}` }));
}
await browser.close();
