// The script of a worker with the build `cpu-threads`, which makes the workers of its threads itself.
import { module } from "./module-cpu-threads.js";
import { serve } from "./serve.js";

serve(module);
