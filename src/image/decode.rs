//! Encoded images to pixels, as OpenCV's colour mode decodes them.

use std::fmt::Display;

use super::orientation::{Orientation, exif_of_jpeg};
use super::png::Png;
use super::rows::Whole;
use super::{Pixels, Preprocessor, bmp, jpeg, pnm, tiff, webp};
use crate::{Error, Result};

/// OpenCV reads no image with a longer side.
const MAX_SIDE: u32 = 1 << 20;

/// What an image may cost. All of it is checked before memory for pixels is reserved.
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
    /// Most pixels of the decoded image. Time grows with them.
    pub max_pixels: u64,
    /// Most bytes of memory that hold pixels while the image is decoded, beside the encoded image.
    ///
    /// [`decode`] needs at least 3 for each pixel. [`Preprocessor::decode_crop`] needs them too for an interlaced PNG, and
    /// for a file that is neither PNG nor JPEG; for a progressive JPEG it needs 2 for each sample (3 to 6 for
    /// a pixel), and otherwise only a few rows.
    pub max_memory: u64,
}

/// 2^30 bytes, 2^30 pixels, which are the most that OpenCV reads, and 512 MiB of memory.
impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 30,
            max_pixels: 1 << 30,
            max_memory: 512 << 20,
        }
    }
}

/// Which of the [`Limits`] an image goes beyond ([`Error::limit`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// [`Limits::max_bytes`].
    Bytes,
    /// [`Limits::max_pixels`].
    Pixels,
    /// [`Limits::max_memory`].
    Memory,
}

impl LimitKind {
    fn error(self, message: impl Display) -> Error {
        Error::ImageLimit {
            limit: self,
            message: message.to_string(),
        }
    }
}

impl Limits {
    /// Checks the size that a header gives.
    pub(super) fn check(&self, format: Format, width: u32, height: u32) -> Result<()> {
        let found = format_args!("{format} of {width} x {height} pixels, expected");
        if width == 0 || height == 0 {
            return Err(Error::Image(format!("{found} at least 1 x 1")));
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(LimitKind::Pixels.error(format_args!("{found} at most {}", self.max_pixels)));
        }
        if width.max(height) > MAX_SIDE {
            return Err(Error::Image(format!("{found} at most {MAX_SIDE} a side")));
        }
        Ok(())
    }

    /// Checks the bytes that have to be held while an image is decoded.
    pub(super) fn check_memory(&self, format: Format, width: u32, height: u32, bytes: u64) -> Result<()> {
        // More than half of the addresses cannot be reserved at once.
        let most = self.max_memory.min(isize::MAX as u64);
        if bytes <= most {
            return Ok(());
        }
        let (unit, name) = if most < 10 << 20 {
            (1 << 10, "kB")
        } else {
            (1 << 20, "MB")
        };
        Err(LimitKind::Memory.error(format_args!(
            "{format} of {width} x {height} pixels, which takes {} {name} of memory to decode, expected at most {} {name}",
            bytes.div_ceil(unit),
            most / unit
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
    read(bytes, limits, None)
}

/// Decodes an image; with a preprocessor, makes what its crop of the pixels would be.
pub(super) fn read(bytes: &[u8], limits: &Limits, crop: Option<&Preprocessor>) -> Result<Pixels> {
    if bytes.len() > limits.max_bytes {
        return Err(LimitKind::Bytes.error(format_args!(
            "{} bytes, expected at most {}",
            bytes.len(),
            limits.max_bytes
        )));
    }
    let format = Format::of(bytes)?;
    guarded(format, || {
        let pixels = match format {
            Format::Jpeg => return read_jpeg(bytes, limits, crop),
            Format::Png => return read_png(bytes, limits, crop),
            Format::WebP => webp::decode(bytes, limits),
            Format::Bmp => bmp::decode(bytes, limits),
            Format::Tiff => tiff::decode(bytes, limits),
            Format::Pnm => pnm::decode(bytes, limits),
        }?;
        Ok(match crop {
            Some(preprocessor) => preprocessor.crop(&pixels),
            None => pixels,
        })
    })
}

/// Makes an error of a decoder's panic, where panics unwind.
///
/// In a module for JavaScript they do not, so every decoder is to be given nothing that it panics at: what
/// that is, for which version of its crate, its module here says. None is known for `png` 0.18.1, for
/// `image-webp` 0.2.4 and for our own decoders as they are called.
fn guarded(format: Format, read: impl FnOnce() -> Result<Pixels>) -> Result<Pixels> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(Error::Image(format!(
            "{format}: the decoder failed on it, which is an error of this program"
        )))
    })
}

fn read_jpeg(bytes: &[u8], limits: &Limits, crop: Option<&Preprocessor>) -> Result<Pixels> {
    // Sizes that are refused are so before anything else.
    let header = jpeg::read_header(bytes)?;
    let (width, height) = (header.width, header.height);
    limits.check(Format::Jpeg, width, height)?;
    let picture = jpeg::Picture::open(bytes)?;
    let orientation = exif_of_jpeg(bytes).and_then(Orientation::from_exif);
    if let Some(preprocessor) = crop {
        limits.check_memory(Format::Jpeg, width, height, picture.held())?;
        let rows = picture.read(|| preprocessor.rows(width, height, orientation))?;
        return Ok(rows.finish());
    }
    let held = whole(width, height, orientation);
    limits.check_memory(Format::Jpeg, width, height, picture.held() + held)?;
    let pixels = picture.read(|| Whole::new(width, height))?.finish();
    Ok(upright(pixels, orientation))
}

fn read_png(bytes: &[u8], limits: &Limits, crop: Option<&Preprocessor>) -> Result<Pixels> {
    let picture = Png::open(bytes)?;
    let (width, height, orientation) = (picture.width, picture.height, picture.orientation);
    limits.check(Format::Png, width, height)?;
    if let (Some(preprocessor), false) = (crop, picture.interlaced) {
        limits.check_memory(Format::Png, width, height, picture.held())?;
        let mut rows = preprocessor.rows(width, height, orientation);
        picture.read(&mut rows)?;
        return Ok(rows.finish());
    }
    let held = whole(width, height, orientation);
    limits.check_memory(Format::Png, width, height, picture.held() + held)?;
    let mut rows = Whole::new(width, height);
    picture.read(&mut rows)?;
    let pixels = upright(rows.finish(), orientation);
    Ok(match crop {
        Some(preprocessor) => preprocessor.crop(&pixels),
        None => pixels,
    })
}

/// Bytes of all pixels, twice where they have to be turned.
fn whole(width: u32, height: u32, orientation: Option<Orientation>) -> u64 {
    u64::from(width) * u64::from(height) * if orientation.is_some() { 6 } else { 3 }
}

/// Turns an image as its EXIF block says.
fn upright(pixels: Pixels, orientation: Option<Orientation>) -> Pixels {
    match orientation {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// No file is known that makes a decoder panic.
    #[test]
    fn a_panic_becomes_an_error() {
        let error = guarded(Format::Png, || panic!("in a decoder")).unwrap_err();
        let expected = "image: PNG: the decoder failed on it, which is an error of this program";
        assert_eq!(error.to_string(), expected);
    }
}
