//! Arithmetic coding: ITU-T T.81 annex D and sections F.1.4, F.2.4 and G.1.3, with what libjpeg-turbo makes
//! of damage.

use super::frame::{Headers, Scan, ZIGZAG};
use super::huffman::BitReader;
use super::idct::Block;
use super::scan::Coding;
use crate::{Error, Result};

/// A state of the estimation of probabilities: the size of the less probable interval, the states after it
/// and after the more probable one, and whether the more probable symbol changes with the first.
type State = (u16, u8, u8, bool);

/// Table D.3.
#[rustfmt::skip]
const STATES: [State; 114] = {
    const fn s(size: u16, less: u8, more: u8, switch: u8) -> State { (size, less, more, switch == 1) }
    [
        s(0x5a1d, 1, 1, 1), s(0x2586, 14, 2, 0), s(0x1114, 16, 3, 0), s(0x080b, 18, 4, 0), s(0x03d8, 20, 5, 0),
        s(0x01da, 23, 6, 0), s(0x00e5, 25, 7, 0), s(0x006f, 28, 8, 0), s(0x0036, 30, 9, 0), s(0x001a, 33, 10, 0),
        s(0x000d, 35, 11, 0), s(0x0006, 9, 12, 0), s(0x0003, 10, 13, 0), s(0x0001, 12, 13, 0), s(0x5a7f, 15, 15, 1),
        s(0x3f25, 36, 16, 0), s(0x2cf2, 38, 17, 0), s(0x207c, 39, 18, 0), s(0x17b9, 40, 19, 0), s(0x1182, 42, 20, 0),
        s(0x0cef, 43, 21, 0), s(0x09a1, 45, 22, 0), s(0x072f, 46, 23, 0), s(0x055c, 48, 24, 0), s(0x0406, 49, 25, 0),
        s(0x0303, 51, 26, 0), s(0x0240, 52, 27, 0), s(0x01b1, 54, 28, 0), s(0x0144, 56, 29, 0), s(0x00f5, 57, 30, 0),
        s(0x00b7, 59, 31, 0), s(0x008a, 60, 32, 0), s(0x0068, 62, 33, 0), s(0x004e, 63, 34, 0), s(0x003b, 32, 35, 0),
        s(0x002c, 33, 9, 0), s(0x5ae1, 37, 37, 1), s(0x484c, 64, 38, 0), s(0x3a0d, 65, 39, 0), s(0x2ef1, 67, 40, 0),
        s(0x261f, 68, 41, 0), s(0x1f33, 69, 42, 0), s(0x19a8, 70, 43, 0), s(0x1518, 72, 44, 0), s(0x1177, 73, 45, 0),
        s(0x0e74, 74, 46, 0), s(0x0bfb, 75, 47, 0), s(0x09f8, 77, 48, 0), s(0x0861, 78, 49, 0), s(0x0706, 79, 50, 0),
        s(0x05cd, 48, 51, 0), s(0x04de, 50, 52, 0), s(0x040f, 50, 53, 0), s(0x0363, 51, 54, 0), s(0x02d4, 52, 55, 0),
        s(0x025c, 53, 56, 0), s(0x01f8, 54, 57, 0), s(0x01a4, 55, 58, 0), s(0x0160, 56, 59, 0), s(0x0125, 57, 60, 0),
        s(0x00f6, 58, 61, 0), s(0x00cb, 59, 62, 0), s(0x00ab, 61, 63, 0), s(0x008f, 61, 32, 0), s(0x5b12, 65, 65, 1),
        s(0x4d04, 80, 66, 0), s(0x412c, 81, 67, 0), s(0x37d8, 82, 68, 0), s(0x2fe8, 83, 69, 0), s(0x293c, 84, 70, 0),
        s(0x2379, 86, 71, 0), s(0x1edf, 87, 72, 0), s(0x1aa9, 87, 73, 0), s(0x174e, 72, 74, 0), s(0x1424, 72, 75, 0),
        s(0x119c, 74, 76, 0), s(0x0f6b, 74, 77, 0), s(0x0d51, 75, 78, 0), s(0x0bb6, 77, 79, 0), s(0x0a40, 77, 48, 0),
        s(0x5832, 80, 81, 1), s(0x4d1c, 88, 82, 0), s(0x438e, 89, 83, 0), s(0x3bdd, 90, 84, 0), s(0x34ee, 91, 85, 0),
        s(0x2eae, 92, 86, 0), s(0x299a, 93, 87, 0), s(0x2516, 86, 71, 0), s(0x5570, 88, 89, 1), s(0x4ca9, 95, 90, 0),
        s(0x44d9, 96, 91, 0), s(0x3e22, 97, 92, 0), s(0x3824, 99, 93, 0), s(0x32b4, 99, 94, 0), s(0x2e17, 93, 86, 0),
        s(0x56a8, 95, 96, 1), s(0x4f46, 101, 97, 0), s(0x47e5, 102, 98, 0), s(0x41cf, 103, 99, 0), s(0x3c3d, 104, 100, 0),
        s(0x375e, 99, 93, 0), s(0x5231, 105, 102, 0), s(0x4c0f, 106, 103, 0), s(0x4639, 107, 104, 0), s(0x415e, 103, 99, 0),
        s(0x5627, 105, 106, 1), s(0x50e7, 108, 107, 0), s(0x4b85, 109, 103, 0), s(0x5597, 110, 109, 0), s(0x504f, 111, 107, 0),
        s(0x5a10, 110, 111, 1), s(0x5522, 112, 109, 0), s(0x59eb, 112, 111, 1),
        // Not of the table: both symbols stay as probable as each other.
        s(0x5a1d, EVEN, EVEN, 0),
    ]
};

/// The state that does not learn.
const EVEN: u8 = 113;

/// What a symbol's probability is learnt in: a state, and in the top bit the more probable symbol.
type Bin = u8;

/// The decoder of symbols.
struct Coder {
    /// What the code says of the place in the interval, and the size of that.
    code: u32,
    interval: u32,
    /// Bits of the code ahead; below 0 the first two bytes are missing.
    ahead: i32,
    /// Symbols decoded so far.
    symbols: u64,
}

impl Coder {
    const fn new() -> Self {
        Self {
            code: 0,
            interval: 0,
            ahead: -16,
            symbols: 0,
        }
    }

    #[inline(always)]
    fn symbol(&mut self, bits: &mut BitReader, bin: &mut Bin) -> bool {
        while self.interval < 0x8000 {
            self.ahead -= 1;
            if self.ahead < 0 {
                self.code = self.code << 8 | u32::from(bits.byte());
                self.ahead += 8;
                if self.ahead < 0 {
                    self.ahead += 1;
                    if self.ahead == 0 {
                        self.interval = 0x8000;
                    }
                }
            }
            self.interval <<= 1;
        }
        self.symbols += 1;
        let (size, less, more, switch) = STATES[usize::from(*bin & 0x7f)];
        let (likely, size) = (*bin & 0x80, u32::from(size));
        self.interval -= size;
        let place = self.interval << self.ahead;
        // The less probable symbol has the upper part, unless that is the larger one by now.
        let upper = self.code >= place;
        let exchanged = self.interval < size;
        if upper {
            self.code -= place;
            self.interval = size;
        } else if self.interval >= 0x8000 {
            return likely != 0;
        }
        if upper == exchanged {
            *bin = likely | more;
            likely != 0
        } else {
            *bin = if switch { likely ^ 0x80 } else { likely } | less;
            likely == 0
        }
    }

    /// A value that is not 0 without its sign, and the power of two under it. The first symbols of its size
    /// are in the bin `at` (for AC coefficients two), the others and its lower bits from `tail` on. `None`:
    /// it has too many bits.
    fn value(
        &mut self,
        bits: &mut BitReader,
        bins: &mut [Bin],
        mut at: usize,
        tail: usize,
        ac: bool,
    ) -> Option<(i32, i32)> {
        let mut power = i32::from(self.symbol(bits, &mut bins[at]));
        if power != 0 && (!ac || self.symbol(bits, &mut bins[at])) {
            power <<= u32::from(ac);
            at = tail;
            while self.symbol(bits, &mut bins[at]) {
                power <<= 1;
                if power == 0x8000 {
                    return None;
                }
                at += 1;
            }
        }
        let mut value = power;
        let mut bit = power >> 1;
        while bit != 0 {
            if self.symbol(bits, &mut bins[at + 14]) {
                value |= bit;
            }
            bit >>= 1;
        }
        Some((value + 1, power))
    }
}

/// Where the bins of larger DC values start, and of larger AC coefficients of low and of high frequency.
const DC_TAIL: usize = 20;
const AC_TAILS: [usize; 2] = [189, 217];

/// What is decoded.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Sequential,
    DcFirst,
    DcRefinement,
    AcFirst,
    AcRefinement,
}

/// A component's share of a scan.
#[derive(Clone, Copy)]
struct Part {
    /// Numbers of its tables.
    dc: usize,
    ac: usize,
    last: i32,
    /// The first bin of the next DC value, by the last one.
    context: usize,
}

/// Decodes the blocks of any kind of scan.
pub(super) struct Arithmetic {
    kind: Kind,
    first: usize,
    last: usize,
    low: u32,
    parts: [Part; 4],
    /// Bounds of small DC differences, by the number of the table, and the last low frequency.
    conditioning: [(u32, u32); 16],
    low_frequencies: [u8; 16],
    dc: Box<[[Bin; 64]; 16]>,
    ac: Box<[[Bin; 256]; 16]>,
    coder: Coder,
    /// The code made no sense: what is left up to the next restart marker stays as it is.
    lost: bool,
    symbols_before: u64,
    most: u64,
}

impl Arithmetic {
    /// `most` symbols may be decoded.
    pub fn new(headers: &Headers, scan: &Scan, progressive: bool, most: u64) -> Self {
        let mut parts = [Part {
            dc: 0,
            ac: 0,
            last: 0,
            context: 0,
        }; 4];
        for (part, component) in parts.iter_mut().zip(&scan.components) {
            part.dc = component.dc_table & 15;
            part.ac = component.ac_table & 15;
        }
        let kind = match (progressive, scan.first, scan.high) {
            (false, ..) => Kind::Sequential,
            (true, 0, 0) => Kind::DcFirst,
            (true, 0, _) => Kind::DcRefinement,
            (true, _, 0) => Kind::AcFirst,
            (true, ..) => Kind::AcRefinement,
        };
        Self {
            kind,
            // Of a sequential scan these fields are not looked at.
            first: if progressive { scan.first.max(1) } else { 1 },
            last: if progressive { scan.last.min(63) } else { 63 },
            low: if progressive { scan.low } else { 0 },
            parts,
            conditioning: headers.conditioning,
            low_frequencies: headers.low_frequencies,
            dc: Box::new([[0; 64]; 16]),
            ac: Box::new([[0; 256]; 16]),
            coder: Coder::new(),
            lost: false,
            symbols_before: 0,
            most,
        }
    }

    /// Symbols that may still be decoded.
    pub fn left(&self) -> u64 {
        self.most.saturating_sub(self.symbols_before + self.coder.symbols)
    }

    /// The next DC value; `None` where the code makes no sense.
    fn dc(&mut self, bits: &mut BitReader, place: usize) -> Option<i32> {
        let part = &mut self.parts[place & 3];
        let (bins, start) = (&mut self.dc[part.dc], part.context);
        part.context = 0;
        if self.coder.symbol(bits, &mut bins[start]) {
            let negative = self.coder.symbol(bits, &mut bins[start + 1]);
            let at = start + 2 + usize::from(negative);
            let (value, power) = self.coder.value(bits, bins, at, DC_TAIL, false)?;
            let (lower, upper) = self.conditioning[part.dc];
            let sign = 4 * usize::from(negative);
            part.context = match power {
                _ if power < ((1 << lower) >> 1) => 0,
                _ if power > ((1 << upper) >> 1) => 12 + sign,
                _ => 4 + sign,
            };
            part.last = (part.last + if negative { -value } else { value }) & 0xffff;
        }
        Some(part.last)
    }

    /// The coefficients of a band; `None` where the code makes no sense.
    fn ac(&mut self, bits: &mut BitReader, place: usize, block: &mut Block) -> Option<()> {
        let table = self.parts[place & 3].ac;
        let bins = &mut self.ac[table];
        let mut k = self.first;
        while k <= self.last {
            let mut at = 3 * (k - 1);
            if self.coder.symbol(bits, &mut bins[at]) {
                break;
            }
            while !self.coder.symbol(bits, &mut bins[at + 1]) {
                at += 3;
                k += 1;
                if k > self.last {
                    return None;
                }
            }
            let negative = self.coder.symbol(bits, &mut { EVEN });
            let tail = AC_TAILS[usize::from(k > usize::from(self.low_frequencies[table]))];
            let (value, _) = self.coder.value(bits, bins, at + 2, tail, true)?;
            let value = if negative { -value } else { value };
            block[usize::from(ZIGZAG[k]) & 63] = (value << self.low) as i16;
            k += 1;
        }
        Some(())
    }

    /// A further bit of a band; `None` where the code makes no sense.
    fn refinement(&mut self, bits: &mut BitReader, place: usize, block: &mut Block) -> Option<()> {
        let bins = &mut self.ac[self.parts[place & 3].ac];
        let (plus, minus) = (1i16 << self.low, -1i16 << self.low);
        let told = (1..=self.last).rfind(|&k| block[usize::from(ZIGZAG[k]) & 63] != 0);
        let mut k = self.first;
        while k <= self.last {
            let mut at = 3 * (k - 1);
            if k > told.unwrap_or(0) && self.coder.symbol(bits, &mut bins[at]) {
                break;
            }
            loop {
                let coefficient = &mut block[usize::from(ZIGZAG[k]) & 63];
                if *coefficient != 0 {
                    if self.coder.symbol(bits, &mut bins[at + 2]) {
                        *coefficient = coefficient.wrapping_add(if *coefficient < 0 { minus } else { plus });
                    }
                    break;
                }
                if self.coder.symbol(bits, &mut bins[at + 1]) {
                    *coefficient = if self.coder.symbol(bits, &mut { EVEN }) {
                        minus
                    } else {
                        plus
                    };
                    break;
                }
                at += 3;
                k += 1;
                if k > self.last {
                    return None;
                }
            }
            k += 1;
        }
        Some(())
    }
}

impl Coding for Arithmetic {
    fn block(&mut self, bits: &mut BitReader, place: usize, block: &mut Block) -> Result<()> {
        if self.left() == 0 {
            return Err(Error::Image(
                "JPEG: the arithmetic-coded data asks for more work than its pixels and its bytes warrant"
                    .into(),
            ));
        }
        if self.kind == Kind::DcRefinement {
            if self.coder.symbol(bits, &mut { EVEN }) {
                block[0] |= 1 << self.low;
            }
            return Ok(());
        }
        if self.lost {
            return Ok(());
        }
        let decoded = match self.kind {
            Kind::Sequential | Kind::DcFirst => match self.dc(bits, place) {
                Some(value) => {
                    block[0] = (value << self.low) as i16;
                    match self.kind {
                        Kind::Sequential => self.ac(bits, place, block),
                        _ => Some(()),
                    }
                }
                None => None,
            },
            Kind::AcFirst => self.ac(bits, place, block),
            _ => self.refinement(bits, place, block),
        };
        self.lost = decoded.is_none();
        Ok(())
    }

    fn restart(&mut self) {
        self.dc.as_flattened_mut().fill(0);
        self.ac.as_flattened_mut().fill(0);
        for part in &mut self.parts {
            (part.last, part.context) = (0, 0);
        }
        self.symbols_before += self.coder.symbols;
        self.coder = Coder::new();
        self.lost = false;
    }
}
