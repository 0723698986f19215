//! Matrix products whose left-hand side is stored in either order.

use super::registers::{load_up_to, store_up_to};
use crate::kernels::simd::Simd;

/// out [rows, columns] (+)= left right, where either way of storing `left` will do.
pub(super) struct Strided {
    /// With `TRANSPOSED`, value (i, k) stands at `k * left_stride + i`, else at `i * left_stride + k`.
    pub(super) left: *const f32,
    pub(super) left_stride: usize,
    pub(super) rows: usize,
    /// Row k of a panel's columns stands at `k * right_stride`; the columns are readable up to a whole
    /// register.
    pub(super) right: *const f32,
    pub(super) right_stride: usize,
    /// From a panel of two registers to the next.
    pub(super) right_panel: usize,
    pub(super) depth: usize,
    pub(super) columns: usize,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    pub(super) accumulate: bool,
}

/// Rows of a tile, as many as the registers hold.
pub(super) const fn tile_height<S: Simd>() -> usize {
    match S::LANES {
        16 => 12,
        _ => 6,
    }
}

impl Strided {
    /// # Safety
    /// The pointers must be valid for the shape, and the processor must have the instruction set.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd, const TRANSPOSED: bool>(&self) {
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
