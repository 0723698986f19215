//! The image tower, the text tower, and the dual encoder that owns one of each.
//!
//! A tower's sizes come from its configuration and its weights from any [`TensorSource`]. A tower is one Burn
//! module over operations, which the kernels of this crate implement on the CPU and on graphics cards, and
//! Burn on every other device and wherever [`Engine::Burn`] is asked for. All compute the same, and all leave
//! out what the embedding does not depend on:
//!
//! - in the last block only the first token's row is computed after keys and values;
//! - captions are computed at their true length;
//! - where the kernels of this crate compute, the word table stays on the host, and only the rows in use go
//!   to the device; where Burn does, it is on the device, where only ids have to go.

#[cfg(any(feature = "wgpu", feature = "webgpu"))]
mod check;
mod convolution;
mod efficientnet;
mod ernie;
mod image;
mod load;
mod stream;
mod text;
mod transformer;
mod vit;
#[cfg(feature = "webgpu")]
mod webgpu;

use burn::tensor::Device;

#[cfg(feature = "wgpu")]
pub use check::check_gpu;
#[cfg(feature = "webgpu")]
pub use check::check_webgpu;
pub use efficientnet::EfficientNet;
pub use ernie::Ernie;
pub use image::ImageTower;
#[cfg(feature = "train")]
pub(crate) use load::{Layered, Loader, parameter, parameter_id};
pub(crate) use load::{Layers, Target};
pub use stream::{ImageTowerStream, TextTowerStream};
pub use text::{TextTower, TypedCaption};
#[cfg(feature = "train")]
pub(crate) use vit::PATCH_EMBED;
pub use vit::Vit;

use crate::ops::How;
pub use crate::ops::{Attention, BurnOptions, BurnPrecision, Step};
#[cfg(feature = "cube")]
pub use crate::ops::{CardOptions, Precision};
use crate::vectors::Embeddings;
use crate::weights::TensorSource;
use crate::{ImageConfig, ModelConfig, Result};

/// Which implementation runs a tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// The kernels of this crate on the CPU, Burn elsewhere.
    #[default]
    Auto,
    /// Burn on every device.
    Burn(BurnOptions),
    /// The kernels of this crate for graphics cards, on a device of Burn's WebGPU or CUDA backend.
    #[cfg(feature = "cube")]
    Card(CardOptions),
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
        #[cfg(feature = "cube")]
        if let Self::Card(options) = self {
            return How::card(options.is_software);
        }
        How::composed(self.burn())
    }

    /// Where the weights of a tower go.
    fn target(self, device: &Device) -> Target {
        Target {
            device: device.clone(),
            layers: match self {
                #[cfg(feature = "cube")]
                Self::Card(options) => Layers::Card(options),
                _ if self.is_host(device) => Layers::Packed,
                _ => Layers::Together,
            },
        }
    }

    /// How Burn computes.
    pub(crate) fn burn(self) -> BurnOptions {
        match self {
            Self::Burn(options) => options,
            _ => BurnOptions::default(),
        }
    }

    /// Refuses an image tower that what computes does not take.
    fn check_image(self, config: &ImageConfig) -> Result<()> {
        #[cfg(feature = "cube")]
        if let Self::Card(options) = self {
            load::check_image(config, options)?;
        }
        let _ = config;
        Ok(())
    }

    /// Refuses a text tower of a width that what computes does not take.
    fn check_width(self, name: &str, width: usize) -> Result<()> {
        #[cfg(feature = "cube")]
        if let Self::Card(_) = self {
            load::check_width(name, width)?;
        }
        let _ = (name, width);
        Ok(())
    }

    /// Rows that are computed at once, whose widest is of `width` values. On a card it bounds the tensors,
    /// and how long it is busy at a time: a system may take one away that does not answer.
    #[cfg(feature = "cube")]
    fn rows_at_once(self, width: usize) -> usize {
        const MOST_ROWS: usize = 4096;
        match self {
            Self::Card(CardOptions { largest, .. }) if largest > 0 => {
                let most = largest / (4 * width as u64);
                MOST_ROWS.min(usize::try_from(most).unwrap_or(usize::MAX))
            }
            _ => MOST_ROWS,
        }
    }
}

/// A future's result, where the thread may wait for it.
fn wait<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    #[cfg(not(target_family = "wasm"))]
    return pollster::block_on(future);
    #[cfg(target_family = "wasm")]
    {
        drop(future);
        Err(crate::Error::Device(
            "a result cannot be waited for here, expected a call of embed_async".into(),
        ))
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
}
