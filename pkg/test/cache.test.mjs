import assert from "node:assert/strict";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { folderCache, openCache } from "../dist/cache.js";
import { OpfsFolder, diskFolder } from "../dist/folder.js";
import { clearCache, isCached, readModel } from "../dist/loader.js";
import { FakeDirectory, installOpfs } from "./support/opfs.mjs";
import { modelFolder, serve, sha256 } from "./support/server.mjs";

const folders = [];
after(() => Promise.all(folders.map((folder) => rm(folder, { recursive: true, force: true }))));

async function temporaryFolder() {
  const folder = await mkdtemp(join(tmpdir(), "ernie-vil-"));
  folders.push(folder);
  return folder;
}

/** Every kind of cache that can be had without a browser. */
const kinds = {
  folder: async () => folderCache(await diskFolder(await temporaryFolder()), "folder"),
  opfs: async () => folderCache(new OpfsFolder(new FakeDirectory()), "opfs"),
};

async function read(url, cache, options = {}) {
  const got = { image: [], text: [] };
  const receiver = { begin: () => {}, feed: (tower, bytes) => got[tower].push(Buffer.from(bytes)) };
  const report = await readModel({ url, request: {} }, receiver, {
    towers: undefined,
    cache,
    digest: sha256,
    signal: undefined,
    onProgress: undefined,
    retry: { attempts: 1, delay: 1 },
    ...options,
  });
  return { image: Buffer.concat(got.image), text: Buffer.concat(got.text), report };
}

const asked = (server) => server.seen.map(({ name }) => name).filter((name) => name !== "manifest.json");

for (const [kind, open] of Object.entries(kinds)) {
  test(`${kind}: the second visit fetches the manifest only`, async () => {
    const model = modelFolder();
    const server = await serve(model.files);
    const cache = await open();
    try {
      assert.equal(await isCached(cache, server.url), false);
      assert.equal((await read(server.url, cache)).report.fromCache, false);
      assert.equal(await isCached(cache, server.url), true);
      server.seen.length = 0;
      const progress = [];
      const again = await read(server.url, cache, { onProgress: (step) => progress.push(step) });
      assert.ok(again.image.equals(model.content["image.safetensors"]));
      assert.equal(again.report.fromCache, true);
      assert.deepEqual(asked(server), []);
      assert.ok(progress.every(({ fromCache }) => fromCache));
    } finally {
      await server.close();
    }
  });

  test(`${kind}: works without the network afterwards`, async () => {
    const model = modelFolder();
    const server = await serve(model.files);
    const cache = await open();
    await read(server.url, cache);
    await server.close();
    const offline = await read(server.url, cache);
    assert.ok(offline.text.equals(model.content["text.safetensors"]));
    await clearCache(cache, server.url);
    assert.equal(await isCached(cache, server.url), false);
    assert.deepEqual(await cache.keys(), []);
    await assert.rejects(read(server.url, cache), { code: "network" });
  });
}

test("a changed model is fetched anew, and what only the old one needed goes", async () => {
  const cache = await kinds.folder();
  const files = { ...modelFolder().files };
  const server = await serve(files);
  try {
    await read(server.url, cache);
    const before = (await cache.keys()).length;
    // Another text tower; the image tower stays.
    const image = Object.entries(modelFolder().files).filter(([name]) => name.startsWith("image"));
    const next = modelFolder({ seed: "2" });
    const manifest = { format: 1, files: next.manifest.files.map((file) => (file.name === "image.safetensors" ? modelFolder().manifest.files[2] : file)) };
    Object.assign(files, next.files, Object.fromEntries(image), { "manifest.json": Buffer.from(JSON.stringify(manifest)) });
    server.seen.length = 0;
    const got = await read(server.url, cache);
    assert.ok(got.text.equals(next.content["text.safetensors"]));
    assert.ok(asked(server).every((name) => !name.startsWith("image")));
    assert.equal((await cache.keys()).length, before);
  } finally {
    await server.close();
  }
});

test("clearing one model leaves the files that another one needs", async () => {
  const cache = await kinds.opfs();
  const one = await serve(modelFolder().files);
  const two = await serve(modelFolder().files);
  try {
    await read(one.url, cache);
    await read(two.url, cache);
    await clearCache(cache, one.url);
    assert.equal(await isCached(cache, one.url), false);
    assert.equal(await isCached(cache, two.url), true);
    await clearCache(cache);
    assert.deepEqual(await cache.keys(), []);
  } finally {
    await one.close();
    await two.close();
  }
});

test("one tower in the cache does not pass for both", async () => {
  const cache = await kinds.opfs();
  const server = await serve(modelFolder().files);
  try {
    await read(server.url, cache, { towers: ["text"] });
    assert.equal(await isCached(cache, server.url, ["text"]), true);
    assert.equal(await isCached(cache, server.url, ["image"]), false);
    assert.equal(await isCached(cache, server.url), false);
  } finally {
    await server.close();
  }
});

test("a load that fails on the way leaves the model of the last visit usable", async () => {
  const cache = await kinds.opfs();
  const files = { ...modelFolder().files };
  const server = await serve(files);
  await read(server.url, cache);
  const next = modelFolder({ seed: "2" });
  Object.assign(files, next.files);
  delete files["text.safetensors.02"];
  await assert.rejects(read(server.url, cache), { code: "http" });
  await server.close();
  const offline = await read(server.url, cache);
  assert.ok(offline.text.equals(modelFolder().content["text.safetensors"]));
});

test("a full disk does not end the load", async () => {
  const disk = { quota: 150_000, used: 0 };
  const cache = folderCache(new OpfsFolder(new FakeDirectory(disk)), "opfs");
  const model = modelFolder();
  const server = await serve(model.files);
  try {
    const got = await read(server.url, cache);
    assert.ok(got.image.equals(model.content["image.safetensors"]));
    assert.ok(got.text.equals(model.content["text.safetensors"]));
    assert.equal(got.report.cacheFailure, "the storage is full");
    assert.equal(await isCached(cache, server.url), false);
  } finally {
    await server.close();
  }
});

test("a damaged file in the cache is fetched again", async () => {
  const folder = await temporaryFolder();
  const cache = folderCache(await diskFolder(folder), "folder");
  const model = modelFolder();
  const server = await serve(model.files);
  try {
    await read(server.url, cache);
    const shard = `sha256-${model.manifest.files[2].shards[0].sha256}`;
    assert.ok((await readdir(folder)).includes(shard));
    await writeFile(join(folder, shard), "rubbish");
    server.seen.length = 0;
    const got = await read(server.url, cache);
    assert.ok(got.image.equals(model.content["image.safetensors"]));
    assert.deepEqual(asked(server), ["image.safetensors.00"]);
    server.seen.length = 0;
    assert.equal((await read(server.url, cache)).report.fromCache, true);
    assert.deepEqual(asked(server), []);
  } finally {
    await server.close();
  }
});

test("Node keeps files only where a folder is named; a page without storage says so", async () => {
  assert.match((await openCache(true)).reason, /no folder/);
  assert.match((await openCache(false)).reason, /switched off/);
  assert.equal((await openCache(await temporaryFolder())).cache.kind, "folder");
  const undo = installOpfs();
  try {
    assert.equal((await openCache(true)).cache.kind, "opfs");
    navigator.storage.getDirectory = () => Promise.reject(new DOMException("not in private windows", "SecurityError"));
    const { cache, reason } = await openCache(true);
    assert.equal(cache, undefined);
    assert.match(reason, /private windows/);
  } finally {
    undo();
  }
});
