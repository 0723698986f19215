//! Activations over a run of values, and their gradients.

use super::registers::{load_up_to, store_up_to};
use crate::kernels::simd::{Simd, dispatch};
use crate::kernels::{Activation, math};

dispatch! {
    pub(super) unsafe fn activate_values(
        x: *const f32,
        out: *mut f32,
        n: usize,
        activation: Activation,
    ) = activate_with
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
pub(super) unsafe fn slope_with<S: Simd>(
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
