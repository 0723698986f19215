import { ErnieVilError } from "./errors.js";

/**
 * Vectors of unit length, one row each. Two rows' similarity is their dot product.
 *
 * @example
 * ```ts
 * const texts = await model.embedText(["一只猫", "一只狗"]);
 * texts.rows;                       // 2
 * texts.row(0);                     // Float32Array of texts.dimensions numbers
 * texts.similarities(images);       // row 0 with each image, then row 1 with each image
 * ```
 */
export class Embeddings implements Iterable<Float32Array> {
  /** The rows behind one another. */
  readonly data: Float32Array;
  /** Numbers in a row. */
  readonly dimensions: number;
  /** The model that made them; vectors of different models never mix. */
  readonly fingerprint: string;

  /**
   * Takes ready vectors, from a file for example.
   *
   * @example
   * ```ts
   * const saved = new Embeddings(new Float32Array(await file.arrayBuffer()), 768, model.info.fingerprint);
   * ```
   * @throws ErnieVilError `vectors` where the data is no whole number of rows
   */
  constructor(data: Float32Array, dimensions: number, fingerprint: string) {
    if (!(dimensions > 0) || data.length % dimensions !== 0) {
      throw new ErnieVilError("vectors", `${data.length} numbers are no whole number of rows of ${dimensions}`);
    }
    this.data = data;
    this.dimensions = dimensions;
    this.fingerprint = fingerprint;
  }

  /**
   * The number of vectors.
   *
   * @example
   * ```ts
   * console.log(`${vectors.rows} pictures`);
   * ```
   */
  get rows(): number {
    return this.data.length / this.dimensions;
  }

  /**
   * One vector; a view, not a copy.
   *
   * @example
   * ```ts
   * await index.search(vectors.row(0), { k: 20 });
   * ```
   * @throws ErnieVilError `argument` where there is no such row
   */
  row(position: number): Float32Array {
    if (!(position >= 0 && position < this.rows)) {
      throw new ErnieVilError("argument", `there is no row ${position} among ${this.rows}`);
    }
    return this.data.subarray(position * this.dimensions, (position + 1) * this.dimensions);
  }

  /**
   * The vectors in order.
   *
   * @example
   * ```ts
   * for (const vector of vectors) console.log(vector[0]);
   * ```
   */
  *[Symbol.iterator](): IterableIterator<Float32Array> {
    for (let position = 0; position < this.rows; position++) yield this.row(position);
  }

  /**
   * The cosine of each vector with each of another's: `result[i * other.rows + j]` belongs to row `i` here and `j` there.
   *
   * @example
   * ```ts
   * const [best] = texts.similarities(images);
   * ```
   * @throws ErnieVilError `vectors` where the other ones are of another model
   */
  similarities(other: Embeddings): Float32Array {
    sameModel(this, other);
    const result = new Float32Array(this.rows * other.rows);
    let at = 0;
    for (const a of this) {
      for (const b of other) {
        let sum = 0;
        for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number);
        result[at++] = sum;
      }
    }
    return result;
  }
}

/** An image that was left out. */
export interface ImageFailure {
  /** Its position in the call. */
  readonly index: number;
  /** Why: its code is `image`, `http` or `network`, or `crashed` where the image stopped the module. */
  readonly error: ErnieVilError;
}

/**
 * The vectors of images, and what became of images that could not be read.
 *
 * @example
 * ```ts
 * const vectors = await model.embedImages(files, { onError: "skip" });
 * await index.add(vectors.indices.map((position) => files[position].name), vectors);
 * for (const { index, error } of vectors.failures) console.warn(files[index].name, error.message);
 * ```
 */
export class ImageEmbeddings extends Embeddings {
  /** Each row's image, as its position in the call. */
  readonly indices: readonly number[];
  /** The images that were left out; always empty unless `onError` is `"skip"`. */
  readonly failures: readonly ImageFailure[];

  /** @internal */
  constructor(data: Float32Array, dimensions: number, fingerprint: string, indices: readonly number[], failures: readonly ImageFailure[]) {
    super(data, dimensions, fingerprint);
    this.indices = indices;
    this.failures = failures;
  }
}

/** Throws where vectors are of different models. */
export function sameModel(a: { fingerprint: string; dimensions: number }, b: { fingerprint: string; dimensions: number }): void {
  if (a.fingerprint !== b.fingerprint || a.dimensions !== b.dimensions) {
    throw new ErnieVilError("vectors", `vectors of different models do not mix (${a.fingerprint.slice(0, 8)} and ${b.fingerprint.slice(0, 8)})`);
  }
}
