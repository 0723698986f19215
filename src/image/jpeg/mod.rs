//! A JPEG decoder whose pixels are those of libjpeg-turbo 2.1, bit for bit.
//!
//! Another decoder's pixels differ by a few levels, and an embedding computed from them differs as
//! well. The original reads images through OpenCV 4.6, so this follows what that does: the accurate
//! integer inverse DCT, "fancy" upsampling, the integer colour conversion, and the way damaged data
//! is read on.
//!
//! Baseline, extended sequential and progressive frames of 8 bits a sample are read, Huffman or arithmetic
//! coded, with one (grey), three (YCbCr or RGB) or four components (CMYK or YCCK). Lossless and
//! hierarchical coding and 12 bits are errors. The Exif orientation is left to the caller.
//!
//! Damage: wrong codes and missing restart markers leave a flawed picture and are no error. A file
//! that ends early is one if it has several scans or is arithmetic coded; if it has one scan of Huffman
//! codes, the rows that are missing repeat the last one that is not. Two cases differ from the original:
//! where not even one row of blocks is there, it returns what happened to be in memory, and this an error;
//! and it cannot smooth a progressive image of a single row of MCUs whose scans are incomplete, and this can.

mod arithmetic;
mod colour;
mod frame;
mod huffman;
mod idct;
mod level;
mod output;
mod scan;
mod smoothing;

use super::rows::{Rows, Whole};
use crate::{Error, Result};
use arithmetic::Arithmetic;
use frame::{Frame, Headers, Scan, ZIGZAG};
use idct::{Block, Steps};
use level::{Level, Task};
pub(super) use output::Colours;
use output::Output;
use scan::{AcFirst, AcRefinement, Coding, DcFirst, DcRefinement, Place, Sequential, Sink, Stalled, Walk};
use smoothing::Progress;

/// How often the scans may visit the blocks of an image: this often on average, and as many times more for
/// each byte of the file. An encoder's usual progression needs about six visits, the longest that optimisers
/// try out need a dozen. Without a limit a small file could ask for work without end.
const VISITS: u64 = 24;
const VISITS_A_BYTE: u64 = 16;

/// How many symbols arithmetic coding may have, for each block and for each byte of the file. A byte may hold
/// thousands of symbols that are nearly certain, and behind the last byte symbols go on, so the file's length
/// alone limits nothing. Nearly certain are at most those that say of each coefficient of a block whether it
/// is 0.
const SYMBOLS: u64 = 96;
const SYMBOLS_A_BYTE: u64 = 256;

/// What a JPEG file says about itself before its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Pixels across, before any Exif orientation.
    pub width: u32,
    /// Pixels down, before any Exif orientation.
    pub height: u32,
    /// 1 (grey), 3 (YCbCr or RGB) or 4 (CMYK or YCCK).
    pub components: u8,
}

/// Reads a JPEG file as far as its frame header.
///
/// # Errors
/// [`Error::Image`] where there is none, or one of a kind that [`decode`] does not read.
///
/// ```
/// use ernie_vil::image::jpeg;
/// let start = b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x03\x00\x02\x01\x01\x11\x00";
/// let header = jpeg::read_header(start)?;
/// assert_eq!((header.width, header.height, header.components), (2, 3, 1));
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub fn read_header(bytes: &[u8]) -> Result<Header> {
    let mut headers = Headers::new(bytes)?;
    headers.read(None, true)?;
    let frame = headers.frame.ok_or_else(no_frame)?;
    Ok(Header {
        width: frame.width as u32,
        height: frame.height as u32,
        components: frame.components.len() as u8,
    })
}

fn no_frame() -> Error {
    Error::Image("JPEG: no frame header (SOF) before the data".into())
}

/// Decodes a JPEG file: its width, its height and its pixels, three bytes (red, green, blue) each,
/// row by row from the top left.
///
/// Memory beyond the input: 3 bytes a pixel for the result, about 50 bytes a component for each
/// column of pixels, and for files of several scans 2 bytes a sample, the image rounded up to whole
/// MCUs (at most 32 pixels each way). It is for the caller to refuse too large an image by
/// [`read_header`]. Time grows with the pixels and the bytes; several scans are read up to 24 visits a block and 16 for
/// each byte of the file.
///
/// # Errors
/// [`Error::Image`] where the file is none that this decodes, where its headers or tables are
/// damaged, where the data ends before the first row of blocks or, in a file of several scans or with
/// arithmetic coding, before its end marker, and where the scans ask for more work than the limit.
pub fn decode(bytes: &[u8]) -> Result<(u32, u32, Vec<u8>)> {
    let picture = Picture::open(bytes)?;
    let (width, height) = picture.size();
    let bytes = picture.held() + 3 * u64::from(width) * u64::from(height);
    if isize::try_from(bytes).is_err() {
        return Err(Error::Image(format!(
            "JPEG: {width} x {height} pixels, more than this machine can address"
        )));
    }
    let pixels = picture.read(|| Whole::new(width, height))?.finish();
    Ok((width, height, pixels.into_data()))
}

/// A JPEG file that was read up to the data of its first scan.
pub(super) struct Picture<'a> {
    headers: Headers<'a>,
    frame: Frame,
    scan: Scan,
}

impl<'a> Picture<'a> {
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
        let mut picture = Self::of(Headers::new(bytes)?)?;
        if !picture.frame.progressive {
            picture.headers.add_standard_tables();
        }
        Ok(picture)
    }

    fn of(mut headers: Headers<'a>) -> Result<Self> {
        let scan = headers.read(None, false)?;
        let frame = headers.frame.clone().ok_or_else(no_frame)?;
        let scan = scan.ok_or_else(|| Error::Image("JPEG: the image ends without a scan".into()))?;
        Ok(Self { headers, frame, scan })
    }

    /// Pixels across and down.
    pub fn size(&self) -> (u32, u32) {
        (self.frame.width as u32, self.frame.height as u32)
    }

    /// Whether all components come in one scan, so that rows can be made as they are read.
    fn is_single(&self) -> bool {
        self.scan.components.len() == self.frame.components.len() && !self.frame.progressive
    }

    /// Bytes of coefficients that are held until the last scan is read.
    pub fn held(&self) -> u64 {
        if self.is_single() {
            return 0;
        }
        blocks(&self.frame) * (size_of::<Block>() + size_of::<u64>()) as u64
    }

    /// Hands the rows to what `rows` makes. It may be asked for a second one, which gets all rows from the
    /// first on.
    pub fn read<R: Rows>(mut self, rows: impl Fn() -> R) -> Result<R> {
        let mut first = rows();
        if self.read_rows(&mut first, false)? {
            return Ok(first);
        }
        drop(first);
        let mut second = rows();
        self.read_rows(&mut second, true)?;
        Ok(second)
    }

    /// `false`: the data ends early, and only reading it again `tracked`, which is slower, tells what libjpeg
    /// would have made of the end.
    fn read_rows(&mut self, rows: &mut dyn Rows, tracked: bool) -> Result<bool> {
        let Self { headers, frame, scan } = self;
        if scan.components.len() < frame.components.len() || frame.progressive {
            decode_several(headers, frame, scan.clone(), rows)?;
            return Ok(true);
        }
        if frame.arithmetic {
            let coding = Arithmetic::new(headers, scan, false, symbols(headers, frame));
            return decode_single::<false, _>(headers, frame, scan, coding, rows);
        }
        match tracked {
            false => {
                let coding = Sequential::<false>::new(headers, scan)?;
                decode_single::<false, _>(headers, frame, scan, coding, rows)
            }
            true => {
                let coding = Sequential::<true>::new(headers, scan)?;
                decode_single::<true, _>(headers, frame, scan, coding, rows)
            }
        }
    }
}

/// Blocks of whole MCUs.
fn blocks(frame: &Frame) -> u64 {
    let mcu: usize = frame.components.iter().map(|c| c.h * c.v).sum();
    frame.mcus_wide as u64 * frame.strips as u64 * mcu as u64
}

/// How many symbols arithmetic coding may have.
fn symbols(headers: &Headers, frame: &Frame) -> u64 {
    SYMBOLS * blocks(frame) + SYMBOLS_A_BYTE * headers.data.len() as u64
}

/// Data that ends within a scan of which all is needed.
fn cut_off(headers: &Headers) -> Error {
    Error::Image(format!(
        "JPEG: the data ends at byte {} within a scan, expected an end marker",
        headers.data.len()
    ))
}

/// Tables that the streams of a TIFF file share.
pub(super) struct Tables<'a>(Headers<'a>);

impl<'a> Tables<'a> {
    /// From a stream that holds nothing else.
    pub fn new(stream: &'a [u8]) -> Result<Self> {
        let mut headers = Headers::new(stream)?;
        headers.read_tables()?;
        Ok(Self(headers))
    }
}

/// A JPEG stream in a TIFF file, which says what the components mean. The stream's own markers do not count.
pub(super) struct Part<'a>(Picture<'a>);

impl<'a> Part<'a> {
    /// Reads the headers; there have to be as many components as `meaning` has.
    pub fn new(stream: &'a [u8], tables: Option<&Tables>, meaning: Colours) -> Result<Self> {
        let mut headers = Headers::new(stream)?;
        headers.meaning = Some(meaning);
        if let Some(Tables(tables)) = tables {
            headers.steps = tables.steps;
            headers.dc_tables.clone_from(&tables.dc_tables);
            headers.ac_tables.clone_from(&tables.ac_tables);
        }
        Picture::of(headers).map(Self)
    }

    pub fn size(&self) -> (usize, usize) {
        (self.0.frame.width, self.0.frame.height)
    }

    /// The sampling factors of each component, across and down.
    pub fn sampling(&self) -> impl Iterator<Item = [u64; 2]> {
        let components = self.0.frame.components.iter();
        components.map(|component| [component.h, component.v].map(|factor| factor as u64))
    }

    /// Bytes of coefficients that are held meanwhile.
    pub fn held(&self) -> u64 {
        self.0.held()
    }

    /// The pixels, as [`decode`] gives them.
    pub fn decode(self) -> Result<Vec<u8>> {
        let (width, height) = self.0.size();
        let pixels = self.0.read(|| Whole::new(width, height))?.finish();
        Ok(pixels.into_data())
    }
}

/// Copies the quantisation tables of a scan's components, where this is their first scan.
fn latch_steps(
    headers: &Headers,
    frame: &Frame,
    scan: &Scan,
    latched: &mut [Option<[u16; 64]>],
) -> Result<()> {
    for component in &scan.components {
        let number = frame.components[component.index].steps;
        if latched[component.index].is_none() {
            let Some(Some(steps)) = headers.steps.get(usize::from(number)) else {
                return Err(Error::Image(format!(
                    "JPEG: a scan uses the quantisation table {number}, which is not defined"
                )));
            };
            latched[component.index] = Some(*steps);
        }
    }
    Ok(())
}

/// Blocks that become samples at once.
struct Samples<'o, 'f, L> {
    output: &'o mut Output<'f>,
    steps: &'o [Steps],
    frame: &'f Frame,
    strip: usize,
    block: Block,
    level: L,
}

impl<L: Level> Sink for Samples<'_, '_, L> {
    #[inline(always)]
    fn block(&mut self, _: Place) -> &mut Block {
        self.block = [0; 64];
        &mut self.block
    }

    #[inline(always)]
    fn done(&mut self, place: Place) {
        let component = &self.frame.components[place.component];
        if place.column < component.blocks_wide
            && self.strip * component.v + place.row < component.blocks_high
        {
            let (out, stride) = self.output.block(place);
            self.level
                .idct(&self.block, &self.steps[place.component], out, stride);
        }
    }
}

/// Decodes a file of one scan strip by strip. Returns `false`, unless it is `TRACKED`, if Huffman codes end
/// early.
fn decode_single<const TRACKED: bool, C: Coding>(
    headers: &Headers,
    frame: &Frame,
    scan: &Scan,
    mut coding: C,
    rows: &mut dyn Rows,
) -> Result<bool> {
    let mut latched = vec![None; frame.components.len()];
    latch_steps(headers, frame, scan, &mut latched)?;
    let steps: Vec<Steps> = latched.into_iter().flatten().map(Steps::new).collect();
    let mut walk = Walk::new(headers, TRACKED);
    let mut output = Output::new(frame, headers.colours(frame), rows)?;
    for strip in 0..frame.strips {
        output.advance();
        let walked = level::run(SingleStrip {
            walk: &mut walk,
            coding: &mut coding,
            scan,
            frame,
            strip,
            output: &mut output,
            steps: &steps,
        })?;
        if walked.is_err() || !TRACKED && walk.bits.at_end {
            if frame.arithmetic {
                return Err(cut_off(headers));
            }
            break;
        }
        output.emit();
    }
    if !TRACKED && !frame.arithmetic && walk.bits.near_end() {
        return Ok(false);
    }
    output.finish()?;
    Ok(true)
}

/// One strip of [`decode_single`].
struct SingleStrip<'a, 'f, C> {
    walk: &'a mut Walk<'f>,
    coding: &'a mut C,
    scan: &'a Scan,
    frame: &'f Frame,
    strip: usize,
    output: &'a mut Output<'f>,
    steps: &'a [Steps],
}

impl<C: Coding> Task for SingleStrip<'_, '_, C> {
    type Output = Result<Result<(), Stalled>>;

    #[inline(always)]
    fn run(self, level: impl Level) -> Self::Output {
        let mut sink = Samples {
            output: self.output,
            steps: self.steps,
            frame: self.frame,
            strip: self.strip,
            block: [0; 64],
            level,
        };
        self.walk
            .strip(self.coding, self.scan, self.frame, self.strip, &mut sink)
    }
}

/// The coefficients of a component, in rows of blocks for whole MCUs.
struct Coefficients {
    blocks: Vec<Block>,
    /// Of each block a bit for each coefficient that is not 0, by its place, DC aside. A scan may have
    /// nothing to tell of very many blocks, which then need not be looked at themselves.
    coded: Vec<u64>,
    /// Blocks in a row.
    stride: usize,
}

/// Blocks that several scans add to.
struct Stored<'a> {
    components: &'a mut [Coefficients],
    frame: &'a Frame,
    strip: usize,
    /// A bit for each coefficient of the scan, DC aside.
    band: u64,
}

impl Stored<'_> {
    #[inline(always)]
    fn at(&self, place: Place) -> usize {
        let row = self.strip * self.frame.components[place.component].v + place.row;
        row * self.components[place.component].stride + place.column
    }
}

impl Sink for Stored<'_> {
    #[inline(always)]
    fn block(&mut self, place: Place) -> &mut Block {
        let at = self.at(place);
        &mut self.components[place.component].blocks[at]
    }

    #[inline(always)]
    fn done(&mut self, place: Place) {
        if self.band != 0 {
            let at = self.at(place);
            let Coefficients { blocks, coded, .. } = &mut self.components[place.component];
            let bits = blocks[at].iter().enumerate();
            coded[at] = bits.fold(0, |bits, (i, &one)| bits | u64::from(one != 0) << i) & !1;
        }
    }

    #[inline(always)]
    fn zeros(&self, place: Place, most: usize) -> usize {
        let coded = &self.components[place.component].coded[self.at(place)..][..most];
        coded
            .iter()
            .position(|coded| coded & self.band != 0)
            .unwrap_or(most)
    }
}

/// Decodes a file of several scans: first all coefficients, then the samples.
fn decode_several(headers: &mut Headers, frame: &Frame, mut scan: Scan, rows: &mut dyn Rows) -> Result<()> {
    let mut output = Output::new(frame, headers.colours(frame), rows)?;
    let mut components: Vec<Coefficients> = frame
        .components
        .iter()
        .map(|component| {
            let stride = frame.mcus_wide * component.h;
            Coefficients {
                blocks: vec![[0; 64]; stride * frame.strips * component.v],
                coded: vec![0; stride * frame.strips * component.v],
                stride,
            }
        })
        .collect();
    let mut latched = vec![None; frame.components.len()];
    let mut progress = Progress::new(frame);
    let mut visits_left = VISITS * blocks(frame) + VISITS_A_BYTE * headers.data.len() as u64;
    let mut symbols_left = symbols(headers, frame);
    loop {
        let visits = scan
            .components
            .iter()
            .map(|c| components[c.index].blocks.len() as u64)
            .sum();
        visits_left = visits_left.checked_sub(visits).ok_or_else(|| {
            Error::Image(format!(
                "JPEG: the scans visit each block more than {VISITS} times on average, and more than \
                 {VISITS_A_BYTE} blocks for each byte of the file"
            ))
        })?;
        latch_steps(headers, frame, &scan, &mut latched)?;
        progress.begin(&scan);
        let components = &mut components;
        let walk = if frame.arithmetic {
            let mut coding = Arithmetic::new(headers, &scan, frame.progressive, symbols_left);
            let walk = read_scan(headers, frame, &scan, &mut coding, components)?;
            symbols_left = coding.left();
            walk
        } else {
            match (frame.progressive, scan.high, scan.first) {
                (false, ..) => {
                    let mut coding = Sequential::<false>::new(headers, &scan)?;
                    read_scan(headers, frame, &scan, &mut coding, components)
                }
                (true, 0, 0) => {
                    let mut coding = DcFirst::new(headers, &scan)?;
                    read_scan(headers, frame, &scan, &mut coding, components)
                }
                (true, _, 0) => {
                    let mut coding = DcRefinement { low: scan.low };
                    read_scan(headers, frame, &scan, &mut coding, components)
                }
                (true, 0, _) => {
                    let mut coding = AcFirst::new(headers, &scan)?;
                    read_scan(headers, frame, &scan, &mut coding, components)
                }
                (true, ..) => {
                    let mut coding = AcRefinement::new(headers, &scan)?;
                    read_scan(headers, frame, &scan, &mut coding, components)
                }
            }?
        };
        progress.last_told = walk.last_told;
        headers.position = walk.bits.position;
        let marker = walk.bits.marker;
        match headers.read((marker != 0).then_some(marker), false)? {
            Some(next) => scan = next,
            None => break,
        }
    }
    // A component that no scan has is grey.
    let raw_steps: Vec<[u16; 64]> = latched
        .into_iter()
        .map(|steps| steps.unwrap_or([0; 64]))
        .collect();
    let steps: Vec<Steps> = raw_steps.iter().map(|&steps| Steps::new(steps)).collect();
    let lacking = frame.progressive && progress.is_lacking(&raw_steps);
    let smoothing = lacking.then_some((&progress, &raw_steps[..]));
    for strip in 0..frame.strips {
        output.advance();
        level::run(Transformation {
            components: &components,
            frame,
            strip,
            output: &mut output,
            steps: &steps,
            smoothing,
        });
        output.emit();
    }
    output.finish()
}

/// One strip of one of several scans.
struct ScanStrip<'a, 'd, C> {
    walk: &'a mut Walk<'d>,
    coding: &'a mut C,
    scan: &'a Scan,
    sink: Stored<'a>,
}

impl<C: Coding> Task for ScanStrip<'_, '_, C> {
    type Output = Result<Result<(), Stalled>>;

    #[inline(always)]
    fn run(mut self, _: impl Level) -> Self::Output {
        let (frame, strip) = (self.sink.frame, self.sink.strip);
        self.walk
            .strip(self.coding, self.scan, frame, strip, &mut self.sink)
    }
}

/// Reads one of several scans; returns where it ended.
fn read_scan<'d>(
    headers: &Headers<'d>,
    frame: &Frame,
    scan: &Scan,
    coding: &mut impl Coding,
    components: &mut [Coefficients],
) -> Result<Walk<'d>> {
    let mut walk = Walk::new(headers, false);
    let band = ZIGZAG.get(scan.first.max(1)..=scan.last).unwrap_or_default();
    let band = band.iter().fold(0, |bits, &place| bits | 1 << place);
    for strip in 0..frame.strips {
        let walked = level::run(ScanStrip {
            walk: &mut walk,
            coding: &mut *coding,
            scan,
            sink: Stored {
                components,
                frame,
                strip,
                band,
            },
        })?;
        if walked.is_err() || walk.bits.at_end {
            return Err(cut_off(headers));
        }
        if walk.is_over() {
            break;
        }
    }
    Ok(walk)
}

/// Makes samples of the coefficients of one strip.
struct Transformation<'a, 'f> {
    components: &'a [Coefficients],
    frame: &'a Frame,
    strip: usize,
    output: &'a mut Output<'f>,
    steps: &'a [Steps],
    /// If coefficients are to be estimated: what is known, and the steps.
    smoothing: Option<(&'a Progress, &'a [[u16; 64]])>,
}

impl Task for Transformation<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self, level: impl Level) {
        for (index, (component, coefficients)) in
            self.frame.components.iter().zip(self.components).enumerate()
        {
            let first = self.strip * component.v;
            for row in 0..component.v.min(component.blocks_high - first) {
                let blocks = &coefficients.blocks[(first + row) * coefficients.stride..];
                for (column, block) in blocks[..component.blocks_wide].iter().enumerate() {
                    let smoothed = self.smoothing.map(|(progress, steps)| {
                        let block = |row, column| coefficients.blocks[row * coefficients.stride + column];
                        let place = (first + row, column);
                        progress.smoothed(index, component, self.frame, &steps[index], place, block)
                    });
                    let (out, stride) = self.output.block(Place {
                        component: index,
                        row,
                        column,
                    });
                    level.idct(
                        smoothed.as_ref().unwrap_or(block),
                        &self.steps[index],
                        out,
                        stride,
                    );
                }
            }
        }
    }
}
