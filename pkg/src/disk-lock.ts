// Keeps an index in a folder from being changed by two processes, or two threads of one, at a time. The operating system holds
// the lock and lets go of it when its process ends, however that ends. A lock can therefore never be stale, and what a lock
// file of an earlier process says counts for nothing.
import type { FileHandle } from "node:fs/promises";
import { ErnieVilError, asError } from "./errors.js";
import type { NodeModules } from "./node.js";

/** Lets go of a lock, or of a part of it. */
type Unlock = () => Promise<void> | void;

/** What lets go of a part of a lock, `false` where another has it, `undefined` where this runtime cannot have it. */
type Attempt = Unlock | false | undefined;

/** What Deno has and Node has not. */
interface Deno {
  open(path: string, options: { write: boolean }): Promise<{ tryLock?(exclusive: boolean): Promise<boolean>; close(): void }>;
}

/** Flags of `open` that lock the file as well: `O_EXLOCK` of BSD and macOS, and libuv's on Windows. */
const O_EXLOCK = 0x20;
const UV_FS_O_EXLOCK = 0x10000000;

const codeOf = (thrown: unknown): unknown => (thrown as { code?: unknown } | undefined)?.code;
const deno = (): Deno | undefined => (globalThis as { Deno?: Deno }).Deno;

/** How files are locked here. */
function means({ fs }: NodeModules): { flags: number; busy: readonly unknown[]; attempts: ((file: Opened) => Promise<Attempt> | Attempt)[] } {
  if (deno()) return { flags: 0, busy: [], attempts: [denoLock] };
  switch (process.platform) {
    case "win32":
      return { flags: UV_FS_O_EXLOCK, busy: ["EBUSY"], attempts: [] };
    case "darwin":
    case "freebsd":
    case "netbsd":
    case "openbsd":
      return { flags: O_EXLOCK | fs.constants.O_NONBLOCK, busy: ["EAGAIN", "EWOULDBLOCK"], attempts: [] };
    default:
      return { flags: 0, busy: [], attempts: [flock, socketLock] };
  }
}

/** A lock file that is open. */
interface Opened {
  node: NodeModules;
  path: string;
  handle: FileHandle;
}

/**
 * Locks by a file; its content, the number of the process, is for people.
 *
 * @returns what lets go of the lock and removes the file, or nothing where another has it
 * @throws ErnieVilError `storage` where this runtime can lock nothing
 */
export async function lockFile(node: NodeModules, path: string): Promise<(() => Promise<void>) | undefined> {
  const { fs } = node;
  const { flags, busy, attempts } = means(node);
  for (;;) {
    let handle: FileHandle;
    try {
      handle = await fs.open(path, fs.constants.O_RDWR | fs.constants.O_CREAT | flags, 0o644);
    } catch (thrown) {
      if (busy.includes(codeOf(thrown))) return undefined;
      throw asError(thrown, "storage");
    }
    const parts: Unlock[] = [];
    const unlock = async (): Promise<void> => {
      for (const part of parts) await part();
      await handle.close();
    };
    try {
      for (const attempt of attempts) {
        const part = await attempt({ node, path, handle });
        if (part) parts.push(part);
        // The others are not tried: each of two processes could have one of them, and neither the lock.
        if (part !== false) continue;
        await unlock();
        return undefined;
      }
      if (attempts.length && parts.length === 0) {
        throw new ErnieVilError("storage", `${path} cannot be locked: this runtime may neither run the program flock nor listen on a socket`);
      }
      // Who has a lock removes the file before letting go of it. What was opened before that is not the file of that name.
      const [own, there] = [await handle.stat({ bigint: true }), await fs.stat(path, { bigint: true }).catch(() => undefined)];
      if (there?.ino !== own.ino || there.dev !== own.dev) {
        await unlock();
        continue;
      }
      await handle.truncate(0);
      await handle.write(String(process.pid), 0).catch(() => undefined);
    } catch (thrown) {
      await unlock();
      throw asError(thrown, "storage");
    }
    return async () => {
      const windows = process.platform === "win32";
      // Windows removes no file that is open; after that, the next one to lock it may have it already.
      if (windows) await unlock();
      try {
        await fs.rm(path, { force: true });
      } catch (thrown) {
        if (!windows) throw asError(thrown, "storage");
      } finally {
        if (!windows) await unlock();
      }
    };
  }
}

/** Deno locks files itself, with no more permissions than an index needs. */
async function denoLock({ path }: Opened): Promise<Attempt> {
  const file = await deno()?.open(path, { write: true });
  const locked = await file?.tryLock?.(true);
  if (locked) return () => file?.close();
  file?.close();
  return locked;
}

/**
 * Node locks no files on Linux, but a program that inherits an open one does, and the lock stays with the file: two containers
 * that share a folder exclude each other too. Most distributions have the program, some images of containers do not.
 */
function flock({ node, handle }: Opened): Attempt {
  let status: number | null;
  try {
    ({ status } = node.child.spawnSync("flock", ["-n", "3"], { stdio: ["ignore", "ignore", "ignore", handle.fd] }));
  } catch {
    return undefined;
  }
  // It ends with 1 where another has the lock, and with more where the file system has none. Closing the file unlocks it.
  return status === 0 ? () => undefined : status === 1 ? false : undefined;
}

/** A socket under a name that is not a file's, of which the system (or container) has one. */
async function socketLock({ node, handle }: Opened): Promise<Attempt> {
  const { dev, ino } = await handle.stat({ bigint: true });
  return new Promise((resolve) => {
    const server = node.net.createServer((socket) => socket.destroy());
    server.on("error", (thrown) => resolve(codeOf(thrown) === "EADDRINUSE" ? false : undefined));
    server.listen(`\0ernie-vil index ${dev}:${ino}`, () => {
      // An index that is open keeps no process alive.
      server.unref();
      resolve(() => new Promise<void>((done) => void server.close(() => done())));
    });
  });
}
