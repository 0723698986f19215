//! Exponentials and activations, a register at a time.

use super::simd::Simd;

/// e^x to about one unit in the last place; below -87.3 it is 1.2e-38 instead of smaller still.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, and a polynomial of degree seven in r (the coefficients of
/// Cephes' `expf`).
#[inline(always)]
pub(super) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    unsafe {
        // The bound keeps n at or below 127. A NaN must stand second: `min` and `max` hand the second over.
        let x = S::min(S::splat(88.02), S::max(S::splat(-87.33), x));
        let n = S::sub(
            S::mul_add(x, S::splat(std::f32::consts::LOG2_E), S::splat(ROUND)),
            S::splat(ROUND),
        );
        // ln 2 in two parts, the first of few bits, so that n times it is exact.
        let r = S::mul_add(n, S::splat(-0.693_359_4), x);
        let r = S::mul_add(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        p = S::mul_add(p, r, S::splat(1.398_199_9e-3));
        p = S::mul_add(p, r, S::splat(8.333_452e-3));
        p = S::mul_add(p, r, S::splat(4.166_579_6e-2));
        p = S::mul_add(p, r, S::splat(1.666_666_5e-1));
        p = S::mul_add(p, r, S::splat(0.5));
        let y = S::add(S::mul_add(p, S::mul(r, r), r), S::splat(1.0));
        S::scale_by_power_of_two(y, n)
    }
}

/// A function of one value. A type and not a closure, which would not be inlined, and so be compiled
/// without the instruction set.
pub(super) trait Function {
    unsafe fn of<S: Simd>(x: S::V) -> S::V;
}

pub(super) struct QuickGelu;
pub(super) struct Swish;
pub(super) struct Gelu;
pub(super) struct Relu;

impl Function for QuickGelu {
    #[inline(always)]
    unsafe fn of<S: Simd>(x: S::V) -> S::V {
        unsafe { quick_gelu::<S>(x) }
    }
}

impl Function for Swish {
    #[inline(always)]
    unsafe fn of<S: Simd>(x: S::V) -> S::V {
        unsafe { swish::<S>(x) }
    }
}

impl Function for Gelu {
    #[inline(always)]
    unsafe fn of<S: Simd>(x: S::V) -> S::V {
        unsafe { gelu::<S>(x) }
    }
}

impl Function for Relu {
    #[inline(always)]
    unsafe fn of<S: Simd>(x: S::V) -> S::V {
        // A NaN must stand second to come through.
        unsafe { S::max(S::splat(0.0), x) }
    }
}

/// x / (1 + e^(-1.702 x)), the approximation of GELU that CLIP's image towers use.
#[inline(always)]
pub(super) unsafe fn quick_gelu<S: Simd>(x: S::V) -> S::V {
    unsafe { times_sigmoid::<S>(x, 1.702) }
}

/// x / (1 + e^-x), which is also called SiLU.
#[inline(always)]
pub(super) unsafe fn swish<S: Simd>(x: S::V) -> S::V {
    unsafe { times_sigmoid::<S>(x, 1.0) }
}

/// x / (1 + e^(-steepness x)).
///
/// The exponential is a power of two whose exponent need not be exact: what it is off by is at most a few units in the
/// last place of the sum with 1. The polynomial of degree five is off by 1.5e-7 on [-1/2, 1/2].
#[inline(always)]
unsafe fn times_sigmoid<S: Simd>(x: S::V, steepness: f32) -> S::V {
    const ROUND: f32 = 12_582_912.0;
    unsafe {
        let t = S::mul(x, S::splat(-steepness * std::f32::consts::LOG2_E));
        // Keeps the sum a number whose reciprocal is one. A NaN must stand second.
        let t = S::min(S::splat(125.0), S::max(S::splat(-125.0), t));
        let n = S::sub(S::add(t, S::splat(ROUND)), S::splat(ROUND));
        let r = S::sub(t, n);
        let mut p = S::splat(1.327_647_1e-3);
        p = S::mul_add(p, r, S::splat(9.675_541e-3));
        p = S::mul_add(p, r, S::splat(5.550_713e-2));
        p = S::mul_add(p, r, S::splat(2.402_212e-1));
        p = S::mul_add(p, r, S::splat(6.931_469_4e-1));
        p = S::mul_add(p, r, S::splat(1.0));
        S::quotient(x, S::add(S::splat(1.0), S::scale_by_power_of_two(p, n)))
    }
}

/// x (1 + erf(x / sqrt 2)) / 2, the exact GELU.
///
/// erf is a rational function of odd over even degree on [-4, 4] (Eigen's coefficients), beyond which
/// it is 1 in `f32`.
#[inline(always)]
pub(super) unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let z = S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let z = S::min(S::splat(4.0), S::max(S::splat(-4.0), z));
        let z2 = S::mul(z, z);
        let mut p = S::splat(-2.726_142_3e-10);
        p = S::mul_add(p, z2, S::splat(2.770_681_4e-8));
        p = S::mul_add(p, z2, S::splat(-2.101_024e-6));
        p = S::mul_add(p, z2, S::splat(-5.692_506_5e-5));
        p = S::mul_add(p, z2, S::splat(-7.349_906_3e-4));
        p = S::mul_add(p, z2, S::splat(-2.954_6e-3));
        p = S::mul_add(p, z2, S::splat(-1.609_603_3e-2));
        let p = S::mul(p, z);
        let mut q = S::splat(-1.456_607_2e-5);
        q = S::mul_add(q, z2, S::splat(-2.133_740_6e-4));
        q = S::mul_add(q, z2, S::splat(-1.682_827e-3));
        q = S::mul_add(q, z2, S::splat(-7.373_329e-3));
        q = S::mul_add(q, z2, S::splat(-1.426_473_9e-2));
        let half = S::mul(x, S::splat(0.5));
        S::mul_add(half, S::div(p, q), half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::dispatch;

    #[inline(always)]
    unsafe fn all<S: Simd>(function: u8, x: &[f32], y: &mut [f32]) {
        for i in (0..x.len()).step_by(S::LANES) {
            unsafe {
                let v = S::load(x.as_ptr().add(i));
                let v = match function {
                    0 => exp::<S>(v),
                    1 => quick_gelu::<S>(v),
                    2 => swish::<S>(v),
                    _ => gelu::<S>(v),
                };
                S::store(y.as_mut_ptr().add(i), v);
            }
        }
    }
    dispatch! { unsafe fn all_best(function: u8, x: &[f32], y: &mut [f32]) = all }

    /// erf in f64 by its Taylor series, good on [-6, 6].
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn agree_with_f64() {
        let x: Vec<f32> = (0..16_000).map(|i| (i as f32 - 8_000.0) / 1_000.0).collect();
        for (function, name) in ["exp", "quick_gelu", "swish", "gelu"].into_iter().enumerate() {
            let mut best = vec![0.0; x.len()];
            let mut portable = vec![0.0; x.len()];
            // SAFETY: the lengths are multiples of every register's, the instruction set is checked.
            unsafe {
                all_best(function as u8, &x, &mut best);
                all::<crate::kernels::simd::Portable>(function as u8, &x, &mut portable);
            }
            for (i, &x) in x.iter().enumerate() {
                let x = f64::from(x);
                let (expected, tolerance) = match function {
                    0 => (x.exp(), 3e-7 * x.exp()),
                    1 => (x / (1.0 + (-1.702 * x).exp()), 1e-6),
                    2 => (x / (1.0 + (-x).exp()), 1e-6),
                    _ if x.abs() < 6.0 => (0.5 * x * (1.0 + erf(x / 2f64.sqrt())), 1e-6),
                    _ => (x.max(0.0), 1e-6),
                };
                for y in [best[i], portable[i]] {
                    assert!(
                        (f64::from(y) - expected).abs() <= tolerance,
                        "{name}({x}) = {y}, expected {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn exp_at_the_ends() {
        let x = [
            -1e30,
            -200.0,
            -87.3,
            0.0,
            88.0,
            1e30,
            f32::NAN,
            f32::INFINITY,
            -0.0,
            1.0,
            -1.0,
            2.0,
            3.0,
            4.0,
            5.0,
            6.0,
        ];
        let mut y = [0.0; 16];
        // SAFETY: 16 is a multiple of every register's length, the instruction set is checked.
        unsafe { all_best(0, &x, &mut y) };
        assert!(y[0] >= 0.0 && y[0] < 1e-37 && y[1] < 1e-37);
        assert_eq!(y[3], 1.0);
        assert!(y[4] > 1e38 && y[4].is_finite() && y[5] > 1e38);
        assert!(y[6].is_nan());
        // SAFETY: as above.
        unsafe { all_best(2, &x[..16], &mut y) };
        assert!(y[1].abs() < 1e-30 && y[5] == 1e30 && y[6].is_nan());
    }
}
