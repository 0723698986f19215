// The page's side of the thread that makes thumbnails.

export interface ThumbnailJob {
  job: number;
  file: Blob;
}

/** `name` is the file's content in 32 hexadecimal digits. */
export type Thumbnail = { job: number } & ({ name: string; blob: Blob | undefined } | { error: string });

interface Waiting {
  resolve(thumbnail: { name: string; blob: Blob | undefined }): void;
  reject(error: Error): void;
}

export class Thumbnails {
  #worker: Worker | undefined;
  readonly #waiting = new Map<number, Waiting>();
  #next = 0;

  /**
   * @returns the file's name by content and its thumbnail, if the browser can decode it
   * @throws where the file cannot be read
   */
  make(file: Blob): Promise<{ name: string; blob: Blob | undefined }> {
    const worker = (this.#worker ??= this.#start());
    return new Promise((resolve, reject) => {
      const job = this.#next++;
      this.#waiting.set(job, { resolve, reject });
      worker.postMessage({ job, file } satisfies ThumbnailJob);
    });
  }

  #start(): Worker {
    const worker = new Worker(new URL("./thumbnails.worker.ts", import.meta.url), { type: "module" });
    worker.onmessage = ({ data }: MessageEvent<Thumbnail>) => {
      const waiting = this.#waiting.get(data.job);
      this.#waiting.delete(data.job);
      if ("error" in data) waiting?.reject(new Error(data.error));
      else waiting?.resolve(data);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      // A picture too large for the memory ends the thread; the next file gets a new one.
      worker.terminate();
      this.#worker = undefined;
      const error = new Error(event.message || "the thread that makes thumbnails stopped");
      for (const { reject } of this.#waiting.values()) reject(error);
      this.#waiting.clear();
    };
    return worker;
  }
}
