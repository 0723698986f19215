//! Lossless WebP (VP8L), the format of RFC 9649 section 3, with the pixels and the refusals of libwebp.
//!
//! The memory that the stream asks for is counted before it is reserved, and compared with the limit. Time is
//! linear in the pixels and the bytes of the stream: to read a prefix code takes time in proportion to the
//! symbols that it names.
//!
//! RFC 9649 leaves some cases open. This follows libwebp: a code that no pixel uses must be valid all the
//! same, predictors 14 and 15 are opaque black, a colour beyond the palette is transparent black, and a
//! stream of fewer than 8 bytes continues with zeros up to 8.

use super::super::decode::{Format, Limits};
use super::damaged;
use crate::{Error, Result};

/// A pixel as the bytes blue, green, red, alpha: ARGB as a little-endian number.
type Pixel = [u8; 4];

const SIGNATURE: u64 = 0x2F;
const BLACK: u32 = 0xFF00_0000;

/// The five prefix codes of a group, in the order of the stream.
const NAMES: [&str; 5] = ["green", "red", "blue", "alpha", "distance"];
const GREEN: usize = 0;
const RED: usize = 1;
const BLUE: usize = 2;
const ALPHA: usize = 3;
const DISTANCE: usize = 4;

/// Symbols of green: literals, then lengths of copies, then entries of the colour cache.
const LITERALS: usize = 256;
const LENGTHS: usize = 24;
const DISTANCES: usize = 40;
const MAX_CACHE_BITS: u32 = 11;

/// The order in which the lengths of the code of code lengths are stored.
const LENGTH_ORDER: [u16; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// The pixels (x to the left, y upwards) that the distances 1 to 120 stand for: the nearest first.
const NEAR: [(i8, i8); 120] = {
    let mut near = [(0, 0); 120];
    let (mut count, mut square) = (0, 1);
    while count < near.len() {
        let mut x = 0;
        while x <= 8 {
            let mut y = 0;
            while y <= 7 {
                if x * x + y * y == square {
                    near[count] = (x, y);
                    count += 1;
                    if x > 0 && x < 8 && y > 0 {
                        near[count] = (-x, y);
                        count += 1;
                    }
                }
                y += 1;
            }
            x += 1;
        }
        square += 1;
    }
    near
};

/// Decodes the body of a `VP8L` chunk to RGB, the rows from the top. Drops alpha.
///
/// libwebp reads on behind the chunk, so `body` goes up to the end of the file.
pub(super) fn decode(body: &[u8], limits: &Limits) -> Result<Vec<u8>> {
    let mut bits = Bits::new(body);
    let signature = bits.read(8);
    let (width, height) = (bits.read(14) as u32 + 1, bits.read(14) as u32 + 1);
    let version = bits.read(4) >> 1;
    if body.len() < 5 || signature != SIGNATURE || version != 0 {
        return Err(damaged(format_args!(
            "a lossless header with the signature {signature:#04x} and the version {version} in {} bytes, \
             expected {SIGNATURE:#04x}, 0 and at least 5",
            body.len()
        )));
    }
    let memory = Memory::new(limits, width, height);
    let mut decoder = Decoder { bits, memory };
    let pixels = width as usize * height as usize;
    decoder.memory.take(4 * pixels as u64)?;
    let (transforms, stream) = decoder.header(width as usize, height as usize, true)?;
    let mut image = vec![[0; 4]; pixels];
    stream.decode(&mut decoder.bits, &mut image[..stream.width * height as usize])?;
    for transform in transforms.iter().rev() {
        transform.invert(&mut image, height as usize);
    }
    let mut bytes = image.into_flattened();
    for pixel in 0..pixels {
        let [blue, green, red] = [0, 1, 2].map(|channel| bytes[4 * pixel + channel]);
        bytes[3 * pixel..3 * pixel + 3].copy_from_slice(&[red, green, blue]);
    }
    bytes.truncate(3 * pixels);
    Ok(bytes)
}

/// Checks the body of the `ALPH` chunk of a lossy frame. libwebp refuses a frame whose alpha it cannot
/// decode.
pub(super) fn check_alpha(body: &[u8], width: u32, height: u32, limits: &Limits) -> Result<()> {
    let pixels = width as usize * height as usize;
    let (&[head], rest) = body
        .split_first_chunk()
        .filter(|(_, rest)| !rest.is_empty())
        .ok_or_else(|| damaged(format_args!("{} bytes of alpha, expected at least 2", body.len())))?;
    let (compression, preprocessing, reserved) = (head & 3, head >> 4 & 3, head >> 6);
    if compression > 1 || preprocessing > 1 || reserved != 0 {
        return Err(damaged(format_args!(
            "alpha with compression {compression}, preprocessing {preprocessing} and the reserved bits \
             {reserved}, expected 0 or 1, 0 or 1, and 0"
        )));
    }
    if compression == 0 {
        if rest.len() < pixels {
            return Err(damaged(format_args!(
                "{} bytes of raw alpha, expected {pixels}",
                rest.len()
            )));
        }
        return Ok(());
    }
    let bits = Bits::new(rest);
    let memory = Memory::new(limits, width, height);
    let mut decoder = Decoder { bits, memory };
    let (transforms, stream) = decoder.header(width as usize, height as usize, false)?;
    // libwebp has a decoder of its own for alpha that is nothing but a palette. That one does not mind if the
    // last symbol goes beyond the end of the data.
    let only_palette = matches!(
        transforms[..],
        [Transform {
            kind: Kind::Palette,
            ..
        }]
    );
    let lenient = only_palette && stream.cache_bits == 0 && stream.only_green;
    stream.walk(&mut decoder.bits, height as usize, lenient)
}

fn cut() -> Error {
    damaged("the lossless data ends within the image")
}

/// Reads bits, the lowest of a byte first.
///
/// What libwebp's reader returns at the end of the data decides whether it accepts a frame with a damaged
/// alpha, so this one returns the same.
struct Bits<'a> {
    data: &'a [u8],
    /// The last 8 bytes, or all and zeros.
    tail: u64,
    /// Bits of the data, at least 64.
    end: u64,
    /// The next bit.
    at: u64,
    /// Whether a read or a refill found the position beyond the end. The position then is 64 bits before it.
    ended: bool,
}

impl<'a> Bits<'a> {
    fn new(data: &'a [u8]) -> Self {
        let last = &data[data.len().saturating_sub(8)..];
        let tail = last
            .iter()
            .rev()
            .fold(0, |tail, &byte| tail << 8 | u64::from(byte));
        let end = 8 * (data.len() as u64).max(8);
        Self {
            data,
            tail,
            end,
            at: 0,
            ended: false,
        }
    }

    /// The next bits, at least 57 of them if the data has as many. Beyond its end the last 64 repeat.
    #[inline(always)]
    fn peek(&self, at: u64) -> u64 {
        let byte = (at >> 3) as usize;
        match self.data.get(byte..).and_then(|rest| rest.first_chunk()) {
            Some(chunk) => u64::from_le_bytes(*chunk) >> (at & 7),
            None => self.tail >> ((at + 64 - self.end) & 63),
        }
    }

    fn is_beyond(&self) -> bool {
        self.ended || self.at > self.end
    }

    fn refill(&mut self) {
        if self.is_beyond() {
            self.ended = true;
            self.at = self.end - 64;
        }
    }

    /// Reads up to 24 bits. Beyond the end they are zeros.
    fn read(&mut self, count: u32) -> u64 {
        if self.ended {
            self.at = self.end - 64;
            return 0;
        }
        let value = self.peek(self.at) & ((1 << count) - 1);
        self.at += u64::from(count);
        self.refill();
        value
    }

    /// 16 bits for a symbol. At the end of the data libwebp looks twice for a symbol of more than 8 bits.
    fn symbol_window(&self) -> u64 {
        self.peek(self.at) & 0xFF | (self.peek(self.at + 8) & 0xFF) << 8
    }
}

/// Counts the memory that is held.
struct Memory<'a> {
    limits: &'a Limits,
    width: u32,
    height: u32,
    held: u64,
}

impl<'a> Memory<'a> {
    fn new(limits: &'a Limits, width: u32, height: u32) -> Self {
        Self {
            limits,
            width,
            height,
            held: 0,
        }
    }

    fn take(&mut self, bytes: u64) -> Result<()> {
        self.held += bytes;
        self.limits
            .check_memory(Format::WebP, self.width, self.height, self.held)
    }

    fn give_back(&mut self, bytes: u64) {
        self.held -= bytes;
    }
}

/// A symbol and the length of its code, in 4 bits.
type Cell = u16;
/// The cell of codes that are longer than the lookup.
const LONG: Cell = 0xF000;

/// A symbol and the length of its code.
type Length = (u16, u8);

/// A prefix code whose cells are in [`Codes::cells`].
///
/// First comes the lookup by the next `root` bits. If there are longer codes, then follow the first code of
/// `root` bits that is a prefix of longer ones, the number of codes of each length from `root + 1` to
/// `longest`, and their symbols in the order of the codes.
#[derive(Clone, Copy, Default)]
struct Code {
    start: u32,
    mask: u16,
    root: u8,
    longest: u8,
}

impl Code {
    /// The number of codes of each length if these are a full tree or a single symbol.
    fn counts(lengths: &[Length]) -> Option<[u16; 16]> {
        let mut counts = [0; 16];
        for &(_, length) in lengths {
            counts[usize::from(length)] += 1;
        }
        let leaves = (1..16).map(|length| u32::from(counts[length]) << (15 - length));
        (lengths.len() == 1 || leaves.sum::<u32>() == 1 << 15).then_some(counts)
    }

    /// The bits of the lookup. It has at most 8 cells for each symbol.
    fn root(counts: &[u16; 16], symbols: usize, most: u32) -> (u32, u32) {
        let longest = (1..16)
            .rev()
            .find(|&length| counts[length as usize] > 0)
            .unwrap_or(1);
        let by_symbols = symbols.next_power_of_two().ilog2() + 2;
        (longest.min(by_symbols).min(most), longest)
    }

    /// Appends the cells of a code whose lengths are in the order of their symbols.
    fn store(cells: &mut Vec<Cell>, lengths: &[Length], counts: &[u16; 16], most: u32) -> Self {
        let start = cells.len();
        if let &[(symbol, _)] = lengths {
            cells.push(symbol << 4);
            return Self {
                start: start as u32,
                ..Self::default()
            };
        }
        let (root, longest) = Self::root(counts, lengths.len(), most);
        cells.resize(start + (1 << root), LONG);
        // The next code of each length, and for the long ones where its symbol goes.
        let (mut codes, mut places) = ([0u32; 16], [0; 16]);
        let (mut code, mut place) = (0, start + (1 << root) + 1 + (longest - root) as usize);
        for length in 1..=longest as usize {
            code = (code + u32::from(counts[length - 1])) << 1;
            codes[length] = code;
            if length as u32 == root + 1 {
                cells.push((code >> 1) as u16);
            }
            if length as u32 > root {
                cells.push(counts[length]);
                places[length] = place;
                place += usize::from(counts[length]);
            }
        }
        if longest > root {
            cells.resize(place, 0);
        }
        for &(symbol, length) in lengths {
            let index = usize::from(length);
            let code = codes[index];
            codes[index] += 1;
            if u32::from(length) > root {
                cells[places[index]] = symbol;
                places[index] += 1;
                continue;
            }
            let first = code.reverse_bits() as usize >> (32 - u32::from(length)) as usize;
            let lookup = &mut cells[start..start + (1 << root)];
            let mut index = first;
            while index < lookup.len() {
                lookup[index] = symbol << 4 | u16::from(length);
                index += 1 << length;
            }
        }
        Self {
            start: start as u32,
            mask: (1 << root) - 1,
            root: root as u8,
            longest: longest as u8,
        }
    }

    fn is_single(self) -> bool {
        self.longest == 0
    }

    /// The symbol that the window starts with, and the length of its code.
    #[inline(always)]
    fn find(self, cells: &[Cell], window: u64) -> (usize, u32) {
        let cell = cells[self.start as usize + (window as usize & usize::from(self.mask))];
        if cell < LONG {
            (usize::from(cell >> 4), u32::from(cell & 15))
        } else {
            self.find_long(cells, window)
        }
    }

    #[cold]
    fn find_long(self, cells: &[Cell], window: u64) -> (usize, u32) {
        let root = u32::from(self.root);
        let table = &cells[self.start as usize + (1 << root)..];
        let (counts, symbols) = table[1..].split_at(usize::from(self.longest - self.root));
        let mut code = (window as u32).reverse_bits() >> (32 - root);
        let (mut first, mut index) = (u32::from(table[0]), 0);
        for (length, &count) in (root + 1..).zip(counts) {
            code = code << 1 | (window >> (length - 1)) as u32 & 1;
            first <<= 1;
            let offset = code.wrapping_sub(first);
            if offset < u32::from(count) {
                return (usize::from(symbols[(index + offset) as usize]), length);
            }
            index += u32::from(count);
            first += u32::from(count);
        }
        // Not reached: the tree is full.
        (0, u32::from(self.longest))
    }
}

/// The five codes of a region of the image.
#[derive(Clone, Copy, Default)]
struct Group {
    codes: [Code; 5],
    /// Red, blue and alpha if each has a single symbol.
    rest: Option<u32>,
}

/// All groups that are in use.
#[derive(Default)]
struct Codes {
    groups: Vec<Group>,
    cells: Vec<Cell>,
}

/// Which group a block of the image uses.
struct Map {
    shift: u32,
    across: usize,
    groups: Vec<u16>,
}

/// All that precedes the symbols of an image.
struct Stream {
    width: usize,
    cache_bits: u32,
    codes: Codes,
    map: Option<Map>,
    /// Whether red, blue and alpha have a single symbol in every group that libwebp stores.
    only_green: bool,
}

enum Kind {
    Predictor,
    Colour,
    SubtractGreen,
    Palette,
}

struct Transform {
    kind: Kind,
    /// Width of the image once the transform is undone.
    width: usize,
    /// Of a side of a block; for a palette, of the number of pixels in one.
    shift: u32,
    data: Vec<Pixel>,
}

struct Decoder<'a> {
    bits: Bits<'a>,
    memory: Memory<'a>,
}

impl Decoder<'_> {
    /// Reads the transforms and all else before the symbols of the image. Keeps the data of the transforms
    /// if `keep`.
    fn header(&mut self, width: usize, height: usize, keep: bool) -> Result<(Vec<Transform>, Stream)> {
        let mut coded_width = width;
        let mut transforms = Vec::new();
        let mut seen = [false; 4];
        while self.bits.read(1) == 1 {
            let kind = self.bits.read(2) as usize;
            if std::mem::replace(&mut seen[kind], true) {
                return Err(damaged(format_args!(
                    "the transform {kind} for the second time, expected each once at most"
                )));
            }
            let width = coded_width;
            let (kind, shift, data) = match kind {
                0 | 1 => {
                    let shift = self.bits.read(3) as u32 + 2;
                    let (across, down) = (blocks(width, shift), blocks(height, shift));
                    let (kind, name) = if kind == 0 {
                        (Kind::Predictor, "the image of predictors")
                    } else {
                        (Kind::Colour, "the image of colour transforms")
                    };
                    (kind, shift, self.image(name, across, down)?)
                }
                2 => (Kind::SubtractGreen, 0, Vec::new()),
                _ => {
                    let colours = self.bits.read(8) as usize + 1;
                    let shift = match colours {
                        0..=2 => 3,
                        3..=4 => 2,
                        5..=16 => 1,
                        _ => 0,
                    };
                    let mut data = self.image("the palette", colours, 1)?;
                    accumulate(&mut data);
                    data.resize(256, [0; 4]);
                    coded_width = blocks(width, shift);
                    (Kind::Palette, shift, data)
                }
            };
            let mut transform = Transform {
                kind,
                width,
                shift,
                data,
            };
            if !keep {
                self.memory.give_back(4 * transform.data.len() as u64);
                transform.data = Vec::new();
            }
            transforms.push(transform);
        }
        let stream = self.stream("the image", coded_width, height, true)?;
        Ok((transforms, stream))
    }

    /// Decodes an image that is a part of another's header. It is counted as memory held.
    fn image(&mut self, name: &str, width: usize, height: usize) -> Result<Vec<Pixel>> {
        // A palette grows to 256 colours.
        self.memory.take(4 * (width * height).max(256) as u64)?;
        let before = self.memory.held;
        let stream = self.stream(name, width, height, false)?;
        let mut image = vec![[0; 4]; width * height];
        stream.decode(&mut self.bits, &mut image)?;
        self.memory.held = before;
        Ok(image)
    }

    /// Reads the size of the colour cache, and the prefix codes with their map.
    fn stream(&mut self, name: &str, width: usize, height: usize, is_main: bool) -> Result<Stream> {
        let mut cache_bits = 0;
        if self.bits.read(1) == 1 {
            cache_bits = self.bits.read(4) as u32;
            if !(1..=MAX_CACHE_BITS).contains(&cache_bits) {
                return Err(damaged(format_args!(
                    "a colour cache of {cache_bits} bits in {name}, expected 1 to {MAX_CACHE_BITS}"
                )));
            }
            self.memory.take(4 << cache_bits)?;
        }
        let map = if is_main && self.bits.read(1) == 1 {
            let shift = self.bits.read(3) as u32 + 2;
            let (across, down) = (blocks(width, shift), blocks(height, shift));
            let image = self.image("the map of prefix codes", across, down)?;
            self.memory.take(2 * image.len() as u64)?;
            let groups = image
                .iter()
                .map(|&[_, low, high, _]| u16::from_le_bytes([low, high]));
            let groups = groups.collect::<Vec<_>>();
            self.memory.give_back(4 * image.len().max(256) as u64);
            Some(Map {
                shift,
                across,
                groups,
            })
        } else {
            None
        };
        if self.bits.ended {
            return Err(cut());
        }
        let mut stream = Stream {
            width,
            cache_bits,
            codes: Codes::default(),
            map,
            only_green: true,
        };
        self.groups(name, &mut stream, width * height)?;
        Ok(stream)
    }

    /// Reads the groups. Those that no block uses are checked, not kept, and the map is renumbered.
    fn groups(&mut self, name: &str, stream: &mut Stream, pixels: usize) -> Result<()> {
        const UNUSED: u32 = u32::MAX;
        let mut slots = vec![0];
        let mut used = 1;
        if let Some(map) = &mut stream.map {
            let most = map.groups.iter().copied().max().unwrap_or_default();
            slots = vec![UNUSED; usize::from(most) + 1];
            used = 0;
            for group in &mut map.groups {
                let slot = &mut slots[usize::from(*group)];
                if *slot == UNUSED {
                    *slot = used;
                    used += 1;
                }
                *group = *slot as u16;
            }
        }
        self.memory
            .take(4 * slots.len() as u64 + size_of::<Group>() as u64 * u64::from(used))?;
        // libwebp stores the groups that are not in use as long as there are few.
        let stores_all = slots.len() <= 1000 && slots.len() <= pixels;
        // A few large lookups fit a processor's cache, many do not.
        let most = if used <= 32 { 10 } else { 8 };
        let cache = if stream.cache_bits > 0 {
            1 << stream.cache_bits
        } else {
            0
        };
        let alphabets = [
            LITERALS + LENGTHS + cache,
            LITERALS,
            LITERALS,
            LITERALS,
            DISTANCES,
        ];
        let codes = &mut stream.codes;
        codes.groups = vec![Group::default(); used as usize];
        let (mut lengths, mut scratch) = (Vec::new(), Vec::new());
        for (number, &slot) in slots.iter().enumerate() {
            let mut group = Group::default();
            let mut singles = true;
            for (code, alphabet) in alphabets.into_iter().enumerate() {
                let counts = self
                    .lengths(alphabet, &mut lengths, &mut scratch)
                    .and_then(|()| Code::counts(&lengths));
                if self.bits.ended {
                    return Err(cut());
                }
                let counts = counts.ok_or_else(|| {
                    damaged(format_args!(
                        "the prefix code of {} in group {number} of {name} has lengths that fit no tree",
                        NAMES[code]
                    ))
                })?;
                singles &= lengths.len() == 1 || code == GREEN || code == DISTANCE;
                if slot != UNUSED {
                    let (root, _) = Code::root(&counts, lengths.len(), most);
                    self.reserve(&mut codes.cells, (1 << root) + 16 + lengths.len())?;
                    group.codes[code] = Code::store(&mut codes.cells, &lengths, &counts, most);
                }
            }
            if slot != UNUSED || stores_all {
                stream.only_green &= singles;
            }
            if slot != UNUSED {
                if singles {
                    let symbol = |code: usize| group.codes[code].find(&codes.cells, 0).0 as u32;
                    group.rest = Some(symbol(ALPHA) << 24 | symbol(RED) << 16 | symbol(BLUE));
                }
                codes.groups[slot as usize] = group;
            }
        }
        self.memory.give_back(4 * slots.len() as u64);
        Ok(())
    }

    /// Makes room for more cells. While they move, they are held twice.
    fn reserve(&mut self, cells: &mut Vec<Cell>, more: usize) -> Result<()> {
        if cells.capacity() - cells.len() < more {
            let old = cells.capacity();
            let new = (old + old / 2).max(cells.len() + more);
            self.memory.take(2 * new as u64)?;
            cells.reserve_exact(new - cells.len());
            self.memory.give_back(2 * old as u64);
        }
        Ok(())
    }

    /// Reads the lengths of a prefix code, in the order of the symbols and without those of length 0.
    fn lengths(&mut self, alphabet: usize, lengths: &mut Vec<Length>, scratch: &mut Vec<Cell>) -> Option<()> {
        let bits = &mut self.bits;
        lengths.clear();
        if bits.read(1) == 1 {
            let two = bits.read(1) == 1;
            let wide = bits.read(1) == 1;
            lengths.push((bits.read(if wide { 8 } else { 1 }) as u16, 1));
            if two {
                lengths.push((bits.read(8) as u16, 1));
            }
            lengths.sort_unstable();
            lengths.dedup();
            lengths.retain(|&(symbol, _)| usize::from(symbol) < alphabet);
            return Some(());
        }
        let count = bits.read(4) as usize + 4;
        for &symbol in &LENGTH_ORDER[..count] {
            let length = bits.read(3) as u8;
            if length > 0 {
                lengths.push((symbol, length));
            }
        }
        lengths.sort_unstable();
        scratch.clear();
        let code = Code::store(scratch, lengths, &Code::counts(lengths)?, 7);
        lengths.clear();
        let mut left = alphabet;
        if bits.read(1) == 1 {
            let width = 2 + 2 * bits.read(3) as u32;
            left = 2 + bits.read(width) as usize;
            if left > alphabet {
                return None;
            }
        }
        let (mut symbol, mut previous) = (0, 8);
        while symbol < alphabet && left > 0 {
            left -= 1;
            bits.refill();
            let (length, used) = code.find(scratch, bits.peek(bits.at) & 0x7F);
            bits.at += u64::from(used);
            let (length, repeat) = match length {
                16 => (previous, 3 + bits.read(2) as usize),
                17 => (0, 3 + bits.read(3) as usize),
                18 => (0, 11 + bits.read(7) as usize),
                _ => (length as u8, 1),
            };
            if symbol + repeat > alphabet {
                return None;
            }
            let end = symbol + repeat;
            if length > 0 {
                previous = length;
                for symbol in symbol..end {
                    lengths.push((symbol as u16, length));
                }
            }
            symbol = end;
        }
        Some(())
    }
}

/// Blocks of `1 << shift` pixels along a side.
fn blocks(side: usize, shift: u32) -> usize {
    side.div_ceil(1 << shift)
}

/// The length or the distance of a copy begins with a symbol; returns its base and the bits that follow.
#[inline(always)]
fn copy_value(symbol: usize) -> (usize, u32) {
    if symbol < 4 {
        return (symbol + 1, 0);
    }
    let extra = (symbol as u32 - 2) >> 1;
    (((2 + (symbol & 1)) << extra) + 1, extra)
}

/// The distance in pixels in an image of this width.
#[inline(always)]
fn pixels_back(distance: usize, width: usize) -> usize {
    let Some(&(x, y)) = NEAR.get(distance - 1) else {
        return distance - NEAR.len();
    };
    (isize::from(y as i16) * width as isize + isize::from(x as i16)).max(1) as usize
}

fn bad_copy(place: usize, length: usize, distance: usize, pixels: usize) -> Error {
    damaged(format_args!(
        "a copy of {length} pixels from {distance} before to pixel {place} of {pixels}"
    ))
}

impl Stream {
    /// The group at a pixel, and up to which pixel it is in use.
    fn block(&self, place: usize, pixels: usize) -> (&Group, usize) {
        let Some(map) = &self.map else {
            return (&self.codes.groups[0], pixels);
        };
        let (x, y) = (place % self.width, place / self.width);
        let group = map.groups[(y >> map.shift) * map.across + (x >> map.shift)];
        let end = (((x >> map.shift) + 1) << map.shift).min(self.width);
        (&self.codes.groups[usize::from(group)], place - x + end)
    }

    /// Decodes the pixels.
    fn decode(&self, bits: &mut Bits, image: &mut [Pixel]) -> Result<()> {
        if self.cache_bits > 0 {
            self.decode_with::<true>(bits, image)
        } else {
            self.decode_with::<false>(bits, image)
        }
    }

    fn decode_with<const CACHE: bool>(&self, bits: &mut Bits, image: &mut [Pixel]) -> Result<()> {
        let pixels = image.len();
        let cells = &self.codes.cells[..];
        let mut cache = if CACHE {
            vec![[0; 4]; 1 << self.cache_bits]
        } else {
            Vec::new()
        };
        let slot = |pixel: Pixel| {
            (u32::from_le_bytes(pixel).wrapping_mul(0x1E35_A7BD) >> (32 - self.cache_bits)) as usize
        };
        let (mut place, mut block_end) = (0, 0);
        let mut group = &self.codes.groups[0];
        while place < pixels {
            if place >= block_end {
                (group, block_end) = self.block(place, pixels);
                if let (Some(rest), true) = (group.rest, group.codes[GREEN].is_single()) {
                    let (green, _) = group.codes[GREEN].find(cells, 0);
                    if green < LITERALS {
                        let pixel = (rest | (green as u32) << 8).to_le_bytes();
                        image[place..block_end].fill(pixel);
                        if CACHE {
                            cache[slot(pixel)] = pixel;
                        }
                        place = block_end;
                        continue;
                    }
                }
            }
            let mut window = bits.peek(bits.at);
            let mut find = |code: usize| {
                let (symbol, length) = group.codes[code].find(cells, window);
                window >>= length;
                bits.at += u64::from(length);
                symbol
            };
            let symbol = find(GREEN);
            if symbol < LITERALS {
                let pixel = match group.rest {
                    Some(rest) => (rest | (symbol as u32) << 8).to_le_bytes(),
                    None => {
                        let (red, blue) = (find(RED), find(BLUE));
                        if !group.codes[ALPHA].is_single() {
                            // Three codes may have used up 45 of the 57 bits.
                            window = bits.peek(bits.at);
                        }
                        let (alpha, length) = group.codes[ALPHA].find(cells, window);
                        bits.at += u64::from(length);
                        [blue as u8, symbol as u8, red as u8, alpha as u8]
                    }
                };
                image[place] = pixel;
                place += 1;
                if CACHE {
                    cache[slot(pixel)] = pixel;
                }
            } else if symbol < LITERALS + LENGTHS {
                let (base, extra) = copy_value(symbol - LITERALS);
                let length = base + (window & ((1 << extra) - 1)) as usize;
                window >>= extra;
                let (symbol, used) = group.codes[DISTANCE].find(cells, window);
                bits.at += u64::from(extra + used);
                let (base, extra) = copy_value(symbol);
                let distance = base + (bits.peek(bits.at) & ((1 << extra) - 1)) as usize;
                bits.at += u64::from(extra);
                let distance = pixels_back(distance, self.width);
                if bits.is_beyond() {
                    return Err(cut());
                }
                if distance > place || length > pixels - place {
                    return Err(bad_copy(place, length, distance, pixels));
                }
                let from = place - distance;
                // The pixels repeat after `distance`, so each step may be longer than the one before.
                let mut copied = 0;
                while copied < length {
                    let step = (distance + copied).min(length - copied);
                    image.copy_within(from..from + step, place + copied);
                    copied += step;
                }
                if CACHE {
                    for &pixel in &image[place..place + length] {
                        cache[slot(pixel)] = pixel;
                    }
                }
                place += length;
            } else {
                let pixel = cache[symbol - LITERALS - LENGTHS];
                image[place] = pixel;
                place += 1;
                // An entry that was never set is not where its colour belongs.
                cache[slot(pixel)] = pixel;
            }
            if bits.at > bits.end {
                return Err(cut());
            }
        }
        if bits.is_beyond() { Err(cut()) } else { Ok(()) }
    }

    /// Checks that the pixels can be decoded, without doing it. If `lenient`, the last symbol may go beyond
    /// the end of the data, and only green counts.
    fn walk(&self, bits: &mut Bits, height: usize, lenient: bool) -> Result<()> {
        let pixels = self.width * height;
        let cells = &self.codes.cells[..];
        let (mut place, mut block_end) = (0, 0);
        let mut group = &self.codes.groups[0];
        while place < pixels && !bits.ended {
            if place >= block_end {
                (group, block_end) = self.block(place, pixels);
            }
            bits.refill();
            let find = |bits: &mut Bits, code: usize| {
                let (symbol, length) = group.codes[code].find(cells, bits.symbol_window());
                bits.at += u64::from(length);
                symbol
            };
            let symbol = find(bits, GREEN);
            if symbol < LITERALS {
                if group.rest.is_none() {
                    let _ = [RED, BLUE, ALPHA].map(|code| find(bits, code));
                }
                place += 1;
            } else if symbol < LITERALS + LENGTHS {
                let (base, extra) = copy_value(symbol - LITERALS);
                let length = base + bits.read(extra) as usize;
                let symbol = find(bits, DISTANCE);
                bits.refill();
                let (base, extra) = copy_value(symbol);
                let distance = pixels_back(base + bits.read(extra) as usize, self.width);
                if distance > place || length > pixels - place {
                    return Err(bad_copy(place, length, distance, pixels));
                }
                place += length;
            } else {
                place += 1;
            }
            bits.ended = bits.is_beyond();
        }
        if place < pixels || bits.is_beyond() && !lenient {
            return Err(damaged(format_args!(
                "the alpha data ends at pixel {place} of {pixels}"
            )));
        }
        Ok(())
    }
}

/// Sums each channel of two pixels.
#[inline(always)]
fn add(a: u32, b: u32) -> u32 {
    let high = (a & 0xFF00_FF00).wrapping_add(b & 0xFF00_FF00);
    let low = (a & 0x00FF_00FF) + (b & 0x00FF_00FF);
    high & 0xFF00_FF00 | low & 0x00FF_00FF
}

#[inline(always)]
fn average(a: u32, b: u32) -> u32 {
    ((a ^ b) & 0xFEFE_FEFE) / 2 + (a & b)
}

/// One in each 16 bits.
const ONES: u64 = 0x0001_0001_0001_0001;

/// The four channels of a pixel in 16 bits each, so that one operation computes all of them.
#[inline(always)]
fn spread(pixel: u32) -> u64 {
    let halves = (u64::from(pixel) | u64::from(pixel) << 16) & 0x0000_FFFF_0000_FFFF;
    (halves | halves << 8) & (0xFF * ONES)
}

/// Clamps channels from -256 to 511, to which 256 was added, to a byte.
#[inline(always)]
fn clamped(sums: u64) -> u32 {
    let (positive, above) = (sums >> 8 & ONES, sums >> 9 & ONES);
    let bytes = sums & (positive * 0xFF) | (above * 0xFF);
    let halves = (bytes | bytes >> 8) & 0x0000_FFFF_0000_FFFF;
    (halves | halves >> 16) as u32
}

/// The sum of the four differences, which count as positive, plus 1024.
#[inline(always)]
fn distance(a: u64, b: u64) -> u64 {
    let differences = a + 0x100 * ONES - b;
    let negative = !differences >> 8 & ONES;
    let positive = (differences ^ (negative * 0x1FF)) + negative;
    positive.wrapping_mul(ONES) >> 48
}

/// Left or top, whichever is nearer to left + top - top left.
#[inline(always)]
fn select(left: u32, top: u32, top_left: u32) -> u32 {
    let corner = spread(top_left);
    let (to_left, to_top) = (distance(spread(top), corner), distance(spread(left), corner));
    if to_left < to_top { left } else { top }
}

/// Clamps `a + b - c` of each channel.
#[inline(always)]
fn clamped_full(a: u32, b: u32, c: u32) -> u32 {
    clamped(spread(a) + (spread(b) + 0x100 * ONES - spread(c)))
}

/// Clamps `a + (a - b) / 2` of each channel. The division rounds towards zero.
#[inline(always)]
fn clamped_half(a: u32, b: u32) -> u32 {
    let a = spread(a);
    let differences = a + 0x100 * ONES - spread(b);
    let negative = !differences >> 8 & ONES;
    let halves = (differences + negative) >> 1 & (0xFF * ONES);
    clamped(a + halves + 0x80 * ONES)
}

/// Adds to each pixel the one before.
fn accumulate(row: &mut [Pixel]) {
    let mut left = 0;
    for pixel in row {
        left = add(left, u32::from_le_bytes(*pixel));
        *pixel = left.to_le_bytes();
    }
}

/// Adds a prediction from left, top left, top and top right to each pixel of a block's row. `upper` begins
/// with the top left of the first one.
#[inline(always)]
fn add_prediction(
    row: &mut [Pixel],
    upper: &[Pixel],
    mut left: u32,
    predict: impl Fn(u32, u32, u32, u32) -> u32,
) -> u32 {
    for (pixel, above) in row.iter_mut().zip(upper.windows(3)) {
        let [top_left, top, top_right] = [0, 1, 2].map(|i| u32::from_le_bytes(above[i]));
        left = add(
            u32::from_le_bytes(*pixel),
            predict(left, top_left, top, top_right),
        );
        *pixel = left.to_le_bytes();
    }
    left
}

fn predict_block(mode: u8, row: &mut [Pixel], upper: &[Pixel], left: u32) -> u32 {
    match mode {
        1 => add_prediction(row, upper, left, |l, _, _, _| l),
        2 => add_prediction(row, upper, left, |_, _, t, _| t),
        3 => add_prediction(row, upper, left, |_, _, _, tr| tr),
        4 => add_prediction(row, upper, left, |_, tl, _, _| tl),
        5 => add_prediction(row, upper, left, |l, _, t, tr| average(average(l, tr), t)),
        6 => add_prediction(row, upper, left, |l, tl, _, _| average(l, tl)),
        7 => add_prediction(row, upper, left, |l, _, t, _| average(l, t)),
        8 => add_prediction(row, upper, left, |_, tl, t, _| average(tl, t)),
        9 => add_prediction(row, upper, left, |_, _, t, tr| average(t, tr)),
        10 => add_prediction(row, upper, left, |l, tl, t, tr| {
            average(average(l, tl), average(t, tr))
        }),
        11 => add_prediction(row, upper, left, |l, tl, t, _| select(l, t, tl)),
        12 => add_prediction(row, upper, left, |l, tl, t, _| clamped_full(l, t, tl)),
        13 => add_prediction(row, upper, left, |l, tl, t, _| clamped_half(average(l, t), tl)),
        _ => add_prediction(row, upper, left, |_, _, _, _| BLACK),
    }
}

impl Transform {
    /// Undoes the transform. The image has room for its final width.
    fn invert(&self, image: &mut [Pixel], height: usize) {
        let image = &mut image[..self.width * height];
        match self.kind {
            Kind::Predictor => self.predict(image),
            Kind::Colour => self.colour(image),
            Kind::SubtractGreen => {
                for [blue, green, red, _] in image {
                    *blue = blue.wrapping_add(*green);
                    *red = red.wrapping_add(*green);
                }
            }
            Kind::Palette => self.index(image, height),
        }
    }

    fn predict(&self, image: &mut [Pixel]) {
        let width = self.width;
        let height = image.len() / width;
        image[0] = add(u32::from_le_bytes(image[0]), BLACK).to_le_bytes();
        accumulate(&mut image[..width]);
        for y in 1..height {
            let first = y * width;
            let left = add(
                u32::from_le_bytes(image[first]),
                u32::from_le_bytes(image[first - width]),
            );
            image[first] = left.to_le_bytes();
            // The top right of the last pixel is the first of its own row, which follows in memory.
            let (done, rest) = image.split_at_mut(first + 1);
            let upper = &done[first - width..];
            let across = blocks(width, self.shift);
            let modes = &self.data[(y >> self.shift) * across..][..across];
            let (mut left, mut x) = (left, 1);
            for (block, mode) in modes.iter().enumerate() {
                let end = ((block + 1) << self.shift).min(width);
                if x < end {
                    left = predict_block(mode[1] & 15, &mut rest[x - 1..end - 1], &upper[x - 1..=end], left);
                    x = end;
                }
            }
        }
    }

    fn colour(&self, image: &mut [Pixel]) {
        let across = blocks(self.width, self.shift);
        for (y, row) in image.chunks_exact_mut(self.width).enumerate() {
            let factors = &self.data[(y >> self.shift) * across..];
            for (block, &[green_to_red, green_to_blue, red_to_blue, _]) in
                row.chunks_mut(1 << self.shift).zip(factors)
            {
                let part =
                    |factor: u8, value: u8| ((i32::from(factor as i8) * i32::from(value as i8)) >> 5) as u8;
                for [blue, green, red, _] in block {
                    *red = red.wrapping_add(part(green_to_red, *green));
                    *blue = blue
                        .wrapping_add(part(green_to_blue, *green))
                        .wrapping_add(part(red_to_blue, *red));
                }
            }
        }
    }

    /// Replaces indices, of which one pixel may hold up to 8, by colours. Goes from the end to the start, as
    /// the indices lie before the pixels that they become.
    fn index(&self, image: &mut [Pixel], height: usize) {
        let packed_width = blocks(self.width, self.shift);
        let bits = 8 >> self.shift;
        let mask = (1u32 << bits) - 1;
        for y in (0..height).rev() {
            for block in (0..packed_width).rev() {
                let packed = u32::from(image[y * packed_width + block][1]);
                let first = block << self.shift;
                let end = (first + (1 << self.shift)).min(self.width);
                let pixels = &mut image[y * self.width + first..y * self.width + end];
                for (index, pixel) in pixels.iter_mut().enumerate() {
                    *pixel = self.data[(packed >> (index as u32 * bits) & mask) as usize];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::ExtendedColorType::Rgb8;
    use image::codecs::webp::WebPEncoder;

    /// Writes fields, the lowest bit first.
    #[derive(Default)]
    struct Writer {
        bytes: Vec<u8>,
        bits: usize,
    }

    impl Writer {
        /// The header of an image, up to the transforms.
        fn image(width: u32, height: u32) -> Self {
            let fields = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 4)];
            Self::default().put(&fields)
        }

        /// Appends fields of a value and its number of bits.
        fn put(mut self, fields: &[(u32, u32)]) -> Self {
            for &(value, count) in fields {
                for bit in 0..count {
                    if self.bits.is_multiple_of(8) {
                        self.bytes.push(0);
                    }
                    *self.bytes.last_mut().unwrap() |= ((value >> bit & 1) as u8) << (self.bits % 8);
                    self.bits += 1;
                }
            }
            self
        }

        /// Appends prefix codes of one symbol each.
        fn single(self, symbols: &[u32]) -> Self {
            let fields = symbols.iter().flat_map(|&symbol| [(0b101, 3), (symbol, 8)]);
            self.put(&fields.collect::<Vec<_>>())
        }

        /// Appends a prefix code of two symbols, of one bit each.
        fn pair(self, symbols: [u32; 2]) -> Self {
            self.put(&[(0b111, 3), (symbols[0], 8), (symbols[1], 8)])
        }

        /// Appends a prefix code whose lengths, 0 to 15, are written with 4 bits each.
        fn lengths(self, lengths: &[u32]) -> Self {
            let order = LENGTH_ORDER.map(|symbol| (if symbol < 16 { 4 } else { 0 }, 3));
            let lengths = lengths.iter().map(|length| (length.reverse_bits() >> 28, 4));
            self.put(&[(0, 1), (15, 4)])
                .put(&order)
                .put(&[(0, 1)])
                .put(&lengths.collect::<Vec<_>>())
        }

        fn decode(self) -> Result<Vec<u8>> {
            decode(&self.bytes, &Limits::default())
        }
    }

    fn body(file: &[u8]) -> &[u8] {
        assert_eq!(&file[12..16], b"VP8L");
        &file[20..]
    }

    fn draw(width: u32, height: u32, colour: impl Fn(u32, u32) -> [u32; 3]) -> Vec<u8> {
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        pixels
            .flat_map(|(x, y)| colour(x, y).map(|value| value as u8))
            .collect()
    }

    fn error(result: Result<Vec<u8>>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn files_of_an_encoder_have_their_pixels() {
        for (width, height) in [(1, 1), (1, 17), (33, 65), (200, 3)] {
            let image = draw(width, height, |x, y| [x * x + y, x ^ y, (x * y) >> 2]);
            let mut file = Vec::new();
            let encoder = WebPEncoder::new_lossless(&mut file);
            encoder.encode(&image, width, height, Rgb8).unwrap();
            assert_eq!(decode(body(&file), &Limits::default()).unwrap(), image);
        }
    }

    /// The files were made by `cwebp -lossless -exact -z 3` to `-z 9` (libwebp 1.2.4) from these drawings.
    /// They begin with a predictor, the subtraction of green or a palette.
    #[test]
    fn files_of_libwebp_have_their_pixels() {
        let waves = draw(33, 17, |x, y| [x * x + 3 * y, x * 5 + y * y, x * y + 40]);
        let palette = draw(37, 11, |x, y| {
            let index = (x / 3 + y * y / 4) % 5;
            [index * 50, 255 - index * 30, index * index * 9]
        });
        let two = draw(29, 9, |x, y| [if (x * y + x / 4) % 3 > 0 { 250 } else { 10 }; 3]);
        let many = draw(40, 12, |x, y| {
            let index = (x / 2 * 7 + y / 3 * 11) % 50;
            [index * 5, index * 3, 200 - index]
        });
        let files: [(&[u8], _); 4] = [
            (include_bytes!("../../../tests/webp_cases/waves.webp"), waves),
            (include_bytes!("../../../tests/webp_cases/palette.webp"), palette),
            (include_bytes!("../../../tests/webp_cases/two.webp"), two),
            (include_bytes!("../../../tests/webp_cases/many.webp"), many),
        ];
        for (file, image) in &files {
            assert_eq!(&decode(body(file), &Limits::default()).unwrap(), image);
            for length in 0..body(file).len() - 2 {
                assert!(decode(&body(file)[..length], &Limits::default()).is_err());
            }
        }
    }

    #[test]
    fn lengths_that_fit_no_tree_are_an_error() {
        // Their sum wraps in 16 bits to that of a full tree.
        let wrapping = [&[1, 1, 1][..], &Vec::from_iter(2..=14), &[15, 15], &[0; 262]].concat();
        let image = Writer::image(4, 4)
            .put(&[(0, 3)])
            .lengths(&wrapping)
            .single(&[0; 4]);
        assert_eq!(
            error(image.decode()),
            "image: WebP: the prefix code of green in group 0 of the image has lengths that fit no tree"
        );
        let open = [&[1, 2][..], &[0; 278]].concat();
        let image = Writer::image(4, 4).put(&[(0, 3)]).lengths(&open).single(&[0; 4]);
        assert!(error(image.decode()).contains("fit no tree"));
        let full = [&[1, 2, 2][..], &[0; 277]].concat();
        let image = Writer::image(4, 4)
            .put(&[(0, 3)])
            .lengths(&full)
            .single(&[0, 0, 255, 0]);
        // 16 literals of green: 0, 1, 2 and 2, four times.
        let image = image.put(&[(0b111_1010, 7); 4]);
        assert_eq!(
            image.decode().unwrap()[..12],
            [0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 2, 0]
        );
    }

    #[test]
    fn codes_of_all_lengths_are_read() {
        let mut lengths = Vec::from_iter(1..=14);
        lengths.extend([15, 15]);
        lengths.resize(280, 0);
        let mut image = Writer::image(16, 1)
            .put(&[(0, 3)])
            .lengths(&lengths)
            .single(&[0, 0, 255, 0]);
        for symbol in 0..16 {
            let ones = symbol.min(15);
            image = image.put(&[((1 << ones) - 1, ones), (0, u32::from(symbol < 15))]);
        }
        let greens = image.decode().unwrap().into_iter().skip(1).step_by(3);
        assert_eq!(greens.collect::<Vec<_>>(), Vec::from_iter(0..16));
    }

    #[test]
    fn predictors_14_and_15_are_black() {
        for mode in [14, 15] {
            // Blocks of 4 pixels with one predictor, and 1 for the green of each pixel.
            let image = Writer::image(3, 3).put(&[(1, 1), (0, 2), (0, 3), (0, 1)]);
            let image = image.single(&[mode, 0, 0, 0, 0]).put(&[(0, 3)]);
            let greens = image.single(&[1, 0, 0, 0, 0]).decode().unwrap();
            let greens = greens.into_iter().skip(1).step_by(3).collect::<Vec<_>>();
            // The first row adds up, and so does the first column.
            assert_eq!(greens, [1, 2, 3, 2, 1, 1, 3, 1, 1]);
        }
    }

    #[test]
    fn copies_stay_within_the_image() {
        // Green is the literal 7 or the copy of one pixel from the one before.
        let image = |bits: &[(u32, u32)]| {
            let image = Writer::image(2, 2).put(&[(0, 3)]);
            let lengths = (0..280).map(|symbol| u32::from(symbol == 7 || symbol == 256));
            let image = image
                .lengths(&lengths.collect::<Vec<_>>())
                .single(&[0, 0, 255, 1]);
            image.put(bits).decode()
        };
        assert_eq!(image(&[(0b1110, 4), (0, 32)]).unwrap(), [0, 7, 0].repeat(4));
        assert!(
            error(image(&[(0b0001, 4), (0, 32)])).contains("a copy of 1 pixels from 1 before to pixel 0")
        );
    }

    #[test]
    fn a_palette_is_black_beyond_its_colours() {
        // 3 colours of 2 bits; the one pixel of green 0b11_10_01_00 holds all indices.
        let image = Writer::image(4, 1).put(&[(1, 1), (3, 2), (2, 8), (0, 1)]);
        let image = image.single(&[5, 0, 0, 0, 0]).put(&[(0, 3)]);
        let image = image.single(&[0b11_10_01_00, 0, 0, 0, 0]);
        assert_eq!(image.decode().unwrap(), [0, 5, 0, 0, 10, 0, 0, 15, 0, 0, 0, 0]);
    }

    #[test]
    fn many_groups_take_little_memory() {
        // The only block uses the last of 65,536 groups of 20 bits each.
        let image = Writer::image(4, 4).put(&[(0, 2), (1, 1), (0, 3), (0, 1)]);
        let mut image = image.single(&[255, 255, 0, 0, 0]);
        for group in 0..=u16::MAX {
            image = image.put(&[(if group == u16::MAX { 0b1001 } else { 0b0001 }, 4), (0x1111, 16)]);
        }
        let limits = Limits {
            max_memory: 300 << 10,
            ..Limits::default()
        };
        assert_eq!(decode(&image.bytes, &limits).unwrap(), [0, 1, 0].repeat(16));
        let limits = Limits {
            max_memory: 200 << 10,
            ..Limits::default()
        };
        assert!(decode(&image.bytes, &limits).is_err());
    }

    #[test]
    fn alpha_is_checked() {
        let check = |bytes: &[u8]| check_alpha(bytes, 2, 2, &Limits::default()).is_ok();
        assert!(check(&[0, 1, 2, 3, 4]) && check(&[0x1C, 1, 2, 3, 4]));
        assert!(!check(&[0, 1, 2, 3]) && !check(&[0]) && !check(&[]));
        assert!(!check(&[2, 0, 0, 0, 0]) && !check(&[0x20, 0, 0, 0, 0]) && !check(&[0x40, 0, 0, 0, 0]));
        // Pixels of one bit each. Of two, libwebp takes zeros up to 8 bytes.
        let pixels = Writer::default()
            .put(&[(1, 8), (0, 3)])
            .pair([0, 9])
            .single(&[0; 4]);
        assert!(check(&pixels.bytes));
        assert!(check(&pixels.put(&[(0b0110, 4)]).bytes));
        assert!(!check(
            &Writer::default().put(&[(1, 8), (1, 1), (3, 2), (0, 64)]).bytes
        ));
    }
}
