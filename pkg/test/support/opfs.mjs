// The origin's private file system, in memory. `quota` limits the bytes of all files.
export class FakeDirectory {
  constructor(disk = { quota: Infinity, used: 0 }) {
    this.disk = disk;
    this.entries = new Map();
  }
  async *keys() {
    yield* [...this.entries.keys()];
  }
  #find(name, create, make) {
    let entry = this.entries.get(name);
    if (!entry) {
      if (!create) throw new DOMException(`${name} is not there`, "NotFoundError");
      this.entries.set(name, (entry = make()));
    }
    return entry;
  }
  async getDirectoryHandle(name, { create = false } = {}) {
    return this.#find(name, create, () => new FakeDirectory(this.disk));
  }
  async getFileHandle(name, { create = false } = {}) {
    return this.#find(name, create, () => new FakeFile(this.disk));
  }
  async removeEntry(name) {
    if (!this.entries.delete(name)) throw new DOMException(`${name} is not there`, "NotFoundError");
  }
}

class FakeFile {
  constructor(disk) {
    this.disk = disk;
    this.bytes = new Uint8Array(0);
    this.open = false;
  }
  async getFile() {
    return new File([this.bytes], "");
  }
  async createSyncAccessHandle() {
    if (this.open) throw new DOMException("it is open", "NoModificationAllowedError");
    this.open = true;
    const resize = (size) => {
      if (this.disk.used + size - this.bytes.length > this.disk.quota) throw new DOMException("full", "QuotaExceededError");
      this.disk.used += size - this.bytes.length;
      const grown = new Uint8Array(size);
      grown.set(this.bytes.subarray(0, size));
      this.bytes = grown;
    };
    return {
      getSize: () => this.bytes.length,
      write: (bytes, { at }) => {
        // A full disk takes what still fits, and then throws.
        const room = Math.min(bytes.length, this.disk.quota - this.disk.used + this.bytes.length - at);
        if (room <= 0) throw new DOMException("full", "QuotaExceededError");
        resize(Math.max(this.bytes.length, at + room));
        this.bytes.set(bytes.subarray(0, room), at);
        return room;
      },
      truncate: resize,
      flush: () => {},
      close: () => (this.open = false),
    };
  }
}

/** Makes this process look like a worker of a page that has OPFS (and no Cache API); returns what undoes it. */
export function installOpfs(root = new FakeDirectory()) {
  const navigatorBefore = Object.getOwnPropertyDescriptor(globalThis, "navigator");
  const handleBefore = globalThis.FileSystemFileHandle;
  const builtin = process.getBuiltinModule;
  Object.defineProperty(globalThis, "navigator", {
    configurable: true,
    value: { storage: { getDirectory: async () => root }, locks: new FakeLocks() },
  });
  globalThis.FileSystemFileHandle = class {
    createSyncAccessHandle() {}
  };
  process.getBuiltinModule = undefined;
  return () => {
    process.getBuiltinModule = builtin;
    globalThis.FileSystemFileHandle = handleBefore;
    if (navigatorBefore) Object.defineProperty(globalThis, "navigator", navigatorBefore);
    else delete globalThis.navigator;
  };
}

/** Web Locks, as far as they are used. */
export class FakeLocks {
  constructor() {
    this.held = new Map();
  }
  async request(name, options, work) {
    if (options.ifAvailable && this.held.has(name)) return work(null);
    while (this.held.has(name)) await this.held.get(name).catch(() => {});
    options.signal?.throwIfAborted();
    const result = Promise.resolve(work({ name }));
    this.held.set(name, result);
    return result.finally(() => this.held.delete(name));
  }
}
