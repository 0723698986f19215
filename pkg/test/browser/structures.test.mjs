// The recordings of the other structures in each kind of module: Large (ViT), EfficientNet and ERNIE 2.0. Their inputs
// are tensors and ids, which the package does not take: the modules are used without it.
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, test } from "node:test";

import { launch, skip, timeout, withPage } from "./support/browser.mjs";
import { builds, distance, goldens, missing, native, pkg, readTensors, temporary, writeTensors } from "./support/native.mjs";
import { embedInputs } from "./support/page.mjs";
import { serve } from "./support/server.mjs";

const folder = missing || (await temporary(after));
const structure = (name) => join(goldens, "structures", name);

/** The word that stands for an id. */
const word = (id) => `w${id}`;
/** A row of ids without its ends, which the tokeniser adds. */
const caption = (ids) => ids.slice(1, -1).map(word).join(" ");

/** Writes a vocabulary in which the first and the last of `ids` are what the tokeniser puts around a caption. */
async function writeVocabulary(path, size, ids) {
  const special = { 0: "[PAD]", [ids[0]]: "[CLS]", [ids.at(-1)]: "[SEP]" };
  const unknown = Array.from({ length: size }, (_, id) => id).find((id) => !(id in special) && !ids.includes(id));
  special[unknown] = "[UNK]";
  await writeFile(path, Array.from({ length: size }, (_, id) => `${special[id] ?? word(id)}\t${id}\n`).join(""));
}

/** Rows of a width at unit length. */
function normalised(data, width) {
  const rows = Array.from({ length: data.length / width }, (_, i) => Array.from(data.subarray(i * width, (i + 1) * width)));
  return rows.flatMap((row) => row.map((x) => x / Math.hypot(...row)));
}

const rowsOf = ({ shape: [, width], data }) => Array.from({ length: data.length / width }, (_, i) => data.slice(i * width, (i + 1) * width));

/** Large (ViT): the files of the original. Both towers as recorded. */
async function large() {
  const at = (name) => join(structure("large_vit"), name);
  const name = "large-vit";
  const io = await readTensors(at("io.safetensors"));
  const rows = rowsOf(io.input_ids).map((row) => row.filter((id) => id !== 0));
  const vocab = join(folder, `${name}.txt`);
  await writeVocabulary(vocab, 90, [1, ...rows.flatMap((row) => row.slice(1, -1)), 2]);
  const args = ["--weights", at("model.pdparams"), "--text-config", at("text_config.json"), "--image-config", at("vision_config.json"), "--vocab", vocab];
  native("convert", ...args, "--max-tokens", "48", "--output", join(folder, name));
  return {
    name,
    pixels: Array.from(io.pixels_u8.data, (pixel) => (pixel - 128) / 64),
    captions: rows.map(caption),
    image: io.image_normalised.data,
    text: io.text_normalised.data,
  };
}

/**
 * An EfficientNet at one of its sizes beside an ERNIE 2.0. The recorded feature is wider than the text, so that a
 * projection adds up every so many of its values; of the captions one is recorded without gaps and doubled ids.
 */
async function convolutional(model, size, text, form) {
  const name = `${model}${size}-${text}-${form}`;
  const at = (rest) => join(structure("efficientnet"), `${model}${rest}`);
  const [weights, io] = [await readTensors(at(".safetensors")), await readTensors(at("_io.safetensors"))];
  const { channel_multiplier, depth_multiplier } = JSON.parse(await readFile(at("_config.json")));
  const textAt = (file) => join(structure("ernie2"), `${text}_${file}`);
  const textIo = await readTensors(textAt("io.safetensors"));
  const textConfig = JSON.parse(await readFile(textAt("config_hf.json")));
  const width = textConfig.hidden_size;

  const pooled = io[`s${size}.pooled`];
  const features = pooled.shape[1];
  const projection = new Float32Array(features * width);
  for (let i = 0; i < features; i++) projection[i * width + (i % width)] = 1;
  weights["projection.weight"] = { shape: [features, width], data: projection };
  weights["projection.bias"] = { shape: [width], data: new Float32Array(width) };
  const summed = new Float32Array(pooled.shape[0] * width);
  pooled.data.forEach((value, i) => (summed[Math.floor(i / features) * width + ((i % features) % width)] += value));

  const [, row] = rowsOf(textIo["defaults.input_ids"]);
  const ids = row.filter((id) => id !== 0);
  const file = (suffix) => join(folder, `${name}-${suffix}`);
  await writeVocabulary(file("vocab.txt"), textConfig.vocab_size, ids);
  await writeTensors(file("image.safetensors"), weights);
  const imageConfig = { kind: "efficientnet", image_size: size, width_multiplier: channel_multiplier, depth_multiplier, projection: width };
  await writeFile(file("image.json"), JSON.stringify(imageConfig));
  const args = ["--weights", file("image.safetensors"), "--weights", textAt(`${form}.safetensors`), "--text-config", textAt(`config_${form}.json`)];
  native("convert", ...args, "--image-config", file("image.json"), "--vocab", file("vocab.txt"), "--max-tokens", "16", "--output", join(folder, name));
  return {
    name,
    pixels: Array.from(io[`s${size}.input`].data),
    captions: [caption(ids)],
    image: normalised(summed, width),
    text: normalised(textIo["defaults.pooled"].data.subarray(width, 2 * width), width),
  };
}

const cases = missing ? [] : [await large(), await convolutional("a", 40, "a", "hf"), await convolutional("b", 33, "b", "paddle"), await convolutional("c", 59, "c", "hf")];

/** Compares with what was recorded. */
function compare(t, { name, image, text }, got) {
  for (const [what, recorded] of Object.entries({ image, text })) {
    const { difference, cosine } = distance(got[what], recorded, got.info.dimensions);
    t.diagnostic(`${name}, ${what}: within ${difference.toExponential(1)}`);
    assert.ok(difference <= 1e-5 && cosine >= 0.99999, `${name}: ${what} vectors differ by ${difference}`);
  }
}

test("other structures in Node", { skip: missing, timeout }, async (t) => {
  const glue = await import(join(pkg, "wasm/cpu/ernie_vil.js"));
  await glue.default({ module_or_path: await readFile(join(pkg, "wasm/cpu/ernie_vil_bg.wasm")) });
  for (const recorded of cases) {
    compare(t, recorded, await embedInputs(glue, recorded, (file) => readFile(join(folder, recorded.name, file))));
  }
});

// The build with threads has the kernels of the one without.
for (const { name } of builds.filter(({ options }) => !(options.threads > 1))) {
  test(`other structures in the browser: ${name}`, { skip, timeout }, async (t) => {
    const browser = await launch(t.after.bind(t));
    const server = await serve({ models: folder });
    t.after(server.close);
    const outputs = await withPage(browser, server, (page) =>
      page.evaluate(
        async ({ name, cases }) => {
          const glue = await import(`/pkg/wasm/${name}/ernie_vil.js`);
          await glue.default({ module_or_path: `/pkg/wasm/${name}/ernie_vil_bg.wasm` });
          await glue.initDevice?.();
          const outputs = [];
          for (const inputs of cases) {
            const read = async (file) => new Uint8Array(await (await fetch(`/models/${inputs.name}/${file}`)).arrayBuffer());
            outputs.push(await embedInputs(glue, inputs, read));
          }
          return outputs;
        },
        { name, cases: cases.map(({ name, pixels, captions }) => ({ name, pixels, captions })) },
      ),
    );
    for (const [i, got] of outputs.entries()) compare(t, cases[i], got);
  });
}
