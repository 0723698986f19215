//! The Burn modules in half precision.
//!
//! Matrices, and what passes between the layers, are in the precision of the weights; normalisations, softmax and what
//! comes out in the end are in single precision: sums of squares do not fit in half.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn;
use burn::tensor::activation;
use burn::tensor::{FloatDType, Tensor};

/// A module with all its weights in this precision, but for its normalisations.
pub(super) fn narrowed<M: Module>(module: M, dtype: FloatDType) -> M {
    match dtype {
        FloatDType::F32 => module,
        dtype => module.map(&mut Narrow { dtype, norms: 0 }),
    }
}

struct Narrow {
    dtype: FloatDType,
    /// Normalisations that the visitor is inside of.
    norms: usize,
}

impl Narrow {
    fn is_norm(container: &str) -> bool {
        container == "Struct:LayerNorm"
    }
}

impl ModuleMapper for Narrow {
    fn enter_module(&mut self, _name: &str, container: &str) {
        self.norms += usize::from(Self::is_norm(container));
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.norms -= usize::from(Self::is_norm(container));
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.norms {
            0 => param.map(|tensor| tensor.cast(self.dtype)),
            _ => param,
        }
    }
}

/// The precision of a tensor.
pub(super) fn dtype<const D: usize>(x: &Tensor<D>) -> FloatDType {
    x.dtype().into()
}

/// In another precision, if it is another.
pub(super) fn to<const D: usize>(x: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    match self::dtype(&x) == dtype {
        true => x,
        false => x.cast(dtype),
    }
}

/// A normalisation; what comes out is in `dtype`.
pub(super) fn norm<const D: usize>(layer: &nn::LayerNorm, x: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    to(layer.forward(to(x, FloatDType::F32)), dtype)
}

/// The softmax over the last axis.
pub(super) fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let dtype = dtype(&x);
    to(activation::softmax(to(x, FloatDType::F32), D - 1), dtype)
}
