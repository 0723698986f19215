//! Huffman tables and the bit reader of entropy-coded segments.

use crate::{Error, Result};

/// Bits that one table lookup covers.
const LOOKUP_BITS: u32 = 10;

/// A Huffman table as a DHT segment defines it, or one of the four of ITU-T T.81 annex K.3, which
/// Motion JPEG frames leave out.
#[derive(Clone)]
pub(super) struct TableSpec {
    /// How many codes there are of 1, 2, ... 16 bits.
    pub counts: [u8; 16],
    /// Their symbols, in the order of the codes; zero behind the last one.
    pub symbols: [u8; 256],
}

/// The categories of table K.3 and K.4 in the order of their codes.
const STANDARD_DC_SYMBOLS: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

/// The rare symbols of table K.5 and K.6 follow a pattern: from `run/size` on, in rising order,
/// sizes up to 10. What stands before them is listed.
fn standard_ac(counts: [u8; 16], listed: &[u8], tail_from: [u8; 16]) -> TableSpec {
    let mut symbols = [0; 256];
    symbols[..listed.len()].copy_from_slice(listed);
    let tail = (0..16u8).flat_map(|run| (tail_from[usize::from(run)]..=10).map(move |size| run << 4 | size));
    for (slot, symbol) in symbols[listed.len()..].iter_mut().zip(tail) {
        *slot = symbol;
    }
    TableSpec { counts, symbols }
}

impl TableSpec {
    /// The standard table for luminance (`slot` 0) or chrominance (`slot` 1).
    pub fn standard(dc: bool, slot: usize) -> Self {
        match (dc, slot) {
            (true, slot) => {
                let mut symbols = [0; 256];
                symbols[..12].copy_from_slice(&STANDARD_DC_SYMBOLS);
                let counts = if slot == 0 {
                    [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
                } else {
                    [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
                };
                TableSpec { counts, symbols }
            }
            (false, 0) => standard_ac(
                [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125],
                &[
                    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61,
                    0x07, 0x22, 0x71, 0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52,
                    0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72, 0x82,
                ],
                [9, 6, 5, 4, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 1, 1],
            ),
            (false, _) => standard_ac(
                [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119],
                &[
                    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61,
                    0x71, 0x13, 0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33,
                    0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1, 0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1,
                ],
                [11, 7, 6, 5, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2],
            ),
        }
    }
}

/// A Huffman table ready for decoding.
///
/// An entry of `lookup`, found by the next bits of the stream, holds from its low end: 4 bits, the
/// length of code and appended bits together if both lie within the lookup and the whole
/// coefficient is known (else 0); 4 bits, the length of the code (0: longer than the lookup); 8
/// bits, the symbol; 16 bits, the signed coefficient.
pub(super) struct Table {
    lookup: [u32; 1 << LOOKUP_BITS],
    /// Per code length, the 16-bit prefix at which its codes end, 0 if there are none.
    limits: [u32; 17],
    /// Per code length, what to add to a code to find its symbol's place.
    offsets: [i32; 17],
    symbols: [u8; 256],
}

impl Table {
    /// Builds the table; for DC every symbol must be a category up to 15.
    pub fn new(spec: &TableSpec, dc: bool) -> Result<Self> {
        let mut table = Table {
            lookup: [0; 1 << LOOKUP_BITS],
            limits: [0; 17],
            offsets: [0; 17],
            symbols: spec.symbols,
        };
        let mut code = 0u32;
        let mut place = 0usize;
        for length in 1..=16u32 {
            let count = u32::from(spec.counts[length as usize - 1]);
            table.offsets[length as usize] = place as i32 - code as i32;
            for _ in 0..count {
                let Some(&symbol) = spec.symbols.get(place) else {
                    return Err(Error::Image(
                        "JPEG: a Huffman table has more than 256 codes".into(),
                    ));
                };
                if dc && symbol > 15 {
                    return Err(Error::Image(format!(
                        "JPEG: a DC Huffman table has the category {symbol}, expected at most 15"
                    )));
                }
                if length <= LOOKUP_BITS {
                    let first = (code as usize) << (LOOKUP_BITS - length);
                    for (index, entry) in (first..).zip(
                        table
                            .lookup
                            .iter_mut()
                            .skip(first)
                            .take(1 << (LOOKUP_BITS - length)),
                    ) {
                        *entry = lookup_entry(index as u32, length, symbol, dc);
                    }
                }
                code += 1;
                place += 1;
            }
            if count > 0 {
                // No code may consist of ones alone.
                if code >= 1 << length {
                    return Err(Error::Image(format!(
                        "JPEG: a Huffman table has more codes of {length} bits than there is room for"
                    )));
                }
                table.limits[length as usize] = code << (16 - length);
            }
            code <<= 1;
        }
        Ok(table)
    }
}

fn lookup_entry(prefix: u32, length: u32, symbol: u8, dc: bool) -> u32 {
    let size = u32::from(symbol & 15);
    let total = length + size;
    // A symbol without appended bits is a value only for DC; for AC it ends the block or skips 16.
    let known = total <= LOOKUP_BITS && (size > 0 || dc);
    let value = if known {
        let appended = prefix >> (LOOKUP_BITS - total) & ((1 << size) - 1);
        extend(appended, size)
    } else {
        0
    };
    (value as u32) << 16 | u32::from(symbol) << 8 | length << 4 | if known { total } else { 0 }
}

/// The signed value that `size` appended bits stand for (T.81 figure F.12).
#[inline(always)]
fn extend(bits: u32, size: u32) -> i32 {
    if size == 0 || bits >> (size - 1) != 0 {
        bits as i32
    } else {
        bits as i32 - (1 << size) + 1
    }
}

/// One decoded step of an AC band.
#[derive(Clone, Copy)]
pub(super) struct Coefficient {
    /// Zero coefficients before it.
    pub run: usize,
    /// Its bits; 0 stands for the end of the band, or for 16 zeros if `run` is 15.
    pub size: u32,
    /// The coefficient.
    pub value: i32,
}

/// Where libjpeg's own bit buffer would stand.
///
/// libjpeg gives up an MCU as soon as its buffer cannot be filled for want of input, even if the
/// bits it holds would do. Which rows of a file without an end it still delivers therefore depends
/// on how it fills, which this follows.
#[derive(Clone, Copy)]
struct Shadow {
    position: usize,
    left: u32,
    /// Its quick filling, far from the end of the input.
    quick: bool,
    marker: bool,
    /// The input ended during a filling.
    failed: bool,
}

impl Shadow {
    fn byte(&mut self, data: &[u8]) {
        loop {
            match (data.get(self.position), data.get(self.position + 1)) {
                (None, _) | (Some(0xff), None) => self.failed = true,
                (Some(0xff), Some(0xff)) => {
                    self.position += 1;
                    continue;
                }
                (Some(0xff), Some(0)) => {
                    self.position += 2;
                    self.left += 8;
                }
                (Some(0xff), Some(_)) => self.marker = true,
                _ => {
                    self.position += 1;
                    self.left += 8;
                }
            }
            return;
        }
    }

    fn need(&mut self, bits: u32, data: &[u8]) {
        if self.quick {
            if self.left <= 16 {
                for _ in 0..6 {
                    self.byte(data);
                }
            }
        } else if self.left < bits {
            while self.left < 57 && !self.marker && !self.failed {
                self.byte(data);
            }
        }
    }

    fn take(&mut self, bits: u32) {
        self.left = self.left.saturating_sub(bits);
    }

    fn code(&mut self, length: u32, data: &[u8]) {
        self.need(8, data);
        if self.quick || length <= 8 {
            return self.take(length);
        }
        self.need(9, data);
        self.take(9);
        for _ in 9..length {
            self.need(1, data);
            self.take(1);
        }
    }
}

/// Reads an entropy-coded segment bit by bit; behind the marker that ends it, or behind the end of
/// the data, come zeros.
#[derive(Clone, Copy)]
pub(super) struct BitReader<'a> {
    data: &'a [u8],
    /// The next byte to read.
    pub position: usize,
    /// The bits read ahead, from the top.
    buffer: u64,
    /// How many of them are valid.
    left: u32,
    /// How many of all bits handed out or read ahead are made-up zeros.
    padding: u32,
    /// Where reading several bytes at once ends: at the end of the data, or at the marker.
    until: usize,
    /// The marker that was hit, 0 if none.
    pub marker: u8,
    /// The data ended without a marker.
    pub at_end: bool,
    shadow: Option<Shadow>,
}

impl<'a> BitReader<'a> {
    /// Starts at a byte of the data. `tracked` follows how libjpeg would fill its buffer, for
    /// [`BitReader::stalled`].
    pub fn new(data: &'a [u8], position: usize, tracked: bool) -> Self {
        BitReader {
            data,
            position,
            buffer: 0,
            left: 0,
            padding: 0,
            until: data.len(),
            marker: 0,
            at_end: false,
            shadow: tracked.then_some(Shadow {
                position,
                left: 0,
                quick: false,
                marker: false,
                failed: false,
            }),
        }
    }

    /// Throws away the bits read ahead, as before a restart marker.
    pub fn align(&mut self) {
        (self.buffer, self.left, self.padding) = (0, 0, 0);
    }

    /// Goes on reading behind a restart.
    pub fn restarted(&mut self) {
        self.until = if self.marker == 0 {
            self.data.len()
        } else {
            self.position
        };
        if let Some(shadow) = &mut self.shadow {
            shadow.position = self.position;
            shadow.left = 0;
            shadow.marker = self.marker != 0;
        }
    }

    /// Whether more bits were handed out than there were.
    #[inline(always)]
    pub fn starved(&self) -> bool {
        self.left < self.padding
    }

    /// Tells the tracking that an MCU of this many blocks begins: libjpeg fills its buffer quickly
    /// where at least 512 bytes a block remain and there are no restarts.
    pub fn begin_mcu(&mut self, blocks: usize, restarts: bool) {
        if let Some(shadow) = &mut self.shadow {
            let remaining = self.data.len().saturating_sub(shadow.position);
            shadow.quick = !restarts && !shadow.marker && remaining >= 512 * blocks;
        }
    }

    /// Whether libjpeg would have given up for want of input.
    pub fn stalled(&self) -> bool {
        self.shadow.is_some_and(|shadow| shadow.failed)
    }

    /// Whether the data ended, or so little of it is left, and no marker, that libjpeg's reading
    /// ahead may matter.
    pub fn near_end(&self) -> bool {
        self.at_end || self.marker == 0 && self.data.len().saturating_sub(self.position) < 16
    }

    /// Makes at least 32 bits available.
    #[inline(always)]
    fn refill(&mut self) {
        if self.left >= 32 {
            return;
        }
        if let Some(&bytes) = self
            .data
            .get(self.position..self.until)
            .and_then(<[u8]>::first_chunk)
        {
            let word = u64::from_be_bytes(bytes);
            // Sets the top bit of at least one byte if any byte is 0xff.
            let candidates = word & !word.wrapping_add(0x0101_0101_0101_0101) & 0x8080_8080_8080_8080;
            if candidates == 0 {
                self.buffer |= word >> self.left;
                let bytes = (63 - self.left) >> 3;
                self.position += bytes as usize;
                self.left += bytes * 8;
                return;
            }
        }
        self.refill_bytewise();
    }

    #[cold]
    #[inline(never)]
    fn refill_bytewise(&mut self) {
        while self.left <= 56 {
            if self.marker != 0 || self.at_end {
                self.padding += 64 - self.left;
                self.left = 64;
                return;
            }
            let Some(byte) = self.stored_byte() else {
                continue;
            };
            self.buffer |= u64::from(byte) << (56 - self.left);
            self.left += 8;
        }
    }

    /// The next byte without what stuffs it; `None` where the marker or the end of the data is hit.
    #[inline(always)]
    fn stored_byte(&mut self) -> Option<u8> {
        match self.data.get(self.position) {
            None => self.at_end = true,
            Some(0xff) => {
                let mut next = self.position + 1;
                while self.data.get(next) == Some(&0xff) {
                    next += 1;
                }
                match self.data.get(next) {
                    None => self.at_end = true,
                    Some(0) => {
                        self.position = next + 1;
                        return Some(0xff);
                    }
                    Some(&marker) => {
                        self.position = next + 1;
                        self.marker = marker;
                        self.until = self.position;
                    }
                }
            }
            Some(&byte) => {
                self.position += 1;
                return Some(byte);
            }
        }
        None
    }

    /// The next byte of arithmetic coding, which needs no bits read ahead: behind the marker zeros belong to
    /// the data.
    #[inline(always)]
    pub fn byte(&mut self) -> u8 {
        if self.marker != 0 || self.at_end {
            return 0;
        }
        self.stored_byte().unwrap_or(0)
    }

    #[inline(always)]
    fn drop(&mut self, bits: u32) {
        self.buffer <<= bits;
        self.left -= bits;
    }

    /// `size` of the bits already available, at least 1.
    #[inline(always)]
    fn take(&mut self, size: u32) -> u32 {
        let bits = (self.buffer >> (64 - size)) as u32;
        self.drop(size);
        bits
    }

    /// Finds the symbol of a code longer than the lookup: its length and itself. A code that the
    /// table lacks reads as the symbol 0 after 17 bits, as in libjpeg.
    #[cold]
    #[inline(never)]
    fn long_code(&self, table: &Table) -> (u32, u8) {
        let prefix = (self.buffer >> 48) as u32;
        for length in LOOKUP_BITS + 1..=16 {
            if prefix < table.limits[length as usize] {
                let place = (prefix >> (16 - length)) as i32 + table.offsets[length as usize];
                return (length, table.symbols[place as usize & 255]);
            }
        }
        (17, 0)
    }

    /// Decodes the next symbol and the value of its appended bits, if `appended`.
    #[inline(always)]
    fn symbol(&mut self, table: &Table, entry: u32) -> u8 {
        let (length, symbol) = match entry >> 4 & 15 {
            0 => self.long_code(table),
            length => (length, (entry >> 8) as u8),
        };
        if let Some(shadow) = &mut self.shadow {
            shadow.code(length, self.data);
        }
        self.drop(length);
        symbol
    }

    #[inline(always)]
    fn appended(&mut self, size: u32) -> u32 {
        if let Some(shadow) = &mut self.shadow {
            shadow.need(size, self.data);
            shadow.take(size);
        }
        self.take(size)
    }

    /// Decodes a DC difference. `TRACKED` readers must say so here and in
    /// [`BitReader::coefficient`].
    #[inline(always)]
    pub fn difference<const TRACKED: bool>(&mut self, table: &Table) -> i32 {
        self.refill();
        let entry = table.lookup[(self.buffer >> (64 - LOOKUP_BITS)) as usize];
        if !TRACKED && entry & 15 != 0 {
            self.drop(entry & 15);
            return entry as i32 >> 16;
        }
        match u32::from(self.symbol(table, entry)) {
            0 => 0,
            size => {
                let bits = self.appended(size);
                extend(bits, size)
            }
        }
    }

    /// Decodes the next run and coefficient of an AC band.
    #[inline(always)]
    pub fn coefficient<const TRACKED: bool>(&mut self, table: &Table) -> Coefficient {
        self.refill();
        let entry = table.lookup[(self.buffer >> (64 - LOOKUP_BITS)) as usize];
        if !TRACKED && entry & 15 != 0 {
            self.drop(entry & 15);
            return Coefficient {
                run: (entry >> 12 & 15) as usize,
                size: 1,
                value: entry as i32 >> 16,
            };
        }
        let symbol = self.symbol(table, entry);
        let size = u32::from(symbol & 15);
        let value = match size {
            0 => 0,
            _ => {
                let bits = self.appended(size);
                extend(bits, size)
            }
        };
        Coefficient {
            run: usize::from(symbol >> 4),
            size,
            value,
        }
    }

    /// Decodes the next run of a refinement scan, whose coefficients are not appended to the code
    /// but to be read by [`BitReader::bit`]: the run and whether a coefficient follows.
    #[inline(always)]
    pub fn run(&mut self, table: &Table) -> (usize, bool) {
        self.refill();
        let entry = table.lookup[(self.buffer >> (64 - LOOKUP_BITS)) as usize];
        let symbol = self.symbol(table, entry);
        (usize::from(symbol >> 4), symbol & 15 != 0)
    }

    /// The next `size` bits, 0 to 16.
    #[inline(always)]
    pub fn bits(&mut self, size: u32) -> u32 {
        self.refill();
        if size == 0 { 0 } else { self.take(size) }
    }

    /// The next bit.
    #[inline(always)]
    pub fn bit(&mut self) -> bool {
        if self.left == 0 {
            self.refill();
        }
        self.take(1) != 0
    }
}
