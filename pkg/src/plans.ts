// On which devices a model is tried, in their order.
import { adapterName, chooseThreads, requestAdapter } from "./device.js";
import { ErnieVilError, describe } from "./errors.js";
import { isAvailable, usesWorker } from "./host.js";
import type { ModuleName } from "./module.js";
import type { LoadOptions } from "./options.js";

/** A device to load on. */
export interface Plan {
  name: ModuleName | "server";
  threads: number;
  reason: string;
}

/** @returns the devices to try, one after the other */
export async function plans(options: LoadOptions): Promise<Plan[]> {
  const { device = "auto", allowSoftware = false, powerPreference = "high-performance", threads = "auto" } = options;
  const cpu = (reason: string): Plan[] => {
    const choice = chooseThreads(threads, isAvailable("cpu-threads", options), usesWorker("cpu-threads", options));
    const one: Plan = { name: "cpu", threads: 1, reason: `the CPU, ${reason}; ${choice.reason}` };
    return choice.threads > 1 ? [{ ...one, name: "cpu-threads", threads: choice.threads }, one] : [one];
  };
  const last = options.fallback ? [server("")] : [];
  switch (device) {
    case "cpu":
      return cpu("as asked for");
    case "webgpu":
      return [{ name: "webgpu", threads: 1, reason: "WebGPU, as asked for" }];
    case "auto": {
      if (!isAvailable("webgpu", options)) return [...cpu("since the module for WebGPU is not there"), ...last];
      try {
        const { info } = await requestAdapter(allowSoftware, powerPreference);
        return [{ name: "webgpu", threads: 1, reason: `WebGPU, since there is a GPU (${adapterName(info)})` }, ...cpu(""), ...last];
      } catch (thrown) {
        return [...cpu(`since ${describe(thrown)}`), ...last];
      }
    }
    case "server":
      if (!options.fallback) throw new ErnieVilError("argument", 'device: "server" needs fallback: { url }, the address of the server');
      return [server("as asked for")];
    default:
      throw new ErnieVilError("argument", `there is no device "${String(device)}": it is "auto", "webgpu", "cpu" or "server"`);
  }
}

/** @returns the devices to try where that of a GPU was lost twice */
export function plansWithoutGpu(options: LoadOptions): Plan[] {
  const cpu: Plan = { name: "cpu", threads: 1, reason: "the CPU, since the GPU device was lost twice" };
  return [cpu, ...(options.fallback ? [server("")] : [])];
}

/** The server, as a plan. */
function server(why: string): Plan {
  return { name: "server", threads: 0, reason: `the server, ${why}` };
}
