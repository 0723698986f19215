// Images to vectors, batch by batch.
import { follow, inOrder } from "./concurrency.js";
import { ImageEmbeddings, type ImageFailure } from "./embeddings.js";
import { ErnieVilError, asError, fromWire, throwIfAborted, toWire } from "./errors.js";
import { type ImageInput, prepareImage } from "./images.js";
import type { EmbedImagesOptions } from "./options.js";
import type { ImageRows } from "./protocol.js";
import type { Params, RunningModel } from "./running-model.js";

/** Images of a batch, by the kind of device. */
const BATCH = { cpu: 4, webgpu: 16, server: 16 } as const;
/** Batches that are on their way: one that is computed and one that is ready for it. */
const BATCHES = 2;

/** @returns the vectors of images, in order */
export async function embedImages(
  model: RunningModel,
  images: ArrayLike<ImageInput>,
  options: EmbedImagesOptions,
): Promise<ImageEmbeddings> {
  if (typeof images === "string" || typeof images?.length !== "number" || ArrayBuffer.isView(images)) {
    throw new ErnieVilError("argument", "embedImages takes a list of images: [image] for one");
  }
  const { signal, onProgress, onError = "reject" } = options;
  const list = Array.from(images);
  const { dimensions, fingerprint, device } = model.info;
  const size = Math.max(1, Math.floor(options.batchSize ?? BATCH[device.kind]));
  const starts = Array.from({ length: Math.ceil(list.length / size) }, (_, n) => n * size);
  const data = new Float32Array(list.length * dimensions);
  const indices: number[] = [];
  const failures: ImageFailure[] = [];

  // A batch that fails ends the one that is ahead of it.
  const stop = new AbortController();
  const forget = follow(stop, signal);
  const begin = (start: number): Promise<ImageRows> => {
    const positions = Array.from(list.slice(start, start + size), (_, i) => start + i);
    return embedBatch(model, list, positions, onError === "skip", stop.signal);
  };
  try {
    throwIfAborted(signal);
    await inOrder(starts, BATCHES, begin, (rows, start) => {
      data.set(rows.data, indices.length * dimensions);
      indices.push(...rows.indices);
      failures.push(...rows.failures.map(({ index, error }) => ({ index, error: fromWire(error) })));
      onProgress?.({ done: Math.min(start + size, list.length), total: list.length });
    });
  } finally {
    stop.abort();
    forget();
  }
  const filled = indices.length === list.length ? data : data.slice(0, indices.length * dimensions);
  return new ImageEmbeddings(filled, dimensions, fingerprint, indices, failures);
}

/**
 * Embeds the images at some positions of `list`. With `skip` an image that stops the module is left out like one that cannot
 * be read, and the others are embedded by the module that is loaded in its place.
 *
 * @returns their rows and failures, by their positions in `list`
 */
async function embedBatch(
  model: RunningModel,
  list: readonly ImageInput[],
  positions: number[],
  skip: boolean,
  signal: AbortSignal,
): Promise<ImageRows> {
  const whole: ImageRows = { data: new Float32Array(0), indices: [], failures: [] };
  // Each turn ends with fewer images to embed, or with groups of one.
  const groups = [positions];
  for (let group; (group = groups.shift()); ) {
    const places = group;
    const placed = (position: number): number => places[position] as number;
    try {
      const { data, indices, failures } = await model.call("embedImages", () => imageParams(list, places, skip), { signal });
      const joined = whole.data.length ? new Float32Array(whole.data.length + data.length) : data;
      if (joined !== data) {
        joined.set(whole.data);
        joined.set(data, whole.data.length);
      }
      whole.data = joined;
      whole.indices.push(...indices.map(placed));
      whole.failures.push(...failures.map(({ index, error }) => ({ index: placed(index), error })));
    } catch (thrown) {
      const error = asError(thrown);
      if (error.code !== "crashed" || error.bystander) throw error;
      const at = error.image ?? (places.length === 1 ? 0 : undefined);
      const where = at === undefined ? `one of the images ${places[0]} to ${places.at(-1)}: ` : `image ${placed(at)}: `;
      const told = error.message.startsWith(where) ? error : new ErnieVilError("crashed", where + error.message, { cause: error.cause });
      if (!skip || model.stopsTooOften) throw told;
      if (at === undefined) {
        groups.unshift(...places.map((position) => [position]));
      } else {
        whole.failures.push({ index: placed(at), error: toWire(told) });
        if (places.length > 1) groups.unshift(places.filter((_, i) => i !== at));
      }
    }
  }
  whole.failures.sort((a, b) => a.index - b.index);
  return whole;
}

async function imageParams(list: readonly ImageInput[], positions: readonly number[], skip: boolean): Promise<Params<"embedImages">> {
  const prepared = await Promise.all(positions.map((position) => prepareImage(list[position] as ImageInput, position)));
  return {
    params: { images: prepared.map(({ payload }) => payload), skip },
    transfer: prepared.flatMap(({ transfer }) => transfer),
  };
}
