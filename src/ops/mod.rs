//! The operations that the towers are made of.
//!
//! A tower says what is computed, step by step, by the methods of a [`Pass`]. How a step is computed is a
//! matter of the device:
//!
//! - `composed`: by Burn's tensor operations, on every device. These are the definitions.
//! - `host`: by the kernels of this crate on the host's memory, as an extension of Burn's Flex backend. For
//!   inference the weights were packed when they were loaded; for training each operation has a backward
//!   pass.
//! - `cube`: by kernels for graphics cards, as an extension of Burn's CubeCL backend.
//!
//! All values are rows, `[rows, width]`. Which rows belong to which sequence is said by a [`Layout`].

mod composed;
mod convolution;
#[cfg(feature = "cube")]
pub(crate) mod cube;
mod dropout;
#[cfg(feature = "flex")]
pub(crate) mod host;
mod layers;
mod options;
mod trace;
#[cfg(feature = "train")]
pub(crate) mod training;

use std::sync::Arc;

use burn::tensor::{Device, FloatDType, Tensor};

pub(crate) use convolution::{BatchNorm, Convolution, Depthwise, Excitation, Summand};
#[cfg(feature = "cube")]
pub use cube::{CardOptions, Precision};
#[cfg(feature = "train")]
pub use dropout::Dropout;
pub use dropout::DropoutMask;
pub(crate) use dropout::Dropping;
#[cfg(feature = "cube")]
pub(crate) use layers::CardLinear;
pub(crate) use layers::{Linear, Norm, PackedLinear, PackedProjections, Projections, joined};
pub use options::{Attention, BurnOptions, BurnPrecision};
pub(crate) use options::{dtype, narrowed, to};
pub use trace::Step;
pub(crate) use trace::{Trace, host_values, host_values_async};

use crate::kernels::{Activation, AttentionShape, Sequence};

/// What implements the operations of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Implementation {
    /// Burn's tensor operations.
    Composed,
    /// The host's kernels, on weights that were packed.
    #[cfg(feature = "flex")]
    Packed,
    /// The kernels for graphics cards.
    #[cfg(feature = "cube")]
    Card {
        /// Whether the card is a program on the processor.
        is_software: bool,
    },
    /// The host's kernels with their backward passes.
    #[cfg(feature = "train")]
    Training,
}

/// How the operations of a pass are computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    implementation: Implementation,
    options: BurnOptions,
    /// The precision of what passes between the layers.
    rows: FloatDType,
}

impl How {
    /// By the host's kernels, for inference.
    #[cfg(feature = "flex")]
    pub(crate) fn packed() -> Self {
        Self {
            implementation: Implementation::Packed,
            options: BurnOptions::default(),
            rows: FloatDType::F32,
        }
    }

    /// By the kernels for graphics cards.
    #[cfg(feature = "cube")]
    pub(crate) fn card(is_software: bool) -> Self {
        Self {
            implementation: Implementation::Card { is_software },
            ..Self::composed(BurnOptions::default())
        }
    }

    /// By Burn's operations, for inference.
    pub(crate) fn composed(options: BurnOptions) -> Self {
        Self {
            implementation: Implementation::Composed,
            options,
            rows: options.dtype(),
        }
    }

    /// For training. What passes between the layers is in single precision.
    #[cfg(feature = "train")]
    pub(crate) fn training(compute: training::Compute, device: &burn::tensor::Device) -> Self {
        Self {
            implementation: match compute.is_fused(device) {
                true => Implementation::Training,
                false => Implementation::Composed,
            },
            options: compute.options(),
            rows: FloatDType::F32,
        }
    }

    /// Whether the host's kernels run on packed weights. In a module for JavaScript nothing else does, so
    /// that the compiler leaves Burn's operations out of the download.
    #[allow(clippy::unused_self)]
    pub(crate) fn is_packed(self) -> bool {
        #[cfg(feature = "flex")]
        return cfg!(feature = "web") || self.implementation == Implementation::Packed;
        #[cfg(not(feature = "flex"))]
        false
    }

    /// Whether the kernels for graphics cards run, and if so whether in software.
    #[cfg(feature = "cube")]
    pub(crate) fn on_card(self) -> Option<bool> {
        match self.implementation {
            Implementation::Card { is_software } => Some(is_software),
            _ => None,
        }
    }

    /// Whether sequences are contiguous, without padding.
    pub(crate) fn is_ragged(self) -> bool {
        #[cfg(feature = "cube")]
        if self.on_card().is_some() {
            return true;
        }
        self.is_packed()
    }

    /// Sequences that lie so, for the kernels that take them as they are.
    #[cfg_attr(not(feature = "cube"), allow(unused_variables))]
    pub(crate) fn ragged(self, sequences: Vec<Sequence>, device: &Device) -> Layout {
        Layout::Ragged {
            #[cfg(feature = "cube")]
            on_card: (self.on_card()).map(|_| cube::Sequences::new(&sequences, device)),
            sequences: sequences.into(),
        }
    }

    /// Whether the host's kernels run, with their backward passes.
    #[cfg(feature = "train")]
    fn is_training(self) -> bool {
        self.implementation == Implementation::Training
    }

    /// How Burn's operations compute.
    pub(crate) fn options(self) -> BurnOptions {
        self.options
    }
}

/// The sequences of a batch, one behind the other.
#[allow(clippy::large_enum_variant, reason = "a pass has one of them")]
#[derive(Debug, Clone)]
pub(crate) enum Layout {
    /// Sequences of any lengths without padding between them, for kernels of our own.
    Ragged {
        sequences: Arc<[Sequence]>,
        /// The same on the card that computes.
        #[cfg(feature = "cube")]
        on_card: Option<cube::Sequences>,
    },
    /// `batch` sequences of `tokens` rows each.
    Padded {
        batch: usize,
        tokens: usize,
        /// What is added to the scores of each key, `[batch or 1, 1, 1, tokens]`: 0 for a token, -10000 for
        /// padding.
        key_bias: Option<Tensor<4>>,
    },
}

impl Layout {
    #[cfg(feature = "flex")]
    fn sequences(&self) -> Arc<[Sequence]> {
        match self {
            Self::Ragged { sequences, .. } => sequences.clone(),
            Self::Padded { .. } => unreachable!("kernels of our own are given no padding"),
        }
    }

    #[cfg(feature = "cube")]
    fn on_card(&self) -> &cube::Sequences {
        match self {
            Self::Ragged {
                on_card: Some(sequences),
                ..
            } => sequences,
            _ => unreachable!("a pass on a card makes its own layouts"),
        }
    }

    /// The number of sequences, the rows of each, and the bias of their keys.
    fn padded(&self) -> (usize, usize, Option<&Tensor<4>>) {
        match self {
            Self::Padded {
                batch,
                tokens,
                key_bias,
            } => (*batch, *tokens, key_bias.as_ref()),
            Self::Ragged { .. } => unreachable!("Burn's operations are given padded batches"),
        }
    }
}

/// One forward pass of a tower: how it computes, what it leaves out at random, and who wants to see its
/// steps.
pub(crate) struct Pass<'a> {
    how: How,
    dropping: Option<&'a mut Dropping>,
    pub(crate) trace: Trace<'a>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(how: How, trace: Trace<'a>) -> Self {
        Self {
            how,
            dropping: None,
            trace,
        }
    }

    /// A pass that leaves values out at random.
    #[cfg(feature = "train")]
    pub(crate) fn with_dropping(how: How, dropping: &'a mut Dropping) -> Self {
        Self {
            dropping: Some(dropping),
            ..Self::new(how, Trace::new("", None))
        }
    }

    /// `x` in the precision of what is multiplied.
    pub(crate) fn factor<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        to(x, self.how.options.dtype())
    }

    /// `x` in the precision of what passes between the layers.
    pub(crate) fn rows<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        to(x, self.how.rows)
    }

    /// activation(x W + b), `[rows, outputs]`.
    pub(crate) fn linear(&self, layer: &Linear, x: Tensor<2>, activation: Activation) -> Tensor<2> {
        #[cfg(feature = "flex")]
        if self.how.is_packed() {
            return host::linear(x, layer.packed(), activation);
        }
        #[cfg(feature = "cube")]
        if let Some(is_software) = self.how.on_card() {
            return cube::linear(x, layer.card(), activation, is_software);
        }
        self.dense(x, layer.dense(), activation, self.how.options)
    }

    /// As [`Pass::linear`], in single precision: for few rows, and for a tower's last step.
    pub(crate) fn linear_single(&self, layer: &Linear, x: Tensor<2>, activation: Activation) -> Tensor<2> {
        if self.how.is_ragged() {
            return self.linear(layer, x, activation);
        }
        self.dense(x, layer.dense(), activation, self.how.options.single())
    }

    fn dense(
        &self,
        x: Tensor<2>,
        (weight, bias): (Tensor<2>, Option<Tensor<1>>),
        activation: Activation,
        options: BurnOptions,
    ) -> Tensor<2> {
        #[cfg(feature = "train")]
        if self.how.is_training() {
            return training::linear(x, weight, bias, activation);
        }
        composed::linear(x, weight, bias, activation, options)
    }

    /// residual + dropout(x W + b). `name` is that of the summand among the steps.
    pub(crate) fn linear_add(
        &mut self,
        layer: &Linear,
        x: Tensor<2>,
        residual: Tensor<2>,
        name: &str,
    ) -> Tensor<2> {
        #[cfg(feature = "flex")]
        if self.how.is_packed() && !self.trace.is_on() {
            return host::linear_add(x, residual, layer.packed());
        }
        #[cfg(feature = "cube")]
        if let Some(is_software) = self.how.on_card()
            && !self.trace.is_on()
        {
            return cube::linear_add(x, residual, layer.card(), is_software);
        }
        let summand = self.linear(layer, x, Activation::None);
        self.trace.tensor(name, &summand);
        self.add(residual, summand)
    }

    /// residual + dropout(activation(x W1 + b1) W2 + b2). `name` is that of the summand among the steps.
    pub(crate) fn mlp_add(
        &mut self,
        [up, down]: [&Linear; 2],
        activation: Activation,
        x: Tensor<2>,
        residual: Tensor<2>,
        name: &str,
    ) -> Tensor<2> {
        #[cfg(feature = "flex")]
        if self.how.is_packed() && !self.trace.is_on() {
            return host::mlp_add(x, residual, up.packed(), down.packed(), activation);
        }
        let hidden = self.linear(up, x, activation);
        self.linear_add(down, hidden, residual, name)
    }

    fn add(&mut self, residual: Tensor<2>, summand: Tensor<2>) -> Tensor<2> {
        let summand = self.rows(summand);
        #[cfg(feature = "train")]
        if let Some(mask) = self.dropping.as_mut().and_then(|dropping| dropping.hidden()) {
            return match self.how.is_training() {
                true => training::add_drop_out(residual, summand, mask),
                false => residual + composed::drop_out(summand, &mask),
            };
        }
        residual + summand
    }

    /// dropout(x).
    pub(crate) fn drop_out(&mut self, x: Tensor<2>) -> Tensor<2> {
        #[cfg(feature = "train")]
        if let Some(mask) = self.dropping.as_mut().and_then(|dropping| dropping.hidden()) {
            return match self.how.is_training() {
                true => training::drop_out(x, mask),
                false => composed::drop_out(x, &mask),
            };
        }
        x
    }

    /// LayerNorm of each row.
    pub(crate) fn norm(&self, layer: &Norm, x: Tensor<2>) -> Tensor<2> {
        self.rows(self.norm_single(layer, x))
    }

    /// As [`Pass::norm`], in single precision: for a tower's last step.
    pub(crate) fn norm_single(&self, layer: &Norm, x: Tensor<2>) -> Tensor<2> {
        let (scale, shift) = (layer.scale.val(), layer.shift.val());
        #[cfg(feature = "flex")]
        if self.how.is_packed() {
            return host::norm(x, scale, shift, layer.epsilon);
        }
        #[cfg(feature = "cube")]
        if self.how.on_card().is_some() {
            return cube::norm(x, scale, shift, layer.epsilon);
        }
        #[cfg(feature = "train")]
        if self.how.is_training() {
            return training::layer_norm(x, scale, shift, layer.epsilon);
        }
        composed::norm(to(x, FloatDType::F32), scale, shift, layer.epsilon)
    }

    /// Pixels `[batch, 3, size, size]` to rows: of each image the row of the class token, then those of its
    /// patches of `patch` pixels a side, each with its position added. `class` is `[1, 1, width]`,
    /// `positions` `[1, tokens, width]`.
    pub(crate) fn tokens(
        &mut self,
        pixels: Tensor<4>,
        layer: &Linear,
        class: Tensor<3>,
        positions: Tensor<3>,
        patch: usize,
    ) -> Tensor<2> {
        #[cfg(feature = "flex")]
        if self.how.is_packed() {
            return host::tokens(pixels, layer.packed(), class, positions, patch);
        }
        #[cfg(feature = "cube")]
        if let Some(is_software) = self.how.on_card() {
            return cube::tokens(pixels, layer.card(), class, positions, patch, is_software);
        }
        let [_, tokens, width] = positions.dims();
        let patches = composed::patches(self.factor(pixels), patch);
        let batch = patches.dims()[0] / (tokens - 1);
        let x = self.rows(self.linear(layer, patches, Activation::None));
        self.trace.tensor("patch_embed", &x);
        let x = x.reshape([batch, tokens - 1, width]);
        let x = Tensor::cat(vec![class.repeat_dim(0, batch), x], 1) + positions;
        x.reshape([batch * tokens, width])
    }

    /// The hyperbolic tangent, in single precision.
    pub(crate) fn tanh(&self, x: Tensor<2>) -> Tensor<2> {
        #[cfg(feature = "flex")]
        if self.how.is_packed() {
            return host::tanh(x);
        }
        #[cfg(feature = "cube")]
        if self.how.on_card().is_some() {
            return cube::each(x, cube::Function::Tanh);
        }
        to(x, FloatDType::F32).tanh()
    }

    /// Multi-head attention of each sequence to itself, `[rows, width]` to `[rows, value width]`; with
    /// `only_first` that of the first rows of each sequence, as [`Pass::first_rows`] has them.
    pub(crate) fn attend(
        &mut self,
        projections: &Projections,
        x: Tensor<2>,
        shape: &AttentionShape,
        layout: &Layout,
        only_first: bool,
    ) -> Tensor<2> {
        #[cfg(feature = "flex")]
        if self.how.is_packed() {
            return host::attend(x, projections.packed(), *shape, layout.sequences(), only_first);
        }
        #[cfg(feature = "cube")]
        if let Some(is_software) = self.how.on_card() {
            let sequences = layout.on_card();
            return cube::attend(x, projections.card(), shape, sequences, only_first, is_software);
        }
        let qkv = self.dense(x, projections.dense(), Activation::None, self.how.options);
        let (batch, tokens, key_bias) = layout.padded();
        let [_, width] = qkv.dims();
        let qkv = qkv.reshape([batch, tokens, width]);
        let key_bias = key_bias.cloned();
        let mask = self.dropping.as_mut().and_then(|dropping| dropping.attention());
        #[cfg(feature = "train")]
        if self.how.is_training() {
            return training::attention(qkv, key_bias, shape, mask, only_first);
        }
        let queries = match only_first {
            true => self.how.options.first_rows(tokens),
            false => tokens,
        };
        composed::attention(qkv, key_bias, shape, mask, queries, self.how.options)
    }

    /// The rows of each sequence that the last block computes: the first, and those that the attention cannot
    /// do without.
    pub(crate) fn first_rows(&self, x: Tensor<2>, layout: &Layout) -> Tensor<2> {
        #[cfg(feature = "flex")]
        if self.how.is_packed() {
            return host::first_rows(x, layout.sequences());
        }
        #[cfg(feature = "cube")]
        if self.how.on_card().is_some() {
            return cube::first_rows(x, layout.on_card());
        }
        let (batch, tokens, _) = layout.padded();
        first(x, batch, self.how.options.first_rows(tokens))
    }

    /// The first of each sequence's [`Pass::first_rows`].
    pub(crate) fn firsts(&self, x: Tensor<2>, layout: &Layout) -> Tensor<2> {
        match layout {
            Layout::Padded { batch, .. } if x.dims()[0] > *batch => first(x, *batch, 1),
            _ => x,
        }
    }

    /// Pads each sequence where fused attention needs it.
    pub(crate) fn pad(&self, x: Tensor<2>, batch: usize, tokens: usize) -> (Tensor<2>, Layout) {
        if self.how.is_ragged() {
            let sequence = |i| Sequence {
                query: i * tokens,
                queries: tokens,
                key: i * tokens,
                keys: tokens,
            };
            let layout = self.how.ragged((0..batch).map(sequence).collect(), &x.device());
            return (x, layout);
        }
        self.how.options.pad_tokens(x, batch, tokens)
    }
}

/// The first `count` rows of each of `batch` sequences.
fn first(x: Tensor<2>, batch: usize, count: usize) -> Tensor<2> {
    let [rows, width] = x.dims();
    let x = x.reshape([batch, rows / batch, width]).narrow(1, 0, count);
    x.reshape([batch * count, width])
}
