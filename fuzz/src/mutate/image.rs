//! Pictures by their chunks, segments, tables and headers.

use super::{Random, items, noise};

pub fn change(random: &mut Random, bytes: &[u8], most: usize) -> Vec<u8> {
    let changed = match bytes {
        [0x89, b'P', b'N', b'G', ..] => png(random, bytes, most),
        [0xff, 0xd8, ..] => jpeg(random, bytes, most),
        [b'I', b'I', 42, 0, ..] => tiff(random, bytes, false, most),
        [b'M', b'M', 0, 42, ..] => tiff(random, bytes, true, most),
        [b'R', b'I', b'F', b'F', ..] => webp(random, bytes),
        [b'B', b'M', ..] => bmp(random, bytes),
        [b'P', b'1'..=b'7', ..] => pnm(random, bytes),
        _ => None,
    };
    changed.unwrap_or_else(|| noise(random, bytes.to_vec()))
}

/// Sets a number of `width` bytes to one in its place.
fn set(
    random: &mut Random,
    bytes: &mut [u8],
    at: usize,
    width: usize,
    big_endian: bool,
    choices: &[u64],
) -> Option<()> {
    let place = bytes.get_mut(at..at + width)?;
    let mut digits = [0; 8];
    digits[..width].copy_from_slice(place);
    if big_endian {
        digits[..width].reverse();
    }
    let old = u64::from_le_bytes(digits);
    let new = match !choices.is_empty() && !random.one_in(4) {
        true => random.pick(choices),
        false => random.number(old),
    };
    place.copy_from_slice(&new.to_le_bytes()[..width]);
    if big_endian {
        place.reverse();
    }
    Some(())
}

/// A chunk of a PNG or of a RIFF file.
#[derive(Clone)]
struct Chunk {
    kind: [u8; 4],
    data: Vec<u8>,
    /// What is said to be its length.
    length: u32,
    /// Whether its checksum is right.
    sound: bool,
}

impl Chunk {
    fn new(kind: &[u8; 4], data: Vec<u8>) -> Self {
        Self {
            kind: *kind,
            length: data.len() as u32,
            data,
            sound: true,
        }
    }

    /// Another length, true or not.
    fn resize(&mut self, random: &mut Random) {
        let length = random.number(self.data.len() as u64) as usize;
        match random.below(3) {
            0 => self.length = length as u32,
            _ => {
                self.data.resize(length.min(1024), random.byte());
                self.length = self.data.len() as u32;
            }
        }
    }
}

const PNG_CHUNKS: [&[u8; 4]; 20] = [
    b"PLTE", b"tRNS", b"gAMA", b"acTL", b"fcTL", b"fdAT", b"iCCP", b"cICP", b"sBIT", b"bKGD", b"hIST",
    b"pHYs", b"eXIf", b"sRGB", b"cHRM", b"tEXt", b"zTXt", b"iTXt", b"IEND", b"IDAT",
];

fn png(random: &mut Random, bytes: &[u8], most: usize) -> Option<Vec<u8>> {
    let (signature, mut rest) = bytes.split_at_checked(8)?;
    let mut chunks = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<4>()
        && let Some((kind, behind)) = behind.split_first_chunk::<4>()
        && let Some((data, behind)) = behind.split_at_checked(u32::from_be_bytes(*length) as usize)
        && let Some((_, behind)) = behind.split_first_chunk::<4>()
    {
        chunks.push(Chunk::new(kind, data.to_vec()));
        rest = behind;
    }
    match random.below(6) {
        0 => {
            let head = chunks.iter_mut().find(|chunk| &chunk.kind == b"IHDR")?;
            let (at, width, choices): (usize, usize, &[u64]) = random.pick(&[
                (0, 4, &[1, 2, 7, 8, 9, 31, 32, 33, 300]),
                (4, 4, &[1, 2, 7, 8, 9, 31, 32, 33, 300]),
                (8, 1, &[1, 2, 4, 8, 16]),
                (9, 1, &[0, 2, 3, 4, 6]),
                (10, 1, &[0]),
                (11, 1, &[0]),
                (12, 1, &[0, 1]),
            ]);
            set(random, &mut head.data, at, width, true, choices)?;
        }
        1 => {
            let length = random.pick(&[0, 1, 2, 3, 4, 8, 9, 26, 48, 255, 256, 257, 765, 768, 771, 900]);
            let kind = random.pick(&PNG_CHUNKS);
            let data = random.bytes(length);
            let at = random.below(chunks.len() + 1);
            chunks.insert(at, Chunk::new(kind, data));
        }
        // Rows that were never compressed, as many as the header asks for, or nearly.
        2 => {
            let head = chunks.iter().find(|chunk| &chunk.kind == b"IHDR")?.data.clone();
            let number = |at: usize| Some(u32::from_be_bytes(head.get(at..at + 4)?.try_into().ok()?));
            let (width, height) = (u64::from(number(0)?), u64::from(number(4)?));
            let samples = [1, 0, 3, 1, 2, 0, 4]
                .get(usize::from(*head.get(9)?))
                .copied()
                .unwrap_or(1);
            let row = (width * samples * u64::from(*head.get(8)?)).div_ceil(8);
            let row = row.min(most as u64 / 2) as usize;
            let rows = height.min(most as u64 / 2 / (row as u64 + 1)) as usize;
            let mut data = Vec::new();
            for _ in 0..rows {
                data.push(if random.one_in(64) {
                    random.byte()
                } else {
                    random.below(5) as u8
                });
                data.extend(random.bytes(row));
            }
            match random.below(8) {
                0 => data.truncate(random.below(data.len() + 1)),
                1 => data.extend(random.bytes(300)),
                _ => {}
            }
            chunks.retain(|chunk| &chunk.kind != b"IDAT");
            let at = chunks
                .iter()
                .position(|chunk| &chunk.kind == b"IEND")
                .unwrap_or(chunks.len());
            let stored = stored(&data);
            let piece = 1 + random.below(stored.len());
            let pieces = stored
                .chunks(piece.max(stored.len() / 8))
                .map(|piece| Chunk::new(b"IDAT", piece.to_vec()));
            chunks.splice(at..at, pieces.collect::<Vec<_>>());
        }
        _ => items(random, &mut chunks, |random, chunk| match random.below(5) {
            0 | 1 => chunk.resize(random),
            2 => chunk.kind = *random.pick(&PNG_CHUNKS),
            3 => chunk.sound = false,
            _ => chunk.data = noise(random, std::mem::take(&mut chunk.data)),
        }),
    }
    let mut file = signature.to_vec();
    for chunk in &chunks {
        file.extend(chunk.length.to_be_bytes());
        file.extend(chunk.kind);
        file.extend(&chunk.data);
        let sum = crc32([&chunk.kind[..], &chunk.data].concat().as_slice());
        file.extend((sum ^ u32::from(!chunk.sound)).to_be_bytes());
        if file.len() > most {
            break;
        }
    }
    file.extend(rest);
    Some(file)
}

/// A zlib stream of stored blocks.
fn stored(data: &[u8]) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01];
    let mut blocks = data.chunks(0xffff).peekable();
    if blocks.peek().is_none() {
        stream.extend([1, 0, 0, 0xff, 0xff]);
    }
    while let Some(block) = blocks.next() {
        let length = block.len() as u16;
        stream.push(u8::from(blocks.peek().is_none()));
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(block);
    }
    let (low, high) = data.iter().fold((1u32, 0u32), |(low, high), &byte| {
        let low = (low + u32::from(byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    stream.extend((high << 16 | low).to_be_bytes());
    stream
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    !crc
}

/// A segment of a JPEG with the compressed data behind it.
#[derive(Clone)]
struct Segment {
    marker: u8,
    /// None for a marker alone.
    data: Option<Vec<u8>>,
    /// What is said to be its length.
    length: Option<u16>,
    coded: Vec<u8>,
}

fn jpeg(random: &mut Random, bytes: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut segments = Vec::new();
    let mut at = 0;
    while let Some(&[0xff, marker]) = bytes.get(at..at + 2) {
        at += 2;
        let is_alone = matches!(marker, 0xd0..=0xd9 | 0x01);
        let data = match is_alone {
            true => None,
            false => {
                let length = usize::from(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
                let data = bytes.get(at + 2..at + length)?.to_vec();
                at += length;
                Some(data)
            }
        };
        // Up to the next marker that ends a scan.
        let is_end = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xd0..=0xd7 | 0xff);
        let coded = bytes[at..]
            .windows(2)
            .position(is_end)
            .unwrap_or(bytes.len() - at);
        segments.push(Segment {
            marker,
            data,
            length: None,
            coded: bytes[at..at + coded].to_vec(),
        });
        at += coded;
    }
    match random.below(8) {
        // A table, or a restart interval, or what applications say.
        0 => {
            let (marker, data): (u8, Vec<u8>) = match random.below(5) {
                0 => (0xdd, (random.number(4) as u16).to_be_bytes().to_vec()),
                1 => (
                    0xee,
                    [b"Adobe\0d\0\0\0\0".as_slice(), &[random.below(4) as u8]].concat(),
                ),
                2 => (
                    0xe1,
                    [
                        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".as_slice(),
                        &[random.below(10) as u8, 0, 0],
                    ]
                    .concat(),
                ),
                3 => {
                    let count = random.pick(&[0, 16, 17, 28, 179, 272]);
                    (0xc4, random.bytes(count))
                }
                _ => {
                    let count = random.pick(&[0, 1, 64, 65, 129]);
                    (0xdb, random.bytes(count))
                }
            };
            let place = 1 + random.below(segments.len());
            let new = Segment {
                marker,
                data: Some(data),
                length: None,
                coded: Vec::new(),
            };
            segments.insert(place.min(segments.len()), new);
        }
        // The frame.
        1 | 2 => {
            let frame = segments.iter_mut().find(
                |segment| matches!(segment.marker, 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf),
            )?;
            if random.one_in(4) {
                frame.marker = random.pick(&[0xc0, 0xc1, 0xc2, 0xc3, 0xc5, 0xc9, 0xca, 0xcb]);
            } else {
                let data = frame.data.as_mut()?;
                let (at, width, choices): (usize, usize, &[u64]) = match random.below(4) {
                    0 => random.pick(&[
                        (0, 1, &[8, 12, 16][..]),
                        (1, 2, &[0, 1, 8, 17, 500]),
                        (3, 2, &[0, 1, 8, 17, 500]),
                        (5, 1, &[1, 3, 4]),
                    ]),
                    1 => (6 + 3 * random.below(4), 1, &[]),
                    2 => (
                        7 + 3 * random.below(4),
                        1,
                        &[0x11, 0x12, 0x21, 0x22, 0x41, 0x14, 0x44, 0x31, 0x13],
                    ),
                    _ => (8 + 3 * random.below(4), 1, &[0, 1, 2, 3]),
                };
                set(random, data, at, width, true, choices)?;
            }
        }
        // A scan, many times too.
        3 | 4 => {
            let scans: Vec<_> = (0..segments.len())
                .filter(|&number| segments[number].marker == 0xda)
                .collect();
            let at = scans[random.place(scans.len())?];
            if random.one_in(3) {
                let mut scan = segments[at].clone();
                if random.one_in(2) {
                    scan.coded.clear();
                }
                let size = 4 + scan.data.as_ref().map_or(0, Vec::len) + scan.coded.len();
                let times = (1usize << random.below(13)).min(most.saturating_sub(bytes.len()) / size);
                segments.splice(at..at, vec![scan; times]);
            } else {
                let data = segments[at].data.as_mut()?;
                let place = random.below(data.len());
                set(
                    random,
                    data,
                    place,
                    1,
                    true,
                    &[0, 1, 5, 6, 63, 0x10, 0x11, 0x21, 0x0d, 0x3f],
                )?;
            }
        }
        _ => items(random, &mut segments, |random, segment| match random.below(4) {
            0 => segment.coded = noise(random, std::mem::take(&mut segment.coded)),
            1 => {
                let length = segment.data.as_ref().map_or(2, |data| data.len() + 2);
                segment.length = Some(random.number(length as u64) as u16);
            }
            2 => {
                segment.marker = random.pick(&[
                    0xc0, 0xc2, 0xc4, 0xcc, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xe0, 0xfe,
                ])
            }
            _ => segment.data = segment.data.take().map(|data| noise(random, data)),
        }),
    }
    let mut file = Vec::new();
    for segment in &segments {
        file.extend([0xff, segment.marker]);
        if let Some(data) = &segment.data {
            file.extend(
                segment
                    .length
                    .unwrap_or((data.len() as u16).wrapping_add(2))
                    .to_be_bytes(),
            );
            file.extend(data);
        }
        file.extend(&segment.coded);
        if file.len() > most {
            break;
        }
    }
    file.extend(&bytes[at..]);
    Some(file)
}

/// The fields of a TIFF that say how its pixels lie, and values to try.
const TIFF_FIELDS: [(u16, &[u64]); 22] = [
    (256, &[0, 1, 15, 16, 17, 64, 300, 70_000]),
    (257, &[0, 1, 15, 16, 17, 64, 300, 70_000]),
    (258, &[1, 2, 4, 8, 12, 16, 32]),
    (259, &[1, 2, 3, 4, 5, 6, 7, 8, 32_773, 32_946, 34_712, 50_000]),
    (262, &[0, 1, 2, 3, 5, 6, 8]),
    (266, &[1, 2]),
    (273, &[0, 8]),
    (274, &[1, 3, 6, 8, 9]),
    (277, &[0, 1, 2, 3, 4, 5]),
    (278, &[0, 1, 2, 8, 0xffff_ffff]),
    (279, &[0, 1, 1 << 20]),
    (284, &[1, 2]),
    (292, &[0, 1, 2, 4, 5]),
    (317, &[1, 2, 3]),
    (320, &[0]),
    (322, &[0, 1, 16, 32, 64, 65_536]),
    (323, &[0, 1, 16, 32, 64, 65_536]),
    (324, &[0, 8]),
    (325, &[0, 1, 1 << 20]),
    (338, &[0, 1, 2]),
    (339, &[1, 2, 3, 4]),
    (530, &[0x0002_0002, 0x0001_0001, 0x0004_0001]),
];

/// An entry of the directory: its value, or where its values lie.
#[derive(Clone, Copy)]
struct Entry {
    tag: u16,
    kind: u16,
    count: u32,
    value: [u8; 4],
}

fn tiff(random: &mut Random, bytes: &[u8], big_endian: bool, most: usize) -> Option<Vec<u8>> {
    let u16_at = |at: usize| {
        let pair: [u8; 2] = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if big_endian {
            u16::from_be_bytes(pair)
        } else {
            u16::from_le_bytes(pair)
        })
    };
    let to_u32 = |bytes: [u8; 4]| {
        if big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        }
    };
    let from_u32 = |value: u32| {
        if big_endian {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    let u32_at = |at: usize| Some(to_u32(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let directory = u32_at(4)? as usize;
    let mut entries = Vec::new();
    for number in 0..usize::from(u16_at(directory)?) {
        let at = directory + 2 + 12 * number;
        entries.push(Entry {
            tag: u16_at(at)?,
            kind: u16_at(at + 2)?,
            count: u32_at(at + 4)?,
            value: bytes.get(at + 8..at + 12)?.try_into().ok()?,
        });
    }
    let mut file = bytes.to_vec();
    // Where values lie that an entry has no room for.
    let values = |entry: &Entry| {
        let width = match entry.kind {
            1 | 2 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 => 4,
            _ => 8,
        };
        (entry.count as usize * width > 4).then(|| (to_u32(entry.value) as usize, width))
    };
    match random.below(8) {
        // A field that decides how the rest is read.
        0..=2 => {
            let (tag, choices) = random.pick(&TIFF_FIELDS);
            let value = random.pick(choices) as u32;
            let kind = random.pick(&[3, 4]);
            let mut field = from_u32(value);
            if kind == 3 && big_endian {
                field.rotate_left(2);
            }
            let new = Entry {
                tag,
                kind,
                count: 1,
                value: field,
            };
            match entries.iter().position(|entry| entry.tag == tag) {
                Some(at) if !random.one_in(8) => {
                    // All of them, where there is one for each sample.
                    match values(&entries[at]) {
                        Some((place, width)) if width <= 4 => {
                            for number in 0..entries[at].count.min(4096) as usize {
                                set(
                                    random,
                                    &mut file,
                                    place + number * width,
                                    width,
                                    big_endian,
                                    &[u64::from(value)],
                                );
                            }
                        }
                        _ => entries[at] = new,
                    }
                }
                _ => {
                    let at = entries
                        .iter()
                        .position(|entry| entry.tag > tag)
                        .unwrap_or(entries.len());
                    entries.insert(at, new);
                }
            }
        }
        // Strips or tiles that are one and the same, or many.
        3 => {
            let at = entries.iter().position(|entry| matches!(entry.tag, 273 | 324))?;
            let sizes = entries.iter().position(|entry| {
                entry.tag == entries[at].tag + [6, 1][usize::from(entries[at].tag == 324)]
            })?;
            let count = (1usize << random.below(13)).min(most.saturating_sub(bytes.len()) / 8) as u32;
            let first = |entry: &Entry| match values(entry) {
                Some((place, 4)) => u32_at(place),
                Some((place, 2)) => u16_at(place).map(u32::from),
                _ => Some(to_u32(entry.value)),
            };
            let (offset, size) = (first(&entries[at])?, first(&entries[sizes])?);
            let size = if random.one_in(2) {
                size
            } else {
                random.number(u64::from(size)) as u32
            };
            for (number, value) in [(at, offset), (sizes, size)] {
                let place = file.len() as u32;
                (0..count).for_each(|_| file.extend(from_u32(value)));
                entries[number] = Entry {
                    kind: 4,
                    count,
                    value: if count == 1 {
                        from_u32(value)
                    } else {
                        from_u32(place)
                    },
                    ..entries[number]
                };
            }
            if random.one_in(2) {
                let rows = random.pick(&[1, 2, 8]);
                let entry = entries.iter_mut().find(|entry| entry.tag == 278)?;
                *entry = Entry {
                    kind: 4,
                    count: 1,
                    value: from_u32(rows),
                    ..*entry
                };
            }
        }
        // A value of a list.
        4 => {
            let entry = entries[random.place(entries.len())?];
            let (place, width) = values(&entry)?;
            let number = random.below(entry.count as usize);
            set(
                random,
                &mut file,
                place.checked_add(number.checked_mul(width)?)?,
                width.min(4),
                big_endian,
                &[],
            )?;
        }
        // What is compressed.
        5 => {
            let at = random.below(file.len());
            let end = (at + 64).min(file.len());
            let changed = noise(random, file[at..end].to_vec());
            file.splice(at..end, changed);
        }
        _ => items(random, &mut entries, |random, entry| match random.below(4) {
            0 => entry.tag = random.pick(&TIFF_FIELDS).0,
            1 => entry.kind = random.number(u64::from(entry.kind)) as u16 % 20,
            2 => entry.count = random.number(u64::from(entry.count)) as u32,
            _ => entry.value = from_u32(random.number(u64::from(to_u32(entry.value))) as u32),
        }),
    }
    // The directory goes behind everything else, where there is room for it.
    let u16_bytes = |value: u16| {
        if big_endian {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    if file.len() % 2 == 1 {
        file.push(0);
    }
    let place = file.len() as u32;
    file[4..8].copy_from_slice(&from_u32(place));
    file.extend(u16_bytes(entries.len() as u16));
    for entry in &entries {
        file.extend(u16_bytes(entry.tag));
        file.extend(u16_bytes(entry.kind));
        file.extend(from_u32(entry.count));
        file.extend(entry.value);
    }
    let next = if random.one_in(16) { place } else { 0 };
    file.extend(from_u32(next));
    // Too long, the old directory does.
    (file.len() <= most).then_some(file)
}

fn webp(random: &mut Random, bytes: &[u8]) -> Option<Vec<u8>> {
    let (head, mut rest) = bytes.split_at_checked(12)?;
    let mut chunks = Vec::new();
    while let Some((kind, behind)) = rest.split_first_chunk::<4>()
        && let Some((length, behind)) = behind.split_first_chunk::<4>()
        && let Some((data, behind)) = behind.split_at_checked(u32::from_le_bytes(*length) as usize)
    {
        chunks.push(Chunk::new(kind, data.to_vec()));
        rest = if data.len() % 2 == 1 {
            behind.get(1..).unwrap_or_default()
        } else {
            behind
        };
    }
    const KINDS: [&[u8; 4]; 10] = [
        b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"XMP ", b"ICCP", b"junk",
    ];
    match random.below(6) {
        // The header of the extended form: its flags, width and height.
        0 => match chunks.iter_mut().find(|chunk| &chunk.kind == b"VP8X") {
            Some(chunk) => {
                let (at, width) = random.pick(&[(0, 1), (0, 1), (4, 3), (7, 3)]);
                set(random, &mut chunk.data, at, width, false, &[])?;
            }
            None => {
                let mut data = vec![random.byte(), 0, 0, 0];
                data.extend([random.below(64) as u8, 0, 0, random.below(64) as u8, 0, 0]);
                chunks.insert(0, Chunk::new(b"VP8X", data));
            }
        },
        1 => {
            let length = random.pick(&[0, 1, 5, 6, 10, 16, 24, 100]);
            let (kind, data) = (random.pick(&KINDS), random.bytes(length));
            let at = random.below(chunks.len() + 1);
            chunks.insert(at, Chunk::new(kind, data));
        }
        // The first bytes of the pixels: sizes, partitions, transforms, alpha's filter.
        2 | 3 => {
            let at = random.place(chunks.len())?;
            let data = &mut chunks[at].data;
            let place = random.below(data.len().min(32));
            set(random, data, place, 1, false, &[])?;
        }
        _ => items(random, &mut chunks, |random, chunk| match random.below(4) {
            0 => chunk.resize(random),
            1 => chunk.kind = *random.pick(&KINDS),
            _ => chunk.data = noise(random, std::mem::take(&mut chunk.data)),
        }),
    }
    let mut file = head.to_vec();
    for chunk in &chunks {
        file.extend(chunk.kind);
        file.extend(chunk.length.to_le_bytes());
        file.extend(&chunk.data);
        if chunk.data.len() % 2 == 1 {
            file.push(0);
        }
    }
    file.extend(rest);
    let size = file.len() as u32 - 8;
    file[4..8].copy_from_slice(&size.to_le_bytes());
    if random.one_in(8) {
        set(random, &mut file, 4, 4, false, &[])?;
    }
    Some(file)
}

fn bmp(random: &mut Random, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut file = bytes.to_vec();
    let (at, width, choices): (usize, usize, &[u64]) = random.pick(&[
        // Where the pixels begin, and which header it is.
        (10, 4, &[0, 14, 54, 1078][..]),
        (14, 4, &[12, 40, 52, 56, 64, 108, 124]),
        // Width and height, also from the top.
        (18, 4, &[0, 1, 7, 8, 33, 300]),
        (22, 4, &[0, 1, 7, 8, 33, 300, 0xffff_ffff, 0xffff_fff8]),
        (26, 2, &[0, 1]),
        (28, 2, &[1, 2, 4, 8, 16, 24, 32]),
        // The kind of compression, the size of the pixels, the colours.
        (30, 4, &[0, 1, 2, 3, 4, 5, 6]),
        (34, 4, &[0, 1]),
        (46, 4, &[0, 1, 2, 16, 256, 257]),
        // The masks of the colours.
        (54, 4, &[0, 0xff, 0xff00, 0x00ff_0000, 0xf800, 0x7c00, u64::MAX]),
        (58, 4, &[0, 0xff, 0xff00, 0x07e0, 0x03e0]),
        (62, 4, &[0, 0xff, 0x1f]),
    ]);
    if random.one_in(3) {
        let body = file.split_off(54.min(file.len()));
        file.extend(noise(random, body));
    }
    set(random, &mut file, at, width, false, choices)?;
    Some(file)
}

fn pnm(random: &mut Random, bytes: &[u8]) -> Option<Vec<u8>> {
    // The words of the header: what it is, width, height, and the largest value where there is one.
    let is_bitmap = matches!(bytes.get(1), Some(b'1' | b'4'));
    let mut words = Vec::new();
    let mut at = 0;
    while words.len() < if is_bitmap { 3 } else { 4 } {
        let skip = bytes[at..]
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace())
            .count();
        let length = bytes[at + skip..]
            .iter()
            .take_while(|byte| !byte.is_ascii_whitespace())
            .count();
        words.push(
            bytes
                .get(at + skip..at + skip + length)
                .filter(|word| !word.is_empty())?
                .to_vec(),
        );
        at += skip + length;
    }
    let mut body = bytes[at..].to_vec();
    items(random, &mut words, |random, word| {
        let old = str::from_utf8(word)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        *word = match random.below(6) {
            0 => random
                .pick(&[
                    "P1", "P2", "P3", "P4", "P5", "P6", "P7", "-1", "1.5", "0x10", "+3", "",
                ])
                .into(),
            1 => "0".repeat(1 << random.below(8)).into(),
            _ => random.number(old).to_string().into(),
        };
    });
    if random.one_in(3) {
        body = noise(random, body);
    }
    let between = random.pick(&[" ", "\n", "\t", "\r\n", " # a comment\n", "#\n", "", "  "]);
    Some([words.join(between.as_bytes()), body].concat())
}
