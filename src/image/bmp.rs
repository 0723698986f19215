//! BMP as OpenCV reads it.

use super::Pixels;
use super::decode::{Format, Limits};
use crate::{Error, Result};

/// Compression methods in a header.
const RGB: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BITFIELDS: u32 = 3;

/// Decodes a file that starts with `BM`.
///
/// As in OpenCV, 5 and 6 bits become 8 by a shift, a fourth byte of a pixel is dropped, and pixels that
/// a run-length code skips get the first colour of the palette.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Pixels> {
    let header = Header::read(bytes)?;
    let (width, height) = (header.width, header.height);
    limits.check(Format::Bmp, width, height)?;
    // Run lengths are turned over once they are read.
    let each = if matches!(header.compression, RLE4 | RLE8) {
        6
    } else {
        3
    };
    limits.check_memory(
        Format::Bmp,
        width,
        height,
        each * u64::from(width) * u64::from(height),
    )?;
    let data = bytes.get(header.data..).unwrap_or_default();
    if matches!(header.compression, RLE4 | RLE8) {
        return header.run_lengths(data);
    }

    let width = header.width as usize;
    let row = (width * header.bits as usize).div_ceil(32) * 4;
    let needed = row * header.height as usize;
    if data.len() < needed {
        return Err(damaged(format!(
            "{} bytes of pixels, expected {needed}",
            data.len()
        )));
    }
    let mut pixels = vec![0; 3 * width * header.height as usize];
    for (y, from) in data[..needed].chunks_exact(row).enumerate() {
        let start = 3 * width * header.row(y);
        let (to, _) = pixels[start..start + 3 * width].as_chunks_mut();
        header.copy_row(from, to);
    }
    Pixels::new(header.width, header.height, pixels)
}

fn damaged(message: impl std::fmt::Display) -> Error {
    Error::Image(format!("BMP: {message}"))
}

struct Header {
    width: u32,
    height: u32,
    /// Rows are stored from the bottom.
    bottom_up: bool,
    /// Bits of a pixel: 1, 4, 8, 16, 24 or 32.
    bits: u32,
    compression: u32,
    /// With 16 bits, green has 6 of them.
    six_bit_green: bool,
    palette: [[u8; 3]; 256],
    /// Where the pixels start.
    data: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self> {
        let cut = || damaged(format!("{} bytes, its header is cut off", bytes.len()));
        let u16 = |at: usize| {
            let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
            field.map(|&field| u16::from_le_bytes(field)).ok_or_else(cut)
        };
        let u32 = |at: usize| -> Result<u32> { Ok(u32::from(u16(at)?) | u32::from(u16(at + 2)?) << 16) };
        let size = u32(14)?;
        let (width, height, bits, compression, colours) = match size {
            12 => (u16(18)?.into(), u16(20)?.into(), u16(24)?, RGB, 0),
            36..=0x7FFF_FFFF => (u32(18)? as i32, u32(22)? as i32, u16(28)?, u32(30)?, u32(46)?),
            _ => {
                return Err(damaged(format!(
                    "a header of {size} bytes, expected 12, or 36 and more"
                )));
            }
        };
        let bits = u32::from(bits);
        match (bits, compression) {
            (1 | 4 | 8 | 24 | 32, RGB) | (32, BITFIELDS) | (4, RLE4) | (8, RLE8) => {}
            (16, RGB | BITFIELDS) if size != 12 => {}
            _ => {
                return Err(damaged(format!(
                    "{bits} bits a pixel with compression {compression}, expected 1, 4, 8, 16, 24 or 32 bits \
                     uncompressed, or 4 or 8 run-length encoded"
                )));
            }
        }
        if width <= 0 || height == 0 || height == i32::MIN {
            return Err(damaged(format!(
                "{width} x {height} pixels, expected at least 1 x 1"
            )));
        }
        if colours > 256 && bits <= 8 {
            return Err(damaged(format!(
                "a palette of {colours} colours, expected at most 256"
            )));
        }

        let after = usize::try_from(size)
            .ok()
            .and_then(|size| size.checked_add(14))
            .ok_or_else(cut)?;
        let mut palette = [[0; 3]; 256];
        if bits <= 8 {
            let colours = if colours == 0 { 1 << bits } else { colours as usize };
            let each = if size == 12 { 3 } else { 4 };
            let stored = bytes
                .get(after..)
                .and_then(|rest| rest.get(..each * colours))
                .ok_or_else(cut)?;
            for (colour, stored) in palette.iter_mut().zip(stored.chunks_exact(each)) {
                *colour = [stored[2], stored[1], stored[0]];
            }
        }
        let six_bit_green = bits == 16 && compression == BITFIELDS && {
            let at = |field: usize| after.checked_add(4 * field).ok_or_else(cut);
            match [u32(at(0)?)?, u32(at(1)?)?, u32(at(2)?)?] {
                [0x7C00, 0x03E0, 0x001F] => false,
                [0xF800, 0x07E0, 0x001F] => true,
                [red, green, blue] => {
                    return Err(damaged(format!(
                        "16 bits with the masks 0x{red:x}, 0x{green:x}, 0x{blue:x}, expected 5 bits each or \
                             5, 6 and 5"
                    )));
                }
            }
        };
        Ok(Self {
            width: width as u32,
            height: height.unsigned_abs(),
            bottom_up: height > 0,
            bits,
            compression,
            six_bit_green,
            palette,
            data: u32(10)? as usize,
        })
    }

    /// The row from the top of the `y`th stored row.
    fn row(&self, y: usize) -> usize {
        if self.bottom_up {
            self.height as usize - 1 - y
        } else {
            y
        }
    }

    /// One row of uncompressed pixels, or the first `to.len()` of it.
    fn copy_row(&self, from: &[u8], to: &mut [[u8; 3]]) {
        match self.bits {
            bits @ (1 | 4 | 8) => {
                let (in_byte, mask) = (8 / bits as usize, (1_u16 << bits) - 1);
                for (x, to) in to.iter_mut().enumerate() {
                    let shift = 8 - bits as usize * (x % in_byte + 1);
                    *to = self.palette[usize::from(u16::from(from[x / in_byte]) >> shift & mask)];
                }
            }
            16 => {
                for (to, &from) in to.iter_mut().zip(from.as_chunks().0) {
                    let pixel = u16::from_le_bytes(from);
                    *to = if self.six_bit_green {
                        [pixel >> 8 & 0xF8, pixel >> 3 & 0xFC, pixel << 3]
                    } else {
                        [pixel >> 7 & 0xF8, pixel >> 2 & 0xF8, pixel << 3]
                    }
                    .map(|channel| channel as u8);
                }
            }
            bits => {
                for (to, from) in to.iter_mut().zip(from.chunks_exact(bits as usize / 8)) {
                    *to = [from[2], from[1], from[0]];
                }
            }
        }
    }

    /// Run-length encoded pixels. A code is two bytes: a length above 0 and a colour (with 4 bits two
    /// colours in turn), or 0 and what follows: 0 the end of a row, 1 of the image, 2 a distance to
    /// skip, or that many single pixels.
    fn run_lengths(&self, data: &[u8]) -> Result<Pixels> {
        let mut data = data.iter().copied();
        let mut byte = || {
            data.next()
                .ok_or_else(|| damaged("run-length codes end before the image is full"))
        };
        let mut canvas = Canvas::new(self);
        let eight = self.compression == RLE8;
        // With 8 bits a run that fills a row goes on to the next, and an end of row right after it is
        // not counted.
        let mut wrapped = false;
        while canvas.y < canvas.height {
            let (length, code) = (usize::from(byte()?), byte()?);
            let before = canvas.y;
            if length > 0 {
                canvas.check_room(length)?;
                if eight {
                    canvas.fill(length, self.palette[usize::from(code)]);
                } else {
                    let pair = [code >> 4, code & 15].map(|index| self.palette[usize::from(index)]);
                    for (pixel, &colour) in canvas.next(length).iter_mut().zip(pair.iter().cycle()) {
                        *pixel = colour;
                    }
                }
                wrapped = canvas.y > before;
            } else if code > 2 {
                let length = usize::from(code);
                canvas.check_room(length)?;
                let size = if eight { length } else { length.div_ceil(2) };
                let mut stored = [0; 256];
                for stored in &mut stored[..size.next_multiple_of(2)] {
                    *stored = byte()?;
                }
                self.copy_row(&stored, canvas.next(length));
                wrapped = false;
            } else if eight {
                let rest = canvas.width - canvas.x;
                if code != 0 || !wrapped || rest < canvas.width {
                    let skipped = match code {
                        0 => rest,
                        1 => rest + (canvas.height - canvas.y) * canvas.width,
                        _ => usize::from(byte()?) + usize::from(byte()?) * canvas.width,
                    };
                    canvas.fill(skipped, self.palette[0]);
                }
                wrapped = false;
            } else {
                let mut skipped = canvas.width - canvas.x;
                if code == 2 {
                    skipped = byte()?.into();
                    byte()?;
                }
                canvas.fill(skipped, self.palette[0]);
            }
        }
        let Canvas { mut pixels, .. } = canvas;
        if self.bottom_up {
            let rows = pixels.chunks_exact(self.width as usize).rev();
            pixels = rows.flatten().copied().collect();
        }
        Pixels::new(self.width, self.height, pixels.into_flattened())
    }
}

/// An image that is filled pixel after pixel, its rows in the order of the file.
struct Canvas {
    width: usize,
    height: usize,
    /// The next pixel; `x` may be `width`.
    x: usize,
    y: usize,
    pixels: Vec<[u8; 3]>,
}

impl Canvas {
    fn new(header: &Header) -> Self {
        let (width, height) = (header.width as usize, header.height as usize);
        Self {
            width,
            height,
            x: 0,
            y: 0,
            pixels: vec![[0; 3]; width * height],
        }
    }

    fn check_room(&self, length: usize) -> Result<()> {
        let room = self.width - self.x;
        if length > room {
            return Err(damaged(format!(
                "a run of {length} pixels in row {}, expected at most {room}",
                self.y
            )));
        }
        Ok(())
    }

    /// The next `length` pixels of the row.
    fn next(&mut self, length: usize) -> &mut [[u8; 3]] {
        let at = self.y * self.width + self.x;
        self.x += length;
        &mut self.pixels[at..at + length]
    }

    /// Fills the next `count` pixels, over the ends of rows. At the end of a row the next one begins,
    /// even if `count` is 0.
    fn fill(&mut self, mut count: usize, colour: [u8; 3]) {
        loop {
            let length = count.min(self.width - self.x);
            self.next(length).fill(colour);
            count -= length;
            if self.x == self.width {
                self.x = 0;
                self.y += 1;
            }
            if count == 0 || self.y == self.height {
                break;
            }
        }
    }
}
