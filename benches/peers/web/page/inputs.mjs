// The pictures and captions that both sides get: the same ones in every run.

const MEAN = [0.485, 0.456, 0.406];
const STD = [0.229, 0.224, 0.225];
/** In the made-up vocabulary: [CLS], [SEP], and the first of its characters, which follow one another as in Unicode. */
const [CLS, SEP, FIRST] = [1, 2, 4];
const CHARACTERS = { first: 0x4e00, count: 0x1000 };
/** Tokens of a caption, [CLS] and [SEP] included. */
export const TOKENS = 12;

/** Numbers in [0, 1) that depend on the seed alone. */
function random(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** `count` pictures of `size` by `size` pixels: colours that run into one another, and some noise. */
export function pictures(count, size) {
  return Array.from({ length: count }, (_, picture) => {
    const next = random(picture + 1);
    const waves = Array.from({ length: 3 }, () => [6, 6, 2 * Math.PI].map((range) => next() * range));
    const data = new Uint8ClampedArray(4 * size * size).fill(255);
    for (let pixel = 0; pixel < size * size; pixel++) {
      const [x, y] = [(pixel % size) / size, Math.floor(pixel / size) / size];
      waves.forEach(([across, down, phase], channel) => {
        data[4 * pixel + channel] = 128 + 100 * Math.sin(across * x + down * y + phase) + 40 * (next() - 0.5);
      });
    }
    return { data, width: size, height: size };
  });
}

/** What an image tower takes of `pictures`: planes of red, green and blue for each, normalised. */
export function pixels(count, size) {
  const plane = size * size;
  const values = new Float32Array(count * 3 * plane);
  pictures(count, size).forEach(({ data }, picture) => {
    for (let channel = 0; channel < 3; channel++) {
      for (let pixel = 0; pixel < plane; pixel++) {
        const value = (data[4 * pixel + channel] / 255 - MEAN[channel]) / STD[channel];
        values[(3 * picture + channel) * plane + pixel] = value;
      }
    }
  });
  return values;
}

/** `count` captions as places in the list of characters. */
function characters(count) {
  const next = random(99);
  return Array.from({ length: count }, () => Array.from({ length: TOKENS - 2 }, () => Math.floor(next() * CHARACTERS.count)));
}

/** `count` captions of TOKENS tokens. */
export function captions(count) {
  return characters(count).map((caption) => String.fromCodePoint(...caption.map((index) => CHARACTERS.first + index)));
}

/** What a text tower takes of `captions`. */
export function ids(count) {
  const rows = characters(count).map((caption) => [CLS, ...caption.map((index) => FIRST + index), SEP]);
  return BigInt64Array.from(rows.flat(), BigInt);
}
