//! Pixels to the image tower's input.

use super::resize::resize_window;
use super::{Limits, Pixels, decode};
use crate::{Error, Result};

/// Means of red, green and blue over the pixels that CLIP was trained with, in 0..=1.
const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// Their standard deviations.
const STD: [f64; 3] = [0.229, 0.224, 0.225];

/// Normalised values by channel and byte.
static NORMALISED: [[f32; 256]; 3] = normalised();

/// `(byte / 255 - mean) / std`, every step rounded to f32, the last two computed in f64.
const fn normalised() -> [[f32; 256]; 3] {
    let mut table = [[0.0; 256]; 3];
    let mut channel = 0;
    while channel < 3 {
        let mut byte = 0;
        while byte < 256 {
            let unit = byte as f32 / 255.0;
            let centred = (unit as f64 - MEAN[channel]) as f32;
            table[channel][byte] = (centred as f64 / STD[channel]) as f32;
            byte += 1;
        }
        channel += 1;
    }
    table
}

/// Makes an image tower's input from pixels.
///
/// ```
/// use ernie_vil::image::{Pixels, Preprocessor};
/// let preprocessor = Preprocessor::new(224);
/// let photo = Pixels::new(640, 480, vec![128; 3 * 640 * 480])?;
/// let crop = preprocessor.crop(&photo);
/// assert_eq!((crop.width(), crop.height()), (224, 224));
/// let mut input = vec![0.0; preprocessor.values()];
/// preprocessor.tensor_into(&crop, &mut input);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preprocessor {
    size: u32,
}

impl Preprocessor {
    /// For a tower whose input is `size` x `size` pixels
    /// ([`VitConfig::image_size`](crate::VitConfig::image_size)).
    ///
    /// # Panics
    /// Where `size` is 0 or above 2^22, which no valid configuration's is.
    pub fn new(size: usize) -> Self {
        assert!((1..=1 << 22).contains(&size), "an image of {size} pixels a side");
        Self { size: size as u32 }
    }

    /// Height and width of the input, in pixels.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// Values of one input: 3 x size x size.
    pub fn values(&self) -> usize {
        3 * self.size() * self.size()
    }

    /// Width and height to which an image of `width` x `height` is resized: the short side becomes
    /// `size`, the other one is scaled, cut to a whole number, and gets one more. An image whose
    /// short side is `size` stays as it is.
    ///
    /// ```
    /// use ernie_vil::image::Preprocessor;
    /// let preprocessor = Preprocessor::new(224);
    /// assert_eq!(preprocessor.resized(640, 480), (299, 224));
    /// assert_eq!(preprocessor.resized(448, 448), (225, 224));
    /// assert_eq!(preprocessor.resized(224, 500), (224, 500));
    /// ```
    pub fn resized(&self, width: u32, height: u32) -> (u64, u64) {
        let size = u64::from(self.size);
        if width.min(height) == self.size {
            return (width.into(), height.into());
        }
        let long =
            |short: u32, long: u32| (f64::from(self.size) / f64::from(short) * f64::from(long)) as u64 + 1;
        if width < height {
            (size, long(width, height))
        } else {
            (long(height, width), size)
        }
    }

    /// Resizes the short side to `size` and cuts `size` x `size` pixels out of the middle.
    ///
    /// Only pixels that stay are computed, whatever the proportions of the image.
    pub fn crop(&self, pixels: &Pixels) -> Pixels {
        let full = self.resized(pixels.width, pixels.height);
        let size = u64::from(self.size);
        let middle = |side: u64| (side - size).div_ceil(2);
        let (x, y) = (middle(full.0), middle(full.1));
        if full != (pixels.width.into(), pixels.height.into()) {
            return resize_window(pixels, full, (x, y), self.size, self.size);
        }
        let stride = 3 * pixels.width as usize;
        let kept = 3 * self.size();
        let mut data = Vec::with_capacity(self.values());
        for row in pixels
            .data
            .chunks_exact(stride)
            .skip(y as usize)
            .take(self.size())
        {
            data.extend_from_slice(&row[3 * x as usize..][..kept]);
        }
        Pixels {
            width: self.size,
            height: self.size,
            data,
        }
    }

    /// Normalises a crop: `out` becomes \[3, size, size\], red first.
    ///
    /// # Panics
    /// Where `crop` is not `size` x `size` pixels or `out` not [`values`](Self::values) long.
    pub fn tensor_into(&self, crop: &Pixels, out: &mut [f32]) {
        assert_eq!(
            (crop.width, crop.height),
            (self.size, self.size),
            "pixels of a crop"
        );
        assert_eq!(out.len(), self.values(), "values of an image");
        let (red, rest) = out.split_at_mut(self.size() * self.size());
        let (green, blue) = rest.split_at_mut(self.size() * self.size());
        let planes = red.iter_mut().zip(green).zip(blue);
        for (&[r, g, b], ((red, green), blue)) in crop.data.as_chunks::<3>().0.iter().zip(planes) {
            *red = NORMALISED[0][usize::from(r)];
            *green = NORMALISED[1][usize::from(g)];
            *blue = NORMALISED[2][usize::from(b)];
        }
    }

    /// Decodes, crops and normalises an encoded image into `out`, \[3, size, size\].
    ///
    /// # Errors
    /// Those of [`decode`], and [`Error::Image`] where `out` is not [`values`](Self::values) long.
    pub fn preprocess_into(&self, bytes: &[u8], limits: &Limits, out: &mut [f32]) -> Result<()> {
        if out.len() != self.values() {
            return Err(Error::Image(format!(
                "room for {} values, expected 3 x {} x {}",
                out.len(),
                self.size,
                self.size
            )));
        }
        let pixels = decode(bytes, limits)?;
        self.tensor_into(&self.crop(&pixels), out);
        Ok(())
    }
}
