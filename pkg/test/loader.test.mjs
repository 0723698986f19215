import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { pathToFileURL } from "node:url";

import { ErnieVilError } from "../dist/errors.js";
import { folderUrl, readModel } from "../dist/loader.js";
import { cut, modelFolder, send, serve, sha256 } from "./support/server.mjs";

const servers = [];
after(() => Promise.all(servers.map((server) => server.close())));

async function start(files, misbehave) {
  const server = await serve(files, misbehave);
  servers.push(server);
  return server;
}

/** Reads a model and collects what arrives. */
async function read(source, options = {}) {
  const got = { image: [], text: [], progress: [] };
  const receiver = {
    begin: (config, vocab, towers) => Object.assign(got, { config, vocab, towers }),
    feed: (tower, bytes) => got[tower].push(Buffer.from(bytes)),
  };
  const report = await readModel(typeof source === "string" ? { url: source, request: {} } : { files: source }, receiver, {
    towers: undefined,
    cache: undefined,
    digest: sha256,
    signal: undefined,
    onProgress: (progress) => got.progress.push(progress),
    retry: { attempts: 3, delay: 1 },
    ...options,
  });
  return { ...got, report, image: Buffer.concat(got.image), text: Buffer.concat(got.text) };
}

const fails = (work, code, message) =>
  assert.rejects(work, (error) => {
    assert.ok(error instanceof ErnieVilError, String(error));
    assert.equal(error.code, code, error.message);
    if (message) assert.match(error.message, message);
    return true;
  });

test("all files arrive whole and in order", async () => {
  const model = modelFolder();
  const server = await start(model.files);
  const got = await read(server.url);
  assert.deepEqual(got.towers, ["image", "text"]);
  assert.ok(got.image.equals(model.content["image.safetensors"]));
  assert.ok(got.text.equals(model.content["text.safetensors"]));
  assert.ok(Buffer.from(got.vocab).equals(model.content["vocab.txt"]));
  const names = server.seen.map(({ name }) => name);
  assert.equal(new Set(names).size, names.length, "no file is fetched twice");
});

test("progress counts the bytes of all files and of each", async () => {
  const model = modelFolder();
  const server = await start(model.files);
  const { progress } = await read(server.url);
  const total = Object.values(model.content).reduce((sum, { length }) => sum + length, 0);
  assert.equal(progress.at(-1).loaded, total);
  assert.ok(progress.every((step, i) => step.total === total && (i === 0 || step.loaded >= progress[i - 1].loaded)));
  const image = progress.filter(({ file }) => file === "image.safetensors").at(-1);
  assert.deepEqual([image.fileLoaded, image.fileTotal], [300_000, 300_000]);
});

test("one tower alone fetches nothing of the other", async () => {
  const model = modelFolder();
  const server = await start(model.files);
  const got = await read(server.url, { towers: ["image"] });
  assert.equal(got.vocab, undefined);
  assert.equal(got.text.length, 0);
  assert.ok(server.seen.every(({ name }) => !/text|vocab/.test(name)));
});

test("two pieces at most are under way", async () => {
  const model = modelFolder();
  const server = await start(model.files, async () => {
    await new Promise((resolve) => setTimeout(resolve, 10));
    return false;
  });
  await read(server.url);
  assert.equal(server.stats.most, 2);
});

test("a download that breaks off goes on where it stopped", async () => {
  const model = modelFolder();
  const name = "image.safetensors.01";
  const server = await start(model.files, ({ name: asked, count, request, response, bytes }) =>
    asked === name && count === 1 ? cut(request, response, bytes, 40_000) : false,
  );
  const got = await read(server.url);
  assert.ok(got.image.equals(model.content["image.safetensors"]));
  const requests = server.seen.filter((entry) => entry.name === name);
  assert.equal(requests.length, 2);
  assert.match(requests[1].range, /^bytes=[1-9]\d*-$/);
});

test("a server without ranges sends the file again", async () => {
  const model = modelFolder();
  const server = await start(model.files, ({ name, count, request, response, bytes }) => {
    if (name !== "image.safetensors.01") return false;
    if (count === 1) return cut(request, response, bytes, 40_000);
    response.writeHead(200, { "content-length": bytes.length }).end(bytes);
    return true;
  });
  const got = await read(server.url);
  assert.ok(got.image.equals(model.content["image.safetensors"]));
});

test("an answer with another range than was asked for is not joined on", async () => {
  const model = modelFolder();
  const server = await start(model.files, ({ name, count, request, response, bytes }) => {
    if (name !== "image.safetensors.01" || count > 2) return false;
    if (count === 1) return cut(request, response, bytes, 40_000);
    response.writeHead(206, { "content-range": `bytes 5-${bytes.length - 1}/${bytes.length}` }).end(bytes.subarray(5));
    return true;
  });
  const got = await read(server.url);
  assert.ok(got.image.equals(model.content["image.safetensors"]));
});

test("a connection that keeps breaking is given up", async () => {
  const model = modelFolder();
  const server = await start(model.files, ({ name, request, response, bytes }) =>
    name === "text.safetensors.00" ? cut(request, response, bytes, 0) : false,
  );
  await fails(read(server.url), "network", /text\.safetensors\.00/);
  assert.equal(server.seen.filter(({ name }) => name === "text.safetensors.00").length, 4);
});

test("an overloaded server is asked again, a missing file is not", async () => {
  const model = modelFolder();
  const busy = await start(model.files, ({ name, count, response }) => {
    if (name !== "image.safetensors.00" || count > 2) return false;
    response.writeHead(503).end();
    return true;
  });
  assert.ok((await read(busy.url)).image.equals(model.content["image.safetensors"]));

  const { "image.safetensors.00": _, ...files } = model.files;
  const server = await start(files);
  await fails(read(server.url), "http", /404/);
  assert.equal(server.seen.filter(({ name }) => name === "image.safetensors.00").length, 1);
});

test("damage on the way is mended, a wrong file is refused", async () => {
  const model = modelFolder();
  const damaged = (bytes) => Uint8Array.from(bytes, (byte, i) => (i === 1000 ? byte ^ 1 : byte));
  const once = await start(model.files, ({ name, count, request, response, bytes }) => {
    if (name !== "text.safetensors.01" || count > 1) return false;
    send(request, response, damaged(bytes));
    return true;
  });
  assert.ok((await read(once.url)).text.equals(model.content["text.safetensors"]));

  const files = { ...model.files, "text.safetensors.01": damaged(model.files["text.safetensors.01"]) };
  const server = await start(files);
  await fails(read(server.url), "integrity", /text\.safetensors\.01/);
  assert.equal(server.seen.filter(({ name }) => name === "text.safetensors.01").length, 2);
});

test("a file that is longer or shorter than the manifest says is refused", async () => {
  const model = modelFolder();
  const name = "image.safetensors.00";
  const longer = await start({ ...model.files, [name]: Buffer.concat([model.files[name], Buffer.from("x")]) });
  await fails(read(longer.url), "integrity", /more than/);
  const shorter = await start({ ...model.files, [name]: model.files[name].subarray(0, 1000) });
  await fails(read(shorter.url), "network", /1000 of 65536|416/);
});

test("an abort in the middle of a download ends it and its connections", async () => {
  const model = modelFolder();
  let closed;
  const hung = new Promise((resolve) => (closed = resolve));
  const controller = new AbortController();
  const reason = new Error("the user went away");
  const server = await start(model.files, ({ name, response, bytes }) => {
    if (name !== "image.safetensors.02") return false;
    response.writeHead(200, { "content-length": bytes.length });
    response.write(bytes.subarray(0, 1000), () => setTimeout(() => controller.abort(reason), 20));
    response.on("close", closed);
    return true;
  });
  await assert.rejects(read(server.url, { signal: controller.signal }), (error) => {
    assert.equal(error.code, "aborted");
    assert.equal(error.name, "AbortError");
    assert.equal(error.cause, reason);
    return true;
  });
  await hung;
});

test("an abort during the wait before a repetition ends it", async () => {
  const model = modelFolder();
  const server = await start(model.files, ({ name, response }) => {
    if (name === "manifest.json" || name === "config.json") return false;
    response.writeHead(503).end();
    return true;
  });
  const started = performance.now();
  await fails(read(server.url, { signal: AbortSignal.timeout(100), retry: { attempts: 5, delay: 5000 } }), "aborted");
  assert.ok(performance.now() - started < 2000);
});

test("a failure stops the download that runs ahead", async () => {
  const model = modelFolder();
  let closed;
  const ahead = new Promise((resolve) => (closed = resolve));
  const { "image.safetensors.02": _, ...files } = model.files;
  const server = await start(files, async ({ name, response, bytes }) => {
    if (name === "image.safetensors.02") await new Promise((resolve) => setTimeout(resolve, 50));
    if (name !== "image.safetensors.03") return false;
    response.writeHead(200, { "content-length": bytes.length });
    response.write(bytes.subarray(0, 10));
    response.on("close", closed);
    return true;
  });
  await fails(read(server.url), "http");
  await ahead;
});

test("a manifest that is not as it should be is refused with the place", async () => {
  const model = modelFolder();
  const withManifest = (manifest) => start({ ...model.files, "manifest.json": Buffer.from(JSON.stringify(manifest)) });
  const [first, ...others] = model.manifest.files;
  const cases = [
    [{ format: 2, files: [] }, /format 2, expected 1/],
    [{ format: 1, files: {} }, /files is no list/],
    [{ format: 1, files: [] }, /names no tower/],
    [{ format: 1, files: [{ ...first, name: "../secret" }, ...others] }, /files\[0\]\.name/],
    [{ format: 1, files: [{ ...first, size: -1 }, ...others] }, /files\[0\]\.size/],
    [{ format: 1, files: [{ ...first, sha256: "0" }, ...others] }, /files\[0\]\.sha256/],
    [{ format: 1, files: model.manifest.files.map((file) => ({ ...file, shards: file.shards?.slice(1) })) }, /shards of image\.safetensors have/],
    [{ format: 1, files: others }, /names no config\.json/],
  ];
  for (const [manifest, message] of cases) await fails(read((await withManifest(manifest)).url), "manifest", message);
  const { "manifest.json": _, ...files } = model.files;
  await fails(read((await start(files)).url), "http", /manifest\.json/);
  await fails(read((await start({ ...files, "manifest.json": Buffer.from("<html>") })).url), "manifest", /not JSON/);
});

test("files of a dialog and of the disk are read like those of a server", async () => {
  const model = modelFolder();
  const blobs = Object.fromEntries(Object.entries(model.files).map(([name, bytes]) => [name, new Blob([bytes])]));
  assert.ok((await read(blobs)).image.equals(model.content["image.safetensors"]));
  const { "text.safetensors.00": _, ...some } = blobs;
  await fails(read(some), "manifest", /text\.safetensors\.00 is not among the files/);
  await fails(read({ ...blobs, "text.safetensors.00": blobs["image.safetensors.00"] }), "integrity");

  const folder = await mkdtemp(join(tmpdir(), "ernie-vil-"));
  try {
    for (const [name, bytes] of Object.entries(model.files)) await writeFile(join(folder, name), bytes);
    const { text, report } = await read(folderUrl(pathToFileURL(folder).href));
    assert.ok(text.equals(model.content["text.safetensors"]));
    assert.equal(report.fromCache, false);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("an address with or without manifest.json names the same folder", () => {
  for (const end of ["", "/", "/manifest.json", "/?x=1#y"]) assert.equal(folderUrl(`https://a.example/b${end}`), "https://a.example/b/");
  assert.equal(folderUrl("https://a.example"), "https://a.example/");
});
