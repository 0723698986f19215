//! Bicubic resizing with antialiasing, level for level as Pillow resizes 8-bit pixels with `BICUBIC`.
//!
//! A target position averages the source around it with Keys' cubic of a = -1/2, stretched by the scale where the image
//! gets smaller. Weights add up to 1 before they are rounded to 22 bits after the point. The columns come first, then the
//! rows, and in between levels are whole numbers again. A side that keeps its length is left alone.

use super::Pixels;

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
    let columns = taps(src.width, full.0, at.0, width);
    let rows = taps(src.height, full.1, at.1, height);
    // The source rows that the window is made from.
    let first = rows.iter().map(|row| row.first).min().unwrap_or(0);
    let end = rows.iter().map(|row| row.first + row.weights.len()).max();
    let (stride, width_bytes) = (3 * src.width as usize, 3 * width as usize);
    let used = &src.data[first * stride..end.unwrap_or(first) * stride];
    let mut narrow = Vec::with_capacity(used.len() / stride * width_bytes);
    for row in used.chunks_exact(stride) {
        for column in &columns {
            let mut sums = [HALF; 3];
            let pixels = row[3 * column.first..].as_chunks::<3>().0;
            for (pixel, &weight) in pixels.iter().zip(&column.weights) {
                for (sum, &level) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(level) * weight;
                }
            }
            narrow.extend(sums.map(level));
        }
    }
    let mut data = Vec::with_capacity(height as usize * width_bytes);
    let mut sums = vec![0; width_bytes];
    for row in &rows {
        sums.fill(HALF);
        let lines = narrow[(row.first - first) * width_bytes..].chunks_exact(width_bytes);
        for (line, &weight) in lines.zip(&row.weights) {
            for (sum, &level) in sums.iter_mut().zip(line) {
                *sum += i32::from(level) * weight;
            }
        }
        data.extend(sums.iter().map(|&sum| level(sum)));
    }
    Pixels { width, height, data }
}

/// Half a level, for rounding.
const HALF: i32 = 1 << (PRECISION - 1);

fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// What a target position is made from.
struct Taps {
    /// The first source position.
    first: usize,
    /// Of it and those after it.
    weights: Vec<i32>,
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
