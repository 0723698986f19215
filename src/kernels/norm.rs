//! Normalisations over a row.

use super::matmul::{Rows, RowsMut};
use super::simd::{Simd, dispatch};

/// LayerNorm over the last dimension: (x - mean) / sqrt(variance + epsilon) * scale + shift, with the
/// biased variance, taken around the mean (not as a difference of squares, which cancels in `f32`).
#[derive(Clone)]
pub struct LayerNorm {
    /// The factor for each column.
    pub scale: Vec<f32>,
    /// The summand for each column.
    pub shift: Vec<f32>,
    /// What keeps the root away from zero.
    pub epsilon: f32,
}

impl LayerNorm {
    /// Normalises each row of `input` into `output`.
    ///
    /// # Panics
    /// Where the shapes differ.
    pub fn forward(&self, input: Rows<'_>, output: &mut RowsMut<'_>) {
        assert_eq!(input.width, self.scale.len());
        assert_eq!((input.rows, input.width), (output.rows, output.width));
        // SAFETY: both hold `rows` rows of `width` floats `stride` apart, which `Rows` has checked.
        unsafe {
            layer_norm(
                input.as_ptr(),
                input.stride,
                output.as_mut_ptr(),
                output.stride,
                input.rows,
                self,
            )
        }
    }

    /// Normalises each row where it stands.
    ///
    /// # Panics
    /// Where the width differs.
    pub fn in_place(&self, rows: &mut RowsMut<'_>) {
        assert_eq!(rows.width, self.scale.len());
        let pointer = rows.as_mut_ptr();
        // SAFETY: a row is read whole before its values are written, each from what was at its place.
        unsafe { layer_norm(pointer, rows.stride, pointer, rows.stride, rows.rows, self) }
    }
}

dispatch! {
    unsafe fn layer_norm(input: *const f32, input_stride: usize, output: *mut f32, output_stride: usize, rows: usize, norm: &LayerNorm) = layer_norm_rows
}

#[inline(always)]
unsafe fn layer_norm_rows<S: Simd>(
    input: *const f32,
    input_stride: usize,
    output: *mut f32,
    output_stride: usize,
    rows: usize,
    norm: &LayerNorm,
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
                S::store(y.add(i), S::mul_add(a, S::load(scale.add(i)), S::load(shift.add(i))));
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

/// Divides a vector by its Euclidean length, which is taken in `f64`; a length of 0 leaves it as it is.
///
/// ```
/// let mut v = [3.0, 4.0];
/// ernie_vil::kernels::l2_normalise(&mut v);
/// assert_eq!(v, [0.6, 0.8]);
/// ```
pub fn l2_normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        for x in vector {
            *x = (f64::from(*x) / length) as f32;
        }
    }
}
