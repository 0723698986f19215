//! The operations on images: convolutions, and the gates between them.
//!
//! An image is rows, one for each pixel, with the channels of a pixel beside one another; a [`Map`] is its
//! size. The images of a batch are contiguous.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::activation::sigmoid;
use burn::tensor::{FloatDType, Tensor};

use super::layers::{Shared, other_kind};
use super::{Linear, Pass, composed, to};
use crate::kernels::{Activation, convolution as kernels};
use kernels::Map;

/// A convolution as checkpoints have it, with the padding of TensorFlow's "same".
#[derive(Module, Debug)]
pub struct Convolution {
    /// `[outputs, inputs of a group, kernel, kernel]`
    pub(crate) weight: Param<Tensor<4>>,
    pub(crate) summand: Summand,
}

/// What follows the product of a convolution.
#[allow(clippy::large_enum_variant, reason = "a tower has few of them")]
#[derive(Module, Debug)]
pub enum Summand {
    /// A summand for each output channel.
    Bias(Param<Tensor<1>>),
    /// A batch normalisation.
    Norm(BatchNorm),
}

/// A batch normalisation whose statistics stay as they are, in training too.
#[derive(Module, Debug)]
pub struct BatchNorm {
    pub(crate) scale: Param<Tensor<1>>,
    pub(crate) shift: Param<Tensor<1>>,
    pub(crate) mean: Param<Tensor<1>>,
    pub(crate) variance: Param<Tensor<1>>,
    pub(crate) epsilon: f64,
}

/// A depthwise convolution: each channel has a kernel of its own.
#[derive(Module, Debug)]
pub struct Depthwise {
    kernel: usize,
    stride: usize,
    kept: DepthwiseKept,
}

/// What a depthwise convolution's weights are kept as.
#[allow(clippy::large_enum_variant, reason = "a tower has few of them")]
#[derive(Module, Debug)]
enum DepthwiseKept {
    /// As tensors of the device, `[channels, 1, kernel, kernel]`.
    Dense(Convolution),
    /// As the host's kernels read them.
    Packed(PackedDepthwise),
    /// As the kernels of graphics cards read them.
    #[cfg(feature = "cube")]
    Card(CardDepthwise),
}

#[cfg(feature = "cube")]
#[derive(Module, Debug)]
struct CardDepthwise {
    #[module(skip)]
    layer: Shared<super::cube::convolution::CardDepthwise>,
}

#[derive(Module, Debug)]
struct PackedDepthwise {
    #[module(skip)]
    layer: Shared<kernels::Depthwise>,
}

/// Squeeze-and-excitation: the two layers from the means of an image's channels to a factor for each.
#[derive(Module, Debug)]
pub struct Excitation {
    pub(crate) reduce: Linear,
    pub(crate) expand: Linear,
}

impl Convolution {
    /// The weights and a summand for each output channel, the normalisation being part of both.
    pub(super) fn folded(&self) -> (Tensor<4>, Tensor<1>) {
        let weight = self.weight.val();
        match &self.summand {
            Summand::Bias(bias) => (weight, bias.val()),
            Summand::Norm(norm) => {
                let factor = norm.scale.val() / (norm.variance.val() + norm.epsilon).sqrt();
                let summand = norm.shift.val() - norm.mean.val() * factor.clone();
                let [outputs] = factor.dims();
                (weight * factor.reshape([outputs, 1, 1, 1]), summand)
            }
        }
    }
}

impl Depthwise {
    /// A convolution of the weights `[channels, 1, kernel, kernel]`.
    pub(crate) fn of_tensors(convolution: Convolution, stride: usize) -> Self {
        let [_, _, kernel, _] = convolution.weight.dims();
        Self {
            kernel,
            stride,
            kept: DepthwiseKept::Dense(convolution),
        }
    }

    /// A convolution for the host's kernels, of the weights `[channels, kernel, kernel]`.
    pub(crate) fn of_values(kernel: usize, stride: usize, weight: &[f32], bias: &[f32]) -> Self {
        let layer = kernels::Depthwise::new(kernel, stride, weight, bias);
        Self {
            kernel,
            stride,
            kept: DepthwiseKept::Packed(PackedDepthwise {
                layer: Shared(Arc::new(layer)),
            }),
        }
    }

    /// A convolution for the kernels of graphics cards, of the weights `[channels, kernel, kernel]`.
    #[cfg(feature = "cube")]
    pub(crate) fn on_card(
        kernel: usize,
        stride: usize,
        weight: &[f32],
        bias: &[f32],
        device: &burn::tensor::Device,
    ) -> Self {
        let layer = super::cube::convolution::CardDepthwise::new(kernel, stride, weight, bias, device);
        Self {
            kernel,
            stride,
            kept: DepthwiseKept::Card(CardDepthwise { layer: Shared(layer) }),
        }
    }

    /// The layer on a card.
    #[cfg(feature = "cube")]
    fn card(&self) -> &super::cube::convolution::CardDepthwise {
        match &self.kept {
            DepthwiseKept::Card(card) => &card.layer.0,
            _ => other_kind(),
        }
    }

    /// The packed layer.
    #[cfg(feature = "flex")]
    fn packed(&self) -> Arc<kernels::Depthwise> {
        match &self.kept {
            DepthwiseKept::Packed(packed) => packed.layer.0.clone(),
            _ => other_kind(),
        }
    }

    /// The weights and a summand for each channel.
    fn dense(&self) -> (Tensor<4>, Tensor<1>) {
        match &self.kept {
            DepthwiseKept::Dense(convolution) => convolution.folded(),
            _ => other_kind(),
        }
    }

    /// The size of what it makes of an image.
    pub(crate) fn convolved(&self, map: Map) -> Map {
        map.convolved(self.kernel, self.stride).0
    }
}

impl Pass<'_> {
    /// Pixels `[batch, 3, height, width]` to rows: a convolution of all three planes, then a swish. The
    /// weight of `layer` is `[3 * kernel * kernel, channels]`.
    pub(crate) fn convolve(
        &self,
        pixels: Tensor<4>,
        layer: &Linear,
        kernel: usize,
        stride: usize,
    ) -> (Tensor<2>, Map) {
        let [_, _, height, width] = pixels.dims();
        let (map, _) = Map { height, width }.convolved(kernel, stride);
        #[cfg(feature = "flex")]
        if self.how.is_packed() {
            let rows = super::host::convolution::convolve(pixels, layer.packed(), kernel, stride);
            return (rows, map);
        }
        #[cfg(feature = "cube")]
        if self.how.on_card().is_some() {
            let rows = super::cube::convolution::convolve(pixels, layer.card(), kernel, stride);
            return (rows, map);
        }
        let (weight, bias) = layer.dense();
        let [_, channels] = weight.dims();
        let weight = weight.transpose().reshape([channels, 3, kernel, kernel]);
        let bias = bias.expect("a convolution has a summand");
        let x = composed::convolution::convolve(self.factor(pixels), weight, bias, stride, self.how.options);
        let x = composed::convolution::rows(x);
        (composed::activate(x, Activation::Swish), map)
    }

    /// swish(depthwise convolution(swish(x W + b))), without the inner part where there is no expansion; and
    /// the mean of each channel over the result, `[images, channels]`, in single precision.
    ///
    /// One operation, so that a device need not write what it expands.
    pub(crate) fn depthwise(
        &mut self,
        layer: &Depthwise,
        x: Tensor<2>,
        map: Map,
        expansion: Option<&Linear>,
    ) -> (Tensor<2>, Tensor<2>) {
        #[cfg(feature = "flex")]
        if self.how.is_packed() {
            if let (true, Some(expansion)) = (self.trace.is_on(), expansion) {
                // The kernel has it in pieces only.
                let expanded = self.linear(expansion, x.clone(), Activation::Swish);
                self.trace.tensor("expand", &expanded);
            }
            let expansion = expansion.map(Linear::packed);
            let (x, mean) = super::host::convolution::depthwise(x, map, expansion, layer.packed());
            self.trace.tensor("depthwise", &x);
            return (x, mean);
        }
        let mut x = x;
        if let Some(expansion) = expansion {
            x = self.linear(expansion, x, Activation::Swish);
            self.trace.tensor("expand", &x);
        }
        #[cfg(feature = "cube")]
        if self.how.on_card().is_some() {
            let x = super::cube::convolution::depthwise(x, map, layer.card());
            self.trace.tensor("depthwise", &x);
            let mean = self.mean(x.clone(), layer.convolved(map));
            return (x, mean);
        }
        let (weight, bias) = layer.dense();
        let x = composed::convolution::images(x, map);
        let x = composed::convolution::convolve(x, weight, bias, layer.stride, self.how.options);
        let x = composed::activate(composed::convolution::rows(x), Activation::Swish);
        self.trace.tensor("depthwise", &x);
        let mean = self.mean(x.clone(), layer.convolved(map));
        (x, mean)
    }

    /// The mean of each channel of each image, `[images, channels]`, in single precision.
    pub(crate) fn mean(&self, x: Tensor<2>, map: Map) -> Tensor<2> {
        #[cfg(feature = "flex")]
        if self.how.is_packed() {
            return super::host::convolution::mean(x, map);
        }
        #[cfg(feature = "cube")]
        if self.how.on_card().is_some() {
            return super::cube::convolution::mean(x, map);
        }
        composed::convolution::mean(to(x, FloatDType::F32), map)
    }

    /// sigmoid(swish(mean W1 + b1) W2 + b2), in single precision: a factor for each channel of each image.
    pub(crate) fn gate(&self, layers: &Excitation, mean: Tensor<2>) -> Tensor<2> {
        #[cfg(feature = "flex")]
        if self.how.is_packed() {
            let layers = [&layers.reduce, &layers.expand].map(Linear::packed);
            return super::host::convolution::gate(mean, layers);
        }
        let squeezed = self.linear_single(&layers.reduce, mean, Activation::Swish);
        #[cfg(feature = "cube")]
        if self.how.on_card().is_some() {
            let expanded = self.linear_single(&layers.expand, squeezed, Activation::None);
            return super::cube::each(expanded, super::cube::Function::Sigmoid);
        }
        sigmoid(self.linear_single(&layers.expand, squeezed, Activation::None))
    }

    /// residual + (x * gate) W + b, or without the residual; the gate `[images, channels]` is a factor for
    /// each channel of each image.
    pub(crate) fn gated_linear(
        &mut self,
        layer: &Linear,
        x: Tensor<2>,
        gate: Tensor<2>,
        residual: Option<Tensor<2>>,
    ) -> Tensor<2> {
        #[cfg(feature = "flex")]
        if self.how.is_packed() {
            if self.trace.is_on() {
                // The kernel has the gate in its weights.
                let gated = composed::convolution::gated(x.clone(), gate.clone());
                self.trace.tensor("se", &gated);
            }
            let is_all = residual.is_none();
            let x = super::host::convolution::gated_linear(x, gate, residual, layer.packed());
            if is_all {
                self.trace.tensor("project", &x);
            }
            return x;
        }
        #[cfg(feature = "cube")]
        if self.how.on_card().is_some() {
            let gated = super::cube::convolution::gated(x, gate);
            self.trace.tensor("se", &gated);
            return match residual {
                Some(residual) => self.linear_add(layer, gated, residual, "project"),
                None => {
                    let x = self.linear(layer, gated, Activation::None);
                    self.trace.tensor("project", &x);
                    x
                }
            };
        }
        let gated = composed::convolution::gated(x, gate);
        self.trace.tensor("se", &gated);
        let x = self.linear(layer, gated, Activation::None);
        self.trace.tensor("project", &x);
        match residual {
            Some(residual) => residual + x,
            None => x,
        }
    }
}
