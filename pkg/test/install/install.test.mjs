// The packed package in small projects of several tools: each embeds a caption and a picture, as was recorded of the original.
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, test } from "node:test";

import { launch, skip as noBrowser, timeout } from "../browser/support/browser.mjs";
import { convertTiny, distance, goldens, missing, recordedTiny, temporary } from "../browser/support/native.mjs";
import { serve } from "../browser/support/server.mjs";
import { execute, makeProject, pack, startServer } from "./support/project.mjs";

const folder = missing || (await temporary(after));
const tiny = missing || convertTiny(join(folder, "tiny"));
const { captions, text, image } = missing ? {} : await recordedTiny();
const tarball = missing || pack(folder);

const EMBED = `
import { ErnieVil } from "ernie-vil";

export async function embed(model, caption, picture, threads) {
  const loaded = await ErnieVil.load(model, { device: "cpu", threads });
  const text = await loaded.embedText([caption]);
  const image = await loaded.embedImages([picture]);
  loaded.dispose();
  return { text: Array.from(text.data), image: Array.from(image.data), info: loaded.info };
}
`;
const PROGRAM = `
import process from "node:process";
import { embed } from "./embed.mjs";

const { info, ...vectors } = await embed(...process.argv.slice(2));
console.log(JSON.stringify({ ...vectors, info }));
`;
const PAGE = `import { embed } from "./embed.mjs";\nglobalThis.embed = embed;\n`;
const HTML = (script) => `<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><script type="module" src="./${script}"></script>`;

function compare(outputs, worker, threads = 1) {
  const { dimensions, device } = outputs.info;
  assert.deepEqual([device.kind, device.worker, device.threads], ["cpu", worker, threads], device.reason);
  for (const [name, recorded] of Object.entries({ text, image })) {
    const { difference } = distance(outputs[name], recorded.subarray(0, dimensions), dimensions);
    assert.ok(difference <= 1e-5, `the ${name} vector differs by ${difference}`);
  }
}

for (const { name, tools = [], command } of [
  { name: "Node", command: (folder) => [process.execPath, join(folder, "main.mjs")] },
  { name: "Deno", tools: ["deno@2.9.6"], command: () => ["npx", "--no-install", "deno", "run", "--allow-read", "--allow-env", "main.mjs"] },
  { name: "Bun", tools: ["bun@1.4.5"], command: () => ["npx", "--no-install", "bun", "main.mjs"] },
]) {
  test(`installed in ${name}`, { skip: missing, timeout }, async (t) => {
    const project = await makeProject(folder, name.toLowerCase(), tarball, { "embed.mjs": EMBED, "main.mjs": PROGRAM }, ...tools);
    if (project.skip) return t.skip(project.skip);
    const output = execute(project.folder, ...command(project.folder), tiny, captions[0], join(goldens, "images/r00.jpg"));
    compare(JSON.parse(output), false);
  });
}

/** Opens a page and embeds in it, with a model of `server`; nothing may be missing. */
async function open(t, address, server, threads = 1) {
  const browser = await launch(t.after.bind(t));
  const page = await browser.newPage();
  const fetched = [];
  page.on("response", (response) => fetched.push([response.status(), response.url()]));
  await page.goto(address);
  await page.waitForFunction(() => "embed" in globalThis);
  const outputs = await page.evaluate((inputs) => embed(...inputs), [
    `${server.url}tiny/`,
    captions[0],
    `${server.url}images/r00.jpg`,
    threads,
  ]);
  compare(outputs, true, threads);
  assert.deepEqual(fetched.filter(([status]) => status >= 400), []);
}

const WEBPACK = `
import { fileURLToPath } from "node:url";
import webpack from "webpack";

const context = fileURLToPath(new URL(".", import.meta.url));
// Any other warning is an error; that the modules are larger than webpack likes is known.
webpack({ mode: "production", context, entry: "./page.mjs", performance: { hints: false } }, (error, stats) => {
  console.log(error ?? stats.toString());
  process.exitCode = error || stats.hasErrors() || stats.hasWarnings() ? 1 : 0;
});
`;

const VITE = `
import { createServer } from "vite";

const server = await createServer({ server: { host: "127.0.0.1", port: 0 }, logLevel: "warn" });
await server.listen();
console.log(server.resolvedUrls.local[0]);
`;

for (const { name, tools, files, build } of [
  {
    name: "Vite",
    tools: ["vite@8.3.8"],
    files: { "index.html": HTML("page.mjs") },
    build: (folder) => execute(folder, "npx", "--no-install", "vite", "build", "--base", "./"),
  },
  {
    name: "webpack",
    tools: ["webpack@5.112.2"],
    files: { "build.mjs": WEBPACK },
    build: (folder) => execute(folder, process.execPath, "build.mjs"),
  },
]) {
  test(`built with ${name}`, { skip: noBrowser, timeout }, async (t) => {
    const project = await makeProject(folder, name.toLowerCase(), tarball, { "embed.mjs": EMBED, "page.mjs": PAGE, ...files }, ...tools);
    if (project.skip) return t.skip(project.skip);
    build(project.folder);
    if (name === "webpack") await writeFile(join(project.folder, "dist", "index.html"), HTML("main.js"));
    for (const threads of [1, 2]) {
      const server = await serve({ app: join(project.folder, "dist"), tiny, images: join(goldens, "images") }, { isolated: threads > 1 });
      t.after(server.close);
      await open(t, `${server.url}app/index.html`, server, threads);
      const modules = server.seen.filter(({ name }) => name?.endsWith(".wasm"));
      assert.equal(modules.length, 1, `WebAssembly: ${modules.map(({ name }) => name)}`);
    }
  });
}

test("served by Vite while developing, without any settings", { skip: noBrowser, timeout }, async (t) => {
  const files = { "embed.mjs": EMBED, "page.mjs": PAGE, "index.html": HTML("page.mjs"), "serve.mjs": VITE };
  const project = await makeProject(folder, "vite-development", tarball, files, "vite@8.3.8");
  if (project.skip) return t.skip(project.skip);
  const server = await serve({ tiny, images: join(goldens, "images") });
  t.after(server.close);
  await open(t, await startServer(t, project.folder, "serve.mjs"), server);
});
