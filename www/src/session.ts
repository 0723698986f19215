// A loaded model and the index of its vectors: all that the page asks of the package.
import { type Classification, EmbeddingIndex, ErnieVil, type Hit, type LoadProgress, type ModelSource } from "ernie-vil";
import { codeOf } from "./errors.js";

/** A model that can be loaded: the bundled one, one at an address, or one on the disk. */
export interface Choice {
  kind: "scenes" | "url" | "disk";
  source: ModelSource;
  /** What people call it. */
  name: string;
}

export type Device = "auto" | "cpu" | "webgpu";

export interface OpenOptions {
  choice: Choice;
  device: Device;
  cache: boolean;
  allowSoftware: boolean;
  signal: AbortSignal;
  onProgress(progress: LoadProgress): void;
  /** Is called when the model is there and the index is being opened. */
  onIndex(): void;
  /** Is called when the model has moved to another device. */
  onDeviceChange(): void;
}

/** A character that no vocabulary of this kind has. */
const UNKNOWN = "\u{20bb7}";

export class Session {
  readonly choice: Choice;
  readonly model: ErnieVil;
  readonly index: EmbeddingIndex;
  /** Whether another tab keeps the index, so that this one's is in memory only. */
  readonly elsewhere: boolean;
  /** Milliseconds that loading took. */
  readonly loadTime: number;
  readonly #unknown: number | undefined;

  private constructor(choice: Choice, model: ErnieVil, index: EmbeddingIndex, elsewhere: boolean, loadTime: number, unknown: number | undefined) {
    this.choice = choice;
    this.model = model;
    this.index = index;
    this.elsewhere = elsewhere;
    this.loadTime = loadTime;
    this.#unknown = unknown;
  }

  static async open(options: OpenOptions): Promise<Session> {
    const { choice, device, cache, allowSoftware, signal, onProgress, onIndex, onDeviceChange } = options;
    const start = performance.now();
    const model = await ErnieVil.load(choice.source, { device, cache, allowSoftware, signal, onProgress, onDeviceChange });
    const loadTime = performance.now() - start;
    try {
      onIndex();
      // Vectors of different models never mix: each model has an index of its own.
      const name = `light-table ${model.info.fingerprint.slice(0, 16)}`;
      let elsewhere = false;
      const index = await EmbeddingIndex.open(name, { model }).catch(async (thrown: unknown) => {
        const code = codeOf(thrown);
        elsewhere = code === "locked";
        if (code === "index") {
          // It is damaged; every picture on the table gets its vector again.
          await EmbeddingIndex.delete(name);
          return EmbeddingIndex.open(name, { model });
        }
        if (!elsewhere && code !== "storage" && code !== "quota") throw thrown;
        return EmbeddingIndex.open(name, { model, storage: "memory" });
      });
      const [ids] = await model.tokenize([UNKNOWN]);
      return new Session(choice, model, index, elsewhere, loadTime, ids?.length === 3 ? ids[1] : undefined);
    } catch (thrown) {
      model.dispose();
      throw thrown;
    }
  }

  /** How many of a sentence's tokens the model does not know, and how many there are. */
  async unknown(text: string, signal: AbortSignal): Promise<{ unknown: number; all: number }> {
    const [ids] = await this.model.tokenize([text], { signal });
    const inner = ids?.subarray(1, -1) ?? [];
    return { unknown: inner.filter((id) => id === this.#unknown).length, all: inner.length };
  }

  async embedText(text: string, signal: AbortSignal): Promise<Float32Array> {
    return (await this.model.embedText([text], { signal })).row(0);
  }

  async embedImage(image: Blob | string, signal: AbortSignal): Promise<Float32Array> {
    return (await this.model.embedImages([image], { signal })).row(0);
  }

  /** Every picture's similarity, the nearest first. */
  async search(query: Float32Array, signal: AbortSignal): Promise<Hit[]> {
    return this.index.size === 0 ? [] : this.index.search(query, { k: this.index.size, signal });
  }

  classify(image: Blob | string, labels: readonly string[], template: string, signal: AbortSignal): Promise<Classification[]> {
    return this.model.classify(image, labels, { template, signal });
  }

  async close(): Promise<void> {
    this.model.dispose();
    await this.index.close().catch(() => undefined);
  }
}
