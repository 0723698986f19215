// The pictures on the table: the bundled ones, and the visitor's, whose thumbnails outlive the page in IndexedDB.

/**
 * Where a picture stands: without a vector (`waiting`), with one (`ready`), or without one for good (`failed`).
 */
export type PictureState = "waiting" | "ready" | "failed";

export interface Picture {
  readonly id: string;
  /** A caption of a bundled picture, a file's name of the visitor's. */
  readonly name: string;
  /** Whether it is the visitor's. */
  readonly own: boolean;
  /** Where its thumbnail is; empty where there is none. */
  readonly thumbnail: string;
  /** What is embedded: the file as long as the page has it, then its thumbnail; the address of a bundled picture. */
  readonly source: Blob | string;
  /** Whether it outlives the page. */
  kept: boolean;
  /** The number printed on its mount. */
  number: number;
  state: PictureState;
}

/** What is kept of a visitor's picture. */
interface Kept {
  id: string;
  name: string;
  /** When it came, and which it was then. */
  added: number;
  number: number;
  thumbnail: Blob | undefined;
  /** The file itself, where the browser could make no thumbnail of it. */
  file: File | undefined;
}

const DATABASE = "light-table";
const TABLE = "pictures";
/** Pictures that are removed at a time, so that the page is free in between. */
const SLICE = 50;

const done = <T>(request: IDBRequest<T>): Promise<T> =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("IndexedDB failed"));
  });

const address = (thumbnail: Blob | undefined): string => (thumbnail ? URL.createObjectURL(thumbnail) : "");

export class Pictures {
  readonly #all = new Map<string, Picture>();
  #database: Promise<IDBDatabase> | undefined;
  /** What is yet to be kept. */
  readonly #fresh = new Map<string, Kept>();
  #numbers = 0;

  get size(): number {
    return this.#all.size;
  }

  get own(): number {
    let count = 0;
    for (const { own } of this.#all.values()) if (own) count++;
    return count;
  }

  get(id: string): Picture | undefined {
    return this.#all.get(id);
  }

  /** The visitor's pictures first, each group in the order in which it came. */
  list(which: "all" | "own" | "scenes" = "all"): Picture[] {
    const all = [...this.#all.values()];
    const own = which === "scenes" ? [] : all.filter((picture) => picture.own);
    const scenes = which === "own" ? [] : all.filter((picture) => !picture.own);
    return [...own, ...scenes];
  }

  /** Puts the bundled pictures on the table. */
  async loadScenes(): Promise<void> {
    const address = new URL("gallery/gallery.json", document.baseURI);
    const response = await fetch(address);
    if (!response.ok) throw new Error(`${address.pathname}: ${response.status} ${response.statusText}`);
    const scenes = (await response.json()) as { id: string; file: string; caption: string }[];
    for (const { id, file, caption } of scenes) {
      const url = new URL(file, address).href;
      this.#put({ id, name: caption, own: false, thumbnail: url, source: url, kept: true });
    }
  }

  /** Puts the visitor's pictures of earlier visits on the table. */
  async loadOwn(): Promise<void> {
    const database = await this.#open();
    const kept = (await done(database.transaction(TABLE).objectStore(TABLE).getAll())) as Kept[];
    kept.sort((a, b) => a.added - b.added || a.number - b.number);
    for (const { id, name, thumbnail, file } of kept) {
      const source = thumbnail ?? file;
      if (source) this.#put({ id, name, own: true, thumbnail: address(thumbnail), source, kept: true });
    }
  }

  /** Puts a new picture of the visitor's on the table; it is kept from {@link keep} on. */
  add(id: string, file: File, thumbnail: Blob | undefined): Picture {
    const { name } = file;
    const picture = this.#put({ id, name, own: true, thumbnail: address(thumbnail), source: file, kept: false });
    const { number } = picture;
    this.#fresh.set(id, { id, name, added: Date.now(), number, thumbnail, file: thumbnail ? undefined : file });
    return picture;
  }

  #put(picture: Omit<Picture, "number" | "state">): Picture {
    const whole: Picture = { ...picture, number: ++this.#numbers, state: "waiting" };
    this.#all.set(picture.id, whole);
    return whole;
  }

  /** Keeps pictures of the visitor's for later visits. */
  async keep(pictures: readonly Picture[]): Promise<void> {
    const fresh = pictures.flatMap(({ id }) => this.#fresh.get(id) ?? []);
    if (fresh.length === 0) return;
    await this.#write((table) => {
      for (const picture of fresh) table.put(picture);
    });
    for (const { id } of fresh) {
      this.#fresh.delete(id);
      const picture = this.#all.get(id);
      if (picture) picture.kept = true;
    }
  }

  /** Takes pictures from the table, for good. */
  async remove(ids: readonly string[]): Promise<void> {
    const gone = ids.map((id) => this.#all.get(id)?.thumbnail ?? "");
    for (const id of ids) {
      this.#all.delete(id);
      this.#fresh.delete(id);
    }
    for (let at = 0; at < ids.length; at += SLICE) {
      await this.#write((table) => {
        for (const id of ids.slice(at, at + SLICE)) table.delete(id);
      });
      for (const url of gone.slice(at, at + SLICE)) if (url.startsWith("blob:")) URL.revokeObjectURL(url);
    }
  }

  #open(): Promise<IDBDatabase> {
    this.#database ??= (() => {
      const request = indexedDB.open(DATABASE, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
      return done(request);
    })();
    return this.#database;
  }

  async #write(work: (table: IDBObjectStore) => void): Promise<void> {
    const transaction = (await this.#open()).transaction(TABLE, "readwrite");
    const finished = new Promise<void>((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error ?? new Error("IndexedDB gave up"));
    });
    work(transaction.objectStore(TABLE));
    await finished;
  }
}
