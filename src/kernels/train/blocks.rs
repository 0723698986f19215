//! Results that are written in blocks of rows, and sums that are taken over these blocks.

use crate::kernels::parallel::{Shared, for_each};

/// Rows of one task where each row is cheap.
pub(super) const ROW_BLOCK: usize = 64;

/// Returns a vector of `len` values that `fill` writes; it is not zeroed before.
///
/// # Safety
/// `fill` must write all `len` values.
pub(super) unsafe fn filled(len: usize, fill: impl FnOnce(Shared)) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    fill(Shared(values.as_mut_ptr()));
    // SAFETY: the capacity is `len`, and the caller vouches that all was written.
    unsafe { values.set_len(len) };
    values
}

/// Adds up the blocks of `width` values, in order.
pub(super) fn sum_of_blocks(sums: &[f32], width: usize) -> Vec<f32> {
    let mut total = vec![0.0f32; width];
    for block in sums.chunks_exact(width) {
        for (total, value) in total.iter_mut().zip(block) {
            *total += value;
        }
    }
    total
}

/// Adds up the blocks as [`sum_of_blocks`] does, on all threads.
pub(super) fn sum_of_large_blocks(sums: &[f32], width: usize) -> Vec<f32> {
    const PIECE: usize = 4096;
    let run = |out: Shared| {
        for_each(width.div_ceil(PIECE), true, |piece| {
            let first = piece * PIECE;
            let some = PIECE.min(width - first);
            // SAFETY: each piece has values of its own, which are written before they are read.
            let out = unsafe {
                out.get().add(first).write_bytes(0, some);
                std::slice::from_raw_parts_mut(out.get().add(first), some)
            };
            for block in sums.chunks_exact(width) {
                for (total, value) in out.iter_mut().zip(&block[first..]) {
                    *total += value;
                }
            }
        });
    };
    // SAFETY: the pieces are all of it.
    unsafe { filled(width, run) }
}
