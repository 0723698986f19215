//! The operations on graphics cards, by kernels of our own, as an extension of Burn's CubeCL backend.
//!
//! CubeCL compiles the `kernels` for whichever card there is: WebGPU in a browser, Vulkan, Metal and Direct3D
//! 12 natively, CUDA. They compute in single precision; weights are kept as their file has them where that
//! saves memory, and unpacked where they are multiplied.

pub(super) mod convolution;
mod kernels;
mod layer;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};
use burn::tensor::{DType, Int, Shape, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::{Activation, AttentionShape, Sequence};
use convolution::Sizes;
use kernels::{COPY_THREADS, MEAN_COLUMNS, NORM_THREADS};
pub(crate) use layer::{CardLayer, Keeping};
pub use layer::{CardOptions, Precision};

type Dispatch = burn::backend::Dispatch;

/// Values that a kernel takes at a time.
const FOUR: usize = 4;

/// What becomes of a product, beside its sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    Activation(Activation),
    /// Added to what is there.
    Add,
}

/// How a product is spread over threads, and what its kernel depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Product {
    /// Rows of four columns that a thread computes.
    rows: u32,
    /// Threads that share the depth.
    slices: u32,
    keeping: Keeping,
    activation: Activation,
    has_bias: bool,
    adds: bool,
}

impl Product {
    /// Columns of four that a workgroup computes.
    fn columns(self) -> u32 {
        match self.slices {
            1 => 64,
            _ => 16,
        }
    }
}

/// How a product of so many rows and so many fours of columns is spread: the rows of a thread, and the
/// threads that share the depth.
fn spread(rows: u32, columns: u32, is_software: bool) -> (u32, u32) {
    // A thread with seven rows reads least for each of them; with fewer, less is computed in vain.
    let (by_four, by_seven) = (rows.div_ceil(4) * 5, rows.div_ceil(7) * 8);
    let block = match rows {
        1 => 1,
        _ if by_four < by_seven => 4,
        _ => 7,
    };
    // A card has thousands of threads to keep busy; in software, sharing only costs.
    let slices = match columns.div_ceil(64) * rows.div_ceil(block) {
        0..96 if !is_software => 8,
        _ => 1,
    };
    (block, slices)
}

/// What is computed of each value by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Function {
    Tanh,
    Sigmoid,
}

/// Where a batch's sequences lie, as the kernels read it.
#[derive(Debug, Clone)]
pub(crate) struct Sequences {
    /// First query, queries, first key and keys of each.
    all: Tensor<1, Int>,
    /// The same with each sequence's first query alone, behind one another.
    firsts: Tensor<1, Int>,
    count: usize,
    /// Queries of the one that has most.
    longest: usize,
    /// Queries of all together.
    rows: usize,
}

impl Sequences {
    pub(crate) fn new(sequences: &[Sequence], device: &burn::tensor::Device) -> Self {
        let words = |of: &dyn Fn((usize, &Sequence)) -> [usize; 4]| {
            let words: Vec<u32> = sequences
                .iter()
                .enumerate()
                .flat_map(|sequence| of(sequence).map(|n| n as u32))
                .collect();
            layer::words(bytemuck::cast_slice(&words), device)
        };
        Self {
            all: words(&|(_, s)| [s.query, s.queries, s.key, s.keys]),
            firsts: words(&|(i, s)| [i, 1, s.key, s.keys]),
            count: sequences.len(),
            longest: sequences.iter().map(|s| s.queries).max().unwrap_or(0),
            rows: sequences.iter().map(|s| s.queries).sum(),
        }
    }
}

/// Sizes of an attention, in values.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionSizes {
    shape: AttentionShape,
    /// 1 / sqrt(a query's true width)
    scale: f32,
    /// Where the keys of a row begin.
    first_key: usize,
    sequences: usize,
    longest: usize,
    /// Rows of the result.
    rows: usize,
}

/// The operations that the CubeCL backend has beside Burn's. Where an operand is not looked at, any tensor
/// will do.
#[backend_extension(Cube: cfg(not(feature = "cuda-fusion")))]
pub(super) trait CubeOps: Backend {
    /// `columns`: those of the weight that are computed, from which to which.
    #[allow(
        clippy::too_many_arguments,
        reason = "the tensors have to be arguments of their own"
    )]
    fn cube_linear(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        sizes: [usize; 2],
        columns: [usize; 2],
        product: Product,
    ) -> FloatTensor<Self>;

    fn cube_norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    fn cube_attention(
        q: FloatTensor<Self>,
        kv: FloatTensor<Self>,
        sequences: IntTensor<Self>,
        sizes: AttentionSizes,
    ) -> FloatTensor<Self>;

    fn cube_first_rows(x: FloatTensor<Self>, sequences: IntTensor<Self>, count: usize) -> FloatTensor<Self>;

    fn cube_patches(pixels: FloatTensor<Self>, patch: usize) -> FloatTensor<Self>;

    fn cube_tokens(
        x: FloatTensor<Self>,
        class: FloatTensor<Self>,
        positions: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    fn cube_pixels(
        words: IntTensor<Self>,
        table: FloatTensor<Self>,
        batch: usize,
        size: usize,
    ) -> FloatTensor<Self>;

    fn cube_each(x: FloatTensor<Self>, function: Function) -> FloatTensor<Self>;

    fn cube_convolution(
        pixels: FloatTensor<Self>,
        words: IntTensor<Self>,
        bias: FloatTensor<Self>,
        sizes: Sizes,
        keeping: Keeping,
        channels: usize,
    ) -> FloatTensor<Self>;

    fn cube_depthwise(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        sizes: Sizes,
    ) -> FloatTensor<Self>;

    /// The sums of `share` rows each, times `scale`; `rows` is how many an image has.
    fn cube_sums(x: FloatTensor<Self>, rows: usize, share: usize, scale: f32) -> FloatTensor<Self>;

    fn cube_gate(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Some columns of finish(x W + b).
fn columns_of(
    x: Tensor<2>,
    layer: &CardLayer,
    columns: [usize; 2],
    finish: Finish,
    residual: Option<Tensor<2>>,
    is_software: bool,
) -> Tensor<2> {
    let rows = x.dims()[0];
    let (block, slices) = spread(
        rows as u32,
        ((columns[1] - columns[0]) / FOUR) as u32,
        is_software,
    );
    let product = Product {
        rows: block,
        slices,
        keeping: layer.keeping,
        activation: match finish {
            Finish::Activation(activation) => activation,
            Finish::Add => Activation::None,
        },
        has_bias: layer.bias.is_some(),
        adds: finish == Finish::Add,
    };
    let x = x.into_dispatch();
    let other = |tensor: &Option<Tensor<1>>| match tensor {
        Some(tensor) => tensor.clone().into_dispatch(),
        None => x.clone(),
    };
    let (scales, bias) = (other(&layer.scales), other(&layer.bias));
    let residual = residual.map_or_else(|| x.clone(), Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_linear(
        x,
        layer.words.clone().into_dispatch(),
        scales,
        bias,
        residual,
        [layer.depth, layer.columns],
        columns,
        product,
    ))
}

/// activation(x W + b).
pub(super) fn linear(
    x: Tensor<2>,
    layer: &CardLayer,
    activation: Activation,
    is_software: bool,
) -> Tensor<2> {
    let all = [0, layer.columns];
    columns_of(x, layer, all, Finish::Activation(activation), None, is_software)
}

/// residual + x W + b.
pub(super) fn linear_add(
    x: Tensor<2>,
    residual: Tensor<2>,
    layer: &CardLayer,
    is_software: bool,
) -> Tensor<2> {
    columns_of(
        x,
        layer,
        [0, layer.columns],
        Finish::Add,
        Some(residual),
        is_software,
    )
}

/// LayerNorm of each row.
pub(super) fn norm(x: Tensor<2>, scale: Tensor<1>, shift: Tensor<1>, epsilon: f64) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_norm(
        x.into_dispatch(),
        scale.into_dispatch(),
        shift.into_dispatch(),
        epsilon as f32,
    ))
}

/// The attention of each sequence to itself, or of its first row.
pub(super) fn attend(
    x: Tensor<2>,
    layer: &CardLayer,
    shape: &AttentionShape,
    sequences: &Sequences,
    only_first: bool,
    is_software: bool,
) -> Tensor<2> {
    let scale = (shape.query_head_width as f32).powf(-0.5);
    let shape = padded(shape);
    let (queries, none) = (shape.query_width(), Finish::Activation(Activation::None));
    let (q, kv, places, first_key) = match only_first {
        false => {
            let qkv = columns_of(x, layer, [0, layer.columns], none, None, is_software);
            (qkv.clone(), qkv, &sequences.all, queries)
        }
        true => {
            let firsts = first_rows(x.clone(), sequences);
            let q = columns_of(firsts, layer, [0, queries], none, None, is_software);
            let kv = columns_of(x, layer, [queries, layer.columns], none, None, is_software);
            (q, kv, &sequences.firsts, 0)
        }
    };
    let sizes = AttentionSizes {
        shape,
        scale,
        first_key,
        sequences: sequences.count,
        longest: if only_first { 1 } else { sequences.longest },
        rows: if only_first {
            sequences.count
        } else {
            sequences.rows
        },
    };
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_attention(
        q.into_dispatch(),
        kv.into_dispatch(),
        places.clone().into_dispatch(),
        sizes,
    ))
}

/// The shape with widths of heads that are multiples of 4: zeros behind each head change no sum.
fn padded(shape: &AttentionShape) -> AttentionShape {
    AttentionShape {
        heads: shape.heads,
        query_head_width: shape.query_head_width.next_multiple_of(FOUR),
        value_head_width: shape.value_head_width.next_multiple_of(FOUR),
    }
}

/// The first row of each sequence.
pub(super) fn first_rows(x: Tensor<2>, sequences: &Sequences) -> Tensor<2> {
    let places = sequences.all.clone().into_dispatch();
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_first_rows(
        x.into_dispatch(),
        places,
        sequences.count,
    ))
}

/// Pixels `[batch, 3, size, size]` to rows: of each image the class token and the patches, each with its
/// position added.
pub(super) fn tokens(
    pixels: Tensor<4>,
    layer: &CardLayer,
    class: Tensor<3>,
    positions: Tensor<3>,
    patch: usize,
    is_software: bool,
) -> Tensor<2> {
    let patches = <Dispatch as CubeOps>::cube_patches(pixels.into_dispatch(), patch);
    let x = linear(
        Tensor::from_dispatch(patches),
        layer,
        Activation::None,
        is_software,
    );
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_tokens(
        x.into_dispatch(),
        class.into_dispatch(),
        positions.into_dispatch(),
    ))
}

/// Crops' bytes `[batch, size, size, 3]` to pixels `[batch, 3, size, size]`; `table` says what a byte of red,
/// of green and of blue becomes.
pub(crate) fn pixels(
    bytes: &[u8],
    batch: usize,
    size: usize,
    table: &[[f32; 256]; 3],
    device: &burn::tensor::Device,
) -> Tensor<4> {
    let table = Tensor::<1>::from_data(TensorData::new(table.concat(), [3 * 256]), device);
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_pixels(
        layer::words(bytes, device).into_dispatch(),
        table.into_dispatch(),
        batch,
        size,
    ))
}

/// A function of each value.
pub(super) fn each(x: Tensor<2>, function: Function) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_each(x.into_dispatch(), function))
}

/// A tensor whose values nobody has written yet.
fn empty(like: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), DType::F32)
}

fn dims<const D: usize>(tensor: &CubeTensor) -> [usize; D] {
    tensor.meta.shape().dims()
}

fn count(x: usize, y: usize, z: usize) -> CubeCount {
    CubeCount::Static(x as u32, y as u32, z as u32)
}

/// Groups of threads that each take a place of a row.
fn copies(width: usize) -> usize {
    width.div_ceil(COPY_THREADS as usize)
}

impl CubeOps for CubeBackend {
    fn cube_linear(
        x: CubeTensor,
        words: CubeTensor,
        scales: CubeTensor,
        bias: CubeTensor,
        residual: CubeTensor,
        [depth, stride]: [usize; 2],
        [first, end]: [usize; 2],
        product: Product,
    ) -> CubeTensor {
        let (x, residual) = (into_contiguous(x), into_contiguous(residual));
        let ([rows, _], columns) = (dims(&x), end - first);
        let y = empty(&x, [rows, columns]);
        let [depth, stride, first, columns] = [depth, stride, first, columns].map(|n| (n / FOUR) as u32);
        let across = columns.div_ceil(product.columns());
        let down = (rows as u32).div_ceil(product.rows);
        // SAFETY: the kernel stays inside of rows, columns and depth, which are those of the tensors.
        unsafe {
            kernels::linear::launch_unchecked(
                &x.client.clone(),
                CubeCount::Static(across, down, 1),
                CubeDim::new_2d(product.columns(), product.slices),
                FOUR,
                product.keeping.words(),
                x.into_buffer_arg(),
                words.into_buffer_arg(),
                scales.into_buffer_arg(),
                bias.into_buffer_arg(),
                residual.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                rows as u32,
                depth,
                columns,
                stride,
                first,
                product,
            );
        }
        y
    }

    fn cube_norm(x: CubeTensor, scale: CubeTensor, shift: CubeTensor, epsilon: f32) -> CubeTensor {
        let x = into_contiguous(x);
        let [rows, width] = dims(&x);
        let y = empty(&x, [rows, width]);
        // SAFETY: a workgroup takes one row.
        unsafe {
            kernels::norm::launch_unchecked(
                &x.client.clone(),
                count(rows, 1, 1),
                CubeDim::new_1d(NORM_THREADS),
                FOUR,
                x.into_buffer_arg(),
                scale.into_buffer_arg(),
                shift.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                (width / FOUR) as u32,
                epsilon,
            );
        }
        y
    }

    fn cube_attention(
        q: CubeTensor,
        kv: CubeTensor,
        sequences: CubeTensor,
        sizes: AttentionSizes,
    ) -> CubeTensor {
        let shape = &sizes.shape;
        let y = empty(&q, [sizes.rows, shape.value_width()]);
        let queries = if sizes.longest <= 16 { 16 } else { 64 };
        let ([_, q_stride], [_, kv_stride]) = (dims::<2>(&q), dims::<2>(&kv));
        let fours = |values: usize| (values / FOUR) as u32;
        // SAFETY: the sequences lie in the rows.
        unsafe {
            kernels::attention::launch_unchecked(
                &q.client.clone(),
                count(sizes.longest.div_ceil(queries), shape.heads, sizes.sequences),
                CubeDim::new_1d(queries as u32),
                FOUR,
                q.into_buffer_arg(),
                kv.into_buffer_arg(),
                sequences.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                shape.heads as u32,
                fours(q_stride),
                fours(kv_stride),
                fours(sizes.first_key),
                sizes.scale,
                queries as u32,
                fours(shape.query_head_width),
                fours(shape.value_head_width),
            );
        }
        y
    }

    fn cube_first_rows(x: CubeTensor, sequences: CubeTensor, number: usize) -> CubeTensor {
        let x = into_contiguous(x);
        let [_, width] = dims(&x);
        let y = empty(&x, [number, width]);
        let fours = width / FOUR;
        // SAFETY: the sequences lie in the rows.
        unsafe {
            kernels::first_rows::launch_unchecked(
                &x.client.clone(),
                count(copies(fours), number, 1),
                CubeDim::new_1d(COPY_THREADS),
                FOUR,
                x.into_buffer_arg(),
                sequences.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                fours as u32,
            );
        }
        y
    }

    fn cube_patches(pixels: CubeTensor, patch: usize) -> CubeTensor {
        let pixels = into_contiguous(pixels);
        let [batch, _, size, _] = dims(&pixels);
        let (patches, width) = ((size / patch).pow(2), (3 * patch * patch).next_multiple_of(FOUR));
        let y = empty(&pixels, [batch * patches, width]);
        // SAFETY: each thread takes four values of a patch, which lies in its image.
        unsafe {
            kernels::patches::launch_unchecked(
                &pixels.client.clone(),
                count(copies(width / FOUR), patches, batch),
                CubeDim::new_1d(COPY_THREADS),
                FOUR,
                pixels.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                size as u32,
                (width / FOUR) as u32,
                patch as u32,
            );
        }
        y
    }

    fn cube_tokens(x: CubeTensor, class: CubeTensor, positions: CubeTensor) -> CubeTensor {
        let ([_, tokens, width], [rows, _]) = (dims(&positions), dims::<2>(&x));
        let batch = rows / (tokens - 1);
        let y = empty(&x, [batch * tokens, width]);
        // SAFETY: each thread takes four values of a token.
        unsafe {
            kernels::tokens::launch_unchecked(
                &x.client.clone(),
                count(copies(width / FOUR), tokens, batch),
                CubeDim::new_1d(COPY_THREADS),
                FOUR,
                x.into_buffer_arg(),
                class.into_buffer_arg(),
                positions.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                tokens as u32,
                (width / FOUR) as u32,
            );
        }
        y
    }

    fn cube_pixels(words: CubeTensor, table: CubeTensor, batch: usize, size: usize) -> CubeTensor {
        let y = empty(&table, [batch, 3, size, size]);
        // SAFETY: each thread takes a pixel of an image.
        unsafe {
            kernels::pixels::launch_unchecked(
                &table.client.clone(),
                count(copies(size * size), batch, 1),
                CubeDim::new_1d(COPY_THREADS),
                words.into_buffer_arg(),
                table.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                (size * size) as u32,
            );
        }
        y
    }

    fn cube_each(x: CubeTensor, function: Function) -> CubeTensor {
        let x = into_contiguous(x);
        let [rows, width] = dims(&x);
        let (y, fours) = (empty(&x, [rows, width]), rows * width / FOUR);
        // SAFETY: each thread takes four values.
        unsafe {
            kernels::each::launch_unchecked(
                &x.client.clone(),
                count(copies(fours), 1, 1),
                CubeDim::new_1d(COPY_THREADS),
                FOUR,
                x.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                fours as u32,
                function,
            );
        }
        y
    }

    fn cube_convolution(
        pixels: CubeTensor,
        words: CubeTensor,
        bias: CubeTensor,
        sizes: Sizes,
        keeping: Keeping,
        channels: usize,
    ) -> CubeTensor {
        let pixels = into_contiguous(pixels);
        let [batch, planes, _, _] = dims(&pixels);
        let (from, to) = (sizes.from, sizes.to);
        let y = empty(&pixels, [batch * to.pixels(), channels]);
        // SAFETY: each thread takes four channels of a pixel, and reads pixels that are in the image.
        unsafe {
            kernels::convolution::launch_unchecked(
                &pixels.client.clone(),
                count(copies(to.width * channels / FOUR), to.height, batch),
                CubeDim::new_1d(COPY_THREADS),
                FOUR,
                keeping.words(),
                pixels.into_buffer_arg(),
                words.into_buffer_arg(),
                bias.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                from.height as u32,
                from.width as u32,
                (channels / FOUR) as u32,
                to.height as u32,
                to.width as u32,
                sizes.before[0] as u32,
                sizes.before[1] as u32,
                sizes.kernel as u32,
                sizes.stride as u32,
                planes as u32,
                keeping,
            );
        }
        y
    }

    fn cube_depthwise(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, sizes: Sizes) -> CubeTensor {
        let x = into_contiguous(x);
        let [rows, channels] = dims(&x);
        let (from, to) = (sizes.from, sizes.to);
        let batch = rows / from.pixels();
        let y = empty(&x, [batch * to.pixels(), channels]);
        // SAFETY: as above.
        unsafe {
            kernels::depthwise::launch_unchecked(
                &x.client.clone(),
                count(copies(to.width * channels / FOUR), to.height, batch),
                CubeDim::new_1d(COPY_THREADS),
                FOUR,
                x.into_buffer_arg(),
                weight.into_buffer_arg(),
                bias.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                from.height as u32,
                from.width as u32,
                (channels / FOUR) as u32,
                to.height as u32,
                to.width as u32,
                sizes.before[0] as u32,
                sizes.before[1] as u32,
                sizes.kernel as u32,
                sizes.stride as u32,
            );
        }
        y
    }

    fn cube_sums(x: CubeTensor, rows: usize, share: usize, scale: f32) -> CubeTensor {
        let x = into_contiguous(x);
        let [all, channels] = dims(&x);
        let (images, shares, fours) = (all / rows, rows.div_ceil(share), channels / FOUR);
        let y = empty(&x, [images * shares, channels]);
        // SAFETY: a workgroup takes the columns of a share of an image's rows.
        unsafe {
            kernels::sums::launch_unchecked(
                &x.client.clone(),
                count(fours.div_ceil(MEAN_COLUMNS as usize), shares, images),
                CubeDim::new_2d(MEAN_COLUMNS, MEAN_COLUMNS),
                FOUR,
                x.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                rows as u32,
                fours as u32,
                share as u32,
                scale,
            );
        }
        y
    }

    fn cube_gate(x: CubeTensor, gate: CubeTensor) -> CubeTensor {
        let (x, gate) = (into_contiguous(x), into_contiguous(gate));
        let ([rows, channels], [images, _]) = (dims(&x), dims::<2>(&gate));
        let (values, fours) = (rows / images * channels / FOUR, channels / FOUR);
        let groups = copies(values);
        let across = groups.min(1 << 15);
        let y = empty(&x, [rows, channels]);
        // SAFETY: each thread takes four channels of a pixel.
        unsafe {
            kernels::gate::launch_unchecked(
                &x.client.clone(),
                count(across, groups.div_ceil(across), images),
                CubeDim::new_1d(COPY_THREADS),
                FOUR,
                x.into_buffer_arg(),
                gate.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                values as u32,
                fours as u32,
            );
        }
        y
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests;
