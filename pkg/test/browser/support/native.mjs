// What the native program makes and says, and what was recorded of the original.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("../../../../", import.meta.url));
export const pkg = join(root, "pkg");
export const goldens = join(root, "tests/goldens");
export const scenes = join(root, "models/scenes");

const { ERNIE_VIL_BIN, CARGO_TARGET_DIR, ...environment } = process.env;
export const binary = ERNIE_VIL_BIN ?? join(CARGO_TARGET_DIR ?? join(root, "target"), "release/ernie-vil");

/** The builds that are there, with the options that choose them. */
export const builds = Object.entries({
  cpu: { device: "cpu", threads: 1 },
  "cpu-threads": { device: "cpu", threads: 2 },
  webgpu: { device: "webgpu", allowSoftware: true },
})
  .map(([name, options]) => ({ name, options }))
  .filter(({ name }) => {
    const there = existsSync(join(pkg, "wasm", name, "ernie_vil_bg.wasm"));
    if (!there) console.log(`skipped with ${name}, which is not built`);
    return there;
  });

/** Why nothing can be compared here, or nothing. */
export const missing =
  (!builds.some(({ name }) => name === "cpu") && "pkg/wasm/cpu is not built: 'cargo xtask web' builds it") ||
  (!existsSync(join(pkg, "dist/index.js")) && "pkg/dist is not built: 'npm run build' builds it") ||
  (!existsSync(binary) && `there is no ${binary}: 'cargo build --release' makes it, or ERNIE_VIL_BIN names another`);

/** Runs the native program and returns what it prints. */
export function native(...args) {
  const { status, stdout, stderr, error } = spawnSync(binary, args, { encoding: "utf8", env: environment, maxBuffer: 1 << 28 });
  if (status !== 0) throw new Error(`ernie-vil ${args.join(" ")}: ${error?.message ?? stderr}`);
  return stdout;
}

/** A folder for the time of a test file. */
export async function temporary(after) {
  const folder = await mkdtemp(join(tmpdir(), "ernie-vil-"));
  after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** Makes the model folder of the recorded weights "tiny", in shards as for the web. */
export function convertTiny(output) {
  const file = (name) => join(goldens, name);
  const sources = { weights: "models/tiny.pdparams", "text-config": "models/tiny_text_config.json", "image-config": "models/tiny_vision_config.json", vocab: "vocab_tiny.txt" };
  const args = Object.entries(sources).flatMap(([option, name]) => [`--${option}`, file(name)]);
  native("convert", ...args, "--output", output, "--shard-size", "128KB");
  return output;
}

/** The tensors of a safetensors file by name; of i64 the lower halves. */
export async function readTensors(path) {
  const bytes = await readFile(path);
  const start = 8 + Number(bytes.readBigUInt64LE());
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(JSON.parse(bytes.subarray(8, start)))) {
    if (name === "__metadata__") continue;
    const data = new Uint8Array(bytes.subarray(start + data_offsets[0], start + data_offsets[1])).buffer;
    if (dtype === "F32") tensors[name] = { shape, data: new Float32Array(data) };
    if (dtype === "U8") tensors[name] = { shape, data: new Uint8Array(data) };
    if (dtype === "I64") tensors[name] = { shape, data: Array.from(new BigInt64Array(data), Number) };
  }
  return tensors;
}

/** Writes tensors of f32 as a safetensors file. */
export async function writeTensors(path, tensors) {
  const header = {};
  let end = 0;
  const kept = Object.entries(tensors).filter(([, { data }]) => data instanceof Float32Array);
  for (const [name, { shape, data }] of kept) {
    header[name] = { dtype: "F32", shape, data_offsets: [end, (end += data.byteLength)] };
  }
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  await writeFile(path, Buffer.concat([length, json, ...kept.map(([, { data }]) => Buffer.from(data.buffer))]));
}

/** What was recorded of "tiny": its captions, their ids, its pictures and all vectors. */
export async function recordedTiny() {
  const lines = (await readFile(join(goldens, "coco_cn_style.tsv"), "utf8")).split("\n").filter(Boolean);
  // The original drops empty columns: a row without a caption has its image's id for one.
  const captions = lines.map((line) => line.split("\t").find(Boolean));
  const { input_ids, text_normalised, image_normalised } = await readTensors(join(goldens, "embeddings_tiny.safetensors"));
  const [rows, width] = input_ids.shape;
  const ids = Array.from({ length: rows }, (_, i) => {
    const row = input_ids.data.slice(i * width, (i + 1) * width);
    return row.slice(0, row.findLastIndex((id) => id !== 0) + 1);
  });
  const pictures = JSON.parse(await readFile(join(goldens, "preprocess.json"), "utf8"));
  return { captions, ids, text: text_normalised.data, image: image_normalised.data, pictures };
}

/** How far vectors are from others: the largest difference, and the smallest cosine of two rows. */
export function distance(a, b, dimensions) {
  if (a.length !== b.length) throw new Error(`${a.length} values beside ${b.length}`);
  let difference = 0;
  let cosine = 1;
  for (let start = 0; start < a.length; start += dimensions) {
    let [ab, aa, bb] = [0, 0, 0];
    for (let i = start; i < start + dimensions; i++) {
      // A value that is no number must not pass for a small difference.
      difference = Math.max(difference, Number.isFinite(a[i]) ? Math.abs(a[i] - b[i]) : Infinity);
      ab += a[i] * b[i];
      aa += a[i] * a[i];
      bb += b[i] * b[i];
    }
    cosine = Math.min(cosine, ab / Math.sqrt(aa * bb));
  }
  return { difference, cosine };
}
