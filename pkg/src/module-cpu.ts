import * as glue from "../wasm/cpu/ernie_vil.js";
import type { Glue, ModuleSource } from "./module.js";

/** The package's own build `cpu`. */
export const module: ModuleSource = {
  // The generated types are compared with these in the tests, so that the build does not wait for the modules.
  glue: glue as unknown as Glue,
  wasm: new URL("../wasm/cpu/ernie_vil_bg.wasm", import.meta.url),
};
