//! The layers that towers are made of, and what their weights are kept as.

use std::fmt;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::nn;
use burn::tensor::Tensor;

use crate::kernels;
use crate::weights::Dtype;

/// A linear layer, y = x W + b with W of `[inputs, outputs]`.
// A tower has few of them, so that the size of the larger variant does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum Linear {
    /// As tensors of the device.
    Dense(nn::Linear),
    /// As the host's kernels read it.
    Packed(PackedLinear),
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

/// What all clones of a module share.
#[derive(Clone)]
struct Shared<T>(Arc<T>);

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

    pub(super) fn get(&self) -> Arc<kernels::Linear> {
        self.layer.0.clone()
    }
}

impl PackedProjections {
    /// `layers`: queries, then keys and values.
    pub(crate) fn new(layers: [kernels::Linear; 2]) -> Self {
        Self {
            layers: Shared(Arc::new(layers)),
        }
    }

    pub(super) fn get(&self) -> Arc<[kernels::Linear; 2]> {
        self.layers.0.clone()
    }
}

impl Linear {
    /// The packed layer.
    ///
    /// # Panics
    /// Where it is not packed.
    #[cfg(feature = "flex")]
    pub(super) fn packed(&self) -> Arc<kernels::Linear> {
        match self {
            Self::Packed(layer) => layer.get(),
            Self::Dense(_) => unreachable!("weights are packed for the host's kernels"),
        }
    }

    /// How the weight is kept.
    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Self::Dense(_) => Dtype::F32,
            Self::Packed(packed) => packed.layer.0.weight.dtype(),
        }
    }
}

/// LayerNorm over the last dimension: (x - mean) / sqrt(variance + epsilon) * scale + shift, with the biased variance.
#[derive(Module, Debug)]
pub struct Norm {
    /// The factor of each column.
    pub scale: Param<Tensor<1>>,
    /// The summand of each column.
    pub shift: Param<Tensor<1>>,
    /// What keeps the root away from zero.
    pub epsilon: f64,
}
