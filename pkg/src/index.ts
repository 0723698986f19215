/**
 * ERNIE-ViL 2.0 on the user's own device: captions and pictures to vectors of one space, and a search among them.
 *
 * @packageDocumentation
 */
import { host } from "./host.js";
import type { ModuleName } from "./module.js";

// Bundlers follow an address only where it is written out like this.
host.workers = {
  cpu: () => sameOrigin("cpu", () => new Worker(new URL("./worker-cpu.js", import.meta.url), { type: "module" })),
  "cpu-threads": () => sameOrigin("cpu-threads", () => new Worker(new URL("./worker-cpu-threads.js", import.meta.url), { type: "module" })),
  webgpu: () => sameOrigin("webgpu", () => new Worker(new URL("./worker-webgpu.js", import.meta.url), { type: "module" })),
};
host.modules = {
  cpu: async () => (await import("./module-cpu.js")).module,
  "cpu-threads": async () => (await import("./module-cpu-threads.js")).module,
  webgpu: async () => (await import("./module-webgpu.js")).module,
};

/** Makes a worker; where the package comes from another origin (a CDN), by way of a script of this origin that imports it. */
function sameOrigin(name: ModuleName, make: () => Worker): Worker {
  try {
    return make();
  } catch (thrown) {
    if (!(thrown instanceof DOMException && thrown.name === "SecurityError")) throw thrown;
    const here = import.meta.url;
    const script = `import ${JSON.stringify(new URL(`./worker-${name}.js`, here).href)};`;
    const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
    return new Worker(url, { type: "module" });
  }
}

export * from "./core.js";
