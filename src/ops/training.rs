//! The operations of training: on the host each is one pass over its rows, with a backward pass of its own.
//!
//! Gradients come back for everything but the bias of the keys.

use burn::tensor::{Device, Tensor};

use super::host::gradients::TrainingOps;
use super::{BurnOptions, BurnPrecision, DropoutMask};
use crate::kernels::{Activation, AttentionShape};

type Dispatch = burn::backend::Dispatch;

/// How training computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compute {
    /// By the fused kernels on the CPU, by Burn's operations elsewhere, in single precision.
    #[default]
    Auto,
    /// By Burn's operations everywhere.
    Burn,
    /// By Burn's operations, with products in bfloat16. Weights, their gradients, normalisations, softmax,
    /// the loss and what a transformer passes on from block to block are in single precision; a convolutional
    /// network is in bfloat16 up to its mean.
    BurnBf16,
}

impl Compute {
    /// Whether the fused kernels run, for which the device's memory has to be the host's.
    pub(super) fn is_fused(self, device: &Device) -> bool {
        self == Self::Auto && device.clone().without_autodiff() == Device::flex()
    }

    /// How Burn's operations compute.
    pub(crate) fn options(self) -> BurnOptions {
        BurnOptions {
            precision: match self {
                Self::Auto | Self::Burn => BurnPrecision::Device,
                Self::BurnBf16 => BurnPrecision::Bf16,
            },
            ..BurnOptions::default()
        }
    }
}

/// Multi-head attention of each sequence to itself.
///
/// A row of `qkv` `[batch, tokens, 2 * query width + value width]` holds all heads' queries, then all heads'
/// keys, then all heads' values. `key_bias` `[batch, 1, 1, tokens]` is added to the scores of each key (0 for
/// a token, -10000 for padding), and gets no gradient. `drop` leaves out weights. The result is `[batch *
/// tokens, value width]`, or `[batch, value width]` with `only_first`: that of each sequence's first query.
pub(super) fn attention(
    qkv: Tensor<3>,
    key_bias: Option<Tensor<4>>,
    shape: &AttentionShape,
    drop: Option<DropoutMask>,
    only_first: bool,
) -> Tensor<2> {
    let [batch, tokens, _] = qkv.dims();
    let key_bias: Tensor<2> = match key_bias {
        Some(bias) => bias.reshape([batch, tokens]),
        None => Tensor::zeros([batch, tokens], &qkv.device()),
    };
    let attended = Tensor::<3>::from_dispatch(<Dispatch as TrainingOps>::train_attention(
        qkv.into_dispatch(),
        key_bias.into_dispatch(),
        *shape,
        drop,
        only_first,
    ));
    let [_, rows, width] = attended.dims();
    attended.reshape([batch * rows, width])
}

/// LayerNorm over the last dimension: (x - mean) / sqrt(variance + epsilon) * scale + shift.
pub(super) fn layer_norm(x: Tensor<2>, scale: Tensor<1>, shift: Tensor<1>, epsilon: f64) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as TrainingOps>::train_layer_norm(
        x.into_dispatch(),
        scale.into_dispatch(),
        shift.into_dispatch(),
        epsilon as f32,
    ))
}

/// activation(x W + b), with `weight` `[inputs, outputs]` and `bias` `[outputs]`.
pub(super) fn linear(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    activation: Activation,
) -> Tensor<2> {
    let [_, outputs] = weight.dims();
    let bias = bias.unwrap_or_else(|| Tensor::zeros([outputs], &weight.device()));
    Tensor::from_dispatch(<Dispatch as TrainingOps>::train_linear(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        activation,
    ))
}

/// Sets a share of the values to 0 and scales the others up, so that the expected sum stays. Which ones
/// follows from the mask's seed and a value's place.
pub(super) fn drop_out(x: Tensor<2>, drop: DropoutMask) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as TrainingOps>::train_drop(x.into_dispatch(), drop))
}

/// x + [`drop_out`]\(y).
pub(super) fn add_drop_out(x: Tensor<2>, y: Tensor<2>, drop: DropoutMask) -> Tensor<2> {
    let (x, y) = (x.into_dispatch(), y.into_dispatch());
    Tensor::from_dispatch(<Dispatch as TrainingOps>::train_add_drop(x, y, drop))
}

#[cfg(test)]
mod tests;
