// The examples of the documentation are compiled against the types that users see, and the generated types of the
// modules are compared with those that the package expects.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));

/** Compiles files in a folder below the package, where its own name leads to it. */
async function compile(files, options = {}) {
  const folder = await mkdtemp(join(root, "test", ".types-"));
  try {
    for (const [name, text] of Object.entries(files)) await writeFile(join(folder, name), text);
    const compilerOptions = {
      target: "ES2022", module: "NodeNext", lib: ["ES2022", "DOM", "DOM.Iterable", "DOM.AsyncIterable"], types: [],
      strict: true, exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true, noEmit: true, skipLibCheck: false, ...options,
    };
    await writeFile(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, include: ["*.ts"] }));
    return await new Promise((resolve) => {
      const tsc = join(root, "node_modules", "typescript", "lib", "tsc.js");
      execFile(process.execPath, [tsc, "-p", folder], (_, stdout, stderr) => resolve(`${stdout}${stderr}`));
    });
  } finally {
    await rm(folder, { recursive: true });
  }
}

const PREAMBLE = `
import * as glue from "./glue.js";
import { EmbeddingIndex, Embeddings, ErnieVil, ErnieVilError, serve } from "ernie-vil/core";
declare const model: ErnieVil, index: EmbeddingIndex, texts: Embeddings, images: Embeddings, vectors: Embeddings;
declare const files: File[], file: File, cat: File, dog: File, bytes: ArrayBuffer, url: string, oldModel: string;
declare const input: { files: FileList }, controller: AbortController, bar: HTMLProgressElement;
declare const badge: HTMLElement, button: HTMLElement, counter: HTMLElement, link: HTMLAnchorElement;
declare function warn(text: string): void;
`;

test("every example of the documentation compiles", async () => {
  const sources = (await readdir(join(root, "src"))).filter((name) => name.endsWith(".ts"));
  const examples = [];
  for (const name of [...sources.map((source) => join("src", source)), "README.md"]) {
    const text = await readFile(join(root, name), "utf8");
    for (const [, block] of text.matchAll(/^ *(?:\* )?```ts\n([^]*?)^ *(?:\* )?```$/gm)) {
      examples.push({ name, code: block.replaceAll(/^ *\* ?/gm, "").replaceAll(/^import .*$/gm, "") });
    }
  }
  assert.ok(examples.length > 40, `${examples.length} examples`);
  const glueTypes = `import type { Glue } from "ernie-vil/core";\n${["default: init", "version", "kind", "threads", "sha256", "ModelLoader", "Index", "recall"]
    .map((entry) => {
      const [name, local = name] = entry.split(": ");
      return name === "default" ? `declare const ${local}: Glue["default"]; export default ${local};` : `export declare const ${name}: Glue["${name}"];`;
    })
    .join("\n")}`;
  // An index of a list is taken as given in an example, as in most projects.
  const functions = examples.map(({ name, code }, i) => `// ${name}\nasync function example${i}() {\n${code}\n}`);
  const output = await compile(
    { "glue.d.ts": glueTypes, "examples.ts": `${PREAMBLE}${functions.join("\n")}` },
    { noUncheckedIndexedAccess: false },
  );
  assert.equal(output, "");
});

test("wrong uses do not compile", async () => {
  const wrong = {
    "option.ts": `import { ErnieVil } from "ernie-vil"; await ErnieVil.load("/", { device: "gpu" });`,
    "list.ts": `import type { ErnieVil } from "ernie-vil"; export const f = (model: ErnieVil) => model.embedText("猫");`,
    "code.ts": `import type { ErnieVilError } from "ernie-vil"; export const f = (error: ErnieVilError) => error.code === "lost";`,
    "hook.ts": `import type { ErnieVil } from "ernie-vil"; export const f = (model: ErnieVil) => model.simulateDeviceLoss();`,
  };
  const output = await compile(wrong);
  for (const name of Object.keys(wrong)) assert.ok(output.includes(name), `${name} compiles`);
  assert.equal(output.match(/error TS/g).length, Object.keys(wrong).length, output);
});

for (const name of ["cpu", "cpu-threads", "webgpu"]) {
  const glue = join(root, "wasm", name, "ernie_vil.js");
  test(`the module ${name} has the types that the package expects`, { skip: !existsSync(glue) && `${glue} is not built` }, async () => {
    const check = `import type { Glue } from "ernie-vil/core";\nimport * as glue from "ernie-vil/wasm/${name}/ernie_vil.js";\nexport const expected: Glue = glue;\n`;
    assert.equal(await compile({ "check.ts": check }, { skipLibCheck: true }), "");
  });
}
