// What happens to models and indexes in the course of their life: a lost device, a second tab, a full disk, many loads.
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, test } from "node:test";

import { launch, openPage, skip, timeout, withPage, workers } from "./support/browser.mjs";
import { builds, convertTiny, scenes, temporary } from "./support/native.mjs";
import { serve } from "./support/server.mjs";

const tiny = skip || convertTiny(join(await temporary(after), "tiny"));
const browser = skip || (await launch(after));
const noWebgpu = skip || (!builds.some(({ name }) => name === "webgpu") && "pkg/wasm/webgpu is not built: 'cargo xtask web' builds it");

/** A test with a page of a server that has the model as well. */
function scenario(name, work, reason = skip) {
  test(name, { skip: reason, timeout }, async (t) => {
    const server = await serve({ tiny, scenes }, { isolated: true });
    t.after(server.close);
    await withPage(browser, server, (page, context) => work({ page, context, server }));
  });
}

scenario(
  "a lost device: the call is repeated on a new one, after a second loss on the CPU",
  async ({ page, server }) => {
    const { before, vectors, changes } = await page.evaluate(async () => {
      const changes = [];
      const onDeviceChange = ({ device }) => {
        changes.push(device);
        if (changes.length === 1) void model.simulateDeviceLoss();
      };
      const model = await ErnieVil.load("/tiny/", { device: "auto", allowSoftware: true, towers: ["text"], onDeviceChange });
      const before = { device: model.info.device, vector: (await model.embedText(["一只猫"])).data };
      await model.simulateDeviceLoss();
      const vectors = [(await model.embedText(["一只猫"])).data, (await model.embedText(["一只猫"])).data];
      model.dispose();
      return { before, vectors, changes };
    });
    assert.deepEqual([before.device.kind, before.device.adapter.software], ["webgpu", true]);
    assert.deepEqual(changes.map(({ kind }) => kind), ["webgpu", "cpu"]);
    assert.match(changes[1].reason, /lost twice/);
    for (const vector of vectors) vector.forEach((value, i) => assert.ok(Math.abs(value - before.vector[i]) <= 1e-5));
    const shards = server.seen.map(({ name }) => name).filter((name) => name?.startsWith("text.safetensors"));
    assert.equal(new Set(shards).size, shards.length, "a shard did not come from the cache");
    assert.equal(await workers(page, 0), 0);
  },
  noWebgpu,
);

scenario(
  "a lost device: with \"reject\" the call rejects, and the next one runs",
  async ({ page }) => {
    const { error, after } = await page.evaluate(async () => {
      const model = await ErnieVil.load("/tiny/", { device: "webgpu", allowSoftware: true, towers: ["text"], onDeviceLost: "reject" });
      const call = model.embedText(Array(200).fill("一只猫"));
      await model.simulateDeviceLoss();
      const error = await failure(call);
      const rows = (await model.embedText(["一只猫"])).rows;
      const after = { rows, kind: model.info.device.kind };
      model.dispose();
      return { error, after };
    });
    assert.equal(error.code, "device-lost");
    assert.deepEqual(after, { rows: 1, kind: "webgpu" });
  },
  noWebgpu,
);

scenario("a second tab cannot change an index that is open in another, but can search it", async ({ page, context, server }) => {
  const other = await openPage(context, server.url);
  await page.evaluate(async () => {
    globalThis.index = await EmbeddingIndex.open("photos", { dimensions: 4, fingerprint: "f" });
    await index.add(["a", "b"], Float32Array.of(1, 0, 0, 0, 0, 1, 0, 0));
  });
  const seen = await other.evaluate(async () => {
    const error = await failure(EmbeddingIndex.open("photos"));
    const reader = await EmbeddingIndex.open("photos", { readOnly: true });
    const hits = await reader.search(Float32Array.of(0, 1, 0, 0), { k: 1 });
    const change = await failure(reader.remove(["a"]));
    const { storage } = reader.info;
    await reader.close();
    return { error, hits, change, storage };
  });
  assert.equal(seen.error.code, "locked");
  assert.deepEqual(seen.hits, [{ id: "b", score: 1 }]);
  assert.equal(seen.change.code, "read-only");
  assert.deepEqual(seen.storage, { kind: "opfs", reason: "" });
  // A tab that is closed lets go of its index.
  await page.close();
  const later = await other.evaluate(async () => {
    let index;
    for (let waited = 0; !index; waited += 100) {
      index = await EmbeddingIndex.open("photos").catch((error) => {
        if (error.code !== "locked" || waited > 10_000) throw error;
      });
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    await index.add(["c"], Float32Array.of(0, 0, 1, 0));
    const ids = await index.ids();
    await index.close();
    await EmbeddingIndex.delete("photos");
    return { ids, error: await failure(EmbeddingIndex.open("photos")) };
  });
  assert.deepEqual(later.ids.sort(), ["a", "b", "c"]);
  assert.equal(later.error.code, "argument");
});

for (const storage of ["opfs", "indexeddb"]) {
  scenario(`an index on a full disk: ${storage}`, async ({ page, context, server }) => {
    const quota = await context.newCDPSession(page);
    const origin = new URL(server.url).origin;
    await quota.send("Storage.overrideQuotaForOrigin", { origin, quotaSize: 1_000_000 });
    const { size } = await page.evaluate(async (storage) => {
      globalThis.index = await EmbeddingIndex.open("photos", { dimensions: 512, fingerprint: "f", storage });
      await index.add(["first"], new Float32Array(512).fill(1));
      globalThis.many = Array.from({ length: 2000 }, (_, i) => `${i}`);
      globalThis.vectors = Float32Array.from({ length: 512 * many.length }, (_, i) => Math.sin(i));
      return { size: index.size };
    }, storage);
    assert.equal(size, 1);
    const full = await page.evaluate(async () => {
      const error = await failure(index.add(many, vectors));
      const [hit] = await index.search(vectors.slice(512 * 1234, 512 * 1235));
      return { error, hit: hit.id };
    });
    assert.equal(full.error.code, "quota");
    assert.equal(full.hit, "1234");
    await quota.send("Storage.overrideQuotaForOrigin", { origin });
    const free = await page.evaluate(async (storage) => {
      await index.flush();
      await index.close();
      const again = await EmbeddingIndex.open("photos", { storage });
      const [hit] = await again.search(vectors.slice(512 * 1234, 512 * 1235));
      return { size: again.size, hit: hit.id, kind: again.info.storage.kind };
    }, storage);
    assert.deepEqual(free, { size: 2001, hit: "1234", kind: storage });
  });
}

test("one thread, and why, where the page is not isolated or computes itself", { skip, timeout }, async (t) => {
  for (const [isolated, options, reason] of [
    [false, {}, /not cross-origin isolated/],
    [true, { worker: false }, /need a worker/],
  ]) {
    const server = await serve({ tiny }, { isolated });
    t.after(server.close);
    const device = await withPage(browser, server, (page) =>
      page.evaluate(async (options) => {
        const model = await ErnieVil.load("/tiny/", { device: "cpu", threads: 2, towers: ["text"], ...options });
        await model.embedText(["一只猫"]);
        model.dispose();
        return model.info.device;
      }, options),
    );
    assert.deepEqual([device.kind, device.threads], ["cpu", 1]);
    assert.match(device.reason, reason);
  }
});

for (const { name, options } of builds) {
  scenario(`ten loads leave no worker behind: ${name}`, async ({ page }) => {
    for (let i = 0; i < 10; i++) {
      await page.evaluate(async (options) => {
        globalThis.model = await ErnieVil.load("/tiny/", { ...options, towers: ["text"] });
        await model.embedText(["一只猫"]);
      }, options);
      assert.ok(page.workers().length >= 1);
      await page.evaluate(() => model.dispose());
    }
    assert.equal(await workers(page, 0), 0);
  });
}

scenario("ten loads in the page's own thread have one instance of the module, whose memory does not grow", async ({ page }) => {
  const sizes = await page.evaluate(async () => {
    const memories = [];
    for (const name of ["instantiate", "instantiateStreaming"]) {
      const original = WebAssembly[name];
      WebAssembly[name] = async (...args) => {
        const result = await original.apply(WebAssembly, args);
        memories.push((result.instance ?? result).exports.memory);
        return result;
      };
    }
    const picture = { data: new Uint8Array(300 * 200 * 4).fill(99), width: 300, height: 200 };
    const sizes = [];
    for (let i = 0; i < 10; i++) {
      const model = await ErnieVil.load("/tiny/", { device: "cpu", worker: false });
      await model.embedText(["一只猫"]);
      await model.embedImages([picture, picture]);
      model.dispose();
      // The module is free again when what it did last is done.
      await new Promise((resolve) => setTimeout(resolve, 50));
      sizes.push(memories.reduce((sum, { buffer }) => sum + buffer.byteLength, 0));
    }
    return sizes;
  });
  assert.deepEqual(sizes.slice(2), sizes.slice(2).fill(sizes[2]), `bytes: ${sizes.join(", ")}`);
});

for (const place of ["a worker", "the page's own thread"]) {
  scenario(`a picture that stops the module is named or left out, and the model is loaded again: ${place}`, async ({ page, server }) => {
    const outcome = await page.evaluate(async (place) => {
      const options = { worker: () => new Worker("/pkg/test/browser/support/trapping-worker.mjs", { type: "module" }) };
      if (place !== "a worker") {
        const { trapping } = await import("/pkg/test/support/trapping.mjs");
        const glue = await import("/pkg/wasm/cpu/ernie_vil.js");
        const traps = { crop: (file) => new TextDecoder().decode(file) === "stop" };
        options.worker = false;
        options.modules = { cpu: { glue: trapping(glue, traps).glue, wasm: "/pkg/wasm/cpu/ernie_vil_bg.wasm" } };
      }
      const model = await ErnieVil.load("/tiny/", { device: "cpu", threads: 1, ...options });
      const picture = { data: new Uint8Array(30 * 20 * 4).fill(99), width: 30, height: 20 };
      const files = [picture, picture, new File(["stop"], "bomb.png"), picture, new File(["stop"], "more.png")];
      const error = await failure(model.embedImages(files));
      const { data } = await model.embedImages([picture]);
      const { indices, failures, data: rows } = await model.embedImages(files, { onError: "skip" });
      const equal = indices.every((_, row) => data.every((value, i) => value === rows[row * data.length + i]));
      model.dispose();
      return { error, indices, equal, failures: failures.map(({ index, error }) => [index, error.code, error.message]) };
    }, place);
    assert.equal(outcome.error.code, "crashed");
    assert.match(outcome.error.message, /^image 2: bomb\.png: /);
    assert.deepEqual([outcome.indices, outcome.equal], [[0, 1, 3], true]);
    assert.deepEqual(outcome.failures.map(([index, code]) => [index, code]), [[2, "crashed"], [4, "crashed"]]);
    assert.match(outcome.failures[1][2], /^image 4: more\.png: /);
    // Its files came from the cache.
    const shards = server.seen.map(({ name }) => name).filter((name) => name?.includes(".safetensors"));
    assert.equal(new Set(shards).size, shards.length, `${shards}`);
  });
}

scenario("thousands of pictures and captions leave nothing behind in a page and its worker", async ({ page, server }) => {
  const { values, sizes } = await page.evaluate(async (pairs) => {
    const rows = readPairs(await (await fetch(pairs)).text(), 200);
    const model = await ErnieVil.load("/scenes/", { device: "cpu", threads: 1 });
    const { signal } = new AbortController();
    const embed = async (total) => {
      for (let done = 0; done < total; done += 100) {
        const part = rows.slice(done % rows.length, (done % rows.length) + 100);
        await model.embedImages(part.map(({ picture }) => picture), { signal });
        for (const { caption } of part) await model.embedText([caption], { signal });
      }
    };
    const sizes = [];
    for (const total of [400, 2000]) {
      await embed(total);
      sizes.push((await performance.measureUserAgentSpecificMemory()).bytes);
    }
    const values = (await model.preprocess(rows[0].picture)).length;
    model.dispose();
    return { values, sizes };
  }, `${server.url}scenes/test.tsv`);
  const leak = values * 2000;
  assert.ok(sizes[1] - sizes[0] < (2 * leak) / 5, `from ${sizes[0]} to ${sizes[1]} bytes; ${leak} are every picture's`);
});
