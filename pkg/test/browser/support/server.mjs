// A server for pages, the package and model folders, that can misbehave.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

import { cut, send } from "../../support/server.mjs";
import { pkg } from "./native.mjs";

export { cut, send };

const TYPES = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".json": "application/json", ".wasm": "application/wasm" };
const PAGE = `<!doctype html><meta charset="utf-8"><title>test</title><link rel="icon" href="data:,">
<script type="module">
  import * as api from "/pkg/dist/index.js";
  import * as tools from "/pkg/test/browser/support/page.mjs";
  Object.assign(globalThis, api, tools);
</script>`;

/**
 * Serves `folders`, a path's first part to a folder on the disk; `pkg` is among them, and "/" is a page with the package.
 *
 * @param options `isolated`: whether pages are cross-origin isolated
 * @returns `seen`: the requests so far; `misbehave`: may be set to a function that answers itself and returns true
 */
export async function serve(folders, { isolated = false } = {}) {
  const served = { seen: [], misbehave: undefined, open: 0 };
  const server = createServer(async (request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, "http://x").pathname));
    const [, first = "", ...rest] = path.split("/");
    const entry = { path, name: rest.at(-1), range: request.headers.range, closed: false };
    served.seen.push(entry);
    served.open += 1;
    response.on("close", () => {
      served.open -= 1;
      entry.closed = true;
    });
    response.setHeader("access-control-allow-origin", "*");
    response.setHeader("cross-origin-resource-policy", "cross-origin");
    if (isolated) {
      response.setHeader("cross-origin-opener-policy", "same-origin");
      response.setHeader("cross-origin-embedder-policy", "require-corp");
    }
    const folder = { pkg, ...folders }[first];
    const bytes = path === "/" ? Buffer.from(PAGE) : await readFile(join(folder ?? "", ...rest)).catch(() => undefined);
    response.setHeader("content-type", path === "/" ? TYPES[".html"] : (TYPES[extname(path)] ?? "application/octet-stream"));
    const count = served.seen.filter((other) => other.path === path).length;
    if (served.misbehave?.({ ...entry, count, request, response, bytes })) return;
    if (bytes && (folder || path === "/")) send(request, response, bytes);
    else response.writeHead(404).end();
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const close = () =>
    new Promise((resolve) => {
      server.close(resolve);
      server.closeAllConnections();
    });
  return Object.assign(served, { url: `http://127.0.0.1:${server.address().port}/`, close });
}
