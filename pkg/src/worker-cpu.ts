// The script of a worker with the build `cpu`. It imports all it needs at once, since bundlers put a worker into one file.
import { module } from "./module-cpu.js";
import { serve } from "./serve.js";

serve(module);
