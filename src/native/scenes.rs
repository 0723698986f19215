//! The small model "scenes", trained on drawn pictures, and the pairs that it is tested with: for a first run
//! without any file. It shows that everything works, not how well ERNIE-ViL 2.0 retrieves.
//!
//! ```no_run
//! use ernie_vil::native::{Device, scenes};
//! # fn main() -> ernie_vil::native::Result<()> {
//! let model = scenes::model(&[Device::Cpu.into()])?;
//! assert_eq!(model.config().name, scenes::config()?.name);
//! # Ok(())
//! # }
//! ```

use super::Result;
use super::device::DeviceOptions;
use super::error::Context;
use super::model::Model;
use crate::ModelConfig;
use crate::weights::{SafetensorsFile, TensorSource};

/// What users of the model have to see.
pub const NOTICE: &str = "scenes: a small model trained on drawn pictures; not ERNIE-ViL's weights";

const CONFIG: &[u8] = include_bytes!("../../models/scenes/config.json");
const IMAGE: &[u8] = include_bytes!("../../models/scenes/image.safetensors");
const TEXT: &[u8] = include_bytes!("../../models/scenes/text.safetensors");
/// The model's vocabulary.
pub const VOCAB: &[u8] = include_bytes!("../../models/scenes/vocab.txt");
/// A thousand captions with their pictures, none of which the model saw in training.
pub const PAIRS: &[u8] = include_bytes!("../../models/scenes/test.tsv");

/// What is known of the model without loading it.
///
/// # Errors
/// None, unless this library was built from other files than its own.
pub fn config() -> Result<ModelConfig> {
    Ok(ModelConfig::from_json(CONFIG)?)
}

/// Loads the model onto devices, of which there has to be at least one.
///
/// # Errors
/// Where a device cannot be used.
pub fn model(devices: &[DeviceOptions]) -> Result<Model> {
    let (image, text) = (SafetensorsFile::parse(IMAGE)?, SafetensorsFile::parse(TEXT)?);
    let sources: [&dyn TensorSource; 2] = [&image, &text];
    Model::from_parts(config()?, VOCAB, sources, devices).context("the built-in model")
}
