//! The steps of a transformer block forward and backward, for training.
//!
//! Everything is row-major `f32`. Results do not depend on the number of threads: the rows are cut into blocks
//! of a size that follows from the shape alone, and sums over rows are taken block by block, in order.

use std::cell::RefCell;

use super::attention::AttentionShape;
use super::buffer::Buffer;
use super::dropout::{DropoutMask, bits};
use super::matmul::{Activation, Panels, Product, product_with};
use super::simd::{InstructionSet, Simd, dispatch};
use super::{Shared, for_each, math};

/// Rows of one task where each row is cheap.
const ROW_BLOCK: usize = 64;

/// A vector that `fill` writes every value of, without its being zeroed before.
///
/// # Safety
/// `fill` must write all `len` values.
unsafe fn filled(len: usize, fill: impl FnOnce(Shared)) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    fill(Shared(values.as_mut_ptr()));
    // SAFETY: the capacity is `len`, and the caller vouches that all was written.
    unsafe { values.set_len(len) };
    values
}

/// A vector register's worth of lanes of the instruction set in use.
fn lanes() -> usize {
    match InstructionSet::detect() {
        InstructionSet::Avx512 => 16,
        InstructionSet::Avx2 | InstructionSet::Portable => 8,
    }
}

// ---------------------------------------------------------------------------------------------- dropout

/// x + drop(y), rows of `width` values.
pub fn drop_add(x: &[f32], y: &[f32], width: usize, drop: &DropoutMask) -> Vec<f32> {
    drop_blocks(Some(x), y, width, drop)
}

/// Each value times its factor, rows of `width` values: dropout itself, and its way back.
pub fn drop_out(y: &[f32], width: usize, drop: &DropoutMask) -> Vec<f32> {
    drop_blocks(None, y, width, drop)
}

fn drop_blocks(x: Option<&[f32]>, y: &[f32], width: usize, drop: &DropoutMask) -> Vec<f32> {
    assert!(y.len().is_multiple_of(width) && x.is_none_or(|x| x.len() == y.len()));
    let rows = y.len() / width;
    let run = |out: Shared| {
        for_each(rows.div_ceil(ROW_BLOCK), true, |block| {
            let first = block * ROW_BLOCK;
            let at = first * width;
            let x = x.map_or(std::ptr::null(), |x| x[at..].as_ptr());
            let some = ROW_BLOCK.min(rows - first);
            // SAFETY: each block has rows of its own.
            unsafe { drop_rows(x, y[at..].as_ptr(), first, some, width, drop, out.get().add(at)) }
        });
    };
    // SAFETY: the blocks are all rows.
    unsafe { filled(y.len(), run) }
}

dispatch! {
    unsafe fn drop_rows(x: *const f32, y: *const f32, first: usize, rows: usize, width: usize, drop: &DropoutMask, out: *mut f32) = drop_rows_with
}

/// out = x + y * factor, or y * factor where `x` is null.
#[inline(always)]
unsafe fn drop_rows_with<S: Simd>(
    x: *const f32,
    y: *const f32,
    first: usize,
    rows: usize,
    width: usize,
    drop: &DropoutMask,
    out: *mut f32,
) {
    const PIECE: usize = 128;
    let mut factors = [0.0f32; PIECE];
    let (threshold, scale) = (drop.threshold(), drop.scale());
    unsafe {
        for row in 0..rows {
            let [low, high] = drop.key(first + row);
            for start in (0..width).step_by(PIECE) {
                let n = PIECE.min(width - start);
                for (i, factor) in factors.iter_mut().enumerate() {
                    let kept = bits((start + i) as u32, low, high) >= threshold;
                    *factor = if kept { scale } else { 0.0 };
                }
                let at = row * width + start;
                for i in (0..n).step_by(S::LANES) {
                    let some = S::LANES.min(n - i);
                    let factor = S::load(factors.as_ptr().add(i));
                    let v = S::mul(load_up_to::<S>(y.add(at + i), some), factor);
                    let v = match x.is_null() {
                        true => v,
                        false => S::add(v, load_up_to::<S>(x.add(at + i), some)),
                    };
                    store_up_to::<S>(out.add(at + i), v, some);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn load_up_to<S: Simd>(p: *const f32, n: usize) -> S::V {
    unsafe {
        match n >= S::LANES {
            true => S::load(p),
            false => S::load_first(p, n),
        }
    }
}

#[inline(always)]
unsafe fn store_up_to<S: Simd>(p: *mut f32, v: S::V, n: usize) {
    unsafe {
        match n >= S::LANES {
            true => S::store(p, v),
            false => S::store_first(p, v, n),
        }
    }
}

// ------------------------------------------------------------------------------------------- activations

dispatch! {
    unsafe fn activate_values(x: *const f32, out: *mut f32, n: usize, activation: Activation) = activate_with
}

#[inline(always)]
unsafe fn activate_with<S: Simd>(x: *const f32, out: *mut f32, n: usize, activation: Activation) {
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            let some = S::LANES.min(n - i);
            let v = load_up_to::<S>(x.add(i), some);
            let v = match activation {
                Activation::None => v,
                Activation::QuickGelu => math::quick_gelu::<S>(v),
                Activation::Swish => math::swish::<S>(v),
                Activation::Gelu => math::gelu::<S>(v),
                Activation::Relu => S::max(S::splat(0.0), v),
            };
            store_up_to::<S>(out.add(i), v, some);
        }
    }
}

/// out = gradient * activation'(x).
#[inline(always)]
unsafe fn slope_with<S: Simd>(
    x: *const f32,
    gradient: *const f32,
    out: *mut f32,
    n: usize,
    activation: Activation,
) {
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            let some = S::LANES.min(n - i);
            let v = load_up_to::<S>(x.add(i), some);
            let g = load_up_to::<S>(gradient.add(i), some);
            let g = match activation {
                Activation::None => g,
                Activation::QuickGelu => S::mul(g, times_sigmoid_slope::<S>(v, 1.702)),
                Activation::Swish => S::mul(g, times_sigmoid_slope::<S>(v, 1.0)),
                Activation::Gelu => S::mul(g, gelu_slope::<S>(v)),
                Activation::Relu => {
                    // 1 above zero: there is no comparison among the operations.
                    let one = S::min(S::splat(1.0), S::mul(v, S::splat(f32::MAX)));
                    S::mul(g, S::max(S::splat(0.0), one))
                }
            };
            store_up_to::<S>(out.add(i), g, some);
        }
    }
}

/// With s = 1 / (1 + e^-z) and z = steepness x: s + z s (1 - s).
#[inline(always)]
unsafe fn times_sigmoid_slope<S: Simd>(x: S::V, steepness: f32) -> S::V {
    unsafe {
        let one = S::splat(1.0);
        let z = S::mul(x, S::splat(steepness));
        let e = math::exp::<S>(S::sub(S::splat(0.0), z));
        let s = S::div(one, S::add(one, e));
        S::mul(s, S::mul_add(z, S::sub(one, s), one))
    }
}

/// Phi(x) + x phi(x), the normal distribution and its density.
///
/// Phi is 1 - e^(-x^2 / 2) times a polynomial in 1 / (1 + 0.3275911 |x| / sqrt 2), halved (Abramowitz and
/// Stegun 7.1.26, off by 7.5e-8 at most), which shares its exponential with the density.
#[inline(always)]
unsafe fn gelu_slope<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let (zero, one) = (S::splat(0.0), S::splat(1.0));
        let size = S::max(x, S::sub(zero, x));
        let e = math::exp::<S>(S::mul(S::mul(x, x), S::splat(-0.5)));
        let t = S::div(one, S::mul_add(size, S::splat(0.231_641_9), one));
        let mut p = S::splat(0.530_702_7);
        p = S::mul_add(p, t, S::splat(-0.726_576));
        p = S::mul_add(p, t, S::splat(0.710_706_9));
        p = S::mul_add(p, t, S::splat(-0.142_248_36));
        p = S::mul_add(p, t, S::splat(0.127_414_8));
        // The distribution at -|x|, and 1 above zero, 0 below.
        let tail = S::mul(S::mul(p, t), e);
        let above = S::max(zero, S::min(one, S::mul(x, S::splat(f32::MAX))));
        let sign = S::mul_add(above, S::splat(-2.0), one);
        let distribution = S::mul_add(sign, tail, above);
        S::mul_add(S::mul(x, S::splat(0.398_942_3)), e, distribution)
    }
}

// ------------------------------------------------------------------------------------------------- norms

/// LayerNorm over rows of `scale.len()` values: the result, and each row's mean and inverse deviation.
pub fn layer_norm(x: &[f32], scale: &[f32], shift: &[f32], epsilon: f32) -> (Vec<f32>, Vec<f32>) {
    let width = scale.len();
    assert!(shift.len() == width && x.len().is_multiple_of(width));
    let rows = x.len() / width;
    let mut moments = vec![0.0; 2 * rows];
    let to = Shared(moments.as_mut_ptr());
    let run = |out: Shared| {
        for_each(rows.div_ceil(ROW_BLOCK), true, |block| {
            let first = block * ROW_BLOCK;
            // SAFETY: each block has rows of its own.
            unsafe {
                norm_rows(&Norm {
                    x: x.as_ptr().add(first * width),
                    scale: scale.as_ptr(),
                    shift: shift.as_ptr(),
                    out: out.get().add(first * width),
                    moments: to.get().add(2 * first),
                    sums: std::ptr::null_mut(),
                    rows: ROW_BLOCK.min(rows - first),
                    width,
                    epsilon,
                });
            }
        });
    };
    // SAFETY: the blocks are all rows.
    let y = unsafe { filled(x.len(), run) };
    (y, moments)
}

/// Turns the gradient with respect to LayerNorm's result into the one with respect to x, and returns those with
/// respect to scale and shift.
pub fn layer_norm_backward(
    x: &[f32],
    scale: &[f32],
    moments: &[f32],
    gradient: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    /// Rows whose products are summed before the sums are.
    const BLOCK: usize = 256;
    let width = scale.len();
    assert!(x.len() == gradient.len() && x.len().is_multiple_of(width));
    let rows = x.len() / width;
    assert_eq!(moments.len(), 2 * rows);
    let blocks = rows.div_ceil(BLOCK);
    let mut sums = vec![0.0f32; blocks * 2 * width];
    let (out, to) = (Shared(gradient.as_mut_ptr()), Shared(sums.as_mut_ptr()));
    for_each(blocks, true, |block| {
        let first = block * BLOCK;
        // SAFETY: each block has rows and sums of its own.
        unsafe {
            norm_rows_backward(&Norm {
                x: x.as_ptr().add(first * width),
                scale: scale.as_ptr(),
                shift: std::ptr::null(),
                out: out.get().add(first * width),
                moments: moments.as_ptr().add(2 * first).cast_mut(),
                sums: to.get().add(block * 2 * width),
                rows: BLOCK.min(rows - first),
                width,
                epsilon: 0.0,
            });
        }
    });
    let mut total = sum_of_blocks(&sums, 2 * width);
    let shift = total.split_off(width);
    (total, shift)
}

/// The blocks of `width` values added up in order.
fn sum_of_blocks(sums: &[f32], width: usize) -> Vec<f32> {
    let mut total = vec![0.0f32; width];
    for block in sums.chunks_exact(width) {
        for (total, value) in total.iter_mut().zip(block) {
            *total += value;
        }
    }
    total
}

/// Rows of a LayerNorm, either way.
struct Norm {
    x: *const f32,
    scale: *const f32,
    shift: *const f32,
    /// The result; on the way back the gradient, in and out.
    out: *mut f32,
    /// Mean and inverse deviation of each row.
    moments: *mut f32,
    /// On the way back, the gradients of scale and shift, which are added to.
    sums: *mut f32,
    rows: usize,
    width: usize,
    epsilon: f32,
}

dispatch! {
    unsafe fn norm_rows(p: &Norm) = norm_rows_with
}

#[inline(always)]
unsafe fn norm_rows_with<S: Simd>(p: &Norm) {
    let (width, lanes) = (p.width, S::LANES);
    unsafe {
        for row in 0..p.rows {
            let x = p.x.add(row * width);
            let y = p.out.add(row * width);
            let mut sums = [S::splat(0.0); 2];
            for i in (0..width).step_by(lanes) {
                let v = load_up_to::<S>(x.add(i), width - i);
                sums[i / lanes % 2] = S::add(sums[i / lanes % 2], v);
            }
            let mean = S::sum(S::add(sums[0], sums[1])) / width as f32;
            let m = S::splat(mean);
            let mut squares = S::splat(0.0);
            let whole = width / lanes * lanes;
            for i in (0..whole).step_by(lanes) {
                let d = S::sub(S::load(x.add(i)), m);
                squares = S::mul_add(d, d, squares);
            }
            let mut variance = S::sum(squares);
            for i in whole..width {
                variance += (*x.add(i) - mean) * (*x.add(i) - mean);
            }
            let inverse = 1.0 / (variance / width as f32 + p.epsilon).sqrt();
            *p.moments.add(2 * row) = mean;
            *p.moments.add(2 * row + 1) = inverse;
            let inverse = S::splat(inverse);
            for i in (0..width).step_by(lanes) {
                let some = width - i;
                let d = S::mul(S::sub(load_up_to::<S>(x.add(i), some), m), inverse);
                let v = S::mul_add(
                    d,
                    load_up_to::<S>(p.scale.add(i), some),
                    load_up_to::<S>(p.shift.add(i), some),
                );
                store_up_to::<S>(y.add(i), v, some);
            }
        }
    }
}

dispatch! {
    unsafe fn norm_rows_backward(p: &Norm) = norm_rows_backward_with
}

/// With n the normalised values and h = gradient * scale: inverse * (h - mean(h) - n mean(h n)).
#[inline(always)]
unsafe fn norm_rows_backward_with<S: Simd>(p: &Norm) {
    let (width, lanes) = (p.width, S::LANES);
    let (scale_sums, shift_sums) = (p.sums, p.sums.wrapping_add(width));
    unsafe {
        for row in 0..p.rows {
            let x = p.x.add(row * width);
            let g = p.out.add(row * width);
            let m = S::splat(*p.moments.add(2 * row));
            let inverse = S::splat(*p.moments.add(2 * row + 1));
            let (mut sum_h, mut sum_hn) = (S::splat(0.0), S::splat(0.0));
            for i in (0..width).step_by(lanes) {
                let some = width - i;
                // Beyond the row g is 0, so that n does not matter there.
                let n = S::mul(S::sub(load_up_to::<S>(x.add(i), some), m), inverse);
                let gradient = load_up_to::<S>(g.add(i), some);
                let h = S::mul(gradient, load_up_to::<S>(p.scale.add(i), some));
                sum_h = S::add(sum_h, h);
                sum_hn = S::mul_add(h, n, sum_hn);
                let sum = S::mul_add(gradient, n, load_up_to::<S>(scale_sums.add(i), some));
                store_up_to::<S>(scale_sums.add(i), sum, some);
                let sum = S::add(gradient, load_up_to::<S>(shift_sums.add(i), some));
                store_up_to::<S>(shift_sums.add(i), sum, some);
            }
            let mean_h = S::splat(S::sum(sum_h) / width as f32);
            let mean_hn = S::splat(S::sum(sum_hn) / width as f32);
            for i in (0..width).step_by(lanes) {
                let some = width - i;
                let n = S::mul(S::sub(load_up_to::<S>(x.add(i), some), m), inverse);
                let h = S::mul(
                    load_up_to::<S>(g.add(i), some),
                    load_up_to::<S>(p.scale.add(i), some),
                );
                let d = S::sub(S::sub(h, mean_h), S::mul(n, mean_hn));
                store_up_to::<S>(g.add(i), S::mul(d, inverse), some);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------- products

/// out [rows, columns] (+)= left right, where either way of storing `left` will do.
struct Strided {
    /// With `TRANSPOSED`, value (i, k) stands at `k * left_stride + i`, else at `i * left_stride + k`.
    left: *const f32,
    left_stride: usize,
    rows: usize,
    /// Row k of a panel's columns stands at `k * right_stride`; the columns are readable up to a whole register.
    right: *const f32,
    right_stride: usize,
    /// From a panel of two registers to the next.
    right_panel: usize,
    depth: usize,
    columns: usize,
    out: *mut f32,
    out_stride: usize,
    accumulate: bool,
}

/// Rows of a tile, as many as the registers hold.
const fn tile_height<S: Simd>() -> usize {
    match S::LANES {
        16 => 12,
        _ => 6,
    }
}

impl Strided {
    /// # Safety
    /// The pointers must be valid for the shape, and the processor must have the instruction set.
    #[inline(always)]
    unsafe fn run<S: Simd, const TRANSPOSED: bool>(&self) {
        let panel = 2 * S::LANES;
        for column in (0..self.columns).step_by(panel) {
            let columns = self.columns - column;
            let mut row = 0;
            while row < self.rows {
                let rows = tile_height::<S>().min(self.rows - row);
                unsafe {
                    let left = match TRANSPOSED {
                        true => self.left.add(row),
                        false => self.left.add(row * self.left_stride),
                    };
                    let right = self.right.add(column / panel * self.right_panel);
                    let out = self.out.add(row * self.out_stride + column);
                    self.tile_of::<S, TRANSPOSED>(rows, left, right, out, columns);
                }
                row += rows;
            }
        }
    }

    #[inline(always)]
    unsafe fn tile_of<S: Simd, const TRANSPOSED: bool>(
        &self,
        rows: usize,
        left: *const f32,
        right: *const f32,
        out: *mut f32,
        columns: usize,
    ) {
        macro_rules! heights {
            ($($m:literal)*) => {
                match (rows, columns > S::LANES) {
                    $(
                        ($m, true) => self.tile::<S, TRANSPOSED, $m, 2>(left, right, out, columns),
                        ($m, false) => self.tile::<S, TRANSPOSED, $m, 1>(left, right, out, columns),
                    )*
                    _ => {}
                }
            };
        }
        unsafe { heights!(1 2 3 4 5 6 7 8 9 10 11 12) }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const TRANSPOSED: bool, const M: usize, const N: usize>(
        &self,
        left: *const f32,
        right: *const f32,
        out: *mut f32,
        columns: usize,
    ) {
        if M > tile_height::<S>() {
            return;
        }
        unsafe {
            let mut sums = [[S::splat(0.0); N]; M];
            if self.accumulate {
                for (i, sum) in sums.iter_mut().enumerate() {
                    for (j, sum) in sum.iter_mut().enumerate() {
                        let at = out.add(i * self.out_stride + j * S::LANES);
                        *sum = load_up_to::<S>(at, columns - j * S::LANES);
                    }
                }
            }
            let (mut at, mut right) = (left, right);
            for _ in 0..self.depth {
                let mut r = [S::splat(0.0); N];
                for (j, r) in r.iter_mut().enumerate() {
                    *r = S::load(right.add(j * S::LANES));
                }
                for (i, sum) in sums.iter_mut().enumerate() {
                    let l = S::splat(match TRANSPOSED {
                        true => *at.add(i),
                        false => *at.add(i * self.left_stride),
                    });
                    for (sum, r) in sum.iter_mut().zip(r) {
                        *sum = S::mul_add(l, r, *sum);
                    }
                }
                right = right.wrapping_add(self.right_stride);
                at = at.wrapping_add(match TRANSPOSED {
                    true => self.left_stride,
                    false => 1,
                });
            }
            for (i, sum) in sums.iter().enumerate() {
                for (j, sum) in sum.iter().enumerate() {
                    let at = out.add(i * self.out_stride + j * S::LANES);
                    store_up_to::<S>(at, *sum, columns - j * S::LANES);
                }
            }
        }
    }
}

// --------------------------------------------------------------------------------------------- attention

/// Attention over rows that hold all heads' queries, then all heads' keys, then all heads' values.
pub struct PackedAttention<'a> {
    /// Heads and their widths.
    pub shape: AttentionShape,
    /// Sequences.
    pub batch: usize,
    /// Rows of each.
    pub tokens: usize,
    /// \[batch * tokens, 2 * query width + value width\]
    pub rows: &'a [f32],
    /// What is added to the scores of each key, \[batch, tokens\].
    pub key_bias: Option<&'a [f32]>,
    /// What is left out of the weights; row `(sequence * heads + head) * tokens + query` and column `key` name a
    /// weight.
    pub drop: Option<DropoutMask>,
    /// Whether only the first query of each sequence is asked for.
    pub only_first: bool,
}

impl PackedAttention<'_> {
    fn row_width(&self) -> usize {
        2 * self.shape.query_width() + self.shape.value_width()
    }

    fn queries(&self) -> usize {
        match self.only_first {
            true => 1,
            false => self.tokens,
        }
    }

    fn check(&self) {
        assert_eq!(self.rows.len(), self.batch * self.tokens * self.row_width());
        if let Some(bias) = self.key_bias {
            assert_eq!(bias.len(), self.batch * self.tokens);
        }
    }

    /// \[batch * queries, value width\]
    pub fn forward(&self) -> Vec<f32> {
        self.check();
        let values = self.queries() * self.shape.value_width();
        let run = |out: Shared| {
            for_each(self.batch, true, |sequence| {
                // SAFETY: `check` saw to the shapes; each sequence has rows of its own.
                unsafe {
                    self.one(sequence, |head, s| {
                        head.out = out.get().add(sequence * values + head.value_start);
                        head_forward(head, s);
                    })
                }
            });
        };
        // SAFETY: the sequences and their heads are all of it.
        unsafe { filled(self.batch * values, run) }
    }

    /// From the gradient with respect to [`PackedAttention::forward`]'s result to the one with respect to the
    /// rows.
    pub fn backward(&self, gradient: &[f32]) -> Vec<f32> {
        self.check();
        let (width, values) = (self.row_width(), self.queries() * self.shape.value_width());
        assert_eq!(gradient.len(), self.batch * values);
        let run = |out: Shared| {
            for_each(self.batch, true, |sequence| {
                // SAFETY: as above.
                unsafe {
                    let at = out.get().add(sequence * self.tokens * width);
                    for row in self.queries()..self.tokens {
                        at.add(row * width).write_bytes(0, self.shape.query_width());
                    }
                    self.one(sequence, |head, s| {
                        head.gradient = gradient.as_ptr().add(sequence * values + head.value_start);
                        head.out = at;
                        head_backward(head, s);
                    });
                }
            });
        };
        // SAFETY: each head writes its queries', keys' and values' part of all rows.
        unsafe { filled(self.rows.len(), run) }
    }

    /// # Safety
    /// `check` must have passed.
    unsafe fn one(&self, sequence: usize, mut each: impl FnMut(&mut Head, &mut Buffer)) {
        let shape = &self.shape;
        let width = self.row_width();
        SCRATCH.with_borrow_mut(|scratch| {
            for head in 0..shape.heads {
                let (query_start, value_start) =
                    (head * shape.query_head_width, head * shape.value_head_width);
                // SAFETY: inside the rows, after `check`.
                let mut head = unsafe {
                    Head {
                        rows: self.rows.as_ptr().add(sequence * self.tokens * width),
                        stride: width,
                        query_start,
                        key_start: shape.query_width() + query_start,
                        packed_value_start: 2 * shape.query_width() + value_start,
                        value_start,
                        value_stride: shape.value_width(),
                        tokens: self.tokens,
                        queries: self.queries(),
                        query_width: shape.query_head_width,
                        value_width: shape.value_head_width,
                        bias: match self.key_bias {
                            Some(bias) => bias.as_ptr().add(sequence * self.tokens),
                            None => std::ptr::null(),
                        },
                        drop: self.drop.filter(|drop| drop.share > 0.0),
                        drop_row: (sequence * shape.heads + head) * self.tokens,
                        gradient: std::ptr::null(),
                        out: std::ptr::null_mut(),
                    }
                };
                each(&mut head, scratch);
            }
        });
    }
}

/// One head of one sequence.
struct Head {
    rows: *const f32,
    stride: usize,
    query_start: usize,
    key_start: usize,
    packed_value_start: usize,
    /// Where the head's values start in a row of the result, and such a row's width.
    value_start: usize,
    value_stride: usize,
    tokens: usize,
    queries: usize,
    query_width: usize,
    value_width: usize,
    bias: *const f32,
    drop: Option<DropoutMask>,
    drop_row: usize,
    gradient: *const f32,
    /// The result at the head's start; on the way back the sequence's packed rows.
    out: *mut f32,
}

thread_local! {
    static SCRATCH: RefCell<Buffer> = RefCell::default();
}

/// Hands out the parts of a buffer.
struct Parts(*mut f32);

impl Parts {
    #[inline(always)]
    unsafe fn take(&mut self, len: usize) -> *mut f32 {
        let part = self.0;
        // A cache line between the parts keeps those of round sizes out of the same sets.
        self.0 = unsafe { part.add(len.next_multiple_of(16) + 16) };
        part
    }
}

/// Copies `rows` rows of `width` values into rows of whole registers, filled up with zeros.
#[inline(always)]
unsafe fn copy_rows<S: Simd>(from: *const f32, stride: usize, rows: usize, width: usize, out: *mut f32) {
    let padded = width.next_multiple_of(S::LANES);
    for row in 0..rows {
        for i in (0..width).step_by(S::LANES) {
            unsafe {
                let v = load_up_to::<S>(from.add(row * stride + i), width - i);
                S::store(out.add(row * padded + i), v);
            }
        }
    }
}

/// out [width, padded] = the transpose of [rows, width], filled up with zeros to whole registers.
#[inline(always)]
unsafe fn transpose<S: Simd>(from: *const f32, stride: usize, rows: usize, width: usize, out: *mut f32) {
    let padded = rows.next_multiple_of(S::LANES);
    unsafe {
        for first in (0..rows).step_by(16) {
            let some = 16.min(rows - first);
            for k in 0..width {
                let out = out.add(k * padded + first);
                let from = from.add(first * stride + k);
                if some == 16 {
                    for c in 0..16 {
                        *out.add(c) = *from.add(c * stride);
                    }
                } else {
                    for c in 0..some {
                        *out.add(c) = *from.add(c * stride);
                    }
                    for c in some..padded - first {
                        *out.add(c) = 0.0;
                    }
                }
            }
        }
    }
}

/// What both ways begin with.
struct Weights {
    /// e^(score - largest), [queries, score_stride].
    weights: *mut f32,
    score_stride: usize,
    /// 1 / the sum of each row.
    inverse: *mut f32,
}

#[inline(always)]
unsafe fn weights_with<S: Simd>(head: &Head, parts: &mut Parts) -> Weights {
    let padded = head.tokens.next_multiple_of(S::LANES);
    let score_stride = padded + 16;
    unsafe {
        let keys = parts.take(head.query_width * padded);
        let weights = parts.take(head.queries * score_stride);
        let inverse = parts.take(head.queries);
        let bias = parts.take(padded);
        transpose::<S>(
            head.rows.add(head.key_start),
            head.stride,
            head.tokens,
            head.query_width,
            keys,
        );
        for i in 0..padded {
            // Far enough below all else that the columns that fill up weigh nothing.
            *bias.add(i) = match (i < head.tokens, head.bias.is_null()) {
                (false, _) => -1e30,
                (true, true) => 0.0,
                (true, false) => *head.bias.add(i),
            };
        }
        let scores = Strided {
            left: head.rows.add(head.query_start),
            left_stride: head.stride,
            rows: head.queries,
            right: keys,
            right_stride: padded,
            right_panel: 2 * S::LANES,
            depth: head.query_width,
            columns: padded,
            out: weights,
            out_stride: score_stride,
            accumulate: false,
        };
        scores.run::<S, false>();
        let scale = S::splat((head.query_width as f32).powf(-0.5));
        for row in 0..head.queries {
            let at = weights.add(row * score_stride);
            let mut largest = S::splat(f32::MIN);
            for i in (0..padded).step_by(S::LANES) {
                let v = S::mul_add(S::load(at.add(i)), scale, S::load(bias.add(i)));
                S::store(at.add(i), v);
                largest = S::max(largest, v);
            }
            let largest = S::splat(S::largest(largest));
            let mut sum = S::splat(0.0);
            for i in (0..padded).step_by(S::LANES) {
                let e = math::exp::<S>(S::sub(S::load(at.add(i)), largest));
                // `exp` ends at 1e-38, which the products to come would make subnormal, and so a hundred times
                // slower to compute with: what is as small as that becomes 0.
                let e = S::max(S::splat(0.0), S::sub(e, S::splat(1e-30)));
                S::store(at.add(i), e);
                sum = S::add(sum, e);
            }
            *inverse.add(row) = 1.0 / S::sum(sum);
        }
        Weights {
            weights,
            score_stride,
            inverse,
        }
    }
}

/// Floats of scratch that a head takes, with room to spare for what stands between the parts.
fn scratch_size(head: &Head) -> usize {
    let lanes = lanes();
    let tokens = head.tokens.next_multiple_of(lanes);
    let widths = (head.query_width + head.value_width).next_multiple_of(lanes) + 2 * lanes;
    3 * (head.queries + 1) * (tokens + 32) + 5 * (tokens + 1) * widths + 512
}

fn head_forward(head: &Head, scratch: &mut Buffer) {
    scratch.resize(scratch_size(head));
    // SAFETY: whoever made the head saw to its pointers; the scratch was just given its size.
    unsafe { head_forward_best(head, scratch.as_mut_ptr()) }
}

fn head_backward(head: &Head, scratch: &mut Buffer) {
    scratch.resize(scratch_size(head));
    // SAFETY: as above.
    unsafe { head_backward_best(head, scratch.as_mut_ptr()) }
}

dispatch! {
    unsafe fn head_forward_best(head: &Head, scratch: *mut f32) = head_forward_with
}

#[inline(always)]
unsafe fn head_forward_with<S: Simd>(head: &Head, scratch: *mut f32) {
    let mut parts = Parts(scratch);
    let padded_value = head.value_width.next_multiple_of(S::LANES);
    unsafe {
        let w = weights_with::<S>(head, &mut parts);
        let values = parts.take(head.tokens * padded_value);
        let factors = parts.take(head.tokens);
        copy_rows::<S>(
            head.rows.add(head.packed_value_start),
            head.stride,
            head.tokens,
            head.value_width,
            values,
        );
        if let Some(drop) = &head.drop {
            for row in 0..head.queries {
                drop.factors(head.drop_row + row, head.tokens, factors);
                let at = w.weights.add(row * w.score_stride);
                for i in 0..head.tokens {
                    *at.add(i) *= *factors.add(i);
                }
            }
        }
        let product = Strided {
            left: w.weights,
            left_stride: w.score_stride,
            rows: head.queries,
            right: values,
            right_stride: padded_value,
            right_panel: 2 * S::LANES,
            depth: head.tokens,
            columns: head.value_width,
            out: head.out,
            out_stride: head.value_stride,
            accumulate: false,
        };
        product.run::<S, false>();
        for row in 0..head.queries {
            let inverse = S::splat(*w.inverse.add(row));
            scale_row::<S>(head.out.add(row * head.value_stride), head.value_width, inverse);
        }
    }
}

#[inline(always)]
unsafe fn scale_row<S: Simd>(row: *mut f32, width: usize, factor: S::V) {
    for i in (0..width).step_by(S::LANES) {
        unsafe {
            let v = S::mul(load_up_to::<S>(row.add(i), width - i), factor);
            store_up_to::<S>(row.add(i), v, width - i);
        }
    }
}

dispatch! {
    unsafe fn head_backward_best(head: &Head, scratch: *mut f32) = head_backward_with
}

/// With W the weights, D what dropout made of them and G the gradient of the result:
/// dV = D^T G; dD = G V^T; dW = dropout(dD); dS = W (dW - sum(dW W)); dQ = dS K and dK = dS^T Q, both scaled.
#[inline(always)]
unsafe fn head_backward_with<S: Simd>(head: &Head, scratch: *mut f32) {
    let mut parts = Parts(scratch);
    let panel = 2 * S::LANES;
    let padded = head.tokens.next_multiple_of(S::LANES);
    let padded_query = head.query_width.next_multiple_of(S::LANES);
    let padded_value = head.value_width.next_multiple_of(S::LANES);
    unsafe {
        let w = weights_with::<S>(head, &mut parts);
        let stride = w.score_stride;
        let values = parts.take(head.value_width * padded);
        let gradient = parts.take(head.queries * padded_value);
        let queries = parts.take(head.queries * padded_query);
        let keys = parts.take(head.tokens * padded_query);
        let slopes = parts.take(head.queries * stride);
        transpose::<S>(
            head.rows.add(head.packed_value_start),
            head.stride,
            head.tokens,
            head.value_width,
            values,
        );
        copy_rows::<S>(
            head.gradient,
            head.value_stride,
            head.queries,
            head.value_width,
            gradient,
        );
        copy_rows::<S>(
            head.rows.add(head.query_start),
            head.stride,
            head.queries,
            head.query_width,
            queries,
        );
        copy_rows::<S>(
            head.rows.add(head.key_start),
            head.stride,
            head.tokens,
            head.query_width,
            keys,
        );
        let product = Strided {
            left: head.gradient,
            left_stride: head.value_stride,
            rows: head.queries,
            right: values,
            right_stride: padded,
            right_panel: panel,
            depth: head.value_width,
            columns: padded,
            out: slopes,
            out_stride: stride,
            accumulate: false,
        };
        product.run::<S, false>();
        let scale = S::splat((head.query_width as f32).powf(-0.5));
        // With dropout, the weights after it stand apart; without, they are the weights.
        let dropped = match head.drop {
            Some(_) => parts.take(head.queries * stride),
            None => w.weights,
        };
        for row in 0..head.queries {
            let (weights, slopes) = (w.weights.add(row * stride), slopes.add(row * stride));
            let dropped = dropped.add(row * stride);
            let inverse = S::splat(*w.inverse.add(row));
            if let Some(drop) = &head.drop {
                drop.factors(head.drop_row + row, head.tokens, dropped);
                for i in head.tokens..padded {
                    *dropped.add(i) = 0.0;
                }
            }
            let mut sum = S::splat(0.0);
            for i in (0..padded).step_by(S::LANES) {
                let weight = S::mul(S::load(weights.add(i)), inverse);
                S::store(weights.add(i), weight);
                let mut slope = S::load(slopes.add(i));
                if head.drop.is_some() {
                    let factor = S::load(dropped.add(i));
                    S::store(dropped.add(i), S::mul(weight, factor));
                    slope = S::mul(slope, factor);
                    S::store(slopes.add(i), slope);
                }
                sum = S::mul_add(slope, weight, sum);
            }
            let sum = S::splat(S::sum(sum));
            for i in (0..padded).step_by(S::LANES) {
                let slope = S::sub(S::load(slopes.add(i)), sum);
                let weight = S::mul(S::load(weights.add(i)), scale);
                S::store(slopes.add(i), S::mul(slope, weight));
            }
        }
        let mut product = Strided {
            left: dropped,
            left_stride: stride,
            rows: head.tokens,
            right: gradient,
            right_stride: padded_value,
            right_panel: panel,
            depth: head.queries,
            columns: head.value_width,
            out: head.out.add(head.packed_value_start),
            out_stride: head.stride,
            accumulate: false,
        };
        product.run::<S, true>();
        product = Strided {
            left: slopes,
            right: queries,
            right_stride: padded_query,
            columns: head.query_width,
            out: head.out.add(head.key_start),
            ..product
        };
        product.run::<S, true>();
        product = Strided {
            rows: head.queries,
            right: keys,
            depth: head.tokens,
            out: head.out.add(head.query_start),
            ..product
        };
        product.run::<S, false>();
    }
}

// ------------------------------------------------------------------------------------------------ linear

/// A linear layer with its activation on rows of `inputs` values.
pub struct LinearShape {
    /// Rows.
    pub rows: usize,
    /// Values of a row.
    pub inputs: usize,
    /// Values of a row of the result.
    pub outputs: usize,
    /// What the result goes through.
    pub activation: Activation,
}

/// Rows that pass through a layer together: their values stay in the second level cache.
const LINEAR_BLOCK: usize = 120;

/// Rows whose products for the weights' gradient are summed by one task, at least: a task's own sum is as large
/// as the weights are.
const SUM_BLOCK: usize = 480;

impl LinearShape {
    /// activation(x W + b), and where there is an activation, what went into it.
    pub fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> (Vec<f32>, Option<Vec<f32>>) {
        assert_eq!(x.len(), self.rows * self.inputs);
        assert_eq!(weight.len(), self.inputs * self.outputs);
        if let Some(bias) = bias {
            assert_eq!(bias.len(), self.outputs);
        }
        let packed = pack(weight, self.inputs, self.outputs);
        let len = self.rows * self.outputs;
        let run = |out: Shared, activated: Option<Shared>| {
            for_each(self.rows.div_ceil(LINEAR_BLOCK), true, |block| {
                let first = block * LINEAR_BLOCK;
                let rows = LINEAR_BLOCK.min(self.rows - first);
                // SAFETY: each block has rows of its own.
                unsafe {
                    let output = out.get().add(first * self.outputs);
                    product_best(&Product {
                        input: x.as_ptr().add(first * self.inputs),
                        input_stride: self.inputs,
                        rows,
                        packed: Panels::F32(packed.as_ptr()),
                        depth: self.inputs,
                        columns: self.outputs,
                        bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
                        output,
                        output_stride: self.outputs,
                        activation: Activation::None,
                        accumulate: false,
                    });
                    if let Some(activated) = activated {
                        let to = activated.get().add(first * self.outputs);
                        activate_values(output, to, rows * self.outputs, self.activation);
                    }
                }
            });
        };
        // SAFETY: the blocks are all rows.
        unsafe {
            if self.activation == Activation::None {
                return (filled(len, |out| run(out, None)), None);
            }
            let mut before = Vec::new();
            let y = filled(len, |activated| {
                before = filled(len, |out| run(out, Some(activated)));
            });
            (y, Some(before))
        }
    }

    /// The gradients with respect to x, W and b, those that `wanted` names. `before` is what
    /// [`LinearShape::forward`] gave beside the result.
    pub fn backward(
        &self,
        x: &[f32],
        weight: &[f32],
        before: Option<&[f32]>,
        gradient: &[f32],
        wanted: Wanted,
    ) -> LinearGradients {
        let (inputs, outputs) = (self.inputs, self.outputs);
        assert_eq!(x.len(), self.rows * inputs);
        assert_eq!(weight.len(), inputs * outputs);
        assert_eq!(gradient.len(), self.rows * outputs);
        assert!(self.activation == Activation::None || before.is_some_and(|b| b.len() == gradient.len()));
        let packed = match wanted.input {
            true => pack_transposed(weight, inputs, outputs),
            false => Buffer::default(),
        };
        // Equal blocks, so that none is left over that is short.
        let blocks = self.rows.div_ceil(SUM_BLOCK).max(1);
        let block_rows = self.rows.div_ceil(blocks).next_multiple_of(LINEAR_BLOCK);
        let blocks = self.rows.div_ceil(block_rows.max(1));
        let mut weights = match wanted.weight {
            true => Buffer::zeros(blocks * inputs * outputs),
            false => Buffer::default(),
        };
        let mut biases = vec![0.0f32; if wanted.bias { blocks * outputs } else { 0 }];
        let (weight_sums, bias_sums) = (Shared(weights.as_mut_ptr()), Shared(biases.as_mut_ptr()));
        let run = |to: Shared| {
            for_each(blocks, true, |block| {
                let end = self.rows.min((block + 1) * block_rows);
                for first in (block * block_rows..end).step_by(LINEAR_BLOCK) {
                    // SAFETY: each block has rows and sums of its own.
                    unsafe {
                        let part = Part {
                            x: x.as_ptr().add(first * inputs),
                            before: match self.activation {
                                Activation::None => std::ptr::null(),
                                _ => before.unwrap_or_default().as_ptr().add(first * outputs),
                            },
                            gradient: gradient.as_ptr().add(first * outputs),
                            packed: packed.as_ptr(),
                            rows: LINEAR_BLOCK.min(end - first),
                            inputs,
                            outputs,
                            activation: self.activation,
                            to: match wanted.input {
                                true => to.get().add(first * inputs),
                                false => std::ptr::null_mut(),
                            },
                            weight_sums: match wanted.weight {
                                true => weight_sums.get().add(block * inputs * outputs),
                                false => std::ptr::null_mut(),
                            },
                            bias_sums: match wanted.bias {
                                true => bias_sums.get().add(block * outputs),
                                false => std::ptr::null_mut(),
                            },
                        };
                        SCRATCH.with_borrow_mut(|scratch| {
                            scratch.resize(part.scratch_size());
                            linear_part_best(&part, scratch.as_mut_ptr());
                        });
                    }
                }
            });
        };
        let input = match wanted.input {
            // SAFETY: the blocks are all rows.
            true => Some(unsafe { filled(x.len(), run) }),
            false => {
                run(Shared(std::ptr::null_mut()));
                None
            }
        };
        LinearGradients {
            input,
            weight: wanted
                .weight
                .then(|| sum_of_large_blocks(&weights, inputs * outputs)),
            bias: wanted.bias.then(|| sum_of_blocks(&biases, outputs)),
        }
    }
}

/// As [`sum_of_blocks`], on all threads.
fn sum_of_large_blocks(sums: &[f32], width: usize) -> Vec<f32> {
    const PIECE: usize = 4096;
    let run = |out: Shared| {
        for_each(width.div_ceil(PIECE), true, |piece| {
            let first = piece * PIECE;
            let some = PIECE.min(width - first);
            // SAFETY: each piece has values of its own, which are written before they are read.
            let out = unsafe {
                out.get().add(first).write_bytes(0, some);
                std::slice::from_raw_parts_mut(out.get().add(first), some)
            };
            for block in sums.chunks_exact(width) {
                for (total, value) in out.iter_mut().zip(&block[first..]) {
                    *total += value;
                }
            }
        });
    };
    // SAFETY: the pieces are all of it.
    unsafe { filled(width, run) }
}

/// Which of a layer's gradients are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The one with respect to x.
    pub input: bool,
    /// The one with respect to W.
    pub weight: bool,
    /// The one with respect to b.
    pub bias: bool,
}

/// A layer's gradients, as far as they were wanted.
pub struct LinearGradients {
    /// With respect to x.
    pub input: Option<Vec<f32>>,
    /// With respect to W.
    pub weight: Option<Vec<f32>>,
    /// With respect to b.
    pub bias: Option<Vec<f32>>,
}

/// Packs a row-major [depth, columns] matrix into panels of two registers.
fn pack(values: &[f32], depth: usize, columns: usize) -> Buffer {
    let panel = 2 * lanes();
    let mut packed = Buffer::zeros(depth * columns.next_multiple_of(panel));
    for (p, out) in packed.chunks_exact_mut(depth * panel).enumerate() {
        let wide = panel.min(columns - p * panel);
        for (row, out) in out.chunks_exact_mut(panel).enumerate() {
            out[..wide].copy_from_slice(&values[row * columns + p * panel..][..wide]);
        }
    }
    packed
}

/// Packs the transpose of a row-major [columns, depth] matrix.
fn pack_transposed(values: &[f32], columns: usize, depth: usize) -> Buffer {
    let panel = 2 * lanes();
    let mut packed = Buffer::zeros(depth * columns.next_multiple_of(panel));
    for (p, out) in packed.chunks_exact_mut(depth * panel).enumerate() {
        for c in 0..panel.min(columns - p * panel) {
            let row = &values[(p * panel + c) * depth..][..depth];
            for (out, value) in out[c..].iter_mut().step_by(panel).zip(row) {
                *out = *value;
            }
        }
    }
    packed
}

dispatch! {
    unsafe fn product_best(p: &Product) = product_with
}

/// Some rows of a layer on the way back.
struct Part {
    x: *const f32,
    /// What went into the activation; null where there is none.
    before: *const f32,
    gradient: *const f32,
    /// The transposed weights in panels.
    packed: *const f32,
    rows: usize,
    inputs: usize,
    outputs: usize,
    activation: Activation,
    to: *mut f32,
    /// Added to; null where they are not wanted, as the one below.
    weight_sums: *mut f32,
    bias_sums: *mut f32,
}

impl Part {
    fn scratch_size(&self) -> usize {
        let panel = 2 * lanes();
        let gradient = self.rows * self.outputs + 32;
        let packed = self.rows * self.outputs.next_multiple_of(panel) + 32;
        gradient + packed + self.rows * (self.inputs + 12) + 32
    }
}

dispatch! {
    unsafe fn linear_part_best(p: &Part, scratch: *mut f32) = linear_part_with
}

#[inline(always)]
unsafe fn linear_part_with<S: Simd>(p: &Part, scratch: *mut f32) {
    let mut parts = Parts(scratch);
    let (panel, height) = (2 * S::LANES, tile_height::<S>());
    let (rows, inputs, outputs) = (p.rows, p.inputs, p.outputs);
    unsafe {
        let mut gradient = p.gradient;
        if !p.before.is_null() {
            let at = parts.take(rows * outputs);
            slope_with::<S>(p.before, p.gradient, at, rows * outputs, p.activation);
            gradient = at;
        }
        if !p.bias_sums.is_null() {
            for row in 0..rows {
                for i in (0..outputs).step_by(S::LANES) {
                    let some = outputs - i;
                    let value = load_up_to::<S>(gradient.add(row * outputs + i), some);
                    let sum = S::add(load_up_to::<S>(p.bias_sums.add(i), some), value);
                    store_up_to::<S>(p.bias_sums.add(i), sum, some);
                }
            }
        }
        if !p.weight_sums.is_null() {
            // The gradient in panels of two registers, x in panels of a tile's height.
            let right = parts.take(rows * outputs.next_multiple_of(panel));
            for column in (0..outputs).step_by(panel) {
                let right = right.add(column * rows);
                for row in 0..rows {
                    for i in [0, S::LANES] {
                        let v = match column + i < outputs {
                            true => load_up_to::<S>(
                                gradient.add(row * outputs + column + i),
                                outputs - column - i,
                            ),
                            false => S::splat(0.0),
                        };
                        S::store(right.add(row * panel + i), v);
                    }
                }
            }
            let left = parts.take(rows * height);
            for first in (0..inputs).step_by(height) {
                let some = height.min(inputs - first);
                for row in 0..rows {
                    let from = p.x.add(row * inputs + first);
                    std::ptr::copy_nonoverlapping(from, left.add(row * height), some);
                }
                let product = Strided {
                    left,
                    left_stride: height,
                    rows: some,
                    right,
                    right_stride: panel,
                    right_panel: rows * panel,
                    depth: rows,
                    columns: outputs,
                    out: p.weight_sums.add(first * outputs),
                    out_stride: outputs,
                    accumulate: true,
                };
                product.run::<S, true>();
            }
        }
        if !p.to.is_null() {
            product_with::<S>(&Product {
                input: gradient,
                input_stride: outputs,
                rows,
                packed: Panels::F32(p.packed),
                depth: outputs,
                columns: inputs,
                bias: std::ptr::null(),
                output: p.to,
                output_stride: inputs,
                activation: Activation::None,
                accumulate: false,
            });
        }
    }
}
