// Both sides in one Chromium: a server of their files, their pages, and what their processes take of memory.
import { createReadStream, existsSync, readFileSync, readdirSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize, sep } from "node:path";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

const TYPES = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".json": "application/json",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
};
const HEADERS = {
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-embedder-policy": "require-corp",
  "cache-control": "public, max-age=3600",
};
const SWITCHES = [
  "--no-sandbox",
  "--disable-quic",
  "--no-first-run",
  "--disable-component-update",
  "--disable-sync",
  "--disable-renderer-backgrounding",
  "--enable-unsafe-webgpu",
  "--use-webgpu-adapter=swiftshader",
];

/** Serves folders by the first part of the path; a path in none of them is one of the pages' own files. */
export async function serve(folders) {
  const own = fileURLToPath(new URL("page", import.meta.url));
  const server = createServer((request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
    const [, first, ...rest] = path.split(sep);
    const file = first in folders ? join(folders[first], ...rest) : join(own, path);
    if (!existsSync(file) || !statSync(file).isFile()) {
      response.writeHead(404, HEADERS).end();
      return;
    }
    const type = TYPES[extname(file)] ?? "application/octet-stream";
    response.writeHead(200, { ...HEADERS, "content-type": type, "content-length": statSync(file).size });
    createReadStream(file).pipe(response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://localhost:${server.address().port}/`, close: () => server.close() };
}

/** Starts a browser whose storage lies in `profile`. */
export async function openBrowser(profile) {
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    args: SWITCHES,
  });
  context.setDefaultTimeout(0);
  return context;
}

/** Opens a page for one side and waits until its models are loaded. Its methods are those of the side. */
export async function openSide(context, url, options) {
  const page = await context.newPage();
  const problems = [];
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  page.on("pageerror", (error) => problems.push(error.message));
  await page.goto(`${url}index.html#${encodeURIComponent(JSON.stringify(options))}`);
  await page.waitForFunction(() => "side" in globalThis);
  const evaluate = async (work, argument) => {
    try {
      return await page.evaluate(work, argument);
    } catch (error) {
      throw new Error([error.message, ...problems].join("\n"));
    }
  };
  const method = (name) => (...parameters) =>
    evaluate(async ([name, parameters]) => (await globalThis.side)[name](...parameters), [name, parameters]);
  const side = Object.fromEntries(["info", "open", "close", "run", "wasmBytes", "kept"].map((name) => [name, method(name)]));
  await evaluate(async () => void (await globalThis.side));
  return { ...side, firstEmbedding: () => evaluate(() => globalThis.firstEmbedding), closePage: () => page.close() };
}

/** Peak resident bytes of the largest of our browser's processes of a kind ("renderer", "gpu-process"), on Linux. */
export function peakBytes(kind) {
  if (process.platform !== "linux") return undefined;
  const read = (pid, file) => {
    try {
      return readFileSync(`/proc/${pid}/${file}`, "utf8");
    } catch {
      return "";
    }
  };
  const parents = new Map();
  for (const pid of readdirSync("/proc")) {
    if (/^\d+$/.test(pid)) parents.set(pid, /^PPid:\s+(\d+)/m.exec(read(pid, "status"))?.[1]);
  }
  const isOurs = (pid) => pid !== undefined && (pid === String(process.pid) || isOurs(parents.get(pid)));
  const peaks = [...parents.keys()]
    .filter((pid) => isOurs(pid) && read(pid, "cmdline").includes(`--type=${kind}`))
    .map((pid) => 1024 * Number(/^VmHWM:\s+(\d+)/m.exec(read(pid, "status"))?.[1] ?? 0));
  return peaks.length > 0 ? Math.max(...peaks) : undefined;
}
