//! Pixels to the image tower's input.

use super::resize::resize_window;
use super::resize_pillow::resize_window_cubic;
use super::{Limits, Pixels, decode};
use crate::{Error, ModelConfig, Preprocessing, Result};

/// Means of red, green and blue over the pixels that CLIP was trained with, in 0..=1.
const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// Their standard deviations.
const STD: [f64; 3] = [0.229, 0.224, 0.225];

/// Values by channel and byte.
pub(crate) type Table = [[f32; 256]; 3];

/// As the original normalises, and as PaddleNLP does.
static TABLES: [Table; 2] = [table(Preprocessing::Original), table(Preprocessing::PaddleNlp)];

/// The original's are `(byte / 255 - mean) / std`, every step rounded to f32, the last two computed in f64. PaddleNLP
/// computes `byte * (1 / 255)` in f64, and the other two steps in f32.
const fn table(profile: Preprocessing) -> Table {
    let mut table = [[0.0; 256]; 3];
    let mut channel = 0;
    while channel < 3 {
        let mut byte = 0;
        while byte < 256 {
            table[channel][byte] = match profile {
                Preprocessing::Original => {
                    let unit = byte as f32 / 255.0;
                    let centred = (unit as f64 - MEAN[channel]) as f32;
                    (centred as f64 / STD[channel]) as f32
                }
                Preprocessing::PaddleNlp => {
                    let unit = (byte as f64 * (1.0 / 255.0)) as f32;
                    (unit - MEAN[channel] as f32) / STD[channel] as f32
                }
            };
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
    profile: Preprocessing,
}

impl Preprocessor {
    /// The original's for a tower whose input is `size` x `size` pixels
    /// ([`VitConfig::image_size`](crate::VitConfig::image_size)).
    ///
    /// # Panics
    /// Where `size` is 0 or above 2^22, which no valid configuration's is.
    pub fn new(size: usize) -> Self {
        Self::with_profile(size, Preprocessing::Original)
    }

    /// As [`Preprocessor::new`], by a profile.
    ///
    /// # Panics
    /// As [`Preprocessor::new`].
    pub fn with_profile(size: usize, profile: Preprocessing) -> Self {
        assert!((1..=1 << 22).contains(&size), "an image of {size} pixels a side");
        Self {
            size: size as u32,
            profile,
        }
    }

    /// What a model's image tower takes, by its size and its profile.
    ///
    /// # Panics
    /// As [`Preprocessor::new`].
    pub fn of(config: &ModelConfig) -> Self {
        Self::with_profile(config.image.image_size(), config.preprocessing)
    }

    /// Height and width of the input, in pixels.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// Values of one input: 3 x size x size.
    pub fn values(&self) -> usize {
        3 * self.size() * self.size()
    }

    /// Width and height to which an image of `width` x `height` is resized: the short side becomes `size`, the other one
    /// is scaled and cut to a whole number. The original adds one to it, and leaves an image whose short side is `size` as
    /// it is.
    ///
    /// ```
    /// use ernie_vil::{Preprocessing, image::Preprocessor};
    /// let preprocessor = Preprocessor::new(224);
    /// assert_eq!(preprocessor.resized(640, 480), (299, 224));
    /// assert_eq!(preprocessor.resized(448, 448), (225, 224));
    /// assert_eq!(preprocessor.resized(224, 500), (224, 500));
    /// let paddlenlp = Preprocessor::with_profile(224, Preprocessing::PaddleNlp);
    /// assert_eq!(paddlenlp.resized(640, 480), (298, 224));
    /// assert_eq!(paddlenlp.resized(448, 448), (224, 224));
    /// ```
    pub fn resized(&self, width: u32, height: u32) -> (u64, u64) {
        let size = u64::from(self.size);
        let long = |short: u32, long: u32| match self.profile {
            Preprocessing::Original => (f64::from(self.size) / f64::from(short) * f64::from(long)) as u64 + 1,
            // int(size * long / short), of whole numbers
            Preprocessing::PaddleNlp => ((size * u64::from(long)) as f64 / f64::from(short)) as u64,
        };
        if width.min(height) == self.size {
            (width.into(), height.into())
        } else if width < height {
            (size, long(width, height))
        } else {
            (long(height, width), size)
        }
    }

    /// Resizes the short side to `size` and cuts `size` x `size` pixels out of the middle. Where as many pixels do not
    /// fit on both sides, the original leaves one more out before them, and PaddleNLP one more after them.
    ///
    /// Only pixels that stay are computed, whatever the proportions of the image.
    pub fn crop(&self, pixels: &Pixels) -> Pixels {
        let full = self.resized(pixels.width, pixels.height);
        let size = u64::from(self.size);
        let middle = |side: u64| match self.profile {
            Preprocessing::Original => (side - size).div_ceil(2),
            Preprocessing::PaddleNlp => (side - size) / 2,
        };
        let at = (middle(full.0), middle(full.1));
        if full != (pixels.width.into(), pixels.height.into()) {
            return self.resize(pixels, full, at);
        }
        let (x, y) = at;
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

    /// Resizes to `size` x `size` pixels, whatever the proportions were.
    pub(super) fn square(&self, pixels: &Pixels) -> Pixels {
        self.resize(pixels, (self.size.into(), self.size.into()), (0, 0))
    }

    /// `size` x `size` pixels from `at` of the image resized to `full`.
    fn resize(&self, pixels: &Pixels, full: (u64, u64), at: (u64, u64)) -> Pixels {
        match self.profile {
            Preprocessing::Original => resize_window(pixels, full, at, self.size, self.size),
            Preprocessing::PaddleNlp => resize_window_cubic(pixels, full, at, self.size, self.size),
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
        self.normalise(&crop.data, out);
    }

    /// As [`Preprocessor::tensor_into`], from the bytes of a crop.
    pub(crate) fn normalise(&self, crop: &[u8], out: &mut [f32]) {
        assert_eq!(out.len(), self.values(), "values of an image");
        let normalised = self.table();
        let (red, rest) = out.split_at_mut(self.size() * self.size());
        let (green, blue) = rest.split_at_mut(self.size() * self.size());
        let planes = red.iter_mut().zip(green).zip(blue);
        for (&[r, g, b], ((red, green), blue)) in crop.as_chunks::<3>().0.iter().zip(planes) {
            *red = normalised[0][usize::from(r)];
            *green = normalised[1][usize::from(g)];
            *blue = normalised[2][usize::from(b)];
        }
    }

    /// What each byte of each channel becomes.
    pub(crate) fn table(&self) -> &'static Table {
        &TABLES[self.profile as usize]
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
