//! One thread's part of a matmul: panel by panel, each for all rows.

use super::activation::Activation;
use super::panels::{Panels, QUANTISED_DEPTH, Scratch};
use super::tile::{Tile, tile_height};
use crate::kernels::simd::{Simd, dispatch};

/// How deep a panel is taken at a time: 384 rows of 32 columns are 48 KiB, which stream from the second
/// level cache while the matching piece of twelve rows (18 KiB) stays in the first. A panel of 8 columns can
/// be deeper, for fewer beginnings and ends of a tile. The depth does not show in the result.
const fn depth_block<S: Simd>() -> usize {
    match S::LANES {
        8.. => 384,
        _ => 768,
    }
}

/// Up to this many rows, waiting for the weights to come from memory takes a good part of the time: each tile
/// looks for a share of the next panel ([`Simd::touch`]).
const TOUCH_ROWS: usize = 64;

/// From this many weights on (1 MiB) they do come from memory.
const TOUCH_WEIGHTS: usize = 1 << 18;

/// One thread's product. `packed` points to panels of `depth` rows.
pub(in crate::kernels) struct Product {
    pub input: *const f32,
    pub input_stride: usize,
    pub rows: usize,
    pub packed: Panels,
    pub depth: usize,
    pub columns: usize,
    /// Null where there is none.
    pub bias: *const f32,
    pub output: *mut f32,
    pub output_stride: usize,
    pub activation: Activation,
    pub accumulate: bool,
}

dispatch! {
    /// # Safety
    /// Every pointer of `p` must be valid for the shape that `p` states.
    pub(in crate::kernels) unsafe fn product(p: &Product) = product_with
}

/// # Safety
/// As [`product`], and the processor must have the instruction set of `S`.
#[inline(always)]
pub(in crate::kernels) unsafe fn product_with<S: Simd>(p: &Product) {
    let panel = 2 * S::LANES;
    let tiles = p.rows.div_ceil(tile_height::<S>());
    let is_f32 = matches!(p.packed, Panels::F32(_));
    let touches =
        S::TOUCHES && is_f32 && tiles > 1 && p.rows <= TOUCH_ROWS && p.depth * p.columns >= TOUCH_WEIGHTS;
    let most = match is_f32 {
        true => depth_block::<S>(),
        false => QUANTISED_DEPTH,
    };
    let mut room;
    let scratch = match is_f32 {
        true => std::ptr::null_mut(),
        false => {
            room = Scratch([0.0; _]);
            room.0.as_mut_ptr()
        }
    };
    let mut start = 0;
    loop {
        let depth = most.min(p.depth - start);
        let is_first = start == 0;
        let is_last = start + depth == p.depth;
        for column in (0..p.columns).step_by(panel) {
            // SAFETY: `start < p.depth`, `column < p.columns`, and the caller vouches for the pointers.
            unsafe {
                let packed = p.packed.from(column, p.depth).piece::<S>(start, depth, scratch);
                let bias = match is_first && !p.bias.is_null() {
                    true => p.bias.add(column),
                    false => std::ptr::null(),
                };
                // Each tile touches its share of the next panel's piece.
                let (mut ahead, ahead_step): (*const u8, _) = match touches && column + panel < p.columns {
                    true => (
                        packed.add(panel * p.depth).cast(),
                        size_of::<f32>() * panel / tiles,
                    ),
                    false => (std::ptr::null(), 0),
                };
                let tile = Tile {
                    input_stride: p.input_stride,
                    packed,
                    depth,
                    columns: panel.min(p.columns - column),
                    bias,
                    output_stride: p.output_stride,
                    activation: if is_last { p.activation } else { Activation::None },
                    accumulate: p.accumulate || !is_first,
                    ahead_step,
                };
                let mut row = 0;
                while row < p.rows {
                    let rows = tile_height::<S>().min(p.rows - row);
                    let input = p.input.add(row * p.input_stride + start);
                    let output = p.output.add(row * p.output_stride + column);
                    match rows {
                        1 => tile.run::<S, 1, false>(input, output, ahead),
                        2 => tile.run::<S, 2, false>(input, output, ahead),
                        3 => tile.run::<S, 3, false>(input, output, ahead),
                        4 if !ahead.is_null() => tile.run::<S, 4, true>(input, output, ahead),
                        4 => tile.run::<S, 4, false>(input, output, ahead),
                        5 => tile.run::<S, 5, false>(input, output, ahead),
                        6 => tile.run::<S, 6, false>(input, output, ahead),
                        7 => tile.run::<S, 7, false>(input, output, ahead),
                        8 => tile.run::<S, 8, false>(input, output, ahead),
                        9 => tile.run::<S, 9, false>(input, output, ahead),
                        10 => tile.run::<S, 10, false>(input, output, ahead),
                        11 => tile.run::<S, 11, false>(input, output, ahead),
                        _ => tile.run::<S, 12, false>(input, output, ahead),
                    }
                    row += rows;
                    ahead = ahead.wrapping_add(depth * ahead_step);
                }
                if S::LANES == 4 {
                    tile.activate::<S>(p.output.add(column), p.rows);
                }
            }
        }
        start += depth;
        if start >= p.depth {
            break;
        }
    }
}
