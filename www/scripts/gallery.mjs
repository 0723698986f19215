// Makes what the page shows and loads from the repository's model "scenes": public/gallery/ (pictures of its test
// pairs, and gallery.json with their captions) and public/models/scenes/ (the model folder).
import { mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const PICTURES = 96;

const here = fileURLToPath(new URL("..", import.meta.url));
const scenes = join(here, "../models/scenes");
const gallery = join(here, "public/gallery");
const model = join(here, "public/models/scenes");

/** Makes a folder have exactly these files; what is there already keeps its time. */
async function fill(folder, files) {
  await mkdir(folder, { recursive: true });
  for (const name of await readdir(folder)) if (!files.has(name)) await rm(join(folder, name), { recursive: true });
  for (const [name, bytes] of files) {
    const path = join(folder, name);
    const before = await readFile(path).catch(() => undefined);
    if (!before?.equals(bytes)) await writeFile(path, bytes);
  }
}

const lines = (await readFile(join(scenes, "test.tsv"), "utf8")).split("\n").slice(0, PICTURES);
const pictures = new Map();
const captions = [];
for (const [position, line] of lines.entries()) {
  const [caption, id, , base64] = line.split("\t");
  if (!caption || !id || !base64) {
    throw new Error(`models/scenes/test.tsv, line ${position + 1}: expected a caption, an id, tags and a picture`);
  }
  const file = `${String(position + 1).padStart(3, "0")}.png`;
  pictures.set(file, Buffer.from(base64, "base64"));
  captions.push({ id, file, caption });
}
pictures.set("gallery.json", Buffer.from(JSON.stringify(captions)));
await fill(gallery, pictures);

const manifest = await readFile(join(scenes, "manifest.json"));
const files = new Map([["manifest.json", manifest]]);
for (const { name } of JSON.parse(manifest.toString()).files) files.set(name, await readFile(join(scenes, name)));
await fill(model, files);

const bytes = [...files.values()].reduce((sum, file) => sum + file.length, 0);
console.log(`gallery: ${captions.length} pictures; the model "scenes": ${(bytes / 1e6).toFixed(1)} MB`);
