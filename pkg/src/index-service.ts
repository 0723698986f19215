// The index beside the module: every change goes to its storage before the call returns.
import { Mutex } from "./concurrency.js";
import { ErnieVilError, asError } from "./errors.js";
import { type ModuleSource, type WasmIndex, type WasmInput, isStopped, release, start } from "./module.js";
import type { RawHits } from "./protocol.js";
import { type IndexStore, type StorageKind, openStore } from "./storage.js";

/** What an index is opened with. */
export interface OpenIndex {
  name: string;
  /** What the vectors must have; `undefined` where an index that exists decides. */
  dimensions: number | undefined;
  fingerprint: string | undefined;
  dtype: "f32" | "int8" | undefined;
  storage: "auto" | StorageKind;
  folder: string | undefined;
  readOnly: boolean;
  wasm: WasmInput | undefined;
}

/** What an index says of itself. */
export interface IndexState {
  size: number;
  dimensions: number;
  fingerprint: string;
  dtype: "f32" | "int8";
  storage: { kind: StorageKind; reason: string };
}

/** Below this size the log is not worth a compaction. */
const SMALLEST_COMPACTION = 8 << 20;

export class IndexService {
  readonly #source: ModuleSource;
  readonly #queue = new Mutex();
  #index: WasmIndex | undefined;
  #store: IndexStore | undefined;
  #readOnly = false;
  /** Changes that the storage has not taken yet, because it was full for example. */
  #unsaved: Uint8Array[] = [];
  #snapshotSize = 0;

  constructor(source: ModuleSource) {
    this.#source = source;
  }

  open(params: OpenIndex): Promise<IndexState> {
    return this.#queue.run(async () => {
      const { glue, wasm } = this.#source;
      await start({ glue, wasm: params.wasm ?? wasm });
      const store = await openStore(params);
      try {
        this.#index = await this.#restore(store, params);
      } catch (thrown) {
        await store.close();
        throw asError(thrown, "storage", `the index "${params.name}" could not be read`);
      }
      this.#store = store;
      this.#readOnly = params.readOnly;
      return this.#state();
    });
  }

  async #restore(store: IndexStore, { name, dimensions, fingerprint, dtype, readOnly }: OpenIndex): Promise<WasmIndex> {
    const { Index } = this.#source.glue;
    const { snapshot, log } = await store.read();
    if (!snapshot) {
      if (readOnly) throw new ErnieVilError("storage", `there is no index "${name}"`);
      if (dimensions === undefined || fingerprint === undefined) {
        throw new ErnieVilError("argument", `there is no index "${name}" yet: a new one needs a model, or dimensions and fingerprint`);
      }
      const index = new Index(dimensions, fingerprint, dtype ?? "f32");
      await this.#writeSnapshot(store, index);
      return index;
    }
    const index = Index.load(snapshot);
    this.#snapshotSize = snapshot.length;
    this.#compare(index, { name, dimensions, fingerprint, dtype });
    if (log.length) {
      const sound = index.replay(log);
      if (sound < log.length && !readOnly) await store.truncate(sound);
    }
    return index;
  }

  #compare(index: WasmIndex, { name, dimensions, fingerprint, dtype }: Pick<OpenIndex, "name" | "dimensions" | "fingerprint" | "dtype">): void {
    const differs = (what: string, has: unknown, wanted: unknown): ErnieVilError =>
      new ErnieVilError("index", `"${name}" has vectors of ${what} ${String(has)}, expected ${String(wanted)}; EmbeddingIndex.delete removes it`);
    if (fingerprint !== undefined && index.fingerprint !== fingerprint) throw differs("the model", index.fingerprint, fingerprint);
    if (dimensions !== undefined && index.dimensions !== dimensions) throw differs("the length", index.dimensions, dimensions);
    if (dtype !== undefined && index.dtype !== dtype) throw differs("the type", index.dtype, dtype);
  }

  #opened(): { index: WasmIndex; store: IndexStore } {
    if (!this.#index || !this.#store) throw new ErnieVilError("disposed", "the index is closed");
    return { index: this.#index, store: this.#store };
  }

  #state(): IndexState {
    const { index, store } = this.#opened();
    const { size, dimensions, fingerprint } = index;
    const dtype = index.dtype === "int8" ? "int8" : "f32";
    return { size, dimensions, fingerprint, dtype, storage: { kind: store.kind, reason: store.reason } };
  }

  /** Changes the index and then its storage. */
  #change<T>(work: (index: WasmIndex) => T): Promise<T> {
    return this.#queue.run(async () => {
      const { index, store } = this.#opened();
      if (this.#readOnly) throw new ErnieVilError("read-only", "the index was opened with readOnly");
      const result = work(index);
      await this.#save(index, store);
      return result;
    });
  }

  async #save(index: WasmIndex, store: IndexStore): Promise<void> {
    const log = index.takeLog();
    if (log.length) this.#unsaved.push(log);
    try {
      let piece: Uint8Array | undefined;
      while ((piece = this.#unsaved[0])) {
        await store.append(piece);
        this.#unsaved.shift();
      }
      if (store.logSize > Math.max(SMALLEST_COMPACTION, this.#snapshotSize)) await this.#writeSnapshot(store, index);
    } catch (thrown) {
      throw asError(thrown, "storage", "the index has changed, but the change could not be stored");
    }
  }

  async #writeSnapshot(store: IndexStore, index: WasmIndex): Promise<void> {
    const snapshot = index.save();
    await store.replace(snapshot);
    this.#snapshotSize = snapshot.length;
  }

  async add(ids: string[], vectors: Float32Array): Promise<IndexState> {
    await this.#change((index) => index.add(ids, vectors));
    return this.#state();
  }

  async remove(ids: string[]): Promise<{ removed: number; state: IndexState }> {
    const removed = await this.#change((index) => index.remove(ids));
    return { removed, state: this.#state() };
  }

  #read<T>(work: (index: WasmIndex) => T): Promise<T> {
    return this.#queue.run(async () => work(this.#opened().index));
  }

  get(id: string): Promise<Float32Array | undefined> {
    return this.#read((index) => index.get(id));
  }

  ids(): Promise<string[]> {
    return this.#read((index) => index.ids());
  }

  search(queries: Float32Array, k: number): Promise<RawHits[]> {
    return this.#read((index) => index.search(queries, k));
  }

  export(): Promise<Uint8Array> {
    return this.#read((index) => index.save());
  }

  import(bytes: Uint8Array): Promise<IndexState> {
    return this.#queue.run(async () => {
      const { index, store } = this.#opened();
      if (this.#readOnly) throw new ErnieVilError("read-only", "the index was opened with readOnly");
      const read = this.#source.glue.Index.load(bytes);
      try {
        this.#compare(read, { name: "the file", dimensions: index.dimensions, fingerprint: index.fingerprint, dtype: undefined });
        await this.#writeSnapshot(store, read);
      } catch (thrown) {
        read.free();
        throw asError(thrown, "storage", "the imported index could not be stored");
      }
      this.#unsaved = [];
      this.#index = read;
      index.free();
      return this.#state();
    });
  }

  flush(): Promise<void> {
    return this.#change(() => undefined);
  }

  close(): Promise<void> {
    return this.#queue.run(async () => {
      const { index, store } = this.#opened();
      this.#index = this.#store = undefined;
      const { glue } = this.#source;
      try {
        if (!isStopped(glue)) index.free();
      } finally {
        // Whatever became of the module, another one can open the index.
        await store.close();
      }
      release(glue);
    });
  }
}
