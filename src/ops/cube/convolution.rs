//! The operations on images: convolutions, means and gates.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

use super::{CardLayer, CubeOps, Dispatch, FOUR};
use crate::kernels::convolution::Map;

/// A depthwise convolution on a card: each channel has a kernel of its own. A swish follows.
#[derive(Clone)]
pub(crate) struct CardDepthwise {
    /// `[kernel * kernel, channels]`
    weight: Tensor<1>,
    bias: Tensor<1>,
    kernel: usize,
    stride: usize,
}

impl CardDepthwise {
    /// Of weights `[channels, kernel, kernel]`; the channels are a multiple of 4.
    pub(crate) fn new(
        kernel: usize,
        stride: usize,
        weight: &[f32],
        bias: &[f32],
        device: &Device,
    ) -> Arc<Self> {
        let (channels, taps) = (bias.len(), kernel * kernel);
        let mut turned = vec![0.0; weight.len()];
        for (channel, weight) in weight.chunks_exact(taps).enumerate() {
            for (tap, &value) in weight.iter().enumerate() {
                turned[tap * channels + channel] = value;
            }
        }
        let values = |values: Vec<f32>| {
            let count = values.len();
            Tensor::from_data(TensorData::new(values, [count]), device)
        };
        Arc::new(Self {
            weight: values(turned),
            bias: values(bias.to_vec()),
            kernel,
            stride,
        })
    }
}

/// What a convolution does to the size of an image, and how.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Sizes {
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) from: Map,
    pub(super) to: Map,
    /// Rows and columns of zeros before the image.
    pub(super) before: [usize; 2],
}

impl Sizes {
    fn new(kernel: usize, stride: usize, from: Map) -> Self {
        let (to, before) = from.convolved(kernel, stride);
        Self {
            kernel,
            stride,
            from,
            to,
            before,
        }
    }
}

/// swish(convolution of the planes of `pixels`), as rows.
pub(in crate::ops) fn convolve(
    pixels: Tensor<4>,
    layer: &CardLayer,
    kernel: usize,
    stride: usize,
) -> Tensor<2> {
    let [_, _, height, width] = pixels.dims();
    let bias = layer.bias.clone().expect("a convolution has a summand");
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_convolution(
        pixels.into_dispatch(),
        layer.words.clone().into_dispatch(),
        bias.into_dispatch(),
        Sizes::new(kernel, stride, Map { height, width }),
        layer.keeping,
        layer.columns,
    ))
}

/// swish(depthwise convolution of images of `map`).
pub(in crate::ops) fn depthwise(x: Tensor<2>, map: Map, layer: &CardDepthwise) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_depthwise(
        x.into_dispatch(),
        layer.weight.clone().into_dispatch(),
        layer.bias.clone().into_dispatch(),
        Sizes::new(layer.kernel, layer.stride, map),
    ))
}

/// The mean of each channel of each image of `map`, `[images, channels]`.
pub(in crate::ops) fn mean(x: Tensor<2>, map: Map) -> Tensor<2> {
    /// Rows whose sum a workgroup takes.
    const SHARE: usize = 512;
    let sums = |x: Tensor<2>, rows: usize, share: usize, scale: f32| {
        let x = x.into_dispatch();
        Tensor::from_dispatch(<Dispatch as CubeOps>::cube_sums(x, rows, share, scale))
    };
    let rows = map.pixels();
    let parts = rows.div_ceil(SHARE);
    let scale = 1.0 / rows as f32;
    match parts {
        1 => sums(x, rows, rows, scale),
        _ => sums(sums(x, rows, SHARE, 1.0), parts, parts, scale),
    }
}

/// Each channel of each image times its factor.
pub(in crate::ops) fn gated(x: Tensor<2>, gate: Tensor<2>) -> Tensor<2> {
    debug_assert!(x.dims()[1].is_multiple_of(FOUR));
    let (x, gate) = (x.into_dispatch(), gate.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CubeOps>::cube_gate(x, gate))
}
