//! The steps of a block as single operations with a way back of their own.
//!
//! On the CPU (Burn's Flex backend) each runs as one pass over its rows; on every other device it is composed of
//! Burn's tensor operations, which its compilers fuse. Gradients come back for everything but the bias of the
//! keys.
//!
//! With [`Compute::BurnBf16`] layers and attention give bfloat16, which the next layer takes as it is; what is added up,
//! normalised or dropped from is made single precision first (`single`).

mod flex;

use burn::tensor::activation::{gelu, relu, sigmoid, softmax};
use burn::tensor::{Device, Distribution, FloatDType, Tensor};

pub use crate::kernels::train::DropoutMask;
use crate::kernels::{Activation, AttentionShape};
use crate::towers::to;
use flex::TrainKernels;

type Dispatch = burn::backend::Dispatch;

/// How training computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compute {
    /// By the fused kernels on the CPU, by Burn's operations elsewhere, in single precision.
    #[default]
    Auto,
    /// By Burn's operations everywhere.
    Burn,
    /// By Burn's operations, with products in bfloat16. Weights, their gradients, normalisations, softmax, the loss and
    /// what a transformer passes on from block to block are in single precision; a convolutional network is in bfloat16 up
    /// to its mean.
    BurnBf16,
}

impl Compute {
    /// Whether the fused kernels run, for which the device's memory has to be the host's.
    fn is_fused(self, device: &Device) -> bool {
        self == Self::Auto && device.clone().without_autodiff() == Device::flex()
    }

    /// The precision of products.
    pub(crate) fn dtype(self) -> FloatDType {
        match self {
            Self::Auto | Self::Burn => FloatDType::F32,
            Self::BurnBf16 => FloatDType::BF16,
        }
    }
}

/// In single precision.
pub(crate) fn single<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    to(x, FloatDType::F32)
}

/// Multi-head attention of each sequence to itself.
///
/// A row of `qkv` [batch, tokens, 2 * query width + value width] holds all heads' queries, then all heads' keys,
/// then all heads' values. `key_bias` [batch, 1, 1, tokens] is added to the scores of each key (0 for a token,
/// -10000 for padding), and gets no gradient. `drop` leaves out weights. The result is
/// [batch, tokens, value width], or [batch, 1, value width] with `only_first`: that of each sequence's first
/// query.
///
/// # Panics
/// Where the shapes do not fit.
pub fn attention(
    qkv: Tensor<3>,
    key_bias: Option<Tensor<4>>,
    shape: &AttentionShape,
    drop: Option<DropoutMask>,
    only_first: bool,
    compute: Compute,
) -> Tensor<3> {
    let [batch, tokens, width] = qkv.dims();
    let (query_width, value_width) = (shape.query_width(), shape.value_width());
    assert_eq!(
        width,
        2 * query_width + value_width,
        "queries, keys and values of all heads"
    );
    if compute.is_fused(&qkv.device()) {
        let key_bias = match key_bias {
            Some(bias) => bias.reshape([batch, tokens]),
            None => Tensor::zeros([batch, tokens], &qkv.device()),
        };
        return Tensor::from_dispatch(<Dispatch as TrainKernels>::fused_attention(
            qkv.into_dispatch(),
            key_bias.into_dispatch(),
            *shape,
            drop,
            only_first,
        ));
    }
    // [batch, heads, tokens, head width]
    let part = |start: usize, head_width: usize| {
        qkv.clone()
            .narrow(2, start, shape.heads * head_width)
            .reshape([batch, tokens, shape.heads, head_width])
            .swap_dims(1, 2)
    };
    let mut q = part(0, shape.query_head_width);
    let k = part(query_width, shape.query_head_width);
    let v = part(2 * query_width, shape.value_head_width);
    if only_first {
        q = q.narrow(2, 0, 1);
    }
    let mut scores = single((q * (shape.query_head_width as f64).powf(-0.5)).matmul(k.transpose()));
    if let Some(bias) = key_bias {
        scores = scores + bias;
    }
    let mut weights = softmax(scores, 3);
    if let Some(drop) = drop {
        weights = composed_drop(weights, &drop);
    }
    let rows = if only_first { 1 } else { tokens };
    to(weights, compute.dtype())
        .matmul(v)
        .swap_dims(1, 2)
        .reshape([batch, rows, value_width])
}

/// LayerNorm over the last dimension: (x - mean) / sqrt(variance + epsilon) * scale + shift.
///
/// # Panics
/// Where the shapes do not fit.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    epsilon: f64,
    compute: Compute,
) -> Tensor<D> {
    if compute.is_fused(&x.device()) {
        return Tensor::from_dispatch(<Dispatch as TrainKernels>::fused_layer_norm(
            x.into_dispatch(),
            scale.into_dispatch(),
            shift.into_dispatch(),
            epsilon as f32,
        ));
    }
    burn::tensor::module::layer_norm(x, scale, Some(shift), epsilon)
}

fn composed_activation<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::None => x,
        Activation::QuickGelu => x.clone() * sigmoid(x * 1.702),
        Activation::Swish => x.clone() * sigmoid(x),
        Activation::Gelu => gelu(x),
        Activation::Relu => relu(x),
    }
}

/// activation(x W + b) over the last dimension of `x`, with `weight` [inputs, outputs] and `bias` \[outputs\].
///
/// # Panics
/// Where the shapes do not fit.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    activation: Activation,
    compute: Compute,
) -> Tensor<D> {
    if compute.is_fused(&x.device()) {
        let [_, outputs] = weight.dims();
        let bias = bias.unwrap_or_else(|| Tensor::zeros([outputs], &weight.device()));
        return Tensor::from_dispatch(<Dispatch as TrainKernels>::fused_linear(
            x.into_dispatch(),
            weight.into_dispatch(),
            bias.into_dispatch(),
            activation,
        ));
    }
    let (x, weight) = (to(x, compute.dtype()), to(weight, compute.dtype()));
    let bias = bias.map(|bias| to(bias, compute.dtype()));
    composed_activation(burn::tensor::module::linear(x, weight, bias), activation)
}

/// Sets a share of the values to 0 and scales the others up, so that the expected sum stays. On the CPU
/// [`DropoutMask::factor`] says which, elsewhere the device's own generator from the mask's seed on.
pub fn drop_out<const D: usize>(x: Tensor<D>, drop: DropoutMask, compute: Compute) -> Tensor<D> {
    if drop.share == 0.0 {
        return x;
    }
    if compute.is_fused(&x.device()) {
        return Tensor::from_dispatch(<Dispatch as TrainKernels>::fused_drop(x.into_dispatch(), drop));
    }
    composed_drop(x, &drop)
}

/// x + [`drop_out`]\(y).
///
/// # Panics
/// Where the shapes differ.
pub fn add_drop_out<const D: usize>(
    x: Tensor<D>,
    y: Tensor<D>,
    drop: DropoutMask,
    compute: Compute,
) -> Tensor<D> {
    let y = single(y);
    if drop.share == 0.0 {
        return x + y;
    }
    if compute.is_fused(&x.device()) {
        return Tensor::from_dispatch(<Dispatch as TrainKernels>::fused_add_drop(
            x.into_dispatch(),
            y.into_dispatch(),
            drop,
        ));
    }
    x + composed_drop(y, &drop)
}

fn composed_drop<const D: usize>(x: Tensor<D>, drop: &DropoutMask) -> Tensor<D> {
    if drop.share == 0.0 {
        return x;
    }
    // A pass over the same rows once more leaves the same out.
    x.device().seed(drop.seed);
    let kept = x.random_like(Distribution::Bernoulli(1.0 - drop.share));
    x * (kept / (1.0 - drop.share))
}
