// The script of a worker that is one of the threads of the build `cpu-threads`.
import * as generated from "../wasm/cpu-threads/ernie_vil.js";
import type { Glue } from "./module.js";
import { runThread } from "./threads.js";

runThread(generated as unknown as Glue);
