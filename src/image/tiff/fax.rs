//! The fax codes of ITU-T T.4 (group 3, of one and two dimensions, and TIFF's compression 2) and T.6
//! (group 4).
//!
//! Own code, since the pixels of a damaged row are libtiff's too: a wrong code ends the row, what follows of
//! it is white, and decoding goes on with the next end-of-line code in group 3, at the next bit elsewhere.

/// Codes of the white runs of 0 to 63 pixels: the bits and how many there are.
#[rustfmt::skip]
const WHITE: [(u16, u8); 64] = [
    (0x35, 8), (0x07, 6), (0x07, 4), (0x08, 4), (0x0B, 4), (0x0C, 4), (0x0E, 4), (0x0F, 4), (0x13, 5),
    (0x14, 5), (0x07, 5), (0x08, 5), (0x08, 6), (0x03, 6), (0x34, 6), (0x35, 6), (0x2A, 6), (0x2B, 6),
    (0x27, 7), (0x0C, 7), (0x08, 7), (0x17, 7), (0x03, 7), (0x04, 7), (0x28, 7), (0x2B, 7), (0x13, 7),
    (0x24, 7), (0x18, 7), (0x02, 8), (0x03, 8), (0x1A, 8), (0x1B, 8), (0x12, 8), (0x13, 8), (0x14, 8),
    (0x15, 8), (0x16, 8), (0x17, 8), (0x28, 8), (0x29, 8), (0x2A, 8), (0x2B, 8), (0x2C, 8), (0x2D, 8),
    (0x04, 8), (0x05, 8), (0x0A, 8), (0x0B, 8), (0x52, 8), (0x53, 8), (0x54, 8), (0x55, 8), (0x24, 8),
    (0x25, 8), (0x58, 8), (0x59, 8), (0x5A, 8), (0x5B, 8), (0x4A, 8), (0x4B, 8), (0x32, 8), (0x33, 8),
    (0x34, 8),
];

/// Codes of white runs of 64, 128, 192 ... 1728 pixels that another code follows.
#[rustfmt::skip]
const WHITE_LONG: [(u16, u8); 27] = [
    (0x1B, 5), (0x12, 5), (0x17, 6), (0x37, 7), (0x36, 8), (0x37, 8), (0x64, 8), (0x65, 8), (0x68, 8),
    (0x67, 8), (0xCC, 9), (0xCD, 9), (0xD2, 9), (0xD3, 9), (0xD4, 9), (0xD5, 9), (0xD6, 9), (0xD7, 9),
    (0xD8, 9), (0xD9, 9), (0xDA, 9), (0xDB, 9), (0x98, 9), (0x99, 9), (0x9A, 9), (0x18, 6), (0x9B, 9),
];

/// [`WHITE`] in black.
#[rustfmt::skip]
const BLACK: [(u16, u8); 64] = [
    (0x37, 10), (0x02, 3), (0x03, 2), (0x02, 2), (0x03, 3), (0x03, 4), (0x02, 4), (0x03, 5), (0x05, 6),
    (0x04, 6), (0x04, 7), (0x05, 7), (0x07, 7), (0x04, 8), (0x07, 8), (0x18, 9), (0x17, 10), (0x18, 10),
    (0x08, 10), (0x67, 11), (0x68, 11), (0x6C, 11), (0x37, 11), (0x28, 11), (0x17, 11), (0x18, 11),
    (0xCA, 12), (0xCB, 12), (0xCC, 12), (0xCD, 12), (0x68, 12), (0x69, 12), (0x6A, 12), (0x6B, 12),
    (0xD2, 12), (0xD3, 12), (0xD4, 12), (0xD5, 12), (0xD6, 12), (0xD7, 12), (0x6C, 12), (0x6D, 12),
    (0xDA, 12), (0xDB, 12), (0x54, 12), (0x55, 12), (0x56, 12), (0x57, 12), (0x64, 12), (0x65, 12),
    (0x52, 12), (0x53, 12), (0x24, 12), (0x37, 12), (0x38, 12), (0x27, 12), (0x28, 12), (0x58, 12),
    (0x59, 12), (0x2B, 12), (0x2C, 12), (0x5A, 12), (0x66, 12), (0x67, 12),
];

/// [`WHITE_LONG`] in black.
#[rustfmt::skip]
const BLACK_LONG: [(u16, u8); 27] = [
    (0x0F, 10), (0xC8, 12), (0xC9, 12), (0x5B, 12), (0x33, 12), (0x34, 12), (0x35, 12), (0x6C, 13),
    (0x6D, 13), (0x4A, 13), (0x4B, 13), (0x4C, 13), (0x4D, 13), (0x72, 13), (0x73, 13), (0x74, 13),
    (0x75, 13), (0x76, 13), (0x77, 13), (0x52, 13), (0x53, 13), (0x54, 13), (0x55, 13), (0x5A, 13),
    (0x5B, 13), (0x64, 13), (0x65, 13),
];

/// Codes of runs of 1792, 1856 ... 2560 pixels of either colour that another code follows.
#[rustfmt::skip]
const LONGEST: [(u16, u8); 13] = [
    (0x08, 11), (0x0C, 11), (0x0D, 11), (0x12, 12), (0x13, 12), (0x14, 12), (0x15, 12), (0x16, 12),
    (0x17, 12), (0x1C, 12), (0x1D, 12), (0x1E, 12), (0x1F, 12),
];

/// The most bits of a run's code.
const RUN_BITS: u32 = 13;

/// A run's code that begins with some bits.
#[derive(Clone, Copy)]
enum Code {
    /// The run's last code.
    Last(u16),
    /// Another code of the run follows.
    More(u16),
    /// The zeros that begin an end-of-line code.
    EndOfLine,
    Wrong,
}

/// The codes of white and black runs by the next [`RUN_BITS`] bits, each with its length.
struct Codes([Vec<(Code, u8)>; 2]);

impl Codes {
    fn new() -> Self {
        Self([
            Self::of_colour(&WHITE, &WHITE_LONG),
            Self::of_colour(&BLACK, &BLACK_LONG),
        ])
    }

    fn of_colour(short: &[(u16, u8)], long: &[(u16, u8)]) -> Vec<(Code, u8)> {
        let mut codes = vec![(Code::Wrong, 0); 1 << RUN_BITS];
        let mut set = |(bits, length): (u16, u8), code| {
            let unused = RUN_BITS - u32::from(length);
            let first = usize::from(bits) << unused;
            codes[first..first + (1 << unused)].fill((code, length));
        };
        for (run, &bits) in (0..).zip(short) {
            set(bits, Code::Last(run));
        }
        for (run, &bits) in (64..).step_by(64).zip(long.iter().chain(&LONGEST)) {
            set(bits, Code::More(run));
        }
        set((0, 11), Code::EndOfLine);
        codes
    }

    /// Decodes a run with all its codes; returns a code that has no place in one.
    fn run(
        &self,
        bits: &mut Bits,
        black: bool,
        row: &mut Row,
        most: usize,
    ) -> Result<Result<(), Code>, Stop> {
        loop {
            // The longest code of the colour, which matters at the end of the data.
            bits.need(if black { RUN_BITS } else { RUN_BITS - 1 })?;
            let (code, length) = self.0[usize::from(black)][bits.peek(RUN_BITS) as usize];
            bits.skip(u32::from(length));
            match code {
                Code::More(length) => {
                    row.at += i64::from(length);
                    row.open += i64::from(length);
                }
                Code::Last(length) => return row.push(i64::from(length), most).map(Ok),
                other => return Ok(Err(other)),
            }
        }
    }
}

/// Why decoding of a strip or tile ends before all its rows are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The data ends.
    End,
    /// A row of more runs than pixels.
    Overflow,
}

/// The bits of a strip or tile. As libtiff does, zeros are put behind the last ones.
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    reversed: bool,
    /// The next bits, from the highest one on.
    next: u32,
    /// How many they are.
    count: u32,
}

impl Bits<'_> {
    fn add_byte(&mut self, byte: u8) {
        let byte = if self.reversed { byte.reverse_bits() } else { byte };
        self.next |= u32::from(byte) << (24 - self.count);
        self.count += 8;
        self.at += 1;
    }

    /// Sees to `count` bits, 1 to 13.
    fn need(&mut self, count: u32) -> Result<(), Stop> {
        while self.count < count {
            match self.data.get(self.at) {
                Some(&byte) => self.add_byte(byte),
                None if self.count == 0 => return Err(Stop::End),
                None => self.count = count,
            }
        }
        Ok(())
    }

    fn peek(&self, count: u32) -> u32 {
        self.next >> (32 - count)
    }

    fn skip(&mut self, count: u32) {
        self.next <<= count;
        self.count = self.count.saturating_sub(count);
    }
}

/// Which of the codings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// Rows of runs that start at a byte.
    Bytes,
    /// Rows of runs that start at a pair of bytes.
    Words,
    /// Group 3. Rows may refer to the one before.
    Group3 {
        two_dimensional: bool,
    },
    Group4,
}

/// A decoder of rows of one width.
pub(super) struct Fax {
    coding: Coding,
    codes: Codes,
    width: i64,
    /// The most runs of a row.
    most: usize,
    row: Row,
    /// The runs of the row before, white first.
    reference: Runs,
}

/// White and black runs in turn. Those behind the last one are of earlier rows: damaged data may refer to
/// them.
#[derive(Default)]
struct Runs {
    values: Vec<u32>,
    len: usize,
}

impl Runs {
    fn push(&mut self, run: u32, most: usize) -> Result<(), Stop> {
        if self.len >= most {
            return Err(Stop::Overflow);
        }
        match self.values.get_mut(self.len) {
            Some(value) => *value = run,
            None => self.values.push(run),
        }
        self.len += 1;
        Ok(())
    }

    fn pop(&mut self) -> Option<u32> {
        self.len = self.len.checked_sub(1)?;
        Some(self.values[self.len])
    }

    fn is_black_next(&self) -> bool {
        !self.len.is_multiple_of(2)
    }
}

/// A row while it is decoded.
#[derive(Default)]
struct Row {
    runs: Runs,
    /// Where the row is decoded to.
    at: i64,
    /// What of that belongs to a run that goes on.
    open: i64,
}

impl Row {
    /// Ends a run after `length` more pixels.
    fn push(&mut self, length: i64, most: usize) -> Result<(), Stop> {
        self.runs.push((self.open + length) as u32, most)?;
        self.at += length;
        self.open = 0;
        Ok(())
    }

    /// Makes the runs as long as the row; what is missing is white.
    fn complete(&mut self, width: i64, most: usize) -> Result<(), Stop> {
        if self.open > 0 {
            self.push(0, most)?;
        }
        if self.at == width {
            return Ok(());
        }
        while self.at > width
            && let Some(run) = self.runs.pop()
        {
            self.at -= i64::from(run as i32);
        }
        if self.at < width {
            self.at = self.at.max(0);
            if self.runs.is_black_next() {
                self.push(0, most)?;
            }
            self.push(width - self.at, most)?;
        }
        Ok(())
    }

    /// Writes the row's bits, black as 1, and cuts runs that go beyond it.
    fn fill(&mut self, width: i64, out: &mut [u8]) {
        let mut at = 0;
        for (index, run) in self.runs.values[..self.runs.len].iter_mut().enumerate() {
            let length = i64::from(*run).min(width - at);
            *run = length as u32;
            if !index.is_multiple_of(2) && length > 0 {
                set_bits(out, at as usize, (at + length) as usize);
            }
            at += length;
        }
    }
}

/// Sets the bits from `start` to `end`, which are not the same.
fn set_bits(out: &mut [u8], start: usize, end: usize) {
    let (first, last) = (start / 8, (end - 1) / 8);
    let (head, tail) = (0xFF >> (start % 8), 0xFF << (7 - (end - 1) % 8));
    if first == last {
        out[first] |= head & tail as u8;
    } else {
        out[first] |= head;
        out[first + 1..last].fill(0xFF);
        out[last] |= tail as u8;
    }
}

impl Fax {
    pub fn new(coding: Coding, width: u32) -> Self {
        let two_dimensional = matches!(
            coding,
            Coding::Group4
                | Coding::Group3 {
                    two_dimensional: true
                }
        );
        let most = (width as usize).next_multiple_of(32) << usize::from(two_dimensional);
        Self {
            coding,
            codes: Codes::new(),
            width: i64::from(width),
            most,
            row: Row::default(),
            reference: Runs::default(),
        }
    }

    /// Decodes rows of `row` bytes into `out`, which holds zeros. Where the data ends early, the rest stays
    /// so.
    pub fn decode(&mut self, data: &[u8], reversed: bool, row: usize, out: &mut [u8]) {
        let mut bits = Bits {
            data,
            at: 0,
            reversed,
            next: 0,
            count: 0,
        };
        // A white row.
        self.reference.len = 0;
        for run in [self.width as u32, 0] {
            let _ = self.reference.push(run, 2);
        }
        let mut end_of_line = false;
        for out in out.chunks_exact_mut(row) {
            self.row.runs.len = 0;
            (self.row.at, self.row.open) = (0, 0);
            let decoded = self.decode_row(&mut bits, &mut end_of_line);
            if decoded == Err(Stop::Overflow) {
                return;
            }
            self.row.fill(self.width, out);
            if decoded.is_err() || self.coding == Coding::Group4 && end_of_line {
                return;
            }
            // A run of nothing ends the row for the next one, where there is room for it.
            let ended = self.row.runs.push(0, self.most);
            if ended.is_err() && self.coding == Coding::Group4 {
                return;
            }
            std::mem::swap(&mut self.row.runs, &mut self.reference);
            match self.coding {
                Coding::Bytes => bits.skip(bits.count % 8),
                Coding::Words => {
                    bits.skip(bits.count % 16);
                    if bits.count == 0 && !bits.at.is_multiple_of(2) {
                        bits.at += 1;
                    }
                }
                _ => {}
            }
        }
    }

    fn decode_row(&mut self, bits: &mut Bits, end_of_line: &mut bool) -> Result<(), Stop> {
        let decoded = match self.coding {
            Coding::Bytes | Coding::Words => self.row_of_runs(bits, end_of_line),
            Coding::Group4 => self.row_by_reference(bits, end_of_line),
            Coding::Group3 { two_dimensional } => next_line(bits, end_of_line).and_then(|()| {
                if !two_dimensional {
                    return self.row_of_runs(bits, end_of_line);
                }
                bits.need(1)?;
                let alone = bits.peek(1) == 1;
                bits.skip(1);
                if alone {
                    self.row_of_runs(bits, end_of_line)
                } else {
                    self.row_by_reference(bits, end_of_line)
                }
            }),
        };
        match decoded {
            Err(Stop::Overflow) => Err(Stop::Overflow),
            decoded => self.row.complete(self.width, self.most).and(decoded),
        }
    }

    /// A row of runs alone.
    fn row_of_runs(&mut self, bits: &mut Bits, end_of_line: &mut bool) -> Result<(), Stop> {
        loop {
            for black in [false, true] {
                if let Err(code) = self.codes.run(bits, black, &mut self.row, self.most)? {
                    *end_of_line |= matches!(code, Code::EndOfLine);
                    return Ok(());
                }
                if self.row.at >= self.width {
                    return Ok(());
                }
            }
            let runs = &mut self.row.runs;
            if runs.values[..runs.len].ends_with(&[0, 0]) {
                runs.len -= 2;
            }
        }
    }

    /// A row by its differences from the one before.
    fn row_by_reference(&mut self, bits: &mut Bits, end_of_line: &mut bool) -> Result<(), Stop> {
        let (width, most) = (self.width, self.most);
        let row = &mut self.row;
        let mut reference = Reference {
            runs: &self.reference.values,
            change: 0,
            next: 0,
            most,
        };
        reference.step(1)?;
        while row.at < width {
            if row.runs.len >= most {
                return Err(Stop::Overflow);
            }
            bits.need(7)?;
            let (mode, length) = Mode::of(bits.peek(7));
            bits.skip(length);
            match mode {
                Mode::Vertical(shift) => {
                    reference.catch_up(row, width)?;
                    if shift < 0 && (reference.change < row.at - shift || reference.next == 0) {
                        return Ok(());
                    }
                    row.push(reference.change - row.at + shift, most)?;
                    if shift < 0 {
                        reference.step_back();
                    } else {
                        reference.step(1)?;
                    }
                }
                Mode::Pass => {
                    reference.catch_up(row, width)?;
                    let start = row.at;
                    reference.step(1)?;
                    row.at = reference.change;
                    row.open += row.at - start;
                    reference.step(1)?;
                }
                Mode::Horizontal => {
                    let black = row.runs.is_black_next();
                    for black in [black, !black] {
                        if self.codes.run(bits, black, row, most)?.is_err() {
                            return Ok(());
                        }
                    }
                    reference.catch_up(row, width)?;
                }
                Mode::EndOfLine | Mode::Extension => {
                    row.runs.push((width - row.at) as u32, most)?;
                    if mode == Mode::EndOfLine {
                        bits.need(4)?;
                        bits.skip(4);
                        *end_of_line = true;
                    }
                    return Ok(());
                }
            }
        }
        if row.open > 0 {
            if row.open + row.at < width {
                // A change that ends the row is expected.
                bits.need(1)?;
                if bits.peek(1) == 0 {
                    return Ok(());
                }
                bits.skip(1);
            }
            row.push(0, most)?;
        }
        Ok(())
    }
}

/// The row before, as far as it was compared.
struct Reference<'a> {
    runs: &'a [u32],
    /// The next change of colour.
    change: i64,
    /// The run that starts there.
    next: usize,
    most: usize,
}

impl Reference<'_> {
    fn run(&self) -> i64 {
        i64::from(self.runs.get(self.next).copied().unwrap_or(0))
    }

    /// Goes on to the change after `runs` more.
    fn step(&mut self, runs: usize) -> Result<(), Stop> {
        if self.next + runs > self.most {
            return Err(Stop::Overflow);
        }
        for _ in 0..runs {
            self.change += self.run();
            self.next += 1;
        }
        Ok(())
    }

    fn step_back(&mut self) {
        self.next -= 1;
        self.change -= self.run();
    }

    /// Goes on to the first change to the row's other colour that lies right of what is decoded.
    fn catch_up(&mut self, row: &Row, width: i64) -> Result<(), Stop> {
        while row.runs.len > 0 && self.change <= row.at && self.change < width {
            self.step(2)?;
        }
        Ok(())
    }
}

/// How the next change of a row lies to those of the row before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// So far right of the other row's next change.
    Vertical(i64),
    Pass,
    Horizontal,
    /// Seven zeros.
    EndOfLine,
    /// Uncompressed pixels, which nothing writes.
    Extension,
}

impl Mode {
    /// The mode that seven bits begin with, and how many of them it takes.
    fn of(bits: u32) -> (Self, u32) {
        match bits {
            0b100_0000.. => (Mode::Vertical(0), 1),
            0b011_0000.. => (Mode::Vertical(1), 3),
            0b010_0000.. => (Mode::Vertical(-1), 3),
            0b001_0000.. => (Mode::Horizontal, 3),
            0b000_1000.. => (Mode::Pass, 4),
            0b000_0110.. => (Mode::Vertical(2), 6),
            0b000_0100.. => (Mode::Vertical(-2), 6),
            0b000_0011 => (Mode::Vertical(3), 7),
            0b000_0010 => (Mode::Vertical(-3), 7),
            0b000_0001 => (Mode::Extension, 7),
            _ => (Mode::EndOfLine, 7),
        }
    }
}

/// Skips to behind the next end-of-line code; where its zeros were met already, to behind its one.
fn next_line(bits: &mut Bits, end_of_line: &mut bool) -> Result<(), Stop> {
    if !*end_of_line {
        loop {
            bits.need(11)?;
            if bits.peek(11) == 0 {
                break;
            }
            bits.skip(1);
        }
    }
    loop {
        bits.need(8)?;
        if bits.peek(8) != 0 {
            break;
        }
        bits.skip(8);
    }
    bits.skip(bits.next.leading_zeros() + 1);
    *end_of_line = false;
    Ok(())
}
