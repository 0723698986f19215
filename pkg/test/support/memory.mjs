// Embeds thousands of pictures and captions in one process, and prints how much larger it is after them than after the first
// few: `memory.mjs MODEL PAIRS COUNT`. For Node (--expose-gc), Deno (--v8-flags=--expose-gc) and Bun.
import { Buffer } from "node:buffer";
import { readFile } from "node:fs/promises";
import process from "node:process";

import { ErnieVil } from "ernie-vil";

const [model, pairs, count] = process.argv.slice(2);
const rows = (await readFile(pairs, "utf8")).split("\n").slice(0, 200).map((line) => line.split("\t"));
const captions = rows.map(([caption]) => caption);
const pictures = rows.map((columns) => Buffer.from(columns.at(-1), "base64"));

const collect = async () => {
  for (let i = 0; i < 4; i++) {
    if (globalThis.Bun) Bun.gc(true);
    else globalThis.gc();
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};
const size = async () => {
  await collect();
  const { rss, heapUsed, arrayBuffers } = process.memoryUsage();
  return { rss, held: heapUsed + (arrayBuffers ?? 0) };
};

const loaded = await ErnieVil.load(model, { device: "cpu" });
// A signal as a page has it, for as long as it runs.
const { signal } = new AbortController();
const embed = async (total) => {
  for (let done = 0; done < total; done += 100) {
    const at = done % pictures.length;
    const { rows: images } = await loaded.embedImages(pictures.slice(at, at + 100), { signal });
    for (const caption of captions.slice(at, at + 100)) await loaded.embedText([caption], { signal });
    if (images !== 100) throw new Error(`${images} of 100 pictures have a vector`);
  }
};

await embed(400);
const before = await size();
await embed(Number(count));
const after = await size();
const grown = Object.fromEntries(Object.entries(after).map(([name, bytes]) => [name, bytes - before[name]]));
console.log(JSON.stringify({ count: Number(count), values: (await loaded.preprocess(pictures[0])).length, before, after, grown }));
loaded.dispose();
