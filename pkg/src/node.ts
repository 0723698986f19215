// What is taken from Node, Deno and Bun. `process.getBuiltinModule` leaves nothing for a bundler to follow.
import type * as Child from "node:child_process";
import type * as Fs from "node:fs/promises";
import type * as Net from "node:net";
import type * as Path from "node:path";
import type * as Url from "node:url";

/** Node's modules for files and paths, and for what locks are made of. */
export interface NodeModules {
  fs: typeof Fs;
  path: typeof Path;
  url: typeof Url;
  child: typeof Child;
  net: typeof Net;
}

/** @returns Node's modules where this is Node, Deno or Bun, and nothing in a browser */
export function nodeModules(): NodeModules | undefined {
  const load = (globalThis as { process?: Partial<NodeJS.Process> }).process?.getBuiltinModule;
  if (typeof load !== "function") return undefined;
  return {
    fs: load("node:fs/promises"),
    path: load("node:path"),
    url: load("node:url"),
    get child() {
      return load("node:child_process");
    },
    get net() {
      return load("node:net");
    },
  };
}

/** @returns the bytes of a file under a `file:` URL */
export async function readFileUrl(url: string, signal?: AbortSignal): Promise<Uint8Array<ArrayBuffer>> {
  const node = nodeModules();
  if (!node) throw new Error("a file: URL can be read in Node, Deno and Bun only");
  return new Uint8Array(await node.fs.readFile(node.url.fileURLToPath(url), { signal }));
}
