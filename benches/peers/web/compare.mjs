// Compares the package with onnxruntime-web: the same weights, the same browser, the same run.
//
//     python benches/peers/web/models.py --work /tmp/towers
//     cargo xtask web
//     npm ci --prefix benches/peers/web
//     node benches/peers/web/compare.mjs --work /tmp/towers --output web.json
//
// The exit code is 1 where no graph of the peer gives the package's vectors.
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { cpus, loadavg, tmpdir, totalmem, type } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

import { openBrowser, openSide, peakBytes, serve } from "./browser.mjs";
import { openOurs } from "./page/ours.mjs";
import { Peer } from "./page/peer.mjs";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const PACKAGE = fileURLToPath(new URL("../../../pkg", import.meta.url));
const ORT = join(HERE, "node_modules", "onnxruntime-web");
/** Which of them is fastest depends on the tower, the threads and the machine, so it is measured. */
const FORMS = ["plain", "attention", "fused"];
/** The least cosine between the two sides' vectors of one input. */
const SAME = 0.9999;
/** In its turn a side calls until so many milliseconds have passed. */
const TURN = 500;
/** How many milliseconds the calls take that choose a form, about. */
const PATIENCE = 5_000;
/** Appended to a form: the peer's last block computes only the class token. */
const CLASS = "-class";
const SAVING = "peer computes only the class token in its last block";

// What is compared: the device, the model, its towers, how many inputs must give the same vectors, and what is timed.
const CPU = {
  device: "cpu",
  model: "towers",
  towers: ["image", "text"],
  inputs: 4,
  cases: [
    { name: "image, batch 1", tower: "image", count: 1, suffix: "" },
    { name: `image, batch 1, ${SAVING}`, tower: "image", count: 1, suffix: CLASS },
    { name: "image, batch 4", tower: "image", count: 4, suffix: "" },
    { name: "text, 12 tokens", tower: "text", count: 1, suffix: "" },
    { name: `text, 12 tokens, ${SAVING}`, tower: "text", count: 1, suffix: CLASS },
  ],
};
// Two inputs are enough to tell vectors apart: on a software adapter each takes seconds.
const ON_GPU = { device: "webgpu", threads: 1, inputs: 2 };
const WEBGPU = [
  {
    ...ON_GPU,
    model: "towers",
    towers: ["text"],
    cases: [{ name: "text, 12 tokens", tower: "text", count: 1, suffix: "" }],
  },
  {
    ...ON_GPU,
    model: "scenes",
    towers: ["image"],
    cases: [{ name: 'image of "scenes", batch 1', tower: "image", count: 1, suffix: "" }],
  },
];

/** The vectors of the two sides differ. */
class Different extends Error {}

const median = (values) => {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};
const summary = (values) => ({ median: median(values), least: Math.min(...values) });
const quotient = (ours, peer) => ({ median: ours.median / peer.median, least: ours.least / peer.least });
const shown = ({ median, least }, digits) => `${median.toFixed(digits)} / ${least.toFixed(digits)}`;
const megabytes = (bytes) => (Number.isFinite(bytes) ? (bytes / 1e6).toFixed(0) : "-");
const say = (line) => console.error(line);

function table(head, rows) {
  const line = (cells) => `| ${cells.join(" | ")} |`;
  return ["", line(head), line(head.map(() => "---")), ...rows.map(line), ""].join("\n");
}

/** How near two sides' vectors of the same inputs are, and how near those of different inputs. */
function agreement(ours, peer, rows) {
  const width = ours.length / rows;
  const row = (vectors, i) => vectors.slice(i * width, (i + 1) * width);
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const result = { leastCosine: Infinity, largestCosineOfDifferentInputs: -Infinity };
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < rows; j++) {
      const [a, b] = [row(ours, i), row(peer, j)];
      const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
      if (i === j) result.leastCosine = Math.min(result.leastCosine, cosine);
      else result.largestCosineOfDifferentInputs = Math.max(result.largestCosineOfDifferentInputs, cosine);
    }
  }
  // Where all inputs look alike, a high cosine would say nothing. NaN is no agreement either.
  result.same = result.leastCosine >= SAME && result.largestCosineOfDifferentInputs < SAME;
  return result;
}

/**
 * Tries every form of a tower: one whose vectors differ from `vectors`, those of `inputs` inputs, is left out. Leaves the
 * one open that is fastest at batch 1, and tells its name, the least times, and how the vectors of each agree.
 */
async function openFastest(peer, tower, vectors, inputs) {
  const times = {};
  const agreements = {};
  for (const form of FORMS) {
    try {
      await peer.open(tower, form);
      agreements[form] = agreement(vectors, (await peer.run(tower, inputs, form)).vectors, inputs);
      const { leastCosine, largestCosineOfDifferentInputs: others, same } = agreements[form];
      if (same) {
        times[form] = Infinity;
        // The first call does more than the others.
        let spent = (await peer.run(tower, 1, form)).ms;
        for (let call = 0; call < 1 || (call < 3 && spent < PATIENCE); call++) {
          const { ms } = await peer.run(tower, 1, form);
          times[form] = Math.min(times[form], ms);
          spent += ms;
        }
      }
      const found = same ? `the same vectors, ${times[form].toFixed(1)} ms` : "DIFFERENT vectors";
      say(`${tower}-${form}: ${found}, least cosine ${leastCosine}, of different inputs at most ${others}`);
      await peer.close(tower, form);
    } catch (error) {
      say(`${tower}-${form}: onnxruntime-web cannot run it: ${error.message}`);
    }
  }
  const [form] = Object.keys(times).sort((a, b) => times[a] - times[b]);
  if (!form) throw new Different(`${tower}: no form of onnxruntime-web gives the same vectors`);
  await peer.open(tower, form);
  return { form, times, agreements };
}

/** Times both sides in turn. */
async function measure({ ours, peer }, { towers, inputs, cases }, rounds) {
  const forms = {};
  for (const tower of towers) {
    const { ms, vectors } = await ours.run(tower, inputs);
    say(`${tower}: ours, the first ${inputs} inputs: ${ms.toFixed(1)} ms`);
    forms[tower] = await openFastest(peer, tower, vectors, inputs);
    if (cases.some((one) => one.tower === tower && one.suffix)) await peer.open(tower, forms[tower].form + CLASS);
  }
  const calls = cases.flatMap(({ tower, count, suffix }) => [
    { key: `ours ${tower} ${count}`, run: () => ours.run(tower, count) },
    { key: `peer ${tower} ${count}${suffix}`, run: () => peer.run(tower, count, forms[tower].form + suffix) },
  ]);
  const times = new Map(calls.map(({ key, run }) => [key, { run, found: [] }]));
  for (const { run } of times.values()) await run();
  for (let round = 0; round < rounds; round++) {
    // Who comes first changes, so that neither always has the cooler processor.
    for (const { run, found } of round % 2 === 0 ? times.values() : [...times.values()].reverse()) {
      for (let spent = 0; spent < TURN; ) {
        const { ms } = await run();
        found.push(ms);
        spent += ms;
      }
    }
    say(`round ${round + 1} of ${rounds}`);
  }
  const results = cases.map(({ name, tower, count, suffix }) => {
    const [a, b] = [`ours ${tower} ${count}`, `peer ${tower} ${count}${suffix}`].map((key) => summary(times.get(key).found));
    return { name, ours: a, peer: b, ratio: quotient(a, b) };
  });
  return { forms, results };
}

/** Loads one tower on a fresh page up to its first vector, in a browser whose storage lies in `profile`. */
async function start(url, profile, side, options) {
  const context = await openBrowser(profile);
  try {
    const page = await openSide(context, url, options);
    const ms = await page.firstEmbedding();
    const gpu = options.device === "webgpu" ? peakBytes("gpu-process") : undefined;
    const result = { ms, wasm: await page.wasmBytes(), renderer: peakBytes("renderer"), gpu };
    if (side === "peer") await page.kept();
    return { ...result, cached: side === "ours" && (await page.info()).cache.fromCache };
  } finally {
    await context.close();
  }
}

/** Time from the start of a page to its first vector, and peak memory, on a first visit and on a second one. */
async function starts(url, work, rounds) {
  const { device, threads, first } = work;
  const found = { ours: [], peer: [] };
  for (let round = 0; round < rounds; round++) {
    for (const side of round % 2 === 0 ? ["ours", "peer"] : ["peer", "ours"]) {
      const [once, kept] = ["once", "kept"].map(() => mkdtempSync(join(tmpdir(), "compare-")));
      try {
        const visit = (profile, keep) => start(url, profile, side, { ...sideOptions(side, { ...work, keep }), first });
        const visits = {
          "cold, nothing kept": await visit(once, false),
          "cold, files kept": await visit(kept, true),
          cached: await visit(kept, true),
        };
        for (const [name, { cached }] of Object.entries(visits)) {
          if (side === "ours" && cached !== (name === "cached")) throw new Error(`ours, ${name}: from the cache is ${cached}`);
        }
        found[side].push(visits);
      } finally {
        for (const profile of [once, kept]) rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
      }
    }
    say(`${first.tower}, start ${round + 1} of ${rounds}`);
  }
  const summaries = (visits) => {
    const largest = (what) => Math.max(...visits.map((visit) => visit[what] ?? NaN));
    return { ms: summary(visits.map(({ ms }) => ms)), wasm: largest("wasm"), renderer: largest("renderer"), gpu: largest("gpu") };
  };
  return Object.keys(found.ours[0]).map((visit) => {
    const [ours, peer] = ["ours", "peer"].map((side) => summaries(found[side].map((visits) => visits[visit])));
    return { name: `${first.tower}, ${deviceName(device, threads)}, ${visit}`, ours, peer, ratio: quotient(ours.ms, peer.ms) };
  });
}

/** What a page is told. `keep`: whether model files are kept, and taken from where they are kept. */
function sideOptions(side, { device, towers, threads, model: { folder, imageSize }, keep = false }) {
  const common = { side, device, threads };
  if (side === "ours") return { ...common, folder: `/models/${folder}/model/`, towers, cache: keep };
  return { ...common, folder: `/models/${folder}/`, imageSize, keep };
}

function deviceName(device, threads) {
  if (device === "webgpu") return "WebGPU on the software adapter";
  return `CPU, ${threads} thread${threads === 1 ? "" : "s"}`;
}

/** Both sides in Node, in one thread. */
async function openInNode({ folder, towers, imageSize }) {
  const entry = pathToFileURL(join(PACKAGE, "dist", "index.js"));
  const [{ ErnieVil }, ort] = await Promise.all([import(entry), import("onnxruntime-web")]);
  const read = async (name) => new Uint8Array(await readFile(join(folder, name)));
  const ours = await openOurs(ErnieVil, join(folder, "model"), { device: "cpu", towers, threads: 1 });
  return { ours, peer: new Peer(ort, read, { device: "cpu", threads: 1, imageSize }) };
}

function options() {
  const { values } = parseArgs({
    options: {
      work: { type: "string" },
      size: { type: "string", default: "base" },
      seed: { type: "string", default: "1" },
      rounds: { type: "string", default: "5" },
      starts: { type: "string", default: "3" },
      threads: { type: "string", default: "1,2" },
      webgpu: { type: "boolean", default: false },
      node: { type: "boolean", default: false },
      output: { type: "string" },
    },
  });
  const whole = (name, value, least) => {
    if (!/^\d+$/.test(value) || Number(value) < least) throw new Error(`--${name} takes whole numbers from ${least}, not ${value}`);
    return Number(value);
  };
  if (!values.work) throw new Error("--work FOLDER is needed: the one that models.py filled");
  const folders = { towers: join(`${values.size}-${values.seed}`, "web"), scenes: join("scenes", "web") };
  for (const folder of Object.values(folders)) {
    const path = join(values.work, folder);
    if (!existsSync(join(path, "model"))) throw new Error(`there is no model in ${path}: run models.py`);
  }
  if (!existsSync(join(PACKAGE, "dist", "index.js"))) throw new Error("the package is not built: run cargo xtask web");
  const models = Object.fromEntries(
    Object.entries(folders).map(([name, folder]) => {
      const config = JSON.parse(readFileSync(join(values.work, folder, "model", "config.json"), "utf8"));
      return [name, { folder, imageSize: config.image.image_size }];
    }),
  );
  return {
    ...values,
    models,
    rounds: whole("rounds", values.rounds, 1),
    starts: whole("starts", values.starts, 0),
    threads: values.threads.split(",").map((count) => whole("threads", count, 1)),
  };
}

/** Writes what has been found so far, so that a run that is cut short has not been for nothing. */
function save({ output }, report) {
  report.machine.loadAfter = loadavg()[0];
  if (output) writeFileSync(output, `${JSON.stringify(report, undefined, 2)}\n`);
}

async function inNode(args, report) {
  const { folder, imageSize } = args.models.towers;
  const sides = await openInNode({ folder: join(args.work, folder), towers: CPU.towers, imageSize });
  report.runs.push({ where: "Node, CPU, 1 thread", ...(await measure(sides, CPU, args.rounds)) });
}

/** Both sides beside each other in one browser, and then their starts, each in a browser of its own. */
async function inBrowser(args, report) {
  const server = await serve({ package: PACKAGE, ort: join(ORT, "dist"), models: args.work });
  const beside = async (work) => {
    const profile = mkdtempSync(join(tmpdir(), "compare-"));
    const context = await openBrowser(profile);
    try {
      report.machine.browser = `Chromium ${context.browser().version()}`;
      const ours = await openSide(context, server.url, sideOptions("ours", work));
      const peer = await openSide(context, server.url, sideOptions("peer", work));
      const { device } = await ours.info();
      if (device.threads !== work.threads) {
        throw new Error(`the package runs with ${device.threads} threads, not with ${work.threads}: ${device.reason}`);
      }
      return await measure({ ours, peer }, work, args.rounds);
    } finally {
      await context.close();
      rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    }
  };
  try {
    for (const one of args.webgpu ? WEBGPU : args.threads.map((threads) => ({ ...CPU, threads }))) {
      const work = { ...one, model: args.models[one.model] };
      const where = deviceName(work.device, work.threads);
      if (work.threads > 1 && !existsSync(join(PACKAGE, "wasm", "cpu-threads"))) {
        say(`${where}: left out, since pkg/wasm has no cpu-threads`);
        continue;
      }
      say(where);
      const run = { where, ...(await beside(work)) };
      report.runs.push(run);
      for (const { name, ratio } of run.results) say(`${name}: ours / peer ${shown(ratio, 2)}`);
      save(args, report);
      for (const tower of args.starts > 0 ? work.towers : []) {
        const first = { tower, form: run.forms[tower].form };
        report.starts.push(...(await starts(server.url, { ...work, towers: [tower], first }, args.starts)));
        save(args, report);
      }
    }
  } finally {
    server.close();
  }
}

/** The report as Markdown. */
function markdown({ machine, versions, runs, starts }) {
  const { processor, cores, memory, system, browser, loadBefore, loadAfter } = machine;
  const parts = [
    `${processor}, ${cores} cores, ${megabytes(memory)} MB, ${system}, ${browser ?? `Node ${process.version}`}; ` +
      `ernie-vil ${versions.ours}, onnxruntime-web ${versions.peer}; ` +
      `load average ${loadBefore.toFixed(2)} before and ${loadAfter.toFixed(2)} after`,
  ];
  const rows = runs.flatMap(({ where, results }) =>
    results.map(({ name, ours, peer, ratio }) => [`${where}: ${name}`, shown(ours, 1), shown(peer, 1), `**${shown(ratio, 2)}**`]),
  );
  parts.push(table(["milliseconds a call, median / least", "ours", "onnxruntime-web", "ours / peer"], rows));
  if (starts.length > 0) {
    const cells = starts.map(({ name, ours, peer, ratio }) => {
      const both = (what) => `${megabytes(ours[what])}, ${megabytes(peer[what])}`;
      return [name, shown(ours.ms, 0), shown(peer.ms, 0), shown(ratio, 2), both("wasm"), both("renderer"), both("gpu")];
    });
    const head = ["from the page's start to the first vector, ms", "ours", "onnxruntime-web", "ours / peer"];
    parts.push(table([...head, "WebAssembly memory, MB: ours, peer", "page's process, peak MB", "GPU process, peak MB"], cells));
  }
  return parts.join("\n");
}

async function main() {
  const args = options();
  const version = (folder) => JSON.parse(readFileSync(join(folder, "package.json"), "utf8")).version;
  const [{ model: processor }] = cpus();
  const report = {
    machine: { processor, cores: cpus().length, memory: totalmem(), system: type(), loadBefore: loadavg()[0] },
    versions: { ours: version(PACKAGE), peer: version(ORT) },
    runs: [],
    starts: [],
  };
  await (args.node ? inNode(args, report) : inBrowser(args, report));
  save(args, report);
  console.log(markdown(report));
}

try {
  await main();
} catch (error) {
  console.error(error.message);
  process.exitCode = error instanceof Different ? 1 : 2;
}
