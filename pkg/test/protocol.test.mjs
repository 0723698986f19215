import assert from "node:assert/strict";
import { after, test } from "node:test";

import { ErnieVilError, asError, fromWire, toWire } from "../dist/errors.js";
import { DirectBackend, WorkerBackend } from "../dist/protocol.js";
import { endWorkers, fakeWorker } from "./support/fake-worker.mjs";

after(endWorkers);

const handlers = {
  tokenize: async ({ texts }) => texts.map((text) => Uint32Array.of(text.length)),
  embedText: async ({ texts }, { progress }) => {
    texts.forEach((_, i) => progress(i + 1));
    return Float32Array.of(1, 2, 3);
  },
  embedImages: async () => {
    throw Object.assign(new Error("neither JPEG nor PNG"), { code: "image" });
  },
  recall: async () => {
    throw new WebAssembly.RuntimeError("unreachable");
  },
  preprocess: (_, { signal }) =>
    new Promise((resolve) => {
      signal.addEventListener("abort", () => (handlers.noticed = true));
    }),
};

const backends = {
  direct: () => new DirectBackend(handlers),
  worker: () => new WorkerBackend(fakeWorker(handlers)),
};

for (const [kind, open] of Object.entries(backends)) {
  test(`${kind}: results, progress and errors come through`, async () => {
    const backend = open();
    assert.deepEqual(await backend.call("tokenize", { texts: ["a", "bb"] }), [Uint32Array.of(1), Uint32Array.of(2)]);
    const progress = [];
    const result = await backend.call("embedText", { texts: ["a", "b"] }, { onProgress: (value) => progress.push(value) });
    assert.deepEqual(result, Float32Array.of(1, 2, 3));
    assert.deepEqual(progress, [1, 2]);
    await assert.rejects(backend.call("embedImages", {}), (error) => {
      assert.ok(error instanceof ErnieVilError);
      assert.deepEqual([error.code, error.message], ["image", "neither JPEG nor PNG"]);
      return true;
    });
    await assert.rejects(backend.call("recall", {}), { code: "crashed" });
    backend.terminate(new ErnieVilError("disposed", "gone"));
    await assert.rejects(backend.call("tokenize", { texts: [] }), { code: "disposed" });
  });

  test(`${kind}: an abort rejects at once, and the work is told`, async () => {
    const backend = open();
    handlers.noticed = false;
    const controller = new AbortController();
    const reason = new Error("enough");
    const call = backend.call("preprocess", {}, { signal: controller.signal });
    setTimeout(() => controller.abort(reason), 10);
    await assert.rejects(call, (error) => {
      assert.deepEqual([error.code, error.name, error.cause], ["aborted", "AbortError", reason]);
      return true;
    });
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.equal(handlers.noticed, true);
    await assert.rejects(backend.call("tokenize", { texts: [] }, { signal: controller.signal }), { code: "aborted" });
    assert.equal((await backend.call("tokenize", { texts: ["a"] })).length, 1);
    backend.terminate(new ErnieVilError("disposed", "gone"));
  });

  test(`${kind}: calls under way end with the thread`, async () => {
    const backend = open();
    const call = backend.call("preprocess", {});
    backend.terminate(new ErnieVilError("device-lost", "the driver was reset"));
    await assert.rejects(call, { code: "device-lost" });
  });
}

test("a worker whose script is missing, and one that stops, are told apart", async () => {
  const missing = fakeWorker();
  const call = new WorkerBackend(missing).call("tokenize", { texts: [] });
  missing.fire("error", { message: "" });
  await assert.rejects(call, { code: "worker" });

  const worker = fakeWorker(handlers);
  const backend = new WorkerBackend(worker);
  await backend.call("tokenize", { texts: [] });
  const hung = backend.call("preprocess", {});
  worker.fire("error", { message: "unreachable" });
  await assert.rejects(hung, { code: "crashed" });
  assert.equal(worker.terminated, true);
});

test("an argument that cannot be copied is the caller's error", async () => {
  const backend = new WorkerBackend(fakeWorker(handlers));
  await assert.rejects(backend.call("tokenize", { texts: [() => {}] }), { code: "argument" });
  backend.terminate(new ErnieVilError("disposed", "gone"));
});

test("whatever is thrown becomes an error with a code", () => {
  const module = (code) => asError(Object.assign(new Error("why"), { code })).code;
  assert.equal(module("weights"), "weights");
  assert.equal(module("vocabulary"), "config");
  assert.equal(module("toString"), "internal");
  assert.equal(module("ERR_SOMETHING"), "internal");
  assert.equal(module("ENOSPC"), "quota");
  assert.equal(asError(new DOMException("full", "QuotaExceededError")).code, "quota");
  assert.equal(asError(new WebAssembly.RuntimeError("unreachable")).code, "crashed");
  assert.equal(asError("text", "network", "https://a.example").message, "https://a.example: text");
  const error = new ErnieVilError("image", "a.txt is no image");
  assert.equal(asError(error), error);
});

test("an error crosses to the page with its code, message and cause", () => {
  const wire = structuredClone(toWire(new ErnieVilError("http", "no", { cause: new Error("why") })));
  const error = fromWire(wire);
  assert.deepEqual([error.code, error.message, error.cause], ["http", "no", "why"]);
});
