//! From an encoded image to the image tower's input.
//!
//! | step | function |
//! | --- | --- |
//! | base64 of a file's row to bytes | [`decode_base64`] |
//! | JPEG, PNG, WebP, BMP, TIFF or PNM to RGB pixels | [`decode`] |
//! | resizing the short side, centre crop | [`Preprocessor::crop`] |
//! | normalisation, channels first | [`Preprocessor::tensor_into`] |
//!
//! [`Preprocessor::decode_crop`] decodes and crops without holding all pixels, where the format allows it, and
//! [`Preprocessor::preprocess_into`] does the last three in one go. Every step gives bit for bit
//! what the original pipeline (OpenCV 4.6 and NumPy) gives. With the profile
//! [`PaddleNlp`](crate::Preprocessing::PaddleNlp), resizing, crop and normalisation are those of PaddleNLP (Pillow and
//! NumPy) instead. Decoding stays the same: PaddleNLP decodes with Pillow, whose JPEG decoder is libjpeg-turbo, too.
//!
//! ```
//! use ernie_vil::image::{Limits, Preprocessor};
//! let preprocessor = Preprocessor::new(224);
//! let mut input = vec![0.0; preprocessor.values()];
//! // One white pixel, as a PPM file.
//! preprocessor.preprocess_into(b"P6 1 1 255 \xff\xff\xff", &Limits::default(), &mut input)?;
//! assert_eq!(input[0], 2.2489083);
//! # Ok::<(), ernie_vil::Error>(())
//! ```

mod augment;
mod base64;
mod bmp;
mod chain;
mod decode;
pub mod jpeg;
mod orientation;
mod png;
mod pnm;
mod preprocess;
mod resize;
mod resize_pillow;
mod rows;
mod tiff;
mod webp;

pub use augment::{Augmentation, Blur, Crop, Jitter};
pub use base64::{decode_base64, decode_base64_of_row, explain_base64};
pub use decode::{LimitKind, Limits, decode};
pub use preprocess::Preprocessor;
pub use resize::resize_linear;

use crate::{Error, Result};

/// An image of 8-bit RGB pixels, rows from the top, no gaps.
///
/// ```
/// use ernie_vil::image::Pixels;
/// let pixels = Pixels::new(2, 1, vec![255, 0, 0, 0, 0, 255])?;
/// assert_eq!((pixels.width(), pixels.height()), (2, 1));
/// assert!(Pixels::new(2, 1, vec![0; 5]).is_err());
/// # Ok::<(), ernie_vil::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl Pixels {
    /// An image of `width` x `height` pixels from `3 * width * height` bytes, row by row.
    ///
    /// # Errors
    /// [`Error::Image`] where a side is 0 or the number of bytes is another.
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Result<Self> {
        if width == 0 || height == 0 {
            return Err(Error::Image(format!(
                "{width} x {height} pixels, expected at least 1 x 1"
            )));
        }
        if data.len() as u128 != 3 * u128::from(width) * u128::from(height) {
            return Err(Error::Image(format!(
                "{} bytes for {width} x {height} pixels, expected 3 for each",
                data.len()
            )));
        }
        Ok(Self { width, height, data })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The pixels: red, green and blue of the top left one first, row by row.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Hands the bytes of [`data`](Self::data) out.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }
}
