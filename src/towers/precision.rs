//! The Burn modules in half precision, and in all of single precision.
//!
//! In half precision matrices, and what passes between the layers, are in the precision of the weights; normalisations, softmax
//! and what comes out in the end are in single precision: sums of squares do not fit in half.
//!
//! In single precision a device may cut what it multiplies: Burn lets NVIDIA's tensor cores have TF32 of it, 11 significant
//! bits of 24, from which vectors differ in the fourth digit. [`Products::Split`] multiplies the bits that were cut, too.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn;
use burn::tensor::activation;
use burn::tensor::module::linear;
use burn::tensor::{FloatDType, Tensor};

/// A module with all its weights in this precision, but for its normalisations.
pub(super) fn narrowed<M: Module>(module: M, dtype: FloatDType) -> M {
    match dtype {
        FloatDType::F32 => module,
        dtype => module.map(&mut Narrow { dtype, norms: 0 }),
    }
}

/// How two values are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Products {
    /// As the device does it.
    Whole,
    /// In halves of at most 12 significant bits, so that nothing is lost where the device takes no more than 11.
    Split,
}

impl Products {
    /// `product(a, b)`, which has to be linear in both.
    pub(super) fn of<const A: usize, const B: usize, const C: usize>(
        self,
        a: Tensor<A>,
        b: Tensor<B>,
        product: impl Fn(Tensor<A>, Tensor<B>) -> Tensor<C>,
    ) -> Tensor<C> {
        match self {
            Self::Whole => product(a, b),
            Self::Split => {
                let ((a, a_rest), (b, b_rest)) = (halves(a), halves(b));
                // The product of the rests is below the last bit of the first.
                product(a.clone(), b.clone()) + (product(a, b_rest) + product(a_rest, b))
            }
        }
    }

    pub(crate) fn matmul<const D: usize>(self, a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
        self.of(a, b, Tensor::matmul)
    }

    /// A layer of [.., inputs] to [.., outputs].
    pub(super) fn linear<const D: usize>(self, layer: &nn::Linear, x: Tensor<D>) -> Tensor<D> {
        if self == Self::Whole {
            return layer.forward(x);
        }
        let product = self.of(x, layer.weight.val(), |x, weight| linear(x, weight, None));
        match &layer.bias {
            Some(bias) => product + bias.val().unsqueeze(),
            None => product,
        }
    }
}

/// The first 11 significant bits of each value and the rest, which has no more than 12: T. J. Dekker, "A floating-point
/// technique for extending the available precision", 1971.
fn halves<const D: usize>(x: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
    const FACTOR: f32 = ((1 << 13) + 1) as f32;
    let scaled = x.clone() * FACTOR;
    let first = scaled.clone() - (scaled - x.clone());
    let rest = x - first.clone();
    (first, rest)
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
pub(crate) fn to<const D: usize>(x: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::random::Random;

    /// What a tensor core takes of a value: the nearest with 11 significant bits.
    fn tf32(x: Tensor<2>) -> Tensor<2> {
        let dims = x.dims();
        let values: Vec<f32> = x.into_data().try_into_vec().unwrap();
        let cut = |x: f32| f32::from_bits((x.to_bits() + 0xFFF + (x.to_bits() >> 13 & 1)) & !0x1FFF);
        let values: Vec<f32> = values.into_iter().map(cut).collect();
        Tensor::from_data(TensorData::new(values, dims), &Device::flex())
    }

    /// On a device that multiplies TF32, as this one is made to.
    #[test]
    fn split_products_keep_single_precision() {
        let (rows, depth, columns) = (9, 768, 7);
        let mut random = Random::new(5);
        let mut matrix = |shape: [usize; 2]| {
            // Of sizes from a thousandth to a thousand.
            let values: Vec<f32> = (0..shape[0] * shape[1])
                .map(|i| random.range([-1.0, 1.0]) * 10f32.powi(i as i32 % 7 - 3))
                .collect();
            (
                values.clone(),
                Tensor::<2>::from_data(TensorData::new(values, shape), &Device::flex()),
            )
        };
        let ((a, a_tensor), (b, b_tensor)) = (matrix([rows, depth]), matrix([depth, columns]));
        let on_tensor_cores = |a: Tensor<2>, b: Tensor<2>| tf32(a).matmul(tf32(b));
        let worst = |products: Products| {
            let got = products.of(a_tensor.clone(), b_tensor.clone(), on_tensor_cores);
            let got: Vec<f32> = got.into_data().try_into_vec().unwrap();
            let mut worst = 0.0f64;
            for (i, got) in got.into_iter().enumerate() {
                let (row, column) = (i / columns, i % columns);
                let term = |k: usize| f64::from(a[row * depth + k]) * f64::from(b[k * columns + column]);
                let (sum, size) = (0..depth)
                    .map(term)
                    .fold((0.0, 0.0), |(s, m), x| (s + x, m + x.abs()));
                worst = worst.max((f64::from(got) - sum).abs() / size);
            }
            worst
        };
        let (whole, split) = (worst(Products::Whole), worst(Products::Split));
        assert!(whole > 1e-5, "{whole:e}");
        assert!(split < 2e-7, "{split:e}");
    }
}
