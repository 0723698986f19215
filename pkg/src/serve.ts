import { createHandlers } from "./engine.js";
import type { ModuleSource } from "./module.js";
import { type WorkerScope, answer } from "./protocol.js";

/**
 * Makes this worker one that the package can use: the whole of a worker's script that brings its own module along.
 *
 * @example
 * ```ts
 * // worker.ts
 * import { serve } from "ernie-vil/core";
 * import * as glue from "ernie-vil/wasm/cpu/ernie_vil.js";
 * serve({ glue, wasm: "/static/ernie_vil_bg.wasm" });
 *
 * // page.ts
 * const worker = () => new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
 * const model = await ErnieVil.load(url, { device: "cpu", worker });
 * ```
 */
export function serve(source: ModuleSource): void {
  answer(globalThis as unknown as WorkerScope, createHandlers(source));
}
