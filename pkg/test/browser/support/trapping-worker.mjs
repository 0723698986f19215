// A worker with the package's module, which stops at the bytes "stop".
import { serve } from "/pkg/dist/core.js";
import { trapping } from "/pkg/test/support/trapping.mjs";
import * as glue from "/pkg/wasm/cpu/ernie_vil.js";

const traps = { crop: (file) => new TextDecoder().decode(file) === "stop" };
serve({ glue: trapping(glue, traps).glue, wasm: new URL("/pkg/wasm/cpu/ernie_vil_bg.wasm", import.meta.url) });
