//! The layers that towers are made of, and what their weights are kept as.

use std::fmt;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::nn;
use burn::tensor::Tensor;

use super::Convolution;
#[cfg(feature = "cube")]
use super::cube::CardLayer;
use crate::kernels;
use crate::weights::Dtype;

/// A linear layer, y = x W + b with W of `[inputs, outputs]`.
// A tower has few of them, so that the size of the larger variant does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum Linear {
    /// As tensors of the device.
    Dense(nn::Linear),
    /// As a convolution whose every output is made of one pixel, or of one patch, as it is trained.
    Convolution(Convolution),
    /// As the host's kernels read it.
    Packed(PackedLinear),
    /// As the kernels of graphics cards read it.
    #[cfg(feature = "cube")]
    Card(CardLinear),
}

/// The layers of all heads' queries, keys and values.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum Projections {
    /// A layer for each, as ERNIE's weights have them and as they are trained.
    Apart([nn::Linear; 3]),
    /// One layer for all, whose outputs stand in that order: one matmul instead of three.
    Together(nn::Linear),
    /// As the host's kernels read them.
    Packed(PackedProjections),
    /// One layer for all, as the kernels of graphics cards read it.
    #[cfg(feature = "cube")]
    Card(CardLinear),
}

/// A layer with its weight packed for the host's kernels.
#[derive(Module, Debug)]
pub struct PackedLinear {
    #[module(skip)]
    layer: Shared<kernels::Linear>,
}

/// The layer of the queries, and the one of keys and values: in the last block there are few queries.
#[derive(Module, Debug)]
pub struct PackedProjections {
    #[module(skip)]
    layers: Shared<[kernels::Linear; 2]>,
}

/// A layer with its weight as the kernels of graphics cards read it.
#[cfg(feature = "cube")]
#[derive(Module, Debug)]
pub struct CardLinear {
    #[module(skip)]
    layer: Shared<CardLayer>,
}

#[cfg(feature = "cube")]
impl CardLinear {
    pub(crate) fn new(layer: CardLayer) -> Self {
        Self {
            layer: Shared(Arc::new(layer)),
        }
    }
}

/// What all clones of a module share.
#[derive(Clone)]
pub(super) struct Shared<T>(pub(super) Arc<T>);

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("packed")
    }
}

impl<T> fmt::Display for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("packed")
    }
}

impl PackedLinear {
    pub(crate) fn new(layer: kernels::Linear) -> Self {
        Self {
            layer: Shared(Arc::new(layer)),
        }
    }
}

impl PackedProjections {
    /// `layers`: queries, then keys and values.
    pub(crate) fn new(layers: [kernels::Linear; 2]) -> Self {
        Self {
            layers: Shared(Arc::new(layers)),
        }
    }
}

/// A layer's weight `[inputs, outputs]` and bias.
type Dense = (Tensor<2>, Option<Tensor<1>>);

fn dense(layer: &nn::Linear) -> Dense {
    (layer.weight.val(), layer.bias.as_ref().map(|bias| bias.val()))
}

/// Layers of the same inputs as one, whose outputs stand in their order.
pub(crate) fn joined(parts: &[nn::Linear]) -> Dense {
    let weights = parts.iter().map(|part| part.weight.val()).collect();
    let biases = parts.iter().filter_map(|part| Some(part.bias.as_ref()?.val()));
    (Tensor::cat(weights, 1), Some(Tensor::cat(biases.collect(), 0)))
}

/// A layer is of the other kind than the pass that computes it, which the loader rules out.
pub(super) fn other_kind() -> ! {
    unreachable!("weights are kept for the implementation that a pass has")
}

impl Projections {
    /// The packed layers: queries, then keys and values.
    #[cfg(feature = "flex")]
    pub(super) fn packed(&self) -> Arc<[kernels::Linear; 2]> {
        match self {
            Self::Packed(packed) => packed.layers.0.clone(),
            _ => other_kind(),
        }
    }

    /// The layer of all three.
    #[cfg(feature = "cube")]
    pub(super) fn card(&self) -> &CardLayer {
        match self {
            Self::Card(card) => &card.layer.0,
            _ => other_kind(),
        }
    }

    /// Values of the widest row that goes in or comes out, on a card.
    #[cfg(feature = "cube")]
    pub(crate) fn widest(&self) -> usize {
        self.card().widest()
    }

    /// The layers as one.
    pub(super) fn dense(&self) -> Dense {
        match self {
            Self::Together(layer) => dense(layer),
            Self::Apart(parts) => joined(parts),
            _ => other_kind(),
        }
    }
}

impl Linear {
    /// The packed layer.
    #[cfg(feature = "flex")]
    pub(super) fn packed(&self) -> Arc<kernels::Linear> {
        match self {
            Self::Packed(packed) => packed.layer.0.clone(),
            _ => other_kind(),
        }
    }

    /// The layer on a card.
    #[cfg(feature = "cube")]
    pub(super) fn card(&self) -> &CardLayer {
        match self {
            Self::Card(card) => &card.layer.0,
            _ => other_kind(),
        }
    }

    /// Values of the widest row that goes in or comes out, on a card.
    #[cfg(feature = "cube")]
    pub(crate) fn widest(&self) -> usize {
        self.card().widest()
    }

    /// The weight and the bias.
    pub(super) fn dense(&self) -> Dense {
        match self {
            Self::Dense(layer) => dense(layer),
            Self::Convolution(layer) => {
                let (weight, bias) = layer.folded();
                let [outputs, inputs, height, width] = weight.dims();
                let weight = weight.reshape([outputs, inputs * height * width]);
                (weight.transpose(), Some(bias))
            }
            _ => other_kind(),
        }
    }

    /// How the weight is kept.
    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Self::Dense(_) | Self::Convolution(_) => Dtype::F32,
            Self::Packed(packed) => packed.layer.0.weight.dtype(),
            #[cfg(feature = "cube")]
            Self::Card(card) => card.layer.0.dtype(),
        }
    }
}

/// LayerNorm over the last dimension: (x - mean) / sqrt(variance + epsilon) * scale + shift, with the biased
/// variance.
#[derive(Module, Debug)]
pub struct Norm {
    /// The factor of each column.
    pub scale: Param<Tensor<1>>,
    /// The summand of each column.
    pub shift: Param<Tensor<1>>,
    /// What keeps the root away from zero.
    pub epsilon: f64,
}
