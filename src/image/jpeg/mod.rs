//! A JPEG decoder whose pixels are those of libjpeg-turbo 2.1, bit for bit.
//!
//! Another decoder's pixels differ by a few levels, and an embedding computed from them differs as
//! well. The original reads images through OpenCV 4.6, so this follows what that does: the accurate
//! integer inverse DCT, "fancy" upsampling, the integer colour conversion, and the way damaged data
//! is read on.
//!
//! Baseline, extended sequential and progressive Huffman coding of 8 bits a sample are read, with
//! one (grey), three (YCbCr or RGB) or four components (CMYK or YCCK). Arithmetic, lossless and
//! hierarchical coding and 12 bits are errors. The Exif orientation is left to the caller.
//!
//! Damage: wrong codes and missing restart markers leave a flawed picture and are no error. A file
//! that ends early is one if it has several scans; if it has one, the rows that are missing repeat
//! the last one that is not. Two cases differ from the original: where not even one row of blocks is
//! there, it returns what happened to be in memory, and this an error; and it cannot smooth a
//! progressive image of a single row of MCUs whose scans are incomplete, and this can.

mod colour;
mod frame;
mod huffman;
mod idct;
mod level;
mod output;
mod scan;
mod smoothing;

use crate::{Error, Result};
use frame::{Frame, Headers, Scan};
use idct::{Block, Steps};
use level::{Level, Task};
use output::Output;
use scan::{AcFirst, AcRefinement, Coding, DcFirst, DcRefinement, Place, Sequential, Sink, Stalled, Walk};
use smoothing::Progress;

/// How often the blocks of an image may be visited, on average: as often as a block has
/// coefficients. An encoder's usual progression needs about six visits; without a limit a small
/// file could ask for work without end.
const MAX_VISITS: usize = 64;

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
/// [`read_header`]. Time grows with the pixels and the bytes; several scans are read to a total of
/// 64 visits a block.
///
/// # Errors
/// [`Error::Image`] where the file is none that this decodes, where its headers or tables are
/// damaged, where the data ends before the first row of blocks or, in a file of several scans,
/// before its end marker.
pub fn decode(bytes: &[u8]) -> Result<(u32, u32, Vec<u8>)> {
    let mut headers = Headers::new(bytes)?;
    let scan = headers.read(None, false)?;
    let frame = headers.frame.clone().ok_or_else(no_frame)?;
    let scan = scan.ok_or_else(|| Error::Image("JPEG: the image ends without a scan".into()))?;
    if !frame.progressive {
        headers.add_standard_tables();
    }
    let padded = [frame.mcus_wide * frame.max_h, frame.strips * frame.max_v].map(|blocks| 8 * blocks as u64);
    let bytes = padded[0] * padded[1] * (3 + 2 * frame.components.len() as u64);
    if isize::try_from(bytes).is_err() {
        return Err(Error::Image(format!(
            "JPEG: {} x {} pixels, more than this machine can address",
            frame.width, frame.height
        )));
    }
    let pixels = if scan.components.len() == frame.components.len() && !frame.progressive {
        decode_single::<false>(&headers, &frame, &scan)?
    } else {
        decode_several(&mut headers, &frame, scan)?
    };
    Ok((frame.width as u32, frame.height as u32, pixels))
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

/// Decodes a file of one scan strip by strip. If the data ends early, starts again and is `TRACKED`,
/// which is slower, to know what libjpeg would have made of the end.
fn decode_single<const TRACKED: bool>(headers: &Headers, frame: &Frame, scan: &Scan) -> Result<Vec<u8>> {
    let mut latched = vec![None; frame.components.len()];
    latch_steps(headers, frame, scan, &mut latched)?;
    let steps: Vec<Steps> = latched.into_iter().flatten().map(Steps::new).collect();
    let mut coding = Sequential::<TRACKED>::new(headers, scan)?;
    let mut walk = Walk::new(headers, TRACKED);
    let mut output = Output::new(frame, headers.colours(frame))?;
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
            break;
        }
        output.emit(strip);
    }
    if !TRACKED && walk.bits.near_end() {
        drop(output);
        return decode_single::<true>(headers, frame, scan);
    }
    output.finish()
}

/// One strip of [`decode_single`].
struct SingleStrip<'a, 'f, const TRACKED: bool> {
    walk: &'a mut Walk<'f>,
    coding: &'a mut Sequential<TRACKED>,
    scan: &'a Scan,
    frame: &'f Frame,
    strip: usize,
    output: &'a mut Output<'f>,
    steps: &'a [Steps],
}

impl<const TRACKED: bool> Task for SingleStrip<'_, '_, TRACKED> {
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
    /// Blocks in a row.
    stride: usize,
}

/// Blocks that several scans add to.
struct Stored<'a> {
    components: &'a mut [Coefficients],
    frame: &'a Frame,
    strip: usize,
}

impl Sink for Stored<'_> {
    #[inline(always)]
    fn block(&mut self, place: Place) -> &mut Block {
        let Coefficients { blocks, stride } = &mut self.components[place.component];
        let row = self.strip * self.frame.components[place.component].v + place.row;
        &mut blocks[row * *stride + place.column]
    }

    #[inline(always)]
    fn done(&mut self, _: Place) {}
}

/// Decodes a file of several scans: first all coefficients, then the samples.
fn decode_several(headers: &mut Headers, frame: &Frame, mut scan: Scan) -> Result<Vec<u8>> {
    let mut output = Output::new(frame, headers.colours(frame))?;
    let mut components: Vec<Coefficients> = frame
        .components
        .iter()
        .map(|component| {
            let stride = frame.mcus_wide * component.h;
            Coefficients {
                blocks: vec![[0; 64]; stride * frame.strips * component.v],
                stride,
            }
        })
        .collect();
    let mut latched = vec![None; frame.components.len()];
    let mut progress = Progress::new(frame);
    let mut visits_left = MAX_VISITS * components.iter().map(|c| c.blocks.len()).sum::<usize>();
    loop {
        let visits = scan
            .components
            .iter()
            .map(|c| components[c.index].blocks.len())
            .sum();
        visits_left = visits_left.checked_sub(visits).ok_or_else(|| {
            Error::Image(format!(
                "JPEG: the scans visit each block more than {MAX_VISITS} times on average"
            ))
        })?;
        latch_steps(headers, frame, &scan, &mut latched)?;
        progress.begin(&scan);
        let components = &mut components;
        let walk = match (frame.progressive, scan.high, scan.first) {
            (false, ..) => read_scan(
                headers,
                frame,
                &scan,
                Sequential::<false>::new(headers, &scan)?,
                components,
            ),
            (true, 0, 0) => read_scan(headers, frame, &scan, DcFirst::new(headers, &scan)?, components),
            (true, _, 0) => read_scan(headers, frame, &scan, DcRefinement { low: scan.low }, components),
            (true, 0, _) => read_scan(headers, frame, &scan, AcFirst::new(headers, &scan)?, components),
            (true, ..) => read_scan(
                headers,
                frame,
                &scan,
                AcRefinement::new(headers, &scan)?,
                components,
            ),
        }?;
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
        output.emit(strip);
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
    mut coding: impl Coding,
    components: &mut [Coefficients],
) -> Result<Walk<'d>> {
    let mut walk = Walk::new(headers, false);
    for strip in 0..frame.strips {
        let walked = level::run(ScanStrip {
            walk: &mut walk,
            coding: &mut coding,
            scan,
            sink: Stored {
                components,
                frame,
                strip,
            },
        })?;
        if walked.is_err() || walk.bits.at_end {
            return Err(Error::Image(format!(
                "JPEG: the data ends at byte {} within a scan, expected an end marker",
                headers.data.len()
            )));
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
