// The packed package in small projects of several tools: each embeds a caption and a picture, as was recorded of the original.
import assert from "node:assert/strict";
import { copyFile, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, test } from "node:test";

import { launch, skip as noBrowser, timeout } from "../browser/support/browser.mjs";
import { convertTiny, distance, goldens, missing, pkg, recordedTiny, scenes, temporary } from "../browser/support/native.mjs";
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

/** Opens an index in a folder, by itself and in a second process, which must not get it. */
const INDEX = `
import { spawnSync } from "node:child_process";
import process from "node:process";
import { EmbeddingIndex } from "ernie-vil";

const [folder, ...program] = process.argv.slice(2);
const options = { folder, dimensions: 2, fingerprint: "f" };
const open = () => EmbeddingIndex.open("photos", options).catch(({ code }) => code);
const index = await open();
if (program.length === 0) {
  console.log(typeof index === "string" ? index : "opened");
} else {
  const second = () => spawnSync(program[0], [...program.slice(1), folder], { encoding: "utf8" }).stdout.trim();
  await index.add(["a"], Float32Array.of(1, 0));
  const answers = [await open(), second()];
  await index.close();
  const again = await open();
  answers.push((await again.ids()).join());
  await again.close();
  console.log(JSON.stringify([...answers, second()]));
}
`;

for (const { name, tools = [], command } of [
  { name: "Node", command: (...flags) => [process.execPath, ...flags] },
  {
    name: "Deno",
    tools: ["deno@2.9.6"],
    command: (...flags) => [
      ...["npx", "--no-install", "deno", "run", "--allow-read", "--allow-write", "--allow-env", "--allow-sys"],
      ...flags.map((flag) => (flag === "--expose-gc" ? "--v8-flags=--expose-gc" : flag)),
    ],
  },
  { name: "Bun", tools: ["bun@1.4.5"], command: (...flags) => ["npx", "--no-install", "bun", ...flags.filter((flag) => flag !== "--expose-gc")] },
]) {
  test(`installed in ${name}`, { skip: missing, timeout }, async (t) => {
    const project = await makeProject(folder, name.toLowerCase(), tarball, { "embed.mjs": EMBED, "main.mjs": PROGRAM, "index.mjs": INDEX }, ...tools);
    if (project.skip) return t.skip(project.skip);
    const output = execute(project.folder, ...command("main.mjs"), tiny, captions[0], join(goldens, "images/r00.jpg"));
    compare(JSON.parse(output), false);

    await t.test("an index in a folder is one process's, also beside a process of Node", async () => {
      const place = join(project.folder, "indexes");
      await mkdir(place);
      const other = [process.execPath, join(project.folder, "index.mjs")];
      const run = name === "Deno" ? ["--allow-run"] : [];
      const answers = execute(project.folder, ...command(...run, "index.mjs"), place, ...other);
      assert.deepEqual(JSON.parse(answers), ["locked", "locked", "a", "opened"]);
    });

    await t.test("thousands of pictures and captions leave nothing behind", async () => {
      await copyFile(join(pkg, "test/support/memory.mjs"), join(project.folder, "memory.mjs"));
      const output = execute(project.folder, ...command("--expose-gc", "memory.mjs"), scenes, join(scenes, "test.tsv"), "2500");
      const { values, count, grown } = JSON.parse(output);
      // Were every picture's crop kept, it would be 69 MB. Not every runtime counts what it holds.
      assert.ok(grown.rss < 2 * values * count, output);
    });
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
