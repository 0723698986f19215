//! The sizes of the two towers and what else a model folder's `config.json` says.

mod efficientnet;
mod image;
mod limits;
mod model;
mod preprocessing;
mod structure;
mod text;
mod vit;

pub use efficientnet::{EfficientNetBlock, EfficientNetConfig};
pub use image::ImageConfig;
pub use model::{LOGIT_SCALE, ModelConfig, ModelSource, Published};
pub use preprocessing::Preprocessing;
pub use structure::Structure;
pub use text::{Activation, ErnieConfig};
pub use vit::VitConfig;
