// The pictures that OpenCV's pixels were recorded for, in the CPU module: what a decoder gives does not depend on the target.
import assert from "node:assert/strict";
import { readFile, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, test } from "node:test";

import { distance, missing, native, readTensors, root, scenes, temporary } from "./browser/support/native.mjs";

const folder = (name) => join(root, "tests", name);

async function load() {
  const { ErnieVil } = await import("../dist/index.js");
  return ErnieVil.load(scenes, { device: "cpu" });
}

test("TIFF files of every kind have the vectors of their pixels", { skip: missing }, async () => {
  const model = await load();
  const names = (await readdir(folder("tiff_cases"))).filter((name) => name.endsWith(".tif"));
  assert.ok(names.length > 80, `${names.length} files`);
  const read = (name) => readFile(join(folder("tiff_cases"), name));
  const expected = new Map();
  for (const name of names) {
    const kind = name.slice(0, name.indexOf("-"));
    if (!expected.has(kind)) expected.set(kind, (await model.embedImages([await read(`${kind}.png`)])).row(0));
    const vectors = await model.embedImages([new File([await read(name)], name)]);
    assert.deepEqual(vectors.row(0), expected.get(kind), name);
  }
  model.dispose();
});

test("images of which only the pixels are sound are read or refused as by the native program", { skip: missing }, async () => {
  const cases = JSON.parse(await readFile(join(folder("image_cases"), "expected.json"), "utf8"));
  const files = await Promise.all(cases.map(({ file }) => readFile(join(folder("image_cases"), file))));
  const work = await temporary(after);
  const [input, output] = [join(work, "cases.tsv"), join(work, "cases.safetensors")];
  await writeFile(input, cases.map(({ file }, i) => `${file}\t${i}\t${files[i].toString("base64")}\n`).join(""));
  native("embed", "--input", input, "--output", output, "--on-error", "skip");
  const { ids, image } = await readTensors(output);
  const width = image.shape[1];
  const rows = new Map(JSON.parse(Buffer.from(ids.data).toString()).map((id, row) => [Number(id), image.data.subarray(row * width, (row + 1) * width)]));

  const model = await load();
  for (const [i, { file, sha256 }] of cases.entries()) {
    const embedded = model.embedImages([new File([files[i]], file)]);
    assert.equal(rows.has(i), Boolean(sha256), `${file}, natively`);
    if (!sha256) {
      await assert.rejects(embedded, { code: "image" }, file);
    } else {
      const { difference } = distance((await embedded).row(0), rows.get(i), width);
      assert.ok(difference < 2e-6, `${file}: ${difference}`);
    }
  }
  // None of them has stopped the module.
  assert.ok((await model.embedText(["一只猫"])).row(0).length === width);
  model.dispose();
});
