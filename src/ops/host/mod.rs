//! The operations on the host's memory, by [`crate::kernels`], as an extension of Burn's Flex backend.
//!
//! For inference: weights were packed when they were loaded, and what is no longer needed is used again
//! (`memory`). What an operation returns has rows whose distance is no multiple of 512 bytes, since rows a
//! power of two apart fall into the same few cache sets.

pub(super) mod convolution;
mod free;
#[cfg(feature = "train")]
pub(super) mod gradients;
mod memory;

use std::cell::Cell;
use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, backend_extension};
use burn::tensor::Tensor;

use crate::kernels::{
    self, Activation, AttentionShape, LayerNorm, RowsMut, Sequence, for_each_chunk, patches, row_block,
    threads,
};
use memory::{Owned, Place, Values};

type Dispatch = burn::backend::Dispatch;
type Host = FloatTensor<Flex>;
type Layer = Arc<kernels::Linear>;
type Layers = Arc<[kernels::Linear; 2]>;

/// The operations that the Flex backend has beside Burn's.
#[backend_extension(Flex)]
pub(crate) trait HostOps: Backend {
    fn host_linear(x: FloatTensor<Self>, layer: Layer, activation: Activation) -> FloatTensor<Self>;

    fn host_linear_add(x: FloatTensor<Self>, residual: FloatTensor<Self>, layer: Layer) -> FloatTensor<Self>;

    fn host_mlp_add(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        up: Layer,
        down: Layer,
        activation: Activation,
    ) -> FloatTensor<Self>;

    fn host_norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    fn host_attend(
        x: FloatTensor<Self>,
        layers: Layers,
        shape: AttentionShape,
        sequences: Arc<[Sequence]>,
        only_first: bool,
    ) -> FloatTensor<Self>;

    fn host_first_rows(x: FloatTensor<Self>, sequences: Arc<[Sequence]>) -> FloatTensor<Self>;

    fn host_tokens(
        pixels: FloatTensor<Self>,
        layer: Layer,
        class: FloatTensor<Self>,
        positions: FloatTensor<Self>,
        patch: usize,
    ) -> FloatTensor<Self>;

    fn host_tanh(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// activation(x W + b).
pub(super) fn linear(x: Tensor<2>, layer: Layer, activation: Activation) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as HostOps>::host_linear(
        x.into_dispatch(),
        layer,
        activation,
    ))
}

/// residual + x W + b.
pub(super) fn linear_add(x: Tensor<2>, residual: Tensor<2>, layer: Layer) -> Tensor<2> {
    let (x, residual) = (x.into_dispatch(), residual.into_dispatch());
    Tensor::from_dispatch(<Dispatch as HostOps>::host_linear_add(x, residual, layer))
}

/// residual + activation(x W1 + b1) W2 + b2.
pub(super) fn mlp_add(
    x: Tensor<2>,
    residual: Tensor<2>,
    up: Layer,
    down: Layer,
    activation: Activation,
) -> Tensor<2> {
    let (x, residual) = (x.into_dispatch(), residual.into_dispatch());
    Tensor::from_dispatch(<Dispatch as HostOps>::host_mlp_add(
        x, residual, up, down, activation,
    ))
}

/// LayerNorm of each row.
pub(super) fn norm(x: Tensor<2>, scale: Tensor<1>, shift: Tensor<1>, epsilon: f64) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as HostOps>::host_norm(
        x.into_dispatch(),
        scale.into_dispatch(),
        shift.into_dispatch(),
        epsilon as f32,
    ))
}

/// The attention of each sequence to itself, or of its first row.
pub(super) fn attend(
    x: Tensor<2>,
    layers: Layers,
    shape: AttentionShape,
    sequences: Arc<[Sequence]>,
    only_first: bool,
) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as HostOps>::host_attend(
        x.into_dispatch(),
        layers,
        shape,
        sequences,
        only_first,
    ))
}

/// The first row of each sequence.
pub(super) fn first_rows(x: Tensor<2>, sequences: Arc<[Sequence]>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as HostOps>::host_first_rows(
        x.into_dispatch(),
        sequences,
    ))
}

/// Pixels `[batch, 3, size, size]` to rows: of each image the class token and the patches, each with its
/// position added.
pub(super) fn tokens(
    pixels: Tensor<4>,
    layer: Layer,
    class: Tensor<3>,
    positions: Tensor<3>,
    patch: usize,
) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as HostOps>::host_tokens(
        pixels.into_dispatch(),
        layer,
        class.into_dispatch(),
        positions.into_dispatch(),
        patch,
    ))
}

/// The hyperbolic tangent.
pub(super) fn tanh(x: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as HostOps>::host_tanh(x.into_dispatch()))
}

thread_local! {
    /// Whether this thread takes its pass through a tower without the others.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Whether operations split their work over the threads of the pool.
fn parallel() -> bool {
    !ALONE.get()
}

/// Runs `pass` on this thread alone.
fn alone<T>(pass: impl FnOnce() -> T) -> T {
    struct Restore(bool);

    impl Drop for Restore {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }

    let _restore = Restore(ALONE.replace(true));
    pass()
}

/// Cuts `items` into runs that one thread takes through the tower alone, and a rest that all threads take
/// together: returns the length of a run and the number of runs. `rows` is what one item comes to.
///
/// A thread on its own waits for no other and keeps its activations in its cache. The rest is what would
/// leave threads idle.
fn runs(items: usize, rows: usize) -> (usize, usize) {
    /// Below this a thread would spend its time waiting for the weights.
    const LEAST_ROWS: usize = 96;
    /// Above this the activations would leave the cache.
    const MOST_ROWS: usize = 400;
    let threads = threads();
    let share = items / threads;
    if share * rows < LEAST_ROWS {
        return (0, 0);
    }
    let rounds = (share * rows).div_ceil(MOST_ROWS).min(share);
    (share / rounds, rounds * threads)
}

/// Computes `items` outputs of `width` values each, `rows` being what one item comes to in a tower: `pass`
/// receives the first item and the number of items.
///
/// What all threads take together they take in parts, for memory's sake: an image of a convolutional network
/// has hundreds of times the rows of a transformer's.
pub(crate) fn in_runs(
    items: usize,
    rows: usize,
    width: usize,
    pass: impl Fn(usize, usize) -> Vec<f32> + Sync,
) -> Vec<f32> {
    /// Rows of a part, for each thread: more than those of any item of a usual transformer.
    const PART_ROWS: usize = 1024;
    let (run, count) = runs(items, rows);
    let part = (PART_ROWS * threads() / rows.max(1)).max(1);
    if count == 0 && items <= part {
        return pass(0, items);
    }
    let mut output = vec![0.0; items * width];
    let (by_one, together) = output.split_at_mut(run * count * width);
    for_each_chunk(by_one, run * width, |i, output| {
        output.copy_from_slice(&alone(|| pass(i * run, run)));
    });
    for (i, output) in together.chunks_mut(part * width).enumerate() {
        output.copy_from_slice(&pass(run * count + i * part, output.len() / width));
    }
    output
}

impl HostOps for Flex {
    fn host_linear(x: Host, layer: Layer, activation: Activation) -> Host {
        let x = Values::of(x);
        let mut output = Owned::new(x.place.rows, layer.weight.columns());
        kernels::linear(
            x.rows(),
            &layer,
            &mut output.rows_mut(),
            activation,
            false,
            parallel(),
        );
        x.recycle();
        output.into_tensor()
    }

    fn host_linear_add(x: Host, residual: Host, layer: Layer) -> Host {
        let x = Values::of(x);
        let mut output = Owned::from_tensor(residual);
        kernels::linear(
            x.rows(),
            &layer,
            &mut output.rows_mut(),
            Activation::None,
            true,
            parallel(),
        );
        x.recycle();
        output.into_tensor()
    }

    fn host_mlp_add(x: Host, residual: Host, up: Layer, down: Layer, activation: Activation) -> Host {
        let parallel = parallel();
        let (x, mut output) = match Values::is_same(&x, &residual) {
            // A block that normalises afterwards: each block of rows is read before it is written.
            true => {
                drop(x);
                (None, Owned::from_tensor(residual))
            }
            false => (Some(Values::of(x)), Owned::from_tensor(residual)),
        };
        let Place {
            rows,
            width,
            stride: apart,
            ..
        } = output.place;
        let hidden_width = up.weight.columns();
        // One thread takes a block of rows through both layers, while the hidden values are in its cache.
        let block = if parallel { rows } else { row_block(rows) };
        let mut hidden = Owned::new(block.min(rows), hidden_width);
        for first in (0..rows).step_by(block.max(1)) {
            let some = block.min(rows - first);
            let at = first * apart;
            let input = match &x {
                Some(x) => x.rows_from(first, some),
                None => kernels::Rows::new(&output.values()[at..], some, width, apart),
            };
            kernels::linear(
                input,
                &up,
                &mut hidden.first_mut(some),
                activation,
                false,
                parallel,
            );
            kernels::linear(
                hidden.first(some),
                &down,
                &mut RowsMut::new(&mut output.values_mut()[at..], some, width, apart),
                Activation::None,
                true,
                parallel,
            );
        }
        hidden.recycle();
        if let Some(x) = x {
            x.recycle();
        }
        output.into_tensor()
    }

    fn host_norm(x: Host, scale: Host, shift: Host, epsilon: f32) -> Host {
        let (scale, shift) = (scale.to_contiguous(), shift.to_contiguous());
        let norm = LayerNorm {
            scale: scale.storage(),
            shift: shift.storage(),
            epsilon,
        };
        match Owned::in_place(x) {
            Ok(mut x) => {
                norm.in_place(&mut x.rows_mut(), parallel());
                x.into_tensor()
            }
            Err(x) => {
                let x = Values::of(x);
                let mut output = Owned::new(x.place.rows, x.place.width);
                norm.forward(x.rows(), &mut output.rows_mut(), parallel());
                output.into_tensor()
            }
        }
    }

    fn host_attend(
        x: Host,
        layers: Layers,
        shape: AttentionShape,
        sequences: Arc<[Sequence]>,
        only_first: bool,
    ) -> Host {
        let parallel = parallel();
        let x = Values::of(x);
        let (query_width, value_width) = (shape.query_width(), shape.value_width());
        let [query, key_value] = &*layers;
        let mut keys_values = Owned::new(x.place.rows, query_width + value_width);
        let none = Activation::None;
        kernels::linear(
            x.rows(),
            key_value,
            &mut keys_values.rows_mut(),
            none,
            false,
            parallel,
        );
        let (firsts, sequences) = match only_first {
            true => (Some(gather(&x, &sequences)), only_firsts(&sequences)),
            false => (None, sequences),
        };
        let input = firsts.as_ref().map_or_else(|| x.rows(), Owned::rows);
        let mut queries = Owned::new(input.rows, query_width);
        kernels::linear(input, query, &mut queries.rows_mut(), none, false, parallel);
        let mut output = Owned::new(queries.place.rows, value_width);
        kernels::attention(
            &shape,
            &sequences,
            queries.rows(),
            keys_values.rows(),
            &mut output.rows_mut(),
            parallel,
        );
        for used in [Some(keys_values), Some(queries), firsts].into_iter().flatten() {
            used.recycle();
        }
        x.recycle();
        output.into_tensor()
    }

    fn host_first_rows(x: Host, sequences: Arc<[Sequence]>) -> Host {
        let x = Values::of(x);
        let firsts = gather(&x, &sequences);
        x.recycle();
        firsts.into_tensor()
    }

    fn host_tokens(pixels: Host, layer: Layer, class: Host, positions: Host, patch: usize) -> Host {
        let (pixels, class) = (pixels.to_contiguous(), class.to_contiguous());
        let positions = positions.to_contiguous();
        let (class, positions): (&[f32], &[f32]) = (class.storage(), positions.storage());
        let shape = pixels.layout().shape();
        let (batch, size, width) = (shape[0], shape[2], layer.weight.columns());
        let (tokens, values) = (positions.len() / width, 3 * size * size);
        let mut cut = Owned::new(tokens - 1, layer.weight.depth());
        let mut output = Owned::new(batch * tokens, width);
        let (apart, cut_apart) = (output.place.stride, cut.place.stride);
        for (i, pixels) in pixels
            .storage::<f32>()
            .chunks_exact(values)
            .take(batch)
            .enumerate()
        {
            let rows = &mut output.values_mut()[i * tokens * apart..];
            for (row, position) in rows.chunks_mut(apart).zip(positions.chunks_exact(width)) {
                row[..width].copy_from_slice(position);
            }
            for (value, class) in rows.iter_mut().zip(class) {
                *value += class;
            }
            patches(size, patch, pixels, cut_apart, cut.values_mut());
            let mut rows = RowsMut::new(&mut rows[apart..], tokens - 1, width, apart);
            kernels::linear(cut.rows(), &layer, &mut rows, Activation::None, true, parallel());
        }
        cut.recycle();
        output.into_tensor()
    }

    fn host_tanh(x: Host) -> Host {
        let mut x = Owned::from_tensor(x);
        let Place {
            rows,
            width,
            stride: apart,
            ..
        } = x.place;
        for row in x.values_mut().chunks_mut(apart).take(rows) {
            for value in &mut row[..width] {
                *value = value.tanh();
            }
        }
        x.into_tensor()
    }
}

/// The first row of each sequence.
fn gather(x: &Values, sequences: &[Sequence]) -> Owned {
    let width = x.place.width;
    let mut output = Owned::new(sequences.len(), width);
    let (rows, apart) = (x.rows(), output.place.stride);
    for (sequence, out) in sequences.iter().zip(output.values_mut().chunks_mut(apart)) {
        out[..width].copy_from_slice(rows.row(sequence.query));
    }
    output
}

/// The sequences of which only the first queries are left.
fn only_firsts(sequences: &[Sequence]) -> Arc<[Sequence]> {
    let first = |(i, s): (usize, &Sequence)| Sequence {
        query: i,
        queries: 1,
        ..*s
    };
    sequences.iter().enumerate().map(first).collect()
}
