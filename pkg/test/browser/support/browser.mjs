// Chromium, and pages in it.
import { existsSync } from "node:fs";

import { chromium } from "playwright-core";

import { missing } from "./native.mjs";

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";

/** Why there can be no test in the browser here, or nothing. */
export const skip = missing || (!existsSync(executablePath) && `there is no ${executablePath}: install chromium, or name it in CHROMIUM`);

/** Milliseconds that a test may take: much longer than it needs on two busy cores. */
export const timeout = 20 * 60_000;

const ARGS =
  "--no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync " +
  "--enable-unsafe-webgpu --use-webgpu-adapter=swiftshader " +
  // A page's memory is measured after a collection, which is not waited for.
  "--enable-blink-features=ForceEagerMeasureMemory";

/** Starts Chromium for the time of a test file. */
export async function launch(after) {
  const browser = await chromium.launch({ executablePath, headless: true, args: ARGS.split(" "), timeout: 120_000 });
  after(() => browser.close());
  return browser;
}

/** Runs `work` with a page of the server's, in a context of its own with a storage of its own. */
export async function withPage(browser, { url }, work) {
  const context = await browser.newContext();
  context.setDefaultTimeout(timeout);
  try {
    return await work(await openPage(context, url), context);
  } finally {
    await context.close();
  }
}

/** Opens a page that has the package's exports, and those of `page.mjs`, as globals. */
export async function openPage(context, url) {
  const page = await context.newPage();
  page.on("pageerror", (error) => console.error(`page: ${error.stack}`));
  await page.goto(url);
  await page.waitForFunction(() => "ErnieVil" in globalThis);
  return page;
}

/** Waits until a page has so many workers: one that was ended takes a moment to go. */
export async function workers(page, count) {
  for (let waited = 0; page.workers().length !== count && waited < 10_000; waited += 50) await page.waitForTimeout(50);
  return page.workers().length;
}
