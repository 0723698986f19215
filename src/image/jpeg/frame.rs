//! The marker segments: frame and scan headers, tables, what the components mean.

use super::huffman::TableSpec;
use super::output::Colours;
use crate::{Error, Result};

/// The positions of the coefficients in the order of the file; what lies beyond the end, which
/// damaged data reaches, goes to the last.
pub(super) const ZIGZAG: [u8; 80] = {
    let mut order = [63; 80];
    let (mut row, mut column) = (0u8, 0u8);
    let mut i = 0;
    while i < 64 {
        order[i] = row * 8 + column;
        // Even diagonals run up and to the right, odd ones down and to the left.
        if (row + column) % 2 == 0 {
            match (row, column) {
                (_, 7) => row += 1,
                (0, _) => column += 1,
                _ => (row, column) = (row - 1, column + 1),
            }
        } else {
            match (row, column) {
                (7, _) => column += 1,
                (_, 0) => row += 1,
                _ => (row, column) = (row + 1, column - 1),
            }
        }
        i += 1;
    }
    order
};

/// One component of the frame.
#[derive(Debug, Clone)]
pub(super) struct Component {
    id: u8,
    /// Sampling factors, 1 to 4.
    pub h: usize,
    pub v: usize,
    /// Which quantisation table.
    pub steps: u8,
    /// Samples.
    pub width: usize,
    pub height: usize,
    /// Blocks that hold samples.
    pub blocks_wide: usize,
    pub blocks_high: usize,
}

/// The frame header.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub progressive: bool,
    /// Arithmetic coding, not Huffman's.
    pub arithmetic: bool,
    pub width: usize,
    pub height: usize,
    pub components: Vec<Component>,
    pub max_h: usize,
    pub max_v: usize,
    /// Whole MCUs across and down, where all components are interleaved. Each row of them is a
    /// strip.
    pub mcus_wide: usize,
    pub strips: usize,
}

/// A component in a scan.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScanComponent {
    /// Which one of the frame's.
    pub index: usize,
    pub dc_table: usize,
    pub ac_table: usize,
}

/// A scan header.
#[derive(Debug, Clone)]
pub(super) struct Scan {
    pub components: Vec<ScanComponent>,
    /// The band of coefficients, in the order of the file.
    pub first: usize,
    pub last: usize,
    /// The bit position of the scan before that covered the band, 0 if this is the first, and of
    /// this one.
    pub high: u32,
    pub low: u32,
}

/// Reads marker segments and remembers what they set.
pub(super) struct Headers<'a> {
    pub data: &'a [u8],
    pub position: usize,
    pub frame: Option<Frame>,
    pub steps: [Option<[u16; 64]>; 4],
    pub dc_tables: [Option<TableSpec>; 4],
    pub ac_tables: [Option<TableSpec>; 4],
    /// Of arithmetic coding by the number of the table: the bounds of small DC differences, in bits, and the
    /// last coefficient of low frequency.
    pub conditioning: [(u32, u32); 16],
    pub low_frequencies: [u8; 16],
    pub restart_interval: usize,
    jfif: bool,
    /// The colour transform of an Adobe segment.
    adobe: Option<u8>,
    /// What the components mean, where another format around the stream says so.
    pub meaning: Option<Colours>,
}

/// The fields of a marker segment, in order.
struct Segment<'a> {
    name: &'static str,
    /// Where the rest starts in the file.
    position: usize,
    /// Whether its length does not even count itself.
    bogus: bool,
    rest: &'a [u8],
}

impl<'a> Segment<'a> {
    fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::Image(format!("JPEG: {} at byte {}: {what}", self.name, self.position))
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((bytes, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.error(format_args!(
                "{} bytes are left of the segment, expected at least {count}",
                self.rest.len()
            )));
        };
        self.rest = rest;
        self.position += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn end(&self) -> Result<()> {
        match (self.bogus, self.rest.len()) {
            (false, 0) => Ok(()),
            (true, _) => Err(self.error("a length below 2")),
            (_, left) => Err(self.error(format_args!("{left} bytes too many"))),
        }
    }
}

impl<'a> Headers<'a> {
    pub fn new(data: &'a [u8]) -> Result<Self> {
        if !data.starts_with(&[0xff, 0xd8, 0xff]) {
            return Err(Error::Image(
                "JPEG: expected the bytes FF D8 FF at the start".into(),
            ));
        }
        Ok(Headers {
            data,
            position: 2,
            frame: None,
            steps: [None; 4],
            dc_tables: [const { None }; 4],
            ac_tables: [const { None }; 4],
            conditioning: [(0, 1); 16],
            low_frequencies: [5; 16],
            restart_interval: 0,
            jfif: false,
            adobe: None,
            meaning: None,
        })
    }

    /// Reads a stream of tables alone, up to its end.
    pub fn read_tables(&mut self) -> Result<()> {
        while let Some((marker, position)) = Self::marker(self.data, self.position) {
            self.position = position;
            match marker {
                0xc4 => {
                    let segment = self.segment("Huffman tables (DHT)")?;
                    self.read_huffman_tables(segment)?;
                }
                0xdb => {
                    let segment = self.segment("quantisation tables (DQT)")?;
                    self.read_quantisation_tables(segment)?;
                }
                0xcc | 0xdd | 0xe0..=0xef | 0xfe => {
                    self.segment("a segment")?;
                }
                0xd9 => return Ok(()),
                _ => break,
            }
        }
        Err(Error::Image(format!(
            "JPEG: byte {} is no part of tables, expected tables and an end of image",
            self.position
        )))
    }

    /// Finds the next marker from a byte on, over anything that is none: its code and the byte
    /// behind it. `None` at the end of the data.
    pub fn marker(data: &[u8], mut position: usize) -> Option<(u8, usize)> {
        loop {
            position += data.get(position..)?.iter().position(|&byte| byte == 0xff)?;
            position += data[position..].iter().position(|&byte| byte != 0xff)?;
            position += 1;
            if data[position - 1] != 0 {
                return Some((data[position - 1], position));
            }
        }
    }

    /// The marker segment at the current position, which is behind its marker.
    fn segment(&mut self, name: &'static str) -> Result<Segment<'a>> {
        let start = self.position;
        let rest = &self.data[start..];
        let stated = rest
            .first_chunk()
            .map_or(2, |&length| usize::from(u16::from_be_bytes(length)));
        let length = stated.max(2);
        let Some(rest) = rest.get(2..length) else {
            return Err(Error::Image(format!(
                "JPEG: {name} at byte {start}: {} bytes of data are left, expected at least {length}",
                rest.len()
            )));
        };
        self.position += length;
        Ok(Segment {
            name,
            position: start + 2,
            bogus: stated < 2,
            rest,
        })
    }

    /// Reads on to the frame header (if `frame_only`) or the next scan header, which is returned;
    /// `None` at the end of the image. `pending` is a marker that was already read.
    pub fn read(&mut self, mut pending: Option<u8>, frame_only: bool) -> Result<Option<Scan>> {
        loop {
            let marker = match pending.take() {
                Some(marker) => marker,
                None => {
                    let Some((marker, position)) = Self::marker(self.data, self.position) else {
                        return Err(Error::Image(format!(
                            "JPEG: the data ends at byte {}, expected another marker",
                            self.data.len()
                        )));
                    };
                    self.position = position;
                    marker
                }
            };
            match marker {
                0xc0..=0xc2 | 0xc9 | 0xca => {
                    let segment = self.segment("the frame header (SOF)")?;
                    self.read_frame(segment, matches!(marker, 0xc2 | 0xca), marker > 0xc8)?;
                    if frame_only {
                        return Ok(None);
                    }
                }
                0xc4 => {
                    let segment = self.segment("Huffman tables (DHT)")?;
                    self.read_huffman_tables(segment)?;
                }
                0xcc => {
                    let segment = self.segment("arithmetic conditioning (DAC)")?;
                    self.read_conditioning(segment)?;
                }
                0xda => {
                    let segment = self.segment("a scan header (SOS)")?;
                    return self.read_scan(segment).map(Some);
                }
                0xdb => {
                    let segment = self.segment("quantisation tables (DQT)")?;
                    self.read_quantisation_tables(segment)?;
                }
                0xdd => {
                    let mut segment = self.segment("the restart interval (DRI)")?;
                    self.restart_interval = usize::from(u16::from_be_bytes(segment.array()?));
                    segment.end()?;
                }
                0xe0 => {
                    let segment = self.segment("an application segment (APP0)")?;
                    self.jfif |= segment.rest.len() >= 14 && segment.rest.starts_with(b"JFIF\0");
                }
                0xee => {
                    let segment = self.segment("an application segment (APP14)")?;
                    if segment.rest.len() >= 12 && segment.rest.starts_with(b"Adobe") {
                        self.adobe = Some(segment.rest[11]);
                    }
                }
                // APPn, comments, and one that libjpeg ignores too: a number of lines (DNL).
                0xe1..=0xef | 0xfe | 0xdc => {
                    self.segment("a segment")?;
                }
                // Without parameters.
                0x01 | 0xd0..=0xd7 => {}
                0xd9 => {
                    if self.frame.is_none() || frame_only {
                        return Err(Error::Image(format!(
                            "JPEG: the image ends at byte {} without a frame",
                            self.position
                        )));
                    }
                    return Ok(None);
                }
                marker => {
                    let kind = match marker {
                        0xc3 | 0xcb => "lossless coding",
                        0xc5..=0xc7 | 0xcd..=0xcf => "hierarchical coding",
                        0xd8 => "a second start of image",
                        _ => "an unknown marker",
                    };
                    return Err(Error::Image(format!(
                        "JPEG: {kind} (FF {marker:02X}) at byte {}, expected a baseline, extended or progressive \
                         frame",
                        self.position - 2
                    )));
                }
            }
        }
    }

    fn read_frame(&mut self, mut segment: Segment, progressive: bool, arithmetic: bool) -> Result<()> {
        if self.frame.is_some() {
            return Err(segment.error("a second frame"));
        }
        let precision = segment.byte()?;
        let height = usize::from(u16::from_be_bytes(segment.array()?));
        let width = usize::from(u16::from_be_bytes(segment.array()?));
        let count = usize::from(segment.byte()?);
        if precision != 8 {
            return Err(segment.error(format_args!("{precision} bits a sample, expected 8")));
        }
        // libjpeg's own limit.
        if !(1..=65500).contains(&width) || !(1..=65500).contains(&height) {
            return Err(segment.error(format_args!(
                "{width} x {height} pixels, expected 1 to 65500 each way"
            )));
        }
        match self.meaning.map(Colours::components) {
            None if !matches!(count, 1 | 3 | 4) => {
                return Err(segment.error(format_args!("{count} components, expected 1, 3 or 4")));
            }
            Some(expected) if count != expected => {
                return Err(segment.error(format_args!("{count} components, expected {expected}")));
            }
            _ => {}
        }
        let mut components = Vec::with_capacity(count);
        for _ in 0..count {
            let [id, factors, steps] = segment.array()?;
            let (h, v) = (usize::from(factors >> 4), usize::from(factors & 15));
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) {
                return Err(segment.error(format_args!("sampling factors {h} x {v}, expected 1 to 4 each")));
            }
            components.push(Component {
                id,
                h,
                v,
                steps,
                width: 0,
                height: 0,
                blocks_wide: 0,
                blocks_high: 0,
            });
        }
        segment.end()?;
        let max_h = components.iter().map(|c| c.h).max().unwrap_or(1);
        let max_v = components.iter().map(|c| c.v).max().unwrap_or(1);
        for component in &mut components {
            component.width = (width * component.h).div_ceil(max_h);
            component.height = (height * component.v).div_ceil(max_v);
            component.blocks_wide = component.width.div_ceil(8);
            component.blocks_high = component.height.div_ceil(8);
        }
        self.frame = Some(Frame {
            progressive,
            arithmetic,
            width,
            height,
            components,
            max_h,
            max_v,
            mcus_wide: width.div_ceil(8 * max_h),
            strips: height.div_ceil(8 * max_v),
        });
        Ok(())
    }

    fn read_scan(&self, mut segment: Segment) -> Result<Scan> {
        let Some(frame) = &self.frame else {
            return Err(segment.error("a scan before the frame header"));
        };
        let count = usize::from(segment.byte()?);
        if !(1..=4).contains(&count) {
            return Err(segment.error(format_args!("{count} components, expected 1 to 4")));
        }
        let mut components: Vec<ScanComponent> = Vec::with_capacity(count);
        for place in 0..count {
            let [id, tables] = segment.array()?;
            // Components come in the order of the frame. Where several have one id, the first that
            // is not yet taken is meant.
            let index = (place..frame.components.len()).find(|&i| frame.components[i].id == id);
            let Some(index) = index.filter(|&index| components.iter().all(|c| c.index != index)) else {
                return Err(segment.error(format_args!(
                    "component {id} at place {place}, expected those of the frame in their order"
                )));
            };
            components.push(ScanComponent {
                index,
                dc_table: usize::from(tables >> 4),
                ac_table: usize::from(tables & 15),
            });
        }
        let blocks: usize = components
            .iter()
            .map(|c| frame.components[c.index].h * frame.components[c.index].v)
            .sum();
        if count > 1 && blocks > 10 {
            return Err(segment.error(format_args!("{blocks} blocks in an MCU, expected at most 10")));
        }
        let [first, last, bits] = segment.array()?;
        segment.end()?;
        let scan = Scan {
            components,
            first: usize::from(first),
            last: usize::from(last),
            high: u32::from(bits >> 4),
            low: u32::from(bits & 15),
        };
        if frame.progressive {
            let band = if scan.first == 0 {
                scan.last == 0
            } else {
                scan.first <= scan.last && scan.last < 64 && count == 1
            };
            if !band || scan.high != 0 && scan.low + 1 != scan.high || scan.low > 13 {
                return Err(segment.error(format_args!(
                    "coefficients {first} to {last} of {count} components, bits {} to {}: no step of a \
                     progression",
                    scan.high, scan.low
                )));
            }
        }
        Ok(scan)
    }

    fn read_huffman_tables(&mut self, mut segment: Segment) -> Result<()> {
        while segment.rest.len() > 16 {
            let index = segment.byte()?;
            let counts: [u8; 16] = segment.array()?;
            let total = counts.iter().map(|&count| usize::from(count)).sum();
            if total > 256 {
                return Err(segment.error(format_args!("{total} codes in a table, expected at most 256")));
            }
            let mut symbols = [0; 256];
            symbols[..total].copy_from_slice(segment.bytes(total)?);
            let tables = if index & 0x10 == 0 {
                &mut self.dc_tables
            } else {
                &mut self.ac_tables
            };
            match tables.get_mut(usize::from(index & !0x10)) {
                Some(table) => *table = Some(TableSpec { counts, symbols }),
                None => {
                    return Err(segment.error(format_args!("table {}, expected 0 to 3", index & !0x10)));
                }
            }
        }
        segment.end()
    }

    fn read_conditioning(&mut self, mut segment: Segment) -> Result<()> {
        while !segment.rest.is_empty() {
            let [table, value] = segment.array()?;
            let (lower, upper) = (u32::from(value & 15), u32::from(value >> 4));
            match table {
                0..16 if lower > upper => {
                    return Err(segment.error(format_args!("bounds {lower} to {upper} of small differences")));
                }
                0..16 => self.conditioning[usize::from(table)] = (lower, upper),
                16..32 => self.low_frequencies[usize::from(table - 16)] = value,
                _ => return Err(segment.error(format_args!("table {table}, expected 0 to 31"))),
            }
        }
        segment.end()
    }

    fn read_quantisation_tables(&mut self, mut segment: Segment) -> Result<()> {
        while !segment.rest.is_empty() {
            let [kind] = segment.array()?;
            let mut steps = [0; 64];
            for &position in &ZIGZAG[..64] {
                steps[usize::from(position)] = if kind >> 4 == 0 {
                    u16::from(segment.byte()?)
                } else {
                    u16::from_be_bytes(segment.array()?)
                };
            }
            match self.steps.get_mut(usize::from(kind & 15)) {
                Some(table) => *table = Some(steps),
                None => return Err(segment.error(format_args!("table {}, expected 0 to 3", kind & 15))),
            }
        }
        segment.end()
    }

    /// Puts the standard Huffman tables where the file has none before its first scan, as Motion
    /// JPEG frames do.
    pub fn add_standard_tables(&mut self) {
        for slot in 0..2 {
            self.dc_tables[slot].get_or_insert_with(|| TableSpec::standard(true, slot));
            self.ac_tables[slot].get_or_insert_with(|| TableSpec::standard(false, slot));
        }
    }

    /// What the components mean, by libjpeg's rules.
    pub fn colours(&self, frame: &Frame) -> Colours {
        if let Some(meaning) = self.meaning {
            return meaning;
        }
        let ids: Vec<u8> = frame.components.iter().map(|component| component.id).collect();
        match (frame.components.len(), self.adobe) {
            (1, _) => Colours::Grey,
            (3, _) if self.jfif => Colours::YCbCr,
            (3, Some(0)) => Colours::Rgb,
            (3, None) if ids == *b"RGB" => Colours::Rgb,
            (3, _) => Colours::YCbCr,
            (_, Some(0) | None) => Colours::Cmyk,
            _ => Colours::Ycck,
        }
    }
}
