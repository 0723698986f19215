// Where an index is kept: a snapshot, and a log of the changes since then that grows at its end.
import { type Bytes, concat } from "./bytes.js";
import { lockFile } from "./disk-lock.js";
import { ErnieVilError, asError, describe } from "./errors.js";
import { type AppendFile, type Folder, canAppendInOpfs, disk, diskFolder, makeFolder, opfsFolder, removeOpfsFolder, synchronise } from "./folder.js";
import { nodeModules } from "./node.js";

/** Where an index is kept. */
export type StorageKind = "opfs" | "indexeddb" | "folder" | "memory";

/** What is kept of an index. */
export interface IndexStore {
  readonly kind: StorageKind;
  /** Why it is kept there; empty where that is the best place. */
  readonly reason: string;
  /** Bytes of the log. */
  readonly logSize: number;
  read(): Promise<{ snapshot: Bytes | undefined; log: Bytes }>;
  /** Appends to the log; when it returns, the bytes outlive the page. */
  append(bytes: Uint8Array): Promise<void>;
  /** Cuts the log's end off. */
  truncate(size: number): Promise<void>;
  /** Replaces the snapshot and empties the log, both or neither. */
  replace(snapshot: Uint8Array): Promise<void>;
  close(): Promise<void>;
}

/** What decides where an index is kept. */
export interface StoreOptions {
  name: string;
  storage: "auto" | StorageKind;
  /** A folder on the disk; Node, Deno and Bun only. */
  folder: string | undefined;
  readOnly: boolean;
}

const OPFS = ["ernie-vil", "indexes"];
const DATABASE = "ernie-vil-indexes";
const TABLE = "parts";

const folderName = (name: string): string => encodeURIComponent(name).replaceAll(".", "%2E");

/**
 * Opens what is kept of an index, and keeps others from changing it.
 *
 * @throws ErnieVilError `locked` where it is open elsewhere; `storage` where the place is not there
 */
export async function openStore(options: StoreOptions): Promise<IndexStore> {
  const { name, storage, folder, readOnly } = options;
  if (storage === "folder" || (storage === "auto" && folder !== undefined)) {
    if (folder === undefined) throw new ErnieVilError("argument", "an index in a folder needs the folder's path");
    return openDisk(folder, name, readOnly);
  }
  if (storage === "memory") return new MemoryStore("asked for");
  if (storage === "auto" && nodeModules()) return new MemoryStore("no folder was given to keep it in");
  const unlock = readOnly ? async () => undefined : await lock(name);
  try {
    const reasons: string[] = [];
    if (storage !== "indexeddb") {
      const opfs = await openOpfs(name, readOnly).catch((thrown: unknown) => {
        if (thrown instanceof ErnieVilError) throw thrown;
        reasons.push(describe(thrown));
        return undefined;
      });
      if (opfs) return withUnlock(opfs, unlock);
      if (storage === "opfs") throw new ErnieVilError("storage", `OPFS cannot be used: ${reasons.join("; ")}`);
    }
    const database = await IdbStore.open(name, reasons.join("; ")).catch((thrown: unknown) => {
      reasons.push(describe(thrown));
      return undefined;
    });
    if (database) return withUnlock(database, unlock);
    if (storage === "indexeddb") throw new ErnieVilError("storage", `IndexedDB cannot be used: ${reasons.join("; ")}`);
    return withUnlock(new MemoryStore(`the page has no storage: ${reasons.join("; ")}`), unlock);
  } catch (thrown) {
    await unlock();
    throw asError(thrown, "storage");
  }
}

/** Removes what is kept of an index. */
export async function deleteStore(name: string, folder: string | undefined): Promise<void> {
  if (folder !== undefined) {
    const { node, given, path, unlock } = await lockDisk(folder, name);
    try {
      for (const place of [path, given]) {
        await node.fs.rm(place, { recursive: true, force: true });
        await synchronise(node.path.dirname(place));
      }
    } catch (thrown) {
      throw asError(thrown, "storage", `the index "${name}" could not be removed`);
    } finally {
      await unlock();
    }
    return;
  }
  const unlock = await lock(name);
  try {
    await removeOpfsFolder([...OPFS, folderName(name)]);
    if (typeof indexedDB !== "undefined") {
      const store = await IdbStore.open(name, "");
      await store.clear();
      await store.close();
    }
  } catch (thrown) {
    throw asError(thrown, "storage", `the index "${name}" could not be removed`);
  } finally {
    await unlock();
  }
}

const openElsewhere = (name: string): ErnieVilError =>
  new ErnieVilError("locked", `the index "${name}" is open elsewhere, in another tab for example: close it there, or open it with readOnly`);

/** Keeps other tabs from opening an index for changes, until the function that it returns is called. */
async function lock(name: string): Promise<() => Promise<void>> {
  const locks = typeof navigator === "undefined" ? undefined : (navigator as Partial<Navigator>).locks;
  // Without locks the files of OPFS are still opened once only.
  if (!locks) return async () => undefined;
  return new Promise((resolve, reject) => {
    locks
      .request(`ernie-vil index ${name}`, { ifAvailable: true }, (granted) => {
        if (!granted) return reject(openElsewhere(name));
        return new Promise<void>((release) => resolve(async () => release()));
      })
      .catch((thrown: unknown) => reject(asError(thrown, "storage")));
  });
}

function withUnlock(store: IndexStore, unlock: () => Promise<void>): IndexStore {
  const close = store.close.bind(store);
  store.close = async () => {
    try {
      await close();
    } finally {
      await unlock();
    }
  };
  return store;
}

async function openOpfs(name: string, readOnly: boolean): Promise<IndexStore | undefined> {
  if (!canAppendInOpfs()) throw new Error("this thread cannot append to files of OPFS");
  const folder = await opfsFolder([...OPFS, folderName(name)]);
  if (!folder) throw new Error("the browser has no OPFS");
  try {
    return await FolderStore.open(folder, "opfs", "", readOnly);
  } catch (thrown) {
    if (thrown instanceof DOMException && thrown.name === "NoModificationAllowedError") throw openElsewhere(name);
    throw thrown;
  }
}

async function openDisk(parent: string, name: string, readOnly: boolean): Promise<IndexStore> {
  if (readOnly) {
    return FolderStore.open(await diskFolder(disk().path.join(parent, folderName(name)), true), "folder", "", true);
  }
  const { path, unlock } = await lockDisk(parent, name);
  try {
    return withUnlock(await FolderStore.open(await diskFolder(path), "folder", "", false), unlock);
  } catch (thrown) {
    await unlock();
    throw asError(thrown, "storage");
  }
}

/** Keeps other processes, and other threads of this one, from opening an index for changes. */
async function lockDisk(parent: string, name: string) {
  const node = disk();
  const given = node.path.join(parent, folderName(name));
  await makeFolder(given).catch((thrown: unknown) => {
    throw asError(thrown, "storage");
  });
  // Whatever links lead there, a folder has one lock.
  const path = await node.fs.realpath(given);
  const unlock = await lockFile(node, `${path}.lock`);
  if (!unlock) throw openElsewhere(name);
  return { node, given, path, unlock };
}

/** Keeps nothing. */
export class MemoryStore implements IndexStore {
  readonly kind = "memory";
  readonly logSize = 0;

  constructor(readonly reason: string) {}

  async read(): Promise<{ snapshot: undefined; log: Bytes }> {
    return { snapshot: undefined, log: new Uint8Array(0) };
  }
  async append(): Promise<void> {}
  async truncate(): Promise<void> {}
  async replace(): Promise<void> {}
  async close(): Promise<void> {}
}

/** The numbers of the generations in a folder, the newest first, and which is the newest whole one (0 where there is none). */
function generations(names: readonly string[], atomic: boolean): { numbers: number[]; newest: number } {
  const numbers = [...new Set(names.map((name) => Number(/^(\d{1,15})\.(?:log|safetensors)$/.exec(name)?.[1] ?? 0)))].sort((a, b) => b - a);
  const snapshots = numbers.filter((number) => names.includes(`${number}.safetensors`));
  const pair = snapshots.find((number) => names.includes(`${number}.log`));
  // A snapshot without a log is one whose compaction was cut off: perhaps in the middle of the file, if that is possible here.
  return { numbers, newest: pair ?? (atomic ? snapshots[0] : undefined) ?? 0 };
}

/**
 * Keeps an index in a folder: `N.safetensors` is the snapshot of generation N and `N.log` what has changed since then. A new
 * generation's log is made when its snapshot is complete, so that the highest number with both is the one that counts.
 */
export class FolderStore implements IndexStore {
  readonly #folder: Folder;
  readonly #readOnly: boolean;
  #generation = 0;
  /** The highest number in the folder. */
  #highest = 0;
  #log: AppendFile | undefined;
  /** Whether the log may have more at its end than was appended in whole. */
  #torn = false;

  private constructor(
    folder: Folder,
    readonly kind: StorageKind,
    readonly reason: string,
    readOnly: boolean,
  ) {
    this.#folder = folder;
    this.#readOnly = readOnly;
  }

  static async open(folder: Folder, kind: StorageKind, reason: string, readOnly: boolean): Promise<FolderStore> {
    const store = new FolderStore(folder, kind, reason, readOnly);
    const names = await store.#look();
    const generation = store.#generation;
    if (readOnly || generation === 0) return store;
    store.#log = await folder.open(`${generation}.log`);
    for (const name of names) {
      // It is in nobody's way, and the next one to open the index tries again.
      if (await store.#isLeftOver(name)) await folder.remove(name).catch(() => undefined);
    }
    return store;
  }

  /** Looks for the newest generation. */
  async #look(): Promise<string[]> {
    const names = await this.#folder.names();
    const { numbers, newest } = generations(names, this.#folder.atomic);
    this.#generation = newest;
    this.#highest = numbers[0] ?? 0;
    return names;
  }

  /** @returns whether nothing of a file is needed any more */
  async #isLeftOver(name: string): Promise<boolean> {
    const [, number, type, part] = /^(\d{1,15})\.(log|safetensors)(\.part)?$/.exec(name) ?? [];
    if (number === undefined || part) return part !== undefined;
    // Of changes whose snapshot is missing nothing is removed before there is a whole generation after them.
    if (type === "log" && Number(number) > this.#generation) return (await this.#folder.size(name)) === 0;
    return Number(number) !== this.#generation;
  }

  get logSize(): number {
    return this.#log?.size ?? 0;
  }

  async read(): Promise<{ snapshot: Bytes | undefined; log: Bytes }> {
    for (;;) {
      const generation = this.#generation;
      const snapshot = generation > 0 ? await this.#folder.read(`${generation}.safetensors`) : undefined;
      const log = snapshot && (await this.#folder.read(`${generation}.log`));
      // While it was read, whoever may change the index may have put the next generation in its place.
      if (this.#readOnly) await this.#look();
      if (generation === this.#generation) return { snapshot, log: log ?? new Uint8Array(0) };
    }
  }

  async append(bytes: Uint8Array): Promise<void> {
    const log = this.#log;
    if (!log) throw new ErnieVilError("storage", "the index has no log yet");
    const { size } = log;
    const mend = async (): Promise<void> => {
      await log.truncate(size);
      this.#torn = false;
    };
    if (this.#torn) await mend();
    try {
      await log.append(bytes);
    } catch (thrown) {
      // What was written in part would be taken for damage once there is more behind it.
      this.#torn = true;
      await mend().catch(() => undefined);
      throw thrown;
    }
  }

  async truncate(size: number): Promise<void> {
    await this.#log?.truncate(size);
  }

  async replace(snapshot: Uint8Array): Promise<void> {
    const next = this.#highest + 1;
    try {
      await this.#folder.write(`${next}.safetensors`, snapshot);
    } catch (thrown) {
      await this.#folder.remove(`${next}.safetensors`).catch(() => undefined);
      throw thrown;
    }
    const log = await this.#folder.open(`${next}.log`);
    const before = this.#generation;
    const last = this.#log;
    this.#log = log;
    this.#generation = this.#highest = next;
    this.#torn = false;
    // From here on the new generation counts; what cannot be removed now is removed when the index is opened again.
    await last?.close().catch(() => undefined);
    for (const name of [`${before}.log`, `${before}.safetensors`]) await this.#folder.remove(name).catch(() => undefined);
  }

  async close(): Promise<void> {
    await this.#log?.close();
    this.#log = undefined;
  }
}

/** @returns the result of a request to IndexedDB */
function result<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("IndexedDB failed"));
  });
}

/** Keeps an index in IndexedDB: part 0 is the snapshot, the parts after it are the log. */
export class IdbStore implements IndexStore {
  readonly kind = "indexeddb";
  readonly #database: IDBDatabase;
  readonly #name: string;
  #next = 1;
  #size = 0;

  private constructor(
    database: IDBDatabase,
    name: string,
    readonly reason: string,
  ) {
    this.#database = database;
    this.#name = name;
  }

  static async open(name: string, reason: string): Promise<IdbStore> {
    if (typeof indexedDB === "undefined") throw new Error("there is no IndexedDB");
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE);
    return new IdbStore(await result(request), name, reason);
  }

  get logSize(): number {
    return this.#size;
  }

  #key(part: number): IDBValidKey {
    return [this.#name, part];
  }

  get #range(): IDBKeyRange {
    return IDBKeyRange.bound(this.#key(0), this.#key(Number.MAX_SAFE_INTEGER));
  }

  /** Runs changes as one: all or none of them. */
  async #write(work: (table: IDBObjectStore) => void): Promise<void> {
    const transaction = this.#database.transaction(TABLE, "readwrite", { durability: "strict" });
    const done = new Promise<void>((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error ?? new Error("IndexedDB gave up"));
    });
    work(transaction.objectStore(TABLE));
    await done;
  }

  async read(): Promise<{ snapshot: Bytes | undefined; log: Bytes }> {
    const table = this.#database.transaction(TABLE).objectStore(TABLE);
    const [keys, values] = await Promise.all([
      result(table.getAllKeys(this.#range)),
      result(table.getAll(this.#range) as IDBRequest<Bytes[]>),
    ]);
    const parts = keys.map((key) => (key as [string, number])[1]);
    const [snapshot, ...log] = parts[0] === 0 ? values : [undefined, ...values];
    this.#next = (parts.at(-1) ?? 0) + 1;
    const joined = concat(log as Bytes[]);
    this.#size = joined.length;
    return { snapshot, log: joined };
  }

  async append(bytes: Uint8Array): Promise<void> {
    await this.#write((table) => table.put(bytes, this.#key(this.#next)));
    this.#next += 1;
    this.#size += bytes.length;
  }

  async truncate(size: number): Promise<void> {
    const { log } = await this.read();
    const logRange = IDBKeyRange.bound(this.#key(1), this.#key(Number.MAX_SAFE_INTEGER));
    await this.#write((table) => {
      table.delete(logRange);
      table.put(log.slice(0, size), this.#key(1));
    });
    this.#next = 2;
    this.#size = size;
  }

  async replace(snapshot: Uint8Array): Promise<void> {
    await this.#write((table) => {
      table.delete(this.#range);
      table.put(snapshot, this.#key(0));
    });
    this.#next = 1;
    this.#size = 0;
  }

  /** Removes everything. */
  async clear(): Promise<void> {
    await this.#write((table) => table.delete(this.#range));
  }

  async close(): Promise<void> {
    this.#database.close();
  }
}
