// A model folder of made-up bytes and a server for it that can misbehave.
import { createHash } from "node:crypto";
import { createServer } from "node:http";

export const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

/** Bytes that look random and depend on the name only. */
export function noise(name, size) {
  const bytes = new Uint8Array(size);
  let state = 2166136261;
  for (const char of name) state = Math.imul(state ^ char.codePointAt(0), 16777619);
  for (let i = 0; i < size; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

/** A model folder: `files` by name and `manifest`; towers in shards of `shardSize`. */
export function modelFolder({ imageSize = 300_000, textSize = 200_000, shardSize = 64 * 1024, seed = "" } = {}) {
  const content = {
    "config.json": Buffer.from(`{"seed":"${seed}"}`),
    "vocab.txt": Buffer.from("猫\t0"),
    "image.safetensors": noise(`image${seed}`, imageSize),
    "text.safetensors": noise(`text${seed}`, textSize),
  };
  const files = {};
  const entries = Object.entries(content).map(([name, bytes]) => {
    const entry = { name, size: bytes.length, sha256: sha256(bytes) };
    if (!name.endsWith(".safetensors")) {
      files[name] = bytes;
      return entry;
    }
    entry.shards = [];
    for (let at = 0, n = 0; at < bytes.length; at += shardSize, n++) {
      const part = bytes.slice(at, at + shardSize);
      const shard = `${name}.${String(n).padStart(2, "0")}`;
      files[shard] = part;
      entry.shards.push({ name: shard, size: part.length, sha256: sha256(part) });
    }
    return entry;
  });
  const manifest = { format: 1, files: entries };
  files["manifest.json"] = Buffer.from(JSON.stringify(manifest));
  return { files, content, manifest };
}

/**
 * Serves files; `misbehave({ name, count, request, response, bytes })` may answer itself by returning true. `seen` lists the requests.
 */
export async function serve(files, misbehave = () => false) {
  const seen = [];
  let open = 0;
  const stats = { most: 0 };
  const server = createServer(async (request, response) => {
    const name = decodeURIComponent(new URL(request.url, "http://x").pathname.slice(1));
    const bytes = files[name];
    seen.push({ name, range: request.headers.range });
    const count = seen.filter((entry) => entry.name === name).length;
    open += 1;
    stats.most = Math.max(stats.most, open);
    response.on("close", () => (open -= 1));
    if (await misbehave({ name, count, request, response, bytes })) return;
    if (!bytes) {
      response.writeHead(404).end();
      return;
    }
    send(request, response, bytes);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const close = () => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  };
  return { url: `http://127.0.0.1:${server.address().port}/`, seen, stats, close };
}

/** Answers with bytes, or with the part of them that was asked for. */
export function send(request, response, bytes) {
  const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
  if (start >= bytes.length && start > 0) {
    response.writeHead(416).end();
  } else if (start > 0) {
    response.writeHead(206, {
      "content-length": bytes.length - start,
      "content-range": `bytes ${start}-${bytes.length - 1}/${bytes.length}`,
    });
    response.end(bytes.subarray(start));
  } else {
    response.writeHead(200, { "content-length": bytes.length }).end(bytes);
  }
}

/** Sends a part of what was promised and breaks the connection. */
export function cut(request, response, bytes, part, status = 200, start = 0) {
  const headers = { "content-length": bytes.length - start };
  if (status === 206) headers["content-range"] = `bytes ${start}-${bytes.length - 1}/${bytes.length}`;
  response.writeHead(status, headers);
  // A browser that is busy loses what it has not passed on when the connection breaks.
  response.write(bytes.subarray(start, start + part), () => setTimeout(() => response.destroy(), 300));
  return true;
}
