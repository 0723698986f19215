//! Layers of the Burn modules by training's kernels.

use burn::nn;
use burn::tensor::Tensor;

use crate::kernels::Activation;
use crate::train::kernels::{Compute, layer_norm, linear};

/// A linear layer and what follows it.
pub(super) fn dense<const D: usize>(
    layer: &nn::Linear,
    x: Tensor<D>,
    activation: Activation,
    compute: Compute,
) -> Tensor<D> {
    let bias = layer.bias.as_ref().map(|bias| bias.val());
    linear(x, layer.weight.val(), bias, activation, compute)
}

/// A normalisation.
pub(super) fn norm<const D: usize>(
    layer: &nn::LayerNorm,
    x: Tensor<D>,
    epsilon: f64,
    compute: Compute,
) -> Tensor<D> {
    let shift = layer.beta.as_ref().expect("a shift").val();
    layer_norm(x, layer.gamma.val(), shift, epsilon, compute)
}
