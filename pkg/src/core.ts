/**
 * The package without its own modules and workers: the caller brings the modules along, and no bundler has anything to follow.
 *
 * @example
 * ```ts
 * import { ErnieVil } from "ernie-vil/core";
 * import * as glue from "ernie-vil/wasm/cpu/ernie_vil.js";
 *
 * const model = await ErnieVil.load(url, { modules: { cpu: { glue, wasm: bytes } } });
 * ```
 *
 * @packageDocumentation
 */
export type { CacheKind } from "./cache.js";
export type { Classification } from "./classify.js";
export type { AdapterInfo, DeviceChoice, PowerPreference } from "./device.js";
export { EmbeddingIndex } from "./embedding-index.js";
export type { Hit, IndexInfo, OpenIndexOptions, SearchOptions } from "./embedding-index.js";
export { Embeddings, ImageEmbeddings } from "./embeddings.js";
export type { ImageFailure } from "./embeddings.js";
export { ErnieVil } from "./ernie-vil.js";
export { ErnieVilError } from "./errors.js";
export type { ErrorCode } from "./errors.js";
export type { ModulesOption, WasmOption, WorkerOption } from "./host.js";
export type { RequestOptions } from "./http.js";
export type { ImageInput, Pixels } from "./images.js";
export type { LoadProgress } from "./loader.js";
export type { Glue, ModuleName, ModuleSource, Tower, WasmInput } from "./module.js";
export type {
  CancelOptions,
  ClassifyOptions,
  DeviceInfo,
  EmbedImagesOptions,
  EmbedProgress,
  EmbedTextOptions,
  LoadOptions,
  ModelInfo,
  ModelSource,
  RecallReport,
} from "./options.js";
export { serve } from "./serve.js";
export type { StorageKind } from "./storage.js";
