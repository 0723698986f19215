import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

import { EmbeddingIndex, Embeddings, ErnieVil, ErnieVilError } from "../dist/core.js";
import { createHandlers } from "../dist/engine.js";
import { fakeModule, unit } from "./support/fake-glue.mjs";
import { endWorkers, fakeWorker } from "./support/fake-worker.mjs";
import { trapping } from "./support/trapping.mjs";
import { modelFolder } from "./support/server.mjs";

const folder = await mkdtemp(join(tmpdir(), "ernie-vil-"));
after(() => rm(folder, { recursive: true }));
after(endWorkers);
const model = modelFolder({ imageSize: 3_000_000, shardSize: 2_500_000 });
for (const [name, bytes] of Object.entries(model.files)) await writeFile(join(folder, name), bytes);

/** Loads the made-up model into a made-up module. */
async function load(options = {}, source = fakeModule()) {
  return { loaded: await ErnieVil.load(folder, { modules: { cpu: source }, ...options }), plan: source.glue.plan };
}

const near = (a, b) => assert.ok(a.length === b.length && a.every((value, i) => Math.abs(value - b[i]) < 1e-6));

/** A file whose made-up pixels are `value`; 0 is no image. */
const picture = (value, name = `${value}.jpg`) => new File([Uint8Array.of(value, 1, 2)], name);

test("weights reach the module whole, and the model says where it runs", async () => {
  const { loaded, plan } = await load();
  for (const tower of ["image", "text"]) {
    const expected = createHash("sha256").update(model.content[`${tower}.safetensors`]).digest("hex");
    assert.equal(plan.hash[tower].digest("hex"), expected);
  }
  const { device, cache, towers, version } = loaded.info;
  assert.deepEqual([device.kind, device.worker, device.threads, version], ["cpu", false, 1, "0.0.0"]);
  assert.match(device.reason, /^the CPU, .*WebGPU.*; one thread: /);
  assert.deepEqual(towers, ["image", "text"]);
  assert.deepEqual([cache.kind, cache.reason], ["none", "the files are on this device already"]);
  loaded.dispose();
});

test("captions come in order, with progress, however many", async () => {
  const { loaded } = await load({ towers: ["text"] });
  const texts = Array.from({ length: 21 }, (_, i) => `第${i}张`);
  const progress = [];
  const vectors = await loaded.embedText(texts, { onProgress: (step) => progress.push(step) });
  assert.equal(vectors.rows, 21);
  texts.forEach((text, i) => near(vectors.row(i), unit(text, 8)));
  assert.deepEqual(progress.at(-1), { done: 21, total: 21 });
  assert.equal((await loaded.embedText([])).rows, 0);
  await assert.rejects(loaded.embedText("一只猫"), { code: "argument" });
  await assert.rejects(loaded.embedText(["好", "坏"]), { code: "text" });
  assert.deepEqual(await loaded.tokenize(["猫"]), [Uint32Array.of(1, 29483, 2)]);
  loaded.dispose();
  await assert.rejects(loaded.embedText(["猫"]), { code: "disposed" });
});

test("images of every form come in order and in batches", async () => {
  const { loaded, plan } = await load();
  const path = join(folder, "9.jpg");
  await writeFile(path, Uint8Array.of(9, 1));
  const inputs = [
    picture(1),
    Uint8Array.of(2).buffer,
    Uint8Array.of(7, 3, 7).subarray(1, 2),
    { data: new Uint8ClampedArray([4, 4, 4, 4]), width: 1, height: 1 },
    new Blob([Uint8Array.of(5)]),
    path,
  ];
  const progress = [];
  const vectors = await loaded.embedImages(inputs, { onProgress: (step) => progress.push(step.done) });
  [1, 2, 3, 4, 5, 9].forEach((value, i) => near(vectors.row(i), unit(`image ${value}`, 8)));
  assert.deepEqual(progress, [4, 6]);
  assert.deepEqual(plan.batches, [4, 2]);
  assert.deepEqual(vectors.failures, []);
  plan.batches.length = 0;
  await loaded.embedImages(inputs, { batchSize: 5 });
  assert.deepEqual(plan.batches, [5, 1]);
  for (const wrong of ["a.jpg", picture(1), [42], [{ data: new Uint8Array(3), width: 1, height: 1 }]]) {
    await assert.rejects(loaded.embedImages(wrong), { code: "argument" });
  }
  loaded.dispose();
});

test("a file that is no image ends the call with its name, or is left out", async () => {
  const { loaded } = await load();
  const files = [picture(1), picture(0, "notes.txt"), picture(2), picture(3), picture(4), picture(0, "more.txt")];
  await assert.rejects(loaded.embedImages(files), (error) => {
    assert.ok(error instanceof ErnieVilError);
    assert.equal(error.code, "image");
    assert.match(error.message, /^notes\.txt: /);
    return true;
  });
  const vectors = await loaded.embedImages(files, { onError: "skip", batchSize: 2 });
  assert.deepEqual(vectors.indices, [0, 2, 3, 4]);
  assert.equal(vectors.rows, 4);
  vectors.indices.forEach((position, row) => near(vectors.row(row), unit(`image ${[1, 0, 2, 3, 4, 0][position]}`, 8)));
  assert.deepEqual(vectors.failures.map(({ index, error }) => [index, error.code]), [[1, "image"], [5, "image"]]);
  const none = await loaded.embedImages([picture(0)], { onError: "skip" });
  assert.deepEqual([none.rows, none.failures.length], [0, 1]);
  loaded.dispose();
});

test("an abort ends a long call between two images", async () => {
  const { loaded, plan } = await load();
  const controller = new AbortController();
  const files = Array.from({ length: 100 }, (_, i) => picture(1 + i));
  const call = loaded.embedImages(files, { signal: controller.signal, onProgress: ({ done }) => done >= 8 && controller.abort() });
  await assert.rejects(call, { code: "aborted", name: "AbortError" });
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.ok(plan.batches.length <= 4, `${plan.batches.length} batches`);
  assert.equal((await loaded.embedText(["猫"])).rows, 1);
  loaded.dispose();
});

test("labels are compared in their templates, shares add up to one", async () => {
  const { loaded } = await load();
  const labels = ["猫", "狗$&", "车"];
  const ranked = await loaded.classify(picture(1), labels, { template: ["一张{}的照片", "{}"] });
  assert.ok(Math.abs(ranked.reduce((sum, { probability }) => sum + probability, 0) - 1) < 1e-6);
  const image = unit("image 1", 8);
  for (const { label, score } of ranked) {
    const mean = unit(`一张${label}的照片`, 8).map((value, i) => value + unit(label, 8)[i]);
    const length = Math.hypot(...mean);
    assert.ok(Math.abs(score - mean.reduce((sum, value, i) => sum + (value / length) * image[i], 0)) < 1e-5);
  }
  assert.ok(ranked.every(({ probability }, i) => i === 0 || probability <= ranked[i - 1].probability));
  const [a, b] = ranked;
  assert.ok(Math.abs(Math.log(a.probability / b.probability) / (a.score - b.score) - Math.exp(2.65926)) < 0.01);
  const templates = ["{}", "一张{}的照片"];
  assert.deepEqual(await loaded.classify(picture(1), labels, { ensemble: true }), await loaded.classify(picture(1), labels, { template: templates }));
  const several = await loaded.classify([picture(1), picture(2)], labels);
  assert.deepEqual(several.map((list) => list.length), [3, 3]);
  await assert.rejects(loaded.classify(picture(1), labels, { template: "照片" }), { code: "argument" });
  await assert.rejects(loaded.classify(picture(1), []), { code: "argument" });
  loaded.dispose();
});

test("a module that has stopped is not entered again", async () => {
  const { loaded, plan } = await load();
  plan.embedText = async () => {
    throw new WebAssembly.RuntimeError("unreachable");
  };
  await assert.rejects(loaded.embedText(["猫"]), { code: "crashed" });
  plan.embedText = undefined;
  // In a worker it would start afresh; this thread has only the one instance, if its JavaScript makes no others.
  await assert.rejects(loaded.embedText(["猫"]), { code: "crashed" });
  await assert.rejects(loaded.embedImages([picture(1)], { onError: "skip" }), { code: "crashed" });
});

/** What stops a module: pictures of these values, while they are decoded or while their vectors are computed. */
const stops = ({ decoding = [], computing = [] }) => ({
  crop: (file) => decoding.includes(file[0]),
  embedImages: (crops) => crops.some((value) => computing.includes(value)),
});

/** The ways in which a module that has stopped is replaced: by another instance in this thread, by another worker. */
const hosts = {
  "this thread": (traps) => {
    const { glue, seen } = trapping(fakeModule({ several: true }).glue, traps);
    return { options: { modules: { cpu: { glue, wasm: new Uint8Array(0) } } }, seen };
  },
  "a worker": (traps) => {
    const seen = { instances: 0, reentered: 0 };
    const worker = () => fakeWorker(createHandlers({ glue: trapping(fakeModule().glue, traps, seen).glue, wasm: new Uint8Array(0) }));
    return { options: { worker }, seen };
  },
};

for (const [host, make] of Object.entries(hosts)) {
  const start = async (traps, options = {}) => {
    const { options: own, seen } = make(stops(traps));
    return { loaded: await ErnieVil.load(folder, { device: "cpu", ...own, ...options }), seen };
  };

  test(`${host}: a picture that stops the module is named, and the next call finds the model again`, async () => {
    const { loaded, seen } = await start({ decoding: [66] });
    const files = [picture(1), picture(2), picture(3), picture(4), picture(5), picture(66, "bomb.png"), picture(7)];
    for (let round = 1; round <= 3; round++) {
      await assert.rejects(loaded.embedImages(files), (error) => {
        assert.ok(error instanceof ErnieVilError);
        assert.deepEqual([error.code, error.message.startsWith("image 5: bomb.png: ")], ["crashed", true], error.message);
        return true;
      });
      near((await loaded.embedText(["猫"])).row(0), unit("猫", 8));
      near((await loaded.embedImages([picture(9)])).row(0), unit("image 9", 8));
      assert.deepEqual(seen, { instances: round + 1, reentered: 0 });
    }
    await assert.rejects(loaded.preprocess(picture(66, "bomb.png")), { code: "crashed", message: /^bomb\.png: / });
    await assert.rejects(loaded.classify(picture(66), ["猫"]), { code: "crashed", message: /^image 0: 66\.jpg: / });
    assert.equal((await loaded.preprocess(picture(5)))[0], 5);
    loaded.dispose();
  });

  test(`${host}: pictures that stop the module are left out, and all others have their vectors`, async () => {
    const bytes = Uint8Array.of(66, 1);
    const files = [bytes, picture(1), picture(0, "notes.txt"), picture(66, "bomb.png"), picture(2), picture(3), picture(66), picture(4)];
    for (const batchSize of [1, 3, 8]) {
      const { loaded, seen } = await start({ decoding: [66] });
      const progress = [];
      const vectors = await loaded.embedImages(files, { onError: "skip", batchSize, onProgress: ({ done }) => progress.push(done) });
      assert.deepEqual(vectors.indices, [1, 4, 5, 7]);
      [1, 2, 3, 4].forEach((value, row) => near(vectors.row(row), unit(`image ${value}`, 8)));
      assert.deepEqual(vectors.failures.map(({ index, error }) => [index, error.code]), [
        [0, "crashed"],
        [2, "image"],
        [3, "crashed"],
        [6, "crashed"],
      ]);
      assert.match(vectors.failures[0].error.message, /^image 0: the/);
      assert.match(vectors.failures[2].error.message, /^image 3: bomb\.png: the/);
      assert.equal(progress.at(-1), 8);
      // Each of the three stops it once.
      assert.deepEqual(seen, { instances: 4, reentered: 0 });
      loaded.dispose();
    }
  });

  test(`${host}: where a whole batch stops the module, its pictures are tried alone`, async () => {
    const { loaded, seen } = await start({ computing: [66] });
    const files = [picture(1), picture(2), picture(66, "bomb.png"), picture(3)];
    const vectors = await loaded.embedImages(files, { onError: "skip" });
    assert.deepEqual(vectors.indices, [0, 1, 3]);
    [1, 2, 3].forEach((value, row) => near(vectors.row(row), unit(`image ${value}`, 8)));
    assert.deepEqual(vectors.failures.map(({ index, error }) => [index, error.code, error.message.split(" the ")[0]]), [[2, "crashed", "image 2: bomb.png:"]]);
    assert.deepEqual(seen, { instances: 3, reentered: 0 });
    await assert.rejects(loaded.embedImages(files), { code: "crashed", message: /^one of the images 0 to 3: 1\.jpg, 2\.jpg, bomb\.png, 3\.jpg: / });
    loaded.dispose();
  });

  test(`${host}: calls beside the one that stops the module are repeated`, async () => {
    const { loaded, seen } = await start({ decoding: [66] });
    const captions = Array.from({ length: 40 }, (_, i) => `第${i}张`);
    const [images, texts, more, bad] = await Promise.allSettled([
      loaded.embedImages([picture(1), picture(66), picture(2)], { onError: "skip" }),
      loaded.embedText(captions),
      loaded.embedImages(Array.from({ length: 9 }, (_, i) => picture(i + 1))),
      loaded.embedImages([picture(66)]),
    ]);
    assert.deepEqual(images.value?.indices, [0, 2], images.reason);
    captions.forEach((caption, i) => near(texts.value.row(i), unit(caption, 8)));
    assert.equal(more.value?.rows, 9, more.reason);
    assert.deepEqual([bad.status, bad.reason?.code], ["rejected", "crashed"]);
    assert.equal(seen.reentered, 0);
    loaded.dispose();
  });

  test(`${host}: a module that every picture stops is not loaded for ever`, async () => {
    const { loaded, seen } = await start({ decoding: [66] });
    const files = Array.from({ length: 200 }, () => picture(66));
    await assert.rejects(loaded.embedImages(files, { onError: "skip" }), { code: "crashed" });
    assert.ok(seen.instances < 30, `${seen.instances} instances`);
    near((await loaded.embedImages([picture(1)])).row(0), unit("image 1", 8));
    const mixed = files.flatMap((file) => [file, picture(3)]).slice(0, 60);
    const vectors = await loaded.embedImages(mixed, { onError: "skip" });
    assert.deepEqual([vectors.rows, vectors.failures.length], [30, 30]);
    loaded.dispose();
  });
}

test("a module that stops while it is loaded again is no picture's fault, and is not loaded for each of them", async () => {
  const { glue, seen } = trapping(fakeModule({ several: true }).glue, stops({ decoding: [66] }));
  const { create } = glue;
  let broken = true;
  glue.create = () => {
    const other = create();
    if (!broken) return other;
    return Object.assign(other, {
      ModelLoader: class {
        constructor() {
          throw new WebAssembly.RuntimeError("unreachable");
        }
      },
    });
  };
  const loaded = await ErnieVil.load(folder, { modules: { cpu: { glue, wasm: new Uint8Array(0) } } });
  const files = Array.from({ length: 40 }, (_, i) => picture(i === 3 ? 66 : 1));
  await assert.rejects(loaded.embedImages(files, { onError: "skip" }), { code: "crashed" });
  assert.ok(seen.instances <= 4, `${seen.instances} instances`);
  broken = false;
  assert.equal((await loaded.embedImages(files, { onError: "skip" })).rows, 39);
  loaded.dispose();
});

test("what stops a module in a task of its own reaches the call, and so does a stack that was too small", async () => {
  const { loaded, plan } = await load({}, fakeModule());
  plan.embedText = () => {
    setTimeout(() => plan.stop(new WebAssembly.RuntimeError("unreachable")), 5);
    return new Promise(() => {});
  };
  await assert.rejects(loaded.embedText(["猫"]), { code: "crashed", message: /unreachable/ });

  const { loaded: other, plan: otherPlan } = await load({}, fakeModule());
  otherPlan.embedText = function overflow() {
    return overflow() + 1;
  };
  await assert.rejects(other.embedText(["猫"]), { code: "crashed" });
});

test("in one thread what stops one model is nothing to the others, nor to an index", async () => {
  const { glue, seen } = trapping(fakeModule({ several: true }).glue, stops({ decoding: [66] }));
  const modules = { cpu: { glue, wasm: new Uint8Array(0) } };
  const [first, second] = [await ErnieVil.load(folder, { modules }), await ErnieVil.load(folder, { modules })];
  const index = await EmbeddingIndex.open("pictures", { modules, dimensions: 8, fingerprint: "f".repeat(64) });
  await index.add(["a"], unit("a", 8));
  assert.equal(seen.instances, 3);
  await assert.rejects(first.embedImages([picture(66)]), { code: "crashed" });
  assert.equal((await second.embedText(["猫"])).rows, 1);
  assert.equal((await index.search(unit("a", 8)))[0].id, "a");
  assert.equal(seen.instances, 3);
  assert.equal((await first.embedText(["猫"])).rows, 1);
  assert.equal(seen.instances, 4);
  // What is done with is used again.
  second.dispose();
  await new Promise((resolve) => setTimeout(resolve, 5));
  const third = await ErnieVil.load(folder, { modules });
  assert.equal(seen.instances, 4);
  await index.close();
  for (const model of [first, third]) model.dispose();
});

test("an index whose module has stopped can be closed, and opened again", async () => {
  const home = await mkdtemp(join(tmpdir(), "ernie-vil-"));
  const options = { modules: { cpu: fakeModule({ several: true }) }, dimensions: 8, fingerprint: "f", folder: home };
  try {
    const index = await EmbeddingIndex.open("photos", options);
    await index.add(["a"], unit("a", 8));
    const { Index } = options.modules.cpu.glue;
    Index.prototype.search = () => {
      throw new WebAssembly.RuntimeError("unreachable");
    };
    await assert.rejects(index.search(unit("a", 8)), { code: "crashed" });
    await assert.rejects(index.ids(), { code: "crashed" });
    await assert.rejects(EmbeddingIndex.open("photos", options), { code: "locked" });
    await index.close();
    const again = await EmbeddingIndex.open("photos", options);
    assert.equal((await again.search(unit("a", 8)))[0].id, "a");
    await again.close();
  } finally {
    await rm(home, { recursive: true });
  }
});

test("what was computed is let go of, however many calls there are and however long the model and the signal live", async () => {
  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc");
  const held = async () => {
    for (let i = 0; i < 3; i++) {
      gc();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    const { heapUsed, arrayBuffers } = process.memoryUsage();
    return heapUsed + arrayBuffers;
  };
  for (const make of [() => ({ modules: { cpu: fakeModule({ imageSize: 64 }) } }), () => ({ worker: () => fakeWorker(createHandlers(fakeModule({ imageSize: 64 }))) })]) {
    const loaded = await ErnieVil.load(folder, { device: "cpu", ...make() });
    const { signal } = new AbortController();
    const embed = async (count) => {
      for (let done = 0; done < count; done += 20) {
        await loaded.embedImages(Array(20).fill(picture(1)), { signal });
        await Promise.all(["猫", "狗"].map((text) => loaded.embedText([text], { signal })));
      }
    };
    await embed(200);
    const before = await held();
    await embed(1000);
    // A tensor has 48 KB.
    const grown = (await held()) - before;
    assert.ok(grown < 4e6, `${grown} bytes`);
    loaded.dispose();
  }
});

test("wrong options are named", async () => {
  await assert.rejects(load({ device: "gpu" }), { code: "argument" });
  await assert.rejects(load({ device: "server" }), { code: "argument" });
  await assert.rejects(load({ device: "webgpu" }), { code: "argument" });
  await assert.rejects(load({ dtype: "f16" }), { code: "device" });
  await assert.rejects(ErnieVil.load(folder), { code: "argument" });
  await assert.rejects(load({ signal: AbortSignal.abort() }), { code: "aborted" });
});

/** A GPU that can be lost. */
function installGpu({ vendor = "acme", software = false } = {}) {
  const before = Object.getOwnPropertyDescriptor(globalThis, "navigator");
  const gpu = {
    devices: [],
    requestAdapter: async () => ({
      info: { vendor, architecture: "one", device: "", description: "", isFallbackAdapter: software },
      features: new Set(["shader-f16"]),
      limits: { maxBufferSize: 1024 },
      async requestDevice() {
        const device = {};
        device.lost = new Promise((resolve) => {
          device.lose = () => resolve({ reason: "unknown", message: "the driver was reset" });
          device.destroy = () => resolve({ reason: "destroyed", message: "destroyed" });
        });
        gpu.devices.push(device);
        return device;
      },
    }),
  };
  Object.defineProperty(globalThis, "navigator", { configurable: true, value: { gpu } });
  return {
    gpu,
    undo: () => (before ? Object.defineProperty(globalThis, "navigator", before) : delete globalThis.navigator),
  };
}

/** Workers in this thread, each with a module of its own. */
function fakeWorkers(prepare) {
  const made = [];
  const worker = (name) => {
    const source = fakeModule({ kind: name === "webgpu" ? "webgpu" : "cpu" });
    prepare?.(source.glue.plan, name, made.length);
    const fake = Object.assign(fakeWorker(createHandlers(source)), { name });
    made.push(fake);
    return fake;
  };
  return { worker, made };
}

test("WebGPU is taken where there is a real GPU that computes right", async () => {
  const { gpu, undo } = installGpu();
  try {
    const { worker, made } = fakeWorkers();
    const loaded = await ErnieVil.load(folder, { worker });
    const { device } = loaded.info;
    assert.deepEqual([device.kind, device.worker, device.adapter.vendor, device.adapter.f16], ["webgpu", true, "acme", true]);
    assert.equal(device.adapter.limits.maxBufferSize, 1024);
    assert.match(device.reason, /WebGPU.*acme one/);
    assert.equal(gpu.devices.length, 1);
    assert.equal((await loaded.embedText(["猫"])).rows, 1);
    loaded.dispose();
    await new Promise((resolve) => setTimeout(resolve, 5));
    assert.equal(made[0].terminated, true);
  } finally {
    undo();
  }
});

test("a software adapter counts as none unless it is asked for", async () => {
  for (const options of [{ software: true }, { vendor: "google swiftshader" }]) {
    const { undo } = installGpu(options);
    try {
      const { worker } = fakeWorkers();
      const loaded = await ErnieVil.load(folder, { worker });
      assert.equal(loaded.info.device.kind, "cpu");
      assert.match(loaded.info.device.reason, /only a software adapter/);
      loaded.dispose();
      await assert.rejects(ErnieVil.load(folder, { worker, device: "webgpu" }), { code: "device" });
      const asked = await ErnieVil.load(folder, { worker, device: "webgpu", allowSoftware: true });
      assert.deepEqual([asked.info.device.kind, asked.info.device.adapter.software], ["webgpu", true]);
      asked.dispose();
    } finally {
      undo();
    }
  }
});

test("a GPU that computes wrong vectors is left for the CPU, with the reason", async () => {
  const { undo } = installGpu();
  try {
    const zeros = (plan, name) => {
      if (name === "webgpu") plan.embedText = async (texts) => new Float32Array(texts.length * 8);
    };
    const { worker, made } = fakeWorkers(zeros);
    const loaded = await ErnieVil.load(folder, { worker });
    assert.equal(loaded.info.device.kind, "cpu");
    assert.match(loaded.info.device.reason, /WebGPU was tried and left: the GPU computes wrong text vectors/);
    assert.deepEqual(made.map(({ name, terminated }) => [name, terminated]), [["webgpu", true], ["cpu", false]]);
    loaded.dispose();
    await assert.rejects(ErnieVil.load(folder, { worker, device: "webgpu" }), { code: "device" });

    // One vector for everything has unit length too.
    const same = (plan) => (plan.embedText = async (texts) => Float32Array.from({ length: texts.length * 8 }, () => Math.SQRT1_2 / 2));
    await assert.rejects(ErnieVil.load(folder, { worker: fakeWorkers(same).worker, device: "webgpu" }), /wrong text vectors/);
  } finally {
    undo();
  }
});

/** Makes the first `count` workers lose their device in the first call after loading. */
const losing = (gpu, count) => (plan, _, position) => {
  let calls = 0;
  plan.embedText = async () => {
    calls += 1;
    if (calls <= 2 || position >= count) return undefined;
    const device = gpu.devices.at(-1);
    if (position % 2 === 0) {
      device.lose();
      return new Promise(() => {});
    }
    // A computation may fail before the device says that it is lost.
    setTimeout(() => device.lose(), 20);
    throw Object.assign(new Error("a buffer could not be mapped"), { code: "device" });
  };
};

test("a lost device: the model is loaded again and the call repeated", async () => {
  const { gpu, undo } = installGpu();
  try {
    const { worker, made } = fakeWorkers(losing(gpu, 1));
    const moved = [];
    const loaded = await ErnieVil.load(folder, { worker, onDeviceChange: (info) => moved.push(info.device.kind) });
    const [one, two] = await Promise.all([loaded.embedText(["猫"]), loaded.embedText(["狗"])]);
    near(one.row(0), unit("猫", 8));
    near(two.row(0), unit("狗", 8));
    assert.deepEqual(made.map(({ name, terminated }) => [name, terminated]), [["webgpu", true], ["webgpu", false]]);
    assert.deepEqual(moved, ["webgpu"]);
    loaded.dispose();
  } finally {
    undo();
  }
});

test("a device that is lost again is left for the CPU", async () => {
  const { gpu, undo } = installGpu();
  try {
    const { worker, made } = fakeWorkers(losing(gpu, 2));
    const loaded = await ErnieVil.load(folder, { worker });
    near((await loaded.embedText(["猫"])).row(0), unit("猫", 8));
    assert.deepEqual(made.map(({ name }) => name), ["webgpu", "webgpu", "cpu"]);
    assert.match(loaded.info.device.reason, /lost twice/);
    loaded.dispose();

    const asked = await ErnieVil.load(folder, { worker: fakeWorkers(losing(gpu, 9)).worker, device: "webgpu" });
    await assert.rejects(asked.embedText(["猫"]), { code: "device-lost" });
    asked.dispose();
  } finally {
    undo();
  }
});

test("a lost device rejects its calls where the caller wants that, and the next call finds the model again", async () => {
  const { gpu, undo } = installGpu();
  try {
    const { worker } = fakeWorkers(losing(gpu, 1));
    const loaded = await ErnieVil.load(folder, { worker, onDeviceLost: "reject" });
    const calls = await Promise.allSettled([loaded.embedText(["猫"]), loaded.embedText(["狗"])]);
    assert.deepEqual(calls.map(({ reason }) => reason.code), ["device-lost", "device-lost"]);
    assert.equal((await loaded.embedText(["猫"])).rows, 1);
    await loaded.simulateDeviceLoss();
    await assert.rejects(loaded.embedText(["猫"]), { code: "device-lost" });
    loaded.dispose();
  } finally {
    undo();
  }
});

test("after a crash in a worker the next call finds the model again", async () => {
  const crashing = (plan, _, position) => {
    if (position === 0) {
      plan.embedText = async () => {
        throw new WebAssembly.RuntimeError("memory access out of bounds");
      };
    }
  };
  const { worker, made } = fakeWorkers(crashing);
  const loaded = await ErnieVil.load(folder, { worker, device: "cpu" });
  await assert.rejects(loaded.embedText(["猫"]), { code: "crashed" });
  assert.equal((await loaded.embedText(["猫"])).rows, 1);
  assert.deepEqual(made.map(({ terminated }) => terminated), [true, false]);
  loaded.dispose();
});

test("disposal ends the calls under way", async () => {
  const { worker, made } = fakeWorkers((plan) => (plan.embedText = () => new Promise(() => {})));
  const loaded = await ErnieVil.load(folder, { worker, device: "cpu" });
  const call = loaded.embedText(["猫"]);
  setTimeout(() => loaded.dispose(), 10);
  await assert.rejects(call, { code: "disposed" });
  assert.equal(made[0].terminated, true);
});

test("an index keeps what was added, for the next visit", async () => {
  const { loaded } = await load();
  const home = await mkdtemp(join(tmpdir(), "ernie-vil-"));
  try {
    const options = { model: loaded, folder: home };
    const vectors = await loaded.embedImages([picture(1), picture(2), picture(3)]);
    let index = await EmbeddingIndex.open("photos", options);
    await index.add(["a", "b", "c"], vectors);
    assert.equal(index.size, 3);
    assert.equal(await index.remove(["b", "z"]), 1);
    await assert.rejects(EmbeddingIndex.open("photos", options), { code: "locked" });
    const reader = await EmbeddingIndex.open("photos", { ...options, readOnly: true });
    assert.deepEqual((await reader.ids()).sort(), ["a", "c"]);
    await assert.rejects(reader.add(["x"], vectors.row(0)), { code: "read-only" });
    await reader.close();
    await index.close();
    await assert.rejects(index.ids(), { code: "disposed" });

    index = await EmbeddingIndex.open("photos", options);
    assert.equal(index.size, 2);
    assert.equal(index.info.storage.kind, "folder");
    const [hit] = await index.search(vectors.row(2), { k: 1 });
    assert.equal(hit.id, "c");
    assert.ok(Math.abs(hit.score - 1) < 1e-6);
    assert.deepEqual((await index.searchAll(vectors)).map((hits) => hits.length), [2, 2, 2]);
    near(await index.get("a"), vectors.row(0));
    assert.equal(await index.get("b"), undefined);

    const file = await index.export();
    await index.remove(["a", "c"]);
    await index.import(file);
    assert.deepEqual((await index.ids()).sort(), ["a", "c"]);
    await assert.rejects(index.import(new Blob(["rubbish"])), { code: "index" });
    assert.equal(index.size, 2);
    await assert.rejects(index.add(["x"], new Float32Array(3)), { code: "vectors" });
    await assert.rejects(index.add(["x"], new Embeddings(new Float32Array(8), 8, "other")), { code: "vectors" });
    await assert.rejects(index.search(vectors.row(0), { k: 0 }), { code: "argument" });
    await index.close();

    await assert.rejects(EmbeddingIndex.open("photos", { ...options, fingerprint: "other" }), { code: "index" });
    await EmbeddingIndex.delete("photos", { folder: home });
    const fresh = await EmbeddingIndex.open("photos", { ...options, dtype: "int8" });
    assert.deepEqual([fresh.size, fresh.info.dtype], [0, "int8"]);
    await fresh.close();
  } finally {
    loaded.dispose();
    await rm(home, { recursive: true });
  }
});

test("an index in a worker, without a model", async () => {
  const { worker, made } = fakeWorkers();
  await assert.rejects(EmbeddingIndex.open("new", { worker }), { code: "argument" });
  const index = await EmbeddingIndex.open("new", { worker, dimensions: 8, fingerprint: "f" });
  assert.deepEqual([index.info.storage.kind, index.info.dtype], ["memory", "f32"]);
  const rows = new Float32Array(5000 * 8).fill(1);
  await index.add(Array.from({ length: 5000 }, (_, i) => `${i}`), rows);
  assert.equal(index.size, 5000);
  assert.equal(rows.length, 40_000, "the caller's vectors are not taken away");
  await index.close();
  assert.equal(made.at(-1).terminated, true);
});

test("vectors are rows that compare", () => {
  const a = new Embeddings(Float32Array.of(1, 0, 0, 1), 2, "f");
  assert.deepEqual([...a].map((row) => [...row]), [[1, 0], [0, 1]]);
  assert.deepEqual([...a.similarities(a)], [1, 0, 0, 1]);
  assert.throws(() => a.row(2), { code: "argument" });
  assert.throws(() => new Embeddings(new Float32Array(3), 2, "f"), { code: "vectors" });
  assert.throws(() => a.similarities(new Embeddings(new Float32Array(2), 2, "g")), { code: "vectors" });
});
