//! Attention over packed rows, and its gradient.

use super::blocks::filled;
use super::registers::{lanes, load_up_to, store_up_to};
use super::scratch::{Parts, SCRATCH};
use super::strided::Strided;
use crate::kernels::dropout::DropoutMask;
use crate::kernels::parallel::{Shared, for_each};
use crate::kernels::simd::{Simd, dispatch};
use crate::kernels::{AttentionShape, Buffer, math};

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
    /// What is left out of the weights; row `(sequence * heads + head) * tokens + query` and column `key`
    /// name a weight.
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
    /// The result at the head's start; in the backward pass the sequence's packed rows.
    out: *mut f32,
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

/// What both passes begin with.
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
                // `exp` ends at 1e-38, which the products to come would make subnormal, and so a hundred
                // times slower to compute with: what is as small as that becomes 0.
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
