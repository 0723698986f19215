//! Dropout, alone or with the residual added.

use super::blocks::{ROW_BLOCK, filled};
use super::registers::{load_up_to, store_up_to};
use crate::kernels::dropout::{DropoutMask, bits};
use crate::kernels::parallel::{Shared, for_each};
use crate::kernels::simd::{Simd, dispatch};

/// Returns x + drop(y), for rows of `width` values.
pub fn drop_add(x: &[f32], y: &[f32], width: usize, drop: &DropoutMask) -> Vec<f32> {
    drop_blocks(Some(x), y, width, drop)
}

/// Returns each value times its factor, for rows of `width` values: dropout, or its backward pass.
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
    unsafe fn drop_rows(
        x: *const f32,
        y: *const f32,
        first: usize,
        rows: usize,
        width: usize,
        drop: &DropoutMask,
        out: *mut f32,
    ) = drop_rows_with
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
