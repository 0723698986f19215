import { crc32, deflateSync } from "node:zlib";

/** A grey PNG file of one colour, small however many pixels it has; with the first `rows` rows only. */
export function greyPng(width, height, level, rows = height) {
  const chunk = (type, data) => {
    const content = Buffer.concat([Buffer.from(type), data]);
    const ends = [Buffer.alloc(4), Buffer.alloc(4)];
    ends[0].writeUInt32BE(data.length);
    ends[1].writeUInt32BE(crc32(content));
    return Buffer.concat([ends[0], content, ends[1]]);
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header[8] = 8;
  const row = Buffer.concat([Buffer.of(0), Buffer.alloc(width, level)]);
  const pixels = Buffer.concat(Array(rows).fill(row));
  const signature = Buffer.from("\x89PNG\r\n\x1a\n", "latin1");
  return Buffer.concat([signature, chunk("IHDR", header), chunk("IDAT", deflateSync(pixels)), chunk("IEND", Buffer.alloc(0))]);
}
