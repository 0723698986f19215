// The package beside a server of the native program: the same calls, the same vectors.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, test } from "node:test";

import { binary, convertTiny, distance, goldens, missing, scenes, temporary } from "./browser/support/native.mjs";

const { ErnieVil } = missing ? {} : await import("../dist/index.js");
const tiny = missing || convertTiny(join(await temporary(after), "tiny"));

/** Starts `ernie-vil serve` on a free port and returns its address. */
async function startServer(t, ...args) {
  const child = spawn(binary, ["serve", "--listen", "127.0.0.1:0", ...args], { stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => child.kill());
  for await (const line of createInterface({ input: child.stdout })) {
    const [address] = /http:\/\/\S+/.exec(line) ?? [];
    if (address) return address;
  }
  throw new Error("the server said no address");
}

const picture = async () => new Blob([await readFile(join(goldens, "images/r00.jpg"))]);

test("a server gives the vectors of this device", { skip: missing }, async (t) => {
  const url = await startServer(t, "--model", tiny, "--api-key", "secret");
  const here = await ErnieVil.load(tiny);
  const there = await ErnieVil.load(tiny, { device: "server", fallback: { url, apiKey: "secret" } });
  const { device, fingerprint, dimensions } = there.info;
  assert.deepEqual([device.kind, fingerprint, dimensions], ["server", here.info.fingerprint, here.info.dimensions]);
  assert.match(device.reason, /as asked for/);

  const captions = Array.from({ length: 300 }, (_, i) => `第${i}张照片里有一只猫`);
  const same = (a, b) => assert.ok(distance(a.data, b.data, dimensions).difference < 1e-5);
  same(await there.embedText(captions), await here.embedText(captions));
  const pixels = { width: 37, height: 53, data: Uint8Array.from({ length: 4 * 37 * 53 }, (_, i) => (i * 7) & 255) };
  const images = [await picture(), pixels];
  same(await there.embedImages(images), await here.embedImages(images));

  const broken = new Blob(["no picture"]);
  await assert.rejects(there.embedImages([images[0], broken]), { code: "image" });
  const { indices, failures } = await there.embedImages([broken, ...images, broken], { onError: "skip" });
  assert.deepEqual([indices, failures.map(({ index }) => index)], [[1, 2], [0, 3]]);
  const [best] = await there.classify(images[0], ["猫", "狗"]);
  assert.equal(best.label, (await here.classify(images[0], ["猫", "狗"]))[0].label);
  await assert.rejects(there.embedText(captions, { signal: AbortSignal.abort() }), { code: "aborted" });
  await assert.rejects(there.tokenize(["猫"]), { code: "device" });
});

test("a server with another model, without the key, or not there", { skip: missing }, async (t) => {
  const url = await startServer(t, "--model", scenes, "--api-key", "secret");
  const load = (fallback) => ErnieVil.load(tiny, { device: "server", fallback });
  await assert.rejects(load({ url, apiKey: "secret" }), { code: "device", message: /another model/ });
  await assert.rejects(load({ url, apiKey: "wrong" }), { code: "http", message: /apiKey/ });
  await assert.rejects(load({ url: "http://127.0.0.1:9/" }), { code: "network" });
  await assert.rejects(load(undefined), { code: "argument" });
});

test("the server is the last resort", { skip: missing }, async (t) => {
  const url = await startServer(t, "--model", tiny);
  const glue = { default: async () => Promise.reject(new Error("no WebAssembly here")) };
  const options = { fallback: { url }, modules: { cpu: { glue, wasm: new Uint8Array(0) } } };
  const model = await ErnieVil.load(tiny, options);
  assert.equal(model.info.device.kind, "server");
  assert.match(model.info.device.reason, /the CPU was tried and left/);
  assert.equal((await model.embedText(["一只猫"])).rows, 1);
  await assert.rejects(ErnieVil.load(tiny, { ...options, fallback: undefined }), { code: "network" });
});
