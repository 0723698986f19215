// Packs in eight and four bits, and PaddleNLP's preprocessing, in each kind of module: the vectors are the native program's.
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, test } from "node:test";

import { launch, skip, timeout, withPage } from "./support/browser.mjs";
import { builds, distance, native, readTensors, scenes, temporary } from "./support/native.mjs";
import { serve } from "./support/server.mjs";

const ROWS = 16;
const packs = { int8: ["--dtype", "int8"], int4: ["--dtype", "int4"], paddlenlp: ["--preprocessing", "paddlenlp"] };

const folder = skip ? "" : await temporary(after);
const expected = {};
if (!skip) {
  const lines = (await readFile(join(scenes, "test.tsv"), "utf8")).split("\n").slice(0, ROWS);
  const pairs = join(folder, "pairs.tsv");
  await writeFile(pairs, lines.map((line) => `${line}\n`).join(""));
  for (const [name, options] of Object.entries(packs)) {
    const [model, output] = [join(folder, name), join(folder, `${name}.safetensors`)];
    native("convert", "--model", scenes, ...options, "--output", model);
    native("embed", "--model", model, "--input", pairs, "--output", output, "--quiet");
    expected[name] = await readTensors(output);
  }
}

for (const { name: build, options } of builds) {
  test(`packs in the browser: ${build}`, { skip, timeout }, async (t) => {
    const browser = await launch(t.after.bind(t));
    const server = await serve({ models: folder }, { isolated: true });
    t.after(server.close);
    const outputs = await withPage(browser, server, (page) =>
      page.evaluate(
        async ({ options, names }) => {
          const outputs = {};
          for (const name of names) {
            const model = await ErnieVil.load(`/models/${name}/`, options);
            const rows = readPairs(await (await fetch("/models/pairs.tsv")).text());
            const text = await model.embedText(rows.map(({ caption }) => caption));
            const image = await model.embedImages(rows.map(({ picture }) => picture));
            outputs[name] = { text: text.data, image: image.data, dtype: model.info.dtype, dimensions: model.info.dimensions };
            model.dispose();
          }
          return outputs;
        },
        { options, names: Object.keys(packs) },
      ),
    );
    for (const [name, { dtype, dimensions, ...got }] of Object.entries(outputs)) {
      if (name.startsWith("int")) assert.equal(dtype, name);
      for (const [tower, values] of Object.entries(got)) {
        const { difference } = distance(values, expected[name][tower].data, dimensions);
        t.diagnostic(`${name}, ${tower}: within ${difference.toExponential(1)}`);
        assert.ok(difference <= 1e-5, `${name}: ${tower} vectors differ by ${difference}`);
      }
    }
  });
}
