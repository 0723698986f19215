import { compact } from "./bytes.js";
import { openCache, type CacheKind } from "./cache.js";
import { type Classification, captions, means, ranking } from "./classify.js";
import { follow, inOrder } from "./concurrency.js";
import { type AdapterInfo, type DeviceChoice, type PowerPreference, adapterName, chooseThreads, requestAdapter } from "./device.js";
import { Embeddings, ImageEmbeddings, type ImageFailure, sameModel } from "./embeddings.js";
import { ErnieVilError, asError, describe, fromWire, stoppedElsewhere, throwIfAborted, toWire } from "./errors.js";
import { type HostOptions, type ModulesOption, type WasmOption, type WorkerOption, createBackend, isAvailable, postable, usesWorker } from "./host.js";
import type { RequestOptions } from "./http.js";
import { type ImageInput, prepareImage } from "./images.js";
import { clearCache, folderUrl, isCached, type LoadProgress, type ModelFolder } from "./loader.js";
import type { ModuleName, Tower } from "./module.js";
import { type Backend, type CallOptions, type Calls, DirectBackend, type ImageRows, type LoadResult, type Method } from "./protocol.js";
import { type ServerOptions, serverHandlers } from "./server.js";
import { absoluteUrl } from "./url.js";

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
  /** Is told how far loading has come, about 20 times a second. */
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
  /** Is told when the model has been loaded again because its device was lost. */
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
  /** Is told how far the call has come. */
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

/** A running thread with the loaded model in it. */
interface Session {
  backend: Backend;
  info: ModelInfo;
  logitScale: number;
  templates: string[];
}

/** A device to load on. */
interface Plan {
  name: ModuleName | "server";
  threads: number;
  reason: string;
}

const BATCH = { cpu: 4, webgpu: 16, server: 16 } as const;
/** Batches that are on their way: one that is computed and one that is ready for it. */
const BATCHES = 2;
/** How often in a row a module may stop before no image is to blame. */
const MOST_STOPS = 20;

/**
 * A model that runs on the user's own device.
 *
 * @example
 * ```ts
 * import { ErnieVil } from "ernie-vil";
 *
 * const model = await ErnieVil.load("/models/base/");
 * const texts = await model.embedText(["雪地里的红色汽车"]);
 * const images = await model.embedImages(input.files);
 * console.log(texts.similarities(images));
 * model.dispose();
 * ```
 */
export class ErnieVil {
  readonly #folder: ModelFolder;
  readonly #options: LoadOptions;
  #session: Promise<Session> | undefined;
  #live: Session | undefined;
  #last: Session;
  #disposed = false;
  #losses = 0;
  /** How often the module has stopped since a call was answered. */
  #stops = 0;
  #labels: { key: string; vectors: Embeddings } | undefined;

  private constructor(folder: ModelFolder, options: LoadOptions, session: Session) {
    this.#folder = folder;
    this.#options = options;
    this.#session = Promise.resolve(session);
    this.#live = this.#last = session;
  }

  /**
   * Loads a model.
   *
   * @example
   * ```ts
   * const model = await ErnieVil.load("https://example.org/models/base/", {
   *   towers: ["text"],
   *   onProgress: ({ loaded, total }) => (bar.value = loaded / total),
   * });
   * console.log(model.info.device.reason);
   * ```
   * @throws ErnieVilError, most of all `network`, `http`, `integrity`, `manifest`, `device` and `aborted`
   */
  static async load(source: ModelSource, options: LoadOptions = {}): Promise<ErnieVil> {
    throwIfAborted(options.signal);
    const folder = modelFolder(source, options.request ?? {});
    const session = await open(folder, options, options);
    return new ErnieVil(folder, options, session);
  }

  /**
   * Whether a model can be loaded without the network.
   *
   * @example
   * ```ts
   * if (await ErnieVil.isCached("/models/base/", { towers: ["text"] })) button.textContent = "Ready";
   * ```
   */
  static async isCached(url: string | URL, options: { towers?: readonly Tower[]; cache?: string } = {}): Promise<boolean> {
    const { cache } = await openCache(options.cache ?? true);
    return cache !== undefined && isCached(cache, addressOf(url), options.towers);
  }

  /**
   * Removes what is kept of a model; of all models where no address is given.
   *
   * @example
   * ```ts
   * await ErnieVil.clearCache("/models/base/");
   * ```
   */
  static async clearCache(url?: string | URL, options: { cache?: string } = {}): Promise<void> {
    const { cache } = await openCache(options.cache ?? true);
    if (cache) await clearCache(cache, url === undefined ? undefined : addressOf(url));
  }

  /**
   * What is known of the model and of its device. A new object when the device was lost and the model has moved.
   *
   * @example
   * ```ts
   * badge.textContent = model.info.device.kind;
   * badge.title = model.info.device.reason;
   * ```
   */
  get info(): ModelInfo {
    return this.#last.info;
  }

  /** @internal How the model's threads are made; an index makes its own in the same way. */
  get host(): HostOptions {
    const { worker, wasm, modules } = this.#options;
    return { worker, wasm, modules };
  }

  /**
   * The vectors of captions, in order.
   *
   * @example
   * ```ts
   * const vectors = await model.embedText(["雪地里的红色汽车", "一只猫"]);
   * ```
   */
  async embedText(texts: readonly string[], options: EmbedTextOptions = {}): Promise<Embeddings> {
    const list = captionList(texts);
    const total = list.length;
    const onProgress = options.onProgress && ((done: number) => options.onProgress?.({ done, total }));
    const params = (): Params<"embedText"> => ({ params: { texts: list } });
    const data = total === 0 ? new Float32Array(0) : await this.#call("embedText", params, { ...options, onProgress });
    const { dimensions, fingerprint } = this.info;
    options.onProgress?.({ done: total, total });
    return new Embeddings(data, dimensions, fingerprint);
  }

  /**
   * The vectors of images, in order. Files are read one after the other, so that any number of them can be given.
   *
   * @example
   * ```ts
   * const vectors = await model.embedImages(input.files, {
   *   signal: controller.signal,
   *   onProgress: ({ done, total }) => (bar.value = done / total),
   * });
   * ```
   * @throws ErnieVilError `image` names the first image that cannot be decoded, `crashed` the one that stopped the module
   */
  async embedImages(images: ArrayLike<ImageInput>, options: EmbedImagesOptions = {}): Promise<ImageEmbeddings> {
    if (typeof images === "string" || typeof images?.length !== "number" || ArrayBuffer.isView(images)) {
      throw new ErnieVilError("argument", "embedImages takes a list of images: [image] for one");
    }
    const { signal, onProgress, onError = "reject" } = options;
    const list = Array.from(images);
    const { dimensions, fingerprint, device } = this.info;
    const size = Math.max(1, Math.floor(options.batchSize ?? BATCH[device.kind]));
    const starts = Array.from({ length: Math.ceil(list.length / size) }, (_, n) => n * size);
    const data = new Float32Array(list.length * dimensions);
    const indices: number[] = [];
    const failures: ImageFailure[] = [];

    // A batch that fails ends the one that is ahead of it.
    const stop = new AbortController();
    const forget = follow(stop, signal);
    const begin = (start: number): Promise<ImageRows> => {
      const positions = Array.from(list.slice(start, start + size), (_, i) => start + i);
      return this.#embedBatch(list, positions, onError === "skip", stop.signal);
    };
    try {
      throwIfAborted(signal);
      await inOrder(starts, BATCHES, begin, (rows, start) => {
        data.set(rows.data, indices.length * dimensions);
        indices.push(...rows.indices);
        failures.push(...rows.failures.map(({ index, error }) => ({ index, error: fromWire(error) })));
        onProgress?.({ done: Math.min(start + size, list.length), total: list.length });
      });
    } finally {
      stop.abort();
      forget();
    }
    const filled = indices.length === list.length ? data : data.slice(0, indices.length * dimensions);
    return new ImageEmbeddings(filled, dimensions, fingerprint, indices, failures);
  }

  /**
   * Embeds the images at some positions of `list`. With `skip` an image that stops the module is left out like one that cannot
   * be read, and the others are embedded by the module that is loaded in its place.
   *
   * @returns their rows and failures, by their positions in `list`
   */
  async #embedBatch(list: readonly ImageInput[], positions: number[], skip: boolean, signal: AbortSignal): Promise<ImageRows> {
    const whole: ImageRows = { data: new Float32Array(0), indices: [], failures: [] };
    // Each turn ends with fewer images to embed, or with groups of one.
    const groups = [positions];
    for (let group; (group = groups.shift()); ) {
      const places = group;
      const placed = (position: number): number => places[position] as number;
      try {
        const { data, indices, failures } = await this.#call("embedImages", () => imageParams(list, places, skip), { signal });
        const joined = whole.data.length ? new Float32Array(whole.data.length + data.length) : data;
        if (joined !== data) {
          joined.set(whole.data);
          joined.set(data, whole.data.length);
        }
        whole.data = joined;
        whole.indices.push(...indices.map(placed));
        whole.failures.push(...failures.map(({ index, error }) => ({ index: placed(index), error })));
      } catch (thrown) {
        const error = asError(thrown);
        if (error.code !== "crashed" || error.bystander) throw error;
        const at = error.image ?? (places.length === 1 ? 0 : undefined);
        const where = at === undefined ? `one of the images ${places[0]} to ${places.at(-1)}: ` : `image ${placed(at)}: `;
        const told = error.message.startsWith(where) ? error : new ErnieVilError("crashed", where + error.message, { cause: error.cause });
        if (!skip || this.#stops > MOST_STOPS) throw told;
        if (at === undefined) {
          groups.unshift(...places.map((position) => [position]));
        } else {
          whole.failures.push({ index: placed(at), error: toWire(told) });
          if (places.length > 1) groups.unshift(places.filter((_, i) => i !== at));
        }
      }
    }
    whole.failures.sort((a, b) => a.index - b.index);
    return whole;
  }

  /**
   * Compares images with labels, without training.
   *
   * @example
   * ```ts
   * const [best] = await model.classify(file, ["猫", "狗"], { template: "一张{}的照片" });
   * console.log(best.label, best.probability);
   * ```
   * @returns the labels of the image, the likeliest first
   */
  classify(image: ImageInput, labels: readonly string[], options?: ClassifyOptions): Promise<Classification[]>;
  /**
   * Compares several images with labels.
   *
   * @example
   * ```ts
   * for (const [best] of await model.classify(files, ["猫", "狗"])) console.log(best.label);
   * ```
   * @returns for each image its labels, the likeliest first
   */
  classify(images: readonly ImageInput[], labels: readonly string[], options?: ClassifyOptions): Promise<Classification[][]>;
  async classify(
    images: ImageInput | readonly ImageInput[],
    labels: readonly string[],
    options: ClassifyOptions = {},
  ): Promise<Classification[] | Classification[][]> {
    const { template = "{}", ensemble, signal } = options;
    const cancel: CancelOptions = signal ? { signal } : {};
    const vectors = await this.#labelVectors(labels, ensemble ? this.#last.templates : [template].flat(), cancel);
    const list = (Array.isArray(images) ? images : [images]) as readonly ImageInput[];
    const rows = await this.embedImages(list, cancel);
    const scores = rows.similarities(vectors);
    const scale = options.scale ?? this.#last.logitScale;
    const results = list.map((_, i) => ranking(labels, scores.subarray(i * labels.length, (i + 1) * labels.length), scale));
    return Array.isArray(images) ? results : (results[0] as Classification[]);
  }

  async #labelVectors(labels: readonly string[], templates: readonly string[], options: CancelOptions): Promise<Embeddings> {
    const texts = captions(labels, templates);
    const key = JSON.stringify(texts);
    // A page asks for the same labels with picture after picture.
    if (this.#labels?.key !== key) {
      const all = await this.embedText(texts, options);
      const vectors = new Embeddings(means(all, templates.length), all.dimensions, all.fingerprint);
      this.#labels = { key, vectors };
    }
    return this.#labels.vectors;
  }

  /**
   * The token ids of captions, as the text tower sees them: between [CLS] and [SEP], cut to the longest length.
   *
   * @example
   * ```ts
   * const [ids] = await model.tokenize(["一只猫"]);
   * ```
   */
  async tokenize(texts: readonly string[], options: CancelOptions = {}): Promise<Uint32Array[]> {
    return this.#call("tokenize", () => ({ params: { texts: captionList(texts) } }), options);
  }

  /**
   * What the image tower sees of an image: red, green and blue planes of `info.imageSize` squared values, normalised. For a
   * comparison with other software.
   *
   * @example
   * ```ts
   * const pixels = await model.preprocess(file);
   * ```
   */
  async preprocess(image: ImageInput, options: CancelOptions = {}): Promise<Float32Array> {
    const params = async (): Promise<Params<"preprocess">> => {
      const { payload, transfer } = await prepareImage(image, 0);
      return { params: { image: payload }, transfer };
    };
    return this.#call("preprocess", params, options);
  }

  /**
   * How well captions and images find each other, by the original's protocol; row `i` of one belongs to row `i` of the other.
   *
   * @example
   * ```ts
   * const { table } = await model.recall(texts, images);
   * console.log(table);
   * ```
   */
  async recall(texts: Embeddings, images: Embeddings, options: CancelOptions = {}): Promise<RecallReport> {
    sameModel(texts, images);
    const { dimensions } = texts;
    return this.#call("recall", () => ({ params: { text: compact(texts.data), image: compact(images.data), dimensions } }), options);
  }

  /**
   * Ends the model and gives its memory back. Calls under way reject with the code `disposed`.
   *
   * @example
   * ```ts
   * model.dispose();
   * ```
   */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    const error = disposed();
    void this.#session?.then(({ backend }) => end(backend, error)).catch(() => undefined);
    this.#session = undefined;
  }

  /** @internal Loses the GPU device, as a driver that is reset does; for tests. */
  async simulateDeviceLoss(): Promise<void> {
    await this.#live?.backend.call("loseDevice", {});
  }

  async #call<M extends Method>(
    method: M,
    make: () => Params<M> | Promise<Params<M>>,
    options: Pick<CallOptions<M>, "signal" | "onProgress">,
  ): Promise<Calls[M]["result"]> {
    const { signal, onProgress } = options;
    const { device = "auto", onDeviceLost = "retry" } = this.#options;
    // After the first loss the same device has another chance; after the second one the CPU, where it may be taken.
    const chances = onDeviceLost === "reject" ? 0 : device === "auto" ? 2 : 1;
    for (let losses = 0; ; ) {
      throwIfAborted(signal);
      const session = await this.#running();
      const { params, transfer } = await make();
      try {
        const result = await session.backend.call(method, params, { signal, onProgress, transfer });
        this.#losses = this.#stops = 0;
        return result;
      } catch (thrown) {
        const error = asError(thrown);
        if (error.code !== "device-lost" && error.code !== "crashed") throw error;
        this.#restart(session, error);
        if (error.code === "crashed" ? !error.bystander || this.#stops > MOST_STOPS : losses++ === chances) throw error;
      }
    }
  }

  /** @returns the thread with the model, which is started again if it was lost */
  async #running(): Promise<Session> {
    if (this.#disposed) throw disposed();
    const session = (this.#session ??= this.#reload());
    try {
      return await session;
    } catch (thrown) {
      // The next call tries again.
      if (this.#session === session) this.#session = undefined;
      const error = asError(thrown);
      // What stops it while it is loaded is in no call.
      if (error.code === "crashed") error.bystander = true;
      throw error;
    }
  }

  /** Leaves a thread whose device was lost or whose module has stopped. */
  #restart(session: Session, error: ErnieVilError): void {
    if (this.#live !== session) return;
    this.#live = this.#session = undefined;
    if (error.code === "device-lost") this.#losses += 1;
    else this.#stops += 1;
    session.backend.terminate(error.code === "crashed" ? stoppedElsewhere(error) : error);
  }

  async #reload(): Promise<Session> {
    const { device = "auto", onDeviceChange } = this.#options;
    const { kind } = this.#last.info.device;
    const tooOften = this.#losses > 1 && device === "auto";
    const cpu: Plan = { name: "cpu", threads: 1, reason: "the CPU, since the GPU device was lost twice" };
    const { onProgress: _, signal: __, ...options } = this.#options;
    const planned = tooOften ? [cpu, ...(options.fallback ? [server("")] : [])] : undefined;
    const session = await open(this.#folder, options, { ...options, device }, planned);
    if (session.info.fingerprint !== this.#last.info.fingerprint) {
      session.backend.terminate(disposed());
      throw new ErnieVilError("device", "the model that is there now is another one; load it anew, and compute its vectors anew");
    }
    if (this.#disposed) {
      session.backend.terminate(disposed());
      throw disposed();
    }
    this.#live = this.#last = session;
    if (kind === "webgpu") onDeviceChange?.(session.info);
    return session;
  }
}

interface Params<M extends Method> {
  params: Calls[M]["params"];
  transfer?: Transferable[];
}

const disposed = (): ErnieVilError => new ErnieVilError("disposed", "the model was disposed of");

/** Ends a thread; the caller's own one goes on, but for the model in it. */
function end(backend: Backend, error: ErnieVilError): void {
  if (!backend.worker) void backend.call("unload", {}).catch(() => undefined);
  backend.terminate(error);
}

async function imageParams(list: readonly ImageInput[], positions: readonly number[], skip: boolean): Promise<Params<"embedImages">> {
  const prepared = await Promise.all(positions.map((position) => prepareImage(list[position] as ImageInput, position)));
  return {
    params: { images: prepared.map(({ payload }) => payload), skip },
    transfer: prepared.flatMap(({ transfer }) => transfer),
  };
}

function captionList(texts: readonly string[]): string[] {
  if (typeof texts === "string" || !Array.isArray(texts)) {
    throw new ErnieVilError("argument", "captions come as a list: [caption] for one");
  }
  const wrong = texts.findIndex((text) => typeof text !== "string");
  if (wrong >= 0) throw new ErnieVilError("argument", `caption ${wrong} is no string`);
  return texts as string[];
}

function addressOf(source: string | URL): string {
  return folderUrl(absoluteUrl(source));
}

function modelFolder(source: ModelSource, request: RequestOptions): ModelFolder {
  if (typeof source === "string" || source instanceof URL) return { url: addressOf(source), request };
  const files: Record<string, Blob> = {};
  if (typeof source.length === "number") {
    for (const file of Array.from(source as ArrayLike<File>)) files[file.name] = file;
  } else {
    for (const [name, file] of Object.entries(source as Record<string, Blob | BufferSource>)) {
      files[name] = file instanceof Blob ? file : new Blob([file]);
    }
  }
  return { files };
}

/** @returns the devices to try, one after the other */
async function plans(options: LoadOptions): Promise<Plan[]> {
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

/** The server, as a plan. */
function server(why: string): Plan {
  return { name: "server", threads: 0, reason: `the server, ${why}` };
}

/** Failures of a device, after which another one may do. */
const OF_THE_DEVICE: readonly string[] = ["device", "device-lost", "crashed"];
/** Failures of what a device needs as well: the WebAssembly may not even be there. */
const OF_ALL_DEVICES: readonly string[] = [...OF_THE_DEVICE, "worker", "network", "internal"];
const TRIED: Record<Plan["name"], string> = {
  webgpu: "WebGPU was",
  "cpu-threads": "threads were",
  cpu: "the CPU was",
  server: "the server was",
};

async function open(folder: ModelFolder, options: LoadOptions, choice: LoadOptions, planned?: Plan[]): Promise<Session> {
  const refused: string[] = [];
  const list = planned ?? (await plans(choice));
  for (const [position, { name, threads, reason }] of list.entries()) {
    const why = refused.length > 0 ? `the ${name === "server" ? "server" : "CPU"}, since ${refused.join("; ")}` : reason;
    try {
      return await openOn(name, threads, why, folder, options);
    } catch (thrown) {
      const error = asError(thrown);
      const next = list[position + 1];
      // What threads need beside the CPU may be missing: their script, their module, a memory that can be shared.
      const reasons = next?.name === "server" || name === "cpu-threads" ? OF_ALL_DEVICES : OF_THE_DEVICE;
      if (!next || !reasons.includes(error.code)) throw error;
      refused.push(`${TRIED[name]} tried and left: ${error.message}`);
    }
  }
  throw new ErnieVilError("internal", "there was no device to try");
}

async function openOn(name: Plan["name"], threads: number, reason: string, folder: ModelFolder, options: LoadOptions): Promise<Session> {
  const { signal, onProgress, towers, dtype = "auto", cache = true, allowSoftware = false } = options;
  const backend = name === "server" ? new DirectBackend(serverHandlers(options.fallback as ServerOptions)) : await createBackend(name, options);
  try {
    const params: Calls["load"]["params"] = {
      folder,
      towers,
      dtype,
      cache,
      allowSoftware,
      powerPreference: options.powerPreference ?? "high-performance",
      threads,
      wasm: name === "server" ? undefined : postable(options.wasm?.[name]),
    };
    const result = await backend.call("load", params, { signal, onProgress });
    return { backend, info: modelInfo(result, reason, backend.worker), logitScale: result.model.logitScale, templates: result.model.templates };
  } catch (thrown) {
    const error = asError(thrown);
    backend.terminate(error);
    throw error;
  }
}

function modelInfo({ model, version, kind, threads, adapter, cache }: LoadResult, reason: string, worker: boolean): ModelInfo {
  const { logitScale: _, templates: __, ...rest } = model;
  const device: DeviceInfo = { kind, reason, threads, worker, ...(adapter && { adapter }) };
  return { ...rest, version, device, cache };
}
