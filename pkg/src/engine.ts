// What runs beside the module, in a worker or in the caller's thread: the model, and an index.
import { openCache } from "./cache.js";
import { Mutex, breathe, onAbort, orAborted, sleep } from "./concurrency.js";
import { type Adapter, captureDevice, requestAdapter } from "./device.js";
import { ErnieVilError, aborted, asError, stoppedElsewhere, throwIfAborted, toWire } from "./errors.js";
import { readCrop } from "./images.js";
import { IndexService } from "./index-service.js";
import { readModel } from "./loader.js";
import { type Glue, type ModuleSource, type WasmLoader, type WasmModel, abandon, release, start, throwIfStopped } from "./module.js";
import type { Calls, Context, Handlers, ImageRows, LoadParams, LoadResult, Method } from "./protocol.js";
import { startThreads } from "./threads.js";

/** Captions that are computed at once; between two such groups other calls have their turn. */
const CAPTIONS = { cpu: 8, webgpu: 64 } as const;
/** Failures of one image that do not concern the others. */
const OF_ONE_IMAGE: readonly string[] = ["image", "http", "network"];
/** Images that an error names where any of a batch may have stopped the module. */
const MOST_NAMES = 16;
/** How far two computations of one vector may be apart, as the sum of squared differences. */
const AGREEMENT = 1e-6;
/** Milliseconds in which a device says that it is lost, after a computation on it has failed. */
const LOSS = 1000;

/** @returns the calls that a thread with the module `source` answers */
export function createHandlers(source: ModuleSource): Handlers {
  const engine = new Engine(source);
  const index = new IndexService(source);
  source.glue.whenStopped?.((thrown) => {
    const error = asError(thrown, "crashed", "the WebAssembly module stopped");
    abandon(source.glue, error);
    engine.fail(error);
  });
  return guarded(source.glue, {
    load: (params, context) => engine.load(params, context),
    tokenize: ({ texts }) => engine.tokenize(texts),
    embedText: ({ texts }, context) => engine.embedText(texts, context),
    preprocess: ({ image }, { signal }) => engine.use(async (model) => model.normalise(await readCrop(model, image, signal))),
    embedImages: (params, context) => engine.embedImages(params, context),
    recall: async ({ text, image, dimensions }) => {
      await start(source);
      return source.glue.recall(text, image, dimensions);
    },
    loseDevice: () => engine.loseDevice(),
    unload: () => engine.unload(),
    openIndex: (params) => index.open(params),
    addToIndex: ({ ids, vectors }) => index.add(ids, vectors),
    removeFromIndex: ({ ids }) => index.remove(ids),
    getFromIndex: ({ id }) => index.get(id),
    indexIds: () => index.ids(),
    searchIndex: ({ queries, k }) => index.search(queries, k),
    exportIndex: () => index.export(),
    importIndex: ({ bytes }) => index.import(bytes),
    flushIndex: () => index.flush(),
    closeIndex: () => index.close(),
  });
}

/** @returns handlers that leave a module alone once it has trapped */
function guarded(glue: Glue, handlers: Handlers): Handlers {
  const guard = <M extends Method>(method: M): [M, Handlers[M]] => {
    const handler = handlers[method] as (params: Calls[M]["params"], context: Context<M>) => Promise<Calls[M]["result"]>;
    return [
      method,
      async (params: Calls[M]["params"], context: Context<M>) => {
        // An index is let go of without the module.
        if (method !== "closeIndex") throwIfStopped(glue);
        try {
          return await handler(params, context);
        } catch (thrown) {
          const error = asError(thrown);
          if (error.code === "crashed" && !error.bystander) abandon(glue, error);
          throw error;
        }
      },
    ] as [M, Handlers[M]];
  };
  return Object.fromEntries((Object.keys(handlers) as Method[]).map(guard)) as unknown as Handlers;
}

/** A GPU device that the module has taken. There is one for each start of a module. */
interface TakenDevice {
  adapter: Adapter;
  device: GPUDevice | undefined;
  /** Aborted when it is gone, with the reason. */
  lost: AbortController;
}

const devices = new WeakMap<object, Promise<TakenDevice>>();

class Engine {
  readonly #source: ModuleSource;
  readonly #queue = new Mutex();
  /** Batches of images come one after the other, while captions have their turn between two images. */
  readonly #batches = new Mutex();
  #model: WasmModel | undefined;
  #kind: "cpu" | "webgpu" = "cpu";
  #device: GPUDevice | undefined;
  /** Aborted when the device is lost or the module has stopped, with the error. */
  #end = new AbortController();
  #forgetDevice = (): void => undefined;

  constructor(source: ModuleSource) {
    this.#source = source;
  }

  async load(params: LoadParams, { signal, progress }: Context<"load">): Promise<LoadResult> {
    const { glue, wasm } = this.#source;
    await start({ glue, wasm: params.wasm ?? wasm });
    throwIfAborted(signal);
    this.#kind = glue.kind() === "webgpu" ? "webgpu" : "cpu";
    this.#end = new AbortController();
    if (params.threads > 1) await startThreads(this.#source, params.threads);
    const adapter = this.#kind === "webgpu" ? await this.#takeDevice(params) : undefined;

    const remote = "url" in params.folder && !params.folder.url.startsWith("file:");
    const { cache, reason } = await openCache(remote ? params.cache : false);
    let loader: WasmLoader | undefined;
    let model: WasmModel | undefined;
    try {
      const report = await this.#watch(
        readModel(
          params.folder,
          {
            begin: (config, vocab, towers) => {
              loader = new glue.ModelLoader(config, vocab, towers.includes("image"), towers.includes("text"), params.dtype);
            },
            feed: (tower, bytes) => loader?.feed(tower, bytes),
          },
          { towers: params.towers, cache, digest: (bytes) => glue.sha256(bytes), signal, onProgress: progress },
        ),
      );
      const complete = loader as WasmLoader | undefined;
      loader = undefined;
      model = complete?.finish();
      if (!model) throw new ErnieVilError("internal", "nothing was loaded");
      const info = model.info();
      if (params.dtype !== "auto" && params.dtype !== info.dtype) {
        throw new ErnieVilError("device", `${params.dtype} was asked for, but the weights are kept in ${info.dtype} here`);
      }
      if (this.#kind === "webgpu") await this.#check(model, signal);
      this.#model = model;
      return {
        model: info,
        version: glue.version(),
        kind: this.#kind,
        threads: glue.threads(),
        adapter: adapter?.info,
        cache: cache
          ? { kind: report.cacheFailure ? "none" : cache.kind, fromCache: report.fromCache, reason: report.cacheFailure ?? "" }
          : { kind: "none", fromCache: false, reason: remote ? reason : "the files are on this device already" },
      };
    } catch (thrown) {
      const error = asError(thrown);
      // A module that has stopped must not be entered again.
      if (error.code !== "crashed") {
        loader?.free();
        model?.free();
      }
      throw error;
    }
  }

  async #takeDevice({ allowSoftware, powerPreference }: LoadParams): Promise<Adapter> {
    const { glue } = this.#source;
    let taking = devices.get(glue);
    if (!taking) {
      taking = (async () => {
        const adapter = await requestAdapter(allowSoftware, powerPreference);
        try {
          const device = await captureDevice(adapter.adapter, async () => glue.initDevice?.());
          const lost = new AbortController();
          void device?.lost.then(({ reason, message }) => {
            lost.abort(new ErnieVilError("device-lost", `the GPU device was lost (${message || reason || "no reason was given"})`));
          });
          return { adapter, device, lost };
        } catch (thrown) {
          throw asError(thrown, "device", "the GPU device could not be taken");
        }
      })();
      devices.set(glue, taking);
      taking.catch(() => devices.delete(glue));
    }
    const { adapter, device, lost } = await taking;
    // A module takes one device for its life; another instance of it starts afresh.
    if (lost.signal.aborted) {
      throw new ErnieVilError("device", `${aborted(lost.signal).message}, and this thread cannot take another one`);
    }
    this.#device = device;
    this.#forgetDevice = onAbort(lost.signal, () => this.fail(aborted(lost.signal)));
    return adapter;
  }

  /** Ends the call that is under way, and all later ones, with `error`. */
  fail(error: ErnieVilError): void {
    this.#end.abort(error);
  }

  /** @returns `work`, or the error of the device or module as soon as it has one */
  async #watch<T>(work: Promise<T>): Promise<T> {
    const { signal } = this.#end;
    try {
      return await orAborted(work, signal);
    } catch (thrown) {
      const error = asError(thrown);
      const { code } = error;
      // A computation may notice that its device is gone before the device says so.
      if (this.#device && (code === "device" || code === "crashed")) await sleep(LOSS, signal);
      if (code === "crashed") this.fail(error);
      throw error;
    }
  }

  /** Runs `work` on the model when nothing else does. */
  async use<T>(work: (model: WasmModel) => Promise<T>): Promise<T> {
    return this.#queue.run(async () => {
      const model = this.#model;
      if (!model) throw new ErnieVilError("internal", "no model is loaded");
      this.#throwIfEnded();
      // A module may stop before there is a promise.
      return this.#watch((async () => work(model))());
    });
  }

  /** Throws where the device or the module is gone already. */
  #throwIfEnded(): void {
    const { signal } = this.#end;
    if (!signal.aborted) return;
    const error = aborted(signal);
    throw error.code === "crashed" ? stoppedElsewhere(error) : error;
  }

  /**
   * Computes known inputs in two ways before the device is trusted: a shader that failed to compile leaves zeros or rubbish
   * behind and nothing but a line in the console. A vector must be finite, of unit length, the same whatever is computed
   * beside it, and different from another input's.
   */
  async #check(model: WasmModel, signal: AbortSignal): Promise<void> {
    const { dimensions, towers, imageSize } = model.info();
    for (const tower of towers) {
      throwIfAborted(signal);
      let alone: Float32Array;
      let together: Float32Array;
      if (tower === "text") {
        const first = "一只猫";
        alone = await this.#watch(model.embedText([first]));
        together = await this.#watch(model.embedText(["雪地里停着一辆红色的汽车", first]));
      } else {
        const [first, second] = [picture(imageSize, 7), picture(imageSize, 31)].map((rgba) => model.cropRgba(rgba, imageSize, imageSize)) as [Uint8Array, Uint8Array];
        const both = new Uint8Array(second.length + first.length);
        both.set(second);
        both.set(first, second.length);
        alone = await this.#watch(model.embedImages(first));
        together = await this.#watch(model.embedImages(both));
      }
      const [other, again] = [together.subarray(0, dimensions), together.subarray(dimensions)];
      const length = distance(alone, new Float32Array(dimensions));
      if (!(Math.abs(length - 1) < 1e-3) || !(distance(alone, again) < AGREEMENT) || !(distance(alone, other) > AGREEMENT)) {
        throw new ErnieVilError("device", `the GPU computes wrong ${tower} vectors`);
      }
    }
  }

  async tokenize(texts: string[]): Promise<Uint32Array[]> {
    return this.use(async (model) => model.tokenize(texts));
  }

  async embedText(texts: string[], { signal, progress }: Context<"embedText">): Promise<Float32Array> {
    let rows: Float32Array | undefined;
    const step = CAPTIONS[this.#kind];
    for (let at = 0; at < texts.length; at += step) {
      const part = await this.use((model) => model.embedText(texts.slice(at, at + step)));
      if (texts.length <= step) return part;
      const width = part.length / Math.min(step, texts.length - at);
      rows ??= new Float32Array(texts.length * width);
      rows.set(part, at * width);
      progress(Math.min(at + step, texts.length));
      await breathe();
      throwIfAborted(signal);
    }
    return rows ?? new Float32Array(0);
  }

  embedImages(params: Calls["embedImages"]["params"], context: Context<"embedImages">): Promise<ImageRows> {
    return this.#batches.run(() => this.#embedBatch(params, context));
  }

  async #embedBatch({ images, skip }: Calls["embedImages"]["params"], { signal }: Context<"embedImages">): Promise<ImageRows> {
    throwIfAborted(signal);
    const result: ImageRows = { data: new Float32Array(0), indices: [], failures: [] };
    const crops: Uint8Array[] = [];
    for (const [position, image] of images.entries()) {
      try {
        crops.push(await this.use((model) => readCrop(model, image, signal)));
        result.indices.push(position);
      } catch (thrown) {
        const error = asError(thrown);
        if (error.code === "crashed" && !error.bystander) error.image = position;
        if (!skip || !OF_ONE_IMAGE.includes(error.code)) throw error;
        result.failures.push({ index: position, error: toWire(error) });
      }
      await breathe();
      throwIfAborted(signal);
    }
    const [first] = crops;
    if (!first) return result;
    const batch = new Uint8Array(crops.length * first.length);
    for (const [row, crop] of crops.entries()) batch.set(crop, row * first.length);
    try {
      result.data = await this.use((model) => model.embedImages(batch));
    } catch (thrown) {
      const { code, message, bystander } = asError(thrown);
      if (code !== "crashed" || bystander) throw thrown;
      const names = result.indices.map((position) => images[position]?.name);
      const shown = names.length > MOST_NAMES ? [...names.slice(0, MOST_NAMES), "..."] : names;
      const error = new ErnieVilError("crashed", `${shown.join(", ")}: ${message}`, { cause: thrown });
      if (names.length === 1) error.image = result.indices[0];
      throw error;
    }
    return result;
  }

  async loseDevice(): Promise<void> {
    this.#device?.destroy();
  }

  /** Gives the model's memory back. */
  unload(): Promise<void> {
    return this.#queue.run(async () => {
      const model = this.#model;
      this.#model = undefined;
      this.#forgetDevice();
      if (this.#end.signal.aborted) return;
      model?.free();
      release(this.#source.glue);
    });
  }
}

/** @returns the square of the distance between two vectors, and infinity where they have different lengths */
function distance(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) return Infinity;
  return a.reduce((sum, value, i) => sum + (value - (b[i] ?? 0)) ** 2, 0);
}

/** @returns a drawn picture of coloured stripes */
function picture(size: number, stride: number): Uint8Array {
  return Uint8Array.from({ length: size * size * 4 }, (_, i) => ((i >> 2) * stride + (i & 3) * 85) & 255);
}
