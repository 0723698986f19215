import { createHash } from "node:crypto";
import { readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { basename, dirname, join, relative, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { type Plugin, defineConfig } from "vite";

/** What the page may do: it talks to the server that it came from, and to nobody else. */
const POLICY = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "style-src 'self'",
  "img-src 'self' blob: data:",
  "connect-src 'self' blob: data:",
  "worker-src 'self' blob:",
  "manifest-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
].join("; ");

/** Without the first two a page has no threads of WebAssembly. */
const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};
const HEADERS = { ...ISOLATION, "Content-Security-Policy": `${POLICY}; frame-ancestors 'none'`, "X-Content-Type-Options": "nosniff" };

/** Writes the policy into the page, so that it holds on whatever server the page lies. */
function policy(): Plugin {
  return {
    name: "policy",
    apply: "build",
    transformIndexHtml: () => [
      { tag: "meta", attrs: { "http-equiv": "Content-Security-Policy", content: POLICY }, injectTo: "head-prepend" },
    ],
  };
}

/** Tells the service worker which files the build has made: all but itself and the models, which the package keeps. */
function precache(): Plugin {
  let folder = "";
  const below = (path: string): string[] =>
    readdirSync(path, { withFileTypes: true }).flatMap((entry) => {
      const inner = join(path, entry.name);
      return entry.isDirectory() ? below(inner) : [inner];
    });
  return {
    name: "precache",
    apply: "build",
    configResolved: ({ root, build }) => void (folder = resolve(root, build.outDir)),
    closeBundle() {
      const hash = createHash("sha256");
      const files = below(folder)
        .map((path) => ({ path, url: relative(folder, path).split(sep).join("/") }))
        .filter(({ url }) => url !== "sw.js" && !url.startsWith("models/") && !url.endsWith(".map"))
        .sort((a, b) => (a.url < b.url ? -1 : 1))
        .map(({ path, url }) => {
          hash.update(url).update(readFileSync(path));
          return { url, size: statSync(path).size };
        });
      const script = join(folder, "sw.js");
      const source = readFileSync(script, "utf8");
      const filled = source.replace(/(["'`])%BUILD%\1/, () => JSON.stringify({ version: hash.digest("hex").slice(0, 12), files }));
      if (filled === source) throw new Error("sw.js has no place for the list of files");
      writeFileSync(script, filled);
    },
  };
}

export default defineConfig({
  base: "./",
  // A file that is not there is an error, and not the page once more.
  appType: "mpa",
  plugins: [policy(), precache()],
  define: { __HEADERS__: JSON.stringify(HEADERS) },
  worker: {
    format: "es",
    rolldownOptions: { output: { assetFileNames: nameAsset } },
  },
  build: {
    target: "es2022",
    sourcemap: true,
    // What the page loads are files of its own: the policy allows no others.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rolldownOptions: {
      input: { index: fileURLToPath(new URL("index.html", import.meta.url)), sw: fileURLToPath(new URL("src/sw.ts", import.meta.url)) },
      output: {
        entryFileNames: ({ name }) => (name === "sw" ? "sw.js" : "assets/[name]-[hash].js"),
        assetFileNames: nameAsset,
      },
    },
  },
  // The package lies beside this folder.
  server: { headers: ISOLATION, fs: { allow: [".."] } },
  preview: { headers: HEADERS },
});

/** Every module of the package has the same name; its folder tells which one it is. */
function nameAsset({ originalFileNames }: { originalFileNames: string[] }): string {
  const [original = ""] = originalFileNames;
  const build = original.endsWith(".wasm") ? `${basename(dirname(original))}-` : "";
  return `assets/${build}[name]-[hash][extname]`;
}
