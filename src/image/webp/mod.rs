//! WebP as OpenCV reads it, which is by libwebp.
//!
//! The `image-webp` crate sees a file of nothing but a lossy frame. Its own look through the file (0.2.4)
//! refuses an extended header that promises metadata which is absent, and does not compare the sizes of
//! header and frame before it reserves memory. Its lossless decoder panics at a prefix code whose check wraps
//! (lengths of 1, 1, 1, 2, 3, ..., 14, 15, 15) and takes up to 260 bytes of memory for each byte of a file,
//! so lossless frames and alpha have a decoder of their own (`lossless`).

mod lossless;

use std::fmt::Display;

use image::ImageDecoder;
use image::codecs::webp::WebPDecoder;

use super::Pixels;
use super::chain::Chain;
use super::decode::{Format, Limits};
use crate::{Error, Result};

/// A bit of the extended header.
const ANIMATION: u8 = 0x02;

fn damaged(message: impl Display) -> Error {
    Error::Image(format!("{}: {message}", Format::WebP))
}

/// What makes the image.
struct Frame<'a> {
    lossless: bool,
    /// Of a lossless frame up to the end of the file: libwebp reads on behind the chunk.
    body: &'a [u8],
    alpha: Option<&'a [u8]>,
    width: u32,
    height: u32,
}

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Pixels> {
    let frame = Frame::find(bytes)?;
    let (width, height) = (frame.width, frame.height);
    limits.check(Format::WebP, width, height)?;
    if frame.lossless {
        return Pixels::new(width, height, lossless::decode(frame.body, limits)?);
    }
    // Luma, two planes of half the width and height, and the result of 3 bytes.
    let pixels = u64::from(width) * u64::from(height);
    limits.check_memory(Format::WebP, width, height, 6 * pixels)?;
    if let Some(alpha) = frame.alpha {
        lossless::check_alpha(alpha, width, height, limits)?;
    }

    let size = |length: usize| (length as u32).to_le_bytes();
    let pad = &[0][..frame.body.len() % 2];
    let length = 12 + frame.body.len() + pad.len();
    let head = [b"RIFF", &size(length)[..], b"WEBPVP8 ", &size(frame.body.len())].concat();
    let chain = Chain::new([&head, frame.body, pad]);

    let decoder = WebPDecoder::new(chain).map_err(damaged)?;
    if decoder.dimensions() != (width, height) {
        return Err(damaged("two sizes of one frame"));
    }
    let mut data = vec![0; width as usize * height as usize * 3];
    decoder.read_image(&mut data).map_err(damaged)?;
    Pixels::new(width, height, data)
}

impl<'a> Frame<'a> {
    /// Finds the frame by libwebp's rules. Of metadata not even its presence counts.
    fn find(bytes: &'a [u8]) -> Result<Self> {
        let cut = || damaged(format_args!("{} bytes, the image is cut off", bytes.len()));
        let length = |field: &[u8; 4]| u32::from_le_bytes(*field) as usize;
        let end = bytes
            .get(4..)
            .and_then(|rest| length(rest.first_chunk()?).checked_add(8));
        let mut chunks = end.and_then(|end| bytes.get(12..end)).ok_or_else(cut)?;
        let (mut canvas, mut alpha) = (None::<(u32, u32)>, None);
        loop {
            let (name, rest) = chunks.split_first_chunk::<4>().ok_or_else(cut)?;
            let (field, rest) = rest.split_first_chunk().ok_or_else(cut)?;
            let length = length(field);
            let body = rest.get(..length).ok_or_else(cut)?;
            match (name, canvas) {
                (b"VP8 " | b"VP8L", _) => {
                    let lossless = name == b"VP8L";
                    let after = rest;
                    let (width, height) = size_of(body, lossless).ok_or_else(cut)?;
                    let (across, down) = canvas.unwrap_or((width, height));
                    if (width, height) != (across, down) {
                        return Err(damaged(format_args!(
                            "a frame of {width} x {height} pixels, expected {across} x {down}"
                        )));
                    }
                    return Ok(Self {
                        lossless,
                        body: if lossless { after } else { body },
                        // A lossless frame has an alpha of its own.
                        alpha: alpha.filter(|_| !lossless),
                        width,
                        height,
                    });
                }
                (b"VP8X", None) => {
                    let &[flags, _, _, _, a, b, c, d, e, f] = body else {
                        return Err(damaged(format_args!(
                            "an extended header of {length} bytes, expected 10"
                        )));
                    };
                    if flags & ANIMATION != 0 {
                        return Err(damaged("an animation, expected one image"));
                    }
                    let side = |bytes: [u8; 3]| {
                        let [a, b, c] = bytes;
                        u32::from_le_bytes([a, b, c, 0]) + 1
                    };
                    canvas = Some((side([a, b, c]), side([d, e, f])));
                }
                (b"ALPH", Some(_)) => alpha = Some(body),
                (_, Some(_)) => {}
                (_, None) => {
                    return Err(damaged(format_args!(
                        "the chunk {:?} first, expected \"VP8 \", \"VP8L\" or \"VP8X\"",
                        name.escape_ascii().to_string()
                    )));
                }
            }
            // Chunks start at even places.
            chunks = rest.get(length + length % 2..).unwrap_or_default();
        }
    }
}

/// Width and height by a frame's own header.
fn size_of(frame: &[u8], lossless: bool) -> Option<(u32, u32)> {
    let at = if lossless { 1 } else { 6 };
    let &[a, b, c, d] = frame.get(at..at + 4)? else {
        return None;
    };
    let fields = u32::from_le_bytes([a, b, c, d]);
    Some(if lossless {
        ((fields & 0x3FFF) + 1, (fields >> 14 & 0x3FFF) + 1)
    } else {
        (fields & 0x3FFF, fields >> 16 & 0x3FFF)
    })
}
