// The calls between the page and the thread with the module, and the two ways in which they travel.
import type { CacheKind } from "./cache.js";
import { follow, onAbort, orAborted } from "./concurrency.js";
import type { AdapterInfo, PowerPreference } from "./device.js";
import { ErnieVilError, type WireError, aborted, asError, fromWire, throwIfAborted, toWire } from "./errors.js";
import type { ImagePayload } from "./images.js";
import type { IndexState, OpenIndex } from "./index-service.js";
import type { LoadProgress, ModelFolder } from "./loader.js";
import type { Tower, WasmInfo, WasmInput } from "./module.js";

/** What a model is loaded with. */
export interface LoadParams {
  folder: ModelFolder;
  towers: readonly Tower[] | undefined;
  dtype: "auto" | "f32" | "f16";
  cache: boolean | string;
  allowSoftware: boolean;
  powerPreference: PowerPreference;
  threads: number;
  /** In place of the package's own file. */
  wasm: WasmInput | undefined;
}

/** What a loaded model says of itself and of its device. */
export interface LoadResult {
  model: WasmInfo;
  version: string;
  kind: "cpu" | "webgpu" | "server";
  threads: number;
  adapter: AdapterInfo | undefined;
  cache: { kind: CacheKind; fromCache: boolean; reason: string };
}

/** The vectors of those images that could be decoded. */
export interface ImageRows {
  data: Float32Array;
  /** Positions in the call of the images that have a row. */
  indices: number[];
  failures: { index: number; error: WireError }[];
}

/** The hits of one query, best first. */
export interface RawHits {
  ids: string[];
  scores: Float32Array;
}

interface Call<Params, Result, Progress = never> {
  params: Params;
  result: Result;
  progress: Progress;
}

/** All calls: what they take, give, and tell on the way. */
export interface Calls {
  load: Call<LoadParams, LoadResult, LoadProgress>;
  tokenize: Call<{ texts: string[] }, Uint32Array[]>;
  embedText: Call<{ texts: string[] }, Float32Array, number>;
  preprocess: Call<{ image: ImagePayload }, Float32Array>;
  embedImages: Call<{ images: ImagePayload[]; skip: boolean }, ImageRows>;
  recall: Call<{ text: Float32Array; image: Float32Array; dimensions: number }, { table: string; report: object }>;
  /** Destroys the GPU device, as a driver that is reset does. */
  loseDevice: Call<object, void>;
  unload: Call<object, void>;
  openIndex: Call<OpenIndex, IndexState>;
  addToIndex: Call<{ ids: string[]; vectors: Float32Array }, IndexState>;
  removeFromIndex: Call<{ ids: string[] }, { removed: number; state: IndexState }>;
  getFromIndex: Call<{ id: string }, Float32Array | undefined>;
  indexIds: Call<object, string[]>;
  searchIndex: Call<{ queries: Float32Array; k: number }, RawHits[]>;
  exportIndex: Call<object, Uint8Array>;
  importIndex: Call<{ bytes: Uint8Array }, IndexState>;
  flushIndex: Call<object, void>;
  closeIndex: Call<object, void>;
}

export type Method = keyof Calls;

/** What a handler can ask and tell while it runs. */
export interface Context<M extends Method> {
  signal: AbortSignal;
  progress(value: Calls[M]["progress"]): void;
}

/** The thread with the module: one function for each call. */
export type Handlers = {
  [M in Method]: (params: Calls[M]["params"], context: Context<M>) => Promise<Calls[M]["result"]>;
};

export interface CallOptions<M extends Method> {
  signal?: AbortSignal | undefined;
  onProgress?: ((value: Calls[M]["progress"]) => void) | undefined;
  /** Objects that are handed over and not copied. */
  transfer?: Transferable[] | undefined;
}

/** A way to the thread with the module. */
export interface Backend {
  /** Whether it is a worker. */
  readonly worker: boolean;
  call<M extends Method>(method: M, params: Calls[M]["params"], options?: CallOptions<M>): Promise<Calls[M]["result"]>;
  /** Ends it; calls under way reject with `error`, and later ones too. */
  terminate(error: ErnieVilError): void;
}

type ToWorker =
  | { id: number; method: Method; params: unknown }
  /** Ends the call with this number. */
  | { abort: number };

type FromWorker =
  | { ready: true }
  | { id: number; result: unknown }
  | { id: number; error: WireError }
  | { id: number; progress: unknown };

/** Calls functions of this thread. */
export class DirectBackend implements Backend {
  readonly worker = false;
  readonly #handlers: Handlers;
  readonly #end = new AbortController();

  constructor(handlers: Handlers) {
    this.#handlers = handlers;
  }

  async call<M extends Method>(method: M, params: Calls[M]["params"], options: CallOptions<M> = {}): Promise<Calls[M]["result"]> {
    const { signal, onProgress } = options;
    throwIfAborted(this.#end.signal);
    throwIfAborted(signal);
    const controller = new AbortController();
    const forget = [follow(controller, this.#end.signal), follow(controller, signal)];
    const context: Context<M> = { signal: controller.signal, progress: (value) => onProgress?.(value) };
    try {
      return await orAborted(this.#handlers[method](params, context), controller.signal);
    } catch (thrown) {
      throw asError(thrown);
    } finally {
      for (const end of forget) end();
    }
  }

  terminate(error: ErnieVilError): void {
    this.#end.abort(error);
  }
}

interface Pending {
  resolve(result: unknown): void;
  reject(error: ErnieVilError): void;
  progress(value: unknown): void;
}

/** Calls a worker. */
export class WorkerBackend implements Backend {
  readonly worker = true;
  readonly #worker: Worker;
  readonly #pending = new Map<number, Pending>();
  #next = 0;
  #ready = false;
  #end: ErnieVilError | undefined;

  constructor(worker: Worker) {
    this.#worker = worker;
    worker.addEventListener("message", ({ data }: MessageEvent<FromWorker>) => this.#receive(data));
    worker.addEventListener("error", (event) => {
      const what = event.message || "no reason was given";
      // A module that traps in the middle of waiting for the GPU leaves nothing but this event.
      this.terminate(
        this.#ready
          ? new ErnieVilError("crashed", `the worker stopped: ${what}`)
          : new ErnieVilError("worker", `the worker could not be started (${what}); is its script served beside the package's other files?`),
      );
    });
    worker.addEventListener("messageerror", () => {
      this.terminate(new ErnieVilError("internal", "a message of the worker could not be read"));
    });
  }

  call<M extends Method>(method: M, params: Calls[M]["params"], options: CallOptions<M> = {}): Promise<Calls[M]["result"]> {
    const { signal, onProgress, transfer = [] } = options;
    return new Promise<Calls[M]["result"]>((resolve, reject) => {
      if (this.#end) throw this.#end;
      throwIfAborted(signal);
      const id = this.#next++;
      const done = (): void => {
        this.#pending.delete(id);
        forget();
      };
      // The worker may be deep in a computation: the caller does not wait until it notices.
      const forget = onAbort(signal, () => {
        this.#post({ abort: id });
        done();
        reject(aborted(signal as AbortSignal));
      });
      this.#pending.set(id, {
        resolve: (result) => (done(), resolve(result as Calls[M]["result"])),
        reject: (error) => (done(), reject(error)),
        progress: (value) => onProgress?.(value as Calls[M]["progress"]),
      });
      try {
        this.#post({ id, method, params }, transfer);
      } catch (thrown) {
        done();
        throw asError(thrown, "argument", "an argument cannot be sent to the worker");
      }
    });
  }

  terminate(error: ErnieVilError): void {
    if (this.#end) return;
    this.#end = error;
    this.#worker.terminate();
    for (const { reject } of [...this.#pending.values()]) reject(error);
  }

  #post(message: ToWorker, transfer: Transferable[] = []): void {
    this.#worker.postMessage(message, transfer);
  }

  #receive(message: FromWorker): void {
    if ("ready" in message) {
      this.#ready = true;
      return;
    }
    const pending = this.#pending.get(message.id);
    if ("progress" in message) pending?.progress(message.progress);
    else if ("error" in message) pending?.reject(fromWire(message.error));
    else pending?.resolve(message.result);
  }
}

/** The side of a worker's global object that is used here. TypeScript knows it in its worker library only. */
export interface WorkerScope {
  postMessage(message: unknown, transfer?: Transferable[]): void;
  onmessage: ((event: MessageEvent<ToWorker>) => void) | null;
}

/** Answers the calls that come in as messages. */
export function answer(scope: WorkerScope, handlers: Handlers): void {
  const running = new Map<number, AbortController>();
  const post = (message: FromWorker, transfer: Transferable[] = []): void => scope.postMessage(message, transfer);
  const run = async <M extends Method>(id: number, method: M, params: Calls[M]["params"]): Promise<void> => {
    const controller = new AbortController();
    running.set(id, controller);
    try {
      const context: Context<M> = { signal: controller.signal, progress: (progress) => post({ id, progress }) };
      const result = await orAborted(handlers[method](params, context), controller.signal);
      post({ id, result }, buffersOf(result));
    } catch (thrown) {
      post({ id, error: toWire(thrown) });
    } finally {
      running.delete(id);
    }
  };
  scope.onmessage = ({ data }) => {
    if ("abort" in data) running.get(data.abort)?.abort();
    else void run(data.id, data.method, data.params as never);
  };
  post({ ready: true });
}

/** @returns the buffers of a result's vectors, which are the result's alone and need not be copied */
function buffersOf(result: unknown): Transferable[] {
  const values: unknown[] = result instanceof Object && "data" in result ? [result.data] : [result];
  return values.filter((value) => ArrayBuffer.isView(value)).map((view) => view.buffer as ArrayBuffer);
}
