// The small model "scenes" on its 1,000 test pairs: vectors and the recall table, beside the native program's.
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, test } from "node:test";

import { launch, skip, timeout, withPage } from "./support/browser.mjs";
import { builds, distance, native, readTensors, scenes, temporary } from "./support/native.mjs";
import { serve } from "./support/server.mjs";

/** A software adapter does not get further in this time; vectors are compared as far as it came. */
const LIMIT = 120_000;

const pairs = join(scenes, "test.tsv");
const output = skip ? "" : join(await temporary(after), "native.safetensors");
if (!skip) native("embed", "--model", scenes, "--input", pairs, "--output", output, "--quiet");

for (const { name, options } of builds) {
  test(`scenes in the browser: ${name}`, { skip, timeout }, async (t) => {
    const expected = await readTensors(output);
    const browser = await launch(t.after.bind(t));
    const server = await serve({ scenes }, { isolated: true });
    t.after(server.close);
    const { text, image, dimensions, table } = await withPage(browser, server, (page) =>
      page.evaluate(
        async ({ options, limit }) => {
          const model = await ErnieVil.load("/scenes/", options);
          const rows = readPairs(await (await fetch("/scenes/test.tsv")).text());
          const { dimensions, fingerprint } = model.info;
          const [texts, images] = [[], []];
          const started = performance.now();
          for (let at = 0; at < rows.length && performance.now() - started < limit; at += 16) {
            const part = rows.slice(at, at + 16);
            texts.push(...(await model.embedText(part.map(({ caption }) => caption))).data);
            images.push(...(await model.embedImages(part.map(({ picture }) => picture))).data);
          }
          const [text, image] = [texts, images].map((data) => new Embeddings(Float32Array.from(data), dimensions, fingerprint));
          const table = text.rows === rows.length ? (await model.recall(text, image)).table : undefined;
          return { text: text.data, image: image.data, dimensions, table };
        },
        { options, limit: options.allowSoftware ? LIMIT : Infinity },
      ),
    );
    for (const [what, got] of Object.entries({ text, image })) {
      const count = got.length / dimensions;
      const { difference, cosine } = distance(got, expected[what].data.subarray(0, got.length), dimensions);
      t.diagnostic(`${count} ${what} vectors within ${difference.toExponential(1)}, cosine ${cosine}`);
      assert.ok(count >= 16 && difference <= 1e-5 && cosine >= 0.99999, `${what}: ${difference}, ${cosine}`);
    }
    if (table === undefined) assert.ok(options.allowSoftware, "there is no table");
    else assert.equal(table.trim(), native("eval", "--model", scenes, "--input", pairs, "--quiet").trim());
  });
}
