// Where modules and workers come from. The entry `ernie-vil` fills in the package's own; `ernie-vil/core` has none.
import { createHandlers } from "./engine.js";
import { ErnieVilError, asError } from "./errors.js";
import { type ModuleName, type ModuleSource, type WasmInput, take } from "./module.js";
import { type Backend, DirectBackend, WorkerBackend } from "./protocol.js";
import { absoluteUrl } from "./url.js";

/** Ways to the package's own files, by the name of a build. */
export interface Host {
  workers: Partial<Record<ModuleName, () => Worker>>;
  modules: Partial<Record<ModuleName, () => Promise<ModuleSource>>>;
}

export const host: Host = { workers: {}, modules: {} };

/**
 * Where the computation runs. `true`: in a worker, which the package makes; `false`: in the caller's own thread, for a
 * caller that is a worker itself; a function: in the worker that it makes of the script `ernie-vil/worker/cpu`,
 * `ernie-vil/worker/cpu-threads` or `ernie-vil/worker/webgpu`.
 */
export type WorkerOption = boolean | ((module: ModuleName) => Worker);

/** WebAssembly in place of the package's own files: an address, bytes, or a compiled module for a build. */
export type WasmOption = Partial<Record<ModuleName, WasmInput>>;

/** Modules of the caller's, for the entry `ernie-vil/core`. */
export type ModulesOption = Partial<Record<ModuleName, ModuleSource>>;

/** How a thread with a module is made. */
export interface HostOptions {
  worker?: WorkerOption | undefined;
  wasm?: WasmOption | undefined;
  modules?: ModulesOption | undefined;
}

/** @returns whether a page is where this runs: workers have no document, and neither have Node, Deno and Bun */
function isPage(): boolean {
  return typeof document !== "undefined" && typeof Worker === "function";
}

/** @returns whether a build can be started */
export function isAvailable(name: ModuleName, { worker, modules }: HostOptions): boolean {
  return modules ? name in modules : typeof worker === "function" || name in host.modules;
}

/** @returns whether a build runs in a worker of its own */
export function usesWorker(name: ModuleName, { worker, modules }: HostOptions): boolean {
  return typeof worker === "function" || (name in host.workers && !modules && (worker ?? isPage()));
}

/** @returns a thread with the build `name`; nothing is started in it yet */
export async function createBackend(name: ModuleName, { worker, modules }: HostOptions): Promise<Backend> {
  const own = modules?.[name];
  if (usesWorker(name, { worker, modules })) {
    const make = typeof worker === "function" ? () => worker(name) : host.workers[name];
    try {
      return new WorkerBackend((make as () => Worker)());
    } catch (thrown) {
      throw asError(thrown, "worker", "the worker could not be started");
    }
  }
  const load = own ? () => Promise.resolve(own) : host.modules[name];
  if (!load || (modules && !own)) {
    throw new ErnieVilError("argument", `there is no module "${name}"; with ernie-vil/core it comes in the option "modules"`);
  }
  return new DirectBackend(createHandlers(take(await load())));
}

/** @returns WebAssembly in a form that can be posted */
export function postable(wasm: WasmInput | undefined): WasmInput | undefined {
  return typeof wasm === "string" || wasm instanceof URL ? absoluteUrl(wasm) : wasm;
}
