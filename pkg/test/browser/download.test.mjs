// How model files come to the page and stay there: breaks, damage, a full disk, no network, several tabs.
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, test } from "node:test";

import { launch, openPage, skip, timeout, withPage, workers } from "./support/browser.mjs";
import { convertTiny, temporary } from "./support/native.mjs";
import { cut, serve } from "./support/server.mjs";

const tiny = skip || convertTiny(join(await temporary(after), "tiny"));
const browser = skip || (await launch(after));
const SHARD = "image.safetensors.001";

/** A test with a page of one server and the model on another, as on a CDN. */
function scenario(name, work, options) {
  test(name, { skip, timeout }, async (t) => {
    const [site, models] = [await serve({}, options), await serve({ tiny }, options)];
    t.after(site.close);
    t.after(models.close);
    const requests = (file) => models.seen.filter((entry) => entry.name === file);
    await withPage(browser, site, (page, context) => work({ page, context, site, models, requests, url: `${models.url}tiny/` }));
  });
}

/** Loads the model in a page, embeds a caption and disposes of it; returns what the model says of itself and of its progress. */
const load = (page, url, options = {}) =>
  page.evaluate(
    async ({ url, options }) => {
      const steps = [];
      const model = await ErnieVil.load(url, { device: "cpu", ...options, onProgress: (step) => steps.push(step) });
      const [vector] = await model.embedText(["一只猫"]);
      model.dispose();
      return { info: model.info, last: steps.at(-1), vector, cached: await ErnieVil.isCached(url) };
    },
    { url, options },
  );

const fail = (page, url) => page.evaluate((url) => failure(ErnieVil.load(url, { device: "cpu" })), url);

scenario("an abort in the middle of a download ends it, and what was complete is kept", async ({ page, models, requests, url }) => {
  models.misbehave = ({ name, response, bytes }) => {
    if (name !== SHARD) return false;
    response.writeHead(200, { "content-length": bytes.length }).write(bytes.subarray(0, bytes.length / 2));
    let at = bytes.length / 2;
    const drip = setInterval(() => response.write(bytes.subarray(at, ++at)), 100);
    response.on("close", () => clearInterval(drip));
    return true;
  };
  const error = await page.evaluate((url) => {
    const controller = new AbortController();
    // More than the shard before it: the one that drips has begun.
    const onProgress = ({ file, fileLoaded }) => file === "image.safetensors" && fileLoaded > 128 * 1024 && controller.abort("enough");
    return failure(ErnieVil.load(url, { device: "cpu", signal: controller.signal, onProgress }));
  }, url);
  assert.deepEqual([error.name, error.code], ["AbortError", "aborted"]);
  assert.equal(await workers(page, 0), 0);
  for (let waited = 0; models.open > 0 && waited < 10_000; waited += 50) await page.waitForTimeout(50);
  assert.equal(models.open, 0, "a connection is still open");

  models.misbehave = undefined;
  const { info, cached } = await load(page, url);
  assert.equal(info.cache.kind, "cache-api");
  assert.ok(cached);
  assert.equal(requests("image.safetensors.000").length, 1);
  assert.equal(requests(SHARD).length, 2);
});

scenario("a download that breaks off at half goes on where it stopped", async ({ page, models, requests, url }) => {
  models.misbehave = ({ name, count, request, response, bytes }) => name === SHARD && count === 1 && cut(request, response, bytes, bytes.length / 2);
  const { last, info } = await load(page, url);
  assert.deepEqual(requests(SHARD).map(({ range }) => range), [undefined, `bytes=${64 * 1024}-`]);
  assert.deepEqual([last.loaded, last.fileLoaded], [last.total, last.fileTotal]);
  assert.equal(info.cache.fromCache, false);
});

scenario("a wrong byte is noticed; the shard is fetched once more and then given up", async ({ page, models, requests, url }) => {
  let wrong = Infinity;
  models.misbehave = ({ name, count, response, bytes }) => {
    if (name !== SHARD || count > wrong) return false;
    const damaged = Buffer.from(bytes);
    damaged[1000] ^= 1;
    response.writeHead(200, { "content-length": damaged.length }).end(damaged);
    return true;
  };
  const error = await fail(page, url);
  assert.equal(error.code, "integrity");
  assert.match(error.message, /image\.safetensors\.001 has another SHA-256/);
  assert.equal(requests(SHARD).length, 2);
  assert.equal(await page.evaluate((url) => ErnieVil.isCached(url), url), false);
  wrong = 3;
  await load(page, url);
  assert.equal(requests(SHARD).length, 4);
});

scenario("with a full disk a model loads all the same and says so", async ({ page, context, site, requests, url }) => {
  const storage = await context.newCDPSession(page);
  const origin = new URL(site.url).origin;
  await storage.send("Storage.overrideQuotaForOrigin", { origin, quotaSize: 200 * 1024 });
  const full = await load(page, url);
  assert.deepEqual([full.info.cache.kind, full.info.cache.fromCache, full.info.cache.reason], ["none", false, "the storage is full"]);
  assert.equal(full.cached, false);
  await storage.send("Storage.overrideQuotaForOrigin", { origin });
  const free = await load(page, url);
  assert.deepEqual([free.info.cache.kind, free.info.cache.reason, free.cached], ["cache-api", "", true]);
  assert.deepEqual(free.vector, full.vector);
  assert.equal(requests("text.safetensors.002").length, 2);
});

scenario("without the network a model comes from the cache, until that is cleared", async ({ page, context, site, models, url }) => {
  const first = await load(page, url);
  const before = models.seen.length;
  await models.close();
  const again = await openPage(context, site.url);
  const offline = await load(again, url);
  assert.equal(models.seen.length, before);
  assert.deepEqual([offline.info.cache.kind, offline.info.cache.fromCache, offline.last.fromCache], ["cache-api", true, true]);
  assert.deepEqual(offline.vector, first.vector);
  await again.evaluate((url) => ErnieVil.clearCache(url), url);
  assert.equal(await again.evaluate((url) => ErnieVil.isCached(url), url), false);
  assert.equal((await fail(again, url)).code, "network");
});

scenario("two tabs that load at once fetch each shard once", async ({ page, context, site, models, url }) => {
  const other = await openPage(context, site.url);
  const [a, b] = await Promise.all([load(page, url), load(other, url)]);
  assert.deepEqual(a.vector, b.vector);
  for (const { name } of models.seen.filter(({ name }) => name?.includes("safetensors"))) {
    assert.equal(models.seen.filter((entry) => entry.name === name).length, 1, name);
  }
});

for (const isolated of [false, true]) {
  scenario(
    `a page that is ${isolated ? "" : "not "}cross-origin isolated loads a model of another origin`,
    async ({ page, url }) => {
      assert.equal(await page.evaluate(() => crossOriginIsolated), isolated);
      const { info } = await load(page, url, { device: "auto" });
      assert.equal(info.device.kind, "cpu");
      assert.match(info.device.reason, /only a software adapter/);
      if (!isolated) assert.equal(info.device.threads, 1);
    },
    { isolated },
  );
}
