//! The operations on images by Burn's tensor operations, for which an image is `[channels, height, width]`.

use burn::tensor::Tensor;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;

use super::super::{BurnOptions, dtype, to};
use crate::kernels::convolution::Map;

/// Rows of `map` to `[images, channels, height, width]`.
pub(in super::super) fn images(x: Tensor<2>, map: Map) -> Tensor<4> {
    let [rows, channels] = x.dims();
    x.reshape([rows / map.pixels(), map.height, map.width, channels])
        .permute([0, 3, 1, 2])
}

/// `[images, channels, height, width]` to rows.
pub(in super::super) fn rows(x: Tensor<4>) -> Tensor<2> {
    let [images, channels, height, width] = x.dims();
    x.permute([0, 2, 3, 1])
        .reshape([images * height * width, channels])
}

/// A convolution with the padding of TensorFlow's "same". `weight` is `[outputs, inputs of a group, kernel,
/// kernel]`; a group has one input, or all.
pub(in super::super) fn convolve(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: usize,
    options: BurnOptions,
) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    let [outputs, inputs, kernel, _] = weight.dims();
    let (out, before) = Map { height, width }.convolved(kernel, stride);
    let both = |size: usize, out: usize, before: usize| {
        let all = ((out - 1) * stride + kernel).saturating_sub(size);
        (before, all - before)
    };
    let how = ConvOptions {
        stride: [stride; 2],
        padding: [
            both(height, out.height, before[0]),
            both(width, out.width, before[1]),
        ],
        dilation: [1; 2],
        groups: if inputs == 1 { outputs } else { 1 },
    };
    let dtype = dtype(&x);
    let (weight, bias) = (to(weight, dtype), to(bias, dtype));
    if !options.is_split() {
        return conv2d(x, weight, Some(bias), how);
    }
    let x = options.of(x, weight, |x, weight| conv2d(x, weight, None, how.clone()));
    x + bias.reshape([1, outputs, 1, 1])
}

/// The mean of each channel of each image.
pub(in super::super) fn mean(x: Tensor<2>, map: Map) -> Tensor<2> {
    let [rows, channels] = x.dims();
    let images = rows / map.pixels();
    x.reshape([images, map.pixels(), channels])
        .mean_dim(1)
        .reshape([images, channels])
}

/// x times the factors `[images, channels]`.
pub(in super::super) fn gated(x: Tensor<2>, gate: Tensor<2>) -> Tensor<2> {
    let ([rows, channels], [images, _]) = (x.dims(), gate.dims());
    let gate = to(gate, dtype(&x)).reshape([images, 1, channels]);
    let x = x.reshape([images, rows / images, channels]) * gate;
    x.reshape([rows, channels])
}
