// From a model folder, wherever it lies, to the bytes of its files in order.
import type { Bytes } from "./bytes.js";
import { concat } from "./bytes.js";
import type { ByteCache } from "./cache.js";
import { breathe, follow, inOrder, sleep } from "./concurrency.js";
import { ErnieVilError, asError, throwIfAborted } from "./errors.js";
import { RETRY, type RequestOptions, type RetryOptions, download, exact, fetchBytes } from "./http.js";
import { type Manifest, type ModelFile, type Piece, filesFor, parseManifest, towersOf } from "./manifest.js";
import type { Tower } from "./module.js";

/** A model folder: below an address, or its files by name. */
export type ModelFolder = { url: string; request: RequestOptions } | { files: Readonly<Record<string, Blob>> };

/** How far loading has come. */
export interface LoadProgress {
  /** Bytes of all files so far. */
  loaded: number;
  /** Bytes of all files that are needed. */
  total: number;
  /** The file that has just grown; a file in shards counts as one. */
  file: string;
  /** Bytes of this file so far. */
  fileLoaded: number;
  /** Bytes of this file. */
  fileTotal: number;
  /** Whether these bytes came from the cache. */
  fromCache: boolean;
}

/** What takes the files. */
export interface Receiver {
  /** Is called once, before the first weights. */
  begin(config: Bytes, vocab: Bytes | undefined, towers: readonly Tower[]): void;
  /** Is called with a tower's weights in order. */
  feed(tower: Tower, bytes: Uint8Array): void;
}

/** How a model folder is read. */
export interface ReadOptions {
  towers: readonly Tower[] | undefined;
  cache: ByteCache | undefined;
  /** Computes a SHA-256 where the page may not use the browser's. */
  digest: (bytes: Uint8Array) => string;
  signal: AbortSignal | undefined;
  onProgress: ((progress: LoadProgress) => void) | undefined;
  retry?: RetryOptions;
}

/** What came from where. */
export interface ReadReport {
  /** Whether everything came from the cache. */
  fromCache: boolean;
  /** Why files are not kept although there is a cache. */
  cacheFailure: string | undefined;
}

/** Shards that exist in memory at a time: one on its way to the device and one on its way here. */
const SHARDS = 2;
/** Weights go into the module in parts of this size, so that its memory does not grow by a shard. */
const PART = 1 << 20;
/** Progress is told at most every so many milliseconds. */
const PROGRESS_INTERVAL = 50;
const LARGEST_MANIFEST = 1 << 22;

const shardKey = (piece: Piece): string => `sha256-${piece.sha256}`;
const manifestKey = async (url: string): Promise<string> => `manifest-${await sha256(new TextEncoder().encode(url))}`;

async function sha256(bytes: Uint8Array, digest?: (bytes: Uint8Array) => string): Promise<string> {
  if (typeof crypto === "undefined" || !crypto.subtle) {
    if (digest) return digest(bytes);
    throw new ErnieVilError("storage", "this page has no storage (is it served over HTTPS?)");
  }
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as Bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @returns the address of a model folder, with a slash at its end */
export function folderUrl(url: string): string {
  const base = new URL(url);
  base.hash = base.search = "";
  base.pathname = base.pathname.replace(/(\/manifest\.json)?\/?$/, "/");
  return base.href;
}

/**
 * Reads the files that some towers need: two pieces at a time, each verified before it is handed on, in order.
 *
 * @throws ErnieVilError of any code that has to do with files
 */
export async function readModel(folder: ModelFolder, receiver: Receiver, options: ReadOptions): Promise<ReadReport> {
  const { cache, digest, signal, onProgress, retry = RETRY } = options;
  const report: ReadReport = { fromCache: cache !== undefined && "url" in folder, cacheFailure: undefined };
  const { text, manifest } = await readManifest(folder, cache, signal, retry);
  const towers = options.towers ?? towersOf(manifest);
  if (towers.length === 0) throw new ErnieVilError("manifest", "manifest.json names no tower");
  const files = filesFor(manifest, towers);

  const total = files.reduce((sum, { size }) => sum + size, 0);
  const counts = new Map<Piece, number>();
  let told = 0;
  const tell = (file: ModelFile, piece: Piece, bytes: number, fromCache: boolean): void => {
    counts.set(piece, bytes);
    const now = performance.now();
    if (!onProgress || (bytes < piece.size && now - told < PROGRESS_INTERVAL)) return;
    told = now;
    const count = (pieces: readonly Piece[]): number => pieces.reduce((sum, part) => sum + (counts.get(part) ?? 0), 0);
    const loaded = files.reduce((sum, { pieces }) => sum + count(pieces), 0);
    onProgress({ loaded, total, file: file.name, fileLoaded: count(file.pieces), fileTotal: file.size, fromCache });
  };

  // A failure stops the download that runs ahead of it.
  const stop = new AbortController();
  const inner = stop.signal;
  const forget = follow(stop, signal);
  const texts = new Map<string, Bytes[]>([["config.json", []], ["vocab.txt", []]]);
  let begun = false;
  const items = files.flatMap((file) => file.pieces.map((piece) => ({ file, piece })));
  const begin = (): void => {
    if (begun) return;
    begun = true;
    const vocab = towers.includes("text") ? concat(texts.get("vocab.txt") ?? []) : undefined;
    receiver.begin(concat(texts.get("config.json") ?? []), vocab, towers);
  };
  try {
    await inOrder(items, SHARDS, ({ file, piece }) => fetchPiece(file, piece), async (bytes, { file }) => {
      const small = texts.get(file.name);
      if (small) {
        small.push(bytes);
        return;
      }
      begin();
      const tower = file.name === "image.safetensors" ? "image" : "text";
      for (let at = 0; at < bytes.length; at += PART) {
        receiver.feed(tower, bytes.subarray(at, at + PART));
        await breathe();
        throwIfAborted(signal);
      }
    });
    begin();
  } catch (thrown) {
    throwIfAborted(signal);
    throw asError(thrown);
  } finally {
    stop.abort();
    forget();
  }
  if (cache && "url" in folder && report.cacheFailure === undefined) {
    await keepManifest(cache, folder.url, text).catch((thrown: unknown) => {
      report.cacheFailure = asError(thrown).message;
    });
  }
  return report;

  async function fetchPiece(file: ModelFile, piece: Piece): Promise<Bytes> {
    if (!("url" in folder)) {
      const bytes = await readBlob(folder.files, piece);
      if ((await sha256(bytes, digest)) !== piece.sha256) throw mismatch(piece);
      tell(file, piece, piece.size, false);
      return bytes;
    }
    // Another tab that wants the same shard waits here and finds it in the cache.
    const lock = `ernie-vil ${shardKey(piece)}`;
    const locks = cache && typeof navigator !== "undefined" ? (navigator as Partial<Navigator>).locks : undefined;
    if (!locks) return fetchFrom(folder, file, piece);
    return locks.request(lock, { signal: inner }, () => fetchFrom(folder, file, piece)) as Promise<Bytes>;
  }

  async function fetchFrom(from: { url: string; request: RequestOptions }, file: ModelFile, piece: Piece): Promise<Bytes> {
    const key = shardKey(piece);
    const kept = await cache?.get(key).catch(() => undefined);
    if (kept) {
      if ((await sha256(kept, digest)) === piece.sha256) {
        tell(file, piece, piece.size, true);
        return kept;
      }
      await cache?.delete(key).catch(() => undefined);
    }
    report.fromCache = false;
    const url = new URL(piece.name, from.url).href;
    for (const last of [false, true]) {
      // What is kept under its SHA-256 need not lie in the browser's own cache as well.
      const mode: RequestCache = last ? "reload" : cache ? "no-store" : "default";
      const onBytes = (count: number): void => tell(file, piece, count, false);
      const bytes = await download({ url, size: piece.size, request: from.request, cache: mode, signal: inner, retry, onBytes });
      if ((await sha256(bytes, digest)) === piece.sha256) {
        if (cache && report.cacheFailure === undefined) {
          await cache.put(key, bytes).catch((thrown: unknown) => {
            const { code, message } = asError(thrown);
            report.cacheFailure = code === "quota" ? "the storage is full" : message;
          });
        }
        tell(file, piece, piece.size, false);
        return bytes;
      }
      if (last) break;
    }
    throw mismatch(piece);
  }
}

function mismatch({ name, sha256 }: Piece): ErnieVilError {
  return new ErnieVilError("integrity", `${name} has another SHA-256 than the manifest says (${sha256})`);
}

async function readBlob(files: Readonly<Record<string, Blob>>, { name, size }: { name: string; size?: number }): Promise<Bytes> {
  const blob = files[name];
  if (!blob) throw new ErnieVilError("manifest", `${name} is not among the files`);
  let bytes: Bytes;
  try {
    bytes = new Uint8Array(await blob.arrayBuffer());
  } catch (thrown) {
    throw asError(thrown, "storage", name);
  }
  return size === undefined ? bytes : exact(bytes, size, name);
}

async function readManifest(
  folder: ModelFolder,
  cache: ByteCache | undefined,
  signal: AbortSignal | undefined,
  retry: RetryOptions,
): Promise<{ text: string; manifest: Manifest }> {
  const parse = (bytes: Bytes): { text: string; manifest: Manifest } => {
    const text = new TextDecoder().decode(bytes);
    return { text, manifest: parseManifest(text) };
  };
  if (!("url" in folder)) return parse(await readBlob(folder.files, { name: "manifest.json" }));
  const url = new URL("manifest.json", folder.url).href;
  const kept = await cache?.get(await manifestKey(folder.url)).catch(() => undefined);
  for (let failures = 0; ; ) {
    try {
      return parse(await fetchBytes(url, LARGEST_MANIFEST, { ...folder.request, cache: "no-cache" } as RequestInit, signal));
    } catch (thrown) {
      const error = asError(thrown);
      if (error.code !== "network") throw error;
      // Without the network a model from an earlier visit is as good as it was then.
      if (kept) return parse(kept);
      if (++failures > retry.attempts) throw error;
      await sleep(retry.delay * 2 ** (failures - 1), signal);
    }
  }
}

/** Keeps a manifest, once all its files are there, and removes what only its predecessor needed. */
async function keepManifest(cache: ByteCache, url: string, text: string): Promise<void> {
  const key = await manifestKey(url);
  const before = await cache.get(key);
  const bytes = new TextEncoder().encode(text);
  if (before && new TextDecoder().decode(before) === text) return;
  await cache.put(key, bytes);
  if (before) await removeShards(cache, tryManifest(before));
}

function tryManifest(bytes: Bytes): Manifest {
  try {
    return parseManifest(new TextDecoder().decode(bytes));
  } catch {
    return new Map();
  }
}

const keysOf = (manifest: Manifest): string[] => [...manifest.values()].flatMap(({ pieces }) => pieces.map(shardKey));

/** Removes a manifest's shards, but for those that another manifest in the cache needs as well. */
async function removeShards(cache: ByteCache, manifest: Manifest): Promise<void> {
  const needed = new Set<string>();
  for (const key of await cache.keys()) {
    const other = key.startsWith("manifest-") ? await cache.get(key) : undefined;
    if (other) for (const shard of keysOf(tryManifest(other))) needed.add(shard);
  }
  for (const key of keysOf(manifest)) if (!needed.has(key)) await cache.delete(key);
}

/** @returns whether some towers of the model at `url` can be loaded without the network */
export async function isCached(cache: ByteCache, url: string, towers: readonly Tower[] | undefined): Promise<boolean> {
  const kept = await cache.get(await manifestKey(url));
  if (!kept) return false;
  const manifest = tryManifest(kept);
  const wanted = towers ?? towersOf(manifest);
  if (wanted.length === 0 || wanted.some((tower) => !towersOf(manifest).includes(tower))) return false;
  for (const { pieces } of filesFor(manifest, wanted)) {
    for (const piece of pieces) if (!(await cache.has(shardKey(piece), piece.size))) return false;
  }
  return true;
}

/** Removes what is kept of the model at `url`, or everything. */
export async function clearCache(cache: ByteCache, url: string | undefined): Promise<void> {
  if (url === undefined) {
    for (const key of await cache.keys()) await cache.delete(key);
    return;
  }
  const key = await manifestKey(url);
  const kept = await cache.get(key);
  await cache.delete(key);
  if (kept) await removeShards(cache, tryManifest(kept));
}
