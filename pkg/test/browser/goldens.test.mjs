// The recordings of the original, in each build of the module, in the browser and in Node.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { after, test } from "node:test";

import { launch, skip, timeout, withPage } from "./support/browser.mjs";
import { builds, convertTiny, distance, goldens, missing, recordedTiny, temporary } from "./support/native.mjs";
import { embedRecorded } from "./support/page.mjs";
import { serve } from "./support/server.mjs";

const tiny = missing || convertTiny(join(await temporary(after), "tiny"));
const recorded = missing || (await recordedTiny());

/** Compares with what was recorded. */
function compare({ pixels, ids, text, image, info }) {
  for (const { file, tensor_sha256 } of recorded.pictures.filter(({ ok }) => ok)) assert.equal(pixels[file], tensor_sha256, file);
  for (const [i, row] of recorded.ids.entries()) assert.equal(ids[i].join(" "), row.join(" "), recorded.captions[i]);
  for (const [name, got] of Object.entries({ text, image })) {
    const { difference, cosine } = distance(got, recorded[name], info.dimensions);
    assert.ok(difference <= 1e-5, `${name} vectors differ by ${difference}`);
    assert.ok(cosine >= 0.99999, `${name} vectors have the cosine ${cosine}`);
  }
}

test("goldens in Node, on the calling thread", { skip: missing, timeout }, async () => {
  const { ErnieVil } = await import("../../dist/index.js");
  const model = await ErnieVil.load(tiny);
  const outputs = await embedRecorded(model, recorded, (name) => readFile(join(goldens, "images", name)));
  model.dispose();
  assert.deepEqual([outputs.info.device.kind, outputs.info.device.worker], ["cpu", false]);
  compare(outputs);
});

for (const { name, options } of builds) {
  test(`goldens in the browser: ${name}`, { skip, timeout }, async (t) => {
    const browser = await launch(t.after.bind(t));
    const server = await serve({ tiny, images: join(goldens, "images") }, { isolated: true });
    t.after(server.close);
    const outputs = await withPage(browser, server, (page) =>
      page.evaluate(
        async ({ options, recorded }) => {
          const model = await ErnieVil.load("/tiny/", options);
          return embedRecorded(model, recorded, async (name) => (await fetch(`/images/${name}`)).blob());
        },
        { options, recorded: { captions: recorded.captions, pictures: recorded.pictures } },
      ),
    );
    const { kind, threads, worker, adapter } = outputs.info.device;
    assert.deepEqual([kind, threads, worker], [options.device, options.threads ?? 1, true]);
    assert.equal(adapter?.software, options.allowSoftware);
    compare(outputs);
  });
}
