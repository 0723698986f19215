//! The first directory of a TIFF or BigTIFF file, and what its entries say about the picture.
//!
//! Which entries may be damaged or missing follows libtiff 4.2: a faulty entry is an error where libtiff
//! refuses the file for it, and counts as missing where libtiff ignores it.

use super::{Compression, error};
use crate::Result;

/// libtiff takes a directory of more entries for a wrong offset.
const MAX_ENTRIES: u64 = 4096;

mod tag {
    pub const WIDTH: u16 = 256;
    pub const HEIGHT: u16 = 257;
    pub const BITS: u16 = 258;
    pub const COMPRESSION: u16 = 259;
    pub const PHOTOMETRIC: u16 = 262;
    pub const FILL_ORDER: u16 = 266;
    pub const STRIP_OFFSETS: u16 = 273;
    pub const ORIENTATION: u16 = 274;
    pub const SAMPLES: u16 = 277;
    pub const ROWS_PER_STRIP: u16 = 278;
    pub const STRIP_BYTES: u16 = 279;
    pub const PLANAR: u16 = 284;
    pub const T4_OPTIONS: u16 = 292;
    pub const PREDICTOR: u16 = 317;
    pub const COLOUR_MAP: u16 = 320;
    pub const TILE_WIDTH: u16 = 322;
    pub const TILE_HEIGHT: u16 = 323;
    pub const TILE_OFFSETS: u16 = 324;
    pub const TILE_BYTES: u16 = 325;
    pub const INK_SET: u16 = 332;
    pub const EXTRA_SAMPLES: u16 = 338;
    pub const SAMPLE_FORMAT: u16 = 339;
    pub const JPEG_TABLES: u16 = 347;
    pub const COEFFICIENTS: u16 = 529;
    pub const SUBSAMPLING: u16 = 530;
    pub const REFERENCE: u16 = 532;
}

/// Pixels across and down that share one Cb and one Cr where a file does not say it.
pub(super) const DEFAULT_SUBSAMPLING: [u64; 2] = [2, 2];

/// Photometric interpretations, by their numbers in the file.
pub(super) mod photometric {
    pub const WHITE_IS_ZERO: u16 = 0;
    pub const BLACK_IS_ZERO: u16 = 1;
    pub const RGB: u16 = 2;
    pub const PALETTE: u16 = 3;
    pub const SEPARATED: u16 = 5;
    pub const YCBCR: u16 = 6;
    pub const LAB: u16 = 8;
}

/// The types of entries that hold whole numbers or fractions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Bytes, or an offset of a directory: no number that is read.
    Opaque,
    Unsigned,
    Signed,
    Fraction,
    SignedFraction,
    Float,
}

/// A type's kind and the bytes of a value.
fn kind_of(number: u16) -> Option<(Kind, usize)> {
    Some(match number {
        2 | 7 => (Kind::Opaque, 1),
        13 => (Kind::Opaque, 4),
        18 => (Kind::Opaque, 8),
        1 => (Kind::Unsigned, 1),
        3 => (Kind::Unsigned, 2),
        4 => (Kind::Unsigned, 4),
        16 => (Kind::Unsigned, 8),
        6 => (Kind::Signed, 1),
        8 => (Kind::Signed, 2),
        9 => (Kind::Signed, 4),
        17 => (Kind::Signed, 8),
        5 => (Kind::Fraction, 8),
        10 => (Kind::SignedFraction, 8),
        11 => (Kind::Float, 4),
        12 => (Kind::Float, 8),
        _ => return None,
    })
}

/// Bytes of the file in its byte order.
#[derive(Debug, Clone, Copy)]
struct Source<'a> {
    bytes: &'a [u8],
    little_endian: bool,
    /// Whether offsets and counts have 8 bytes.
    big: bool,
}

impl<'a> Source<'a> {
    fn slice(&self, at: u64, length: u64) -> Option<&'a [u8]> {
        let end = usize::try_from(at.checked_add(length)?).ok()?;
        self.bytes.get(at as usize..end)
    }

    /// The number that up to 8 bytes hold.
    fn number(&self, bytes: &[u8]) -> u64 {
        let mut number = [0; 8];
        if self.little_endian {
            number[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(number)
        } else {
            number[8 - bytes.len()..].copy_from_slice(bytes);
            u64::from_be_bytes(number)
        }
    }

    fn number_at(&self, at: u64, length: u64) -> Option<u64> {
        Some(self.number(self.slice(at, length)?))
    }
}

/// The values of an entry, which are numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Values<'a> {
    source: Source<'a>,
    data: &'a [u8],
    kind: Kind,
    size: usize,
}

impl<'a> Values<'a> {
    pub fn len(&self) -> usize {
        self.data.len() / self.size
    }

    fn bytes(&self, index: usize) -> Option<&'a [u8]> {
        let start = index.checked_mul(self.size)?;
        self.data.get(start..start.checked_add(self.size)?)
    }

    /// The value at `index` where it is a whole number of at least 0.
    pub fn get(&self, index: usize) -> Option<u64> {
        let number = self.source.number(self.bytes(index)?);
        match self.kind {
            Kind::Unsigned => Some(number),
            Kind::Signed => {
                let unused = 64 - 8 * self.size as u32;
                u64::try_from((number << unused) as i64 >> unused).ok()
            }
            _ => None,
        }
    }

    /// The value at `index` in single precision.
    fn float(&self, index: usize) -> Option<f32> {
        let bytes = self.bytes(index)?;
        let number = self.source.number(bytes);
        let fraction = |upper: f32, lower: f32| if lower == 0.0 { 0.0 } else { upper / lower };
        let parts = || {
            let (upper, lower) = bytes.split_at(4);
            (self.source.number(upper) as u32, self.source.number(lower) as u32)
        };
        Some(match self.kind {
            Kind::Unsigned | Kind::Signed => self.get(index)? as f32,
            Kind::Fraction => {
                let (upper, lower) = parts();
                fraction(upper as f32, lower as f32)
            }
            Kind::SignedFraction => {
                let (upper, lower) = parts();
                fraction(upper as i32 as f32, lower as f32)
            }
            Kind::Opaque => return None,
            Kind::Float if self.size == 4 => f32::from_bits(number as u32),
            Kind::Float => f64::from_bits(number) as f32,
        })
    }

    fn floats<const N: usize>(&self) -> Option<[f32; N]> {
        let mut values = [0.0; N];
        for (index, value) in values.iter_mut().enumerate() {
            *value = self.float(index)?;
        }
        (self.len() == N).then_some(values)
    }
}

/// The entries of a directory.
struct Entries<'a> {
    source: Source<'a>,
    table: &'a [u8],
}

impl<'a> Entries<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut source = Source {
            bytes,
            little_endian: bytes.starts_with(b"II"),
            big: false,
        };
        source.big = source.number_at(2, 2) == Some(43);
        let cut = || error(format_args!("{} bytes, its header is cut off", bytes.len()));
        let (at, count_size, entry_size) = if source.big {
            if (source.number_at(4, 2), source.number_at(6, 2)) != (Some(8), Some(0)) {
                return Err(error("a BigTIFF header whose offsets are not of 8 bytes"));
            }
            (source.number_at(8, 8).ok_or_else(cut)?, 8, 20)
        } else {
            (source.number_at(4, 4).ok_or_else(cut)?, 2, 12)
        };
        let outside = || {
            error(format_args!(
                "the directory at byte {at} is outside of the file, which has {}",
                bytes.len()
            ))
        };
        let count = source.number_at(at, count_size).ok_or_else(outside)?;
        if !(1..=MAX_ENTRIES).contains(&count) {
            return Err(error(format_args!(
                "a directory of {count} entries at byte {at}, expected 1 to {MAX_ENTRIES}"
            )));
        }
        let table = source
            .slice(at + count_size, count * entry_size)
            .ok_or_else(outside)?;
        Ok(Self { source, table })
    }

    fn entry_size(&self) -> usize {
        if self.source.big { 20 } else { 12 }
    }

    /// The type's number, the count of values, and the bytes after the count.
    fn parts(&self, entry: &'a [u8]) -> (u16, u64, &'a [u8]) {
        let (count, value) = if self.source.big {
            (&entry[4..12], &entry[12..])
        } else {
            (&entry[4..8], &entry[8..])
        };
        (
            self.source.number(&entry[2..4]) as u16,
            self.source.number(count),
            value,
        )
    }

    /// The first entry of a tag; further ones do not count. An error says what is wrong with it.
    fn find(&self, tag: u16) -> Option<Result<Values<'a>, String>> {
        let entry = self
            .table
            .chunks_exact(self.entry_size())
            .find(|entry| self.source.number(&entry[..2]) == u64::from(tag))?;
        let (number, count, value) = self.parts(entry);
        let Some((kind, size)) = kind_of(number) else {
            return Some(Err(format!("values of the unknown type {number}")));
        };
        let length = count.saturating_mul(size as u64);
        let data = if length <= value.len() as u64 {
            Some(&value[..length as usize])
        } else {
            self.source.slice(self.source.number(value), length)
        };
        let values = data.map(|data| Values {
            source: self.source,
            data,
            kind,
            size,
        });
        Some(values.ok_or_else(|| format!("{count} values outside of the file")))
    }

    /// The entry of a tag without which, or with a fault in which, the file is refused.
    fn values(&self, tag: u16) -> Result<Option<Values<'a>>> {
        let values = self.find(tag).transpose();
        let values = values.map_err(|fault| error(format_args!("tag {tag}: {fault}")))?;
        match values {
            Some(values) if !matches!(values.kind, Kind::Unsigned | Kind::Signed) => {
                Err(error(format_args!(
                    "tag {tag}: values of type {:?}, expected whole numbers",
                    values.kind
                )))
            }
            values => Ok(values),
        }
    }

    /// The one number of a tag, where a fault is an error.
    fn number(&self, tag: u16, most: u64) -> Result<Option<u64>> {
        let Some(values) = self.values(tag)? else {
            return Ok(None);
        };
        match values.get(0).filter(|&value| values.len() == 1 && value <= most) {
            Some(value) => Ok(Some(value)),
            None => Err(error(format_args!(
                "tag {tag} holds {} values, expected one of at most {most}",
                values.len()
            ))),
        }
    }

    /// The one number of a tag, where a fault makes it missing.
    fn optional(&self, tag: u16, allowed: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let values = self.find(tag)?.ok()?;
        values
            .get(0)
            .filter(|value| values.len() == 1 && allowed.contains(value))
    }

    /// The number that every sample of a pixel has for a tag: one for all, or one each that are all the same.
    fn per_sample(&self, tag: u16, samples: u16) -> Result<Option<u16>> {
        let Some(values) = self.values(tag)? else {
            return Ok(None);
        };
        let number = |index| values.get(index).and_then(|value| u16::try_from(value).ok());
        let wanted = if values.len() == 1 {
            1
        } else {
            usize::from(samples)
        };
        let first = number(0).filter(|_| values.len() >= wanted);
        match first.filter(|_| (1..wanted).all(|index| number(index) == first)) {
            Some(value) => Ok(Some(value)),
            None => Err(error(format_args!(
                "tag {tag} holds {} values for {samples} samples, expected the same one for each",
                values.len()
            ))),
        }
    }

    /// Bytes of the header, the directory and the values beside it.
    fn extent(&self) -> u64 {
        let (header, own) = if self.source.big {
            (16 + 8 + 8, 8)
        } else {
            (8 + 2 + 4, 4)
        };
        let mut extent = header + self.table.len() as u64;
        for entry in self.table.chunks_exact(self.entry_size()) {
            let (number, count, _) = self.parts(entry);
            let size = kind_of(number).map_or(0, |(_, size)| size as u64);
            let length = count.saturating_mul(size);
            if length > own {
                extent = extent.saturating_add(length);
            }
        }
        extent
    }
}

/// What a file says about its first picture.
pub(super) struct Directory<'a> {
    pub little_endian: bool,
    pub width: u32,
    pub height: u32,
    /// Bits of a sample.
    pub bits: u16,
    /// Samples of a pixel, 1 to 4.
    pub samples: u16,
    pub compression: Compression,
    /// One of [`photometric`] or another number.
    pub photometric: u16,
    /// Whether the samples of a pixel are in planes of their own. So they are not where there is one.
    pub planar: bool,
    /// Whether the first pixel of a byte is in its lowest bits.
    pub reversed: bool,
    pub orientation: u16,
    pub rows_per_strip: u32,
    pub tile: Option<(u32, u32)>,
    pub predictor: u64,
    pub t4_options: u64,
    pub ink_set: u64,
    /// How many samples are neither colours nor grey.
    pub extra_samples: u16,
    /// What the first of them is.
    pub first_extra: u64,
    pub colour_map: Option<Values<'a>>,
    pub jpeg_tables: Option<&'a [u8]>,
    /// Pixels across and down that share one Cb and one Cr; [`DEFAULT_SUBSAMPLING`] where that is missing.
    pub subsampling: Option<[u64; 2]>,
    /// How much red, green and blue make Y.
    pub coefficients: [f32; 3],
    /// Black and white of Y, Cb and Cr.
    pub reference: [f32; 6],
    pub offsets: Values<'a>,
    pub byte_counts: Option<Values<'a>>,
    /// Bytes of the file that are no pixels, for all one can tell.
    pub extent: u64,
}

impl<'a> Directory<'a> {
    /// Width and height, before anything else is read.
    pub fn size(bytes: &'a [u8]) -> Result<(u32, u32)> {
        let entries = Entries::read(bytes)?;
        let side = |tag, name| {
            let side = entries.number(tag, u64::from(u32::MAX))?;
            side.map(|side| side as u32)
                .ok_or_else(|| error(format_args!("no {name}")))
        };
        Ok((side(tag::WIDTH, "width")?, side(tag::HEIGHT, "height")?))
    }

    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let (width, height) = Self::size(bytes)?;
        let entries = Entries::read(bytes)?;
        let samples = entries.number(tag::SAMPLES, 0xFFFF)?;
        // OpenCV reads no more.
        let samples = match samples.unwrap_or(1) {
            samples @ 1..=4 => samples as u16,
            samples => return Err(error(format_args!("{samples} samples a pixel, expected 1 to 4"))),
        };
        let compression = Compression::of(entries.per_sample(tag::COMPRESSION, samples)?.unwrap_or(1))?;
        let planar = match entries.number(tag::PLANAR, 0xFFFF)?.unwrap_or(1) {
            1 => false,
            2 => samples > 1,
            other => {
                return Err(error(format_args!(
                    "planar configuration {other}, expected 1 or 2"
                )));
            }
        };
        let rows_per_strip = entries.number(tag::ROWS_PER_STRIP, u64::from(u32::MAX))?;
        let rows_per_strip = match rows_per_strip.unwrap_or(u64::from(u32::MAX)) {
            0 => return Err(error("0 rows a strip, expected at least 1")),
            rows => rows as u32,
        };
        let tile_side = |tag| entries.number(tag, u64::from(u32::MAX));
        let tile = match (tile_side(tag::TILE_WIDTH)?, tile_side(tag::TILE_HEIGHT)?) {
            (None, None) => None,
            (Some(width @ 1..), Some(height @ 1..)) => Some((width as u32, height as u32)),
            (width, height) => {
                let [width, height] = [width, height].map(Option::unwrap_or_default);
                return Err(error(format_args!(
                    "tiles of {width} x {height} pixels, expected at least 1 x 1"
                )));
            }
        };
        let bits = entries.per_sample(tag::BITS, samples)?;
        // OpenCV takes signed samples for unsigned ones.
        let sample_format = entries.per_sample(tag::SAMPLE_FORMAT, samples)?;
        if let Some(format) = sample_format.filter(|format| !matches!(format, 1 | 2)) {
            return Err(error(format_args!(
                "samples of format {format}, expected whole numbers"
            )));
        }
        let photometric = entries.optional(tag::PHOTOMETRIC, 0..=0xFFFF);
        let Some(mut photometric) = photometric.map(|number| number as u16) else {
            return Err(error("no photometric interpretation"));
        };

        let (mut extra_samples, mut first_extra) = (0, 0);
        if let Some(values) = entries.values(tag::EXTRA_SAMPLES)? {
            // 999 is how Corel Draw says 2.
            let known = |index| values.get(index).is_some_and(|kind| matches!(kind, 0..=2 | 999));
            if values.len() > usize::from(samples) || !(0..values.len()).all(known) {
                return Err(error(format_args!(
                    "{} extra samples of {samples} or of an unknown kind",
                    values.len()
                )));
            }
            extra_samples = values.len() as u16;
            first_extra = match values.get(0) {
                Some(999) => 2,
                kind => kind.unwrap_or(0),
            };
        }
        let colours = match photometric {
            photometric::WHITE_IS_ZERO | photometric::BLACK_IS_ZERO | photometric::PALETTE => 1,
            photometric::RGB | photometric::YCBCR | photometric::LAB => 3,
            photometric::SEPARATED => 4,
            _ => samples,
        };
        extra_samples = extra_samples.max(samples.saturating_sub(colours));

        let colour_map = match bits {
            Some(bits @ 1..=16) => entries
                .find(tag::COLOUR_MAP)
                .and_then(Result::ok)
                .filter(|values| values.len() == 3 << bits),
            _ => None,
        };
        let bits = bits.unwrap_or(1);
        if photometric == photometric::PALETTE && colour_map.is_none() {
            photometric = match (bits, samples) {
                (8.., 3) => photometric::RGB,
                (8.., _) => photometric::BLACK_IS_ZERO,
                _ => return Err(error("a palette without colours")),
            };
        }

        let array = |tag| entries.find(tag).and_then(Result::ok);
        let subsampling = array(tag::SUBSAMPLING)
            .filter(|values| values.len() == 2)
            .and_then(|values| Some([values.get(0)?, values.get(1)?]));
        let coefficients = array(tag::COEFFICIENTS).and_then(|values| values.floats());
        let reference = array(tag::REFERENCE).and_then(|values| values.floats());
        let places = |tile, strip| match entries.values(tile)? {
            Some(values) => Ok(Some(values)),
            None => entries.values(strip),
        };
        Ok(Self {
            little_endian: entries.source.little_endian,
            width,
            height,
            bits,
            samples,
            compression,
            photometric,
            planar,
            reversed: entries.optional(tag::FILL_ORDER, 1..=2) == Some(2),
            orientation: entries.optional(tag::ORIENTATION, 1..=8).unwrap_or(1) as u16,
            rows_per_strip,
            tile,
            predictor: entries.optional(tag::PREDICTOR, 0..=0xFFFF).unwrap_or(1),
            t4_options: entries
                .optional(tag::T4_OPTIONS, 0..=u64::from(u32::MAX))
                .unwrap_or(0),
            ink_set: entries.optional(tag::INK_SET, 0..=0xFFFF).unwrap_or(1),
            extra_samples,
            first_extra,
            colour_map,
            jpeg_tables: array(tag::JPEG_TABLES)
                .filter(|values| values.size == 1)
                .map(|values| values.data),
            subsampling,
            coefficients: coefficients.unwrap_or([0.299, 0.587, 0.114]),
            reference: reference.unwrap_or([0.0, 255.0, 128.0, 255.0, 128.0, 255.0]),
            offsets: places(tag::TILE_OFFSETS, tag::STRIP_OFFSETS)?
                .ok_or_else(|| error("no offsets of strips or tiles"))?,
            byte_counts: places(tag::TILE_BYTES, tag::STRIP_BYTES)?,
            extent: entries.extent(),
        })
    }
}
