//! Rows of any width in vector registers: the last register of a row may be filled in part.

use crate::kernels::simd::{InstructionSet, Simd};

/// Returns the lanes of a vector register of the instruction set in use.
pub(super) fn lanes() -> usize {
    match InstructionSet::detect() {
        InstructionSet::Avx512 => 16,
        InstructionSet::Avx2 | InstructionSet::Portable => 8,
    }
}

/// Loads `n` values, or a whole register where there are more; the other lanes are 0.
#[inline(always)]
pub(super) unsafe fn load_up_to<S: Simd>(p: *const f32, n: usize) -> S::V {
    unsafe {
        match n >= S::LANES {
            true => S::load(p),
            false => S::load_first(p, n),
        }
    }
}

/// Stores the first `n` lanes, or all where there are fewer.
#[inline(always)]
pub(super) unsafe fn store_up_to<S: Simd>(p: *mut f32, v: S::V, n: usize) {
    unsafe {
        match n >= S::LANES {
            true => S::store(p, v),
            false => S::store_first(p, v, n),
        }
    }
}
