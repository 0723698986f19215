// The peer's worker: answers calls of Peer's methods.
import "./memory.mjs";
import { Peer } from "./peer.mjs";

let peer;
const files = new Map();
const puts = [];

/** Reads a file; with `keep`, on the way into the cache, or from there. */
async function read(url, keep) {
  const cache = keep ? await caches.open("models") : undefined;
  const found = await cache?.match(url);
  const response = found ?? (await fetch(url));
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  // Nothing waits for this, though libraries on ONNX Runtime do.
  if (cache && !found) puts.push(cache.put(url, response.clone()));
  return new Uint8Array(await response.arrayBuffer());
}

const calls = {
  async start({ folder, keep, device, ...options }) {
    const ort = await import(device === "webgpu" ? "/ort/ort.webgpu.min.mjs" : "/ort/ort.wasm.min.mjs");
    const readOnce = (name) => {
      if (!files.has(name)) files.set(name, read(new URL(folder + name, location.href).href, keep));
      return files.get(name);
    };
    peer = new Peer(ort, readOnce, { device, ...options });
  },
  open: (tower, form) => peer.open(tower, form),
  close: (tower, form) => peer.close(tower, form),
  run: (tower, count, form) => peer.run(tower, count, form),
  /** Waits until the cache has all that was put into it. */
  kept: async () => void (await Promise.all(puts)),
};

self.onmessage = async ({ data: { id, method, parameters } }) => {
  try {
    self.postMessage({ id, result: await calls[method](...parameters) });
  } catch (thrown) {
    self.postMessage({ id, error: String(thrown?.message ?? thrown) });
  }
};
