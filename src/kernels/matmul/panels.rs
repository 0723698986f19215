//! The panels of a packed matrix, as a matmul reads them.

use crate::kernels::simd::{InstructionSet, Simd};

/// How deep a quantised panel is expanded at a time: 192 rows of 32 columns are 24 KiB, which stay in the
/// first level cache. A multiple of [`GROUP`].
pub(super) const QUANTISED_DEPTH: usize = 192;

/// Values down a column that share a scale in four bits.
pub(crate) const GROUP: usize = 32;

/// Columns of the widest panel.
const WIDEST_PANEL: usize = 32;

/// The panels of a product.
#[derive(Clone, Copy)]
pub(in crate::kernels) enum Panels {
    F32(*const f32),
    Int8(*const i8, *const f32),
    Int4(*const u8, *const f32),
}

// SAFETY: what it points to is only read.
unsafe impl Sync for Panels {}

/// Groups of a column of so many values.
pub(super) fn groups(depth: usize) -> usize {
    depth.div_ceil(GROUP)
}

impl Panels {
    /// The panels from `column` on, which begins one.
    pub(in crate::kernels) unsafe fn from(self, column: usize, depth: usize) -> Self {
        unsafe {
            match self {
                Self::F32(values) => Self::F32(values.add(column * depth)),
                Self::Int8(codes, scales) => Self::Int8(codes.add(column * depth), scales.add(column)),
                Self::Int4(codes, scales) => {
                    Self::Int4(codes.add(column * depth / 2), scales.add(column * groups(depth)))
                }
            }
        }
    }

    /// Returns `depth` rows of the first panel from row `start` on, in single precision: where they lie, or
    /// in `scratch`, which has the capacity for them.
    #[inline(always)]
    pub(super) unsafe fn piece<S: Simd>(self, start: usize, depth: usize, scratch: *mut f32) -> *const f32 {
        let lanes = S::LANES;
        unsafe {
            match self {
                Self::F32(values) => return values.add(start * 2 * lanes),
                Self::Int8(codes, scales) => {
                    let scales = [S::load(scales), S::load(scales.add(lanes))];
                    for i in 0..2 * depth {
                        let codes = S::load_int8(codes.add((2 * start + i) * lanes));
                        S::store(scratch.add(i * lanes), S::mul(codes, scales[i % 2]));
                    }
                }
                Self::Int4(codes, scales) => {
                    for first in (0..depth).step_by(GROUP) {
                        let scales = scales.add((start + first) / GROUP * 2 * lanes);
                        let scales = [S::load(scales), S::load(scales.add(lanes))];
                        for row in first..depth.min(first + GROUP) {
                            let [low, high] = S::load_int4(codes.add((start + row) * lanes));
                            S::store(scratch.add(2 * row * lanes), S::mul(low, scales[0]));
                            S::store(scratch.add((2 * row + 1) * lanes), S::mul(high, scales[1]));
                        }
                    }
                }
            }
        }
        scratch
    }
}

/// Where a piece of a quantised panel is expanded to.
#[repr(C, align(64))]
pub(super) struct Scratch(pub(super) [f32; QUANTISED_DEPTH * WIDEST_PANEL]);

/// Returns the columns of a panel.
pub(super) fn panel_width() -> usize {
    // Two registers of the instruction set in use.
    match InstructionSet::detect() {
        InstructionSet::Avx512 => 32,
        InstructionSet::Avx2 | InstructionSet::Portable => 16,
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        InstructionSet::Simd128 => 8,
    }
}
