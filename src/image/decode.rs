//! Encoded images to pixels, as OpenCV's colour mode decodes them.

use std::fmt::Display;
use std::io::Cursor;

use image::ImageDecoder;
use image::codecs::webp::WebPDecoder;
use png::Transformations;

use super::orientation::{Orientation, exif_of_jpeg};
use super::{Pixels, bmp, jpeg, pnm, tiff};
use crate::{Error, Result};

/// OpenCV reads no image with a longer side.
const MAX_SIDE: u32 = 1 << 20;

/// What an image may cost. Both are checked before memory for pixels is reserved.
///
/// ```
/// use ernie_vil::image::{Limits, decode};
/// let limits = Limits { max_pixels: 10_000, ..Limits::default() };
/// let error = decode(b"P6 60000 60000 255 ", &limits).unwrap_err();
/// assert_eq!(error.to_string(), "image: PNM of 60000 x 60000 pixels, expected at most 10000");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of the encoded image.
    pub max_bytes: usize,
    /// Most pixels of the decoded image, which takes 3 bytes for each, and while it is decoded up to
    /// 16 bytes for each.
    pub max_pixels: u64,
}

/// 64 MiB and 2^26 pixels (8192 x 8192).
impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            max_pixels: 1 << 26,
        }
    }
}

impl Limits {
    /// Checks the size that a header gives.
    pub(super) fn check(&self, format: Format, width: u32, height: u32) -> Result<()> {
        // Sizes in bytes, up to 16 for a pixel, have to fit a `usize`.
        let most = self.max_pixels.min(usize::MAX as u64 / 16);
        let expected = if width == 0 || height == 0 {
            "at least 1 x 1".into()
        } else if u64::from(width) * u64::from(height) > most {
            format!("at most {most}")
        } else if width.max(height) > MAX_SIDE {
            format!("at most {MAX_SIDE} a side")
        } else {
            return Ok(());
        };
        Err(Error::Image(format!(
            "{format} of {width} x {height} pixels, expected {expected}"
        )))
    }
}

/// The formats that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Jpeg,
    Png,
    WebP,
    Bmp,
    Tiff,
    Pnm,
}

impl Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Jpeg => "JPEG",
            Format::Png => "PNG",
            Format::WebP => "WebP",
            Format::Bmp => "BMP",
            Format::Tiff => "TIFF",
            Format::Pnm => "PNM",
        })
    }
}

impl Format {
    /// By the first bytes.
    fn of(bytes: &[u8]) -> Result<Self> {
        Ok(match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Format::Jpeg,
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Format::Png,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Format::WebP,
            [b'B', b'M', ..] => Format::Bmp,
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Format::Tiff,
            [b'P', b'1'..=b'6', b' ' | b'\t'..=b'\r', ..] => Format::Pnm,
            other => {
                return Err(Error::Image(format!(
                    "{}, expected JPEG, PNG, WebP, BMP, TIFF or PNM",
                    name_of_foreign(other)
                )));
            }
        })
    }
}

/// What bytes seem to be that are in none of the [`Format`]s.
fn name_of_foreign(bytes: &[u8]) -> &'static str {
    match bytes {
        [] => "no bytes",
        [b'G', b'I', b'F', b'8', ..] => "a GIF image",
        [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', ..] => "an AVIF image",
        [_, _, _, _, b'f', b't', b'y', b'p', b'h' | b'm', ..] => "a HEIF image",
        [0, 0, 0, 12, b'j', b'P', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..] => "a JPEG 2000 image",
        [0, 0, 1, 0, ..] => "an ICO image",
        [b'%', b'P', b'D', b'F', ..] => "a PDF file",
        _ => {
            let start = &bytes[..bytes.len().min(1024)];
            if start.trim_ascii_start().starts_with(b"<") && start.windows(4).any(|part| part == b"<svg") {
                "an SVG image"
            } else {
                "bytes of no known image format"
            }
        }
    }
}

/// Decodes an image to RGB as OpenCV 4.6 does in colour mode.
///
/// The first bytes tell the format: JPEG, PNG, WebP, BMP, TIFF or PNM (PBM, PGM, PPM). Grey is copied
/// to three channels, 16 bits become 8, gamma and colour profiles are left out, and so is transparency
/// (but in a TIFF colours are multiplied with an unassociated alpha). A JPEG, PNG or TIFF that notes its
/// orientation is turned upright, a WebP is not.
///
/// # Errors
/// [`Error::Image`] where the bytes are in another format (the message names it where it is a well
/// known one), damaged, or above a limit.
///
/// ```
/// use ernie_vil::image::{Limits, decode};
/// let pixels = decode(b"P5 2 1 255 \x00\x80", &Limits::default())?;
/// assert_eq!(pixels.data(), [0, 0, 0, 128, 128, 128]);
/// assert_eq!(
///     decode(b"GIF89a", &Limits::default()).unwrap_err().to_string(),
///     "image: a GIF image, expected JPEG, PNG, WebP, BMP, TIFF or PNM"
/// );
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Pixels> {
    if bytes.len() > limits.max_bytes {
        return Err(Error::Image(format!(
            "{} bytes, expected at most {}",
            bytes.len(),
            limits.max_bytes
        )));
    }
    match Format::of(bytes)? {
        Format::Jpeg => decode_jpeg(bytes, limits),
        Format::Png => decode_png(bytes, limits),
        Format::WebP => decode_webp(bytes, limits),
        Format::Bmp => bmp::decode(bytes, limits),
        Format::Tiff => tiff::decode(bytes, limits),
        Format::Pnm => pnm::decode(bytes, limits),
    }
}

fn decode_jpeg(bytes: &[u8], limits: &Limits) -> Result<Pixels> {
    let header = jpeg::read_header(bytes)?;
    limits.check(Format::Jpeg, header.width, header.height)?;
    let (width, height, data) = jpeg::decode(bytes)?;
    let pixels = Pixels::new(width, height, data)?;
    Ok(upright(pixels, exif_of_jpeg(bytes)))
}

fn decode_png(bytes: &[u8], limits: &Limits) -> Result<Pixels> {
    let damaged = |error: png::DecodingError| Error::Image(format!("PNG: {error}"));
    let mut options = png::DecodeOptions::default();
    options.set_ignore_adler32(false);
    options.set_ignore_text_chunk(true);
    options.set_ignore_iccp_chunk(true);
    let mut decoder = png::Decoder::new_with_options(Cursor::new(bytes), options);
    // Beside rows, whose length is checked below, the decoder reserves no more than the file holds.
    decoder.set_limits(png::Limits { bytes: usize::MAX });
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let (width, height) = decoder.read_header_info().map_err(damaged)?.size();
    limits.check(Format::Png, width, height)?;
    let mut reader = decoder.read_info().map_err(damaged)?;
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| damaged(png::DecodingError::LimitsExceeded))?;
    let mut data = vec![0; size];
    reader.next_frame(&mut data).map_err(damaged)?;
    // What follows the pixels counts: the orientation may stand there, and the original accepts no
    // file without an intact end.
    reader.finish().map_err(damaged)?;
    let data = match reader.output_color_type().0 {
        png::ColorType::Grayscale => rgb_of_grey(&data, 1),
        png::ColorType::GrayscaleAlpha => rgb_of_grey(&data, 2),
        png::ColorType::Rgba => rgb_of_rgba(data),
        _ => data,
    };
    let pixels = Pixels::new(width, height, data)?;
    Ok(upright(pixels, reader.info().exif_metadata.as_deref()))
}

fn decode_webp(bytes: &[u8], limits: &Limits) -> Result<Pixels> {
    let damaged = |message: &dyn Display| Error::Image(format!("WebP: {message}"));
    // The frame has a size of its own, which the decoder would compare with the file's too late.
    if let Some((width, height)) = lossy_size(bytes).map_err(|message| damaged(&message))? {
        limits.check(Format::WebP, width, height)?;
    }
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(|error| damaged(&error))?;
    let (width, height) = decoder.dimensions();
    limits.check(Format::WebP, width, height)?;
    if decoder.has_animation() {
        return Err(damaged(&"an animation, expected one image"));
    }
    let channels = if decoder.color_type().has_alpha() { 4 } else { 3 };
    let mut data = vec![0; width as usize * height as usize * channels];
    decoder.read_image(&mut data).map_err(|error| damaged(&error))?;
    Pixels::new(
        width,
        height,
        if channels == 4 { rgb_of_rgba(data) } else { data },
    )
}

/// Width and height of the lossy frame in a WebP file, if it has one.
///
/// A file that ends before its frame does is an error.
fn lossy_size(bytes: &[u8]) -> Result<Option<(u32, u32)>, String> {
    let cut = || format!("{} bytes, the image is cut off", bytes.len());
    let length = |field: &[u8; 4]| u32::from_le_bytes(*field) as usize;
    let end = bytes
        .get(4..)
        .and_then(|rest| length(rest.first_chunk()?).checked_add(8));
    let mut chunks = end.and_then(|end| bytes.get(12..end)).ok_or_else(cut)?;
    while let Some((name, rest)) = chunks.split_first_chunk::<4>() {
        let Some((field, body)) = rest.split_first_chunk() else {
            break;
        };
        let length = length(field);
        match name {
            b"VP8 " | b"VP8L" if length > body.len() => return Err(cut()),
            b"VP8 " => {
                let [a, b, c, d] = *body
                    .get(6..)
                    .and_then(|rest| rest.first_chunk())
                    .ok_or_else(cut)?;
                let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3FFF);
                return Ok(Some((side(a, b), side(c, d))));
            }
            b"VP8L" => break,
            _ => {}
        }
        // Chunks start at even places.
        let next = length
            .checked_next_multiple_of(2)
            .and_then(|length| body.get(length..));
        chunks = next.unwrap_or_default();
    }
    Ok(None)
}

/// Turns an image as its EXIF block says.
fn upright(pixels: Pixels, exif: Option<&[u8]>) -> Pixels {
    match exif.and_then(Orientation::from_exif) {
        Some(orientation) => orientation.apply(&pixels),
        None => pixels,
    }
}

/// Grey three times; `step` bytes make a pixel.
pub(super) fn rgb_of_grey(data: &[u8], step: usize) -> Vec<u8> {
    let mut rgb = vec![[0; 3]; data.len() / step];
    for (pixel, &grey) in rgb.iter_mut().zip(data.iter().step_by(step)) {
        *pixel = [grey; 3];
    }
    rgb.into_flattened()
}

/// Drops every fourth byte.
pub(super) fn rgb_of_rgba(mut data: Vec<u8>) -> Vec<u8> {
    let pixels = data.len() / 4;
    for pixel in 0..pixels {
        data.copy_within(4 * pixel..4 * pixel + 3, 3 * pixel);
    }
    data.truncate(3 * pixels);
    data
}
