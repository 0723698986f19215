import { aborted, throwIfAborted } from "./errors.js";

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

/** Waits; an abort ends the wait with its error. */
export function sleep(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    throwIfAborted(signal);
    const stop = (): void => {
      clearTimeout(timer);
      reject(aborted(signal as AbortSignal));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** @returns `work`, or the error `aborted` as soon as `signal` fires; `work` itself goes on */
export function orAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work;
  return new Promise((resolve, reject) => {
    const stop = (): void => reject(aborted(signal));
    if (signal.aborted) stop();
    signal.addEventListener("abort", stop, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
}

/** Runs one piece of work after the other. */
export class Mutex {
  #last: Promise<unknown> = Promise.resolve();

  run<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(work, work);
    this.#last = result.catch(() => undefined);
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
