//! From samples to RGB, by the rules of libtiff's conversion to RGBA, of which OpenCV drops the alpha.

use super::directory::{DEFAULT_SUBSAMPLING, Directory, photometric};
use super::error;
use crate::Result;

/// What samples mean.
pub(super) enum Colours {
    /// An index of this many bits into a table, 8 at most. Of 16 bits the upper 8 count.
    Table { bits: u16, table: Vec<[u8; 3]> },
    /// Grey of 8 or 16 bits in a plane of its own. libtiff does not invert it and rounds 16 bits, unlike
    /// elsewhere.
    Grey { wide: bool, alpha: bool },
    /// 8 or 16 bits, multiplied with an alpha or not.
    Rgb { wide: bool, alpha: bool },
    /// Cyan, magenta, yellow and black of 8 bits.
    Inks,
    /// Y, Cb and Cr of 8 bits, where a block of pixels shares one Cb and one Cr.
    YCbCr {
        conversion: Box<Conversion>,
        across: usize,
        down: usize,
    },
}

/// [`Directory::first_extra`] of an alpha that the colours have not been multiplied with.
const UNASSOCIATED_ALPHA: u64 = 2;

impl Colours {
    /// What the samples of a file mean, or an error where OpenCV reads no such file, or reads it wrongly.
    pub fn of(directory: &Directory) -> Result<Self> {
        let Directory {
            bits,
            samples,
            planar,
            photometric,
            ..
        } = *directory;
        let refused = |what: &str| {
            let layout = if planar { "planes" } else { "pixels" };
            error(format_args!(
                "{layout} of {samples} samples of {bits} bits with photometric interpretation {photometric}, {what}"
            ))
        };
        if !matches!(bits, 1 | 8 | 16) {
            return Err(refused("expected 1, 8 or 16 bits"));
        }
        let wide = bits == 16;
        let alpha = directory.extra_samples > 0 && directory.first_extra == UNASSOCIATED_ALPHA;
        match photometric {
            photometric::WHITE_IS_ZERO | photometric::BLACK_IS_ZERO if planar && bits >= 8 => {
                Ok(Colours::Grey { wide, alpha })
            }
            photometric::WHITE_IS_ZERO | photometric::BLACK_IS_ZERO
                if !planar && (bits >= 8 || samples == 1) =>
            {
                let most = (1 << bits.min(8)) - 1;
                let grey = |index: u32| {
                    let light = if photometric == photometric::WHITE_IS_ZERO {
                        most - index
                    } else {
                        index
                    };
                    [(light * 255 / most) as u8; 3]
                };
                let table = (0..=most).map(grey).collect();
                Ok(Colours::Table { bits, table })
            }
            photometric::PALETTE if !planar && (bits == 8 || samples == 1 && bits < 8) => {
                Ok(Colours::Table {
                    bits,
                    table: palette(directory)
                        .ok_or_else(|| refused("a palette of other values than colours"))?,
                })
            }
            photometric::RGB if bits >= 8 && samples >= 3 + directory.extra_samples => Ok(Colours::Rgb {
                wide,
                alpha: alpha && samples == 4,
            }),
            photometric::SEPARATED if bits == 8 && samples == 4 => {
                if directory.ink_set != 1 {
                    return Err(error(format_args!(
                        "inks of set {}, expected 1 (CMYK)",
                        directory.ink_set
                    )));
                }
                Ok(Colours::Inks)
            }
            photometric::YCBCR if bits == 8 && samples == 3 => {
                let [across, down] = directory.subsampling.unwrap_or(DEFAULT_SUBSAMPLING);
                let blocks = match (across, down) {
                    (1, 1) => true,
                    (2 | 4, 1) | (1 | 2 | 4, 2) | (4, 4) => !planar,
                    _ => false,
                };
                if !blocks {
                    return Err(error(format_args!(
                        "YCbCr of {across} x {down} pixels a block{}",
                        if planar { " in planes" } else { "" }
                    )));
                }
                Ok(Colours::YCbCr {
                    conversion: Conversion::new(directory)?,
                    across: across as usize,
                    down: down as usize,
                })
            }
            photometric::LAB => Err(refused("which is CIE L*a*b*: not supported")),
            _ => Err(refused("not supported")),
        }
    }

    /// How many planes are needed of those of a file.
    pub fn planes(&self) -> &'static [usize] {
        match self {
            Colours::Table { .. } | Colours::Grey { alpha: false, .. } => &[0],
            Colours::Grey { alpha: true, .. } => &[0, 1],
            Colours::Rgb { alpha: true, .. } | Colours::Inks => &[0, 1, 2, 3],
            Colours::Rgb { .. } | Colours::YCbCr { .. } => &[0, 1, 2],
        }
    }

    /// Converts a row. `samples` are the bytes from the row's first sample on of each kind, `step` those
    /// from one to the next of its kind; of blocks, those of the row of blocks, and `line` is the row in it.
    pub fn convert(&self, samples: [&[u8]; 4], step: usize, line: usize, out: &mut [[u8; 3]]) {
        let [first, second, third, fourth] = samples;
        // A sample of 8 bits, or one of 16 rounded to 8.
        let narrow = |plane: &[u8], x: usize| rounded(plane[x * step], plane[x * step + 1]);
        match self {
            Colours::Table { bits: 16, table } => {
                for (x, pixel) in out.iter_mut().enumerate() {
                    *pixel = table[usize::from(first[x * step + 1])];
                }
            }
            Colours::Table { bits: 8, table } => {
                for (x, pixel) in out.iter_mut().enumerate() {
                    *pixel = table[usize::from(first[x * step])];
                }
            }
            Colours::Table { bits, table } => {
                let bits = usize::from(*bits);
                for (x, pixel) in out.iter_mut().enumerate() {
                    let byte = usize::from(first[x * bits / 8]);
                    *pixel = table[byte >> (8 - bits - x * bits % 8) & (table.len() - 1)];
                }
            }
            Colours::Grey { wide, alpha } => {
                for (x, pixel) in out.iter_mut().enumerate() {
                    let sample = |plane: &[u8]| if *wide { narrow(plane, x) } else { plane[x * step] };
                    let grey = sample(first);
                    let grey = if *alpha {
                        multiplied(grey, sample(second))
                    } else {
                        grey
                    };
                    *pixel = [grey; 3];
                }
            }
            Colours::Rgb { wide: false, alpha } => {
                for (x, pixel) in out.iter_mut().enumerate() {
                    let at = x * step;
                    *pixel = [first[at], second[at], third[at]];
                    if *alpha {
                        *pixel = pixel.map(|colour| multiplied(colour, fourth[at]));
                    }
                }
            }
            Colours::Rgb { wide: true, alpha } => {
                for (x, pixel) in out.iter_mut().enumerate() {
                    *pixel = [first, second, third].map(|plane| narrow(plane, x));
                    if *alpha {
                        *pixel = pixel.map(|colour| multiplied(colour, narrow(fourth, x)));
                    }
                }
            }
            Colours::Inks => {
                for (x, pixel) in out.iter_mut().enumerate() {
                    let at = x * step;
                    *pixel = [first, second, third].map(|plane| printed(plane[at], fourth[at]));
                }
            }
            Colours::YCbCr {
                conversion,
                across: 1,
                down: 1,
            } => {
                for (x, pixel) in out.iter_mut().enumerate() {
                    let at = x * step;
                    *pixel = conversion.rgb(first[at], second[at], third[at]);
                }
            }
            Colours::YCbCr {
                conversion,
                across,
                down,
            } => {
                let size = across * down;
                for (block, pixels) in first.chunks_exact(size + 2).zip(out.chunks_mut(*across)) {
                    for (pixel, &y) in pixels.iter_mut().zip(&block[line * across..]) {
                        *pixel = conversion.rgb(y, block[size], block[size + 1]);
                    }
                }
            }
        }
    }
}

/// The colours of a palette; those of 16 bits are cut. Where none has more than 8 bits, they are of 8.
fn palette(directory: &Directory) -> Option<Vec<[u8; 3]>> {
    let map = directory.colour_map?;
    let count = 1 << directory.bits;
    let colour = |index| {
        let part = |part: usize| u16::try_from(map.get(part * count + index)?).ok();
        Some([part(0)?, part(1)?, part(2)?])
    };
    let colours: Vec<[u16; 3]> = (0..count).map(colour).collect::<Option<_>>()?;
    let shift = if colours.as_flattened().iter().any(|&part| part > 255) {
        8
    } else {
        0
    };
    let narrow = |colour: &[u16; 3]| colour.map(|part| (part >> shift) as u8);
    Some(colours.iter().map(narrow).collect())
}

/// A sample of 16 bits, rounded to 8.
fn rounded(low: u8, high: u8) -> u8 {
    ((u32::from(u16::from_le_bytes([low, high])) + 128) / 257) as u8
}

/// A colour multiplied with an alpha, rounded.
pub(in crate::image) fn multiplied(colour: u8, alpha: u8) -> u8 {
    ((u32::from(colour) * u32::from(alpha) + 127) / 255) as u8
}

/// The light that an ink and black let through together.
pub(in crate::image) fn printed(ink: u8, black: u8) -> u8 {
    ((255 - u32::from(black)) * (255 - u32::from(ink)) / 255) as u8
}

/// From Y, Cb and Cr to RGB, in fixed point with 16 fraction bits.
pub(super) struct Conversion {
    /// Light by Y.
    light: [i32; 256],
    red_by_cr: [i32; 256],
    blue_by_cb: [i32; 256],
    /// With fraction bits.
    green_by_cr: [i32; 256],
    green_by_cb: [i32; 256],
}

impl Conversion {
    /// From the coefficients and the reference values of black and white, computed in single precision.
    fn new(directory: &Directory) -> Result<Box<Self>> {
        const HALF: i32 = 1 << 15;
        let (coefficients, reference) = (directory.coefficients, directory.reference);
        let [red, green, blue] = coefficients;
        if coefficients.iter().any(|part| part.is_nan()) || green == 0.0 {
            return Err(error(format_args!("YCbCr coefficients {coefficients:?}")));
        }
        // libtiff's range. Not-a-number is outside of it.
        let most = i32::MAX as f32;
        let in_range = |&value: &f32| value > (128 - i32::MAX) as f32 && value < most;
        if !reference.iter().all(in_range) {
            return Err(error(format_args!("reference black and white {reference:?}")));
        }
        let fixed = |factor: f32| (f64::from(factor.clamp(0.0, 2.0) * 65536.0) + 0.5) as i32;
        let (by_cr, by_cb) = (2.0 - 2.0 * red, 2.0 - 2.0 * blue);
        let factors = [by_cr, red * by_cr / green, by_cb, blue * by_cb / green].map(fixed);

        let value = |code: i32, black: f32, white: f32, range: f32| {
            let span = if white - black == 0.0 { 1.0 } else { white - black };
            let value = code.wrapping_sub(black as i32) as f32 * range / span;
            value.clamp(-128.0 * 32.0, 128.0 * 32.0) as i32
        };
        let mut conversion = Box::new(Self {
            light: [0; 256],
            red_by_cr: [0; 256],
            blue_by_cb: [0; 256],
            green_by_cr: [0; 256],
            green_by_cb: [0; 256],
        });
        for index in 0..256 {
            let code = index as i32;
            let chroma = |black: f32, white: f32| value(code - 128, black - 128.0, white - 128.0, 127.0);
            let (cb, cr) = (
                chroma(reference[2], reference[3]),
                chroma(reference[4], reference[5]),
            );
            conversion.light[index] = value(code, reference[0], reference[1], 255.0);
            conversion.red_by_cr[index] = (factors[0] * cr + HALF) >> 16;
            conversion.blue_by_cb[index] = (factors[2] * cb + HALF) >> 16;
            conversion.green_by_cr[index] = -factors[1] * cr;
            conversion.green_by_cb[index] = -factors[3] * cb + HALF;
        }
        Ok(conversion)
    }

    fn rgb(&self, y: u8, cb: u8, cr: u8) -> [u8; 3] {
        let [y, cb, cr] = [y, cb, cr].map(usize::from);
        let light = self.light[y];
        [
            light + self.red_by_cr[cr],
            light + ((self.green_by_cb[cb] + self.green_by_cr[cr]) >> 16),
            light + self.blue_by_cb[cb],
        ]
        .map(|light| light.clamp(0, 255) as u8)
    }
}
