//! How the Burn modules multiply and attend: in half precision, and in all of single precision.
//!
//! In half precision matrices, and what passes between the layers, are in the precision of the weights;
//! normalisations, softmax and what comes out in the end are in single precision: sums of squares do not fit
//! in half.
//!
//! In single precision a device may cut what it multiplies: Burn lets NVIDIA's tensor cores have TF32 of it,
//! 11 significant bits of 24, from which vectors differ in the fourth digit. [`BurnPrecision::Single`]
//! multiplies the bits that were cut, too.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::activation;
use burn::tensor::module::linear;
use burn::tensor::{FloatDType, Tensor, TensorData};

use super::Layout;

/// A module with all its weights in this precision, but for its normalisations and its gates.
pub(crate) fn narrowed<M: Module>(module: M, dtype: FloatDType) -> M {
    match dtype {
        FloatDType::F32 => module,
        _ if cfg!(feature = "web") => module,
        dtype => module.map(&mut Narrow { dtype, kept: 0 }),
    }
}

/// How Burn's modules compute. Whatever is chosen, the vectors are the same but for rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BurnOptions {
    /// The precision of weights and products.
    pub precision: BurnPrecision,
    /// How attention is computed.
    pub attention: Attention,
}

/// The precision in which Burn's modules keep matrices and multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BurnPrecision {
    /// Single precision, of which the device may multiply as many bits as it likes: NVIDIA's tensor cores
    /// take TF32.
    #[default]
    Device,
    /// All of single precision, at three times the work.
    Single,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// How Burn's modules compute attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Attention {
    /// Two products with the softmax between them, of which the scores are written down.
    #[default]
    Products,
    /// By Burn's operation, which has kernels that never write the scores; tokens are padded to a multiple of
    /// 32, without which none of them runs. On NVIDIA cards they multiply in f16 whatever the precision is.
    /// All of single precision ([`BurnPrecision::Single`]) is not in their power, so there it is
    /// [`Attention::Products`] all the same.
    Fused,
}

impl BurnOptions {
    /// What numbers of tokens are a multiple of for fused attention.
    const FUSED_STEP: usize = 32;

    /// The type of weights, and of what passes between layers.
    pub(crate) fn dtype(self) -> FloatDType {
        match self.precision {
            BurnPrecision::Device | BurnPrecision::Single => FloatDType::F32,
            BurnPrecision::F16 => FloatDType::F16,
            BurnPrecision::Bf16 => FloatDType::BF16,
        }
    }

    /// The same, but in single precision.
    pub(super) fn single(self) -> Self {
        Self {
            precision: match self.precision {
                BurnPrecision::Single => BurnPrecision::Single,
                _ => BurnPrecision::Device,
            },
            ..self
        }
    }

    /// Whether products are split in halves of at most 12 significant bits, so that nothing is lost where the
    /// device takes no more than 11.
    pub(crate) fn is_split(self) -> bool {
        self.precision == BurnPrecision::Single
    }

    pub(super) fn is_fused(self) -> bool {
        self.attention == Attention::Fused && !self.is_split()
    }

    /// What numbers of tokens should be a multiple of.
    pub(crate) fn token_step(self) -> usize {
        match self.is_fused() {
            true => Self::FUSED_STEP,
            // So that a device sees few different shapes.
            false => 8,
        }
    }

    /// How many of the first rows go through the last block, of which the first is wanted.
    pub(super) fn first_rows(self, tokens: usize) -> usize {
        match self.is_fused() {
            true => Self::FUSED_STEP.min(tokens),
            false => 1,
        }
    }

    /// Pads each of `batch` sequences of `tokens` rows where fused attention needs it.
    pub(super) fn pad_tokens(self, x: Tensor<2>, batch: usize, tokens: usize) -> (Tensor<2>, Layout) {
        let padded = tokens.next_multiple_of(Self::FUSED_STEP);
        if !self.is_fused() || padded == tokens {
            let layout = Layout::Padded {
                batch,
                tokens,
                key_bias: None,
            };
            return (x, layout);
        }
        let (device, dtype, [_, width]) = (x.device(), dtype(&x), x.dims());
        let zeros = to(Tensor::zeros([batch, padded - tokens, width], &device), dtype);
        let bias = (0..padded).map(|key| if key < tokens { 0.0f32 } else { -10_000.0 });
        let bias = TensorData::new(bias.collect::<Vec<_>>(), [1, 1, 1, padded]);
        let x = Tensor::cat(vec![x.reshape([batch, tokens, width]), zeros], 1);
        let layout = Layout::Padded {
            batch,
            tokens: padded,
            key_bias: Some(Tensor::from_data(bias, &device)),
        };
        (x.reshape([batch * padded, width]), layout)
    }

    /// `product(a, b)`, which has to be linear in both.
    pub(crate) fn of<const A: usize, const B: usize, const C: usize>(
        self,
        a: Tensor<A>,
        b: Tensor<B>,
        product: impl Fn(Tensor<A>, Tensor<B>) -> Tensor<C>,
    ) -> Tensor<C> {
        if !self.is_split() {
            return product(a, b);
        }
        let ((a, a_rest), (b, b_rest)) = (halves(a), halves(b));
        // The product of the rests is below the last bit of the first.
        product(a.clone(), b.clone()) + (product(a, b_rest) + product(a_rest, b))
    }

    pub(crate) fn matmul<const D: usize>(self, a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
        self.of(a, b, Tensor::matmul)
    }

    /// x W + b.
    pub(crate) fn linear(self, x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        if !self.is_split() {
            return linear(x, weight, bias);
        }
        let product = self.of(x, weight, |x, weight| linear(x, weight, None));
        match bias {
            Some(bias) => product + bias.unsqueeze(),
            None => product,
        }
    }
}

/// The first 11 significant bits of each value and the rest, which has no more than 12: T. J. Dekker, "A
/// floating-point technique for extending the available precision", 1971.
fn halves<const D: usize>(x: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
    const FACTOR: f32 = ((1 << 13) + 1) as f32;
    let scaled = x.clone() * FACTOR;
    let first = scaled.clone() - (scaled - x.clone());
    let rest = x - first.clone();
    (first, rest)
}

struct Narrow {
    dtype: FloatDType,
    /// Normalisations and gates that the visitor is inside of.
    kept: usize,
}

impl Narrow {
    fn is_kept(container: &str) -> bool {
        matches!(container, "Struct:Norm" | "Struct:Excitation")
    }
}

impl ModuleMapper for Narrow {
    fn enter_module(&mut self, _name: &str, container: &str) {
        self.kept += usize::from(Self::is_kept(container));
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.kept -= usize::from(Self::is_kept(container));
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.kept {
            0 => param.map(|tensor| tensor.cast(self.dtype)),
            _ => param,
        }
    }
}

/// The precision of a tensor.
pub(crate) fn dtype<const D: usize>(x: &Tensor<D>) -> FloatDType {
    x.dtype().into()
}

/// In another precision, if it is another. In a module for JavaScript all tensors are of single precision.
pub(crate) fn to<const D: usize>(x: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    match cfg!(feature = "web") || self::dtype(&x) == dtype {
        true => x,
        false => x.cast(dtype),
    }
}

/// The softmax over the last axis.
pub(super) fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let dtype = dtype(&x);
    to(activation::softmax(to(x, FloatDType::F32), D - 1), dtype)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::Device;

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
        let worst = |precision: BurnPrecision| {
            let how = BurnOptions {
                precision,
                ..BurnOptions::default()
            };
            let got = how.of(a_tensor.clone(), b_tensor.clone(), on_tensor_cores);
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
        let (whole, split) = (worst(BurnPrecision::Device), worst(BurnPrecision::Single));
        assert!(whole > 1e-5, "{whole:e}");
        assert!(split < 2e-7, "{split:e}");
    }
}
