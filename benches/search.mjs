// Search in the package's index, in Node on one thread: `cargo xtask web && node benches/search.mjs [VECTORS] [DIMENSIONS]`.
// Prints one JSON line a type of values: milliseconds of a query for the best 20, of adding 1,000 more, and recall@10 against f32.
import { EmbeddingIndex } from "../pkg/dist/index.js";

const [vectors = 100_000, dimensions = 768] = process.argv.slice(2).map(Number);
const QUERIES = 50;

/** Uniform in [-1, 1), the same in every run. */
let state = 1;
const random = () => ((state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0) / 2 ** 31) - 1;

/** Vectors of unit length round a few hundred centres, as those of a model are. */
const centres = Float32Array.from({ length: 300 * dimensions }, random);
function rows(count) {
  const data = new Float32Array(count * dimensions);
  for (let row = 0; row < count; row++) {
    const centre = Math.floor((random() + 1) * 150) * dimensions;
    let square = 0;
    for (let i = 0; i < dimensions; i++) {
      const value = centres[centre + i] + random();
      data[row * dimensions + i] = value;
      square += value * value;
    }
    for (let i = 0; i < dimensions; i++) data[row * dimensions + i] /= Math.sqrt(square);
  }
  return data;
}

const data = rows(vectors);
const queries = Array.from({ length: QUERIES }, () => rows(1));
const more = rows(1000);
const ids = (from, count) => Array.from({ length: count }, (_, i) => String(from + i));
const timed = async (work) => {
  const start = performance.now();
  const result = await work();
  return [performance.now() - start, result];
};

let exact;
for (const dtype of ["f32", "int8"]) {
  const index = await EmbeddingIndex.open(`bench-${dtype}`, { dimensions, fingerprint: "bench", dtype, storage: "memory" });
  for (let at = 0; at < vectors; at += 1000) {
    const count = Math.min(1000, vectors - at);
    await index.add(ids(at, count), data.subarray(at * dimensions, (at + count) * dimensions));
  }
  await index.search(queries[0], { k: 20 });
  const searches = [];
  for (const query of queries) searches.push(await timed(() => index.search(query, { k: 20 })));
  const times = searches.map(([ms]) => ms).sort((a, b) => a - b);
  const found = searches.map(([, hits]) => hits.slice(0, 10).map(({ id }) => id));
  exact ??= found;
  const hits = found.flatMap((ids, i) => ids.filter((id) => exact[i].includes(id))).length;
  const [adding] = await timed(() => index.add(ids(vectors, 1000), more));
  const fixed = (ms) => Number(ms.toFixed(2));
  const report = { dtype, vectors, dimensions, ms: { median: fixed(times[QUERIES / 2]), least: fixed(times[0]) }, add1000: fixed(adding) };
  console.log(JSON.stringify({ ...report, recallAt10: hits / (10 * QUERIES) }));
  await index.close();
}
