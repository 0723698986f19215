//! The image tower EfficientNet: a stem, blocks of depthwise convolutions with squeeze-and-excitation, a
//! head, and the mean over all pixels.

#[cfg(feature = "webgpu")]
mod webgpu;

use burn::module::Module;
use burn::tensor::Tensor;
#[cfg(feature = "webgpu")]
pub(super) use webgpu::GpuEfficientNet;

use super::convolution::Tensors;
use super::load::{Layered, Loader, Target};
use crate::config::EfficientNetBlock;
use crate::kernels::Activation;
use crate::kernels::convolution::Map;
use crate::ops::{Depthwise, Excitation, Linear, Pass};
use crate::{EfficientNetConfig, Result};

/// Height and width of the stem's convolution.
const STEM_KERNEL: usize = 3;
const STEM_STRIDE: usize = 2;

/// An EfficientNet. In training, too, batch normalisation uses the statistics that came with the weights.
#[derive(Module, Debug)]
pub struct EfficientNet {
    /// From the values of [`STEM_KERNEL`]² pixels.
    stem: Linear,
    blocks: Vec<Block>,
    head: Linear,
    projection: Option<Linear>,
    /// Pixels of an image, and the width of its embedding.
    sizes: [usize; 2],
}

/// An expansion, a depthwise convolution, squeeze-and-excitation, and a projection.
#[derive(Module, Debug)]
pub struct Block {
    expansion: Option<Linear>,
    depthwise: Depthwise,
    excitation: Excitation,
    projection: Linear,
    /// Whether what comes in is added to what goes out.
    is_residual: bool,
    stage: usize,
    index: usize,
}

/// What the names of a block's tensors start with.
fn prefix(block: &EfficientNetBlock) -> String {
    format!("visual.blocks.{}.{}.", block.stage, block.index)
}

/// What the names of each block's tensors start with.
fn prefixes(config: &EfficientNetConfig) -> Vec<String> {
    config.blocks().iter().map(prefix).collect()
}

/// The block with this prefix.
fn block(config: &EfficientNetConfig, of: &str) -> EfficientNetBlock {
    let blocks = config.blocks();
    let found = blocks.into_iter().find(|block| prefix(block) == of);
    found.expect("a prefix of one of the blocks")
}

impl Layered for EfficientNet {
    type Config = EfficientNetConfig;
    type Block = Block;
    type Target = Target;

    fn blocks(config: &EfficientNetConfig) -> Vec<String> {
        prefixes(config)
    }

    fn load_block(
        loader: &Loader<'_>,
        c: &EfficientNetConfig,
        target: &Target,
        prefix: &str,
    ) -> Result<Block> {
        let of = block(c, prefix);
        let names = of.tensors();
        let convolution = |(conv, norm): (&str, &str), shape| {
            let names = [conv, norm].map(|part| format!("{prefix}{part}"));
            Tensors::normalised(names, shape, c.epsilon)
        };
        let pixelwise =
            |names, inputs, outputs| convolution(names, [outputs, inputs, 1, 1]).linear(loader, target);
        let excitation = |part: &str, inputs, outputs| {
            Tensors::biased(format!("{prefix}{part}"), inputs, outputs).linear(loader, target)
        };
        Ok(Block {
            expansion: names
                .expansion
                .map(|names| pixelwise(names, of.input, of.expanded))
                .transpose()?,
            depthwise: convolution(names.depthwise, [of.expanded, 1, of.kernel, of.kernel])
                .depthwise(loader, of.stride, target)?,
            excitation: Excitation {
                reduce: excitation(names.reduce, of.expanded, of.squeezed)?,
                expand: excitation(names.expand, of.squeezed, of.expanded)?,
            },
            projection: pixelwise(names.projection, of.expanded, of.output)?,
            is_residual: of.is_residual(),
            stage: of.stage,
            index: of.index,
        })
    }

    fn assemble(
        loader: &Loader<'_>,
        c: &EfficientNetConfig,
        target: &Target,
        blocks: Vec<Block>,
    ) -> Result<Self> {
        let linear = |names: [&str; 2], shape| {
            Tensors::normalised(names.map(str::to_owned), shape, c.epsilon).linear(loader, target)
        };
        let output = c.blocks().last().map_or(c.stem(), |block| block.output);
        let stem = [c.stem(), 3, STEM_KERNEL, STEM_KERNEL];
        Ok(Self {
            stem: linear(["visual.conv_stem", "visual.bn1"], stem)?,
            blocks,
            head: linear(["visual.conv_head", "visual.bn2"], [c.features(), output, 1, 1])?,
            projection: c
                .projection
                .map(|width| loader.linear("visual.projection", c.features(), width, target))
                .transpose()?,
            sizes: [c.image_size * c.image_size, c.width()],
        })
    }
}

impl EfficientNet {
    /// Pixels `[batch, 3, height, width]` to embeddings `[batch, width]`, not normalised.
    pub(crate) fn forward(&self, pixels: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        let (mut x, mut map) = pass.convolve(pixels, &self.stem, STEM_KERNEL, STEM_STRIDE);
        pass.trace.tensor("stem", &x);
        for (i, block) in self.blocks.iter().enumerate() {
            pass.trace
                .enter(format_args!("block{}.{}", block.stage, block.index));
            (x, map) = block.forward(x, map, pass);
            pass.trace.leave();
            if pass.trace.is_on() && self.blocks.get(i + 1).is_none_or(|next| next.stage > block.stage) {
                pass.trace.tensor(&format!("stage{}", block.stage), &x);
            }
        }
        let x = pass.linear(&self.head, x, Activation::Swish);
        pass.trace.tensor("head", &x);
        let x = pass.mean(x, map);
        pass.trace.tensor("pooled", &x);
        match &self.projection {
            None => x,
            Some(layer) => pass.linear_single(layer, x, Activation::None),
        }
    }

    /// Values of the widest row, where the kernels of a card compute it.
    #[cfg(feature = "cube")]
    pub(super) fn widest(&self) -> usize {
        let blocks = self.blocks.iter().map(|block| block.projection.widest());
        blocks.max().unwrap_or(1).max(self.head.widest())
    }

    /// The pixels of one image, and the width of its embedding.
    pub(super) fn sizes(&self) -> (usize, usize) {
        let [pixels, width] = self.sizes;
        (pixels, width)
    }
}

impl Block {
    /// Rows of `map` to rows, and the size of what they are then.
    fn forward(&self, x: Tensor<2>, map: Map, pass: &mut Pass<'_>) -> (Tensor<2>, Map) {
        let residual = self.is_residual.then(|| x.clone());
        let (x, mean) = pass.depthwise(&self.depthwise, x, map, self.expansion.as_ref());
        let gate = pass.gate(&self.excitation, mean);
        let x = pass.gated_linear(&self.projection, x, gate, residual);
        (x, self.depthwise.convolved(map))
    }
}
