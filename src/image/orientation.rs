//! The orientation that a camera notes in EXIF data, and turning pixels by it.

use super::Pixels;

/// IFD 0's tag for the orientation.
const ORIENTATION: u16 = 0x0112;

/// What has to be done to show an image upright, by the number EXIF gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orientation {
    /// Rows become columns. This comes before the other two.
    transpose: bool,
    /// Left and right change places.
    mirror: bool,
    /// Top and bottom change places.
    flip: bool,
}

impl Orientation {
    /// From the EXIF block of a JPEG or PNG file, which is laid out like a TIFF file.
    ///
    /// `None` where nothing is to be done: the block says so, says nothing, or is damaged. As in the
    /// original, entries are read in their order until one lies outside of the block, and the type
    /// and the count of the orientation's entry are not looked at.
    pub(super) fn from_exif(exif: &[u8]) -> Option<Self> {
        let block = Block {
            bytes: exif,
            little_endian: exif.starts_with(b"II"),
        };
        if block.u16(2)? != 42 {
            return None;
        }
        let directory = block.u32(4)?;
        for entry in 0..usize::from(block.u16(directory)?) {
            let at = directory.checked_add(2 + 12 * entry)?;
            let tag = block.u16(at)?;
            if tag == ORIENTATION {
                return Self::from_number(block.u16(at + 8)?);
            }
            block.check_value(tag, at)?;
        }
        None
    }

    /// 1 stands for an upright image, 2 to 8 for the seven other ways to hold a camera.
    pub(super) fn from_number(number: u16) -> Option<Self> {
        let (transpose, mirror, flip) = match number {
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, true, false),
            7 => (true, true, true),
            8 => (true, false, true),
            _ => return None,
        };
        Some(Self {
            transpose,
            mirror,
            flip,
        })
    }

    /// Whether rows become columns, and whether after it left and right, and top and bottom change places.
    pub(super) fn steps(self) -> [bool; 3] {
        [self.transpose, self.mirror, self.flip]
    }

    /// Turns an image.
    pub(super) fn apply(self, pixels: &Pixels) -> Pixels {
        /// Pixels a side of the squares that are turned one after the other, so that both the rows
        /// read and the rows written stay in the cache.
        const TILE: usize = 32;
        let (src_width, src_height) = (pixels.width as usize, pixels.height as usize);
        let (width, height) = if self.transpose {
            (src_height, src_width)
        } else {
            (src_width, src_height)
        };
        let from = pixels.data.as_chunks::<3>().0;
        let mut data = vec![0; pixels.data.len()];
        let to = data.as_chunks_mut::<3>().0;
        for top in (0..height).step_by(TILE) {
            for left in (0..width).step_by(TILE) {
                for y in top..height.min(top + TILE) {
                    let src_y = if self.flip { height - 1 - y } else { y };
                    for x in left..width.min(left + TILE) {
                        let src_x = if self.mirror { width - 1 - x } else { x };
                        to[y * width + x] = if self.transpose {
                            from[src_x * src_width + src_y]
                        } else {
                            from[src_y * src_width + src_x]
                        };
                    }
                }
            }
        }
        Pixels {
            width: width as u32,
            height: height as u32,
            data,
        }
    }
}

/// The EXIF block in a JPEG file's first APP1 segment, whatever that holds.
///
/// Only the segments before the first scan are looked at.
pub(super) fn exif_of_jpeg(bytes: &[u8]) -> Option<&[u8]> {
    /// `Exif` and two zeros.
    const PREFIX: usize = 6;
    let mut rest = bytes.get(2..)?;
    loop {
        // Bytes between segments are skipped, as decoders do; a marker may have 0xFF in front of it.
        let at = rest
            .windows(2)
            .position(|pair| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xFF))?;
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        match marker {
            // Restart markers and TEM have no body.
            0x01 | 0xD0..=0xD7 => continue,
            // Start and end of an image, and start of a scan.
            0xD8..=0xDA => return None,
            _ => {}
        }
        let length = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
        let segment = rest.get(2..length)?;
        if marker == 0xE1 {
            return segment.get(PREFIX..);
        }
        rest = &rest[length..];
    }
}

/// Numbers in an EXIF block.
struct Block<'a> {
    bytes: &'a [u8],
    little_endian: bool,
}

impl Block<'_> {
    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        Some(if self.little_endian {
            u16::from_le_bytes(bytes)
        } else {
            u16::from_be_bytes(bytes)
        })
    }

    fn u32(&self, at: usize) -> Option<usize> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        let number = if self.little_endian {
            u32::from_le_bytes(bytes)
        } else {
            u32::from_be_bytes(bytes)
        };
        usize::try_from(number).ok()
    }

    /// `None` where the value of the entry at `at` is one that the original reads and lies outside
    /// of the block.
    fn check_value(&self, tag: u16, at: usize) -> Option<()> {
        let (offset, length) = match tag {
            // Description, make, model, software, date and copyright: text of the given length.
            0x010E | 0x010F | 0x0110 | 0x0131 | 0x0132 | 0x8298 => {
                let length = self.u32(at + 4)?;
                let offset = if length > 4 { self.u32(at + 8)? } else { 8 };
                (offset, length)
            }
            // Resolutions: one pair of numbers; then the white point, YCbCr coefficients, primaries
            // and reference black and white.
            0x011A | 0x011B => (self.u32(at + 8)?, 8),
            0x013E => (self.u32(at + 8)?, 16),
            0x0211 => (self.u32(at + 8)?, 24),
            0x013F | 0x0214 => (self.u32(at + 8)?, 48),
            // Resolution unit and YCbCr positioning stand in the entry itself.
            0x0128 | 0x0213 => (at + 8, 2),
            _ => return Some(()),
        };
        (offset.checked_add(length)? <= self.bytes.len()).then_some(())
    }
}
