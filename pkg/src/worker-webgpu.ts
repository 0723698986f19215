// The script of a worker with the build `webgpu`. It imports all it needs at once, since bundlers put a worker into one file.
import { module } from "./module-webgpu.js";
import { serve } from "./serve.js";

serve(module);
