/**
 * What went wrong, for a program to decide on.
 *
 * | code | meaning |
 * | --- | --- |
 * | `aborted` | the caller's `AbortSignal` fired; the error's `name` is `AbortError` and its `cause` the signal's reason |
 * | `argument` | a call was given something that it does not take |
 * | `config` | the model's `config.json` or `vocab.txt` is not as it should be |
 * | `crashed` | the module ran out of memory or into a bug; the model is loaded again for the next call |
 * | `device` | the device that was asked for is not there, or failed its check |
 * | `device-lost` | the GPU device was lost, and lost again in the repeated call |
 * | `disposed` | the model or index was disposed of or closed |
 * | `http` | a server answered with an error status |
 * | `image` | a file is no image that can be decoded |
 * | `index` | an index does not fit the model or the vectors, or its file is damaged |
 * | `integrity` | a file has another SHA-256 or size than the manifest says, also when downloaded again |
 * | `internal` | a bug in this package |
 * | `locked` | the index is open elsewhere, in another tab for example |
 * | `manifest` | the model's `manifest.json` is missing or not as it should be, or names no such tower |
 * | `network` | a server could not be reached, or kept breaking off |
 * | `quota` | the storage is full |
 * | `read-only` | a change to an index that was opened with `readOnly` |
 * | `storage` | the storage could not be read or written |
 * | `text` | a caption cannot be embedded |
 * | `vectors` | vectors of a wrong length, not finite, or of another model |
 * | `weights` | the model's weights are not as they should be |
 * | `worker` | the worker could not be started |
 */
export type ErrorCode =
  | "aborted"
  | "argument"
  | "config"
  | "crashed"
  | "device"
  | "device-lost"
  | "disposed"
  | "http"
  | "image"
  | "index"
  | "integrity"
  | "internal"
  | "locked"
  | "manifest"
  | "network"
  | "quota"
  | "read-only"
  | "storage"
  | "text"
  | "vectors"
  | "weights"
  | "worker";

/** The codes of errors that the WebAssembly modules throw themselves, and what they are here. */
const MODULE_CODES: Readonly<Record<string, ErrorCode>> = {
  config: "config",
  device: "device",
  image: "image",
  index: "index",
  scoring: "vectors",
  text: "text",
  vectors: "vectors",
  vocabulary: "config",
  weights: "weights",
};

/**
 * Every failure of this package.
 *
 * @example
 * ```ts
 * try {
 *   await model.embedImages(files);
 * } catch (error) {
 *   if (error instanceof ErnieVilError && error.code === "image") alert(error.message);
 *   else throw error;
 * }
 * ```
 */
export class ErnieVilError extends Error {
  /** What went wrong, for a program to decide on. */
  readonly code: ErrorCode;
  /** @internal Of `crashed`: the position in the call of the image that stopped the module. */
  declare image?: number | undefined;
  /** @internal Of `crashed`: whether another call stopped the module, so that this one can be repeated. */
  declare bystander?: boolean | undefined;

  /**
   * @param code what went wrong
   * @param message a sentence that says what, where, and what was expected
   * @param options `cause`: the failure underneath
   */
  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.name = code === "aborted" ? "AbortError" : "ErnieVilError";
  }
}

/** An error in the form in which it crosses from a worker to the page. */
export interface WireError {
  code: ErrorCode;
  message: string;
  cause: string | undefined;
  image: number | undefined;
  bystander: boolean | undefined;
}

/** @returns the form of `error` that can be posted */
export function toWire(error: unknown): WireError {
  const { code, message, cause, image, bystander } = asError(error);
  return { code, message, cause: cause === undefined ? undefined : describe(cause), image, bystander };
}

/** @returns the error that was posted */
export function fromWire({ code, message, cause, image, bystander }: WireError): ErnieVilError {
  return Object.assign(new ErnieVilError(code, message, cause === undefined ? undefined : { cause }), { image, bystander });
}

/** @returns the error of a call whose module was stopped, by `error`, in another call */
export function stoppedElsewhere(error: ErnieVilError): ErnieVilError {
  const message = error.bystander ? error.message : `another call stopped the module (${error.message})`;
  return Object.assign(new ErnieVilError("crashed", message, { cause: error }), { bystander: true });
}

/** @returns the error of a call whose `signal` fired */
export function aborted(signal: AbortSignal): ErnieVilError {
  const reason: unknown = signal.reason;
  return reason instanceof ErnieVilError ? reason : new ErnieVilError("aborted", "the call was aborted", { cause: reason });
}

/** Throws the error `aborted` where `signal` has fired. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw aborted(signal);
}

/** @returns what was thrown, in words */
export function describe(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message || thrown.name : String(thrown);
}

/** @returns whatever was thrown as an `ErnieVilError`; `code` is that of errors which carry none themselves */
export function asError(thrown: unknown, code: ErrorCode = "internal", context?: string): ErnieVilError {
  if (thrown instanceof ErnieVilError) return thrown;
  const message = context === undefined ? describe(thrown) : `${context}: ${describe(thrown)}`;
  if (thrown instanceof WebAssembly.RuntimeError || isOverflow(thrown)) {
    return new ErnieVilError("crashed", `the WebAssembly module stopped (${describe(thrown)})`, { cause: thrown });
  }
  if (thrown instanceof Error || (typeof DOMException !== "undefined" && thrown instanceof DOMException)) {
    if (thrown.name === "QuotaExceededError") return new ErnieVilError("quota", message, { cause: thrown });
    const own: unknown = (thrown as { code?: unknown }).code;
    const known = typeof own === "string" && Object.hasOwn(MODULE_CODES, own) ? MODULE_CODES[own] : undefined;
    if (known) return new ErnieVilError(known, message, { cause: thrown });
    if (own === "ENOSPC" || own === "EDQUOT") return new ErnieVilError("quota", message, { cause: thrown });
  }
  return new ErnieVilError(code, message, { cause: thrown });
}

/** @returns whether the stack was too small: the one failure of a module that browsers do not report as a `RuntimeError` */
function isOverflow(thrown: unknown): boolean {
  return thrown instanceof Error && /^(RangeError|InternalError)$/.test(thrown.name) && /call stack|recursion/i.test(thrown.message);
}
