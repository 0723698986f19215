import assert from "node:assert/strict";
import { fork } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readFile, readdir, realpath, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";

import { OpfsFolder, diskFolder } from "../dist/folder.js";
import { IndexService } from "../dist/index-service.js";
import { FolderStore, deleteStore, openStore } from "../dist/storage.js";
import { fakeModule, unit } from "./support/fake-glue.mjs";
import { FakeDirectory, installOpfs } from "./support/opfs.mjs";

const folders = [];
after(() => Promise.all(folders.map((folder) => rm(folder, { recursive: true, force: true }))));

async function temporaryFolder() {
  const folder = await mkdtemp(join(tmpdir(), "ernie-vil-"));
  folders.push(folder);
  return folder;
}

const bytes = (text) => new Uint8Array(Buffer.from(text));
const content = async (store) => {
  const { snapshot, log } = await store.read();
  return [snapshot && Buffer.from(snapshot).toString(), Buffer.from(log).toString()];
};

const kinds = {
  folder: async () => diskFolder(await temporaryFolder()),
  opfs: async () => new OpfsFolder(new FakeDirectory()),
};

for (const [kind, make] of Object.entries(kinds)) {
  const open = (folder, readOnly = false) => FolderStore.open(folder, kind, "", readOnly);

  test(`${kind}: a log grows beside its snapshot and is there at the next visit`, async () => {
    const folder = await make();
    let store = await open(folder);
    assert.deepEqual(await content(store), [undefined, ""]);
    await store.replace(bytes("S1"));
    await store.append(bytes("abc"));
    await store.append(bytes("de"));
    assert.equal(store.logSize, 5);
    await store.close();
    store = await open(folder);
    assert.deepEqual(await content(store), ["S1", "abcde"]);
    assert.equal(store.logSize, 5);
    await store.truncate(3);
    await store.append(bytes("X"));
    assert.deepEqual(await content(store), ["S1", "abcX"]);
    await store.replace(bytes("S2"));
    assert.deepEqual(await content(store), ["S2", ""]);
    await store.append(bytes("f"));
    await store.close();
    assert.deepEqual(await content(await open(folder, true)), ["S2", "f"]);
    assert.deepEqual((await folder.names()).sort(), ["2.log", "2.safetensors"]);
  });

  test(`${kind}: a compaction that was cut off changes nothing`, async () => {
    const folder = await make();
    const store = await open(folder);
    await store.replace(bytes("S1"));
    await store.append(bytes("abc"));
    await store.close();
    // The new snapshot is there, perhaps in part, but not its log.
    await folder.write("2.safetensors", bytes("S"));
    const again = await open(folder);
    assert.deepEqual(await content(again), ["S1", "abc"]);
    assert.deepEqual((await folder.names()).sort(), ["1.log", "1.safetensors"]);
    await again.close();
  });

  test(`${kind}: a compaction that was cut off before the old files went counts`, async () => {
    const folder = await make();
    await folder.write("1.safetensors", bytes("S1"));
    await folder.write("1.log", bytes("abc"));
    await folder.write("2.safetensors", bytes("S2"));
    await folder.write("2.log", bytes(""));
    const store = await open(folder);
    assert.deepEqual(await content(store), ["S2", ""]);
    await store.close();
  });

  test(`${kind}: a log without its snapshot is no generation, and takes nothing away from the one that is whole`, async () => {
    for (const late of ["", "changes"]) {
      const folder = await make();
      await folder.write("1.safetensors", bytes("S1"));
      await folder.write("1.log", bytes("abc"));
      await folder.write("2.log", bytes(late));
      await folder.write("10.log", bytes(""));
      let store = await open(folder);
      assert.deepEqual(await content(store), ["S1", "abc"]);
      await store.append(bytes("d"));
      await store.close();
      assert.deepEqual(await content(await open(folder, true)), ["S1", "abcd"]);
      const left = late ? ["1.log", "1.safetensors", "2.log"] : ["1.log", "1.safetensors"];
      assert.deepEqual((await folder.names()).sort(), left);
      // The next generation begins with an empty log, whatever lies there.
      store = await open(folder);
      await store.replace(bytes("S3"));
      assert.deepEqual(await content(store), ["S3", ""]);
      await store.append(bytes("e"));
      await store.close();
      store = await open(folder);
      assert.deepEqual(await content(store), ["S3", "e"]);
      await store.close();
    }
  });

  test(`${kind}: files of others stay in the folder`, async () => {
    const folder = await make();
    for (const name of ["1.safetensors", "1.log", "0.safetensors", "notes.txt", "3.safetensors.part"]) await folder.write(name, bytes("x"));
    await (await open(folder)).close();
    assert.deepEqual((await folder.names()).sort(), ["1.log", "1.safetensors", "notes.txt"]);
  });

  test(`${kind}: a change that was stored in part is not taken for damage later`, async () => {
    const folder = await make();
    const store = await open(folder);
    await store.replace(bytes("S1"));
    await store.append(bytes("abc"));
    await store.close();
    // A log that takes a part of what it is given, and cannot be cut either.
    let broken = true;
    const openFile = async (name) => {
      const file = await folder.open(name);
      const log = {
        size: file.size,
        append: async (data) => {
          await file.append(broken ? data.subarray(0, 2) : data);
          if (broken) throw new Error("the disk is gone");
          log.size += data.length;
        },
        truncate: async (size) => {
          if (broken) throw new Error("it is still gone");
          await file.truncate(size);
          log.size = size;
        },
        close: () => file.close(),
      };
      return log;
    };
    const again = await FolderStore.open(Object.assign(Object.create(folder), { open: openFile }), kind, "", false);
    for (let i = 0; i < 2; i++) await assert.rejects(again.append(bytes("XYZ")), /gone/);
    broken = false;
    await again.append(bytes("de"));
    await again.close();
    assert.deepEqual(await content(await open(folder, true)), ["S1", "abcde"]);
  });

  test(`${kind}: who reads while another compacts sees one generation or the other`, async () => {
    const folder = await make();
    const writer = await open(folder);
    await writer.replace(bytes("S1"));
    await writer.append(bytes("abc"));
    let slow = async () => {};
    const watched = Object.assign(Object.create(folder), {
      atomic: folder.atomic,
      read: async (name) => {
        const [work, found] = [slow, await folder.read(name)];
        slow = async () => {};
        await work();
        return found;
      },
    });
    const reader = await open(watched, true);
    slow = async () => {
      await writer.replace(bytes("S1abc"));
      await writer.append(bytes("d"));
    };
    assert.deepEqual(await content(reader), ["S1abc", "d"]);
    await writer.close();
  });
}

test("folder: a snapshot whose log is gone is the index, since on the disk a file is whole or not there", async () => {
  const folder = await kinds.folder();
  await folder.write("4.safetensors", bytes("S4"));
  const store = await FolderStore.open(folder, "folder", "", false);
  assert.deepEqual(await content(store), ["S4", ""]);
  await store.append(bytes("a"));
  await store.close();
  assert.deepEqual(await content(await FolderStore.open(folder, "folder", "", true)), ["S4", "a"]);
});

test("opfs: a full disk leaves the log as it was", async () => {
  const disk = { quota: 10, used: 0 };
  const folder = new OpfsFolder(new FakeDirectory(disk));
  const store = await FolderStore.open(folder, "opfs", "", false);
  await store.replace(bytes("S1"));
  await store.append(bytes("abc"));
  await assert.rejects(store.append(bytes("0123456789")), { name: "QuotaExceededError" });
  assert.deepEqual(await content(store), ["S1", "abc"]);
  await assert.rejects(store.replace(bytes("0123456789")), { name: "QuotaExceededError" });
  assert.deepEqual(await content(store), ["S1", "abc"]);
  disk.quota = 100;
  await store.append(bytes("de"));
  assert.deepEqual(await content(store), ["S1", "abcde"]);
});

test("a page's index is in OPFS, and a second tab is told so", async () => {
  const undo = installOpfs();
  const options = { name: "相册 1/2", storage: "auto", folder: undefined, readOnly: false };
  try {
    const store = await openStore(options);
    assert.equal(store.kind, "opfs");
    await store.replace(bytes("S"));
    await store.append(bytes("a"));
    await assert.rejects(openStore(options), { code: "locked" });
    const reader = await openStore({ ...options, readOnly: true });
    assert.deepEqual(await content(reader), ["S", "a"]);
    await store.close();
    const next = await openStore(options);
    assert.deepEqual(await content(next), ["S", "a"]);
    await next.close();
    // Without Web Locks the files themselves are opened once only.
    navigator.locks = undefined;
    const first = await openStore(options);
    await assert.rejects(openStore(options), { code: "locked" });
    await first.close();
  } finally {
    undo();
  }
});

test("a page without OPFS and IndexedDB has an index in memory and says so", async () => {
  const undo = installOpfs();
  try {
    navigator.storage = undefined;
    const store = await openStore({ name: "a", storage: "auto", folder: undefined, readOnly: false });
    assert.equal(store.kind, "memory");
    assert.match(store.reason, /OPFS.*IndexedDB/);
    await store.close();
    await assert.rejects(openStore({ name: "a", storage: "opfs", folder: undefined, readOnly: false }), { code: "storage" });
  } finally {
    undo();
  }
});

test("in Node an index is in the folder that is named, for one process at a time", async () => {
  const folder = await temporaryFolder();
  const options = { name: "../photos", storage: "auto", folder, readOnly: false };
  const store = await openStore(options);
  assert.equal(store.kind, "folder");
  await assert.rejects(openStore(options), { code: "locked" });
  await store.replace(bytes("S"));
  assert.deepEqual((await readdir(folder)).length, 2, "the name leads out of no folder");
  await store.close();
  assert.deepEqual((await readdir(folder)).length, 1);
  // A lock of a process that is gone is taken over, whatever it says: the number may be anybody's now.
  const [name] = await readdir(folder);
  for (const owner of ["999999999", "1", String(process.pid), String(process.ppid), "", "rubbish", "0", "-1"]) {
    await writeFile(join(folder, `${name}.lock`), owner);
    const next = await openStore(options);
    assert.equal(await readFile(join(folder, `${name}.lock`), "utf8"), String(process.pid));
    await assert.rejects(openStore(options), { code: "locked" });
    await next.close();
    assert.deepEqual(await readdir(folder), [name]);
  }
  assert.equal((await openStore({ ...options, folder: undefined })).kind, "memory");
});

test("a folder is locked under every name that leads to it", async () => {
  const [folder, other] = [await temporaryFolder(), await temporaryFolder()];
  const open = (where, name) => openStore({ name, storage: "folder", folder: where, readOnly: false });
  await mkdir(join(folder, "photos"));
  await symlink(join(folder, "photos"), join(other, "linked"));
  await symlink(folder, join(other, "parent"));
  const store = await open(folder, "photos");
  await store.replace(bytes("S"));
  for (const [where, name] of [[other, "linked"], [join(other, "parent"), "photos"], [`${folder}/.`, "photos"]]) {
    await assert.rejects(open(where, name), { code: "locked" }, `${where}/${name}`);
  }
  await store.close();
  const linked = await open(other, "linked");
  assert.deepEqual(await content(linked), ["S", ""]);
  await assert.rejects(open(folder, "photos"), { code: "locked" });
  await assert.rejects(deleteStore("photos", folder), { code: "locked" });
  await linked.close();
  await deleteStore("linked", other);
  assert.deepEqual([await readdir(folder), await readdir(other)], [[], ["parent"]]);
  await deleteStore("photos", folder);
  assert.deepEqual(await readdir(folder), []);
});

test("who only reads makes nothing", async () => {
  const folder = await temporaryFolder();
  const store = await openStore({ name: "photos", storage: "folder", folder, readOnly: true });
  assert.deepEqual(await content(store), [undefined, ""]);
  await store.close();
  assert.deepEqual(await readdir(folder), []);
});

/** Processes that wait for orders: each answers one order with one word. */
async function processes(count, folder, name, env = {}) {
  const script = fileURLToPath(new URL("support/lock-child.mjs", import.meta.url));
  const children = await Promise.all(
    Array.from({ length: count }, async () => {
      const child = fork(script, [folder, name], { env: { ...process.env, ...env } });
      await once(child, "message");
      return child;
    }),
  );
  const tell = async (child, order) => {
    child.send(order);
    const [answer] = await once(child, "message");
    return answer;
  };
  return { children, tell, end: () => children.forEach((child) => child.kill("SIGKILL")) };
}

/** The means of locking that are there: with the program flock, and without. */
const means = { "with the system's programs": {}, "without them": { PATH: "/nowhere" } };

for (const [how, env] of Object.entries(means)) {
  for (const count of [2, 6]) {
    test(`of ${count} processes one has the index, 25 times, whatever lock was left behind: ${how}`, async () => {
      const folder = await temporaryFolder();
      const { children, tell, end } = await processes(count, folder, "photos", env);
      try {
        for (let round = 0; round < 25; round++) {
          const left = [undefined, "999999999", "", "1", String(children[round % count].pid)][round % 5];
          if (left !== undefined) await writeFile(join(folder, "photos.lock"), left);
          const answers = await Promise.all(children.map((child) => tell(child, "open")));
          const owners = answers.filter((answer) => answer === "owner").length;
          assert.equal(owners, 1, `round ${round}, a lock of ${JSON.stringify(left)}: ${answers}`);
          assert.equal(answers.filter((answer) => answer === "locked").length, count - 1, `${answers}`);
          await Promise.all(children.map((child) => tell(child, "close")));
        }
      } finally {
        end();
      }
    });
  }

  test(`an index whose process was killed can be opened at once: ${how}`, async () => {
    const folder = await temporaryFolder();
    const { children, tell, end } = await processes(4, folder, "photos", env);
    try {
      for (const [position, child] of children.entries()) {
        assert.equal(await tell(child, "open"), "owner");
        const next = children[position + 1];
        if (!next) break;
        assert.equal(await tell(next, "open"), "locked");
        child.kill("SIGKILL");
        await once(child, "exit");
      }
    } finally {
      end();
    }
  });
}

test("processes that open and close as fast as they can never have the index at once", async () => {
  const folder = await temporaryFolder();
  const { children, tell, end } = await processes(4, folder, "photos");
  let [owners, turns] = [0, 0];
  try {
    await Promise.all(
      children.map(async (child) => {
        for (let turn = 0; turn < 60; turn++) {
          const answer = await tell(child, "open");
          if (answer === "owner") {
            owners += 1;
            turns += 1;
            assert.equal(owners, 1);
            await new Promise((resolve) => setImmediate(resolve));
            owners -= 1;
          } else {
            assert.equal(answer, "locked");
          }
          await tell(child, "close");
        }
      }),
    );
  } finally {
    end();
  }
  assert.ok(turns > 10, `${turns} turns`);
});

test("another thread of the same process does not get an index that is open", async () => {
  const folder = await temporaryFolder();
  const options = { name: "photos", storage: "folder", folder, readOnly: false };
  const attempt = async () => {
    const script = `
      import { parentPort, workerData } from "node:worker_threads";
      const { openStore } = await import(workerData.module);
      parentPort.postMessage(await openStore(workerData.options).then(async (store) => (await store.close(), "owner"), ({ code }) => code));`;
    const module = new URL("../dist/storage.js", import.meta.url).href;
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(script)}`), { workerData: { module, options } });
    const [answer] = await once(worker, "message");
    return answer;
  };
  const store = await openStore(options);
  assert.equal(await attempt(), "locked");
  await store.close();
  assert.equal(await attempt(), "owner");
});

/** Has what is opened and synchronised below a folder written down; `fail` gives the error of a folder's synchronisation. */
function watchDisk(fail = () => undefined) {
  const builtin = process.getBuiltinModule;
  const seen = [];
  const real = builtin("node:fs/promises");
  const fs = {
    ...real,
    async open(path, ...rest) {
      const file = await real.open(path, ...rest);
      const sync = file.sync.bind(file);
      file.sync = async () => {
        const folder = (await file.stat()).isDirectory();
        if (folder && fail(path)) throw fail(path);
        await sync();
        seen.push(`${folder ? "folder" : "file"} ${path}`);
      };
      return file;
    },
    async rename(from, to) {
      await real.rename(from, to);
      seen.push(`rename ${to}`);
    },
    async rm(path, options) {
      await real.rm(path, options);
      seen.push(`remove ${path}`);
    },
  };
  process.getBuiltinModule = (id) => (id === "node:fs/promises" ? fs : builtin(id));
  return { seen, undo: () => (process.getBuiltinModule = builtin) };
}

test("a file's name outlives the machine before what it replaces is removed", { skip: process.platform === "win32" }, async () => {
  const home = await realpath(await temporaryFolder());
  const { seen, undo } = watchDisk();
  try {
    const parent = join(home, "new", "indexes");
    const store = await openStore({ name: "photos", storage: "folder", folder: parent, readOnly: false });
    const folder = join(parent, "photos");
    // What was made, and where it was made: up to the folder that was there.
    for (const made of [parent, dirname(parent), home]) assert.ok(seen.includes(`folder ${made}`), `${made} in ${seen}`);
    await store.replace(bytes("S1"));
    seen.length = 0;
    await store.replace(bytes("S2"));
    const steps = seen.map((step) => step.replace(folder, "."));
    assert.deepEqual(steps, ["file ./2.safetensors.part", "rename ./2.safetensors", "folder .", "folder .", "remove ./1.log", "remove ./1.safetensors"]);
    await store.close();
  } finally {
    undo();
  }
});

test("a folder that cannot be synchronised is an error, but where the system cannot do that at all", { skip: process.platform === "win32" }, async () => {
  for (const [code, works] of [["EINVAL", true], ["ENOTSUP", true], ["EIO", false], ["ENOSPC", false]]) {
    const home = await temporaryFolder();
    const options = { name: "photos", storage: "folder", folder: home, readOnly: false };
    await (await openStore(options)).close();
    const { undo } = watchDisk(() => Object.assign(new Error(code), { code }));
    try {
      const store = await openStore(options);
      if (works) {
        await store.replace(bytes("S1"));
        assert.deepEqual(await content(store), ["S1", ""]);
      } else {
        await assert.rejects(store.replace(bytes("S1")), { code });
        assert.deepEqual(await content(store), [undefined, ""]);
      }
      await store.close();
    } finally {
      undo();
    }
  }
});

test("a damaged log is refused with its place, and stays as it is; a torn end is cut off", async () => {
  const folder = await temporaryFolder();
  const source = fakeModule();
  const { Index } = source.glue;
  const params = { name: "photos", dimensions: 8, fingerprint: "f", dtype: "f32", storage: "folder", folder, readOnly: false, wasm: undefined };
  let index = new IndexService(source);
  await index.open(params);
  await index.add(["a", "b"], Float32Array.from([...unit("a", 8), ...unit("b", 8)]));
  await index.close();
  const file = join(folder, "photos", "1.log");
  const whole = await readFile(file);

  await writeFile(file, Buffer.concat([whole, whole.subarray(0, 7)]));
  index = new IndexService(source);
  assert.equal((await index.open(params)).size, 2);
  await index.close();
  assert.deepEqual(await readFile(file), whole);

  const { replay } = Index.prototype;
  Index.prototype.replay = () => {
    throw Object.assign(new Error("log, byte 16: the record is damaged, and sound ones follow"), { code: "index" });
  };
  for (const readOnly of [false, true]) {
    await assert.rejects(new IndexService(source).open({ ...params, readOnly }), { code: "index", message: /"photos".*byte 16/ });
    assert.deepEqual(await readFile(file), whole);
  }
  Index.prototype.replay = replay;
  index = new IndexService(source);
  assert.equal((await index.open(params)).size, 2);
  await index.close();
});
