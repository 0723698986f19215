// One side: the package, called as a page calls it.
import { captions, pictures } from "./inputs.mjs";

/**
 * Loads a model. Times include everything that a call does: tokens or pixels, the way to the worker and back.
 *
 * @param ErnieVil the package's class
 * @param source the model folder
 * @param options of `ErnieVil.load`
 */
export async function openOurs(ErnieVil, source, options) {
  const model = await ErnieVil.load(source, options);
  const { imageSize } = model.info;
  return {
    info: () => model.info,
    /** Embeds `count` inputs: milliseconds and vectors. */
    async run(tower, count) {
      const inputs = tower === "image" ? pictures(count, imageSize) : captions(count);
      const start = performance.now();
      const { data } = tower === "image" ? await model.embedImages(inputs, { batchSize: count }) : await model.embedText(inputs);
      return { ms: performance.now() - start, vectors: Array.from(data) };
    },
  };
}
