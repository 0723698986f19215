//! The right-hand side of a matmul, packed into panels.

use super::panels::{Panels, groups, panel_width};
use crate::kernels::Buffer;
use crate::kernels::parallel::{Shared, for_each};

/// The right-hand side of a product, [depth, columns], stored so that the kernel reads it from front to
/// back: in panels of as many columns as a tile has, the last one filled up with zeros.
///
/// It may be of whole numbers with scales, which are expanded piece by piece as a product comes to them: a
/// few rows take no longer than their bytes do from memory, and many rows take little longer than in single
/// precision.
#[derive(Clone)]
pub struct PackedMatrix {
    data: Data,
    depth: usize,
    columns: usize,
    panel: usize,
}

/// The kinds of values that a packed matrix is kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PackedValues {
    /// Single precision.
    F32,
    /// Whole numbers of eight bits, with scales.
    Int8,
    /// Whole numbers of four bits, with scales.
    Int4,
}

/// Panels, one behind another.
#[derive(Clone)]
enum Data {
    F32(Buffer),
    /// A panel's codes row by row; and its scales, one a column.
    Int8(Vec<i8>, Vec<f32>),
    /// Likewise, with the second half of a row's codes in the high bits of the first half's; scales for every
    /// [`GROUP`](super::GROUP) rows.
    Int4(Vec<u8>, Vec<f32>),
}

impl PackedMatrix {
    /// Packs what `copy(row, column, out)` gives: `out.len()` values of `row`, from `column` on.
    pub fn pack(
        depth: usize,
        columns: usize,
        parallel: bool,
        copy: impl Fn(usize, usize, &mut [f32]) + Sync + Send,
    ) -> Self {
        let panel = panel_width();
        let panels = columns.div_ceil(panel);
        let mut data = Buffer::zeros(panels * panel * depth);
        let shared = Shared(data.as_mut_ptr());
        for_each(panels, parallel, |p| {
            // SAFETY: panel `p` is this task's alone.
            let out =
                unsafe { std::slice::from_raw_parts_mut(shared.get().add(p * panel * depth), panel * depth) };
            let wide = panel.min(columns - p * panel);
            for (row, out) in out.chunks_exact_mut(panel).enumerate() {
                copy(row, p * panel, &mut out[..wide]);
            }
        });
        Self {
            data: Data::F32(data),
            depth,
            columns,
            panel,
        }
    }

    /// Packs whole numbers: `column(c)` gives the codes of a column, from the top, and their scale.
    pub(crate) fn pack_int8<'a>(
        depth: usize,
        columns: usize,
        column: impl Fn(usize) -> (&'a [i8], f32) + Sync + Send,
    ) -> Self {
        let panel = panel_width();
        let panels = columns.div_ceil(panel);
        let mut codes = vec![0i8; panels * panel * depth];
        let mut scales = vec![0.0; panels * panel];
        for (c, scale) in scales.iter_mut().enumerate().take(columns) {
            *scale = column(c).1;
        }
        let shared = Shared(codes.as_mut_ptr());
        for_each(panels, true, |p| {
            // SAFETY: panel `p` is this task's alone.
            let out =
                unsafe { std::slice::from_raw_parts_mut(shared.get().add(p * panel * depth), panel * depth) };
            for c in 0..panel.min(columns - p * panel) {
                let (codes, _) = column(p * panel + c);
                for (out, &code) in out[c..].iter_mut().step_by(panel).zip(codes) {
                    *out = code;
                }
            }
        });
        Self {
            data: Data::Int8(codes, scales),
            depth,
            columns,
            panel,
        }
    }

    /// Packs whole numbers of four bits: `column(c)` gives the codes of a column, from the top, two to a
    /// byte, the first in the low bits; and writes a scale for every [`GROUP`](super::GROUP) of them.
    pub(crate) fn pack_int4<'a>(
        depth: usize,
        columns: usize,
        column: impl Fn(usize, &mut [f32]) -> &'a [u8] + Sync + Send,
    ) -> Self {
        let (panel, groups) = (panel_width(), groups(depth));
        let half = panel / 2;
        let panels = columns.div_ceil(panel);
        let mut codes = vec![0u8; panels * half * depth];
        let mut scales = vec![0.0; panels * panel * groups];
        let shared = (Shared(codes.as_mut_ptr()), Shared(scales.as_mut_ptr()));
        for_each(panels, true, |p| {
            // SAFETY: panel `p` is this task's alone.
            let (out, scales) = unsafe {
                let (codes, scales) = (shared.0.get(), shared.1.get());
                (
                    std::slice::from_raw_parts_mut(codes.add(p * half * depth), half * depth),
                    std::slice::from_raw_parts_mut(scales.add(p * panel * groups), panel * groups),
                )
            };
            let mut of_column = vec![0.0; groups];
            for c in 0..panel.min(columns - p * panel) {
                let codes = column(p * panel + c, &mut of_column);
                for (out, &scale) in scales[c..].iter_mut().step_by(panel).zip(&of_column) {
                    *out = scale;
                }
                let shift = if c < half { 0 } else { 4 };
                for (k, out) in out[c % half..].iter_mut().step_by(half).enumerate() {
                    *out |= (codes[k / 2] >> (k % 2 * 4) & 15) << shift;
                }
            }
        });
        Self {
            data: Data::Int4(codes, scales),
            depth,
            columns,
            panel,
        }
    }

    /// Returns the kind of values that the matrix is kept as.
    pub(crate) fn values(&self) -> PackedValues {
        match self.data {
            Data::F32(_) => PackedValues::F32,
            Data::Int8(..) => PackedValues::Int8,
            Data::Int4(..) => PackedValues::Int4,
        }
    }

    /// Columns of a panel.
    pub(in crate::kernels) fn panel(&self) -> usize {
        self.panel
    }

    /// The matrix with row `k` multiplied by `factors[k]`, in `memory`.
    ///
    /// # Panics
    /// Where there is not one factor a row, or where the matrix is of whole numbers.
    pub(crate) fn scaled(&self, factors: &[f32], mut memory: Buffer, parallel: bool) -> Self {
        assert_eq!(factors.len(), self.depth, "one factor a row");
        let Data::F32(values) = &self.data else {
            panic!("a matrix in single precision");
        };
        memory.resize(values.len());
        let out = Shared(memory.as_mut_ptr());
        let length = self.panel * self.depth;
        for_each(values.len() / length, parallel, |p| {
            // SAFETY: panel `p` is this task's alone.
            let out = unsafe { std::slice::from_raw_parts_mut(out.get().add(p * length), length) };
            let rows = values[p * length..].chunks_exact(self.panel).zip(factors);
            for (out, (row, factor)) in out.chunks_exact_mut(self.panel).zip(rows) {
                for (out, value) in out.iter_mut().zip(row) {
                    *out = value * factor;
                }
            }
        });
        Self {
            data: Data::F32(memory),
            depth: self.depth,
            columns: self.columns,
            panel: self.panel,
        }
    }

    /// The memory of a matrix in single precision, to be used again.
    pub(crate) fn into_memory(self) -> Buffer {
        match self.data {
            Data::F32(memory) => memory,
            _ => Buffer::default(),
        }
    }

    pub(in crate::kernels) fn panels(&self) -> Panels {
        match &self.data {
            Data::F32(values) => Panels::F32(values.as_ptr()),
            Data::Int8(codes, scales) => Panels::Int8(codes.as_ptr(), scales.as_ptr()),
            Data::Int4(codes, scales) => Panels::Int4(codes.as_ptr(), scales.as_ptr()),
        }
    }

    /// Packs a row-major [depth, columns] matrix.
    ///
    /// # Panics
    /// Where `values` is not `depth * columns` long.
    pub fn from_rows(values: &[f32], depth: usize, columns: usize) -> Self {
        assert_eq!(values.len(), depth * columns);
        Self::pack(depth, columns, true, |row, column, out| {
            let start = row * columns + column;
            out.copy_from_slice(&values[start..start + out.len()]);
        })
    }

    /// Packs the transpose of a row-major [columns, depth] matrix: a product with it gives the inner
    /// products with its rows.
    ///
    /// # Panics
    /// Where `rows` is not `columns * depth` long.
    pub fn from_transposed(rows: &[f32], columns: usize, depth: usize) -> Self {
        assert_eq!(rows.len(), columns * depth);
        Self::pack(depth, columns, true, |row, column, out| {
            for (i, out) in out.iter_mut().enumerate() {
                *out = rows[(column + i) * depth + row];
            }
        })
    }

    /// Rows of the matrix: the depth of the product.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Columns of the matrix: the width of the result.
    pub fn columns(&self) -> usize {
        self.columns
    }
}
