// The package with its own CPU module in Node, on the small model "scenes" of this repository.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { trapping } from "./support/trapping.mjs";

const wasm = new URL("../wasm/cpu/ernie_vil_bg.wasm", import.meta.url);
const scenes = new URL("../../models/scenes/", import.meta.url);
const skip =
  (!existsSync(wasm) && "pkg/wasm/cpu is not built: cargo xtask web builds it") ||
  (!existsSync(scenes) && "models/scenes is not here");

/** The first rows of the test pairs: a caption and the bytes of its picture. */
async function pairs(count) {
  const lines = (await readFile(new URL("test.tsv", scenes), "utf8")).split("\n").slice(0, count);
  return lines.map((line) => {
    const columns = line.split("\t");
    return { caption: columns[0], picture: Buffer.from(columns.at(-1), "base64") };
  });
}

test("captions find their pictures, alone or in batches, from a path and from files", { skip }, async () => {
  const { ErnieVil } = await import("../dist/index.js");
  const model = await ErnieVil.load(fileURLToPath(scenes));
  const { info } = model;
  assert.deepEqual([info.device.kind, info.device.worker, info.dimensions], ["cpu", false, 128]);
  const rows = await pairs(60);
  const texts = await model.embedText(rows.map(({ caption }) => caption));
  const images = await model.embedImages(rows.map(({ picture }) => picture));
  for (const vectors of [texts, images]) for (const row of vectors) assert.ok(Math.abs(Math.hypot(...row) - 1) < 1e-5);
  const [alone] = await model.embedImages([new Blob([rows[17].picture])]);
  assert.deepEqual(alone, images.row(17));

  const { table, report } = await model.recall(texts, images);
  assert.match(table, /Text2Image/);
  const scores = texts.similarities(images);
  const first = rows.filter((_, i) => scores.subarray(i * 60, (i + 1) * 60).every((score) => score <= scores[i * 61])).length;
  assert.ok(first > 40, `${first} of 60 captions have their picture first`);
  assert.ok(JSON.stringify(report).length > 2);

  const [best] = await model.classify(rows[0].picture, [rows[0].caption, rows[30].caption]);
  assert.equal(best.label, rows[0].caption);
  const [likeliest] = await model.classify(rows[0].picture, ["月亮", "自行车", "猪"], { ensemble: true });
  assert.equal(likeliest.label, "月亮");

  const names = ["manifest.json", "config.json", "vocab.txt", "text.safetensors"];
  const files = await Promise.all(names.map(async (name) => [name, await readFile(new URL(name, scenes))]));
  const search = await ErnieVil.load(Object.fromEntries(files), { towers: ["text"] });
  assert.deepEqual(search.info.towers, ["text"]);
  assert.deepEqual((await search.embedText([rows[3].caption])).row(0), texts.row(3));
  await assert.rejects(search.embedImages([rows[0].picture]), { code: "image" });
  await assert.rejects(model.embedImages([new File(["no picture"], "notes.txt")]), { code: "image", message: /notes\.txt/ });
  model.dispose();
  search.dispose();
});

test("an index of pictures in a folder, in both types", { skip }, async () => {
  const { EmbeddingIndex, ErnieVil } = await import("../dist/index.js");
  const folder = await mkdtemp(join(tmpdir(), "ernie-vil-"));
  const model = await ErnieVil.load(scenes);
  try {
    const rows = await pairs(30);
    const images = await model.embedImages(rows.map(({ picture }) => picture));
    const ids = rows.map((_, i) => `picture ${i}`);
    for (const dtype of ["f32", "int8"]) {
      let index = await EmbeddingIndex.open(dtype, { model, folder, dtype });
      await index.add(ids.slice(0, 10), images.data.slice(0, 10 * 128));
      await index.add(ids, images);
      assert.equal(await index.remove(["picture 3"]), 1);
      const before = await index.searchAll(images, { k: 5 });
      await index.close();
      index = await EmbeddingIndex.open(dtype, { model, folder });
      assert.deepEqual([index.size, index.info.dtype], [29, dtype]);
      assert.deepEqual(await index.searchAll(images, { k: 5 }), before);
      assert.equal(before[17][0].id, "picture 17");
      const copy = await EmbeddingIndex.open(`${dtype} copy`, { model, folder, dtype });
      await copy.import(await index.export());
      await copy.add(["picture 3"], images.row(3));
      await copy.close();
      const again = await EmbeddingIndex.open(`${dtype} copy`, { model, folder });
      assert.deepEqual((await again.ids()).sort(), [...ids].sort());
      await again.close();
      await index.close();
    }
  } finally {
    model.dispose();
    await rm(folder, { recursive: true });
  }
});

test("thousands of pictures and captions leave nothing behind", { skip }, async () => {
  const [script, tsv] = [new URL("support/memory.mjs", import.meta.url), new URL("test.tsv", scenes)].map((url) => fileURLToPath(url));
  const { stdout } = await promisify(execFile)(process.execPath, ["--expose-gc", script, fileURLToPath(scenes), tsv, "2500"]);
  const { values, count, grown } = JSON.parse(stdout);
  // Were every picture's crop kept, it would be 69 MB.
  const leak = values * count;
  assert.ok(grown.held < leak / 5 && grown.rss < 2 * leak, stdout);
});

/** The package's module with something around it, for `modules`; each of its instances has what `change` makes of it. */
async function own(change) {
  const glue = await import("../wasm/cpu/ernie_vil.js");
  return { cpu: { glue: change(glue), wasm: await readFile(wasm) } };
}

test("a picture that stops the module is named or left out, and the model is loaded again", { skip }, async () => {
  const { ErnieVil } = await import("../dist/index.js");
  const rows = await pairs(9);
  const bomb = Buffer.from("a picture that stops the module");
  let seen;
  const modules = await own((glue) => {
    const around = trapping(glue, { crop: (file) => Buffer.compare(Buffer.from(file), bomb) === 0 });
    seen = around.seen;
    return around.glue;
  });
  const model = await ErnieVil.load(scenes, { modules, device: "cpu" });
  const files = rows.map(({ picture }, i) => new File([i % 4 === 2 ? bomb : picture], `${i}.png`));
  const sound = rows.flatMap(({ picture }, i) => (i % 4 === 2 ? [] : [picture]));
  const expected = await model.embedImages(sound);
  await assert.rejects(model.embedImages(files), { code: "crashed", message: /^image 2: 2\.png: / });
  const vectors = await model.embedImages(files, { onError: "skip" });
  assert.deepEqual(vectors.indices, [0, 1, 3, 4, 5, 7, 8]);
  assert.deepEqual(vectors.failures.map(({ index, error }) => [index, error.code]), [[2, "crashed"], [6, "crashed"]]);
  assert.deepEqual(vectors.data, expected.data);
  assert.deepEqual(seen, { instances: 4, reentered: 0 });
  model.dispose();
});

test("a module without memory rejects the call, and the next call has another", { skip }, async () => {
  const { ErnieVil } = await import("../dist/index.js");
  const [{ caption, picture }] = await pairs(1);
  // All instances that are made, with their memories: one that has grown to its limit leaves the module nothing.
  const memories = [];
  const { instantiate, Instance } = WebAssembly;
  WebAssembly.instantiate = async (...args) => {
    const result = await instantiate(...args);
    memories.push((result.instance ?? result).exports.memory);
    return result;
  };
  WebAssembly.Instance = class extends Instance {
    constructor(...args) {
      super(...args);
      memories.push(this.exports.memory);
    }
  };
  try {
    // Not an instance that an earlier test has left free: its memory would not be among them.
    const modules = await own((glue) => glue.create());
    const model = await ErnieVil.load(scenes, { device: "cpu", modules });
    const [text, image] = [await model.embedText([caption]), await model.embedImages([picture])];
    const calls = {
      rejected: () => model.embedImages(Array(200).fill(picture), { batchSize: 200 }),
      skipped: () => model.embedImages(Array(200).fill(picture), { batchSize: 200, onError: "skip" }),
    };
    for (const [name, call] of Object.entries(calls)) {
      const memory = memories.at(-1);
      memory.grow(65536 - memory.buffer.byteLength / 65536);
      const before = memories.length;
      if (name === "skipped") {
        // Alone, each of them fits.
        const vectors = await call();
        assert.deepEqual([vectors.rows, vectors.failures.length], [200, 0]);
        assert.deepEqual(vectors.row(199), image.row(0));
      } else {
        await assert.rejects(call(), { code: "crashed", message: /^one of the images 0 to 199: image 0, image 1, / });
        assert.equal(memories.length, before);
      }
      assert.deepEqual((await model.embedText([caption])).data, text.data);
      assert.deepEqual((await model.embedImages([picture])).data, image.data);
      assert.equal(memories.length, before + 1, name);
    }
    model.dispose();
  } finally {
    Object.assign(WebAssembly, { instantiate, Instance });
  }
});
