//! Random changes to the pictures that a model is trained with.

use serde::{Deserialize, Serialize};

use super::{Pixels, Preprocessor};
use crate::random::Random;
use crate::{Error, Result};

/// What red, green and blue count for in a grey value (ITU-R BT.601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];
/// How many shapes of a crop are tried before the middle of the picture is taken.
const TRIES: usize = 10;
/// A blur's weights end at this many standard deviations.
const REACH: f32 = 3.0;
/// The widest blur, in pixels.
const WIDEST: f32 = 100.0;
/// So many pixels of a row are blurred at once.
const LANES: usize = 16;

/// Which random changes a picture undergoes in training, so that a model seldom sees it twice alike.
///
/// They come in this order, each with its own probability: a crop, a jitter of the colours, grey, a blur,
/// a flip. The published recipes of contrastive learning consist of these five. In a configuration file
/// every field may be left out and then is that of [`none`](Self::none).
///
/// ```
/// use ernie_vil::image::{Augmentation, Pixels};
/// let photo = Pixels::new(4, 3, (0..36).collect())?;
/// let augmentation = Augmentation { flip: 1.0, ..Augmentation::none() };
/// augmentation.validate()?;
/// let plain = Augmentation::none().apply(&photo, 3, 7);
/// let flipped = augmentation.apply(&photo, 3, 7);
/// assert_eq!(flipped.data()[..3], plain.data()[6..9]);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augmentation {
    /// A part of the picture instead of its middle.
    pub crop: Crop,
    /// Probability that left and right change places.
    pub flip: f32,
    /// Other colours.
    pub jitter: Jitter,
    /// Probability that the picture loses its colours.
    pub grey: f32,
    /// A Gaussian blur.
    pub blur: Blur,
}

/// A random part of the picture, resized to the tower's input whatever its proportions.
///
/// A shape that does not fit into the picture is drawn again. Where ten did not fit, the part is the largest
/// one in the picture's middle whose proportions lie within [`ratio`](Self::ratio).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Crop {
    /// Probability that it happens. Otherwise the picture is cropped as for a trained model.
    pub probability: f32,
    /// Least and greatest share of the picture's area, above 0 and up to 1. Drawn uniformly.
    pub area: [f32; 2],
    /// Least and greatest width over height, above 0. Its logarithm is drawn uniformly.
    pub ratio: [f32; 2],
}

/// Random changes of the colours, one after the other, in random order.
///
/// For brightness, contrast and saturation a value `b` stands for a factor drawn uniformly from
/// \[1 - b, 1 + b\]; `b` is 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jitter {
    /// Probability that it happens.
    pub probability: f32,
    /// The factor multiplies every value.
    pub brightness: f32,
    /// The factor multiplies the distance from the picture's mean grey.
    pub contrast: f32,
    /// The factor multiplies the distance from the pixel's own grey.
    pub saturation: f32,
    /// The hue moves by up to so many turns of the colour circle in either direction, 0 to 0.5. Drawn
    /// uniformly.
    pub hue: f32,
}

/// A Gaussian blur of the picture that the tower sees. Beyond an edge the edge's pixels go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Blur {
    /// Probability that it happens.
    pub probability: f32,
    /// Least and greatest standard deviation in pixels, above 0 and up to 100. Drawn uniformly.
    pub sigma: [f32; 2],
}

impl Default for Crop {
    fn default() -> Self {
        Self {
            probability: 0.0,
            area: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
        }
    }
}

impl Default for Jitter {
    fn default() -> Self {
        Self {
            probability: 0.0,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.4,
            hue: 0.1,
        }
    }
}

impl Default for Blur {
    fn default() -> Self {
        Self {
            probability: 0.0,
            sigma: [0.1, 2.0],
        }
    }
}

impl Augmentation {
    /// No change: every probability is 0. The ranges are the usual ones, so that a probability is all that
    /// needs to be set.
    pub fn none() -> Self {
        Self::default()
    }

    /// The usual recipe of contrastive learning: always a crop, a flip for every second picture, other
    /// colours for 80 %, no colours for 20 %, a blur for 50 %.
    pub fn original() -> Self {
        let mut recipe = Self::none();
        recipe.crop.probability = 1.0;
        recipe.flip = 0.5;
        recipe.jitter.probability = 0.8;
        recipe.grey = 0.2;
        recipe.blur.probability = 0.5;
        recipe
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] with the first field out of its range, its value and what was expected.
    pub fn validate(&self) -> Result<()> {
        let Self {
            crop,
            flip,
            jitter,
            grey,
            blur,
        } = self;
        for (field, value, most) in [
            ("crop.probability", crop.probability, 1.0),
            ("flip", *flip, 1.0),
            ("jitter.probability", jitter.probability, 1.0),
            ("jitter.brightness", jitter.brightness, 1.0),
            ("jitter.contrast", jitter.contrast, 1.0),
            ("jitter.saturation", jitter.saturation, 1.0),
            ("jitter.hue", jitter.hue, 0.5),
            ("grey", *grey, 1.0),
            ("blur.probability", blur.probability, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(Error::Config(format!("{field} is {value}, expected 0 to {most}")));
            }
        }
        for (field, [low, high], most) in [
            ("crop.area", crop.area, 1.0),
            ("crop.ratio", crop.ratio, f32::MAX),
            ("blur.sigma", blur.sigma, WIDEST),
        ] {
            if !(low > 0.0 && low <= high && high <= most) {
                let most = if most == f32::MAX {
                    "finite".into()
                } else {
                    format!("at most {most}")
                };
                return Err(Error::Config(format!(
                    "{field} is [{low}, {high}], expected a number above 0 and one not below it, both {most}"
                )));
            }
        }
        Ok(())
    }

    /// The picture that the tower sees: `size` x `size` pixels.
    ///
    /// Without a crop, it is what [`Preprocessor::crop`] gives. The seed determines every choice. Each
    /// change makes its own, so that switching one off leaves the others as they were.
    ///
    /// # Panics
    /// Where [`validate`](Self::validate) fails, and where [`Preprocessor::new`] refuses the size.
    pub fn apply(&self, pixels: &Pixels, size: usize, seed: u64) -> Pixels {
        self.apply_for(pixels, &Preprocessor::new(size), seed)
    }

    /// As [`apply`](Self::apply), with the size and the resizing of a preprocessor.
    ///
    /// # Panics
    /// Where [`validate`](Self::validate) fails.
    pub fn apply_for(&self, pixels: &Pixels, preprocessor: &Preprocessor, seed: u64) -> Pixels {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let mut seeds = Random::new(seed);
        let [mut crop, mut jitter, mut grey, mut blur, mut flip] =
            std::array::from_fn(|_| Random::new(seeds.bits()));

        let mut seen = if crop.chance(self.crop.probability) {
            let part = self.crop.part(pixels.width, pixels.height, &mut crop);
            preprocessor.square(&part.of(pixels))
        } else {
            preprocessor.crop(pixels)
        };
        let jittered = jitter.chance(self.jitter.probability);
        let greyed = grey.chance(self.grey);
        let blurred = blur.chance(self.blur.probability);
        if jittered || greyed || blurred {
            let mut planes = Planes::new(&seen);
            if jittered {
                self.jitter.apply(&mut planes, &mut jitter);
            }
            if greyed {
                planes.saturation(0.0);
            }
            if blurred {
                planes.blur(blur.range(self.blur.sigma));
            }
            planes.store(&mut seen);
        }
        if flip.chance(self.flip) {
            for row in seen.data.chunks_exact_mut(3 * preprocessor.size()) {
                row.as_chunks_mut::<3>().0.reverse();
            }
        }
        seen
    }
}

/// A part of a picture.
#[derive(Debug, PartialEq)]
struct Part {
    x: u32,
    y: u32,
    width: u32,
    height: u32,
}

impl Part {
    fn of(&self, pixels: &Pixels) -> Pixels {
        let kept = 3 * self.width as usize;
        let mut data = Vec::with_capacity(kept * self.height as usize);
        let rows = pixels.data.chunks_exact(3 * pixels.width as usize);
        for row in rows.skip(self.y as usize).take(self.height as usize) {
            data.extend_from_slice(&row[3 * self.x as usize..][..kept]);
        }
        Pixels {
            width: self.width,
            height: self.height,
            data,
        }
    }
}

impl Crop {
    /// Chooses a part of a picture of `width` x `height` pixels.
    fn part(&self, width: u32, height: u32, random: &mut Random) -> Part {
        let (full_width, full_height) = (f64::from(width), f64::from(height));
        let logarithms = self.ratio.map(f32::ln);
        for _ in 0..TRIES {
            let area = full_width * full_height * f64::from(random.range(self.area));
            let ratio = f64::from(random.range(logarithms)).exp();
            let (part_width, part_height) = ((area * ratio).sqrt().round(), (area / ratio).sqrt().round());
            if (1.0..=full_width).contains(&part_width) && (1.0..=full_height).contains(&part_height) {
                let mut start = |full: u32, part: u32| random.below(u64::from(full - part) + 1) as u32;
                let (part_width, part_height) = (part_width as u32, part_height as u32);
                return Part {
                    x: start(width, part_width),
                    y: start(height, part_height),
                    width: part_width,
                    height: part_height,
                };
            }
        }
        let [narrowest, widest] = self.ratio.map(f64::from);
        let part_width = ((full_height * widest).round() as u32).clamp(1, width);
        let part_height = ((full_width / narrowest).round() as u32).clamp(1, height);
        Part {
            x: (width - part_width) / 2,
            y: (height - part_height) / 2,
            width: part_width,
            height: part_height,
        }
    }
}

impl Jitter {
    fn apply(&self, planes: &mut Planes, random: &mut Random) {
        let mut factor = |by: f32| random.range([1.0 - by, 1.0 + by]);
        let (brightness, contrast, saturation) = (
            factor(self.brightness),
            factor(self.contrast),
            factor(self.saturation),
        );
        let hue = random.range([-self.hue, self.hue]);

        let mut order = [0, 1, 2, 3];
        for last in (1..order.len()).rev() {
            order.swap(last, random.below(last as u64 + 1) as usize);
        }
        for change in order {
            match change {
                0 => planes.brightness(brightness),
                1 => planes.contrast(contrast),
                2 => planes.saturation(saturation),
                _ if self.hue > 0.0 => planes.hue(hue),
                _ => {}
            }
        }
    }
}

/// A square picture's red, green and blue, each by itself, as numbers of 0 to 255.
struct Planes {
    planes: [Vec<f32>; 3],
    size: usize,
}

impl Planes {
    fn new(pixels: &Pixels) -> Self {
        let values = pixels.data.as_chunks::<3>().0;
        Self {
            planes: std::array::from_fn(|channel| {
                values.iter().map(|pixel| f32::from(pixel[channel])).collect()
            }),
            size: pixels.width as usize,
        }
    }

    /// Back to bytes, each the nearest one.
    fn store(&self, pixels: &mut Pixels) {
        // From 2^23 on, an f32 has no digits after the point: adding rounds, and the number is in the low bits.
        let byte = |value: f32| (value + 8_388_608.0).to_bits() as u8;
        let [red, green, blue] = &self.planes;
        let values = red.iter().zip(green).zip(blue);
        for (pixel, ((&red, &green), &blue)) in pixels.data.as_chunks_mut::<3>().0.iter_mut().zip(values) {
            *pixel = [byte(red), byte(green), byte(blue)];
        }
    }

    fn each(&mut self, change: impl Fn([f32; 3]) -> [f32; 3]) {
        let [red, green, blue] = &mut self.planes;
        for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
            [*red, *green, *blue] = change([*red, *green, *blue]);
        }
    }

    fn brightness(&mut self, factor: f32) {
        self.each(|pixel| pixel.map(|value| clamp(factor * value)));
    }

    fn contrast(&mut self, factor: f32) {
        let grey = luma(self.planes.each_ref().map(|plane| mean(plane)));
        self.each(|pixel| pixel.map(|value| clamp(grey + factor * (value - grey))));
    }

    fn saturation(&mut self, factor: f32) {
        self.each(|pixel| {
            let grey = luma(pixel);
            pixel.map(|value| clamp(grey + factor * (value - grey)))
        });
    }

    /// Moves the hue of the HSV colour space by so many turns, -0.5 to 0.5.
    fn hue(&mut self, turns: f32) {
        let sixths = 6.0 * turns;
        // Selects instead of branches, so that it becomes vector code.
        self.each(|[red, green, blue]| {
            let value = red.max(green).max(blue);
            let chroma = value - red.min(green).min(blue);
            let inverse = if chroma > 0.0 { 1.0 / chroma } else { 0.0 };
            // Sixths of a turn from red: -1 to 5.
            let of_red = (green - blue) * inverse;
            let of_green = 2.0 + (blue - red) * inverse;
            let of_blue = 4.0 + (red - green) * inverse;
            let other = if value == green { of_green } else { of_blue };
            let hue = sixths + if value == red { of_red } else { other };
            let hue = if hue < 0.0 { hue + 6.0 } else { hue };
            let hue = if hue >= 6.0 { hue - 6.0 } else { hue };
            // A channel is full for a third of a turn, and rises and falls over a sixth.
            [5.0, 3.0, 1.0].map(|ahead| {
                let at = hue + ahead;
                let at = if at >= 6.0 { at - 6.0 } else { at };
                clamp(value - chroma * at.min(4.0 - at).clamp(0.0, 1.0))
            })
        });
    }

    fn blur(&mut self, sigma: f32) {
        let size = self.size;
        let reach = (REACH * sigma).ceil() as usize;
        let mut weights: Vec<f32> = (0..=2 * reach)
            .map(|at| (-0.5 * ((at as f32 - reach as f32) / sigma).powi(2)).exp())
            .collect();
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);

        let mut wide = vec![0.0; size + 2 * reach];
        let mut rows = vec![0.0; size * size];
        for plane in &mut self.planes {
            for (row, out) in plane.chunks_exact(size).zip(rows.chunks_exact_mut(size)) {
                wide[..reach].fill(row[0]);
                wide[reach..reach + size].copy_from_slice(row);
                wide[reach + size..].fill(row[size - 1]);
                weighted_sum(&weights, |at| &wide[at..at + size], out);
            }
            for (y, out) in plane.chunks_exact_mut(size).enumerate() {
                let row = |at: usize| {
                    let row = (y + at).saturating_sub(reach).min(size - 1);
                    &rows[row * size..(row + 1) * size]
                };
                weighted_sum(&weights, row, out);
            }
        }
    }
}

/// The sum of rows as long as `out`, each times its weight. It stays within 0 to 255.
fn weighted_sum<'a>(weights: &[f32], row: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
    let (groups, rest) = out.as_chunks_mut::<LANES>();
    let whole = LANES * groups.len();
    for (group, out) in groups.iter_mut().enumerate() {
        let mut sums = [0.0; LANES];
        for (at, &weight) in weights.iter().enumerate() {
            let values = &row(at)[LANES * group..][..LANES];
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += weight * value;
            }
        }
        *out = sums.map(clamp);
    }
    for (x, out) in rest.iter_mut().enumerate() {
        let values = weights.iter().enumerate();
        *out = clamp(values.map(|(at, &weight)| weight * row(at)[whole + x]).sum());
    }
}

fn luma(pixel: [f32; 3]) -> f32 {
    LUMA[0] * pixel[0] + LUMA[1] * pixel[1] + LUMA[2] * pixel[2]
}

fn mean(plane: &[f32]) -> f32 {
    // One sum after the other would wait for itself: eight of them are vectors.
    let (groups, rest) = plane.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for group in groups {
        for (sum, &value) in sums.iter_mut().zip(group) {
            *sum += f64::from(value);
        }
    }
    let rest = rest.iter().map(|&value| f64::from(value));
    (sums.into_iter().chain(rest).sum::<f64>() / plane.len() as f64) as f32
}

fn clamp(value: f32) -> f32 {
    value.clamp(0.0, 255.0)
}
