import { bytesOf, compact } from "./bytes.js";
import { Embeddings } from "./embeddings.js";
import type { ErnieVil } from "./ernie-vil.js";
import { ErnieVilError, asError, throwIfAborted } from "./errors.js";
import { type HostOptions, type ModulesOption, type WasmOption, type WorkerOption, createBackend, isAvailable, postable } from "./host.js";
import type { IndexState } from "./index-service.js";
import type { CancelOptions } from "./options.js";
import type { Backend } from "./protocol.js";
import { type StorageKind, deleteStore } from "./storage.js";

/** How an index is opened. */
export interface OpenIndexOptions {
  /** The model whose vectors it holds. */
  model?: ErnieVil;
  /** In place of a model, for a new index: numbers in a vector. */
  dimensions?: number;
  /** In place of a model, for a new index: the model that makes the vectors. */
  fingerprint?: string;
  /** How vectors are held: as they are (`"f32"`, for a new index the default), or in a quarter of the memory (`"int8"`). */
  dtype?: "f32" | "int8";
  /**
   * Where it is kept. `"auto"` (the default): OPFS, or IndexedDB where that is missing, or memory where both are; `info.storage` says
   * which. In Node, Deno and Bun: in `folder`, or in memory where none is given.
   */
  storage?: "auto" | StorageKind;
  /** In Node, Deno and Bun: the path of a folder for indexes. */
  folder?: string;
  /** Opens it for searching only, as it is now, also while another tab changes it. */
  readOnly?: boolean;
  /** As for a model; the model's where there is one. */
  worker?: WorkerOption;
  /** As for a model; the model's where there is one. */
  wasm?: WasmOption;
  /** As for a model; the model's where there is one. */
  modules?: ModulesOption;
}

/** What an index says of itself. */
export type IndexInfo = Readonly<IndexState>;

/** How an index is searched. */
export interface SearchOptions extends CancelOptions {
  /** How many hits there are at most (default: 10). */
  k?: number;
}

/** An entry that was found. */
export interface Hit {
  /** The entry's id. */
  id: string;
  /** The cosine of the entry and the query. */
  score: number;
}

/** Vectors that go to the index at a time. */
const ROWS = 4096;

/**
 * An exact index of vectors under ids, which outlives the page. A change is stored when its call returns. It has a
 * worker of its own, so that a search need not wait for a picture that is being embedded.
 *
 * @example
 * ```ts
 * const index = await EmbeddingIndex.open("photos", { model });
 * const vectors = await model.embedImages(files);
 * await index.add(files.map(({ name }) => name), vectors);
 *
 * const [query] = await model.embedText(["雪地里的红色汽车"]);
 * for (const { id, score } of await index.search(query, { k: 20 })) console.log(id, score);
 * ```
 */
export class EmbeddingIndex {
  /** The name that it was opened under. */
  readonly name: string;
  readonly #backend: Backend;
  #state: IndexState;
  #closed = false;

  private constructor(name: string, backend: Backend, state: IndexState) {
    this.name = name;
    this.#backend = backend;
    this.#state = state;
  }

  /**
   * Opens an index; makes it where there is none of this name.
   *
   * @example
   * ```ts
   * const index = await EmbeddingIndex.open("photos", { model, dtype: "int8" });
   * if (index.info.storage.kind === "memory") warn(index.info.storage.reason);
   * ```
   * @throws ErnieVilError `locked` where another tab has it open; `index` where it holds another model's vectors
   */
  static async open(name: string, options: OpenIndexOptions = {}): Promise<EmbeddingIndex> {
    const { model, dtype, storage = "auto", folder, readOnly = false } = options;
    const { worker, wasm, modules } = { ...model?.host, ...options };
    const host: HostOptions = { worker, wasm, modules };
    const module = isAvailable("cpu", host) ? "cpu" : "webgpu";
    const backend = await createBackend(module, host);
    try {
      const state = await backend.call("openIndex", {
        name,
        dimensions: options.dimensions ?? model?.info.dimensions,
        fingerprint: options.fingerprint ?? model?.info.fingerprint,
        dtype,
        storage,
        folder,
        readOnly,
        wasm: postable(wasm?.[module]),
      });
      return new EmbeddingIndex(name, backend, state);
    } catch (thrown) {
      const error = asError(thrown);
      backend.terminate(error);
      throw error;
    }
  }

  /**
   * Removes an index that is not open.
   *
   * @example
   * ```ts
   * await EmbeddingIndex.delete("photos");
   * ```
   */
  static async delete(name: string, options: { folder?: string } = {}): Promise<void> {
    await deleteStore(name, options.folder);
  }

  /**
   * What the index holds and where it is kept.
   *
   * @example
   * ```ts
   * const { storage, dtype } = index.info;
   * ```
   */
  get info(): IndexInfo {
    return this.#state;
  }

  /**
   * The number of entries.
   *
   * @example
   * ```ts
   * counter.textContent = `${index.size} pictures`;
   * ```
   */
  get size(): number {
    return this.#state.size;
  }

  /**
   * Adds entries, and replaces those whose id is there already. What was added is stored when the call returns: all of it
   * or, of more than 4,096 entries, some blocks of 4,096 where it rejects.
   *
   * @example
   * ```ts
   * await index.add(["cat.jpg", "dog.jpg"], await model.embedImages([cat, dog]));
   * ```
   * @throws ErnieVilError `vectors` where they do not fit; `quota` where the storage is full (the entries are found, but not yet
   *   stored; `flush` tries again)
   */
  async add(ids: readonly string[], vectors: Embeddings | Float32Array, options: CancelOptions = {}): Promise<void> {
    const data = this.#values(vectors);
    const { dimensions } = this.#state;
    if (data.length !== ids.length * dimensions) {
      throw new ErnieVilError("vectors", `${ids.length} ids need ${ids.length * dimensions} numbers, not ${data.length}`);
    }
    for (let at = 0; at < ids.length; at += ROWS) {
      throwIfAborted(options.signal);
      const part = { ids: ids.slice(at, at + ROWS), vectors: data.slice(at * dimensions, (at + ROWS) * dimensions) };
      this.#state = await this.#backend.call("addToIndex", part, { transfer: [part.vectors.buffer] });
    }
  }

  /**
   * Removes entries.
   *
   * @example
   * ```ts
   * await index.remove(["cat.jpg"]);
   * ```
   * @returns how many of them were there
   */
  async remove(ids: readonly string[]): Promise<number> {
    const { removed, state } = await this.#backend.call("removeFromIndex", { ids: [...ids] });
    this.#state = state;
    return removed;
  }

  /**
   * One entry's vector, as the index holds it.
   *
   * @example
   * ```ts
   * const cat = await index.get("cat.jpg");
   * if (cat) console.log(await index.search(cat));
   * ```
   */
  async get(id: string): Promise<Float32Array | undefined> {
    return this.#backend.call("getFromIndex", { id });
  }

  /**
   * The ids of all entries.
   *
   * @example
   * ```ts
   * const known = new Set(await index.ids());
   * const fresh = files.filter(({ name }) => !known.has(name));
   * ```
   */
  async ids(): Promise<string[]> {
    return this.#backend.call("indexIds", {});
  }

  /**
   * The entries that are nearest to a vector, the nearest first.
   *
   * @example
   * ```ts
   * const hits = await index.search(vectors.row(0), { k: 20 });
   * ```
   */
  async search(query: Float32Array, options: SearchOptions = {}): Promise<Hit[]> {
    const [hits] = await this.#search(query, options);
    return hits ?? [];
  }

  /**
   * The entries that are nearest to each of several vectors, which is faster than one after the other.
   *
   * @example
   * ```ts
   * const [first, second] = await index.searchAll(await model.embedText(["猫", "狗"]));
   * ```
   */
  async searchAll(queries: Embeddings, options: SearchOptions = {}): Promise<Hit[][]> {
    return this.#search(queries, options);
  }

  async #search(queries: Embeddings | Float32Array, { k = 10, signal }: SearchOptions): Promise<Hit[][]> {
    if (!Number.isInteger(k) || k < 1) throw new ErnieVilError("argument", `k is ${k}, expected a whole number of at least 1`);
    const data = this.#values(queries);
    if (data.length % this.#state.dimensions !== 0) {
      throw new ErnieVilError("vectors", `a query has ${this.#state.dimensions} numbers, not ${data.length}`);
    }
    const results = await this.#backend.call("searchIndex", { queries: compact(data), k }, { signal });
    return results.map(({ ids, scores }) => ids.map((id, i) => ({ id, score: scores[i] as number })));
  }

  #values(vectors: Embeddings | Float32Array): Float32Array {
    if (vectors instanceof Float32Array) return vectors;
    if (!(vectors instanceof Embeddings)) throw new ErnieVilError("argument", "vectors are Embeddings or a Float32Array");
    if (vectors.fingerprint !== this.#state.fingerprint) {
      throw new ErnieVilError("vectors", `"${this.name}" holds the vectors of another model (${this.#state.fingerprint.slice(0, 8)}, not ${vectors.fingerprint.slice(0, 8)})`);
    }
    return vectors.data;
  }

  /**
   * The whole index as one safetensors file, which `ernie-vil search` reads as well.
   *
   * @example
   * ```ts
   * link.href = URL.createObjectURL(await index.export());
   * link.download = "photos.safetensors";
   * ```
   */
  async export(): Promise<Blob> {
    const bytes = await this.#backend.call("exportIndex", {});
    return new Blob([bytes as Uint8Array<ArrayBuffer>], { type: "application/octet-stream" });
  }

  /**
   * Replaces everything by what was exported.
   *
   * @example
   * ```ts
   * await index.import(input.files[0]);
   * ```
   * @throws ErnieVilError `index` where the file is damaged or holds another model's vectors; nothing is changed then
   */
  async import(file: Blob | ArrayBuffer | ArrayBufferView): Promise<void> {
    const bytes = file instanceof Blob ? new Uint8Array(await file.arrayBuffer()) : compact(bytesOf(file));
    this.#state = await this.#backend.call("importIndex", { bytes });
  }

  /**
   * Stores changes that could not be stored before, because the storage was full for example. Otherwise it has nothing to do.
   *
   * @example
   * ```ts
   * await ErnieVil.clearCache(oldModel);
   * await index.flush();
   * ```
   */
  async flush(): Promise<void> {
    await this.#backend.call("flushIndex", {});
  }

  /**
   * Closes the index, so that another tab can open it.
   *
   * @example
   * ```ts
   * await index.close();
   * ```
   */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    try {
      await this.#backend.call("closeIndex", {});
    } finally {
      this.#backend.terminate(new ErnieVilError("disposed", `the index "${this.name}" is closed`));
    }
  }
}
