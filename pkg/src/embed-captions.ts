// Captions to vectors.
import { Embeddings } from "./embeddings.js";
import { ErnieVilError } from "./errors.js";
import type { EmbedTextOptions } from "./options.js";
import type { Params, RunningModel } from "./running-model.js";

/** @returns the vectors of captions, in order */
export async function embedCaptions(model: RunningModel, texts: readonly string[], options: EmbedTextOptions): Promise<Embeddings> {
  const list = captionList(texts);
  const total = list.length;
  const onProgress = options.onProgress && ((done: number) => options.onProgress?.({ done, total }));
  const params = (): Params<"embedText"> => ({ params: { texts: list } });
  const data = total === 0 ? new Float32Array(0) : await model.call("embedText", params, { ...options, onProgress });
  const { dimensions, fingerprint } = model.info;
  options.onProgress?.({ done: total, total });
  return new Embeddings(data, dimensions, fingerprint);
}

/** @returns the captions, once it is sure that they are a list of strings */
export function captionList(texts: readonly string[]): string[] {
  if (typeof texts === "string" || !Array.isArray(texts)) {
    throw new ErnieVilError("argument", "captions come as a list: [caption] for one");
  }
  const wrong = texts.findIndex((text) => typeof text !== "string");
  if (wrong >= 0) throw new ErnieVilError("argument", `caption ${wrong} is no string`);
  return texts as string[];
}
