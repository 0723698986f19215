//! Convolutions over images that are stored pixel by pixel, the channels of a pixel beside one another.
//!
//! A convolution of one pixel is a product ([`linear`](super::linear)). Here are the two others that an
//! EfficientNet has: the depthwise one, together with the product before it, whose result so never leaves the
//! cache, and with the mean of its own result, which squeeze-and-excitation asks for; and the first one, over
//! the three planes of an image.

use std::cell::RefCell;

use super::buffer::Buffer;
use super::math;
use super::matmul::{Activation, Linear, Product, Rows, RowsMut, product};
use super::parallel::{Shared, for_each};
use super::simd::{Simd, dispatch};

/// The size of an image, or of what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Map {
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Map {
    pub(crate) fn square(size: usize) -> Self {
        Self {
            height: size,
            width: size,
        }
    }

    pub(crate) fn pixels(self) -> usize {
        self.height * self.width
    }

    /// What a convolution makes of it, and the rows above and the columns before it that count as zeros: as
    /// many on both sides together as the last position of the kernel needs, the odd one behind, as in
    /// TensorFlow.
    pub(crate) fn convolved(self, kernel: usize, stride: usize) -> (Self, [usize; 2]) {
        let out = Self {
            height: self.height.div_ceil(stride),
            width: self.width.div_ceil(stride),
        };
        let before = |size: usize, out: usize| ((out - 1) * stride + kernel).saturating_sub(size) / 2;
        (
            out,
            [before(self.height, out.height), before(self.width, out.width)],
        )
    }
}

/// A depthwise convolution: each channel has a kernel of its own. A swish follows.
#[derive(Clone)]
pub(crate) struct Depthwise {
    kernel: usize,
    stride: usize,
    channels: usize,
    /// [kernel * kernel, channels], rows `row` apart.
    weight: Buffer,
    bias: Buffer,
    row: usize,
}

/// Pixels of a strip's result without an expansion: enough for a task.
const STRIP_PIXELS: usize = 1 << 12;
/// Floats of an expanded strip: half a megabyte, which stays in the second level cache.
const STRIP_FLOATS: usize = 1 << 17;

thread_local! {
    /// What a thread expands a strip to.
    static EXPANDED: RefCell<Buffer> = RefCell::default();
}

impl Depthwise {
    /// From weights [channels, kernel, kernel].
    ///
    /// # Panics
    /// Where `weight` has another length, and where the kernel is neither 3 nor 5 or the stride neither 1 nor
    /// 2.
    pub(crate) fn new(kernel: usize, stride: usize, weight: &[f32], bias: &[f32]) -> Self {
        let (channels, taps) = (bias.len(), kernel * kernel);
        assert!(matches!((kernel, stride), (3 | 5, 1 | 2)), "kernel and stride");
        assert_eq!(
            weight.len(),
            channels * taps,
            "weights of a depthwise convolution"
        );
        // Whole registers may be read at the last channels.
        let row = channels.next_multiple_of(16);
        let mut packed = Buffer::zeros(taps * row);
        for (channel, weight) in weight.chunks_exact(taps).enumerate() {
            for (tap, &value) in weight.iter().enumerate() {
                packed[tap * row + channel] = value;
            }
        }
        let mut padded = Buffer::zeros(row);
        padded[..channels].copy_from_slice(bias);
        Self {
            kernel,
            stride,
            channels,
            weight: packed,
            bias: padded,
            row,
        }
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    /// What it makes of an image.
    pub(crate) fn map(&self, map: Map) -> Map {
        map.convolved(self.kernel, self.stride).0
    }

    /// Takes `input` [pixels, inputs] through `expansion` and a swish, if there is one, and through the
    /// convolution to `output`, and writes the mean of each channel to `mean`. `input` must have 15 floats
    /// behind its last row.
    ///
    /// The sums do not depend on the number of threads: the image is cut into the same strips always.
    ///
    /// # Panics
    /// Where the shapes do not fit.
    pub(crate) fn forward(
        &self,
        input: Rows<'_>,
        map: Map,
        expansion: Option<&Linear>,
        output: &mut RowsMut<'_>,
        mean: &mut [f32],
        parallel: bool,
    ) {
        let (out, [top, left]) = map.convolved(self.kernel, self.stride);
        let channels = self.channels;
        assert_eq!(input.rows, map.pixels(), "an image's pixels");
        assert_eq!(
            (output.rows, output.width),
            (out.pixels(), channels),
            "the result's shape"
        );
        assert_eq!(mean.len(), channels, "one mean a channel");
        let inputs = expansion.map_or(channels, |layer| layer.weight.columns());
        assert_eq!(inputs, channels, "the channels of the expansion");
        if let Some(layer) = expansion {
            assert_eq!(input.width, layer.weight.depth(), "the expansion's depth");
            assert_eq!(layer.bias.len(), channels, "one bias a channel");
        } else {
            assert_eq!(input.width, channels, "the convolution's channels");
        }
        // A task computes a panel of channels of a strip of rows.
        let (panel, most) = match expansion {
            Some(layer) => {
                let panel = layer.weight.panel();
                let rows = STRIP_FLOATS / (panel * map.width);
                (
                    panel,
                    rows.saturating_sub(self.kernel - self.stride) / self.stride,
                )
            }
            None => (32, STRIP_PIXELS / out.width),
        };
        let strips = out.height.div_ceil(most.max(1));
        let panels = channels.div_ceil(panel);
        let mut sums = vec![0.0; strips * channels];
        let (from, to) = (Shared(input.as_ptr().cast_mut()), Shared(output.as_mut_ptr()));
        let (input_stride, output_stride) = (input.stride, output.stride);
        let sums_at = Shared(sums.as_mut_ptr());
        for_each(strips * panels, parallel, |task| {
            let (strip, column) = (task / panels, task % panels * panel);
            let columns = panel.min(channels - column);
            let rows = [strip, strip + 1].map(|strip| strip * out.height / strips);
            // The rows of the input that these rows of the result are made of.
            let first = (rows[0] * self.stride).saturating_sub(top);
            let end = ((rows[1] - 1) * self.stride + self.kernel - top).min(map.height);
            // SAFETY: the shapes were checked above; each task writes channels and rows of its own.
            unsafe {
                let piece = |input: *const f32, pixel: usize| Piece {
                    kernel: self.kernel,
                    stride: self.stride,
                    input,
                    pixel,
                    first,
                    map,
                    before: [top, left],
                    weight: self.weight.as_ptr().add(column),
                    weight_row: self.row,
                    bias: self.bias.as_ptr().add(column),
                    output: to.get().add(column),
                    output_pixel: output_stride,
                    width: out.width,
                    rows,
                    columns,
                    sums: sums_at.get().add(strip * channels + column),
                };
                let input = from.get().add(first * map.width * input_stride).cast_const();
                match expansion {
                    None => depthwise(&piece(input.add(column), input_stride)),
                    Some(layer) => EXPANDED.with_borrow_mut(|expanded| {
                        let pixels = (end - first) * map.width;
                        expanded.resize(pixels * panel);
                        product(&Product {
                            input,
                            input_stride,
                            rows: pixels,
                            packed: layer.weight.panels().from(column, layer.weight.depth()),
                            depth: layer.weight.depth(),
                            columns,
                            bias: layer.bias.as_ptr().add(column),
                            output: expanded.as_mut_ptr(),
                            output_stride: panel,
                            activation: Activation::Swish,
                            accumulate: false,
                        });
                        depthwise(&piece(expanded.as_ptr(), panel));
                    }),
                }
            }
        });
        let scale = 1.0 / out.pixels() as f32;
        for (channel, mean) in mean.iter_mut().enumerate() {
            *mean = sums.iter().skip(channel).step_by(channels).sum::<f32>() * scale;
        }
    }
}

/// Some rows of some channels of a depthwise convolution.
struct Piece {
    kernel: usize,
    stride: usize,
    /// The first pixel of row `first` of the input.
    input: *const f32,
    /// Floats from a pixel of the input to the next.
    pixel: usize,
    /// From this row on the input is there: all rows that are needed and inside the image.
    first: usize,
    map: Map,
    /// Rows above the image and columns before it.
    before: [usize; 2],
    weight: *const f32,
    weight_row: usize,
    bias: *const f32,
    /// The first pixel of the whole result.
    output: *mut f32,
    output_pixel: usize,
    /// Pixels of a row of the result.
    width: usize,
    /// From which row of the result to which.
    rows: [usize; 2],
    columns: usize,
    /// Where the sum of the rows' values goes, one a channel.
    sums: *mut f32,
}

dispatch! { unsafe fn depthwise(piece: &Piece) = depthwise_with }

#[inline(always)]
unsafe fn depthwise_with<S: Simd>(piece: &Piece) {
    // SAFETY: the caller vouches for the piece.
    unsafe { piece.run::<S>() }
}

/// Pixels of a row that are computed together, each in a register, so that their sums need not wait for
/// themselves and a weight is loaded once for all.
const TOGETHER: usize = 8;

/// A register of zeros, for what lies outside.
static ZEROS: [f32; 16] = [0.0; 16];

impl Piece {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let (kernel, stride) = (self.kernel, self.stride);
        for channel in (0..self.columns).step_by(S::LANES) {
            // SAFETY: `channel` is one of the columns.
            unsafe {
                let mut sum = S::splat(0.0);
                for y in self.rows[0]..self.rows[1] {
                    let mut row = S::splat(0.0);
                    for x in (0..self.width).step_by(TOGETHER) {
                        let begin = x * stride;
                        let inside = begin >= self.before[1]
                            && begin - self.before[1] + (TOGETHER - 1) * stride + kernel <= self.map.width;
                        let some = match inside {
                            true => self.pixels::<S, false>(channel, y, x),
                            false => self.pixels::<S, true>(channel, y, x),
                        };
                        row = S::add(row, some);
                    }
                    sum = S::add(sum, row);
                }
                let some = self.columns - channel;
                match some < S::LANES {
                    true => S::store_first(self.sums.add(channel), sum, some),
                    false => S::store(self.sums.add(channel), sum),
                }
            }
        }
    }

    /// The pixels from `x` on of row `y`; returns their sum. With EDGE some of them, or of what they are made
    /// of, may lie outside.
    #[inline(always)]
    unsafe fn pixels<S: Simd, const EDGE: bool>(&self, channel: usize, y: usize, x: usize) -> S::V {
        unsafe {
            let (kernel, stride) = (self.kernel, self.stride);
            let mut sums = [S::load(self.bias.add(channel)); TOGETHER];
            for down in 0..kernel {
                let at = (y * stride + down).wrapping_sub(self.before[0]);
                if at >= self.map.height {
                    continue;
                }
                let line = self
                    .input
                    .add((at - self.first) * self.map.width * self.pixel + channel);
                let weights = self.weight.add(down * kernel * self.weight_row + channel);
                for across in 0..kernel {
                    let weight = S::load(weights.add(across * self.weight_row));
                    let begin = (x * stride + across).wrapping_sub(self.before[1]);
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let at = begin.wrapping_add(i * stride);
                        let mut value = line.wrapping_add(at.wrapping_mul(self.pixel));
                        if EDGE && at >= self.map.width {
                            value = ZEROS.as_ptr();
                        }
                        *sum = S::mul_add(S::load(value), weight, *sum);
                    }
                }
            }
            let count = match EDGE {
                true => TOGETHER.min(self.width - x),
                false => TOGETHER,
            };
            let some = self.columns - channel;
            let output = self
                .output
                .add((y * self.width + x) * self.output_pixel + channel);
            let mut total = S::splat(0.0);
            for (i, sum) in sums.iter().enumerate() {
                if EDGE && i >= count {
                    break;
                }
                let value = math::swish::<S>(*sum);
                let at = output.add(i * self.output_pixel);
                match some < S::LANES {
                    true => S::store_first(at, value, some),
                    false => S::store(at, value),
                }
                total = S::add(total, value);
            }
            total
        }
    }
}

/// A convolution of the three planes of an image, [3, height, width], with a swish behind it: `layer` has the
/// weights [3 * kernel * kernel, channels].
///
/// # Panics
/// Where the shapes do not fit.
pub(crate) fn convolve_planes(
    planes: &[f32],
    map: Map,
    kernel: usize,
    stride: usize,
    layer: &Linear,
    output: &mut RowsMut<'_>,
    parallel: bool,
) {
    /// Rows of a task.
    const STRIP: usize = 4;
    let (out, [top, left]) = map.convolved(kernel, stride);
    let depth = layer.weight.depth();
    assert_eq!(planes.len(), 3 * map.pixels(), "an image's values");
    assert_eq!(depth, 3 * kernel * kernel, "the convolution's depth");
    assert_eq!(
        (output.rows, output.width, layer.bias.len()),
        (out.pixels(), layer.weight.columns(), layer.weight.columns()),
        "the result's shape"
    );
    let (to, output_stride) = (Shared(output.as_mut_ptr()), output.stride);
    for_each(out.height.div_ceil(STRIP), parallel, |strip| {
        let rows = strip * STRIP..out.height.min((strip + 1) * STRIP);
        EXPANDED.with_borrow_mut(|patches| {
            patches.resize(rows.len() * out.width * depth);
            for (patch, values) in patches.chunks_exact_mut(depth).enumerate() {
                let (y, x) = (rows.start + patch / out.width, patch % out.width);
                for (line, values) in values.chunks_exact_mut(kernel).enumerate() {
                    let (channel, down) = (line / kernel, line % kernel);
                    let at = (y * stride + down).wrapping_sub(top);
                    for (across, value) in values.iter_mut().enumerate() {
                        let beside = (x * stride + across).wrapping_sub(left);
                        *value = match at < map.height && beside < map.width {
                            true => planes[(channel * map.height + at) * map.width + beside],
                            false => 0.0,
                        };
                    }
                }
            }
            // SAFETY: the shapes were checked above; each task writes rows of its own.
            unsafe {
                product(&Product {
                    input: patches.as_ptr(),
                    input_stride: depth,
                    rows: rows.len() * out.width,
                    packed: layer.weight.panels(),
                    depth,
                    columns: layer.weight.columns(),
                    bias: layer.bias.as_ptr(),
                    output: to.get().add(rows.start * out.width * output_stride),
                    output_stride,
                    activation: Activation::Swish,
                    accumulate: false,
                });
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// The map sizes and paddings that were recorded of B5 and L2 at their full sizes.
    #[test]
    fn maps_are_the_recorded_ones() {
        let file = include_str!("../../tests/goldens/structures/efficientnet/full_size.json");
        let recorded: Value = serde_json::from_str(file).unwrap();
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let check = |size: &Value, out: &Value, kernel: &Value, stride: usize, padding: &Value| {
            let (size, kernel) = (number(size), number(kernel));
            let (map, before) = Map::square(size).convolved(kernel, stride);
            let all = ((map.width - 1) * stride + kernel).saturating_sub(size);
            assert_eq!(map.height, number(out));
            assert_eq!(
                [number(&padding[0]), number(&padding[1])],
                [before[0], all - before[0]]
            );
            assert_eq!(before[0], before[1]);
        };
        let mut stages = 0;
        for model in ["b5", "l2"] {
            let model = &recorded[model];
            for by_size in model["by_image_size"].as_object().unwrap().values() {
                let stem = &by_size["stem"];
                let stride = number(&stem["stride"]);
                check(
                    &stem["in_size"],
                    &stem["out_size"],
                    &stem["kernel"],
                    stride,
                    &stem["pad_before_after"],
                );
                let sizes = by_size["stages"].as_array().unwrap();
                for (stage, sizes) in model["stages"].as_array().unwrap().iter().zip(sizes) {
                    let (size, out) = (&sizes["in_size"], &sizes["out_size"]);
                    let (kernel, stride) = (&stage["kernel"], number(&stage["stride"]));
                    check(size, out, kernel, stride, &sizes["pad_before_after_first"]);
                    check(out, out, kernel, 1, &sizes["pad_before_after_rest"]);
                    stages += 1;
                }
            }
        }
        assert_eq!(stages, 3 * 7);
    }
}
