// A model packed in several precisions, in a browser: time from the start of a page to its first vector, on a first visit and on
// a later one, and the peak of memory.
//
//     ernie-vil convert --model base --dtype int8 --shard-size 32MB --output packs/int8    # and f16, int4
//     cargo xtask web && npm ci --prefix benches/peers/web
//     node benches/peers/web/packs.mjs --work packs --tower text --device cpu f16 int8 int4
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { openBrowser, openSide, peakBytes, serve } from "./browser.mjs";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    work: { type: "string" },
    tower: { type: "string", default: "text" },
    device: { type: "string", default: "cpu" },
    threads: { type: "string", default: "1" },
    rounds: { type: "string", default: "3" },
  },
});
if (!values.work || positionals.length === 0) {
  console.error("expected --work FOLDER and the names of the model folders in it");
  process.exit(2);
}

/** Loads the tower on a fresh page, up to its first vector. */
async function visit(url, profile, folder) {
  const { device, tower } = values;
  const options = { side: "ours", device, threads: Number(values.threads), folder: `/models/${folder}/`, towers: [tower], cache: true };
  const context = await openBrowser(profile);
  try {
    const page = await openSide(context, url, { ...options, first: { tower } });
    const ms = await page.firstEmbedding();
    const { dtype, cache } = await page.info();
    const [wasm, renderer] = [await page.wasmBytes(), peakBytes("renderer")];
    const gpu = device === "webgpu" ? peakBytes("gpu-process") : undefined;
    return { ms, dtype, fromCache: cache.fromCache, wasm, renderer, gpu };
  } finally {
    await context.close();
  }
}

const server = await serve({ package: fileURLToPath(new URL("../../../pkg", import.meta.url)), models: values.work });
const found = new Map(positionals.map((folder) => [folder, { cold: [], cached: [] }]));
for (let round = 0; round < Number(values.rounds); round++) {
  for (const [folder, { cold, cached }] of round % 2 === 0 ? found : [...found].reverse()) {
    const profile = mkdtempSync(join(tmpdir(), "packs-"));
    try {
      cold.push(await visit(server.url, profile, folder));
      cached.push(await visit(server.url, profile, folder));
      if (cold.at(-1).fromCache || !cached.at(-1).fromCache) throw new Error(`${folder}: only the second visit may find its files`);
    } finally {
      rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    }
  }
}
server.close();

const megabytes = (visits, what) => Math.max(...visits.map((visit) => (visit[what] ?? NaN) / 1e6)).toFixed(0);
const seconds = (visits) => {
  const sorted = visits.map(({ ms }) => ms / 1e3).sort((a, b) => a - b);
  return `${sorted[sorted.length >> 1].toFixed(2)} / ${sorted[0].toFixed(2)}`;
};
console.log(`| ${values.tower}, ${values.device} | kept as | cold, s (median / least) | cached, s | WebAssembly, MB | page, peak, MB | GPU process, peak, MB |`);
console.log("| --- | --- | --- | --- | --- | --- | --- |");
for (const [folder, { cold, cached }] of found) {
  const both = [...cold, ...cached];
  const cells = [folder, cold[0].dtype, seconds(cold), seconds(cached), ...["wasm", "renderer", "gpu"].map((what) => megabytes(both, what))];
  console.log(`| ${cells.join(" | ")} |`);
}
