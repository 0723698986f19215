import { aborted } from "./errors.js";

/** Lets other tasks of this thread run: messages that came in, an abort among them. */
export function breathe(): Promise<void> {
  return new Promise((resolve) => {
    // A timer would wait 4 ms and more; a channel that stayed open would keep Node alive.
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(0);
  });
}

/**
 * Calls `work` when `signal` fires, at once where it has fired. A signal may live as long as a model, and what it holds lives as
 * long: whoever registers here calls the function that this returns in the end, and nobody waits by `Promise.race` for a
 * promise that may stay open, since such a promise keeps every result that ran against it.
 */
export function onAbort(signal: AbortSignal | undefined, work: () => void): () => void {
  if (signal?.aborted) work();
  else signal?.addEventListener("abort", work, { once: true });
  return () => signal?.removeEventListener("abort", work);
}

/** Aborts `controller` when `signal` fires, until the function that this returns is called. */
export function follow(controller: AbortController, signal: AbortSignal | undefined): () => void {
  return onAbort(signal, () => controller.abort(signal?.reason));
}

/** Waits; an abort ends the wait with its error. */
export function sleep(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const wait = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, milliseconds);
  });
  return orAborted(wait, signal).finally(() => clearTimeout(timer));
}

/** @returns `work`, or the error `aborted` as soon as `signal` fires; `work` itself goes on */
export function orAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work;
  return new Promise((resolve, reject) => {
    const forget = onAbort(signal, () => reject(aborted(signal)));
    work.then(resolve, reject).finally(forget);
  });
}

/** Runs one piece of work after the other. */
export class Mutex {
  #last: Promise<unknown> = Promise.resolve();

  run<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(work, work);
    // Without the result, which would stay until the next piece of work.
    this.#last = result.then(
      () => undefined,
      () => undefined,
    );
    return result;
  }
}

/**
 * Starts work on items ahead of their use, and uses the results in order.
 *
 * @param limit the most items that are under way or waiting for their use at a time
 */
export async function inOrder<Item, Result>(
  items: readonly Item[],
  limit: number,
  begin: (item: Item, position: number) => Promise<Result>,
  use: (result: Result, item: Item, position: number) => Promise<void> | void,
): Promise<void> {
  const ahead: Promise<Result>[] = [];
  let begun = 0;
  for (const [position, item] of items.entries()) {
    while (begun < items.length && begun - position < limit) {
      const result = begin(items[begun] as Item, begun);
      // Where an earlier item fails, nobody waits for this one any more.
      result.catch(() => undefined);
      ahead.push(result);
      begun += 1;
    }
    await use(await (ahead.shift() as Promise<Result>), item, position);
  }
}
