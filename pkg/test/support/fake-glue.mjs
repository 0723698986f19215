// A module in plain JavaScript: the contract of the WebAssembly modules, with vectors made of hashes. It lets the package be
// tested without a model, and fail on demand.
import { createHash } from "node:crypto";

const fail = (code, message) => Object.assign(new Error(message), { code });

export function unit(seed, dimensions) {
  const row = new Float32Array(dimensions);
  for (let i = 0; i < dimensions; i++) {
    row[i] = createHash("sha256").update(`${seed} ${i}`).digest().readInt32LE() / 2 ** 31;
  }
  const length = Math.hypot(...row);
  return row.map((value) => value / length);
}

/** `several`: whether it can make instances of itself, as the package's own modules do. */
export function fakeGlue({ kind = "cpu", dimensions = 8, imageSize = 2, several = false } = {}) {
  /** What the next calls do in place of what they should. */
  const plan = { embedText: undefined, freed: 0, fed: { image: 0, text: 0 }, batches: [] };

  class ModelLoader {
    constructor(config, vocab, image, text) {
      if (config[0] !== 0x7b) throw fail("config", "config.json is no JSON");
      if (text && !vocab) throw fail("config", "vocab.txt is missing");
      this.towers = [image && "image", text && "text"].filter(Boolean);
      plan.fed = { image: 0, text: 0 };
      plan.hash = { image: createHash("sha256"), text: createHash("sha256") };
    }
    feed(tower, bytes) {
      plan.fed[tower] += bytes.length;
      plan.hash[tower].update(bytes);
    }
    finish() {
      return new Model(this.towers);
    }
    free() {
      plan.freed += 1;
    }
  }

  class Model {
    constructor(towers) {
      this.towers = towers;
    }
    info() {
      return {
        name: "", structure: "fake", fingerprint: "f".repeat(64), dimensions, maxTextTokens: 48, imageSize, vocabSize: 10,
        towers: this.towers, parameters: 1, dtype: "f32", note: null,
        logitScale: Math.exp(2.65926), templates: ["{}", "一张{}的照片"],
      };
    }
    tokenize(texts) {
      return texts.map((text) => Uint32Array.from([1, ...[...text].map((char) => char.codePointAt(0)), 2]));
    }
    async embedText(texts) {
      const own = plan.embedText;
      if (own) {
        const result = await own(texts);
        if (result) return result;
      }
      const rows = new Float32Array(texts.length * dimensions);
      for (const [i, text] of texts.entries()) {
        if (text === "坏") throw fail("text", "the caption is bad");
        rows.set(unit(text, dimensions), i * dimensions);
      }
      return rows;
    }
    crop(file) {
      if (file[0] === 0) throw fail("image", "neither JPEG nor PNG, WebP, BMP, TIFF or PNM");
      return new Uint8Array(3 * imageSize * imageSize).fill(file[0]);
    }
    cropRgba(rgba, width, height) {
      if (rgba.length !== width * height * 4) throw fail("image", "pixels are missing");
      return new Uint8Array(3 * imageSize * imageSize).fill(rgba.reduce((sum, value) => sum + value, 0) / 4);
    }
    normalise(crop) {
      return Float32Array.from(crop);
    }
    async embedImages(crops) {
      const size = 3 * imageSize * imageSize;
      const rows = crops.length / size;
      plan.batches.push(rows);
      const result = new Float32Array(rows * dimensions);
      for (let i = 0; i < rows; i++) result.set(unit(`image ${crops[i * size]}`, dimensions), i * dimensions);
      return result;
    }
    free() {
      plan.freed += 1;
    }
  }

  /** A log record is its length and JSON. */
  const record = (entry) => {
    const json = Buffer.from(JSON.stringify(entry));
    const bytes = Buffer.alloc(4 + json.length);
    bytes.writeUInt32LE(json.length);
    json.copy(bytes, 4);
    return bytes;
  };

  class Index {
    constructor(width, fingerprint, dtype) {
      Object.assign(this, { dimensions: width, fingerprint, dtype, entries: new Map(), log: [] });
    }
    static load(bytes) {
      let saved;
      try {
        saved = JSON.parse(Buffer.from(bytes));
      } catch {
        throw fail("index", "the file is damaged");
      }
      const index = new Index(saved.dimensions, saved.fingerprint, saved.dtype);
      index.entries = new Map(saved.entries);
      return index;
    }
    get size() {
      return this.entries.size;
    }
    add(ids, vectors) {
      ids.forEach((id, i) => {
        const vector = [...vectors.subarray(i * this.dimensions, (i + 1) * this.dimensions)];
        this.entries.set(id, vector);
        this.log.push(record({ id, vector }));
      });
    }
    remove(ids) {
      const there = ids.filter((id) => this.entries.delete(id));
      for (const id of there) this.log.push(record({ id }));
      return there.length;
    }
    has(id) {
      return this.entries.has(id);
    }
    get(id) {
      const vector = this.entries.get(id);
      return vector && Float32Array.from(vector);
    }
    ids() {
      return [...this.entries.keys()];
    }
    search(queries, k) {
      const results = [];
      for (let at = 0; at < queries.length; at += this.dimensions) {
        const query = queries.subarray(at, at + this.dimensions);
        const hits = [...this.entries]
          .map(([id, vector]) => ({ id, score: vector.reduce((sum, value, i) => sum + value * query[i], 0) }))
          .sort((a, b) => b.score - a.score)
          .slice(0, k);
        results.push({ ids: hits.map(({ id }) => id), scores: Float32Array.from(hits, ({ score }) => score) });
      }
      return results;
    }
    save() {
      const { dimensions, fingerprint, dtype, entries } = this;
      return new Uint8Array(Buffer.from(JSON.stringify({ dimensions, fingerprint, dtype, entries: [...entries] })));
    }
    takeLog() {
      const bytes = Buffer.concat(this.log);
      this.log = [];
      return new Uint8Array(bytes);
    }
    replay(bytes) {
      const log = Buffer.from(bytes);
      let at = 0;
      while (at + 4 <= log.length && at + 4 + log.readUInt32LE(at) <= log.length) {
        const end = at + 4 + log.readUInt32LE(at);
        const { id, vector } = JSON.parse(log.subarray(at + 4, end));
        if (vector) this.entries.set(id, vector);
        else this.entries.delete(id);
        at = end;
      }
      return at;
    }
    free() {
      plan.freed += 1;
    }
  }

  return {
    plan,
    create: several ? () => fakeGlue({ kind, dimensions, imageSize, several }) : undefined,
    whenStopped: (handler) => (plan.stop = handler),
    default: async () => {},
    version: () => "0.0.0",
    kind: () => kind,
    threads: () => 1,
    sha256: (bytes) => createHash("sha256").update(bytes).digest("hex"),
    initDevice: async () => {
      const adapter = await navigator.gpu.requestAdapter();
      await adapter.requestDevice();
    },
    ModelLoader,
    Index,
    recall: (text, image, width) => ({ table: `${text.length / width}`, report: { rows: image.length / width } }),
  };
}

export const fakeModule = (options) => ({ glue: fakeGlue(options), wasm: new Uint8Array(0) });
