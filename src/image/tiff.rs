//! TIFF as OpenCV reads it, which is by libtiff's conversion to RGBA.
//!
//! OpenCV also reads palettes, YCbCr, Lab, signed samples and fax or JPEG compression (but for fax group 4,
//! which is read here too); such a file is an error that says so.

use std::fmt::Display;
use std::io::Cursor;

use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult};
use tiff::tags::Tag;

use super::Pixels;
use super::decode::{Format, Limits, rgb_of_grey, rgb_of_rgba};
use super::orientation::Orientation;
use crate::{Error, Result};

/// [`Tag::ExtraSamples`] of an alpha that the colours have not been multiplied with.
const UNASSOCIATED_ALPHA: u16 = 2;

/// Decodes the first image of a file that starts with `II` or `MM`.
///
/// Colours of 16 bits are rounded to 8, grey is cut; colours are multiplied with an unassociated alpha;
/// the orientation is applied.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Pixels> {
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(damaged)?;
    let (width, height) = decoder.dimensions().map_err(damaged)?;
    limits.check(Format::Tiff, width, height)?;
    let color = decoder.colortype().map_err(damaged)?;
    let channels = match color {
        ColorType::Gray(1 | 8 | 16) => 1,
        ColorType::Multiband {
            bit_depth: 8,
            num_samples: 2,
        } => 2,
        ColorType::RGB(8 | 16) => 3,
        ColorType::RGBA(8 | 16) | ColorType::CMYK(8) => 4,
        other => {
            return Err(damaged(format!(
                "{other:?} pixels, expected grey, RGB or RGBA of 8 or 16 bits, grey of 1 bit or CMYK of 8"
            )));
        }
    };
    let orientation = decoder.find_tag_unsigned(Tag::Orientation).map_err(damaged)?;
    let alpha = decoder
        .find_tag_unsigned_vec(Tag::ExtraSamples)
        .map_err(damaged)?;

    let count = width as usize * height as usize * channels;
    // Two bytes a sample, and the same again while a strip is unpacked.
    let mut room = tiff::decoder::Limits::default();
    room.decoding_buffer_size = 2 * count;
    room.intermediate_buffer_size = 2 * count + bytes.len();
    let mut samples = DecodingResult::U8(Vec::new());
    let layout = decoder
        .with_limits(room)
        .read_image_to_buffer(&mut samples)
        .map_err(damaged)?;
    let mut samples: Vec<u8> = match samples {
        DecodingResult::U8(rows) if color == ColorType::Gray(1) => {
            let row = (width as usize).div_ceil(8);
            let bits = |bits| (0..width as usize).map(move |x| bit(bits, x));
            rows.chunks_exact(row).flat_map(bits).collect()
        }
        DecodingResult::U8(samples) => samples,
        DecodingResult::U16(samples) if channels == 1 => {
            samples.iter().map(|sample| (sample >> 8) as u8).collect()
        }
        DecodingResult::U16(samples) => {
            let round = |&sample: &u16| ((u32::from(sample) + 128) / 257) as u8;
            samples.iter().map(round).collect()
        }
        _ => {
            return Err(damaged(
                "samples that are signed or floating point, expected unsigned ones",
            ));
        }
    };
    if samples.len() != count {
        return Err(damaged(format!("{} samples, expected {count}", samples.len())));
    }
    if layout.planes > 1 {
        let plane = count / channels;
        samples = (0..count)
            .map(|at| samples[at % channels * plane + at / channels])
            .collect();
    }

    let data = match color {
        ColorType::Gray(_) => rgb_of_grey(&samples, 1),
        ColorType::Multiband { .. } => rgb_of_grey(&samples, 2),
        ColorType::RGB(_) => samples,
        ColorType::CMYK(_) => {
            for pixel in samples.as_chunks_mut::<4>().0 {
                let black = 255 - u32::from(pixel[3]);
                *pixel = pixel.map(|ink| (black * (255 - u32::from(ink)) / 255) as u8);
            }
            rgb_of_rgba(samples)
        }
        _ => {
            if alpha.is_some_and(|kinds: Vec<u16>| kinds.first() == Some(&UNASSOCIATED_ALPHA)) {
                for pixel in samples.as_chunks_mut::<4>().0 {
                    let alpha = u32::from(pixel[3]);
                    *pixel = pixel.map(|colour| ((u32::from(colour) * alpha + 127) / 255) as u8);
                }
            }
            rgb_of_rgba(samples)
        }
    };
    let pixels = Pixels::new(width, height, data)?;
    Ok(match orientation.and_then(Orientation::from_number) {
        Some(orientation) => orientation.apply(&pixels),
        None => pixels,
    })
}

/// Black or white.
fn bit(bits: &[u8], x: usize) -> u8 {
    if bits[x / 8] << (x % 8) & 0x80 == 0 {
        0
    } else {
        255
    }
}

fn damaged(message: impl Display) -> Error {
    Error::Image(format!("TIFF: {message}"))
}
