//! A few rows of a matmul's result, held in registers.

use super::activation::Activation;
use crate::kernels::math;
use crate::kernels::simd::Simd;

/// How far ahead of its use, in floats, a panel is asked for: 4 KiB. The processor's own prefetching stops at
/// the end of each page, which shows where the weights come from memory.
const PREFETCH: usize = 1024;

/// Rows of a tile: with two registers a row, as many as leave room for the panel's two registers and
/// one value of the input.
pub(super) const fn tile_height<S: Simd>() -> usize {
    match S::LANES {
        16 => 12,
        8 => 6,
        _ => 4,
    }
}

/// What is the same for all tiles down a panel.
pub(super) struct Tile {
    pub(super) input_stride: usize,
    pub(super) packed: *const f32,
    pub(super) depth: usize,
    pub(super) columns: usize,
    pub(super) bias: *const f32,
    pub(super) output_stride: usize,
    pub(super) activation: Activation,
    pub(super) accumulate: bool,
    /// How many bytes each step down the depth goes on in what is touched ahead.
    pub(super) ahead_step: usize,
}

impl Tile {
    /// M rows by two registers of columns, held in registers while the depth passes.
    ///
    /// In WebAssembly it is a function of its own, which is called often and soon: an engine starts with
    /// quickly made, slow code and replaces it at a call, and it allots registers better in a small function.
    #[cfg_attr(not(target_arch = "wasm32"), inline(always))]
    #[cfg_attr(target_arch = "wasm32", inline(never))]
    pub(super) unsafe fn run<S: Simd, const M: usize, const AHEAD: bool>(
        &self,
        input: *const f32,
        output: *mut f32,
        ahead: *const u8,
    ) {
        if M > tile_height::<S>() || (AHEAD && !S::TOUCHES) {
            // Known when compiled: no code comes of tiles that are not used.
            return;
        }
        let lanes = S::LANES;
        let is_whole = self.columns == 2 * lanes;
        unsafe {
            let mut sums = [[S::splat(0.0); 2]; M];
            if !self.bias.is_null() {
                let bias = match is_whole {
                    true => [S::load(self.bias), S::load(self.bias.add(lanes))],
                    false => self.load_some::<S>(self.bias),
                };
                sums = [bias; M];
            }
            if self.accumulate {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let at = output.add(i * self.output_stride);
                    let old = match is_whole {
                        true => [S::load(at), S::load(at.add(lanes))],
                        false => self.load_some::<S>(at),
                    };
                    *sum = [S::add(sum[0], old[0]), S::add(sum[1], old[1])];
                }
            }
            let (mut packed, mut ahead) = (self.packed, ahead);
            for k in 0..self.depth {
                let right = [S::load(packed), S::load(packed.add(lanes))];
                S::prefetch(packed.wrapping_add(PREFETCH));
                if AHEAD {
                    S::touch(ahead);
                    ahead = ahead.add(self.ahead_step);
                }
                packed = packed.add(2 * lanes);
                for (i, sum) in sums.iter_mut().enumerate() {
                    let left = S::splat(*input.add(i * self.input_stride + k));
                    sum[0] = S::mul_add(left, right[0], sum[0]);
                    sum[1] = S::mul_add(left, right[1], sum[1]);
                }
            }
            for (i, sum) in sums.iter_mut().enumerate() {
                let at = output.add(i * self.output_stride);
                if self.columns >= lanes {
                    S::store(at, sum[0]);
                    match is_whole {
                        true => S::store(at.add(lanes), sum[1]),
                        false => S::store_first(at.add(lanes), sum[1], self.columns - lanes),
                    }
                } else {
                    S::store_first(at, sum[0], self.columns);
                }
            }
            // Applied to what was just stored: it is still in the first level cache, and all registers are
            // free for it.
            if S::LANES > 4 && self.activation != Activation::None {
                self.activate::<S>(output, M);
            }
        }
    }

    /// Two registers of which only `self.columns` values may be read.
    #[inline(always)]
    unsafe fn load_some<S: Simd>(&self, from: *const f32) -> [S::V; 2] {
        let lanes = S::LANES;
        unsafe {
            match self.columns >= lanes {
                true => [
                    S::load(from),
                    S::load_first(from.add(lanes), self.columns - lanes),
                ],
                false => [S::load_first(from, self.columns), S::splat(0.0)],
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn activate<S: Simd>(&self, output: *mut f32, rows: usize) {
        unsafe {
            match self.activation {
                Activation::None => {}
                Activation::QuickGelu => self.apply::<S, math::QuickGelu>(output, rows),
                Activation::Swish => self.apply::<S, math::Swish>(output, rows),
                Activation::Gelu => self.apply::<S, math::Gelu>(output, rows),
                Activation::Relu => self.apply::<S, math::Relu>(output, rows),
            }
        }
    }

    /// In WebAssembly a function of its own, so that its many constants stay out of the others' way.
    #[cfg_attr(not(target_arch = "wasm32"), inline(always))]
    #[cfg_attr(target_arch = "wasm32", inline(never))]
    unsafe fn apply<S: Simd, F: math::Function>(&self, output: *mut f32, rows: usize) {
        let whole = self.columns / S::LANES * S::LANES;
        for i in 0..rows {
            unsafe {
                let row = output.add(i * self.output_stride);
                for column in (0..whole).step_by(S::LANES) {
                    let at = row.add(column);
                    S::store(at, F::of::<S>(S::load(at)));
                }
                if whole < self.columns {
                    let (at, some) = (row.add(whole), self.columns - whole);
                    S::store_first(at, F::of::<S>(S::load_first(at, some)), some);
                }
            }
        }
    }
}
