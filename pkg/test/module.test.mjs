// The package with its own CPU module in Node, on the small model "scenes" of this repository.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

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
