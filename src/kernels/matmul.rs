//! Matrix products with a right-hand side that was packed beforehand.

use std::marker::PhantomData;

use super::buffer::Buffer;
use super::math;
use super::simd::{InstructionSet, Simd, dispatch};
use super::{Shared, for_each, threads};
use crate::weights::{Bits, Dtype};

/// How deep a panel is taken at a time: 384 rows of 32 columns are 48 KiB, which stream from the second
/// level cache while the matching piece of twelve rows (18 KiB) stays in the first. A panel of 8 columns can
/// be deeper, for fewer beginnings and ends of a tile. The depth does not show in the result.
const fn depth_block<S: Simd>() -> usize {
    match S::LANES {
        8.. => 384,
        _ => 768,
    }
}

/// How deep a quantised panel is expanded at a time: 192 rows of 32 columns are 24 KiB, which stay in the first level
/// cache. A multiple of [`GROUP`].
const QUANTISED_DEPTH: usize = 192;

/// Values down a column that share a scale in four bits.
pub(crate) const GROUP: usize = 32;

/// Columns of the widest panel.
const WIDEST_PANEL: usize = 32;

/// Up to this many rows, waiting for the weights to come from memory takes a good part of the time: each tile
/// looks for a share of the next panel ([`Simd::touch`]).
const TOUCH_ROWS: usize = 64;

/// From this many weights on (1 MiB) they do come from memory.
const TOUCH_WEIGHTS: usize = 1 << 18;

/// How far ahead of its use, in floats, a panel is asked for: 4 KiB. The processor's own prefetching stops at
/// the end of each page, which shows where the weights come from memory.
const PREFETCH: usize = 1024;

/// Rows that one task takes at most: their piece of the left-hand side stays in the second level cache
/// while the panels pass by. A multiple of every tile's height.
const ROW_BLOCK: usize = 240;

/// The height of the blocks that `rows` are cut into: equal ones, each of whole tiles, so that no short
/// block is left over for which all panels would pass by once more.
pub(crate) fn row_block(rows: usize) -> usize {
    let blocks = rows.div_ceil(ROW_BLOCK).max(1);
    rows.div_ceil(blocks).next_multiple_of(12)
}

/// Rows of a row-major matrix, `stride` floats apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pointer: *const f32,
    /// Number of rows.
    pub rows: usize,
    /// Floats of a row.
    pub width: usize,
    /// Floats from the start of a row to the start of the next.
    pub stride: usize,
    lifetime: PhantomData<&'a [f32]>,
}

/// Rows of a row-major matrix that are written to, `stride` floats apart.
pub struct RowsMut<'a> {
    pointer: *mut f32,
    /// Number of rows.
    pub rows: usize,
    /// Floats of a row.
    pub width: usize,
    /// Floats from the start of a row to the start of the next.
    pub stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

fn check_rows(len: usize, rows: usize, width: usize, stride: usize) {
    assert!(
        width <= stride || rows <= 1,
        "rows of {width} floats, {stride} apart, overlap"
    );
    let needed = match rows {
        0 => 0,
        _ => (rows - 1)
            .checked_mul(stride)
            .and_then(|n| n.checked_add(width))
            .expect("a size in memory"),
    };
    assert!(
        needed <= len,
        "{rows} rows of {width} floats, {stride} apart, need {needed} floats, got {len}"
    );
}

impl<'a> Rows<'a> {
    /// The first `width` of every `stride` floats, `rows` times.
    ///
    /// # Panics
    /// Where `data` is too short or rows overlap.
    pub fn new(data: &'a [f32], rows: usize, width: usize, stride: usize) -> Self {
        check_rows(data.len(), rows, width, stride);
        Self {
            pointer: data.as_ptr(),
            rows,
            width,
            stride,
            lifetime: PhantomData,
        }
    }

    pub(super) fn as_ptr(&self) -> *const f32 {
        self.pointer
    }

    /// Row `i`.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, i: usize) -> &'a [f32] {
        assert!(i < self.rows);
        // SAFETY: `new` checked that row `i` lies inside the slice.
        unsafe { std::slice::from_raw_parts(self.pointer.add(i * self.stride), self.width) }
    }
}

impl<'a> RowsMut<'a> {
    /// The first `width` of every `stride` floats, `rows` times.
    ///
    /// # Panics
    /// Where `data` is too short or rows overlap.
    pub fn new(data: &'a mut [f32], rows: usize, width: usize, stride: usize) -> Self {
        check_rows(data.len(), rows, width, stride);
        Self {
            pointer: data.as_mut_ptr(),
            rows,
            width,
            stride,
            lifetime: PhantomData,
        }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.pointer
    }
}

/// The right-hand side of a product, [depth, columns], stored so that the kernel reads it from front to
/// back: in panels of as many columns as a tile has, the last one filled up with zeros.
///
/// It may be of whole numbers with scales, which are expanded piece by piece as a product comes to them: a few rows
/// take no longer than their bytes do from memory, and many rows take little longer than in single precision.
#[derive(Clone)]
pub struct PackedMatrix {
    data: Data,
    depth: usize,
    columns: usize,
    panel: usize,
}

/// Panels, one behind another.
#[derive(Clone)]
enum Data {
    F32(Buffer),
    /// A panel's codes row by row; and its scales, one a column.
    Int8(Vec<i8>, Vec<f32>),
    /// Likewise, with the second half of a row's codes in the high bits of the first half's; scales for every
    /// [`GROUP`] rows.
    Int4(Vec<u8>, Vec<f32>),
}

/// The panels of a product.
#[derive(Clone, Copy)]
pub(super) enum Panels {
    F32(*const f32),
    Int8(*const i8, *const f32),
    Int4(*const u8, *const f32),
}

// SAFETY: what it points to is only read.
unsafe impl Sync for Panels {}

/// Groups of a column of so many values.
fn groups(depth: usize) -> usize {
    depth.div_ceil(GROUP)
}

impl Panels {
    /// The panels from `column` on, which begins one.
    pub(super) unsafe fn from(self, column: usize, depth: usize) -> Self {
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

    /// `depth` rows of the first panel from row `start` on, in single precision: where they lie, or in `scratch`, which
    /// has room for them.
    #[inline(always)]
    unsafe fn piece<S: Simd>(self, start: usize, depth: usize, scratch: *mut f32) -> *const f32 {
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
struct Scratch([f32; QUANTISED_DEPTH * WIDEST_PANEL]);

fn panel_width() -> usize {
    // Two registers of the instruction set in use.
    match InstructionSet::detect() {
        InstructionSet::Avx512 => 32,
        InstructionSet::Avx2 | InstructionSet::Portable => 16,
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        InstructionSet::Simd128 => 8,
    }
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

    /// Packs whole numbers of four bits: `column(c)` gives the codes of a column, from the top, two to a byte, the
    /// first in the low bits; and writes a scale for every [`GROUP`] of them.
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

    /// How the matrix is kept.
    pub(crate) fn dtype(&self) -> Dtype {
        match self.data {
            Data::F32(_) => Dtype::F32,
            Data::Int8(..) => Dtype::Quantised(Bits::Int8),
            Data::Int4(..) => Dtype::Quantised(Bits::Int4),
        }
    }

    /// Columns of a panel.
    pub(super) fn panel(&self) -> usize {
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

    pub(super) fn panels(&self) -> Panels {
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

/// What is applied to each value of a product before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// x / (1 + e^(-1.702 x)).
    QuickGelu,
    /// x / (1 + e^-x).
    Swish,
    /// x (1 + erf(x / sqrt 2)) / 2.
    Gelu,
    /// max(x, 0).
    Relu,
}

/// A linear layer: y = x W + b with W of [inputs, outputs].
#[derive(Clone)]
pub struct Linear {
    /// W.
    pub weight: PackedMatrix,
    /// b; empty where the layer has none.
    pub bias: Vec<f32>,
}

/// output = activation(input W + b), or, with `accumulate`, activation(output + input W + b).
///
/// # Panics
/// Where the shapes do not fit.
pub fn linear(
    input: Rows<'_>,
    layer: &Linear,
    output: &mut RowsMut<'_>,
    activation: Activation,
    accumulate: bool,
    parallel: bool,
) {
    let weight = &layer.weight;
    assert_eq!(input.width, weight.depth, "the product's depth");
    assert_eq!(
        (output.rows, output.width),
        (input.rows, weight.columns),
        "the product's shape"
    );
    assert!(
        layer.bias.is_empty() || layer.bias.len() == weight.columns,
        "one bias a column"
    );
    let bias = match layer.bias.as_slice() {
        [] => std::ptr::null(),
        bias => bias.as_ptr(),
    };
    let panels = weight.columns.div_ceil(weight.panel);
    let block_rows = row_block(input.rows);
    let row_blocks = input.rows.div_ceil(block_rows);
    // Enough tasks that threads which started late or run slowly are made up for by the others.
    let column_blocks = match parallel {
        true => (threads() * 4).div_ceil(row_blocks.max(1)).min(panels),
        false => 1,
    };
    let (from, to) = (Shared(input.pointer.cast_mut()), Shared(output.pointer));
    let (bias, packed) = (Shared(bias.cast_mut()), weight.panels());
    for_each(row_blocks * column_blocks, parallel, |task| {
        let (row_block, column_block) = (task / column_blocks, task % column_blocks);
        let row = row_block * block_rows;
        let first = column_block * panels / column_blocks;
        let end = (column_block + 1) * panels / column_blocks;
        let column = first * weight.panel;
        let columns = (end * weight.panel).min(weight.columns) - column;
        // SAFETY: the shapes were checked above; each task writes its own rows and columns of the output.
        unsafe {
            let bias = match bias.get().is_null() {
                true => std::ptr::null(),
                false => bias.get().add(column).cast_const(),
            };
            product(&Product {
                input: from.get().add(row * input.stride),
                input_stride: input.stride,
                rows: block_rows.min(input.rows - row),
                packed: packed.from(column, weight.depth),
                depth: weight.depth,
                columns,
                bias,
                output: to.get().add(row * output.stride + column),
                output_stride: output.stride,
                activation,
                accumulate,
            });
        }
    });
}

/// out [rows, columns] = a [rows, depth] times b.
///
/// # Panics
/// Where the lengths do not fit the shapes.
pub fn matmul(a: &[f32], rows: usize, b: &PackedMatrix, out: &mut [f32], parallel: bool) {
    let (depth, columns) = (b.depth, b.columns);
    assert_eq!(a.len(), rows * depth);
    assert_eq!(out.len(), rows * columns);
    // Rows a power of two apart fall into the same few cache sets: copy them apart.
    let stride = depth + 16;
    let block_rows = row_block(rows);
    let blocks = rows.div_ceil(block_rows);
    let shared = Shared(out.as_mut_ptr());
    for_each(blocks, parallel, |block| {
        let first = block * block_rows;
        let some = block_rows.min(rows - first);
        let mut spread = Buffer::zeros(some * stride);
        for (row, values) in spread.chunks_exact_mut(stride).enumerate() {
            values[..depth].copy_from_slice(&a[(first + row) * depth..][..depth]);
        }
        // SAFETY: the lengths were checked above; each task writes its own rows.
        unsafe {
            product(&Product {
                input: spread.as_ptr(),
                input_stride: stride,
                rows: some,
                packed: b.panels(),
                depth,
                columns,
                bias: std::ptr::null(),
                output: shared.get().add(first * columns),
                output_stride: columns,
                activation: Activation::None,
                accumulate: false,
            });
        }
    });
}

/// One thread's product. `packed` points to panels of `depth` rows.
pub(super) struct Product {
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
    pub(super) unsafe fn product(p: &Product) = product_with
}

/// # Safety
/// As [`product`], and the processor must have the instruction set of `S`.
#[inline(always)]
pub(super) unsafe fn product_with<S: Simd>(p: &Product) {
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

/// Rows of a tile: with two registers a row, as many as leave room for the panel's two registers and
/// one value of the input.
const fn tile_height<S: Simd>() -> usize {
    match S::LANES {
        16 => 12,
        8 => 6,
        _ => 4,
    }
}

/// What is the same for all tiles down a panel.
struct Tile {
    input_stride: usize,
    packed: *const f32,
    depth: usize,
    columns: usize,
    bias: *const f32,
    output_stride: usize,
    activation: Activation,
    accumulate: bool,
    /// How many bytes each step down the depth goes on in what is touched ahead.
    ahead_step: usize,
}

impl Tile {
    /// M rows by two registers of columns, held in registers while the depth passes.
    ///
    /// In WebAssembly it is a function of its own, which is called often and soon: an engine starts with
    /// quickly made, slow code and replaces it at a call, and it allots registers better in a small function.
    #[cfg_attr(not(target_arch = "wasm32"), inline(always))]
    #[cfg_attr(target_arch = "wasm32", inline(never))]
    unsafe fn run<S: Simd, const M: usize, const AHEAD: bool>(
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
    unsafe fn activate<S: Simd>(&self, output: *mut f32, rows: usize) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seed_after(seed: u32) -> u32 {
        seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
    }

    fn random(n: usize, seed: &mut u32) -> Vec<f32> {
        (0..n)
            .map(|_| {
                *seed = seed_after(*seed);
                (*seed >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn linear_agrees_with_f64_for_odd_shapes() {
        let mut seed = 7;
        for (rows, depth, columns) in [
            (1, 1, 1),
            (5, 3, 7),
            (12, 385, 33),
            (13, 768, 64),
            (200, 40, 31),
            (30, 800, 17),
        ] {
            let a = random(rows * (depth + 3), &mut seed);
            let w = random(depth * columns, &mut seed);
            let bias = random(columns, &mut seed);
            let old = random(rows * (columns + 5), &mut seed);
            let layer = Linear {
                weight: PackedMatrix::from_rows(&w, depth, columns),
                bias: bias.clone(),
            };
            for (activation, accumulate, parallel) in [
                (Activation::None, false, true),
                (Activation::Relu, false, false),
                (Activation::None, true, true),
                (Activation::Gelu, false, true),
                (Activation::QuickGelu, true, false),
                (Activation::Swish, false, true),
            ] {
                let mut out = old.clone();
                linear(
                    Rows::new(&a, rows, depth, depth + 3),
                    &layer,
                    &mut RowsMut::new(&mut out, rows, columns, columns + 5),
                    activation,
                    accumulate,
                    parallel,
                );
                for r in 0..rows {
                    for c in 0..columns {
                        let mut x = f64::from(bias[c]);
                        if accumulate {
                            x += f64::from(old[r * (columns + 5) + c]);
                        }
                        for k in 0..depth {
                            x += f64::from(a[r * (depth + 3) + k]) * f64::from(w[k * columns + c]);
                        }
                        let y = f64::from(out[r * (columns + 5) + c]);
                        match activation {
                            Activation::None => assert!((y - x).abs() < 5e-5, "{y} instead of {x}"),
                            Activation::Relu => assert!((y - x.max(0.0)).abs() < 5e-5),
                            Activation::QuickGelu => {
                                assert!((y - x / (1.0 + (-1.702 * x).exp())).abs() < 5e-5)
                            }
                            Activation::Swish => assert!((y - x / (1.0 + (-x).exp())).abs() < 5e-5),
                            // The exact values are checked in `math`; here that it was applied at all.
                            Activation::Gelu => assert!((y - x / (1.0 + (-1.702 * x).exp())).abs() < 0.03),
                        }
                    }
                    let beside = r * (columns + 5) + columns..(r + 1) * (columns + 5);
                    assert_eq!(out[beside.clone()], old[beside], "values beside the rows stay");
                }
            }
        }
    }

    #[test]
    fn whole_numbers_multiply_as_their_values_do() {
        let mut seed = 9;
        let mut code = |largest: i32| {
            seed = seed_after(seed);
            ((seed >> 8) as i32 % (2 * largest + 1) - largest) as i8
        };
        for (rows, depth, columns) in [(1, 1, 1), (3, 31, 40), (14, 192, 33), (70, 500, 64), (250, 33, 7)] {
            let a = random(rows * depth, &mut 5);
            let scales = random(columns * groups(depth), &mut 6);
            let codes: Vec<i8> = (0..columns * depth).map(|_| code(127)).collect();
            let value = |c: usize, k: usize| f32::from(codes[c * depth + k]) * scales[c];
            let int8 = PackedMatrix::pack_int8(depth, columns, |c| (&codes[c * depth..][..depth], scales[c]));
            check(&a, rows, &int8, value);

            let bytes = depth.div_ceil(2);
            let codes: Vec<i8> = (0..columns * depth).map(|_| code(7)).collect();
            let mut packed = vec![0u8; columns * bytes];
            for (i, &code) in codes.iter().enumerate() {
                let (c, k) = (i / depth, i % depth);
                packed[c * bytes + k / 2] |= (code as u8 & 15) << (k % 2 * 4);
            }
            let of = |c: usize| &scales[c * groups(depth)..][..groups(depth)];
            let value = |c: usize, k: usize| f32::from(codes[c * depth + k]) * of(c)[k / GROUP];
            let int4 = PackedMatrix::pack_int4(depth, columns, |c, out| {
                out.copy_from_slice(of(c));
                &packed[c * bytes..][..bytes]
            });
            check(&a, rows, &int4, value);
        }
    }

    fn check(a: &[f32], rows: usize, matrix: &PackedMatrix, value: impl Fn(usize, usize) -> f32) {
        let (depth, columns) = (matrix.depth, matrix.columns);
        let values: Vec<f32> = (0..depth * columns)
            .map(|i| value(i % columns, i / columns))
            .collect();
        let expanded = PackedMatrix::from_rows(&values, depth, columns);
        let (mut got, mut expected) = (vec![0.0; rows * columns], vec![1.0; rows * columns]);
        matmul(a, rows, matrix, &mut got, true);
        matmul(a, rows, &expanded, &mut expected, false);
        assert_eq!(got, expected);
    }

    #[test]
    fn a_value_does_not_depend_on_its_neighbours() {
        let mut seed = 3;
        let (rows, depth, columns) = (31, 500, 70);
        let a = random(rows * depth, &mut seed);
        let b = random(columns * depth, &mut seed);
        let packed = PackedMatrix::from_transposed(&b, columns, depth);
        let mut all = vec![0.0; rows * columns];
        matmul(&a, rows, &packed, &mut all, true);
        for r in 0..rows {
            for c in [0, 15, 16, 33, 69] {
                let packed = PackedMatrix::from_transposed(&b[c * depth..(c + 1) * depth], 1, depth);
                let mut one = [0.0];
                matmul(&a[r * depth..(r + 1) * depth], 1, &packed, &mut one, false);
                assert_eq!(one[0], all[r * columns + c]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "need 20 floats")]
    fn rows_that_do_not_fit_are_refused() {
        Rows::new(&[0.0; 19], 4, 5, 5);
    }
}
