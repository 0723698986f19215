// Which device a model runs on, and why.
import { orAborted } from "./concurrency.js";
import { ErnieVilError, describe } from "./errors.js";

/** The device that is asked for. */
export type DeviceChoice = "auto" | "webgpu" | "cpu" | "server";

/** A GPU as WebGPU describes it. Browsers leave fields empty that would tell users apart. */
export interface AdapterInfo {
  /** The maker, "nvidia" for example. */
  vendor: string;
  /** The family, "ampere" for example. */
  architecture: string;
  /** The model, mostly empty. */
  device: string;
  /** A line for people, mostly empty. */
  description: string;
  /** Whether it is no GPU but a program that behaves like one, slower than the CPU module. */
  software: boolean;
  /** Whether it computes in 16-bit floating point. */
  f16: boolean;
  /** What it allows, `maxBufferSize` and the like. */
  limits: Readonly<Record<string, number>>;
}

/** A GPU that answered. */
export interface Adapter {
  adapter: GPUAdapter;
  info: AdapterInfo;
}

/** Which kind of GPU is asked for where there are several. */
export type PowerPreference = "high-performance" | "low-power";

const SOFTWARE = /swiftshader|llvmpipe|lavapipe|softpipe|basic render|\bwarp\b/i;
const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupStorageSize",
  "maxComputeWorkgroupsPerDimension",
] as const;

/** The time that a browser has to name a GPU; some never answer where a driver hangs. */
const PATIENCE = 10_000;

function webgpu(): GPU | undefined {
  return typeof navigator === "undefined" ? undefined : (navigator as Partial<Navigator>).gpu;
}

/**
 * Asks WebGPU for a GPU.
 *
 * @throws ErnieVilError `device`, with a sentence that says why there is none to be used
 */
export async function requestAdapter(allowSoftware: boolean, powerPreference: PowerPreference): Promise<Adapter> {
  const gpu = webgpu();
  if (!gpu) {
    const secure = (globalThis as { isSecureContext?: boolean }).isSecureContext !== false;
    const why = secure ? "this browser or runtime has no WebGPU" : "WebGPU needs a page served over HTTPS or from localhost";
    throw new ErnieVilError("device", why);
  }
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(new ErnieVilError("device", "no answer in 10 seconds")), PATIENCE);
  let adapter: GPUAdapter | null;
  try {
    adapter = await orAborted(gpu.requestAdapter({ powerPreference }), late.signal);
  } catch (thrown) {
    throw new ErnieVilError("device", `WebGPU failed when asked for a GPU: ${describe(thrown)}`, { cause: thrown });
  } finally {
    clearTimeout(timer);
  }
  if (!adapter) throw new ErnieVilError("device", "WebGPU is there, but it finds no GPU");
  const info = await describeAdapter(adapter);
  if (info.software && !allowSoftware) {
    throw new ErnieVilError("device", `WebGPU offers only a software adapter (${adapterName(info)})`);
  }
  return { adapter, info };
}

async function describeAdapter(adapter: GPUAdapter): Promise<AdapterInfo> {
  const older = adapter as unknown as { isFallbackAdapter?: boolean; requestAdapterInfo?(): Promise<GPUAdapterInfo> };
  const info: Partial<GPUAdapterInfo> = adapter.info ?? (await older.requestAdapterInfo?.()) ?? {};
  const { vendor = "", architecture = "", device = "", description = "" } = info;
  const fallback = info.isFallbackAdapter ?? older.isFallbackAdapter ?? false;
  return {
    vendor,
    architecture,
    device,
    description,
    software: fallback || SOFTWARE.test(`${vendor} ${architecture} ${device} ${description}`),
    f16: adapter.features.has("shader-f16"),
    limits: Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]])),
  };
}

/** @returns a GPU's name in a sentence */
export function adapterName({ description, vendor, architecture, device }: AdapterInfo): string {
  return description || [vendor, architecture, device].filter(Boolean).join(" ") || "an unnamed adapter";
}

/**
 * Runs `init`, which takes a device from WebGPU by itself, so that it gets `adapter`.
 *
 * @returns the device that it took
 */
export async function captureDevice(adapter: GPUAdapter, init: () => Promise<void>): Promise<GPUDevice | undefined> {
  const gpu = webgpu();
  let taken: GPUDevice | undefined;
  if (!gpu) return undefined;
  const own = Object.getOwnPropertyDescriptor(gpu, "requestAdapter");
  const requestDevice = adapter.requestDevice.bind(adapter);
  Object.defineProperty(adapter, "requestDevice", {
    configurable: true,
    value: async (descriptor?: GPUDeviceDescriptor) => (taken = await requestDevice(descriptor)),
  });
  Object.defineProperty(gpu, "requestAdapter", { configurable: true, value: () => Promise.resolve(adapter) });
  try {
    await init();
  } finally {
    if (own) Object.defineProperty(gpu, "requestAdapter", own);
    else delete (gpu as { requestAdapter?: unknown }).requestAdapter;
  }
  return taken;
}

/** How many threads the CPU module gets, and why. */
export interface ThreadChoice {
  threads: number;
  reason: string;
}

/**
 * Chooses the number of threads.
 *
 * @param wanted the caller's number; 1 is always granted
 * @param available whether the build with threads is there
 * @param worker whether the computation runs in a worker
 */
export function chooseThreads(wanted: number | "auto", available: boolean, worker: boolean): ThreadChoice {
  const one = (reason: string): ThreadChoice => ({ threads: 1, reason: `one thread: ${reason}` });
  if (wanted === 1) return one("asked for");
  if (!available) return one("the build with threads is not there");
  if (typeof Worker !== "function") return one("there are no web workers here");
  if (!(globalThis as { crossOriginIsolated?: boolean }).crossOriginIsolated) {
    return one("the page is not cross-origin isolated (it lacks the COOP and COEP headers)");
  }
  // The thread that computes waits for the others, which a page's own may not.
  if (!worker) return one("threads need a worker to compute in");
  const { userAgent = "", maxTouchPoints = 0, hardwareConcurrency = 1 } = navigator;
  // An iPad calls itself a Macintosh, but no Macintosh has a touch screen.
  if (/iPhone|iPad|iPod/.test(userAgent) || (/Macintosh/.test(userAgent) && maxTouchPoints > 1)) {
    return one("threads of WebAssembly are not reliable on iOS");
  }
  // The cores of one processor share its memory: beyond 8 threads a step waits for data.
  const threads = wanted === "auto" ? Math.min(hardwareConcurrency, 8) : Math.min(wanted, hardwareConcurrency);
  return threads > 1 ? { threads, reason: `${threads} threads` } : one("the machine has one core");
}
