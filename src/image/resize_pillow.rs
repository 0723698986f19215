//! Bicubic resizing with antialiasing, level for level as Pillow resizes 8-bit pixels with `BICUBIC`.
//!
//! A target position averages the source around it with Keys' cubic of a = -1/2, stretched by the scale where the image
//! gets smaller. Weights add up to 1 before they are rounded to 22 bits after the point. The columns come first, then the
//! rows, and in between levels are whole numbers again. A side that keeps its length is left alone.

use super::Pixels;
use super::orientation::Orientation;

/// Bits after the point of a weight: a level, a sign and a sum over 1 fit the others.
const PRECISION: u32 = 32 - 8 - 2;
/// The cubic is 0 from here on.
const SUPPORT: f64 = 2.0;

/// The `width` x `height` pixels from `at` of `src` resized to `full` (both as x, y).
///
/// Nothing outside of the window is computed. The window lies within `full`.
pub(super) fn resize_window_cubic(
    src: &Pixels,
    full: (u64, u64),
    at: (u64, u64),
    width: u32,
    height: u32,
) -> Pixels {
    let mut window = WindowCubic::new((src.width, src.height), full, at, width, height, None);
    let stride = 3 * src.width as usize;
    for y in window.needed() {
        window.row(y, &src.data[y * stride..][..stride]);
    }
    window.finish()
}

/// A window of a resized image, made from rows of the source as they come.
///
/// Only sums for positions that are under way are kept. They are sums of whole numbers, whose order does not
/// matter, so the rows of an image that lies on its side may come in the order of the file.
#[derive(Debug, Clone)]
pub(super) struct WindowCubic {
    /// Along a row of the source and from row to row.
    across: Vec<Taps>,
    down: Vec<Taps>,
    /// Whether rows of the source are columns of the window.
    transposed: bool,
    /// The columns of the source that are needed, its bytes.
    used: std::ops::Range<usize>,
    /// Of each position from row to row the sums under way: of a row of the window, or, where rows become
    /// columns, of a column of the window before its resizing in the other direction.
    sums: Vec<Vec<i32>>,
    /// Sums to be used again.
    spare: Vec<Vec<i32>>,
    /// A row after the pass along it.
    line: Vec<u8>,
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl WindowCubic {
    /// `size` is that of the upright source, the rows come before `orientation` is applied.
    pub fn new(
        size: (u32, u32),
        full: (u64, u64),
        at: (u64, u64),
        width: u32,
        height: u32,
        orientation: Option<Orientation>,
    ) -> Self {
        let [transposed, mirror, flip] = orientation.map_or([false; 3], Orientation::steps);
        let mirrored = |taps: Vec<Taps>, side: u32, mirror: bool| match mirror {
            true => taps.into_iter().map(|taps| taps.mirrored(side)).collect(),
            false => taps,
        };
        let columns = mirrored(taps(size.0, full.0, at.0, width), size.0, mirror);
        let rows = mirrored(taps(size.1, full.1, at.1, height), size.1, flip);
        let (across, down) = if transposed {
            (rows, columns)
        } else {
            (columns, rows)
        };
        let used = reach(&across);
        Self {
            sums: vec![Vec::new(); down.len()],
            spare: Vec::new(),
            line: Vec::new(),
            used: 3 * used.start..3 * used.end,
            across,
            down,
            transposed,
            width,
            height,
            data: vec![0; 3 * width as usize * height as usize],
        }
    }

    /// The rows that have to be handed over.
    pub fn needed(&self) -> std::ops::Range<usize> {
        reach(&self.down)
    }

    /// Takes the row `y` of the source; each row comes once, and after those above it.
    pub fn row(&mut self, y: usize, row: &[u8]) {
        let line = if self.transposed {
            &row[self.used.clone()]
        } else {
            self.line.clear();
            self.line.extend(along(&self.across, row).flatten());
            &self.line[..]
        };
        for (at, taps) in self.down.iter().enumerate() {
            let Some(&weight) = y.checked_sub(taps.first).and_then(|at| taps.weights.get(at)) else {
                continue;
            };
            let sums = &mut self.sums[at];
            if sums.is_empty() {
                *sums = self.spare.pop().unwrap_or_default();
                sums.clear();
                sums.resize(line.len(), HALF);
            }
            for (sum, &level) in sums.iter_mut().zip(line) {
                *sum += i32::from(level) * weight;
            }
            if y + 1 < taps.first + taps.weights.len() {
                continue;
            }
            let sums = std::mem::take(sums);
            let levels = sums.iter().map(|&sum| level(sum));
            if self.transposed {
                // Positions count from the first byte that is used.
                let mut column = vec![0; self.used.end];
                for (to, level) in column[self.used.start..].iter_mut().zip(levels) {
                    *to = level;
                }
                let width = self.width as usize;
                let rows = self.data.as_chunks_mut::<3>().0.chunks_exact_mut(width);
                for (row, pixel) in rows.zip(along(&self.across, &column)) {
                    row[at] = pixel;
                }
            } else {
                let start = at * sums.len();
                for (to, level) in self.data[start..start + sums.len()].iter_mut().zip(levels) {
                    *to = level;
                }
            }
            self.spare.push(sums);
        }
    }

    /// The pixels, once all rows are there.
    pub fn finish(self) -> Pixels {
        Pixels {
            width: self.width,
            height: self.height,
            data: self.data,
        }
    }
}

/// The source positions that are needed.
fn reach(taps: &[Taps]) -> std::ops::Range<usize> {
    let first = taps.iter().map(|taps| taps.first).min().unwrap_or(0);
    let end = taps.iter().map(|taps| taps.first + taps.weights.len()).max();
    first..end.unwrap_or(first)
}

/// The pixels that a row becomes.
fn along(columns: &[Taps], row: &[u8]) -> impl Iterator<Item = [u8; 3]> {
    columns.iter().map(move |column| {
        let mut sums = [HALF; 3];
        let pixels = row[3 * column.first..].as_chunks::<3>().0;
        for (pixel, &weight) in pixels.iter().zip(&column.weights) {
            for (sum, &level) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(level) * weight;
            }
        }
        sums.map(level)
    })
}

/// Half a level, for rounding.
const HALF: i32 = 1 << (PRECISION - 1);

fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// What a target position is made from.
#[derive(Debug, Clone)]
struct Taps {
    /// The first source position.
    first: usize,
    /// Of it and those after it.
    weights: Vec<i32>,
}

impl Taps {
    /// The same, counted from the other end of a side.
    fn mirrored(mut self, side: u32) -> Self {
        self.weights.reverse();
        Self {
            first: side as usize - self.first - self.weights.len(),
            weights: self.weights,
        }
    }
}

/// Those of `count` target positions from `from` on, of a side that grows or shrinks from `src` to `dst`.
fn taps(src: u32, dst: u64, from: u64, count: u32) -> Vec<Taps> {
    let positions = from..from + u64::from(count);
    if u64::from(src) == dst {
        let one = |position| Taps {
            first: position as usize,
            weights: vec![1 << PRECISION],
        };
        return positions.map(one).collect();
    }
    let scale = f64::from(src) / dst as f64;
    let stretch = scale.max(1.0);
    let support = SUPPORT * stretch;
    let taps = |position: u64| {
        let centre = (position as f64 + 0.5) * scale;
        // Casts cut what is below 0 off.
        let first = (centre - support + 0.5) as u32;
        let end = ((centre + support + 0.5) as u32).min(src);
        let weights: Vec<f64> = (0..end - first)
            .map(|at| cubic((f64::from(at) + f64::from(first) - centre + 0.5) * (1.0 / stretch)))
            .collect();
        let sum: f64 = weights.iter().sum();
        let rounded = |weight: &f64| {
            let weight = if sum == 0.0 { *weight } else { weight / sum };
            (weight * f64::from(1 << PRECISION) + 0.5f64.copysign(weight)) as i32
        };
        Taps {
            first: first as usize,
            weights: weights.iter().map(rounded).collect(),
        }
    };
    positions.map(taps).collect()
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < SUPPORT {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
