// From what a page has of an image to what the module takes.
import type { Bytes } from "./bytes.js";
import { bytesOf, compact } from "./bytes.js";
import { ErnieVilError, asError } from "./errors.js";
import { fetchBytes } from "./http.js";
import type { WasmModel } from "./module.js";
import { absoluteUrl } from "./url.js";

/** Pixels, four bytes each (red, green, blue, alpha), row by row from the top: an `ImageData`, or the like. */
export interface Pixels {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
}

/**
 * An image in any form that a page has it in.
 *
 * A file's bytes (`Blob`, `File`, `ArrayBuffer`, `Uint8Array`, or an address to fetch) are decoded by the package: JPEG, PNG,
 * WebP, BMP, TIFF and PNM give the very pixels that the original computes with. What the browser has decoded already
 * (`ImageBitmap`, `ImageData`, canvas, video frame) may differ from them by a level or two. Files of other formats (AVIF, GIF, HEIC) are decoded
 * by the browser where it can. Of an `<img>` the file is fetched again, from the browser's cache; where that is not
 * possible its pixels are taken. In Node, Deno and Bun a string that is no address is the path of a file.
 */
export type ImageInput =
  | Blob
  | ArrayBuffer
  | ArrayBufferView
  | string
  | URL
  | Pixels
  | ImageBitmap
  | HTMLImageElement
  | HTMLCanvasElement
  | HTMLVideoElement
  | OffscreenCanvas
  | VideoFrame;

/** An image in a form that can be posted. */
export type ImagePayload = { name: string } & (
  | { blob: Blob }
  | { bytes: Uint8Array }
  | { url: string }
  | { pixels: Pixels }
  /** `own`: whether it may be closed after use. */
  | { bitmap: ImageBitmap; own: boolean }
);

/** A payload and the parts of it that are handed over and not copied. */
export interface PreparedImage {
  payload: ImagePayload;
  transfer: Transferable[];
}

/** No image file may be larger. */
const LARGEST_FILE = 1 << 28;

/** @returns whether `value` is an instance of a class that this runtime may not have */
function is(value: unknown, ...names: string[]): boolean {
  return names.some((name) => {
    const type = (globalThis as Record<string, unknown>)[name];
    return typeof type === "function" && value instanceof type;
  });
}

/**
 * Prepares an image for its way to the thread with the module.
 *
 * @param position its place in the call, for error messages
 * @throws ErnieVilError `argument` where it is no image, `image` where it has no pixels yet
 */
export async function prepareImage(input: ImageInput, position: number): Promise<PreparedImage> {
  const name = `image ${position}`;
  const plain = (payload: ImagePayload): PreparedImage => ({ payload, transfer: [] });
  if (typeof input === "string" || input instanceof URL) {
    const url = absoluteUrl(input);
    return plain({ name: url, url });
  }
  if (input instanceof Blob) return plain({ name: (input as Partial<File>).name || name, blob: input });
  if (input instanceof ArrayBuffer || ArrayBuffer.isView(input)) return plain({ name, bytes: compact(bytesOf(input)) });
  if (is(input, "ImageBitmap")) return plain({ name, bitmap: input as ImageBitmap, own: false });
  if (is(input, "HTMLImageElement")) {
    const image = input as HTMLImageElement;
    const source = image.currentSrc || image.src;
    const file = source ? await fetchQuietly(source) : undefined;
    if (file && isDecodable(file)) return { payload: { name: source, bytes: file }, transfer: [file.buffer] };
    return bitmapOf(image, source || name);
  }
  if (is(input, "HTMLCanvasElement", "OffscreenCanvas", "HTMLVideoElement", "VideoFrame")) {
    return bitmapOf(input as ImageBitmapSource, name);
  }
  const { data, width, height } = (input ?? {}) as Partial<Pixels>;
  if (ArrayBuffer.isView(data) && typeof width === "number" && typeof height === "number") {
    if (data.length !== width * height * 4) {
      throw new ErnieVilError("argument", `${name}: ${width} x ${height} pixels have ${width * height * 4} bytes, not ${data.length}`);
    }
    return plain({ name, pixels: { data, width, height } });
  }
  throw new ErnieVilError("argument", `${name} is nothing that an image can be taken from (${Object.prototype.toString.call(input)})`);
}

async function fetchQuietly(url: string): Promise<Bytes | undefined> {
  try {
    return await fetchBytes(url, LARGEST_FILE, { cache: "force-cache" }, undefined);
  } catch {
    return undefined;
  }
}

async function bitmapOf(source: ImageBitmapSource, name: string): Promise<PreparedImage> {
  try {
    const bitmap = await createImageBitmap(source, PLAIN_PIXELS);
    return { payload: { name, bitmap, own: true }, transfer: [bitmap] };
  } catch (thrown) {
    throw asError(thrown, "image", `${name} has no pixels that can be taken`);
  }
}

/** As the original does: a file's colours as they are written, whatever profile it names, and no alpha multiplied in. */
const PLAIN_PIXELS: ImageBitmapOptions = { premultiplyAlpha: "none", colorSpaceConversion: "none" };

/** @returns whether the module knows a file's format, by its first bytes */
export function isDecodable(file: Uint8Array): boolean {
  const text = String.fromCharCode(...file.subarray(0, 12));
  return /^(\xff\xd8\xff|\x89PNG|RIFF[^]{4}WEBP|BM|II\*\0|MM\0\*|P[1-7]\s)/.test(text);
}

/**
 * Computes what an image tower sees of an image: a byte each for red, green and blue of its crop's pixels.
 *
 * @throws ErnieVilError `image` names the image that cannot be decoded; `http` and `network` where it cannot be fetched
 */
export async function readCrop(model: WasmModel, payload: ImagePayload, signal: AbortSignal | undefined): Promise<Uint8Array> {
  const source = await read(payload, signal);
  return named(payload.name, () =>
    source instanceof Uint8Array ? model.crop(source) : model.cropRgba(source.data, source.width, source.height),
  );
}

/**
 * An image as a file that the native program decodes: its own, or its pixels as they are.
 *
 * @throws ErnieVilError `image` names the image that cannot be read; `http` and `network` where it cannot be fetched
 */
export async function readEncoded(payload: ImagePayload, signal: AbortSignal | undefined): Promise<Uint8Array> {
  const source = await read(payload, signal);
  if (source instanceof Uint8Array) return source;
  const { data, width, height } = source;
  const head = new TextEncoder().encode(`P6 ${width} ${height} 255\n`);
  const file = new Uint8Array(head.length + 3 * width * height);
  file.set(head);
  for (let from = 0, to = head.length; to < file.length; from += 4, to += 3) {
    file[to] = data[from] as number;
    file[to + 1] = data[from + 1] as number;
    file[to + 2] = data[from + 2] as number;
  }
  return file;
}

interface Rgba {
  data: Uint8Array;
  width: number;
  height: number;
}

/** @returns a file that the module decodes, or pixels */
async function read(payload: ImagePayload, signal: AbortSignal | undefined): Promise<Uint8Array | Rgba> {
  const { name } = payload;
  if ("url" in payload) return decoded(await fetchBytes(payload.url, LARGEST_FILE, {}, signal));
  if ("bytes" in payload) return decoded(payload.bytes);
  if ("pixels" in payload) return { ...payload.pixels, data: bytesOf(payload.pixels.data) };
  if ("bitmap" in payload) {
    try {
      return named(name, () => drawn(payload.bitmap));
    } finally {
      if (payload.own) payload.bitmap.close();
    }
  }
  if (payload.blob.size > LARGEST_FILE) throw new ErnieVilError("image", `${name} has more than ${LARGEST_FILE} bytes`);
  let bytes: Bytes;
  try {
    bytes = new Uint8Array(await payload.blob.arrayBuffer());
  } catch (thrown) {
    throw new ErnieVilError("image", `${name} could not be read`, { cause: thrown });
  }
  return decoded(bytes);
}

/** Has the browser decode what the module does not. */
async function decoded(file: Uint8Array): Promise<Uint8Array | Rgba> {
  if (isDecodable(file) || typeof createImageBitmap !== "function") return file;
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(new Blob([file as Bytes]), PLAIN_PIXELS);
  } catch {
    // The module's message says what was found in the file.
    return file;
  }
  try {
    return drawn(bitmap);
  } finally {
    bitmap.close();
  }
}

function named<T>(name: string, work: () => T): T {
  try {
    return work();
  } catch (thrown) {
    const { code, message } = asError(thrown);
    throw new ErnieVilError(code, `${name}: ${message}`, { cause: thrown });
  }
}

function drawn(bitmap: ImageBitmap): Rgba {
  const { width, height } = bitmap;
  const context = canvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new ErnieVilError("image", `an image of ${width} x ${height} pixels is too large for the browser`);
  context.drawImage(bitmap, 0, 0);
  return { data: bytesOf(context.getImageData(0, 0, width, height).data), width, height };
}

function canvas(width: number, height: number): { getContext(type: "2d", options: object): CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D | null } {
  if (typeof OffscreenCanvas !== "undefined") return new OffscreenCanvas(width, height) as never;
  return Object.assign(document.createElement("canvas"), { width, height }) as never;
}
