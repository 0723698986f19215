//! The image tower, the text tower, and the dual encoder that owns one of each.
//!
//! A tower's sizes come from its configuration and its weights from any [`TensorSource`]. A tower is
//! one Burn module over operations, which the kernels of this crate implement on the CPU, and Burn on every
//! other device and wherever [`Engine::Burn`] is asked for. Both compute the same, and both leave out what
//! the embedding does not depend on:
//!
//! - in the last block only the first token's row is computed after keys and values;
//! - captions are computed at their true length;
//! - on the CPU and by WebGPU the word table stays on the host, and only the rows in use go to the device; a Burn module has
//!   it on the device, where only ids have to go.

mod convolution;
mod efficientnet;
mod ernie;
#[cfg(feature = "wgpu")]
mod gpu;
mod image;
mod load;
mod stream;
mod text;
mod transformer;
mod vit;

use burn::tensor::Device;

pub use efficientnet::EfficientNet;
pub use ernie::Ernie;
#[cfg(feature = "wgpu")]
pub use gpu::check_gpu;
pub use image::ImageTower;
#[cfg(feature = "train")]
pub(crate) use load::{Layered, Loader, parameter, parameter_id};
pub(crate) use load::{Layers, Target};
pub use stream::{ImageTowerStream, TextTowerStream};
pub use text::{TextTower, TypedCaption};
#[cfg(feature = "train")]
pub(crate) use vit::PATCH_EMBED;
pub use vit::Vit;

#[cfg(feature = "wgpu")]
use crate::gpu::Gpu;
use crate::ops::How;
pub use crate::ops::{Attention, BurnOptions, BurnPrecision, Step};
use crate::vectors::Embeddings;
use crate::weights::TensorSource;
use crate::{ModelConfig, Result};

/// Which implementation runs a tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// The kernels of this crate on the CPU, Burn elsewhere.
    #[default]
    Auto,
    /// Burn on every device.
    Burn(BurnOptions),
}

impl Engine {
    /// Burn as it is.
    pub const BURN: Self = Self::of(BurnPrecision::Device);
    /// Burn, with products of all bits of single precision on devices that would take fewer.
    pub const BURN_SINGLE: Self = Self::of(BurnPrecision::Single);
    /// Burn in half precision.
    pub const BURN_F16: Self = Self::of(BurnPrecision::F16);
    /// Burn in bfloat16.
    pub const BURN_BF16: Self = Self::of(BurnPrecision::Bf16);

    const fn of(precision: BurnPrecision) -> Self {
        Self::Burn(BurnOptions {
            precision,
            attention: Attention::Products,
        })
    }

    fn is_host(self, device: &Device) -> bool {
        #[cfg(feature = "flex")]
        return self == Engine::Auto && *device == Device::flex() && !device.is_autodiff();
        #[cfg(not(feature = "flex"))]
        return false;
    }

    /// How the operations of a tower on this device are computed.
    #[cfg_attr(not(feature = "flex"), allow(unused_variables))]
    fn how(self, device: &Device) -> How {
        #[cfg(feature = "flex")]
        if self.is_host(device) {
            return How::packed();
        }
        How::composed(self.burn())
    }

    /// Where the weights of a tower go.
    fn target(self, device: &Device) -> Target {
        Target {
            device: device.clone(),
            layers: match self.is_host(device) {
                true => Layers::Packed,
                false => Layers::Together,
            },
        }
    }

    /// How Burn computes.
    pub(crate) fn burn(self) -> BurnOptions {
        match self {
            Self::Auto => BurnOptions::default(),
            Self::Burn(options) => options,
        }
    }
}

fn normalised(raw: Vec<f32>, width: usize) -> Result<Embeddings> {
    let mut embeddings = Embeddings::new(raw.len() / width, width, raw)?;
    embeddings.normalise()?;
    Ok(embeddings)
}

/// A model's two towers, either of which may be absent.
pub struct DualEncoder {
    /// What the model folder says of the model.
    pub config: ModelConfig,
    /// The image tower, where it was loaded.
    pub image: Option<ImageTower>,
    /// The text tower, where it was loaded.
    pub text: Option<TextTower>,
}

impl DualEncoder {
    /// Loads the towers for which there is a source.
    ///
    /// # Errors
    /// Those of [`ImageTower::load`] and [`TextTower::load`].
    pub fn load(
        config: ModelConfig,
        image: Option<&dyn TensorSource>,
        text: Option<&dyn TensorSource>,
        device: &Device,
        engine: Engine,
    ) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            image: image
                .map(|s| ImageTower::load(s, &config.image, device, engine))
                .transpose()?,
            text: text
                .map(|s| TextTower::load(s, &config.text, device, engine))
                .transpose()?,
            config,
        })
    }

    /// As [`DualEncoder::load`], on a graphics card by this crate's kernels.
    ///
    /// # Errors
    /// Those of [`ImageTower::load_on_gpu`] and [`TextTower::load_on_gpu`].
    #[cfg(feature = "wgpu")]
    pub fn load_on_gpu(
        config: ModelConfig,
        image: Option<&dyn TensorSource>,
        text: Option<&dyn TensorSource>,
        gpu: &Gpu,
    ) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            image: image
                .map(|s| ImageTower::load_on_gpu(s, &config.image, gpu))
                .transpose()?,
            text: text
                .map(|s| TextTower::load_on_gpu(s, &config.text, gpu))
                .transpose()?,
            config,
        })
    }
}
