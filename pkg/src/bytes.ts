/** Bytes that are nobody else's and not shared between threads. */
export type Bytes = Uint8Array<ArrayBuffer>;

/** @returns the pieces behind one another */
export function concat(pieces: readonly Uint8Array[]): Bytes {
  const whole = new Uint8Array(pieces.reduce((length, piece) => length + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

/** @returns the same values, copied where they are part of a larger buffer: posting a view copies all of its buffer */
export function compact<T extends Uint8Array | Float32Array>(view: T): T {
  return view.byteLength === view.buffer.byteLength ? view : (view.slice() as T);
}

/** @returns the bytes of a buffer or of a view, without a copy */
export function bytesOf(source: ArrayBuffer | ArrayBufferView): Uint8Array {
  return source instanceof ArrayBuffer
    ? new Uint8Array(source)
    : new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
}

/** @returns the bytes in base64 */
export function base64(bytes: Uint8Array): string {
  // As many characters as a call takes as arguments everywhere; a multiple of three, so that the parts can be joined.
  const step = 3 * 8192;
  const parts: string[] = [];
  for (let at = 0; at < bytes.length; at += step) parts.push(btoa(String.fromCharCode(...bytes.subarray(at, at + step))));
  return parts.join("");
}

/** @returns the bytes that are written in base64 */
export function fromBase64(text: string): Bytes {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}
