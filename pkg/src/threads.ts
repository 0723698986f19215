// Threads of WebAssembly: workers that run the same module on the same memory.
import { ErnieVilError, asError } from "./errors.js";
import type { Glue, ModuleSource } from "./module.js";

/** Milliseconds in which the workers of all threads have to be there. */
const PATIENCE = 30_000;

/** What a worker needs to become a thread. */
interface Start {
  module: WebAssembly.Module;
  memory: WebAssembly.Memory;
}

const pools = new WeakMap<Glue, Promise<void>>();

/**
 * Gives a module its threads; once, however often it is asked for. They end with the worker that asks.
 *
 * @throws {@link ErnieVilError} with the code `device` where they cannot be started
 */
export function startThreads({ glue, makeThread }: ModuleSource, threads: number): Promise<void> {
  let pool = pools.get(glue);
  if (!pool) {
    pool = makePool(glue, makeThread, threads).catch((thrown: unknown) => {
      throw new ErnieVilError("device", `the threads could not be started: ${asError(thrown).message}`, { cause: thrown });
    });
    pools.set(glue, pool);
  }
  return pool;
}

async function makePool(glue: Glue, makeThread: (() => Worker) | undefined, threads: number): Promise<void> {
  if (!makeThread || !glue.initThreads || !glue.threadModule || !glue.threadMemory) {
    throw new ErnieVilError("argument", "this module has none");
  }
  const start: Start = { module: glue.threadModule(), memory: glue.threadMemory() };
  const workers: Worker[] = [];
  try {
    await Promise.all(
      // This thread is one of them.
      Array.from({ length: threads - 1 }, () => {
        const worker = makeThread();
        workers.push(worker);
        return ready(worker, start);
      }),
    );
    glue.initThreads(threads);
  } catch (thrown) {
    for (const worker of workers) worker.terminate();
    throw thrown;
  }
  // A browser may drop a worker that nobody holds, with the thread in it.
  held.push(...workers);
}

const held: Worker[] = [];

/** @returns when the worker is about to become a thread; it says nothing after that */
function ready(worker: Worker, start: Start): Promise<void> {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`a worker was not there after ${PATIENCE / 1000} s`)), PATIENCE);
    worker.onmessage = ({ data }: MessageEvent<{ failure?: string }>) => {
      clearTimeout(late);
      if (data.failure === undefined) resolve();
      else reject(new Error(data.failure));
    };
    worker.onerror = (event) => {
      clearTimeout(late);
      reject(new Error(event.message || "the script of a worker could not be loaded"));
    };
    worker.postMessage(start);
  });
}

/** Waits for {@link startThreads} of another worker and makes this one a thread of it, for the rest of its life. */
export function runThread(glue: Glue): void {
  const scope = globalThis as unknown as { onmessage: (event: MessageEvent<Start>) => void; postMessage(message: { failure?: string }): void };
  scope.onmessage = ({ data }) => {
    try {
      glue.initSync?.(data);
    } catch (thrown) {
      scope.postMessage({ failure: asError(thrown).message });
      return;
    }
    scope.postMessage({});
    glue.runThread?.();
  };
}
