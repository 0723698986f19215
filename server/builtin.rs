//! The small model and the pairs inside the binary, for a first run without any file.

use anyhow::Result;
use ernie_vil::ModelConfig;

use crate::cli;
use crate::model::Model;

/// What the user must know of the model.
pub const NOTICE: &str = "scenes: a small model trained on drawn pictures; not ERNIE-ViL's weights";

/// "scenes" (models/scenes).
#[cfg(feature = "scenes")]
mod scenes {
    pub const CONFIG: &[u8] = include_bytes!("../models/scenes/config.json");
    pub const VOCAB: &[u8] = include_bytes!("../models/scenes/vocab.txt");
    pub const IMAGE: &[u8] = include_bytes!("../models/scenes/image.safetensors");
    pub const TEXT: &[u8] = include_bytes!("../models/scenes/text.safetensors");
    pub const PAIRS: &[u8] = include_bytes!("../models/scenes/test.tsv");
}

/// What is known of the model without loading it.
#[cfg(feature = "scenes")]
pub fn config() -> Result<ModelConfig> {
    Ok(ModelConfig::from_json(scenes::CONFIG)?)
}

/// Loads the model.
#[cfg(feature = "scenes")]
pub fn model(devices: &[cli::DeviceArgs]) -> Result<Model> {
    use anyhow::Context;
    use ernie_vil::weights::{SafetensorsFile, TensorSource};
    let (image, text) = (
        SafetensorsFile::parse(scenes::IMAGE)?,
        SafetensorsFile::parse(scenes::TEXT)?,
    );
    let sources: [&dyn TensorSource; 2] = [&image, &text];
    Model::from_parts(config()?, scenes::VOCAB, sources, devices).context("the built-in model")
}

/// The model's vocabulary.
#[cfg(feature = "scenes")]
pub fn vocab() -> Result<&'static [u8]> {
    Ok(scenes::VOCAB)
}

/// A thousand captions with their pictures, none of which the model saw in training.
#[cfg(feature = "scenes")]
pub fn pairs() -> Result<&'static [u8]> {
    Ok(scenes::PAIRS)
}

/// Why there is no model.
#[cfg(not(feature = "scenes"))]
fn missing<T>(flag: &str) -> Result<T> {
    anyhow::bail!("no {flag} given, and this binary was built without a model inside (the feature `scenes`)")
}

#[cfg(not(feature = "scenes"))]
pub fn config() -> Result<ModelConfig> {
    missing("--model")
}

#[cfg(not(feature = "scenes"))]
pub fn model(_devices: &[cli::DeviceArgs]) -> Result<Model> {
    missing("--model")
}

#[cfg(not(feature = "scenes"))]
pub fn vocab() -> Result<&'static [u8]> {
    missing("--model")
}

#[cfg(not(feature = "scenes"))]
pub fn pairs() -> Result<&'static [u8]> {
    missing("--input")
}
