// What tests use in pages and in Node alike.

/** Returns what went wrong; rejects where nothing did. */
export async function failure(promise) {
  let result;
  try {
    result = await promise;
  } catch (error) {
    const { name, code, message } = error;
    return { name, code, message };
  }
  throw new Error(`expected a failure, got ${JSON.stringify(result)?.slice(0, 200)}`);
}

/** The rows of a file of pairs: captions, and pictures as files. */
export function readPairs(text, count = Infinity) {
  const lines = text.split("\n").filter(Boolean).slice(0, count);
  return lines.map((line, i) => {
    const columns = line.split("\t");
    const bytes = Uint8Array.from(atob(columns.at(-1)), (char) => char.charCodeAt(0));
    return { caption: columns[0], picture: new File([bytes], `${i}.png`) };
  });
}

/** Ids, hashes of pixels, and vectors of everything that is recorded; `read` gives a picture's file by its name. */
export async function embedRecorded(model, { captions, pictures }, read) {
  const hex = (bytes) => Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const pixels = {};
  for (const { file, ok } of pictures) {
    if (ok) pixels[file] = hex(await crypto.subtle.digest("SHA-256", await model.preprocess(await read(file))));
  }
  const rows = await Promise.all(pictures.filter(({ group }) => group === "tsv").map(({ file }) => read(file)));
  const [text, image, ids] = [await model.embedText(captions), await model.embedImages(rows), await model.tokenize(captions)];
  return { pixels, text: text.data, image: image.data, ids: ids.map((row) => Array.from(row)), info: model.info };
}

/** Vectors of tensors and captions from a module itself; `read` gives a file of the model's folder by its name. */
export async function embedInputs(glue, { pixels, captions }, read) {
  const loader = new glue.ModelLoader(await read("config.json"), await read("vocab.txt"), true, true, "f32");
  for (const tower of ["image", "text"]) loader.feed(tower, await read(`${tower}.safetensors`));
  const model = loader.finish();
  const [image, text] = [await model.embedPixels(Float32Array.from(pixels)), await model.embedText(captions)];
  const info = model.info();
  model.free();
  return { image, text, info };
}

/** The longest task of the page's thread while `work` runs, in milliseconds; 0 where none takes 50 or more. */
export async function longestTask(work) {
  let longest = 0;
  const note = (entries) => entries.forEach(({ duration }) => (longest = Math.max(longest, duration)));
  const observer = new PerformanceObserver((list) => note(list.getEntries()));
  observer.observe({ type: "longtask" });
  await work();
  await new Promise((resolve) => setTimeout(resolve, 200));
  note(observer.takeRecords());
  observer.disconnect();
  return longest;
}
