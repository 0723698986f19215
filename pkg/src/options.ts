// What callers say of a model and of its calls, and what a model says of itself.
import type { CacheKind } from "./cache.js";
import type { AdapterInfo, DeviceChoice, PowerPreference } from "./device.js";
import type { ModulesOption, WasmOption, WorkerOption } from "./host.js";
import type { RequestOptions } from "./http.js";
import type { LoadProgress } from "./loader.js";
import type { Tower } from "./module.js";
import type { ServerOptions } from "./server.js";

/**
 * A model folder: the address of the folder that has `manifest.json`, or its files, as a list (of a file dialog or a drop) or
 * by name. In Node, Deno and Bun a string that is no address is a path.
 */
export type ModelSource = string | URL | ArrayLike<File> | Readonly<Record<string, Blob | ArrayBuffer | ArrayBufferView>>;

/** How a model is loaded. */
export interface LoadOptions {
  /**
   * Where it is computed. `"auto"` (the default) takes WebGPU where there is a real GPU that passes a check, and the CPU
   * otherwise. `"server"` has the server of `fallback` compute.
   */
  device?: DeviceChoice;
  /** The towers that are needed; all of the model's where nothing is said. A search box over ready vectors needs `["text"]`. */
  towers?: readonly Tower[];
  /**
   * How the weights are kept. `"auto"` (the default): as they are in the model's files, which loses nothing; on the CPU those in half
   * precision in single. `"f16"` halves a GPU's memory; the CPU does not have it. Files in `int8` or `int4` (`ernie-vil convert --dtype`)
   * are a quarter or a seventh as large, also in memory. Vectors are computed in single precision either way.
   */
  dtype?: "auto" | "f32" | "f16";
  /** Whether files are kept for later visits (default: yes). In Node, Deno and Bun: the path of a folder to keep them in. */
  cache?: boolean | string;
  /** Cancels loading. */
  signal?: AbortSignal;
  /** Called with the progress of loading, about 20 times a second. */
  onProgress?: (progress: LoadProgress) => void;
  /** Whether a program that behaves like a GPU counts as one; it is slower than the CPU module (default: no). */
  allowSoftware?: boolean;
  /** Which GPU is taken where there are several (default: the fast one). */
  powerPreference?: PowerPreference;
  /** Threads of the CPU module; `"auto"` (the default) takes the cores, where the page is cross-origin isolated. */
  threads?: number | "auto";
  /**
   * A server (`ernie-vil serve`) that computes where this device cannot: with `device: "auto"`, where neither WebGPU nor the CPU can serve.
   * Captions and pictures are then sent to it. It has to have the same model.
   */
  fallback?: ServerOptions;
  /** What is sent along with requests for the model's files. */
  request?: RequestOptions;
  /** Where the computation runs (default: in a worker on a page, in the caller's thread elsewhere). */
  worker?: WorkerOption;
  /** WebAssembly in place of the package's own files. */
  wasm?: WasmOption;
  /** Modules of the caller's; the entry `ernie-vil/core` needs them unless `worker` is a function. */
  modules?: ModulesOption;
  /**
   * What happens to a call when the GPU device is lost. `"retry"` (the default): the model is loaded again and the call repeated; if that device
   * is lost as well, with `device: "auto"` on the CPU. `"reject"`: the call rejects with the code `device-lost`, and the model is loaded
   * again for the next one.
   */
  onDeviceLost?: "retry" | "reject";
  /** Called when the model has been loaded again because its device was lost. */
  onDeviceChange?: (info: ModelInfo) => void;
}

/** Where a model is computed, and why there. */
export interface DeviceInfo {
  /** The device. */
  kind: "webgpu" | "cpu" | "server";
  /** Why this one: a sentence. */
  reason: string;
  /** The GPU, where it is one. */
  adapter?: AdapterInfo;
  /** Threads of the CPU module. */
  threads: number;
  /** Whether it runs in a worker. */
  worker: boolean;
}

/** What is known of a loaded model. */
export interface ModelInfo {
  /** What the model is called; empty where its folder says nothing. */
  name: string;
  /** The architecture. */
  structure: string;
  /** What names the weights and settings: vectors of one fingerprint can be compared. */
  fingerprint: string;
  /** Numbers in a vector. */
  dimensions: number;
  /** Tokens of a caption, with the two that mark its ends; longer ones are cut. */
  maxTextTokens: number;
  /** Height and width that images are brought to, in pixels. */
  imageSize: number;
  /** Words of the vocabulary. */
  vocabSize: number;
  /** The towers that are loaded. */
  towers: readonly Tower[];
  /** Weights of these towers. */
  parameters: number;
  /** How the weights are kept. */
  dtype: "f32" | "f16" | "int8" | "int4";
  /** A remark on the weights, that they are random for example. */
  note: string | null;
  /** The version of the module. */
  version: string;
  /** Where it is computed, and why there. */
  device: DeviceInfo;
  /** Where its files are kept, whether they came from there, and why not. */
  cache: { kind: CacheKind; fromCache: boolean; reason: string };
}

/** How a call can be cancelled. */
export interface CancelOptions {
  /** Cancels the call; it rejects with the code `aborted`. */
  signal?: AbortSignal;
}

/** How far a call has come. */
export interface EmbedProgress {
  /** Inputs that are done. */
  done: number;
  /** Inputs of the call. */
  total: number;
}

/** How captions are embedded. */
export interface EmbedTextOptions extends CancelOptions {
  /** Called with the progress of the call. */
  onProgress?: (progress: EmbedProgress) => void;
}

/** How images are embedded. */
export interface EmbedImagesOptions extends EmbedTextOptions {
  /** Images that are computed at once (default: 4 on the CPU, 16 on WebGPU). Vectors do not depend on it. */
  batchSize?: number;
  /**
   * What an image that cannot be read does: the call rejects (`"reject"`, the default), or leaves it out (`"skip"`). An image that
   * stops the module (the code `crashed`) is one of them: the model is loaded again for the others.
   */
  onError?: "reject" | "skip";
}

/** How images are compared with labels. */
export interface ClassifyOptions extends CancelOptions {
  /** A caption with `{}` in the label's place (default: the label alone); of several, a label's vectors are averaged. */
  template?: string | readonly string[];
  /** Takes the library's own dozen templates: twelve captions a label. */
  ensemble?: boolean;
  /** What cosines are multiplied by before the softmax (default: the model's own). */
  scale?: number;
}

/** What the recall of pairs comes to. */
export interface RecallReport {
  /** The original's table. */
  table: string;
  /** The same figures and more. */
  report: object;
}
