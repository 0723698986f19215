// The model as callers see it.
import { compact } from "./bytes.js";
import { openCache } from "./cache.js";
import { type Classification, captions, means, ranking } from "./classify.js";
import { captionList, embedCaptions } from "./embed-captions.js";
import { embedImages } from "./embed-images.js";
import { Embeddings, type ImageEmbeddings, sameModel } from "./embeddings.js";
import { throwIfAborted } from "./errors.js";
import type { HostOptions } from "./host.js";
import { type ImageInput, prepareImage } from "./images.js";
import { clearCache, isCached } from "./loader.js";
import type { Tower } from "./module.js";
import { addressOf, modelFolder, open } from "./open.js";
import type {
  CancelOptions,
  ClassifyOptions,
  EmbedImagesOptions,
  EmbedTextOptions,
  LoadOptions,
  ModelInfo,
  ModelSource,
  RecallReport,
} from "./options.js";
import { type Params, RunningModel } from "./running-model.js";

/**
 * A model that runs on the user's own device.
 *
 * @example
 * ```ts
 * import { ErnieVil } from "ernie-vil";
 *
 * const model = await ErnieVil.load("/models/base/");
 * const texts = await model.embedText(["雪地里的红色汽车"]);
 * const images = await model.embedImages(input.files);
 * console.log(texts.similarities(images));
 * model.dispose();
 * ```
 */
export class ErnieVil {
  readonly #options: LoadOptions;
  readonly #model: RunningModel;
  #labels: { key: string; vectors: Embeddings } | undefined;

  private constructor(options: LoadOptions, model: RunningModel) {
    this.#options = options;
    this.#model = model;
  }

  /**
   * Loads a model.
   *
   * @example
   * ```ts
   * const model = await ErnieVil.load("https://example.org/models/base/", {
   *   towers: ["text"],
   *   onProgress: ({ loaded, total }) => (bar.value = loaded / total),
   * });
   * console.log(model.info.device.reason);
   * ```
   * @throws ErnieVilError, most of all `network`, `http`, `integrity`, `manifest`, `device` and `aborted`
   */
  static async load(source: ModelSource, options: LoadOptions = {}): Promise<ErnieVil> {
    throwIfAborted(options.signal);
    const folder = modelFolder(source, options.request ?? {});
    const session = await open(folder, options, options);
    return new ErnieVil(options, new RunningModel(folder, options, session));
  }

  /**
   * Whether a model can be loaded without the network.
   *
   * @example
   * ```ts
   * if (await ErnieVil.isCached("/models/base/", { towers: ["text"] })) button.textContent = "Ready";
   * ```
   */
  static async isCached(url: string | URL, options: { towers?: readonly Tower[]; cache?: string } = {}): Promise<boolean> {
    const { cache } = await openCache(options.cache ?? true);
    return cache !== undefined && isCached(cache, addressOf(url), options.towers);
  }

  /**
   * Removes what is kept of a model; of all models where no address is given.
   *
   * @example
   * ```ts
   * await ErnieVil.clearCache("/models/base/");
   * ```
   */
  static async clearCache(url?: string | URL, options: { cache?: string } = {}): Promise<void> {
    const { cache } = await openCache(options.cache ?? true);
    if (cache) await clearCache(cache, url === undefined ? undefined : addressOf(url));
  }

  /**
   * What is known of the model and of its device. A new object when the device was lost and the model has moved.
   *
   * @example
   * ```ts
   * badge.textContent = model.info.device.kind;
   * badge.title = model.info.device.reason;
   * ```
   */
  get info(): ModelInfo {
    return this.#model.info;
  }

  /** @internal How the model's threads are made; an index makes its own in the same way. */
  get host(): HostOptions {
    const { worker, wasm, modules } = this.#options;
    return { worker, wasm, modules };
  }

  /**
   * The vectors of captions, in order.
   *
   * @example
   * ```ts
   * const vectors = await model.embedText(["雪地里的红色汽车", "一只猫"]);
   * ```
   */
  embedText(texts: readonly string[], options: EmbedTextOptions = {}): Promise<Embeddings> {
    return embedCaptions(this.#model, texts, options);
  }

  /**
   * The vectors of images, in order. Files are read one after the other, so that any number of them can be given.
   *
   * @example
   * ```ts
   * const vectors = await model.embedImages(input.files, {
   *   signal: controller.signal,
   *   onProgress: ({ done, total }) => (bar.value = done / total),
   * });
   * ```
   * @throws ErnieVilError `image` names the first image that cannot be decoded, `crashed` the one that stopped the module
   */
  embedImages(images: ArrayLike<ImageInput>, options: EmbedImagesOptions = {}): Promise<ImageEmbeddings> {
    return embedImages(this.#model, images, options);
  }

  /**
   * Compares images with labels, without training.
   *
   * @example
   * ```ts
   * const [best] = await model.classify(file, ["猫", "狗"], { template: "一张{}的照片" });
   * console.log(best.label, best.probability);
   * ```
   * @returns the labels of the image, the likeliest first
   */
  classify(image: ImageInput, labels: readonly string[], options?: ClassifyOptions): Promise<Classification[]>;
  /**
   * Compares several images with labels.
   *
   * @example
   * ```ts
   * for (const [best] of await model.classify(files, ["猫", "狗"])) console.log(best.label);
   * ```
   * @returns for each image its labels, the likeliest first
   */
  classify(images: readonly ImageInput[], labels: readonly string[], options?: ClassifyOptions): Promise<Classification[][]>;
  async classify(
    images: ImageInput | readonly ImageInput[],
    labels: readonly string[],
    options: ClassifyOptions = {},
  ): Promise<Classification[] | Classification[][]> {
    const { template = "{}", ensemble, signal } = options;
    const cancel: CancelOptions = signal ? { signal } : {};
    const vectors = await this.#labelVectors(labels, ensemble ? this.#model.last.templates : [template].flat(), cancel);
    const list = (Array.isArray(images) ? images : [images]) as readonly ImageInput[];
    const rows = await this.embedImages(list, cancel);
    const scores = rows.similarities(vectors);
    const scale = options.scale ?? this.#model.last.logitScale;
    const results = list.map((_, i) => ranking(labels, scores.subarray(i * labels.length, (i + 1) * labels.length), scale));
    return Array.isArray(images) ? results : (results[0] as Classification[]);
  }

  async #labelVectors(labels: readonly string[], templates: readonly string[], options: CancelOptions): Promise<Embeddings> {
    const texts = captions(labels, templates);
    const key = JSON.stringify(texts);
    // A page asks for the same labels with picture after picture.
    if (this.#labels?.key !== key) {
      const all = await this.embedText(texts, options);
      const vectors = new Embeddings(means(all, templates.length), all.dimensions, all.fingerprint);
      this.#labels = { key, vectors };
    }
    return this.#labels.vectors;
  }

  /**
   * The token ids of captions, as the text tower sees them: between [CLS] and [SEP], cut to the longest length.
   *
   * @example
   * ```ts
   * const [ids] = await model.tokenize(["一只猫"]);
   * ```
   */
  async tokenize(texts: readonly string[], options: CancelOptions = {}): Promise<Uint32Array[]> {
    return this.#model.call("tokenize", () => ({ params: { texts: captionList(texts) } }), options);
  }

  /**
   * What the image tower sees of an image: red, green and blue planes of `info.imageSize` squared values, normalised. For a
   * comparison with other software.
   *
   * @example
   * ```ts
   * const pixels = await model.preprocess(file);
   * ```
   */
  async preprocess(image: ImageInput, options: CancelOptions = {}): Promise<Float32Array> {
    const params = async (): Promise<Params<"preprocess">> => {
      const { payload, transfer } = await prepareImage(image, 0);
      return { params: { image: payload }, transfer };
    };
    return this.#model.call("preprocess", params, options);
  }

  /**
   * How well captions and images find each other, by the original's protocol; row `i` of one belongs to row `i` of the other.
   *
   * @example
   * ```ts
   * const { table } = await model.recall(texts, images);
   * console.log(table);
   * ```
   */
  async recall(texts: Embeddings, images: Embeddings, options: CancelOptions = {}): Promise<RecallReport> {
    sameModel(texts, images);
    const { dimensions } = texts;
    return this.#model.call("recall", () => ({ params: { text: compact(texts.data), image: compact(images.data), dimensions } }), options);
  }

  /**
   * Ends the model and gives its memory back. Calls under way reject with the code `disposed`.
   *
   * @example
   * ```ts
   * model.dispose();
   * ```
   */
  dispose(): void {
    this.#model.dispose();
  }

  /** @internal Loses the GPU device, as a driver that is reset does; for tests. */
  async simulateDeviceLoss(): Promise<void> {
    await this.#model.loseDevice();
  }
}
