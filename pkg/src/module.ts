// The WebAssembly modules as this package sees them, and how one is started.
import { type ErnieVilError, asError, stoppedElsewhere } from "./errors.js";
import { readFileUrl } from "./node.js";

/** One of the two halves of the dual encoder. */
export type Tower = "image" | "text";

/** The builds of the module. */
export type ModuleName = "cpu" | "cpu-threads" | "webgpu";

/** What a loaded model says of itself. */
export interface WasmInfo {
  name: string;
  structure: string;
  fingerprint: string;
  dimensions: number;
  maxTextTokens: number;
  imageSize: number;
  vocabSize: number;
  towers: Tower[];
  parameters: number;
  dtype: "f32" | "f16" | "int8" | "int4";
  note: string | null;
  /** What cosines are multiplied by before a softmax. */
  logitScale: number;
  /** The prompts of an ensemble. */
  templates: string[];
}

/** Takes a model's weights piece by piece. */
export interface WasmLoader {
  feed(tower: Tower, bytes: Uint8Array): void;
  finish(): WasmModel;
  free(): void;
}

/** A loaded model. */
export interface WasmModel {
  info(): WasmInfo;
  tokenize(texts: string[]): Uint32Array[];
  embedText(texts: string[]): Promise<Float32Array>;
  crop(file: Uint8Array): Uint8Array;
  cropRgba(rgba: Uint8Array, width: number, height: number): Uint8Array;
  normalise(crop: Uint8Array): Float32Array;
  embedImages(crops: Uint8Array): Promise<Float32Array>;
  free(): void;
}

/** The exact index. */
export interface WasmIndex {
  readonly size: number;
  readonly dimensions: number;
  readonly fingerprint: string;
  readonly dtype: string;
  add(ids: string[], vectors: Float32Array): void;
  remove(ids: string[]): number;
  has(id: string): boolean;
  get(id: string): Float32Array | undefined;
  ids(): string[];
  search(queries: Float32Array, k: number): { ids: string[]; scores: Float32Array }[];
  save(): Uint8Array;
  takeLog(): Uint8Array;
  replay(log: Uint8Array): number;
  free(): void;
}

/** What wasm-bindgen's `init` takes as the module. */
export type WasmInput = string | URL | BufferSource | WebAssembly.Module;

/** The generated JavaScript of a module: `import * as glue from "ernie-vil/wasm/cpu/ernie_vil.js"`. */
export interface Glue {
  default(input: { module_or_path: WasmInput | Promise<WasmInput> }): Promise<unknown>;
  version(): string;
  kind(): string;
  threads(): number;
  sha256(bytes: Uint8Array): string;
  /** Makes an instance that shares nothing with this one. */
  create?(): Glue;
  /** Has `handler` called with what stopped the module in a task of its own, where no call can throw it. */
  whenStopped?(handler: (thrown: unknown) => void): void;
  /** Keeps the garbage collector's callbacks out of a module that has stopped. */
  abandon?(): void;
  initDevice?(): Promise<void>;
  initSync?(input: { module: WebAssembly.Module; memory: WebAssembly.Memory }): unknown;
  threadModule?(): WebAssembly.Module;
  threadMemory?(): WebAssembly.Memory;
  initThreads?(threads: number): void;
  runThread?(): void;
  ModelLoader: new (config: Uint8Array, vocab: Uint8Array | undefined, image: boolean, text: boolean, dtype: "auto" | "f32" | "f16") => WasmLoader;
  Index: {
    new (dimensions: number, fingerprint: string, dtype: "f32" | "int8"): WasmIndex;
    load(bytes: Uint8Array): WasmIndex;
  };
  recall(text: Float32Array, image: Float32Array, dimensions: number): { table: string; report: object };
}

/** A module that can be started: its generated JavaScript and its WebAssembly. */
export interface ModuleSource {
  /** The generated JavaScript: `import * as glue from "ernie-vil/wasm/cpu/ernie_vil.js"`. */
  glue: Glue;
  /** The WebAssembly itself: an address, its bytes, or the compiled module. */
  wasm: WasmInput;
  /** Makes a worker for a thread, of a script that calls `runThread`; of the build `cpu-threads` alone. */
  makeThread?: () => Worker;
}

const started = new WeakMap<Glue, Promise<void>>();

const stopped = new WeakMap<Glue, ErnieVilError>();

/** Marks a module that has trapped: its memory may be in any state, so that nothing may enter it again. */
export function abandon(glue: Glue, error: ErnieVilError): void {
  stopped.set(glue, error);
  glue.abandon?.();
}

/** @returns whether a module has trapped */
export function isStopped(glue: Glue): boolean {
  return stopped.has(glue);
}

/** Throws where a module has trapped. */
export function throwIfStopped(glue: Glue): void {
  const error = stopped.get(glue);
  if (error) throw stoppedElsewhere(error);
}

/** Instances that were used and are free again, under each instance of the same generated JavaScript. */
const free = new WeakMap<Glue, Glue[]>();

/**
 * @returns the source with an instance of the module that nothing else in this thread uses: what stops it concerns its owner
 *   alone. Where the generated JavaScript cannot make several, the source itself
 */
export function take(source: ModuleSource): ModuleSource {
  const { glue } = source;
  if (!glue.create) return source;
  let others = free.get(glue);
  if (!others) {
    // What belongs to an imported file can never be collected, so that its instance is not used. Other objects may be
    // instances with something of the caller's around them.
    others = Object.prototype.toString.call(glue) === "[object Module]" ? [] : [glue];
    free.set(glue, others);
  }
  const instance = others.pop() ?? glue.create();
  free.set(instance, others);
  return { ...source, glue: instance };
}

/** Keeps an instance, with nothing in it any more, for the next {@link take}. */
export function release(glue: Glue): void {
  const others = free.get(glue);
  // One, since the memory of an instance never shrinks.
  if (others?.length === 0 && !stopped.has(glue)) others.push(glue);
}

/** Starts a module; once in a thread, however often it is asked for. */
export function start({ glue, wasm }: ModuleSource): Promise<void> {
  let starting = started.get(glue);
  if (!starting) {
    starting = instantiate(glue, wasm);
    started.set(glue, starting);
    starting.catch(() => started.delete(glue));
  }
  return starting;
}

async function instantiate(glue: Glue, wasm: WasmInput): Promise<void> {
  const address = wasm instanceof URL ? wasm.href : wasm;
  try {
    const file = typeof address === "string" && address.startsWith("file:");
    await glue.default({ module_or_path: file ? await readFileUrl(address) : address });
  } catch (thrown) {
    const where = typeof address === "string" ? ` from ${address}` : "";
    throw asError(thrown, "network", `the WebAssembly module could not be loaded${where}`);
  }
}
