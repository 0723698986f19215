// Folders of files: the origin's private file system in a browser, the disk in Node, Deno and Bun.
import type { Bytes } from "./bytes.js";
import { ErnieVilError } from "./errors.js";
import { type NodeModules, nodeModules } from "./node.js";

/** A folder that holds files only. */
export interface Folder {
  /** Whether a file appears under its name only when it is whole. */
  readonly atomic: boolean;
  /** @returns the names of its files */
  names(): Promise<string[]>;
  /** @returns a file's size in bytes, and nothing where there is no such file */
  size(name: string): Promise<number | undefined>;
  /** @returns a file's bytes, and nothing where there is no such file */
  read(name: string): Promise<Bytes | undefined>;
  /** Writes a whole file; when it returns, the file outlives the page. */
  write(name: string, bytes: Uint8Array): Promise<void>;
  /** Removes a file if it is there. */
  remove(name: string): Promise<void>;
  /** Opens a file for appending; makes it where it is not there, so that it outlives the page. */
  open(name: string): Promise<AppendFile>;
}

/** A file that grows at its end. */
export interface AppendFile {
  /** Its size in bytes. */
  readonly size: number;
  /** Appends; when it returns, the bytes outlive the page. */
  append(bytes: Uint8Array): Promise<void>;
  /** Cuts the end off. */
  truncate(size: number): Promise<void>;
  /** Lets go of the file. */
  close(): Promise<void>;
}

/** What workers have of a file in the private file system. TypeScript knows it in its worker library only. */
interface SyncAccessHandle {
  getSize(): number;
  write(bytes: Uint8Array, options: { at: number }): number;
  truncate(size: number): void;
  flush(): void;
  close(): void;
}

type FileHandle = FileSystemFileHandle & { createSyncAccessHandle?(): Promise<SyncAccessHandle> };

const missing = (thrown: unknown): boolean =>
  thrown instanceof Error || thrown instanceof DOMException
    ? thrown.name === "NotFoundError" || (thrown as { code?: unknown }).code === "ENOENT"
    : false;

/** Runs `attempt`; a file that is not there counts as `undefined`. */
async function ifThere<T>(attempt: () => Promise<T>): Promise<T | undefined> {
  try {
    return await attempt();
  } catch (thrown) {
    if (missing(thrown)) return undefined;
    throw thrown;
  }
}

/** @returns whether this thread can write files of the private file system in place; pages cannot, workers can */
export function canAppendInOpfs(): boolean {
  const handle = (globalThis as { FileSystemFileHandle?: { prototype: object } }).FileSystemFileHandle;
  return handle !== undefined && "createSyncAccessHandle" in handle.prototype;
}

/** @returns a folder of the origin's private file system, and nothing where there is no such file system */
export async function opfsFolder(path: readonly string[]): Promise<Folder | undefined> {
  const storage = typeof navigator === "undefined" ? undefined : (navigator as Partial<Navigator>).storage;
  if (typeof storage?.getDirectory !== "function") return undefined;
  let directory = await storage.getDirectory();
  for (const name of path) directory = await directory.getDirectoryHandle(name, { create: true });
  return new OpfsFolder(directory);
}

/** Removes a folder of the origin's private file system if it is there. */
export async function removeOpfsFolder(path: readonly string[]): Promise<void> {
  const storage = typeof navigator === "undefined" ? undefined : (navigator as Partial<Navigator>).storage;
  if (typeof storage?.getDirectory !== "function") return;
  await ifThere(async () => {
    let directory = await storage.getDirectory();
    for (const name of path.slice(0, -1)) directory = await directory.getDirectoryHandle(name);
    await directory.removeEntry(path.at(-1) ?? "", { recursive: true });
  });
}

/** A folder of the origin's private file system. */
export class OpfsFolder implements Folder {
  readonly atomic = false;

  constructor(private readonly directory: FileSystemDirectoryHandle) {}

  async names(): Promise<string[]> {
    const names: string[] = [];
    for await (const name of this.directory.keys()) names.push(name);
    return names;
  }

  async size(name: string): Promise<number | undefined> {
    return ifThere(async () => (await (await this.directory.getFileHandle(name)).getFile()).size);
  }

  async read(name: string): Promise<Bytes | undefined> {
    return ifThere(async () => {
      const file = await (await this.directory.getFileHandle(name)).getFile();
      return new Uint8Array(await file.arrayBuffer());
    });
  }

  async write(name: string, bytes: Uint8Array): Promise<void> {
    const handle: FileHandle = await this.directory.getFileHandle(name, { create: true });
    if (!handle.createSyncAccessHandle) {
      const stream = await handle.createWritable();
      await stream.write(bytes as Bytes);
      return stream.close();
    }
    const file = await SyncFile.open(handle);
    try {
      await file.truncate(0);
      await file.append(bytes);
    } finally {
      await file.close();
    }
  }

  async remove(name: string): Promise<void> {
    await ifThere(() => this.directory.removeEntry(name));
  }

  async open(name: string): Promise<AppendFile> {
    return SyncFile.open(await this.directory.getFileHandle(name, { create: true }));
  }
}

class SyncFile implements AppendFile {
  private constructor(
    private readonly access: SyncAccessHandle,
    public size: number,
  ) {}

  static async open(handle: FileHandle): Promise<SyncFile> {
    if (!handle.createSyncAccessHandle) throw new Error("files can be written in place in a worker only");
    const access = await handle.createSyncAccessHandle();
    return new SyncFile(access, await access.getSize());
  }

  async append(bytes: Uint8Array): Promise<void> {
    let written = 0;
    while (written < bytes.length) {
      const part = this.access.write(written ? bytes.subarray(written) : bytes, { at: this.size + written });
      if (part === 0) throw new DOMException("the storage took no more bytes", "QuotaExceededError");
      written += part;
    }
    // Older versions of Safari return promises here.
    await this.access.flush();
    this.size += written;
  }

  async truncate(size: number): Promise<void> {
    await this.access.truncate(size);
    await this.access.flush();
    this.size = size;
  }

  async close(): Promise<void> {
    await this.access.close();
  }
}

/** @internal @returns Node's modules, without which there is no disk */
export function disk(): NodeModules {
  const node = nodeModules();
  if (!node) throw new ErnieVilError("storage", "a folder on the disk can be used in Node, Deno and Bun only");
  return node;
}

/** What systems say that cannot synchronise a folder. Any other failure is reported to the caller. */
const CANNOT_SYNCHRONISE: readonly unknown[] = ["EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP"];

/** Makes what was made, renamed or removed in a folder outlive the machine's next crash. */
export async function synchronise(path: string): Promise<void> {
  // Windows opens no folders; it writes their entries with the files.
  if (process.platform === "win32") return;
  const folder = await disk().fs.open(path, "r");
  try {
    await folder.sync();
  } catch (thrown) {
    if (!CANNOT_SYNCHRONISE.includes((thrown as { code?: unknown }).code)) throw thrown;
  } finally {
    await folder.close();
  }
}

/** Makes a folder, and those that it lies in, where they are not there. */
export async function makeFolder(path: string): Promise<void> {
  const { fs, path: paths } = disk();
  const first = await fs.mkdir(path, { recursive: true });
  if (first === undefined) return;
  const above = paths.dirname(paths.resolve(first));
  for (let folder = paths.resolve(path); folder !== above; ) await synchronise((folder = paths.dirname(folder)));
}

/** @returns a folder on the disk, made where it is not there, unless it is only read; Node, Deno and Bun only */
export async function diskFolder(path: string, readOnly = false): Promise<Folder> {
  const { fs, path: paths } = disk();
  if (!readOnly) await makeFolder(path);
  const place = (name: string): string => paths.join(path, name);
  return {
    atomic: true,
    names: async () => (await ifThere(() => fs.readdir(path))) ?? [],
    size: (name) => ifThere(async () => (await fs.stat(place(name))).size),
    read: (name) => ifThere(async () => new Uint8Array(await fs.readFile(place(name)))),
    remove: (name) => fs.rm(place(name), { force: true }),
    async write(name, bytes) {
      const part = place(`${name}.part`);
      const file = await fs.open(part, "w");
      try {
        try {
          await file.writeFile(bytes);
          await file.sync();
        } finally {
          await file.close();
        }
        await fs.rename(part, place(name));
      } catch (thrown) {
        // Where the disk is full, it would take up what is left.
        await fs.rm(part, { force: true }).catch(() => undefined);
        throw thrown;
      }
      await synchronise(path);
    },
    async open(name) {
      const file = await fs.open(place(name), "a");
      let size: number;
      try {
        ({ size } = await file.stat());
        await synchronise(path);
      } catch (thrown) {
        await file.close();
        throw thrown;
      }
      return {
        get size() {
          return size;
        },
        async append(bytes) {
          await file.appendFile(bytes);
          await file.datasync();
          size += bytes.length;
        },
        async truncate(length) {
          await file.truncate(length);
          await file.datasync();
          size = length;
        },
        close: () => file.close(),
      };
    },
  };
}
