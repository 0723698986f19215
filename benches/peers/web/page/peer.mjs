// The other side: ONNX Runtime with the same towers as graphs.
import { TOKENS, ids, pixels } from "./inputs.mjs";

/** Times are those of `session.run` alone, on ready tensors. */
export class Peer {
  #ort;
  #read;
  #provider;
  #imageSize;
  #sessions = new Map();

  /**
   * @param ort the module of ONNX Runtime
   * @param read gives the bytes of a file by its name
   * @param options `device`, "cpu" or "webgpu"; `threads`; `imageSize` in pixels
   */
  constructor(ort, read, { device, threads, imageSize }) {
    ort.env.wasm.numThreads = threads;
    this.#ort = ort;
    this.#read = read;
    this.#provider = device === "webgpu" ? "webgpu" : "wasm";
    this.#imageSize = imageSize;
  }

  /** Readies a tower's graph in one of its forms. */
  async open(tower, form) {
    const [graph, data] = await Promise.all([this.#read(`${tower}-${form}.onnx`), this.#read(`${tower}.bin`)]);
    const session = await this.#ort.InferenceSession.create(graph, {
      executionProviders: [this.#provider],
      graphOptimizationLevel: "all",
      logSeverityLevel: 3,
      externalData: [{ path: `${tower}.bin`, data }],
    });
    this.#sessions.set(`${tower}-${form}`, session);
  }

  /** Gives a graph's memory back. */
  async close(tower, form) {
    await this.#sessions.get(`${tower}-${form}`).release();
    this.#sessions.delete(`${tower}-${form}`);
  }

  /** Embeds `count` inputs: milliseconds and vectors, which are not of unit length. */
  async run(tower, count, form) {
    const session = this.#sessions.get(`${tower}-${form}`);
    const size = this.#imageSize;
    const { Tensor } = this.#ort;
    const input =
      tower === "image"
        ? new Tensor("float32", pixels(count, size), [count, 3, size, size])
        : new Tensor("int64", ids(count), [count, TOKENS]);
    const start = performance.now();
    const outputs = await session.run({ [session.inputNames[0]]: input });
    return { ms: performance.now() - start, vectors: Array.from(outputs[session.outputNames[0]].data) };
  }
}
