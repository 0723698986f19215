//! A linear layer with its activation, and its gradients.

use super::activation::{activate_values, slope_with};
use super::blocks::{filled, sum_of_blocks, sum_of_large_blocks};
use super::registers::{lanes, load_up_to, store_up_to};
use super::scratch::{Parts, SCRATCH};
use super::strided::{Strided, tile_height};
use crate::kernels::matmul::{Panels, Product, product_with};
use crate::kernels::parallel::{Shared, for_each};
use crate::kernels::simd::{Simd, dispatch};
use crate::kernels::{Activation, Buffer};

/// A linear layer with its activation on rows of `inputs` values.
pub struct LinearShape {
    /// Rows.
    pub rows: usize,
    /// Values of a row.
    pub inputs: usize,
    /// Values of a row of the result.
    pub outputs: usize,
    /// What the result goes through.
    pub activation: Activation,
}

/// Rows that pass through a layer together: their values stay in the second level cache.
const LINEAR_BLOCK: usize = 120;

/// Rows whose products for the weights' gradient are summed by one task, at least: a task's own sum is as
/// large as the weights are.
const SUM_BLOCK: usize = 480;

impl LinearShape {
    /// activation(x W + b), and where there is an activation, what went into it.
    pub fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> (Vec<f32>, Option<Vec<f32>>) {
        assert_eq!(x.len(), self.rows * self.inputs);
        assert_eq!(weight.len(), self.inputs * self.outputs);
        if let Some(bias) = bias {
            assert_eq!(bias.len(), self.outputs);
        }
        let packed = pack(weight, self.inputs, self.outputs);
        let len = self.rows * self.outputs;
        let run = |out: Shared, activated: Option<Shared>| {
            for_each(self.rows.div_ceil(LINEAR_BLOCK), true, |block| {
                let first = block * LINEAR_BLOCK;
                let rows = LINEAR_BLOCK.min(self.rows - first);
                // SAFETY: each block has rows of its own.
                unsafe {
                    let output = out.get().add(first * self.outputs);
                    product_best(&Product {
                        input: x.as_ptr().add(first * self.inputs),
                        input_stride: self.inputs,
                        rows,
                        packed: Panels::F32(packed.as_ptr()),
                        depth: self.inputs,
                        columns: self.outputs,
                        bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
                        output,
                        output_stride: self.outputs,
                        activation: Activation::None,
                        accumulate: false,
                    });
                    if let Some(activated) = activated {
                        let to = activated.get().add(first * self.outputs);
                        activate_values(output, to, rows * self.outputs, self.activation);
                    }
                }
            });
        };
        // SAFETY: the blocks are all rows.
        unsafe {
            if self.activation == Activation::None {
                return (filled(len, |out| run(out, None)), None);
            }
            let mut before = Vec::new();
            let y = filled(len, |activated| {
                before = filled(len, |out| run(out, Some(activated)));
            });
            (y, Some(before))
        }
    }

    /// The gradients with respect to x, W and b, those that `wanted` names. `before` is what
    /// [`LinearShape::forward`] gave beside the result.
    pub fn backward(
        &self,
        x: &[f32],
        weight: &[f32],
        before: Option<&[f32]>,
        gradient: &[f32],
        wanted: Wanted,
    ) -> LinearGradients {
        let (inputs, outputs) = (self.inputs, self.outputs);
        assert_eq!(x.len(), self.rows * inputs);
        assert_eq!(weight.len(), inputs * outputs);
        assert_eq!(gradient.len(), self.rows * outputs);
        assert!(self.activation == Activation::None || before.is_some_and(|b| b.len() == gradient.len()));
        let packed = match wanted.input {
            true => pack_transposed(weight, inputs, outputs),
            false => Buffer::default(),
        };
        // Equal blocks, so that none is left over that is short.
        let blocks = self.rows.div_ceil(SUM_BLOCK).max(1);
        let block_rows = self.rows.div_ceil(blocks).next_multiple_of(LINEAR_BLOCK);
        let blocks = self.rows.div_ceil(block_rows.max(1));
        let mut weights = match wanted.weight {
            true => Buffer::zeros(blocks * inputs * outputs),
            false => Buffer::default(),
        };
        let mut biases = vec![0.0f32; if wanted.bias { blocks * outputs } else { 0 }];
        let (weight_sums, bias_sums) = (Shared(weights.as_mut_ptr()), Shared(biases.as_mut_ptr()));
        let run = |to: Shared| {
            for_each(blocks, true, |block| {
                let end = self.rows.min((block + 1) * block_rows);
                for first in (block * block_rows..end).step_by(LINEAR_BLOCK) {
                    // SAFETY: each block has rows and sums of its own.
                    unsafe {
                        let part = Part {
                            x: x.as_ptr().add(first * inputs),
                            before: match self.activation {
                                Activation::None => std::ptr::null(),
                                _ => before.unwrap_or_default().as_ptr().add(first * outputs),
                            },
                            gradient: gradient.as_ptr().add(first * outputs),
                            packed: packed.as_ptr(),
                            rows: LINEAR_BLOCK.min(end - first),
                            inputs,
                            outputs,
                            activation: self.activation,
                            to: match wanted.input {
                                true => to.get().add(first * inputs),
                                false => std::ptr::null_mut(),
                            },
                            weight_sums: match wanted.weight {
                                true => weight_sums.get().add(block * inputs * outputs),
                                false => std::ptr::null_mut(),
                            },
                            bias_sums: match wanted.bias {
                                true => bias_sums.get().add(block * outputs),
                                false => std::ptr::null_mut(),
                            },
                        };
                        SCRATCH.with_borrow_mut(|scratch| {
                            scratch.resize(part.scratch_size());
                            linear_part_best(&part, scratch.as_mut_ptr());
                        });
                    }
                }
            });
        };
        let input = match wanted.input {
            // SAFETY: the blocks are all rows.
            true => Some(unsafe { filled(x.len(), run) }),
            false => {
                run(Shared(std::ptr::null_mut()));
                None
            }
        };
        LinearGradients {
            input,
            weight: wanted
                .weight
                .then(|| sum_of_large_blocks(&weights, inputs * outputs)),
            bias: wanted.bias.then(|| sum_of_blocks(&biases, outputs)),
        }
    }
}

/// Which of a layer's gradients are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The one with respect to x.
    pub input: bool,
    /// The one with respect to W.
    pub weight: bool,
    /// The one with respect to b.
    pub bias: bool,
}

/// A layer's gradients, as far as they were wanted.
pub struct LinearGradients {
    /// With respect to x.
    pub input: Option<Vec<f32>>,
    /// With respect to W.
    pub weight: Option<Vec<f32>>,
    /// With respect to b.
    pub bias: Option<Vec<f32>>,
}

/// Packs a row-major [depth, columns] matrix into panels of two registers.
fn pack(values: &[f32], depth: usize, columns: usize) -> Buffer {
    let panel = 2 * lanes();
    let mut packed = Buffer::zeros(depth * columns.next_multiple_of(panel));
    for (p, out) in packed.chunks_exact_mut(depth * panel).enumerate() {
        let wide = panel.min(columns - p * panel);
        for (row, out) in out.chunks_exact_mut(panel).enumerate() {
            out[..wide].copy_from_slice(&values[row * columns + p * panel..][..wide]);
        }
    }
    packed
}

/// Packs the transpose of a row-major [columns, depth] matrix.
fn pack_transposed(values: &[f32], columns: usize, depth: usize) -> Buffer {
    let panel = 2 * lanes();
    let mut packed = Buffer::zeros(depth * columns.next_multiple_of(panel));
    for (p, out) in packed.chunks_exact_mut(depth * panel).enumerate() {
        for c in 0..panel.min(columns - p * panel) {
            let row = &values[(p * panel + c) * depth..][..depth];
            for (out, value) in out[c..].iter_mut().step_by(panel).zip(row) {
                *out = *value;
            }
        }
    }
    packed
}

dispatch! {
    unsafe fn product_best(p: &Product) = product_with
}

/// Some rows of a layer in the backward pass.
struct Part {
    x: *const f32,
    /// What went into the activation; null where there is none.
    before: *const f32,
    gradient: *const f32,
    /// The transposed weights in panels.
    packed: *const f32,
    rows: usize,
    inputs: usize,
    outputs: usize,
    activation: Activation,
    to: *mut f32,
    /// Added to; null where they are not wanted, as the one below.
    weight_sums: *mut f32,
    bias_sums: *mut f32,
}

impl Part {
    fn scratch_size(&self) -> usize {
        let panel = 2 * lanes();
        let gradient = self.rows * self.outputs + 32;
        let packed = self.rows * self.outputs.next_multiple_of(panel) + 32;
        gradient + packed + self.rows * (self.inputs + 12) + 32
    }
}

dispatch! {
    unsafe fn linear_part_best(p: &Part, scratch: *mut f32) = linear_part_with
}

#[inline(always)]
unsafe fn linear_part_with<S: Simd>(p: &Part, scratch: *mut f32) {
    let mut parts = Parts(scratch);
    let (panel, height) = (2 * S::LANES, tile_height::<S>());
    let (rows, inputs, outputs) = (p.rows, p.inputs, p.outputs);
    unsafe {
        let mut gradient = p.gradient;
        if !p.before.is_null() {
            let at = parts.take(rows * outputs);
            slope_with::<S>(p.before, p.gradient, at, rows * outputs, p.activation);
            gradient = at;
        }
        if !p.bias_sums.is_null() {
            for row in 0..rows {
                for i in (0..outputs).step_by(S::LANES) {
                    let some = outputs - i;
                    let value = load_up_to::<S>(gradient.add(row * outputs + i), some);
                    let sum = S::add(load_up_to::<S>(p.bias_sums.add(i), some), value);
                    store_up_to::<S>(p.bias_sums.add(i), sum, some);
                }
            }
        }
        if !p.weight_sums.is_null() {
            // The gradient in panels of two registers, x in panels of a tile's height.
            let right = parts.take(rows * outputs.next_multiple_of(panel));
            for column in (0..outputs).step_by(panel) {
                let right = right.add(column * rows);
                for row in 0..rows {
                    for i in [0, S::LANES] {
                        let v = match column + i < outputs {
                            true => load_up_to::<S>(
                                gradient.add(row * outputs + column + i),
                                outputs - column - i,
                            ),
                            false => S::splat(0.0),
                        };
                        S::store(right.add(row * panel + i), v);
                    }
                }
            }
            let left = parts.take(rows * height);
            for first in (0..inputs).step_by(height) {
                let some = height.min(inputs - first);
                for row in 0..rows {
                    let from = p.x.add(row * inputs + first);
                    std::ptr::copy_nonoverlapping(from, left.add(row * height), some);
                }
                let product = Strided {
                    left,
                    left_stride: height,
                    rows: some,
                    right,
                    right_stride: panel,
                    right_panel: rows * panel,
                    depth: rows,
                    columns: outputs,
                    out: p.weight_sums.add(first * outputs),
                    out_stride: outputs,
                    accumulate: true,
                };
                product.run::<S, true>();
            }
        }
        if !p.to.is_null() {
            product_with::<S>(&Product {
                input: gradient,
                input_stride: outputs,
                rows,
                packed: Panels::F32(p.packed),
                depth: outputs,
                columns: inputs,
                bias: std::ptr::null(),
                output: p.to,
                output_stride: inputs,
                activation: Activation::None,
                accumulate: false,
            });
        }
    }
}
