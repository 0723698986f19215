//! The operations by Burn's tensor operations.

pub(super) mod convolution;

use burn::tensor::activation::{gelu, relu, sigmoid};
use burn::tensor::module::attention as fused_attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{FloatDType, Tensor};

use super::options::softmax;
use super::{BurnOptions, DropoutMask, to};
use crate::kernels::{Activation, AttentionShape};

/// Pixels `[batch, 3, height, width]` to patches `[batch * patches, 3 * side * side]`.
pub(super) fn patches(pixels: Tensor<4>, side: usize) -> Tensor<2> {
    let [batch, channels, height, width] = pixels.dims();
    let (down, across) = (height / side, width / side);
    // [batch, 3, down, side, across, side] to [batch, down, across, 3, side, side]
    pixels
        .reshape([batch, channels, down, side, across, side])
        .permute([0, 2, 4, 1, 3, 5])
        .reshape([batch * down * across, channels * side * side])
}

/// activation(x W + b).
pub(super) fn linear(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    activation: Activation,
    options: BurnOptions,
) -> Tensor<2> {
    let dtype = options.dtype();
    let (x, weight) = (to(x, dtype), to(weight, dtype));
    let bias = bias.map(|bias| to(bias, dtype));
    activate(options.linear(x, weight, bias), activation)
}

pub(super) fn activate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::None => x,
        Activation::QuickGelu => x.clone() * sigmoid(x * 1.702),
        Activation::Swish => x.clone() * sigmoid(x),
        Activation::Gelu => gelu(x),
        Activation::Relu => relu(x),
    }
}

/// LayerNorm over the last dimension.
pub(super) fn norm(x: Tensor<2>, scale: Tensor<1>, shift: Tensor<1>, epsilon: f64) -> Tensor<2> {
    burn::tensor::module::layer_norm(x, scale, Some(shift), epsilon)
}

/// Multi-head attention of the first `queries` rows of each sequence to all its rows.
///
/// A row of `qkv` `[batch, tokens, 2 * query width + value width]` holds all heads' queries, then all heads'
/// keys, then all heads' values. `key_bias` is `[batch or 1, 1, 1, tokens]`. The result is `[batch * queries,
/// value width]`.
pub(super) fn attention(
    qkv: Tensor<3>,
    key_bias: Option<Tensor<4>>,
    shape: &AttentionShape,
    mask: Option<DropoutMask>,
    queries: usize,
    options: BurnOptions,
) -> Tensor<2> {
    let [batch, tokens, _] = qkv.dims();
    let (query_width, value_width) = (shape.query_width(), shape.value_width());
    // [batch, heads, tokens, head width]
    let part = |start: usize, head_width: usize, rows: usize| {
        qkv.clone()
            .narrow(1, 0, rows)
            .narrow(2, start, shape.heads * head_width)
            .reshape([batch, rows, shape.heads, head_width])
            .swap_dims(1, 2)
    };
    let q = part(0, shape.query_head_width, queries);
    let k = part(query_width, shape.query_head_width, tokens);
    let v = part(2 * query_width, shape.value_head_width, tokens);
    let attended = if options.is_fused() {
        let mask = key_bias.map(|bias| {
            bias.lower_elem(-1.0)
                .expand([batch, shape.heads, queries, tokens])
        });
        fused_attention(q, k, v, mask, None, AttentionModuleOptions::default())
    } else {
        let q = q * (shape.query_head_width as f64).powf(-0.5);
        let mut scores = to(options.matmul(q, k.transpose()), FloatDType::F32);
        if let Some(bias) = key_bias {
            scores = scores + bias;
        }
        let weights = softmax(scores);
        #[cfg(feature = "train")]
        let weights = match mask {
            Some(mask) => drop_out(weights, &mask),
            None => weights,
        };
        #[cfg(not(feature = "train"))]
        let _ = mask;
        options.matmul(to(weights, options.dtype()), v)
    };
    attended.swap_dims(1, 2).reshape([batch * queries, value_width])
}

/// dropout(x), by the device's own generator from the mask's seed on.
#[cfg(feature = "train")]
pub(super) fn drop_out<const D: usize>(x: Tensor<D>, mask: &DropoutMask) -> Tensor<D> {
    // A pass over the same rows once more leaves the same out.
    x.device().seed(mask.seed);
    let kept = x.random_like(burn::tensor::Distribution::Bernoulli(1.0 - mask.share));
    x * (kept / (1.0 - mask.share))
}
