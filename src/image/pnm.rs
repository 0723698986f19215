//! PBM, PGM and PPM, text and binary, as OpenCV reads them.

use super::Pixels;
use super::decode::{Format, Limits, rgb_of_grey};
use crate::{Error, Result};

/// Decodes a file that starts with `P1` to `P6`.
///
/// Three rules of OpenCV's own hold: binary samples of 8 bits are not scaled to their largest value
/// and text ones are, 16-bit samples are cut to their upper byte whatever their largest value, and a
/// number in text needs a byte after it.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Pixels> {
    let kind = bytes[1];
    let mut text = Text { bytes, at: 2 };
    let mut size = |what| text.number(usize::MAX).map_err(|error| error.within(what));
    let (width, height) = (size("width")?, size("height")?);
    limits.check(Format::Pnm, width, height)?;
    // Grey is read before it is copied to three channels.
    limits.check_memory(
        Format::Pnm,
        width,
        height,
        4 * u64::from(width) * u64::from(height),
    )?;
    let largest = match kind {
        b'1' | b'4' => 1,
        _ => text.number(usize::MAX)?,
    };
    if !(1..=65535).contains(&largest) {
        return Err(damaged(format!(
            "a largest value of {largest}, expected 1 to 65535"
        )));
    }
    let channels = if matches!(kind, b'3' | b'6') { 3 } else { 1 };
    let row = width as usize * channels;
    let count = row * height as usize;
    let rest = &bytes[text.at..];
    // What the file has to hold at least, before memory for the pixels is reserved.
    let needed = match kind {
        b'1' => count,
        b'2' | b'3' => 2 * count,
        b'4' => row.div_ceil(8) * height as usize,
        _ if largest > 255 => 2 * count,
        _ => count,
    };
    if rest.len() < needed {
        return Err(damaged(format!(
            "{} bytes of samples, expected {needed}",
            rest.len()
        )));
    }
    let samples: Vec<u8> = match kind {
        // Collecting results would reserve up to twice as much.
        b'1'..=b'3' => {
            let mut samples = Vec::with_capacity(count);
            for _ in 0..count {
                samples.push(match kind {
                    b'1' if text.number(1)? == 0 => 255,
                    b'1' => 0,
                    _ => {
                        let sample = text.number(usize::MAX)?.min(largest);
                        if largest > 255 {
                            (sample >> 8) as u8
                        } else {
                            (sample * 255 / largest) as u8
                        }
                    }
                });
            }
            samples
        }
        b'4' => rest[..needed]
            .chunks_exact(row.div_ceil(8))
            .flat_map(|bits| {
                (0..row).map(|x| {
                    if bits[x / 8] << (x % 8) & 0x80 == 0 {
                        255
                    } else {
                        0
                    }
                })
            })
            .collect(),
        _ if largest > 255 => rest[..needed].iter().step_by(2).copied().collect(),
        _ => rest[..needed].to_vec(),
    };
    let data = if channels == 1 {
        rgb_of_grey(&samples, 1)
    } else {
        samples
    };
    Pixels::new(width, height, data)
}

fn damaged(message: String) -> Error {
    Error::Image(format!("PNM: {message}"))
}

/// Numbers in text.
struct Text<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Text<'_> {
    fn byte(&mut self) -> Result<u8> {
        let byte = *self
            .bytes
            .get(self.at)
            .ok_or_else(|| damaged("the end of the file where a number was expected".into()))?;
        self.at += 1;
        Ok(byte)
    }

    /// The next number of at most `digits` digits, and the byte after it where it has fewer.
    /// Before it, there may be white space, and comments from `#` to the end of a line.
    fn number(&mut self, digits: usize) -> Result<u32> {
        let mut byte = self.byte()?;
        while !byte.is_ascii_digit() {
            match byte {
                b'#' => while !matches!(self.byte()?, b'\n' | b'\r') {},
                b' ' | b'\t'..=b'\r' => {}
                _ => {
                    return Err(damaged(format!(
                        "0x{byte:02x} at byte {}, expected a number",
                        self.at - 1
                    )));
                }
            }
            byte = self.byte()?;
        }
        let mut number = 0_u32;
        for digit in 1.. {
            number = number
                .checked_mul(10)
                .and_then(|number| number.checked_add(u32::from(byte - b'0')))
                .filter(|&number| number <= i32::MAX as u32)
                .ok_or_else(|| damaged(format!("a number above {} at byte {}", i32::MAX, self.at - 1)))?;
            if digit == digits {
                break;
            }
            byte = self.byte()?;
            if !byte.is_ascii_digit() {
                break;
            }
        }
        Ok(number)
    }
}
