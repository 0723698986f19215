// A loaded model that outlives the loss of its device and the end of its module: either way it is loaded again.
import { ErnieVilError, asError, stoppedElsewhere, throwIfAborted } from "./errors.js";
import type { ModelFolder } from "./loader.js";
import { type Session, open } from "./open.js";
import type { LoadOptions, ModelInfo } from "./options.js";
import { plansWithoutGpu } from "./plans.js";
import type { Backend, CallOptions, Calls, Method } from "./protocol.js";

/** What a call is made with. */
export interface Params<M extends Method> {
  params: Calls[M]["params"];
  transfer?: Transferable[];
}

/** How often in a row a module may stop before no image is to blame. */
const MOST_STOPS = 20;

/** The thread with a model, whichever it is now. */
export class RunningModel {
  readonly #folder: ModelFolder;
  readonly #options: LoadOptions;
  #session: Promise<Session> | undefined;
  #live: Session | undefined;
  #last: Session;
  #disposed = false;
  #losses = 0;
  /** How often the module has stopped since a call was answered. */
  #stops = 0;

  constructor(folder: ModelFolder, options: LoadOptions, session: Session) {
    this.#folder = folder;
    this.#options = options;
    this.#session = Promise.resolve(session);
    this.#live = this.#last = session;
  }

  /** The thread that has or had the model last. */
  get last(): Session {
    return this.#last;
  }

  /** What is known of the model and of its device. */
  get info(): ModelInfo {
    return this.#last.info;
  }

  /** Whether the module has stopped so often in a row that no image is to blame. */
  get stopsTooOften(): boolean {
    return this.#stops > MOST_STOPS;
  }

  /** Makes a call, on a new device where the one it ran on was lost. */
  async call<M extends Method>(
    method: M,
    make: () => Params<M> | Promise<Params<M>>,
    options: Pick<CallOptions<M>, "signal" | "onProgress">,
  ): Promise<Calls[M]["result"]> {
    const { signal, onProgress } = options;
    const { device = "auto", onDeviceLost = "retry" } = this.#options;
    // After the first loss the same device has another chance; after the second one the CPU, where it may be taken.
    const chances = onDeviceLost === "reject" ? 0 : device === "auto" ? 2 : 1;
    for (let losses = 0; ; ) {
      throwIfAborted(signal);
      const session = await this.#running();
      const { params, transfer } = await make();
      try {
        const result = await session.backend.call(method, params, { signal, onProgress, transfer });
        this.#losses = this.#stops = 0;
        return result;
      } catch (thrown) {
        const error = asError(thrown);
        if (error.code !== "device-lost" && error.code !== "crashed") throw error;
        this.#restart(session, error);
        if (error.code === "crashed" ? !error.bystander || this.stopsTooOften : losses++ === chances) throw error;
      }
    }
  }

  /** Ends the thread. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    const error = disposed();
    void this.#session?.then(({ backend }) => end(backend, error)).catch(() => undefined);
    this.#session = undefined;
  }

  /** Loses the GPU device. */
  async loseDevice(): Promise<void> {
    await this.#live?.backend.call("loseDevice", {});
  }

  /** @returns the thread with the model, which is started again if it was lost */
  async #running(): Promise<Session> {
    if (this.#disposed) throw disposed();
    const session = (this.#session ??= this.#reload());
    try {
      return await session;
    } catch (thrown) {
      // The next call tries again.
      if (this.#session === session) this.#session = undefined;
      const error = asError(thrown);
      // What stops it while it is loaded is in no call.
      if (error.code === "crashed") error.bystander = true;
      throw error;
    }
  }

  /** Leaves a thread whose device was lost or whose module has stopped. */
  #restart(session: Session, error: ErnieVilError): void {
    if (this.#live !== session) return;
    this.#live = this.#session = undefined;
    if (error.code === "device-lost") this.#losses += 1;
    else this.#stops += 1;
    session.backend.terminate(error.code === "crashed" ? stoppedElsewhere(error) : error);
  }

  async #reload(): Promise<Session> {
    const { device = "auto", onDeviceChange } = this.#options;
    const { kind } = this.#last.info.device;
    const tooOften = this.#losses > 1 && device === "auto";
    const { onProgress: _, signal: __, ...options } = this.#options;
    const planned = tooOften ? plansWithoutGpu(options) : undefined;
    const session = await open(this.#folder, options, { ...options, device }, planned);
    if (session.info.fingerprint !== this.#last.info.fingerprint) {
      session.backend.terminate(disposed());
      throw new ErnieVilError("device", "the model that is there now is another one; load it anew, and compute its vectors anew");
    }
    if (this.#disposed) {
      session.backend.terminate(disposed());
      throw disposed();
    }
    this.#live = this.#last = session;
    if (kind === "webgpu") onDeviceChange?.(session.info);
    return session;
  }
}

const disposed = (): ErnieVilError => new ErnieVilError("disposed", "the model was disposed of");

/** Ends a thread; the caller's own one goes on, but for the model in it. */
function end(backend: Backend, error: ErnieVilError): void {
  if (!backend.worker) void backend.call("unload", {}).catch(() => undefined);
  backend.terminate(error);
}
