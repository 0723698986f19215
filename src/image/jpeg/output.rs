//! From component samples to RGB rows: upsampling as libjpeg-turbo's "fancy" one and its integer
//! colour conversion.

use super::colour;
use super::frame::{Component, Frame};
use super::level::{self, Level, Task};
use super::scan::Place;
use crate::image::rows::Rows;
use crate::image::tiff;
use crate::{Error, Result};

/// What the components mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Colours {
    Grey,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
    /// Grey and something that does not count.
    GreyOfTwo,
    /// CMYK as TIFF has it.
    Inks,
    /// RGB and something that does not count.
    RgbOfFour,
    /// RGB and an alpha that the colours are multiplied with.
    RgbTimesAlpha,
}

impl Colours {
    pub fn components(self) -> usize {
        match self {
            Colours::Grey => 1,
            Colours::GreyOfTwo => 2,
            Colours::Rgb | Colours::YCbCr => 3,
            Colours::Cmyk | Colours::Ycck | Colours::Inks | Colours::RgbOfFour | Colours::RgbTimesAlpha => 4,
        }
    }
}

/// How a component's samples become the image's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upsampling {
    /// One sample a pixel.
    None,
    /// Twice as wide, by a triangle filter.
    Wide,
    /// Twice as high, by a triangle filter.
    High,
    /// Twice as wide and high, by a triangle filter.
    WideAndHigh,
    /// Each sample repeated this many times across.
    Repeated(usize),
}

impl Upsampling {
    /// libjpeg-turbo's choice; a component of one or two columns is repeated, not filtered.
    fn of(component: &Component, frame: &Frame) -> Result<Self> {
        let (h, v) = (component.h, component.v);
        if !frame.max_h.is_multiple_of(h) || !frame.max_v.is_multiple_of(v) {
            return Err(Error::Image(format!(
                "JPEG: a component of {h}x{v} samples beside one of {}x{}, expected whole multiples",
                frame.max_h, frame.max_v
            )));
        }
        Ok(match (frame.max_h / h, frame.max_v / v) {
            (1, 1) => Upsampling::None,
            (2, 1) if component.width > 2 => Upsampling::Wide,
            (1, 2) => Upsampling::High,
            (2, 2) if component.width > 2 => Upsampling::WideAndHigh,
            (across, _) => Upsampling::Repeated(across),
        })
    }

    /// Whether a row needs the rows above and below.
    fn has_context(self) -> bool {
        matches!(self, Upsampling::High | Upsampling::WideAndHigh)
    }
}

/// The samples of one component in the current strip (the rows of one MCU row) and the last few of
/// the strip before.
struct Plane {
    samples: Vec<u8>,
    stride: usize,
    /// Rows kept of the strip before.
    kept: usize,
    /// Rows of a strip.
    rows: usize,
    upsampling: Upsampling,
    /// The upsampled row.
    wide: Vec<u8>,
    /// Sums of two rows, weighted 3 to 1.
    sums: Vec<u16>,
}

impl Plane {
    fn new(component: &Component, frame: &Frame) -> Result<Self> {
        let stride = component.blocks_wide * 8;
        let (kept, rows) = (component.v + 1, component.v * 8);
        let upsampling = Upsampling::of(component, frame)?;
        let across = frame.max_h / component.h;
        Ok(Plane {
            samples: vec![0; stride * (kept + rows)],
            stride,
            kept,
            rows,
            upsampling,
            wide: vec![0; component.width * across],
            sums: vec![0; component.width],
        })
    }

    /// The image's row `y` of this component, upsampled where need be; `first` is the component's
    /// row at the start of the strip.
    #[inline(always)]
    fn row(&mut self, y: usize, first: usize, component: &Component, frame: &Frame) -> &[u8] {
        let width = component.width;
        // Rows outside the component are the nearest ones inside it.
        let line = |row: usize| {
            let start = (row.min(component.height - 1) + self.kept - first) * self.stride;
            &self.samples[start..start + width]
        };
        let near = line(y * component.v / frame.max_v);
        let far = || {
            let row = y / 2;
            line(if y.is_multiple_of(2) {
                row.saturating_sub(1)
            } else {
                row + 1
            })
        };
        match self.upsampling {
            Upsampling::None => return near,
            Upsampling::Wide => {
                let widened = |edge: u16, x: u16, round: u16| ((3 * x + edge + round) >> 2) as u8;
                widen(
                    near,
                    &mut self.wide,
                    |x, beside| widened(beside, x, 1),
                    |x, beside| widened(beside, x, 2),
                );
            }
            Upsampling::High => {
                let round = if y.is_multiple_of(2) { 1 } else { 2 };
                for ((out, &near), &far) in self.wide.iter_mut().zip(near).zip(far()) {
                    *out = ((3 * u16::from(near) + u16::from(far) + round) >> 2) as u8;
                }
            }
            Upsampling::WideAndHigh => {
                for ((sum, &near), &far) in self.sums.iter_mut().zip(near).zip(far()) {
                    *sum = 3 * u16::from(near) + u16::from(far);
                }
                let widened = |edge: u16, x: u16, round: u16| ((3 * x + edge + round) >> 4) as u8;
                widen(
                    &self.sums,
                    &mut self.wide,
                    |x, beside| widened(beside, x, 8),
                    |x, beside| widened(beside, x, 7),
                );
            }
            Upsampling::Repeated(across) => {
                for (out, &sample) in self.wide.chunks_exact_mut(across).zip(near) {
                    out.fill(sample);
                }
            }
        }
        &self.wide
    }
}

/// Doubles a row's width: each value gives two samples, from itself and its left, then from itself
/// and its right neighbour; at the ends the value stands in for the missing one.
#[inline(always)]
fn widen<T: Copy + Into<u16>>(
    row: &[T],
    out: &mut [u8],
    left: impl Fn(u16, u16) -> u8,
    right: impl Fn(u16, u16) -> u8,
) {
    let (&[first, second, ..], &[.., before, last]) = (row, row) else {
        return;
    };
    let length = out.len();
    out[0] = left(first.into(), first.into());
    out[1] = right(first.into(), second.into());
    // In slices of one length, which the compiler can vectorise.
    let inner = &mut out[2..length - 2].as_chunks_mut().0[..row.len() - 2];
    let (befores, afters) = (&row[..inner.len()], &row[2..2 + inner.len()]);
    let row = &row[1..1 + inner.len()];
    for (i, out) in inner.iter_mut().enumerate() {
        let x = row[i].into();
        *out = [left(x, befores[i].into()), right(x, afters[i].into())];
    }
    out[length - 2] = left(last.into(), before.into());
    out[length - 1] = right(last.into(), last.into());
}

/// The samples of the current strip, and which rows of the picture were made of them and of those before.
pub(super) struct Output<'a> {
    frame: &'a Frame,
    colours: Colours,
    planes: Vec<Plane>,
    /// Whether the last rows of a strip wait for the next strip.
    has_context: bool,
    rows: &'a mut dyn Rows,
    /// Strips begun.
    strips: usize,
    /// Rows done.
    done: usize,
}

impl<'a> Output<'a> {
    pub fn new(frame: &'a Frame, colours: Colours, rows: &'a mut dyn Rows) -> Result<Self> {
        let planes = frame
            .components
            .iter()
            .map(|component| Plane::new(component, frame))
            .collect::<Result<Vec<_>>>()?;
        Ok(Output {
            frame,
            colours,
            has_context: planes.iter().any(|plane| plane.upsampling.has_context()),
            planes,
            rows,
            strips: 0,
            done: 0,
        })
    }

    /// Prepares for the next strip: the last rows of this one move before the first.
    pub fn advance(&mut self) {
        self.strips += 1;
        for plane in &mut self.planes {
            plane.samples.copy_within(plane.rows * plane.stride.., 0);
        }
    }

    /// Where a block's samples go, and how far apart their rows are.
    #[inline(always)]
    pub fn block(&mut self, place: Place) -> (&mut [u8], usize) {
        let plane = &mut self.planes[place.component];
        let start = (plane.kept + 8 * place.row) * plane.stride + 8 * place.column;
        (&mut plane.samples[start..], plane.stride)
    }

    /// Makes pixels of all rows for which the samples are there now that a strip is complete.
    pub fn emit(&mut self) {
        let until = if self.strips == self.frame.strips {
            self.frame.height
        } else {
            self.strips * 8 * self.frame.max_v - if self.has_context { self.frame.max_v } else { 0 }
        };
        for y in self.done..until {
            if let Some(row) = self.rows.slot(y) {
                level::run(Emission {
                    frame: self.frame,
                    colours: self.colours,
                    planes: &mut self.planes,
                    strip: self.strips - 1,
                    y,
                    row,
                });
                self.rows.done(y);
            }
        }
        self.done = until;
    }

    /// Ends the picture. Rows that are missing because the data ended repeat the last one that is not.
    pub fn finish(mut self) -> Result<()> {
        if self.done == 0 {
            return Err(Error::Image(
                "JPEG: the data ends before the first row of blocks".into(),
            ));
        }
        if self.done == self.frame.height {
            return Ok(());
        }
        // Its samples are still there: those that a strip needs of the one before.
        let mut last = vec![0; 3 * self.frame.width];
        level::run(Emission {
            frame: self.frame,
            colours: self.colours,
            planes: &mut self.planes,
            strip: self.strips - 1,
            y: self.done - 1,
            row: &mut last,
        });
        for y in self.done..self.frame.height {
            if let Some(row) = self.rows.slot(y) {
                row.copy_from_slice(&last);
                self.rows.done(y);
            }
        }
        Ok(())
    }
}

/// The pixels of one row.
struct Emission<'a> {
    frame: &'a Frame,
    colours: Colours,
    planes: &'a mut [Plane],
    strip: usize,
    y: usize,
    row: &'a mut [u8],
}

impl Task for Emission<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, level: impl Level) {
        let mut rows: [&[u8]; 4] = [&[]; 4];
        for ((row, plane), component) in rows.iter_mut().zip(self.planes).zip(&self.frame.components) {
            *row = plane.row(self.y, self.strip * component.v * 8, component, self.frame);
        }
        let out = self.row.as_chunks_mut().0;
        let [a, b, c, d] = rows;
        match self.colours {
            Colours::Grey | Colours::GreyOfTwo => {
                for (pixel, &grey) in out.iter_mut().zip(a) {
                    *pixel = [grey; 3];
                }
            }
            Colours::Rgb | Colours::RgbOfFour => {
                for (i, pixel) in out.iter_mut().enumerate() {
                    *pixel = [a[i], b[i], c[i]];
                }
            }
            Colours::YCbCr => level.rgb_row([a, b, c], out),
            Colours::Cmyk => {
                for (i, pixel) in out.iter_mut().enumerate() {
                    *pixel = [a[i], b[i], c[i]].map(|ink| colour::printed(ink, d[i]));
                }
            }
            Colours::Ycck => {
                for (i, pixel) in out.iter_mut().enumerate() {
                    *pixel = colour::rgb(a[i], b[i], c[i]).map(|light| colour::printed(255 - light, d[i]));
                }
            }
            Colours::Inks => {
                for (i, pixel) in out.iter_mut().enumerate() {
                    *pixel = [a[i], b[i], c[i]].map(|ink| tiff::printed(ink, d[i]));
                }
            }
            Colours::RgbTimesAlpha => {
                for (i, pixel) in out.iter_mut().enumerate() {
                    *pixel = [a[i], b[i], c[i]].map(|colour| tiff::multiplied(colour, d[i]));
                }
            }
        }
    }
}
