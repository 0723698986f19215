//! LayerNorm and its gradients.

use super::blocks::{ROW_BLOCK, filled, sum_of_blocks};
use super::registers::{load_up_to, store_up_to};
use crate::kernels::parallel::{Shared, for_each};
use crate::kernels::simd::{Simd, dispatch};

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

/// Turns the gradient with respect to LayerNorm's result into the one with respect to x, and returns those
/// with respect to scale and shift.
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

/// Rows of a LayerNorm, in either pass.
struct Norm {
    x: *const f32,
    scale: *const f32,
    shift: *const f32,
    /// The result; in the backward pass the gradient, in and out.
    out: *mut f32,
    /// Mean and inverse deviation of each row.
    moments: *mut f32,
    /// In the backward pass, the gradients of scale and shift, which are added to.
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
