// `manifest.json` of a model folder: which files there are, in which pieces, with which SHA-256.
import { ErnieVilError, describe } from "./errors.js";
import type { Tower } from "./module.js";

/** A file as it lies on the server: a whole file or a shard of one. */
export interface Piece {
  name: string;
  size: number;
  sha256: string;
}

/** A file of the model; its pieces behind one another are its content. */
export interface ModelFile {
  name: string;
  size: number;
  pieces: Piece[];
}

/** The files of a model by name. */
export type Manifest = ReadonlyMap<string, ModelFile>;

/** No piece may be larger: it is held in memory as a whole. */
const LARGEST_PIECE = 2 ** 31 - 1;

/**
 * Reads a manifest.
 *
 * @throws ErnieVilError `manifest` names the entry that is wrong and what was expected
 */
export function parseManifest(text: string): Manifest {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (thrown) {
    throw new ErnieVilError("manifest", `manifest.json is not JSON: ${describe(thrown)}`, { cause: thrown });
  }
  const { format, files } = (json ?? {}) as { format?: unknown; files?: unknown };
  if (format !== 1) throw new ErnieVilError("manifest", `manifest.json has the format ${String(format)}, expected 1`);
  const manifest = new Map<string, ModelFile>();
  for (const [position, entry] of list(files, "files").entries()) {
    const where = `files[${position}]`;
    const whole = piece(entry, where);
    const { shards } = entry as { shards?: unknown };
    const pieces =
      shards === undefined ? [whole] : list(shards, `${where}.shards`).map((shard, n) => piece(shard, `${where}.shards[${n}]`));
    const sum = pieces.reduce((size, part) => size + part.size, 0);
    if (sum !== whole.size) {
      throw new ErnieVilError("manifest", `manifest.json: the shards of ${whole.name} have ${sum} bytes, expected ${whole.size}`);
    }
    for (const { name, size } of pieces) {
      if (size > LARGEST_PIECE) {
        throw new ErnieVilError("manifest", `manifest.json: ${name} has ${size} bytes, more than one piece may have; pack the model with --shard-size`);
      }
    }
    manifest.set(whole.name, { name: whole.name, size: whole.size, pieces });
  }
  return manifest;
}

function list(value: unknown, where: string): unknown[] {
  if (Array.isArray(value)) return value;
  throw new ErnieVilError("manifest", `manifest.json: ${where} is no list`);
}

function piece(value: unknown, where: string): Piece {
  const { name, size, sha256 } = (value ?? {}) as Partial<Record<keyof Piece, unknown>>;
  const wrong = (field: string, expected: string): ErnieVilError =>
    new ErnieVilError("manifest", `manifest.json: ${where}.${field} is not ${expected}`);
  if (typeof name !== "string" || !/^\w[\w.-]*$/.test(name)) throw wrong("name", "a plain file name");
  if (typeof size !== "number" || !Number.isSafeInteger(size) || size < 0) throw wrong("size", "a number of bytes");
  if (typeof sha256 !== "string" || !/^[0-9a-f]{64}$/.test(sha256)) throw wrong("sha256", "64 hexadecimal digits");
  return { name, size, sha256 };
}

/** @returns the towers that a model has */
export function towersOf(manifest: Manifest): Tower[] {
  return (["image", "text"] as const).filter((tower) => manifest.has(`${tower}.safetensors`));
}

/**
 * @returns the files that some towers need, in the order in which they are needed
 * @throws ErnieVilError `manifest` where one of them is missing
 */
export function filesFor(manifest: Manifest, towers: readonly Tower[]): ModelFile[] {
  const names = ["config.json"];
  if (towers.includes("text")) names.push("vocab.txt");
  for (const tower of ["image", "text"] as const) if (towers.includes(tower)) names.push(`${tower}.safetensors`);
  return names.map((name) => {
    const file = manifest.get(name);
    if (!file) throw new ErnieVilError("manifest", `manifest.json names no ${name}; it has ${[...manifest.keys()].join(", ")}`);
    return file;
  });
}
