import assert from "node:assert/strict";
import { mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { OpfsFolder, diskFolder } from "../dist/folder.js";
import { FolderStore, openStore } from "../dist/storage.js";
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
}

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
  // A lock of a process that is gone is taken over.
  const [name] = await readdir(folder);
  await writeFile(join(folder, `${name}.lock`), "999999999");
  const next = await openStore(options);
  assert.equal(await readFile(join(folder, `${name}.lock`), "utf8"), String(process.pid));
  await next.close();
  assert.equal((await openStore({ ...options, folder: undefined })).kind, "memory");
});
