// Where downloaded model files are kept between visits.
import type { Bytes } from "./bytes.js";
import { describe } from "./errors.js";
import { type Folder, diskFolder, opfsFolder } from "./folder.js";
import { nodeModules } from "./node.js";

/** Where downloaded files are kept. */
export type CacheKind = "cache-api" | "opfs" | "folder" | "none";

/** Bytes under keys. A model's files have their SHA-256 as the key, so that another file never passes for one of them. */
export interface ByteCache {
  readonly kind: CacheKind;
  /** @returns whether the key is there, with so many bytes */
  has(key: string, size: number): Promise<boolean>;
  get(key: string): Promise<Bytes | undefined>;
  put(key: string, bytes: Uint8Array): Promise<void>;
  delete(key: string): Promise<void>;
  keys(): Promise<string[]>;
}

const NAME = "ernie-vil";
/** The Cache API takes only addresses as keys; this host exists nowhere. */
const ORIGIN = "https://ernie-vil.invalid/";

/**
 * Opens the place for downloaded files.
 *
 * @param option `false`: none; `true`: what the browser has; otherwise a folder on the disk
 * @returns the cache, if any, and why there is none
 */
export async function openCache(option: boolean | string): Promise<{ cache?: ByteCache; reason: string }> {
  if (option === false) return { reason: "the cache is switched off" };
  const reasons: string[] = [];
  const attempt = async (open: () => Promise<ByteCache | undefined>): Promise<ByteCache | undefined> => {
    try {
      return await open();
    } catch (thrown) {
      reasons.push(describe(thrown));
      return undefined;
    }
  };
  const cache =
    typeof option === "string"
      ? await attempt(async () => folderCache(await diskFolder(option), "folder"))
      : ((await attempt(openCacheApi)) ??
        (await attempt(async () => {
          const folder = await opfsFolder([NAME, "models"]);
          return folder && folderCache(folder, "opfs");
        })));
  if (cache) return { cache, reason: "" };
  const none = nodeModules() ? "no folder was given to keep files in" : "this page has no storage (is it served over HTTPS?)";
  return { reason: reasons.join("; ") || none };
}

async function openCacheApi(): Promise<ByteCache | undefined> {
  // Node, Deno and Bun keep files in a folder that the caller names, or nowhere.
  if (typeof caches === "undefined" || nodeModules()) return undefined;
  const cache = await caches.open(NAME);
  const address = (key: string): string => ORIGIN + encodeURIComponent(key);
  return {
    kind: "cache-api",
    has: async (key) => (await cache.match(address(key))) !== undefined,
    async get(key) {
      const response = await cache.match(address(key));
      return response && new Uint8Array(await response.arrayBuffer());
    },
    put: (key, bytes) => cache.put(address(key), new Response(bytes as Bytes)),
    delete: async (key) => void (await cache.delete(address(key))),
    keys: async () => (await cache.keys()).map(({ url }) => decodeURIComponent(url.slice(ORIGIN.length))),
  };
}

/** @returns a cache of files in a folder */
export function folderCache(folder: Folder, kind: CacheKind): ByteCache {
  const file = encodeURIComponent;
  return {
    kind,
    has: async (key, size) => (await folder.size(file(key))) === size,
    get: (key) => folder.read(file(key)),
    put: (key, bytes) => folder.write(file(key), bytes),
    delete: (key) => folder.remove(file(key)),
    keys: async () => (await folder.names()).map(decodeURIComponent),
  };
}
