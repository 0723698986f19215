//! The operations on images on the host's memory, by [`crate::kernels::convolution`].

use std::cell::RefCell;
use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, backend_extension};
use burn::tensor::Tensor;

use super::memory::{Owned, Values};
use super::{Dispatch, Host, Layer, parallel};
use crate::kernels::convolution::{Depthwise, Map, convolve_planes};
use crate::kernels::{self, Activation, Buffer, RowsMut};

/// What the operations on images need of a backend.
#[backend_extension(Flex)]
pub(crate) trait ConvolutionOps: Backend {
    fn host_convolve(
        pixels: FloatTensor<Self>,
        layer: Layer,
        kernel: usize,
        stride: usize,
    ) -> FloatTensor<Self>;

    fn host_depthwise(
        x: FloatTensor<Self>,
        map: Map,
        expansion: Option<Layer>,
        layer: Arc<Depthwise>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    fn host_mean(x: FloatTensor<Self>, map: Map) -> FloatTensor<Self>;

    fn host_gate(mean: FloatTensor<Self>, layers: [Layer; 2]) -> FloatTensor<Self>;

    fn host_gated_linear(x: FloatTensor<Self>, gate: FloatTensor<Self>, layer: Layer) -> FloatTensor<Self>;

    fn host_gated_linear_add(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        layer: Layer,
    ) -> FloatTensor<Self>;
}

/// swish(convolution) of pixels `[batch, 3, height, width]`, as rows.
pub(in super::super) fn convolve(pixels: Tensor<4>, layer: Layer, kernel: usize, stride: usize) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as ConvolutionOps>::host_convolve(
        pixels.into_dispatch(),
        layer,
        kernel,
        stride,
    ))
}

/// swish(depthwise convolution(swish(x W + b))) and the means of its channels.
pub(in super::super) fn depthwise(
    x: Tensor<2>,
    map: Map,
    expansion: Option<Layer>,
    layer: Arc<Depthwise>,
) -> (Tensor<2>, Tensor<2>) {
    let x = x.into_dispatch();
    let (x, mean) = <Dispatch as ConvolutionOps>::host_depthwise(x, map, expansion, layer);
    (Tensor::from_dispatch(x), Tensor::from_dispatch(mean))
}

/// The mean of each channel of each image.
pub(in super::super) fn mean(x: Tensor<2>, map: Map) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as ConvolutionOps>::host_mean(x.into_dispatch(), map))
}

/// sigmoid(swish(mean W1 + b1) W2 + b2).
pub(in super::super) fn gate(mean: Tensor<2>, layers: [Layer; 2]) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as ConvolutionOps>::host_gate(
        mean.into_dispatch(),
        layers,
    ))
}

/// residual + (x * gate) W + b, or without the residual.
pub(in super::super) fn gated_linear(
    x: Tensor<2>,
    gate: Tensor<2>,
    residual: Option<Tensor<2>>,
    layer: Layer,
) -> Tensor<2> {
    let (x, gate) = (x.into_dispatch(), gate.into_dispatch());
    Tensor::from_dispatch(match residual {
        None => <Dispatch as ConvolutionOps>::host_gated_linear(x, gate, layer),
        Some(residual) => {
            let residual = residual.into_dispatch();
            <Dispatch as ConvolutionOps>::host_gated_linear_add(x, gate, residual, layer)
        }
    })
}

thread_local! {
    /// What a thread keeps scaled weights in.
    static SCALED: RefCell<Buffer> = RefCell::default();
}

impl ConvolutionOps for Flex {
    fn host_convolve(pixels: Host, layer: Layer, kernel: usize, stride: usize) -> Host {
        let pixels = pixels.to_contiguous();
        let shape = pixels.layout().shape();
        let (images, height, width) = (shape[0], shape[2], shape[3]);
        let map = Map { height, width };
        let (out, _) = map.convolved(kernel, stride);
        let mut output = Owned::new(images * out.pixels(), layer.weight.columns());
        let planes = pixels.storage::<f32>().chunks_exact(3 * map.pixels());
        for (i, planes) in planes.take(images).enumerate() {
            let rows = &mut output.some_mut(i * out.pixels(), out.pixels());
            convolve_planes(planes, map, kernel, stride, &layer, rows, parallel());
        }
        output.into_tensor()
    }

    fn host_depthwise(x: Host, map: Map, expansion: Option<Layer>, layer: Arc<Depthwise>) -> (Host, Host) {
        let x = Values::of_whole_registers(x);
        let (images, out, channels) = (x.place.rows / map.pixels(), layer.map(map), layer.channels());
        let mut output = Owned::new(images * out.pixels(), channels);
        let mut mean = Owned::new(images, channels);
        let apart = mean.place.stride;
        for (i, mean) in mean.values_mut().chunks_mut(apart).take(images).enumerate() {
            layer.forward(
                x.rows_from(i * map.pixels(), map.pixels()),
                map,
                expansion.as_deref(),
                &mut output.some_mut(i * out.pixels(), out.pixels()),
                &mut mean[..channels],
                parallel(),
            );
        }
        x.recycle();
        (output.into_tensor(), mean.into_tensor())
    }

    fn host_mean(x: Host, map: Map) -> Host {
        let x = Values::of(x);
        let (pixels, width) = (map.pixels(), x.place.width);
        let mut output = Owned::new(x.place.rows / pixels, width);
        let (images, apart) = (output.place.rows, output.place.stride);
        for (i, mean) in output.values_mut().chunks_mut(apart).take(images).enumerate() {
            let mean = &mut mean[..width];
            mean.fill(0.0);
            let rows = x.rows_from(i * pixels, pixels);
            for pixel in 0..pixels {
                for (sum, value) in mean.iter_mut().zip(rows.row(pixel)) {
                    *sum += value;
                }
            }
            mean.iter_mut().for_each(|sum| *sum /= pixels as f32);
        }
        x.recycle();
        output.into_tensor()
    }

    fn host_gate(mean: Host, layers: [Layer; 2]) -> Host {
        let mean = Values::of(mean);
        let rows = |layer: &Layer| Owned::new(mean.place.rows, layer.weight.columns());
        let [mut squeezed, mut gate] = layers.each_ref().map(rows);
        // A row for each image is too little to share.
        let linear = |input, layer: &Layer, output: &mut RowsMut<'_>, activation| {
            kernels::linear(input, layer, output, activation, false, false);
        };
        let [reduce, expand] = &layers;
        linear(mean.rows(), reduce, &mut squeezed.rows_mut(), Activation::Swish);
        linear(squeezed.rows(), expand, &mut gate.rows_mut(), Activation::None);
        let (rows, width, apart) = (gate.place.rows, gate.place.width, gate.place.stride);
        for row in gate.values_mut().chunks_mut(apart).take(rows) {
            for x in &mut row[..width] {
                *x = 1.0 / (1.0 + (-*x).exp());
            }
        }
        squeezed.recycle();
        mean.recycle();
        gate.into_tensor()
    }

    fn host_gated_linear(x: Host, gate: Host, layer: Layer) -> Host {
        let x = Values::of(x);
        let output = Owned::new(x.place.rows, layer.weight.columns());
        gated_into(x, Values::of(gate), &layer, output, false)
    }

    fn host_gated_linear_add(x: Host, gate: Host, residual: Host, layer: Layer) -> Host {
        let output = Owned::from_tensor(residual);
        gated_into(Values::of(x), Values::of(gate), &layer, output, true)
    }
}

/// (x * gate) W + b, or, with `accumulate`, that added to what `output` holds.
fn gated_into(x: Values, gate: Values, layer: &Layer, mut output: Owned, accumulate: bool) -> Host {
    let images = gate.place.rows;
    let pixels = x.place.rows.checked_div(images).unwrap_or(0);
    let (mut memory, mut bias) = (SCALED.take(), layer.bias.clone());
    for i in 0..images {
        // A factor for each channel of every pixel is one for each row of the weights, which are fewer.
        let scaled = kernels::Linear {
            weight: layer.weight.scaled(gate.rows().row(i), memory, parallel()),
            bias,
        };
        kernels::linear(
            x.rows_from(i * pixels, pixels),
            &scaled,
            &mut output.some_mut(i * pixels, pixels),
            Activation::None,
            accumulate,
            parallel(),
        );
        (memory, bias) = (scaled.weight.into_memory(), scaled.bias);
    }
    SCALED.set(memory);
    gate.recycle();
    x.recycle();
    output.into_tensor()
}
