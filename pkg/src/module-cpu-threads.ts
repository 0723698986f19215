import * as glue from "../wasm/cpu-threads/ernie_vil.js";
import type { Glue, ModuleSource } from "./module.js";

/** The package's own build `cpu-threads`. */
export const module: ModuleSource = {
  glue: glue as unknown as Glue,
  wasm: new URL("../wasm/cpu-threads/ernie_vil_bg.wasm", import.meta.url),
  makeThread: () => new Worker(new URL("./thread-cpu.js", import.meta.url), { type: "module" }),
};
