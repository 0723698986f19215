//! Pixels to the image tower's input.

use super::decode::read;
use super::orientation::Orientation;
use super::resize::{Window, resize_window};
use super::resize_pillow::{WindowCubic, resize_window_cubic};
use super::rows::Rows;
use super::{Limits, Pixels};
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
        let (full, at) = self.window(pixels.width, pixels.height);
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

    /// The size that an image is resized to, and where the crop starts in it, both as x, y.
    fn window(&self, width: u32, height: u32) -> ((u64, u64), (u64, u64)) {
        let full = self.resized(width, height);
        let size = u64::from(self.size);
        let middle = |side: u64| match self.profile {
            Preprocessing::Original => (side - size).div_ceil(2),
            Preprocessing::PaddleNlp => (side - size) / 2,
        };
        (full, (middle(full.0), middle(full.1)))
    }

    /// Takes the rows of an image of `width` x `height` pixels, which `orientation` turns afterwards, and
    /// makes what
    /// [`Preprocessor::crop`] gives for the image.
    pub(super) fn rows(&self, width: u32, height: u32, orientation: Option<Orientation>) -> CropRows {
        let [transposed, mirror, flip] = orientation.map_or([false; 3], Orientation::steps);
        let upright = if transposed {
            (height, width)
        } else {
            (width, height)
        };
        let (full, at) = self.window(upright.0, upright.1);
        let (size, row) = (self.size, vec![0; 3 * width as usize]);
        match self.profile {
            Preprocessing::Original => {
                let window = Window::new(upright, full, at, size, size);
                let (columns, rows) = window.needed();
                let window = window.of_needed((&columns, &rows));
                let turned = |mut all: Vec<usize>, side: u32, turn: bool| {
                    if turn {
                        all.reverse();
                        all.iter_mut().for_each(|one| *one = side as usize - 1 - *one);
                    }
                    all
                };
                let columns = turned(columns, upright.0, mirror);
                let rows = turned(rows, upright.1, flip);
                let (columns, rows) = if transposed {
                    (rows, columns)
                } else {
                    (columns, rows)
                };
                CropRows::Linear(Box::new(Gathered {
                    window,
                    orientation,
                    data: Vec::with_capacity(3 * columns.len() * rows.len()),
                    columns,
                    rows,
                    next: 0,
                    row,
                }))
            }
            Preprocessing::PaddleNlp => {
                let window = WindowCubic::new(upright, full, at, size, size, orientation);
                let needed = window.needed();
                CropRows::Cubic(Box::new(Summed { window, needed, row }))
            }
        }
    }

    /// Decodes an image and crops it: what [`crop`](Self::crop) makes of [`decode`](super::decode)'s pixels,
    /// to the bit.
    ///
    /// The pixels are not held where the file gives them from top to bottom: a JPEG of a single scan and a
    /// PNG that is not interlaced are cropped row by row as they are decoded, so an image of 200 million
    /// pixels takes a few megabytes. Of a progressive JPEG the coefficients are held, 2 bytes a sample, of
    /// other files the pixels.
    ///
    /// # Errors
    /// Those of [`decode`](super::decode).
    ///
    /// ```
    /// use ernie_vil::image::{Limits, Preprocessor};
    /// let crop = Preprocessor::new(32).decode_crop(b"P5 1 1 255 \x80", &Limits::default())?;
    /// assert_eq!((crop.width(), crop.data()[0]), (32, 128));
    /// # Ok::<(), ernie_vil::Error>(())
    /// ```
    pub fn decode_crop(&self, bytes: &[u8], limits: &Limits) -> Result<Pixels> {
        read(bytes, limits, Some(self))
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
    /// Those of [`decode`](super::decode), and [`Error::Image`] where `out` is not [`values`](Self::values)
    /// long.
    pub fn preprocess_into(&self, bytes: &[u8], limits: &Limits, out: &mut [f32]) -> Result<()> {
        if out.len() != self.values() {
            return Err(Error::Image(format!(
                "room for {} values, expected 3 x {} x {}",
                out.len(),
                self.size,
                self.size
            )));
        }
        self.tensor_into(&self.decode_crop(bytes, limits)?, out);
        Ok(())
    }
}

/// An image's crop in the making.
#[derive(Debug, Clone)]
pub(super) enum CropRows {
    Linear(Box<Gathered>),
    Cubic(Box<Summed>),
}

/// The 2 x 2 source pixels of each pixel of the crop, which are all that bilinear resizing needs.
#[derive(Debug, Clone)]
pub(super) struct Gathered {
    /// Over the upright image of the columns and rows that are needed.
    window: Window,
    orientation: Option<Orientation>,
    /// Those in the file.
    columns: Vec<usize>,
    rows: Vec<usize>,
    /// The next of `rows`.
    next: usize,
    data: Vec<u8>,
    row: Vec<u8>,
}

#[derive(Debug, Clone)]
pub(super) struct Summed {
    window: WindowCubic,
    needed: std::ops::Range<usize>,
    row: Vec<u8>,
}

impl Rows for CropRows {
    fn slot(&mut self, y: usize) -> Option<&mut [u8]> {
        match self {
            Self::Linear(it) => (it.rows.get(it.next) == Some(&y)).then_some(&mut it.row),
            Self::Cubic(it) => it.needed.contains(&y).then_some(&mut it.row),
        }
    }

    fn done(&mut self, y: usize) {
        match self {
            Self::Linear(it) => {
                let pixels = it.row.as_chunks::<3>().0;
                it.data.extend(it.columns.iter().flat_map(|&x| pixels[x]));
                it.next += 1;
            }
            Self::Cubic(it) => it.window.row(y, &it.row),
        }
    }
}

impl CropRows {
    /// The crop, once all rows were handed over.
    pub fn finish(self) -> Pixels {
        match self {
            Self::Linear(it) => {
                let gathered = Pixels {
                    width: it.columns.len() as u32,
                    height: it.rows.len() as u32,
                    data: it.data,
                };
                let upright = match it.orientation {
                    Some(orientation) => orientation.apply(&gathered),
                    None => gathered,
                };
                it.window.of(&upright)
            }
            Self::Cubic(it) => it.window.finish(),
        }
    }
}
