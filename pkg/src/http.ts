// Downloads that survive a break.
import { concat, type Bytes } from "./bytes.js";
import { sleep } from "./concurrency.js";
import { ErnieVilError, aborted, asError, throwIfAborted } from "./errors.js";
import { readFileUrl } from "./node.js";

/** What is sent along with each request for a model's files. */
export interface RequestOptions {
  /** Headers, `Authorization` for example. */
  headers?: Readonly<Record<string, string>>;
  /** Whether cookies go along; as in `fetch`. */
  credentials?: RequestCredentials;
}

/** How often a download is taken up again. */
export interface RetryOptions {
  /** Failures in a row, with less than `PROGRESS` bytes between them, after which it is given up. */
  attempts: number;
  /** Milliseconds before the first repetition; each further wait is twice as long. */
  delay: number;
}

/** The usual retries: five, over about eight seconds. */
export const RETRY: RetryOptions = { attempts: 5, delay: 250 };

/** So many bytes after a break count as a connection that works. */
const PROGRESS = 256 * 1024;
const LONGEST_WAIT = 10_000;

/** What a download needs to know. */
export interface Download {
  url: string;
  /** The size that is expected. */
  size: number;
  request: RequestOptions;
  cache: RequestCache;
  signal: AbortSignal | undefined;
  retry: RetryOptions;
  /** Is told how many bytes there are now; fewer than before where the server began again. */
  onBytes?: (bytes: number) => void;
}

/**
 * Downloads a file of known size; after a break it goes on where it stopped.
 *
 * @throws ErnieVilError `http`, `network`, `integrity` where the size is another, or `aborted`
 */
export async function download({ url, size, request, cache, signal, retry, onBytes }: Download): Promise<Bytes> {
  if (url.startsWith("file:")) return exact(await local(url, signal), size, url);
  const bytes = new Uint8Array(size);
  let have = 0;
  let mark = 0;
  let failures = 0;
  let resumable = true;
  for (;;) {
    throwIfAborted(signal);
    if (!resumable) have = 0;
    let wait = 0;
    let failure: ErnieVilError;
    try {
      const headers: Record<string, string> = { ...request.headers };
      if (have > 0) headers["Range"] = `bytes=${have}-`;
      const response = await send(url, { ...request, headers, cache }, signal);
      if (response.status === 206 && have > 0) {
        const start = /^bytes (\d+)-/.exec(response.headers.get("content-range") ?? "")?.[1];
        if (start === undefined || Number(start) === have) await fill(response);
        else {
          await response.body?.cancel();
          have = 0;
        }
      } else if (response.ok) {
        have = 0;
        // The ranges of a compressed answer count its compressed bytes.
        resumable = response.headers.get("content-encoding") === null;
        await fill(response);
      } else {
        await response.body?.cancel();
        if (response.status === 416) have = 0;
        else if (!temporary(response.status)) throw new ErnieVilError("http", `${url}: the server answered ${status(response)}`);
        wait = 1000 * Number(response.headers.get("retry-after")) || 0;
        throw new ErnieVilError("network", `${url}: the server answered ${status(response)}`);
      }
      if (have === size) return bytes;
      throw new ErnieVilError("network", `${url}: the connection broke off after ${have} of ${size} bytes`);
    } catch (thrown) {
      if (signal?.aborted) throw aborted(signal);
      failure = asError(thrown, "network", url);
      if (failure.code !== "network") throw failure;
    }
    failures = have - mark >= PROGRESS ? 1 : failures + 1;
    mark = have;
    if (failures > retry.attempts) throw failure;
    const pause = retry.delay * 2 ** (failures - 1) * (0.75 + Math.random() / 2);
    await sleep(Math.min(Math.max(pause, wait), LONGEST_WAIT), signal);
  }

  async function fill(response: Response): Promise<void> {
    onBytes?.(have);
    if (!response.body) return;
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      if (have + value.length > size) {
        await reader.cancel();
        throw new ErnieVilError("integrity", `${url} has more than the ${size} bytes that the manifest says`);
      }
      bytes.set(value, have);
      have += value.length;
      onBytes?.(have);
    }
  }
}

/**
 * Fetches a file of unknown size, at most `limit` bytes.
 *
 * @throws ErnieVilError `http`, `network` or `aborted`
 */
export async function fetchBytes(url: string, limit: number, init: RequestInit, signal: AbortSignal | undefined): Promise<Bytes> {
  if (url.startsWith("file:")) return local(url, signal);
  try {
    const response = await send(url, init, signal);
    if (!response.ok) {
      await response.body?.cancel();
      const code = temporary(response.status) ? "network" : "http";
      throw new ErnieVilError(code, `${url}: the server answered ${status(response)}`);
    }
    return await readBounded(response, limit, url);
  } catch (thrown) {
    if (signal?.aborted) throw aborted(signal);
    throw asError(thrown, "network", url);
  }
}

/**
 * @returns an answer's bytes
 * @throws ErnieVilError `http` where there are more than `limit`
 */
export async function readBounded(response: Response, limit: number, url: string): Promise<Bytes> {
  const pieces: Uint8Array[] = [];
  let length = 0;
  const reader = response.body?.getReader();
  for (;;) {
    const { done, value } = (await reader?.read()) ?? { done: true };
    if (done) return concat(pieces);
    length += value.length;
    if (length > limit) {
      await reader?.cancel();
      throw new ErnieVilError("http", `${url} has more than ${limit} bytes`);
    }
    pieces.push(value);
  }
}

function send(url: string, init: RequestInit, signal: AbortSignal | undefined): Promise<Response> {
  return fetch(url, signal ? { ...init, signal } : init);
}

function status({ status, statusText }: Response): string {
  return statusText ? `${status} (${statusText})` : String(status);
}

function temporary(status: number): boolean {
  return status >= 500 || status === 408 || status === 416 || status === 425 || status === 429;
}

async function local(url: string, signal: AbortSignal | undefined): Promise<Bytes> {
  try {
    return await readFileUrl(url, signal);
  } catch (thrown) {
    if (signal?.aborted) throw aborted(signal);
    throw asError(thrown, "storage", url);
  }
}

/** @returns the bytes, if they are as many as expected */
export function exact(bytes: Bytes, size: number, name: string): Bytes {
  if (bytes.length === size) return bytes;
  throw new ErnieVilError("integrity", `${name} has ${bytes.length} bytes, the manifest says ${size}`);
}
