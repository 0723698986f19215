import { ErnieVilError } from "./errors.js";
import { nodeModules } from "./node.js";

/**
 * @returns an address that holds in any thread; in Node, Deno and Bun whatever is no address is taken as a path
 * @throws ErnieVilError `argument` where it is no address
 */
export function absoluteUrl(source: string | URL): string {
  const { location, document } = globalThis as { location?: Location; document?: Document };
  const node = nodeModules();
  try {
    // "C:\models" would pass for an address with the scheme "c".
    if (!node || !/^[a-z]:[\\/]/i.test(String(source))) return new URL(source, document?.baseURI ?? location?.href).href;
  } catch (thrown) {
    if (!node) throw new ErnieVilError("argument", `${String(source)} is no address`, { cause: thrown });
  }
  return node.url.pathToFileURL(String(source)).href;
}
