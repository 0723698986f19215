// A server that computes in place of this device: `ernie-vil serve`.
import { base64, bytesOf, fromBase64 } from "./bytes.js";
import { sleep } from "./concurrency.js";
import { ErnieVilError, asError, throwIfAborted, toWire } from "./errors.js";
import { fetchBytes, readBounded } from "./http.js";
import { type ImagePayload, readEncoded } from "./images.js";
import type { ModelFolder } from "./loader.js";
import type { WasmInfo } from "./module.js";
import type { Calls, Context, Handlers, ImageRows, LoadParams, LoadResult } from "./protocol.js";
import { absoluteUrl } from "./url.js";

/** Where the server is. */
export interface ServerOptions {
  /** Its address: `https://example.org/`. */
  url: string | URL;
  /** The key that it asks for (`ernie-vil serve --api-key`). */
  apiKey?: string;
}

/** What the server says of itself (`GET /info`). */
interface ServerInfo {
  name: string;
  note: string | null;
  structure: string;
  fingerprint: string;
  version: string;
  dimensions: { text: number; image: number };
  max_text_tokens: number;
  logit_scale: number;
  templates: string[];
  image_size: number;
  vocab_size: number;
  parameters: number;
  limits: { items: number; body_bytes: number };
}

/** What the calls need to know of it. */
interface Known {
  fingerprint: string;
  dimensions: number;
  items: number;
  bodyBytes: number;
}

/** Answers of the server may have so many bytes for each vector's number, and so many besides. */
const NUMBER = 8;
const AROUND = 1 << 20;
/** How often a server that is busy is asked again, and the longest wait in seconds. */
const ATTEMPTS = 6;
const LONGEST_WAIT = 30;
/** What a body has beside its pictures. */
const ENVELOPE = 4096;
/** A model's configuration may have so many bytes. */
const CONFIG = 1 << 20;

/** @returns the calls of a model, answered by the server */
export function serverHandlers(options: ServerOptions): Handlers {
  const server = new Server(options);
  const absent = async (): Promise<never> => {
    throw new ErnieVilError("device", "the server gives vectors alone; this needs a module on this device");
  };
  return {
    load: (params, context) => server.load(params, context),
    embedText: (params, context) => server.embedText(params.texts, context),
    embedImages: (params, context) => server.embedImages(params, context),
    unload: async () => undefined,
    loseDevice: async () => undefined,
    tokenize: absent,
    preprocess: absent,
    recall: absent,
    openIndex: absent,
    addToIndex: absent,
    removeFromIndex: absent,
    getFromIndex: absent,
    indexIds: absent,
    searchIndex: absent,
    exportIndex: absent,
    importIndex: absent,
    flushIndex: absent,
    closeIndex: absent,
  };
}

class Server {
  readonly #url: string;
  readonly #headers: Record<string, string>;
  #info: Known | undefined;

  constructor({ url, apiKey }: ServerOptions) {
    const address = absoluteUrl(url);
    this.#url = address.endsWith("/") ? address : `${address}/`;
    this.#headers = apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` };
  }

  async load({ folder }: LoadParams, { signal }: Context<"load">): Promise<LoadResult> {
    const info = await this.#ask<ServerInfo>("info", undefined, CONFIG, signal);
    const { version, limits, fingerprint } = info;
    const dimensions = info.dimensions?.image;
    if (typeof fingerprint !== "string" || typeof dimensions !== "number" || !limits?.items || !limits.body_bytes) {
      throw new ErnieVilError("http", `${this.#url}info is no answer of 'ernie-vil serve'`);
    }
    const expected = await fingerprintOf(folder, signal);
    if (expected !== undefined && expected !== fingerprint) {
      throw new ErnieVilError("device", `the server at ${this.#url} has another model (fingerprint ${fingerprint}, expected ${expected})`);
    }
    this.#info = { fingerprint, dimensions, items: limits.items, bodyBytes: limits.body_bytes };
    const model: WasmInfo = {
      name: info.name,
      note: info.note,
      structure: info.structure,
      fingerprint,
      dimensions,
      maxTextTokens: info.max_text_tokens,
      logitScale: info.logit_scale,
      templates: info.templates,
      imageSize: info.image_size,
      vocabSize: info.vocab_size,
      towers: ["image", "text"],
      parameters: info.parameters,
      dtype: "f32",
    };
    return {
      model,
      version,
      kind: "server",
      threads: 0,
      adapter: undefined,
      cache: { kind: "none", fromCache: false, reason: "the server has the files" },
    };
  }

  async embedText(texts: string[], { signal, progress }: Context<"embedText">): Promise<Float32Array> {
    const { dimensions, items } = this.#known();
    const data = new Float32Array(texts.length * dimensions);
    for (let at = 0; at < texts.length; at += items) {
      const part = texts.slice(at, at + items);
      const rows = await this.#embed(part.map((text) => ({ text })), signal);
      data.set(rows, at * dimensions);
      progress(at + part.length);
    }
    return data;
  }

  async embedImages({ images, skip }: Calls["embedImages"]["params"], { signal }: Context<"embedImages">): Promise<ImageRows> {
    const result: ImageRows = { data: new Float32Array(0), indices: [], failures: [] };
    const rows: Float32Array[] = [];
    const fail = (index: number, error: ErnieVilError): void => {
      if (!skip) throw error;
      result.failures.push({ index, error: toWire(error) });
    };
    // As many at a time as a body may hold.
    let batch: { index: number; image: string }[] = [];
    let bytes = ENVELOPE;
    const send = async (): Promise<void> => {
      while (batch.length > 0) {
        try {
          rows.push(await this.#embed(batch.map(({ image }) => ({ image })), signal));
          result.indices.push(...batch.map(({ index }) => index));
          break;
        } catch (thrown) {
          // The server names the picture that it could not decode; the others go again.
          const error = asError(thrown);
          const at = Number(/input\[(\d+)\]/.exec(error.message)?.[1] ?? NaN);
          const wrong = batch[at];
          if (error.code !== "image" || !wrong) throw error;
          fail(wrong.index, new ErnieVilError("image", `${(images[wrong.index] as ImagePayload).name}: ${error.message}`, { cause: error }));
          batch.splice(at, 1);
        }
      }
      batch = [];
      bytes = ENVELOPE;
    };
    const { dimensions, items, bodyBytes } = this.#known();
    for (const [index, payload] of images.entries()) {
      throwIfAborted(signal);
      try {
        const image = base64(await readEncoded(payload, signal));
        if (image.length + ENVELOPE > bodyBytes) {
          throw new ErnieVilError("image", `${payload.name} is larger than the ${bodyBytes} bytes that the server takes`);
        }
        if (bytes + image.length > bodyBytes || batch.length === items) await send();
        batch.push({ index, image });
        bytes += image.length + 32;
      } catch (thrown) {
        const error = asError(thrown);
        if (!["image", "http", "network"].includes(error.code)) throw error;
        fail(index, error);
      }
    }
    await send();
    result.data = new Float32Array(result.indices.length * dimensions);
    let at = 0;
    for (const part of rows) {
      result.data.set(part, at);
      at += part.length;
    }
    return result;
  }

  async #embed(input: ({ text: string } | { image: string })[], signal: AbortSignal): Promise<Float32Array> {
    const { dimensions, fingerprint } = this.#known();
    const limit = input.length * dimensions * NUMBER + AROUND;
    const body = JSON.stringify({ model: fingerprint, input, encoding_format: "base64" });
    const { data } = await this.#ask<{ data: { index: number; embedding: string }[] }>("v1/embeddings", body, limit, signal);
    const rows = new Float32Array(input.length * dimensions);
    if (data?.length !== input.length) throw new ErnieVilError("http", `${this.#url}: ${data?.length} vectors, expected ${input.length}`);
    for (const { index, embedding } of data) {
      const bytes = fromBase64(embedding);
      if (bytes.length !== dimensions * 4 || !(index < input.length)) throw new ErnieVilError("http", `${this.#url}: a vector of ${bytes.length} bytes`);
      const view = new DataView(bytes.buffer);
      for (let i = 0; i < dimensions; i++) rows[index * dimensions + i] = view.getFloat32(4 * i, true);
    }
    return rows;
  }

  #known(): Known {
    if (!this.#info) throw new ErnieVilError("internal", "the server was not asked for its model yet");
    return this.#info;
  }

  /** Asks the server, again after a while where it is busy. */
  async #ask<T>(path: string, body: string | undefined, limit: number, signal: AbortSignal): Promise<T> {
    const url = this.#url + path;
    const headers = { ...this.#headers, ...(body !== undefined && { "content-type": "application/json" }) };
    for (let attempt = 1; ; attempt++) {
      throwIfAborted(signal);
      let response: Response;
      let text: string;
      try {
        response = await fetch(url, { method: body === undefined ? "GET" : "POST", headers, signal, ...(body !== undefined && { body }) });
        text = new TextDecoder().decode(await readBounded(response, limit, url));
      } catch (thrown) {
        throwIfAborted(signal);
        throw asError(thrown, "network", url);
      }
      if (response.ok) {
        try {
          return JSON.parse(text) as T;
        } catch (thrown) {
          throw new ErnieVilError("http", `${url}: the answer is no JSON`, { cause: thrown });
        }
      }
      if ((response.status !== 429 && response.status !== 503) || attempt === ATTEMPTS) throw refusal(url, response.status, text);
      const wait = Number(response.headers.get("retry-after")) || 2 ** (attempt - 1);
      await sleep(Math.min(wait, LONGEST_WAIT) * 1000, signal);
    }
  }
}

/** What the server says is wrong. */
function refusal(url: string, status: number, text: string): ErnieVilError {
  let error: { message?: string; param?: string | null; code?: string } = {};
  try {
    error = (JSON.parse(text) as { error?: typeof error }).error ?? {};
  } catch {
    // A proxy answers in words of its own.
  }
  const message = [error.param, error.message ?? `the server answered ${status}`].filter(Boolean).join(": ");
  if (status === 401 || status === 403) return new ErnieVilError("http", `${url}: ${message}; is the apiKey right?`);
  if (error.code === "invalid_image") return new ErnieVilError("image", message);
  return new ErnieVilError(status >= 500 || status === 429 ? "network" : "http", `${url}: ${message}`);
}

/** @returns the fingerprint in a folder's `config.json`, where that can be read */
async function fingerprintOf(folder: ModelFolder, signal: AbortSignal): Promise<string | undefined> {
  try {
    const file = "url" in folder ? await fetchBytes(`${folder.url}config.json`, CONFIG, { ...folder.request }, signal) : await folder.files["config.json"]?.arrayBuffer();
    const config = file && (JSON.parse(new TextDecoder().decode(bytesOf(file))) as { fingerprint?: unknown });
    return typeof config?.fingerprint === "string" ? config.fingerprint : undefined;
  } catch {
    throwIfAborted(signal);
    return undefined;
  }
}
