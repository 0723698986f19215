import type { Embeddings } from "./embeddings.js";
import { ErnieVilError } from "./errors.js";

/** One of the labels that an image was compared with. */
export interface Classification {
  /** The label as it was given. */
  label: string;
  /** The cosine of the image and the label. */
  score: number;
  /** The label's share among all labels; the shares add up to 1. */
  probability: number;
}

/** @returns each label in each template, label by label */
export function captions(labels: readonly string[], templates: readonly string[]): string[] {
  if (labels.length === 0) throw new ErnieVilError("argument", "there are no labels to choose from");
  if (templates.length === 0) throw new ErnieVilError("argument", "there is no template");
  for (const template of templates) {
    if (!template.includes("{}")) throw new ErnieVilError("argument", `the template "${template}" has no {} where the label goes`);
  }
  // A function, since a label may have a $ in it.
  return labels.flatMap((label) => templates.map((template) => template.replaceAll("{}", () => label)));
}

/** @returns for each run of `count` rows their mean, at unit length, behind one another */
export function means(rows: Embeddings, count: number): Float32Array {
  const { dimensions } = rows;
  const result = new Float32Array((rows.rows / count) * dimensions);
  for (let start = 0; start < result.length; start += dimensions) {
    const mean = result.subarray(start, start + dimensions);
    for (let n = 0; n < count; n++) {
      const row = rows.row((start / dimensions) * count + n);
      for (let i = 0; i < dimensions; i++) mean[i] = (mean[i] as number) + (row[i] as number);
    }
    const length = Math.hypot(...mean) || 1;
    for (let i = 0; i < dimensions; i++) mean[i] = (mean[i] as number) / length;
  }
  return result;
}

/** @returns the labels by their share, the likeliest first */
export function ranking(labels: readonly string[], scores: ArrayLike<number>, scale: number): Classification[] {
  const best = Math.max(...Array.from(scores));
  const weights = labels.map((_, i) => Math.exp(scale * ((scores[i] as number) - best)));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return labels
    .map((label, i) => ({ label, score: scores[i] as number, probability: (weights[i] as number) / sum }))
    .sort((a, b) => b.probability - a.probability);
}
