//! Normalisations over a row.

use super::matmul::{Rows, RowsMut};
use super::parallel::{Shared, for_each};
use super::simd::{Simd, dispatch};

/// LayerNorm over the last dimension: (x - mean) / sqrt(variance + epsilon) * scale + shift, with the
/// biased variance, taken around the mean (not as a difference of squares, which cancels in `f32`).
pub struct LayerNorm<'a> {
    /// The factor for each column.
    pub scale: &'a [f32],
    /// The summand for each column.
    pub shift: &'a [f32],
    /// What keeps the root away from zero.
    pub epsilon: f32,
}

impl LayerNorm<'_> {
    /// Normalises each row of `input` into `output`.
    ///
    /// # Panics
    /// Where the shapes differ.
    pub fn forward(&self, input: Rows<'_>, output: &mut RowsMut<'_>, parallel: bool) {
        assert_eq!((input.rows, input.width), (output.rows, output.width));
        let from = (Shared(input.as_ptr().cast_mut()), input.stride);
        let to = (Shared(output.as_mut_ptr()), output.stride);
        self.run(from, to, input.rows, input.width, parallel);
    }

    /// Normalises each row where it stands.
    ///
    /// # Panics
    /// Where the width differs.
    pub fn in_place(&self, rows: &mut RowsMut<'_>, parallel: bool) {
        let at = (Shared(rows.as_mut_ptr()), rows.stride);
        self.run(at, at, rows.rows, rows.width, parallel);
    }

    /// `from` and `to` may be the same rows: each value is written from what was at its place, after the
    /// row's mean and variance were taken.
    fn run(&self, from: (Shared, usize), to: (Shared, usize), rows: usize, width: usize, parallel: bool) {
        /// Rows of one task.
        const BLOCK: usize = 32;
        assert!(width == self.scale.len() && width == self.shift.len());
        for_each(rows.div_ceil(BLOCK), parallel, |block| {
            let first = block * BLOCK;
            // SAFETY: the caller's `Rows` hold `rows` rows of `width` floats; each task has rows of its own.
            unsafe {
                layer_norm(
                    from.0.get().add(first * from.1),
                    from.1,
                    to.0.get().add(first * to.1),
                    to.1,
                    BLOCK.min(rows - first),
                    self,
                )
            }
        });
    }
}

dispatch! {
    unsafe fn layer_norm(input: *const f32, input_stride: usize, output: *mut f32, output_stride: usize, rows: usize, norm: &LayerNorm<'_>) = layer_norm_rows
}

#[inline(always)]
unsafe fn layer_norm_rows<S: Simd>(
    input: *const f32,
    input_stride: usize,
    output: *mut f32,
    output_stride: usize,
    rows: usize,
    norm: &LayerNorm<'_>,
) {
    let width = norm.scale.len();
    let (scale, shift) = (norm.scale.as_ptr(), norm.shift.as_ptr());
    let whole = width / S::LANES * S::LANES;
    let rest = width - whole;
    unsafe {
        for row in 0..rows {
            let x = input.add(row * input_stride);
            let y = output.add(row * output_stride);
            // Two sums at a time, so that one addition need not wait for the other.
            let (mut s0, mut s1) = (S::splat(0.0), S::splat(0.0));
            let mut i = 0;
            while i + 2 * S::LANES <= whole {
                s0 = S::add(s0, S::load(x.add(i)));
                s1 = S::add(s1, S::load(x.add(i + S::LANES)));
                i += 2 * S::LANES;
            }
            if i < whole {
                s0 = S::add(s0, S::load(x.add(i)));
            }
            if rest > 0 {
                s1 = S::add(s1, S::load_first(x.add(whole), rest));
            }
            let mean = S::sum(S::add(s0, s1)) / width as f32;
            let m = S::splat(mean);
            let (mut v0, mut v1) = (S::splat(0.0), S::splat(0.0));
            let mut i = 0;
            while i + 2 * S::LANES <= whole {
                let a = S::sub(S::load(x.add(i)), m);
                let b = S::sub(S::load(x.add(i + S::LANES)), m);
                v0 = S::mul_add(a, a, v0);
                v1 = S::mul_add(b, b, v1);
                i += 2 * S::LANES;
            }
            if i < whole {
                let a = S::sub(S::load(x.add(i)), m);
                v0 = S::mul_add(a, a, v0);
            }
            let mut variance = S::sum(S::add(v0, v1));
            for i in whole..width {
                variance += (*x.add(i) - mean).powi(2);
            }
            let inverse = S::splat(1.0 / (variance / width as f32 + norm.epsilon).sqrt());
            for i in (0..whole).step_by(S::LANES) {
                let a = S::mul(S::sub(S::load(x.add(i)), m), inverse);
                S::store(
                    y.add(i),
                    S::mul_add(a, S::load(scale.add(i)), S::load(shift.add(i))),
                );
            }
            if rest > 0 {
                let a = S::mul(S::sub(S::load_first(x.add(whole), rest), m), inverse);
                let a = S::mul_add(
                    a,
                    S::load_first(scale.add(whole), rest),
                    S::load_first(shift.add(whole), rest),
                );
                S::store_first(y.add(whole), a, rest);
            }
        }
    }
}
