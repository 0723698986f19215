// Gives pictures their vectors, some at a time, and says how far it has come.
import { codeOf, isAborted } from "./errors.js";
import type { Picture, Pictures } from "./pictures.js";
import type { Session } from "./session.js";
import { Thumbnails } from "./thumbnails.js";

/** Milliseconds between two reports that a group of pictures is made to take. */
const REPORT = 400;
const LARGEST_GROUP = 16;
/** Files whose thumbnails are made at a time. */
const THUMBNAILS = 2;

/** What became of the pictures of a run. */
export interface Run {
  total: number;
  done: number;
  /** The visitor's pictures that have their vectors. */
  added: number;
  /** The visitor's pictures that were there already. */
  duplicates: number;
  failures: { name: string; error: unknown }[];
  /** Pictures that were embedded, and the milliseconds that it took. */
  embedded: number;
  time: number;
  cancelled: boolean;
  /** Why the visitor's pictures will not outlive the page. */
  unsaved: unknown;
}

export interface Listener {
  /** Pictures were put on the table, or changed their state, or went. */
  changed(): void;
  progress(run: Run): void;
  finished(run: Run): void;
  /** The run cannot go on. */
  failed(error: unknown): void;
}

export class Developer {
  readonly #pictures: Pictures;
  readonly #listener: Listener;
  readonly #thumbnails = new Thumbnails();
  #session: Session | undefined;
  #queue: Picture[] = [];
  /** Files that have not become pictures yet. */
  #files = 0;
  /** Pictures that are being embedded. */
  #group = 0;
  #run: Run | undefined;
  #abort = new AbortController();
  #developing: Promise<void> | undefined;
  /** Pictures that have been embedded, and the milliseconds that it took, since the model was loaded. */
  embedded = 0;
  time = 0;

  constructor(pictures: Pictures, listener: Listener) {
    this.#pictures = pictures;
    this.#listener = listener;
  }

  /** Goes on with another model, or with none; returns when every picture that was there has its vector. */
  async use(session: Session | undefined): Promise<void> {
    this.#session = undefined;
    await this.#developing;
    this.#queue = [];
    this.#session = session;
    this.embedded = this.time = 0;
    if (!session) return;
    this.#queue = this.#pictures.list().filter(({ state }) => state === "waiting");
    this.#start();
    await this.#developing;
  }

  /** Takes files in. */
  async add(files: readonly File[]): Promise<void> {
    // What an earlier run left behind comes along.
    if (!this.#run) this.#queue = this.#pictures.list().filter(({ state }) => state === "waiting");
    this.#files += files.length;
    const run = this.#begin();
    this.#report(run);
    this.#start();
    const rest = files.values();
    const take = async (): Promise<void> => {
      for (const file of rest) {
        if (!run.cancelled) await this.#take(file, run);
        this.#files -= 1;
        this.#report(run);
        this.#start();
      }
    };
    await Promise.all(Array.from({ length: THUMBNAILS }, take));
    this.#end();
  }

  async #take(file: File, run: Run): Promise<void> {
    try {
      const { name, blob } = await this.#thumbnails.make(file);
      if (run.cancelled) return;
      const id = `own-${name}`;
      if (this.#pictures.get(id)) {
        run.duplicates += 1;
        run.done += 1;
      } else {
        this.#queue.push(this.#pictures.add(id, file, blob));
        this.#listener.changed();
      }
    } catch (error) {
      run.failures.push({ name: file.name, error });
      run.done += 1;
    }
  }

  #begin(): Run {
    this.#run ??= { total: 0, done: 0, added: 0, duplicates: 0, failures: [], embedded: 0, time: 0, cancelled: false, unsaved: undefined };
    return this.#run;
  }

  #report(run: Run): void {
    run.total = run.done + this.#group + this.#queue.length + this.#files;
    this.#listener.progress(run);
  }

  /** Goes to work, if there is some. */
  #start(): void {
    if (!this.#session || this.#developing || this.#queue.length === 0) return;
    const run = this.#begin();
    if (run.cancelled) return;
    this.#developing = this.#develop(this.#session, run).finally(() => {
      this.#developing = undefined;
      this.#group = 0;
      this.#end();
    });
  }

  async #develop(session: Session, run: Run): Promise<void> {
    const { signal } = this.#abort;
    while (session === this.#session && !run.cancelled) {
      const each = this.embedded ? this.time / this.embedded : REPORT / 4;
      const group = this.#queue.splice(0, Math.max(1, Math.min(LARGEST_GROUP, Math.round(REPORT / each))));
      if (group.length === 0) return;
      this.#group = group.length;
      this.#report(run);
      try {
        const start = performance.now();
        const vectors = await session.model.embedImages(group.map(({ source }) => source), { onError: "skip", signal });
        const time = performance.now() - start;
        if (session !== this.#session || run.cancelled) return;
        const whole = vectors.indices.flatMap((position) => group[position] ?? []);
        for (const counts of [run, this]) {
          counts.embedded += whole.length;
          counts.time += time;
        }
        run.added += whole.filter(({ kept }) => !kept).length;
        if (whole.length) await this.#store(session, whole, vectors, run);
        for (const { index, error } of vectors.failures) {
          const picture = group[index];
          if (!picture) continue;
          picture.state = "failed";
          run.failures.push({ name: picture.name, error });
        }
        const lost = group.filter(({ kept, state }) => !kept && state === "failed");
        if (lost.length) await this.#pictures.remove(lost.map(({ id }) => id)).catch(() => undefined);
        run.done += group.length;
        this.#group = 0;
        this.#listener.changed();
        this.#report(run);
      } catch (error) {
        if (isAborted(error)) return;
        this.#listener.failed(error);
        run.cancelled = true;
        return;
      }
    }
  }

  async #store(session: Session, pictures: readonly Picture[], vectors: Parameters<Session["index"]["add"]>[1], run: Run): Promise<void> {
    await session.index.add(pictures.map(({ id }) => id), vectors).catch((error: unknown) => {
      // They are found all the same, they are only not stored.
      if (codeOf(error) !== "quota" && codeOf(error) !== "storage") throw error;
      run.unsaved = error;
    });
    for (const picture of pictures) picture.state = "ready";
    if (session.elsewhere) return;
    await this.#pictures.keep(pictures).catch((error: unknown) => void (run.unsaved = error));
  }

  /** Ends the run under way; what has its vector stays. */
  async cancel(): Promise<void> {
    const run = this.#run;
    if (!run) return;
    run.cancelled = true;
    this.#abort.abort();
    await this.#developing;
    this.#abort = new AbortController();
    this.#end();
  }

  #end(): void {
    const run = this.#run;
    if (!run || this.#files > 0 || this.#developing) return;
    // Without a model the pictures wait for one.
    if (this.#queue.length > 0 && !run.cancelled) return;
    this.#run = undefined;
    this.#queue = [];
    if (run.cancelled) {
      const fresh = this.#pictures.list("own").filter(({ state, kept }) => state === "waiting" && !kept);
      void this.#pictures.remove(fresh.map(({ id }) => id)).catch(() => undefined);
      this.#listener.changed();
    }
    this.#listener.finished(run);
  }
}
