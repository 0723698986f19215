//! The kernels of graphics cards, in the language that CubeCL compiles for WebGPU, Vulkan, Metal and CUDA.
//!
//! All of them read and write four values at a time, so that every width is a multiple of 4. Loops over a
//! thread's own values are written out, so that they live in registers.

use cubecl::prelude::*;

use super::{Function, Keeping, Product};
use crate::kernels::Activation;

/// Threads that normalise a row.
pub const NORM_THREADS: u32 = 64;
/// Threads of a workgroup in kernels where each computes a place by itself.
pub const COPY_THREADS: u32 = 64;
/// Columns of four that a workgroup takes the mean of, each by as many threads.
pub const MEAN_COLUMNS: u32 = 16;
/// Keys that a thread of the attention takes at once.
const KEYS: u32 = 4;

/// Half-precision numbers by their bits: not all cards have the type. `bits` are below 2^16.
#[cube]
fn from_half<N: Size>(bits: Vector<u32, N>) -> Vector<f32, N> {
    let sign = (bits & Vector::new(0x8000u32)) << Vector::new(16u32);
    let magnitude = (bits & Vector::new(0x7fffu32)) << Vector::new(13u32);
    let biased = magnitude + Vector::new(112u32 << 23u32);
    // Those below 2^-14 have no leading one: 2^-14 more and less makes one.
    let small = Vector::<f32, N>::reinterpret(magnitude + Vector::new(113u32 << 23u32))
        - Vector::new(6.103_515_6e-5f32);
    let is_small = magnitude.less_than(&Vector::new(1u32 << 23u32));
    let value = select_many(is_small, small, Vector::<f32, N>::reinterpret(biased));
    Vector::<f32, N>::reinterpret(Vector::<u32, N>::reinterpret(value) | sign)
}

/// Four values of a weight.
#[cube]
fn weights<N: Size, W: Size>(word: Vector<u32, W>, #[comptime] keeping: Keeping) -> Vector<f32, N> {
    match keeping {
        Keeping::F32 => Vector::<f32, N>::reinterpret(word),
        Keeping::F16 => {
            let mut bits = Vector::<u32, N>::empty();
            #[unroll]
            for i in 0..2usize {
                let pair = word.extract(i);
                bits.insert(2 * i, pair & 0xffffu32);
                bits.insert(2 * i + 1, pair >> 16u32);
            }
            from_half::<N>(bits)
        }
        Keeping::Int8 => signed::<N>(word.extract(0usize), 24u32, 8u32),
        Keeping::Int4 => signed::<N>(word.extract(0usize), 28u32, 4u32),
    }
}

/// The four lowest groups of `32 - unused` bits, each with its sign.
#[cube]
fn signed<N: Size>(word: u32, #[comptime] unused: u32, #[comptime] step: u32) -> Vector<f32, N> {
    let mut codes = Vector::<i32, N>::empty();
    #[unroll]
    for i in 0..4usize {
        let up = comptime!(unused - step * i as u32);
        let code = i32::reinterpret(word << up) >> comptime!(unused as i32);
        codes.insert(i, code);
    }
    Vector::<f32, N>::cast_from(codes)
}

#[cube]
fn activate<N: Size>(x: Vector<f32, N>, #[comptime] activation: Activation) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    // An exponent is kept from overflowing.
    let highest = Vector::<f32, N>::new(80.0f32);
    match activation {
        Activation::None => x,
        Activation::Relu => max(x, Vector::new(0.0f32)),
        Activation::QuickGelu => x / (one + min(x * Vector::new(-1.702f32), highest).exp()),
        Activation::Swish => x / (one + min(-x, highest).exp()),
        Activation::Gelu => gelu::<N>(x),
    }
}

/// x (1 + erf(x / sqrt 2)) / 2, with the function that the processor's kernels use for erf.
#[cube]
fn gelu<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let z = clamp(
        x * Vector::new(0.707_106_77f32),
        Vector::new(-4.0f32),
        Vector::new(4.0f32),
    );
    let s = z * z;
    let mut n = Vector::<f32, N>::new(-2.726_142_3e-10f32);
    n = fma(n, s, Vector::new(2.770_681_4e-8f32));
    n = fma(n, s, Vector::new(-2.101_024e-6f32));
    n = fma(n, s, Vector::new(-5.692_506_5e-5f32));
    n = fma(n, s, Vector::new(-7.349_906_3e-4f32));
    n = fma(n, s, Vector::new(-2.954_6e-3f32));
    n = fma(n, s, Vector::new(-1.609_603_3e-2f32));
    let mut d = Vector::<f32, N>::new(-1.456_607_2e-5f32);
    d = fma(d, s, Vector::new(-2.133_740_6e-4f32));
    d = fma(d, s, Vector::new(-1.682_827e-3f32));
    d = fma(d, s, Vector::new(-7.373_329e-3f32));
    d = fma(d, s, Vector::new(-1.426_473_9e-2f32));
    let half = x * Vector::new(0.5f32);
    fma(half, n * z / d, half)
}

/// activation(x W + b), or residual + x W + b, of `columns` columns of the weight from `column` on.
///
/// A thread computes some rows of four columns; its neighbours have the next columns, so that they read a row
/// of W together and the same values of X. Where there is too little for the whole card, some threads take a
/// part of the depth each. Sizes are in fours.
#[cube(launch_unchecked)]
pub fn linear<N: Size, W: Size>(
    x: &[Vector<f32, N>],
    weight: &[Vector<u32, W>],
    scales: &[Vector<f32, N>],
    bias: &[Vector<f32, N>],
    residual: &[Vector<f32, N>],
    y: &mut [Vector<f32, N>],
    rows: u32,
    depth: u32,
    columns: u32,
    stride: u32,
    first_column: u32,
    #[comptime] product: Product,
) {
    let block = comptime!(product.rows);
    let slices = comptime!(product.slices);
    let width = comptime!(product.columns());
    let keeping = comptime!(product.keeping);
    let column = CUBE_POS_X * width + UNIT_POS_X;
    let first = CUBE_POS_Y * block;
    // Threads beyond the last row or column compute it again and leave their result.
    let at = first_column + min(column, columns - 1u32);
    let mut from = Array::<u32>::new(comptime!(block as usize));
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(block as usize));
    #[unroll]
    for i in 0..block {
        from[i as usize] = min(first + i, rows - 1u32) * depth;
        sums[i as usize] = Vector::new(0.0f32);
    }
    let share = (depth + comptime!(slices - 1u32)) / slices;
    let start = UNIT_POS_Y * share;
    let end = min(start + share, depth);
    for k in start..end {
        let mut rows_of_four = Array::<Vector<f32, N>>::new(4usize);
        if comptime!(keeping == Keeping::Int4) {
            // Two rows to a word, eight times four of them to a scale.
            let scale = scales[(k / 8u32 * stride + at) as usize];
            #[unroll]
            for pair in 0..2u32 {
                let word = weight[((2u32 * k + pair) * stride + at) as usize].extract(0usize);
                rows_of_four[(2 * pair) as usize] = scale * signed::<N>(word, 28u32, 4u32);
                rows_of_four[(2 * pair + 1) as usize] = scale * signed::<N>(word >> 16u32, 28u32, 4u32);
            }
        } else {
            #[unroll]
            for i in 0..4u32 {
                rows_of_four[i as usize] =
                    weights::<N, W>(weight[((4u32 * k + i) * stride + at) as usize], keeping);
            }
        }
        #[unroll]
        for i in 0..block {
            let values = x[(from[i as usize] + k) as usize];
            let mut sum = sums[i as usize];
            #[unroll]
            for j in 0..4usize {
                sum = fma(Vector::new(values.extract(j)), rows_of_four[j], sum);
            }
            sums[i as usize] = sum;
        }
    }
    if comptime!(slices == 1) {
        #[unroll]
        for i in 0..block {
            finish::<N>(
                sums[i as usize],
                scales,
                bias,
                residual,
                y,
                first + i,
                column,
                rows,
                columns,
                at,
                product,
            );
        }
    } else {
        let tile = comptime!((block * width) as usize);
        let mut parts = Shared::<[Vector<f32, N>]>::new_slice(comptime!((block * width * slices) as usize));
        #[unroll]
        for i in 0..block {
            parts[UNIT_POS_Y as usize * tile + (i * width + UNIT_POS_X) as usize] = sums[i as usize];
        }
        sync_cube();
        let mut i = UNIT_POS_Y;
        while i < block {
            let mut sum = Vector::<f32, N>::new(0.0f32);
            for j in 0..slices {
                sum += parts[j as usize * tile + (i * width + UNIT_POS_X) as usize];
            }
            finish::<N>(
                sum,
                scales,
                bias,
                residual,
                y,
                first + i,
                column,
                rows,
                columns,
                at,
                product,
            );
            i += slices;
        }
    }
}

/// Writes what a product has come to.
#[cube]
#[allow(clippy::too_many_arguments)]
fn finish<N: Size>(
    sum: Vector<f32, N>,
    scales: &[Vector<f32, N>],
    bias: &[Vector<f32, N>],
    residual: &[Vector<f32, N>],
    y: &mut [Vector<f32, N>],
    row: u32,
    column: u32,
    rows: u32,
    columns: u32,
    at: u32,
    #[comptime] product: Product,
) {
    if row < rows && column < columns {
        let place = (row * columns + column) as usize;
        let mut sum = sum;
        if comptime!(product.keeping == Keeping::Int8) {
            // A column has one scale.
            sum *= scales[at as usize];
        }
        if comptime!(product.has_bias) {
            sum += bias[at as usize];
        }
        let mut value = activate::<N>(sum, product.activation);
        if comptime!(product.adds) {
            value += residual[place];
        }
        y[place] = value;
    }
}

/// Each row's mean and variance taken away, then scale and shift. A workgroup takes a row.
#[cube(launch_unchecked)]
pub fn norm<N: Size>(
    x: &[Vector<f32, N>],
    scale: &[Vector<f32, N>],
    shift: &[Vector<f32, N>],
    y: &mut [Vector<f32, N>],
    width: u32,
    epsilon: f32,
) {
    let mut parts = Shared::<[f32]>::new_slice(comptime!(NORM_THREADS as usize));
    let row = CUBE_POS_X * width;
    let mut sum = Vector::<f32, N>::new(0.0f32);
    let mut i = UNIT_POS_X;
    while i < width {
        sum += x[(row + i) as usize];
        i += NORM_THREADS;
    }
    let mean = Vector::<f32, N>::new(mean_of::<N>(&mut parts, sum, width));
    sum = Vector::new(0.0f32);
    i = UNIT_POS_X;
    while i < width {
        let difference = x[(row + i) as usize] - mean;
        sum = fma(difference, difference, sum);
        i += NORM_THREADS;
    }
    let variance = mean_of::<N>(&mut parts, sum, width);
    let factor = Vector::<f32, N>::new(1.0f32 / (variance + epsilon).sqrt());
    i = UNIT_POS_X;
    while i < width {
        y[(row + i) as usize] =
            (x[(row + i) as usize] - mean) * factor * scale[i as usize] + shift[i as usize];
        i += NORM_THREADS;
    }
}

/// The mean of what all threads of the workgroup have, of `width` fours.
#[cube]
fn mean_of<N: Size>(parts: &mut Shared<[f32]>, own: Vector<f32, N>, width: u32) -> f32 {
    sync_cube();
    parts[UNIT_POS_X as usize] =
        own.extract(0usize) + own.extract(1usize) + own.extract(2usize) + own.extract(3usize);
    sync_cube();
    let mut sum = 0.0f32;
    for i in 0..NORM_THREADS {
        sum += parts[i as usize];
    }
    sum / f32::cast_from(4u32 * width)
}

/// softmax(q k^T * scale) v of each sequence and head.
///
/// A thread takes a query past all keys, four at a time, and keeps the largest score so far, the sum of the
/// exponentials and the weighted values (Milakov and Gimelshein, arXiv 1805.02867). Its neighbours read the
/// same keys. A row of `q` begins with all heads' queries; in a row of `kv` all heads' keys begin at
/// `first_key`, all heads' values follow. A sequence is its first query and how many, its first key and how
/// many. Sizes are in fours.
#[cube(launch_unchecked)]
pub fn attention<N: Size>(
    q: &[Vector<f32, N>],
    kv: &[Vector<f32, N>],
    sequences: &[Vector<u32, N>],
    y: &mut [Vector<f32, N>],
    heads: u32,
    q_stride: u32,
    kv_stride: u32,
    first_key: u32,
    scale: f32,
    #[comptime] queries: u32,
    #[comptime] query_width: u32,
    #[comptime] value_width: u32,
) {
    let sequence = sequences[CUBE_POS_Z as usize];
    let number = CUBE_POS_X * queries + UNIT_POS_X;
    if number < sequence.extract(1usize) {
        let head = CUBE_POS_Y;
        let row = sequence.extract(0usize) + number;
        let first = sequence.extract(2usize);
        let keys = sequence.extract(3usize);
        let k_column = first_key + head * query_width;
        let v_column = first_key + heads * query_width + head * value_width;
        let q_at = row * q_stride + head * query_width;
        let mut query = Array::<Vector<f32, N>>::new(comptime!(query_width as usize));
        let mut output = Array::<Vector<f32, N>>::new(comptime!(value_width as usize));
        #[unroll]
        for i in 0..query_width {
            query[i as usize] = q[(q_at + i) as usize] * Vector::new(scale);
        }
        #[unroll]
        for i in 0..value_width {
            output[i as usize] = Vector::new(0.0f32);
        }
        // Less than any score.
        let mut highest = f32::new(-3.0e38);
        let mut sum = 0.0f32;
        let mut key = 0u32;
        while key < keys {
            let mut at = Array::<u32>::new(comptime!(KEYS as usize));
            let mut scores = Array::<f32>::new(comptime!(KEYS as usize));
            let before = highest;
            #[unroll]
            for j in 0..KEYS {
                let start = (first + min(key + j, keys - 1u32)) * kv_stride;
                let mut products = Vector::<f32, N>::new(0.0f32);
                #[unroll]
                for i in 0..query_width {
                    products = fma(query[i as usize], kv[(start + k_column + i) as usize], products);
                }
                let score = products.extract(0usize)
                    + products.extract(1usize)
                    + products.extract(2usize)
                    + products.extract(3usize);
                let score = select(key + j < keys, score, -3.0e38f32);
                scores[j as usize] = score;
                highest = max(highest, score);
                at[j as usize] = start + v_column;
            }
            let factor = (before - highest).exp();
            sum *= factor;
            #[unroll]
            for j in 0..KEYS {
                let score = (scores[j as usize] - highest).exp();
                scores[j as usize] = score;
                sum += score;
            }
            #[unroll]
            for i in 0..value_width {
                let mut value = output[i as usize] * Vector::new(factor);
                #[unroll]
                for j in 0..KEYS {
                    value = fma(
                        Vector::new(scores[j as usize]),
                        kv[(at[j as usize] + i) as usize],
                        value,
                    );
                }
                output[i as usize] = value;
            }
            key += KEYS;
        }
        let share = Vector::<f32, N>::new(1.0f32 / sum);
        let y_at = (row * heads + head) * value_width;
        #[unroll]
        for i in 0..value_width {
            y[(y_at + i) as usize] = output[i as usize] * share;
        }
    }
}

/// The rows that each sequence's keys start with.
#[cube(launch_unchecked)]
pub fn first_rows<N: Size>(
    x: &[Vector<f32, N>],
    sequences: &[Vector<u32, N>],
    y: &mut [Vector<f32, N>],
    width: u32,
) {
    let column = CUBE_POS_X * COPY_THREADS + UNIT_POS_X;
    if column < width {
        let row = sequences[CUBE_POS_Y as usize].extract(2usize);
        y[(CUBE_POS_Y * width + column) as usize] = x[(row * width + column) as usize];
    }
}

/// The rows of a transformer over images: the class token's and then those of the patches, with their
/// positions.
#[cube(launch_unchecked)]
pub fn tokens<N: Size>(
    x: &[Vector<f32, N>],
    class: &[Vector<f32, N>],
    positions: &[Vector<f32, N>],
    y: &mut [Vector<f32, N>],
    tokens: u32,
    width: u32,
) {
    let column = CUBE_POS_X * COPY_THREADS + UNIT_POS_X;
    if column < width {
        let token = CUBE_POS_Y;
        let mut value = positions[(token * width + column) as usize];
        if token == 0 {
            value += class[column as usize];
        } else {
            value += x[((CUBE_POS_Z * (tokens - 1u32) + token - 1u32) * width + column) as usize];
        }
        y[((CUBE_POS_Z * tokens + token) * width + column) as usize] = value;
    }
}

/// The patches of images of planes, a row each, with zeros up to a multiple of 4.
#[cube(launch_unchecked)]
pub fn patches<N: Size>(
    pixels: &[f32],
    y: &mut [Vector<f32, N>],
    size: u32,
    width: u32,
    #[comptime] patch: u32,
) {
    let column = CUBE_POS_X * COPY_THREADS + UNIT_POS_X;
    if column < width {
        let across = size / patch;
        let (down, beside) = (CUBE_POS_Y / across * patch, CUBE_POS_Y % across * patch);
        let mut values = Vector::<f32, N>::empty();
        #[unroll]
        for i in 0..4u32 {
            let place = 4u32 * column + i;
            let plane = place / comptime!(patch * patch);
            let (y, x) = (down + place / patch % patch, beside + place % patch);
            let at = ((CUBE_POS_Z * 3u32 + min(plane, 2u32)) * size + y) * size + x;
            values.insert(i as usize, select(plane < 3u32, pixels[at as usize], 0.0f32));
        }
        let row = CUBE_POS_Z * across * across + CUBE_POS_Y;
        y[(row * width + column) as usize] = values;
    }
}

/// Crops' bytes, red, green and blue of a pixel beside one another, to planes of numbers; `table` says what a
/// byte of each of them becomes.
#[cube(launch_unchecked)]
pub fn pixels(bytes: &[u32], table: &[f32], y: &mut [f32], count: u32) {
    let pixel = CUBE_POS_X * COPY_THREADS + UNIT_POS_X;
    if pixel < count {
        #[unroll]
        for plane in 0..3u32 {
            let at = (CUBE_POS_Y * count + pixel) * 3u32 + plane;
            let byte = (bytes[(at / 4u32) as usize] >> (at % 4u32 * 8u32)) & 255u32;
            y[((CUBE_POS_Y * 3u32 + plane) * count + pixel) as usize] =
                table[(plane * 256u32 + byte) as usize];
        }
    }
}

/// A function of each value.
#[cube(launch_unchecked)]
pub fn each<N: Size>(
    x: &[Vector<f32, N>],
    y: &mut [Vector<f32, N>],
    count: u32,
    #[comptime] function: Function,
) {
    let at = CUBE_POS_X * COPY_THREADS + UNIT_POS_X;
    if at < count {
        // Beyond this nothing changes, and on some cards an exponential overflows.
        let x = clamp(x[at as usize], Vector::new(-20.0f32), Vector::new(20.0f32));
        y[at as usize] = match function {
            Function::Tanh => x.tanh(),
            Function::Sigmoid => Vector::new(1.0f32) / (Vector::new(1.0f32) + (-x).exp()),
        };
    }
}

/// A convolution with a swish behind it, of channels of a pixel beside one another, each channel for itself.
/// A thread computes four channels of a pixel. `top` and `left` are the rows and columns of zeros before the
/// image. Sizes of channels are in fours.
#[cube(launch_unchecked)]
pub fn depthwise<N: Size>(
    x: &[Vector<f32, N>],
    weight: &[Vector<f32, N>],
    bias: &[Vector<f32, N>],
    y: &mut [Vector<f32, N>],
    height: u32,
    width: u32,
    columns: u32,
    out_height: u32,
    out_width: u32,
    top: u32,
    left: u32,
    #[comptime] kernel: u32,
    #[comptime] stride: u32,
) {
    let i = CUBE_POS_X * COPY_THREADS + UNIT_POS_X;
    if i < out_width * columns {
        let column = i % columns;
        // A row or column before the image has a number below 0, which without a sign is a large one.
        let beside = i / columns * stride - left;
        let down = CUBE_POS_Y * stride - top;
        let mut sum = bias[column as usize];
        #[unroll]
        for j in 0..kernel {
            let row = down + j;
            if row < height {
                #[unroll]
                for k in 0..kernel {
                    let at = beside + k;
                    if at < width {
                        let pixel = (CUBE_POS_Z * height + row) * width + at;
                        sum = fma(
                            x[(pixel * columns + column) as usize],
                            weight[((j * kernel + k) * columns + column) as usize],
                            sum,
                        );
                    }
                }
            }
        }
        let out_row = CUBE_POS_Z * out_height + CUBE_POS_Y;
        y[(out_row * out_width * columns + i) as usize] = activate::<N>(sum, Activation::Swish);
    }
}

/// As [`depthwise`], of an image's planes, all of them together; the weight is `[planes * kernel * kernel,
/// columns]`.
#[cube(launch_unchecked)]
pub fn convolution<N: Size, W: Size>(
    x: &[f32],
    weight: &[Vector<u32, W>],
    bias: &[Vector<f32, N>],
    y: &mut [Vector<f32, N>],
    height: u32,
    width: u32,
    columns: u32,
    out_height: u32,
    out_width: u32,
    top: u32,
    left: u32,
    #[comptime] kernel: u32,
    #[comptime] stride: u32,
    #[comptime] planes: u32,
    #[comptime] keeping: Keeping,
) {
    let i = CUBE_POS_X * COPY_THREADS + UNIT_POS_X;
    if i < out_width * columns {
        let column = i % columns;
        let beside = i / columns * stride - left;
        let down = CUBE_POS_Y * stride - top;
        let mut sum = bias[column as usize];
        for plane in 0..planes {
            for j in 0..kernel {
                let row = down + j;
                if row < height {
                    for k in 0..kernel {
                        let at = beside + k;
                        if at < width {
                            let pixel = ((CUBE_POS_Z * planes + plane) * height + row) * width + at;
                            let tap = (plane * kernel + j) * kernel + k;
                            let weight = weights::<N, W>(weight[(tap * columns + column) as usize], keeping);
                            sum = fma(Vector::new(x[pixel as usize]), weight, sum);
                        }
                    }
                }
            }
        }
        let out_row = CUBE_POS_Z * out_height + CUBE_POS_Y;
        y[(out_row * out_width * columns + i) as usize] = activate::<N>(sum, Activation::Swish);
    }
}

/// The sums of columns over shares of each image's rows, times `scale`.
#[cube(launch_unchecked)]
pub fn sums<N: Size>(
    x: &[Vector<f32, N>],
    y: &mut [Vector<f32, N>],
    rows: u32,
    columns: u32,
    share: u32,
    scale: f32,
) {
    let mut parts = Shared::<[Vector<f32, N>]>::new_slice(comptime!((MEAN_COLUMNS * MEAN_COLUMNS) as usize));
    let own = CUBE_POS_X * MEAN_COLUMNS + UNIT_POS_X;
    let column = min(own, columns - 1u32);
    let end = min((CUBE_POS_Y + 1u32) * share, rows);
    let mut sum = Vector::<f32, N>::new(0.0f32);
    let mut i = CUBE_POS_Y * share + UNIT_POS_Y;
    while i < end {
        sum += x[((CUBE_POS_Z * rows + i) * columns + column) as usize];
        i += MEAN_COLUMNS;
    }
    parts[(UNIT_POS_Y * MEAN_COLUMNS + UNIT_POS_X) as usize] = sum;
    sync_cube();
    if UNIT_POS_Y == 0u32 && own < columns {
        let mut total = Vector::<f32, N>::new(0.0f32);
        for j in 0..MEAN_COLUMNS {
            total += parts[(j * MEAN_COLUMNS + UNIT_POS_X) as usize];
        }
        let shares = CUBE_COUNT_Y;
        y[((CUBE_POS_Z * shares + CUBE_POS_Y) * columns + own) as usize] = total * Vector::new(scale);
    }
}

/// Each column of an image's rows times the image's factor for it.
#[cube(launch_unchecked)]
pub fn gate<N: Size>(
    x: &[Vector<f32, N>],
    factors: &[Vector<f32, N>],
    y: &mut [Vector<f32, N>],
    values: u32,
    columns: u32,
) {
    // More groups than one dimension takes.
    let i = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * COPY_THREADS + UNIT_POS_X;
    if i < values {
        let at = (CUBE_POS_Z * values + i) as usize;
        y[at] = x[at] * factors[(CUBE_POS_Z * columns + i % columns) as usize];
    }
}
