//! The sizes of an EfficientNet.

use serde::Serialize;

use super::limits::{blocks, epsilon, image_size, size};
use crate::{Error, Result};

/// The sizes of an EfficientNet ([`crate::towers::ImageTower`]): those of the paper's smallest network,
/// scaled by two multipliers (Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional
/// Neural Networks").
///
/// In JSON it is read as an [`ImageConfig`](crate::ImageConfig).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EfficientNetConfig {
    /// Height and width of the input, in pixels.
    pub image_size: usize,
    /// What the channels are multiplied by.
    pub width_multiplier: f64,
    /// What the number of blocks is multiplied by.
    pub depth_multiplier: f64,
    /// Batch normalisation's epsilon.
    pub epsilon: f64,
    /// Width of the embedding, where the pooled channels go through a linear layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection: Option<usize>,
}

/// That of the published networks.
pub(super) const EPSILON: f64 = 1e-3;

/// A stage of the unscaled network.
struct Stage {
    output: usize,
    repeats: usize,
    kernel: usize,
    stride: usize,
    expansion: usize,
}

const fn stage(output: usize, repeats: usize, kernel: usize, stride: usize, expansion: usize) -> Stage {
    Stage {
        output,
        repeats,
        kernel,
        stride,
        expansion,
    }
}

/// The paper's table.
const STAGES: [Stage; 7] = [
    stage(16, 1, 3, 1, 1),
    stage(24, 2, 3, 2, 6),
    stage(40, 2, 5, 2, 6),
    stage(80, 3, 3, 2, 6),
    stage(112, 3, 5, 1, 6),
    stage(192, 4, 5, 2, 6),
    stage(320, 1, 3, 1, 6),
];
const STEM: usize = 32;
const HEAD: usize = 1280;
/// Channels come in multiples of this.
const DIVISOR: usize = 8;
/// How large a multiplier may be: twenty times that of the largest published network. No width then comes
/// near its limit.
const LARGEST_MULTIPLIER: f64 = 100.0;

/// One block of an [`EfficientNetConfig`]: an expansion, a depthwise convolution, squeeze-and-excitation, a
/// projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EfficientNetBlock {
    /// The stage that it is in, from 0.
    pub stage: usize,
    /// Its number in the stage, from 0.
    pub index: usize,
    /// Height and width of the depthwise convolution.
    pub kernel: usize,
    /// Its stride.
    pub stride: usize,
    /// Channels that come in.
    pub input: usize,
    /// Channels of the depthwise convolution; as many as come in where nothing is expanded.
    pub expanded: usize,
    /// Channels between the two layers of squeeze-and-excitation.
    pub squeezed: usize,
    /// Channels that go out.
    pub output: usize,
    /// Whether it has an expansion, whose tensors have other names.
    pub expands: bool,
}

impl EfficientNetBlock {
    /// Whether what comes in is added to what goes out.
    pub fn is_residual(&self) -> bool {
        self.stride == 1 && self.input == self.output
    }
}

/// What a block's convolutions, each with its normalisation, and the two layers of squeeze-and-excitation are
/// called in timm.
pub(crate) struct BlockTensors {
    pub(crate) expansion: Option<(&'static str, &'static str)>,
    pub(crate) depthwise: (&'static str, &'static str),
    pub(crate) reduce: &'static str,
    pub(crate) expand: &'static str,
    pub(crate) projection: (&'static str, &'static str),
}

impl EfficientNetBlock {
    pub(crate) fn tensors(&self) -> BlockTensors {
        let (expansion, depthwise, projection) = match self.expands {
            true => (Some(("conv_pw", "bn1")), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
            false => (None, ("conv_dw", "bn1"), ("conv_pw", "bn2")),
        };
        BlockTensors {
            expansion,
            depthwise,
            reduce: "se.conv_reduce",
            expand: "se.conv_expand",
            projection,
        }
    }
}

impl EfficientNetConfig {
    /// EfficientNet-B5, the image tower of ERNIE-ViL 2.0 Base (CNN), at the 456 px of its paper, up to the
    /// pooled channels.
    ///
    /// ```
    /// let config = ernie_vil::EfficientNetConfig::b5();
    /// assert_eq!((config.blocks().len(), config.features()), (39, 2048));
    /// ```
    pub fn b5() -> Self {
        Self {
            image_size: 456,
            width_multiplier: 1.6,
            depth_multiplier: 2.2,
            epsilon: EPSILON,
            projection: None,
        }
    }

    /// EfficientNet-L2, the image tower of ERNIE-ViL 2.0 Large (CNN), at 475 px, up to the pooled channels.
    pub fn l2() -> Self {
        Self {
            image_size: 475,
            width_multiplier: 4.3,
            depth_multiplier: 5.3,
            ..Self::b5()
        }
    }

    /// Channels of the stem.
    pub fn stem(&self) -> usize {
        self.channels(STEM)
    }

    /// Channels that are pooled.
    pub fn features(&self) -> usize {
        self.channels(HEAD)
    }

    /// Width of the embedding.
    pub fn width(&self) -> usize {
        self.projection.unwrap_or(self.features())
    }

    /// All blocks, in order.
    pub fn blocks(&self) -> Vec<EfficientNetBlock> {
        let mut all = Vec::new();
        let mut input = self.stem();
        for (stage, of) in STAGES.iter().enumerate() {
            let output = self.channels(of.output);
            for index in 0..self.repeats(of) {
                all.push(EfficientNetBlock {
                    stage,
                    index,
                    kernel: of.kernel,
                    stride: if index == 0 { of.stride } else { 1 },
                    input,
                    expanded: input * of.expansion,
                    squeezed: input / 4,
                    output,
                    expands: of.expansion > 1,
                });
                input = output;
            }
        }
        all
    }

    /// A number of channels, scaled: to the nearest multiple of eight that is not smaller by more than a
    /// tenth.
    fn channels(&self, base: usize) -> usize {
        let scaled = base as f64 * self.width_multiplier;
        let near = (scaled / DIVISOR as f64 + 0.5).floor() as usize * DIVISOR;
        let near = near.max(DIVISOR);
        match (near as f64) < 0.9 * scaled {
            true => near + DIVISOR,
            false => near,
        }
    }

    fn repeats(&self, stage: &Stage) -> usize {
        (stage.repeats as f64 * self.depth_multiplier).ceil() as usize
    }

    /// Checks every size.
    ///
    /// # Errors
    /// [`Error::Config`] names the field, its value and what was expected.
    pub fn validate(&self) -> Result<()> {
        image_size(self.image_size)?;
        for (field, value) in [
            ("image.width_multiplier", self.width_multiplier),
            ("image.depth_multiplier", self.depth_multiplier),
        ] {
            if !(value > 0.0 && value <= LARGEST_MULTIPLIER) {
                return Err(Error::Config(format!(
                    "{field} is {value}, expected more than 0 and at most {LARGEST_MULTIPLIER}"
                )));
            }
        }
        let depth = STAGES.iter().map(|stage| self.repeats(stage)).sum();
        blocks("the number of blocks by image.depth_multiplier", depth)?;
        epsilon("image.epsilon", self.epsilon)?;
        size("image.projection", self.projection.unwrap_or(1))
    }
}
