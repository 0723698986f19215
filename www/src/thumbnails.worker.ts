// Makes thumbnails beside the page: decodes a file small, packs it, and names the file by its content.
import type { Thumbnail, ThumbnailJob } from "./thumbnails.js";

/** Pixels of a thumbnail's longer side. */
const SIDE = 384;
/** What is longer than wide by more than this is drawn smaller once more. */
const SLACK = 1.5;

/** What workers have; TypeScript knows it in its worker library only. */
const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<ThumbnailJob>) => void) | null;
  postMessage(message: Thumbnail): void;
};

async function nameOf(file: Blob): Promise<string> {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  return Array.from(hash.subarray(0, 16), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function shrink(file: Blob): Promise<Blob> {
  const bitmap = await createImageBitmap(file, { resizeWidth: SIDE, resizeQuality: "medium" });
  try {
    const scale = bitmap.height > SIDE * SLACK ? SIDE / bitmap.height : 1;
    const width = Math.max(1, Math.round(bitmap.width * scale));
    const height = Math.max(1, Math.round(bitmap.height * scale));
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    if (!context) throw new Error("there is no canvas");
    context.drawImage(bitmap, 0, 0, width, height);
    // Browsers that cannot write WebP write PNG instead, which is large for photographs.
    const webp = await canvas.convertToBlob({ type: "image/webp", quality: 0.85 });
    return webp.type === "image/webp" ? webp : await canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 });
  } finally {
    bitmap.close();
  }
}

scope.onmessage = async ({ data: { job, file } }) => {
  try {
    const name = await nameOf(file);
    // The package decodes formats that browsers do not; such a picture goes without a thumbnail.
    scope.postMessage({ job, name, blob: await shrink(file).catch(() => undefined) });
  } catch (thrown) {
    scope.postMessage({ job, error: thrown instanceof Error ? thrown.message : String(thrown) });
  }
};
