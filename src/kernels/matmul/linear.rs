//! A linear layer and the plain matmul, on all threads.

use super::activation::Activation;
use super::packed::PackedMatrix;
use super::product::{Product, product};
use super::rows::{Rows, RowsMut};
use crate::kernels::Buffer;
use crate::kernels::parallel::{Shared, for_each, threads};

/// Rows that one task takes at most: their piece of the left-hand side stays in the second level cache
/// while the panels pass by. A multiple of every tile's height.
const ROW_BLOCK: usize = 240;

/// The height of the blocks that `rows` are cut into: equal ones, each of whole tiles, so that no short
/// block is left over for which all panels would pass by once more.
pub(crate) fn row_block(rows: usize) -> usize {
    let blocks = rows.div_ceil(ROW_BLOCK).max(1);
    rows.div_ceil(blocks).next_multiple_of(12)
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
    assert_eq!(input.width, weight.depth(), "the product's depth");
    assert_eq!(
        (output.rows, output.width),
        (input.rows, weight.columns()),
        "the product's shape"
    );
    assert!(
        layer.bias.is_empty() || layer.bias.len() == weight.columns(),
        "one bias a column"
    );
    let bias = match layer.bias.as_slice() {
        [] => std::ptr::null(),
        bias => bias.as_ptr(),
    };
    let panels = weight.columns().div_ceil(weight.panel());
    let block_rows = row_block(input.rows);
    let row_blocks = input.rows.div_ceil(block_rows);
    // Enough tasks that threads which started late or run slowly are made up for by the others.
    let column_blocks = match parallel {
        true => (threads() * 4).div_ceil(row_blocks.max(1)).min(panels),
        false => 1,
    };
    let (from, to) = (Shared(input.as_ptr().cast_mut()), Shared(output.as_mut_ptr()));
    let (bias, packed) = (Shared(bias.cast_mut()), weight.panels());
    for_each(row_blocks * column_blocks, parallel, |task| {
        let (row_block, column_block) = (task / column_blocks, task % column_blocks);
        let row = row_block * block_rows;
        let first = column_block * panels / column_blocks;
        let end = (column_block + 1) * panels / column_blocks;
        let column = first * weight.panel();
        let columns = (end * weight.panel()).min(weight.columns()) - column;
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
                packed: packed.from(column, weight.depth()),
                depth: weight.depth(),
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
    let (depth, columns) = (b.depth(), b.columns());
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
