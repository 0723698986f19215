//! As a Burn module, for any device.

use burn::module::{Module, Param};
use burn::nn;
use burn::tensor::activation::sigmoid;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, FloatDType, Tensor};

use super::{block, prefixes};
use crate::kernels::convolution::Map;
use crate::ops::{BurnOptions, Pass, Trace, dtype, to};
use crate::towers::load::{Layered, Loader};
use crate::{EfficientNetConfig, Result};

/// An EfficientNet. In training, too, batch normalisation uses the statistics that came with the weights.
#[derive(Module, Debug)]
pub struct EfficientNet {
    stem: Convolution,
    blocks: Vec<Block>,
    head: Convolution,
    projection: Option<nn::Linear>,
}

/// A convolution with the padding of TensorFlow's "same", and its batch normalisation.
#[derive(Module, Debug)]
pub struct Convolution {
    /// [outputs, inputs of a group, kernel, kernel]
    weight: Param<Tensor<4>>,
    scale: Param<Tensor<1>>,
    shift: Param<Tensor<1>>,
    mean: Param<Tensor<1>>,
    variance: Param<Tensor<1>>,
    stride: usize,
    groups: usize,
    epsilon: f64,
}

#[derive(Module, Debug)]
pub struct Block {
    expansion: Option<Convolution>,
    depthwise: Convolution,
    reduce: Excitation,
    expand: Excitation,
    projection: Convolution,
    residual: bool,
    stage: usize,
    index: usize,
}

/// A layer of squeeze-and-excitation.
#[derive(Module, Debug)]
pub struct Excitation {
    /// [outputs, inputs, 1, 1]
    weight: Param<Tensor<4>>,
    bias: Param<Tensor<1>>,
}

impl Convolution {
    fn load(
        loader: &Loader<'_>,
        [conv, norm]: [&str; 2],
        shape: [usize; 4],
        stride: usize,
        epsilon: f64,
        device: &Device,
    ) -> Result<Self> {
        // Negative variances and values that are too large are told as elsewhere.
        super::folded(loader, conv, norm, &shape, epsilon)?;
        let part = |part: &str| loader.param(&format!("{norm}.{part}"), [shape[0]], device);
        let fixed = |name: &str| part(name).map(|param| param.set_require_grad(false));
        Ok(Self {
            weight: loader.param(&format!("{conv}.weight"), shape, device)?,
            scale: part("weight")?,
            shift: part("bias")?,
            mean: fixed("running_mean")?,
            variance: fixed("running_var")?,
            stride,
            groups: if shape[1] == 1 { shape[0] } else { 1 },
            epsilon,
        })
    }

    fn forward(&self, x: Tensor<4>, how: BurnOptions) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let [outputs, _, kernel, _] = self.weight.dims();
        let map = Map { height, width };
        let (out, before) = map.convolved(kernel, self.stride);
        let both = |size: usize, out: usize, before: usize| {
            let all = ((out - 1) * self.stride + kernel).saturating_sub(size);
            (before, all - before)
        };
        let options = ConvOptions {
            stride: [self.stride; 2],
            padding: [
                both(height, out.height, before[0]),
                both(width, out.width, before[1]),
            ],
            dilation: [1; 2],
            groups: self.groups,
        };
        let factor = self.scale.val() / (self.variance.val() + self.epsilon).sqrt();
        let bias = self.shift.val() - self.mean.val() * factor.clone();
        let weight = self.weight.val() * factor.reshape([outputs, 1, 1, 1]);
        let dtype = dtype(&x);
        let (weight, bias) = (to(weight, dtype), to(bias, dtype));
        if !how.is_split() {
            return conv2d(x, weight, Some(bias), options);
        }
        let x = how.of(x, weight, |x, weight| conv2d(x, weight, None, options.clone()));
        x + bias.reshape([1, outputs, 1, 1])
    }
}

impl Excitation {
    fn load(loader: &Loader<'_>, name: &str, inputs: usize, outputs: usize, device: &Device) -> Result<Self> {
        Ok(Self {
            weight: loader.param(&format!("{name}.weight"), [outputs, inputs, 1, 1], device)?,
            bias: loader.param(&format!("{name}.bias"), [outputs], device)?,
        })
    }

    /// [batch, inputs] to [batch, outputs].
    fn forward(&self, x: Tensor<2>, how: BurnOptions) -> Tensor<2> {
        let [outputs, inputs, _, _] = self.weight.dims();
        let weight = self.weight.val().reshape([outputs, inputs]).transpose();
        how.matmul(x, weight) + self.bias.val().unsqueeze()
    }
}

fn swish<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * sigmoid(x)
}

impl Layered for EfficientNet {
    type Config = EfficientNetConfig;
    type Block = Block;
    type Target = Device;

    fn blocks(config: &EfficientNetConfig) -> Vec<String> {
        prefixes(config)
    }

    fn load_block(
        loader: &Loader<'_>,
        c: &EfficientNetConfig,
        device: &Device,
        prefix: &str,
    ) -> Result<Block> {
        let of = block(c, prefix);
        let names = of.tensors();
        let convolution = |(conv, norm): (&str, &str), shape, stride| {
            let names = [conv, norm].map(|part| format!("{prefix}{part}"));
            Convolution::load(loader, [&names[0], &names[1]], shape, stride, c.epsilon, device)
        };
        let excitation = |part: &str, inputs, outputs| {
            Excitation::load(loader, &format!("{prefix}{part}"), inputs, outputs, device)
        };
        Ok(Block {
            expansion: names
                .expansion
                .map(|names| convolution(names, [of.expanded, of.input, 1, 1], 1))
                .transpose()?,
            depthwise: convolution(names.depthwise, [of.expanded, 1, of.kernel, of.kernel], of.stride)?,
            reduce: excitation(names.reduce, of.expanded, of.squeezed)?,
            expand: excitation(names.expand, of.squeezed, of.expanded)?,
            projection: convolution(names.projection, [of.output, of.expanded, 1, 1], 1)?,
            residual: of.is_residual(),
            stage: of.stage,
            index: of.index,
        })
    }

    fn assemble(
        loader: &Loader<'_>,
        c: &EfficientNetConfig,
        device: &Device,
        blocks: Vec<Block>,
    ) -> Result<Self> {
        let convolution =
            |names, shape, stride| Convolution::load(loader, names, shape, stride, c.epsilon, device);
        let output = c.blocks().last().map_or(c.stem(), |block| block.output);
        let (stem, head) = (
            ["visual.conv_stem", "visual.bn1"],
            ["visual.conv_head", "visual.bn2"],
        );
        Ok(Self {
            stem: convolution(stem, [c.stem(), 3, 3, 3], 2)?,
            blocks,
            head: convolution(head, [c.features(), output, 1, 1], 1)?,
            projection: c
                .projection
                .map(|width| loader.dense("visual.projection", c.features(), width, device))
                .transpose()?,
        })
    }
}

impl EfficientNet {
    /// Pixels `[batch, 3, height, width]` to embeddings `[batch, width]`, not normalised.
    pub(crate) fn forward(&self, pixels: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        let pixels = pass.factor(pixels);
        let (how, trace) = (pass.options(), &mut pass.trace);
        let mut x = swish(self.stem.forward(pixels, how));
        trace.tensor("stem", &x);
        for (i, block) in self.blocks.iter().enumerate() {
            trace.enter(format_args!("block{}.{}", block.stage, block.index));
            x = block.forward(x, how, trace);
            trace.leave();
            if self.blocks.get(i + 1).is_none_or(|next| next.stage > block.stage) {
                trace.tensor(&format!("stage{}", block.stage), &x);
            }
        }
        let x = swish(self.head.forward(x, how));
        trace.tensor("head", &x);
        let x = mean(x);
        trace.tensor("pooled", &x);
        match &self.projection {
            None => x,
            Some(layer) => how.linear(x, layer.weight.val(), layer.bias.as_ref().map(|bias| bias.val())),
        }
    }
}

/// The mean over all places, in single precision: [batch, channels, height, width] to [batch, channels].
fn mean(x: Tensor<4>) -> Tensor<2> {
    let [batch, channels, height, width] = x.dims();
    to(x, FloatDType::F32)
        .reshape([batch, channels, height * width])
        .mean_dim(2)
        .reshape([batch, channels])
}

impl Block {
    fn forward(&self, x: Tensor<4>, how: BurnOptions, trace: &mut Trace<'_>) -> Tensor<4> {
        let before = x.clone();
        let mut x = x;
        if let Some(expansion) = &self.expansion {
            x = swish(expansion.forward(x, how));
            trace.tensor("expand", &x);
        }
        let x = swish(self.depthwise.forward(x, how));
        trace.tensor("depthwise", &x);
        let squeezed = swish(self.reduce.forward(mean(x.clone()), how));
        let gate = sigmoid(self.expand.forward(squeezed, how));
        let [batch, channels] = gate.dims();
        let x = x.clone() * to(gate, dtype(&x)).reshape([batch, channels, 1, 1]);
        trace.tensor("se", &x);
        let x = self.projection.forward(x, how);
        trace.tensor("project", &x);
        match self.residual {
            true => x + before,
            false => x,
        }
    }
}
