// One side in a page of its own; what it is to do stands in the address, as JSON behind the #.

/** The size of the memories of WebAssembly in the worker with this name. */
function wasmBytes(name) {
  const channel = new BroadcastChannel(name);
  return new Promise((resolve) => {
    channel.onmessage = ({ data }) => {
      channel.close();
      resolve(data);
    };
    channel.postMessage("size");
  });
}

async function ours({ folder, device, threads, towers, cache }) {
  const [{ ErnieVil }, { openOurs }] = await Promise.all([import("/package/dist/index.js"), import("./ours.mjs")]);
  const names = [];
  // The package's own worker, with the count of memories before it.
  const worker = (module) => {
    const scripts = ["/memory.mjs", `/package/dist/worker-${module}.js`].map((path) => new URL(path, location.href).href);
    const url = URL.createObjectURL(new Blob(scripts.map((script) => `import "${script}";`), { type: "text/javascript" }));
    names.push(crypto.randomUUID());
    return new Worker(url, { type: "module", name: names.at(-1) });
  };
  const side = await openOurs(ErnieVil, folder, { device, threads, towers, cache, worker, allowSoftware: true });
  return { ...side, wasmBytes: async () => (await Promise.all(names.map(wasmBytes))).reduce((sum, size) => sum + size, 0) };
}

async function peer(options) {
  const name = crypto.randomUUID();
  const worker = new Worker("/peer-worker.mjs", { type: "module", name });
  const calls = new Map();
  worker.onmessage = ({ data: { id, result, error } }) => {
    const { resolve, reject } = calls.get(id);
    calls.delete(id);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
  };
  const call = (method, ...parameters) =>
    new Promise((resolve, reject) => {
      const id = crypto.randomUUID();
      calls.set(id, { resolve, reject });
      worker.postMessage({ id, method, parameters });
    });
  await call("start", options);
  const methods = ["open", "close", "run", "kept"].map((method) => [method, (...parameters) => call(method, ...parameters)]);
  return { ...Object.fromEntries(methods), wasmBytes: () => wasmBytes(name) };
}

const options = JSON.parse(decodeURIComponent(location.hash.slice(1)));
globalThis.side = options.side === "ours" ? ours(options) : peer(options);
const { first } = options;
if (first) {
  /** Milliseconds from the start of the page to its first embedding. */
  globalThis.firstEmbedding = globalThis.side.then(async ({ open, run }) => {
    await open?.(first.tower, first.form);
    await run(first.tower, 1, first.form);
    return performance.now();
  });
}
